//! One key of a dump and its value, decoded by the `rdb` crate where that knows the format.

use std::ops::Range;

use rdb::{RdbDecoder, RdbValue, Simple};
use serde_json::{Value as Json, json};

use super::text;
use crate::position::UnixMillis;
use crate::proto::rdb::{Checksum, Event, Kind, Numbering};

/// The longest value that is decoded, as it lies in the dump, bytes. It is held in memory, and decoded takes more.
pub(super) const VALUE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// From here on Redis and Valkey mean different types by one number, and the decoder knows those of Redis.
const OWN_TYPES_FROM: u8 = 22;

/// A key that is looked for, and what was found of it.
#[derive(Debug)]
pub(super) struct Wanted {
    name: Vec<u8>,
    database: u64,
    numbering: Option<Numbering>,
    pub(super) found: Option<Found>,
    pub(super) checksum: Option<Checksum>,
}

/// What was found of a key.
#[derive(Debug)]
pub(super) struct Found {
    code: u8,
    pub(super) kind: Kind,
    pub(super) encoding: &'static str,
    pub(super) expires_at: Option<UnixMillis>,
    begins: u64,
    /// `None` until the value has ended.
    ends: Option<u64>,
    /// The value's bytes; no more than [`VALUE_BYTES_MAX`].
    bytes: Vec<u8>,
}

impl Found {
    /// The value's bytes in the dump.
    pub(super) fn range(&self) -> Range<u64> {
        self.begins..self.ends.unwrap_or(self.begins)
    }
}

impl Wanted {
    pub(super) fn new(name: Vec<u8>, database: u64) -> Self {
        Self {
            name,
            database,
            numbering: None,
            found: None,
            checksum: None,
        }
    }

    pub(super) fn note(&mut self, event: Event<'_>) {
        match event {
            Event::Head { numbering, .. } => self.numbering = Some(numbering),
            Event::Key(key)
                if self.found.is_none()
                    && key.database == self.database
                    && key.name_is_whole()
                    && key.name == self.name =>
            {
                self.found = Some(Found {
                    code: key.value.code,
                    kind: key.value.kind,
                    encoding: key.value.encoding,
                    expires_at: key.expires_at,
                    begins: key.value_at,
                    ends: None,
                    bytes: Vec::new(),
                });
            }
            Event::Value { bytes, .. } => {
                if let Some(found) = &mut self.found {
                    found.ends.get_or_insert(bytes.end);
                }
            }
            Event::End { checksum, .. } => self.checksum = Some(checksum),
            _ => {}
        }
    }

    /// Keeps what belongs to the value of a piece that was scanned and begins at this byte of the dump.
    pub(super) fn keep(&mut self, piece_begins: u64, piece: &[u8]) {
        let Some(found) = &mut self.found else {
            return;
        };
        let kept_to = found.begins + found.bytes.len() as u64;
        let place = |at: u64| {
            let within = at.saturating_sub(piece_begins).min(piece.len() as u64);
            usize::try_from(within).unwrap_or(piece.len())
        };
        let (from, to) = (place(kept_to), place(found.ends.unwrap_or(u64::MAX)));
        let room = VALUE_BYTES_MAX - found.bytes.len();
        if from < to {
            let bytes = &piece[from..to];
            found
                .bytes
                .extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }

    /// The value, decoded; or why not.
    pub(super) fn decoded(&self) -> Result<Decoded, String> {
        let Some(found) = &self.found else {
            return Err("the key was not found".to_owned());
        };
        let range = found.range();
        let length = range.end - range.start;
        if found.bytes.len() as u64 != length {
            return Err(format!(
                "it takes {}: more than {} is not decoded",
                bytesize::ByteSize(length),
                bytesize::ByteSize(VALUE_BYTES_MAX as u64)
            ));
        }
        if found.code >= OWN_TYPES_FROM && self.numbering == Some(Numbering::Valkey) {
            return Err("hashes of valkey 9 with fields that expire are not decoded".to_owned());
        }
        match found.kind {
            Kind::Stream => return Err("streams are not decoded".to_owned()),
            Kind::Module => return Err("values of modules are not decoded".to_owned()),
            _ => {}
        }
        decode(found.code, &found.bytes)
    }
}

/// A decoded value.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Decoded {
    Text(Vec<u8>),
    Members(Vec<Vec<u8>>),
    Fields(Vec<(Vec<u8>, Vec<u8>)>),
    Scores(Vec<(Vec<u8>, f64)>),
}

