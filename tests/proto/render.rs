//! Runs a core over pieces of input and writes down what it said, so that it can be compared with the text
//! beside the fixture. Neighbouring payload and stream pieces become one: the cut is not part of the truth.

use std::fmt::Write;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};
use perennial::position::{Offset, ReplicationId, Ticks};
use perennial::proto::master::{
    Master, MasterEvent, MasterOptions, MasterOutput, PsyncRequest, Readiness,
};
use perennial::proto::replica::{Auth, Event, Output, Replica, ReplicaOptions};
use perennial::proto::resp::{CommandCursor, CommandKind};

/// All inputs come at one moment, so that nothing falls due between them.
const NOW: Ticks = Ticks(0);

/// What the replica is to ask, from the `with` lines of an expectation.
pub(crate) fn replica_options(expected: &str) -> ReplicaOptions {
    let mut options = ReplicaOptions {
        auth: None,
        listening_port: None,
        announce_ip: None,
        version: None,
        rdb_only: false,
        rdb_filter_only: None,
        psync: PsyncRequest::Full,
        handshake_timeout_ms: 60_000,
        idle_timeout_ms: 60_000,
    };
    for line in expected
        .lines()
        .filter_map(|line| line.strip_prefix("with "))
    {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["listening-port", port] => options.listening_port = Some(port.parse().unwrap()),
            ["version", version] => options.version = Some((*version).into()),
            ["rdb-only"] => options.rdb_only = true,
            ["rdb-filter-only"] => options.rdb_filter_only = Some(""),
            ["auth", password] => {
                options.auth = Some(Auth {
                    user: None,
                    password: (*password).into(),
                });
            }
            ["psync", "?", "-1"] => options.psync = PsyncRequest::Full,
            ["psync", id, next] => {
                options.psync = PsyncRequest::Continue {
                    id: id.parse().unwrap(),
                    after: Offset::new(next.parse().unwrap()).previous(),
                };
            }
            other => panic!("unknown option {other:?}"),
        }
    }
    options
}

/// Payload or stream bytes that belong together.
#[derive(Default)]
struct Gathered {
    what: &'static str,
    bytes: Vec<u8>,
}

