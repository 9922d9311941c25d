//! Back to any moment: what a server held at instants of its life is restored from the archive, to files and into servers,
//! through failovers and seeds. `PERENNIAL_TRAVEL_SECONDS` (`make travel`) makes the life long.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::harness::archive::objects_in;
use crate::harness::random::Random;
use crate::harness::workload::{write_at_random, write_verbatim};
use crate::harness::{
    Archive, Client, DEADLINE, Digest, Kind, Perennial, Proxy, REDIS_7_0, Server, assert_same,
    run_cli, until,
};
use crate::on_every_server;

on_every_server! {
    any_moment_through_a_failover_and_a_seed,
    what_expired_since_is_gone,
    a_past_moment_becomes_the_history,
    a_moment_as_one_dump,
    a_moment_as_commands,
}

on_every_server! {
    since 7.0;
    what_expired_since_is_alive_where_it_is_shifted,
}

// Fields of hashes that expire by themselves: nobody can say what they had.
on_every_server! {
    since 7.0;
    fields_that_expire_are_never_shifted_by_half,
}

/// Instants taken on each server, where the life is short.
const INSTANTS_PER_LEG: usize = 3;
/// Moments that are restored, half of them to files.
const RESTORED: usize = 4;
/// And of a long life: two hundred on all servers together.
const RESTORED_OF_LONG: usize = 40;
/// Pieces are stored at once, so that an instant need not wait.
const QUICK: [&str; 2] = ["--flush-interval", "50ms"];

/// The same, with snapshots, merges and deletions every few moments.
const KEPT: [&str; 16] = [
    "--flush-interval",
    "50ms",
    "--upkeep-interval",
    "300ms",
    "--merge-minute",
    "500ms",
    "--merge-hour",
    "5s",
    "--merge-grace",
    "1s",
    "--snapshot-log-ratio",
    "0.001",
    "--snapshot-log-bytes",
    "4KiB",
    "--snapshot-min-interval",
    "1s",
];

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
        match random.below(3) {
            0 => format!("offset:{}@{}", self.offset, self.timeline),
            1 => format!("{}@{}", rfc3339(at), self.timeline),
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
        // What changes nothing may leave a PING as the last byte, and PINGs wait for company.
        client.line("INCR instants");
        instants.push(pause(server, archive, before));
    }
    instants
}

