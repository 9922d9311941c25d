//! `WAIT` counts us only when the write is in the store; a store that refuses neither loses nor stalls anything.
//!
//! The store refuses for real (its folder is moved away and a plain file stands in its place), or obeys a test
//! that runs the loop in its own process.

use std::fs;
use std::time::{Duration, Instant};

use perennial::store::faulty::{Fault, Faults, Operation};

use crate::harness::workload::write_everything;
use crate::harness::{
    Archive, DEADLINE, Digest, InProcess, Perennial, REDIS_7_0, Server, Value, assert_same, until,
};

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
    confirmed_writes_survive_in(&Archive::new());
}

/// The same wherever the archive lies.
pub fn confirmed_writes_survive_in(archive: &Archive) {
    let Some(mut server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let mut perennial = Perennial::follow(&server, archive, &[]);
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

#[test]
fn a_slow_store_makes_wait_slow() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let faults = Faults::new();
    let perennial = InProcess::follow(&server, &archive, &faults);
    archive.until_durable();
    assert_eq!(write_and_wait(&server, "before", DEADLINE), 1);
    faults.delay_all(300);
    for number in 0..3 {
        let began = Instant::now();
        assert_eq!(
            write_and_wait(&server, &format!("slow:{number}"), DEADLINE),
            1
        );
        assert!(
            began.elapsed() >= Duration::from_millis(300),
            "{:?}",
            began.elapsed()
        );
    }
    faults.clear();
    perennial.stop().unwrap();
}

#[test]
fn nothing_is_acknowledged_before_the_first_snapshot_is_complete() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    write_everything(&mut server.client(), 0);
    let archive = Archive::new();
    let faults = Faults::new();
    // Segments are stored, the snapshot never completes: each attempt fails where its name would appear.
    for n in 1..=1000 {
        faults.at_kind(Operation::Complete, n, Fault::Refuse);
    }
    let perennial = InProcess::follow(&server, &archive, &faults);
    until("segments are stored", DEADLINE, || {
        server.client().line("SET noise 1");
        archive.try_status().is_ok_and(|status| {
            status
                .timelines
                .iter()
                .any(|timeline| timeline.segments > 0)
        })
    });
    let mut client = server.client();
    client.line("SET unsafe 1");
    assert_eq!(
        client.line("WAIT 1 1500").integer(),
        0,
        "confirmed without a snapshot"
    );
    let info = server.info("replication");
    let replica = &info["slave0"];
    assert!(replica.contains("offset=0,"), "{replica}");
    assert_eq!(archive.status().durable_offset, None);
    faults.clear();
    assert_eq!(
        client.line("WAIT 1 30000").integer(),
        1,
        "confirmed once it is complete"
    );
    assert!(archive.status().durable_offset.is_some());
    drop(perennial);
}

/// The whole loop once for every operation of the store, which then goes wrong in one way.
fn each_operation_goes_wrong(way: Fault) {
    let Some(clean) = loop_with(None) else {
        return;
    };
    assert!(clean >= 8, "a run takes {clean} operations");
    for n in 1..=clean {
        loop_with(Some((n, way)));
    }
}

#[test]
fn whatever_operation_is_refused_nothing_confirmed_is_lost() {
    each_operation_goes_wrong(Fault::Refuse);
}

#[test]
fn whatever_operation_is_cut_short_nothing_confirmed_is_lost() {
    each_operation_goes_wrong(Fault::CutShort);
}

#[test]
fn whatever_operation_is_done_but_reported_failed_nothing_confirmed_is_lost() {
    each_operation_goes_wrong(Fault::DoneButReportedFailed);
}

#[test]
fn whatever_operation_is_slow_nothing_confirmed_is_lost() {
    each_operation_goes_wrong(Fault::Delay(200));
}

/// Follow, write and wait, lose both, come back. Returns the number of store operations up to the loss.
fn loop_with(fault: Option<(u64, Fault)>) -> Option<u64> {
    let mut server = REDIS_7_0.start(&[])?;
    server.client().line("SET before 1");
    let archive = Archive::new();
    let faults = Faults::new();
    if let Some((n, way)) = fault {
        faults.at(n, way);
    }
    let perennial = InProcess::follow(&server, &archive, &faults);
    for number in 0..3 {
        let key = format!("key:{number}");
        let confirmed = write_and_wait(&server, &key, DEADLINE);
        assert_eq!(confirmed, 1, "{key} with {fault:?}");
    }
    let operations = faults.operations();
    server.kill();
    server.start_again();
    // The same Perennial seeds it, whatever failed.
    until(
        &format!("everything is back with {fault:?}"),
        DEADLINE,
        || {
            server.is_master()
                && server
                    .client()
                    .command(&["GET", "key:2"])
                    .is_ok_and(|value| value == Value::Bulk(b"1".to_vec()))
        },
    );
    for key in ["before", "key:0", "key:1"] {
        assert_eq!(
            server.client().line(&format!("GET {key}")).text(),
            "1",
            "{fault:?}"
        );
    }
    faults.clear();
    assert_eq!(write_and_wait(&server, "after", DEADLINE), 1, "{fault:?}");
    server.kill();
    perennial.stop().unwrap();
    Some(operations)
}
