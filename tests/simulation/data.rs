//! Data sets of strings, the commands that change them, and their RDB payload.

use std::collections::BTreeMap;

use crc_fast::CrcAlgorithm;

/// Database and key to value.
pub type Data = BTreeMap<(u32, Vec<u8>), Vec<u8>>;

/// A command as it stands in the replication stream.
pub fn command(arguments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        bytes.extend_from_slice(argument);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The words of a command, and how many bytes it takes.
type Parsed = (Vec<Vec<u8>>, usize);

/// The first command of `bytes` and its length, where all of it is there. Empty lines are commands of no words.
pub fn parse(bytes: &[u8]) -> Result<Option<Parsed>, String> {
    let Some((head, mut at)) = line(bytes, 0) else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(head).into_owned();
    let Some(count) = head.strip_prefix('*') else {
        let words = head.split_ascii_whitespace();
        return Ok(Some((
            words.map(|word| word.as_bytes().to_vec()).collect(),
            at,
        )));
    };
    let count: usize = count
        .parse()
        .map_err(|_| format!("not a count: {head:?}"))?;
    let mut arguments = Vec::with_capacity(count);
    for _ in 0..count {
        let Some((head, next)) = line(bytes, at) else {
            return Ok(None);
        };
        let length = std::str::from_utf8(head)
            .ok()
            .and_then(|head| head.strip_prefix('$')?.parse::<usize>().ok())
            .ok_or_else(|| format!("not a length: {:?}", String::from_utf8_lossy(head)))?;
        let Some(argument) = bytes.get(next..next + length + 2) else {
            return Ok(None);
        };
        arguments.push(argument[..length].to_vec());
        at = next + length + 2;
    }
    Ok(Some((arguments, at)))
}

fn line(bytes: &[u8], from: usize) -> Option<(&[u8], usize)> {
    let length = bytes.get(from..)?.iter().position(|byte| *byte == b'\n')?;
    let line = &bytes[from..from + length];
    Some((line.strip_suffix(b"\r").unwrap_or(line), from + length + 1))
}

/// Applies a replication stream.
#[derive(Clone, Debug, Default)]
pub struct Applier {
    pub data: Data,
    pub selected: u32,
    /// Inside MULTI.
    queued: Option<Vec<Vec<Vec<u8>>>>,
    /// A command that is not whole yet.
    rest: Vec<u8>,
    /// Applied since the last boundary outside MULTI, and up to it.
    pub applied: u64,
    fed: u64,
    pub getacks: u32,
    pub changes: u64,
}

impl Applier {
    pub fn new(data: Data, selected: u32) -> Self {
        Self {
            data,
            selected,
            ..Self::default()
        }
    }

    /// Whether it stands between two commands, outside MULTI.
    pub fn is_at_boundary(&self) -> bool {
        self.rest.is_empty() && self.queued.is_none()
    }

    /// Takes some of the stream; `applied` counts bytes up to the last boundary.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut gathered = std::mem::take(&mut self.rest);
        gathered.extend_from_slice(bytes);
        let mut at = 0;
        while let Some((arguments, length)) = parse(&gathered[at..])? {
            if arguments.is_empty() {
                return Err("an empty line in the replication stream".into());
            }
            at += length;
            self.fed += length as u64;
            self.take(arguments)?;
            if self.queued.is_none() {
                self.applied = self.fed;
            }
        }
        self.rest = gathered.split_off(at);
        Ok(())
    }

    fn take(&mut self, arguments: Vec<Vec<u8>>) -> Result<(), String> {
        let name = arguments[0].to_ascii_uppercase();
        match (name.as_slice(), &mut self.queued) {
            (b"MULTI", _) => self.queued = Some(Vec::new()),
            (b"EXEC", _) => {
                let queued = self.queued.take().ok_or("EXEC without MULTI")?;
                for arguments in queued {
                    self.apply(&arguments)?;
                }
            }
            (_, Some(queued)) => queued.push(arguments),
            (_, None) => self.apply(&arguments)?,
        }
        Ok(())
    }

    /// One command.
    pub fn apply(&mut self, arguments: &[Vec<u8>]) -> Result<(), String> {
        let name = arguments[0].to_ascii_uppercase();
        let words: Vec<&[u8]> = arguments[1..].iter().map(Vec::as_slice).collect();
        match (name.as_slice(), words.as_slice()) {
            (b"SELECT", [database]) => {
                self.selected = String::from_utf8_lossy(database)
                    .parse()
                    .map_err(|_| "not a database")?;
                return Ok(());
            }
            (b"PING", _) => return Ok(()),
            (b"REPLCONF", _) => {
                self.getacks += 1;
                return Ok(());
            }
            (b"SET", [key, value]) => {
                self.data
                    .insert((self.selected, key.to_vec()), value.to_vec());
            }
            (b"APPEND", [key, value]) => {
                let held = self.data.entry((self.selected, key.to_vec()));
                held.or_default().extend_from_slice(value);
            }
            (b"DEL", keys) => {
                for key in keys {
                    self.data.remove(&(self.selected, key.to_vec()));
                }
            }
            (b"FLUSHALL", _) => self.data.clear(),
            _ => {
                return Err(format!(
                    "unknown {:?}",
                    String::from_utf8_lossy(&arguments[0])
                ));
            }
        }
        self.changes += 1;
        Ok(())
    }
}

