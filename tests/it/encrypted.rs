//! TLS in both directions: the loop with a server that speaks nothing else, and what a handshake that fails says.
//! The servers also have a port without TLS, for the clients of the tests.

use crate::harness::certificates::{Authority, Identity};
use crate::harness::workload::write_everything;
use crate::harness::{
    Archive, DEADLINE, Digest, Kind, Perennial, Port, REDIS_7_0, Server, assert_same, servers,
    until,
};

/// A server with a TLS port, and what is needed to reach it.
struct Secured {
    server: Server,
    tls: Port,
    authority: Authority,
    ours: Identity,
}

impl Secured {
    /// With the default `tls-auth-clients yes`: whoever connects must show a certificate.
    fn start(kind: Kind, more: &[&str]) -> Option<Self> {
        let authority = Authority::new();
        let certificate = authority.identity("server", &["127.0.0.1", "redis.test"]);
        Self::start_with(kind, authority, &certificate, more)
    }

    fn start_with(
        kind: Kind,
        authority: Authority,
        certificate: &Identity,
        more: &[&str],
    ) -> Option<Self> {
        let tls = Port::reserve();
        let ca = authority.file();
        let port = tls.number.to_string();
        let mut config = vec![
            "--tls-port",
            &port,
            "--tls-cert-file",
            &certificate.certificate,
            "--tls-key-file",
            &certificate.key,
            "--tls-ca-cert-file",
            &ca,
        ];
        config.extend(more);
        let server = kind.start(&config)?;
        let ours = authority.identity("perennial", &["127.0.0.1"]);
        Some(Self {
            server,
            tls,
            authority,
            ours,
        })
    }

    fn url(&self) -> String {
        format!("rediss://{}", self.tls.address())
    }

    /// `perennial run` with our certificate and the authority, and more flags.
    fn follow(&self, archive: &Archive, more: &[&str]) -> Perennial {
        let ca = self.authority.file();
        let mut flags = vec![
            "--redis-ca-file",
            &ca,
            "--redis-cert-file",
            &self.ours.certificate,
            "--redis-key-file",
            &self.ours.key,
        ];
        flags.extend(more);
        Perennial::follow_url(&self.url(), archive, &flags)
    }

    fn lose_everything(&mut self) {
        self.server.kill();
        let _ = std::fs::remove_file(self.server.folder().join("dump.rdb"));
        self.server.start_again();
    }
}

#[track_caller]
fn stored_digest(server: &Server) -> Digest {
    server.client().wait_until_stored(DEADLINE);
    Digest::of(&server.address())
}

/// Follow, WAIT, kill -9, seed, follow again: control connection, link, snapshot and seed, all of them by TLS.
fn the_whole_loop(kind: Kind) {
    let Some(mut secured) = Secured::start(kind, &["--tls-replication", "yes"]) else {
        return;
    };
    let archive = Archive::new();
    write_everything(&mut secured.server.client(), 0);
    let ca = secured.authority.file();
    let ours = secured.ours.clone();
    let mut perennial = secured.follow(
        &archive,
        &[
            "--seed-cert-file",
            &ours.certificate,
            "--seed-key-file",
            &ours.key,
            "--seed-client-ca-file",
            &ca,
        ],
    );
    archive.until_durable();
    for generation in 1..=2 {
        write_everything(&mut secured.server.client(), generation);
        let before = stored_digest(&secured.server);
        secured.lose_everything();
        secured.server.until_master_with_data();
        assert_same(&before, &Digest::of(&secured.server.address()));
    }
    secured.server.client().wait_until_stored(DEADLINE);
    archive.status().assert_chain_of(3);
    perennial.assert_healthy();
}

#[test]
fn the_whole_loop_redis_7_0() {
    the_whole_loop(REDIS_7_0);
}

#[test]
fn the_whole_loop_redis_8_0() {
    the_whole_loop(servers::REDIS_8_0);
}

#[test]
fn the_whole_loop_valkey_8_1() {
    the_whole_loop(servers::VALKEY_8_1);
}

