//! A master that Sentinel moves: it is found by name, and followed wherever it goes.

use std::fs;
use std::time::Duration;

use tempfile::TempDir;

use crate::harness::process::Process;
use crate::harness::{
    Archive, Client, DEADLINE, Digest, Kind, Perennial, Port, Server, Value, assert_same, until,
};
use crate::on_every_server;

on_every_server! {
    oldest, usual and newest;
    it_is_followed_through_failovers, who_is_cut_off_is_not_believed,
}
on_every_server! {
    up to 7.0;
    the_promoted_one_is_followed_before_every_replica_knows,
}
on_every_server! {
    since 7.0;
    an_empty_master_is_filled_before_anybody_takes_over,
}

/// What Sentinel calls the data set.
const NAME: &str = "guestbook";
/// Until Sentinel has seen a death, agreed on it and promoted somebody.
const FAILOVER: Duration = Duration::from_secs(90);

/// A Sentinel of the test's own.
struct Sentinel {
    _process: Process,
    _folder: TempDir,
    port: Port,
}

impl Sentinel {
    /// One that alone decides, watching the server at this address, which it takes for dead after `down_millis`.
    fn start(kind: Kind, master: &str, down_millis: u64) -> Self {
        Self::patient(kind, master, down_millis, 3000)
    }

    /// One that gives replicas so long to follow a failover.
    fn patient(kind: Kind, master: &str, down_millis: u64, failover_millis: u64) -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), Port::reserve());
        let (host, master_port) = master.split_once(':').unwrap();
        let file = folder.path().join("sentinel.conf");
        let config = format!(
            "port {}\nbind 127.0.0.1\ndir {}\nsentinel monitor {NAME} {host} {master_port} 1\n\
             sentinel down-after-milliseconds {NAME} {down_millis}\nsentinel failover-timeout {NAME} {failover_millis}\n",
            port.number,
            folder.path().display(),
        );
        fs::write(&file, config).unwrap();
        let process = Process::start(
            "sentinel",
            &kind.find().unwrap(),
            &[file.display().to_string(), "--sentinel".into()],
            &[],
            &folder.path().join("log"),
        );
        let sentinel = Self {
            _process: process,
            _folder: folder,
            port,
        };
        until("Sentinel answers", DEADLINE, || {
            let mut client = Client::connect(&sentinel.address()).ok()?;
            client.command(&["PING"]).ok()
        });
        sentinel
    }

    fn address(&self) -> String {
        self.port.address()
    }

    /// The master's port.
    fn names(&self) -> u16 {
        let mut client = Client::connect(&self.address()).unwrap();
        let answer = client.line(&format!("SENTINEL GET-MASTER-ADDR-BY-NAME {NAME}"));
        answer.array()[1].text().parse().unwrap()
    }

    fn until_it_names(&self, server: &Server) {
        until("Sentinel names the other server", FAILOVER, || {
            self.names() == server.port() && server.is_master()
        });
    }

    /// In order, with everybody alive.
    fn moves_to(&self, server: &Server) {
        until("Sentinel moves it", FAILOVER, || {
            let mut client = Client::connect(&self.address()).unwrap();
            let answer = client.command(&["SENTINEL", "FAILOVER", NAME]);
            matches!(answer, Ok(Value::Simple(_)))
        });
        self.until_it_names(server);
    }
}

/// The flags with which this Sentinel is asked.
fn asking(sentinels: &[&Sentinel]) -> Vec<String> {
    let addresses: Vec<String> = sentinels.iter().map(|one| one.address()).collect();
    vec![
        "--sentinel".into(),
        addresses.join(","),
        "--sentinel-master".into(),
        NAME.into(),
    ]
}

fn follow(archive: &Archive, sentinels: &[&Sentinel]) -> Perennial {
    let flags = asking(sentinels);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    // Nobody is there: the Sentinels know better.
    Perennial::follow_url("redis://127.0.0.1:1", archive, &flags)
}

fn replica_of(kind: Kind, master: &Server) -> Option<Server> {
    let port = master.port().to_string();
    let replica = kind.start(&["--replicaof", "127.0.0.1", &port])?;
    until("the replica is one, and not young", DEADLINE, || {
        is_linked(&replica) && replica.is_not_young()
    });
    Some(replica)
}

fn is_linked(replica: &Server) -> bool {
    // Sentinel closes the connections of whoever asks when it gives it another master.
    let info = replica.try_info("replication").unwrap_or_default();
    info.get("master_link_status").map(String::as_str) == Some("up")
}

/// Writes, and waits until everybody who is attached has it.
#[track_caller]
fn write(server: &Server, key: &str, attached: i64) {
    let mut client = server.client();
    until("the write is everywhere", FAILOVER, || {
        client.line(&format!("SET {key} {key}"));
        client.line(&format!("WAIT {attached} 1000")).integer() == attached
    });
}

