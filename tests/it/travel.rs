//! Back to any moment: what a server held at instants of its life is restored from the archive, to files and into servers,
//! through failovers and seeds. `PERENNIAL_TRAVEL_SECONDS` (`make travel`) makes the life long.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::harness::random::Random;
use crate::harness::workload::{write_at_random, write_verbatim};
use crate::harness::{
    Archive, DEADLINE, Digest, Kind, Perennial, Proxy, REDIS_7_0, Server, assert_same, run_cli,
    until,
};
use crate::on_every_server;

on_every_server! {
    any_moment_through_a_failover_and_a_seed,
    what_expired_since_is_gone,
    a_past_moment_becomes_the_history,
}

/// Instants taken on each server, where the life is short.
const INSTANTS_PER_LEG: usize = 3;
/// Moments that are restored, half of them to files.
const RESTORED: usize = 4;
/// And of a long life.
const RESTORED_OF_LONG: usize = 30;
/// Pieces are stored at once, so that an instant need not wait.
const QUICK: [&str; 2] = ["--flush-interval", "50ms"];

/// Nothing was written between these times, and everything written before was received.
#[derive(Debug)]
struct Paused {
    from: u64,
    to: u64,
    /// Where the server stood, and on which timeline.
    offset: u64,
    timeline: u64,
    digest: Digest,
}

impl Paused {
    /// A way to name it, at random.
    fn named(&self, random: &mut Random) -> String {
        let at = self.from + random.below(self.to - self.from + 1);
        match random.below(4) {
            0 => format!("offset:{}@{}", self.offset, self.timeline),
            1 => format!("{}@{}", rfc3339(at), self.timeline),
            2 => format!("{}ms ago", unix_millis() - at),
            _ => rfc3339(at),
        }
    }
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

fn rfc3339(millis: u64) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(millis);
    humantime::format_rfc3339_millis(at).to_string()
}

/// Waits until everything that the server took is stored; nothing is written to it meanwhile.
#[track_caller]
fn pause(server: &Server, archive: &Archive, before: u64) -> Paused {
    let offset = server.info_number("replication", "master_repl_offset");
    let mut timeline = 0;
    until("everything is stored", DEADLINE, || {
        let status = archive.status_with_mapped();
        let head = status.head.unwrap();
        timeline = head.timeline;
        status.timelines.len() as u64 > before && head.offset >= offset
    });
    let from = unix_millis();
    let digest = Digest::of(&server.address());
    until("the clock has moved on", DEADLINE, || {
        unix_millis() > from + 20
    });
    Paused {
        from,
        to: unix_millis(),
        offset,
        timeline,
        digest,
    }
}

/// How long a leg of a life takes, where that is set.
fn leg_seconds() -> Option<u64> {
    let seconds = std::env::var("PERENNIAL_TRAVEL_SECONDS").ok()?;
    Some(seconds.parse::<u64>().unwrap() / 3)
}

/// Writes and pauses for a while. `before` timelines were there before this server's.
#[track_caller]
fn live(server: &Server, archive: &Archive, random: &mut Random, before: u64) -> Vec<Paused> {
    let began = Instant::now();
    let long_enough = |count: usize| match leg_seconds() {
        Some(seconds) => count >= INSTANTS_PER_LEG && began.elapsed().as_secs() >= seconds,
        None => count >= INSTANTS_PER_LEG,
    };
    let mut instants = Vec::new();
    let mut client = server.client();
    while !long_enough(instants.len()) {
        let count = 1 + random.below(60);
        write_at_random(&mut client, random, count);
        instants.push(pause(server, archive, before));
    }
    instants
}

#[track_caller]
fn restore_into(archive: &Archive, server: &Server, at: &str, more: &[&str]) -> String {
    let (url, to) = (archive.url(), server.url());
    let arguments = ["restore", "--archive", &url, "--to", &to, "--at", at];
    let (code, out, err) = run_cli(&[&arguments, more].concat());
    assert_eq!(code, 0, "{at}: stdout {out}; stderr {err}");
    assert!(server.is_master(), "{out}");
    out
}

