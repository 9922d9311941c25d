//! Turns an RDB payload into the blocks of a snapshot while it passes, and back. The payload is stored as it
//! is, understood or not: only its head is read and its checksum compared.

mod head;
mod reader;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use serde::{Deserialize, Serialize};

use super::block::{BLOCK_RAW_BYTES_MAX, Boundary, Content, RawBlock, decode_header};
use super::layout::{Object, ObjectName, UNIX_MILLIS_MAX};
use super::pieces::Pieces;
use crate::position::{Offset, Position, ReplicationId, TimelineSeq, UnixMillis};

pub use head::{RDB_HEAD_BYTES_MAX, RdbHead, RdbMagic, leading_module_type, read_head};
pub use reader::{SnapshotReadError, SnapshotReader};

/// The length of the checksum at the end of an RDB payload, in bytes.
const TRAILER_BYTES: usize = 8;

/// The first RDB version whose payloads end with a checksum (code: redis `rdb.c`).
const CHECKSUM_SINCE_VERSION: u32 = 5;

/// The byte before the checksum.
const OPCODE_EOF: u8 = 0xff;

/// The fixed part of an end block's payload, in bytes: checksum and length.
const END_FIXED_BYTES: usize = 16;

/// An RDB payload cannot become a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The payload's own checksum differs from what its bytes give.
    #[error(
        "the RDB payload of {bytes} bytes is damaged: its checksum is {found:016x}, it says {expected:016x}"
    )]
    ChecksumMismatch {
        /// The checksum at the payload's end.
        expected: u64,
        /// What the bytes before it give.
        found: u64,
        /// The payload's length in bytes.
        bytes: u64,
    },
    /// Shorter than the shortest RDB payload.
    #[error("the RDB payload ends after {bytes} bytes")]
    TooShort {
        /// The payload's length in bytes.
        bytes: u64,
    },
    /// It has no checksum and does not end with the opcode for the end: cut short.
    #[error("the RDB payload of {bytes} bytes has no end")]
    NoEnd {
        /// The payload's length in bytes.
        bytes: u64,
    },
    /// It does not begin as an RDB payload does.
    #[error("not an RDB payload: it begins with {}", found.escape_ascii())]
    NotAnRdb {
        /// The first bytes, up to nine.
        found: Vec<u8>,
    },
}

/// What is known of a payload's own checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RdbChecksum {
    /// It is there and right.
    Verified,
    /// Eight zero bytes: the server runs with `rdbchecksum no`.
    Disabled,
    /// An RDB version below 5, which has none.
    Absent,
}

/// What is known of a whole RDB payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotSummary {
    /// Its length in bytes.
    pub bytes: u64,
    /// CRC-64 (Redis's polynomial) of all but its last eight bytes: what these eight say where a checksum is
    /// [`RdbChecksum::Verified`]. (Over those eight as well it would be zero for every such payload.)
    pub crc64: u64,
    /// What is known of its own checksum.
    pub checksum: RdbChecksum,
    /// What its head says.
    pub head: RdbHead,
}

/// The payload of an end block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotEnd {
    /// CRC-64 as in [`SnapshotSummary::crc64`].
    pub crc64: u64,
    /// The length of the RDB payload in bytes.
    pub bytes: u64,
    /// What was read of the payload; none where it is not there or cannot be read, which does no harm.
    pub facts: Option<SnapshotFacts>,
}

/// What a snapshot's end block tells without its payload.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotFacts {
    /// What is known of the payload's own checksum.
    pub checksum: RdbChecksum,
    /// Of a derived snapshot: the one with which the replay began.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "super::document::optional_position"
    )]
    pub replayed_from: Option<Position>,
    /// What the payload's head says.
    #[serde(flatten)]
    pub head: RdbHead,
}

impl SnapshotEnd {
    fn encode(summary: &SnapshotSummary, replayed_from: Option<Position>) -> Bytes {
        let facts = SnapshotFacts {
            checksum: summary.checksum,
            replayed_from,
            head: summary.head.clone(),
        };
        let mut payload = Vec::new();
        payload.extend_from_slice(&summary.crc64.to_le_bytes());
        payload.extend_from_slice(&summary.bytes.to_le_bytes());
        // Facts are a convenience: without them the snapshot is whole all the same.
        let facts = serde_json::to_vec(&facts).unwrap_or_default();
        if END_FIXED_BYTES + facts.len() <= BLOCK_RAW_BYTES_MAX {
            payload.extend_from_slice(&facts);
        }
        payload.into()
    }

