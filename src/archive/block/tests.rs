use proptest::prelude::*;

use super::*;

fn context() -> BlockContext {
    BlockContext {
        archive: ArchiveId::from_raw([1; 16]),
        timeline: TimelineSeq::new(2),
        id: ReplicationId::from_raw([3; 20]),
    }
}

/// A block of commands whose first byte has offset 101.
fn commands(payload: &[u8], marks: Vec<Mark>) -> RawBlock {
    let last = Offset::new(100 + payload.len() as u64);
    RawBlock {
        content: Content::Commands {
            first: Offset::new(101),
            last,
        },
        pieces: Bytes::copy_from_slice(payload).into(),
        marks,
        boundary: Some(Boundary {
            offset: last,
            database: Some(3),
        }),
        database_start: None,
        database_end: Some(0),
        first_at: UnixMillis(1000),
        last_at: UnixMillis(900),
    }
}

fn mark(at: u64, offset: u64) -> Mark {
    Mark {
        at: UnixMillis(at),
        offset: Offset::new(offset),
    }
}

fn encoded(block: RawBlock) -> Bytes {
    block.encode(&context(), &mut Compressor::new())
}

fn decoded(bytes: Bytes) -> Result<Vec<Block>, BlockError> {
    let mut decoder = BlockDecoder::new();
    decoder.push(bytes);
    let mut blocks = Vec::new();
    while let Some(block) = decoder.next()? {
        blocks.push(block);
    }
    decoder.finish()?;
    Ok(blocks)
}

/// Sets bytes of a header and makes its checksum right again, as another writer would.
fn rewritten(block: &[u8], place: usize, value: &[u8]) -> Bytes {
    let mut block = block.to_vec();
    block[place..place + value.len()].copy_from_slice(value);
    let marks = u32::from_le_bytes(block[152..156].try_into().unwrap()) as usize;
    let end = HEADER_BYTES + marks * MARK_BYTES;
    let covered = end.clamp(HEADER_BYTES, block.len());
    let checksum = crc32c_of(&[&block[..156], &block[HEADER_BYTES..covered]]);
    block[156..160].copy_from_slice(&checksum.to_le_bytes());
    block.into()
}

#[test]
fn a_block_is_read_as_it_was_written() {
    let payload = b"SET key value ".repeat(100);
    let marks = vec![mark(1000, 101), mark(900, 1500)];
    let bytes = encoded(commands(&payload, marks.clone()));
    let blocks = decoded(bytes.clone()).unwrap();
    let [block] = &blocks[..] else {
        panic!("{} blocks", blocks.len())
    };
    assert_eq!(block.payload, payload);
    assert_eq!(block.marks, marks);
    let header = &block.header;
    assert_eq!(header.context, context());
    assert_eq!(header.codec, Codec::Zstd);
    assert_eq!(header.database_start, None);
    assert_eq!(header.database_end, Some(0));
    assert_eq!(header.boundary.unwrap().database, Some(3));
    assert_eq!(header.first_at, UnixMillis(1000));
    assert_eq!(header.last_at, UnixMillis(900));
    assert_eq!(header.raw_bytes as usize, payload.len());
    assert_eq!(header.block_bytes(), bytes.len() as u64);
    assert!(!header.is_open());
}

#[test]
fn what_compression_does_not_shorten_is_stored_as_it_is() {
    let bytes = encoded(commands(b"*1\r\n$4\r\nPING\r\n", vec![]));
    let block = decoded(bytes).unwrap().remove(0);
    assert_eq!(block.header.codec, Codec::Raw);
    assert_eq!(block.header.stored_bytes, block.header.raw_bytes);
}

#[test]
fn a_block_without_a_boundary_at_its_end_is_open() {
    let mut block = commands(b"*1\r\n$4\r\nPI", vec![]);
    block.boundary = None;
    assert!(decoded(encoded(block)).unwrap()[0].header.is_open());
    let mut block = commands(b"*1\r\n$4\r\nPING\r\n*1\r\n", vec![]);
    block.boundary = Some(Boundary {
        offset: Offset::new(114),
        database: None,
    });
    assert!(decoded(encoded(block)).unwrap()[0].header.is_open());
}

