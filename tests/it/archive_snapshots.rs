//! Snapshots from the archive itself: replayed into a scratch server, so that after the first one no server forks again.
//! They hold what the master held, and restores begin with them as with any other.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::random::Random;
use crate::harness::servers::{REDIS_7_0, REDIS_8_0};
use crate::harness::workload::{write_at_random, write_everything, write_verbatim};
use crate::harness::{
    Archive, DEADLINE, Digest, Kind, Perennial, RESIDENT_BYTES_MAX, Server, Snapshot, Status,
    Value, assert_same, holds_for, run_cli, run_cli_with, until,
};
use crate::on_every_server;

on_every_server! {
    oldest, usual and newest;
    the_master_never_forks_again_and_restores_begin_there,
    what_has_lapsed_and_was_not_deleted_is_in_it,
}

// Before 7.0 a dump says nothing of its past to a master that loads it.
on_every_server! {
    since 7.0;
    a_server_that_comes_back_from_its_dump_is_recognised,
}

/// Each as soon as 20 KiB were written. The servers live on when Perennial is stopped.
const EAGER: [&str; 10] = [
    "--shutdown-timeout",
    "1s",
    "--snapshot-log-ratio",
    "0.001",
    "--snapshot-log-bytes",
    "20KiB",
    "--snapshot-min-interval",
    "100ms",
    "--snapshot-from",
    "archive",
];

fn forks(server: &Server) -> u64 {
    server.info_number("stats", "total_forks")
}

/// A master and the program that plays it.
fn start(kind: Kind) -> Option<(Server, String)> {
    let program = kind.find()?.display().to_string();
    Some((kind.start(&["--repl-diskless-sync-delay", "0"])?, program))
}

fn follow(master: &Server, archive: &Archive, scratch: &str) -> Perennial {
    let flags = [&EAGER, ["--scratch", scratch].as_slice()].concat();
    Perennial::follow(master, archive, &flags)
}

fn derived(status: &Status) -> Vec<Snapshot> {
    let snapshots = status.timelines[0].snapshots.iter();
    snapshots.filter(|it| it.derived).copied().collect()
}

#[track_caller]
fn assert_one_history(status: &Status) {
    assert_eq!(status.timelines.len(), 1, "{status:#?}");
    assert!(status.timelines[0].gaps.is_empty(), "{status:#?}");
    assert!(status.problems.is_empty(), "{status:#?}");
}

/// A copy of the archive in which this derived snapshot is all that there is at and before its place.
#[track_caller]
fn with_nothing_but(archive: &Archive, kept: Snapshot) -> String {
    let (url, folder) = archive.copy("only-derived");
    let place = format!("{:020}-", kept.offset);
    let mut removed = 0;
    for (name, _) in archive.objects() {
        let file = name.rsplit('/').next().unwrap();
        let is_before = if name.contains("/snapshots/") {
            !(file.starts_with(&place) && file.contains("-derived"))
        } else if name.contains("/segments/") || name.contains("/merged/") {
            file.split('-').nth(1).unwrap() <= format!("{:020}", kept.offset).as_str()
        } else {
            false
        };
        if is_before {
            std::fs::remove_file(folder.join(&name)).unwrap();
            removed += 1;
        }
    }
    assert!(removed > 1, "nothing lay before {kept:?}");
    url
}

#[track_caller]
fn restored(url: &str, folder: &Path) -> PathBuf {
    let to = folder.to_str().unwrap();
    let (code, out, error) = run_cli(&["restore", "--archive", url, "--to", to]);
    assert_eq!(code, 0, "{out} {error}");
    folder.to_owned()
}

