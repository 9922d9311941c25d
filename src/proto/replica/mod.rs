//! Our side of the link when we follow a master: handshake, payload, replication stream, acknowledgements.
//! What to ask for and what to acknowledge is left to the caller.

mod events;
mod line;
mod payload;
mod refusal;
mod request;

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;

use crate::position::{Offset, Ticks};

use super::handshake::{command, printable};
use line::LineReader;
use payload::{MARK_BYTES, Payload};
use refusal::HEAD_BYTES_MAX;

pub use super::handshake::{Auth, PsyncRequest};
pub use events::{Event, Output, Stage};
pub use refusal::Refusal;
pub use request::Request;

/// How often an acknowledgement goes out when nothing moves, milliseconds: as real replicas do
/// (`protocol-facts` 1.6, 3.3).
pub const ACK_INTERVAL_MS: u64 = 1000;

/// How a payload is announced.
const HEADER: &str = "$<length> or $EOF:<mark of forty bytes>";

/// What to say in the handshake and how long to wait.
#[derive(Clone, Debug)]
pub struct ReplicaOptions {
    /// The user and password, where the server wants one.
    pub auth: Option<Auth>,
    /// The port shown to clients of the master; without it they see port 0.
    pub listening_port: Option<u16>,
    /// The address shown to clients of the master in place of the connection's own.
    pub announce_ip: Option<String>,
    /// The version to announce. Valkey 9 downgrades the payload, or fails to send it, for a replica that
    /// announces none or one below 9 (`protocol-facts` 1.4): announce the server's own.
    pub version: Option<String>,
    /// Ask for a payload only; the master closes after it (6.2+, refused by others).
    pub rdb_only: bool,
    /// Ask for a payload without what is not listed: `Some("")` for neither keys nor functions (7.0+).
    pub rdb_filter_only: Option<&'static str>,
    /// Where to begin.
    pub psync: PsyncRequest,
    /// The longest silence until the payload or the replication stream begins, milliseconds. Not below the
    /// servers' own `repl-timeout`, 60 s: a fork takes its time and a diskless one is silent
    /// (`protocol-facts` 1.5).
    pub handshake_timeout_ms: u64,
    /// The longest silence afterwards, milliseconds. A master pings every 10 s by default.
    pub idle_timeout_ms: u64,
}

/// ```text
///             one request at a time                            +CONTINUE
/// Handshake ------------------------> Handshake{PSYNC} ----------------------+
///                                         | +FULLRESYNC                      |
///                                         v                                  v
///                                      Header --$len, $EOF--> Payload --> Streaming (ACKs go out)
///                                                                |
/// any: refused, silent, nonsense, closed --> Ended <-- rdb_only -+
/// ```
#[derive(Debug)]
enum State {
    Handshake { request: Request, line: LineReader },
    Header { offset: Offset, line: LineReader },
    Payload { offset: Offset, payload: Payload },
    Streaming { offset: Offset, ack_due: Ticks },
    Ended { offset: Option<Offset> },
}

/// The replica's side of one connection, without I/O.
///
/// **After every input** ([`new`](Self::new), [`receive`](Self::receive), [`time_passed`](Self::time_passed),
/// [`held_back`](Self::held_back), [`acknowledge`](Self::acknowledge), [`closed`](Self::closed)) **drain [`poll_output`](Self::poll_output)
/// until it says [`Output::Wait`], before the next input.**
///
/// After the reply to PSYNC nothing but acknowledgements is ever sent (`protocol-facts` 1.7).
pub struct Replica {
    options: ReplicaOptions,
    state: State,
    outputs: VecDeque<Output>,
    /// When the last byte came.
    heard: Ticks,
    ack: Offset,
    fack: Option<Offset>,
}

/// Without what is to be sent: AUTH is among it.
impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica")
            .field("state", &self.state)
            .field("heard", &self.heard)
            .field("ack", &self.ack)
            .field("fack", &self.fack)
            .finish_non_exhaustive()
    }
}