/// The RDB payload of `data`. `stream_database` is selected where the stream goes on.
pub fn to_rdb(data: &Data, stream_database: Option<u32>) -> Vec<u8> {
    let mut rdb = b"REDIS0010".to_vec();
    aux(&mut rdb, b"redis-ver", b"7.0.15");
    if let Some(database) = stream_database {
        aux(&mut rdb, b"repl-stream-db", database.to_string().as_bytes());
    }
    let mut selected = None;
    for ((database, key), value) in data {
        if selected != Some(*database) {
            selected = Some(*database);
            rdb.push(0xfe);
            length(&mut rdb, *database as usize);
        }
        rdb.push(0);
        text(&mut rdb, key);
        text(&mut rdb, value);
    }
    rdb.push(0xff);
    let checksum = crc_fast::checksum(CrcAlgorithm::Crc64Redis, &rdb);
    rdb.extend_from_slice(&checksum.to_le_bytes());
    rdb
}

fn aux(rdb: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    rdb.push(0xfa);
    text(rdb, key);
    text(rdb, value);
}

fn text(rdb: &mut Vec<u8>, bytes: &[u8]) {
    length(rdb, bytes.len());
    rdb.extend_from_slice(bytes);
}

fn length(rdb: &mut Vec<u8>, length: usize) {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    match length {
        0..64 => rdb.push(length.to_le_bytes()[0]),
        64..16384 => {
            let [low, high, ..] = length.to_le_bytes();
            rdb.extend_from_slice(&[0x40 | high, low]);
        }
        _ => {
            rdb.push(0x80);
            rdb.extend_from_slice(&length.to_be_bytes());
        }
    }
}

/// The data set of an RDB payload and the database selected behind it.
pub fn from_rdb(rdb: &[u8]) -> Result<Applier, String> {
    let body = rdb
        .len()
        .checked_sub(8)
        .ok_or("shorter than its checksum")?;
    let checksum = crc_fast::checksum(CrcAlgorithm::Crc64Redis, &rdb[..body]);
    if rdb[body..] != checksum.to_le_bytes() {
        return Err("the payload's checksum is wrong".into());
    }
    let mut reader = Reader { rdb, at: 9 };
    let mut read = Applier::default();
    let mut database = 0;
    loop {
        match reader.byte()? {
            0xfa => {
                let (key, value) = (reader.text()?, reader.text()?);
                if key == b"repl-stream-db" {
                    read.selected = String::from_utf8_lossy(value)
                        .parse()
                        .map_err(|_| "repl-stream-db")?;
                }
            }
            0xfe => database = u32::try_from(reader.length()?).map_err(|_| "database")?,
            0 => {
                let (key, value) = (reader.text()?.to_vec(), reader.text()?.to_vec());
                read.data.insert((database, key), value);
            }
            0xff => return Ok(read),
            other => return Err(format!("byte {other} in the payload")),
        }
    }
}

struct Reader<'a> {
    rdb: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let taken = self.rdb.get(self.at..self.at + count);
        self.at += count;
        taken.ok_or_else(|| "the payload is cut short".into())
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn length(&mut self) -> Result<usize, String> {
        let first = self.byte()?;
        Ok(match first >> 6 {
            0 => first.into(),
            1 => usize::from(first & 0x3f) << 8 | usize::from(self.byte()?),
            _ => {
                let bytes = self.take(4)?;
                u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize
            }
        })
    }

    fn text(&mut self) -> Result<&'a [u8], String> {
        let length = self.length()?;
        self.take(length)
    }
}
