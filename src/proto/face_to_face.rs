//! Our replica core against our master core: no sockets, time by hand, bytes cut anywhere.

use std::collections::VecDeque;

use bytes::Bytes;
use proptest::prelude::*;

use super::handshake::{Auth, PsyncRequest, command};
use super::master::{Master, MasterEvent, MasterOptions, MasterOutput, Readiness};
use super::replica::{Event, Output, Refusal, Replica, ReplicaOptions};
use super::resp::CommandCursor;
use crate::position::{Offset, ReplicationId, Ticks};

fn id() -> ReplicationId {
    ReplicationId::from_raw([0xcd; 20])
}

fn auth() -> Option<Auth> {
    Some(Auth {
        user: Some("replica".into()),
        password: "secret".into(),
    })
}

fn replica_options() -> ReplicaOptions {
    ReplicaOptions {
        auth: auth(),
        listening_port: Some(7999),
        announce_ip: Some("10.0.0.9".into()),
        version: Some("9.1.2".into()),
        rdb_only: false,
        rdb_filter_only: Some(""),
        psync: PsyncRequest::Full,
        handshake_timeout_ms: 60_000,
        idle_timeout_ms: 60_000,
    }
}

fn master_options() -> MasterOptions {
    MasterOptions {
        auth: auth(),
        handshake_timeout_ms: 60_000,
        ack_timeout_ms: 60_000,
    }
}

/// Two cores and the bytes between them.
struct Pair {
    now: Ticks,
    replica: Replica,
    master: Master,
    to_replica: VecDeque<Bytes>,
    to_master: VecDeque<Bytes>,
    heard: Vec<Event>,
    asked: Vec<MasterEvent>,
    /// How many bytes travel at once.
    piece_bytes: usize,
}

impl Pair {
    fn new(replica: ReplicaOptions, master: MasterOptions, readiness: Readiness) -> Self {
        let now = Ticks(0);
        Self {
            now,
            replica: Replica::new(replica, now),
            master: Master::new(master, readiness, now),
            to_replica: VecDeque::new(),
            to_master: VecDeque::new(),
            heard: Vec::new(),
            asked: Vec::new(),
            piece_bytes: usize::MAX,
        }
    }

    /// Drains both cores.
    fn drain(&mut self) {
        loop {
            match self.replica.poll_output() {
                Output::Send(bytes) => self.to_master.push_back(bytes),
                Output::Event(event) => self.heard.push(event),
                Output::Wait { .. } => break,
            }
        }
        loop {
            match self.master.poll_output() {
                MasterOutput::Send(bytes) => self.to_replica.push_back(bytes),
                MasterOutput::Event(event) => self.asked.push(event),
                MasterOutput::Wait { .. } | MasterOutput::Close => break,
            }
        }
    }

    /// Lets bytes travel until nothing is under way.
    fn settle(&mut self) {
        self.drain();
        loop {
            if let Some(mut bytes) = self.to_master.pop_front() {
                let rest = bytes.split_off(bytes.len().min(self.piece_bytes));
                if !rest.is_empty() {
                    self.to_master.push_front(rest);
                }
                self.master.receive(self.now, bytes);
            } else if let Some(mut bytes) = self.to_replica.pop_front() {
                let rest = bytes.split_off(bytes.len().min(self.piece_bytes));
                if !rest.is_empty() {
                    self.to_replica.push_front(rest);
                }
                self.replica.receive(self.now, bytes);
            } else {
                return;
            }
            self.drain();
        }
    }

    fn pass(&mut self, millis: u64) {
        self.now = self.now.plus(millis);
        self.replica.time_passed(self.now);
        self.master.time_passed(self.now);
        self.settle();
    }

    /// The offer the master made last, once.
    fn offer(&mut self) -> super::master::PsyncOffer {
        match self.asked.pop() {
            Some(MasterEvent::Psync(offer)) => offer,
            other => panic!("no offer: {other:?}, the replica heard {:?}", self.heard),
        }
    }

