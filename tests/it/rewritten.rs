//! Restores that have to change bytes: servers before 7.0 spell TTLs relative, and redis 8.0 passes over an HPERSIST
//! whose field's time has run out. What is restored later must hold what the master held.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::harness::random::Random;
use crate::harness::servers::{REDIS_6_2, REDIS_7_0, REDIS_8_0, VALKEY_9_1};
use crate::harness::{
    Archive, BornAsReplica, Client, DEADLINE, Digest, Kind, Perennial, Port, Proxy, Server, Value,
    assert_same, run_cli, until,
};

/// What a deadline may be off by: the receive time is not the master's, and machines are busy.
const TOLERANCE_MILLIS: u64 = 2_000;
/// How long a restore waits, so that a TTL that counts from the replay shows.
const DELAY: Duration = Duration::from_secs(5);

fn unix_millis() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

/// A data set as 6.2 can tell it: its digest, which does not see TTLs, and when each key expires.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    digest: String,
    deadlines: BTreeMap<(u32, String), Option<u64>>,
}

const DATABASES: u32 = 4;

impl State {
    #[track_caller]
    fn of(server: &Server) -> Self {
        let mut client = Client::connect_loaded(&server.address());
        let mut deadlines = BTreeMap::new();
        for database in 0..DATABASES {
            client.line(&format!("SELECT {database}"));
            for key in client.line("KEYS *").array() {
                let key = key.text();
                let before = unix_millis();
                // Nothing and -2: it has just expired.
                let left = client.ok(&["PTTL", &key]).integer();
                let deadline = u64::try_from(left).ok().map(|left| before + left);
                if left != -2 {
                    deadlines.insert((database, key), deadline);
                }
            }
        }
        Self {
            digest: client.line("DEBUG DIGEST").text(),
            deadlines,
        }
    }

    /// The same keys and values, and the same deadlines as far as they can be told.
    #[track_caller]
    fn assert_restored_in(&self, server: &Server) {
        let now = unix_millis();
        let past: Vec<&(u32, String)> = self
            .deadlines
            .iter()
            .filter(|(_, deadline)| deadline.is_some_and(|it| it < now))
            .map(|(key, _)| key)
            .collect();
        let mut client = Client::connect_loaded(&server.address());
        for (database, key) in &past {
            until(
                &format!("{key} is gone, as its time is over"),
                DEADLINE,
                || {
                    client.line(&format!("SELECT {database}"));
                    client.ok(&["EXISTS", key]).integer() == 0
                },
            );
        }
        let found = Self::of(server);
        for (key, deadline) in &self.deadlines {
            if past.contains(&key) {
                continue;
            }
            let there = found.deadlines.get(key);
            let there = there.unwrap_or_else(|| panic!("{key:?} is missing: {found:#?}"));
            match (deadline, there) {
                (None, None) => {}
                (Some(wanted), Some(there)) => assert!(
                    wanted.abs_diff(*there) < TOLERANCE_MILLIS,
                    "{key:?} ends {} ms off",
                    i128::from(*there) - i128::from(*wanted)
                ),
                other => panic!("{key:?}: wanted and found {other:?}"),
            }
        }
        assert_eq!(found.deadlines.len(), self.deadlines.len() - past.len());
        if past.is_empty() {
            assert_eq!(found.digest, self.digest);
        }
    }
}

/// Kills a server and starts it empty.
#[track_caller]
fn start_empty(server: &mut Server) {
    server.kill();
    let _ = std::fs::remove_file(server.folder().join("dump.rdb"));
    server.start_again();
}

/// Waits until `delay` has passed since `since`, by the clock of the server and ours.
#[track_caller]
fn until_passed(server: &Server, since: u64, delay: Duration) {
    let wanted = since + u64::try_from(delay.as_millis()).unwrap();
    let mut client = Client::connect_loaded(&server.address());
    until("the delay is over", DEADLINE, || {
        let time = client.line("TIME").array();
        let seconds: u64 = time[0].text().parse().unwrap();
        seconds * 1000 > wanted && unix_millis() > wanted
    });
}

