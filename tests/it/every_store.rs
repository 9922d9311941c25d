//! The scenarios of other files on S3 and on Google Cloud Storage: that the loop closes, that WAIT means stored, kills at
//! any moment, stale dumps, suspects, files. One kind of server, because the store is what differs here.

use crate::double_kill;
use crate::harness::{Archive, Kind, REDIS_7_0};

/// Double kills on each store: the folder has more of them.
const KILLS: u32 = 3;

/// A place for an archive, and what keeps the server there alive.
type Place = (Archive, Box<dyn std::any::Any>);

#[cfg(feature = "s3")]
mod places {
    use crate::harness::S3Server;

    pub fn s3s() -> Option<super::Place> {
        let server = S3Server::in_process();
        Some((server.archive(), Box::new(server)))
    }

    pub fn moto() -> Option<super::Place> {
        let server = S3Server::moto()?;
        Some((server.archive(), Box::new(server)))
    }
}

#[cfg(feature = "gcs")]
fn gcs() -> Option<Place> {
    use crate::harness::gcs::Gcs;
    let fake = Gcs::start();
    let archive = Archive::at(fake.url("archive"), Vec::new());
    Some((archive, Box::new(fake)))
}

/// Each scenario, a `fn(Kind, &Archive)`, as a test for each store: `moto` decides races by itself, `s3s` is quick.
macro_rules! on_every_store {
    ($($name:ident: $scenario:path),+ $(,)?) => {$(
        mod $name {
            #[cfg(feature = "s3")]
            #[test] fn s3s() { super::run(super::places::s3s(), $scenario); }
            #[cfg(feature = "s3")]
            #[test] fn moto() { super::run(super::places::moto(), $scenario); }
            #[cfg(feature = "gcs")]
            #[test] fn gcs() { super::run(super::gcs(), $scenario); }
        }
    )+};
}

on_every_store! {
    everything_comes_back: crate::loop_closes::everything_comes_back_from,
    born_as_a_replica_all_is_back: crate::loop_closes::born_as_a_replica_all_is_back_from,
    a_suspect_is_accepted: crate::loop_closes::a_suspect_is_accepted_in,
    what_came_after_a_dump_is_back: crate::stale_dump::what_came_after_the_dump_is_back_in,
    confirmed_writes_survive: crate::wait_means_stored::confirmed_writes_survive_in,
    kills_under_load_are_survived: crate::killed_under_load::kills_under_load_are_survived_in,
    both_are_killed: super::both_are_killed,
    upkeep_keeps_it_small: crate::upkeep::kept_small_in,
    snapshots_from_the_archive: crate::archive_snapshots::replayed_in,
}

fn run(place: Option<Place>, scenario: fn(Kind, &Archive)) {
    if let Some((archive, _server)) = place {
        scenario(REDIS_7_0, &archive);
    }
}

fn both_are_killed(kind: Kind, archive: &Archive) {
    double_kill::both_are_killed_in(kind, archive, KILLS);
}
