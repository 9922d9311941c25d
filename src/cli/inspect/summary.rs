//! What a dump holds, counted while its events pass: memory does not depend on how many keys there are.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::prefixes::Prefixes;
use crate::position::UnixMillis;
use crate::proto::rdb::{Checksum, Event, Key, Kind, Numbering, TextForm};

/// How many databases are counted one by one; those beyond are counted together.
const DATABASES_MAX: usize = 1024;

/// How many auxiliary fields are kept, and how much of their texts, bytes.
const AUX_FIELDS_MAX: usize = 64;
const AUX_BYTES_MAX: usize = 1024;

/// How much of the name of a big key is kept, bytes.
const NAME_SHOWN_BYTES_MAX: usize = 256;

const HOUR_MILLIS: u64 = 60 * 60 * 1000;
const DAY_MILLIS: u64 = 24 * HOUR_MILLIS;

/// The spans of `Summary::expiries`: word, and how long after the dump was taken they end, milliseconds.
pub(super) const SPANS: [(&str, u64); 6] = [
    ("past", 0),
    ("hour", HOUR_MILLIS),
    ("day", DAY_MILLIS),
    ("week", 7 * DAY_MILLIS),
    ("month", 30 * DAY_MILLIS),
    ("later", u64::MAX),
];

/// Keys of one kind in one database.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Row {
    pub(super) keys: u64,
    /// What they take in the dump: expiry, name and value.
    pub(super) bytes: u64,
    pub(super) expiring: u64,
}

impl Row {
    fn add(&mut self, bytes: u64, expires: bool) {
        self.keys += 1;
        self.bytes += bytes;
        self.expiring += u64::from(expires);
    }
}

/// One of the biggest keys.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Big {
    pub(super) bytes: u64,
    /// Of two equals the first in the dump counts more.
    at: Reverse<u64>,
    pub(super) database: u64,
    pub(super) kind: Kind,
    pub(super) encoding: &'static str,
    pub(super) expires_at: Option<UnixMillis>,
    /// Up to [`NAME_SHOWN_BYTES_MAX`] bytes of it.
    pub(super) name: Vec<u8>,
    pub(super) name_bytes: u64,
}

/// A key whose value has not ended yet.
#[derive(Debug)]
struct Pending {
    at: u64,
    database: u64,
    kind: Kind,
    encoding: &'static str,
    expires_at: Option<UnixMillis>,
    name_bytes: u64,
}

/// What a dump holds.
#[derive(Debug)]
pub(super) struct Summary {
    top: usize,
    pub(super) head: Option<(Numbering, u32)>,
    pub(super) aux: Vec<(Vec<u8>, Vec<u8>)>,
    /// What expiries are compared with.
    pub(super) taken_at: UnixMillis,
    pub(super) all: Row,
    /// By database and kind; `None` for all databases beyond [`DATABASES_MAX`].
    pub(super) rows: BTreeMap<(Option<u64>, Kind), Row>,
    databases: BTreeSet<u64>,
    pub(super) encodings: BTreeMap<(Kind, &'static str), Row>,
    /// By [`SPANS`].
    pub(super) expiries: [u64; SPANS.len()],
    biggest: BinaryHeap<Reverse<Big>>,
    pub(super) prefixes: Prefixes,
    pub(super) functions: u64,
    pub(super) module_aux: u64,
    pub(super) end: Option<(Checksum, u64)>,
    pending: Option<Pending>,
    /// The pending key's name, as far as it was kept.
    name: Vec<u8>,
}

impl Summary {
    /// Nothing yet. `taken_at` counts where the dump itself does not say when it was taken (`ctime`, since 3.2).
    pub(super) fn new(top: usize, separator: &[u8], taken_at: UnixMillis) -> Self {
        Self {
            top,
            head: None,
            aux: Vec::new(),
            taken_at,
            all: Row::default(),
            rows: BTreeMap::new(),
            databases: BTreeSet::new(),
            encodings: BTreeMap::new(),
            expiries: [0; SPANS.len()],
            biggest: BinaryHeap::new(),
            prefixes: Prefixes::new(separator),
            functions: 0,
            module_aux: 0,
            end: None,
            pending: None,
            name: Vec::new(),
        }
    }

