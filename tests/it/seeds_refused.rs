//! Seeds that must not come about, or must not be taken for whole; and stopping while something hangs.

use std::fs;
use std::time::Duration;

use crate::harness::{
    Archive, DEADLINE, Kind, Perennial, Port, REDIS_7_0, Server, Value, holds_for, until,
};
use crate::on_every_server;

on_every_server! {
    a_server_that_cannot_apply_everything_is_never_promoted,
    a_stranger_at_the_seed_address_keeps_its_data,
    a_stranger_that_names_the_same_port_keeps_its_data,
}

// Before 7.0 a dump says nothing of its past to a master that loads it.
on_every_server! {
    since 7.0;
    a_dump_from_before_the_first_snapshot_is_seeded,
}

#[track_caller]
fn until_there(server: &Server, key: &str) {
    until(&format!("{key} is back on a master"), DEADLINE, || {
        server.is_master()
            && server
                .client()
                .command(&["GET", key])
                .is_ok_and(|value| value == Value::Bulk(b"1".to_vec()))
    });
}

/// A server that lacks a command of the archive applies the rest and says nothing: it must not become a master,
/// neither at once nor at the next look.
fn a_server_that_cannot_apply_everything_is_never_promoted(kind: Kind) {
    let Some(mut first) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&first, &archive, &[]);
    let mut client = first.client();
    client.line("RPUSH list a b c");
    client.wait_until_stored(DEADLINE);
    perennial.kill();
    first.kill();

    let Some(lacking) = kind.start(&["--rename-command", "RPUSH", ""]) else {
        return;
    };
    let mut perennial = Perennial::follow_url(&lacking.url(), &archive, &[]);
    perennial.until_logged("seed failed");
    holds_for("it stays a replica", Duration::from_secs(4), || {
        !lacking.is_master()
    });
    assert_eq!(archive.status().timelines.len(), 1);
    perennial.assert_healthy();
}

/// A dump of the same history from before the archive began: nothing of it is missing in the archive.
fn a_dump_from_before_the_first_snapshot_is_seeded(kind: Kind) {
    let Some((mut server, _early)) = with_an_early_dump(|| kind.start(&[])) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    server.client().line("SET late 1");
    server.client().wait_until_stored(DEADLINE);
    server.kill();
    server.start_again();
    until_there(&server, "late");
    perennial.assert_healthy();
}

/// A server whose dump names a history at an offset before this archive's first snapshot.
fn with_an_early_dump(start: impl Fn() -> Option<Server>) -> Option<(Server, Archive)> {
    let server = start()?;
    let early = Archive::new();
    let mut perennial = Perennial::follow(&server, &early, &[]);
    let mut client = server.client();
    client.line("SET early 1");
    client.wait_until_stored(DEADLINE);
    client.save();
    perennial.kill();
    client.line("SET middle 1");
    Some((server, early))
}

/// Two servers name the same seed address. One is filled; the other has data of its own, which stay.
fn a_stranger_at_the_seed_address_keeps_its_data(kind: Kind) {
    let (Some(mut server), Some(stranger)) = (kind.start(&[]), kind.start(&[])) else {
        return;
    };
    let seed = Port::reserve();
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &["--seed-listen", &seed.address()]);
    server.client().line("SET ours 1");
    server.client().wait_until_stored(DEADLINE);
    stranger.client().line("SET theirs 1");
    stranger
        .client()
        .line(&format!("REPLICAOF 127.0.0.1 {}", seed.number));
    for _ in 0..3 {
        server.lose_everything();
        until_there(&server, "ours");
        assert_eq!(stranger.client().line("GET theirs").text(), "1");
    }
    assert_eq!(stranger.keys(), Some(1));
    perennial.assert_healthy();
}

/// Two servers on two machines listen on the same port, and both name the seed address. While one is filled, and while
/// what went wrong is taken back, the other keeps its data.
fn a_stranger_that_names_the_same_port_keeps_its_data(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let announced = ["--replica-announce-port", &server.port().to_string()];
    let Some(stranger) = kind.start(&announced) else {
        return;
    };
    let seed = Port::reserve();
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &["--seed-listen", &seed.address()]);
    server.client().line("SET ours 1");
    server.client().line("RPUSH list a b c");
    server.client().wait_until_stored(DEADLINE);
    stranger.client().line("SET theirs 1");
    stranger
        .client()
        .line(&format!("REPLICAOF 127.0.0.1 {}", seed.number));
    for _ in 0..3 {
        server.lose_everything();
        until_there(&server, "ours");
        assert_eq!(stranger.client().line("GET theirs").text(), "1");
    }
    perennial.kill();
    server.kill();

    let own_port = ["--rename-command", "RPUSH", ""];
    let Some(lacking) = kind.start(&own_port) else {
        return;
    };
    stranger.client().line(&format!(
        "CONFIG SET replica-announce-port {}",
        lacking.port()
    ));
    let lame = Perennial::run(&[
        "--redis",
        &lacking.url(),
        "--archive",
        &archive.url(),
        "--seed-listen",
        &seed.address(),
    ]);
    lame.until_logged("seed failed");
    holds_for(
        "the stranger keeps its data",
        Duration::from_secs(4),
        || stranger.client().line("GET theirs").text() == "1",
    );
    assert_eq!(stranger.keys(), Some(1));
    assert!(
        !lame.log().contains("could not be emptied"),
        "{}",
        lame.log()
    );
}

/// With the store away nothing can be stored: the end comes in time all the same, and says what is missing.
#[test]
fn stopping_without_a_store_ends_in_time_and_says_so() {
    let Some(mut server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &["--shutdown-timeout", "2s"]);
    server.client().line("SET before 1");
    server.client().wait_until_stored(DEADLINE);
    fs::rename(archive.path(), archive.beside("away")).unwrap();
    fs::write(archive.path(), "not a folder").unwrap();
    server.client().line("SET unstored 1");
    perennial.until_logged("still trying");
    server.kill();
    perennial.terminate();
    assert_eq!(perennial.wait(DEADLINE).code(), Some(1));
    assert!(
        perennial.log().contains("not stored"),
        "{}",
        perennial.log()
    );
}