/// Restores instants at random, to files and into servers in turn.
#[track_caller]
fn travel(kind: Kind, archive: &Archive, instants: &[Paused], random: &mut Random) {
    let count = if leg_seconds().is_some() {
        RESTORED_OF_LONG
    } else {
        RESTORED
    };
    for number in 0..count {
        let chosen = &instants[usize::try_from(random.below(instants.len() as u64)).unwrap()];
        let at = chosen.named(random);
        eprintln!(
            "restoring {at}: timeline {} offset {}",
            chosen.timeline, chosen.offset
        );
        let restored = if number % 2 == 0 {
            let folder = archive.restore(&format!("travel-{number}"), &["--at", &at]);
            kind.start_on(&folder).unwrap()
        } else {
            let empty = kind.start(&[]).unwrap();
            restore_into(archive, &empty, &at, &[]);
            empty
        };
        assert_same(&chosen.digest, &Digest::of(&restored.address()));
    }
}

/// A master, its replica that is promoted, and the seed of that one after it lost everything.
fn any_moment_through_a_failover_and_a_seed(kind: Kind) {
    let Some(mut master) = kind.start(&[]) else {
        return;
    };
    let mut replica = kind.start(&[]).unwrap();
    let archive = Archive::new();
    let mut random = Random::new();
    let proxy = Proxy::to(&master.address());
    let mut perennial = Perennial::follow_url(&proxy.url(), &archive, &QUICK);
    archive.until_durable();
    write_verbatim(&mut master.client(), 0);
    let port = master.port();
    replica
        .client()
        .line(&format!("REPLICAOF 127.0.0.1 {port}"));
    let mut instants = live(&master, &archive, &mut random, 0);

    // What the replica never gets stays on a branch of its own.
    until("the replica is level", DEADLINE, || {
        let here = replica.info("replication");
        here["master_link_status"] == "up"
            && here["slave_repl_offset"] == master.info("replication")["master_repl_offset"]
    });
    // A process as young as the archive's last byte could be a restart from an old dump.
    until("it has been there for a while", DEADLINE, || {
        replica.info_number("server", "uptime_in_seconds") >= 4
    });
    replica.pause();
    master.client().line("SET lost 1");
    let lost = pause(&master, &archive, 0);
    master.kill();
    replica.resume();
    replica.client().line("REPLICAOF NO ONE");
    proxy.switch_to(&replica.address());
    until("the child timeline is there", DEADLINE, || {
        archive.status().timelines.len() == 2
    });
    instants.extend(live(&replica, &archive, &mut random, 1));

    let before_seed = archive.status_with_mapped().timelines.len() as u64;
    replica.lose_everything();
    replica.until_master_with_data();
    instants.extend(live(&replica, &archive, &mut random, before_seed));

    travel(kind, &archive, &instants, &mut random);
    let middle = rfc3339(lost.from);
    for (name, at) in [("end", "timeline:1"), ("time", &format!("{middle}@1"))] {
        let folder = archive.restore(name, &["--at", at]);
        let restored = kind.start_on(&folder).unwrap();
        assert_same(&lost.digest, &Digest::of(&restored.address()));
    }
    let folder = archive.restore("not-lost", &["--at", &middle]);
    let restored = kind.start_on(&folder).unwrap();
    assert_eq!(
        restored.client().line("EXISTS lost").integer(),
        0,
        "it is on another branch"
    );
    perennial.assert_healthy();
}

/// Under `--ttl keep`, which is how it is.
fn what_expired_since_is_gone(kind: Kind) {
    let Some(server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &QUICK);
    let mut client = server.client();
    client.line("SET stays 1");
    client.line("SET brief 1 PX 1500");
    client.line("SET saved 1 PX 1500");
    client.line("SET long 1 EX 86400");
    let then = pause(&server, &archive, 0);
    client.line("PERSIST saved");
    client.line("SET after 1");
    until("it has expired", DEADLINE, || {
        client.line("EXISTS brief").integer() == 0
    });
    let now = pause(&server, &archive, 0);
    let at = rfc3339(then.from);
    let folder = archive.restore("then", &["--at", &at]);
    let from_files = kind.start_on(&folder).unwrap();
    let seeded = kind.start(&[]).unwrap();
    restore_into(&archive, &seeded, &at, &[]);
    for restored in [from_files, seeded] {
        let mut client = restored.client();
        for (key, is_there) in [
            ("stays", 1),
            ("long", 1),
            ("brief", 0),
            ("saved", 0),
            ("after", 0),
        ] {
            // Whoever loads a file, or is promoted, drops what is due a moment later.
            until(
                &format!("{key} is there {is_there} times"),
                DEADLINE,
                || client.line(&format!("EXISTS {key}")).integer() == is_there,
            );
        }
    }
    let latest = archive.restore("now", &[]);
    let latest = kind.start_on(&latest).unwrap();
    assert_same(&now.digest, &Digest::of(&latest.address()));
}