/// A moment is found the same way whatever was made of its segments: merges them, and deletes what they were.
#[track_caller]
fn merge_all(archive: &Archive) {
    let url = archive.url();
    let eager = [
        "--merge-minute",
        "1s",
        "--merge-hour",
        "1m",
        "--merge-grace",
        "0s",
    ];
    let arguments = [
        &["prune", "--archive", &url, "--retention", "7d"],
        &eager[..],
    ]
    .concat();
    for _ in 0..3 {
        let (code, out, err) = run_cli(&arguments);
        assert_eq!(code, 0, "{out}{err}");
    }
    let objects = archive.objects();
    let merged = objects.iter().filter(|(name, _)| name.contains("/merged/"));
    assert!(merged.count() > 0, "{objects:?}");
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
    let mut perennial = Perennial::follow_url(&proxy.url(), &archive, &KEPT);
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
    until("it has been there for a while", DEADLINE, || {
        replica.is_not_young()
    });
    // Not even into its socket.
    replica.pause();
    master.client().line("CLIENT KILL TYPE replica");
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

    merge_all(&archive);
    assert!(archive.status().snapshots() > 1, "{:#?}", archive.status());
    travel(kind, &archive, &instants, &mut random);
    let middle = rfc3339(lost.from);
    for (name, at) in [("end", "timeline:1"), ("time", &format!("{middle}@1"))] {
        let folder = archive.restore(name, &["--at", at]);
        let restored = kind.start_on(&folder).unwrap();
        assert_same(&lost.digest, &Digest::of(&restored.address()));
    }
    let folder = archive.restore("not-lost", &["--at", &middle]);
    let restored = kind.start_on(&folder).unwrap();
    let mut client = Client::connect_loaded(&restored.address());
    assert_eq!(
        client.line("EXISTS lost").integer(),
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
        let mut client = Client::connect_loaded(&restored.address());
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

/// The payload itself holds keys with times, and the replication stream changes some of them.
fn what_expired_since_is_alive_where_it_is_shifted(kind: Kind) {
    let Some(server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut client = server.client();
    client.line("SET old 1 PX 3000");
    client.line("SET forever 1");
    client.line("SELECT 3");
    client.line("RPUSH list a b");
    client.line("PEXPIRE list 3000");
    client.line("SELECT 0");
    let _perennial = Perennial::follow(&server, &archive, &QUICK);
    client.line("SET brief 1 PX 2500");
    client.line("SET long 1 EX 86400");
    for number in 0..2000 {
        client.line(&format!("SET many:{number} 1 EX 80000"));
    }
    let then = pause(&server, &archive, 0);
    let left = |client: &mut Client, key: &str| client.line(&format!("PTTL {key}")).integer();
    let expires_at = client.line("PEXPIRETIME brief").integer();
    let left_then = expires_at - i64::try_from(then.from).unwrap();
    until("it has expired", DEADLINE, || {
        client.line("DBSIZE").integer() == 2002
    });
    let at = rfc3339(then.from);
    let scratch = kind.find().unwrap();
    let dump = ["--format", "rdb", "--scratch", scratch.to_str().unwrap()];
    for ttl in ["shift", "none"] {
        let flags = ["--at", &at, "--ttl", ttl];
        let seeded = kind.start(&[]).unwrap();
        restore_into(&archive, &seeded, &at, &["--ttl", ttl]);
        let dumped = archive.restore(&format!("dump-{ttl}"), &[&flags[..], &dump].concat());
        let mut restored = vec![seeded, kind.start_on(&dumped).unwrap()];
        // Files of servers with fields that expire are refused.
        if ["redis-7.0", "valkey-8.1"].contains(&kind.name) {
            let files = archive.restore(&format!("files-{ttl}"), &flags);
            restored.push(kind.start_on(&files).unwrap());
        }
        for server in restored {
            let mut client = Client::connect_loaded(&server.address());
            let (brief, long) = (left(&mut client, "brief"), left(&mut client, "long"));
            let many = left(&mut client, "many:1999");
            if ttl == "none" {
                assert_eq!((brief, long, many), (-1, -1, -1));
                assert_eq!(client.line("DBSIZE").integer(), 2004);
            } else {
                assert!(
                    brief <= left_then && long > 86_000_000 && many <= 80_000_000,
                    "{brief} {long} {many}"
                );
                assert!(many > 79_000_000, "{many}");
            }
            assert_eq!(left(&mut client, "forever"), -1);
        }
    }
    // As much was left as then: nothing is alive that should not be, and what is was not moved twice.
    let seeded = kind.start(&[]).unwrap();
    let before = unix_millis();
    restore_into(&archive, &seeded, &at, &["--ttl", "shift"]);
    let after = unix_millis();
    let mut client = seeded.client();
    let moved = u64::try_from(client.line("PEXPIRETIME long").integer()).unwrap();
    let was = u64::try_from(server.client().line("PEXPIRETIME long").integer()).unwrap();
    let by = moved - was;
    assert!(
        before - then.from <= by && by <= after - then.from,
        "moved by {by}"
    );
}

fn fields_that_expire_are_never_shifted_by_half(kind: Kind) {
    let Some(server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut client = server.client();
    client.line("HSET hash f 1 g 2");
    if !client.knows("HEXPIRE") {
        return;
    }
    client.line("HEXPIRE hash 86400 FIELDS 1 f");
    let _perennial = Perennial::follow(&server, &archive, &QUICK);
    client.line("SET after 1");
    let then = pause(&server, &archive, 0);
    let (url, at) = (archive.url(), rfc3339(then.from));
    let empty = kind.start(&[]).unwrap();
    let folder = archive.beside("fields");
    for to in [empty.url(), folder.to_str().unwrap().to_owned()] {
        let (code, out, err) = run_cli(&[
            "restore",
            "--archive",
            &url,
            "--to",
            &to,
            "--at",
            &at,
            "--ttl",
            "shift",
        ]);
        assert_eq!(code, 1, "{to}: {out}{err}");
        assert!(err.contains("fields of hashes"), "{to}: {err}");
    }
    assert!(!folder.exists());
    assert!(
        !empty.is_master(),
        "it must not pass for what was asked for"
    );
    let kept = archive.restore("kept", &["--at", &at]);
    let kept = kind.start_on(&kept).unwrap();
    assert_same(&then.digest, &Digest::of(&kept.address()));
}

/// `--format rdb` needs a server that applies what lies behind the snapshot.
fn a_moment_as_one_dump(kind: Kind) {
    let Some(server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &QUICK);
    write_verbatim(&mut server.client(), 0);
    let then = pause(&server, &archive, 0);
    server.client().line("SET later 1");
    pause(&server, &archive, 0);
    let (url, at) = (archive.url(), rfc3339(then.from));
    let target = archive.beside("without");
    let to = target.to_str().unwrap();
    let arguments = [
        "restore",
        "--archive",
        &url,
        "--to",
        to,
        "--at",
        &at,
        "--format",
        "rdb",
    ];
    let (code, _, err) = run_cli(&arguments);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("--scratch") && !target.exists(), "{err}");
    let nonsense = [&arguments[..], &["--scratch", "/bin/true"]].concat();
    let (code, _, err) = run_cli(&nonsense);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("/bin/true") && !target.exists(), "{err}");
    let scratch = kind.find().unwrap();
    let flags = [
        "--at",
        &at,
        "--format",
        "rdb",
        "--scratch",
        scratch.to_str().unwrap(),
    ];
    let folder = archive.restore("dump", &flags);
    let names: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["dump.rdb"]);
    let restored = kind.start_on(&folder).unwrap();
    assert_same(&then.digest, &Digest::of(&restored.address()));
}

/// `--to -`, into a server that has keys of its own.
fn a_moment_as_commands(kind: Kind) {
    let Some(server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &QUICK);
    write_verbatim(&mut server.client(), 0);
    server.client().line("SET shared archived");
    // More than a control connection reads, and it cannot be compressed.
    let large = Random::new().bytes(6 << 20);
    server.client().ok(&[b"SET".as_slice(), b"large", &large]);
    let then = pause(&server, &archive, 0);
    server.client().line("SET later 1");
    pause(&server, &archive, 0);
    let (url, at) = (archive.url(), rfc3339(then.from));
    let arguments = ["restore", "--archive", &url, "--to", "-", "--at", &at];
    let (code, _, err) = run_cli(&arguments);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("--scratch"), "{err}");
    let scratch = kind.find().unwrap();
    let commands = |more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_perennial"))
            .args(arguments)
            .args(["--scratch", scratch.to_str().unwrap()])
            .args(more)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        output.stdout
    };
    let target = kind.start(&[]).unwrap();
    target.client().line("SET shared own");
    let answers = piped(&target, &commands(&[]));
    let errors: Vec<&str> = answers.lines().filter(|it| it.starts_with('-')).collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].starts_with("-BUSYKEY"), "{errors:?}");
    assert_eq!(target.client().line("GET shared").text(), "own");
    let answers = piped(&target, &commands(&["--force"]));
    assert!(!answers.contains("\r\n-"), "{answers}");
    assert_same(&then.digest, &Digest::of(&target.address()));
}

