//! Two Perennials on one archive, with different cuts and different clocks, either of which dies at any time: what they
//! store agrees byte for byte, what one misses the other has, and nobody has to be the first.

use std::time::Duration;

use crate::harness::confined::FakeTime;
use crate::harness::random::Random;
use crate::harness::workload::{write_at_random, write_everything};
use crate::harness::{
    Archive, DEADLINE, Digest, Kind, Load, Perennial, Proxy, REDIS_7_0, Server, Writers,
    assert_same, run_cli, until,
};
use crate::on_every_server;

on_every_server! {
    oldest, usual and newest;
    either_dies_at_any_moment_and_nothing_confirmed_is_lost,
    one_on_the_master_and_one_on_its_replica,
    both_see_another_id_at_once,
    both_see_the_server_empty_and_one_fills_it,
}

/// How often one of the two is killed.
const KILLS: u32 = 20;
/// The longest between two kills, milliseconds.
const MOMENT_MS: u64 = 300;
/// How far one of the clocks is off, as libfaketime spells it.
const TEN_MINUTES_BEHIND: &str = "-600";

/// A backlog for everything that is written while one is dead.
const LONG_BACKLOG: [&str; 2] = ["--repl-backlog-size", "64mb"];

/// Pieces of some milliseconds and kilobytes, merged soon.
const SMALL_CUTS: &[&str] = &[
    "--flush-interval",
    "30ms",
    "--flush-bytes",
    "64KiB",
    "--upkeep-interval",
    "500ms",
    "--merge-minute",
    "500ms",
    "--merge-hour",
    "3s",
    "--merge-grace",
    "1s",
];
const LARGE_CUTS: &[&str] = &["--flush-interval", "170ms", "--flush-bytes", "1MiB"];

const LOAD: Load = Load {
    plain: 2,
    confirming: 2,
    value_bytes: 200,
    pause: Duration::from_millis(3),
};

fn full_syncs(server: &Server) -> u64 {
    server.info_number("stats", "sync_full")
}

/// Kills one of both again and again, sometimes both, at random moments.
fn kill_again_and_again(both: &mut [Perennial; 2]) {
    let mut random = Random::new();
    for _ in 0..KILLS {
        // The moment is part of the test: during a start, a snapshot, an upload, and at rest.
        std::thread::sleep(Duration::from_millis(random.below(MOMENT_MS)));
        let victim = usize::try_from(random.below(3)).unwrap();
        for (number, perennial) in both.iter_mut().enumerate() {
            if victim == number || victim == 2 {
                perennial.kill();
                perennial.start_again();
            }
        }
    }
}

/// One history without a hole, whose every object is whole and agrees with every other, and which restores to this.
#[track_caller]
pub fn assert_one_history(archive: &Archive, kind: Kind, timelines: u64, expected: &Digest) {
    archive.status().assert_chain_of(timelines);
    let url = archive.url();
    let (code, out, err) = run_cli(&["verify", "--archive", &url]);
    assert_eq!(code, 0, "{out}{err}");
    let folder = archive.restore("restored", &[]);
    let restored = kind.start_on(&folder).unwrap();
    assert_same(expected, &Digest::of(&restored.address()));
}

/// Neither has found two truths about the same bytes.
#[track_caller]
fn assert_in_harmony(both: &mut [Perennial; 2]) {
    for perennial in both {
        perennial.assert_healthy();
        let log = perennial.log();
        assert!(!log.contains("differ behind"), "{log}");
        assert!(!log.contains(" ERROR "), "{log}");
    }
}

/// A write that both have stored.
#[track_caller]
fn wait_for_both(server: &Server) {
    until("both are attached", DEADLINE, || {
        server.info_number("replication", "connected_slaves") == 2
    });
    let mut client = server.client();
    client.line("INCR perennial:marker");
    assert_eq!(client.line("WAIT 2 30000").integer(), 2);
}

/// Follows with small cuts by the right clock, and with large ones by a clock that is ten minutes behind.
#[track_caller]
fn follow_by_two_clocks(urls: [&str; 2], archive: &Archive) -> Option<[Perennial; 2]> {
    let behind = FakeTime::at(TEN_MINUTES_BEHIND)?;
    let right = Perennial::follow_url(urls[0], archive, SMALL_CUTS);
    archive.until_durable();
    let url = archive.url();
    let arguments = [&["--redis", urls[1], "--archive", &url], LARGE_CUTS].concat();
    let wrong = behind.run(&arguments);
    Some([right, wrong])
}

