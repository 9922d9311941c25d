//! Upkeep beside the real thing: segments are merged and deleted under load, under restores and seeds, by two at once.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::harness::{
    Archive, DEADLINE, Digest, Kind, Load, Perennial, REDIS_7_0, Server, Writers, assert_same,
    run_cli, run_cli_with, until,
};
use crate::on_every_server;

on_every_server! {
    oldest, usual and newest;
    small_segments_become_few_under_load_and_nothing_is_missing,
}

/// Seconds for what takes minutes and hours.
const QUICK: &[&str] = &[
    "--flush-interval",
    "20ms",
    "--upkeep-interval",
    "300ms",
    "--merge-minute",
    "500ms",
    "--merge-hour",
    "3s",
    "--merge-grace",
    "1s",
];

fn merged(archive: &Archive) -> usize {
    let objects = archive.objects();
    let merged = objects.iter().filter(|(name, _)| name.contains("/merged/"));
    merged.count()
}

fn newest_merged(archive: &Archive) -> Option<String> {
    let objects = archive.objects().into_iter().map(|(name, _)| name);
    objects.filter(|name| name.contains("/merged/")).max()
}

fn first_segment(archive: &Archive) -> Option<String> {
    let mut objects = archive.objects().into_iter();
    let found = objects.find(|(name, _)| name.contains("/segments/"));
    found.map(|(name, _)| name)
}

fn small_segments_become_few_under_load_and_nothing_is_missing(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, QUICK);
    // A second one stores and keeps the same archive.
    let mut second = Perennial::follow(&server, &archive, QUICK);
    let load = Load {
        pause: Duration::from_millis(5),
        ..Load::default()
    };
    let writers = Writers::start(&server.address(), load);
    writers.until_confirmed_more(20);
    let begin = first_segment(&archive);
    until("merged segments are there", DEADLINE, || {
        merged(&archive) >= 3
    });
    until("what they were made of is gone", DEADLINE, || {
        begin != first_segment(&archive)
    });
    // A restore in the midst of it.
    archive.restore("meanwhile", &[]);
    let before = newest_merged(&archive);
    until("it goes on", DEADLINE, || newest_merged(&archive) > before);
    let ledger = writers.stop();
    server.client().wait_until_stored(DEADLINE);
    let expected = Digest::of(&server.address());
    perennial.assert_healthy();
    second.assert_healthy();
    for running in [&perennial, &second] {
        assert!(
            !running.log().contains("differ behind"),
            "{}",
            running.log()
        );
        assert!(!running.log().contains(" ERROR "), "{}", running.log());
    }

    // Seeded from merged segments.
    second.kill();
    server.lose_everything();
    server.until_master_with_data();
    assert_same(&expected, &Digest::of(&server.address()));
    ledger.assert_all_in(&server.address());
    let status = archive.until("the child is there", DEADLINE, |status| {
        status.timelines.len() == 2
    });
    status.assert_chain_of(2);

    // And by files.
    let folder = archive.restore("restored", &["--at", "timeline:1"]);
    let restored = kind.start_on(&folder).unwrap();
    assert_same(&expected, &Digest::of(&restored.address()));
}

/// Merged in whatever store, under load and with snapshots every few moments, and whole afterwards.
pub fn kept_small_in(kind: Kind, archive: &Archive) {
    let Some(mut server) = kind.start(&["--repl-diskless-sync-delay", "0"]) else {
        return;
    };
    let eager = [
        "--snapshot-log-ratio",
        "0.001",
        "--snapshot-log-bytes",
        "4KiB",
        "--snapshot-min-interval",
        "1s",
    ];
    let environment = archive.environment();
    let mut perennial = Perennial::follow(&server, archive, &[QUICK, &eager].concat());
    let load = Load {
        pause: Duration::from_millis(5),
        ..Load::default()
    };
    let writers = Writers::start(&server.address(), load);
    writers.until_confirmed_more(20);
    // "upkeep: merged 3 segments into 1; deleted 12 that were merged and 2 that were too old, 1.2 KiB"
    let sum = |log: &str, before: &str| -> u64 {
        let passes = log.lines().filter_map(|line| line.split_once("upkeep: "));
        let counts = passes.filter_map(|(_, told)| {
            let (_, behind) = told.split_once(before)?;
            behind.split(' ').next()?.parse::<u64>().ok()
        });
        counts.sum()
    };
    until("segments were merged and deleted", 2 * DEADLINE, || {
        let log = perennial.log();
        sum(&log, "merged ") >= 10 && sum(&log, "deleted ") >= 10
    });
    let snapshots = archive.status().snapshots();
    assert!(snapshots > 1, "{snapshots} snapshots");
    let ledger = writers.stop();
    server.client().wait_until_stored(DEADLINE);
    let expected = Digest::of(&server.address());
    perennial.assert_healthy();
    assert!(!perennial.log().contains(" ERROR "), "{}", perennial.log());
    let url = archive.url();
    let (code, out, error) = run_cli_with(&["verify", "--archive", &url], &environment);
    assert_eq!(code, 0, "{out} {error}");
    let folder = archive.restore("restored", &[]);
    let restored = kind.start_on(&folder).unwrap();
    assert_same(&expected, &Digest::of(&restored.address()));
    server.lose_everything();
    server.until_master_with_data();
    ledger.assert_all_in(&server.address());
}

