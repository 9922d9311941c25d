//! Hashes of values. What a hash depends on is the value alone, never how it is stored or in which pages it was read.

use std::hash::{DefaultHasher, Hasher};
use std::io;

use redis_protocol::resp2::types::BytesFrame;

use super::{Key, Reader, array, bytes, hash_of, put_part, text};

/// Bytes of a value that are read at once.
const PAGE_BYTES: u64 = 1024 * 1024;
/// Elements that are read at once, at most.
const PAGE_ELEMENTS_MAX: u64 = 10_000;
/// Entries up to which a stream is read in one answer. Of a longer one, groups are compared with as many pending
/// entries each.
const STREAM_ENTRIES_MAX: u64 = 10_000;
/// How often a set or a hash is read in pages that give elements twice, before it is read in one answer.
const SCANS_MAX: u32 = 3;

/// Fields of XINFO STREAM FULL that are not data: two servers with the same history may differ in them.
/// The shape of the radix tree is an implementation's own; the times at which a consumer was seen are local clocks.
const STREAM_FIELDS_LOCAL: [&str; 4] = [
    "radix-tree-keys",
    "radix-tree-nodes",
    "seen-time",
    "active-time",
];

/// How large a value is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Size {
    /// Elements; of a string, bytes.
    elements: u64,
    /// About how many bytes it takes.
    pub(super) bytes: u64,
}

impl Size {
    /// Read in one exchange with others.
    const fn is_small(self) -> bool {
        self.bytes <= PAGE_BYTES && self.elements <= PAGE_ELEMENTS_MAX
    }

    /// Elements of a page.
    fn page(self) -> u64 {
        let each = (self.bytes / self.elements.max(1)).max(1);
        (PAGE_BYTES / each).clamp(1, PAGE_ELEMENTS_MAX)
    }
}

/// The command that counts elements.
fn count_of(kind: &str) -> Option<&'static [u8]> {
    Some(match kind {
        "string" => b"STRLEN",
        "list" => b"LLEN",
        "set" => b"SCARD",
        "zset" => b"ZCARD",
        "hash" => b"HLEN",
        "stream" => b"XLEN",
        _ => return None,
    })
}

impl Reader {
    pub(super) async fn sizes(&mut self, keys: &[Key]) -> io::Result<Vec<Size>> {
        let mut commands: Vec<Vec<&[u8]>> = Vec::new();
        for key in keys {
            commands.push(vec![count_of(&key.kind).unwrap_or(b"EXISTS"), &key.name]);
            commands.push(vec![b"MEMORY", b"USAGE", &key.name]);
        }
        let answers = self.pipeline.all(&commands).await?;
        let number = |frame: &BytesFrame| match frame {
            BytesFrame::Integer(number) => u64::try_from(*number).unwrap_or(0),
            _ => 0,
        };
        let pairs = answers.as_chunks::<2>().0;
        Ok(keys
            .iter()
            .zip(pairs)
            .map(|(key, [count, usage])| match key.kind.as_str() {
                "string" => Size {
                    elements: 1,
                    bytes: number(count),
                },
                _ => Size {
                    elements: number(count),
                    bytes: number(usage),
                },
            })
            .collect())
    }

    /// Puts items for keys that are read in one exchange; a large one alone, in pages.
    pub(super) async fn values(&mut self, batch: Vec<(Key, Size)>) -> io::Result<()> {
        let (small, large): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .partition(|(key, size)| size.is_small() && key.kind != "stream");
        let commands: Vec<Vec<&[u8]>> = small.iter().map(|(key, _)| whole(key)).collect();
        let answers = self.pipeline.all(&commands).await?;
        for ((key, _), answer) in small.iter().zip(answers) {
            self.put_whole(key, answer).await?;
        }
        for (key, size) in large {
            let hash = match key.kind.as_str() {
                "string" => self.long_string(&key).await?,
                "list" => self.ranked(&key, size, b"LRANGE", None).await?,
                "zset" => {
                    self.ranked(&key, size, b"ZRANGE", Some(b"WITHSCORES"))
                        .await?
                }
                "stream" => self.stream(&key, size).await?,
                "set" | "hash" => {
                    self.scanned(&key, size).await?;
                    continue;
                }
                _ => hash_of(&bytes(self.pipeline.one(&[b"DUMP", &key.name]).await?)),
            };
            self.put(&key, hash)?;
        }
        Ok(())
    }

