use proptest::prelude::*;

use super::*;
use crate::archive::block::{BlockContext, Compressor};
use crate::archive::layout::ArchiveId;

/// Sent by a redis 7.0.15 with one string in database 0 and one list in database 3.
const REAL: &[u8] = include_bytes!("../../../tests/fixtures/archive/redis-7.0.15.rdb");

const OFFSET: Offset = Offset::new(4711);
const AT: UnixMillis = UnixMillis(1_700_000_000_000);

fn context() -> BlockContext {
    BlockContext {
        archive: ArchiveId::from_raw([1; 16]),
        timeline: TimelineSeq::new(2),
        id: ReplicationId::from_raw([3; 20]),
    }
}

fn object() -> Object {
    let Some(object) = Object::parse(
        SnapshotBuilder::new(OFFSET, AT)
            .name(context().timeline, context().id)
            .as_str(),
    ) else {
        panic!("a snapshot's name is not read back")
    };
    object
}

fn sealed(payload: &[u8], piece: usize) -> Result<SealedSnapshot, SnapshotError> {
    let mut builder = SnapshotBuilder::new(OFFSET, AT);
    for piece in payload.chunks(piece) {
        builder.push(Bytes::copy_from_slice(piece));
    }
    builder.finish()
}

fn encoded(blocks: Vec<RawBlock>) -> Vec<Bytes> {
    let mut compressor = Compressor::new();
    blocks
        .into_iter()
        .map(|block| block.encode(&context(), &mut compressor))
        .collect()
}

fn read(bytes: Bytes) -> Result<(Vec<u8>, SnapshotSummary), SnapshotReadError> {
    let mut reader = SnapshotReader::new(&object())?;
    reader.push(bytes);
    let mut payload = Vec::new();
    while let Some(bytes) = reader.next()? {
        payload.extend_from_slice(&bytes);
    }
    Ok((payload, reader.finish()?))
}

/// A payload of a later version with `body` after the magic and a right checksum.
fn payload(body: &[u8]) -> Vec<u8> {
    let mut payload = [b"REDIS0099", body, &[OPCODE_EOF]].concat();
    let checksum = crc_fast::checksum(CrcAlgorithm::Crc64Redis, &payload);
    payload.extend_from_slice(&checksum.to_le_bytes());
    payload
}

fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state.to_be_bytes()[0]
    };
    (0..bytes).map(|_| next()).collect()
}

#[test]
fn a_real_payload_is_verified_and_comes_back_as_it_was() {
    let sealed = sealed(REAL, 1 << 20).unwrap();
    let summary = sealed.summary.clone();
    assert_eq!(summary.bytes, 223);
    assert_eq!(summary.checksum, RdbChecksum::Verified);
    assert_eq!(summary.crc64.to_le_bytes(), REAL[215..]);
    assert_eq!(summary.head.magic, RdbMagic::Redis);
    assert_eq!(summary.head.version, 10);
    assert_eq!(summary.head.aux("redis-ver"), Some("7.0.15"));
    assert_eq!(summary.head.aux("redis-bits"), Some("64"));
    assert_eq!(summary.head.aux("repl-offset"), Some("0"));
    assert_eq!(summary.head.aux("aof-base"), Some("0"));
    assert_eq!(summary.head.stream_database, Some(0));

    let (payload, read_back) = read(encoded(sealed.blocks).concat().into()).unwrap();
    assert_eq!(payload, REAL);
    assert_eq!(read_back, summary);
}

#[test]
fn the_pieces_in_which_a_payload_arrives_do_not_matter() {
    let whole = encoded(sealed(REAL, REAL.len()).unwrap().blocks);
    for piece in 1..REAL.len() {
        let pieces = sealed(REAL, piece).unwrap();
        assert_eq!(encoded(pieces.blocks), whole, "pieces of {piece}");
    }
}

#[test]
fn any_flipped_bit_of_a_payload_stops_the_snapshot() {
    for bit in 0..REAL.len() * 8 {
        let mut damaged = REAL.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(sealed(&damaged, 64).is_err(), "bit {bit}");
    }
}

#[test]
fn a_payload_cut_anywhere_stops_the_snapshot() {
    for end in 0..REAL.len() {
        let error = sealed(&REAL[..end], 64).unwrap_err();
        let short = matches!(error, SnapshotError::TooShort { bytes } if bytes == end as u64);
        assert_eq!(short, end < 18, "cut at {end}: {error}");
    }
}

