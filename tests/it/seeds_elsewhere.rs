//! Seeds into servers of another version, without a module, or with too little memory: those that can take the archive
//! do, the others are told apart beforehand where that is possible, and named where it is not.

use std::fs;
use std::time::Duration;

use perennial::archive::block::{BlockContext, Compressor};
use perennial::archive::layout::Object;
use perennial::archive::snapshot::SnapshotBuilder;

use crate::harness::servers::{REDIS_6_2, REDIS_7_0, REDIS_8_0, VALKEY_8_1, VALKEY_9_1};
use crate::harness::{
    Archive, DEADLINE, Digest, Kind, Perennial, Port, Server, assert_same, holds_for,
};

/// An archive of a few keys, whose server is gone.
fn archived(kind: Kind) -> Option<Archive> {
    let server = kind.start(&[])?;
    let archive = Archive::new();
    let mut client = server.client();
    client.line("SET before 1");
    let _perennial = Perennial::follow(&server, &archive, &[]);
    fill(&server);
    Some(archive)
}

fn fill(server: &Server) {
    let mut client = server.client();
    for words in [
        "SET string abc",
        "RPUSH list a b c",
        "HSET hash f 1 g 2",
        "SADD set 1 2 3",
        "ZADD sorted 1.5 a 2 b",
        "XADD stream 1-1 f v",
    ] {
        client.line(words);
    }
    client.wait_until_stored(DEADLINE);
}

/// What [`fill`] wrote, seen with commands that all servers answer alike.
#[track_caller]
fn assert_filled(server: &Server) {
    let mut client = server.client();
    let mut ask = |words: &str| client.line(words);
    assert_eq!(ask("GET before").text(), "1");
    assert_eq!(ask("GET string").text(), "abc");
    assert_eq!(ask("LRANGE list 0 -1").array().len(), 3);
    assert_eq!(ask("HGET hash g").text(), "2");
    assert_eq!(ask("SCARD set").integer(), 3);
    assert_eq!(ask("ZSCORE sorted a").text(), "1.5");
    assert_eq!(ask("XLEN stream").integer(), 1);
}

#[track_caller]
fn loads_into(from: Kind, to: Kind) {
    let Some(archive) = archived(from) else {
        return;
    };
    let Some(server) = to.start(&[]) else {
        return;
    };
    let mut perennial = Perennial::follow_url(&server.url(), &archive, &[]);
    server.until_master_with_data();
    assert_filled(&server);
    // And it is followed.
    server.client().wait_until_stored(DEADLINE);
    archive.status().assert_chain_of(2);
    perennial.assert_healthy();
}

#[test]
fn redis_6_2_into_redis_7_0() {
    loads_into(REDIS_6_2, REDIS_7_0);
}

#[test]
fn redis_7_0_into_redis_8_0() {
    loads_into(REDIS_7_0, REDIS_8_0);
}

#[test]
fn redis_7_0_into_valkey_8_1() {
    loads_into(REDIS_7_0, VALKEY_8_1);
}

#[test]
fn valkey_8_1_into_valkey_9_1() {
    loads_into(VALKEY_8_1, VALKEY_9_1);
}

/// Known from the payload's first bytes: the server is not even taken over. A server born a replica of us goes on waiting.
#[track_caller]
fn is_refused_by(from: Kind, to: Kind, said: &str) {
    let Some(archive) = archived(from) else {
        return;
    };
    let Some(server) = to.start(&[]) else {
        return;
    };
    let id = |server: &Server| server.info("replication")["master_replid"].clone();
    let before = id(&server);
    let mut perennial = Perennial::follow_url(&server.url(), &archive, &[]);
    perennial.until_logged(&format!("not ready: seed failed: {said}"));
    // The next attempts wait longer, and count.
    perennial.until_logged("attempt=2");
    assert_eq!(id(&server), before, "it was taken over in between");
    assert!(server.is_master());
    assert_eq!(server.keys(), Some(0));
    assert_eq!(archive.status().timelines.len(), 1);
    perennial.assert_healthy();
    perennial.kill();

    let seed = Port::reserve();
    let Some(born) = to.start_waiting_for(&seed) else {
        return;
    };
    let mut perennial =
        Perennial::follow_url(&born.url(), &archive, &["--seed-listen", &seed.address()]);
    perennial.until_logged(&format!("not ready: seed failed: {said}"));
    holds_for("it waits", Duration::from_secs(2), || !born.is_master());
    assert!(born.log().contains("LOADING Perennial"), "{}", born.log());
    perennial.assert_healthy();
}

