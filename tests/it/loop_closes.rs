//! The promise: a master that dies and comes up empty on the same port has everything back that was stored.

use std::time::Duration;

use crate::harness::Way::Down;
use crate::harness::workload::{write_at_random, write_everything};
use crate::harness::{
    Archive, BornAsReplica, DEADLINE, Digest, Kind, Load, Perennial, Port, Proxy, Server, Trap,
    Writers, assert_same, holds_for, random::Random, run_cli_with, until,
};
use crate::on_every_server;

on_every_server! {
    an_empty_master_gets_everything_back_and_history_goes_on,
    a_master_that_was_empty_from_the_start_gets_its_first_writes_back,
    perennial_may_be_gone_meanwhile,
    born_as_a_replica_the_exact_data_set_is_back,
    born_as_a_replica_clients_that_never_stop_lose_nothing_confirmed,
    clients_that_never_stop_cannot_replace_the_head,
    a_write_to_the_empty_server_makes_a_suspect_root_and_the_old_head_stays,
    a_write_before_perennial_starts_makes_a_suspect_root_as_well,
    an_accepted_suspect_is_the_head,
    start_over_makes_a_suspect_the_head,
    seed_never_leaves_an_empty_server_alone,
    an_orderly_shutdown_of_the_master_loses_nothing,
    both_stop_at_once_and_nothing_is_lost,
    a_seed_outlasts_the_timeout_of_the_servers_idle_clients,
}

// Before 7.0 a dump says nothing of its past to a master that loads it: see older_masters.
on_every_server! {
    since 7.0;
    the_dump_that_a_seed_leaves_behind_is_recognised_as_stale,
}

/// Everything that is written gets stored; the digest of it.
#[track_caller]
fn stored_digest(server: &Server) -> Digest {
    server.client().wait_until_stored(DEADLINE);
    Digest::of(&server.address())
}

fn an_empty_master_gets_everything_back_and_history_goes_on(kind: Kind) {
    everything_comes_back_from(kind, &Archive::new());
}

/// The same wherever the archive lies.
pub fn everything_comes_back_from(kind: Kind, archive: &Archive) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    write_everything(&mut server.client(), 0);
    let mut perennial = Perennial::follow(&server, archive, &[]);
    let mut random = Random::new();
    for generation in 1..=3 {
        let mut client = server.client();
        write_everything(&mut client, generation);
        write_at_random(&mut client, &mut random, 500);
        let before = stored_digest(&server);
        server.lose_everything();
        server.until_master_with_data();
        assert_same(&before, &Digest::of(&server.address()));
        archive.until("the child timeline is there", DEADLINE, |status| {
            status.timelines.len() as u64 == generation + 1
        });
    }
    server.client().wait_until_stored(DEADLINE);
    archive.status().assert_chain_of(4);
    perennial.assert_healthy();
}

fn the_dump_that_a_seed_leaves_behind_is_recognised_as_stale(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    write_everything(&mut server.client(), 0);
    let _perennial = Perennial::follow(&server, &archive, &[]);
    server.lose_everything();
    server.until_master_with_data();
    server.client().wait_until_stored(DEADLINE);
    write_everything(&mut server.client(), 1);
    let before = stored_digest(&server);
    assert!(
        server.folder().join("dump.rdb").exists(),
        "the seed was loaded from disk"
    );
    server.kill();
    server.start_again();
    // It comes up with the data of the seed: older than the archive, and nothing written since.
    archive.until("it was seeded again", DEADLINE, |status| {
        // A timeline that stands for a rewritten seed is there before the seed.
        status.timelines.len() == 3 && !status.timelines[2].mapped
    });
    assert_same(&before, &Digest::of(&server.address()));
    archive.status().assert_chain_of(3);
}

fn a_master_that_was_empty_from_the_start_gets_its_first_writes_back(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &[]);
    server.client().line("SET first 1");
    let before = stored_digest(&server);
    server.lose_everything();
    server.until_master_with_data();
    assert_same(&before, &Digest::of(&server.address()));
}

fn perennial_may_be_gone_meanwhile(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    write_everything(&mut server.client(), 0);
    let before = stored_digest(&server);
    perennial.kill();
    server.lose_everything();
    assert_eq!(server.keys(), Some(0));
    perennial.start_again();
    server.until_master_with_data();
    assert_same(&before, &Digest::of(&server.address()));
    server.client().wait_until_stored(DEADLINE);
    archive.status().assert_chain_of(2);
}

fn born_as_a_replica_the_exact_data_set_is_back(kind: Kind) {
    born_as_a_replica_all_is_back_from(kind, &Archive::new());
}