fn the_master_never_forks_again_and_restores_begin_there(kind: Kind) {
    let Some((mut master, program)) = start(kind) else {
        return;
    };
    let mut random = Random::new();
    write_everything(&mut master.client(), 0);
    let archive = Archive::new();
    let mut perennial = follow(&master, &archive, &program);
    let before = forks(&master);
    let mut client = master.client();
    let mut round = 1;
    until("two derived snapshots are there", DEADLINE, || {
        write_at_random(&mut client, &mut random, 50);
        if round < 3 {
            write_everything(&mut client, round);
            round += 1;
        }
        // What follows goes on in this database and does not say so again.
        client.line("SELECT 3");
        client.ok(&["SET", "in-three", &"x".repeat(5000)]);
        client.line("INCR count");
        derived(&archive.status()).len() >= 2
    });
    client.line("SET after 1");
    client.wait_until_stored(DEADLINE);
    perennial.terminate();
    assert!(perennial.wait(DEADLINE).success(), "{}", perennial.log());
    assert_eq!(forks(&master), before, "the master forked");
    let status = archive.status();
    assert_one_history(&status);
    let made = derived(&status);
    assert_eq!(
        made.len() + 1,
        status.snapshots(),
        "but the first: {status:#?}"
    );
    assert!(perennial.resident_bytes_peak().unwrap_or(0) < RESIDENT_BYTES_MAX);

    // With nothing of what they were made from.
    let digest = Digest::of(&master.address());
    for (number, kept) in [made[0], *made.last().unwrap()].into_iter().enumerate() {
        let url = with_nothing_but(&archive, kept);
        let folder = restored(&url, &archive.beside(&format!("restored-{number}")));
        let server = kind.start_on(&folder).unwrap();
        assert_same(&digest, &Digest::of(&server.address()));
        std::fs::remove_dir_all(archive.beside("only-derived")).unwrap();
    }

    // Replayed once more they are the same, which proves no more than that.
    let url = archive.url();
    let (code, said, error) = run_cli(&[
        "verify",
        "--archive",
        &url,
        "--drill",
        "--scratch",
        &program,
        "--json",
    ]);
    assert_eq!(code, 0, "{said} {error}");
    let told: serde_json::Value = serde_json::from_str(&said).unwrap();
    let compared = &told["drill"]["compared"];
    assert_eq!(compared["derived"], true, "{told}");
    assert_eq!(compared["same"], true, "{told}");
    assert_eq!(told["summary"]["unknown"], 1, "{told}");

    // And by a seed, behind which everything goes on.
    perennial.start_again();
    master.lose_everything();
    master.until_master_with_data();
    assert_same(&digest, &Digest::of(&master.address()));
    write_at_random(&mut master.client(), &mut random, 50);
    master.client().wait_until_stored(DEADLINE);
    perennial.assert_healthy();
}

/// Snapshots from the archive, in whatever store: a restore begins with one, and a drill finds it to be right.
pub fn replayed_in(kind: Kind, archive: &Archive) {
    let Some((master, program)) = start(kind) else {
        return;
    };
    let mut random = Random::new();
    write_verbatim(&mut master.client(), 0);
    let flags = [&EAGER, ["--scratch", &program].as_slice()].concat();
    let environment = archive.environment();
    let mut perennial = Perennial::follow(&master, archive, &flags);
    let before = forks(&master);
    let mut client = master.client();
    until("a derived snapshot is there", DEADLINE, || {
        write_at_random(&mut client, &mut random, 50);
        client.ok(&["SET", "long", &"x".repeat(5000)]);
        !derived(&archive.status()).is_empty()
    });
    client.line("INCR last");
    client.wait_until_stored(DEADLINE);
    perennial.terminate();
    assert!(perennial.wait(DEADLINE).success(), "{}", perennial.log());
    assert_eq!(forks(&master), before, "the master forked");
    let expected = Digest::of(&master.address());
    let folder = archive.restore("restored", &[]);
    let restored = kind.start_on(&folder).unwrap();
    assert_same(&expected, &Digest::of(&restored.address()));
    let url = archive.url();
    let drill = [
        "verify",
        "--archive",
        &url,
        "--drill",
        "--scratch",
        &program,
        "--json",
    ];
    let (code, said, error) = run_cli_with(&drill, &environment);
    assert_eq!(code, 0, "{said} {error}");
    let told: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(told["drill"]["compared"]["same"], true, "{told}");
    assert_eq!(told["drill"]["compared"]["derived"], true, "{told}");
}

