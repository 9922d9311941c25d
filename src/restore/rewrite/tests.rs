use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::proto::resp::CommandCursor;

const AT: UnixMillis = UnixMillis(1_700_000_000_000);
const ALL: Rewriting = Rewriting {
    relative_ttl: true,
    field_persist: true,
};
const TTL: Rewriting = Rewriting {
    relative_ttl: true,
    field_persist: false,
};

fn spell(words: &str) -> Vec<u8> {
    let words: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
    command(&words).to_vec()
}

fn spell_all(lines: &[&str]) -> Vec<u8> {
    lines.iter().flat_map(|line| spell(line)).collect()
}

/// Pushes pieces cut at these places.
fn rewrite(rewriting: Rewriting, bytes: &[u8], cuts: &[usize]) -> (Vec<u8>, Tally) {
    let mut rewriter = Rewriter::new(rewriting);
    let mut out = Vec::new();
    let mut from = 0;
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([bytes.len()]);
    cuts.sort_unstable();
    for cut in cuts {
        rewriter.push(&Bytes::copy_from_slice(&bytes[from..cut]), AT, &mut out);
        from = cut;
    }
    let given = out.concat();
    assert_eq!(rewriter.tally().bytes, given.len() as u64);
    (given, rewriter.tally())
}

#[track_caller]
fn becomes(rewriting: Rewriting, line: &str, expected: &[&str]) {
    let input = spell(line);
    let (whole, _) = rewrite(rewriting, &input, &[]);
    let readable = |bytes: &[u8]| bytes.escape_ascii().to_string();
    assert_eq!(readable(&whole), readable(&spell_all(expected)), "{line}");
    let bytewise: Vec<usize> = (0..input.len()).collect();
    assert_eq!(rewrite(rewriting, &input, &bytewise).0, whole, "{line}");
}

#[test]
fn every_relative_spelling_gets_its_absolute_time_behind_it() {
    for (line, deadline) in [
        ("EXPIRE k 10", "1700000010000"),
        ("expire k 10", "1700000010000"),
        ("PEXPIRE k 10", "1700000000010"),
        ("SETEX k 10 v", "1700000010000"),
        ("PSetEx k 1500 v", "1700000001500"),
        ("SET k v EX 10", "1700000010000"),
        ("set k v px 10", "1700000000010"),
        ("SET k v NX EX 10", "1700000010000"),
        ("SET k v EX 10 XX GET", "1700000010000"),
        ("SET k v GET pX 7", "1700000000007"),
        ("RESTORE k 10 payload", "1700000000010"),
        ("restore k 10 payload REPLACE", "1700000000010"),
        ("RESTORE k 10 payload IDLETIME 5 REPLACE", "1700000000010"),
        ("RESTORE k 10 payload FREQ 5", "1700000000010"),
        ("RESTORE-ASKING k 10 payload REPLACE", "1700000000010"),
    ] {
        becomes(TTL, line, &[line, &format!("PEXPIREAT k {deadline}")]);
        becomes(ALL, line, &[line, &format!("PEXPIREAT k {deadline}")]);
    }
}

#[test]
fn what_is_absolute_or_no_ttl_passes() {
    for line in [
        "EXPIREAT k 1700000010",
        "PEXPIREAT k 1700000010000",
        "SET k v",
        "SET k v KEEPTTL",
        "SET k v GET",
        "SET k v PXAT 1700000010000",
        "SET k v exat 1700000010",
        "SET k v IFEQ EX",
        "SET k v IFEQ PX GET",
        "SET EX 10",
        "SET k v NX",
        "RESTORE k 0 payload",
        "RESTORE k 0 payload REPLACE",
        "RESTORE k 1700000010000 payload ABSTTL",
        "RESTORE k 1700000010000 payload REPLACE absttl",
        "PERSIST k",
        "PING",
        "SELECT 3",
        "MULTI",
        "EXEC",
        "HSETEX h PXAT 1700000010000 FIELDS 1 f v",
        "HPEXPIREAT h 1700000010000 FIELDS 1 f",
        "GETEX k",
        "XEXPIRE k 10",
    ] {
        becomes(ALL, line, &[line]);
    }
}

