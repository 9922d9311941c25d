//! A store that hangs until memory, the spool and the master's backlog are full takes no server out of service: it lives,
//! and holds the head, whatever will be missing in the archive (decision 29). And a server that a person makes a master
//! while the store hangs is looked at anew when it goes on.

use std::time::Duration;

use crate::harness::random::Random;
use crate::harness::{
    BornAsReplica, Client, ClientLink, DEADLINE, Perennial, REDIS_7_0, Server, holds_for, until,
};
use crate::observed::Pages;
use crate::outages::{Place, RECOVERY, Way};

/// What the master keeps for who comes back.
const BACKLOG: &str = "256kb";
/// More than memory and spool have room for, bytes.
const TOO_MUCH: u64 = 48 * 1024 * 1024;
/// Bytes of a value, and values written before each look.
const VALUE_BYTES: usize = 16 * 1024;
const VALUES: usize = 64;

#[test]
fn a_master_stays_ready_while_the_store_hangs_and_its_backlog_overruns() {
    let Some(server) = REDIS_7_0.start(&["--repl-backlog-size", BACKLOG]) else {
        return;
    };
    let place = Place::s3();
    let spool = tempfile::tempdir().unwrap();
    let (mut perennial, pages) = follow_with_little_room(&server, &place, spool.path());
    let full_syncs = server.info_number("stats", "sync_full");

    place.breaks(Way::Hangs);
    // Asleep, so that the master is far ahead at the moment when the link is closed.
    perennial.pause();
    fill_until_the_master_waits(&server);
    perennial.resume();
    let ready = || {
        let (ready, body) = pages.ready().unwrap();
        assert!(ready, "{body} {}", perennial.log());
    };
    until("the link is closed for want of room", DEADLINE, || {
        ready();
        pages.metrics()["perennial_links_closed_full_total"] == 1.0
    });
    let received = pages.metrics()["perennial_received_offset"];
    until("the backlog lacks what comes next", DEADLINE, || {
        ready();
        server.client().line("SET more 1");
        let first = server.info_number("replication", "repl_backlog_first_byte_offset");
        first as f64 > received + 1.0
    });
    // It was looked at again meanwhile, and waits for what was received to be stored.
    holds_for("it is ready", Duration::from_secs(3), || {
        ready();
        true
    });

    place.heals(Way::Hangs);
    until("the gap is behind it", RECOVERY, || {
        let metrics = pages.metrics();
        metrics["perennial_gaps_total"] == 1.0
            && metrics[r#"perennial_snapshots_total{result="done"}"#] == 2.0
    });
    // Looked at and found to be too far: nobody asked the master for what it no longer had. The link and the snapshot.
    assert_eq!(server.info_number("stats", "sync_full"), full_syncs + 2);
    server.client().wait_until_stored(DEADLINE);
    ready();
    perennial.assert_healthy();
}

/// As docs/operations.md says, where the bucket is down and Redis must start now.
#[test]
fn a_server_that_is_promoted_by_hand_while_the_store_hangs_is_looked_at_anew() {
    let place = Place::s3();
    let Some(mut born) = BornAsReplica::start(REDIS_7_0, place.archive()) else {
        return;
    };
    born.follow_with(place.archive(), &["--http", "127.0.0.1:0"]);
    let pages = Pages::of(&born.perennial);
    pages.until_ready();
    born.server.client().line("SET before 1");
    born.server.client().wait_until_stored(DEADLINE);

    place.breaks(Way::Hangs);
    born.server.client().line("SET on-its-way 1");
    until("it is received", DEADLINE, || {
        pages.metrics()["perennial_durable_lag_bytes"] > 0.0
    });
    born.server.kill();
    born.server.remove_dump();
    born.server.start_again();
    pages.until_not_ready("after what was received from it is stored");
    assert!(!born.server.is_master());
    born.server.client().line("REPLICAOF NO ONE");
    born.server.client().line("SET by-hand 1");

    place.heals(Way::Hangs);
    pages.until_not_ready("suspect");
    assert_eq!(born.server.client().line("GET by-hand").text(), "1");
    let folder = place.archive().restore("head", &[]);
    let restored = REDIS_7_0.start_on(&folder).unwrap();
    let mut restored = Client::connect_loaded(&restored.address());
    assert_eq!(restored.line("GET on-its-way").text(), "1");
    born.perennial.assert_healthy();
}

fn follow_with_little_room(
    server: &Server,
    place: &Place,
    spool: &std::path::Path,
) -> (Perennial, Pages) {
    let flags = [
        "--http",
        "127.0.0.1:0",
        "--buffer-bytes",
        "24MiB",
        "--spool-bytes",
        "16MiB",
        "--spool-dir",
        spool.to_str().unwrap(),
    ];
    let perennial = Perennial::follow(server, place.archive(), &flags);
    let pages = Pages::of(&perennial);
    pages.until_ready();
    server.client().wait_until_stored(DEADLINE);
    (perennial, pages)
}

/// Writes until the master holds more for us than finds room.
#[track_caller]
fn fill_until_the_master_waits(server: &Server) {
    let mut client = server.client();
    let mut random = Random::fixed(29);
    let mut count = 0;
    until("the master holds what nobody takes", 2 * DEADLINE, || {
        let commands: Vec<Vec<Vec<u8>>> = (0..VALUES)
            .map(|at| {
                let key = format!("fill:{}", count + at).into_bytes();
                vec![b"SET".to_vec(), key, random.bytes(VALUE_BYTES)]
            })
            .collect();
        count += VALUES;
        client.pipeline(&commands).unwrap();
        let links = ClientLink::of_replicas(server);
        links.iter().any(|link| link.output_bytes > TOO_MUCH)
    });
    eprintln!("{} MiB were written", (count * VALUE_BYTES) >> 20);
}