#[track_caller]
fn start_on(kind: Kind, folder: &Path, append_only: &str) -> Server {
    let folder = folder.to_str().unwrap();
    kind.start(&["--dir", folder, "--appendonly", append_only])
        .expect("the kind is there")
}

/// How many timelines stand for seeds with rewritten bytes.
fn mapped(archive: &Archive) -> usize {
    let (code, out, err) = run_cli(&["status", "--archive", &archive.url(), "--json"]);
    assert_eq!(code, 0, "{err}");
    let status: serde_json::Value = serde_json::from_str(&out).unwrap();
    let timelines = status["timelines"].as_array().unwrap();
    timelines
        .iter()
        .filter(|timeline| timeline["mapped"] == true)
        .count()
}

/// Each spelling of `protocol-facts` 6.1, under a prefix of its own.
#[track_caller]
fn write_every_spelling(client: &mut Client, prefix: &str) {
    let key = |name: &str| format!("{prefix}:{name}");
    client.line(&format!("SELECT {}", u32::from(prefix == "stream")));
    for name in [
        "expire",
        "pexpire",
        "expireat",
        "pexpireat",
        "getex",
        "plain",
        "persisted",
        "extended",
        "shortened",
        "appended",
        "soon",
        "gone",
    ] {
        client.ok(&["SET", &key(name), "value"]);
    }
    let millis = unix_millis();
    client.ok(&["EXPIRE", &key("expire"), "1000"]);
    client.ok(&["PEXPIRE", &key("pexpire"), "1000500"]);
    client.ok(&[
        "EXPIREAT",
        &key("expireat"),
        &(millis / 1000 + 1000).to_string(),
    ]);
    client.ok(&[
        "PEXPIREAT",
        &key("pexpireat"),
        &(millis + 1_000_000).to_string(),
    ]);
    client.ok(&["GETEX", &key("getex"), "EX", "1000"]);
    client.ok(&["SETEX", &key("setex"), "1000", "value"]);
    client.ok(&["PSETEX", &key("psetex"), "1000500", "value"]);
    client.ok(&["SET", &key("set ex"), "value", "EX", "1000"]);
    client.ok(&["set", &key("set px"), "value", "px", "1000500", "nx"]);
    client.ok(&[
        "SET",
        &key("set ex"),
        "other value",
        "XX",
        "GET",
        "EX",
        "2000",
    ]);
    client.ok(&[
        "SET",
        &key("set exat"),
        "value",
        "EXAT",
        &(millis / 1000 + 1000).to_string(),
    ]);
    client.ok(&["SET", &key("keepttl"), "value", "EX", "1000"]);
    client.ok(&["SET", &key("keepttl"), "new value", "KEEPTTL"]);
    let dumped = client.ok(&["DUMP", &key("plain")]).bytes();
    let restore = |name: &str, ttl: String| {
        vec![
            b"RESTORE".to_vec(),
            key(name).into(),
            ttl.into(),
            dumped.clone(),
        ]
    };
    client.ok(&restore("restore", "1000500".into()));
    client.ok(&restore("restore 0", "0".into()));
    let mut absolute = restore("restore absttl", (millis + 1_000_000).to_string());
    absolute.extend([b"REPLACE".to_vec(), b"absttl".to_vec()]);
    client.ok(&absolute);
    let mut replaced = restore("restore", "2000500".into());
    replaced.push(b"replace".to_vec());
    client.ok(&replaced);
    let odd = b"\r\n*3\r\n$6\r\nEXPIRE\r\n".to_vec();
    client.ok(&[
        b"SETEX".to_vec(),
        [prefix.as_bytes(), &odd].concat(),
        b"1000".to_vec(),
        odd,
    ]);

    client.line("MULTI");
    client.ok(&["SETEX", &key("multi setex"), "1000", "value"]);
    client.ok(&["SET", &key("multi"), "value"]);
    client.ok(&["EXPIRE", &key("multi"), "1000"]);
    client.line("SELECT 3");
    client.ok(&["SETEX", &key("multi 3"), "1000", "value"]);
    client.line(&format!("SELECT {}", u32::from(prefix == "stream")));
    client.line("EXEC");
    let script = "redis.call('SET',KEYS[1],'v','EX',1000) redis.call('SETEX',KEYS[2],1000,'v') \
                  redis.call('EXPIRE',KEYS[2],2000) return 1";
    client.ok(&["EVAL", script, "2", &key("lua set"), &key("lua setex")]);
    client.ok(&[
        "EVAL",
        "return redis.call('PEXPIRE',KEYS[1],3000500)",
        "1",
        &key("lua set"),
    ]);

    // What the time runs out of, or did.
    client.ok(&["PEXPIRE", &key("persisted"), "1500"]);
    client.ok(&["PERSIST", &key("persisted")]);
    client.ok(&["PEXPIRE", &key("extended"), "1500"]);
    client.ok(&["EXPIRE", &key("extended"), "1000"]);
    client.ok(&["EXPIRE", &key("shortened"), "1000"]);
    client.ok(&["EXPIRE", &key("shortened"), "60"]);
    client.ok(&["SET", &key("appended"), "value", "PX", "1500"]);
    client.ok(&["APPEND", &key("appended"), " and more"]);
    client.ok(&["PERSIST", &key("appended")]);
    client.ok(&["PEXPIRE", &key("soon"), "3500"]);
    client.ok(&["PEXPIRE", &key("gone"), "50"]);
    until("the master expired a key", DEADLINE, || {
        client.ok(&["EXISTS", &key("gone")]).integer() == 0
    });
}

