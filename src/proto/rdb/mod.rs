//! Finds the keys of an RDB dump while its bytes pass: names, expiries, types, and where each value lies. Values are
//! passed over and never kept; `cli::inspect` shows what is found.
//!
//! ```text
//! layout   the format as tables: what follows which opcode and type
//! atom     lengths, heads of texts, integers
//! walk     through the tables, with the bytes at hand
//! lzf      compressed names
//! event    what is found, and what is wrong
//! ```
//!
//! Nothing under `follow` or `restore` uses it: a type that nobody here knows ends a scan, and must never end a backup.

mod atom;
mod event;
mod layout;
mod lzf;
#[cfg(test)]
mod tests;
mod walk;

use std::ops::Range;

use crc_fast::{CrcAlgorithm, Digest};

use crate::position::UnixMillis;
use atom::Atom;
use layout::Part;
use walk::{Carry, Feed, Walk};

pub use event::{Checksum, Event, Key, Numbering, ScanError, TextForm};
pub use layout::{Kind, ValueType};

/// How much of a key's name, or of an auxiliary field's texts, is kept, in bytes. The servers allow 512 MiB; what
/// is longer is counted, not kept.
pub const NAME_BYTES_MAX: usize = 64 * 1024;

/// The first version whose dumps end with a checksum (code: redis `rdb.c`).
const CHECKSUM_SINCE_VERSION: u32 = 5;

/// From here on the length of a score is a word: no number, infinite, infinite below zero.
const SCORE_IS_A_WORD: u64 = 253;

/// The number behind a module's last field.
const MODULE_FIELDS_END: u64 = 0;

/// Reads a dump piece by piece. Pieces may be cut anywhere: the events are the same.
///
/// Its memory does not depend on the dump: two texts of [`NAME_BYTES_MAX`], and a stack as deep as the tables nest.
/// No length that a dump names is ever allocated.
///
/// ```text
///   Magic -> Opcode <-----------------------------+
///              |                                  |
///              |-- 0xff --> Trailer --> Done      |
///              |                                  |
///              |-- opcode --> After(opcode) ------+
///              |                                  |
///              '-- type ----> Name --> Value -----+
/// ```
#[derive(Debug)]
pub struct Scanner {
    state: State,
    numbering: Numbering,
    version: u32,
    /// The bytes of an atom of which the piece before held only a part.
    carry: Carry,
    /// Where the next byte lies in the dump, without those in `carry`.
    position: u64,
    digest: Digest,
    walk: Walk,
    database: u64,
    pending: Pending,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    Magic,
    Opcode,
    /// What follows the opcode at this byte.
    After {
        opcode: u8,
        at: u64,
    },
    /// The name of a key with a value of this type.
    Name(ValueType),
    /// The value that began there.
    Value {
        at: u64,
    },
    Trailer,
    Done,
    Failed(ScanError),
}

/// What stands before a key and belongs to it.
#[derive(Clone, Copy, Default, Debug)]
struct Pending {
    at: Option<u64>,
    expires_at: Option<UnixMillis>,
    idle_seconds: Option<u64>,
    frequency: Option<u64>,
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}

impl Scanner {
    /// A scanner before the first byte of a dump.
    pub fn new() -> Self {
        Self {
            state: State::Magic,
            numbering: Numbering::Redis,
            version: 0,
            carry: Carry::default(),
            position: 0,
            digest: Digest::new(CrcAlgorithm::Crc64Redis),
            walk: Walk::default(),
            database: 0,
            pending: Pending::default(),
        }
    }

    /// How many bytes have been taken.
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// Takes the dump's next bytes, and tells what they hold.
    ///
    /// # Errors
    /// [`ScanError`], and from then on the same again.
    pub fn scan(
        &mut self,
        bytes: &[u8],
        found: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), ScanError> {
        let mut feed = Feed {
            bytes,
            at: 0,
            begins: self.position,
        };
        let outcome = self.run(&mut feed, found);
        if !matches!(self.state, State::Trailer | State::Done) {
            self.digest.update(bytes);
        }
        self.position += bytes.len() as u64;
        if let Err(error) = &outcome {
            self.state = State::Failed(error.clone());
        }
        outcome
    }

    /// The input ends.
    ///
    /// # Errors
    /// [`ScanError::Cut`] where the dump does not, or what was wrong before.
    pub fn finish(self) -> Result<(), ScanError> {
        let inside = match self.state {
            State::Done => return Ok(()),
            State::Failed(error) => return Err(error),
            State::Magic => "its first nine bytes",
            State::Opcode => "what has no end opcode yet",
            State::After { .. } => "what follows an opcode",
            State::Name(_) => "the name of a key",
            State::Value { .. } => "a value",
            State::Trailer => "its checksum",
        };
        Err(ScanError::Cut {
            at: self.position,
            inside,
        })
    }

    fn run(
        &mut self,
        feed: &mut Feed<'_>,
        found: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), ScanError> {
        while self.advance(feed, found)? {}
        Ok(())
    }

