//! Values and transactions larger than every buffer: nothing is held in memory whole, and all of it is back.

use std::time::Duration;

use crate::harness::random::Random;
use crate::harness::{
    Archive, Client, Digest, Perennial, REDIS_7_0, RESIDENT_BYTES_MAX, Server, assert_same,
};

const MIB: usize = 1024 * 1024;
/// Storing and loading hundreds of megabytes, on a small machine that does other things as well.
const DEADLINE_BIG: Duration = Duration::from_secs(120);
/// A value of 300 MB in one command passes the server's own limit for replicas (256 MB) at once.
const NO_OUTPUT_LIMIT: [&str; 2] = ["--client-output-buffer-limit", "replica 0 0 0"];

fn big(client: &mut Client, key: &str, mebibytes: usize) {
    let value = Random::fixed(7).bytes(mebibytes * MIB);
    client.ok(&[b"SET".as_slice(), key.as_bytes(), &value]);
}

/// After a kill and a seed, and after a restore to files, the data set is the same.
#[track_caller]
fn comes_back(mut server: Server, archive: &Archive, perennial: &Perennial) {
    server.client().wait_until_stored(DEADLINE_BIG);
    let before = Digest::of(&server.address());
    let resident = perennial.resident_bytes_peak();
    if let Some(bytes) = resident {
        assert!(bytes < RESIDENT_BYTES_MAX, "{bytes} bytes resident");
    }
    let folder = archive.restore("restored", &[]);
    let restored = REDIS_7_0.start_on(&folder).unwrap();
    assert_same(&before, &Digest::of(&restored.address()));
    drop(restored);

    server.kill();
    server.start_again();
    crate::harness::until("it is seeded", DEADLINE_BIG, || {
        server.is_master() && server.keys().is_some_and(|keys| keys > 0)
    });
    assert_same(&before, &Digest::of(&server.address()));
    if let Some(bytes) = perennial.resident_bytes_peak() {
        assert!(
            bytes < RESIDENT_BYTES_MAX,
            "{bytes} bytes resident while seeding"
        );
    }
}

#[test]
fn a_value_of_300_mb_in_one_command() {
    let Some(server) = REDIS_7_0.start(&NO_OUTPUT_LIMIT) else {
        return;
    };
    let archive = Archive::new();
    let perennial = Perennial::follow(&server, &archive, &["--buffer-bytes", "32MiB"]);
    big(&mut server.client(), "big", 300);
    comes_back(server, &archive, &perennial);
}

#[test]
fn a_value_of_300_mb_in_the_snapshot() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    big(&mut server.client(), "big", 300);
    let perennial = Perennial::follow_url(&server.url(), &archive, &["--buffer-bytes", "32MiB"]);
    archive.until("the snapshot is stored", DEADLINE_BIG, |status| {
        status.durable_offset.is_some()
    });
    server.client().ok(&["APPEND", "big", "and a bit"]);
    comes_back(server, &archive, &perennial);
}

#[test]
fn a_value_of_300_mb_in_pieces() {
    let Some(server) = REDIS_7_0.start(&NO_OUTPUT_LIMIT) else {
        return;
    };
    let archive = Archive::new();
    let perennial = Perennial::follow(&server, &archive, &["--buffer-bytes", "32MiB"]);
    let mut client = server.client();
    let piece = Random::fixed(9).bytes(25 * MIB);
    for number in 0..12 {
        let at = (number * piece.len()).to_string();
        client.ok(&[b"SETRANGE".as_slice(), b"big", at.as_bytes(), &piece]);
    }
    comes_back(server, &archive, &perennial);
}

#[test]
fn a_transaction_of_200_mb() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let perennial = Perennial::follow(&server, &archive, &["--buffer-bytes", "32MiB"]);
    let mut client = server.client();
    let mut random = Random::fixed(11);
    client.line("MULTI");
    for number in 0..200 {
        let key = format!("part:{number}");
        client.ok(&[b"SET".as_slice(), key.as_bytes(), &random.bytes(MIB)]);
    }
    client.line("EXEC");
    comes_back(server, &archive, &perennial);
}

/// The stream may be cut inside of it: then none of it is there, and all that came before is.
#[test]
fn a_transaction_that_did_not_arrive_whole_is_not_there() {
    let Some(mut server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let proxy = crate::harness::Proxy::to(&server.address());
    let mut perennial = Perennial::follow_url(&proxy.url(), &archive, &["--flush-bytes", "1MiB"]);
    archive.until_durable();
    let mut client = server.client();
    client.line("SET before 1");
    client.wait_until_stored(DEADLINE_BIG);
    let before = Digest::of(&server.address());

    let cut = 20 * MIB as u64;
    let passed = proxy.bytes_down();
    proxy.down_after_bytes(cut);
    let mut random = Random::fixed(13);
    client.line("MULTI");
    for number in 0..40 {
        let key = format!("part:{number}");
        client.ok(&[b"SET".as_slice(), key.as_bytes(), &random.bytes(MIB)]);
    }
    client.line("EXEC");
    crate::harness::until("the link is cut inside of it", DEADLINE_BIG, || {
        proxy.bytes_down() >= passed + cut
    });
    perennial.kill();
    server.kill();
    server.start_again();
    proxy.up();
    perennial.start_again();
    server.until_master_with_data();
    assert_same(&before, &Digest::of(&server.address()));
}