/// `tls-replication no`, as it comes: TLS for clients, none for the seed.
#[test]
fn a_server_that_connects_without_tls_is_let_in_beside_those_that_do() {
    let Some(mut secured) = Secured::start(REDIS_7_0, &[]) else {
        return;
    };
    let archive = Archive::new();
    let ours = secured.ours.clone();
    let _perennial = secured.follow(
        &archive,
        &[
            "--seed-cert-file",
            &ours.certificate,
            "--seed-key-file",
            &ours.key,
        ],
    );
    archive.until_durable();
    secured.server.client().line("SET kept 1");
    let before = stored_digest(&secured.server);
    secured.lose_everything();
    secured.server.until_master_with_data();
    assert_same(&before, &Digest::of(&secured.server.address()));
}

/// `tls-replication yes` and no certificate for the seed address: said by name, the server given back, and as soon as the
/// server comes without TLS it is filled.
#[test]
fn a_seed_by_tls_without_a_certificate_fails_by_name() {
    let Some(mut secured) = Secured::start(REDIS_7_0, &["--tls-replication", "yes"]) else {
        return;
    };
    let archive = Archive::new();
    let perennial = secured.follow(&archive, &[]);
    archive.until_durable();
    secured.server.client().line("SET kept 1");
    let before = stored_digest(&secured.server);
    secured.lose_everything();
    perennial.until_logged("seed address: a server at 127.0.0.1 came, but it connects by TLS");
    perennial.until_logged("not ready: seed failed: a server at 127.0.0.1 came, but it connects by TLS (tls-replication yes) and there is no certificate to answer with: give --seed-cert-file");
    until("it was given back", DEADLINE, || {
        secured.server.is_master() && secured.server.keys() == Some(0)
    });
    secured
        .server
        .client()
        .line("CONFIG SET tls-replication no");
    secured.server.until_master_with_data();
    assert_same(&before, &Digest::of(&secured.server.address()));
}

/// The certificate at the seed address is of an authority that the server does not know.
#[test]
fn a_seed_certificate_that_the_server_refuses_is_said() {
    let Some(mut secured) = Secured::start(REDIS_7_0, &["--tls-replication", "yes"]) else {
        return;
    };
    let foreign = Authority::new().identity_kept("seed", &["127.0.0.1"]);
    let archive = Archive::new();
    let perennial = secured.follow(
        &archive,
        &[
            "--seed-cert-file",
            &foreign.1.certificate,
            "--seed-key-file",
            &foreign.1.key,
        ],
    );
    archive.until_durable();
    secured.server.client().line("SET kept 1");
    secured.server.client().wait_until_stored(DEADLINE);
    secured.lose_everything();
    perennial.until_logged("the server refuses the certificate of --seed-cert-file");
    perennial.until_logged("not ready: seed failed");
}

/// The announced port answers by TLS too, or the server would stay read-only until somebody aborts.
#[test]
fn a_failover_that_picks_us_by_tls_aborts_cleanly() {
    let Some(secured) = Secured::start(REDIS_7_0, &["--tls-replication", "yes"]) else {
        return;
    };
    let archive = Archive::new();
    let ours = secured.ours.clone();
    let flags = [
        "--seed-cert-file",
        &ours.certificate,
        "--seed-key-file",
        &ours.key,
    ];
    let mut perennial = secured.follow(&archive, &flags);
    archive.until_durable();
    let server = &secured.server;
    let mut client = server.client();
    client.line("SET before 1");
    client.wait_until_stored(DEADLINE);
    assert_eq!(client.line("FAILOVER").text(), "OK");
    until("the failover has ended", DEADLINE, || {
        let info = server.info("replication");
        info["role"] == "master" && info["master_failover_state"] == "no-failover"
    });
    assert!(server.log().contains("Failover"), "{}", server.log());
    client.line("SET after 1");
    client.wait_until_stored(DEADLINE);
    perennial.assert_healthy();
}

