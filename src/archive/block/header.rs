//! The header of a block, byte by byte, both ways.

use bytes::{BufMut, BytesMut};

use super::{
    BLOCK_RAW_BYTES_MAX, BlockContext, BlockError, BlockHeader, Boundary, Codec, Content,
    FORMAT_VERSION, HEADER_BYTES, MAGIC, MARK_BYTES, MARKS_PER_BLOCK_MAX, Mark, crc32c_of,
};
use crate::archive::layout::ArchiveId;
use crate::position::{Offset, ReplicationId, TimelineSeq, UnixMillis};

/// Required features that are known here: none yet.
const REQUIRED_FEATURES_KNOWN: u32 = 0;

const KIND_RDB: u8 = 1;
const KIND_COMMANDS: u8 = 2;
const KIND_END: u8 = 3;

const CODEC_RAW: u8 = 0;
const CODEC_ZSTD: u8 = 1;

/// The block does not end at a command boundary outside MULTI.
const FLAG_OPEN: u32 = 1;
/// The boundary's offset and database are given.
const FLAG_BOUNDARY: u32 = 1 << 1;

const DATABASE_UNKNOWN: i64 = -1;

/// Where the number of marks lies.
const MARK_COUNT_AT: usize = 152;
/// Where the header's own checksum lies: last, so that it covers all before it.
const CHECKSUM_AT: usize = HEADER_BYTES - 4;

/// Writes the header and its marks.
pub(super) fn encode(header: &BlockHeader, marks: &[Mark], out: &mut BytesMut) {
    let start = out.len();
    let (kind, first, last) = match header.content {
        Content::Rdb { first, last } => (KIND_RDB, first, last),
        Content::Commands { first, last } => (KIND_COMMANDS, first.as_u64(), last.as_u64()),
        Content::End { bytes } => (KIND_END, 0, bytes),
    };
    let mut flags = 0;
    if header.is_open() {
        flags |= FLAG_OPEN;
    }
    if header.boundary.is_some() {
        flags |= FLAG_BOUNDARY;
    }
    out.put_slice(&MAGIC);
    out.put_u16_le(FORMAT_VERSION);
    out.put_u8(kind);
    out.put_u8(match header.codec {
        Codec::Raw => CODEC_RAW,
        Codec::Zstd => CODEC_ZSTD,
    });
    out.put_u32_le(0); // required features
    out.put_u32_le(header.optional_features);
    out.put_u32_le(flags);
    out.put_u64_le(0); // key id
    out.put_slice(header.context.archive.raw());
    out.put_slice(header.context.id.raw());
    out.put_u32_le(header.context.timeline.as_u32());
    out.put_u64_le(first);
    out.put_u64_le(last);
    out.put_u64_le(header.boundary.map_or(0, |b| b.offset.as_u64()));
    put_database(out, header.database_start);
    put_database(out, header.database_end);
    put_database(out, header.boundary.and_then(|b| b.database));
    out.put_u64_le(header.first_at.0);
    out.put_u64_le(header.last_at.0);
    out.put_u32_le(header.raw_bytes);
    out.put_u32_le(header.stored_bytes);
    out.put_u32_le(header.raw_crc32c);
    out.put_u32_le(header.stored_crc32c);
    out.put_u32_le(header.mark_count);
    out.put_u32_le(0); // the checksum, once the marks are there
    for mark in marks {
        out.put_u64_le(mark.at.0);
        out.put_u64_le(mark.offset.as_u64());
    }
    let checksum = checksum(&out[start..]);
    out[start + CHECKSUM_AT..start + HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
}

/// Reads the header and the marks of the block that begins with `bytes`, without its payload. `None` where
/// more bytes are needed: at most [`HEADER_WITH_MARKS_BYTES_MAX`](super::HEADER_WITH_MARKS_BYTES_MAX).
/// `at` is the place of the first byte in the object, for errors.
///
/// # Errors
/// [`BlockError`]: not a block, from a newer version, or damaged.
pub fn decode_header(
    bytes: &[u8],
    at: u64,
) -> Result<Option<(BlockHeader, Vec<Mark>)>, BlockError> {
    check_magic(bytes, at)?;
    let Some(fixed) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    // The version decides where everything else lies, so it is looked at before the checksum.
    let version = u16::from_le_bytes(field(fixed, 8));
    if version == 0 || version > FORMAT_VERSION {
        return Err(BlockError::NewerVersion { at, version });
    }
    let mark_count = u32::from_le_bytes(field(fixed, MARK_COUNT_AT));
    if mark_count as usize > MARKS_PER_BLOCK_MAX {
        return Err(BlockError::TooMuch {
            at,
            what: "marks",
            found: mark_count,
            max: MARKS_PER_BLOCK_MAX,
        });
    }
    let header_bytes = HEADER_BYTES + mark_count as usize * MARK_BYTES;
    let Some(whole) = bytes.get(..header_bytes) else {
        return Ok(None);
    };
    let expected = u32::from_le_bytes(field(fixed, CHECKSUM_AT));
    let found = checksum(whole);
    if expected != found {
        return Err(BlockError::HeaderChecksum {
            at,
            expected,
            found,
        });
    }
    let required = u32::from_le_bytes(field(fixed, 12));
    if required & !REQUIRED_FEATURES_KNOWN != 0 {
        return Err(BlockError::UnknownFeatures {
            at,
            features: required & !REQUIRED_FEATURES_KNOWN,
        });
    }
    let header = read_fields(fixed, at)?;
    let marks = read_marks(&whole[HEADER_BYTES..]);
    check_sense(&header, &marks).map_err(|what| BlockError::Malformed { at, what })?;
    if header.is_open() != (flags(fixed) & FLAG_OPEN != 0) {
        let what = "the open flag does not agree with the boundary";
        return Err(BlockError::Malformed { at, what });
    }
    Ok(Some((header, marks)))
}

/// Fails as soon as the bytes that are there cannot be the beginning of a block.
pub(super) fn check_magic(bytes: &[u8], at: u64) -> Result<(), BlockError> {
    let compared = bytes.len().min(MAGIC.len());
    if bytes[..compared] == MAGIC[..compared] {
        return Ok(());
    }
    let mut found = [0; MAGIC.len()];
    found[..compared].copy_from_slice(&bytes[..compared]);
    Err(BlockError::BadMagic { at, found })
}

/// How long the header says it is with its marks, before anything of it was checked. The shorter of this and
/// what [`decode_header`] accepts decides; saturates.
pub(super) fn header_bytes_claimed(fixed: &[u8]) -> usize {
    let marks = fixed
        .get(MARK_COUNT_AT..)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |count| u32::from_le_bytes(*count));
    (marks as usize)
        .saturating_mul(MARK_BYTES)
        .saturating_add(HEADER_BYTES)
}

