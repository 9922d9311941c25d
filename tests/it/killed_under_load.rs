//! Perennial dies in the middle of everything and comes back: it goes on where it was, or says what is missing.

use std::time::Duration;

use crate::harness::{
    Archive, DEADLINE, Digest, Kind, Load, Perennial, Port, REDIS_7_0, Server, Writers,
    assert_same, until,
};
use crate::on_every_server;

on_every_server! {
    with_a_long_backlog_it_continues,
    killed_during_a_seed,
}

/// About a megabyte a second and client: a backlog of 1 MiB is gone in no time.
const LOAD: Load = Load {
    plain: 4,
    confirming: 1,
    value_bytes: 2000,
    pause: Duration::from_millis(1),
};

/// Restored into a fresh server from files, and by a seed after a kill, the data set is the master's.
#[track_caller]
fn restores_either_way(server: &mut Server, archive: &Archive) {
    server.client().wait_until_stored(DEADLINE);
    let before = Digest::of(&server.address());
    let folder = archive.restore("restored", &[]);
    let restored = server.kind().start_on(&folder).unwrap();
    assert_same(&before, &Digest::of(&restored.address()));
    server.lose_everything();
    server.until_master_with_data();
    assert_same(&before, &Digest::of(&server.address()));
}

fn with_a_long_backlog_it_continues(kind: Kind) {
    kills_under_load_are_survived_in(kind, &Archive::new());
}

/// The same wherever the archive lies.
pub fn kills_under_load_are_survived_in(kind: Kind, archive: &Archive) {
    let Some(mut server) = kind.start(&["--repl-backlog-size", "64mb"]) else {
        return;
    };
    let mut perennial = Perennial::follow(&server, archive, &[]);
    let writers = Writers::start(&server.address(), LOAD);
    let full_syncs = server.info_number("stats", "sync_full");
    for _ in 0..4 {
        writers.until_confirmed_more(50);
        let partial_syncs = server.info_number("stats", "sync_partial_ok");
        perennial.kill();
        writers.until_acknowledged_more(300);
        perennial.start_again();
        until("it continues", DEADLINE, || {
            server.info_number("stats", "sync_partial_ok") > partial_syncs
        });
    }
    writers.until_confirmed_more(50);
    assert_eq!(server.info_number("stats", "sync_full"), full_syncs);
    let ledger = writers.stop();
    archive.status().assert_chain_of(1);
    restores_either_way(&mut server, archive);
    ledger.assert_all_in(&server.address());
    perennial.assert_healthy();
}

#[test]
fn with_a_short_backlog_there_is_a_gap_and_a_new_snapshot() {
    let Some(mut server) = REDIS_7_0.start(&["--repl-backlog-size", "1mb"]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    let writers = Writers::start(&server.address(), LOAD);
    writers.until_confirmed_more(50);
    perennial.kill();
    let early = writers.ledger();
    let offset = || server.info_number("replication", "master_repl_offset");
    let end = offset() + 4 * 1024 * 1024;
    until("four backlogs have passed", DEADLINE, || offset() > end);
    perennial.start_again();
    writers.until_confirmed_more(50);
    let ledger = writers.stop();
    let status = archive.until("the new snapshot is stored", DEADLINE, |status| {
        status.snapshots() == 2
    });
    assert_eq!(status.timelines.len(), 1, "{status:#?}");
    let timeline = &status.timelines[0];
    assert_eq!(timeline.gaps.len(), 1, "{status:#?}");
    let gap = timeline.gaps[0];
    assert!(gap.after < gap.before, "{gap:?}");
    assert!(status.suspects().is_empty());
    // Inside the gap nothing can be restored, and the error says what can.
    let middle = format!("offset:{}", gap.after + (gap.before - gap.after) / 2);
    let target = archive.beside("in-the-gap");
    let (code, _, err) = crate::harness::run_cli(&[
        "restore",
        "--archive",
        &archive.url(),
        "--to",
        target.to_str().unwrap(),
        "--at",
        &middle,
    ]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains(&gap.after.to_string()), "{err}");
    assert!(!target.exists());

    restores_either_way(&mut server, &archive);
    early.assert_all_in(&server.address());
    ledger.assert_all_in(&server.address());
    perennial.assert_healthy();
}

#[test]
fn killed_during_the_first_snapshot() {
    let Some(mut server) = REDIS_7_0.start(&["--repl-backlog-size", "64mb"]) else {
        return;
    };
    let archive = Archive::new();
    server.client().line("DEBUG POPULATE 200000 filler 100");
    let writers = Writers::start(&server.address(), LOAD);
    let syncs = server.info_number("stats", "sync_full");
    let mut perennial = Perennial::follow_url(&server.url(), &archive, &[]);
    until("the first snapshot is under way", DEADLINE, || {
        server.info_number("stats", "sync_full") > syncs
    });
    perennial.kill();
    perennial.start_again();
    archive.until_durable();
    writers.until_confirmed_more(50);
    let ledger = writers.stop();
    let status = archive.status();
    assert_eq!(status.timelines.len(), 1, "{status:#?}");
    restores_either_way(&mut server, &archive);
    ledger.assert_all_in(&server.address());
    perennial.assert_healthy();
}

/// The server is then a replica of somebody who is gone; the seed port, the same at every start, says of whom.
fn killed_during_a_seed(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    server.client().line("DEBUG POPULATE 30000 filler 1000");
    let seeder = Port::reserve();
    let listen = seeder.address();
    let mut perennial = Perennial::follow(&server, &archive, &["--seed-listen", &listen]);
    for _ in 0..3 {
        // Followed, and the last write stored, before each kill.
        server.client().wait_until_stored(DEADLINE);
        let before = Digest::of(&server.address());
        if kind.speaks >= (7, 0) {
            // With the dump that the last seed left behind.
            server.kill();
            server.start_again();
        } else {
            server.lose_everything();
        }
        until("the seed has begun", DEADLINE, || {
            !server.is_master() || server.keys() != Some(0)
        });
        perennial.kill();
        perennial.start_again();
        until("all of it is there", DEADLINE, || {
            server.is_master() && server.keys() == Some(before.len() as u64)
        });
        assert_same(&before, &Digest::of(&server.address()));
        until("it is followed again", DEADLINE, || {
            server.info_number("replication", "connected_slaves") == 1
        });
    }
    perennial.assert_healthy();
}
