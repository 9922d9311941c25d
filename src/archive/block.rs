//! The unit inside a snapshot or segment object: a header with checksums, marks and a compressed payload.
//! Which blocks make an object is left to `archive::segment` and `archive::snapshot`.
//!
//! A block can be checked and used alone, and objects are blocks one after the other. `docs/format.md`
//! gives every byte.

mod decoder;
mod header;
#[cfg(test)]
mod tests;

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use crc_fast::CrcAlgorithm;

use super::layout::ArchiveId;
use super::pieces::Pieces;
use crate::position::{Offset, ReplicationId, TimelineSeq, UnixMillis};

pub use decoder::{BlockDecoder, BlockError, check_blocks};
pub use header::decode_header;

/// The version of the block format written here, and the highest that is read.
pub const FORMAT_VERSION: u16 = 1;

/// The most payload bytes in a block, before compression. Bounds what a reader allocates for one.
pub const BLOCK_RAW_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The most marks in a block.
pub const MARKS_PER_BLOCK_MAX: usize = 1024;

/// Marks lie at least this far apart, in milliseconds.
pub const MARK_INTERVAL_MILLIS_MIN: u64 = 10;

/// The fixed part of a header, in bytes.
pub const HEADER_BYTES: usize = 160;

/// One mark, in bytes.
pub const MARK_BYTES: usize = 16;

/// The longest header with its marks, in bytes: what a reader of headers alone asks for.
pub const HEADER_WITH_MARKS_BYTES_MAX: usize = HEADER_BYTES + MARKS_PER_BLOCK_MAX * MARK_BYTES;

/// Level 1 everywhere: a higher one gains nothing on the replication stream and costs the master's core.
const COMPRESSION_LEVEL: i32 = 1;

/// The first bytes of every block. The byte above 127 and the line feed show a transfer that took the object
/// for text.
const MAGIC: [u8; 8] = *b"\x89PRNBLK\n";

/// What a block belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockContext {
    /// The archive.
    pub archive: ArchiveId,
    /// The timeline's number.
    pub timeline: TimelineSeq,
    /// The timeline's replication id.
    pub id: ReplicationId,
}

/// What a block holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Bytes `first..=last` of an RDB payload, counted from 0.
    Rdb {
        /// The first byte's place.
        first: u64,
        /// The last byte's place.
        last: u64,
    },
    /// Bytes `first..=last` of the replication stream.
    Commands {
        /// The first byte's offset.
        first: Offset,
        /// The last byte's offset.
        last: Offset,
    },
    /// The end of a snapshot: its payload is [`SnapshotEnd`](super::snapshot::SnapshotEnd).
    End {
        /// The length of the whole RDB payload in bytes.
        bytes: u64,
    },
}

impl Content {
    /// The word for this kind of block in messages.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Rdb { .. } => "rdb",
            Self::Commands { .. } => "commands",
            Self::End { .. } => "end",
        }
    }
}

/// How a payload is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Codec {
    /// As it is.
    Raw,
    /// One zstd frame.
    Zstd,
}

/// A place between two commands, outside MULTI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Boundary {
    /// The last byte of the command (or EXEC) before it.
    pub offset: Offset,
    /// The database selected there, where it is known.
    pub database: Option<u32>,
}

/// At `at`, everything up to and including `offset` had been received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// When, as the clock gave it.
    pub at: UnixMillis,
    /// The last byte received.
    pub offset: Offset,
}

/// What a block says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockHeader {
    /// What it belongs to.
    pub context: BlockContext,
    /// What it holds.
    pub content: Content,
    /// How the payload is stored.
    pub codec: Codec,
    /// Features that readers may pass over.
    pub optional_features: u32,
    /// Commands: the last command boundary outside MULTI that is known to lie in this block. Rdb and end:
    /// where the snapshot was taken.
    pub boundary: Option<Boundary>,
    /// The database selected before the first byte, where it is known.
    pub database_start: Option<u32>,
    /// The database selected after the last byte, where it is known.
    pub database_end: Option<u32>,
    /// When the first bytes were received.
    pub first_at: UnixMillis,
    /// When the last bytes were received.
    pub last_at: UnixMillis,
    /// The payload's length in bytes, before compression.
    pub raw_bytes: u32,
    /// The payload's length in bytes, as stored.
    pub stored_bytes: u32,
    /// How many marks follow the header.
    pub mark_count: u32,
    /// CRC-32C of the payload before compression.
    pub raw_crc32c: u32,
    /// CRC-32C of the payload as stored.
    pub stored_crc32c: u32,
}