    async fn put_whole(&mut self, key: &Key, answer: BytesFrame) -> io::Result<()> {
        if let BytesFrame::Error(error) = &answer {
            let name = key.name.escape_ascii();
            return Err(io::Error::other(format!("read key \"{name}\": {error}")));
        }
        match key.kind.as_str() {
            "list" | "zset" => {
                let mut hasher = DefaultHasher::new();
                for element in array(answer) {
                    put_part(&mut hasher, &bytes(element));
                }
                self.put(key, hasher.finish())
            }
            "set" => {
                let members = array(answer).into_iter().map(bytes);
                let sum = members.fold(0_u64, |sum, member| sum.wrapping_add(hash_of(&member)));
                self.put(key, sum)
            }
            "hash" => {
                let pairs: Vec<Vec<u8>> = array(answer).into_iter().map(bytes).collect();
                let sum = self.fields(key, &pairs).await?;
                self.put(key, sum)
            }
            // A string; and of types of modules and of newer servers, their DUMP.
            _ => {
                let mut hasher = DefaultHasher::new();
                hasher.write(&bytes(answer));
                self.put(key, hasher.finish())
            }
        }
    }

    /// A string in pages.
    async fn long_string(&mut self, key: &Key) -> io::Result<u64> {
        let mut hasher = DefaultHasher::new();
        let mut at = 0;
        loop {
            let (from, to) = (at.to_string(), (at + PAGE_BYTES - 1).to_string());
            let range = [
                b"GETRANGE".as_slice(),
                &key.name,
                from.as_bytes(),
                to.as_bytes(),
            ];
            let page = bytes(self.pipeline.one(&range).await?);
            hasher.write(&page);
            at += page.len() as u64;
            if (page.len() as u64) < PAGE_BYTES {
                return Ok(hasher.finish());
            }
        }
    }

    /// A list or sorted set in pages.
    async fn ranked(
        &mut self,
        key: &Key,
        size: Size,
        command: &[u8],
        option: Option<&[u8]>,
    ) -> io::Result<u64> {
        let mut hasher = DefaultHasher::new();
        let mut at = 0;
        loop {
            let (from, to) = (at.to_string(), (at + size.page() - 1).to_string());
            let mut range = vec![command, &key.name, from.as_bytes(), to.as_bytes()];
            range.extend(option);
            let page = array(self.pipeline.one(&range).await?);
            if page.is_empty() {
                return Ok(hasher.finish());
            }
            for element in page {
                put_part(&mut hasher, &bytes(element));
            }
            at += size.page();
        }
    }

    /// A set or a hash in pages. While its table is being resized elements may come twice, so what came is counted.
    async fn scanned(&mut self, key: &Key, size: Size) -> io::Result<()> {
        for _ in 0..SCANS_MAX {
            let (elements, sum) = self.scan_elements(key, size).await?;
            if elements == size.elements {
                return self.put(key, sum);
            }
        }
        let answer = self.pipeline.one(&whole(key)).await?;
        self.put_whole(key, answer).await
    }

    /// How many elements came, and the sum of their hashes.
    async fn scan_elements(&mut self, key: &Key, size: Size) -> io::Result<(u64, u64)> {
        let is_hash = key.kind == "hash";
        let command: &[u8] = if is_hash { b"HSCAN" } else { b"SSCAN" };
        let count = size.page().to_string();
        let mut cursor = b"0".to_vec();
        let (mut elements, mut sum) = (0, 0_u64);
        loop {
            let scan = [command, &key.name, &cursor, b"COUNT", count.as_bytes()];
            let mut page = array(self.pipeline.one(&scan).await?).into_iter();
            cursor = page.next().map(bytes).unwrap_or_default();
            let page = array(page.next().unwrap_or(BytesFrame::Null));
            let page: Vec<Vec<u8>> = page.into_iter().map(bytes).collect();
            if is_hash {
                elements += page.len() as u64 / 2;
                sum = sum.wrapping_add(self.fields(key, &page).await?);
            } else {
                elements += page.len() as u64;
                let hashes = page.iter().map(|member| hash_of(member));
                sum = hashes.fold(sum, u64::wrapping_add);
            }
            if cursor == b"0" || cursor.is_empty() {
                return Ok((elements, sum));
            }
        }
    }