#[test]
fn the_header_alone_can_be_read() {
    let marks = vec![mark(1, 101), mark(2, 102)];
    let bytes = encoded(commands(b"abcdef", marks.clone()));
    let header_bytes = HEADER_BYTES + 2 * MARK_BYTES;
    for short in 0..header_bytes {
        assert_eq!(decode_header(&bytes[..short], 0), Ok(None), "{short} bytes");
    }
    let (header, read) = decode_header(&bytes[..header_bytes], 0).unwrap().unwrap();
    assert_eq!(read, marks);
    assert_eq!(header.block_bytes(), bytes.len() as u64);
}

#[test]
fn any_flipped_bit_is_an_error() {
    let mut bytes = encoded(commands(
        &b"abcd".repeat(40),
        vec![mark(1, 101), mark(2, 105)],
    ));
    bytes = [bytes, encoded(commands(b"xyz", vec![]))].concat().into();
    assert_eq!(decoded(bytes.clone()).unwrap().len(), 2);
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(decoded(damaged.into()).is_err(), "bit {bit}");
    }
}

#[test]
fn a_block_cut_anywhere_is_an_error_that_says_where_it_began() {
    let first = encoded(commands(&b"abcd".repeat(40), vec![mark(1, 101)]));
    let second = encoded(commands(b"xyz", vec![mark(7, 103)]));
    let bytes = Bytes::from([first.clone(), second].concat());
    for end in 1..bytes.len() {
        let result = decoded(bytes.slice(..end));
        if end == first.len() {
            assert!(result.is_ok());
            continue;
        }
        let began = if end < first.len() { 0 } else { first.len() };
        assert_eq!(
            result,
            Err(BlockError::Truncated {
                at: began as u64,
                bytes: (end - began) as u64
            }),
            "cut at {end}"
        );
    }
}

#[test]
fn each_kind_of_error_has_its_own_name_and_place() {
    let good = encoded(commands(&b"abcd".repeat(40), vec![mark(1, 101)]));
    let second = |bad: Bytes| decoded([good.clone(), bad].concat().into()).unwrap_err();
    let at = good.len() as u64;

    let foreign = second(Bytes::from_static(b"{\"format\":1}"));
    assert!(matches!(foreign, BlockError::BadMagic { at: place, .. } if place == at));
    assert_eq!(
        second(rewritten(&good, 8, &2u16.to_le_bytes())),
        BlockError::NewerVersion { at, version: 2 }
    );
    assert_eq!(
        second(rewritten(&good, 12, &5u32.to_le_bytes())),
        BlockError::UnknownFeatures { at, features: 5 }
    );
    let unsupported = |what, value| BlockError::Unsupported { at, what, value };
    assert_eq!(second(rewritten(&good, 10, &[9])), unsupported("kind", 9));
    assert_eq!(second(rewritten(&good, 11, &[7])), unsupported("codec", 7));
    let marks = rewritten(&good, 152, &1025u32.to_le_bytes());
    assert!(matches!(
        second(marks),
        BlockError::TooMuch { found: 1025, .. }
    ));
    let marks = rewritten(&good, 152, &u32::MAX.to_le_bytes());
    assert!(matches!(
        second(marks),
        BlockError::TooMuch {
            found: u32::MAX,
            ..
        }
    ));

    let mut damaged = good.to_vec();
    damaged[70] ^= 1;
    assert!(matches!(
        second(damaged.into()),
        BlockError::HeaderChecksum { .. }
    ));
    let mut damaged = good.to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    assert!(matches!(
        second(damaged.into()),
        BlockError::StoredChecksum { .. }
    ));
    let raw_checksum = rewritten(&good, 144, &[0; 4]);
    assert!(matches!(
        second(raw_checksum),
        BlockError::RawChecksum { .. }
    ));
}

