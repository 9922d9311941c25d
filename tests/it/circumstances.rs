//! Machines that are not as they should be: the time of day jumps by years, disks are full, descriptors run out, memory is
//! limited. It is survived and said, and nothing that was confirmed is lost.

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::harness::confined::{FakeTime, MemoryLimit, SmallDisk};
use crate::harness::random::Random;
use crate::harness::servers::REDIS_6_2;
use crate::harness::workload::write_everything;
use crate::harness::{
    Archive, Churn, DEADLINE, Digest, Kind, Load, Mix, Perennial, Port, REDIS_7_0, Server, Writers,
    assert_same, run_cli, until,
};
use crate::two_streamers::assert_one_history;

const LOAD: Load = Load {
    plain: 2,
    confirming: 2,
    value_bytes: 100,
    pause: Duration::from_millis(3),
};

/// `run`'s flags for this server and archive, and more.
fn flags<'a>(url: &'a str, archive: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["--redis", url, "--archive", archive], more].concat()
}

/// A state of the server that restores must find again.
struct Known {
    digest: Digest,
    offset: u64,
    at: SystemTime,
}

impl Known {
    /// All that is there while the writers rest, stored; by the true time.
    #[track_caller]
    fn between(server: &Server, writers: &Writers) -> Self {
        writers.pause();
        let known = Self::of(server);
        writers.resume();
        known
    }

    /// All that is there now, where nobody writes.
    #[track_caller]
    fn of(server: &Server) -> Self {
        server.client().wait_until_stored(DEADLINE);
        let known = Self {
            digest: Digest::of(&server.address()),
            offset: server.info_number("replication", "master_repl_offset"),
            at: SystemTime::now(),
        };
        let next = || SystemTime::now() > known.at + Duration::from_millis(1500);
        until("the moment is over", DEADLINE, next);
        known
    }

    #[track_caller]
    fn assert_restored(&self, archive: &Archive, kind: Kind, at: &str) {
        let folder = archive.restore("restored", &["--at", at]);
        let restored = kind.start_on(&folder).unwrap();
        assert_same(&self.digest, &Digest::of(&restored.address()));
        drop(restored);
        fs::remove_dir_all(folder).unwrap();
    }
}

/// Ten years ahead, ten years back, and right again, each while clients write and each with a new process as well.
/// Nothing is too old all of a sudden, no name is unreadable, and moments of right times are where they were.
#[test]
fn the_time_jumps_by_ten_years_and_back_under_load() {
    let (Some(mut server), Some(time)) = (
        REDIS_7_0.start(&[
            "--repl-backlog-size",
            "64mb",
            "--repl-ping-replica-period",
            "3600",
        ]),
        FakeTime::at("+0"),
    ) else {
        return;
    };
    let archive = Archive::new();
    let (url, archive_url) = (server.url(), archive.url());
    let keeping = [
        "--flush-interval",
        "30ms",
        "--upkeep-interval",
        "300ms",
        "--merge-minute",
        "500ms",
        "--merge-hour",
        "3s",
        "--merge-grace",
        "1s",
    ];
    let mut perennial = time.run(&flags(&url, &archive_url, &keeping));
    archive.until_durable();
    write_everything(&mut server.client(), 0);
    let writers = Writers::start(&server.address(), LOAD);
    writers.until_confirmed_more(20);
    let early = Known::between(&server, &writers);
    let mut between = Vec::new();
    for shift in ["+10y", "-10y", "+0"] {
        time.jump(shift);
        writers.until_confirmed_more(20);
        perennial.kill();
        perennial.start_again();
        writers.until_confirmed_more(20);
        between.push(Known::between(&server, &writers));
    }
    writers.until_confirmed_more(20);
    let ledger = writers.stop();
    let late = Known::of(&server);

    let status = archive.status();
    assert_eq!((status.timelines.len(), status.suspects()), (1, vec![]));
    assert!(status.timelines[0].gaps.is_empty(), "{status:#?}");
    let (code, out, err) = run_cli(&["verify", "--archive", &archive_url]);
    assert_eq!(code, 0, "{out}{err}");
    for known in [&early, &late].into_iter().chain(&between) {
        known.assert_restored(&archive, REDIS_7_0, &format!("offset:{}", known.offset));
    }
    for known in [&early, &late] {
        let at = known.at + Duration::from_millis(700);
        let at = humantime::format_rfc3339_millis(at).to_string();
        known.assert_restored(&archive, REDIS_7_0, &at);
    }
    late.assert_restored(&archive, REDIS_7_0, "latest");

    // A seed at a wrong time, too.
    time.jump("-10y");
    server.lose_everything();
    server.until_master_with_data();
    ledger.assert_all_in(&server.address());
    assert_same(&late.digest, &Digest::of(&server.address()));
    let log = perennial.log();
    assert!(log.contains("upkeep: merged"), "{log}");
    let mut lines = log.lines().filter(|line| line.contains("too old"));
    assert!(
        lines.all(|line| line.contains(" 0 that were too old")),
        "{log}"
    );
    perennial.assert_healthy();
}

