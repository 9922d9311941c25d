//! The canonical digest: everything that clients can see of a data set, so that two servers can be compared.
//!
//! `DEBUG DIGEST` is blind to the times at which keys expire, to groups and pending entries of streams, and to
//! functions; it is taken beside, where the server allows it.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hasher};

use super::{Client, Value, Version};

/// Keys asked for in one pipeline.
const KEYS_PER_PIPELINE: usize = 64;
/// Differences named when two digests are not equal.
const DIFFERENCES_SHOWN: usize = 10;
/// Bytes of a value shown in a difference, and kept for that.
const VALUE_BYTES_SHOWN: usize = 240;
const VALUE_BYTES_KEPT: usize = 16 * 1024;
/// How far times of expiry may lie apart where one of the servers cannot name them, milliseconds. Before 7.0 they
/// are spelled relative in the replication stream, so what is replayed later expires later.
const EXPIRY_TOLERANCE_MILLIS: u64 = 2_000;

/// Fields of XINFO STREAM FULL that are not data: two servers with the same history may differ in them.
/// The shape of the radix tree is an implementation's own; the times at which a consumer was seen are local clocks.
const STREAM_FIELDS_LOCAL: [&str; 4] = [
    "radix-tree-keys",
    "radix-tree-nodes",
    "seen-time",
    "active-time",
];

/// A key: database and name, or a function library.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    Key { database: u32, name: Vec<u8> },
    Library { name: Vec<u8> },
}

impl fmt::Display for Item {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { database, name } => {
                write!(formatter, "db{database} key \"{}\"", name.escape_ascii())
            }
            Self::Library { name } => write!(formatter, "library \"{}\"", name.escape_ascii()),
        }
    }
}

/// What stands for one key: a hash of all there is to see, and enough of it to explain a difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// Of everything but the time of expiry.
    hash: u64,
    kind: String,
    /// Milliseconds since 1970; -1 where it does not expire.
    expires_at: i64,
    length: usize,
    head: Vec<u8>,
}

impl Fingerprint {
    fn of(kind: &str, expires_at: i64, contents: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(kind.as_bytes());
        hasher.write_u8((expires_at >= 0).into());
        hasher.write_usize(contents.len());
        hasher.write(contents);
        Self {
            hash: hasher.finish(),
            kind: kind.to_owned(),
            expires_at,
            length: contents.len(),
            head: contents[..contents.len().min(VALUE_BYTES_KEPT)].to_vec(),
        }
    }

    /// Whether both stand for the same, times of expiry as exactly as both servers can name them.
    fn is_same(&self, other: &Self, tolerance_millis: u64) -> bool {
        self.hash == other.hash
            && (self.expires_at >= 0) == (other.expires_at >= 0)
            && self.expires_at.abs_diff(other.expires_at) <= tolerance_millis
    }

    /// The facts, and the bytes around `at`.
    fn shown(&self, at: usize) -> String {
        let from = at
            .saturating_sub(VALUE_BYTES_SHOWN / 2)
            .min(self.head.len());
        let to = (from + VALUE_BYTES_SHOWN).min(self.head.len());
        format!(
            "{}, {} bytes, expires at {}, #{:016x}, from byte {from}: {}",
            self.kind,
            self.length,
            self.expires_at,
            self.hash,
            self.head[from..to].escape_ascii()
        )
    }

    /// Where the kept bytes first differ.
    fn parts_from(&self, other: &Self) -> usize {
        let pairs = self.head.iter().zip(&other.head);
        pairs.take_while(|(here, there)| here == there).count()
    }
}

/// The digest of a whole server.
#[derive(Debug, Clone)]
pub struct Digest {
    items: BTreeMap<Item, Fingerprint>,
    version: Version,
    /// The server names times of expiry: else they are computed, and no part of [`Digest::hash`].
    exact_expiries: bool,
    debug_digest: Option<String>,
}

