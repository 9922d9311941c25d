//! Snapshots behind the first one: on schedule, from the server or one of its replicas, and when somebody asks. The
//! replication stream goes on meanwhile, and no server forks more often than it was told.

use std::sync::Arc;
use std::time::Duration;

use perennial::store::faulty::{Fault, Faults, Operation};

use crate::harness::in_process::MovableClock;
use crate::harness::random::Random;
use crate::harness::servers::REDIS_7_0;
use crate::harness::workload::{write_at_random, write_everything};
use crate::harness::{
    Archive, DEADLINE, Digest, InProcess, Kind, Perennial, RESIDENT_BYTES_MAX, Server, Status,
    assert_same, holds_for, run_cli, until,
};
use crate::on_every_server;

on_every_server! {
    oldest, usual and newest;
    one_comes_whenever_enough_was_written,
    one_comes_after_a_while_but_only_behind_a_write,
    the_shortest_interval_holds_across_restarts,
    a_replica_gives_them_and_the_master_does_not_fork,
    one_is_taken_when_somebody_asks,
}

/// Each as soon as 20 KiB were written. The servers live on when Perennial is stopped.
const EAGER: [&str; 8] = [
    "--shutdown-timeout",
    "1s",
    "--snapshot-log-ratio",
    "0.001",
    "--snapshot-log-bytes",
    "20KiB",
    "--snapshot-min-interval",
    "100ms",
];

fn forks(server: &Server) -> u64 {
    server.info_number("stats", "total_forks")
}

/// One timeline, without a gap or a problem.
#[track_caller]
fn assert_one_history(status: &Status) {
    assert_eq!(status.timelines.len(), 1, "{status:#?}");
    assert!(status.timelines[0].gaps.is_empty(), "{status:#?}");
    assert!(status.problems.is_empty(), "{status:#?}");
}

#[track_caller]
fn until_snapshots(archive: &Archive, count: usize) -> Status {
    archive.until(
        &format!("{count} snapshots are there"),
        DEADLINE,
        |status| status.snapshots() >= count,
    )
}

/// What a restore would begin with.
#[track_caller]
fn planned_snapshot(archive: &Archive) -> String {
    let url = archive.url();
    let folder = archive.beside("planned");
    let to = folder.to_str().unwrap();
    let (code, said, error) = run_cli(&[
        "restore",
        "--archive",
        &url,
        "--to",
        to,
        "--dry-run",
        "--json",
    ]);
    assert_eq!(code, 0, "{error}");
    let plan: serde_json::Value = serde_json::from_str(&said).unwrap();
    plan["snapshot"].as_str().unwrap().to_owned()
}

/// Restored into files, the archive is this.
#[track_caller]
fn assert_files_hold(archive: &Archive, kind: Kind, expected: &Digest) {
    let folder = archive.restore("restored", &[]);
    let restored = kind.start_on(&folder).unwrap();
    assert_same(expected, &Digest::of(&restored.address()));
    drop(restored);
    std::fs::remove_dir_all(folder).unwrap();
}

/// Writes until one more snapshot is there.
#[track_caller]
fn write_until_snapshots(server: &Server, archive: &Archive, random: &mut Random, count: usize) {
    let mut client = server.client();
    until(&format!("{count} snapshots are there"), DEADLINE, || {
        write_at_random(&mut client, random, 50);
        client.ok(&["SET", "filler", &"x".repeat(2000)]);
        archive
            .try_status()
            .is_ok_and(|status| status.snapshots() >= count)
    });
}

fn one_comes_whenever_enough_was_written(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let mut random = Random::new();
    write_everything(&mut server.client(), 0);
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &EAGER);
    let before = forks(&server);
    for count in 2..=4 {
        write_until_snapshots(&server, &archive, &mut random, count);
    }
    server.client().wait_until_stored(DEADLINE);
    // What was under way when the writing ended.
    perennial.terminate();
    assert!(perennial.wait(DEADLINE).success(), "{}", perennial.log());
    let status = archive.status();
    assert_one_history(&status);
    let taken = perennial.log().matches("snapshot complete").count();
    assert_eq!(taken, status.snapshots(), "{}", perennial.log());
    // The first one was before the count; each of the others is one fork, unless the last was given up at the stop.
    let more = forks(&server) - before;
    let others = taken as u64 - 1;
    assert!(
        more == others || more == others + 1,
        "{more} forks for {others} snapshots: {}",
        perennial.log()
    );
    assert_eq!(
        server.info_number("stats", "sync_partial_ok"),
        0,
        "the link itself was disturbed"
    );
    let newest = status.timelines[0].snapshots.last().unwrap();
    let planned = planned_snapshot(&archive);
    assert!(
        planned.contains(&format!("/{:020}-{}", newest.offset, newest.at)),
        "{planned}: {status:#?}"
    );

    // Everything comes back, by files and by a seed.
    let digest = Digest::of(&server.address());
    assert_files_hold(&archive, kind, &digest);
    perennial.start_again();
    server.lose_everything();
    server.until_master_with_data();
    assert_same(&digest, &Digest::of(&server.address()));
    perennial.assert_healthy();
    assert!(perennial.resident_bytes_peak().unwrap_or(0) < RESIDENT_BYTES_MAX);
}