/// What a server answers to commands.
#[track_caller]
fn piped(server: &Server, commands: &[u8]) -> String {
    let mut connection = TcpStream::connect(server.address()).unwrap();
    connection.write_all(commands).unwrap();
    connection.write_all(b"ECHO the-end\r\nQUIT\r\n").unwrap();
    let mut answers = Vec::new();
    connection.read_to_end(&mut answers).unwrap();
    let answers = String::from_utf8_lossy(&answers).into_owned();
    assert!(answers.contains("the-end"), "{answers}");
    answers
}

/// A bit flipped in, or the loss of, any object on the way to a moment: said, and the empty server or folder stays free of
/// anything that could pass for the data.
#[test]
fn no_damage_is_restored_from() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &QUICK);
    write_verbatim(&mut server.client(), 0);
    pause(&server, &archive, 0);
    server.client().line("SET then 1");
    let then = pause(&server, &archive, 0);
    server.client().line("SET later 1");
    pause(&server, &archive, 0);
    let at = rfc3339(then.from);
    let (url, copy) = archive.copy("damaged");
    let folder = archive.beside("from-damaged");
    let empty = REDIS_7_0.start(&[]).unwrap();
    let mut tried = 0;
    for (name, path) in objects_in(&copy) {
        // What came after that moment is not read for it.
        if name.contains("/segments/") && first_at(&name) > then.from {
            continue;
        }
        let whole = std::fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 0x20;
        // A document may mean the same with another letter; `bad_input` has what it must not.
        let is_checked = name.ends_with(".blocks");
        for damaged in [is_checked.then_some(flipped), None] {
            match &damaged {
                Some(flipped) => std::fs::write(&path, flipped).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            for to in [folder.to_str().unwrap(), &empty.url()] {
                let arguments = [
                    "restore",
                    "--archive",
                    &url,
                    "--to",
                    to,
                    "--at",
                    &at,
                    "--force",
                ];
                let (code, out, err) = run_cli(&arguments);
                tried += 1;
                assert_ne!(code, 0, "{name}: {out}{err}");
                assert!(!err.contains("panicked"), "{name}: {err}");
                assert!(!folder.exists(), "{name}");
                let is_free = !empty.is_master() || empty.keys() == Some(0);
                assert!(is_free, "{name}: {err}");
            }
            std::fs::write(&path, &whole).unwrap();
        }
    }
    empty.client().line("REPLICAOF NO ONE");
    empty.client().line("FLUSHALL");
    // Data as well, which the last attempt may have left.
    empty.client().line("FUNCTION FLUSH");
    assert!(tried >= 10, "{tried}");
    restore_into(&archive, &empty, &at, &[]);
    assert_same(&then.digest, &Digest::of(&empty.address()));
}

