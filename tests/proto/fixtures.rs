//! Walks `proto-fixtures/`. Each case is fed whole, byte by byte and in random pieces, and must say the same
//! each time: what the text beside it says. `UPDATE_FIXTURES=1` rewrites the texts, for review in the diff.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use crc_fast::{CrcAlgorithm, checksum};

use super::render;

/// Random cuts per case.
const RANDOM_CUTS: usize = 20;

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("proto-fixtures")
}

/// The files below `folder` that end in `extension`, in order.
pub(crate) fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Numbers for cutting; the seed is in the output of a test that fails, and `SEED=` sets it.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Self {
        let seed = match std::env::var("SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => RandomState::new().hash_one(0),
        };
        eprintln!("SEED={seed}");
        Self(seed)
    }

    /// Splitmix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below this one.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    /// Pieces of all sizes, small ones often.
    pub(crate) fn cut<'a>(&mut self, mut bytes: &'a [u8]) -> Vec<&'a [u8]> {
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            let size_max = 1 << (self.next() % 17);
            let size = 1 + usize::try_from(self.next() % size_max).unwrap();
            let (piece, rest) = bytes.split_at(size.min(bytes.len()));
            pieces.push(piece);
            bytes = rest;
        }
        pieces
    }
}

/// Checks one case against the text beside it, in every way of cutting.
fn check(path: &Path, random: &mut Random, run: impl Fn(&str, &[&[u8]]) -> String) {
    let bytes = fs::read(path).unwrap();
    let beside = path.with_extension("expected");
    let expected = fs::read_to_string(&beside).unwrap_or_default();
    let inputs: String = expected
        .split_inclusive('\n')
        .filter(|line| line.starts_with("with "))
        .collect();
    let name = path.strip_prefix(root()).unwrap().display();

    let whole = format!("{inputs}{}", run(&inputs, &[&bytes]));
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        fs::write(&beside, &whole).unwrap();
    } else {
        assert_eq!(whole, expected, "{name} differs from the text beside it");
    }
    let bytewise: Vec<&[u8]> = bytes.chunks(1).collect();
    let pieces = format!("{inputs}{}", run(&inputs, &bytewise));
    assert_eq!(pieces, whole, "{name}: fed byte by byte");
    for _ in 0..RANDOM_CUTS {
        let before = random.0;
        let pieces = format!("{inputs}{}", run(&inputs, &random.cut(&bytes)));
        assert_eq!(pieces, whole, "{name}: random pieces, SEED={before}");
    }
}

#[test]
fn masters_are_understood() {
    let mut random = Random::new();
    let captures = files("psync/valid", "bin");
    let from_masters = captures.iter().filter(|path| !is_from_replica(path));
    let mut count = 0;
    for path in from_masters {
        check(path, &mut random, |inputs, pieces| {
            render::replica(render::replica_options(inputs), pieces, false)
        });
        count += 1;
    }
    assert!(count >= 40, "only {count} captures were found");
}

#[test]
fn replicas_are_understood() {
    let mut random = Random::new();
    let captures = files("psync/valid", "bin");
    let from_replicas: Vec<_> = captures
        .iter()
        .filter(|path| is_from_replica(path))
        .collect();
    assert!(!from_replicas.is_empty());
    for path in from_replicas {
        check(path, &mut random, |_, pieces| render::master(pieces));
    }
}

#[test]
fn refusals_and_nonsense_are_said_clearly() {
    let mut random = Random::new();
    let cases = files("psync/invalid", "bin");
    assert!(!cases.is_empty());
    for path in cases {
        check(&path, &mut random, |inputs, pieces| {
            render::replica(render::replica_options(inputs), pieces, true)
        });
    }
}

#[test]
fn commands_end_where_they_end() {
    let mut random = Random::new();
    let cases = [files("resp/valid", "resp"), files("resp/invalid", "resp")].concat();
    assert!(!cases.is_empty());
    for path in cases {
        check(&path, &mut random, |_, pieces| render::cursor(pieces));
        let expected = fs::read_to_string(path.with_extension("expected")).unwrap();
        let invalid = path.starts_with(root().join("resp/invalid"));
        assert_eq!(expected.contains("\nerror "), invalid, "{}", path.display());
    }
}

/// The dumps are for those who read payloads; here only: they are whole.
#[test]
fn dumps_are_whole() {
    let dumps = files("rdb/valid", "rdb");
    assert_eq!(dumps.len(), 10);
    for path in dumps {
        let bytes = fs::read(&path).unwrap();
        let crc = checksum(CrcAlgorithm::Crc32IsoHdlc, &bytes);
        let magic = bytes[..9].escape_ascii();
        let text = format!("magic {magic}\nlength {}\ncrc32 {crc:08x}\n", bytes.len());
        let expected = fs::read_to_string(path.with_extension("expected")).unwrap();
        assert_eq!(text, expected, "{}", path.display());
        let (body, trailer) = bytes.split_last_chunk::<8>().unwrap();
        let crc = checksum(CrcAlgorithm::Crc64Redis, body);
        assert_eq!(crc, u64::from_le_bytes(*trailer), "{}", path.display());
    }
}

fn is_from_replica(path: &Path) -> bool {
    let name = path.file_stem().unwrap_or_default();
    name.as_encoded_bytes().ends_with(b"-from-replica")
}