#[test]
fn a_disabled_checksum_is_accepted_and_said() {
    let mut payload = payload(b"whatever");
    let end = payload.len() - TRAILER_BYTES;
    payload[end..].fill(0);
    let summary = sealed(&payload, 5).unwrap().summary;
    assert_eq!(summary.checksum, RdbChecksum::Disabled);

    // Cut short inside a value of zeros it would look much the same.
    payload.truncate(end - 1);
    payload.extend_from_slice(&[0; 20]);
    let error = sealed(&payload, 5).unwrap_err();
    assert!(matches!(error, SnapshotError::NoEnd { .. }), "{error}");
}

#[test]
fn an_old_version_has_no_checksum() {
    let summary = sealed(b"REDIS0004\xfe\x00\xff", 3).unwrap().summary;
    assert_eq!(summary.checksum, RdbChecksum::Absent);
    let error = sealed(b"REDIS0004\xfe\x00", 3).unwrap_err();
    assert_eq!(error, SnapshotError::NoEnd { bytes: 11 });
    assert!(sealed(b"REDIS0004", 3).is_err());
}

#[test]
fn what_is_no_payload_is_said_with_what_came_instead() {
    for (bytes, shown) in [
        (&b"-ERR no such thing\r\n"[..], "-ERR no s"),
        (b"REDIS00x1...........", "REDIS00x1"),
        (b"VALKEY0a0...........", "VALKEY0a0"),
        (b"REDIS0000...........", "REDIS0000"),
        (b"H", "H"),
    ] {
        let error = sealed(bytes, 4).unwrap_err();
        assert!(error.to_string().ends_with(shown), "{error}");
    }
    for short in [&b""[..], b"RE", b"VALKEY0", b"REDIS0011"] {
        let error = sealed(short, 4).unwrap_err();
        assert!(matches!(error, SnapshotError::TooShort { .. }), "{error}");
    }
}

#[test]
fn a_payload_nobody_understands_is_stored_all_the_same() {
    let payload = payload(b"\xf1\xf0\x99 opcodes of the year 2040");
    let summary = sealed(&payload, 7).unwrap().summary;
    assert_eq!(summary.head.version, 99);
    assert_eq!(summary.head.aux, []);
}

#[test]
fn auxiliary_fields_are_read_in_every_spelling() {
    let long = "x".repeat(100);
    let mut bytes = b"VALKEY080".to_vec();
    for (key, value) in [
        ("a", &b"\xc0\xfe"[..]),
        ("b", b"\xc1\x00\x80"),
        ("repl-stream-db", b"\xc2\x0b\x00\x00\x00"),
        ("c", b"\x80\x00\x00\x00\x02hi"),
        ("d", b"\x81\x00\x00\x00\x00\x00\x00\x00\x02ho"),
        ("e", &[&b"\x40\x64"[..], long.as_bytes()].concat()),
        ("f", b"\x01\xff"),
    ] {
        bytes.push(0xfa);
        bytes.push(u8::try_from(key.len()).unwrap());
        bytes.extend_from_slice(key.as_bytes());
        bytes.extend_from_slice(value);
    }
    let fields = |bytes: &[u8]| read_head(bytes).unwrap().aux;
    let head = read_head(&bytes).unwrap();
    assert_eq!((head.magic, head.version), (RdbMagic::Valkey, 80));
    assert_eq!(head.aux("a"), Some("-2"));
    assert_eq!(head.aux("b"), Some("-32768"));
    assert_eq!(head.stream_database, Some(11));
    assert_eq!(head.aux("c"), Some("hi"));
    assert_eq!(head.aux("d"), Some("ho"));
    assert_eq!(head.aux("e"), Some(long.as_str()));
    assert_eq!(head.aux("f"), Some("\u{fffd}"));
    // However it is cut, what was whole is read.
    for end in 9..bytes.len() {
        assert!(head.aux.starts_with(&fields(&bytes[..end])), "cut at {end}");
    }
    // A length that no payload has, and a compressed string.
    assert_eq!(
        fields(b"REDIS0011\xfa\x81\xff\xff\xff\xff\xff\xff\xff\xffabc"),
        []
    );
    assert_eq!(fields(b"REDIS0011\xfa\x01a\xc3\x01\x02abc"), []);
}