#[test]
fn redis_7_0_into_redis_6_2_is_refused() {
    is_refused_by(
        REDIS_7_0,
        REDIS_6_2,
        "the archive's payload is REDIS0010, and redis 6.2 cannot read it: start Redis 7.0 or later",
    );
}

#[test]
fn valkey_9_1_into_redis_8_0_is_refused() {
    is_refused_by(
        VALKEY_9_1,
        REDIS_8_0,
        "the archive's payload is VALKEY080, and redis 8.0 cannot read it: start Valkey 9.0 or later",
    );
}

#[test]
fn redis_8_0_into_valkey_9_1_is_refused() {
    is_refused_by(
        REDIS_8_0,
        VALKEY_9_1,
        "the archive's payload is REDIS0012, and valkey 9.1 cannot read it: start Redis 7.4 or later",
    );
}

/// `rdb-version-check relaxed` lets Valkey try; what it understands it takes.
#[test]
fn a_relaxed_valkey_may_try() {
    let Some(archive) = archived(REDIS_8_0) else {
        return;
    };
    let Some(server) = VALKEY_9_1.start(&["--rdb-version-check", "relaxed"]) else {
        return;
    };
    let mut perennial = Perennial::follow_url(&server.url(), &archive, &[]);
    server.until_master_with_data();
    assert_filled(&server);
    assert!(
        !perennial.log().contains("cannot read it"),
        "{}",
        perennial.log()
    );
    perennial.assert_healthy();
}

/// The id of the module type `TestTyp-A`, version 1, as payloads spell it.
fn module_type() -> Vec<u8> {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let name = "TestTyp-A".bytes().fold(0_u64, |id, byte| {
        id << 6 | alphabet.iter().position(|known| *known == byte).unwrap() as u64
    });
    [&[0x81][..], &(name << 10 | 1).to_be_bytes()].concat()
}

/// Another payload in the place of the archive's snapshot.
fn replace_payload(archive: &Archive, payload: Vec<u8>) {
    let objects = archive.objects();
    let (name, path) = objects
        .iter()
        .find(|(name, _)| name.contains("/snapshots/"))
        .unwrap();
    let object = Object::parse(name).unwrap();
    let Object::Snapshot {
        seq,
        id,
        offset,
        at,
        ..
    } = object
    else {
        panic!("{name} is a snapshot");
    };
    let context = BlockContext {
        archive: archive.status().archive_id.parse().unwrap(),
        timeline: seq,
        id,
    };
    let mut builder = SnapshotBuilder::new(offset, at);
    builder.push(payload.into());
    let mut compressor = Compressor::new();
    let blocks = builder.finish().unwrap().blocks.into_iter();
    let bytes: Vec<_> = blocks
        .map(|block| block.encode(&context, &mut compressor))
        .collect();
    fs::write(path, bytes.concat()).unwrap();
}

/// Measured on every version: a server that finds a type it does not know ends itself.
#[track_caller]
fn a_missing_module_is_named(kind: Kind) {
    let Some(archive) = archived(REDIS_7_0) else {
        return;
    };
    // Database 0, the key `m` of type 7, one unsigned number, the end.
    let value = [
        b"REDIS0010\xfe\x00\x07\x01m",
        &module_type()[..],
        b"\x02\x01\x00\xff",
    ];
    replace_payload(&archive, [&value.concat()[..], &[0; 8]].concat());
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let mut perennial = Perennial::follow_url(&server.url(), &archive, &[]);
    perennial.until_logged("not ready: seed failed: the server went away while it was filled");
    perennial.until_logged("it lacks a module whose types are in the data (it has ");
    assert!(
        server.log().contains("no matching module type"),
        "{}",
        server.log()
    );
    server.kill();
    // Started again by whoever watches it, it dies again: each time later.
    server.start_again_without_waiting();
    perennial.until_logged("attempt=2");
    assert_eq!(archive.status().timelines.len(), 1);
    perennial.assert_healthy();
}

