//! Fields of hashes that expire, of servers that have them: Redis 8.0 and Valkey 9.
//!
//! Valkey 9 sends its own payload format only to a replica that announces its version; to any other it cannot write
//! such fields at all, and closes the link again and again.

use crate::harness::servers::{REDIS_8_0, VALKEY_9_1};
use crate::harness::workload::write_everything;
use crate::harness::{Archive, DEADLINE, Digest, Kind, Perennial, assert_same};

#[test]
fn they_come_back_on_redis_8_0() {
    they_come_back(REDIS_8_0, b"REDIS0012");
}

#[test]
fn they_come_back_on_valkey_9_1() {
    they_come_back(VALKEY_9_1, b"VALKEY080");
}

/// Some are in the snapshot, some in the replication stream; back by a seed and by files.
#[track_caller]
fn they_come_back(kind: Kind, magic: &[u8]) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let mut client = server.client();
    write_everything(&mut client, 0);
    client.line("HSETEX early EX 90000 FIELDS 2 a 1 b 2");
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    assert_eq!(archive.status().snapshots(), 1);
    write_everything(&mut client, 1);
    client.line("HPEXPIRE early 80000123 FIELDS 1 a");
    client.line("HPERSIST early FIELDS 1 b");
    client.line("HSETEX late EX 70000 FIELDS 1 c 3");
    client.wait_until_stored(DEADLINE);
    let expiry = client.line("HPEXPIRETIME late FIELDS 1 c");
    let before = Digest::of(&server.address());

    let folder = archive.restore("restored", &[]);
    let base = folder.join("appendonlydir/appendonly.aof.1.base.rdb");
    assert!(
        std::fs::read(base).unwrap().starts_with(magic),
        "the payload is of another format"
    );
    let restored = kind.start_on(&folder).unwrap();
    assert_same(&before, &Digest::of(&restored.address()));

    server.lose_everything();
    server.until_master_with_data();
    assert_same(&before, &Digest::of(&server.address()));
    let mut client = server.client();
    assert_eq!(client.line("HPEXPIRETIME late FIELDS 1 c"), expiry);
    client.wait_until_stored(DEADLINE);
    archive.status().assert_chain_of(2);
    perennial.assert_healthy();
}
