//! Masters before 7.0: the keys come on the link itself, each full sync costs a fork, and a dump says nothing of its
//! past to a master that loads it.

use std::time::{Duration, Instant};

use perennial::store::faulty::{Fault, Faults, Operation};

use crate::harness::servers::REDIS_6_2;
use crate::harness::workload::{write_everything, write_verbatim};
use crate::harness::{
    Archive, BornAsReplica, DEADLINE, Digest, InProcess, Perennial, Proxy, Server, assert_same,
    until,
};

fn full_syncs(server: &Server) -> u64 {
    server.info_number("stats", "sync_full")
}

/// What is in the archive comes back.
#[track_caller]
fn comes_back(server: &mut Server) {
    server.client().wait_until_stored(DEADLINE);
    let before = Digest::of(&server.address());
    server.lose_everything();
    server.until_master_with_data();
    assert_same(&before, &Digest::of(&server.address()));
}

#[test]
fn one_full_sync_is_all_it_takes() {
    for diskless in ["no", "yes"] {
        let Some(mut server) = REDIS_6_2.start(&["--repl-diskless-sync", diskless]) else {
            return;
        };
        write_everything(&mut server.client(), 0);
        let archive = Archive::new();
        let mut perennial = Perennial::follow(&server, &archive, &[]);
        write_everything(&mut server.client(), 1);
        server.client().wait_until_stored(DEADLINE);
        perennial.kill();
        server.client().line("SET meanwhile 1");
        perennial.start_again();
        server.client().wait_until_stored(DEADLINE);
        assert_eq!(full_syncs(&server), 1, "diskless {diskless}");
        assert_eq!(server.info_number("stats", "sync_partial_ok"), 1);
        archive.status().assert_chain_of(1);
        comes_back(&mut server);
        perennial.assert_healthy();
    }
}

/// A save of some seconds: lone newlines keep the link alive.
#[test]
fn newlines_before_the_payload_are_no_part_of_it() {
    let Some(mut server) = REDIS_6_2.start(&["--rdb-key-save-delay", "1000"]) else {
        return;
    };
    server.client().line("DEBUG POPULATE 2500 filler 10");
    let archive = Archive::new();
    let began = Instant::now();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    assert!(began.elapsed() >= Duration::from_secs(2), "no newline came");
    assert_eq!(full_syncs(&server), 1);
    server.client().line("CONFIG SET rdb-key-save-delay 0");
    comes_back(&mut server);
    perennial.assert_healthy();
}

/// The store takes much longer than the server to send, and more waits than the buffers hold: the link stays.
#[test]
fn a_payload_that_is_slow_to_store_is_asked_for_once() {
    let Some(mut server) = REDIS_6_2.start(&["--rdbcompression", "no"]) else {
        return;
    };
    // 48 MiB more than the budget, in blocks of 4 MiB: reading is held back for ten seconds, twice what a replication
    // stream would be.
    server.client().line("DEBUG POPULATE 80 filler 1048576");
    let archive = Archive::new();
    let faults = Faults::new();
    for n in 1..=12 {
        faults.at_kind(Operation::Write, n, Fault::Delay(1000));
    }
    let perennial = InProcess::follow(&server, &archive, &faults);
    until("the payload is on its way", DEADLINE, || {
        full_syncs(&server) == 1
    });
    let mut client = server.client();
    client.line("SET during 1");
    assert_eq!(
        client.line("WAIT 1 2000").integer(),
        0,
        "acknowledged before the snapshot is stored"
    );
    assert_eq!(client.line("WAIT 1 60000").integer(), 1);
    assert_eq!(full_syncs(&server), 1);
    assert_eq!(archive.status().snapshots(), 1);
    comes_back(&mut server);
    perennial.stop().unwrap();
}