impl Replica {
    /// Begins the handshake on a connection that has just been made.
    pub fn new(options: ReplicaOptions, now: Ticks) -> Self {
        let mut replica = Self {
            options,
            state: State::Handshake {
                request: Request::Ping,
                line: LineReader::default(),
            },
            outputs: VecDeque::new(),
            heard: now,
            ack: Offset::ZERO,
            fack: None,
        };
        replica.request(Request::Ping);
        replica
    }

    /// Takes bytes that the master sent.
    pub fn receive(&mut self, now: Ticks, mut bytes: Bytes) {
        if !bytes.is_empty() {
            self.heard = now;
        }
        while !bytes.is_empty() {
            self.take(now, &mut bytes);
        }
        self.time_passed(now);
    }

    /// Sees what is due.
    pub fn time_passed(&mut self, now: Ticks) {
        if matches!(self.state, State::Ended { .. }) {
            return;
        }
        if now >= self.heard.plus(self.patience_ms()) {
            let silent_ms = now.since(self.heard);
            let stage = self.stage();
            let event = self
                .garbage()
                .unwrap_or(Event::TimedOut { stage, silent_ms });
            return self.end(event);
        }
        if let State::Streaming { ack_due, .. } = self.state
            && now >= ack_due
        {
            self.send_ack(now);
        }
    }

    /// The caller reads nothing at the moment: that the master is not heard says nothing about it.
    pub fn held_back(&mut self, now: Ticks) {
        self.heard = now;
    }

    /// Sets what is acknowledged: `ack` answers WAIT, `fack` answers WAITAOF. Goes out at once when it moved
    /// and the link streams, else as soon as it does.
    pub fn acknowledge(&mut self, now: Ticks, ack: Offset, fack: Option<Offset>) {
        let moved = (ack, fack) != (self.ack, self.fack);
        (self.ack, self.fack) = (ack, fack);
        if moved && matches!(self.state, State::Streaming { .. }) {
            self.send_ack(now);
        }
    }

    /// The master closed the connection.
    pub fn closed(&mut self) {
        if matches!(self.state, State::Ended { .. }) {
            return;
        }
        let stage = self.stage();
        let event = self.garbage().unwrap_or(Event::Closed { stage });
        self.end(event);
    }

    /// What to do next. See the type's rule.
    pub fn poll_output(&mut self) -> Output {
        self.outputs.pop_front().unwrap_or(Output::Wait {
            until: self.deadline(),
        })
    }

    /// The last byte of the replication stream that was received; before that, what the payload includes or
    /// the position we continued from. `None` until the reply to PSYNC.
    pub fn offset(&self) -> Option<Offset> {
        match self.state {
            State::Handshake { .. } => None,
            State::Header { offset, .. }
            | State::Payload { offset, .. }
            | State::Streaming { offset, .. } => Some(offset),
            State::Ended { offset } => offset,
        }
    }

    /// What the link has come to.
    pub fn stage(&self) -> Stage {
        match self.state {
            State::Handshake { request, .. } => Stage::Handshake { request },
            State::Header { .. } => Stage::PayloadHeader,
            State::Payload { .. } => Stage::Payload,
            State::Streaming { .. } => Stage::Streaming,
            State::Ended { .. } => Stage::Ended,
        }
    }

    /// Takes some of the front of `bytes`, at least one.
    fn take(&mut self, now: Ticks, bytes: &mut Bytes) {
        match &mut self.state {
            State::Handshake { request, line } => {
                let request = *request;
                if let Some(line) = line.take(bytes, b"+-") {
                    self.reply(now, request, line);
                }
            }
            State::Header { offset, line } => {
                let offset = *offset;
                if let Some(line) = line.take(bytes, b"$-") {
                    self.header(offset, line);
                    // A payload of no bytes is complete without another one.
                    self.take_payload(now, bytes);
                }
            }
            State::Payload { .. } => self.take_payload(now, bytes),
            State::Streaming { offset, .. } => {
                *offset = offset.plus(bytes.len() as u64);
                self.event(Event::Stream(std::mem::take(bytes)));
            }
            State::Ended { .. } => *bytes = Bytes::new(),
        }
    }