/// The same wherever the archive lies.
pub fn born_as_a_replica_all_is_back_from(kind: Kind, archive: &Archive) {
    let Some(mut born) = BornAsReplica::start(kind, archive) else {
        return;
    };
    let server = &mut born.server;
    let writers = Writers::start(&server.address(), Load::default());
    for generation in 1..=2 {
        write_everything(&mut server.client(), generation);
        writers.until_confirmed_more(100);
        writers.pause();
        let before = stored_digest(server);
        server.lose_everything();
        server.until_master_with_data();
        assert_same(&before, &Digest::of(&server.address()));
        writers.resume();
        writers.until_confirmed_more(100);
    }
    let ledger = writers.stop();
    ledger.assert_all_in(&server.address());
    archive.status().assert_chain_of(3);
    born.perennial.assert_healthy();
}

fn born_as_a_replica_clients_that_never_stop_lose_nothing_confirmed(kind: Kind) {
    let archive = Archive::new();
    let Some(mut born) = BornAsReplica::start(kind, &archive) else {
        return;
    };
    let server = &mut born.server;
    let writers = Writers::start(&server.address(), Load::default());
    for _ in 0..5 {
        writers.until_confirmed_more(100);
        server.lose_everything();
        until("it is a master again", DEADLINE, || server.is_master());
        writers.ledger().assert_all_in(&server.address());
    }
    writers.until_confirmed_more(100);
    writers.stop().assert_all_in(&server.address());
    archive.status().assert_chain_of(6);
    born.perennial.assert_healthy();
}

/// Not born as a replica, the server may take a write of a busy client before anybody sees it empty. Whatever
/// happens, what was confirmed before the kill is what a later seed brings back.
fn clients_that_never_stop_cannot_replace_the_head(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    let writers = Writers::start(&server.address(), Load::default());
    writers.until_confirmed_more(100);
    let confirmed = writers.ledger();
    server.lose_everything();
    writers.until_acknowledged_more(100);
    archive.until("the new start is recorded", DEADLINE, |status| {
        status.timelines.len() == 2
    });
    let _ = writers.stop();
    server.lose_everything();
    server.until_master_with_data();
    confirmed.assert_all_in(&server.address());
    perennial.assert_healthy();
}

/// The write before we look, forced: Perennial is stopped while the empty server takes it.
fn a_write_to_the_empty_server_makes_a_suspect_root_and_the_old_head_stays(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    write_everything(&mut server.client(), 0);
    let before = stored_digest(&server);
    perennial.pause();
    server.lose_everything();
    server.client().line("SET intruder 1");
    perennial.resume();
    a_suspect_then_the_old_head(&mut server, &archive, &before);
    perennial.assert_healthy();
}

fn a_write_before_perennial_starts_makes_a_suspect_root_as_well(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    write_everything(&mut server.client(), 0);
    let before = stored_digest(&server);
    perennial.kill();
    server.lose_everything();
    server.client().line("SET intruder 1");
    perennial.start_again();
    a_suspect_then_the_old_head(&mut server, &archive, &before);
    perennial.assert_healthy();
}

/// WAIT must not say that a write is safe which no seed would bring back.
#[track_caller]
fn not_acknowledged_but_stored(server: &Server, archive: &Archive) {
    let mut client = server.client();
    client.line("SET intruder 2");
    assert_eq!(
        client.line("WAIT 1 1500").integer(),
        0,
        "acknowledged on a suspect timeline"
    );
    let offset = server.info_number("replication", "master_repl_offset");
    archive.until(
        "the suspect's writes are stored all the same",
        DEADLINE,
        |status| {
            // A PING may have come since; it waits for company.
            status
                .timelines
                .last()
                .and_then(|timeline| timeline.end)
                .is_some_and(|end| end + 100 > offset)
        },
    );
}

#[track_caller]
fn a_suspect_then_the_old_head(server: &mut Server, archive: &Archive, before: &Digest) {
    let status = archive.until("the suspect root is durable", DEADLINE, |status| {
        status.suspects() == [2] && status.timelines[1].end.is_some()
    });
    assert_eq!(status.head_timeline(), 1);
    assert!(status.timelines[1].parent.is_none());
    // Its own data were left alone, and it is archived like any other.
    assert_eq!(server.keys(), Some(1));
    not_acknowledged_but_stored(server, archive);
    assert_eq!(archive.status().head_timeline(), 1);

    server.lose_everything();
    server.until_master_with_data();
    assert_same(before, &Digest::of(&server.address()));
    let status = archive.until("the old head has a child", DEADLINE, |status| {
        status.head.is_some_and(|head| head.timeline == 3)
    });
    assert_eq!(status.timelines[2].parent.unwrap().timeline, 1);
    assert_eq!(status.suspects(), [2]);
}

