//! The scanner on dumps made by hand: every table, every way to be wrong. Dumps of real servers: `tests/proto/dumps.rs`.

use proptest::prelude::*;

use super::*;

/// A dump under construction.
struct Dump(Vec<u8>);

impl Dump {
    fn redis(version: u32) -> Self {
        Self(format!("REDIS{version:04}").into_bytes())
    }

    fn valkey() -> Self {
        Self(b"VALKEY080".to_vec())
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(self, text: &[u8]) -> Self {
        let length = u32::try_from(text.len()).unwrap();
        self.raw(&[0x80]).raw(&length.to_be_bytes()).raw(text)
    }

    /// A key named `k` of a type.
    fn key(self, code: u8) -> Self {
        self.raw(&[code]).text(b"k")
    }

    fn end(self) -> Vec<u8> {
        let mut bytes = self.raw(&[0xff]).0;
        let crc = crc_fast::checksum(CrcAlgorithm::Crc64Redis, &bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }
}

/// Every event as text, and how it ended.
fn scan<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<String>, Result<(), ScanError>) {
    let mut said = Vec::new();
    let mut scanner = Scanner::new();
    for piece in pieces {
        let outcome = scanner.scan(piece, &mut |event| said.push(format!("{event:?}")));
        if outcome.is_err() {
            return (said, outcome);
        }
    }
    (said, scanner.finish())
}

fn whole(bytes: &[u8]) -> (Vec<String>, Result<(), ScanError>) {
    scan([bytes])
}

/// The keys of a dump that must be in order: name, and the bytes of its value.
fn keys(bytes: &[u8]) -> Vec<(Vec<u8>, Range<u64>)> {
    let mut keys: Vec<(Vec<u8>, Range<u64>)> = Vec::new();
    let mut scanner = Scanner::new();
    scanner
        .scan(bytes, &mut |event| match event {
            Event::Key(key) => keys.push((key.name.to_vec(), 0..0)),
            Event::Value { bytes, .. } => keys.last_mut().unwrap().1 = bytes,
            _ => {}
        })
        .unwrap();
    scanner.finish().unwrap();
    keys
}

/// A value of every table, followed by a string: whoever loses its way does not find that.
fn one_of_each() -> Vec<(u8, Vec<u8>, Dump)> {
    let short = |texts: &[&str]| -> Vec<u8> {
        let mut bytes = Vec::new();
        for text in texts {
            bytes.push(u8::try_from(text.len()).unwrap());
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes
    };
    let group_1 = [
        short(&["g"]),
        vec![1, 2, 1],
        vec![0; 24],
        vec![7, 1],
        short(&["consumer"]),
        vec![0; 8],
        vec![2],
        vec![0; 32],
    ]
    .concat();
    let group_2 = [
        short(&["g"]),
        vec![1, 2, 3, 1],
        vec![0; 24],
        vec![7, 1],
        short(&["consumer"]),
        vec![0; 8],
        vec![1],
        vec![0; 16],
    ]
    .concat();
    let group_3 = [
        short(&["g"]),
        vec![1, 2, 3, 0, 1],
        short(&["consumer"]),
        vec![0; 16],
        vec![0],
    ]
    .concat();
    let stream = |numbers: usize, group: &[u8]| {
        [
            vec![1],
            short(&["0123456789abcdef", "listpack"]),
            vec![9; numbers],
            vec![1],
            group.to_vec(),
        ]
        .concat()
    };
    let module = [
        vec![0x81, 1, 2, 3, 4, 5, 6, 7, 8],
        vec![1, 5, 2, 6, 3, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 5],
        short(&["text"]),
        vec![0],
    ]
    .concat();
    let redis = [
        (0, short(&["value"])),
        (0, vec![0xc1, 1, 2]),
        (0, vec![0xc3, 5, 10, 1, b'a', b'b', 0xc0, 1]),
        (1, [vec![2], short(&["a", "b"])].concat()),
        (2, vec![0]),
        (
            3,
            [
                vec![3],
                short(&["a", "1.5", "b"]),
                vec![254],
                short(&["c"]),
                vec![253],
            ]
            .concat(),
        ),
        (4, [vec![1], short(&["f", "v"])].concat()),
        (5, [vec![1], short(&["m"]), vec![0; 8]].concat()),
        (7, module),
        (14, [vec![1], short(&["ziplist"])].concat()),
        (15, stream(3, &group_1)),
        (
            18,
            [vec![2, 1], short(&["plain"]), vec![2], short(&["packed"])].concat(),
        ),
        (19, stream(8, &group_2)),
        (21, stream(8, &group_3)),
        (22, [vec![1, 9], short(&["f", "v"])].concat()),
        (23, short(&["listpack"])),
        (24, [vec![0; 8], vec![1, 9], short(&["f", "v"])].concat()),
        (25, [vec![0; 8], short(&["listpack"])].concat()),
    ]
    .into_iter();
    let packed = [9, 10, 11, 12, 13, 16, 17, 20].map(|code| (code, short(&["packed"])));
    let valkey = (22, [vec![1], short(&["f", "v"]), vec![0; 8]].concat());
    redis
        .chain(packed)
        .map(|(code, value)| (code, value, Dump::redis(12)))
        .chain([(valkey.0, valkey.1, Dump::valkey())])
        .collect()
}

#[test]
fn each_type_ends_where_it_ends() {
    for (code, value, dump) in one_of_each() {
        let dump = dump.key(code);
        let from = dump.0.len() as u64;
        let dump = dump.raw(&value).raw(&[0]).text(b"last").text(b"v").end();
        let found = keys(&dump);
        assert_eq!(found.len(), 2, "type {code}");
        assert_eq!(found[0], (b"k".to_vec(), from..from + value.len() as u64));
        assert_eq!(found[1].0, b"last", "type {code}");
    }
}

#[test]
fn what_stands_before_a_key_belongs_to_it() {
    let dump = Dump::redis(9)
        .raw(&[0xfe, 3, 0xfb, 2, 1])
        .raw(&[0xfd, 10, 0, 0, 0, 0xf8, 5])
        .key(0)
        .text(b"v")
        .raw(&[0xfc, 1, 1, 0, 0, 0, 0, 0, 0, 0xf9, 7])
        .key(0)
        .text(b"v")
        .key(0)
        .text(b"v")
        .end();
    let mut found = Vec::new();
    Scanner::new()
        .scan(&dump, &mut |event| {
            if let Event::Key(key) = event {
                found.push((
                    key.at,
                    key.database,
                    key.expires_at,
                    key.idle_seconds,
                    key.frequency,
                ));
            }
        })
        .unwrap();
    let at = |millis| Some(UnixMillis(millis));
    assert_eq!(
        found,
        [
            (14, 3, at(10_000), Some(5), None),
            (34, 3, at(257), None, Some(7)),
            (58, 3, None, None, None)
        ]
    );
}

#[test]
fn what_stands_outside_of_keys_is_told() {
    let dump = Dump::redis(12)
        .raw(&[0xfa])
        .text(b"redis-ver")
        .raw(&[0xc0, 7])
        .raw(&[0xf5])
        .text(b"#!lua name=lib")
        .raw(&[0xf7, 9, 2, 2, 1, 5, 0])
        .raw(&[0xf4, 1, 2, 3])
        // What modules of redis 8.6 attach to a key.
        .raw(&[0xf3, 1, 0, 0, 0, 0, 2, 5, 0])
        .key(0)
        .text(b"v")
        .end();
    let (said, outcome) = whole(&dump);
    assert_eq!(outcome, Ok(()));
    let expected = [
        "Head { numbering: Redis, version: 12 }",
        "Aux { name: [114, 101, 100, 105, 115, 45, 118, 101, 114], value: [55] }",
        "Function { bytes: 26..46 }",
        "ModuleAux { module: 9, bytes: 46..53 }",
        "Slot { slot: 1, keys: 2, expiring: 3 }",
    ];
    assert_eq!(said[..expected.len()], expected);
    assert!(said[5].starts_with("Key(Key { at: 57"), "{}", said[5]);
    let valkey = Dump::valkey()
        .raw(&[0xf3])
        .text(b"job")
        .raw(&[2, 0, 5, 9, 9])
        .end();
    let (said, outcome) = whole(&valkey);
    assert_eq!(outcome, Ok(()));
    assert_eq!(said[1], "SlotImport { bytes: 9..23 }");
}

#[test]
fn an_unknown_type_is_named_with_version_and_place() {
    let dump = Dump::redis(14).key(28).end();
    let error = whole(&dump).1.unwrap_err();
    assert_eq!(
        error.to_string(),
        "byte 9: unknown type 28 (an array of redis 8.8) in a dump of version REDIS 14"
    );
    let dump = Dump::valkey().key(24).end();
    assert!(matches!(
        whole(&dump).1,
        Err(ScanError::UnknownType {
            code: 24,
            at: 9,
            ..
        })
    ));
}

#[test]
fn a_failed_scan_stays_failed() {
    let mut scanner = Scanner::new();
    let first = scanner.scan(b"RADIS", &mut |_| ()).unwrap_err();
    assert!(matches!(first, ScanError::NotADump { .. }));
    assert_eq!(scanner.scan(b"0011", &mut |_| ()), Err(first.clone()));
    assert_eq!(scanner.finish(), Err(first));
}

#[test]
fn lengths_beyond_the_dump_are_not_believed() {
    let huge = [0x81, 0x10, 0, 0, 0, 0, 0, 0, 0];
    // As a name, as a value, as a number of elements, and as a number of deliveries in a pending entry.
    let name = Dump::redis(11).raw(&[0]).raw(&huge).raw(b"abc").0;
    let value = Dump::redis(11).key(0).raw(&huge).raw(b"abc").0;
    let count = Dump::redis(11).key(4).raw(&huge).text(b"f").0;
    for (dump, inside) in [
        (name, "the name of a key"),
        (value, "a value"),
        (count, "a value"),
    ] {
        let at = dump.len() as u64;
        assert_eq!(whole(&dump).1, Err(ScanError::Cut { at, inside }));
    }
    // Compressed, it would expand more than any compression can.
    let compressed = Dump::redis(11).raw(&[0, 0xc3, 3]).raw(&huge).end();
    assert!(matches!(
        whole(&compressed).1,
        Err(ScanError::Damaged { at: 10, .. })
    ));
}

#[test]
fn what_cannot_be_is_named_with_its_place() {
    let module = Dump::redis(9).key(7).raw(&[9, 6]).end();
    let length = Dump::redis(9).key(1).raw(&[0xc5]).end();
    let text = Dump::redis(9).key(0).raw(&[0xc4]).end();
    let name = Dump::redis(9).raw(&[0, 0xc3, 4, 9, 0, b'a', 0x20, 9]).end();
    for (dump, place) in [(module, 17), (length, 16), (text, 16), (name, 13)] {
        match whole(&dump).1 {
            Err(ScanError::Damaged { at, .. }) => assert_eq!(at, place),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_checksum_counts_where_there_is_one() {
    let good = Dump::redis(11).key(0).text(b"v").end();
    let end = |checksum| {
        let bytes = good.len() as u64;
        format!("{:?}", Event::End { checksum, bytes })
    };
    assert_eq!(whole(&good).0.last(), Some(&end(Checksum::Verified)));

    let mut damaged = good.clone();
    let value = damaged.len() - 10;
    damaged[value] ^= 1;
    assert!(matches!(
        whole(&damaged).1,
        Err(ScanError::Checksum { at, .. }) if at == good.len() as u64 - 8
    ));

    let mut without = good.clone();
    let trailer = without.len() - 8;
    without[trailer..].fill(0);
    assert_eq!(whole(&without).0.last(), Some(&end(Checksum::Disabled)));

    let old = Dump::redis(4).key(0).text(b"v").raw(&[0xff]).0;
    let (said, outcome) = whole(&old);
    assert_eq!(outcome, Ok(()));
    assert!(said.last().unwrap().contains("Absent"), "{said:?}");
}

#[test]
fn something_behind_the_end_is_an_error() {
    let mut dump = Dump::redis(11).end();
    let at = dump.len() as u64;
    dump.push(b'*');
    assert_eq!(whole(&dump).1, Err(ScanError::AfterEnd { at }));
}

#[test]
fn a_dump_that_is_cut_anywhere_says_so() {
    let dump = Dump::redis(11)
        .raw(&[0xfc, 1, 1, 0, 0, 0, 0, 0, 0])
        .key(4)
        .raw(&[1, 1, b'f', 1, b'v'])
        .end();
    for at in 0..dump.len() {
        match whole(&dump[..at]).1 {
            Err(ScanError::Cut { at: said, .. }) => assert_eq!(said, at as u64),
            other => panic!("cut at {at}: {other:?}"),
        }
    }
}

#[test]
fn of_a_long_name_the_beginning_is_kept() {
    let name = vec![b'n'; NAME_BYTES_MAX + 10];
    // Compressed: references of 264 bytes each to the byte before.
    let references = name.len() / 264;
    let mut compressed = vec![0, b'n'];
    let mut expands_to = 1_u32;
    for _ in 0..references + 1 {
        compressed.extend_from_slice(&[0xe0, 255, 0]);
        expands_to += 264;
    }
    let stored = u32::try_from(compressed.len()).unwrap();
    let dump = Dump::redis(11)
        .raw(&[0])
        .text(&name)
        .text(b"v")
        .raw(&[0, 0xc3, 0x80])
        .raw(&stored.to_be_bytes())
        .raw(&[0x80])
        .raw(&expands_to.to_be_bytes())
        .raw(&compressed)
        .text(b"v")
        .end();
    let mut found = Vec::new();
    Scanner::new()
        .scan(&dump, &mut |event| {
            if let Event::Key(key) = event {
                assert_eq!(key.name, &name[..NAME_BYTES_MAX]);
                found.push((key.name_bytes, key.name_is_whole()));
            }
        })
        .unwrap();
    assert_eq!(
        found,
        [(name.len() as u64, false), (u64::from(expands_to), false)]
    );
}

/// More compressed bytes than are kept, which become more than the length that they claim.
#[test]
fn a_long_compressed_name_is_not_longer_than_it_says() {
    let compressed = [&[0, b'n'][..], &[0xe0, 255, 0].repeat(30_000)].concat();
    let stored = u32::try_from(compressed.len()).unwrap();
    let dump = Dump::redis(11)
        .raw(&[0, 0xc3, 0x80])
        .raw(&stored.to_be_bytes())
        .raw(&[5])
        .raw(&compressed)
        .text(b"v")
        .end();
    assert!(matches!(
        whole(&dump).1,
        Err(ScanError::Damaged { at: 17, .. })
    ));
}

#[test]
fn integers_are_names_too() {
    let dump = Dump::redis(11)
        .raw(&[0, 0xc0, 0xff])
        .text(b"v")
        .raw(&[0, 0xc2, 0, 0, 1, 0])
        .text(b"v")
        .end();
    let names: Vec<Vec<u8>> = keys(&dump).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [b"-1".to_vec(), b"65536".to_vec()]);
}

/// A dump with every table in it, to cut and to damage.
fn everything() -> Vec<u8> {
    let mut dump = Dump::redis(12)
        .raw(&[0xfa])
        .text(b"ctime")
        .raw(&[0xc2, 1, 2, 3, 4])
        .raw(&[0xf7, 9, 2, 2, 5, 1, b'a', 0, 0xfe, 0])
        .raw(&[0xfc, 1, 1, 0, 0, 0, 0, 0, 0]);
    for (code, value, first) in one_of_each() {
        if first.0.starts_with(b"REDIS") {
            dump = dump.key(code).raw(&value);
        }
    }
    dump.end()
}

proptest! {
    /// However it is cut, the events are the same; damaged as well, and nothing panics.
    #[test]
    fn pieces_make_no_difference(
        sizes in prop::collection::vec(1_usize..40, 1..60),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut dump = everything();
        for (place, byte) in damage {
            let place = place.index(dump.len());
            dump[place] = byte;
        }
        let mut pieces = Vec::new();
        let mut rest = dump.as_slice();
        for size in sizes.iter().cycle() {
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            pieces.push(piece);
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        let at_once = whole(&dump);
        prop_assert_eq!(&scan(pieces), &at_once);
        prop_assert_eq!(&scan(dump.chunks(1)), &at_once);
    }
}

#[test]
fn everything_is_whole() {
    assert_eq!(whole(&everything()).1, Ok(()));
}
