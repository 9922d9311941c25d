//! `WAIT` counts us only when the write is in the store; a store that refuses neither loses nor stalls anything.
//!
//! The store refuses for real (its folder is moved away and a plain file stands in its place), or obeys a test
//! that runs the loop in its own process.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use perennial::archive::plan::{Target, plan};
use perennial::restore::to_dir::{Options, restore};
use perennial::store::Store;
use perennial::store::catalog;
use perennial::store::faulty::{Fault, Faults, FaultyStore, Operation};
use perennial::store::fs::FsStore;

use crate::harness::workload::write_everything;
use crate::harness::{
    Archive, DEADLINE, Digest, InProcess, Kind, Perennial, Server, Value, assert_same, until,
};
use crate::on_every_server;

on_every_server! {
    a_confirmed_write_survives_the_loss_of_both,
    what_was_written_without_a_store_is_stored_when_it_is_back,
    ack_received_confirms_without_a_store,
    a_slow_store_makes_wait_slow,
    nothing_is_acknowledged_before_the_first_snapshot_is_complete,
}

on_every_server! {
    up to 7.0;
    a_store_that_refuses_confirms_nothing_and_stalls_nobody,
}

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

fn a_confirmed_write_survives_the_loss_of_both(kind: Kind) {
    confirmed_writes_survive_in(kind, &Archive::new());
}

/// The same wherever the archive lies.
pub fn confirmed_writes_survive_in(kind: Kind, archive: &Archive) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let mut perennial = Perennial::follow(&server, archive, &[]);
    for number in 0..20 {
        let key = format!("confirmed:{number}");
        assert_eq!(write_and_wait(&server, &key, DEADLINE), 1);
        if number % 5 == 4 {
            // Both at once, in the very moment in which the client has its answer.
            perennial.kill();
            server.lose_everything();
            perennial.start_again();
            server.until_master_with_data();
            assert_eq!(server.client().line(&format!("GET {key}")).text(), "1");
        }
    }
}