impl Gathered {
    fn push(&mut self, text: &mut String, what: &'static str, bytes: &Bytes) {
        if self.what != what {
            self.flush(text);
            self.what = what;
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn flush(&mut self, text: &mut String) {
        if !self.what.is_empty() {
            let crc = checksum(CrcAlgorithm::Crc32IsoHdlc, &self.bytes);
            let (what, length) = (self.what, self.bytes.len());
            writeln!(text, "event {what} {length} bytes crc32 {crc:08x}").unwrap();
        }
        *self = Self::default();
    }
}

/// The replica core's side of a capture of what a master sent, and what the cursor finds in its stream.
pub(crate) fn replica(options: ReplicaOptions, pieces: &[&[u8]], close: bool) -> String {
    let mut text = String::new();
    let mut gathered = Gathered::default();
    let mut cursor = None;
    let mut counts = Counts::default();
    let asked = options.psync;
    let mut replica = Replica::new(options, NOW);
    let mut drain = |replica: &mut Replica, text: &mut String| {
        loop {
            match replica.poll_output() {
                Output::Wait { .. } => return,
                Output::Send(bytes) => {
                    gathered.flush(text);
                    writeln!(text, "send {}", request(&bytes)).unwrap();
                }
                Output::Event(Event::Payload(bytes)) => gathered.push(text, "payload", &bytes),
                Output::Event(Event::Stream(bytes)) => {
                    gathered.push(text, "stream", &bytes);
                    let cursor: &mut CommandCursor = cursor.as_mut().unwrap();
                    counts.feed(cursor, &bytes);
                }
                Output::Event(event) => {
                    gathered.flush(text);
                    let begins = match (&event, asked) {
                        (Event::FullResync { offset, .. }, _) => Some(*offset),
                        (Event::Continued { .. }, PsyncRequest::Continue { after, .. }) => {
                            Some(after)
                        }
                        _ => None,
                    };
                    cursor = cursor
                        .take()
                        .or(begins.map(|at| CommandCursor::new(at, None)));
                    writeln!(text, "event {}", said(&event)).unwrap();
                }
            }
        }
    };
    drain(&mut replica, &mut text);
    for piece in pieces {
        replica.receive(NOW, Bytes::copy_from_slice(piece));
        drain(&mut replica, &mut text);
    }
    let stage = replica.stage();
    let offset = replica.offset();
    if close {
        replica.closed();
        drain(&mut replica, &mut text);
    }
    gathered.flush(&mut text);
    writeln!(text, "stage {stage}").unwrap();
    if let Some(offset) = offset {
        writeln!(text, "offset {offset}").unwrap();
    }
    if let Some(cursor) = cursor
        && counts.any
    {
        assert_eq!(Some(cursor.offset()), offset);
        counts.write(&mut text, &cursor);
    }
    text
}

/// What the cursor finds in a piece of replication stream that begins at offset 1.
pub(crate) fn cursor(pieces: &[&[u8]]) -> String {
    let mut cursor = CommandCursor::new(Offset::ZERO, None);
    let mut counts = Counts::default();
    for piece in pieces {
        counts.feed(&mut cursor, piece);
    }
    let mut text = String::new();
    counts.write(&mut text, &cursor);
    text
}

/// What a cursor passed, counted command by command and piece by piece.
#[derive(Default)]
struct Counts {
    any: bool,
    kinds: [u64; 7],
    fed: [u64; 3],
    getack: Option<Offset>,
    error: Option<String>,
}

impl Counts {
    /// `step` and `feed` must agree, so both are asked.
    fn feed(&mut self, cursor: &mut CommandCursor, bytes: &[u8]) {
        self.any = true;
        let mut stepping = cursor.clone();
        let mut rest = bytes;
        let mut getack = None;
        while !rest.is_empty() {
            let Ok(step) = stepping.step(rest) else { break };
            rest = &rest[step.consumed..];
            if let Some(end) = step.end {
                self.kinds[end.kind as usize] += 1;
                assert_eq!(end.offset, stepping.offset());
                assert_eq!(end.boundary, stepping.at_boundary());
                if end.kind == CommandKind::GetAck {
                    getack = Some(end.offset);
                }
            }
        }
        let boundary = cursor.boundary();
        match cursor.feed(bytes) {
            Ok(fed) => {
                self.fed[0] += fed.pings;
                self.fed[1] += fed.getacks;
                self.fed[2] += fed.others;
                assert_eq!(fed.getack, getack);
                assert_eq!(fed.boundary.unwrap_or(boundary), cursor.boundary());
                assert_eq!(self.kinds.iter().sum::<u64>(), self.fed.iter().sum::<u64>());
            }
            Err(malformed) => self.error = Some(malformed.to_string()),
        }
        self.getack = getack.or(self.getack);
        assert_eq!(stepping.boundary(), cursor.boundary());
        assert_eq!(stepping.offset(), cursor.offset());
        assert_eq!(stepping.database(), cursor.database());
    }

    fn write(&self, text: &mut String, cursor: &CommandCursor) {
        let of = |kind: CommandKind| self.kinds[kind as usize];
        writeln!(
            text,
            "commands {} ping, {} getack, {} select, {} multi, {} exec, {} discard, {} other",
            of(CommandKind::Ping),
            of(CommandKind::GetAck),
            of(CommandKind::Select),
            of(CommandKind::Multi),
            of(CommandKind::Exec),
            of(CommandKind::Discard),
            of(CommandKind::Other),
        )
        .unwrap();
        let database =
            |number: Option<u32>| number.map_or("unknown".into(), |number| number.to_string());
        match self.getack {
            Some(offset) => writeln!(text, "getack {offset}").unwrap(),
            None => text.push_str("getack none\n"),
        }
        let boundary = cursor.boundary();
        let selected = database(boundary.database);
        writeln!(text, "boundary {} database {selected}", boundary.offset).unwrap();
        let selected = database(cursor.database());
        writeln!(text, "end {} database {selected}", cursor.offset()).unwrap();
        if let Some(error) = &self.error {
            writeln!(text, "error {error}").unwrap();
        }
    }
}

/// The master core's side of a capture of what a replica sent; each PSYNC is continued.
pub(crate) fn master(pieces: &[&[u8]]) -> String {
    let options = MasterOptions {
        auth: None,
        handshake_timeout_ms: 60_000,
        ack_timeout_ms: 60_000,
    };
    let mut text = String::new();
    let mut master = Master::new(options, Readiness::Ready, NOW);
    for piece in pieces {
        master.receive(NOW, Bytes::copy_from_slice(piece));
        loop {
            match master.poll_output() {
                MasterOutput::Wait { .. } | MasterOutput::Close => break,
                MasterOutput::Send(bytes) => {
                    writeln!(text, "send {}", bytes.escape_ascii()).unwrap();
                }
                MasterOutput::Event(event) => {
                    writeln!(text, "event {event:?}").unwrap();
                    if let MasterEvent::Psync(_) = event {
                        let id = ReplicationId::from_raw([0xab; 20]);
                        master.continue_with(NOW, id).unwrap();
                    }
                }
            }
        }
    }
    writeln!(text, "stage {}", master.stage()).unwrap();
    text
}

/// A request on one line.
fn request(bytes: &Bytes) -> String {
    let arguments = perennial::proto::request::arguments(bytes).unwrap();
    let words: Vec<String> = arguments
        .iter()
        .map(|argument| match argument.as_ref() {
            b"" => "\"\"".into(),
            argument => argument.escape_ascii().to_string(),
        })
        .collect();
    words.join(" ")
}

fn said(event: &Event) -> String {
    match event {
        Event::FullResync { id, offset } => format!("full-resync {id} {offset}"),
        Event::Continued { id: Some(id) } => format!("continued {id}"),
        Event::Continued { id: None } => "continued without an id".into(),
        Event::PayloadBegins { length: None } => "payload-begins until a mark".into(),
        Event::PayloadBegins {
            length: Some(length),
        } => format!("payload-begins {length} bytes"),
        Event::PayloadEnds { bytes } => format!("payload-ends {bytes} bytes"),
        Event::OptionRefused { option, reply } => format!("option-refused {option}: {reply}"),
        Event::Refused(refusal) => {
            let temporary = match refusal.is_temporary() {
                true => " (temporary)",
                false => "",
            };
            format!("refused{temporary}: {refusal}")
        }
        Event::ProtocolError {
            stage,
            expected,
            found,
        } => format!("protocol-error {stage}: expected {expected}, found {found}"),
        Event::Closed { stage } => format!("closed {stage}"),
        Event::TimedOut { stage, .. } => format!("timed-out {stage}"),
        Event::Payload(_) | Event::Stream(_) => unreachable!("gathered"),
    }
}