    /// The whole reply to `request`, without its line end.
    fn reply(&mut self, now: Ticks, request: Request, line: Result<Vec<u8>, Vec<u8>>) {
        let line = match line {
            Ok(line) if matches!(line.first(), Some(b'+' | b'-')) => line,
            Ok(other) | Err(other) => {
                return self.end(Event::Refused(Refusal::from_garbage(&other)));
            }
        };
        if request == Request::Psync {
            return self.psync_reply(now, &line);
        }
        if line[0] == b'-' {
            if !self.goes_on_after(request, &line) {
                return self.end_refused(request, &line);
            }
        } else if request == Request::Ping && !line.starts_with(b"+PONG") {
            return self.unexpected("+PONG", &line);
        }
        self.request(request.next());
    }

    /// Whether an error reply leaves the handshake able to go on; tells the caller where it matters.
    fn goes_on_after(&mut self, request: Request, line: &[u8]) -> bool {
        let starts = |head: &str| line.starts_with(head.as_bytes());
        match request {
            // The minimal ACL has no +ping (facts 1.3). -MISCONF: a server that cannot write to its disk
            // answers every PING so; then a copy elsewhere matters most.
            Request::Ping => {
                starts("-NOPERM")
                    || starts("-MISCONF")
                    || (starts("-NOAUTH") && self.options.auth.is_some())
            }
            // The server has no password: ours is not needed.
            Request::Auth if starts("-ERR AUTH") || starts("-ERR Client sent AUTH") => {
                self.option_refused(request, line);
                true
            }
            Request::Auth | Request::Psync => false,
            // Without +replconf no acknowledgement will work, and each would be answered (facts 1.3): only
            // plain errors are harmless.
            _ if starts("-ERR") => {
                self.option_refused(request, line);
                true
            }
            _ => false,
        }
    }

    fn option_refused(&mut self, request: Request, line: &[u8]) {
        let reply = refusal::shown(line, self.password());
        self.event(Event::OptionRefused {
            option: request.option(),
            reply,
        });
    }

    fn psync_reply(&mut self, now: Ticks, line: &[u8]) {
        if line[0] == b'-' {
            return self.end_refused(Request::Psync, line);
        }
        let text = std::str::from_utf8(line).unwrap_or_default();
        let mut words = text.split(' ').filter(|word| !word.is_empty());
        match (words.next(), self.options.psync) {
            (Some("+FULLRESYNC"), _) => {
                let id = words.next().and_then(|id| id.parse().ok());
                let offset = words.next().and_then(|offset| offset.parse().ok());
                let (Some(id), Some(offset)) = (id, offset) else {
                    return self.unexpected("+FULLRESYNC <replication id> <offset>", line);
                };
                let offset = Offset::new(offset);
                self.state = State::Header {
                    offset,
                    line: LineReader::default(),
                };
                self.event(Event::FullResync { id, offset });
            }
            (Some("+CONTINUE"), PsyncRequest::Continue { after, .. }) => {
                let id = match words.next().map(str::parse) {
                    None => None,
                    Some(Ok(id)) => Some(id),
                    Some(Err(_)) => {
                        return self.unexpected("+CONTINUE <replication id>", line);
                    }
                };
                self.event(Event::Continued { id });
                self.start_streaming(now, after);
            }
            // Also +RDBCHANNELSYNC and +DUALCHANNELSYNC, for which we never ask (facts 7).
            (_, PsyncRequest::Full) => self.unexpected("+FULLRESYNC", line),
            (_, PsyncRequest::Continue { .. }) => {
                self.unexpected("+CONTINUE or +FULLRESYNC", line);
            }
        }
    }

    /// `$<length>` or `$EOF:<mark>`.
    fn header(&mut self, offset: Offset, line: Result<Vec<u8>, Vec<u8>>) {
        let line = match line {
            Ok(line) => line,
            Err(line) => return self.unexpected(HEADER, &line),
        };
        if line.first() == Some(&b'-') {
            return self.end_refused(Request::Psync, &line);
        }
        let mark = line
            .strip_prefix(b"$EOF:")
            .map(<[u8; MARK_BYTES]>::try_from);
        let (payload, length) = match mark {
            Some(Ok(mark)) => (Payload::until_mark(mark), None),
            Some(Err(_)) => return self.unexpected(HEADER, &line),
            None => {
                let Some(length) = payload_length(&line) else {
                    return self.unexpected(HEADER, &line);
                };
                (Payload::of_length(length), Some(length))
            }
        };
        self.state = State::Payload { offset, payload };
        self.event(Event::PayloadBegins { length });
    }

