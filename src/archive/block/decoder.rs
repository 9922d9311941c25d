//! Takes blocks out of an object's bytes as they arrive.

use bytes::{Bytes, BytesMut};

use super::header::{check_magic, decode_header, header_bytes_claimed};
use super::{Block, BlockHeader, Codec, FORMAT_VERSION, HEADER_BYTES, MARK_BYTES, Mark, crc32c};

/// A block cannot be used. `at` is the byte of the object at which the block begins.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BlockError {
    /// Not a block.
    #[error("byte {at}: not a block (it begins with {})", found.escape_ascii())]
    BadMagic {
        /// Where the block begins.
        at: u64,
        /// What is there; zeros past the end of the object.
        found: [u8; 8],
    },
    /// A later version moved or changed fields.
    #[error(
        "byte {at}: written by a newer Perennial (block format {version}), this one reads {FORMAT_VERSION}: upgrade"
    )]
    NewerVersion {
        /// Where the block begins.
        at: u64,
        /// The block's version.
        version: u16,
    },
    /// A feature that a reader must know is not known here.
    #[error("byte {at}: needs features {features:#x} that this Perennial does not know: upgrade")]
    UnknownFeatures {
        /// Where the block begins.
        at: u64,
        /// The unknown bits.
        features: u32,
    },
    /// A kind or codec that is not known here, though the version is.
    #[error("byte {at}: {what} {value} is not known here")]
    Unsupported {
        /// Where the block begins.
        at: u64,
        /// Which field.
        what: &'static str,
        /// Its value.
        value: u8,
    },
    /// More than a block may have.
    #[error("byte {at}: {found} {what}, at most {max} may be")]
    TooMuch {
        /// Where the block begins.
        at: u64,
        /// Of what.
        what: &'static str,
        /// How many.
        found: u32,
        /// The bound.
        max: usize,
    },
    /// The header or its marks are damaged.
    #[error(
        "byte {at}: the header is damaged (its checksum is {found:08x}, it says {expected:08x})"
    )]
    HeaderChecksum {
        /// Where the block begins.
        at: u64,
        /// What the header says.
        expected: u32,
        /// What its bytes give.
        found: u32,
    },
    /// The stored payload is damaged.
    #[error(
        "byte {at}: the stored payload is damaged (its checksum is {found:08x}, the header says {expected:08x})"
    )]
    StoredChecksum {
        /// Where the block begins.
        at: u64,
        /// What the header says.
        expected: u32,
        /// What the bytes give.
        found: u32,
    },
    /// The payload came out of decompression different from what went in.
    #[error(
        "byte {at}: the decompressed payload is damaged (its checksum is {found:08x}, the header says {expected:08x})"
    )]
    RawChecksum {
        /// Where the block begins.
        at: u64,
        /// What the header says.
        expected: u32,
        /// What the bytes give.
        found: u32,
    },
    /// The payload does not decompress to the length that the header says.
    #[error("byte {at}: the payload does not decompress to {expected} bytes: {detail}")]
    Decompress {
        /// Where the block begins.
        at: u64,
        /// The raw length in bytes.
        expected: u32,
        /// What came instead.
        detail: String,
    },
    /// The fields are whole but contradict each other.
    #[error("byte {at}: the header makes no sense: {what}")]
    Malformed {
        /// Where the block begins.
        at: u64,
        /// What contradicts.
        what: &'static str,
    },
    /// The object ends inside a block.
    #[error("byte {at}: the object ends inside this block, after {bytes} of its bytes")]
    Truncated {
        /// Where the block begins.
        at: u64,
        /// How many of its bytes are there.
        bytes: u64,
    },
}

/// Takes blocks out of an object's bytes, in pieces of any size.
///
/// After every [`push`](Self::push), call [`next`](Self::next) until it yields `None`; then it keeps at
/// most one block's bytes. An error is final: it comes again at every call.
#[derive(Debug)]
pub struct BlockDecoder {
    waiting: Waiting,
    /// The place in the object of the block that comes next.
    at: u64,
    header: Option<(BlockHeader, Vec<Mark>)>,
    zstd: Decompressor,
    failed: Option<BlockError>,
}

impl BlockDecoder {
    /// A decoder for an object from its first byte.
    pub fn new() -> Self {
        Self::starting_at(0)
    }

    /// A decoder from the block that begins at byte `at` of the object.
    pub fn starting_at(at: u64) -> Self {
        Self {
            waiting: Waiting::default(),
            at,
            header: None,
            zstd: Decompressor(None),
            failed: None,
        }
    }

    /// Takes the object's next bytes.
    pub fn push(&mut self, bytes: Bytes) {
        self.waiting.push(bytes);
    }

