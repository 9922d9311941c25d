//! Struck while the store is at work, where only a point inside Perennial can be the place: it runs in this process, an
//! operation of its store hangs, and its death is that everything of it is dropped.

use std::time::Duration;

use perennial::store::faulty::{Fault, Faults, Operation};

use super::stage::{Victim, report};
use super::{VICTIMS, on_matrix_servers};
use crate::harness::{Archive, DEADLINE, InProcess, Kind, Server, Value, until};

on_matrix_servers! {
    between_a_getack_and_the_upload,
    while_the_snapshot_is_stored,
}

/// Longer than any test; the operation is then dropped with everything else.
const FOR_EVER_MILLIS: u64 = 3_600_000;
/// A store that hangs for a while, where Perennial lives on.
const A_WHILE_MILLIS: u64 = 1_500;

fn hang(victim: Victim) -> Fault {
    Fault::Delay(match victim {
        Victim::Master | Victim::Links => A_WHILE_MILLIS,
        _ => FOR_EVER_MILLIS,
    })
}

/// The answer of WAIT to a write of its own.
fn confirmed(server: &Server, key: &str, timeout: Duration) -> bool {
    let mut client = server.client();
    client.ok(&["SET", key, "1"]);
    let milliseconds = timeout.as_millis().to_string();
    client.ok(&["WAIT", "1", &milliseconds]).integer() >= 1
}

/// Strikes, and starts again who was killed.
fn strike(
    server: &mut Server,
    perennial: InProcess,
    archive: &Archive,
    victim: Victim,
) -> InProcess {
    let again = || InProcess::follow(server, archive, &Faults::new());
    match victim {
        Victim::Perennial => {
            perennial.kill();
            again()
        }
        Victim::Master | Victim::Links => {
            server.kill();
            server.start_again();
            perennial
        }
        Victim::PerennialThenMaster => {
            perennial.kill();
            server.kill();
            server.start_again();
            InProcess::follow(server, archive, &Faults::new())
        }
        Victim::MasterThenPerennial => {
            server.kill();
            perennial.kill();
            server.start_again();
            InProcess::follow(server, archive, &Faults::new())
        }
    }
}

#[track_caller]
fn until_there(server: &Server, key: &str) {
    until(&format!("{key} is there on a master"), DEADLINE, || {
        server.is_master()
            && server
                .client()
                .command(&["GET", key])
                .is_ok_and(|value| value == Value::Bulk(b"1".to_vec()))
    });
}

fn between_a_getack_and_the_upload(kind: Kind) {
    for victim in VICTIMS {
        let Some(mut server) = kind.start(&[]) else {
            return;
        };
        let (archive, faults) = (Archive::new(), Faults::new());
        let perennial = InProcess::follow(&server, &archive, &faults);
        archive.until_durable();
        assert!(confirmed(&server, "confirmed", DEADLINE));
        let next = faults.count(Operation::Create) + 1;
        faults.at_kind(Operation::Create, next, hang(victim));
        // Its GETACK is answered by an upload that does not end.
        assert!(!confirmed(
            &server,
            "unconfirmed",
            Duration::from_millis(700)
        ));
        assert!(
            faults.count(Operation::Create) >= next,
            "nothing is uploaded"
        );
        let perennial = strike(&mut server, perennial, &archive, victim);
        until_there(&server, "confirmed");
        assert!(confirmed(&server, "afterwards", DEADLINE));
        assert!(archive.status().suspects().is_empty());
        report(&format!(
            "cell held/between-getack-and-upload {} {victim:?} kill: 1 confirmed, 0 lost",
            kind.name
        ));
        drop(perennial);
    }
}

fn while_the_snapshot_is_stored(kind: Kind) {
    let operations = [
        Operation::BeginUpload,
        Operation::Write,
        Operation::Complete,
    ];
    for (number, victim) in VICTIMS.into_iter().enumerate() {
        let operation = operations[number % operations.len()];
        let Some(mut server) = kind.start(&[]) else {
            return;
        };
        server.client().line("SET before 1");
        let (archive, faults) = (Archive::new(), Faults::new());
        faults.at_kind(operation, 1, hang(victim));
        let perennial = InProcess::follow(&server, &archive, &faults);
        until("the snapshot is being stored", DEADLINE, || {
            faults.count(operation) == 1
        });
        assert!(!confirmed(
            &server,
            "unconfirmed",
            Duration::from_millis(500)
        ));
        assert_eq!(archive.status().durable_offset, None);
        let perennial = strike(&mut server, perennial, &archive, victim);
        if victim == Victim::Perennial {
            until_there(&server, "before");
        }
        // What is written before anybody follows, WAIT confirms without meaning it.
        until("it is followed again", DEADLINE, || {
            server.info_number("replication", "connected_slaves") >= 1
        });
        assert!(confirmed(&server, "afterwards", DEADLINE));
        server.kill();
        server.start_again();
        until_there(&server, "afterwards");
        assert!(archive.status().suspects().is_empty());
        report(&format!(
            "cell held/snapshot-{operation:?} {} {victim:?} kill: 1 confirmed, 0 lost",
            kind.name
        ));
        drop(perennial);
    }
}