fn one_comes_after_a_while_but_only_behind_a_write(kind: Kind) {
    let Some(server) = kind.start(&["--repl-ping-replica-period", "1"]) else {
        return;
    };
    write_everything(&mut server.client(), 0);
    let archive = Archive::new();
    let mut perennial = Perennial::follow(
        &server,
        &archive,
        &["--snapshot-interval", "1s", "--snapshot-min-interval", "1s"],
    );
    let before = forks(&server);
    let offset = || server.info_number("replication", "master_repl_offset");
    let began = offset();
    until("some PINGs have passed", DEADLINE, || offset() > began + 28);
    holds_for("PINGs are no writes", Duration::from_secs(1), || {
        forks(&server) == before
    });
    assert_eq!(archive.status().snapshots(), 1);

    for count in 2..=3 {
        server.client().line("INCR written");
        let status = until_snapshots(&archive, count);
        assert_one_history(&status);
        let snapshot = status.timelines[0].snapshots.last().unwrap();
        assert!(
            status.durable_offset >= Some(snapshot.offset),
            "{status:#?}"
        );
        let after = forks(&server);
        holds_for("one is enough", Duration::from_secs(2), || {
            forks(&server) == after
        });
        assert_eq!(after, before + count as u64 - 1);
    }
    let digest = Digest::of(&server.address());
    assert_files_hold(&archive, kind, &digest);
    perennial.assert_healthy();
}

