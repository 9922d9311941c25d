//! A snapshot too large for one object is stored in parts, and is one only when all of them are there.

use std::time::Duration;

use crate::harness::random::Random;
use crate::harness::{
    Archive, Digest, Perennial, Proxy, REDIS_7_0, Server, assert_same, run_cli, until,
};

const MIB: usize = 1024 * 1024;
const DEADLINE: Duration = Duration::from_secs(60);
/// Each full block of 4 MiB gets a part of its own.
const SMALL_PARTS: [&str; 2] = ["--snapshot-part-bytes", "1MiB"];

/// A server whose payload takes `mebibytes` blocks of a megabyte that nothing makes shorter.
fn filled(mebibytes: usize) -> Option<Server> {
    let server = REDIS_7_0.start(&[])?;
    let (mut client, mut random) = (server.client(), Random::fixed(17));
    for number in 0..mebibytes {
        let key = format!("large:{number}");
        client.ok(&[b"SET".as_slice(), key.as_bytes(), &random.bytes(MIB)]);
    }
    Some(server)
}

/// The objects of snapshots, as the ends of their names tell them apart.
fn parts(archive: &Archive) -> Vec<String> {
    let objects = archive.objects();
    let names = objects.iter().filter_map(|(name, _)| {
        let (_, name) = name.split_once("/snapshots/")?;
        name.splitn(3, '-').nth(2)
    });
    names.map(str::to_owned).collect()
}

#[test]
fn a_snapshot_in_parts_comes_back_by_files_and_by_seed() {
    let Some(mut server) = filled(10) else { return };
    let archive = Archive::new();
    let mut perennial = Perennial::follow_url(&server.url(), &archive, &SMALL_PARTS);
    archive.until("the snapshot is stored", DEADLINE, |status| {
        status.durable_offset.is_some()
    });
    let expected = [
        "0001.rdb.blocks",
        "0002.rdb.blocks",
        "0003.rdb.blocks",
        "0004-end.rdb.blocks",
    ];
    assert_eq!(parts(&archive), expected);
    assert_eq!(archive.status().snapshots(), 1);
    let mut client = server.client();
    client.line("SET behind 1");
    client.wait_until_stored(DEADLINE);
    let before = Digest::of(&server.address());

    let folder = archive.restore("restored", &[]);
    let restored = REDIS_7_0.start_on(&folder).unwrap();
    assert_same(&before, &Digest::of(&restored.address()));
    drop(restored);

    server.kill();
    server.start_again();
    until("it is seeded", DEADLINE, || {
        server.is_master() && server.keys() == Some(before.len() as u64)
    });
    assert_same(&before, &Digest::of(&server.address()));
    perennial.assert_healthy();

    perennial.kill();
    let objects = archive.objects();
    let is_middle = |(name, _): &&(String, std::path::PathBuf)| name.ends_with("-0002.rdb.blocks");
    let (_, middle) = objects.iter().find(is_middle).unwrap();
    std::fs::remove_file(middle).unwrap();
    let (_, status, _) = run_cli(&["status", "--archive", &archive.url()]);
    assert!(status.contains("part 2 is missing"), "{status}");
    let to = archive.beside("elsewhere");
    let (code, _, err) = run_cli(&[
        "restore",
        "--archive",
        &archive.url(),
        "--to",
        to.to_str().unwrap(),
    ]);
    assert_eq!(code, 3, "{err}");
    assert!(!to.exists(), "nothing is left of the attempt");
}

#[test]
fn killed_between_two_parts_nothing_is_restorable_until_another_snapshot_is_whole() {
    let Some(server) = filled(24) else { return };
    let archive = Archive::new();
    let proxy = Proxy::to(&server.address());
    // Five blocks came whole, three were written, two parts are full.
    proxy.down_after_bytes(22 * MIB as u64);
    let mut perennial = Perennial::follow_url(&proxy.url(), &archive, &SMALL_PARTS);
    until("two parts are stored and the line is cut", DEADLINE, || {
        parts(&archive).len() >= 2 && proxy.cuts() > 0
    });
    perennial.kill();
    assert!(!parts(&archive).iter().any(|part| part.contains("end")));
    let status = archive.status();
    assert_eq!((status.durable_offset, status.snapshots()), (None, 0));
    let (_, said, _) = run_cli(&["status", "--archive", &archive.url()]);
    assert!(said.contains("last part is not there"), "{said}");

    proxy.up();
    perennial.start_again();
    archive.until("another one is stored", DEADLINE, |status| {
        status.durable_offset.is_some()
    });
    server.client().wait_until_stored(DEADLINE);
    let folder = archive.restore("restored", &[]);
    let restored = REDIS_7_0.start_on(&folder).unwrap();
    assert_same(
        &Digest::of(&server.address()),
        &Digest::of(&restored.address()),
    );
    perennial.assert_healthy();
}
