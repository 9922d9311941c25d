//! A first sync into a store that takes far less than the master sends: with a spool the payload is received at the master's
//! pace and waits there; without one the master waits, and holds nothing for us. Either way it ends well.

use std::time::Duration;

use crate::harness::random::Random;
use crate::harness::s3::{SECRET, WRITER, environment};
use crate::harness::servers::VALKEY_9_1;
use crate::harness::{
    Archive, Churn, ClientLink, DEADLINE, Digest, Kind, Mix, Perennial, Proxy, REDIS_7_0,
    RESIDENT_BYTES_MAX, S3Server, Server, assert_same, until,
};
use crate::on_every_server;

const MIB: usize = 1024 * 1024;
/// More than memory holds, and not to be compressed.
const DATA_MIB: usize = 64;
/// The data would take four minutes.
const CRAWL_BYTES_PER_SECOND: u64 = 256 * 1024;
/// What the master may hold for us at any look.
const OUTPUT_BUFFER_BYTES_MAX: u64 = 1024 * 1024;
/// Until the rest is stored, by a debug build.
const RECOVERY: Duration = Duration::from_secs(180);

on_every_server! {
    oldest, usual and newest;
    a_payload_waits_in_the_spool,
}

/// A server with data, and a bucket behind a line that can be made slow.
struct Scene {
    server: Server,
    proxy: Proxy,
    /// Behind the slow line.
    archive: Archive,
    /// The same, looked at over a line of its own.
    direct: Archive,
    _bucket: S3Server,
}

impl Scene {
    fn begin(kind: Kind, flags: &[&str]) -> Option<Self> {
        let server = kind.start(&[&["--repl-diskless-sync-delay", "0"], flags].concat())?;
        let (mut client, mut random) = (server.client(), Random::new());
        for number in 0..DATA_MIB {
            let key = format!("large:{number}");
            client.ok(&[b"SET".as_slice(), key.as_bytes(), &random.bytes(MIB)]);
        }
        let bucket = S3Server::in_process();
        let proxy = Proxy::to(&bucket.address());
        let url = bucket.url_through(&proxy.address(), "a");
        Some(Self {
            server,
            archive: Archive::at(url, environment(WRITER, SECRET)),
            direct: Archive::at(bucket.url("a"), environment(WRITER, SECRET)),
            proxy,
            _bucket: bucket,
        })
    }

    fn held_for_us(&self) -> u64 {
        let links = ClientLink::of_replicas(&self.server);
        links.iter().map(|link| link.output_bytes).sum()
    }

    /// Whether the master has nothing more to send than its replication stream.
    fn is_sent(&self) -> bool {
        let replication = self.server.client().ok(&["INFO", "replication"]).text();
        self.server.info_number("stats", "sync_full") >= self.syncs_of_a_first_one()
            && self
                .server
                .info_number("persistence", "rdb_bgsave_in_progress")
                == 0
            && self.server.info_number("replication", "connected_slaves") == 1
            && replication.contains("state=online")
    }

    /// Since 7.0 one for the link, without data, and one for the payload.
    fn syncs_of_a_first_one(&self) -> u64 {
        if self.server.kind().speaks >= (7, 0) {
            2
        } else {
            1
        }
    }

    /// The store goes at its usual pace again: everything is stored, and is what the server has.
    fn ends_well(&self, mut perennial: Perennial) {
        self.proxy.crawl(0);
        self.direct
            .until("the snapshot is stored", RECOVERY, |status| {
                status.durable_offset.is_some()
            });
        self.server.client().wait_until_stored(RECOVERY);
        let before = Digest::of(&self.server.address());
        let folder = self.direct.restore("restored", &[]);
        let restored = self.server.kind().start_on(&folder).unwrap();
        assert_same(&before, &Digest::of(&restored.address()));
        let resident = perennial.resident_bytes_peak().unwrap();
        eprintln!("{} MiB resident at most", resident >> 20);
        assert!(resident < RESIDENT_BYTES_MAX, "{resident} bytes resident");
        perennial.assert_healthy();
    }
}

fn a_payload_waits_in_the_spool(kind: Kind) {
    let Some(scene) = Scene::begin(kind, &[]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().to_str().unwrap();
    scene.proxy.crawl(CRAWL_BYTES_PER_SECOND);
    let perennial = Perennial::follow_url(
        &scene.server.url(),
        &scene.archive,
        &["--spool-dir", spool, "--spool-bytes", "1GiB"],
    );
    until("the payload is received", 2 * DEADLINE, || scene.is_sent());
    let churn = Churn::start(&scene.server.address(), Mix::MOSTLY_READS);
    let before = churn.done();
    until("clients are served", DEADLINE, || {
        assert!(scene.held_for_us() < OUTPUT_BUFFER_BYTES_MAX);
        churn.done() > before + 20_000
    });
    churn.stop();
    assert_eq!(
        scene.direct.status().snapshots(),
        0,
        "the store was not slow"
    );
    let syncs = scene.server.info_number("stats", "sync_full");
    assert_eq!(syncs, scene.syncs_of_a_first_one());
    scene.ends_well(perennial);
    assert_eq!(scene.server.info_number("stats", "sync_full"), syncs);
}

/// Without a spool the second connection waits, perhaps until the master gives it up; the link beside it does not.
#[test]
fn without_a_spool_the_master_waits_and_holds_nothing() {
    for kind in [REDIS_7_0, VALKEY_9_1] {
        let Some(scene) = Scene::begin(kind, &["--repl-timeout", "5"]) else {
            return;
        };
        scene.proxy.crawl(CRAWL_BYTES_PER_SECOND);
        let perennial = Perennial::follow_url(&scene.server.url(), &scene.archive, &[]);
        until("the payload has begun", 2 * DEADLINE, || {
            scene.server.info_number("stats", "sync_full") == 2
        });
        let churn = Churn::start(&scene.server.address(), Mix::MOSTLY_READS);
        let before = churn.done();
        until("clients are served", DEADLINE, || {
            assert!(scene.held_for_us() < OUTPUT_BUFFER_BYTES_MAX);
            churn.done() > before + 20_000
        });
        churn.stop();
        assert_eq!(
            scene.direct.status().snapshots(),
            0,
            "the store was not slow"
        );
        scene.ends_well(perennial);
    }
}