/// The server is lost when it has just sent everything, and the store has not taken it yet: the only copy there is.
#[test]
fn a_payload_that_was_received_is_stored_though_the_server_is_lost() {
    let Some(mut server) = REDIS_6_2.start(&["--rdbcompression", "no"]) else {
        return;
    };
    server.client().line("DEBUG POPULATE 8 filler 1048576");
    let before = Digest::of(&server.address());
    let archive = Archive::new();
    let faults = Faults::new();
    for n in 1..=2 {
        faults.at_kind(Operation::Write, n, Fault::Delay(2000));
    }
    let perennial = InProcess::follow(&server, &archive, &faults);
    until("all of it is sent", DEADLINE, || {
        server
            .info("replication")
            .get("slave0")
            .is_some_and(|replica| replica.contains("state=online"))
    });
    server.lose_everything();
    assert_eq!(archive.status().snapshots(), 0, "the store is that slow");
    server.until_master_with_data();
    assert_same(&before, &Digest::of(&server.address()));
    perennial.stop().unwrap();
}

/// The link breaks in the middle of the payload: the replication stream goes on where it was, and one snapshot more is
/// fetched beside it.
#[test]
fn a_payload_cut_midway_is_fetched_again_once() {
    let Some(mut server) = REDIS_6_2.start(&["--rdbcompression", "no"]) else {
        return;
    };
    server.client().line("DEBUG POPULATE 8 filler 1048576");
    let archive = Archive::new();
    let proxy = Proxy::to(&server.address());
    proxy.cut_after_bytes(3_000_000);
    let mut perennial = Perennial::follow_url(&proxy.url(), &archive, &[]);
    archive.until_durable();
    write_everything(&mut server.client(), 0);
    server.client().wait_until_stored(DEADLINE);
    assert_eq!(full_syncs(&server), 2, "{}", perennial.log());
    assert_eq!(server.info_number("stats", "sync_partial_ok"), 1);
    archive.status().assert_chain_of(1);
    comes_back(&mut server);
    perennial.assert_healthy();
}

/// Away for longer than the backlog lasts: a gap, and one full sync more, which is its snapshot. INFO tells that the
/// link cannot be resumed, so nothing is asked for in vain.
#[test]
fn a_gap_costs_one_full_sync() {
    let Some(mut server) = REDIS_6_2.start(&["--repl-backlog-size", "16kb"]) else {
        return;
    };
    let proxy = Proxy::to(&server.address());
    let archive = Archive::new();
    let mut perennial = Perennial::follow_url(&proxy.url(), &archive, &[]);
    archive.until_durable();
    for gap in 1..=2 {
        proxy.down();
        until("the server has lost its replica", DEADLINE, || {
            server.info_number("replication", "connected_slaves") == 0
        });
        write_everything(&mut server.client(), gap);
        proxy.up();
        archive.until("the snapshot behind the gap", DEADLINE, |status| {
            status.snapshots() as u64 == gap + 1
        });
        server.client().wait_until_stored(DEADLINE);
        assert_eq!(full_syncs(&server), gap + 1, "{}", perennial.log());
        assert_eq!(archive.status().timelines[0].gaps.len() as u64, gap);
    }
    comes_back(&mut server);
    perennial.assert_healthy();
}

/// Snapshots that cannot be stored: each attempt costs the server a fork, so they come ever more slowly.
#[test]
fn snapshots_that_fail_are_asked_for_ever_more_slowly() {
    let Some(mut server) = REDIS_6_2.start(&[]) else {
        return;
    };
    write_everything(&mut server.client(), 0);
    let archive = Archive::new();
    let faults = Faults::new();
    for n in 1..=3 {
        faults.at_kind(Operation::Complete, n, Fault::Refuse);
    }
    let perennial = InProcess::follow(&server, &archive, &faults);
    let mut attempts = Vec::new();
    until("the fourth attempt", DEADLINE, || {
        let seen = full_syncs(&server);
        if seen > attempts.len() as u64 {
            attempts.push(Instant::now());
            assert_eq!(seen, attempts.len() as u64, "two at once");
        }
        attempts.len() == 4
    });
    // Half of 1, 2 and 4 seconds at least, less what it takes to look.
    for (attempt, wait) in [(1, 450), (2, 950), (3, 1950)] {
        let waited = attempts[attempt] - attempts[attempt - 1];
        assert!(
            waited >= Duration::from_millis(wait),
            "attempt {attempt}: {waited:?}"
        );
    }
    comes_back(&mut server);
    assert_eq!(archive.status().snapshots(), 1);
    perennial.stop().unwrap();
}

