//! What a replica core tells its caller.

use std::fmt;

use bytes::Bytes;

use crate::position::{Offset, ReplicationId, Ticks};

use super::{Refusal, Request};

/// What a link has come to, in the order of its life; for messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Waiting for the reply to this request.
    Handshake {
        /// The request that was sent last.
        request: Request,
    },
    /// Waiting for the payload to begin.
    PayloadHeader,
    /// Receiving the payload.
    Payload,
    /// Receiving the replication stream.
    Streaming,
    /// Nothing more is expected: after a terminal event, or after the payload where only that was wanted.
    Ended,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handshake { request } => write!(f, "waiting for the reply to {request}"),
            Self::PayloadHeader => f.write_str("waiting for the payload to begin"),
            Self::Payload => f.write_str("receiving the payload"),
            Self::Streaming => f.write_str("receiving the replication stream"),
            Self::Ended => f.write_str("at the end"),
        }
    }
}

/// What happened on the link. After [`Refused`](Self::Refused), [`TimedOut`](Self::TimedOut),
/// [`ProtocolError`](Self::ProtocolError) and [`Closed`](Self::Closed) nothing more happens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The server does not take an option; the handshake goes on. It comes before the next request is sent,
    /// so a caller who cannot do without the option closes the connection.
    OptionRefused {
        /// The option's name; `AUTH` for a server that has no password.
        option: &'static str,
        /// The server's words.
        reply: String,
    },
    /// The server does not let us follow.
    Refused(Refusal),
    /// The server sends everything: a payload, then the replication stream from `offset + 1`.
    FullResync {
        /// The history it belongs to.
        id: ReplicationId,
        /// What the payload includes.
        offset: Offset,
    },
    /// The server goes on exactly where we asked.
    Continued {
        /// The history from here on; `None` for a bare `+CONTINUE` (2.8, 3.2): the one asked for.
        id: Option<ReplicationId>,
    },
    /// The payload begins.
    PayloadBegins {
        /// Its length, bytes; `None` where it ends with a mark.
        length: Option<u64>,
    },
    /// Some of the payload.
    Payload(Bytes),
    /// The payload is complete.
    PayloadEnds {
        /// Its length, bytes.
        bytes: u64,
    },
    /// Some of the replication stream.
    Stream(Bytes),
    /// The server was silent for too long.
    TimedOut {
        /// What we were waiting for.
        stage: Stage,
        /// For how long, milliseconds.
        silent_ms: u64,
    },
    /// The server says what no server should.
    ProtocolError {
        /// Where in the dialogue.
        stage: Stage,
        /// What should have come.
        expected: &'static str,
        /// What came, cut and escaped.
        found: String,
    },
    /// The server closed the connection.
    Closed {
        /// What we were waiting for.
        stage: Stage,
    },
}

/// What the caller is to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Send these bytes.
    Send(Bytes),
    /// Something happened.
    Event(Event),
    /// Nothing until the next input, or until this time: then call [`Replica::time_passed`](super::Replica::time_passed).
    Wait {
        /// [`Ticks`] of the largest number where there is nothing to wait for.
        until: Ticks,
    },
}
