use proptest::prelude::*;

use super::*;
use crate::archive::block::{Codec, Compressor};

const ARCHIVE: ArchiveId = ArchiveId::from_raw([1; 16]);

fn context() -> BlockContext {
    BlockContext {
        archive: ARCHIVE,
        timeline: TimelineSeq::new(2),
        id: ReplicationId::from_raw([3; 20]),
    }
}

fn chunk(bytes: impl Into<Bytes>, at: u64) -> Chunk {
    Chunk {
        bytes: bytes.into(),
        at: UnixMillis(at),
        boundary: None,
        database_at_end: Some(0),
    }
}

/// The object's bytes and name.
fn sealed(mut builder: SegmentBuilder) -> (Object, Bytes) {
    let mut compressor = Compressor::new();
    let mut bytes = Vec::new();
    while let Some(block) = builder.take_ready() {
        bytes.push(block.encode(&context(), &mut compressor));
    }
    let sealed = builder.finish().unwrap();
    let name = sealed.name(context().timeline, context().id);
    for block in sealed.blocks {
        bytes.push(block.encode(&context(), &mut compressor));
    }
    (Object::parse(name.as_str()).unwrap(), bytes.concat().into())
}

fn built(after: u64, chunks: Vec<Chunk>) -> (Object, Bytes) {
    let mut builder = SegmentBuilder::new(Offset::new(after), Some(0));
    for chunk in chunks {
        builder.push(chunk);
    }
    sealed(builder)
}

/// The span of a segment, changed.
fn renamed(object: &Object, change: impl FnOnce(&mut Span)) -> Object {
    let mut object = *object;
    if let Object::Segment { span, .. } = &mut object {
        change(span);
    }
    object
}