    /// Counts what was found.
    pub(super) fn note(&mut self, event: Event<'_>) {
        match event {
            Event::Head { numbering, version } => self.head = Some((numbering, version)),
            Event::Aux { name, value } => self.note_aux(name, value),
            Event::Function { .. } => self.functions += 1,
            Event::ModuleAux { .. } => self.module_aux += 1,
            Event::Key(key) => self.begin(key),
            Event::Value { bytes, form } => self.end_key(bytes.end, form),
            Event::End { checksum, bytes } => self.end = Some((checksum, bytes)),
            Event::Database(_)
            | Event::Sizes { .. }
            | Event::Slot { .. }
            | Event::SlotImport { .. } => {}
        }
    }

    /// The biggest keys, in order.
    pub(super) fn biggest(&self) -> Vec<&Big> {
        let mut all: Vec<&Big> = self.biggest.iter().map(|Reverse(big)| big).collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        all
    }

    /// As many as are shown of what has an order.
    pub(super) const fn top(&self) -> usize {
        self.top
    }

    fn note_aux(&mut self, name: &[u8], value: &[u8]) {
        if name == b"ctime"
            && let Some(seconds) = std::str::from_utf8(value)
                .ok()
                .and_then(|it| it.parse().ok())
        {
            self.taken_at = UnixMillis(u64::saturating_mul(seconds, 1000));
        }
        if self.aux.len() < AUX_FIELDS_MAX {
            let cut = |text: &[u8]| text[..text.len().min(AUX_BYTES_MAX)].to_vec();
            self.aux.push((cut(name), cut(value)));
        }
    }

    fn begin(&mut self, key: Key<'_>) {
        self.name.clear();
        self.name.extend_from_slice(key.name);
        self.pending = Some(Pending {
            at: key.at,
            database: key.database,
            kind: key.value.kind,
            encoding: key.value.encoding,
            expires_at: key.expires_at,
            name_bytes: key.name_bytes,
        });
    }

    fn end_key(&mut self, end: u64, form: Option<TextForm>) {
        let Some(mut key) = self.pending.take() else {
            return;
        };
        if key.kind == Kind::String {
            key.encoding = match form {
                Some(TextForm::Integer) => "int",
                Some(TextForm::Compressed) => "lzf",
                Some(TextForm::Plain) | None => "raw",
            };
        }
        let bytes = end - key.at;
        let expires = key.expires_at.is_some();
        self.all.add(bytes, expires);
        let database = self.counted_database(key.database);
        let row = self.rows.entry((database, key.kind)).or_default();
        row.add(bytes, expires);
        let encoding = self.encodings.entry((key.kind, key.encoding)).or_default();
        encoding.add(bytes, expires);
        if let Some(at) = key.expires_at {
            self.expiries[span(at, self.taken_at)] += 1;
        }
        self.prefixes.add(&self.name, bytes);
        self.note_size(&key, bytes);
    }

    fn counted_database(&mut self, database: u64) -> Option<u64> {
        if self.databases.len() < DATABASES_MAX {
            self.databases.insert(database);
        }
        self.databases.contains(&database).then_some(database)
    }