    /// Reads the payload of an end block. `None` where it is shorter than its fixed part.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let (crc64, rest) = payload.split_first_chunk()?;
        let (bytes, facts) = rest.split_first_chunk()?;
        Some(Self {
            crc64: u64::from_le_bytes(*crc64),
            bytes: u64::from_le_bytes(*bytes),
            facts: serde_json::from_slice(facts).ok(),
        })
    }
}

/// The end block of a snapshot lies within this many last bytes of the object that ends it.
pub const END_BLOCK_BYTES_MAX: u64 = 256 * 1024;

/// The length of a payload, from the last bytes of the object that ends it; nothing where no end block is in them.
pub fn payload_bytes_in(tail: &[u8]) -> Option<u64> {
    // Headers bear a checksum of their own, so what decodes as one is one.
    (0..tail.len())
        .rev()
        .find_map(|at| match decode_header(&tail[at..], at as u64) {
            Ok(Some((header, _))) => match header.content {
                Content::End { bytes } => Some(bytes),
                Content::Rdb { .. } | Content::Commands { .. } => None,
            },
            _ => None,
        })
}

/// Turns an RDB payload into blocks while it passes.
#[derive(Debug)]
pub struct SnapshotBuilder {
    offset: Offset,
    at: UnixMillis,
    replayed_from: Option<Position>,
    scan: PayloadScan,
    pieces: Pieces,
    /// How many bytes of the payload lie in finished blocks.
    blocked: u64,
    ready: VecDeque<RawBlock>,
}

/// A finished snapshot.
#[derive(Debug)]
pub struct SealedSnapshot {
    /// What is known of the payload.
    pub summary: SnapshotSummary,
    /// The blocks that were not taken before, in order. The end block is the last.
    pub blocks: Vec<RawBlock>,
}

impl SnapshotBuilder {
    /// A snapshot taken at `offset`, which the master named at time `at`.
    pub fn new(offset: Offset, at: UnixMillis) -> Self {
        Self {
            offset,
            at: at.min(UNIX_MILLIS_MAX),
            replayed_from: None,
            scan: PayloadScan::new(),
            pieces: Pieces::default(),
            blocked: 0,
            ready: VecDeque::new(),
        }
    }

    /// It is derived: not made by a server that was followed, but by one that was filled with the snapshot at `from` and
    /// what came after it.
    #[must_use]
    pub const fn derived(mut self, from: Position) -> Self {
        self.replayed_from = Some(from);
        self
    }

    /// Where it stands.
    pub const fn offset(&self) -> Offset {
        self.offset
    }

    /// When it was taken.
    pub const fn at(&self) -> UnixMillis {
        self.at
    }

    /// Its name on a timeline, as one object.
    pub fn name(&self, timeline: TimelineSeq, id: ReplicationId) -> ObjectName {
        Object::Snapshot {
            seq: timeline,
            id,
            offset: self.offset,
            at: self.at,
            derived: self.replayed_from.is_some(),
        }
        .name()
    }

    /// Its first part on a timeline, where it may be too large for one object.
    pub const fn first_part(&self, timeline: TimelineSeq, id: ReplicationId) -> Object {
        Object::SnapshotPart {
            seq: timeline,
            id,
            offset: self.offset,
            at: self.at,
            derived: self.replayed_from.is_some(),
            part: 1,
            last: false,
        }
    }

    /// Appends the payload's next bytes. Compresses nothing, copies only small pieces.
    pub fn push(&mut self, mut bytes: Bytes) {
        self.scan.update(&bytes);
        while self.pieces.len() + bytes.len() >= BLOCK_RAW_BYTES_MAX {
            let room = BLOCK_RAW_BYTES_MAX - self.pieces.len();
            self.pieces.push(bytes.split_to(room));
            self.close_block();
        }
        if !bytes.is_empty() {
            self.pieces.push(bytes);
        }
    }

    /// The next block that is full, to be encoded elsewhere.
    pub fn take_ready(&mut self) -> Option<RawBlock> {
        self.ready.pop_front()
    }

    /// How many bytes of the payload have passed.
    pub const fn raw_bytes(&self) -> u64 {
        self.scan.bytes
    }

    /// Ends the payload: checks it, and only then makes the end block.
    ///
    /// # Errors
    /// [`SnapshotError`]: the payload is not whole and must not become a snapshot.
    pub fn finish(mut self) -> Result<SealedSnapshot, SnapshotError> {
        self.close_block();
        let summary = self.scan.finish()?;
        let end = RawBlock {
            content: Content::End {
                bytes: summary.bytes,
            },
            pieces: SnapshotEnd::encode(&summary, self.replayed_from).into(),
            ..Self::block(self.offset, self.at)
        };
        self.ready.push_back(end);
        Ok(SealedSnapshot {
            summary,
            blocks: self.ready.into(),
        })
    }