/// Everything written, half of it before the snapshot; the truth about it, and when it was taken.
#[track_caller]
fn every_spelling_stored() -> Option<(Server, Archive, Perennial, State, u64)> {
    let server = REDIS_6_2.start(&[])?;
    let archive = Archive::new();
    write_every_spelling(&mut server.client(), "snapshot");
    let perennial = Perennial::follow(&server, &archive, &[]);
    let mut client = server.client();
    write_every_spelling(&mut client, "stream");
    client.wait_until_stored(DEADLINE);
    let state = State::of(&server);
    let taken = unix_millis();
    assert!(state.deadlines.len() > 50, "{state:#?}");
    Some((server, archive, perennial, state, taken))
}

#[test]
fn every_ttl_of_6_2_ends_when_it_should_after_a_late_seed() {
    let Some((mut server, archive, mut perennial, state, taken)) = every_spelling_stored() else {
        return;
    };
    perennial.kill();
    start_empty(&mut server);
    until_passed(&server, taken, DELAY);
    perennial.start_again();
    server.until_master_with_data();
    state.assert_restored_in(&server);
    server.client().wait_until_stored(DEADLINE);
    archive.status_with_mapped().assert_chain_of(3);
    assert_eq!(mapped(&archive), 1);
    perennial.assert_healthy();
}

