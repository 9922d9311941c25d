//! Our side of the link when a server follows us: it is seeded, continued, or refused. Which of these, and
//! with what bytes, is left to the caller.

mod answer;
mod events;

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;

use crate::position::{Offset, ReplicationId, Ticks};

use super::handshake::printable;
use super::request::RequestReader;
use answer::{Announced, Answer};

pub use super::handshake::{Auth, PsyncRequest};
pub use answer::UNKNOWN_COMMAND;
pub use events::{MasterEvent, MasterStage, Misuse, PsyncOffer, RefusedRequest};

/// How often a lone `\n` goes out while a replica waits for its payload to begin, milliseconds
/// (`protocol-facts` 4.5).
pub const NEWLINE_INTERVAL_MS: u64 = 1000;

/// The most requests on one connection before PSYNC. A real replica makes about six.
pub const HANDSHAKE_REQUESTS_MAX: u32 = 1000;

/// Whom to let in and how long to wait.
#[derive(Clone, Debug)]
pub struct MasterOptions {
    /// What a replica must say (its `masterauth`, `masteruser`). `None` lets everybody in, whatever password
    /// they say.
    pub auth: Option<Auth>,
    /// The longest time from the connection to a PSYNC that was let through, milliseconds.
    pub handshake_timeout_ms: u64,
    /// The longest silence of a replica behind its payload, milliseconds. While it loads it sends a byte now
    /// and then, afterwards an acknowledgement each second.
    pub ack_timeout_ms: u64,
}

/// What replicas are told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Readiness {
    /// It is not decided yet whether this server is to be seeded: PING and PSYNC are answered `-LOADING`,
    /// and a replica tries again each second.
    Undecided,
    /// Everything is answered `-ERR` and this text.
    Refusing(String),
    /// A PSYNC becomes an offer.
    Ready,
}

/// What the caller is to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MasterOutput {
    /// Send these bytes.
    Send(Bytes),
    /// Something happened.
    Event(MasterEvent),
    /// Nothing until the next input, or until this time: then call [`Master::time_passed`].
    Wait {
        /// [`Ticks`] of the largest number where there is nothing to wait for.
        until: Ticks,
    },
    /// Close the connection, once what came before is sent.
    Close,
}

/// ```text
///            refuse, postpone
///           +----------------+
///           v                |                       begin_payload, first payload
/// Handshake -----PSYNC----> Offered --full_resync--> Waiting ----------> Payload
///                            |                       (\n each second)       | last byte
///                            +-------------continue_with-----------------> Streaming
///
/// any: silent, nonsense --> Closed
/// ```
#[derive(Debug)]
enum State {
    Handshake(Dialogue),
    Offered(Dialogue),
    Waiting {
        length: Option<u64>,
        newline_due: Ticks,
    },
    Payload {
        length: u64,
        sent: u64,
    },
    Streaming {
        heard: Ticks,
    },
    Closed,
}

/// What a connection has said before its PSYNC was let through.
#[derive(Debug, Default)]
struct Dialogue {
    deadline: Ticks,
    requests: u32,
    announced: Announced,
}

/// The master's side of one connection, without I/O.
///
/// **After every input** (every method that takes `&mut self`) **drain [`poll_output`](Self::poll_output)
/// until it says [`MasterOutput::Wait`] or [`MasterOutput::Close`], before the next input.**
///
/// It sends no byte of replication stream that it was not given: not even a PING, which would make surviving
/// replicas of the same history differ without an error (`protocol-facts` 8).
pub struct Master {
    options: MasterOptions,
    readiness: Readiness,
    reader: RequestReader,
    state: State,
    outputs: VecDeque<MasterOutput>,
}