fn either_dies_at_any_moment_and_nothing_confirmed_is_lost(kind: Kind) {
    let Some(mut server) = kind.start(&LONG_BACKLOG) else {
        return;
    };
    let archive = Archive::new();
    let url = server.url();
    let Some(mut both) = follow_by_two_clocks([&url, &url], &archive) else {
        return;
    };
    wait_for_both(&server);
    let first_syncs = full_syncs(&server);
    let writers = Writers::start(&server.address(), LOAD);
    writers.until_confirmed_more(5);
    kill_again_and_again(&mut both);
    writers.until_confirmed_more(20);
    let ledger = writers.stop();
    wait_for_both(&server);
    let expected = Digest::of(&server.address());
    assert_eq!(full_syncs(&server), first_syncs, "the backlog was enough");
    assert_one_history(&archive, kind, 1, &expected);
    assert_in_harmony(&mut both);

    server.lose_everything();
    server.until_master_with_data();
    assert_same(&expected, &Digest::of(&server.address()));
    ledger.assert_all_in(&server.address());
    eprintln!(
        "{}: {KILLS} kills, {} confirmed writes, lost 0",
        kind.name,
        ledger.0.len()
    );
}

/// A replica says the same bytes at the same offsets, somewhat later.
fn one_on_the_master_and_one_on_its_replica(kind: Kind) {
    let Some(master) = kind.start(&LONG_BACKLOG) else {
        return;
    };
    let port = master.port().to_string();
    let config = [
        ["--replicaof", "127.0.0.1", &port].as_slice(),
        &LONG_BACKLOG,
    ]
    .concat();
    let replica = kind.start(&config).unwrap();
    until("the replica is attached", DEADLINE, || {
        replica.info("replication")["master_link_status"] == "up"
    });
    let archive = Archive::new();
    let Some(mut both) = follow_by_two_clocks([&master.url(), &replica.url()], &archive) else {
        return;
    };
    let writers = Writers::start(&master.address(), LOAD);
    writers.until_acknowledged_more(50);
    kill_again_and_again(&mut both);
    writers.until_acknowledged_more(200);
    let _ = writers.stop();
    // A PING of the master may come at any time: what counts is the last write.
    wait_for_both(&master);
    until("the replica's Perennial is attached", DEADLINE, || {
        replica.info_number("replication", "connected_slaves") == 1
    });
    let expected = Digest::of(&master.address());
    assert_one_history(&archive, kind, 1, &expected);
    assert_in_harmony(&mut both);

    // Alone, the one on the replica has it all as well.
    both[0].kill();
    write_everything(&mut master.client(), 1);
    let end = master.info_number("replication", "master_repl_offset");
    archive.until("all of it is stored", DEADLINE, |status| {
        status.durable_offset.is_some_and(|durable| durable >= end)
    });
    std::fs::remove_dir_all(archive.beside("restored")).unwrap();
    assert_one_history(&archive, kind, 1, &Digest::of(&master.address()));
    both[1].assert_healthy();
}

/// Each promotion gives the server another id and cuts both links at once: both want to begin the same child.
fn both_see_another_id_at_once(kind: Kind) {
    let Some(server) = kind.start(&LONG_BACKLOG) else {
        return;
    };
    let archive = Archive::new();
    let mut both = [SMALL_CUTS, LARGE_CUTS].map(|cuts| Perennial::follow(&server, &archive, cuts));
    let mut random = Random::new();
    let mut client = server.client();
    for round in 2..=5 {
        wait_for_both(&server);
        client.line("REPLICAOF 127.0.0.1 1");
        client.line("REPLICAOF NO ONE");
        write_at_random(&mut client, &mut random, 100);
        wait_for_both(&server);
        archive.status().assert_chain_of(round);
    }
    let expected = Digest::of(&server.address());
    assert_one_history(&archive, kind, 5, &expected);
    assert_in_harmony(&mut both);
}