fn read_fields(fixed: &[u8; HEADER_BYTES], at: u64) -> Result<BlockHeader, BlockError> {
    let u64_at = |place| u64::from_le_bytes(field(fixed, place));
    let u32_at = |place| u32::from_le_bytes(field(fixed, place));
    let malformed = |what| BlockError::Malformed { at, what };
    let (first, last) = (u64_at(72), u64_at(80));
    let content = match fixed[10] {
        KIND_RDB => Content::Rdb { first, last },
        KIND_COMMANDS => Content::Commands {
            first: Offset::new(first),
            last: Offset::new(last),
        },
        KIND_END if first == 0 => Content::End { bytes: last },
        KIND_END => return Err(malformed("an end block with a first byte")),
        value => {
            let what = "kind";
            return Err(BlockError::Unsupported { at, what, value });
        }
    };
    let codec = match fixed[11] {
        CODEC_RAW => Codec::Raw,
        CODEC_ZSTD => Codec::Zstd,
        value => {
            let what = "codec";
            return Err(BlockError::Unsupported { at, what, value });
        }
    };
    if u64_at(24) != 0 {
        return Err(malformed("a key id without the feature that needs it"));
    }
    let boundary = Boundary {
        offset: Offset::new(u64_at(88)),
        database: database(fixed, 112).map_err(malformed)?,
    };
    Ok(BlockHeader {
        context: BlockContext {
            archive: ArchiveId::from_raw(field(fixed, 32)),
            id: ReplicationId::from_raw(field(fixed, 48)),
            timeline: TimelineSeq::new(u32_at(68)),
        },
        content,
        codec,
        optional_features: u32_at(16),
        boundary: (flags(fixed) & FLAG_BOUNDARY != 0).then_some(boundary),
        database_start: database(fixed, 96).map_err(malformed)?,
        database_end: database(fixed, 104).map_err(malformed)?,
        first_at: UnixMillis(u64_at(120)),
        last_at: UnixMillis(u64_at(128)),
        raw_bytes: u32_at(136),
        stored_bytes: u32_at(140),
        raw_crc32c: u32_at(144),
        stored_crc32c: u32_at(148),
        mark_count: u32_at(MARK_COUNT_AT),
    })
}