#[test]
fn every_ttl_of_6_2_ends_when_it_should_after_a_late_restore_to_files() {
    let Some((mut server, archive, mut perennial, state, taken)) = every_spelling_stored() else {
        return;
    };
    perennial.kill();
    start_empty(&mut server);
    until_passed(&server, taken, DELAY);
    let folder = archive.beside("restored");
    let (url, to) = (archive.url(), folder.to_str().unwrap());
    let (code, out, err) = run_cli(&["restore", "--archive", &url, "--to", to, "--json"]);
    assert_eq!(code, 0, "{err}");
    let said: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(said["layout"], "appendonly.aof");
    assert_eq!(said["appendonly"], "yes");
    assert!(said["rewritten_ttls"].as_u64().unwrap() > 20, "{said}");
    assert_eq!(
        said["start"],
        format!("redis-server --dir {to} --appendonly yes")
    );
    let names: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|it| it.unwrap().file_name())
        .collect();
    assert_eq!(names, ["appendonly.aof"]);
    for kind in [REDIS_6_2, REDIS_7_0, REDIS_8_0] {
        // Each server of its own copy: a start may rewrite the files.
        let copy = archive.beside(kind.name);
        std::fs::create_dir(&copy).unwrap();
        std::fs::copy(folder.join("appendonly.aof"), copy.join("appendonly.aof")).unwrap();
        let restored = start_on(kind, &copy, "yes");
        let same_version = kind == REDIS_6_2;
        let state = State {
            digest: if same_version {
                state.digest.clone()
            } else {
                State::of(&restored).digest
            },
            ..state.clone()
        };
        state.assert_restored_in(&restored);
    }
}

#[test]
fn a_snapshot_of_6_2_alone_is_a_dump_and_says_how_it_is_started() {
    let Some(server) = REDIS_6_2.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    write_every_spelling(&mut server.client(), "snapshot");
    let _perennial = Perennial::follow(&server, &archive, &[]);
    let offset = archive.status_with_mapped().timelines[0].snapshots[0].offset;
    let at = format!("offset:{offset}");
    let folder = archive.beside("restored");
    let (url, to) = (archive.url(), folder.to_str().unwrap());
    let (code, out, err) = run_cli(&["restore", "--archive", &url, "--to", to, "--at", &at]);
    assert_eq!(code, 0, "{err}");
    assert!(
        out.contains("--appendonly no") && out.contains("start EMPTY"),
        "{out}"
    );
    let restored = start_on(REDIS_6_2, &folder, "no");
    let state = State::of(&server);
    state.assert_restored_in(&restored);
}

/// A few keys of each kind, with TTLs; `generation` makes them differ.
#[track_caller]
fn write_some(server: &Server, random: &mut Random, generation: u64) {
    let mut client = server.client();
    for number in 0..200 {
        let database = random.below(u64::from(DATABASES));
        client.line(&format!("SELECT {database}"));
        let key = format!("key:{generation}:{}", random.below(60));
        match random.below(7) {
            0 => client.ok(&["SETEX", &format!("s{key}"), "5000", &number.to_string()]),
            1 => client.ok(&[
                "SET",
                &format!("s{key}"),
                &"x".repeat(number),
                "PX",
                "5000000",
            ]),
            2 => client.ok(&["RPUSH", &format!("l{key}"), &number.to_string()]),
            3 => client.ok(&["HSET", &format!("h{key}"), &number.to_string(), "value"]),
            4 => client.ok(&["EXPIRE", &format!("h{key}"), "6000"]),
            5 => client.ok(&["DEL", &format!("l{key}")]),
            _ => client.ok(&["ZADD", &format!("z{key}"), &number.to_string(), "member"]),
        };
    }
}

#[test]
fn generations_of_6_2_follow_each_other_and_the_last_restores_to_files() {
    let Some(mut server) = REDIS_6_2.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut random = Random::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    for generation in 1..=3 {
        write_some(&server, &mut random, generation);
        server.client().wait_until_stored(DEADLINE);
        let state = State::of(&server);
        start_empty(&mut server);
        server.until_master_with_data();
        state.assert_restored_in(&server);
        server.client().wait_until_stored(DEADLINE);
        archive
            .status_with_mapped()
            .assert_chain_of(1 + 2 * generation);
    }
    write_some(&server, &mut random, 4);
    server.client().wait_until_stored(DEADLINE);
    let state = State::of(&server);
    let folder = archive.restore("restored", &[]);
    state.assert_restored_in(&start_on(REDIS_6_2, &folder, "yes"));
    assert_eq!(mapped(&archive), 3);
    // Any moment of any generation, through the jumps of the offsets.
    let end = archive.status_with_mapped().timelines[2].end.unwrap();
    let at = format!("offset:{end}@3");
    archive.restore("earlier", &["--at", &at]);
    perennial.assert_healthy();
}

