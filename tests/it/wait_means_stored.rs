//! `WAIT` counts us only when the write is in the store; a store that refuses neither loses nor stalls anything.
//!
//! The store refuses for real: its folder is moved away and a plain file stands in its place.

use std::fs;
use std::time::Duration;

use crate::harness::workload::write_everything;
use crate::harness::{Archive, DEADLINE, Digest, Perennial, REDIS_7_0, Server, assert_same, until};

fn take_the_store_away(archive: &Archive) {
    fs::rename(archive.path(), archive.beside("away")).unwrap();
    fs::write(archive.path(), "not a folder").unwrap();
}

fn bring_the_store_back(archive: &Archive) {
    fs::remove_file(archive.path()).unwrap();
    fs::rename(archive.beside("away"), archive.path()).unwrap();
}

/// The answer of WAIT to a write of its own.
fn write_and_wait(server: &Server, key: &str, timeout: Duration) -> i64 {
    let mut client = server.client();
    client.ok(&["SET", key, "1"]);
    let milliseconds = timeout.as_millis().to_string();
    client.ok(&["WAIT", "1", &milliseconds]).integer()
}

#[test]
fn a_confirmed_write_survives_the_loss_of_both() {
    let Some(mut server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    for number in 0..20 {
        let key = format!("confirmed:{number}");
        assert_eq!(write_and_wait(&server, &key, DEADLINE), 1);
        if number % 5 == 4 {
            // Both at once, in the very moment in which the client has its answer.
            server.kill();
            perennial.kill();
            server.start_again();
            perennial.start_again();
            server.until_master_with_data();
            assert_eq!(server.client().line(&format!("GET {key}")).text(), "1");
        }
    }
}

#[test]
fn a_store_that_refuses_confirms_nothing_and_stalls_nobody() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    assert_eq!(write_and_wait(&server, "before", DEADLINE), 1);
    take_the_store_away(&archive);
    assert_eq!(
        write_and_wait(&server, "during", Duration::from_secs(2)),
        0,
        "confirmed without a store"
    );
    // The master goes on, and we are still there.
    write_everything(&mut server.client(), 0);
    assert_eq!(server.info_number("replication", "connected_slaves"), 1);
    assert!(perennial.exited().is_none(), "{}", perennial.log());
    bring_the_store_back(&archive);
    assert_eq!(write_and_wait(&server, "after", DEADLINE), 1);
    perennial.assert_healthy();
}

#[test]
fn what_was_written_without_a_store_is_stored_when_it_is_back() {
    let Some(mut server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &[]);
    take_the_store_away(&archive);
    write_everything(&mut server.client(), 0);
    bring_the_store_back(&archive);
    server.client().wait_until_stored(DEADLINE);
    let before = Digest::of(&server.address());
    server.kill();
    server.start_again();
    server.until_master_with_data();
    assert_same(&before, &Digest::of(&server.address()));
}

#[test]
fn ack_received_confirms_without_a_store() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &["--ack", "received"]);
    take_the_store_away(&archive);
    assert_eq!(write_and_wait(&server, "received", DEADLINE), 1);
    bring_the_store_back(&archive);
    until("it is stored after all", DEADLINE, || {
        archive.try_status().is_ok_and(|status| {
            let offset = server.info_number("replication", "master_repl_offset");
            // A PING may have come since; it waits for company.
            status
                .durable_offset
                .is_some_and(|durable| durable + 1000 > offset)
        })
    });
    perennial.assert_healthy();
}