/// What must hold whoever wrote the block.
fn check_sense(header: &BlockHeader, marks: &[Mark]) -> Result<(), &'static str> {
    if header.raw_bytes as usize > BLOCK_RAW_BYTES_MAX {
        return Err("the payload is longer than a block may hold");
    }
    if header.raw_bytes == 0 {
        return Err("an empty payload");
    }
    let stored_fits = match header.codec {
        Codec::Raw => header.stored_bytes == header.raw_bytes,
        Codec::Zstd => header.stored_bytes < header.raw_bytes,
    };
    if !stored_fits {
        return Err("the stored length does not agree with the raw length");
    }
    match header.content {
        Content::Rdb { first, last } => {
            if last.checked_sub(first) != u64::from(header.raw_bytes).checked_sub(1) {
                return Err("the byte range does not agree with the raw length");
            }
            if header.boundary.is_none() || !marks.is_empty() {
                return Err("a snapshot's block without the snapshot's offset, or with marks");
            }
        }
        Content::End { .. } => {
            if header.boundary.is_none() || !marks.is_empty() {
                return Err("a snapshot's block without the snapshot's offset, or with marks");
            }
        }
        Content::Commands { first, last } => check_commands(header, first, last, marks)?,
    }
    Ok(())
}

fn check_commands(
    header: &BlockHeader,
    first: Offset,
    last: Offset,
    marks: &[Mark],
) -> Result<(), &'static str> {
    let covered = last.as_u64().checked_sub(first.as_u64());
    // Nothing can follow the highest number, so no block reaches it.
    let in_range = Offset::ZERO < first && last < Offset::new(u64::MAX);
    if !in_range || covered != u64::from(header.raw_bytes).checked_sub(1) {
        return Err("the offsets do not agree with the raw length");
    }
    let inside = |offset: Offset| (first..=last).contains(&offset);
    if header.boundary.is_some_and(|b| !inside(b.offset)) {
        return Err("the boundary lies outside the block");
    }
    if !marks.iter().all(|mark| inside(mark.offset)) {
        return Err("a mark lies outside the block");
    }
    if !marks.is_sorted_by_key(|mark| mark.offset) {
        return Err("the marks are not in the order of their offsets");
    }
    Ok(())
}

fn read_marks(bytes: &[u8]) -> Vec<Mark> {
    let (marks, _) = bytes.as_chunks::<MARK_BYTES>();
    marks
        .iter()
        .map(|mark| Mark {
            at: UnixMillis(u64::from_le_bytes(field(mark, 0))),
            offset: Offset::new(u64::from_le_bytes(field(mark, 8))),
        })
        .collect()
}

fn put_database(out: &mut BytesMut, database: Option<u32>) {
    out.put_i64_le(database.map_or(DATABASE_UNKNOWN, i64::from));
}

fn database(fixed: &[u8; HEADER_BYTES], place: usize) -> Result<Option<u32>, &'static str> {
    match i64::from_le_bytes(field(fixed, place)) {
        DATABASE_UNKNOWN => Ok(None),
        number => u32::try_from(number)
            .map(Some)
            .map_err(|_| "a database number that no server has"),
    }
}

fn flags(fixed: &[u8; HEADER_BYTES]) -> u32 {
    u32::from_le_bytes(field(fixed, 20))
}

/// The checksum of a header and its marks, leaving out the field that holds it.
fn checksum(header_and_marks: &[u8]) -> u32 {
    crc32c_of(&[
        &header_and_marks[..CHECKSUM_AT],
        &header_and_marks[HEADER_BYTES..],
    ])
}

/// `N` bytes at a place that lies inside the array at every call.
fn field<const N: usize>(bytes: &[u8], place: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[place..place + N]);
    field
}
