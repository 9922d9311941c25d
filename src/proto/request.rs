//! Single requests, decoded: what a replica asks of us, or one command of a replication stream that `resp`
//! has framed.

use bytes::{Buf, Bytes, BytesMut};
use redis_protocol::resp2::decode::decode_bytes;
use redis_protocol::resp2::types::BytesFrame;

use crate::position::Offset;

use super::handshake::printable;
use super::resp::{CommandCursor, Malformed};

/// The longest request accepted of a peer, bytes. The longest of a real replica has about 150.
pub const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// As much of an unreadable request as is repeated in a message, bytes.
const FOUND_BYTES_MAX: usize = 80;

/// The first byte of a TLS handshake record: `tls-replication yes` (`protocol-facts` 4.2).
const TLS_HANDSHAKE: u8 = 0x16;

/// A request that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RequestError {
    /// A request in RESP is malformed; offsets count from its first byte, 1.
    #[error("a request is malformed: {0}")]
    Malformed(Malformed),
    /// A request does not end.
    #[error("a request is longer than {REQUEST_BYTES_MAX} bytes, it begins with \"{found}\"")]
    TooLong {
        /// Its beginning.
        found: String,
    },
    /// A request is framed, but its arguments cannot be told apart.
    #[error("a request cannot be decoded, it begins with \"{found}\"")]
    Undecodable {
        /// Its beginning.
        found: String,
    },
    /// The peer wants TLS.
    #[error("the peer speaks TLS (tls-replication yes), this port does not")]
    Tls,
}

/// Splits a whole command, name first, into its arguments, which share its memory.
///
/// Nothing where `command` is not exactly one array of bulk strings as `resp` frames it; an empty array has
/// no arguments.
pub fn arguments(command: &Bytes) -> Option<Vec<Bytes>> {
    // The decoder knows nested arrays, and its stack does not survive deep ones.
    let step = CommandCursor::new(Offset::ZERO, None).step(command).ok()?;
    if step.end.is_none() || step.consumed != command.len() {
        return None;
    }
    if matches!(command.get(1), Some(b'-' | b'0')) {
        return Some(Vec::new());
    }
    match decode_bytes(command) {
        Ok(Some((BytesFrame::Array(items), used))) if used == command.len() => items
            .into_iter()
            .map(|item| match item {
                BytesFrame::BulkString(argument) => Some(argument),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

/// Gathers requests, in RESP or inline (2.8 to 4.0 send their handshake inline, `protocol-facts` 4.2).
#[derive(Debug, Default)]
pub(super) struct RequestReader {
    gathered: BytesMut,
    /// Bytes of the first request that are known not to end it.
    looked_at: usize,
    cursor: Option<CommandCursor>,
}

impl RequestReader {
    /// Takes bytes of the connection. Call [`next`](Self::next) until it gives nothing, or memory grows.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.gathered.extend_from_slice(bytes);
    }

    /// Whether more is waiting than one request may have.
    pub(super) fn is_full(&self) -> bool {
        self.gathered.len() > REQUEST_BYTES_MAX
    }

    /// The next whole request that is not empty, name first.
    pub(super) fn next(&mut self) -> Result<Option<Vec<Bytes>>, RequestError> {
        loop {
            let request = match self.gathered.first() {
                None => return Ok(None),
                Some(&TLS_HANDSHAKE) => return Err(RequestError::Tls),
                Some(b'*') => self.next_array()?,
                Some(_) => self.next_line()?,
            };
            match request {
                // Empty lines keep a link alive.
                Some(arguments) if arguments.is_empty() => {}
                other => return Ok(other),
            }
        }
    }

    fn next_array(&mut self) -> Result<Option<Vec<Bytes>>, RequestError> {
        let cursor = self
            .cursor
            .get_or_insert_with(|| CommandCursor::new(Offset::ZERO, None));
        let window = &self.gathered[..self.gathered.len().min(REQUEST_BYTES_MAX)];
        let step = cursor
            .step(&window[self.looked_at..])
            .map_err(RequestError::Malformed)?;
        self.looked_at += step.consumed;
        if step.end.is_none() {
            return self.wait_for_more();
        }
        let whole = self.take(self.looked_at);
        arguments(&whole)
            .map(Some)
            .ok_or_else(|| RequestError::Undecodable {
                found: printable(&whole, FOUND_BYTES_MAX),
            })
    }

    fn next_line(&mut self) -> Result<Option<Vec<Bytes>>, RequestError> {
        let window = &self.gathered[..self.gathered.len().min(REQUEST_BYTES_MAX)];
        let Some(end) = window[self.looked_at..].iter().position(|&b| b == b'\n') else {
            self.looked_at = window.len();
            return self.wait_for_more();
        };
        let line = self.take(self.looked_at + end + 1);
        Ok(Some(
            line.split(u8::is_ascii_whitespace)
                .filter(|word| !word.is_empty())
                .map(|word| line.slice_ref(word))
                .collect(),
        ))
    }

    fn wait_for_more(&self) -> Result<Option<Vec<Bytes>>, RequestError> {
        if self.gathered.len() < REQUEST_BYTES_MAX {
            return Ok(None);
        }
        Err(RequestError::TooLong {
            found: printable(&self.gathered, FOUND_BYTES_MAX),
        })
    }

    fn take(&mut self, bytes: usize) -> Bytes {
        self.looked_at = 0;
        self.cursor = None;
        let whole = self.gathered.split_to(bytes).freeze();
        if !self.gathered.has_remaining() {
            // Requests are short and rare: give the memory of a long one back.
            self.gathered = BytesMut::new();
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::super::handshake::command;
    use super::*;

    #[test]
    fn arguments_are_slices_of_the_command() {
        let whole = command(&[b"SET", b"", b"a\r\nb"]);
        let found = arguments(&whole).unwrap();
        assert_eq!(found, ["SET", "", "a\r\nb"]);
        assert!(whole.as_ptr_range().contains(&found[2].as_ptr()));
        assert_eq!(arguments(&Bytes::from_static(b"*0\r\n")), Some(vec![]));
        assert_eq!(arguments(&Bytes::from_static(b"*-7\r\n")), Some(vec![]));
    }

    #[test]
    fn only_one_whole_command_has_arguments() {
        for bytes in [
            "",
            "PING\r\n",
            "*1\r\n$4\r\nPIN",
            "*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n",
            "*1\r\n:4\r\n",
            "+OK\r\n",
        ] {
            assert_eq!(arguments(&Bytes::from(bytes)), None, "{bytes:?}");
        }
        let deep = Bytes::from("*1\r\n".repeat(100_000));
        assert_eq!(arguments(&deep), None, "and the stack survives");
    }

    #[test]
    fn requests_come_out_whatever_the_pieces() {
        let bytes = b"PING\r\n\n*2\r\n$4\r\nAUTH\r\n$3\r\na\nb\r\n*0\r\n  SYNC  now\n";
        for size in 1..=bytes.len() {
            let mut reader = RequestReader::default();
            let mut requests = Vec::new();
            for piece in bytes.chunks(size) {
                reader.push(piece);
                while let Some(request) = reader.next().unwrap() {
                    requests.push(request);
                }
            }
            let expected: [&[&str]; 3] = [&["PING"], &["AUTH", "a\nb"], &["SYNC", "now"]];
            assert_eq!(requests, expected, "in pieces of {size}");
        }
    }
}
