//! The spool on a real server: what memory does not hold waits in scratch files, beyond that in the master's backlog, and
//! what cannot be read back comes again.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use perennial::clock::SystemClock;
use perennial::config::RunSettings;
use perennial::store::faulty::Faults;

use crate::harness::random::Random;
use crate::harness::{
    Archive, Churn, ClientLink, DEADLINE, Digest, InProcess, Mix, REDIS_7_0, Server, assert_same,
    holds_for, until,
};

const MIB: u64 = 1024 * 1024;

/// Perennial in this process with little memory and a spool, its store in order so far.
struct Scene {
    server: Server,
    archive: Archive,
    faults: Faults,
    folder: tempfile::TempDir,
    perennial: InProcess,
    full_syncs: u64,
    partial_syncs: u64,
}

impl Scene {
    fn begin(spool_bytes: &str) -> Option<Self> {
        let server = REDIS_7_0.start(&["--repl-backlog-size", "512mb"])?;
        Self::with(server, spool_bytes, |_| {})
    }

    fn with(server: Server, spool_bytes: &str, change: fn(&mut RunSettings)) -> Option<Self> {
        let (archive, faults) = (Archive::new(), Faults::new());
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(SystemClock::new());
        let url = server.url();
        let perennial = InProcess::follow_with(&url, &archive, &faults, clock, |settings| {
            settings.buffer_bytes = "24MiB".into();
            settings.spool_dir = Some(folder.path().to_owned());
            settings.spool_bytes = spool_bytes.into();
            change(settings);
        });
        archive.until_durable();
        server.client().wait_until_stored(DEADLINE);
        let (full_syncs, partial_syncs) = syncs(&server);
        Some(Self {
            server,
            archive,
            faults,
            folder,
            perennial,
            full_syncs,
            partial_syncs,
        })
    }

    fn links(&self) -> u64 {
        self.server.info_number("replication", "connected_slaves")
    }

    fn spooled(&self) -> u64 {
        let sizes = scratch_files(self.folder.path());
        sizes
            .iter()
            .map(|path| fs::metadata(path).map_or(0, |file| file.len()))
            .sum()
    }

    /// Lets the store go again and compares what a restore brings with what the server has.
    fn heal_and_compare(self, partial_syncs: u64) {
        self.faults.hold_all(false);
        until("it is followed", 2 * DEADLINE, || self.links() == 1);
        self.server.client().wait_until_stored(2 * DEADLINE);
        until("the spool is empty", DEADLINE, || {
            scratch_files(self.folder.path()).is_empty()
        });
        let expected = (self.full_syncs, self.partial_syncs + partial_syncs);
        assert_eq!(syncs(&self.server), expected);
        let before = Digest::of(&self.server.address());
        let status = self.archive.status();
        assert!(status.problems.is_empty(), "{status:#?}");
        let gaps = status.timelines.iter().map(|timeline| timeline.gaps.len());
        assert_eq!(gaps.sum::<usize>(), 0, "{status:#?}");
        let folder = self.archive.restore("restored", &[]);
        let restored = REDIS_7_0.start_on(&folder).unwrap();
        assert_same(&before, &Digest::of(&restored.address()));
        self.perennial.stop().unwrap();
    }
}

fn syncs(server: &Server) -> (u64, u64) {
    (
        server.info_number("stats", "sync_full"),
        server.info_number("stats", "sync_partial_ok"),
    )
}

/// The open files without a name that were made in `folder`, as paths that open them again.
fn scratch_files(folder: &Path) -> Vec<PathBuf> {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    descriptors
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| fs::read_link(path).is_ok_and(|target| target.starts_with(folder)))
        .collect()
}