    /// The sum of the hashes of a hash's fields, those aside that expire: they are items of their own.
    async fn fields(&mut self, key: &Key, pairs: &[Vec<u8>]) -> io::Result<u64> {
        let pairs = pairs.as_chunks::<2>().0;
        let expiries = match self.field_expiry && !pairs.is_empty() {
            true => {
                let count = pairs.len().to_string();
                let mut command: Vec<&[u8]> =
                    vec![b"HPEXPIRETIME", &key.name, b"FIELDS", count.as_bytes()];
                command.extend(pairs.iter().map(|[field, _]| field.as_slice()));
                array(self.pipeline.one(&command).await?)
            }
            false => Vec::new(),
        };
        let mut sum = 0_u64;
        for (place, [field, value]) in pairs.iter().enumerate() {
            match expiries.get(place) {
                Some(BytesFrame::Integer(at @ 0..)) => self.put_field(key, field, value, *at)?,
                // Gone since the pairs were read.
                Some(BytesFrame::Integer(-2)) => {}
                _ => {
                    let mut hasher = DefaultHasher::new();
                    put_part(&mut hasher, field);
                    put_part(&mut hasher, value);
                    sum = sum.wrapping_add(hasher.finish());
                }
            }
        }
        Ok(sum)
    }

    async fn stream(&mut self, key: &Key, size: Size) -> io::Result<u64> {
        let mut hasher = DefaultHasher::new();
        let is_long = size.elements > STREAM_ENTRIES_MAX;
        let count = if is_long { STREAM_ENTRIES_MAX } else { 0 }.to_string();
        let full = [
            b"XINFO".as_slice(),
            b"STREAM",
            &key.name,
            b"FULL",
            b"COUNT",
            count.as_bytes(),
        ];
        let facts = self.pipeline.one(&full).await?;
        put_frame(&mut hasher, &self.without_local_fields(facts));
        if !is_long {
            return Ok(hasher.finish());
        }
        let mut from = b"-".to_vec();
        let page_count = size.page().max(2).to_string();
        loop {
            let range = [
                b"XRANGE".as_slice(),
                &key.name,
                &from,
                b"+",
                b"COUNT",
                page_count.as_bytes(),
            ];
            // The first entry of a page is the last one of the page before.
            let page = array(self.pipeline.one(&range).await?);
            let seen = usize::from(from != b"-");
            for entry in page.iter().skip(seen) {
                put_frame(&mut hasher, entry);
            }
            let last = page.into_iter().skip(seen).next_back().map(array);
            let Some(id) = last.and_then(|entry| entry.into_iter().next()) else {
                return Ok(hasher.finish());
            };
            from = bytes(id);
        }
    }

    /// The maps of XINFO are flat arrays of name and value; those of groups and consumers are nested. Entries and
    /// pending entries are left alone: there the names are the user's own.
    fn without_local_fields(&self, map: BytesFrame) -> BytesFrame {
        let mut kept = Vec::new();
        let mut fields = array(map).into_iter();
        while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
            let word = text(&name);
            let of_reads = ["entries-read", "lag"].contains(&word.as_str());
            if STREAM_FIELDS_LOCAL.contains(&word.as_str())
                || (of_reads && !self.scope.entries_read)
            {
                continue;
            }
            let value = match (word.as_str(), value) {
                ("groups" | "consumers", BytesFrame::Array(maps)) => {
                    let maps = maps.into_iter().map(|map| self.without_local_fields(map));
                    BytesFrame::Array(maps.collect())
                }
                (_, value) => value,
            };
            kept.extend([name, value]);
        }
        BytesFrame::Array(kept)
    }
}

/// The command that gives all of a value.
fn whole(key: &Key) -> Vec<&[u8]> {
    let name = key.name.as_slice();
    match key.kind.as_str() {
        "string" => vec![b"GET", name],
        "list" => vec![b"LRANGE", name, b"0", b"-1"],
        "set" => vec![b"SMEMBERS", name],
        "zset" => vec![b"ZRANGE", name, b"0", b"-1", b"WITHSCORES"],
        "hash" => vec![b"HGETALL", name],
        _ => vec![b"DUMP", name],
    }
}

/// A reply, so that the hash differs where the reply differs: each part with its kind and length.
fn put_frame(hasher: &mut DefaultHasher, frame: &BytesFrame) {
    match frame {
        BytesFrame::SimpleString(text) | BytesFrame::BulkString(text) => put_part(hasher, text),
        BytesFrame::Error(text) => put_part(hasher, text.as_bytes()),
        BytesFrame::Integer(number) => {
            hasher.write_u8(b':');
            hasher.write_i64(*number);
        }
        BytesFrame::Array(frames) => {
            hasher.write_u8(b'*');
            hasher.write_u64(frames.len() as u64);
            for frame in frames {
                put_frame(hasher, frame);
            }
        }
        BytesFrame::Null => hasher.write_u8(b'_'),
    }
}