#[test]
fn numbers_that_no_server_takes_pass() {
    for line in [
        "EXPIRE k 0",
        "EXPIRE k -1",
        "EXPIRE k +5",
        "EXPIRE k 05",
        "EXPIRE k 1e3",
        "EXPIRE k ten",
        "EXPIRE k 9223372036854775807",
        "PEXPIRE k 9223372036854775808",
        "PEXPIRE k 99999999999999999999999999",
        "SET k v EX",
        "SET k v EX ten",
        "SET k v EX 9300000000000000000",
        "SETEX k v 10",
        "EXPIRE k",
        "EXPIRE k 10 NX",
    ] {
        becomes(ALL, line, &[line]);
    }
    becomes(
        ALL,
        "PEXPIRE k 9223372036854775807",
        &[
            "PEXPIRE k 9223372036854775807",
            "PEXPIREAT k 9223372036854775807",
        ],
    );
}

#[test]
fn field_expiry_is_put_off_before_it_is_taken_away() {
    for line in ["HPERSIST h FIELDS 2 f g", "hpersist h fields 2 f g"] {
        let words: Vec<&str> = line.split(' ').collect();
        let before = format!("HPEXPIREAT h 9999999999999 {} 2 f g", words[2]);
        becomes(ALL, line, &[&before, line]);
        becomes(TTL, line, &[line]);
    }
    becomes(ALL, "HPERSIST h", &["HPERSIST h"]);
    // Several at once, among others.
    let input = spell_all(&[
        "SET a b",
        "HPERSIST h FIELDS 1 f",
        "HPERSIST i FIELDS 1 g",
        "SET c d",
    ]);
    let (output, tally) = rewrite(ALL, &input, &[]);
    let expected = [
        "SET a b",
        "HPEXPIREAT h 9999999999999 FIELDS 1 f",
        "HPERSIST h FIELDS 1 f",
        "HPEXPIREAT i 9999999999999 FIELDS 1 g",
        "HPERSIST i FIELDS 1 g",
        "SET c d",
    ];
    assert_eq!(output, spell_all(&expected));
    assert_eq!(tally.field_persists, 2);
}

#[test]
fn any_bytes_may_be_in_keys_values_and_fields() {
    let odd: &[u8] = b"\r\n*3\r\n$6\r\nEXPIRE\r\n\0\xff";
    for words in [
        [b"EXPIRE".as_slice(), odd, b"10"].as_slice(),
        &[b"SETEX", odd, b"10", odd],
        &[b"SET", odd, odd, b"EX", b"10"],
    ] {
        let input = command(words);
        let (output, _) = rewrite(ALL, &input, &[]);
        assert_eq!(
            output,
            [&input[..], &command(&[b"PEXPIREAT", odd, b"1700000010000"])].concat()
        );
    }
    let empty = command(&[b"EXPIRE", b"", b"10"]);
    let (output, _) = rewrite(ALL, &empty, &[]);
    assert_eq!(
        output[empty.len()..],
        command(&[b"PEXPIREAT", b"", b"1700000010000"])[..]
    );
    let persist = command(&[b"HPERSIST", odd, b"FIELDS", b"2", odd, b""]);
    let (output, _) = rewrite(ALL, &persist, &[]);
    let before = command(&[
        b"HPEXPIREAT",
        odd,
        b"9999999999999",
        b"FIELDS",
        b"2",
        odd,
        b"",
    ]);
    assert_eq!(output, [&before[..], &persist].concat());
}

#[test]
fn the_time_is_that_of_a_commands_first_byte() {
    let mut rewriter = Rewriter::new(TTL);
    let mut out = Vec::new();
    let line = Bytes::from(spell("PEXPIRE k 10"));
    for (piece, at) in [
        (line.slice(..1), 1000),
        (line.slice(1..20), 2000),
        (line.slice(20..), 3000),
    ] {
        rewriter.push(&piece, UnixMillis(at), &mut out);
    }
    rewriter.push(&line, UnixMillis(4000), &mut out);
    let expected = [
        "PEXPIRE k 10",
        "PEXPIREAT k 1010",
        "PEXPIRE k 10",
        "PEXPIREAT k 4010",
    ];
    assert_eq!(out.concat(), spell_all(&expected));
}