fn it_is_followed_through_failovers(kind: Kind) {
    let Some(mut first) = kind.start(&[]) else {
        return;
    };
    let second = replica_of(kind, &first).unwrap();
    let sentinel = Sentinel::start(kind, &first.address(), 1000);
    let archive = Archive::new();
    let mut perennial = follow(&archive, &[&sentinel]);
    write(&first, "before", 2);

    // A death.
    first.kill();
    sentinel.until_it_names(&second);
    write(&second, "after", 1);
    archive.status().assert_chain_of(2);

    // The dead one comes back empty; it is nobody's master, so it is not filled from the archive but by the new one.
    first.remove_dump();
    first.start_again();
    until("it is a replica, and not young", FAILOVER, || {
        is_linked(&first) && first.is_not_young()
    });
    write(&second, "with-both", 2);

    // And the other way, in order.
    sentinel.moves_to(&first);
    write(&first, "at-last", 2);

    let before = Digest::of(&first.address());
    let status = archive.status();
    assert!(status.problems.is_empty(), "{status:#?}");
    status.assert_chain_of(3);
    let folder = archive.restore("restored", &[]);
    let restored = kind.start_on(&folder).unwrap();
    assert_same(&before, &Digest::of(&restored.address()));
    assert!(
        perennial.log().contains("Sentinel names"),
        "{}",
        perennial.log()
    );
    perennial.assert_healthy();
}

/// A Sentinel that saw nothing of a failover names another server, which is alive and takes writes of whoever is cut off
/// with it.
fn who_is_cut_off_is_not_believed(kind: Kind) {
    let Some(first) = kind.start(&[]) else {
        return;
    };
    let (second, stray) = (replica_of(kind, &first).unwrap(), kind.start(&[]).unwrap());
    let informed = Sentinel::start(kind, &first.address(), 60_000);
    informed.moves_to(&second);
    stray.client().line("SET stray 1");
    let cut_off = Sentinel::start(kind, &stray.address(), 60_000);
    assert_eq!(cut_off.names(), stray.port());

    let archive = Archive::new();
    let mut perennial = follow(&archive, &[&cut_off, &informed]);
    write(&second, "here", 2);
    let folder = archive.restore("restored", &[]);
    let restored = kind.start_on(&folder).unwrap();
    let mut client = restored.client();
    assert_eq!(client.line("EXISTS here").integer(), 1);
    assert_eq!(client.line("EXISTS stray").integer(), 0);
    assert_eq!(stray.info_number("replication", "connected_slaves"), 0);
    perennial.assert_healthy();
}

/// Until every replica was told, minutes where one hangs, `SENTINEL MASTER` goes on naming the old master.
fn the_promoted_one_is_followed_before_every_replica_knows(kind: Kind) {
    let Some(first) = kind.start(&[]) else {
        return;
    };
    let second = replica_of(kind, &first).unwrap();
    second.client().line("CONFIG SET replica-priority 1");
    let mut third = replica_of(kind, &first).unwrap();
    let sentinel = Sentinel::patient(kind, &first.address(), 60_000, 300_000);
    let archive = Archive::new();
    let mut perennial = follow(&archive, &[&sentinel]);
    write(&first, "before", 3);
    third.pause();
    until("Sentinel promotes the second", FAILOVER, || {
        let mut client = Client::connect(&sentinel.address()).unwrap();
        let _ = client.command(&["SENTINEL", "FAILOVER", NAME]);
        second.is_master()
    });
    // Nobody else is attached to it yet.
    write(&second, "after", 1);
    third.resume();
    archive.status().assert_chain_of(2);
    perennial.assert_healthy();
}

/// Whoever restarts faster than Sentinel notices stays the master, with nothing: it gets its data back before replicas
/// copy the emptiness for good.
fn an_empty_master_is_filled_before_anybody_takes_over(kind: Kind) {
    let Some(mut first) = kind.start(&[]) else {
        return;
    };
    let second = replica_of(kind, &first).unwrap();
    let sentinel = Sentinel::start(kind, &first.address(), 60_000);
    let archive = Archive::new();
    let mut perennial = follow(&archive, &[&sentinel]);
    write(&first, "kept", 2);
    let before = Digest::of(&first.address());
    first.lose_everything();
    first.until_master_with_data();
    assert_same(&before, &Digest::of(&first.address()));
    write(&first, "after", 2);
    assert_same(
        &Digest::of(&first.address()),
        &Digest::of(&second.address()),
    );
    assert!(archive.status().problems.is_empty());
    perennial.assert_healthy();
}