impl BlockHeader {
    /// `true` for commands that do not end at a command boundary outside MULTI.
    pub fn is_open(&self) -> bool {
        match self.content {
            Content::Commands { last, .. } => self.boundary.map(|b| b.offset) != Some(last),
            Content::Rdb { .. } | Content::End { .. } => false,
        }
    }

    /// The length of the whole block in its object, in bytes: the next one begins that far on.
    pub fn block_bytes(&self) -> u64 {
        let header = HEADER_BYTES + self.mark_count as usize * MARK_BYTES;
        header as u64 + u64::from(self.stored_bytes)
    }
}

/// A block that was read and checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    /// What it says of itself.
    pub header: BlockHeader,
    /// When its bytes were received, in the order of their offsets.
    pub marks: Vec<Mark>,
    /// The bytes, decompressed.
    pub payload: Bytes,
}

/// A block before compression: gathered on the way of the data, encoded wherever there is a core to spare.
#[derive(Debug)]
pub struct RawBlock {
    pub(super) content: Content,
    pub(super) pieces: Pieces,
    pub(super) marks: Vec<Mark>,
    pub(super) boundary: Option<Boundary>,
    pub(super) database_start: Option<u32>,
    pub(super) database_end: Option<u32>,
    pub(super) first_at: UnixMillis,
    pub(super) last_at: UnixMillis,
}

impl RawBlock {
    /// What it holds.
    pub const fn content(&self) -> Content {
        self.content
    }

    /// The payload's length in bytes.
    pub const fn raw_bytes(&self) -> usize {
        self.pieces.len()
    }

    /// The stored bytes of the block. Pure computation: about 3 ms for 1 MiB.
    ///
    /// # Panics
    /// Where the block holds more than [`BLOCK_RAW_BYTES_MAX`] or [`MARKS_PER_BLOCK_MAX`]: the builders
    /// make no such block.
    pub fn encode(self, context: &BlockContext, compressor: &mut Compressor) -> Bytes {
        assert!(self.pieces.len() <= BLOCK_RAW_BYTES_MAX, "block too long");
        assert!(self.marks.len() <= MARKS_PER_BLOCK_MAX, "too many marks");
        let Compressor {
            zstd,
            input,
            output,
        } = compressor;
        let raw = self.pieces.contiguous(input);
        let compressed = compress(zstd, &raw, output);
        let (codec, stored) = match compressed {
            Some(compressed) => (Codec::Zstd, compressed),
            None => (Codec::Raw, &*raw),
        };
        let header = BlockHeader {
            context: *context,
            content: self.content,
            codec,
            optional_features: 0,
            boundary: self.boundary,
            database_start: self.database_start,
            database_end: self.database_end,
            first_at: self.first_at,
            last_at: self.last_at,
            raw_bytes: length_u32(raw.len()),
            stored_bytes: length_u32(stored.len()),
            mark_count: length_u32(self.marks.len()),
            raw_crc32c: crc32c(&raw),
            stored_crc32c: crc32c(stored),
        };
        let bytes = HEADER_BYTES + self.marks.len() * MARK_BYTES + stored.len();
        let mut block = BytesMut::with_capacity(bytes);
        header::encode(&header, &self.marks, &mut block);
        block.put_slice(stored);
        block.freeze()
    }
}

/// The compressed bytes, or `None` where that gains nothing.
fn compress<'a>(
    zstd: &mut zstd::bulk::Compressor<'static>,
    raw: &[u8],
    output: &'a mut Vec<u8>,
) -> Option<&'a [u8]> {
    output.clear();
    output.reserve(zstd::zstd_safe::compress_bound(raw.len()));
    // An error can only mean that memory ran out: stored as it is, the block is whole all the same.
    zstd.compress_to_buffer(raw, output).ok()?;
    (output.len() < raw.len()).then_some(output.as_slice())
}

/// A compression context and its buffers, to be used again for block after block. About 1 MiB, and twice
/// the longest payload it has seen.
pub struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Compressor {
    /// A compressor at the level used for everything.
    pub fn new() -> Self {
        Self {
            zstd: zstd::bulk::Compressor::new(COMPRESSION_LEVEL)
                .expect("level 1 without a dictionary is always accepted"),
            input: Vec::new(),
            output: Vec::new(),
        }
    }
}

impl Default for Compressor {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

/// CRC-32C (Castagnoli), which cloud stores speak natively.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_of(&[bytes])
}

fn crc32c_of(parts: &[&[u8]]) -> u32 {
    let mut digest = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    u32::try_from(digest.finalize()).expect("a 32-bit checksum fits in 32 bits")
}

fn length_u32(length: usize) -> u32 {
    u32::try_from(length).expect("checked against the bounds of a block, which fit in 32 bits")
}