#[test]
fn scripts_pass_and_are_counted() {
    let script = spell_all(&["EVAL redis.call('setex',KEYS[1],5,'v') 1 k", "eval x 0"]);
    let (output, tally) = rewrite(TTL, &script, &[]);
    assert_eq!(output, script);
    assert_eq!(tally.scripts, 2);
    assert!(!tally.is_changed());
}

#[test]
fn values_are_not_kept_and_not_copied() {
    let mut rewriter = Rewriter::new(ALL);
    let mut out = Vec::new();
    let head = Bytes::from_static(b"*5\r\n$3\r\nSET\r\n$1\r\nk\r\n$1000000000000\r\n");
    rewriter.push(&head, AT, &mut out);
    let value = Bytes::from(vec![b'x'; 1 << 20]);
    for _ in 0..100 {
        out.clear();
        rewriter.push(&value, AT, &mut out);
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].as_ptr(), value.as_ptr(), "the same memory");
    }
    assert!(rewriter.word.capacity() + rewriter.held.capacity() < 1024);
}

#[test]
fn a_key_or_a_field_beyond_the_bound_passes_and_is_counted() {
    let mut rewriter = Rewriter::new(ALL);
    let mut out = Vec::new();
    let length = KEY_BYTES_MAX + 1;
    let key = Bytes::from(vec![b'x'; usize::try_from(length).unwrap()]);
    let head = |count, name: &str| {
        Bytes::from(format!(
            "*{count}\r\n${}\r\n{name}\r\n${length}\r\n",
            name.len()
        ))
    };
    for piece in [
        head(3, "EXPIRE"),
        key.clone(),
        Bytes::from_static(b"\r\n$2\r\n10\r\n"),
    ] {
        rewriter.push(&piece, AT, &mut out);
    }
    assert_eq!(
        (out.len(), rewriter.tally().too_long, rewriter.tally().ttls),
        (3, 1, 0)
    );
    out.clear();
    let rest = Bytes::from_static(b"\r\n$6\r\nFIELDS\r\n$1\r\n1\r\n$1\r\nf\r\n");
    let input = [head(5, "HPERSIST"), key, rest];
    for piece in &input {
        rewriter.push(piece, AT, &mut out);
    }
    assert_eq!(out.concat(), input.concat());
    assert_eq!(
        (rewriter.tally().too_long, rewriter.tally().field_persists),
        (2, 0)
    );
    assert_eq!(rewriter.held.capacity(), 0);
    // And the next ones are rewritten again.
    out.clear();
    rewriter.push(&Bytes::from(spell("HPERSIST h FIELDS 1 f")), AT, &mut out);
    assert_eq!(rewriter.tally().field_persists, 1);
}

#[test]
fn empty_commands_and_nonsense_pass() {
    for bytes in [
        &b"*0\r\n*-1\r\n*1\r\n$4\r\nPING\r\n"[..],
        b"\n\n+OK\r\n*1",
        b"*1\r\nPING\r\n",
        b"*2\r\n$-1\r\n",
    ] {
        let every: Vec<usize> = (0..bytes.len()).collect();
        for cuts in [&[][..], &every] {
            assert_eq!(
                rewrite(ALL, bytes, cuts).0,
                bytes,
                "{}",
                bytes.escape_ascii()
            );
        }
    }
    let input = [b"*0\r\n".to_vec(), spell("EXPIRE k 10")].concat();
    assert_eq!(rewrite(ALL, &input, &[]).1.ttls, 1);
}

macro_rules! full_syncs {
    ($($name:literal),+ $(,)?) => {
        [$(($name, include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"), "/proto-fixtures/psync/valid/", $name, "/fullsync-disk.bin"
        )).as_slice())),+]
    };
}