/// A master before 7.0 spells TTLs relative to a time that only Perennial's clock tells. That it was ten years behind for a
/// moment ends none of those that were written before.
#[test]
fn a_clock_that_was_behind_ends_no_ttl_of_what_was_before() {
    let (Some(server), Some(time)) = (REDIS_6_2.start(&[]), FakeTime::at("+0")) else {
        return;
    };
    let archive = Archive::new();
    let (url, archive_url) = (server.url(), archive.url());
    let mut perennial = time.run(&flags(&url, &archive_url, &[]));
    archive.until_durable();
    for (shift, key) in [("+0", "before"), ("-10y", "behind"), ("+0", "later")] {
        time.jump(shift);
        server.client().line(&format!("SETEX {key} 100000 1"));
        server.client().wait_until_stored(DEADLINE);
    }
    let folder = archive.restore("restored", &[]);
    let restored = REDIS_6_2.start_on(&folder).unwrap();
    for key in ["before", "behind", "later"] {
        let ttl = restored.client().line(&format!("TTL {key}")).integer();
        assert!((90_000..=100_000).contains(&ttl), "{key}: {ttl}");
    }
    perennial.assert_healthy();
}

/// The archive's disk is full to the last byte while clients write: the master does not notice, nothing is confirmed,
/// and what was written goes on to be stored when there is room. Also where Perennial dies meanwhile.
#[test]
fn the_archives_disk_is_full() {
    let (Some(server), Some(disk)) = (
        REDIS_7_0.start(&["--repl-backlog-size", "64mb"]),
        SmallDisk::mount(24),
    ) else {
        return;
    };
    let archive = Archive::at(
        format!("file://{}/archive", disk.path().display()),
        Vec::new(),
    );
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    write_everything(&mut server.client(), 0);
    let writers = Writers::start(&server.address(), LOAD);
    writers.until_confirmed_more(20);
    for killed in [false, true] {
        disk.fill();
        perennial.until_logged("no space is left");
        let mut client = server.client();
        until("nothing is confirmed", DEADLINE, || {
            client.line("INCR unconfirmed");
            client.line("WAIT 1 300").integer() == 0
        });
        writers.until_acknowledged_more(100);
        if killed {
            perennial.kill();
            perennial.start_again();
            writers.until_acknowledged_more(100);
        }
        disk.free();
        writers.until_confirmed_more(20);
    }
    let ledger = writers.stop();
    server.client().wait_until_stored(DEADLINE);
    let expected = Digest::of(&server.address());
    assert_one_history(&archive, REDIS_7_0, 1, &expected);
    let restored = REDIS_7_0.start_on(&archive.beside("restored")).unwrap();
    ledger.assert_all_in(&restored.address());
    perennial.assert_healthy();
}

/// Nothing of a first snapshot that found no room stays on the disk, and it comes when there is room.
#[test]
fn the_archives_disk_is_full_during_the_first_snapshot() {
    let (Some(server), Some(disk)) = (REDIS_7_0.start(&[]), SmallDisk::mount(8)) else {
        return;
    };
    let (mut client, mut random) = (server.client(), Random::new());
    for number in 0..160 {
        let key = format!("large:{number}");
        client.ok(&[b"SET".as_slice(), key.as_bytes(), &random.bytes(100_000)]);
    }
    let archive = Archive::at(
        format!("file://{}/archive", disk.path().display()),
        Vec::new(),
    );
    let mut perennial = Perennial::follow_url(&server.url(), &archive, &[]);
    perennial.until_logged("no space is left");
    client.line("SET meanwhile 1");
    assert_eq!(client.line("WAIT 1 300").integer(), 0);
    assert_eq!(archive.status().snapshots(), 0);
    disk.resize(64);
    let wait = 2 * DEADLINE;
    archive.until("the snapshot is stored", wait, |status| {
        status.snapshots() == 1
    });
    client.wait_until_stored(DEADLINE);
    assert_one_history(&archive, REDIS_7_0, 1, &Digest::of(&server.address()));
    perennial.assert_healthy();
}

