//! The small items of which a dump's structure is made, each read from the bytes at hand or not at all.

use super::Numbering;

/// The longest atom, in bytes: the head of a compressed text, whose two lengths take nine bytes each.
pub(super) const ATOM_BYTES_MAX: usize = 19;

/// The length of magic and version together, in bytes.
const MAGIC_BYTES: usize = 9;

/// By how much compression can have made a text shorter: a reference of three bytes stands for 264.
const EXPANSION_MAX: u64 = 264 / 3;

/// What became of reading an item.
pub(super) enum Atom<T> {
    /// It is this, in so many bytes.
    Is(T, usize),
    /// More bytes are needed.
    More,
    /// It cannot be one.
    Bad(&'static str),
}

/// The head of a text: what follows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TextHead {
    /// So many bytes.
    Plain(u64),
    /// Nothing: it is the decimal form of this.
    Integer(i32),
    /// So many bytes of LZF, which become so many.
    Compressed(u64, u64),
}

/// `REDIS0011`, `VALKEY080`.
pub(super) fn magic(bytes: &[u8]) -> Atom<(Numbering, u32)> {
    let head = &bytes[..bytes.len().min(MAGIC_BYTES)];
    let (numbering, word): (_, &[u8]) = if head.starts_with(b"V") {
        (Numbering::Valkey, b"VALKEY")
    } else {
        (Numbering::Redis, b"REDIS")
    };
    let (begin, digits) = head.split_at(head.len().min(word.len()));
    if begin != &word[..begin.len()] || !digits.iter().all(u8::is_ascii_digit) {
        return Atom::Bad("neither REDIS nor VALKEY and a version");
    }
    if head.len() < MAGIC_BYTES {
        return Atom::More;
    }
    let version = digits
        .iter()
        .fold(0, |number, digit| number * 10 + u32::from(digit - b'0'));
    if version == 0 {
        return Atom::Bad("version zero");
    }
    Atom::Is((numbering, version), MAGIC_BYTES)
}

/// An integer of `N` bytes, the lowest first.
pub(super) fn integer<const N: usize>(bytes: &[u8]) -> Atom<u64> {
    let Some(taken) = bytes.first_chunk::<N>() else {
        return Atom::More;
    };
    let value = taken
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte));
    Atom::Is(value, N)
}

/// A length: six bits, fourteen bits, four bytes or eight, the highest first.
pub(super) fn length(bytes: &[u8]) -> Atom<u64> {
    let Some(first) = bytes.first() else {
        return Atom::More;
    };
    let low = u64::from(first & 0x3f);
    match (first >> 6, first) {
        (0, _) => Atom::Is(low, 1),
        (1, _) => match bytes.get(1) {
            Some(next) => Atom::Is(low << 8 | u64::from(*next), 2),
            None => Atom::More,
        },
        (_, 0x80) => match bytes[1..].first_chunk() {
            Some(value) => Atom::Is(u64::from(u32::from_be_bytes(*value)), 5),
            None => Atom::More,
        },
        (_, 0x81) => match bytes[1..].first_chunk() {
            Some(value) => Atom::Is(u64::from_be_bytes(*value), 9),
            None => Atom::More,
        },
        _ => Atom::Bad("no length begins like this"),
    }
}

/// The head of a text.
#[inline]
pub(super) fn text_head(bytes: &[u8]) -> Atom<TextHead> {
    let Some(first) = bytes.first() else {
        return Atom::More;
    };
    let rest = &bytes[1..];
    match first {
        0xc0 => match rest.first_chunk() {
            Some(value) => Atom::Is(TextHead::Integer(i8::from_le_bytes(*value).into()), 2),
            None => Atom::More,
        },
        0xc1 => match rest.first_chunk() {
            Some(value) => Atom::Is(TextHead::Integer(i16::from_le_bytes(*value).into()), 3),
            None => Atom::More,
        },
        0xc2 => match rest.first_chunk() {
            Some(value) => Atom::Is(TextHead::Integer(i32::from_le_bytes(*value)), 5),
            None => Atom::More,
        },
        0xc3 => compressed(rest),
        _ => match length(bytes) {
            Atom::Is(length, used) => Atom::Is(TextHead::Plain(length), used),
            Atom::More => Atom::More,
            Atom::Bad(_) => Atom::Bad("no text begins like this"),
        },
    }
}

/// The two lengths of a compressed text.
fn compressed(bytes: &[u8]) -> Atom<TextHead> {
    let (stored, used) = match length(bytes) {
        Atom::Is(stored, used) => (stored, used),
        Atom::More => return Atom::More,
        Atom::Bad(what) => return Atom::Bad(what),
    };
    let (whole, used) = match length(&bytes[used..]) {
        Atom::Is(whole, more) => (whole, used + more),
        Atom::More => return Atom::More,
        Atom::Bad(what) => return Atom::Bad(what),
    };
    if whole == 0 || whole > stored.saturating_mul(EXPANSION_MAX) {
        return Atom::Bad("a compressed text cannot become as long as it says");
    }
    Atom::Is(TextHead::Compressed(stored, whole), 1 + used)
}