/// Two snapshots with a gap between them, the first one and what is behind it thirty days old.
fn aged_archive(archive: &Archive) -> Option<Server> {
    let server = REDIS_7_0.start(&["--repl-backlog-size", "16kb"])?;
    let mut perennial = Perennial::follow(&server, archive, &[]);
    server.client().line("SET old 1");
    server.client().wait_until_stored(DEADLINE);
    perennial.kill();
    let long_ago = SystemTime::now() - Duration::from_secs(30 * 24 * 3600);
    for (_, path) in archive.objects() {
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
    }
    let filler = "x".repeat(10_000);
    for key in 0..10 {
        server
            .client()
            .ok(&["SET", &format!("filler:{key}"), &filler]);
    }
    perennial.start_again();
    archive.until("there is a second snapshot", DEADLINE, |status| {
        status.snapshots() == 2
    });
    server.client().line("SET new 1");
    server.client().wait_until_stored(DEADLINE);
    perennial.kill();
    Some(server)
}

fn prune(archive: &Archive, more: &[&str]) -> (i32, Value) {
    let url = archive.url();
    let arguments = [
        &["prune", "--archive", &url, "--retention", "7d", "--json"],
        more,
    ]
    .concat();
    let (code, out, err) = run_cli(&arguments);
    let json = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
    (code, json)
}

/// Gives a snapshot the name of one that was taken then; its new place.
fn rename_to(path: &Path, taken: SystemTime) -> PathBuf {
    let name = path.file_name().unwrap().to_str().unwrap();
    let (offset, rest) = name.split_once('-').unwrap();
    let behind = rest.find(|c: char| !c.is_ascii_digit()).unwrap();
    let millis = taken.duration_since(UNIX_EPOCH).unwrap().as_millis();
    let named = format!("{offset}-{millis:0behind$}{}", &rest[behind..]);
    let renamed = path.with_file_name(named);
    std::fs::rename(path, &renamed).unwrap();
    renamed
}

#[test]
fn prune_deletes_what_is_too_old_and_nothing_else() {
    let archive = Archive::new();
    let Some(server) = aged_archive(&archive) else {
        return;
    };
    // The window's start lies before the second snapshot: the first one is still its base.
    let before = archive.objects();
    let (code, done) = prune(&archive, &[]);
    assert_eq!((code, &done["deleted_old"]), (0, &Value::from(0)), "{done}");
    // Something may have been merged.
    let is_there = |object| archive.objects().contains(object);
    assert!(before.iter().all(is_there), "{:?}", archive.objects());

    // A second snapshot before the window as well, by its date and by its name.
    let long_ago = SystemTime::now() - Duration::from_secs(10 * 24 * 3600);
    let mut renamed = Vec::new();
    for (name, path) in archive.objects() {
        let file = File::options().write(true).open(&path).unwrap();
        let is_old = file.metadata().unwrap().modified().unwrap() < long_ago;
        if name.contains("/snapshots/") && !is_old {
            file.set_modified(long_ago).unwrap();
            renamed.push((rename_to(&path, long_ago), path));
        }
    }
    let before = archive.objects();
    let (code, done) = prune(&archive, &["--no-delete"]);
    assert_eq!((code, &done["deleted_old"]), (0, &Value::from(0)), "{done}");
    assert!(before.iter().all(is_there), "{:?}", archive.objects());
    let (_, planned) = prune(&archive, &["--dry-run"]);
    let planned: Vec<&str> = planned["delete_old"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| object["name"].as_str().unwrap())
        .collect();
    assert!(planned.len() >= 2, "{planned:?}");
    assert!(before.iter().all(is_there), "a plan deletes nothing");
    let (code, done) = prune(&archive, &[]);
    assert_eq!(
        (code, &done["deleted_old"]),
        (0, &Value::from(planned.len())),
        "{done}"
    );
    let left = archive.objects();
    assert!(
        !left
            .iter()
            .any(|(name, _)| planned.contains(&name.as_str())),
        "{left:?}"
    );
    let status = archive.status();
    assert_eq!(status.snapshots(), 1, "{status:#?}");
    assert!(status.timelines[0].gaps.is_empty(), "{status:#?}");
    // Under the name that its blocks bear.
    for (now, before) in renamed {
        std::fs::rename(now, before).unwrap();
    }
    let folder = archive.restore("restored", &[]);
    let restored = server.kind().start_on(&folder).unwrap();
    assert_same(
        &Digest::of(&server.address()),
        &Digest::of(&restored.address()),
    );
}

#[test]
fn what_cannot_be_is_refused() {
    let archive = Archive::new();
    let (code, _, err) = run_cli(&["prune", "--archive", &archive.url(), "--retention", "3s"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("--retention"), "{err}");
    // `run` may have promised more than any value that we would take.
    let (code, _, err) = run_cli(&["prune", "--archive", &archive.url()]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("--retention"), "{err}");
    for with in [&["--retention", "7d"][..], &["--dry-run"]] {
        let (code, _, err) = run_cli(&[&["prune", "--archive", &archive.url()], with].concat());
        assert_eq!(code, 1, "{err}");
    }
}