/// The store takes segments and documents, but no timeline can be begun: no full sync in each round.
#[test]
fn a_timeline_that_cannot_begin_does_not_ask_again_and_again() {
    let Some(server) = REDIS_6_2.start(&[]) else {
        return;
    };
    server.client().line("SET a 1");
    let archive = Archive::new();
    let faults = Faults::new();
    // The first object is the archive's own document.
    for n in 2..=4 {
        faults.at_kind(Operation::Create, n, Fault::Refuse);
    }
    let perennial = InProcess::follow(&server, &archive, &faults);
    let began = Instant::now();
    archive.until_durable();
    let syncs = full_syncs(&server);
    assert_eq!(syncs, 4, "one for each attempt");
    assert!(
        began.elapsed() >= Duration::from_millis(3_000),
        "{:?}",
        began.elapsed()
    );
    perennial.stop().unwrap();
}

/// What a full sync leaves behind with `save ""`: after a kill the server comes up with it, under a new id, with no
/// trace of where it comes from. It may be a backup that somebody put there: never overwritten, never the head.
#[test]
fn a_dump_left_by_a_full_sync_makes_a_suspect_and_the_head_stays() {
    let Some(mut server) = REDIS_6_2.start(&[]) else {
        return;
    };
    server.client().line("SET early 1");
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    server.client().line("SET late 1");
    server.client().wait_until_stored(DEADLINE);
    let before = Digest::of(&server.address());
    server.kill();
    assert!(server.folder().join("dump.rdb").exists());
    server.start_again();
    let status = archive.until("the suspect root is durable", DEADLINE, |status| {
        status.suspects() == [2] && status.timelines[1].end.is_some()
    });
    assert_eq!(status.head_timeline(), 1);
    assert_eq!(server.client().line("GET early").text(), "1");
    assert_eq!(server.client().line("EXISTS late").integer(), 0);

    server.lose_everything();
    until("the late write is back", DEADLINE, || {
        server.is_master() && server.keys() == Some(before.len() as u64)
    });
    assert_same(&before, &Digest::of(&server.address()));
    perennial.assert_healthy();
}

/// The advice for such servers, 6.0 and later: dumps of full syncs go, so the server comes up empty and is filled.
#[test]
fn without_dumps_of_full_syncs_it_comes_back_again_and_again() {
    let Some(mut server) = REDIS_6_2.start(&["--rdb-del-sync-files", "yes"]) else {
        return;
    };
    write_everything(&mut server.client(), 0);
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    for round in 1..=3 {
        write_everything(&mut server.client(), round);
        server.client().wait_until_stored(DEADLINE);
        let before = Digest::of(&server.address());
        // The server looks once a second whether nobody needs it any more.
        let dump = server.folder().join("dump.rdb");
        until("the dump is gone", DEADLINE, || !dump.exists());
        server.kill();
        server.start_again();
        server.until_master_with_data();
        assert_same(&before, &Digest::of(&server.address()));
    }
    server.client().wait_until_stored(DEADLINE);
    archive.status().assert_chain_of(4);
    perennial.assert_healthy();
}

/// As a replica at its start, a server of 4.0 to 6.2 reads from its dump where it stood, and goes on from there.
#[test]
fn born_as_a_replica_its_dump_says_where_it_stood() {
    let archive = Archive::new();
    let Some(mut born) = BornAsReplica::start(REDIS_6_2, &archive) else {
        return;
    };
    let server = &mut born.server;
    write_verbatim(&mut server.client(), 0);
    server.client().wait_until_stored(DEADLINE);
    server.client().save();
    write_verbatim(&mut server.client(), 1);
    server.client().wait_until_stored(DEADLINE);
    let before = Digest::of(&server.address());
    server.kill();
    server.start_again_without_waiting();
    until("all of it is there", DEADLINE, || {
        server.is_master() && server.keys() == Some(before.len() as u64)
    });
    assert_same(&before, &Digest::of(&server.address()));
    let log = server.log();
    assert!(
        log.contains("Successful partial resynchronization with master"),
        "{log}"
    );
    server.client().wait_until_stored(DEADLINE);
    assert!(archive.status().suspects().is_empty());
    born.perennial.assert_healthy();
}