#[test]
fn an_archive_begun_on_6_2_goes_on_on_7_0() {
    let (Some(old), Some(mut new)) = (REDIS_6_2.start(&[]), REDIS_7_0.start(&[])) else {
        return;
    };
    let archive = Archive::new();
    let mut random = Random::new();
    let mut perennial = Perennial::follow(&old, &archive, &[]);
    write_some(&old, &mut random, 1);
    old.client().wait_until_stored(DEADLINE);
    let before = State::of(&old);
    perennial.terminate();
    drop(old);
    perennial.wait(DEADLINE);

    let mut perennial = Perennial::follow(&new, &archive, &[]);
    new.until_master_with_data();
    let without_digest = |state: &State, server: &Server| State {
        digest: State::of(server).digest,
        ..state.clone()
    };
    without_digest(&before, &new).assert_restored_in(&new);
    new.client().wait_until_stored(DEADLINE);
    write_some(&new, &mut random, 2);
    new.client().wait_until_stored(DEADLINE);
    let state = State::of(&new);
    start_empty(&mut new);
    new.until_master_with_data();
    state.assert_restored_in(&new);
    new.client().wait_until_stored(DEADLINE);
    archive.status_with_mapped().assert_chain_of(5);

    let folder = archive.restore("restored", &["--at", "timeline:3"]);
    assert!(folder.join("appendonlydir").is_dir());
    let restored = start_on(REDIS_7_0, &folder, "yes");
    state.assert_restored_in(&restored);
    perennial.assert_healthy();
}

#[test]
fn a_surviving_replica_of_6_2_gets_everything_anew_after_a_seed_with_rewritten_bytes() {
    let Some(mut server) = REDIS_6_2.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut random = Random::new();
    let (host, port) = server
        .address()
        .split_once(':')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    let mut replica = REDIS_6_2.start(&["--replicaof", &host, &port]).unwrap();
    let _perennial = Perennial::follow(&server, &archive, &[]);
    write_some(&server, &mut random, 1);
    server.client().wait_until_stored(DEADLINE);
    until_replica_has_all(&server, &replica);
    let state = State::of(&server);
    let full_resyncs = |server: &Server| server.log().matches("Full resync from master").count();
    let before = full_resyncs(&replica);
    // It sees nothing of the empty server: it asks to go on under the old id once that is filled.
    replica.pause();
    start_empty(&mut server);
    server.until_master_with_data();
    server.client().wait_until_stored(DEADLINE);
    replica.resume();
    until_replica_has_all(&server, &replica);
    assert!(full_resyncs(&replica) > before, "{}", replica.log());
    state.deadlines.iter().for_each(|(key, deadline)| {
        let found = State::of(&replica);
        let there = found
            .deadlines
            .get(key)
            .unwrap_or_else(|| panic!("{key:?}"));
        assert_eq!(there.is_some(), deadline.is_some(), "{key:?}");
    });
    write_some(&server, &mut random, 2);
    until_replica_has_all(&server, &replica);
    assert_eq!(State::of(&server).digest, State::of(&replica).digest);
}

#[track_caller]
fn until_replica_has_all(server: &Server, replica: &Server) {
    until("the replica has everything", DEADLINE, || {
        let theirs = replica.info("replication");
        theirs
            .get("master_link_status")
            .is_some_and(|link| link == "up")
            && theirs.get("slave_repl_offset")
                == server.info("replication").get("master_repl_offset")
            && theirs.get("master_replid") == server.info("replication").get("master_replid")
    });
}