impl Digest {
    /// Reads everything, once the server has loaded. The caller sees to it that nothing is written meanwhile.
    #[track_caller]
    pub fn of(address: &str) -> Self {
        let mut client = Client::connect_loaded(address);
        let field_expiry = client.knows("HPEXPIRETIME");
        let exact_expiries = client.knows("PEXPIRETIME");
        let version = client.version();
        let entries_read = replicates_entries_read(version);
        let mut items = BTreeMap::new();
        for database in databases(&mut client) {
            client.ok(&["SELECT", &database.to_string()]);
            let names = scan(&mut client);
            for names in names.chunks(KEYS_PER_PIPELINE) {
                let facts = kinds_and_expiries(&mut client, names, exact_expiries);
                for (name, (kind, expires_at)) in names.iter().zip(facts) {
                    // A key that went between SCAN and here has expired on a replica: absent for every reader.
                    if kind == "none" {
                        continue;
                    }
                    let contents = contents(&mut client, name, &kind, field_expiry, entries_read);
                    let key = Item::Key {
                        database,
                        name: name.clone(),
                    };
                    items.insert(key, Fingerprint::of(&kind, expires_at, &contents));
                }
            }
        }
        libraries(&mut client, &mut items);
        let debug_digest = match client.command(&["DEBUG", "DIGEST"]).unwrap() {
            Value::Simple(text) => Some(text),
            _ => None,
        };
        Self {
            items,
            version,
            exact_expiries,
            debug_digest,
        }
    }

    /// What `DEBUG DIGEST` says, where it is allowed.
    pub fn debug_digest(&self) -> Option<&str> {
        self.debug_digest.as_deref()
    }

    /// One number for all of it.
    pub fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (item, fingerprint) in &self.items {
            let item = item.to_string();
            hasher.write_usize(item.len());
            hasher.write(item.as_bytes());
            hasher.write_u64(fingerprint.hash);
            if self.exact_expiries {
                hasher.write_i64(fingerprint.expires_at);
            }
        }
        hasher.finish()
    }

    /// Keys and libraries.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// The items that differ, each with what either side has; empty when the data sets are equal.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let tolerance = if self.exact_expiries && other.exact_expiries {
            0
        } else {
            EXPIRY_TOLERANCE_MILLIS
        };
        let mut differences = Vec::new();
        for (item, here) in &self.items {
            match other.items.get(item) {
                None => differences.push(format!("{item}: only on the left: {}", here.shown(0))),
                Some(there) if !here.is_same(there, tolerance) => {
                    let at = here.parts_from(there);
                    differences.push(format!(
                        "{item}:\n      left  {}\n      right {}",
                        here.shown(at),
                        there.shown(at)
                    ));
                }
                Some(_) => {}
            }
        }
        for (item, there) in &other.items {
            if !self.items.contains_key(item) {
                differences.push(format!("{item}: only on the right: {}", there.shown(0)));
            }
        }
        // Not comparable across versions (`protocol-facts` 4.1b).
        if let (true, Some(here), Some(there)) = (
            differences.is_empty() && self.version == other.version,
            &self.debug_digest,
            &other.debug_digest,
        ) && here != there
        {
            differences.push(format!(
                "DEBUG DIGEST alone differs: {here} and {there}: the canonical digest misses something"
            ));
        }
        differences
    }
}

/// Fails with the first differing keys.
#[track_caller]
pub fn assert_same(left: &Digest, right: &Digest) {
    let differences = left.differences(right);
    let shown = differences.len().min(DIFFERENCES_SHOWN);
    assert!(
        differences.is_empty(),
        "{} of {} and {} items differ, the first {shown}:\n  {}",
        differences.len(),
        left.len(),
        right.len(),
        differences[..shown].join("\n  ")
    );
    if left.exact_expiries == right.exact_expiries {
        assert_eq!(left.hash(), right.hash());
    }
}