/// A seed leaves the payload on the server's disk: it names the position that it holds, as one of the master's would.
fn a_server_that_comes_back_from_its_dump_is_recognised(kind: Kind) {
    let (Some(mut master), Some(program)) = (
        kind.start(&["--repl-diskless-load", "disabled"]),
        kind.find(),
    ) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&master, &archive, &[]);
    write_verbatim(&mut master.client(), 0);
    master.client().line("SET early 1");
    master.client().wait_until_stored(DEADLINE);
    let (code, _, error) = run_cli(&[
        "snapshot",
        "--redis",
        &master.url(),
        "--archive",
        &archive.url(),
        "--snapshot-from",
        "archive",
        "--scratch",
        program.to_str().unwrap(),
    ]);
    assert_eq!(code, 0, "{error}");
    assert_eq!(derived(&archive.status()).len(), 1);
    master.client().line("SET late 1");
    master.client().wait_until_stored(DEADLINE);
    let digest = Digest::of(&master.address());
    master.lose_everything();
    master.until_master_with_data();
    assert_same(&digest, &Digest::of(&master.address()));
    master.client().line("SET later 1");
    master.client().wait_until_stored(DEADLINE);
    let digest = Digest::of(&master.address());

    assert!(
        master.folder().join("dump.rdb").exists(),
        "what the seed left"
    );
    master.kill();
    master.start_again();
    until("the last write is back on a master", DEADLINE, || {
        let mut client = master.client();
        master.is_master()
            && client
                .command(&["EXISTS", "later"])
                .is_ok_and(|value| value == Value::Integer(1))
    });
    assert_same(&digest, &Digest::of(&master.address()));
    let status = archive.status();
    assert!(status.suspects().is_empty(), "{status:#?}");
    perennial.assert_healthy();
}

/// A replica deletes nothing by itself, and neither does what replays: the master's DEL is in the stream, or will be.
fn what_has_lapsed_and_was_not_deleted_is_in_it(kind: Kind) {
    let Some((master, program)) = start(kind) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&master, &archive, &[]);
    let mut client = master.client();
    client.line("DEBUG SET-ACTIVE-EXPIRE 0");
    client.line("SELECT 2");
    client.line("SET lapsed soon PX 1");
    client.line("SET stays 1");
    client.wait_until_stored(DEADLINE);
    let before = forks(&master);
    let (url, redis) = (archive.url(), master.url());
    let ask = || {
        run_cli(&[
            "snapshot",
            "--redis",
            &redis,
            "--archive",
            &url,
            "--snapshot-from",
            "archive",
            "--scratch",
            &program,
            "--json",
        ])
    };
    let (code, said, error) = ask();
    assert_eq!(code, 0, "{error}");
    let told: serde_json::Value = serde_json::from_str(&said).unwrap();
    let status = archive.status();
    assert_one_history(&status);
    let made = derived(&status);
    assert_eq!((made.len(), status.snapshots()), (1, 2), "{status:#?}");
    assert_eq!(told["offset"], made[0].offset);
    assert_eq!(forks(&master), before);
    let key = |name: &str| {
        let (code, said, _) = run_cli(&[
            "inspect",
            "--archive",
            &url,
            "--key",
            name,
            "--database",
            "2",
        ]);
        (code, said)
    };
    assert_eq!(key("lapsed").0, 0, "{:?}", key("lapsed"));
    assert_eq!(key("stays").0, 0);
    assert_eq!(key("never").0, 3);

    // The master finds out, and its DEL is behind the snapshot.
    client.line("EXISTS lapsed");
    client.line("SET behind 1");
    client.wait_until_stored(DEADLINE);
    let folder = archive.restore("restored", &[]);
    let server = kind.start_on(&folder).unwrap();
    assert_same(
        &Digest::of(&master.address()),
        &Digest::of(&server.address()),
    );
    perennial.assert_healthy();

    // Where nothing else follows, what the server holds by now is stored first, and in it.
    perennial.kill();
    client.line("SET alone 1");
    let offset = master.info_number("replication", "master_repl_offset");
    let (code, _, error) = ask();
    assert_eq!(code, 0, "{error}");
    let status = archive.status();
    assert_one_history(&status);
    let made = derived(&status);
    assert_eq!(made.len(), 2, "{status:#?}");
    assert!(made[1].offset >= offset, "{offset}: {status:#?}");
    assert_eq!(key("alone").0, 0);
    assert_eq!(forks(&master), before);
}

