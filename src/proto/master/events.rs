//! What a master core tells its caller.

use std::fmt;

use crate::position::Offset;

use super::PsyncRequest;

/// What a link has come to, in the order of its life; for messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MasterStage {
    /// Answering requests before PSYNC.
    Handshake,
    /// The caller has an offer to answer.
    Offered,
    /// The replica waits for its payload to begin.
    Waiting,
    /// Sending the payload.
    Payload,
    /// Sending the replication stream.
    Streaming,
    /// Over.
    Closed,
}

impl fmt::Display for MasterStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Handshake => "the handshake",
            Self::Offered => "the answer to PSYNC",
            Self::Waiting => "the wait for the payload",
            Self::Payload => "the payload",
            Self::Streaming => "the replication stream",
            Self::Closed => "the end",
        })
    }
}

/// A replica asks to be served, and says what it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PsyncOffer {
    /// What it asks for. Servers since 4.0 offer an id of their own at their first byte when they hold
    /// nothing: continue only an id that is ours (`protocol-facts` 4.2).
    pub request: PsyncRequest,
    /// The port it listens on.
    pub listening_port: Option<u16>,
    /// The address it wants to be known by.
    pub ip_address: Option<String>,
    /// It understands a payload that ends with a mark.
    pub eof: bool,
    /// It understands a change of replication id (4.0+).
    pub psync2: bool,
    /// Its version; Valkey 8.0 and later say it.
    pub version: Option<String>,
}

/// A request that was refused and that somebody may want to know about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RefusedRequest {
    /// A wrong user name or password; nothing is answered on this connection any more but `-NOAUTH`.
    WrongPassword,
    /// PSYNC without a password where one is asked for.
    NoPassword,
    /// PSYNC before it was decided whether to serve.
    Undecided,
    /// PSYNC while everything is refused.
    Refusing,
    /// `PSYNC ... FAILOVER`: the peer wants us to become a master.
    Failover,
    /// PSYNC that cannot be read.
    BadPsync,
    /// `SYNC`, which has no replication id.
    Sync,
}

/// What happened on the link. After [`ProtocolError`](Self::ProtocolError) and
/// [`TimedOut`](Self::TimedOut) comes `Close`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MasterEvent {
    /// A replica asks to be served: answer with `full_resync`, `continue_with`, `refuse` or `postpone`.
    Psync(PsyncOffer),
    /// The replica has applied everything up to `ack`, and made it durable up to `fack` if it says so.
    Acked {
        /// Applied.
        ack: Offset,
        /// Durable in its AOF (7.2+ with AOF on).
        fack: Option<Offset>,
    },
    /// A request was refused; the connection stays.
    Refused(RefusedRequest),
    /// The peer says what no replica should.
    ProtocolError {
        /// Where in the dialogue.
        stage: MasterStage,
        /// What came.
        found: String,
    },
    /// The replica did not come to PSYNC, or was silent, for too long.
    TimedOut {
        /// Where in the dialogue.
        stage: MasterStage,
    },
}

/// The caller did what the dialogue does not allow; nothing was sent.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Misuse {
    /// The operation has no place here.
    #[error("{operation} has no place in {stage}")]
    WrongStage {
        /// What was called.
        operation: &'static str,
        /// Where in the dialogue.
        stage: MasterStage,
    },
    /// Payload bytes came before the payload's length.
    #[error("payload bytes before the payload's length was said")]
    LengthUnknown,
    /// Two lengths for one payload.
    #[error("the payload was announced with {announced} bytes, now with {given}")]
    LengthChanged {
        /// The first length, bytes.
        announced: u64,
        /// The second length, bytes.
        given: u64,
    },
    /// More payload than announced.
    #[error("{given} more bytes after {sent} are too many for a payload of {announced}")]
    PayloadTooLong {
        /// The payload's length, bytes.
        announced: u64,
        /// Bytes sent before.
        sent: u64,
        /// Bytes given now.
        given: u64,
    },
}