    fn take_payload(&mut self, now: Ticks, bytes: &mut Bytes) {
        let State::Payload { offset, payload } = &mut self.state else {
            return;
        };
        let offset = *offset;
        let outputs = &mut self.outputs;
        let complete = payload.take(bytes, |piece| {
            outputs.push_back(Output::Event(Event::Payload(piece)));
        });
        let Some(length) = complete else { return };
        self.event(Event::PayloadEnds { bytes: length });
        if self.options.rdb_only {
            self.state = State::Ended {
                offset: Some(offset),
            };
        } else {
            self.start_streaming(now, offset);
        }
    }

    /// The first acknowledgement goes out at once: behind an `$EOF` payload the master sends nothing before
    /// it (`protocol-facts` 1.6).
    fn start_streaming(&mut self, now: Ticks, offset: Offset) {
        self.state = State::Streaming {
            offset,
            ack_due: now,
        };
        self.send_ack(now);
    }

    fn send_ack(&mut self, now: Ticks) {
        let State::Streaming { ack_due, .. } = &mut self.state else {
            return;
        };
        *ack_due = now.plus(ACK_INTERVAL_MS);
        let ack = self.ack.to_string();
        let acknowledgement = match self.fack {
            None => command(&[b"REPLCONF", b"ACK", ack.as_bytes()]),
            Some(fack) => command(&[
                b"REPLCONF",
                b"ACK",
                ack.as_bytes(),
                b"FACK",
                fack.to_string().as_bytes(),
            ]),
        };
        self.outputs.push_back(Output::Send(acknowledgement));
    }

    /// Sends `request`, or the first after it that the options call for.
    fn request(&mut self, mut request: Request) {
        let spelled = loop {
            match request.spelled(&self.options) {
                Some(spelled) => break spelled,
                None => request = request.next(),
            }
        };
        self.outputs.push_back(Output::Send(spelled));
        self.state = State::Handshake {
            request,
            line: LineReader::default(),
        };
    }

    /// What a peer said that never came to a line end and looks like nothing a server says.
    fn garbage(&self) -> Option<Event> {
        match &self.state {
            State::Handshake { line, .. } if !matches!(line.first(), None | Some(b'+' | b'-')) => {
                Some(Event::Refused(Refusal::from_garbage(line.pending())))
            }
            State::Header { line, .. } if !matches!(line.first(), None | Some(b'$' | b'-')) => {
                Some(self.protocol_error(HEADER, line.pending()))
            }
            _ => None,
        }
    }

    fn patience_ms(&self) -> u64 {
        match self.state {
            State::Handshake { .. } | State::Header { .. } => self.options.handshake_timeout_ms,
            State::Payload { .. } | State::Streaming { .. } => self.options.idle_timeout_ms,
            State::Ended { .. } => u64::MAX,
        }
    }

    fn deadline(&self) -> Ticks {
        let silence = self.heard.plus(self.patience_ms());
        match self.state {
            State::Streaming { ack_due, .. } => silence.min(ack_due),
            _ => silence,
        }
    }

    fn password(&self) -> Option<&str> {
        self.options
            .auth
            .as_ref()
            .map(|auth| auth.password.as_str())
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    fn end(&mut self, event: Event) {
        self.state = State::Ended {
            offset: self.offset(),
        };
        self.event(event);
    }

    fn end_refused(&mut self, request: Request, line: &[u8]) {
        let refusal = Refusal::from_reply(request, line, self.password());
        self.end(Event::Refused(refusal));
    }

    fn unexpected(&mut self, expected: &'static str, found: &[u8]) {
        self.end(self.protocol_error(expected, found));
    }

    fn protocol_error(&self, expected: &'static str, found: &[u8]) -> Event {
        Event::ProtocolError {
            stage: self.stage(),
            expected,
            found: printable(found, HEAD_BYTES_MAX),
        }
    }
}

/// The number of a `$<length>` header.
fn payload_length(line: &[u8]) -> Option<u64> {
    let digits = line.strip_prefix(b"$")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