/// The spool may grow larger than its disk, and the store hangs: when the disk is full the link is closed, and the master
/// goes on.
#[cfg(feature = "s3")]
#[test]
fn the_spools_disk_is_full() {
    use crate::harness::s3::{S3Server, SECRET, WRITER, environment};
    let (Some(server), Some(disk)) = (
        REDIS_7_0.start(&["--repl-backlog-size", "512mb"]),
        SmallDisk::mount(8),
    ) else {
        return;
    };
    let store = S3Server::in_process();
    let way = crate::harness::Proxy::to(&store.address());
    let url = store.url_through(&way.address(), "a");
    let archive = Archive::at(url, environment(WRITER, SECRET));
    let spool = ["--buffer-bytes", "24MiB", "--spool-bytes", "1GiB"];
    let folder = disk.path().to_str().unwrap();
    let spool = [&spool[..], &["--spool-dir", folder]].concat();
    let mut perennial = Perennial::follow(&server, &archive, &spool);
    server.client().wait_until_stored(DEADLINE);
    let full_syncs = || server.info_number("stats", "sync_full");
    let before = full_syncs();
    let links = || server.info_number("replication", "connected_slaves");
    way.down();
    let churn = Churn::start(&server.address(), Mix::RANDOM_WRITES);
    perennial.until_logged("a scratch file cannot be written");
    perennial.until_logged("No space left on device");
    until("the link is closed", DEADLINE, || links() == 0);
    let done = churn.done();
    until("the master goes on", DEADLINE, || {
        churn.done() > done + 1000
    });
    churn.stop();
    disk.resize(256);
    way.up();
    until("it is followed again", 2 * DEADLINE, || links() == 1);
    server.client().wait_until_stored(2 * DEADLINE);
    assert_eq!(full_syncs(), before, "the backlog had it all");
    let status = archive.status();
    status.assert_chain_of(1);
    let folder = archive.restore("restored", &[]);
    let restored = REDIS_7_0.start_on(&folder).unwrap();
    let expected = Digest::of(&server.address());
    assert_same(&expected, &Digest::of(&restored.address()));
    perennial.assert_healthy();
}

/// How many descriptors a process has open.
fn open_files(perennial: &Perennial) -> usize {
    fs::read_dir(format!("/proc/{}/fd", perennial.pid()))
        .unwrap()
        .count()
}

/// Lets a running process open so many.
#[track_caller]
fn limit_files(perennial: &Perennial, count: usize) {
    let status = Command::new("prlimit")
        .args(["--pid", &perennial.pid().to_string()])
        .arg(format!("--nofile={count}:"))
        .status();
    assert!(status.is_ok_and(|status| status.success()), "prlimit");
}

