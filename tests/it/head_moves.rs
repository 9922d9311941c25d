//! The archive grows while a server is filled from it: on Kubernetes a new pod is seeded while the old one still stops.
//! What the old Perennial acknowledged meanwhile must not be missing from the server that is promoted.

use std::sync::Arc;
use std::time::Duration;

use perennial::clock::SystemClock;
use perennial::store::faulty::Faults;

use crate::harness::servers::{REDIS_6_2, VALKEY_9_1};
use crate::harness::{
    Archive, DEADLINE, InProcess, Kind, Load, Perennial, Port, Proxy, REDIS_7_0, Server, Trap, Way,
    Writers, holds_for,
};

/// Said while a server is full but not promoted.
const SAID: &str = "not promoted: the archive grew while the server was filled";

/// The old server with its Perennial, and the archive that both pods share.
struct Old {
    archive: Archive,
    server: Server,
    perennial: Perennial,
}

impl Old {
    fn start(kind: Kind) -> Option<Self> {
        let server = kind.start(&[])?;
        let archive = Archive::new();
        let perennial = Perennial::follow(&server, &archive, &[]);
        let old = Self {
            archive,
            server,
            perennial,
        };
        old.write("before", "SET");
        Some(old)
    }

    /// Keys that were waited for.
    fn write(&self, name: &str, command: &str) {
        let mut client = self.server.client();
        for key in 0..KEYS {
            let key = format!("{name}{key}");
            match command {
                // Its TTL has to be rewritten before 7.0.
                "SETEX" => client.ok(&["SETEX", &key, "100000", name]),
                _ => client.ok(&["SET", &key, name]),
            };
        }
        client.wait_until_stored(DEADLINE);
    }

    fn dies(&mut self) {
        self.server.kill();
        self.perennial.kill();
    }
}

const KEYS: u64 = 20;

#[track_caller]
fn assert_has(server: &Server, name: &str) {
    let mut client = server.client();
    for key in 0..KEYS {
        let key = format!("{name}{key}");
        let there = client.ok(&["EXISTS", &key]).integer();
        assert_eq!(there, 1, "{key} was waited for and is missing");
    }
}

/// An empty server on the same archive, and its Perennial behind a proxy in which the seed is held.
struct New {
    server: Server,
    proxy: Proxy,
    // Reserved until the end.
    seed: Port,
}

impl New {
    fn start(kind: Kind) -> Option<Self> {
        let server = kind.start(&[])?;
        let seed = Port::reserve();
        let proxy = Proxy::to(&seed.address());
        Some(Self {
            server,
            proxy,
            seed,
        })
    }

    /// Holds the seed short of the payload's end.
    fn hold(&self) -> u64 {
        self.proxy.arm(Trap::behind([
            Way::Down.text("+FULLRESYNC"),
            Way::Down.lines(1),
            Way::Down.payload(10),
        ]))
    }

    fn follow(&self, archive: &Archive) -> Perennial {
        let (listen, announce) = (self.seed.address(), self.proxy.address());
        let flags = ["--seed-listen", &listen, "--seed-announce", &announce];
        Perennial::follow_url(&self.server.url(), archive, &flags)
    }
}

#[track_caller]
fn what_was_waited_for_during_a_seed_is_there_behind_it(kind: Kind, command: &str) {
    let Some(mut old) = Old::start(kind) else {
        return;
    };
    old.write("early", command);
    let Some(new) = New::start(kind) else {
        return;
    };
    let trap = new.hold();
    let mut perennial = new.follow(&old.archive);
    new.proxy.until_caught();
    old.write("late", command);
    old.dies();
    new.proxy.let_go(trap);
    new.server.until_master_with_data();
    for name in ["before", "early", "late"] {
        assert_has(&new.server, name);
    }
    assert!(perennial.log().contains(SAID), "{}", perennial.log());
    // And history goes on from there.
    new.server.client().wait_until_stored(DEADLINE);
    let status = old.archive.status();
    assert!(status.suspects().is_empty(), "{status:#?}");
    perennial.assert_healthy();
}

#[test]
fn what_was_waited_for_during_a_seed_is_there_behind_it_redis_7_0() {
    what_was_waited_for_during_a_seed_is_there_behind_it(REDIS_7_0, "SET");
}

#[test]
fn what_was_waited_for_during_a_seed_is_there_behind_it_valkey_9_1() {
    what_was_waited_for_during_a_seed_is_there_behind_it(VALKEY_9_1, "SET");
}

/// Under an id of its own it cannot be continued: it is filled anew.
#[test]
fn what_was_waited_for_during_a_rewritten_seed_is_there_behind_it_redis_6_2() {
    what_was_waited_for_during_a_seed_is_there_behind_it(REDIS_6_2, "SETEX");
}

/// Two masters of one history would be worse than one that waits.
fn nobody_is_promoted_beside_a_master_that_is_written_to(kind: Kind) {
    let Some(mut old) = Old::start(kind) else {
        return;
    };
    let load = Load {
        pause: Duration::from_millis(20),
        ..Load::default()
    };
    let Some(new) = New::start(kind) else {
        return;
    };
    let writers = Writers::start(&old.server.address(), load);
    writers.until_confirmed_more(1);
    let mut perennial = new.follow(&old.archive);
    perennial.until_logged(SAID);
    holds_for("it is not promoted", Duration::from_secs(5), || {
        !new.server.is_master()
    });
    old.dies();
    let confirmed = writers.stop();
    new.server.until_master_with_data();
    confirmed.assert_all_in(&new.server.address());
    assert!(!perennial.log().contains("seed failed"));
    perennial.assert_healthy();
}

#[test]
fn nobody_is_promoted_beside_a_master_that_is_written_to_redis_7_0() {
    nobody_is_promoted_beside_a_master_that_is_written_to(REDIS_7_0);
}

#[test]
fn nobody_is_promoted_beside_a_master_that_is_written_to_valkey_9_1() {
    nobody_is_promoted_beside_a_master_that_is_written_to(VALKEY_9_1);
}

/// Whether the archive grew cannot be told while it cannot be read.
fn nobody_is_promoted_while_the_archive_cannot_be_read(kind: Kind) {
    let Some(mut old) = Old::start(kind) else {
        return;
    };
    let Some(new) = New::start(kind) else {
        return;
    };
    let (trap, faults) = (new.hold(), Faults::new());
    let clock = Arc::new(SystemClock::new());
    let url = new.server.url();
    let seeding = InProcess::follow_with(&url, &old.archive, &faults, clock, |settings| {
        settings.seed_listen = new.seed.address();
        settings.seed_announce = Some(new.proxy.address());
    });
    new.proxy.until_caught();
    old.write("late", "SET");
    old.dies();
    faults.refuse_all(true);
    new.proxy.let_go(trap);
    holds_for("it is not promoted", Duration::from_secs(5), || {
        !new.server.is_master()
    });
    faults.refuse_all(false);
    new.server.until_master_with_data();
    assert_has(&new.server, "late");
    seeding.stop().unwrap();
}

#[test]
fn nobody_is_promoted_while_the_archive_cannot_be_read_redis_7_0() {
    nobody_is_promoted_while_the_archive_cannot_be_read(REDIS_7_0);
}

#[test]
fn nobody_is_promoted_while_the_archive_cannot_be_read_valkey_9_1() {
    nobody_is_promoted_while_the_archive_cannot_be_read(VALKEY_9_1);
}
