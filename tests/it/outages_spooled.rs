//! The outages of [`crate::outages`] with a spool: what does not fit into memory waits in files, the link stays, and the
//! master holds nothing for us.

use crate::harness::Mix;
use crate::outages::{Place, Way, the_master_does_not_notice};

/// Room for a minute of what [`Mix::RANDOM_WRITES`] sends, and more.
const SPOOL_BYTES: &str = "4GiB";

fn with_a_spool(place: &Place, way: Way) {
    let folder = tempfile::tempdir().unwrap();
    let flags = [
        "--spool-dir",
        folder.path().to_str().unwrap(),
        "--spool-bytes",
        SPOOL_BYTES,
    ];
    the_master_does_not_notice(place, way, &flags, Mix::RANDOM_WRITES);
}

#[test]
fn s3_is_down() {
    with_a_spool(&Place::s3(), Way::Down);
}

#[test]
fn s3_hangs() {
    with_a_spool(&Place::s3(), Way::Hangs);
}

#[test]
fn s3_crawls() {
    with_a_spool(&Place::s3(), Way::Crawls);
}

#[test]
fn gcs_refuses_with_503() {
    with_a_spool(&Place::gcs(), Way::Refuses(503));
}