/// Perennial is killed again and again in the middle of a seed with rewritten bytes; sometimes the server is too. It is
/// never a master with less than everything, and one timeline stands for all the attempts.
#[test]
fn killed_in_the_middle_of_a_seed_it_is_seeded_again_or_goes_on() {
    let Some(mut server) = REDIS_6_2.start(&["--repl-backlog-size", "64mb"]) else {
        return;
    };
    let archive = Archive::new();
    let mut random = Random::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    let value = random.bytes(100_000);
    let mut client = server.client();
    for number in 0..300 {
        let key = format!("big:{number}");
        client.ok(&[b"SETEX", key.as_bytes(), b"5000", &value]);
    }
    client.wait_until_stored(DEADLINE);
    let state = State::of(&server);
    perennial.kill();
    start_empty(&mut server);
    let (mut in_the_middle, mut completed) = (0, 1);
    for attempt in 0..8 {
        perennial.start_again();
        let wait = Duration::from_millis(random.below(120));
        until("a seed is on its way, or over", DEADLINE, || {
            server
                .try_info("replication")
                .is_some_and(|info| info["role"] == "slave")
                || has_all(&server, &state)
        });
        // Any moment in it: a sleep that only chooses when.
        std::thread::sleep(wait);
        perennial.kill();
        let info = server.info("replication");
        if info["role"] == "slave" {
            in_the_middle += 1;
        } else {
            completed += 1;
            until("a master has everything", DEADLINE, || {
                has_all(&server, &state)
            });
            start_empty(&mut server);
        }
        if attempt % 3 == 2 {
            server.kill();
            if random.below(2) == 0 {
                let _ = std::fs::remove_file(server.folder().join("dump.rdb"));
            }
            server.start_again();
            // It may have loaded the payload from its disk, under an id that 6.2 does not remember: not ours to fill.
            if server.keys() != Some(0) {
                start_empty(&mut server);
            }
        }
    }
    perennial.start_again();
    until("it is a master with everything", DEADLINE, || {
        server.is_master() && has_all(&server, &state)
    });
    state.assert_restored_in(&server);
    server.client().wait_until_stored(DEADLINE);
    eprintln!(
        "killed {in_the_middle} times in the middle, {} behind the end",
        completed - 1
    );
    let status = archive.status_with_mapped();
    assert!(status.suspects().is_empty(), "{status:#?}");
    assert!(mapped(&archive) <= completed, "{status:#?}");
    perennial.assert_healthy();
}

fn has_all(server: &Server, state: &State) -> bool {
    server.keys() == Some(state.deadlines.len() as u64)
}

/// Born a replica, 6.2 asks to go on from its dump: it is filled anew, because what it misses must be rewritten.
#[test]
fn a_replica_of_ours_with_a_dump_of_6_2_is_filled_anew() {
    let archive = Archive::new();
    let Some(mut born) = BornAsReplica::start(REDIS_6_2, &archive) else {
        return;
    };
    let mut random = Random::new();
    write_some(&born.server, &mut random, 1);
    born.server.client().save();
    write_some(&born.server, &mut random, 2);
    born.server.client().wait_until_stored(DEADLINE);
    let state = State::of(&born.server);
    born.server.kill();
    born.server.start_again();
    until("it is a master again", DEADLINE, || born.server.is_master());
    state.assert_restored_in(&born.server);
    born.server.client().wait_until_stored(DEADLINE);
    assert_eq!(mapped(&archive), 1);
    assert!(archive.status_with_mapped().suspects().is_empty());
    born.perennial.assert_healthy();
}

