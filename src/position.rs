//! The words all parts share: replication ids, offsets, timelines, positions and times.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, UNIX_EPOCH};

/// A replication offset: names the last byte that is included, so the next byte asked of a master is
/// `offset + 1` (`protocol-facts` 1.1: the first byte after a payload has offset `<offset> + 1`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Offset(u64);

impl Offset {
    /// The offset before the first byte of any history.
    pub const ZERO: Self = Self(0);

    /// Wraps a number taken from the wire or from an object name.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The number as the wire spells it.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The offset of the first byte that is not included.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The offset before this byte: what is included when this byte is the first that is not.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The offset after `bytes` more bytes. Saturates: bytes from the wire never panic.
    #[must_use]
    pub const fn plus(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// How many bytes lie in `(earlier, self]`; zero where `earlier` is not earlier.
    pub const fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}", self.0)
    }
}

/// A replication id: forty hexadecimal digits that name one history of writes. Compared without regard to
/// case (`protocol-facts` 1.1), so it is kept as twenty raw bytes and printed in lower case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicationId([u8; 20]);

impl ReplicationId {
    /// Wraps the raw bytes as the archive stores them.
    pub const fn from_raw(raw: [u8; 20]) -> Self {
        Self(raw)
    }

    /// The raw bytes as the archive stores them.
    pub const fn raw(&self) -> &[u8; 20] {
        &self.0
    }

    /// `true` for the id of forty zeros, with which INFO says "there is no second id".
    pub fn is_none(&self) -> bool {
        self.0 == [0; 20]
    }
}

/// The text is not forty hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a replication id has forty hexadecimal digits")]
pub struct NotAReplicationId;

impl FromStr for ReplicationId {
    type Err = NotAReplicationId;

    fn from_str(text: &str) -> Result<Self, NotAReplicationId> {
        let digits = text.as_bytes();
        if digits.len() != 40 {
            return Err(NotAReplicationId);
        }
        let mut raw = [0; 20];
        for (byte, pair) in raw.iter_mut().zip(digits.chunks_exact(2)) {
            let high = char::from(pair[0]).to_digit(16).ok_or(NotAReplicationId)?;
            let low = char::from(pair[1]).to_digit(16).ok_or(NotAReplicationId)?;
            *byte = u8::try_from(high << 4 | low).map_err(|_| NotAReplicationId)?;
        }
        Ok(Self(raw))
    }
}

impl fmt::Display for ReplicationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ReplicationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The number of a timeline: highest + 1 at creation, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TimelineSeq(u32);

impl TimelineSeq {
    /// The first timeline of an archive.
    pub const FIRST: Self = Self(1);

    /// Wraps a number taken from an object name.
    pub const fn new(value: u32) -> Self {
        Self(value)
    }

    /// The number as the object names spell it.
    pub const fn as_u32(self) -> u32 {
        self.0
    }

    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for TimelineSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A moment of the data set: everything up to and including `offset` on one timeline.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Position {
    /// The timeline that the offset counts on.
    pub timeline: TimelineSeq,
    /// The last byte included.
    pub offset: Offset,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "timeline {} offset {}", self.timeline, self.offset)
    }
}

/// Milliseconds since the Unix epoch, as some clock gave them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// The last one that is printed as it is: thirteen digits, in the year 2286.
    const PRINTED_MAX: u64 = 9_999_999_999_999;
}

/// As RFC 3339, in UTC.
impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = Duration::from_millis(self.0.min(Self::PRINTED_MAX));
        humantime::format_rfc3339_millis(UNIX_EPOCH + since).fmt(f)
    }
}

/// Milliseconds on a clock that never goes back; only differences mean something.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Ticks(pub u64);

impl Ticks {
    /// The moment `millis` later.
    #[must_use]
    pub const fn plus(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// Milliseconds since `earlier`; zero where `earlier` is not earlier.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replication_ids_are_read_without_regard_to_case_and_printed_in_lower_case() {
        let id: ReplicationId = "0123456789ABCDEF0123456789abcdef01234567".parse().unwrap();
        assert_eq!(id.to_string(), "0123456789abcdef0123456789abcdef01234567");
        assert!("0123".parse::<ReplicationId>().is_err());
        assert!(
            "z123456789abcdef0123456789abcdef01234567"
                .parse::<ReplicationId>()
                .is_err()
        );
    }

    #[test]
    fn times_are_printed_for_people() {
        let printed = |millis| UnixMillis(millis).to_string();
        assert_eq!(printed(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(printed(u64::MAX), printed(9_999_999_999_999));
    }

    #[test]
    fn offsets_saturate_instead_of_panicking() {
        assert_eq!(Offset::new(u64::MAX).plus(9), Offset::new(u64::MAX));
        assert_eq!(Offset::new(3).bytes_since(Offset::new(9)), 0);
    }
}