/// Not one more file or connection can be opened for a while, with the link up and with it broken.
#[test]
fn not_one_more_descriptor() {
    let Some(server) = REDIS_7_0.start(&["--repl-backlog-size", "64mb"]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    write_everything(&mut server.client(), 0);
    let writers = Writers::start(&server.address(), LOAD);
    writers.until_confirmed_more(20);
    for broken in [false, true] {
        // What it holds for a moment only, it will not get again.
        limit_files(&perennial, open_files(&perennial).min(8));
        let mut client = server.client();
        until("nothing is confirmed", DEADLINE, || {
            client.line("INCR unconfirmed");
            client.line("WAIT 1 300").integer() == 0
        });
        perennial.until_logged("Too many open files");
        perennial.until_logged("ulimit -n");
        if broken {
            client.line("CLIENT KILL TYPE replica");
        }
        writers.until_acknowledged_more(100);
        limit_files(&perennial, 1024);
        writers.until_confirmed_more(20);
    }
    let ledger = writers.stop();
    server.client().wait_until_stored(DEADLINE);
    assert_one_history(&archive, REDIS_7_0, 1, &Digest::of(&server.address()));
    let restored = REDIS_7_0.start_on(&archive.beside("restored")).unwrap();
    ledger.assert_all_in(&restored.address());
    perennial.assert_healthy();
}

/// Whoever reaches its ports takes all descriptors that a small limit leaves. It comes back by itself when they go, and
/// nothing was lost meanwhile.
#[test]
fn connections_take_all_descriptors() {
    let Some(mut server) = REDIS_7_0.start(&["--repl-backlog-size", "64mb"]) else {
        return;
    };
    let archive = Archive::new();
    let (http, seed) = (Port::reserve(), Port::reserve());
    let (http_address, seed_address) = (http.address(), seed.address());
    let (url, archive_url) = (server.url(), archive.url());
    let ports = ["--http", &http_address, "--seed-listen", &seed_address];
    let mut perennial = Perennial::run_behind(
        &["sh", "-c", "ulimit -n 40; exec \"$@\"", "sh"],
        &flags(&url, &archive_url, &ports),
        &[],
    );
    archive.until_durable();
    write_everything(&mut server.client(), 0);
    server.client().wait_until_stored(DEADLINE);
    let connect = |address: &str| TcpStream::connect(address).ok();
    let held: Vec<TcpStream> = (0..60)
        .flat_map(|_| [connect(&http_address), connect(&seed_address)])
        .flatten()
        .collect();
    until("it has no descriptor left", DEADLINE, || {
        open_files(&perennial) >= 40
    });
    let mut client = server.client();
    client.line("SET meanwhile 1");
    drop(held);
    client.wait_until_stored(DEADLINE);
    perennial.assert_healthy();
    assert_one_history(&archive, REDIS_7_0, 1, &Digest::of(&server.address()));

    // Filled from the archive, within the same limit.
    let expected = Digest::of(&server.address());
    server.lose_everything();
    server.until_master_with_data();
    assert_same(&expected, &Digest::of(&server.address()));
    perennial.assert_healthy();
}

/// A container's limit of 128 MiB, a data set that is larger, and a burst: it lives on, in both directions.
#[test]
fn a_container_of_128_mib() {
    let (Some(mut server), Some(limit)) = (
        REDIS_7_0.start(&["--repl-backlog-size", "256mb"]),
        MemoryLimit::of(128),
    ) else {
        return;
    };
    let (mut client, mut random) = (server.client(), Random::new());
    for number in 0..200 {
        let key = format!("large:{number}");
        client.ok(&[
            b"SET".as_slice(),
            key.as_bytes(),
            &random.bytes(1024 * 1024),
        ]);
    }
    let archive = Archive::new();
    let (url, archive_url) = (server.url(), archive.url());
    let before = limit.before();
    let before: Vec<&str> = before.iter().map(String::as_str).collect();
    let mut perennial = Perennial::run_behind(&before, &flags(&url, &archive_url, &[]), &[]);
    let churn = Churn::start(&server.address(), Mix::RANDOM_WRITES);
    archive.until("the snapshot is stored", 3 * DEADLINE, |status| {
        status.durable_offset.is_some()
    });
    churn.stop();
    client.wait_until_stored(2 * DEADLINE);
    perennial.assert_healthy();
    let expected = Digest::of(&server.address());
    server.lose_everything();
    until("all of it is back", 4 * DEADLINE, || {
        server.is_master() && server.keys() == Some(expected.len() as u64)
    });
    assert_same(&expected, &Digest::of(&server.address()));
    archive.status().assert_chain_of(2);
    eprintln!("at most {:?} MiB of 128 counted", limit.peak_mebibytes());
    perennial.assert_healthy();
}

/// A limit that is too small ends it whenever there is much to do, as a container's does: what was confirmed is there.
#[test]
fn a_container_that_is_too_small_loses_nothing() {
    let (Some(server), Some(limit)) = (
        REDIS_7_0.start(&["--repl-backlog-size", "256mb"]),
        MemoryLimit::of(128),
    ) else {
        return;
    };
    let archive = Archive::new();
    let (url, archive_url) = (server.url(), archive.url());
    let before = limit.before();
    let before: Vec<&str> = before.iter().map(String::as_str).collect();
    let mut perennial = Perennial::run_behind(&before, &flags(&url, &archive_url, &[]), &[]);
    archive.until_durable();
    let writers = Writers::start(&server.address(), LOAD);
    writers.until_confirmed_more(20);
    limit.squeeze();
    let churn = Churn::start(&server.address(), Mix::RANDOM_WRITES);
    until("the system has ended it", DEADLINE, || {
        perennial.exited().is_some()
    });
    churn.stop();
    limit.change(128);
    perennial.start_again();
    writers.until_confirmed_more(20);
    let ledger = writers.stop();
    server.client().wait_until_stored(DEADLINE);
    assert_one_history(&archive, REDIS_7_0, 1, &Digest::of(&server.address()));
    let restored = REDIS_7_0.start_on(&archive.beside("restored")).unwrap();
    ledger.assert_all_in(&restored.address());
    perennial.assert_healthy();
}