/// Before 7.4 a read by a group is replicated as XCLAIM, which does not carry how many entries the group has read: the
/// number of a replica, and of whoever replays the stream, is then another one (seen on 7.0.15).
fn replicates_entries_read(version: Version) -> bool {
    match version.valkey {
        Some(valkey) => valkey >= (8, 0),
        None => version.speaks >= (7, 4),
    }
}

fn databases(client: &mut Client) -> Vec<u32> {
    let info = client.line("INFO keyspace").text();
    info.lines()
        .filter_map(|line| line.strip_prefix("db")?.split(':').next()?.parse().ok())
        .collect()
}

fn scan(client: &mut Client) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    let mut cursor = b"0".to_vec();
    loop {
        let page = client.ok(&[b"SCAN".as_slice(), &cursor, b"COUNT", b"1000"]);
        let mut page = page.array().into_iter();
        cursor = page.next().unwrap().bytes();
        let found = page.next().unwrap().array();
        names.extend(found.into_iter().map(Value::bytes));
        if cursor == b"0" {
            names.sort();
            // SCAN may give a key twice while a table is being resized.
            names.dedup();
            return names;
        }
    }
}

fn kinds_and_expiries(client: &mut Client, names: &[Vec<u8>], exact: bool) -> Vec<(String, i64)> {
    if !exact {
        return kinds_and_computed_expiries(client, names);
    }
    let commands: Vec<Vec<&[u8]>> = names
        .iter()
        .flat_map(|name| [vec![b"TYPE".as_slice(), name], vec![b"PEXPIRETIME", name]])
        .collect();
    let replies = client.pipeline(&commands).unwrap();
    replies
        .chunks(2)
        .map(|pair| (pair[0].text(), pair[1].integer()))
        .collect()
}

/// Without PEXPIRETIME (before 7.0): what is left, counted from the server's own time at that very moment.
fn kinds_and_computed_expiries(client: &mut Client, names: &[Vec<u8>]) -> Vec<(String, i64)> {
    let mut commands: Vec<Vec<&[u8]>> = vec![vec![b"MULTI"], vec![b"TIME"]];
    commands.extend(
        names
            .iter()
            .flat_map(|name| [vec![b"TYPE".as_slice(), name], vec![b"PTTL", name]]),
    );
    commands.push(vec![b"EXEC"]);
    let mut replies = client.pipeline(&commands).unwrap();
    let answers = replies.pop().unwrap().array();
    let (time, facts) = answers.split_first().unwrap();
    let time: Vec<i64> = time
        .clone()
        .array()
        .iter()
        .map(|part| part.text().parse().unwrap())
        .collect();
    let now = time[0] * 1000 + time[1] / 1000;
    facts
        .chunks(2)
        .map(|pair| match pair[1].integer() {
            left @ 0.. => (pair[0].text(), now + left),
            without => (pair[0].text(), without),
        })
        .collect()
}

/// All of a value, in an order that does not depend on how it is stored.
fn contents(
    client: &mut Client,
    name: &[u8],
    kind: &str,
    field_expiry: bool,
    entries_read: bool,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    match kind {
        "string" => return client.ok(&[b"GET".as_slice(), name]).bytes(),
        "list" => {
            let reply = client.ok(&[b"LRANGE".as_slice(), name, b"0", b"-1"]);
            canonical(&reply, &mut bytes);
        }
        "set" => {
            let mut members = client.ok(&[b"SMEMBERS".as_slice(), name]).array();
            members.sort_by_cached_key(|member| member.clone().bytes());
            canonical(&Value::Array(members), &mut bytes);
        }
        "zset" => {
            let range = [b"ZRANGE".as_slice(), name, b"0", b"-1", b"WITHSCORES"];
            canonical(&client.ok(&range), &mut bytes);
        }
        "hash" => hash_contents(client, name, field_expiry, &mut bytes),
        "stream" => {
            // COUNT 0: every entry and every pending entry.
            let full = [
                b"XINFO".as_slice(),
                b"STREAM",
                name,
                b"FULL",
                b"COUNT",
                b"0",
            ];
            let reply = client.ok(&full);
            canonical(&without_local_fields(reply, entries_read), &mut bytes);
        }
        // Types of modules and of servers that are newer than this code.
        _ => return client.ok(&[b"DUMP".as_slice(), name]).bytes(),
    }
    bytes
}