/// Fields whose expiry was taken away in time are there, however late the restore.
#[track_caller]
fn persisted_fields(kind: Kind, rewritten: bool) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut client = server.client();
    client.line("HSET old f1 a f2 b");
    client.line("HPEXPIRE old 1500 FIELDS 2 f1 f2");
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    let began = Instant::now();
    // A slow machine may have lost them already: then they are only not there.
    let old = client.line("HPERSIST old FIELDS 1 f1").array()[0] == Value::Integer(1);
    client.line("HSET h f1 a f2 b f3 c f4 d");
    client.line("HPEXPIRE h 1500 FIELDS 4 f1 f2 f3 f4");
    let persisted = client.line("HPERSIST h FIELDS 2 f1 f2").array();
    assert_eq!(
        persisted,
        [Value::Integer(1), Value::Integer(1)],
        "{:?}",
        began.elapsed()
    );
    client.line("HGETEX h PERSIST FIELDS 1 f3");
    client.wait_until_stored(DEADLINE);
    let taken = unix_millis();
    perennial.kill();
    start_empty(&mut server);
    until_passed(&server, taken, Duration::from_secs(2));

    let check = |server: &Server| {
        let mut client = Client::connect_loaded(&server.address());
        for (field, value) in [("f1", "a"), ("f2", "b"), ("f3", "c")] {
            assert_eq!(
                client.line(&format!("HGET h {field}")),
                Value::Bulk(value.into()),
                "{field}"
            );
            let ttl = client.line(&format!("HPTTL h FIELDS 1 {field}")).array();
            assert_eq!(ttl, [Value::Integer(-1)], "{field} does not expire");
        }
        until("f4 is gone", DEADLINE, || {
            client.line("HGET h f4") == Value::Nil
        });
        if old {
            assert_eq!(client.line("HGET old f1"), Value::Bulk("a".into()));
        }
    };
    let folder = archive.restore("restored", &[]);
    check(&start_on(kind, &folder, "yes"));
    perennial.start_again();
    server.until_master_with_data();
    check(&server);
    server.client().wait_until_stored(DEADLINE);
    archive
        .status_with_mapped()
        .assert_chain_of(if rewritten { 3 } else { 2 });
    assert_eq!(mapped(&archive), usize::from(rewritten));
    perennial.assert_healthy();
}

#[test]
fn fields_persisted_in_time_are_there_on_redis_8_0() {
    persisted_fields(REDIS_8_0, true);
}

#[test]
fn fields_persisted_in_time_are_there_on_valkey_9_1() {
    persisted_fields(VALKEY_9_1, false);
}

/// Nothing to rewrite on redis 8.0: the seed bears the archived id, and a surviving replica goes on.
#[test]
fn without_a_persisted_field_redis_8_0_is_seeded_as_it_was_archived() {
    let Some(mut server) = REDIS_8_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let perennial = Perennial::follow(&server, &archive, &[]);
    let mut client = server.client();
    client.line("HSET h f1 a f2 b");
    client.line("HPEXPIRE h 5000000 FIELDS 1 f1");
    client.wait_until_stored(DEADLINE);
    let before = Digest::of(&server.address());
    start_empty(&mut server);
    server.until_master_with_data();
    assert_same(&before, &Digest::of(&server.address()));
    server.client().wait_until_stored(DEADLINE);
    archive.status_with_mapped().assert_chain_of(2);
    assert_eq!(mapped(&archive), 0);
    drop(perennial);
}

/// A server that a seed with rewritten bytes has half filled: the link was cut in the middle of the replication stream,
/// and Perennial is dead.
struct HalfFilled {
    server: Server,
    archive: Archive,
    perennial: Perennial,
    proxy: Proxy,
    state: State,
    // Reserved until the end: Perennial listens there only from time to time.
    _seeder: Port,
}

