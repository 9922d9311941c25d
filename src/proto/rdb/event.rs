//! What the scanner finds in a dump, and what it cannot go on from.

use std::fmt;
use std::ops::Range;

use super::layout::ValueType;
use crate::position::UnixMillis;

/// Whose numbers of types and opcodes a dump follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Numbering {
    /// `REDIS` and four digits.
    Redis,
    /// `VALKEY` and three digits: Valkey 9 and later.
    Valkey,
}

impl fmt::Display for Numbering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Redis => "REDIS",
            Self::Valkey => "VALKEY",
        })
    }
}

/// The head of a key: all that stands before its value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key<'a> {
    /// The first byte that belongs to it: of its expiry, where it has one.
    pub at: u64,
    /// The database.
    pub database: u64,
    /// The name, up to [`NAME_BYTES_MAX`](super::NAME_BYTES_MAX) bytes of it.
    pub name: &'a [u8],
    /// The name's length in bytes.
    pub name_bytes: u64,
    /// When it expires.
    pub expires_at: Option<UnixMillis>,
    /// How long it had not been used, in seconds, where the server's eviction goes by that.
    pub idle_seconds: Option<u64>,
    /// How often it is used, as the server counts, where its eviction goes by that.
    pub frequency: Option<u64>,
    /// What it holds.
    pub value: ValueType,
    /// The first byte of the value.
    pub value_at: u64,
}

impl Key<'_> {
    /// `false` where only the name's beginning was kept.
    pub const fn name_is_whole(&self) -> bool {
        self.name.len() as u64 == self.name_bytes
    }
}

/// How a text is spelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TextForm {
    /// As it is.
    Plain,
    /// As an integer of one, two or four bytes.
    Integer,
    /// Compressed with LZF.
    Compressed,
}

/// What is known of the checksum at the end of a dump.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksum {
    /// It is there and right.
    Verified,
    /// Eight zero bytes: the server runs with `rdbchecksum no`.
    Disabled,
    /// An RDB version below 5, which has none.
    Absent,
}

impl Checksum {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Disabled => "disabled",
            Self::Absent => "absent",
        }
    }
}

/// What was found, in the dump's order. Ranges are bytes of the dump.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// The dump begins.
    Head {
        /// Whose numbers follow.
        numbering: Numbering,
        /// 11 for `REDIS0011`, 80 for `VALKEY080`.
        version: u32,
    },
    /// An auxiliary field: up to [`NAME_BYTES_MAX`](super::NAME_BYTES_MAX) bytes of each text.
    Aux {
        /// Its name.
        name: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
    /// A library of functions.
    Function {
        /// From its opcode to its last byte.
        bytes: Range<u64>,
    },
    /// What a module keeps outside of keys.
    ModuleAux {
        /// The module type's id.
        module: u64,
        /// From its opcode to its last byte.
        bytes: Range<u64>,
    },
    /// The keys that follow lie in this database.
    Database(u64),
    /// How large the server should make this database's tables.
    Sizes {
        /// Keys.
        keys: u64,
        /// Keys that expire.
        expiring: u64,
    },
    /// The slot of a cluster that follows.
    Slot {
        /// Its number.
        slot: u64,
        /// Its keys.
        keys: u64,
        /// Of them, those that expire.
        expiring: u64,
    },
    /// Slots that are being moved to the server.
    SlotImport {
        /// From its opcode to its last byte.
        bytes: Range<u64>,
    },
    /// A key, before its value.
    Key(Key<'a>),
    /// The value of the key before.
    Value {
        /// Its bytes, without the type.
        bytes: Range<u64>,
        /// How its first text is spelled, if it has one: of a string, that is all of it.
        form: Option<TextForm>,
    },
    /// The dump ends, whole.
    End {
        /// What is known of its checksum.
        checksum: Checksum,
        /// The dump's length in bytes.
        bytes: u64,
    },
}

/// Why a dump cannot be read on. Every offset is a byte of the dump, counted from zero.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ScanError {
    /// It does not begin as a dump does.
    #[error("not an RDB dump: {what}")]
    NotADump {
        /// What is wrong with its beginning.
        what: &'static str,
    },
    /// A type or opcode that nobody here knows: nothing says where its value ends.
    #[error("byte {at}: unknown type {code}{hint} in a dump of version {numbering} {version}")]
    UnknownType {
        /// Whose number it is.
        numbering: Numbering,
        /// The dump's version.
        version: u32,
        /// The number.
        code: u8,
        /// What is known of it.
        hint: &'static str,
        /// Where it stands.
        at: u64,
    },
    /// What stands there cannot be.
    #[error("byte {at}: the dump is damaged: {what}")]
    Damaged {
        /// Where.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// It ends too early.
    #[error("the dump is cut short: it ends at byte {at}, inside {inside}")]
    Cut {
        /// Its length in bytes.
        at: u64,
        /// Inside what.
        inside: &'static str,
    },
    /// The checksum differs.
    #[error(
        "byte {at}: the dump is damaged: its checksum says {expected:016x}, its bytes give {found:016x}"
    )]
    Checksum {
        /// Where the checksum stands.
        at: u64,
        /// What it says.
        expected: u64,
        /// What the bytes before it give.
        found: u64,
    },
    /// Something stands behind the end.
    #[error("byte {at}: something follows the end of the dump")]
    AfterEnd {
        /// Where it begins.
        at: u64,
    },
}