/// Without what was received: AUTH is among it.
impl fmt::Debug for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Master")
            .field("readiness", &self.readiness)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Master {
    /// Waits for the handshake on a connection that has just been accepted.
    pub fn new(options: MasterOptions, readiness: Readiness, now: Ticks) -> Self {
        let state = State::Handshake(Dialogue {
            deadline: now.plus(options.handshake_timeout_ms),
            ..Dialogue::default()
        });
        Self {
            options,
            readiness,
            reader: RequestReader::default(),
            state,
            outputs: VecDeque::new(),
        }
    }

    /// Changes what is said from the next request on.
    pub fn set_readiness(&mut self, readiness: Readiness) {
        self.readiness = readiness;
    }

    /// Takes bytes that the replica sent.
    pub fn receive(&mut self, now: Ticks, bytes: Bytes) {
        if let State::Streaming { heard } = &mut self.state
            && !bytes.is_empty()
        {
            *heard = now;
        }
        if matches!(self.state, State::Closed) {
            return;
        }
        self.reader.push(&bytes);
        self.requests();
        self.time_passed(now);
    }

    /// Sees what is due.
    pub fn time_passed(&mut self, now: Ticks) {
        match &mut self.state {
            State::Handshake(dialogue) if now >= dialogue.deadline => self.time_out(),
            State::Streaming { heard } if now >= heard.plus(self.options.ack_timeout_ms) => {
                self.time_out();
            }
            State::Waiting { newline_due, .. } if now >= *newline_due => {
                *newline_due = now.plus(NEWLINE_INTERVAL_MS);
                self.send_static(b"\n");
            }
            _ => {}
        }
    }

    /// What to do next. See the type's rule.
    pub fn poll_output(&mut self) -> MasterOutput {
        if let Some(output) = self.outputs.pop_front() {
            return output;
        }
        let until = match &self.state {
            State::Closed => return MasterOutput::Close,
            State::Handshake(dialogue) => dialogue.deadline,
            State::Waiting { newline_due, .. } => *newline_due,
            State::Streaming { heard } => heard.plus(self.options.ack_timeout_ms),
            State::Offered(_) | State::Payload { .. } => Ticks(u64::MAX),
        };
        MasterOutput::Wait { until }
    }

    /// What the link has come to.
    pub fn stage(&self) -> MasterStage {
        match self.state {
            State::Handshake(_) => MasterStage::Handshake,
            State::Offered(_) => MasterStage::Offered,
            State::Waiting { .. } => MasterStage::Waiting,
            State::Payload { .. } => MasterStage::Payload,
            State::Streaming { .. } => MasterStage::Streaming,
            State::Closed => MasterStage::Closed,
        }
    }

    /// Answers an offer: a payload that includes `offset`, then the replication stream of `id` after it.
    ///
    /// Until the payload begins, a `\n` each second keeps the link alive. With `payload_bytes` known, the
    /// first [`payload`](Self::payload) sends its header; else [`begin_payload`](Self::begin_payload) does.
    ///
    /// # Errors
    ///
    /// [`Misuse::WrongStage`] where no offer waits for an answer.
    pub fn full_resync(
        &mut self,
        now: Ticks,
        id: ReplicationId,
        offset: Offset,
        payload_bytes: Option<u64>,
    ) -> Result<(), Misuse> {
        if !matches!(self.state, State::Offered(_)) {
            return Err(self.wrong_stage("full_resync"));
        }
        self.send(format!("+FULLRESYNC {id} {offset}\r\n"));
        self.state = State::Waiting {
            length: payload_bytes,
            newline_due: now.plus(NEWLINE_INTERVAL_MS),
        };
        self.requests();
        Ok(())
    }

    /// Says how long the payload is, bytes, and that it begins.
    ///
    /// # Errors
    ///
    /// [`Misuse::WrongStage`] where no payload is due, [`Misuse::LengthChanged`] where another length was
    /// given to [`full_resync`](Self::full_resync).
    pub fn begin_payload(&mut self, now: Ticks, payload_bytes: u64) -> Result<(), Misuse> {
        let State::Waiting { length, .. } = self.state else {
            return Err(self.wrong_stage("begin_payload"));
        };
        if let Some(announced) = length
            && announced != payload_bytes
        {
            return Err(Misuse::LengthChanged {
                announced,
                given: payload_bytes,
            });
        }
        // Always `$<length>`: behind an `$EOF` payload stream bytes may get lost (protocol-facts 4.3).
        self.send(format!("${payload_bytes}\r\n"));
        self.state = State::Payload {
            length: payload_bytes,
            sent: 0,
        };
        self.end_payload(now);
        Ok(())
    }

    /// Sends some of the payload. After its last byte the link streams.
    ///
    /// # Errors
    ///
    /// [`Misuse::LengthUnknown`] before the length was said, [`Misuse::PayloadTooLong`] for more than that;
    /// then nothing of `bytes` is sent. [`Misuse::WrongStage`] where no payload is due.
    pub fn payload(&mut self, now: Ticks, bytes: Bytes) -> Result<(), Misuse> {
        if let State::Waiting { length, .. } = self.state {
            let length = length.ok_or(Misuse::LengthUnknown)?;
            if bytes.len() as u64 > length {
                return Err(too_long(length, 0, &bytes));
            }
            self.begin_payload(now, length)?;
        }
        if bytes.is_empty() && matches!(self.state, State::Payload { .. } | State::Streaming { .. })
        {
            return Ok(());
        }
        let State::Payload { length, sent } = &mut self.state else {
            return Err(self.wrong_stage("payload"));
        };
        if bytes.len() as u64 > *length - *sent {
            return Err(too_long(*length, *sent, &bytes));
        }
        *sent += bytes.len() as u64;
        self.outputs.push_back(MasterOutput::Send(bytes));
        self.end_payload(now);
        Ok(())
    }

    /// Answers an offer: the replication stream of `id` goes on where the replica asked. A replica that does
    /// not know `psync2` is not told the id.
    ///
    /// # Errors
    ///
    /// [`Misuse::WrongStage`] where no offer waits for an answer.
    pub fn continue_with(&mut self, now: Ticks, id: ReplicationId) -> Result<(), Misuse> {
        let State::Offered(dialogue) = &self.state else {
            return Err(self.wrong_stage("continue_with"));
        };
        if dialogue.announced.knows_psync2() {
            self.send(format!("+CONTINUE {id}\r\n"));
        } else {
            self.send_static(b"+CONTINUE\r\n");
        }
        self.state = State::Streaming { heard: now };
        self.requests();
        Ok(())
    }

    /// Sends some of the replication stream.
    ///
    /// # Errors
    ///
    /// [`Misuse::WrongStage`] before the payload is complete or the replica was continued.
    pub fn stream(&mut self, bytes: Bytes) -> Result<(), Misuse> {
        if !matches!(self.state, State::Streaming { .. }) {
            return Err(self.wrong_stage("stream"));
        }
        if !bytes.is_empty() {
            self.outputs.push_back(MasterOutput::Send(bytes));
        }
        Ok(())
    }

    /// Answers an offer with `-ERR` and `message`; the replica may ask again on the same connection.
    ///
    /// # Errors
    ///
    /// [`Misuse::WrongStage`] where no offer waits for an answer.
    pub fn refuse(&mut self, message: &str) -> Result<(), Misuse> {
        self.answer_offer("refuse", answer::error(message))
    }

    /// Answers an offer with `-LOADING`: the replica closes and tries again in a second.
    ///
    /// # Errors
    ///
    /// [`Misuse::WrongStage`] where no offer waits for an answer.
    pub fn postpone(&mut self) -> Result<(), Misuse> {
        self.answer_offer("postpone", Bytes::from_static(answer::UNDECIDED.as_bytes()))
    }

    fn answer_offer(&mut self, operation: &'static str, reply: Bytes) -> Result<(), Misuse> {
        let State::Offered(dialogue) = &mut self.state else {
            return Err(self.wrong_stage(operation));
        };
        self.state = State::Handshake(std::mem::take(dialogue));
        self.outputs.push_back(MasterOutput::Send(reply));
        self.requests();
        Ok(())
    }

    /// Whatever requests are there; those behind a PSYNC wait for its answer.
    fn requests(&mut self) {
        while !matches!(self.state, State::Closed | State::Offered(_)) {
            match self.reader.next() {
                Ok(None) => return,
                Ok(Some(arguments)) => self.request(&arguments),
                Err(error) => self.protocol_error(error.to_string()),
            }
        }
        if matches!(self.state, State::Offered(_)) && self.reader.is_full() {
            self.protocol_error("too many requests behind PSYNC".into());
        }
    }

    /// One request, name first.
    fn request(&mut self, arguments: &[Bytes]) {
        let State::Handshake(dialogue) = &mut self.state else {
            return self.acknowledgement(arguments);
        };
        dialogue.requests += 1;
        if dialogue.requests > HANDSHAKE_REQUESTS_MAX {
            return self.protocol_error(format!("more than {HANDSHAKE_REQUESTS_MAX} requests"));
        }
        let auth = self.options.auth.as_ref();
        match dialogue.announced.answer(auth, &self.readiness, arguments) {
            Answer::Nothing => {}
            Answer::Reply(reply) => self.outputs.push_back(MasterOutput::Send(reply)),
            Answer::Refused(reply, refused) => {
                self.outputs.push_back(MasterOutput::Send(reply));
                self.event(MasterEvent::Refused(refused));
            }
            Answer::Offer(offer) => {
                self.state = State::Offered(std::mem::take(dialogue));
                self.event(MasterEvent::Psync(offer));
            }
        }
    }

    /// After PSYNC a reply would land in the payload or the replication stream: there is nothing left to
    /// answer, only acknowledgements to hear.
    fn acknowledgement(&mut self, arguments: &[Bytes]) {
        match answer::acknowledgement(arguments) {
            Some((ack, fack)) => self.event(MasterEvent::Acked { ack, fack }),
            None => {
                let name = arguments.first().map_or(&[][..], |name| name);
                let found = format!("'{}' after PSYNC", printable(name, 40));
                self.protocol_error(found);
            }
        }
    }

    fn end_payload(&mut self, now: Ticks) {
        if let State::Payload { length, sent } = self.state
            && length == sent
        {
            self.state = State::Streaming { heard: now };
        }
    }

    fn time_out(&mut self) {
        let stage = self.stage();
        self.state = State::Closed;
        self.event(MasterEvent::TimedOut { stage });
    }

    fn protocol_error(&mut self, found: String) {
        let stage = self.stage();
        self.state = State::Closed;
        self.event(MasterEvent::ProtocolError { stage, found });
    }

    fn wrong_stage(&self, operation: &'static str) -> Misuse {
        Misuse::WrongStage {
            operation,
            stage: self.stage(),
        }
    }

    fn event(&mut self, event: MasterEvent) {
        self.outputs.push_back(MasterOutput::Event(event));
    }

    fn send(&mut self, text: String) {
        self.outputs
            .push_back(MasterOutput::Send(Bytes::from(text)));
    }

    fn send_static(&mut self, bytes: &'static [u8]) {
        self.outputs
            .push_back(MasterOutput::Send(Bytes::from_static(bytes)));
    }
}

fn too_long(announced: u64, sent: u64, bytes: &Bytes) -> Misuse {
    Misuse::PayloadTooLong {
        announced,
        sent,
        given: bytes.len() as u64,
    }
}

#[cfg(test)]
mod tests;
