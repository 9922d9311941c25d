use proptest::prelude::*;

use super::super::handshake::command;
use super::*;

fn stream(commands: &[&[&[u8]]]) -> Vec<u8> {
    commands
        .iter()
        .flat_map(|arguments| command(arguments))
        .collect()
}

/// Every command end, fed in the given pieces.
fn ends<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<CommandEnd>, CommandCursor) {
    let mut cursor = CommandCursor::new(Offset::ZERO, None);
    let mut ends = Vec::new();
    for mut piece in pieces {
        while !piece.is_empty() {
            let step = cursor.step(piece).unwrap();
            piece = &piece[step.consumed..];
            ends.extend(step.end);
        }
    }
    (ends, cursor)
}

fn kinds(bytes: &[u8]) -> Vec<CommandKind> {
    ends([bytes]).0.iter().map(|end| end.kind).collect()
}

#[test]
fn commands_are_known_in_any_case() {
    use CommandKind::{Discard, Exec, GetAck, Multi, Other, Ping, Select};
    let bytes = stream(&[
        &[b"ping"],
        &[b"PING", b"hello"],
        &[b"REPLCONF", b"GETACK", b"*"],
        &[b"replconf", b"getack", b"*"],
        &[b"REPLCONF", b"ACK", b"1"],
        &[b"SELECT", b"1"],
        &[b"Multi"],
        &[b"eXEC"],
        &[b"DISCARD"],
        &[b"SET", b"ping", b"multi"],
        &[b"PINGS"],
        &[b"0x\x10\x09"],
        &[b""],
    ]);
    let expected = [
        Ping, Ping, GetAck, GetAck, Other, Select, Multi, Exec, Discard, Other, Other, Other, Other,
    ];
    assert_eq!(kinds(&bytes), expected);
}

#[test]
fn a_transaction_has_its_only_boundary_at_its_end() {
    let bytes = stream(&[
        &[b"SELECT", b"3"],
        &[b"MULTI"],
        &[b"MULTI"],
        &[b"SELECT", b"5"],
        &[b"SET", b"k", b"v"],
        &[b"EXEC"],
        &[b"EXEC"],
    ]);
    let (ends, cursor) = ends([bytes.as_slice()]);
    let boundaries: Vec<bool> = ends.iter().map(|end| end.boundary).collect();
    assert_eq!(boundaries, [true, false, false, false, false, true, true]);
    assert!(cursor.at_boundary());

    let mut cursor = CommandCursor::new(Offset::ZERO, Some(0));
    let inside = usize::try_from(ends[3].offset.as_u64()).unwrap();
    let fed = cursor.feed(&bytes[..inside]).unwrap();
    let before = Boundary {
        offset: ends[0].offset,
        database: Some(3),
    };
    assert_eq!(fed.boundary, Some(before));
    assert_eq!(cursor.boundary(), before);
    assert_eq!(cursor.database(), Some(5), "SELECT counts from its own end");
    assert!(!cursor.at_boundary());
    assert_eq!(
        cursor.feed(&bytes[inside..inside + 4]).unwrap(),
        Fed::default()
    );
}

#[test]
fn a_database_is_selected_by_a_number_only() {
    let mut cursor = CommandCursor::new(Offset::ZERO, None);
    for (argument, database) in [
        ("7", Some(7)),
        ("x", Some(7)),
        ("-1", Some(7)),
        ("", Some(7)),
        ("4294967295", Some(u32::MAX)),
        ("4294967296", Some(u32::MAX)),
        ("10000000000", Some(u32::MAX)),
        ("0", Some(0)),
    ] {
        let bytes = stream(&[&[b"SELECT", argument.as_bytes()]]);
        cursor.feed(&bytes).unwrap();
        assert_eq!(cursor.database(), database, "SELECT {argument}");
        for byte in bytes {
            cursor.feed(&[byte]).unwrap();
        }
        assert_eq!(cursor.database(), database, "SELECT {argument}, bytewise");
    }
    cursor.feed(&stream(&[&[b"SELECT", b"3", b"4"]])).unwrap();
    cursor.feed(&stream(&[&[b"SELECT"]])).unwrap();
    assert_eq!(cursor.database(), Some(0));
}

#[test]
fn empty_arrays_are_commands_without_effect() {
    let bytes = b"*0\r\n*-1\r\n*-20\r\n*1\r\n$4\r\nPING\r\n";
    use CommandKind::{Other, Ping};
    assert_eq!(kinds(bytes), [Other, Other, Other, Ping]);
}

#[test]
fn feed_counts_and_finds_the_last_getack() {
    let bytes = stream(&[
        &[b"PING"],
        &[b"REPLCONF", b"GETACK", b"*"],
        &[b"SET", b"a", b"b"],
        &[b"MULTI"],
        &[b"REPLCONF", b"GETACK", b"*"],
    ]);
    let mut cursor = CommandCursor::new(Offset::new(100), Some(2));
    let fed = cursor.feed(&bytes).unwrap();
    let end = Offset::new(100).plus(bytes.len() as u64);
    assert_eq!((fed.pings, fed.getacks, fed.others), (1, 2, 2));
    assert_eq!(fed.getack, Some(end));
    assert_eq!(cursor.offset(), end);
    let multi = stream(&[&[b"MULTI"], &[b"REPLCONF", b"GETACK", b"*"]]).len() as u64;
    let boundary = Offset::new(end.as_u64() - multi);
    assert_eq!(fed.boundary.unwrap().offset, boundary);
    assert_eq!(fed.boundary.unwrap().database, Some(2));
}