#[test]
fn blocks_hold_four_mebibytes_and_are_ready_as_the_payload_passes() {
    let payload = payload(&noise(9 * 1024 * 1024, 5));
    let mut builder = SnapshotBuilder::new(OFFSET, AT);
    let mut blocks = Vec::new();
    for piece in payload.chunks(1_000_000) {
        builder.push(Bytes::copy_from_slice(piece));
        while let Some(block) = builder.take_ready() {
            assert_eq!(block.raw_bytes(), BLOCK_RAW_BYTES_MAX);
            blocks.push(block);
        }
    }
    assert_eq!(blocks.len(), 2);
    assert_eq!(builder.raw_bytes(), payload.len() as u64);
    blocks.extend(builder.finish().unwrap().blocks);
    assert_eq!(blocks.len(), 4);
    let objects = encoded(blocks);
    let (back, _) = read(objects.concat().into()).unwrap();
    assert!(back == payload);

    // Every block counts, and in its place.
    for missing in 0..objects.len() {
        let mut rest = objects.clone();
        rest.remove(missing);
        assert!(
            read(rest.concat().into()).is_err(),
            "without block {missing}"
        );
    }
    for first in 1..objects.len() {
        let mut swapped = objects.clone();
        swapped.swap(first - 1, first);
        assert!(
            read(swapped.concat().into()).is_err(),
            "block {first} moved up"
        );
    }
}

#[test]
fn an_object_without_its_end_or_with_something_behind_it_is_an_error() {
    let blocks = encoded(sealed(REAL, 100).unwrap().blocks);
    let [data, end] = &blocks[..] else {
        panic!("{} blocks", blocks.len())
    };
    let error = |parts: &[&Bytes]| {
        let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        read(parts.concat().into()).unwrap_err()
    };
    assert!(matches!(
        error(&[data]),
        SnapshotReadError::NoEnd { bytes: 223, .. }
    ));
    assert!(matches!(
        error(&[]),
        SnapshotReadError::NoEnd { bytes: 0, .. }
    ));
    assert!(matches!(
        error(&[end]),
        SnapshotReadError::EndDiffers { .. }
    ));
    assert!(matches!(
        error(&[data, end, end]),
        SnapshotReadError::AfterEnd { .. }
    ));
    assert!(matches!(
        error(&[data, data, end]),
        SnapshotReadError::NotContiguous { .. }
    ));
    let part = end.slice(..end.len() - 1);
    assert!(matches!(
        error(&[data, &part]),
        SnapshotReadError::Block { .. }
    ));
}

#[test]
fn the_end_must_agree_with_the_payload() {
    let one = encoded(sealed(&payload(b"one"), 100).unwrap().blocks);
    let two = encoded(sealed(&payload(b"two"), 100).unwrap().blocks);
    let error = read([&one[0][..], &two[1][..]].concat().into()).unwrap_err();
    let differs = matches!(
        &error,
        SnapshotReadError::EndDiffers {
            what: "checksum",
            ..
        }
    );
    assert!(differs, "{error}");
}

#[test]
fn any_flipped_bit_and_any_cut_of_a_snapshot_is_an_error() {
    let bytes = encoded(sealed(REAL, 100).unwrap().blocks).concat();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(read(damaged.into()).is_err(), "bit {bit}");
    }
    for end in 0..bytes.len() {
        assert!(read(bytes[..end].to_vec().into()).is_err(), "cut at {end}");
    }
}

#[test]
fn a_snapshot_under_another_name_is_noticed() {
    let bytes = Bytes::from(encoded(sealed(REAL, 100).unwrap().blocks).concat());
    let (seq, id) = (context().timeline, context().id);
    let named = |seq, id, offset, at| Object::Snapshot {
        seq,
        id,
        offset,
        at,
        derived: false,
    };
    for other in [
        named(seq.next(), id, OFFSET, AT),
        named(seq, ReplicationId::from_raw([4; 20]), OFFSET, AT),
        named(seq, id, OFFSET.next(), AT),
        named(seq, id, OFFSET, UnixMillis(AT.0 + 1)),
    ] {
        let mut reader = SnapshotReader::new(&other).unwrap();
        reader.push(bytes.clone());
        let error = reader.next().unwrap_err();
        assert!(
            matches!(error, SnapshotReadError::Foreign { .. }),
            "{error}"
        );
    }
    let mut reader = SnapshotReader::new(&object())
        .unwrap()
        .in_archive(ArchiveId::from_raw([9; 16]));
    reader.push(bytes);
    let error = reader.next().unwrap_err();
    let foreign = matches!(
        &error,
        SnapshotReadError::Foreign {
            what: "archive",
            ..
        }
    );
    assert!(foreign, "{error}");
    assert!(SnapshotReader::new(&Object::Archive).is_err());
}