#[test]
fn headers_that_contradict_themselves_are_errors() {
    let good = encoded(commands(
        &b"abcd".repeat(40),
        vec![mark(1, 101), mark(2, 102)],
    ));
    let number = |value: u64| value.to_le_bytes().to_vec();
    for (place, value, what) in [
        (20, vec![3, 0, 0, 0], "open, with a boundary at the end"),
        (24, number(1), "a key id"),
        (72, number(0), "offset 0"),
        (72, number(102), "a first offset that is too high"),
        (80, number(u64::MAX), "a last offset that is too high"),
        (88, number(100), "a boundary before the block"),
        (88, number(261), "a boundary behind the block"),
        (96, (-2i64).to_le_bytes().to_vec(), "database -2"),
        (112, number(1 << 32), "database 2^32"),
        (136, vec![0; 4], "no payload"),
        (136, vec![0xff; 4], "a payload of 4 GiB"),
        (140, vec![0xff; 4], "a stored payload of 4 GiB"),
        (168, number(300), "a mark behind the block"),
        (168, number(103), "marks out of order"),
    ] {
        let error = decoded(rewritten(&good, place, &value)).unwrap_err();
        assert!(
            matches!(error, BlockError::Malformed { .. }),
            "{what}: {error}"
        );
    }
}

#[test]
fn an_unknown_optional_feature_does_no_harm() {
    let good = encoded(commands(b"abc", vec![]));
    let later = rewritten(&good, 16, &[0, 0, 1, 0]);
    assert_eq!(decoded(later).unwrap()[0].header.optional_features, 1 << 16);
}

#[test]
fn a_payload_that_swells_is_stopped_at_its_bound() {
    let good = encoded(commands(&vec![0; BLOCK_RAW_BYTES_MAX], vec![]));
    assert!(good.len() < 4096, "{} bytes", good.len());
    assert!(decoded(good.clone()).is_ok());

    // One byte more than a block may hold, by its header.
    let more = u32::try_from(BLOCK_RAW_BYTES_MAX + 1).unwrap();
    let wide = rewritten(&good, 80, &(101 + u64::from(more) - 1).to_le_bytes());
    let wide = rewritten(&wide, 136, &more.to_le_bytes());
    assert!(matches!(decoded(wide), Err(BlockError::Malformed { .. })));

    // A payload that is far longer than its header says.
    let bomb = zstd::bulk::compress(&vec![0; 64 * 1024 * 1024], 1).unwrap();
    let mut block = good[..HEADER_BYTES].to_vec();
    block.extend_from_slice(&bomb);
    let block = rewritten(&block, 140, &length_u32(bomb.len()).to_le_bytes());
    let block = rewritten(&block, 148, &crc32c(&bomb).to_le_bytes());
    assert!(matches!(decoded(block), Err(BlockError::Decompress { .. })));
}

#[test]
fn an_error_is_final() {
    let mut decoder = BlockDecoder::starting_at(7);
    decoder.push(Bytes::from_static(b"what is this?"));
    let error = decoder.next().unwrap_err();
    assert!(matches!(error, BlockError::BadMagic { at: 7, .. }));
    decoder.push(encoded(commands(b"abc", vec![])));
    assert_eq!(decoder.next(), Err(error.clone()));
    assert_eq!(decoder.finish(), Err(error));
}

#[test]
fn the_castagnoli_polynomial_is_used() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn blocks_are_equal_however_their_bytes_arrive(
        payloads in prop::collection::vec(prop::collection::vec(0..4u8, 1..3000), 1..5),
        cuts in prop::collection::vec(1..700usize, 1..40),
        late in any::<bool>(),
    ) {
        let mut bytes = Bytes::from(
            payloads.iter().map(|p| encoded(commands(p, vec![mark(5, 101)]))).collect::<Vec<_>>().concat(),
        );
        let whole = decoded(bytes.clone()).unwrap();
        let mut decoder = BlockDecoder::new();
        let mut pieces = Vec::new();
        let mut cuts = cuts.iter().cycle();
        while !bytes.is_empty() {
            let cut = bytes.len().min(*cuts.next().unwrap());
            decoder.push(bytes.split_to(cut));
            // Blocks may also be asked for only once everything is there.
            if !late {
                while let Some(block) = decoder.next().unwrap() {
                    pieces.push(block);
                }
            }
        }
        while let Some(block) = decoder.next().unwrap() {
            pieces.push(block);
        }
        prop_assert!(decoder.finish().is_ok());
        prop_assert_eq!(pieces, whole);
    }

    #[test]
    fn any_bytes_may_be_decoded(noise in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = check_blocks(noise.clone().into());
        let mut begun = encoded(commands(b"abc", vec![mark(1, 101)]))[..60].to_vec();
        begun.extend(noise);
        prop_assert!(check_blocks(begun.into()).is_err());
    }
}