    fn note_size(&mut self, key: &Pending, bytes: u64) {
        if self.biggest.len() == self.top {
            match self.biggest.peek() {
                Some(Reverse(smallest)) if smallest.bytes < bytes => {
                    self.biggest.pop();
                }
                _ => return,
            }
        }
        self.biggest.push(Reverse(Big {
            bytes,
            at: Reverse(key.at),
            database: key.database,
            kind: key.kind,
            encoding: key.encoding,
            expires_at: key.expires_at,
            name: self.name[..self.name.len().min(NAME_SHOWN_BYTES_MAX)].to_vec(),
            name_bytes: key.name_bytes,
        }));
    }
}

/// The place in [`SPANS`].
fn span(expires_at: UnixMillis, taken_at: UnixMillis) -> usize {
    let after = |millis| expires_at.0 > taken_at.0.saturating_add(millis);
    SPANS
        .iter()
        .take(SPANS.len() - 1)
        .take_while(|(_, millis)| after(*millis))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::rdb::Scanner;

    /// A dump of strings: database, name, value's length, expiry.
    fn dump(keys: &[(u8, &str, u8, Option<u64>)]) -> Vec<u8> {
        let mut bytes = b"REDIS0011\xfa\x05ctime\xc0\x0a".to_vec();
        for (database, name, length, expires_at) in keys {
            bytes.extend_from_slice(&[0xfe, *database]);
            if let Some(at) = expires_at {
                bytes.push(0xfc);
                bytes.extend_from_slice(&at.to_le_bytes());
            }
            bytes.extend_from_slice(&[0, u8::try_from(name.len()).unwrap()]);
            bytes.extend_from_slice(name.as_bytes());
            bytes.push(*length);
            bytes.resize(bytes.len() + usize::from(*length), b'v');
        }
        bytes.push(0xff);
        bytes.resize(bytes.len() + 8, 0);
        bytes
    }

    fn summary(top: usize, dump: &[u8]) -> Summary {
        let mut summary = Summary::new(top, b":", UnixMillis(0));
        let mut scanner = Scanner::new();
        scanner
            .scan(dump, &mut |event| summary.note(event))
            .unwrap();
        scanner.finish().unwrap();
        summary
    }

    #[test]
    fn keys_are_counted_by_database_type_and_expiry() {
        let summary = summary(
            2,
            &dump(&[
                (0, "a:1", 10, None),
                (0, "a:2", 20, Some(9_999)),
                (1, "b", 5, Some(10_000 + HOUR_MILLIS)),
                (1, "c", 20, Some(u64::MAX / 4)),
            ]),
        );
        assert_eq!(summary.taken_at, UnixMillis(10_000));
        let row = |keys, bytes, expiring| Row {
            keys,
            bytes,
            expiring,
        };
        assert_eq!(summary.all, row(4, 102, 3));
        assert_eq!(summary.rows[&(Some(0), Kind::String)], row(2, 51, 1));
        assert_eq!(summary.rows[&(Some(1), Kind::String)], row(2, 51, 2));
        assert_eq!(summary.encodings[&(Kind::String, "raw")], row(4, 102, 3));
        assert_eq!(summary.expiries, [1, 1, 0, 0, 0, 1]);
        let biggest: Vec<_> = summary
            .biggest()
            .into_iter()
            .map(|big| (big.name.as_slice(), big.bytes, big.database))
            .collect();
        assert_eq!(biggest, [(b"a:2".as_slice(), 35, 0), (b"c", 33, 1)]);
        assert_eq!(summary.end.unwrap().0, Checksum::Disabled);
    }

    #[test]
    fn databases_beyond_the_bound_are_counted_together() {
        let mut summary = Summary::new(0, b":", UnixMillis(0));
        for database in 0..2000 {
            assert_eq!(
                summary.counted_database(database).is_some(),
                database < 1024
            );
        }
        assert_eq!(summary.counted_database(7), Some(7));
        assert!(summary.biggest().is_empty());
    }

    #[test]
    fn spans_begin_where_the_one_before_ends() {
        let at = |millis| span(UnixMillis(millis), UnixMillis(1000));
        assert_eq!(at(1000), 0);
        assert_eq!(at(1001), 1);
        assert_eq!(at(1000 + HOUR_MILLIS), 1);
        assert_eq!(at(1001 + HOUR_MILLIS), 2);
        assert_eq!(at(u64::MAX), 5);
    }
}