    /// The payload and the replication stream received so far.
    fn received(&self) -> (Vec<u8>, Vec<u8>) {
        let (mut payload, mut stream) = (Vec::new(), Vec::new());
        for event in &self.heard {
            match event {
                Event::Payload(bytes) => payload.extend_from_slice(bytes),
                Event::Stream(bytes) => stream.extend_from_slice(bytes),
                _ => {}
            }
        }
        (payload, stream)
    }
}

#[test]
fn a_seed_from_handshake_to_acknowledged_end() {
    let mut pair = Pair::new(replica_options(), master_options(), Readiness::Ready);
    pair.settle();
    let offer = pair.offer();
    assert_eq!(offer.request, PsyncRequest::Full);
    assert_eq!(offer.listening_port, Some(7999));
    assert_eq!(offer.ip_address.as_deref(), Some("10.0.0.9"));
    assert_eq!(offer.version.as_deref(), Some("9.1.2"));
    assert!(offer.eof && offer.psync2);

    pair.master
        .full_resync(pair.now, id(), Offset::new(100), Some(9))
        .unwrap();
    for _ in 0..200 {
        pair.pass(1000);
    }
    assert_eq!(
        pair.heard,
        [Event::FullResync {
            id: id(),
            offset: Offset::new(100)
        }],
        "kept alive by \\n for longer than any timeout"
    );
    pair.master.payload(pair.now, "REDIS".into()).unwrap();
    pair.master.payload(pair.now, "0011".into()).unwrap();
    let stream = command(&[b"REPLCONF", b"GETACK", b"*"]);
    pair.master.stream(stream.clone()).unwrap();
    pair.settle();
    let (payload, streamed) = pair.received();
    assert_eq!(payload, b"REDIS0011");
    assert_eq!(streamed, stream);
    let end = Offset::new(100).plus(stream.len() as u64);
    assert_eq!(pair.replica.offset(), Some(end));
    assert_eq!(
        pair.asked.pop(),
        Some(MasterEvent::Acked {
            ack: Offset::ZERO,
            fack: None
        })
    );

    let mut cursor = CommandCursor::new(Offset::new(100), None);
    let getack = cursor.feed(&streamed).unwrap().getack.unwrap();
    pair.replica.acknowledge(pair.now, getack, Some(getack));
    pair.settle();
    let acked = MasterEvent::Acked {
        ack: end,
        fack: Some(end),
    };
    assert_eq!(pair.asked, std::slice::from_ref(&acked));
    pair.pass(1000);
    assert_eq!(pair.asked, [acked.clone(), acked]);
}

#[test]
fn a_link_that_goes_on_where_it_was() {
    let after = Offset::new(41);
    let psync = PsyncRequest::Continue { id: id(), after };
    let options = ReplicaOptions {
        psync,
        ..replica_options()
    };
    let mut pair = Pair::new(options, master_options(), Readiness::Ready);
    pair.settle();
    assert_eq!(pair.offer().request, psync);
    let new = ReplicationId::from_raw([1; 20]);
    pair.master.continue_with(pair.now, new).unwrap();
    pair.master.stream(command(&[b"PING"])).unwrap();
    pair.settle();
    assert_eq!(pair.heard[0], Event::Continued { id: Some(new) });
    assert_eq!(pair.received().1, command(&[b"PING"]));
    assert_eq!(pair.replica.offset(), Some(after.plus(14)));
}

#[test]
fn an_undecided_master_is_tried_again() {
    let mut pair = Pair::new(replica_options(), master_options(), Readiness::Undecided);
    pair.settle();
    // With a password PING is -NOAUTH, the rest +OK, and PSYNC -LOADING; without one PING already is.
    assert_eq!(pair.heard, [Event::Refused(Refusal::Loading)]);
    let no_auth = MasterOptions {
        auth: None,
        ..master_options()
    };
    let mut pair = Pair::new(replica_options(), no_auth, Readiness::Undecided);
    pair.settle();
    assert_eq!(pair.heard, [Event::Refused(Refusal::Loading)]);

    pair.replica = Replica::new(replica_options(), pair.now);
    pair.master.set_readiness(Readiness::Ready);
    pair.settle();
    pair.offer();
}

