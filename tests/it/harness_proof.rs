//! The harness proven on real servers and ordinary replication: what a scenario concludes from it can be trusted.

use std::time::{Duration, Instant};

use crate::harness::random::Random;
use crate::harness::workload::{Known, write_at_random, write_everything};
use crate::harness::{
    Client, DEADLINE, Digest, Kind, Load, Proxy, REDIS_7_0, Server, Writers, assert_same, until,
};
use crate::on_every_server;

on_every_server! {
    digest_sees_every_change,
    digest_sees_what_debug_digest_does_not,
    an_ordinary_replica_has_the_same_digest,
    a_restart_from_files_has_the_same_digest,
}

/// Makes `replica` follow `address` and waits until it has everything that `master` has.
#[track_caller]
fn replicate(replica: &Server, address: &str, master: &Server) {
    let (host, port) = address.split_once(':').unwrap();
    replica.client().ok(&["REPLICAOF", host, port]);
    until_caught_up(replica, master);
}

#[track_caller]
fn until_caught_up(replica: &Server, master: &Server) {
    until("the replica has caught up", DEADLINE, || {
        let target = master.info_number("replication", "master_repl_offset");
        replica.try_info("replication").is_some_and(|info| {
            info.get("master_link_status")
                .is_some_and(|link| link == "up")
                && info
                    .get("slave_repl_offset")
                    .is_some_and(|offset| offset.parse() == Ok(target))
        })
    });
}

/// Each line is a change to the data that `write_everything` leaves in database 0; each must be seen.
const CHANGES: &[&str] = &[
    "SET new-key 1",
    "SET string:int:0 8",
    "APPEND string:embstr:0 x",
    "SETRANGE string:1MB:0 1048000 Z",
    "DEL string:empty",
    "RPUSH list:small a",
    "LSET list:big 2000 other",
    "LMOVE list:small list:small LEFT RIGHT",
    "SADD set:intset 4711",
    "SREM set:hashtable member",
    "HSET hash:listpack f1 other",
    "HDEL hash:listpack f1",
    "ZINCRBY zset:listpack 1e-10 pi",
    "ZREM zset:skiplist nobody",
    "XADD stream:main * a b",
    "XGROUP CREATE stream:main another 0",
    "XGROUP SETID stream:main tail0 5-5",
    "XGROUP CREATECONSUMER stream:main group0 newcomer",
    "XGROUP DELCONSUMER stream:main group0 idle",
    "XSETID stream:ids 999999-0",
    "7.0| XSETID stream:ids 999999-1 ENTRIESADDED 77 MAXDELETEDID 9-9",
    "XREADGROUP GROUP group0 alice COUNT 1 STREAMS stream:main >",
    "XAUTOCLAIM stream:main group0 thief 0 0 COUNT 1",
    "PFADD hll:sparse another",
    "SETBIT bits:flags 7 1",
    "EXPIRE string:int:0 70000",
    "PEXPIRE ttl:list 66666666",
    "PERSIST ttl:set",
    "fields| HEXPIRE hash:fields:0 12345 FIELDS 1 ex",
    "fields| HPERSIST hash:fields:0 FIELDS 1 px",
    "fields| HDEL hash:fields:0 exat",
    "7.0| FUNCTION DELETE round0",
    "MOVE list:small 7",
    "SWAPDB 5 7",
    "RENAME list:big list:bigger",
    "COPY hash:listpack hash:copied DB 8",
];

/// Changes of the list above that change nothing, as a check of the check.
const NO_CHANGES: &[&str] = &[
    "SREM set:hashtable member",
    "ZREM zset:skiplist nobody",
    "GET string:int:0",
    "OBJECT FREQ-OR-NOT string:int:0",
    "EXISTS string:int:0",
    "DEBUG RELOAD",
];

fn digest_sees_every_change(kind: Kind) {
    let Some(server) = kind.start(&[]) else {
        return;
    };
    let mut client = server.client();
    let known = Known::by(&mut client);
    write_everything(&mut client, 0);
    let address = server.address();
    let mut before = Digest::of(&address);
    for change in CHANGES {
        if NO_CHANGES.contains(change) {
            continue;
        }
        let Some(change) = known.line(change) else {
            continue;
        };
        client.line(change);
        let after = Digest::of(&address);
        let differences = before.differences(&after);
        assert!(!differences.is_empty(), "{change} is not seen");
        assert!(
            differences
                .iter()
                .all(|difference| !difference.contains("DEBUG DIGEST alone")),
            "{change} is seen by DEBUG DIGEST alone: {differences:?}"
        );
        // Before 7.0 a time of expiry can only be computed: it is compared, and no part of the hash.
        if kind.speaks >= (7, 0) || !change.contains("EXPIRE") {
            assert_ne!(before.hash(), after.hash(), "{change}");
        }
        before = after;
    }
}

