//! Walks through the tables of `layout` with the bytes at hand: what has to be met next, what is passed over, and the
//! few texts and numbers that are kept.

use super::atom::{ATOM_BYTES_MAX, Atom, TextHead};
use super::layout::Part;
use super::lzf;
use super::{NAME_BYTES_MAX, ScanError, TextForm};

/// How many compressed bytes of a text are kept. The servers' compression puts at most one byte before 32 others, so
/// that these give [`NAME_BYTES_MAX`] where there is so much.
const COMPRESSED_BYTES_MAX: usize = NAME_BYTES_MAX / 32 * 33;

/// How many numbers are kept of what follows an opcode.
const NUMBERS_MAX: usize = 3;

/// One piece of the dump, and how far it has been read.
pub(super) struct Feed<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
    /// Where the piece begins in the dump.
    pub(super) begins: u64,
}

impl<'a> Feed<'a> {
    pub(super) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    /// Where the next byte lies in the dump.
    pub(super) const fn position(&self) -> u64 {
        self.begins + self.at as u64
    }
}

/// The bytes of an atom of which the pieces so far held only a part.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Carry {
    bytes: [u8; ATOM_BYTES_MAX],
    pub(super) length: usize,
}

impl Carry {
    /// The next atom; `None` where its end has not come yet. An error says where the atom begins.
    #[inline]
    pub(super) fn take<T>(
        &mut self,
        feed: &mut Feed<'_>,
        read: impl Fn(&[u8]) -> Atom<T>,
    ) -> Result<Option<T>, (u64, &'static str)> {
        if self.length > 0 {
            return self.top_up(feed, read);
        }
        match read(feed.rest()) {
            Atom::Is(value, used) => {
                feed.at += used;
                Ok(Some(value))
            }
            Atom::Bad(what) => Err((feed.position(), what)),
            Atom::More => self.top_up(feed, read),
        }
    }

    /// Byte by byte, so that nothing behind the atom gets in.
    #[cold]
    fn top_up<T>(
        &mut self,
        feed: &mut Feed<'_>,
        read: impl Fn(&[u8]) -> Atom<T>,
    ) -> Result<Option<T>, (u64, &'static str)> {
        let begins = feed.position() - self.length as u64;
        while let Some(byte) = feed.rest().first() {
            // No atom is longer than its bound, so the place is always there.
            let Some(place) = self.bytes.get_mut(self.length) else {
                break;
            };
            *place = *byte;
            self.length += 1;
            feed.at += 1;
            match read(&self.bytes[..self.length]) {
                Atom::Is(value, _) => {
                    self.length = 0;
                    return Ok(Some(value));
                }
                Atom::Bad(what) => return Err((begins, what)),
                Atom::More => {}
            }
        }
        Ok(None)
    }
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    parts: &'static [Part],
    next: usize,
    /// How often it is still to be walked, this time included.
    times: u64,
}

/// A text that is kept.
#[derive(Default, Debug)]
pub(super) struct Kept {
    /// Up to [`NAME_BYTES_MAX`] bytes of it.
    pub(super) text: Vec<u8>,
    /// Its own length in bytes.
    pub(super) whole: u64,
}

/// The text that is being kept.
#[derive(Clone, Copy, Debug)]
struct Keeping {
    /// Its first byte in the dump.
    at: u64,
    /// Its stored length, where it is compressed.
    compressed_bytes: Option<u64>,
}

/// A walk through a table.
#[derive(Default, Debug)]
pub(super) struct Walk {
    /// The table, and those inside it; the innermost is the last.
    stack: Vec<Frame>,
    /// Bytes that are still to be passed over or kept before the next part.
    pub(super) left: u64,
    keeping: Option<Keeping>,
    compressed: Vec<u8>,
    pub(super) kept: [Kept; 2],
    kept_count: usize,
    /// The first numbers that were met.
    pub(super) numbers: [u64; NUMBERS_MAX],
    number_count: usize,
    /// How the first text that was passed over is spelled.
    pub(super) first_text: Option<TextForm>,
}

impl Walk {
    /// Begins to walk through a table.
    pub(super) fn begin(&mut self, parts: &'static [Part]) {
        self.stack.clear();
        self.enter(parts, 1);
        self.left = 0;
        self.kept_count = 0;
        self.numbers = [0; NUMBERS_MAX];
        self.number_count = 0;
        self.first_text = None;
    }

