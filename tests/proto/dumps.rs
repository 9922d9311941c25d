//! The scanner on dumps that real servers wrote: its keys are those that the servers told, its events do not depend on
//! how the bytes are cut, and another decoder agrees.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use perennial::proto::rdb::{Checksum, Event, Numbering, ScanError, Scanner};
use rdb::{RdbDecoder, RdbValue, Simple};
use serde_json::Value;

use crate::fixtures::{Random, files, root};

/// Database and name.
type Place = (u64, Vec<u8>);

/// What is known of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Facts {
    kind: String,
    expires_at: Option<u64>,
    expires: bool,
}

fn dumps() -> Vec<PathBuf> {
    let found = files("rdb/valid", "rdb");
    assert!(found.len() >= 10, "only {} dumps were found", found.len());
    found
}

fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// Every event as text.
fn events(pieces: &[&[u8]]) -> Result<Vec<String>, ScanError> {
    let mut said = Vec::new();
    let mut scanner = Scanner::new();
    for piece in pieces {
        scanner.scan(piece, &mut |event| said.push(format!("{event:?}")))?;
    }
    scanner.finish()?;
    Ok(said)
}

/// The keys that the scanner finds, how many libraries of functions, and what it says of the checksum.
fn scanned(bytes: &[u8]) -> (BTreeMap<Place, Facts>, usize, Option<Checksum>) {
    let mut keys = BTreeMap::new();
    let (mut functions, mut checksum) = (0, None);
    let mut scanner = Scanner::new();
    scanner
        .scan(bytes, &mut |event| match event {
            Event::Key(key) => {
                assert!(key.name_is_whole());
                let facts = Facts {
                    kind: key.value.kind.word().to_owned(),
                    expires_at: key.expires_at.map(|at| at.0),
                    expires: key.expires_at.is_some(),
                };
                let before = keys.insert((key.database, key.name.to_vec()), facts);
                assert_eq!(before, None, "twice: {key:?}");
            }
            Event::Function { .. } => functions += 1,
            Event::End { checksum: said, .. } => checksum = Some(said),
            _ => {}
        })
        .unwrap();
    scanner.finish().unwrap();
    (keys, functions, checksum)
}

/// In these texts code point N stands for byte N.
fn bytes_of(text: &str) -> Vec<u8> {
    text.chars()
        .map(|character| u8::try_from(u32::from(character)).unwrap())
        .collect()
}

/// The keys that the server itself told, and its libraries of functions.
fn told(path: &Path) -> (BTreeMap<Place, Facts>, usize) {
    let text = fs::read_to_string(path.with_extension("keys.json")).unwrap();
    let told: Value = serde_json::from_str(&text).unwrap();
    let mut keys = BTreeMap::new();
    for (database, names) in told["keys"].as_object().unwrap() {
        for (name, facts) in names.as_object().unwrap() {
            let place = (database.parse().unwrap(), bytes_of(name));
            let facts = Facts {
                kind: facts["type"].as_str().unwrap().to_owned(),
                expires_at: facts["expire_at_ms"].as_u64(),
                expires: facts["ttl"].as_bool().unwrap(),
            };
            keys.insert(place, facts);
        }
    }
    (keys, told["functions"].as_array().unwrap().len())
}

#[test]
fn the_keys_are_those_that_the_servers_told() {
    for path in dumps() {
        let name = name(&path);
        let (found, functions, checksum) = scanned(&fs::read(&path).unwrap());
        let (mut expected, libraries) = told(&path);
        assert!(expected.len() > 40, "{name}");
        for (place, facts) in &mut expected {
            // Servers before 7.0 do not tell the moment, only that there is one.
            let at = found.get(place).and_then(|facts| facts.expires_at);
            if facts.expires && facts.expires_at.is_none() {
                facts.expires_at = at;
            }
        }
        assert_eq!(found, expected, "{name}");
        assert_eq!(functions, libraries, "{name}");
        assert_eq!(checksum, Some(Checksum::Verified), "{name}");
    }
}

#[test]
fn pieces_of_any_size_give_the_same_events() {
    let mut random = Random::new();
    for path in dumps() {
        let bytes = fs::read(&path).unwrap();
        let whole = events(&[&bytes]).unwrap();
        let bytewise: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(events(&bytewise).unwrap(), whole, "{}", name(&path));
        for _ in 0..20 {
            let pieces = random.cut(&bytes);
            assert_eq!(events(&pieces).unwrap(), whole, "{}", name(&path));
        }
    }
}

/// Damage that the checksum does not see, because it is taken away: an error or other keys, never a panic; and the
/// same, however the bytes are cut.
#[test]
fn damaged_and_cut_dumps_are_read_the_same_in_pieces() {
    let mut random = Random::new();
    for path in dumps() {
        let good = fs::read(&path).unwrap();
        for _ in 0..30 {
            let mut bytes = good.clone();
            for _ in 0..4 {
                let place = random.below(bytes.len());
                bytes[place] = u8::try_from(random.below(256)).unwrap();
            }
            bytes.truncate(bytes.len() - random.below(100));
            let whole = events(&[&bytes]);
            assert!(whole.is_err(), "{}: damage was not seen", name(&path));
            assert_eq!(events(&random.cut(&bytes)), whole, "{}", name(&path));
        }
    }
}

/// Where the other decoder knows the format, it finds the same keys. It passes over streams and modules.
#[test]
fn another_decoder_agrees() {
    let mut compared = 0;
    for path in dumps() {
        let bytes = fs::read(&path).unwrap();
        let mut numbering = None;
        Scanner::new()
            .scan(&bytes[..9], &mut |event| {
                if let Event::Head {
                    numbering: said, ..
                } = event
                {
                    numbering = Some(said);
                }
            })
            .unwrap();
        let decoder = RdbDecoder::new(bytes.as_slice(), Simple::new());
        if numbering == Some(Numbering::Valkey) {
            assert!(decoder.is_err(), "it knows Valkey's numbers now");
            continue;
        }
        let (mut expected, _, _) = scanned(&bytes);
        expected.retain(|_, facts| facts.kind != "stream" && facts.kind != "module");
        assert_eq!(decoded(decoder.unwrap()), expected, "{}", name(&path));
        compared += 1;
    }
    assert!(compared >= 9, "only {compared} dumps were compared");
}

fn decoded(decoder: RdbDecoder<&[u8], Simple>) -> BTreeMap<Place, Facts> {
    let mut database = 0;
    let mut keys = BTreeMap::new();
    for item in decoder {
        let (kind, key, expires_at) = match item.unwrap() {
            RdbValue::SelectDb(number) => {
                database = u64::from(number);
                continue;
            }
            RdbValue::String { key, expiry, .. } => ("string", key, expiry),
            RdbValue::List { key, expiry, .. } => ("list", key, expiry),
            RdbValue::Set { key, expiry, .. } => ("set", key, expiry),
            RdbValue::SortedSet { key, expiry, .. } => ("zset", key, expiry),
            RdbValue::Hash { key, expiry, .. } => ("hash", key, expiry),
            RdbValue::ResizeDb { .. } | RdbValue::AuxField { .. } | RdbValue::Checksum(_) => {
                continue;
            }
        };
        let facts = Facts {
            kind: kind.to_owned(),
            expires_at,
            expires: expires_at.is_some(),
        };
        keys.insert((database, key), facts);
    }
    keys
}