/// What is there, what is changed on purpose, and whether `DEBUG DIGEST` of every server is blind to it. Times of
/// expiry, groups and functions are what a restore gets wrong without anybody seeing it in the values.
const BLIND_SPOTS: &[(&str, &[&str], &str)] = &[
    ("a TTL", &["SET k v EX 90000"], "EXPIRE k 80000"),
    (
        "a pending entry",
        &[
            "XADD s 1-1 a b",
            "XGROUP CREATE s g 0",
            "XREADGROUP GROUP g alice STREAMS s >",
        ],
        "XACK s g 1-1",
    ),
    (
        "whose a pending entry is",
        &[
            "XADD s 1-1 a b",
            "XGROUP CREATE s g 0",
            "XREADGROUP GROUP g alice STREAMS s >",
        ],
        "XCLAIM s g bob 0 1-1",
    ),
    (
        "the last id of a group",
        &["XADD s 1-1 a b", "XGROUP CREATE s g 0"],
        "XGROUP SETID s g 1-1",
    ),
    (
        "a function",
        &["7.0| FUNCTION LOAD {library}"],
        "7.0| FUNCTION DELETE l",
    ),
    (
        "the TTL of a field",
        &["fields| HSETEX h EX 90000 FIELDS 1 f v"],
        "fields| HEXPIRE h 80000 FIELDS 1 f",
    ),
];

const LIBRARY: &str = "#!lua name=l\nredis.register_function('f', function() return 1 end)";

fn digest_sees_what_debug_digest_does_not(kind: Kind) {
    let Some(server) = kind.start(&[]) else {
        return;
    };
    let mut client = server.client();
    let known = Known::by(&mut client);
    let mut seen = 0;
    for (what, there, change) in BLIND_SPOTS {
        let Some(change) = known.line(change) else {
            continue;
        };
        client.line("FLUSHALL");
        for line in *there {
            let line = known.line(line).expect("known, as its change is");
            let words = line.split_whitespace();
            let words: Vec<&str> = words
                .map(|word| match word {
                    "{library}" => LIBRARY,
                    word => word,
                })
                .collect();
            client.ok(&words);
        }
        let before = Digest::of(&server.address());
        client.line(change);
        let after = Digest::of(&server.address());
        assert!(!before.differences(&after).is_empty(), "{what} is not seen");
        assert!(before.debug_digest().is_some());
        eprintln!(
            "{} {what} {}",
            kind.name,
            before.debug_digest() == after.debug_digest()
        );
        seen += 1;
    }
    assert!(seen >= 4, "{seen}");
}

#[test]
fn digest_sees_no_change_where_there_is_none() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let mut client = server.client();
    write_everything(&mut client, 0);
    let address = server.address();
    let before = Digest::of(&address);
    for no_change in NO_CHANGES {
        let words: Vec<&str> = no_change.split(' ').collect();
        client.command(&words).unwrap();
        assert_same(&before, &Digest::of(&address));
    }
}

#[test]
fn digest_does_not_depend_on_the_order_of_writing() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let mut client = server.client();
    let address = server.address();
    client.line("SADD s a b c");
    client.line("HSET h a 1 b 2 c 3");
    client.line("ZADD z 1 a 1 b 0 c");
    let before = Digest::of(&address);
    client.line("FLUSHALL");
    client.line("ZADD z 0 c 1 b 1 a");
    client.line("HSET h c 3 b 2 a 1");
    client.line("SADD s c b a");
    assert_same(&before, &Digest::of(&address));
}

#[test]
fn differences_name_the_key_and_both_sides() {
    let (Some(left), Some(right)) = (REDIS_7_0.start(&[]), REDIS_7_0.start(&[])) else {
        return;
    };
    left.client().line("MSET same 1 other left only-left 1");
    right.client().line("MSET same 1 other right only-right 1");
    let differences = Digest::of(&left.address()).differences(&Digest::of(&right.address()));
    assert_eq!(differences.len(), 3, "{differences:#?}");
    assert!(differences[0].contains("\"only-left\"") && differences[0].contains("on the left"));
    assert!(differences[1].contains("\"other\"") && differences[1].contains("right"));
    assert!(differences[2].contains("\"only-right\""));
}

fn an_ordinary_replica_has_the_same_digest(kind: Kind) {
    let (Some(master), Some(replica)) = (kind.start(&[]), kind.start(&[])) else {
        return;
    };
    let mut client = master.client();
    write_everything(&mut client, 0);
    replicate(&replica, &master.address(), &master);
    write_everything(&mut client, 1);
    let mut random = Random::new();
    write_at_random(&mut client, &mut random, 3000);
    write_everything(&mut client, 2);
    until_caught_up(&replica, &master);
    assert_same(
        &Digest::of(&master.address()),
        &Digest::of(&replica.address()),
    );
}