    /// The place in the object of the block that comes next.
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// The next block that is complete, checked.
    ///
    /// # Errors
    /// [`BlockError`]: what is wrong, and at which byte of the object.
    #[allow(
        clippy::should_implement_trait,
        reason = "fallible, and more may come after `None`"
    )]
    pub fn next(&mut self) -> Result<Option<Block>, BlockError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.try_next();
        if let Err(error) = &result {
            self.failed = Some(error.clone());
            self.waiting = Waiting::default();
        }
        result
    }

    /// Ends the object.
    ///
    /// # Errors
    /// [`BlockError::Truncated`] where a block is incomplete, or the error that came before.
    pub fn finish(self) -> Result<(), BlockError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let header_bytes = self.header.as_ref().map_or(0, |(_, marks)| {
            HEADER_BYTES as u64 + marks.len() as u64 * MARK_BYTES as u64
        });
        let bytes = header_bytes + self.waiting.len() as u64;
        if bytes == 0 {
            return Ok(());
        }
        Err(BlockError::Truncated { at: self.at, bytes })
    }

    fn try_next(&mut self) -> Result<Option<Block>, BlockError> {
        let (header, marks) = match self.header.take() {
            Some(header) => header,
            None => match self.next_header()? {
                Some(header) => header,
                None => return Ok(None),
            },
        };
        let Some(stored) = self.waiting.take(header.stored_bytes as usize) else {
            self.header = Some((header, marks));
            return Ok(None);
        };
        let payload = self.open(&header, stored)?;
        self.at = self.at.saturating_add(header.block_bytes());
        Ok(Some(Block {
            header,
            marks,
            payload,
        }))
    }

    fn next_header(&mut self) -> Result<Option<(BlockHeader, Vec<Mark>)>, BlockError> {
        // The bytes are put in a row only once the fixed part is there, and once more for the marks.
        let Some(fixed) = self.waiting.peek(HEADER_BYTES) else {
            return check_magic(self.waiting.begin(), self.at).map(|()| None);
        };
        let claimed = header_bytes_claimed(fixed);
        let row = if self.waiting.len() < claimed {
            HEADER_BYTES
        } else {
            claimed
        };
        let row = self.waiting.peek(row).unwrap_or_default();
        let decoded = decode_header(row, self.at)?;
        if decoded.is_some() {
            self.waiting.take(claimed);
        }
        Ok(decoded)
    }

    /// Checks and decompresses a payload.
    fn open(&mut self, header: &BlockHeader, stored: Bytes) -> Result<Bytes, BlockError> {
        let at = self.at;
        let found = crc32c(&stored);
        if found != header.stored_crc32c {
            return Err(BlockError::StoredChecksum {
                at,
                expected: header.stored_crc32c,
                found,
            });
        }
        let raw = match header.codec {
            // The same bytes: their checksum is known.
            Codec::Raw if header.raw_crc32c == found => return Ok(stored),
            Codec::Raw => stored,
            Codec::Zstd => self
                .zstd
                .decompress(&stored, header.raw_bytes as usize)
                .map_err(|detail| BlockError::Decompress {
                    at,
                    expected: header.raw_bytes,
                    detail,
                })?,
        };
        let found = crc32c(&raw);
        if found != header.raw_crc32c {
            return Err(BlockError::RawChecksum {
                at,
                expected: header.raw_crc32c,
                found,
            });
        }
        Ok(raw)
    }
}

impl Default for BlockDecoder {
    fn default() -> Self {
        Self::new()
    }
}

/// Checks that `bytes` are whole blocks, one after the other, and says how many. Keeps none of them.
///
/// # Errors
/// [`BlockError`]: what is wrong, and at which byte.
pub fn check_blocks(bytes: Bytes) -> Result<u64, BlockError> {
    let mut decoder = BlockDecoder::new();
    decoder.push(bytes);
    let mut blocks = 0;
    while decoder.next()?.is_some() {
        blocks += 1;
    }
    decoder.finish()?;
    Ok(blocks)
}

/// A decompression context, made when it is first needed and used again.
struct Decompressor(Option<zstd::bulk::Decompressor<'static>>);

impl Decompressor {
    /// Never writes more than `raw_bytes`, which the header has already bounded.
    fn decompress(&mut self, stored: &[u8], raw_bytes: usize) -> Result<Bytes, String> {
        if self.0.is_none() {
            self.0 = Some(zstd::bulk::Decompressor::new().map_err(|error| error.to_string())?);
        }
        let Some(zstd) = &mut self.0 else {
            return Err("no decompressor".to_owned());
        };
        let mut raw = vec![0; raw_bytes];
        let written = zstd
            .decompress_to_buffer(stored, raw.as_mut_slice())
            .map_err(|error| error.to_string())?;
        if written != raw_bytes {
            return Err(format!("{written} bytes"));
        }
        Ok(raw.into())
    }
}

impl std::fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decompressor").finish_non_exhaustive()
    }
}

/// Bytes that were pushed and not yet used. What arrives in one piece is never copied.
#[derive(Debug, Default)]
struct Waiting {
    front: Bytes,
    rest: BytesMut,
}

impl Waiting {
    fn push(&mut self, bytes: Bytes) {
        if self.front.is_empty() && self.rest.is_empty() {
            self.front = bytes;
        } else {
            self.rest.extend_from_slice(&bytes);
        }
    }

    fn len(&self) -> usize {
        self.front.len() + self.rest.len()
    }

    /// The next bytes that lie in a row, however few.
    fn begin(&self) -> &[u8] {
        if self.front.is_empty() {
            &self.rest
        } else {
            &self.front
        }
    }

    fn peek(&mut self, bytes: usize) -> Option<&[u8]> {
        self.join(bytes)?;
        self.front.get(..bytes)
    }

    fn take(&mut self, bytes: usize) -> Option<Bytes> {
        self.join(bytes)?;
        Some(self.front.split_to(bytes))
    }

    /// Puts at least `bytes` in a row, where that many are there.
    fn join(&mut self, bytes: usize) -> Option<()> {
        if self.len() < bytes {
            return None;
        }
        if self.front.len() < bytes {
            let mut row = BytesMut::with_capacity(self.len());
            row.extend_from_slice(&self.front);
            row.extend_from_slice(&self.rest);
            self.rest.clear();
            self.front = row.freeze();
        }
        Some(())
    }
}
