//! The command cursor, the replica core and the master core on arbitrary bytes: no panic, no endless loop, and
//! the same answer for every way of cutting them.
//!
//! The first byte chooses the core and its options, the second seeds the cuts, the rest is what the peer sends.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use perennial::position::{Offset, ReplicationId, Ticks};
use perennial::proto::handshake::{Auth, PsyncRequest};
use perennial::proto::master::{
    Master, MasterEvent, MasterOptions, MasterOutput, MasterStage, Readiness,
};
use perennial::proto::replica::{Event, Output, Replica, ReplicaOptions, Stage};
use perennial::proto::resp::{CommandCursor, Fed};

const NOW: Ticks = Ticks(0);

fuzz_target!(|data: &[u8]| {
    let [choice, seed, bytes @ ..] = data else {
        return;
    };
    let pieces = cut(bytes, *seed);
    match choice % 3 {
        0 => assert_eq!(cursor(&[bytes]), cursor(&pieces)),
        1 => assert_eq!(replica(*choice, &[bytes]), replica(*choice, &pieces)),
        _ => assert_eq!(master(*choice, &[bytes]), master(*choice, &pieces)),
    }
});

/// Pieces of one to sixteen bytes, long ones now and then.
fn cut(mut bytes: &[u8], seed: u8) -> Vec<&[u8]> {
    let mut state = u32::from(seed) + 1;
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let size = match state >> 28 {
            0 => 200,
            size => size as usize,
        };
        let (piece, rest) = bytes.split_at(size.min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

/// Everything that `feed` found, and the cursor's own view afterwards. `step` must agree.
fn cursor(pieces: &[&[u8]]) -> (Fed, Option<String>, CursorView) {
    let mut cursor = CommandCursor::new(Offset::ZERO, None);
    let mut stepping = cursor.clone();
    let mut all = Fed::default();
    let mut error = None;
    let mut commands = 0;
    for piece in pieces {
        match cursor.feed(piece) {
            Ok(fed) => {
                all.boundary = fed.boundary.or(all.boundary);
                all.getack = fed.getack.or(all.getack);
                all.pings += fed.pings;
                all.getacks += fed.getacks;
                all.others += fed.others;
            }
            Err(malformed) => error = Some(malformed.to_string()),
        }
        let mut rest = *piece;
        while !rest.is_empty() {
            let Ok(step) = stepping.step(rest) else { break };
            assert!(step.consumed > 0 || step.end.is_some());
            rest = &rest[step.consumed..];
            commands += u64::from(step.end.is_some());
        }
    }
    assert_eq!(view(&cursor), view(&stepping));
    if error.is_some() {
        // What the failing call had found before the error depends on the cuts; the cursor's view does not.
        all = Fed::default();
    } else {
        assert_eq!(commands, all.pings + all.getacks + all.others);
    }
    (all, error, view(&cursor))
}

type CursorView = (Offset, Offset, Option<u32>, bool);

fn view(cursor: &CommandCursor) -> CursorView {
    (
        cursor.offset(),
        cursor.boundary().offset,
        cursor.database(),
        cursor.at_boundary(),
    )
}

/// What a core said, with neighbouring payload and stream pieces as one.
#[derive(Default, PartialEq, Debug)]
struct Said {
    text: String,
    payload: Vec<u8>,
    stream: Vec<u8>,
}

fn replica(choice: u8, pieces: &[&[u8]]) -> (Said, Stage, Option<Offset>) {
    let id = ReplicationId::from_raw([0xab; 20]);
    let options = ReplicaOptions {
        auth: (choice & 8 != 0).then(auth),
        listening_port: (choice & 16 != 0).then_some(7999),
        announce_ip: None,
        version: (choice & 32 != 0).then(|| "9.1.2".into()),
        rdb_only: choice & 64 != 0,
        rdb_filter_only: None,
        psync: match choice & 128 {
            0 => PsyncRequest::Full,
            _ => PsyncRequest::Continue {
                id,
                after: Offset::new(41),
            },
        },
        handshake_timeout_ms: 60_000,
        idle_timeout_ms: 60_000,
    };
    let mut said = Said::default();
    let mut replica = Replica::new(options, NOW);
    let drain = |replica: &mut Replica, said: &mut Said| {
        loop {
            match replica.poll_output() {
                Output::Wait { .. } => break,
                Output::Event(Event::Payload(bytes)) => said.payload.extend_from_slice(&bytes),
                Output::Event(Event::Stream(bytes)) => said.stream.extend_from_slice(&bytes),
                other => said.text.push_str(&format!("{other:?}\n")),
            }
        }
    };
    drain(&mut replica, &mut said);
    for piece in pieces {
        replica.receive(NOW, Bytes::copy_from_slice(piece));
        drain(&mut replica, &mut said);
    }
    let (stage, offset) = (replica.stage(), replica.offset());
    replica.closed();
    drain(&mut replica, &mut said);
    assert_eq!(replica.stage(), Stage::Ended);
    (said, stage, offset)
}

fn master(choice: u8, pieces: &[&[u8]]) -> (String, MasterStage) {
    let options = MasterOptions {
        auth: (choice & 8 != 0).then(auth),
        handshake_timeout_ms: 60_000,
        ack_timeout_ms: 60_000,
    };
    let readiness = match choice >> 4 & 3 {
        0 | 1 => Readiness::Ready,
        2 => Readiness::Undecided,
        _ => Readiness::Refusing("not now".into()),
    };
    let id = ReplicationId::from_raw([0xab; 20]);
    let mut said = String::new();
    let mut master = Master::new(options, readiness, NOW);
    for piece in pieces {
        master.receive(NOW, Bytes::copy_from_slice(piece));
        loop {
            match master.poll_output() {
                MasterOutput::Wait { .. } | MasterOutput::Close => break,
                MasterOutput::Send(bytes) => said.push_str(&format!("{bytes:?}\n")),
                MasterOutput::Event(event) => {
                    said.push_str(&format!("{event:?}\n"));
                    if let MasterEvent::Psync(_) = event {
                        let answered = match choice & 128 {
                            0 => master.continue_with(NOW, id),
                            _ => master.refuse("no"),
                        };
                        answered.expect("an offer waits for an answer");
                    }
                }
            }
        }
    }
    (said, master.stage())
}

fn auth() -> Auth {
    Auth {
        user: None,
        password: "secret".into(),
    }
}