#[test]
fn the_end_tells_the_facts_without_the_payload() {
    let blocks = encoded(sealed(REAL, 100).unwrap().blocks);
    let mut decoder = crate::archive::block::BlockDecoder::new();
    decoder.push(blocks[1].clone());
    let block = decoder.next().unwrap().unwrap();
    let end = SnapshotEnd::decode(&block.payload).unwrap();
    assert_eq!(end.bytes, 223);
    let facts = end.facts.unwrap();
    assert_eq!(facts.checksum, RdbChecksum::Verified);
    assert_eq!(facts.head.aux("redis-ver"), Some("7.0.15"));
    assert_eq!(SnapshotEnd::decode(&[0; 15]), None);
    assert_eq!(SnapshotEnd::decode(&[0; 16]).unwrap().facts, None);
    assert_eq!(SnapshotEnd::decode(&[0xff; 40]).unwrap().facts, None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_head_may_be_read(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read_head(&noise);
        let fields = [b"REDIS0011\xfa", &noise[..]].concat();
        prop_assert!(read_head(&fields).is_some());
    }
}

#[test]
fn a_leading_module_type_is_named_and_nothing_else_is_taken_for_one() {
    // `ReJSON-RL` version 3, as Redis spells the id of a module type.
    let id = "ReJSON-RL".bytes().fold(0_u64, |id, byte| {
        let index = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            _ => 62,
        };
        id << 6 | u64::from(index)
    }) << 10
        | 3;
    let payload = |opcode: u8| {
        let mut payload = b"REDIS0011\xfa\x01a\x01b".to_vec();
        payload.push(opcode);
        payload.push(0x81);
        payload.extend_from_slice(&id.to_be_bytes());
        payload
    };
    let whole = payload(0xf7);
    assert_eq!(leading_module_type(&whole).as_deref(), Some("ReJSON-RL"));
    assert_eq!(leading_module_type(&payload(0xfe)), None);
    for length in 0..whole.len() {
        assert_eq!(leading_module_type(&whole[..length]), None, "{length}");
    }
}

#[test]
fn a_derived_snapshot_says_so_in_its_name_and_inside() {
    let from = Position {
        timeline: context().timeline,
        offset: Offset::new(1),
    };
    let made = |derived: bool| {
        let builder = SnapshotBuilder::new(OFFSET, AT);
        let mut builder = if derived {
            builder.derived(from)
        } else {
            builder
        };
        let name = builder.name(context().timeline, context().id);
        builder.push(Bytes::from_static(REAL));
        let bytes: Bytes = encoded(builder.finish().unwrap().blocks).concat().into();
        (Object::parse(name.as_str()).unwrap(), bytes)
    };
    let read = |object: &Object, bytes: &Bytes| {
        let mut reader = SnapshotReader::new(object).unwrap();
        reader.push(bytes.clone());
        while reader.next()?.is_some() {}
        reader.finish()
    };
    let (derived, of_derived) = made(true);
    let (own, of_own) = made(false);
    assert_ne!(derived, own);
    read(&derived, &of_derived).unwrap();
    read(&own, &of_own).unwrap();
    for (object, bytes) in [(&derived, &of_own), (&own, &of_derived)] {
        let error = read(object, bytes).unwrap_err().to_string();
        assert!(error.contains("origin"), "{error}");
    }
    let summary = read(&own, &of_own).unwrap();
    let facts = |from| {
        let end = SnapshotEnd::decode(&SnapshotEnd::encode(&summary, from)).unwrap();
        end.facts.unwrap().replayed_from
    };
    assert_eq!((facts(Some(from)), facts(None)), (Some(from), None));
}
