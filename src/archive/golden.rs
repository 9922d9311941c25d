//! Objects as they were first stored, kept in `tests/fixtures/archive` with what they mean as text beside
//! them: a change to stored bytes fails here.
//!
//! `UPDATE_FIXTURES=1` writes them anew. Where that changes a `.blocks` file, objects already stored are
//! concerned: `docs/format.md` and the format version change with it.

use std::fmt::Write as _;
use std::path::PathBuf;

use bytes::Bytes;

use super::block::{Block, BlockContext, Codec, Compressor, RawBlock};
use super::layout::{ArchiveId, Object};
use super::segment::{Chunk, SegmentBuilder, verify_segment};
use super::snapshot::{SnapshotBuilder, SnapshotReader};
use crate::position::{Offset, TimelineSeq, UnixMillis};

const SEGMENT: &str = "timelines/00000007-00112233445566778899aabbccddeeff00112233/segments/\
    00000000000000001001-00000000000000001454-1700000000000-1700000000123.blocks";
const SNAPSHOT: &str = "timelines/00000007-00112233445566778899aabbccddeeff00112233/snapshots/\
    00000000000000001000-1700000000000.rdb.blocks";

fn context() -> BlockContext {
    BlockContext {
        archive: ArchiveId::from_raw(*b"archive-id-bytes"),
        timeline: TimelineSeq::new(7),
        id: "00112233445566778899aabbccddeeff00112233".parse().unwrap(),
    }
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/archive")
        .join(name)
}

/// The fixture's bytes; with `UPDATE_FIXTURES=1` those of `made`, which are written.
fn stored(name: &str, made: &[u8]) -> Bytes {
    if std::env::var_os("UPDATE_FIXTURES").is_some_and(|value| value == "1") {
        std::fs::write(fixture(name), made).unwrap();
    }
    std::fs::read(fixture(name)).unwrap().into()
}

fn encoded(blocks: Vec<RawBlock>) -> Bytes {
    let mut compressor = Compressor::new();
    let blocks: Vec<Bytes> = blocks
        .into_iter()
        .map(|block| block.encode(&context(), &mut compressor))
        .collect();
    blocks.concat().into()
}

fn segment() -> Bytes {
    let mut builder = SegmentBuilder::new(Offset::new(1000), Some(3));
    // Compressed.
    let set = b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$5\r\nvalue\r\n".repeat(12);
    let end = Offset::new(1000 + set.len() as u64);
    builder.push(Chunk {
        bytes: set.into(),
        at: UnixMillis(1_700_000_000_000),
        boundary: Some((end, Some(3))),
        database_at_end: Some(3),
    });
    let mut blocks = builder.finish().unwrap().blocks;
    // Stored as it is, and ending inside a command.
    let mut builder = SegmentBuilder::new(end, Some(3));
    builder.push(Chunk {
        bytes: Bytes::from_static(b"*2\r\n$6\r\nSELECT\r\n$2\r\n11\r\n*1\r\n"),
        at: UnixMillis(1_700_000_000_100),
        boundary: Some((end.plus(24), Some(11))),
        database_at_end: Some(11),
    });
    builder.push(Chunk {
        bytes: Bytes::from_static(b"$4\r\nPING\r\n*3\r\n$3\r\nSET\r\n$3\r\n!~:"),
        at: UnixMillis(1_700_000_000_123),
        boundary: Some((end.plus(38), Some(11))),
        database_at_end: None,
    });
    blocks.extend(builder.finish().unwrap().blocks);
    encoded(blocks)
}

fn snapshot() -> Bytes {
    let payload = std::fs::read(fixture("redis-7.0.15.rdb")).unwrap();
    let mut builder = SnapshotBuilder::new(Offset::new(1000), UnixMillis(1_700_000_000_000));
    builder.push(payload.into());
    encoded(builder.finish().unwrap().blocks)
}

/// What a block means, in text.
fn described(block: &Block) -> String {
    let mut text = format!("{:#?}\n", block.header);
    for mark in &block.marks {
        writeln!(text, "mark {} {}", mark.at.0, mark.offset).unwrap();
    }
    for line in block.payload.chunks(64) {
        writeln!(text, "    {}", line.escape_ascii()).unwrap();
    }
    text.push('\n');
    text
}

