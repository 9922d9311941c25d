//! The words both sides of a handshake share: the password, the position asked for, how a request is spelled.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use crate::position::{Offset, ReplicationId};

/// A name and password for AUTH.
#[derive(Clone, PartialEq, Eq)]
pub struct Auth {
    /// The ACL user (6.0+). `None`: the default user where we say it, whatever user where we are told it.
    pub user: Option<String>,
    /// The password. Never printed.
    pub password: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// What a replica asks of a master.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PsyncRequest {
    /// Everything: `PSYNC ? -1`.
    Full,
    /// What comes after a position it holds: `PSYNC <id> <after + 1>`.
    Continue {
        /// The history it holds.
        id: ReplicationId,
        /// The last byte it holds.
        after: Offset,
    },
}

/// A request as servers spell it: an array of bulk strings.
pub fn command(arguments: &[&[u8]]) -> Bytes {
    let body: usize = arguments.iter().map(|argument| argument.len()).sum();
    let mut line = BytesMut::with_capacity(body + 16 * (arguments.len() + 1));
    line.put_slice(format!("*{}\r\n", arguments.len()).as_bytes());
    for argument in arguments {
        line.put_slice(format!("${}\r\n", argument.len()).as_bytes());
        line.put_slice(argument);
        line.put_slice(b"\r\n");
    }
    line.freeze()
}

/// At most `bytes_max` of what a peer said, printable.
pub(super) fn printable(bytes: &[u8], bytes_max: usize) -> String {
    let shown = &bytes[..bytes.len().min(bytes_max)];
    let mut text = String::with_capacity(shown.len() + 3);
    for &byte in shown {
        match byte {
            b'\'' | b'"' => text.push(char::from(byte)),
            _ => text.extend(byte.escape_ascii().map(char::from)),
        }
    }
    if shown.len() < bytes.len() {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_printed() {
        let auth = Auth {
            user: Some("backup".into()),
            password: "hunter2".into(),
        };
        assert_eq!(format!("{auth:?}"), "Auth { user: Some(\"backup\"), .. }");
    }

    #[test]
    fn a_request_is_an_array_of_bulk_strings() {
        assert_eq!(
            command(&[b"REPLCONF", b"ACK", b"0"]),
            "*3\r\n$8\r\nREPLCONF\r\n$3\r\nACK\r\n$1\r\n0\r\n"
        );
        assert_eq!(command(&[b""]), "*1\r\n$0\r\n\r\n");
    }

    #[test]
    fn what_a_peer_said_is_cut_and_escaped() {
        assert_eq!(printable(b"HTTP/1.1\r\n\xff", 80), "HTTP/1.1\\r\\n\\xff");
        assert_eq!(printable(b"abcdef", 3), "abc...");
        assert_eq!(printable(b"it's \"so\"\\", 80), "it's \"so\"\\\\");
    }
}
