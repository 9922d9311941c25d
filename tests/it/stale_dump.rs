//! A server that comes back from an older dump on its disk gets the writes that came after it.

use std::time::Duration;

use crate::harness::workload::write_everything;
use crate::harness::{
    Archive, Client, DEADLINE, Digest, Kind, Perennial, Server, Value, assert_same, holds_for,
    run_cli, until,
};
use crate::on_every_server;

on_every_server! {
    a_write_on_the_stale_server_makes_it_suspect,
}

// Before 7.0 a dump says nothing of its past to a master that loads it: see older_masters.
on_every_server! {
    since 7.0;
    the_writes_after_the_dump_are_back,
    the_writes_after_the_dump_are_back_when_perennial_was_gone_too,
    writes_that_were_saved_and_counts_that_were_set_back_are_no_seed,
    an_acceptance_from_before_does_not_cure_a_later_suspicion,
}

/// Early data, a SAVE, later data that are stored, and `kill -9`. Returns what must be there afterwards.
#[track_caller]
fn save_write_on_and_die(server: &mut Server) -> Digest {
    let mut client = server.client();
    write_everything(&mut client, 0);
    client.save();
    write_everything(&mut client, 1);
    client.line("SET late 1");
    client.wait_until_stored(DEADLINE);
    let digest = Digest::of(&server.address());
    server.kill();
    assert!(server.folder().join("dump.rdb").exists());
    digest
}

#[track_caller]
fn until_the_late_write_is_back(server: &Server) {
    until("the late write is back on a master", DEADLINE, || {
        let mut client = server.client();
        server.is_master()
            && client
                .command(&["GET", "late"])
                .is_ok_and(|value| value == Value::Bulk(b"1".to_vec()))
    });
}

fn the_writes_after_the_dump_are_back(kind: Kind) {
    what_came_after_the_dump_is_back_in(kind, &Archive::new());
}

/// The same wherever the archive lies.
pub fn what_came_after_the_dump_is_back_in(kind: Kind, archive: &Archive) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let mut perennial = Perennial::follow(&server, archive, &[]);
    let before = save_write_on_and_die(&mut server);
    server.start_again();
    until_the_late_write_is_back(&server);
    assert_same(&before, &Digest::of(&server.address()));
    server.client().wait_until_stored(DEADLINE);
    archive.status().assert_chain_of(2);
    perennial.assert_healthy();
}

fn the_writes_after_the_dump_are_back_when_perennial_was_gone_too(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    let before = save_write_on_and_die(&mut server);
    perennial.kill();
    server.start_again();
    perennial.start_again();
    until_the_late_write_is_back(&server);
    assert_same(&before, &Digest::of(&server.address()));
}

/// It cannot be told apart from a server that lives on elsewhere: archived, not chosen.
fn a_write_on_the_stale_server_makes_it_suspect(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    let before = save_write_on_and_die(&mut server);
    perennial.pause();
    server.start_again();
    Client::connect_loaded(&server.address()).line("SET intruder 1");
    perennial.resume();
    let status = archive.until("the suspect root is durable", DEADLINE, |status| {
        status.suspects() == [2] && status.timelines[1].end.is_some()
    });
    assert_eq!(status.head_timeline(), 1);
    assert_eq!(server.client().line("GET intruder").text(), "1");

    server.kill();
    std::fs::remove_file(server.folder().join("dump.rdb")).unwrap();
    server.start_again();
    until_the_late_write_is_back(&server);
    assert_same(&before, &Digest::of(&server.address()));
}

/// CONFIG RESETSTAT sets back how often the server saved: what was written and saved stays all the same.
fn writes_that_were_saved_and_counts_that_were_set_back_are_no_seed(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    save_write_on_and_die(&mut server);
    perennial.kill();
    server.start_again();
    // INFO counts in seconds.
    until("the start lies some seconds back", DEADLINE, || {
        server.info_number("server", "uptime_in_seconds") >= 3
    });
    let mut client = server.client();
    client.line("SET intruder 1");
    client.save();
    client.line("CONFIG RESETSTAT");
    assert_eq!(server.info_number("persistence", "rdb_saves"), 0);
    perennial.start_again();
    archive.until("the suspect timeline is durable", DEADLINE, |status| {
        status.suspects() == [2] && status.timelines[1].end.is_some()
    });
    assert_eq!(client.line("GET intruder").text(), "1");
}

/// A person once accepted what the stale server goes back to. That says nothing of what it takes now, not even to a Perennial
/// that starts beside it.
fn an_acceptance_from_before_does_not_cure_a_later_suspicion(kind: Kind) {
    let Some(foreign) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut first = Perennial::follow(&foreign, &archive, &[]);
    archive.until_durable();
    first.kill();
    let mut server = kind.start(&[]).unwrap();
    server.client().line("SET own 1");
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    archive.until("the suspect root is durable", DEADLINE, |status| {
        status.suspects() == [2] && status.timelines[1].end.is_some()
    });
    let (code, _, err) = run_cli(&["accept", "2", "--archive", &archive.url()]);
    assert_eq!(code, 0, "{err}");
    let before = save_write_on_and_die(&mut server);

    perennial.pause();
    server.start_again();
    Client::connect_loaded(&server.address()).line("SET intruder 1");
    perennial.resume();
    archive.until("it is suspect", DEADLINE, |status| {
        status.suspects() == [3] && status.timelines[2].end.is_some()
    });
    perennial.kill();
    perennial.start_again();
    perennial.until_logged("resumed from the archive");
    let mut client = server.client();
    // It looks for an acceptance every five seconds, or sooner.
    holds_for("nothing is acknowledged", Duration::from_secs(7), || {
        client.line("SET later 1");
        client.line("WAIT 1 200").integer() == 0
    });
    assert_eq!(archive.status().head_timeline(), 2);

    server.lose_everything();
    until_the_late_write_is_back(&server);
    assert_same(&before, &Digest::of(&server.address()));
}
