//! The canonical digest: everything that clients can see of a data set, item by item, so that two servers can be
//! compared and what differs be named. Read in pages and kept in scratch files: neither a large value nor many keys
//! take much memory.
//!
//! `DEBUG DIGEST` is blind to the times at which keys expire, to groups and pending entries of streams, and to
//! functions. It is taken beside, because it also sees keys whose time has run out on a replica.

mod records;
mod value;

use std::hash::{DefaultHasher, Hasher};
use std::io;

use redis_protocol::resp2::types::BytesFrame;

use super::net::Address;
use super::pipeline::Pipeline;

pub use records::{Difference, Differences, Records};
use records::{Item, Name};
use value::Size;

/// Keys asked for at once.
const KEYS_PER_PAGE: &[u8] = b"500";
/// Bytes of values that are read in one exchange.
const EXCHANGE_BYTES: u64 = 4 * 1024 * 1024;

/// How exactly a digest can be taken of a server, and of a history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scope {
    /// Whether how many entries a group has read is part of it: before 7.4 a read by a group is replicated without.
    pub entries_read: bool,
}

/// What a server holds.
#[derive(Debug)]
pub struct Digest {
    /// Every item, in scratch files.
    pub records: Records,
    /// What `DEBUG DIGEST` says; nothing where it is not allowed, or where fields of hashes expire, which it sees as
    /// long as they are there.
    pub debug: Option<String>,
    /// The server's own time when all was read, Unix milliseconds: what expires before was perhaps not seen.
    pub read_at: i64,
    /// The server names times of expiry (7.0 and later). Else they are computed from what is left.
    pub exact_expiries: bool,
}

/// Reads everything. Nothing may write meanwhile.
///
/// # Errors
/// What the connection says, a refused command among it.
pub async fn digest(
    address: &Address,
    scope: Scope,
    mut told: impl FnMut(u64),
) -> io::Result<Digest> {
    let mut reader = Reader {
        pipeline: Pipeline::connect(address).await?,
        records: Records::create()?,
        scope,
        exact_expiries: false,
        field_expiry: false,
        fields_expire: false,
        database: 0,
    };
    reader.exact_expiries = reader.knows(b"PEXPIRETIME").await?;
    reader.field_expiry = reader.knows(b"HPEXPIRETIME").await?;
    for database in reader.databases().await? {
        reader.database = database;
        let number = database.to_string();
        reader.pipeline.one(&[b"SELECT", number.as_bytes()]).await?;
        reader.keys(&mut told).await?;
    }
    reader.libraries().await?;
    let debug = match reader.fields_expire {
        true => None,
        false => reader.debug_digest().await?,
    };
    Ok(Digest {
        debug,
        read_at: reader.time().await?,
        exact_expiries: reader.exact_expiries,
        records: reader.records.finish()?,
    })
}

struct Reader {
    pipeline: Pipeline,
    records: Records,
    scope: Scope,
    exact_expiries: bool,
    /// The server knows fields that expire.
    field_expiry: bool,
    /// There are some.
    fields_expire: bool,
    database: u32,
}

/// A key of which TYPE and its time of expiry are known.
struct Key {
    name: Vec<u8>,
    kind: String,
    expires_at: i64,
}

impl Reader {
    async fn knows(&mut self, command: &[u8]) -> io::Result<bool> {
        let info = self.pipeline.one(&[b"COMMAND", b"INFO", command]).await?;
        Ok(matches!(array(info).first(), Some(BytesFrame::Array(_))))
    }

    /// The server's time, Unix milliseconds.
    async fn time(&mut self) -> io::Result<i64> {
        Ok(millis(&self.pipeline.one(&[b"TIME"]).await?))
    }

    async fn databases(&mut self) -> io::Result<Vec<u32>> {
        let info = self.pipeline.one(&[b"INFO", b"keyspace"]).await?;
        let info = text(&info);
        let lines = info.lines().filter_map(|line| line.strip_prefix("db"));
        let mut databases = Vec::new();
        for (number, facts) in lines.filter_map(|line| line.split_once(':')) {
            databases.extend(number.parse::<u32>().ok());
            // Redis and Valkey each have a name for it.
            self.fields_expire |= facts.split(',').any(|fact| {
                let of_hashes = ["subexpiry=", "keys_with_volatile_items="];
                let count = of_hashes.iter().find_map(|name| fact.strip_prefix(name));
                count.is_some_and(|count| count.trim_end() != "0")
            });
        }
        Ok(databases)
    }

    async fn keys(&mut self, told: &mut impl FnMut(u64)) -> io::Result<()> {
        let mut cursor = b"0".to_vec();
        loop {
            let page = [b"SCAN".as_slice(), &cursor, b"COUNT", KEYS_PER_PAGE];
            let mut page = array(self.pipeline.one(&page).await?).into_iter();
            cursor = page.next().map(bytes).unwrap_or_default();
            let names: Vec<Vec<u8>> = array(page.next().unwrap_or(BytesFrame::Null))
                .into_iter()
                .map(bytes)
                .collect();
            told(names.len() as u64);
            self.page(names).await?;
            if cursor == b"0" || cursor.is_empty() {
                return Ok(());
            }
        }
    }