    /// What all blocks of a snapshot have in common.
    fn block(offset: Offset, at: UnixMillis) -> RawBlock {
        RawBlock {
            content: Content::End { bytes: 0 },
            pieces: Pieces::default(),
            marks: Vec::new(),
            boundary: Some(Boundary {
                offset,
                database: None,
            }),
            database_start: None,
            database_end: None,
            first_at: at,
            last_at: at,
        }
    }

    fn close_block(&mut self) {
        if self.pieces.is_empty() {
            return;
        }
        let pieces = std::mem::take(&mut self.pieces);
        let first = self.blocked;
        self.blocked += pieces.len() as u64;
        self.ready.push_back(RawBlock {
            content: Content::Rdb {
                first,
                last: self.blocked - 1,
            },
            pieces,
            ..Self::block(self.offset, self.at)
        });
    }
}

/// Looks at a payload while it passes: its head, its length and its checksum.
#[derive(Debug)]
struct PayloadScan {
    bytes: u64,
    head: Vec<u8>,
    digest: Digest,
    /// The last bytes so far, which may be the checksum and are not in `digest`.
    trailer: Vec<u8>,
    /// The last byte that is in `digest`.
    before_trailer: u8,
}

impl PayloadScan {
    fn new() -> Self {
        Self {
            bytes: 0,
            head: Vec::new(),
            digest: Digest::new(CrcAlgorithm::Crc64Redis),
            trailer: Vec::with_capacity(2 * TRAILER_BYTES),
            before_trailer: 0,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        let room = RDB_HEAD_BYTES_MAX.saturating_sub(self.head.len());
        self.head.extend_from_slice(&bytes[..bytes.len().min(room)]);

        // Only what can no longer be the checksum is digested.
        if let Some(beyond) = bytes.len().checked_sub(TRAILER_BYTES) {
            self.digest_bytes_of_trailer(self.trailer.len());
            let (passed, trailer) = bytes.split_at(beyond);
            self.digest.update(passed);
            self.before_trailer = passed.last().copied().unwrap_or(self.before_trailer);
            self.trailer.extend_from_slice(trailer);
        } else {
            self.trailer.extend_from_slice(bytes);
            let beyond = self.trailer.len().saturating_sub(TRAILER_BYTES);
            self.digest_bytes_of_trailer(beyond);
        }
    }

    fn digest_bytes_of_trailer(&mut self, count: usize) {
        self.digest.update(&self.trailer[..count]);
        if let Some(last) = self.trailer[..count].last() {
            self.before_trailer = *last;
        }
        self.trailer.drain(..count);
    }

    fn finish(self) -> Result<SnapshotSummary, SnapshotError> {
        let bytes = self.bytes;
        let Some(head) = read_head(&self.head) else {
            // An empty payload, or one that ends inside the magic, is short rather than foreign.
            return Err(if head::may_become_rdb(&self.head) {
                SnapshotError::TooShort { bytes }
            } else {
                let found = self.head[..self.head.len().min(head::MAGIC_BYTES)].to_vec();
                SnapshotError::NotAnRdb { found }
            });
        };
        let has_checksum = head.version >= CHECKSUM_SINCE_VERSION;
        let shortest = head::MAGIC_BYTES + 1 + if has_checksum { TRAILER_BYTES } else { 0 };
        if bytes < shortest as u64 {
            return Err(SnapshotError::TooShort { bytes });
        }
        let crc64 = self.digest.finalize();
        let checksum = if has_checksum {
            self.compare_trailer(crc64)?
        } else if self.trailer.last() == Some(&OPCODE_EOF) {
            RdbChecksum::Absent
        } else {
            return Err(SnapshotError::NoEnd { bytes });
        };
        Ok(SnapshotSummary {
            bytes,
            crc64,
            checksum,
            head,
        })
    }

    fn compare_trailer(&self, found: u64) -> Result<RdbChecksum, SnapshotError> {
        let trailer = self.trailer.first_chunk().copied().unwrap_or_default();
        let expected = u64::from_le_bytes(trailer);
        // A payload cut short inside zeros must not pass for one without a checksum.
        let ended = self.before_trailer == OPCODE_EOF;
        match expected {
            _ if expected == found => Ok(RdbChecksum::Verified),
            0 if ended => Ok(RdbChecksum::Disabled),
            0 => Err(SnapshotError::NoEnd { bytes: self.bytes }),
            _ => Err(SnapshotError::ChecksumMismatch {
                expected,
                found,
                bytes: self.bytes,
            }),
        }
    }
}