fn a_store_that_refuses_confirms_nothing_and_stalls_nobody(kind: Kind) {
    let Some(server) = kind.start(&[]) else {
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

fn what_was_written_without_a_store_is_stored_when_it_is_back(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &[]);
    take_the_store_away(&archive);
    write_everything(&mut server.client(), 0);
    bring_the_store_back(&archive);
    server.client().wait_until_stored(DEADLINE);
    let before = Digest::of(&server.address());
    server.lose_everything();
    server.until_master_with_data();
    assert_same(&before, &Digest::of(&server.address()));
}

fn ack_received_confirms_without_a_store(kind: Kind) {
    let Some(server) = kind.start(&[]) else {
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

fn a_slow_store_makes_wait_slow(kind: Kind) {
    let Some(server) = kind.start(&[]) else {
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

fn nothing_is_acknowledged_before_the_first_snapshot_is_complete(kind: Kind) {
    let Some(server) = kind.start(&[]) else {
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

/// The whole loop once for every operation of the store, which then goes wrong in one way: those of following, of the
/// snapshot and of the seed.
fn each_operation_goes_wrong(kind: Kind, way: Fault) {
    let Some(clean) = loop_with(kind, None) else {
        return;
    };
    assert!(clean >= 12, "a run takes {clean} operations");
    for n in 1..=clean {
        loop_with(kind, Some((n, way)));
    }
}

on_every_server! {
    since 7.0;
    restoring_from_a_failing_store_is_all_or_nothing,
}

on_every_server! {
    oldest, usual and newest;
    whatever_operation_is_refused_nothing_confirmed_is_lost,
    whatever_operation_is_cut_short_nothing_confirmed_is_lost,
    whatever_operation_is_done_but_reported_failed_nothing_confirmed_is_lost,
    whatever_operation_is_slow_nothing_confirmed_is_lost,
}

fn whatever_operation_is_refused_nothing_confirmed_is_lost(kind: Kind) {
    each_operation_goes_wrong(kind, Fault::Refuse);
}

fn whatever_operation_is_cut_short_nothing_confirmed_is_lost(kind: Kind) {
    each_operation_goes_wrong(kind, Fault::CutShort);
}

fn whatever_operation_is_done_but_reported_failed_nothing_confirmed_is_lost(kind: Kind) {
    each_operation_goes_wrong(kind, Fault::DoneButReportedFailed);
}

fn whatever_operation_is_slow_nothing_confirmed_is_lost(kind: Kind) {
    each_operation_goes_wrong(kind, Fault::Delay(200));
}

/// Every operation of a restore to files goes wrong in every way. Once: a read is tried again, and then everything is
/// there. For ever: it fails and leaves no files that a server would start from.
fn restoring_from_a_failing_store_is_all_or_nothing(kind: Kind) {
    let Some(server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let perennial = Perennial::follow(&server, &archive, &[]);
    write_everything(&mut server.client(), 0);
    server.client().wait_until_stored(DEADLINE);
    let expected = Digest::of(&server.address());
    // Nothing more is stored, not even a PING.
    drop(perennial);
    let operations = restore_with(&archive, &Faults::new()).unwrap();
    assert!(operations >= 4, "a restore takes {operations} operations");
    let mut whole_after_a_failure = 0;
    for way in [Fault::Refuse, Fault::CutShort, Fault::DoneButReportedFailed] {
        for n in 1..=operations {
            let once = Faults::new();
            once.at(n, way);
            match restore_with(&archive, &once) {
                Ok(taken) => {
                    assert!(taken > operations, "{way:?} at {n} was not met");
                    whole_after_a_failure += 1;
                }
                Err(error) => assert!(error.contains("made to fail"), "{error}"),
            }
        }
    }
    assert!(whole_after_a_failure > 0, "reads are tried again");
    // Tried again for some seconds each: only in the middle.
    let for_ever = Faults::new();
    for later in 0..1000 {
        for_ever.at(operations - 1 + later, Fault::Refuse);
    }
    let error = restore_with(&archive, &for_ever).unwrap_err();
    assert!(error.contains("made to fail"), "{error}");
    for n in 1..=operations {
        let late = Faults::new();
        late.at(n, Fault::Delay(50));
        restore_with(&archive, &late).unwrap();
    }
    let folder = archive.restore("restored", &[]);
    let restored = kind.start_on(&folder).unwrap();
    assert_same(&expected, &Digest::of(&restored.address()));
}

/// A restore to files in this process: how many operations it took, or what it said. Where it fails, nothing is there;
/// where it does not, the files are those of a restore without faults.
fn restore_with(archive: &Archive, faults: &Faults) -> Result<u64, String> {
    let inner: Arc<dyn Store> = Arc::new(FsStore::new(archive.path()));
    let store: Arc<dyn Store> = Arc::new(FaultyStore::new(Arc::clone(&inner), faults.clone()));
    let parent = tempfile::tempdir().unwrap();
    let (target, reference) = (parent.path().join("target"), parent.path().join("whole"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let outcome = runtime.block_on(restore_into(store, &target));
    let files = target.join("appendonlydir");
    let described = format!("{outcome:?} with {faults:?}");
    assert_eq!(outcome.is_ok(), files.exists(), "{described}");
    if outcome.is_ok() {
        runtime.block_on(restore_into(inner, &reference)).unwrap();
        let same = contents(&files) == contents(&reference.join("appendonlydir"));
        assert!(same, "other files: {described}");
    }
    outcome.map(|()| faults.operations())
}

async fn restore_into(store: Arc<dyn Store>, target: &Path) -> Result<(), String> {
    let loaded = catalog::load(&*store, &[])
        .await
        .map_err(|error| error.to_string())?;
    let planned = plan(&loaded.catalog, Target::Latest).map_err(|error| error.to_string())?;
    let id = loaded.catalog.archive().unwrap().archive;
    restore(store, id, &planned, target, Options::default(), |_| {})
        .await
        .map(drop)
        .map_err(|error| error.to_string())
}

/// Names and bytes of the files in a folder, in order.
fn contents(folder: &Path) -> Vec<(OsString, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name(), fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// Follow, write and wait, lose the server, come back. Returns the number of store operations.
fn loop_with(kind: Kind, fault: Option<(u64, Fault)>) -> Option<u64> {
    let mut server = kind.start(&[])?;
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
    server.lose_everything();
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
    assert_eq!(write_and_wait(&server, "after", DEADLINE), 1, "{fault:?}");
    let operations = faults.operations();
    faults.clear();
    server.kill();
    perennial.stop().unwrap();
    Some(operations)
}