    /// One step; `false` where it needs more bytes.
    fn advance(
        &mut self,
        feed: &mut Feed<'_>,
        found: &mut dyn FnMut(Event<'_>),
    ) -> Result<bool, ScanError> {
        match self.state {
            State::Magic => self.magic(feed, found),
            State::Opcode => self.opcode(feed, found),
            State::After { opcode, at } => {
                let arrived = self.walk(feed)?;
                if arrived {
                    self.state = State::Opcode;
                    self.after(opcode, at..feed.position(), found);
                }
                Ok(arrived)
            }
            State::Name(value) => {
                let arrived = self.walk(feed)?;
                if arrived {
                    self.begin_value(value, feed.position(), found);
                }
                Ok(arrived)
            }
            State::Value { at } => {
                let arrived = self.walk(feed)?;
                if arrived {
                    self.state = State::Opcode;
                    found(Event::Value {
                        bytes: at..feed.position(),
                        form: self.walk.first_text,
                    });
                }
                Ok(arrived)
            }
            State::Trailer => self.trailer(feed, found),
            State::Done if feed.rest().is_empty() => Ok(false),
            State::Done => Err(ScanError::AfterEnd {
                at: feed.position(),
            }),
            State::Failed(ref error) => Err(error.clone()),
        }
    }

    fn magic(
        &mut self,
        feed: &mut Feed<'_>,
        found: &mut dyn FnMut(Event<'_>),
    ) -> Result<bool, ScanError> {
        let (numbering, version) = match self.carry.take(feed, atom::magic) {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(false),
            Err((_, what)) => return Err(ScanError::NotADump { what }),
        };
        (self.numbering, self.version) = (numbering, version);
        self.state = State::Opcode;
        found(Event::Head { numbering, version });
        Ok(true)
    }

    fn opcode(
        &mut self,
        feed: &mut Feed<'_>,
        found: &mut dyn FnMut(Event<'_>),
    ) -> Result<bool, ScanError> {
        let Some(code) = feed.rest().first().copied() else {
            return Ok(false);
        };
        let at = feed.position();
        feed.at += 1;
        if code == layout::OPCODE_EOF {
            self.digest.update(&feed.bytes[..feed.at]);
            return Ok(self.end_of_data(feed.position(), found));
        }
        if let Some(parts) = layout::of_opcode(self.numbering, code) {
            self.walk.begin(parts);
            self.state = State::After { opcode: code, at };
            if belongs_to_a_key(self.numbering, code) {
                self.pending.at.get_or_insert(at);
            }
            return Ok(true);
        }
        let Some(value) = layout::of_type(self.numbering, code) else {
            return Err(ScanError::UnknownType {
                numbering: self.numbering,
                version: self.version,
                code,
                hint: layout::hint(self.numbering, code),
                at,
            });
        };
        self.pending.at.get_or_insert(at);
        self.walk.begin(layout::NAME);
        self.state = State::Name(value);
        Ok(true)
    }

    /// The opcode for the end has come; `true` where something must follow it.
    fn end_of_data(&mut self, bytes: u64, found: &mut dyn FnMut(Event<'_>)) -> bool {
        if self.version >= CHECKSUM_SINCE_VERSION {
            self.state = State::Trailer;
            return true;
        }
        self.state = State::Done;
        found(Event::End {
            checksum: Checksum::Absent,
            bytes,
        });
        true
    }

    fn trailer(
        &mut self,
        feed: &mut Feed<'_>,
        found: &mut dyn FnMut(Event<'_>),
    ) -> Result<bool, ScanError> {
        let Some(expected) = self.take(feed, atom::integer::<8>)? else {
            return Ok(false);
        };
        let bytes = feed.position();
        let given = self.digest.finalize();
        let checksum = match expected {
            0 => Checksum::Disabled,
            _ if expected == given => Checksum::Verified,
            _ => {
                return Err(ScanError::Checksum {
                    at: bytes - 8,
                    expected,
                    found: given,
                });
            }
        };
        self.state = State::Done;
        found(Event::End { checksum, bytes });
        Ok(true)
    }

    /// What followed an opcode has been walked through.
    fn after(&mut self, opcode: u8, bytes: Range<u64>, found: &mut dyn FnMut(Event<'_>)) {
        let [first, second, third] = self.walk.numbers;
        match opcode {
            layout::OPCODE_SELECT_DATABASE => {
                self.database = first;
                found(Event::Database(first));
            }
            layout::OPCODE_RESIZE_DATABASE => found(Event::Sizes {
                keys: first,
                expiring: second,
            }),
            layout::OPCODE_EXPIRES_SECONDS => {
                // The servers read it as signed; below zero is long past all the same.
                let seconds = i32::try_from(first).map_or(0, i32::cast_unsigned);
                self.pending.expires_at = Some(UnixMillis(u64::from(seconds) * 1000));
            }
            layout::OPCODE_EXPIRES_MILLIS => {
                let millis = i64::try_from(first).map_or(0, i64::cast_unsigned);
                self.pending.expires_at = Some(UnixMillis(millis));
            }
            layout::OPCODE_IDLE => self.pending.idle_seconds = Some(first),
            layout::OPCODE_FREQUENCY => self.pending.frequency = Some(first),
            layout::OPCODE_AUX => {
                let [name, value] = &self.walk.kept;
                found(Event::Aux {
                    name: &name.text,
                    value: &value.text,
                });
            }
            layout::OPCODE_MODULE_AUX => found(Event::ModuleAux {
                module: first,
                bytes,
            }),
            layout::OPCODE_FUNCTION => found(Event::Function { bytes }),
            layout::OPCODE_SLOT_INFO => found(Event::Slot {
                slot: first,
                keys: second,
                expiring: third,
            }),
            layout::OPCODE_KEY_METADATA_OR_SLOT_IMPORT if self.numbering == Numbering::Valkey => {
                found(Event::SlotImport { bytes });
            }
            // What modules attach to a key counts among its bytes.
            _ => {}
        }
    }

    fn begin_value(&mut self, value: ValueType, at: u64, found: &mut dyn FnMut(Event<'_>)) {
        let pending = std::mem::take(&mut self.pending);
        let [name, _] = &self.walk.kept;
        found(Event::Key(Key {
            at: pending.at.unwrap_or(at),
            database: self.database,
            name: &name.text,
            name_bytes: name.whole,
            expires_at: pending.expires_at,
            idle_seconds: pending.idle_seconds,
            frequency: pending.frequency,
            value,
            value_at: at,
        }));
        self.walk.begin(value.parts);
        self.state = State::Value { at };
    }

    fn take<T>(
        &mut self,
        feed: &mut Feed<'_>,
        read: fn(&[u8]) -> Atom<T>,
    ) -> Result<Option<T>, ScanError> {
        self.carry
            .take(feed, read)
            .map_err(|(at, what)| ScanError::Damaged { at, what })
    }

    /// Goes on with the walk; `false` where it needs more bytes.
    fn walk(&mut self, feed: &mut Feed<'_>) -> Result<bool, ScanError> {
        loop {
            if self.walk.left > 0 && !self.walk.pass(feed) {
                return Ok(false);
            }
            self.walk.end_kept()?;
            match self.walk.next_part() {
                None => return Ok(true),
                Some(part) => {
                    if !self.part(part, feed)? {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// Begins one part; `false` where it needs more bytes to do so.
    fn part(&mut self, part: Part, feed: &mut Feed<'_>) -> Result<bool, ScanError> {
        match part {
            Part::Text => {
                let Some(head) = self.take(feed, atom::text_head)? else {
                    return Ok(false);
                };
                self.walk.pass_text(head);
            }
            Part::Kept => {
                let Some(head) = self.take(feed, atom::text_head)? else {
                    return Ok(false);
                };
                self.walk.keep_text(head, feed.position());
            }
            Part::Bytes(bytes) => {
                self.walk.done();
                self.walk.left = bytes;
            }
            Part::Length => {
                let Some(number) = self.take(feed, atom::length)? else {
                    return Ok(false);
                };
                self.walk.note(number);
                self.walk.done();
            }
            Part::Number(bytes) => {
                let read = match bytes {
                    1 => atom::integer::<1>,
                    4 => atom::integer::<4>,
                    _ => atom::integer::<8>,
                };
                let Some(number) = self.take(feed, read)? else {
                    return Ok(false);
                };
                self.walk.note(number);
                self.walk.done();
            }
            Part::Score => {
                let Some(length) = self.take(feed, atom::integer::<1>)? else {
                    return Ok(false);
                };
                self.walk.done();
                self.walk.left = if length < SCORE_IS_A_WORD { length } else { 0 };
            }
            Part::Repeat(parts) => {
                let Some(times) = self.take(feed, atom::length)? else {
                    return Ok(false);
                };
                self.walk.done();
                self.walk.enter(parts, times);
            }
            Part::ModuleFields => return self.module_field(feed),
        }
        Ok(true)
    }

    fn module_field(&mut self, feed: &mut Feed<'_>) -> Result<bool, ScanError> {
        let at = feed.position() - self.carry.length as u64;
        let Some(number) = self.take(feed, atom::length)? else {
            return Ok(false);
        };
        if number == MODULE_FIELDS_END {
            self.walk.done();
            return Ok(true);
        }
        let parts = layout::of_module_field(number).ok_or(ScanError::Damaged {
            at,
            what: "no field of a module has this number",
        })?;
        self.walk.enter(parts, 1);
        Ok(true)
    }
}

/// `true` for what is written before a key and is part of it.
fn belongs_to_a_key(numbering: Numbering, opcode: u8) -> bool {
    match opcode {
        layout::OPCODE_EXPIRES_SECONDS
        | layout::OPCODE_EXPIRES_MILLIS
        | layout::OPCODE_IDLE
        | layout::OPCODE_FREQUENCY => true,
        layout::OPCODE_KEY_METADATA_OR_SLOT_IMPORT => numbering == Numbering::Redis,
        _ => false,
    }
}