#[test]
fn the_spool_takes_what_memory_does_not() {
    let Some(scene) = Scene::begin("1GiB") else {
        return;
    };
    assert_eq!(scene.spooled(), 0);
    scene.faults.hold_all(true);
    let churn = Churn::start(&scene.server.address(), Mix::RANDOM_WRITES);
    until(
        "far more is spooled than memory holds",
        2 * DEADLINE,
        || {
            assert_eq!(scene.links(), 1);
            scene.spooled() > 48 * MIB
        },
    );
    holds_for(
        "the master holds little for us",
        Duration::from_secs(2),
        || {
            let links = ClientLink::of_replicas(&scene.server);
            links.len() == 1 && links[0].output_bytes < MIB
        },
    );
    churn.stop();
    assert_eq!(fs::read_dir(scene.folder.path()).unwrap().count(), 0);
    scene.heal_and_compare(0);
}

#[test]
fn with_memory_and_spool_full_the_link_is_closed_once_and_resumed() {
    let Some(scene) = Scene::begin("32MiB") else {
        return;
    };
    scene.faults.hold_all(true);
    let churn = Churn::start(&scene.server.address(), Mix::RANDOM_WRITES);
    until("the link is closed", 2 * DEADLINE, || scene.links() == 0);
    // More than half of both could be full again before the store has taken it.
    churn.stop();
    let spooled = scene.spooled();
    assert!(spooled > 24 * MIB, "{spooled}");
    holds_for("it stays closed", Duration::from_secs(3), || {
        scene.links() == 0
    });
    assert_eq!(syncs(&scene.server).1, scene.partial_syncs);
    scene.heal_and_compare(1);
}

#[test]
fn what_cannot_be_read_back_comes_again() {
    let Some(scene) = Scene::begin("1GiB") else {
        return;
    };
    scene.faults.hold_all(true);
    let churn = Churn::start(&scene.server.address(), Mix::RANDOM_WRITES);
    until("much is spooled", 2 * DEADLINE, || {
        scene.spooled() > 16 * MIB
    });
    for path in scratch_files(scene.folder.path()) {
        let file: File = OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(0).unwrap();
    }
    // The stream goes on behind what is lost.
    let done = churn.done();
    until("more is written", DEADLINE, || churn.done() > done + 500);
    churn.stop();
    assert_eq!(scene.links(), 1, "nobody knows yet");
    scene.heal_and_compare(1);
}

/// What a snapshot on schedule has in the spool is in the way of the replication stream: it is given up, and taken later.
#[test]
fn a_snapshot_on_schedule_gives_way_to_the_stream() {
    let backlog = [
        "--repl-backlog-size",
        "512mb",
        "--repl-diskless-sync-delay",
        "0",
    ];
    let Some(server) = REDIS_7_0.start(&backlog) else {
        return;
    };
    let (mut client, mut random) = (server.client(), Random::new());
    for number in 0..64 {
        let key = format!("large:{number}");
        client.ok(&[b"SET".as_slice(), key.as_bytes(), &random.bytes(1 << 20)]);
    }
    let scene = Scene::with(server, "64MiB", |settings| {
        settings.snapshots.log_ratio = "0.001".into();
        settings.snapshots.log_bytes = "1MiB".into();
        settings.snapshots.min_interval = "1s".into();
    });
    let scene = scene.unwrap();
    let churn = Churn::start(&scene.server.address(), Mix::RANDOM_WRITES);
    until("another snapshot is being taken", 2 * DEADLINE, || {
        scene.server.info_number("stats", "sync_full") > scene.full_syncs
    });
    scene.faults.hold_all(true);
    until("the link is closed", 2 * DEADLINE, || scene.links() == 0);
    churn.stop();
    let gaps = |scene: &Scene| scene.archive.status().timelines[0].gaps.len();
    scene.faults.hold_all(false);
    until("it is followed", 2 * DEADLINE, || scene.links() >= 1);
    scene.server.client().wait_until_stored(2 * DEADLINE);
    assert_eq!(gaps(&scene), 0);
    let partial = scene.server.info_number("stats", "sync_partial_ok");
    assert_eq!(partial, scene.partial_syncs + 1);
    let before = Digest::of(&scene.server.address());
    let folder = scene.archive.restore("restored", &[]);
    let restored = REDIS_7_0.start_on(&folder).unwrap();
    assert_same(&before, &Digest::of(&restored.address()));
    scene.perennial.stop().unwrap();
}