fn the_shortest_interval_holds_across_restarts(kind: Kind) {
    let Some(server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let clock = Arc::new(MovableClock::new());
    let follow = || {
        let clock: Arc<MovableClock> = Arc::clone(&clock);
        InProcess::follow_with(&server.url(), &archive, &Faults::new(), clock, |settings| {
            settings.snapshots.log_ratio = "0.001".into();
            settings.snapshots.log_bytes = "20KiB".into();
            settings.snapshots.min_interval = "1h".into();
        })
    };
    let write = || {
        let mut client = server.client();
        client.ok(&["SET", "filler", &"x".repeat(30_000)]);
        client.wait_until_stored(DEADLINE);
    };
    let perennial = follow();
    archive.until_durable();
    let taken = forks(&server);
    write();
    perennial.kill();
    // Again and again, as where it crashes.
    for _ in 0..3 {
        let perennial = follow();
        write();
        perennial.kill();
    }
    let perennial = follow();
    write();
    clock.forward(Duration::from_secs(58 * 60));
    for _ in 0..5 {
        write();
    }
    assert_eq!(forks(&server), taken, "within the hour");
    assert_eq!(archive.status().snapshots(), 1);
    clock.forward(Duration::from_secs(2 * 60));
    write();
    let status = until_snapshots(&archive, 2);
    assert_one_history(&status);
    assert_eq!(forks(&server), taken + 1);
    write();
    clock.forward(Duration::from_secs(58 * 60));
    write();
    assert_eq!(forks(&server), taken + 1, "within the next hour");
    perennial.stop().unwrap();
}

fn replica_of(master: &Server) -> Server {
    let port = master.port().to_string();
    let config = ["--replicaof", "127.0.0.1", &port];
    let replica = master.kind().start(&config).unwrap();
    until("the replica is attached", DEADLINE, || {
        replica.info("replication")["master_link_status"] == "up"
    });
    replica
}

fn a_replica_gives_them_and_the_master_does_not_fork(kind: Kind) {
    let Some(mut master) = kind.start(&[]) else {
        return;
    };
    let mut random = Random::new();
    write_everything(&mut master.client(), 0);
    let replica = replica_of(&master);
    let archive = Archive::new();
    let url = replica.url();
    let flags = [&EAGER, ["--snapshot-from", &url].as_slice()].concat();
    let mut perennial = Perennial::follow(&master, &archive, &flags);
    let before = (forks(&master), forks(&replica));
    // The stream goes on in this database and does not say so again behind the snapshot (`protocol-facts` 2.3).
    let mut client = master.client();
    client.line("SELECT 3");
    until("three snapshots are there", DEADLINE, || {
        client.ok(&["SET", "in-three", &"x".repeat(5000)]);
        client.line("INCR count");
        archive.status().snapshots() >= 3
    });
    client.line("SET after 1");
    perennial.terminate();
    assert!(perennial.wait(DEADLINE).success(), "{}", perennial.log());
    let after = (forks(&master), forks(&replica));
    assert_eq!(after.0, before.0, "the master forked");
    assert!(after.1 >= before.1 + 2, "{before:?} {after:?}");
    assert_one_history(&archive.status());
    let digest = Digest::of(&master.address());
    assert_files_hold(&archive, kind, &digest);

    // And by a seed, behind which everything goes on.
    drop(replica);
    perennial.start_again();
    master.lose_everything();
    master.until_master_with_data();
    assert_same(&digest, &Digest::of(&master.address()));
    write_at_random(&mut master.client(), &mut random, 50);
    master.client().wait_until_stored(DEADLINE);
    perennial.assert_healthy();
}

/// A replica that belongs to somebody else, or is gone: said; what is followed goes on, and nobody forks.
#[test]
fn a_replica_that_is_not_fit_disturbs_nothing() {
    let Some(master) = REDIS_7_0.start(&[]) else {
        return;
    };
    let mut other = REDIS_7_0.start(&[]).unwrap();
    write_everything(&mut other.client(), 0);
    let archive = Archive::new();
    let url = other.url();
    let flags = [&EAGER, ["--snapshot-from", &url].as_slice()].concat();
    let mut perennial = Perennial::follow(&master, &archive, &flags);
    let before = (forks(&master), forks(&other));
    let write = || {
        let mut client = master.client();
        client.ok(&["SET", "filler", &"x".repeat(30_000)]);
        client.wait_until_stored(DEADLINE);
    };
    write();
    perennial.until_logged("it holds another history than the server that is followed");
    write();
    other.kill();
    until("the address is tried again", DEADLINE, || {
        write();
        perennial.log().contains("no snapshot: cannot connect")
    });
    write();
    let status = archive.status();
    assert_eq!(status.snapshots(), 1);
    assert_one_history(&status);
    assert_eq!(master.info_number("stats", "sync_partial_ok"), 0);
    other.start_again();
    assert_eq!((forks(&master), before.1), (before.0, forks(&other)));
    perennial.assert_healthy();
}

/// The payload is here long before the replication stream in front of it is stored: a crash in between must not leave a
/// hole, so the snapshot waits.
#[test]
fn what_is_before_a_snapshot_is_stored_before_it() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let faults = Faults::new();
    let clock = Arc::new(MovableClock::new());
    let perennial = InProcess::follow_with(&server.url(), &archive, &faults, clock, |settings| {
        settings.snapshots.log_ratio = "0.001".into();
        settings.snapshots.log_bytes = "20KiB".into();
        settings.snapshots.min_interval = "100ms".into();
    });
    archive.until_durable();
    let mut client = server.client();
    client.line("SET first 1");
    client.wait_until_stored(DEADLINE);
    let began = forks(&server);
    for n in 1..=50 {
        faults.at_kind(Operation::Create, n, Fault::Delay(700));
    }
    client.ok(&["SET", "filler", &"x".repeat(30_000)]);
    until("the server has forked", DEADLINE, || forks(&server) > began);
    until("the second snapshot is there", DEADLINE, || {
        client.line("INCR count");
        let status = archive.status();
        assert!(status.timelines[0].gaps.is_empty(), "{status:#?}");
        status.snapshots() >= 2
    });
    perennial.kill();
    assert_one_history(&archive.status());
}

