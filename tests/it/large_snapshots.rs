//! A snapshot much larger than memory may be goes up and comes down, on each store: what is promised of it is that
//! nothing of it stays in memory. `PERENNIAL_SNAPSHOT_MIB` makes it larger.

use std::time::Duration;

use crate::harness::random::Random;
use crate::harness::{
    Archive, Digest, Perennial, REDIS_7_0, RESIDENT_BYTES_MAX, assert_same, until,
};

const MIB: usize = 1024 * 1024;
/// The size of the data set unless told otherwise.
const MEBIBYTES: usize = 200;

#[test]
fn in_a_folder() {
    goes_up_and_comes_down(&Archive::new());
}

#[cfg(feature = "s3")]
#[test]
fn on_s3() {
    let server = crate::harness::S3Server::in_process();
    goes_up_and_comes_down(&server.archive());
}

#[cfg(feature = "gcs")]
#[test]
fn on_gcs() {
    let fake = crate::harness::gcs::Gcs::start();
    goes_up_and_comes_down(&Archive::at(fake.url("archive"), Vec::new()));
}

/// Incompressible, in values of a megabyte: as much in the store as in the server.
fn goes_up_and_comes_down(archive: &Archive) {
    let mebibytes: usize = std::env::var("PERENNIAL_SNAPSHOT_MIB")
        .ok()
        .map_or(MEBIBYTES, |text| text.parse().unwrap());
    // Debug builds, on a small machine that does other things as well.
    let deadline = Duration::from_secs(120 + mebibytes as u64 / 4);
    let Some(mut server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let (mut client, mut random) = (server.client(), Random::new());
    for number in 0..mebibytes {
        let key = format!("large:{number}");
        client.ok(&[b"SET".as_slice(), key.as_bytes(), &random.bytes(MIB)]);
    }
    let mut perennial = Perennial::follow_url(&server.url(), archive, &[]);
    let status = archive.until("the snapshot is stored", deadline, |status| {
        status.durable_offset.is_some()
    });
    let stored = status.timelines[0].snapshots[0].bytes;
    assert!(stored >= (mebibytes * MIB) as u64, "{stored}");
    client.line("SET behind 1");
    client.wait_until_stored(deadline);
    let before = Digest::of(&server.address());
    let up = perennial.resident_bytes_peak();

    perennial.forget_resident_peak();
    server.kill();
    server.start_again();
    until("all of it is back", deadline, || {
        server.is_master() && server.keys() == Some(before.len() as u64)
    });
    assert_same(&before, &Digest::of(&server.address()));
    let down = perennial.resident_bytes_peak();
    let shown = |peak: Option<u64>| peak.map(|bytes| bytes >> 20);
    eprintln!(
        "{mebibytes} MiB: resident, at most, MiB: {:?} up, {:?} down",
        shown(up),
        shown(down)
    );
    for bytes in [up, down].into_iter().flatten() {
        assert!(bytes < RESIDENT_BYTES_MAX, "{bytes} bytes resident");
    }
    perennial.assert_healthy();
}
