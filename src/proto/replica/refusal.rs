//! What a server says instead of what we asked for, by meaning.

use super::super::handshake::printable;
use super::Request;

/// As much of an unknown peer's first words as is repeated in a message, bytes.
pub(super) const HEAD_BYTES_MAX: usize = 80;

/// As much of an error reply as is repeated in a message, bytes.
const REPLY_SHOWN_BYTES_MAX: usize = 300;

/// Why a server does not let us follow it. Spellings: `protocol-facts` 1.3, where not said otherwise.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// `-LOADING`: it reads its own data first.
    #[error("the server is loading its data")]
    Loading,
    /// `-NOMASTERLINK`, or `-ERR Can't SYNC while not connected with my master` (2.8, 3.2).
    #[error("the server is a replica whose own link to its master is down")]
    NoMasterLink,
    /// `-MASTERDOWN`: the same, and `replica-serve-stale-data` is off.
    #[error(
        "the server is a replica whose own link to its master is down, and it serves no stale data"
    )]
    MasterDown,
    /// `-NOAUTH`.
    #[error("the server wants a password")]
    AuthRequired,
    /// `-WRONGPASS`, or `-ERR invalid password` (5.0 and older).
    #[error("the server refuses the user name or password")]
    WrongPassword,
    /// `-NOPERM`: the user may not do what following needs.
    #[error(
        "the user has no permission for {command} (an ACL of +psync +replconf +info is enough): {reply}"
    )]
    NoPermission {
        /// The command that was refused.
        command: &'static str,
        /// The server's words.
        reply: String,
    },
    /// The server does not know PSYNC: it is no Redis, or older than 2.8, or a proxy, or renamed the command.
    #[error("the server does not know PSYNC: {0}")]
    PsyncUnsupported(String),
    /// What answers speaks another protocol.
    #[error("what answers is not Redis or Valkey, it says \"{head}\"")]
    NotRedis {
        /// Its first words.
        head: String,
    },
    /// What answers speaks TLS.
    #[error("the server speaks TLS on this port, connect with TLS")]
    WantsTls,
    /// `-BUSY`: a script runs.
    #[error("the server is busy with a script")]
    Busy,
    /// `-ERR max number of clients reached`.
    #[error("the server has reached its maxclients")]
    TooManyClients,
    /// `-DENIED`: protected mode, and we do not come over loopback.
    #[error("the server runs in protected mode and takes connections from its own machine only")]
    ProtectedMode,
    /// Anything else, in the server's words.
    #[error("the server refuses {command}: {reply}")]
    Other {
        /// The command that was refused.
        command: &'static str,
        /// The server's words.
        reply: String,
    },
}

impl Refusal {
    /// Whether the server may think otherwise in a while without anybody changing its configuration.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Loading
            | Self::NoMasterLink
            | Self::MasterDown
            | Self::Busy
            | Self::TooManyClients => true,
            Self::AuthRequired
            | Self::WrongPassword
            | Self::NoPermission { .. }
            | Self::PsyncUnsupported(_)
            | Self::NotRedis { .. }
            | Self::WantsTls
            | Self::ProtectedMode
            | Self::Other { .. } => false,
        }
    }

    /// Understands first words that are no reply at all.
    pub(super) fn from_garbage(head: &[u8]) -> Self {
        match head {
            // The record of a TLS alert, the answer to a request in the clear.
            [0x15, 0x03, ..] => Self::WantsTls,
            _ => Self::NotRedis {
                head: printable(head, HEAD_BYTES_MAX),
            },
        }
    }

    /// Understands a reply line that begins with `-`. `password` is kept out of it.
    pub(super) fn from_reply(request: Request, line: &[u8], password: Option<&str>) -> Self {
        let command = request.command();
        let reply = shown(line, password);
        let starts = |head: &str| line.starts_with(head.as_bytes());
        if starts("-LOADING") {
            Self::Loading
        } else if starts("-NOMASTERLINK") || starts("-ERR Can't SYNC while not connected") {
            Self::NoMasterLink
        } else if starts("-MASTERDOWN") {
            Self::MasterDown
        } else if starts("-NOAUTH") {
            Self::AuthRequired
        } else if starts("-WRONGPASS") || starts("-ERR invalid password") {
            Self::WrongPassword
        } else if starts("-NOPERM") {
            Self::NoPermission { command, reply }
        } else if starts("-BUSY") {
            Self::Busy
        } else if starts("-ERR max number of clients") {
            Self::TooManyClients
        } else if starts("-DENIED") {
            Self::ProtectedMode
        } else if request == Request::Psync && starts("-ERR unknown command") {
            Self::PsyncUnsupported(reply)
        } else {
            Self::Other { command, reply }
        }
    }
}

/// A reply as it may be printed: some servers repeat the arguments of a command they do not know.
pub(super) fn shown(line: &[u8], password: Option<&str>) -> String {
    let text = String::from_utf8_lossy(line);
    let text = match password {
        Some(password) if !password.is_empty() => text.replace(password, "***"),
        _ => text.into_owned(),
    };
    printable(text.as_bytes(), REPLY_SHOWN_BYTES_MAX)
}