#[track_caller]
fn half_filled(kind: Kind, policy: &str) -> Option<HalfFilled> {
    let mut server = kind.start(&[])?;
    let archive = Archive::new();
    let seeder = Port::reserve();
    let proxy = Proxy::to(&seeder.address());
    let flags = [
        "--seed",
        policy,
        "--seed-listen",
        &seeder.address(),
        "--seed-announce",
        &proxy.address(),
    ];
    let mut perennial = Perennial::follow(&server, &archive, &flags);
    let value = Random::fixed(1).bytes(10_000);
    let mut client = server.client();
    if kind.field_expiry {
        client.line("HSET h f v");
        client.line("HPEXPIRE h 5000000 FIELDS 1 f");
        client.line("HPERSIST h FIELDS 1 f");
    }
    for number in 0..200 {
        client.ok(&[
            b"SETEX",
            format!("key:{number}").as_bytes(),
            b"5000",
            &value,
        ]);
    }
    client.wait_until_stored(DEADLINE);
    let state = State::of(&server);
    proxy.down_after_bytes(1_000_000);
    start_empty(&mut server);
    until("the server is half filled", DEADLINE, || {
        server.keys().is_some_and(|keys| keys > 50)
            && server.info("replication")["master_link_status"] == "down"
    });
    let id = archive.status_with_mapped().timelines[1].id.clone();
    let info = server.info("replication");
    assert_eq!((&info["role"][..], &info["master_replid"]), ("slave", &id));
    assert_eq!(mapped(&archive), 1);
    assert!(!has_all(&server, &state));
    perennial.kill();
    proxy.up();
    Some(HalfFilled {
        server,
        archive,
        perennial,
        proxy,
        state,
        _seeder: seeder,
    })
}

impl HalfFilled {
    #[track_caller]
    fn until_it_has_everything(mut self) {
        until("it is a master with everything", DEADLINE, || {
            // Never a master with less.
            let master = self.server.is_master();
            assert!(!master || has_all(&self.server, &self.state));
            master
        });
        self.state.assert_restored_in(&self.server);
        self.server.client().wait_until_stored(DEADLINE);
        self.archive.status_with_mapped().assert_chain_of(3);
        assert_eq!(mapped(&self.archive), 1, "the same timeline, taken again");
        self.perennial.assert_healthy();
        drop(self.proxy);
    }
}

#[test]
fn half_filled_6_2_is_filled_again() {
    let Some(mut half) = half_filled(REDIS_6_2, "auto") else {
        return;
    };
    half.perennial.start_again();
    half.until_it_has_everything();
}

#[test]
fn half_filled_is_filled_again_also_where_only_empty_servers_are_seeded() {
    let Some(mut half) = half_filled(REDIS_8_0, "if-empty") else {
        return;
    };
    half.perennial.start_again();
    half.until_it_has_everything();
}

/// Saved in that state and started again, 8.0 remembers the id of the seed and how far it was.
#[test]
fn a_dump_of_a_half_filled_server_is_recognised() {
    let Some(mut half) = half_filled(REDIS_8_0, "auto") else {
        return;
    };
    half.server.client().save();
    half.server.kill();
    half.server.start_again();
    until("it has loaded what it had", DEADLINE, || {
        half.server.is_master() && half.server.keys().is_some_and(|keys| keys > 50)
    });
    half.perennial.start_again();
    until("it has everything", DEADLINE, || {
        half.server.is_master() && has_all(&half.server, &half.state)
    });
    half.until_it_has_everything();
}

#[test]
fn a_dump_of_a_half_filled_server_that_was_written_to_never_becomes_the_head() {
    let Some(mut half) = half_filled(REDIS_8_0, "auto") else {
        return;
    };
    half.server.client().save();
    half.server.kill();
    half.server.start_again();
    Client::connect_loaded(&half.server.address()).line("SET intruder 1");
    half.perennial.start_again();
    let status = half
        .archive
        .until("the suspect root is durable", DEADLINE, |status| {
            status.suspects() == [3] && status.timelines[2].end.is_some()
        });
    assert_eq!(status.head_timeline(), 2);
    start_empty(&mut half.server);
    until("it has everything", DEADLINE, || {
        half.server.is_master() && has_all(&half.server, &half.state)
    });
    half.state.assert_restored_in(&half.server);
    assert_eq!(mapped(&half.archive), 1);
}