fn blocks_of(bytes: &Bytes) -> Vec<(Block, Bytes)> {
    let mut decoder = super::block::BlockDecoder::new();
    decoder.push(bytes.clone());
    let mut blocks = Vec::new();
    let mut rest = bytes.clone();
    while let Some(block) = decoder.next().unwrap() {
        let length = usize::try_from(block.header.block_bytes()).unwrap();
        blocks.push((block, rest.split_to(length)));
    }
    blocks
}

/// Compares what is written today with what was stored. Another version of the compressor may choose other
/// bytes for the same payload; everything else must be equal byte for byte.
fn assert_written_the_same(stored: &Bytes, made: &Bytes) {
    let stored = blocks_of(stored);
    let made = blocks_of(made);
    assert_eq!(stored.len(), made.len());
    for ((stored, stored_bytes), (mut made, made_bytes)) in stored.into_iter().zip(made) {
        if stored.header.codec == Codec::Raw {
            assert_eq!(stored_bytes, made_bytes);
        } else {
            made.header.stored_bytes = stored.header.stored_bytes;
            made.header.stored_crc32c = stored.header.stored_crc32c;
            assert_eq!(stored, made);
        }
    }
}

fn check(file: &str, made: &Bytes, describe: impl FnOnce(&Bytes) -> String) {
    let bytes = stored(&format!("{file}.blocks"), made);
    let text = describe(&bytes);
    let expected = stored(&format!("{file}.txt"), text.as_bytes());
    assert_eq!(text, String::from_utf8_lossy(&expected), "{file}");
    assert_written_the_same(&bytes, made);
}

#[test]
fn a_stored_segment_is_read_and_written_as_ever() {
    check("segment", &segment(), |bytes| {
        let object = Object::parse(SEGMENT).unwrap();
        let blocks = verify_segment(&object, bytes.clone()).unwrap();
        blocks.iter().map(described).collect()
    });
}

#[test]
fn a_stored_snapshot_is_read_and_written_as_ever() {
    check("snapshot.rdb", &snapshot(), |bytes| {
        let mut reader = SnapshotReader::new(&Object::parse(SNAPSHOT).unwrap()).unwrap();
        reader.push(bytes.clone());
        while reader.next().unwrap().is_some() {}
        let summary = reader.finish().unwrap();
        let blocks: String = blocks_of(bytes).iter().map(|(b, _)| described(b)).collect();
        format!("{blocks}{summary:#?}\n")
    });
}

#[test]
fn a_stored_snapshot_cut_into_parts_is_read_as_the_whole() {
    let whole = stored("snapshot.rdb.blocks", &snapshot());
    let blocks: Vec<Bytes> = blocks_of(&whole)
        .into_iter()
        .map(|(_, bytes)| bytes)
        .collect();
    let part = |number: usize| {
        let Some(Object::Snapshot {
            seq,
            id,
            offset,
            at,
            derived,
        }) = Object::parse(SNAPSHOT)
        else {
            panic!("{SNAPSHOT}");
        };
        Object::SnapshotPart {
            seq,
            id,
            offset,
            at,
            derived,
            part: u32::try_from(number).unwrap() + 1,
            last: number + 1 == blocks.len(),
        }
    };
    let mut reader = SnapshotReader::new(&part(0)).unwrap();
    let mut payload = Vec::new();
    for (number, block) in blocks.iter().enumerate() {
        if number > 0 {
            reader.begin_part(part(number).name()).unwrap();
        }
        reader.push(block.clone());
        while let Some(bytes) = reader.next().unwrap() {
            payload.extend_from_slice(&bytes);
        }
    }
    reader.finish().unwrap();
    assert_eq!(payload, std::fs::read(fixture("redis-7.0.15.rdb")).unwrap());

    let mut cut = SnapshotReader::new(&part(0)).unwrap();
    cut.push(blocks[0].slice(..blocks[0].len() - 1));
    assert!(cut.next().unwrap().is_none());
    let error = cut.begin_part(part(1).name()).unwrap_err().to_string();
    assert!(error.contains(part(0).name().as_str()), "{error}");
}