/// Each wants to take the empty server over; the other one finds somebody's replica, and leaves it alone.
fn both_see_the_server_empty_and_one_fills_it(kind: Kind) {
    let Some(mut server) = kind.start(&LONG_BACKLOG) else {
        return;
    };
    let archive = Archive::new();
    let mut both = [SMALL_CUTS, LARGE_CUTS].map(|cuts| Perennial::follow(&server, &archive, cuts));
    for round in 2..=4 {
        server.client().line(&format!("SET round {round}"));
        wait_for_both(&server);
        let expected = Digest::of(&server.address());
        server.lose_everything();
        server.until_master_with_data();
        assert_same(&expected, &Digest::of(&server.address()));
        wait_for_both(&server);
        archive.status().assert_chain_of(round);
    }
    assert_one_history(&archive, kind, 4, &Digest::of(&server.address()));
    assert_in_harmony(&mut both);
}

/// Where the backlog has passed one of them by, the archive has what the other one stored.
#[test]
fn what_one_misses_the_other_has() {
    let Some(server) = REDIS_7_0.start(&["--repl-backlog-size", "16kb"]) else {
        return;
    };
    let archive = Archive::new();
    let behind = Proxy::to(&server.address());
    let mut both = [server.url(), behind.url()].map(|url| {
        let follows = Perennial::follow_url(&url, &archive, &["--flush-interval", "50ms"]);
        archive.until_durable();
        follows
    });
    wait_for_both(&server);
    behind.down();
    let mut client = server.client();
    for round in 0..10 {
        client.ok(&["SET", &format!("filler:{round}"), &"x".repeat(10_000)]);
        client.wait_until_stored(DEADLINE);
    }
    both[0].kill();
    behind.up();
    client.wait_until_stored(DEADLINE);
    both[0].start_again();
    wait_for_both(&server);
    let expected = Digest::of(&server.address());
    assert_one_history(&archive, REDIS_7_0, 1, &expected);
    assert_in_harmony(&mut both);
}

/// The first one created the timeline and its snapshot, and died with what came behind it in memory. The second one
/// asks for that first, not for what comes next.
#[test]
fn what_an_adopted_timeline_lacks_is_stored_first() {
    let Some(server) = REDIS_7_0.start(&LONG_BACKLOG) else {
        return;
    };
    let archive = Archive::new();
    let mut first = Perennial::follow(&server, &archive, &["--flush-interval", "60s"]);
    write_everything(&mut server.client(), 0);
    first.kill();
    let status = archive.status();
    let end = status.durable_offset.unwrap();
    assert_eq!(status.timelines[0].segments, 0, "{status:#?}");
    let mut second = Perennial::follow(&server, &archive, SMALL_CUTS);
    server.client().wait_until_stored(DEADLINE);
    let first_piece = segments(&archive).remove(0);
    assert!(
        first_piece.starts_with(&format!("{:020}-", end + 1)),
        "{first_piece}"
    );
    assert_one_history(&archive, REDIS_7_0, 1, &Digest::of(&server.address()));
    second.assert_healthy();
}

/// Pieces are stored a few at a time: the first one died when a later piece was in the store and an earlier one was not.
#[test]
fn a_hole_in_an_adopted_timeline_is_filled() {
    let Some(server) = REDIS_7_0.start(&LONG_BACKLOG) else {
        return;
    };
    let archive = Archive::new();
    let mut first = Perennial::follow(&server, &archive, LARGE_CUTS);
    for round in 0..3 {
        write_everything(&mut server.client(), round);
        server.client().wait_until_stored(DEADLINE);
    }
    first.kill();
    let stored = archive.objects();
    let pieces = stored
        .iter()
        .filter(|(name, _)| name.contains("/segments/"));
    let (_, early) = pieces
        .clone()
        .nth(1)
        .expect("there are three pieces and more");
    assert!(pieces.count() > 2);
    std::fs::remove_file(early).unwrap();
    let first_syncs = full_syncs(&server);
    let mut second = Perennial::follow(&server, &archive, SMALL_CUTS);
    server.client().wait_until_stored(DEADLINE);
    assert_eq!(full_syncs(&server), first_syncs, "{}", second.log());
    assert_one_history(&archive, REDIS_7_0, 1, &Digest::of(&server.address()));
    second.assert_healthy();
}

/// The names of the pieces, without their folder, sorted by what they begin with.
fn segments(archive: &Archive) -> Vec<String> {
    let objects = archive.objects().into_iter();
    let mut names: Vec<String> = objects
        .filter(|(name, _)| name.contains("/segments/") || name.contains("/merged/"))
        .map(|(_, path)| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