fn incompressible(bytes: usize, seed: u64) -> Vec<u8> {
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
fn a_segment_says_what_it_covers() {
    let mut builder = SegmentBuilder::new(Offset::new(1000), None);
    assert!(builder.is_empty());
    builder.push(chunk(&b""[..], 1));
    assert!(builder.is_empty());
    builder.push(Chunk {
        bytes: Bytes::from_static(b"PING\r\nPING\r\nPI"),
        at: UnixMillis(50),
        boundary: Some((Offset::new(1012), None)),
        database_at_end: None,
    });
    builder.push(Chunk {
        bytes: Bytes::from_static(b"NG\r\nSELECT 3\r\nSET"),
        at: UnixMillis(70),
        boundary: Some((Offset::new(1028), Some(3))),
        database_at_end: Some(3),
    });
    assert_eq!(builder.raw_bytes(), 31);
    assert_eq!(builder.last(), Offset::new(1031));
    assert_eq!(builder.first_at(), Some(UnixMillis(50)));
    let boundary = Boundary {
        offset: Offset::new(1028),
        database: Some(3),
    };
    assert_eq!(builder.boundary(), Some(boundary));

    let sealed = builder.finish().unwrap();
    assert!(sealed.open);
    assert_eq!(sealed.boundary, Some(boundary));
    assert_eq!(sealed.database_end, Some(3));
    assert_eq!(
        sealed.span,
        Span {
            first: Offset::new(1001),
            last: Offset::new(1031),
            first_at: UnixMillis(50),
            last_at: UnixMillis(70),
        }
    );
}

#[test]
fn a_segment_that_ends_at_a_boundary_is_not_open() {
    let mut builder = SegmentBuilder::new(Offset::ZERO, Some(0));
    builder.push(Chunk {
        boundary: Some((Offset::new(6), Some(0))),
        ..chunk(&b"PING\r\n"[..], 1)
    });
    let sealed = builder.finish().unwrap();
    assert!(!sealed.open);
    assert_eq!(sealed.blocks.len(), 1);
}

#[test]
fn nothing_gathered_is_no_segment() {
    assert!(SegmentBuilder::new(Offset::new(5), None).finish().is_none());
}

#[test]
fn full_blocks_are_ready_while_the_segment_grows() {
    let mut builder = SegmentBuilder::new(Offset::ZERO, Some(0));
    for at in 0..40 {
        builder.push(chunk(vec![b'x'; 60 * 1024], at));
    }
    let ready = builder.take_ready().unwrap();
    // Cut between chunks: seventeen fit into a block.
    assert_eq!(ready.raw_bytes(), 17 * 60 * 1024);
    assert!(builder.take_ready().is_some());
    assert!(builder.take_ready().is_none());
    let rest = builder.finish().unwrap();
    assert_eq!(rest.blocks.len(), 1);
    assert_eq!(rest.span.first, Offset::new(1));
    assert_eq!(rest.span.last, Offset::new(40 * 60 * 1024));
}

#[test]
fn blocks_that_were_not_taken_are_not_lost() {
    let payload = incompressible(3 * SEGMENT_BLOCK_RAW_BYTES, 1);
    let mut builder = SegmentBuilder::new(Offset::ZERO, Some(0));
    for piece in payload.chunks(100_000) {
        builder.push(chunk(piece.to_vec(), 5));
    }
    let mut compressor = Compressor::new();
    let sealed = builder.finish().unwrap();
    let name = Object::parse(sealed.name(context().timeline, context().id).as_str()).unwrap();
    let bytes: Vec<Bytes> = sealed
        .blocks
        .into_iter()
        .map(|block| block.encode(&context(), &mut compressor))
        .collect();
    let blocks = verify_segment(&name, bytes.concat().into()).unwrap();
    assert!(blocks.iter().all(|block| block.header.codec == Codec::Raw));
    let read: Vec<Bytes> = blocks.into_iter().map(|block| block.payload).collect();
    assert_eq!(read.concat(), payload);
}

#[test]
fn the_database_is_unknown_only_inside_a_chunk_that_had_to_be_cut() {
    let long = 2 * SEGMENT_BLOCK_RAW_BYTES + 10;
    let boundary = Offset::new(7 + SEGMENT_BLOCK_RAW_BYTES as u64 + 5);
    let (name, bytes) = built(
        0,
        vec![
            chunk(&b"PING\r\n."[..], 1),
            Chunk {
                boundary: Some((boundary, Some(4))),
                database_at_end: Some(5),
                ..chunk(vec![b'x'; long], 2)
            },
            chunk(&b"."[..], 3),
        ],
    );
    let blocks = verify_segment(&name, bytes).unwrap();
    let databases: Vec<_> = blocks
        .iter()
        .map(|b| (b.header.database_start, b.header.database_end))
        .collect();
    assert_eq!(
        databases,
        [
            (Some(0), Some(0)),
            (Some(0), None),
            (None, None),
            (None, Some(0)),
        ]
    );
    let boundaries: Vec<_> = blocks.iter().map(|b| b.header.boundary).collect();
    let expected = Boundary {
        offset: boundary,
        database: Some(4),
    };
    assert_eq!(boundaries, [None, None, Some(expected), None]);
}

#[test]
fn marks_are_ten_milliseconds_apart_and_end_with_the_block() {
    let chunks = (0..1000)
        .map(|at| chunk(vec![b'x'; 10], 5000 + at))
        .collect();
    let (name, bytes) = built(0, chunks);
    let blocks = verify_segment(&name, bytes).unwrap();
    let marks = &blocks[0].marks;
    assert_eq!(marks.len(), 100);
    for pair in marks.windows(2) {
        assert_eq!(pair[1].at.0 - pair[0].at.0, MARK_INTERVAL_MILLIS_MIN);
    }
    for mark in marks {
        // What a mark says had been received by then.
        assert_eq!(mark.offset.as_u64(), (mark.at.0 - 5000 + 1) * 10);
    }
    assert_eq!(marks.last().unwrap().offset, Offset::new(10_000));
}

#[test]
fn marks_thin_out_instead_of_growing_without_end() {
    let chunks = (0..10_000)
        .map(|at| chunk(&b"x"[..], at * 60_000))
        .collect();
    let (name, bytes) = built(0, chunks);
    let blocks = verify_segment(&name, bytes).unwrap();
    let marks = &blocks[0].marks;
    assert!(marks.len() <= MARKS_PER_BLOCK_MAX, "{}", marks.len());
    assert!(marks.len() >= MARKS_PER_BLOCK_MAX / 2, "{}", marks.len());
    assert_eq!(marks.last().unwrap().offset, Offset::new(10_000));
    for mark in marks {
        assert_eq!(mark.at.0, (mark.offset.as_u64() - 1) * 60_000);
    }
}

#[test]
fn a_clock_that_was_set_back_is_stored_as_it_was() {
    let times = [5000, 5001, 3000, 3002, 9000];
    let (name, bytes) = built(0, times.map(|at| chunk(&b"x"[..], at)).to_vec());
    let blocks = verify_segment(&name, bytes).unwrap();
    let marks: Vec<_> = blocks[0]
        .marks
        .iter()
        .map(|mark| (mark.at.0, mark.offset.as_u64()))
        .collect();
    assert_eq!(marks, [(5001, 2), (3002, 4), (9000, 5)]);
    assert_eq!(blocks[0].header.first_at, UnixMillis(5000));
    assert_eq!(blocks[0].header.last_at, UnixMillis(9000));
}

#[test]
fn a_time_that_no_name_can_spell_still_gives_an_object_that_agrees_with_its_name() {
    let (name, bytes) = built(0, vec![chunk(&b"x"[..], u64::MAX)]);
    assert!(verify_segment(&name, bytes).is_ok());
}

#[test]
fn neighbours_one_after_the_other_are_a_segment() {
    let (first, first_bytes) = built(10, vec![chunk(&b"abc"[..], 100)]);
    let (second, second_bytes) = built(13, vec![chunk(&b"def"[..], 200)]);
    let Object::Segment { seq, id, span, .. } = first else {
        panic!("{first:?}")
    };
    let Object::Segment { span: behind, .. } = second else {
        panic!("{second:?}")
    };
    let merged = Object::Segment {
        seq,
        id,
        span: Span {
            last: behind.last,
            last_at: behind.last_at,
            ..span
        },
        merged: true,
    };
    let both = [first_bytes.clone(), second_bytes.clone()].concat();
    assert_eq!(verify_segment(&merged, both.into()).unwrap().len(), 2);
    let wrong_order = [second_bytes, first_bytes].concat();
    let error = verify_segment(&merged, wrong_order.into()).unwrap_err();
    assert!(
        matches!(error, SegmentError::NotContiguous { .. }),
        "{error}"
    );
}

#[test]
fn a_missing_block_is_noticed() {
    let mut compressor = Compressor::new();
    let mut builder = SegmentBuilder::new(Offset::ZERO, Some(0));
    builder.push(chunk(vec![b'x'; 3 * SEGMENT_BLOCK_RAW_BYTES], 1));
    let sealed = builder.finish().unwrap();
    let name = Object::parse(sealed.name(context().timeline, context().id).as_str()).unwrap();
    let blocks: Vec<Bytes> = sealed
        .blocks
        .into_iter()
        .map(|block| block.encode(&context(), &mut compressor))
        .collect();
    for missing in 0..blocks.len() {
        let mut rest = blocks.clone();
        rest.remove(missing);
        assert!(
            verify_segment(&name, rest.concat().into()).is_err(),
            "{missing}"
        );
    }
    assert!(verify_segment(&name, Bytes::new()).is_err());
    assert!(verify_segment(&name, blocks.concat().into()).is_ok());
}

#[test]
fn the_name_must_equal_what_the_blocks_cover() {
    let (name, bytes) = built(10, vec![chunk(&b"abc"[..], 100), chunk(&b"def"[..], 200)]);
    verify_segment(&name, bytes.clone()).unwrap();
    let one = |offset: Offset| Offset::new(offset.as_u64() + 1);
    for other in [
        renamed(&name, |span| span.first = one(span.first)),
        renamed(&name, |span| span.first = span.first.previous()),
        renamed(&name, |span| span.last = one(span.last)),
        renamed(&name, |span| span.last = span.last.previous()),
        renamed(&name, |span| span.first_at.0 += 1),
        renamed(&name, |span| span.last_at.0 += 1),
    ] {
        assert!(verify_segment(&other, bytes.clone()).is_err(), "{other:?}");
    }
    let Object::Segment { span, .. } = name else {
        panic!("{name:?}")
    };
    for (seq, id) in [(9, [3; 20]), (2, [4; 20])] {
        let other = Object::Segment {
            seq: TimelineSeq::new(seq),
            id: ReplicationId::from_raw(id),
            span,
            merged: false,
        };
        let error = verify_segment(&other, bytes.clone()).unwrap_err();
        assert!(matches!(error, SegmentError::Foreign { .. }), "{error}");
    }
    let error = verify_segment(&Object::Archive, bytes).unwrap_err();
    assert!(matches!(error, SegmentError::NotASegment { .. }), "{error}");
}

#[test]
fn a_segment_of_another_archive_is_noticed() {
    let (name, bytes) = built(10, vec![chunk(&b"abc"[..], 100)]);
    for (archive, foreign) in [(ARCHIVE, false), (ArchiveId::from_raw([8; 16]), true)] {
        let mut reader = SegmentReader::new(&name).unwrap().in_archive(archive);
        reader.push(bytes.clone());
        let result = reader.next();
        assert_eq!(
            matches!(
                result,
                Err(SegmentError::Foreign {
                    what: "archive",
                    ..
                })
            ),
            foreign,
            "{result:?}"
        );
    }
}

#[test]
fn a_name_that_promises_too_much_is_not_read_into_memory() {
    let (name, bytes) = built(10, vec![chunk(&b"abc"[..], 100)]);
    let wide = renamed(&name, |span| {
        span.last = span.first.plus(SEGMENT_IN_MEMORY_BYTES_MAX);
    });
    let error = verify_segment(&wide, bytes).unwrap_err();
    assert!(matches!(error, SegmentError::TooLong { .. }), "{error}");
}

#[test]
fn any_flipped_bit_and_any_cut_of_a_segment_is_an_error() {
    let chunks = vec![
        chunk(incompressible(150, 7), 100),
        chunk(
            &b"SET a b SET a b SET a b SET a b SET a b SET a b SET a b"[..],
            200,
        ),
    ];
    let (name, bytes) = built(10, chunks);
    verify_segment(&name, bytes.clone()).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(verify_segment(&name, damaged.into()).is_err(), "bit {bit}");
    }
    for end in 0..bytes.len() {
        assert!(
            verify_segment(&name, bytes.slice(..end)).is_err(),
            "cut at {end}"
        );
    }
    let longer = [&bytes[..], b"\0"].concat();
    assert!(verify_segment(&name, longer.into()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_goes_in_comes_out(
        after in 0..u64::MAX / 2,
        lengths in prop::collection::vec(prop_oneof![1..50usize, 1000..9000usize, 900_000..1_200_000usize], 1..12),
        take_eagerly in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let payload = incompressible(lengths.iter().sum(), seed);
        let mut builder = SegmentBuilder::new(Offset::new(after), Some(0));
        let mut compressor = Compressor::new();
        let mut objects = Vec::new();
        let mut rest = Bytes::from(payload.clone());
        for (index, length) in lengths.iter().enumerate() {
            builder.push(chunk(rest.split_to(*length), 1000 + index as u64 * 7));
            while take_eagerly && let Some(block) = builder.take_ready() {
                prop_assert!(block.raw_bytes() <= SEGMENT_BLOCK_RAW_BYTES);
                objects.push(block.encode(&context(), &mut compressor));
            }
        }
        let sealed = builder.finish().unwrap();
        let name = Object::parse(sealed.name(context().timeline, context().id).as_str()).unwrap();
        for block in sealed.blocks {
            prop_assert!(block.raw_bytes() <= SEGMENT_BLOCK_RAW_BYTES);
            objects.push(block.encode(&context(), &mut compressor));
        }
        let blocks = verify_segment(&name, objects.concat().into()).unwrap();
        let read: Vec<Bytes> = blocks.into_iter().map(|block| block.payload).collect();
        prop_assert!(read.concat() == payload);
    }
}
