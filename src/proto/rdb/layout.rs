//! The RDB format as tables: which opcode or type is followed by what.
//!
//! A table says only what has to be known to find the end. The numbers are those of the servers' `rdb.h`; from type
//! 22 and opcode 243 on Redis and Valkey mean different things by one number.

use super::Numbering;
use Part::{Bytes, Kept, Length, ModuleFields, Number, Repeat, Score, Text};

/// One piece of what follows an opcode or a type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    /// A number as RDB spells lengths, in one to nine bytes.
    Length,
    /// So many bytes, an integer whose lowest byte comes first.
    Number(usize),
    /// So many bytes that say nothing here.
    Bytes(u64),
    /// A text that is passed over: plain, an integer, or compressed.
    Text,
    /// A text whose beginning is kept.
    Kept,
    /// A score as text: a length of one byte, of which three values mean infinities and what is no number.
    Score,
    /// A count, and so many times this.
    Repeat(&'static [Self]),
    /// What a module wrote: numbered fields up to the number for the end.
    ModuleFields,
}

pub(super) const OPCODE_EOF: u8 = 0xff;
pub(super) const OPCODE_SELECT_DATABASE: u8 = 0xfe;
pub(super) const OPCODE_EXPIRES_SECONDS: u8 = 0xfd;
pub(super) const OPCODE_EXPIRES_MILLIS: u8 = 0xfc;
pub(super) const OPCODE_RESIZE_DATABASE: u8 = 0xfb;
pub(super) const OPCODE_AUX: u8 = 0xfa;
pub(super) const OPCODE_FREQUENCY: u8 = 0xf9;
pub(super) const OPCODE_IDLE: u8 = 0xf8;
pub(super) const OPCODE_MODULE_AUX: u8 = 0xf7;
pub(super) const OPCODE_FUNCTION: u8 = 0xf5;
pub(super) const OPCODE_SLOT_INFO: u8 = 0xf4;
/// Redis 8.6: what modules attach to a key. Valkey 9: slots that are being moved here.
pub(super) const OPCODE_KEY_METADATA_OR_SLOT_IMPORT: u8 = 0xf3;

/// The lowest number that is an opcode; types count up from zero.
const OPCODES_FROM: u8 = 0xf0;

/// What stands before the value of a key.
pub(super) const NAME: &[Part] = &[Kept];

/// What follows an opcode; `None` for the end, and for what is not known.
pub(super) fn of_opcode(numbering: Numbering, code: u8) -> Option<&'static [Part]> {
    Some(match (code, numbering) {
        (OPCODE_SELECT_DATABASE | OPCODE_IDLE, _) => &[Length],
        (OPCODE_EXPIRES_SECONDS, _) => &[Number(4)],
        (OPCODE_EXPIRES_MILLIS, _) => &[Number(8)],
        (OPCODE_RESIZE_DATABASE, _) => &[Length, Length],
        (OPCODE_AUX, _) => &[Kept, Kept],
        (OPCODE_FREQUENCY, _) => &[Number(1)],
        // The module's id, when it was called (a field's number and a number), its fields.
        (OPCODE_MODULE_AUX, _) => &[Length, Length, Length, ModuleFields],
        (OPCODE_FUNCTION, _) => &[Text],
        // The slot, its keys, those of them that expire.
        (OPCODE_SLOT_INFO, _) => &[Length, Length, Length],
        // The job's name, ranges of slots.
        (OPCODE_KEY_METADATA_OR_SLOT_IMPORT, Numbering::Valkey) => {
            &[Text, Repeat(&[Length, Length])]
        }
        // Classes: which one, what its module wrote.
        (OPCODE_KEY_METADATA_OR_SLOT_IMPORT, Numbering::Redis) => {
            &[Repeat(&[Bytes(4), ModuleFields])]
        }
        _ => return None,
    })
}

/// The fields of a module by their numbers; the number zero is the end.
pub(super) fn of_module_field(number: u64) -> Option<&'static [Part]> {
    Some(match number {
        // Signed, unsigned.
        1 | 2 => &[Length],
        // Single and double precision.
        3 => &[Bytes(4)],
        4 => &[Bytes(8)],
        5 => &[Text],
        _ => return None,
    })
}

/// What a key holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// A string.
    String,
    /// A list.
    List,
    /// A set.
    Set,
    /// A sorted set.
    SortedSet,
    /// A hash.
    Hash,
    /// A stream.
    Stream,
    /// A type of a module.
    Module,
}

impl Kind {
    /// The word that `TYPE` answers; `module` for a type of a module.
    pub const fn word(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::List => "list",
            Self::Set => "set",
            Self::SortedSet => "zset",
            Self::Hash => "hash",
            Self::Stream => "stream",
            Self::Module => "module",
        }
    }
}

/// A type of value: what it is, and how it is spelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ValueType {
    /// Its number in the dump.
    pub code: u8,
    /// What it is.
    pub kind: Kind,
    /// How the dump spells it, in the servers' words where they have some.
    pub encoding: &'static str,
    pub(super) parts: &'static [Part],
}