fn write(master: &Server) {
    let mut client = master.client();
    client.ok(&["SET", "filler", &"x".repeat(30_000)]);
    client.wait_until_stored(DEADLINE);
}

/// Not there, or of another version: said; what is followed goes on, and nobody forks.
#[track_caller]
fn disturbs_nothing(master: &Server, scratch: &str, said: &str) {
    let archive = Archive::new();
    let mut perennial = follow(master, &archive, scratch);
    let before = forks(master);
    write(master);
    perennial.until_logged(said);
    write(master);
    holds_for(
        "the master is not asked",
        Duration::from_millis(500),
        || forks(master) == before,
    );
    let status = archive.status();
    assert_eq!(status.snapshots(), 1, "{status:#?}");
    assert_one_history(&status);
    perennial.assert_healthy();
    perennial.terminate();
    assert!(perennial.wait(DEADLINE).success(), "{}", perennial.log());
}

#[test]
fn a_scratch_server_that_is_not_there_disturbs_nothing() {
    let Some((master, _)) = start(REDIS_7_0) else {
        return;
    };
    let said = "no snapshot: --snapshot-from archive: cannot run /not/there";
    disturbs_nothing(&master, "/not/there", said);
}

#[test]
fn a_scratch_server_of_another_version_disturbs_nothing() {
    let (Some((master, _)), Some(newer)) = (start(REDIS_7_0), REDIS_8_0.find()) else {
        return;
    };
    let said = "--scratch is redis 8.0, the server redis 7.0";
    disturbs_nothing(&master, newer.to_str().unwrap(), said);
}

/// The scratch server that a process has started.
fn scratch_of(pid: u32) -> Option<u32> {
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|it| {
        let status = std::fs::read_to_string(format!("/proc/{it}/status")).unwrap_or_default();
        status.contains(&format!("PPid:\t{pid}\n")) && is_scratch(*it)
    })
}

fn is_scratch(pid: u32) -> bool {
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&arguments).contains("perennial-scratch-")
}

/// Killed by force Perennial can end nothing: the next one does.
#[test]
fn a_scratch_server_that_was_left_behind_is_ended_by_the_next_one() {
    let Some((master, program)) = start(REDIS_7_0) else {
        return;
    };
    write_everything(&mut master.client(), 0);
    let archive = Archive::new();
    let mut perennial = follow(&master, &archive, &program);
    let mut client = master.client();
    let mut orphan = None;
    until("a scratch server outlives Perennial", DEADLINE, || {
        client.ok(&["SET", "filler", &"x".repeat(30_000)]);
        orphan = scratch_of(perennial.pid());
        let Some(pid) = orphan else {
            return false;
        };
        perennial.kill();
        let stays = is_scratch(pid);
        perennial.start_again();
        stays
    });
    let orphan = orphan.unwrap();
    let count = derived(&archive.status()).len();
    until("it is gone, and another one has worked", DEADLINE, || {
        client.ok(&["SET", "filler", &"x".repeat(30_000)]);
        !is_scratch(orphan) && derived(&archive.status()).len() > count
    });
    perennial.assert_healthy();
}

#[test]
fn without_a_scratch_server_nothing_begins() {
    let archive = Archive::new();
    let url = archive.url();
    for subcommand in ["run", "snapshot"] {
        let (code, _, error) =
            run_cli(&[subcommand, "--archive", &url, "--snapshot-from", "archive"]);
        assert_eq!(code, 2, "{error}");
        assert!(error.contains("archive needs --scratch"), "{error}");
    }
}