/// What a handshake that fails says; in each case it goes on trying.
#[track_caller]
fn says(mut perennial: Perennial, said: &[&str]) {
    for text in said {
        perennial.until_logged(text);
    }
    perennial.assert_healthy();
}

#[test]
fn an_unknown_authority_is_said_and_a_new_file_is_read() {
    let Some(secured) = Secured::start(REDIS_7_0, &["--tls-auth-clients", "no"]) else {
        return;
    };
    let other = Authority::new();
    let archive = Archive::new();
    let url = secured.url();
    let trusted = archive.beside("ca.pem");
    std::fs::copy(other.file(), &trusted).unwrap();
    let flags = ["--redis-ca-file", trusted.to_str().unwrap()];
    let mut perennial = Perennial::follow_url(&url, &archive, &flags);
    perennial.until_logged("not signed by an authority that is trusted here");
    perennial.until_logged(&url);
    // The file is read again for each connection. Here nobody asks for a certificate of ours.
    std::fs::copy(secured.authority.file(), &trusted).unwrap();
    archive.until_durable();
    perennial.assert_healthy();
}

#[test]
fn another_name_is_said_and_can_be_given() {
    let authority = Authority::new();
    let certificate = authority.identity("server", &["redis.test"]);
    let Some(secured) = Secured::start_with(REDIS_7_0, authority, &certificate, &[]) else {
        return;
    };
    let archive = Archive::new();
    says(
        secured.follow(&archive, &[]),
        &["redis.test", "--redis-server-name"],
    );
    let _perennial = secured.follow(&archive, &["--redis-server-name", "redis.test"]);
    archive.until_durable();
}

#[test]
fn an_authority_that_is_the_server_itself_is_said() {
    let authority = Authority::new();
    let own = authority.own();
    let Some(secured) = Secured::start_with(REDIS_7_0, authority, &own, &[]) else {
        return;
    };
    let archive = Archive::new();
    says(
        secured.follow(&archive, &[]),
        &["an authority's own certificate"],
    );
}

#[test]
fn an_expired_certificate_is_said() {
    let authority = Authority::new();
    let certificate = authority.expired("server", &["127.0.0.1"]);
    let Some(secured) = Secured::start_with(REDIS_7_0, authority, &certificate, &[]) else {
        return;
    };
    let archive = Archive::new();
    says(
        secured.follow(&archive, &[]),
        &["the server's certificate has expired"],
    );
}

#[test]
fn a_client_certificate_that_is_missing_or_refused_is_said() {
    for protocol in ["TLSv1.3", "TLSv1.2"] {
        let Some(secured) = Secured::start(REDIS_7_0, &["--tls-protocols", protocol]) else {
            return;
        };
        let archive = Archive::new();
        let ca = secured.authority.file();
        let without = Perennial::follow_url(&secured.url(), &archive, &["--redis-ca-file", &ca]);
        says(without, &["--redis-cert-file and --redis-key-file"]);
        let (_foreign, identity) = Authority::new().identity_kept("foreign", &["127.0.0.1"]);
        let flags = [
            "--redis-ca-file",
            &ca,
            "--redis-cert-file",
            &identity.certificate,
            "--redis-key-file",
            &identity.key,
        ];
        let foreign = Perennial::follow_url(&secured.url(), &archive, &flags);
        says(
            foreign,
            &["the server refuses the certificate of --redis-cert-file"],
        );
    }
}

#[test]
fn tls_on_a_plain_port_and_a_plain_connection_to_a_tls_port_are_said() {
    let Some(secured) = Secured::start(REDIS_7_0, &[]) else {
        return;
    };
    let archive = Archive::new();
    let plain = format!("redis://{}", secured.tls.address());
    says(
        Perennial::follow_url(&plain, &archive, &[]),
        &["write rediss:// in --redis"],
    );
    let url = format!("rediss://{}", secured.server.address());
    let flags = ["--redis-ca-file", &secured.authority.file()];
    says(
        Perennial::follow_url(&url, &archive, &flags),
        &["write redis:// instead"],
    );
}