/// What real servers sent, by their version.
const FULL_SYNCS: [(&str, &[u8]); 10] = full_syncs![
    "redis-2.8.24",
    "redis-3.2.13",
    "redis-4.0.14",
    "redis-5.0.14",
    "redis-6.2.14",
    "redis-7.0.15",
    "redis-7.2.6",
    "redis-8.0.6",
    "valkey-8.0.1",
    "valkey-9.1.2",
];

/// The replication streams behind their payloads.
fn captures() -> BTreeMap<&'static str, Vec<u8>> {
    let stream = |bytes: &[u8]| {
        // `$<length>`, the payload, and then the commands.
        let line = bytes
            .windows(3)
            .position(|it| it.starts_with(b"\n$") && it[2].is_ascii_digit());
        let line = line.expect("a payload") + 2;
        let end = bytes[line..].iter().position(|byte| *byte == b'\r');
        let end = line + end.unwrap();
        let length = std::str::from_utf8(&bytes[line..end]).unwrap();
        bytes[end + 2 + length.parse::<usize>().unwrap()..].to_vec()
    };
    FULL_SYNCS
        .iter()
        .map(|(name, bytes)| (*name, stream(bytes)))
        .collect()
}

#[test]
fn real_replication_streams_stay_such_and_only_the_old_ones_are_touched() {
    for (name, stream) in captures() {
        CommandCursor::new(crate::position::Offset::ZERO, None)
            .feed(&stream)
            .unwrap();
        let (output, tally) = rewrite(TTL, &stream, &[]);
        let mut cursor = CommandCursor::new(crate::position::Offset::ZERO, None);
        cursor.feed(&output).unwrap();
        assert!(cursor.at_boundary(), "{name}");
        let old = ["redis-2", "redis-3", "redis-4", "redis-5", "redis-6"];
        let old = old.iter().any(|version| name.starts_with(version));
        assert_eq!(tally.is_changed(), old, "{name}: {tally:?}");
        assert_eq!(output == stream, !old, "{name}");
        let very_old = ["redis-2", "redis-3", "redis-4"]
            .iter()
            .any(|version| name.starts_with(version));
        assert_eq!(tally.scripts > 0, very_old, "{name}: {tally:?}");
    }
}

proptest! {
    #[test]
    fn the_result_does_not_depend_on_how_the_bytes_were_cut(
        which in 0_usize..10,
        cuts in prop::collection::vec(0_usize..1 << 20, 0..40),
    ) {
        let captures = captures();
        let stream = captures.values().nth(which % captures.len()).unwrap();
        prop_assert_eq!(rewrite(ALL, stream, &cuts), rewrite(ALL, stream, &[]));
    }

    #[test]
    fn taking_out_what_was_added_gives_the_original(
        commands in prop::collection::vec(
            (prop::sample::select(&["EXPIRE", "SET", "SETEX", "HPERSIST", "RESTORE", "PING", "HSET"][..]),
             prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 0..7)),
            0..20,
        ),
        cuts in prop::collection::vec(0_usize..4096, 0..12),
    ) {
        let spelled: Vec<Bytes> = commands
            .iter()
            .map(|(name, rest)| {
                let mut words = vec![name.as_bytes()];
                words.extend(rest.iter().map(Vec::as_slice));
                command(&words)
            })
            .collect();
        let input = spelled.concat();
        let (output, tally) = rewrite(ALL, &input, &cuts);
        let mut rest = &output[..];
        let mut added = 0;
        for line in &spelled {
            while !rest.starts_with(line) {
                let skipped = arguments(rest).unwrap();
                prop_assert!(skipped[0] == b"PEXPIREAT" || skipped[0] == b"HPEXPIREAT");
                rest = &rest[command(&skipped).len()..];
                added += 1;
            }
            rest = &rest[line.len()..];
        }
        while !rest.is_empty() {
            let skipped = arguments(rest).unwrap();
            prop_assert_eq!(skipped[0], b"PEXPIREAT");
            rest = &rest[command(&skipped).len()..];
            added += 1;
        }
        prop_assert_eq!(added, tally.ttls + tally.field_persists);
    }
}