const TEXTS: &[Part] = &[Repeat(&[Text])];
const PAIRS: &[Part] = &[Repeat(&[Text, Text])];
const PACKED: &[Part] = &[Text];
/// Container and content of each node.
const NODES: &[Part] = &[Repeat(&[Length, Text])];
/// Expiry (zero for none, else counted from the earliest), field, value.
const EXPIRING_PAIRS: Part = Repeat(&[Length, Text, Text]);

/// A pending entry of a group: id and time of delivery, number of deliveries.
const PENDING: Part = Repeat(&[Bytes(16 + 8), Length]);
/// The pending entries of a consumer: ids.
const PENDING_IDS: Part = Repeat(&[Bytes(16)]);
const CONSUMERS_1: Part = Repeat(&[Text, Bytes(8), PENDING_IDS]);
/// With the time at which a consumer was last active.
const CONSUMERS_3: Part = Repeat(&[Text, Bytes(16), PENDING_IDS]);

/// Entries by their first id, length, last id (two numbers), groups: name, last id, pending entries, consumers.
const STREAM_1: &[Part] = &[
    Repeat(&[Text, Text]),
    Length,
    Length,
    Length,
    Repeat(&[Text, Length, Length, PENDING, CONSUMERS_1]),
];
/// With first id, highest deleted id, entries added; groups with entries read.
const STREAM_2: &[Part] = &[
    Repeat(&[Text, Text]),
    Length,
    Length,
    Length,
    Length,
    Length,
    Length,
    Length,
    Length,
    Repeat(&[Text, Length, Length, Length, PENDING, CONSUMERS_1]),
];
const STREAM_3: &[Part] = &[
    Repeat(&[Text, Text]),
    Length,
    Length,
    Length,
    Length,
    Length,
    Length,
    Length,
    Length,
    Repeat(&[Text, Length, Length, Length, PENDING, CONSUMERS_3]),
];

/// The type of a value. `None` where it is not known.
pub(super) fn of_type(numbering: Numbering, code: u8) -> Option<ValueType> {
    let (kind, encoding, parts): (_, _, &'static [Part]) = match (code, numbering) {
        (0, _) => (Kind::String, "raw", PACKED),
        (1, _) => (Kind::List, "linkedlist", TEXTS),
        (2, _) => (Kind::Set, "hashtable", TEXTS),
        (3, _) => (Kind::SortedSet, "skiplist", &[Repeat(&[Text, Score])]),
        (4, _) => (Kind::Hash, "hashtable", PAIRS),
        (5, _) => (Kind::SortedSet, "skiplist", &[Repeat(&[Text, Bytes(8)])]),
        (7, _) => (Kind::Module, "module", &[Length, ModuleFields]),
        (9, _) => (Kind::Hash, "zipmap", PACKED),
        (10, _) => (Kind::List, "ziplist", PACKED),
        (11, _) => (Kind::Set, "intset", PACKED),
        (12, _) => (Kind::SortedSet, "ziplist", PACKED),
        (13, _) => (Kind::Hash, "ziplist", PACKED),
        (14, _) => (Kind::List, "quicklist", TEXTS),
        (15, _) => (Kind::Stream, "stream", STREAM_1),
        (16, _) => (Kind::Hash, "listpack", PACKED),
        (17, _) => (Kind::SortedSet, "listpack", PACKED),
        (18, _) => (Kind::List, "quicklist", NODES),
        (19, _) => (Kind::Stream, "stream", STREAM_2),
        (20, _) => (Kind::Set, "listpack", PACKED),
        (21, _) => (Kind::Stream, "stream", STREAM_3),
        // Only pre-releases of redis 7.4 wrote 22 and 23.
        (22, Numbering::Redis) => (Kind::Hash, "hashtable", &[EXPIRING_PAIRS]),
        (23, Numbering::Redis) => (Kind::Hash, "listpackex", PACKED),
        (24, Numbering::Redis) => (Kind::Hash, "hashtable", &[Bytes(8), EXPIRING_PAIRS]),
        (25, Numbering::Redis) => (Kind::Hash, "listpackex", &[Bytes(8), Text]),
        // Field, value, expiry.
        (22, Numbering::Valkey) => (Kind::Hash, "hashtable", &[Repeat(&[Text, Text, Bytes(8)])]),
        _ => return None,
    };
    Some(ValueType {
        code,
        kind,
        encoding,
        parts,
    })
}

/// What is known of a number that cannot be read, for the message.
pub(super) fn hint(numbering: Numbering, code: u8) -> &'static str {
    match (code, numbering) {
        (6, _) => " (a module's value of a pre-release of redis 4.0)",
        (0xf6, _) => " (a function of a pre-release of redis 7.0)",
        (26, Numbering::Redis) => " (a stream of redis 8.6)",
        (27, Numbering::Redis) => " (a stream of redis 8.8)",
        (28, Numbering::Redis) => " (an array of redis 8.8)",
        (29..=32, Numbering::Redis) | (0xf2, Numbering::Redis) => " (a hash of redis 8.10)",
        (23, Numbering::Valkey) | (0xf2, Numbering::Valkey) => " (of valkey 9.2)",
        (OPCODES_FROM.., _) => " (an opcode)",
        _ => "",
    }
}