/// `restore --to` a server, then `run --seed start-over` beside it: what later seeds bring back is the past moment.
fn a_past_moment_becomes_the_history(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &QUICK);
    write_verbatim(&mut server.client(), 0);
    let good = pause(&server, &archive, 0);
    server.client().line("FLUSHALL");
    server.client().line("SET mistake 1");
    pause(&server, &archive, 0);
    perennial.kill();

    let objects = archive.objects();
    server.lose_everything();
    let out = restore_into(&archive, &server, &rfc3339(good.from), &[]);
    assert!(out.contains("--seed start-over"), "{out}");
    assert_same(&good.digest, &Digest::of(&server.address()));
    assert_eq!(
        archive.objects(),
        objects,
        "a copy writes nothing to the archive"
    );

    let mut over = Perennial::follow_url(
        &server.url(),
        &archive,
        &[&QUICK[..], &["--seed", "start-over"]].concat(),
    );
    archive.until("it is the head", DEADLINE, |status| {
        status.head.is_some_and(|head| head.timeline == 2)
    });
    server.client().wait_until_stored(DEADLINE);
    over.kill();
    let marked = Digest::of(&server.address());
    server.lose_everything();
    perennial.start_again();
    server.until_master_with_data();
    assert_same(&marked, &Digest::of(&server.address()));
}

/// Servers that hold something are left alone; `--force` replaces what they hold.
#[test]
fn a_server_with_data_is_refused_and_forced() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &QUICK);
    server.client().line("SET archived 1");
    let then = pause(&server, &archive, 0);
    let other = REDIS_7_0.start(&[]).unwrap();
    other.client().line("SET own 1");
    let (url, to) = (archive.url(), other.url());
    let arguments = ["restore", "--archive", &url, "--to", &to];
    let (code, out, err) = run_cli(&arguments);
    assert_eq!(code, 1, "{out}{err}");
    assert!(err.contains("already holds data"), "{err}");
    assert!(other.is_master());
    assert_eq!(other.client().line("GET own").text(), "1");
    let (code, out, err) = run_cli(&[&arguments[..], &["--force"]].concat());
    assert_eq!(code, 0, "{out}{err}");
    assert_same(&then.digest, &Digest::of(&other.address()));
    let replica = REDIS_7_0.start(&[]).unwrap();
    let port = server.port();
    replica
        .client()
        .line(&format!("REPLICAOF 127.0.0.1 {port}"));
    let to = replica.url();
    let (code, _, err) = run_cli(&["restore", "--archive", &url, "--to", &to]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("is a replica"), "{err}");
}

/// The nearest moments on either side, as times and offsets.
#[test]
fn moments_outside_the_window_name_the_nearest() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &QUICK);
    server.client().line("SET archived 1");
    let then = pause(&server, &archive, 0);
    let first = archive.status().timelines[0].snapshots[0];
    let url = archive.url();
    let folder = archive.beside("never");
    let restore = |at: &str| {
        let to = folder.to_str().unwrap();
        let (code, _, err) = run_cli(&["restore", "--archive", &url, "--to", to, "--at", at]);
        assert_eq!(code, 1, "{at}: {err}");
        assert!(!folder.exists(), "{at}");
        err
    };
    let before = restore(&rfc3339(first.at - 1));
    assert!(
        before.contains(&rfc3339(first.at)) && before.contains(&format!("offset {}", first.offset)),
        "{before}"
    );
    let future = restore(&rfc3339(unix_millis() + 3_600_000));
    assert!(
        future.contains("future") && future.contains(&format!("offset {}", then.offset)),
        "{future}"
    );
    let behind = restore(&format!("offset:{}", then.offset + 1));
    assert!(
        behind.contains(&format!("offset {}", then.offset)),
        "{behind}"
    );
}