#[test]
fn refusals_are_understood() {
    let refusing = Readiness::Refusing("this is a backup".into());
    let mut pair = Pair::new(replica_options(), master_options(), refusing);
    pair.settle();
    let [Event::Refused(refusal)] = pair.heard.as_slice() else {
        panic!("{:?}", pair.heard);
    };
    assert!(
        refusal.to_string().contains("this is a backup"),
        "{refusal}"
    );

    let wrong = Some(Auth {
        user: None,
        password: "wrong".into(),
    });
    for (auth, refusal) in [
        (None, Refusal::AuthRequired),
        (wrong, Refusal::WrongPassword),
    ] {
        let options = ReplicaOptions {
            auth,
            ..replica_options()
        };
        let mut pair = Pair::new(options, master_options(), Readiness::Ready);
        pair.settle();
        assert_eq!(pair.heard, [Event::Refused(refusal)]);
    }

    let mut pair = Pair::new(replica_options(), master_options(), Readiness::Ready);
    pair.settle();
    pair.offer();
    pair.master.refuse("the payload is too new").unwrap();
    pair.settle();
    let [Event::Refused(refusal)] = pair.heard.as_slice() else {
        panic!("{:?}", pair.heard);
    };
    assert!(refusal.to_string().contains("too new"), "{refusal}");
}

#[test]
fn a_dead_peer_is_noticed_on_both_sides() {
    let mut pair = Pair::new(replica_options(), master_options(), Readiness::Ready);
    pair.settle();
    pair.offer();
    pair.master
        .full_resync(pair.now, id(), Offset::ZERO, Some(0))
        .unwrap();
    pair.master.payload(pair.now, Bytes::new()).unwrap();
    pair.settle();
    // Acknowledgements keep the master's side up; nothing keeps the replica's.
    for _ in 0..59 {
        pair.pass(1000);
    }
    assert!(
        !pair
            .heard
            .iter()
            .any(|it| matches!(it, Event::TimedOut { .. }))
    );
    pair.pass(1000);
    assert!(matches!(pair.heard.last(), Some(Event::TimedOut { .. })));
    for _ in 0..60 {
        pair.pass(1000);
    }
    assert!(matches!(
        pair.asked.last(),
        Some(MasterEvent::TimedOut { .. })
    ));
}

proptest! {
    #[test]
    fn whatever_is_served_arrives(
        payload in proptest::collection::vec(any::<u8>(), 0..2000),
        commands in proptest::collection::vec(
            proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..5),
            0..20,
        ),
        offset in 0..u64::MAX / 2,
        piece_bytes in 1usize..300,
        known in any::<bool>(),
    ) {
        let mut pair = Pair::new(replica_options(), master_options(), Readiness::Ready);
        pair.piece_bytes = piece_bytes;
        pair.settle();
        pair.offer();
        let (now, offset) = (pair.now, Offset::new(offset));
        let length = payload.len() as u64;
        pair.master.full_resync(now, id(), offset, known.then_some(length)).unwrap();
        pair.master.begin_payload(now, length).unwrap();
        for piece in payload.chunks(piece_bytes * 3) {
            pair.master.payload(now, Bytes::copy_from_slice(piece)).unwrap();
        }
        let mut stream = Vec::new();
        for arguments in &commands {
            let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
            let bytes = command(&arguments);
            stream.extend_from_slice(&bytes);
            pair.master.stream(bytes).unwrap();
        }
        pair.settle();
        let end = offset.plus(stream.len() as u64);
        prop_assert_eq!(pair.received(), (payload, stream.clone()));
        prop_assert_eq!(pair.replica.offset(), Some(end));
        let ends = Event::PayloadEnds { bytes: length };
        prop_assert!(pair.heard.contains(&ends));
        let mut cursor = CommandCursor::new(offset, None);
        prop_assert!(cursor.feed(&stream).is_ok());
        prop_assert_eq!(cursor.offset(), end);
    }
}