/// Decodes a value by giving the decoder a dump with only this in it.
fn decode(code: u8, value: &[u8]) -> Result<Decoded, String> {
    let mut dump = Vec::with_capacity(value.len() + 32);
    dump.extend_from_slice(b"REDIS0012");
    // The name is empty.
    dump.extend_from_slice(&[code, 0]);
    dump.extend_from_slice(value);
    dump.push(0xff);
    dump.extend_from_slice(&[0; 8]);
    let decoder =
        RdbDecoder::new(dump.as_slice(), Simple::new()).map_err(|error| error.to_string())?;
    for item in decoder {
        return Ok(match item.map_err(|error| error.to_string())? {
            RdbValue::String { value, .. } => Decoded::Text(value),
            RdbValue::List { values, .. } => Decoded::Members(values),
            RdbValue::Set { members, .. } => Decoded::Members(members),
            RdbValue::Hash { values, .. } => Decoded::Fields(values.into_iter().collect()),
            RdbValue::SortedSet { values, .. } => Decoded::Scores(
                values
                    .into_iter()
                    .map(|(score, member)| (member, score))
                    .collect(),
            ),
            _ => continue,
        });
    }
    Err("the decoder passed over it".to_owned())
}

impl Decoded {
    /// As lines for people.
    pub(super) fn lines(&self) -> Vec<String> {
        match self {
            Self::Text(value) => vec![text::shown(value)],
            Self::Members(members) => members.iter().map(|it| text::shown(it)).collect(),
            Self::Fields(fields) => fields
                .iter()
                .map(|(field, value)| format!("{}: {}", text::shown(field), text::shown(value)))
                .collect(),
            Self::Scores(scores) => scores
                .iter()
                .map(|(member, score)| format!("{score} {}", text::shown(member)))
                .collect(),
        }
    }

    /// As JSON: a text, a list of texts, of fields with their values, or of members with their scores.
    pub(super) fn json(&self) -> Json {
        match self {
            Self::Text(value) => text::shown(value).into(),
            Self::Members(members) => members.iter().map(|it| text::shown(it)).collect(),
            Self::Fields(fields) => fields
                .iter()
                .map(|(field, value)| {
                    json!({ "field": text::shown(field), "value": text::shown(value) })
                })
                .collect(),
            Self::Scores(scores) => scores
                .iter()
                .map(|(member, score)| {
                    // JSON has no infinite numbers.
                    let score = if score.is_finite() {
                        json!(score)
                    } else {
                        json!(score.to_string())
                    };
                    json!({ "member": text::shown(member), "score": score })
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::rdb::Scanner;

    /// Two keys named `k` in two databases, and what is found of the second in pieces of any size.
    #[test]
    fn the_value_is_kept_from_any_pieces() {
        let dump = b"REDIS0011\xfe\x00\x00\x01k\x05wrong\xfe\x02\x04\x01k\x02\x01a\x01b\x01c\x01d\xff\0\0\0\0\0\0\0\0";
        for size in 1..=dump.len() {
            let mut wanted = Wanted::new(b"k".to_vec(), 2);
            let mut scanner = Scanner::new();
            for piece in dump.chunks(size) {
                let begins = scanner.position();
                scanner
                    .scan(piece, &mut |event| wanted.note(event))
                    .unwrap();
                wanted.keep(begins, piece);
            }
            let pair = |a: &[u8], b: &[u8]| (a.to_vec(), b.to_vec());
            assert_eq!(
                wanted.decoded(),
                Ok(Decoded::Fields(vec![pair(b"a", b"b"), pair(b"c", b"d")])),
                "pieces of {size}"
            );
        }
    }

    #[test]
    fn infinite_scores_are_words() {
        let scores = Decoded::Scores(vec![
            (b"a".to_vec(), 1.5),
            (b"b".to_vec(), f64::NEG_INFINITY),
        ]);
        assert_eq!(
            scores.json(),
            json!([{"member": "a", "score": 1.5}, {"member": "b", "score": "-inf"}])
        );
        assert_eq!(scores.lines(), ["1.5 a", "-inf b"]);
    }
}
