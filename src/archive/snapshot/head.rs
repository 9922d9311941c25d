//! Reads the head of an RDB payload: magic, version and auxiliary fields, as far as they can be read.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How much of a payload is looked at for its head, in bytes.
pub const RDB_HEAD_BYTES_MAX: usize = 64 * 1024;

/// The length of magic and version together, in bytes: `REDIS0011`, `VALKEY080`.
pub(super) const MAGIC_BYTES: usize = 9;

const OPCODE_AUX: u8 = 0xfa;
const OPCODE_MODULE_AUX: u8 = 0xf7;

/// How a module type's name is spelled in its id: nine characters of six bits each, then ten bits of version.
const TYPE_NAME_ALPHABET: &[u8; 64] =
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const TYPE_NAME_CHARACTERS: u32 = 9;
const TYPE_VERSION_BITS: u32 = 10;

/// Whose numbering of types a payload follows. From type 22 on the two mean different things by the same
/// number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RdbMagic {
    /// `REDIS` and four digits.
    Redis,
    /// `VALKEY` and three digits (Valkey 9 and later).
    Valkey,
}

impl fmt::Display for RdbMagic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Redis => "REDIS",
            Self::Valkey => "VALKEY",
        })
    }
}

/// What the head of a payload says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RdbHead {
    /// Whose numbering it follows.
    pub magic: RdbMagic,
    /// The RDB version: 11 for `REDIS0011`, 80 for `VALKEY080`.
    pub version: u32,
    /// The auxiliary fields in their order, as far as they could be read; bytes that are not UTF-8 replaced.
    #[serde(default)]
    pub aux: Vec<(String, String)>,
    /// The database that the replication stream continues in, where the payload says (`repl-stream-db`).
    #[serde(default)]
    pub stream_database: Option<u32>,
}

impl RdbHead {
    /// The value of an auxiliary field.
    pub fn aux(&self, name: &str) -> Option<&str> {
        self.aux
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Reads the head of the payload that begins with `bytes`. `None` where it does not begin as one does; what
/// comes after the magic is never an error.
pub fn read_head(bytes: &[u8]) -> Option<RdbHead> {
    let bytes = &bytes[..bytes.len().min(RDB_HEAD_BYTES_MAX)];
    let (magic, mut rest) = bytes.split_at_checked(MAGIC_BYTES)?;
    let (magic, digits) = if let Some(digits) = magic.strip_prefix(b"REDIS") {
        (RdbMagic::Redis, digits)
    } else {
        (RdbMagic::Valkey, magic.strip_prefix(b"VALKEY")?)
    };
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let version = digits
        .iter()
        .fold(0, |number, digit| number * 10 + u32::from(digit - b'0'));
    if version == 0 {
        return None;
    }
    let mut head = RdbHead {
        magic,
        version,
        aux: Vec::new(),
        stream_database: None,
    };
    while let Some((field, after)) = read_aux(rest) {
        head.aux.push(field);
        rest = after;
    }
    head.stream_database = head
        .aux("repl-stream-db")
        .and_then(|database| database.parse().ok());
    Some(head)
}

/// The module type whose own data come first in a payload, before any key. Without its module a server ends
/// itself over them. Other types may follow, unseen.
pub fn leading_module_type(bytes: &[u8]) -> Option<String> {
    let mut rest = bytes.get(MAGIC_BYTES..)?;
    while let Some((_, after)) = read_aux(rest) {
        rest = after;
    }
    let (opcode, rest) = rest.split_first()?;
    // An id is larger than 32 bits, because a name begins it.
    let (0x81, rest) = rest.split_first().map(|(first, rest)| (*first, rest))? else {
        return None;
    };
    let id = u64::from_be_bytes(*rest.first_chunk()?);
    (*opcode == OPCODE_MODULE_AUX).then(|| {
        (0..TYPE_NAME_CHARACTERS)
            .rev()
            .map(|at| {
                let index = (id >> (TYPE_VERSION_BITS + 6 * at)) & 63;
                char::from(TYPE_NAME_ALPHABET[index as usize])
            })
            .collect()
    })
}

/// `true` where `bytes` are the beginning of a magic and more could make it whole.
pub(super) fn may_become_rdb(bytes: &[u8]) -> bool {
    bytes.len() < MAGIC_BYTES
        && ["REDIS", "VALKEY"].iter().any(|magic| {
            let compared = bytes.len().min(magic.len());
            bytes[..compared] == magic.as_bytes()[..compared]
                && bytes[compared..].iter().all(u8::is_ascii_digit)
        })
}

type Aux<'a> = ((String, String), &'a [u8]);

fn read_aux(bytes: &[u8]) -> Option<Aux<'_>> {
    let (OPCODE_AUX, rest) = bytes.split_first().map(|(op, rest)| (*op, rest))? else {
        return None;
    };
    let (key, rest) = read_string(rest)?;
    let (value, rest) = read_string(rest)?;
    Some(((key, value), rest))
}

/// A string as RDB spells it: a length and bytes, or a small integer. Compressed strings are left alone: no
/// server writes them into auxiliary fields.
fn read_string(bytes: &[u8]) -> Option<(String, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let low = u64::from(first & 0x3f);
    let (length, rest) = match (first >> 6, first) {
        (0, _) => (low, rest),
        (1, _) => {
            let (next, rest) = rest.split_first()?;
            (low << 8 | u64::from(*next), rest)
        }
        (_, 0x80) => {
            let (length, rest) = rest.split_first_chunk()?;
            (u64::from(u32::from_be_bytes(*length)), rest)
        }
        (_, 0x81) => {
            let (length, rest) = rest.split_first_chunk()?;
            (u64::from_be_bytes(*length), rest)
        }
        (_, 0xc0) => {
            let (number, rest) = rest.split_first_chunk()?;
            return Some((i8::from_le_bytes(*number).to_string(), rest));
        }
        (_, 0xc1) => {
            let (number, rest) = rest.split_first_chunk()?;
            return Some((i16::from_le_bytes(*number).to_string(), rest));
        }
        (_, 0xc2) => {
            let (number, rest) = rest.split_first_chunk()?;
            return Some((i32::from_le_bytes(*number).to_string(), rest));
        }
        _ => return None,
    };
    let (text, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some((String::from_utf8_lossy(text).into_owned(), rest))
}