#[test]
fn an_error_names_its_byte_and_stays() {
    let ping = stream(&[&[b"PING"]]);
    for (bytes, at, expected) in [
        ("+PONG\r\n", 0, "'*' at the start of a command"),
        ("*x\r\n", 1, "count"),
        ("*\r\n", 1, "count"),
        ("*01\r\n", 2, "count"),
        ("*-0\r\n", 2, "count"),
        ("*--1\r\n", 2, "count"),
        ("*2147483649\r\n", 10, "count"),
        ("*1\n", 2, "count"),
        ("*1\rx", 3, "LF"),
        ("*1\r\n:1\r\n", 4, "'$'"),
        ("*1\r\n$-1\r\n", 5, "length"),
        ("*1\r\n$1099511627777\r\n", 17, "length"),
        ("*1\r\n$99999999999999999999999\r\n", 17, "length"),
        ("*1\r\n$4\r\nPINGx\r\n", 12, "CR LF"),
        ("*1\r\n$4\r\nPING\rx", 13, "CR LF"),
        ("*1\r\n$0\r\nx", 8, "CR LF"),
    ] {
        let whole = [ping.as_slice(), bytes.as_bytes()].concat();
        let mut cursor = CommandCursor::new(Offset::new(1000), None);
        let malformed = cursor.feed(&whole).unwrap_err();
        let offset = Offset::new(1000 + ping.len() as u64 + at + 1);
        assert_eq!(malformed.offset, offset, "{bytes:?}: {malformed}");
        assert!(
            malformed.expected.contains(expected),
            "{bytes:?}: {malformed}"
        );
        let found = bytes.as_bytes()[usize::try_from(at).unwrap()];
        assert_eq!(malformed.found, found);
        assert_eq!(cursor.offset(), offset.previous());
        assert_eq!(
            cursor.boundary().offset,
            Offset::new(1000 + ping.len() as u64)
        );
        assert_eq!(cursor.feed(&ping), Err(malformed));
        assert_eq!(cursor.feed(b""), Err(malformed));
        assert_eq!(cursor.step(&ping), Err(malformed));

        let mut bytewise = CommandCursor::new(Offset::new(1000), None);
        let errors: Vec<_> = whole.iter().map(|byte| bytewise.feed(&[*byte])).collect();
        assert_eq!(errors.iter().find_map(|fed| fed.err()), Some(malformed));
    }
}

#[test]
fn a_value_of_any_size_is_passed_in_a_few_words_of_memory() {
    let mut cursor = CommandCursor::new(Offset::ZERO, None);
    let piece = vec![b'*'; 1 << 20];
    cursor
        .feed(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1073741824\r\n")
        .unwrap();
    for _ in 0..1024 {
        assert_eq!(cursor.feed(&piece).unwrap(), Fed::default());
    }
    assert_eq!(cursor.feed(b"\r\n").unwrap().others, 1);
    assert!(size_of::<CommandCursor>() <= 256);
}

fn arguments() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let name = prop_oneof![
        prop_oneof![
            "ping", "MULTI", "exec", "DISCARD", "SELECT", "replconf", "SET"
        ]
        .prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..12),
    ];
    let argument = prop_oneof![
        "[0-9]{1,11}|getack|GETACK|\\*1\r\n\\$4\r\n".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..300),
    ];
    (name, proptest::collection::vec(argument, 0..4)).prop_map(|(name, mut arguments)| {
        arguments.insert(0, name);
        arguments
    })
}

proptest! {
    #[test]
    fn any_commands_cut_anywhere_end_where_they_end(
        commands in proptest::collection::vec(arguments(), 0..20),
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..40),
    ) {
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for arguments in &commands {
            let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
            bytes.extend_from_slice(&command(&arguments));
            expected.push(Offset::new(bytes.len() as u64));
        }
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();

        let (whole, whole_cursor) = ends([bytes.as_slice()]);
        let (pieces, cursor) = ends(cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]));
        let (bytewise, _) = ends(bytes.chunks(1));
        prop_assert_eq!(whole.iter().map(|end| end.offset).collect::<Vec<_>>(), expected);
        prop_assert_eq!(&pieces, &whole);
        prop_assert_eq!(&bytewise, &whole);
        prop_assert_eq!(cursor.boundary(), whole_cursor.boundary());
        prop_assert_eq!(cursor.database(), whole_cursor.database());
    }

    #[test]
    fn any_bytes_cut_anywhere_give_the_same_answer(
        bytes in "([*$][0-9]{0,3}\r?\n?|ping\r\n|.){0,40}".prop_map(String::into_bytes),
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut whole = CommandCursor::new(Offset::ZERO, None);
        let mut pieces = whole.clone();
        let all = whole.feed(&bytes).map(|fed| fed.others);
        let (first, second) = bytes.split_at(cut.index(bytes.len() + 1));
        let both = pieces
            .feed(first)
            .and_then(|one| pieces.feed(second).map(|two| one.others + two.others));
        prop_assert_eq!(all, both);
        prop_assert_eq!(whole.offset(), pieces.offset());
        prop_assert_eq!(whole.boundary(), pieces.boundary());
    }
}