fn one_is_taken_when_somebody_asks(kind: Kind) {
    let Some(mut server) = kind.start(&["--repl-ping-replica-period", "1"]) else {
        return;
    };
    write_everything(&mut server.client(), 0);
    let archive = Archive::new();
    let (url, redis) = (archive.url(), server.url());
    let ask = || run_cli(&["snapshot", "--redis", &redis, "--archive", &url, "--json"]);

    let (code, _, error) = ask();
    assert_eq!(code, 1, "{error}");
    assert!(archive.objects().is_empty(), "nothing is begun");

    // Beside a run that is quiet: PINGs alone lie in front of it.
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    let before = forks(&server);
    let (code, said, error) = ask();
    assert_eq!(code, 0, "{error}");
    let told: serde_json::Value = serde_json::from_str(&said).unwrap();
    let status = archive.status();
    assert_one_history(&status);
    let newest = status.timelines[0].snapshots.last().unwrap();
    assert_eq!(told["offset"], newest.offset);
    assert_eq!(told["timeline"], 1);
    assert_eq!((status.snapshots(), forks(&server)), (2, before + 1));
    perennial.assert_healthy();

    // The run goes on, and so it does where nothing else follows.
    server.client().line("SET behind 1");
    server.client().wait_until_stored(DEADLINE);
    perennial.kill();
    server.client().line("SET alone 1");
    let (code, _, error) = ask();
    assert_eq!(code, 0, "{error}");
    let status = archive.status();
    assert_one_history(&status);
    assert_eq!((status.snapshots(), forks(&server)), (3, before + 2));
    let digest = Digest::of(&server.address());
    assert_files_hold(&archive, kind, &digest);

    // An empty server in its place is not followed.
    server.lose_everything();
    let objects = archive.objects();
    let (code, _, error) = ask();
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("no snapshot is taken into"), "{error}");
    assert_eq!(archive.objects(), objects);
}

/// A run beside it counts from the snapshot that somebody else took: one fork, not two.
#[test]
fn what_somebody_else_took_counts() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let clock = Arc::new(MovableClock::new());
    let perennial = InProcess::follow_with(
        &server.url(),
        &archive,
        &Faults::new(),
        Arc::<MovableClock>::clone(&clock),
        |_| {},
    );
    archive.until_durable();
    let mut client = server.client();
    client.line("SET first 1");
    client.wait_until_stored(DEADLINE);
    let (url, redis) = (archive.url(), server.url());
    let (code, _, error) = run_cli(&["snapshot", "--redis", &redis, "--archive", &url]);
    assert_eq!(code, 0, "{error}");
    let taken = forks(&server);
    clock.forward(Duration::from_secs(25 * 3600));
    for _ in 0..20 {
        client.line("INCR count");
        client.wait_until_stored(DEADLINE);
    }
    assert_eq!(forks(&server), taken);
    assert_eq!(archive.status().snapshots(), 2);
    clock.forward(Duration::from_secs(25 * 3600));
    client.line("INCR count");
    until_snapshots(&archive, 3);
    assert_eq!(forks(&server), taken + 1);
    perennial.stop().unwrap();
}

/// The store takes the snapshot slowly while the server is written to: nothing gathers in the server for it.
#[test]
fn a_slow_store_fills_no_buffer_of_the_server() {
    let Some(server) = REDIS_7_0.start(&["--rdbcompression", "no"]) else {
        return;
    };
    server.client().line("DEBUG POPULATE 16 filler 1048576");
    let archive = Archive::new();
    let faults = Faults::new();
    let clock = Arc::new(MovableClock::new());
    let perennial = InProcess::follow_with(&server.url(), &archive, &faults, clock, |settings| {
        settings.snapshots.log_ratio = "0.001".into();
        settings.snapshots.log_bytes = "20KiB".into();
        settings.snapshots.min_interval = "100ms".into();
    });
    archive.until_durable();
    let taken = forks(&server);
    for n in 1..=100 {
        faults.at_kind(Operation::Write, n, Fault::Delay(300));
    }
    let mut client = server.client();
    let value = "x".repeat(100_000);
    let mut held_max = 0;
    until("the second snapshot is there", DEADLINE, || {
        client.ok(&["SET", "value", &value]);
        if forks(&server) == taken + 1 {
            held_max = held_max.max(server.info_number("memory", "mem_clients_slaves"));
        }
        archive.status().snapshots() >= 2
    });
    assert!(
        held_max < 8 << 20,
        "the server held {held_max} bytes for its replicas"
    );
    client.wait_until_stored(DEADLINE);
    assert_one_history(&archive.status());
    perennial.stop().unwrap();
}