    /// The keys of one page of SCAN.
    async fn page(&mut self, names: Vec<Vec<u8>>) -> io::Result<()> {
        let keys = self.kinds(names).await?;
        let sizes = self.sizes(&keys).await?;
        let mut batch: Vec<(Key, Size)> = Vec::new();
        let mut bytes = 0;
        for (key, size) in keys.into_iter().zip(sizes) {
            if bytes + size.bytes > EXCHANGE_BYTES && !batch.is_empty() {
                self.values(std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
            bytes += size.bytes;
            batch.push((key, size));
        }
        self.values(batch).await
    }

    async fn kinds(&mut self, names: Vec<Vec<u8>>) -> io::Result<Vec<Key>> {
        let expiry: &[u8] = match self.exact_expiries {
            true => b"PEXPIRETIME",
            false => b"PTTL",
        };
        let mut commands: Vec<Vec<&[u8]>> = vec![vec![b"TIME"]];
        for name in &names {
            commands.push(vec![b"TYPE", name]);
            commands.push(vec![expiry, name]);
        }
        let mut answers = self.pipeline.all(&commands).await?.into_iter();
        let now = answers.next().map_or(0, |time| millis(&time));
        let mut keys = Vec::with_capacity(names.len());
        for name in names {
            let kind = answers.next().map(|kind| text(&kind)).unwrap_or_default();
            let expires_at = match answers.next() {
                Some(BytesFrame::Integer(left @ 0..)) if !self.exact_expiries => now + left,
                Some(BytesFrame::Integer(at)) => at,
                _ => -1,
            };
            // What went between SCAN and here has expired: absent for every reader.
            if kind != "none" {
                keys.push(Key {
                    name,
                    kind,
                    expires_at,
                });
            }
        }
        Ok(keys)
    }

    /// An item of a key whose value is known.
    fn put(&mut self, key: &Key, hash: u64) -> io::Result<()> {
        self.records.put(&Item {
            name: Name::key(self.database, &key.name),
            kind: key.kind.clone(),
            expires_at: key.expires_at,
            gone_at: key.expires_at,
            hash,
        })
    }

    /// A field that expires is an item of its own: it may be gone when the other server is read.
    fn put_field(&mut self, key: &Key, field: &[u8], value: &[u8], at: i64) -> io::Result<()> {
        let gone_at = match key.expires_at {
            0.. => at.min(key.expires_at),
            _ => at,
        };
        self.fields_expire = true;
        self.records.put(&Item {
            name: Name::field(self.database, &key.name, field),
            kind: "field".into(),
            expires_at: at,
            gone_at,
            hash: hash_of(value),
        })
    }

    async fn libraries(&mut self) -> io::Result<()> {
        let list: Vec<&[u8]> = vec![b"FUNCTION", b"LIST", b"WITHCODE"];
        let mut answers = self.pipeline.all(&[list]).await?;
        // Before 7.0 there are none, and an error says so.
        let libraries = array(answers.pop().unwrap_or(BytesFrame::Null));
        for library in libraries {
            let fields = array(library);
            let field = |wanted: &str| {
                let pair = fields
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .find(|[name, _]| text(name) == wanted);
                pair.map(|[_, value]| bytes(value.clone()))
                    .unwrap_or_default()
            };
            let mut hasher = DefaultHasher::new();
            put_part(&mut hasher, &field("engine"));
            put_part(&mut hasher, &field("library_code"));
            self.records.put(&Item {
                name: Name::library(&field("library_name")),
                kind: "library".into(),
                expires_at: -1,
                gone_at: -1,
                hash: hasher.finish(),
            })?;
        }
        Ok(())
    }

    async fn debug_digest(&mut self) -> io::Result<Option<String>> {
        let mut answers = self.pipeline.all(&[vec![b"DEBUG", b"DIGEST"]]).await?;
        Ok(match answers.pop() {
            Some(BytesFrame::SimpleString(digest)) => {
                Some(String::from_utf8_lossy(&digest).into_owned())
            }
            _ => None,
        })
    }
}

fn text(frame: &BytesFrame) -> String {
    match frame {
        BytesFrame::SimpleString(text) | BytesFrame::BulkString(text) => {
            String::from_utf8_lossy(text).into_owned()
        }
        _ => String::new(),
    }
}

fn bytes(frame: BytesFrame) -> Vec<u8> {
    match frame {
        BytesFrame::SimpleString(text) | BytesFrame::BulkString(text) => text.into(),
        _ => Vec::new(),
    }
}

fn array(frame: BytesFrame) -> Vec<BytesFrame> {
    match frame {
        BytesFrame::Array(frames) => frames,
        _ => Vec::new(),
    }
}

/// The answer to TIME: seconds and microseconds.
fn millis(time: &BytesFrame) -> i64 {
    let BytesFrame::Array(parts) = time else {
        return 0;
    };
    let number = |at: usize| {
        parts
            .get(at)
            .and_then(|part| text(part).parse::<i64>().ok())
    };
    number(0).unwrap_or(0) * 1000 + number(1).unwrap_or(0) / 1000
}

fn hash_of(part: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    put_part(&mut hasher, part);
    hasher.finish()
}

/// Bytes with their length: neighbours cannot run into each other.
fn put_part(hasher: &mut DefaultHasher, part: &[u8]) {
    hasher.write_u64(part.len() as u64);
    hasher.write(part);
}