fn hash_contents(client: &mut Client, name: &[u8], field_expiry: bool, bytes: &mut Vec<u8>) {
    let flat = client.ok(&[b"HGETALL".as_slice(), name]).array();
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = flat
        .chunks(2)
        .map(|pair| (pair[0].clone().bytes(), pair[1].clone().bytes()))
        .collect();
    pairs.sort();
    let expiries = if field_expiry {
        let count = pairs.len().to_string();
        let mut command = vec![
            b"HPEXPIRETIME".as_slice(),
            name,
            b"FIELDS",
            count.as_bytes(),
        ];
        command.extend(pairs.iter().map(|(field, _)| field.as_slice()));
        client.ok(&command).array()
    } else {
        vec![Value::Integer(-1); pairs.len()]
    };
    for ((field, value), expires_at) in pairs.into_iter().zip(expiries) {
        canonical(&Value::Bulk(field), bytes);
        canonical(&Value::Bulk(value), bytes);
        canonical(&expires_at, bytes);
    }
}

/// The maps of XINFO are flat arrays of name and value; those of groups and consumers are nested. Entries and pending
/// entries are left alone: there the names are the user's own.
fn without_local_fields(map: Value, entries_read: bool) -> Value {
    let mut kept = Vec::new();
    let mut fields = map.array().into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        let text = name.text();
        if STREAM_FIELDS_LOCAL.contains(&text.as_str())
            || (!entries_read && ["entries-read", "lag"].contains(&text.as_str()))
        {
            continue;
        }
        let value = match (text.as_str(), value) {
            ("groups" | "consumers", Value::Array(maps)) => Value::Array(
                maps.into_iter()
                    .map(|map| without_local_fields(map, entries_read))
                    .collect(),
            ),
            (_, value) => value,
        };
        kept.extend([name, value]);
    }
    Value::Array(kept)
}

fn libraries(client: &mut Client, items: &mut BTreeMap<Item, Fingerprint>) {
    let Value::Array(libraries) = client.command(&["FUNCTION", "LIST", "WITHCODE"]).unwrap() else {
        return;
    };
    for library in libraries {
        let fields = library.array();
        let field = |wanted: &str| {
            let pair = fields.chunks(2).find(|pair| pair[0].text() == wanted);
            pair.map(|pair| pair[1].clone().bytes()).unwrap()
        };
        let mut bytes = Vec::new();
        canonical(&Value::Bulk(field("engine")), &mut bytes);
        canonical(&Value::Bulk(field("library_code")), &mut bytes);
        let name = field("library_name");
        items.insert(
            Item::Library { name },
            Fingerprint::of("library", -1, &bytes),
        );
    }
}

/// A reply as bytes that differ when the reply differs: each part with its kind and length.
fn canonical(value: &Value, bytes: &mut Vec<u8>) {
    match value {
        Value::Simple(text) | Value::Error(text) => {
            bytes.extend_from_slice(format!("+{}:{text}", text.len()).as_bytes());
        }
        Value::Integer(number) => bytes.extend_from_slice(format!(":{number} ").as_bytes()),
        Value::Bulk(text) => {
            bytes.extend_from_slice(format!("${}:", text.len()).as_bytes());
            bytes.extend_from_slice(text);
        }
        Value::Array(values) => {
            bytes.extend_from_slice(format!("*{}[", values.len()).as_bytes());
            for value in values {
                canonical(value, bytes);
            }
            bytes.push(b']');
        }
        Value::Nil => bytes.push(b'-'),
    }
}