/// When the first byte of a segment was received, as its name says.
fn first_at(name: &str) -> u64 {
    let file = name.rsplit('/').next().unwrap();
    file.split('-').nth(2).unwrap().parse().unwrap()
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
    // A failure before anything was sent leaves it the replica that it was.
    replica.client().line("CONFIG SET replica-read-only no");
    let forced = ["restore", "--archive", &url, "--to", &to, "--force"];
    let (code, _, err) = run_cli(&forced);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("replica-read-only"), "{err}");
    assert!(!err.contains("it was left a replica"), "{err}");
    let here = replica.info("replication");
    assert_eq!(here["role"], "slave");
    assert_eq!(here["master_port"], port.to_string());
}

/// A signal ends a restore: neither the scratch server nor what was half written stays.
#[test]
fn a_stopped_restore_leaves_nothing() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &QUICK);
    archive.until_durable();
    server.client().line("SET archived 1");
    pause(&server, &archive, 0);
    // A server that never answers.
    let (program, pid) = (archive.beside("server.sh"), archive.beside("pid"));
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo 'Redis server v=7.0.15 sha=0' && exit\necho $$ > {0}.new\nmv \
         {0}.new {0}\nexec sleep 600\n",
        pid.display()
    );
    std::fs::write(&program, script).unwrap();
    let runnable = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    std::fs::set_permissions(&program, runnable).unwrap();
    let folder = archive.beside("stopped");
    let restore = Command::new(env!("CARGO_BIN_EXE_perennial"))
        .args(["restore", "--archive", &archive.url(), "--format", "rdb"])
        .arg("--to")
        .arg(&folder)
        .arg("--scratch")
        .arg(&program)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    until("the scratch server runs", DEADLINE, || pid.exists());
    let scratch = std::fs::read_to_string(&pid).unwrap();
    assert!(folder.exists());
    let kill = Command::new("kill").arg(restore.id().to_string()).status();
    assert!(kill.unwrap().success());
    let output = restore.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("stopped by a signal"), "{said}");
    assert!(!folder.exists(), "{said}");
    let process = std::path::Path::new("/proc").join(scratch.trim());
    assert!(!process.exists(), "{said}");
}

/// What a timeline has from its ancestor is named as its own.
#[test]
fn an_offset_before_a_seed_is_on_the_way_to_what_came_behind_it() {
    let Some(mut server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &QUICK);
    write_verbatim(&mut server.client(), 0);
    let then = pause(&server, &archive, 0);
    server.client().line("SET later 1");
    pause(&server, &archive, 0);
    server.lose_everything();
    server.until_master_with_data();
    server.client().line("SET behind 1");
    let now = pause(&server, &archive, 1);
    assert!(now.timeline > then.timeline, "{now:?}");
    let at = format!("offset:{}@{}", then.offset, now.timeline);
    let folder = archive.restore("before", &["--at", &at]);
    let restored = REDIS_7_0.start_on(&folder).unwrap();
    assert_same(&then.digest, &Digest::of(&restored.address()));
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