    /// The part that comes next; `None` at the end of the table.
    #[inline]
    pub(super) fn next_part(&mut self) -> Option<Part> {
        loop {
            let frame = self.stack.last_mut()?;
            if let Some(part) = frame.parts.get(frame.next) {
                return Some(*part);
            }
            if frame.times > 1 {
                frame.times -= 1;
                frame.next = 0;
            } else {
                self.stack.pop();
            }
        }
    }

    /// The part has been begun: another one comes next.
    #[inline]
    pub(super) fn done(&mut self) {
        if let Some(frame) = self.stack.last_mut() {
            frame.next += 1;
        }
    }

    /// Walks through an inner table so many times before it goes on.
    pub(super) fn enter(&mut self, parts: &'static [Part], times: u64) {
        if times > 0 {
            self.stack.push(Frame {
                parts,
                next: 0,
                times,
            });
        }
    }

    pub(super) fn note(&mut self, number: u64) {
        if let Some(place) = self.numbers.get_mut(self.number_count) {
            *place = number;
            self.number_count += 1;
        }
    }

    #[inline]
    pub(super) fn pass_text(&mut self, head: TextHead) {
        let (form, bytes) = match head {
            TextHead::Plain(bytes) => (TextForm::Plain, bytes),
            TextHead::Integer(_) => (TextForm::Integer, 0),
            TextHead::Compressed(bytes, _) => (TextForm::Compressed, bytes),
        };
        self.first_text.get_or_insert(form);
        self.left = bytes;
        self.done();
    }

    /// Begins to keep the text at this byte.
    pub(super) fn keep_text(&mut self, head: TextHead, at: u64) {
        let kept = &mut self.kept[self.kept_count.min(1)];
        kept.text.clear();
        self.compressed.clear();
        let (whole, left, compressed_bytes) = match head {
            TextHead::Plain(bytes) => (bytes, bytes, None),
            TextHead::Compressed(stored, whole) => (whole, stored, Some(stored)),
            TextHead::Integer(number) => {
                kept.text.extend_from_slice(number.to_string().as_bytes());
                (kept.text.len() as u64, 0, None)
            }
        };
        kept.whole = whole;
        self.left = left;
        self.keeping = Some(Keeping {
            at,
            compressed_bytes,
        });
        self.done();
    }

    /// Passes over, or keeps, what is left before the next part; `false` where more bytes are needed.
    #[inline]
    pub(super) fn pass(&mut self, feed: &mut Feed<'_>) -> bool {
        let rest = feed.rest();
        let taken = usize::try_from(self.left).map_or(rest.len(), |left| left.min(rest.len()));
        if let Some(keeping) = self.keeping {
            self.keep(keeping, &rest[..taken]);
        }
        feed.at += taken;
        self.left -= taken as u64;
        self.left == 0
    }

    fn keep(&mut self, keeping: Keeping, bytes: &[u8]) {
        let (place, bytes_max) = match keeping.compressed_bytes {
            Some(_) => (&mut self.compressed, COMPRESSED_BYTES_MAX),
            None => (&mut self.kept[self.kept_count.min(1)].text, NAME_BYTES_MAX),
        };
        let room = bytes_max - place.len();
        place.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Ends the text that was being kept, if there was one.
    #[inline]
    pub(super) fn end_kept(&mut self) -> Result<(), ScanError> {
        match self.keeping.take() {
            None => Ok(()),
            Some(keeping) => self.end(keeping),
        }
    }

    fn end(&mut self, keeping: Keeping) -> Result<(), ScanError> {
        let kept = &mut self.kept[self.kept_count.min(1)];
        self.kept_count += 1;
        let Some(stored) = keeping.compressed_bytes else {
            return Ok(());
        };
        let expanded = lzf::expand(&self.compressed, NAME_BYTES_MAX, &mut kept.text);
        let complete = self.compressed.len() as u64 == stored;
        let expected = kept.whole.min(NAME_BYTES_MAX as u64);
        let length = kept.text.len() as u64;
        if expanded.is_err() || length > expected || (complete && length < expected) {
            return Err(ScanError::Damaged {
                at: keeping.at,
                what: "a compressed text does not expand to what it says",
            });
        }
        Ok(())
    }
}