fn a_restart_from_files_has_the_same_digest(kind: Kind) {
    for config in [&["--appendonly", "yes"][..], &["--save", "3600", "1"]] {
        let Some(mut server) = kind.start(config) else {
            return;
        };
        write_everything(&mut server.client(), 0);
        let before = Digest::of(&server.address());
        server.terminate();
        server.start_again();
        assert_same(&before, &Digest::of(&server.address()));
    }
}

#[test]
fn writers_come_back_and_confirmed_writes_are_on_the_replica() {
    let (Some(mut master), Some(mut replica)) = (REDIS_7_0.start(&[]), REDIS_7_0.start(&[])) else {
        return;
    };
    replicate(&replica, &master.address(), &master);
    let writers = Writers::start(&master.address(), Load::default());
    writers.until_confirmed_more(100);
    writers.pause();
    let ledger = writers.ledger();
    ledger.assert_all_in(&replica.address());
    replica.kill();
    writers.resume();
    writers.until_acknowledged_more(50);
    master.kill();
    master.start_again();
    writers.until_acknowledged_more(50);
    // The replica is gone: what was confirmed is what was confirmed before, give or take what was under way.
    let after = writers.stop();
    assert!(after.0.len() >= ledger.0.len());
    assert!(after.0.starts_with(&ledger.0));
}

#[test]
#[should_panic(expected = "confirmed writes are lost")]
fn the_ledger_notices_a_lost_write() {
    let Some(master) = REDIS_7_0.start(&[]) else {
        panic!(
            "confirmed writes are lost: not tested, {} is missing",
            REDIS_7_0.name
        );
    };
    let replica = REDIS_7_0.start(&[]).unwrap();
    replicate(&replica, &master.address(), &master);
    let writers = Writers::start(&master.address(), Load::default());
    writers.until_confirmed_more(20);
    let ledger = writers.stop();
    let lost = &ledger.0[7];
    let mut client = master.client();
    client.ok(&["SELECT", &lost.database.to_string()]);
    client.ok(&["DEL", &lost.key]);
    ledger.assert_all_in(&master.address());
}

#[test]
fn replication_survives_a_proxy_that_cuts_stalls_and_delays() {
    let large_backlog = ["--repl-backlog-size", "64mb"];
    let (Some(master), Some(replica)) = (REDIS_7_0.start(&large_backlog), REDIS_7_0.start(&[]))
    else {
        return;
    };
    let proxy = Proxy::to(&master.address());
    let mut client = master.client();
    write_everything(&mut client, 0);
    replicate(&replica, &proxy.address(), &master);

    let full_syncs = master.info_number("stats", "sync_full");
    let seen = proxy.bytes_down();
    proxy.cut_after_bytes(200_000);
    write_everything(&mut client, 1);
    until_caught_up(&replica, &master);
    assert!(proxy.bytes_down() >= seen + 200_000);
    assert_eq!(proxy.accepted(), 2);

    proxy.stall();
    client.line("SET stalled 1");
    let offset = master.info_number("replication", "master_repl_offset");
    crate::harness::holds_for("nothing passes", Duration::from_millis(200), || {
        replica.info_number("replication", "slave_repl_offset") < offset
    });
    proxy.flow();
    until_caught_up(&replica, &master);

    proxy.down();
    client.line("SET while-down 1");
    until("the replica has noticed", DEADLINE, || {
        replica.info("replication")["master_link_status"] == "down"
    });
    proxy.up();
    until_caught_up(&replica, &master);
    assert_eq!(master.info_number("stats", "sync_full"), full_syncs);
    assert!(master.info_number("stats", "sync_partial_ok") >= 2);
    assert_same(
        &Digest::of(&master.address()),
        &Digest::of(&replica.address()),
    );
}

#[test]
fn a_proxy_delays_both_ways_and_cuts_at_the_byte() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let proxy = Proxy::to(&server.address());
    let mut client = Client::connect(&proxy.address()).unwrap();
    proxy.delay(Duration::from_millis(60));
    let started = Instant::now();
    client.line("PING");
    assert!(started.elapsed() >= Duration::from_millis(120));
    proxy.delay(Duration::ZERO);

    let before = proxy.bytes_down();
    proxy.cut_after_bytes(4);
    assert!(client.command(&["PING"]).is_err(), "+PON is no reply");
    assert_eq!(proxy.bytes_down(), before + 4);
    Client::connect(&proxy.address()).unwrap().line("PING");
    proxy.down();
    let refused =
        Client::connect(&proxy.address()).and_then(|mut client| client.command(&["PING"]));
    assert!(refused.is_err());
    proxy.up();
    Client::connect(&proxy.address()).unwrap().line("PING");
}