fn an_accepted_suspect_is_the_head(kind: Kind) {
    a_suspect_is_accepted_in(kind, &Archive::new());
}

/// The same wherever the archive lies.
pub fn a_suspect_is_accepted_in(kind: Kind, archive: &Archive) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let mut perennial = Perennial::follow(&server, archive, &[]);
    server.client().line("SET old 1");
    server.client().wait_until_stored(DEADLINE);
    perennial.kill();
    server.lose_everything();
    server.client().line("SET new 1");
    perennial.start_again();
    archive.until("the suspect root is durable", DEADLINE, |status| {
        status.suspects() == [2] && status.timelines[1].end.is_some()
    });
    not_acknowledged_but_stored(&server, archive);
    let accept = ["accept", "--archive", &archive.url(), "2"];
    let (code, _, err) = run_cli_with(&accept, &archive.environment());
    assert_eq!(code, 0, "{err}");
    // Perennial notices, and acknowledges from then on.
    let before = stored_digest(&server);
    let status = archive.status();
    assert_eq!(status.head_timeline(), 2);
    assert!(status.timelines[1].accepted);

    server.lose_everything();
    server.until_master_with_data();
    assert_same(&before, &Digest::of(&server.address()));
}

/// The break-glass also for a server that was followed as suspect before.
fn start_over_makes_a_suspect_the_head(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    server.client().line("SET old 1");
    server.client().wait_until_stored(DEADLINE);
    perennial.kill();
    server.lose_everything();
    server.client().line("SET new 1");
    perennial.start_again();
    archive.until("the suspect root is restorable", DEADLINE, |status| {
        status.suspects() == [2] && status.timelines[1].end.is_some()
    });
    perennial.kill();
    let _over = Perennial::follow(&server, &archive, &["--seed", "start-over"]);
    server.client().wait_until_stored(DEADLINE);
    assert_eq!(archive.status().head_timeline(), 2);
    assert!(archive.status().suspects().is_empty());
}

fn seed_never_leaves_an_empty_server_alone(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &["--seed", "never"]);
    server.client().line("SET kept 1");
    server.client().wait_until_stored(DEADLINE);
    server.lose_everything();
    holds_for("empty and a master", Duration::from_secs(3), || {
        server.is_master() && server.keys() == Some(0)
    });
    assert_eq!(archive.status().timelines.len(), 1);
    perennial.assert_healthy();
}

fn an_orderly_shutdown_of_the_master_loses_nothing(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &[]);
    write_everything(&mut server.client(), 0);
    // No WAIT: the shutdown itself waits for the acknowledgement.
    let before = Digest::of(&server.address());
    let took = server.terminate();
    assert!(took < Duration::from_secs(8), "the stop took {took:?}");
    server.start_again();
    server.until_master_with_data();
    assert_same(&before, &Digest::of(&server.address()));
}

fn both_stop_at_once_and_nothing_is_lost(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    write_everything(&mut server.client(), 0);
    let before = Digest::of(&server.address());
    // As a pod with a classic sidecar is stopped: the signal comes to both.
    perennial.terminate();
    server.terminate();
    assert_eq!(perennial.wait(DEADLINE).code(), Some(0));
    server.start_again();
    perennial.start_again();
    server.until_master_with_data();
    assert_same(&before, &Digest::of(&server.address()));
}

/// A server closes the connections of clients that say nothing for its `timeout`; ours is not one of them.
fn a_seed_outlasts_the_timeout_of_the_servers_idle_clients(kind: Kind) {
    let Some(mut server) = kind.start(&["--timeout", "1"]) else {
        return;
    };
    let (archive, seeder) = (Archive::new(), Port::reserve());
    let proxy = Proxy::to(&seeder.address());
    let flags = [
        "--seed-listen",
        &seeder.address(),
        "--seed-announce",
        &proxy.address(),
    ];
    let mut perennial = Perennial::follow(&server, &archive, &flags);
    write_everything(&mut server.client(), 0);
    let before = stored_digest(&server);
    let payload = [Down.text("+FULLRESYNC"), Down.lines(1), Down.payload(10)];
    let trap = proxy.arm(Trap::behind(payload));
    server.lose_everything();
    proxy.until_caught();
    holds_for("it waits for the rest", Duration::from_secs(4), || {
        !server.is_master()
    });
    proxy.let_go(trap);
    server.until_master_with_data();
    assert_same(&before, &Digest::of(&server.address()));
    assert!(!perennial.log().contains("seed failed"));
    perennial.assert_healthy();
}