#[test]
fn a_missing_module_is_named_redis_7_0() {
    a_missing_module_is_named(REDIS_7_0);
}

#[test]
fn a_missing_module_is_named_valkey_9_1() {
    a_missing_module_is_named(VALKEY_9_1);
}

/// What modules keep beside the keys comes first in a payload, where it is seen: the server is left alone.
#[test]
fn a_missing_module_at_the_head_is_told_beforehand() {
    for kind in [REDIS_7_0, VALKEY_9_1] {
        let Some(archive) = archived(REDIS_7_0) else {
            return;
        };
        // An auxiliary field, then data of the module type: when, one unsigned number, the end.
        let aux = [
            b"REDIS0010\xfa\x01a\x01b\xf7",
            &module_type()[..],
            b"\x02\x01\x02\x01\x00\xff",
        ];
        replace_payload(&archive, [&aux.concat()[..], &[0; 8]].concat());
        let Some(server) = kind.start(&[]) else {
            return;
        };
        let mut perennial = Perennial::follow_url(&server.url(), &archive, &[]);
        perennial.until_logged("not ready: seed failed: the archive's payload begins with data of the module type TestTyp-A");
        perennial.until_logged("attempt=2");
        assert!(server.is_master());
        assert_eq!(server.keys(), Some(0));
        perennial.assert_healthy();
    }
}

/// A replica takes everything whatever its maxmemory; what it does as a master is its own policy. Said beforehand.
#[test]
fn less_maxmemory_than_data_is_said_and_filled() {
    let Some(first) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut client = first.client();
    let value = "x".repeat(1 << 20);
    for key in 0..8 {
        client.ok(&["SET", &format!("key{key}"), &value]);
    }
    let mut perennial = Perennial::follow(&first, &archive, &[]);
    client.line("SET last 1");
    client.wait_until_stored(DEADLINE);
    let before = Digest::of(&first.address());
    perennial.kill();
    let Some(server) = REDIS_7_0.start(&["--maxmemory", "4mb"]) else {
        return;
    };
    let perennial = Perennial::follow_url(&server.url(), &archive, &[]);
    server.until_master_with_data();
    assert_same(&before, &Digest::of(&server.address()));
    assert!(
        perennial.log().contains("maxmemory=4194304"),
        "{}",
        perennial.log()
    );
    let refused = server.client().command(&["SET", "more", "1"]).unwrap();
    assert!(refused.is_error("OOM"), "{refused:?}");
}

/// Such a redis takes no transaction, so nothing could be read and decided in one step. It is no use to clients either.
#[track_caller]
fn an_empty_server_above_its_maxmemory_is_told_what_to_raise(kind: Kind) {
    let Some(archive) = archived(kind) else {
        return;
    };
    let Some(server) = kind.start(&["--maxmemory", "1000"]) else {
        return;
    };
    let mut perennial = Perennial::follow_url(&server.url(), &archive, &[]);
    perennial.until_logged("maxmemory allows, and then takes no transaction, however empty it is");
    assert!(server.is_master());
    server.client().line("CONFIG SET maxmemory 0");
    server.until_master_with_data();
    assert_filled(&server);
    perennial.assert_healthy();
}

#[test]
fn an_empty_server_above_its_maxmemory_is_told_what_to_raise_redis_6_2() {
    an_empty_server_above_its_maxmemory_is_told_what_to_raise(REDIS_6_2);
}

#[test]
fn an_empty_server_above_its_maxmemory_is_told_what_to_raise_redis_7_0() {
    an_empty_server_above_its_maxmemory_is_told_what_to_raise(REDIS_7_0);
}

/// Valkey takes the transaction.
#[test]
fn an_empty_valkey_above_its_maxmemory_is_filled() {
    let Some(archive) = archived(VALKEY_9_1) else {
        return;
    };
    let Some(server) = VALKEY_9_1.start(&["--maxmemory", "1000"]) else {
        return;
    };
    let mut perennial = Perennial::follow_url(&server.url(), &archive, &[]);
    server.until_master_with_data();
    assert_filled(&server);
    assert!(!perennial.log().contains("seed failed"));
    perennial.assert_healthy();
}
