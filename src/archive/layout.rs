//! Object names, made and parsed: the only place that knows them. What the objects hold is left to the
//! modules beside this one.
//!
//! Names describe themselves, so that LIST is the only index. Numbers are padded, so that the order of the
//! names as bytes is the order of what they name.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::position::{Offset, ReplicationId, TimelineSeq, UnixMillis};

pub use super::document::{
    AcceptedDocument, ArchiveDocument, DOCUMENT_FORMAT, DocumentError, Source, TimelineDocument,
    is_name_right,
};

/// The longest object name, in bytes. Every name made here is far shorter.
pub const OBJECT_NAME_BYTES_MAX: usize = 512;

/// The latest time that a name can spell in its thirteen digits, in milliseconds since the Unix epoch (the
/// year 2286). A clock beyond it is taken down to it, so that names keep their order.
pub const UNIX_MILLIS_MAX: UnixMillis = UnixMillis(9_999_999_999_999);

const ARCHIVE: &str = "archive.json";
const TIMELINES: &str = "timelines/";
const TIMELINE: &str = "timeline.json";
const ACCEPTED: &str = "accepted-";
const SNAPSHOTS: &str = "snapshots/";
const SEGMENTS: &str = "segments/";
const MERGED: &str = "merged/";
const DOCUMENT_SUFFIX: &str = ".json";
/// Behind the time of a snapshot that was made from the archive.
const DERIVED: &str = "-derived";
const SNAPSHOT_SUFFIX: &str = ".rdb.blocks";
const SEGMENT_SUFFIX: &str = ".blocks";

/// Between the number of a part and the suffix: it is the last one, and bears the end block.
const LAST_PART: &str = "-end";

/// The highest number that a part of a snapshot may bear.
pub const PART_MAX: u32 = 9_999;

const NUMBER_DIGITS: usize = 8;
const PART_DIGITS: usize = 4;
const OFFSET_DIGITS: usize = 20;
const MILLIS_DIGITS: usize = 13;

/// What is created to see whether a store creates conditionally.
pub const PROBE: &str = ".perennial-probe";

/// A name inside an archive: parts of letters, digits, `.`, `_` and `-`, joined by `/`. No part is empty or
/// begins with a dot, so a name never leaves its folder and never hides.
///
/// Clones share the text: an archive has hundreds of thousands of names, and each is in several plans.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(Arc<str>);

/// The text is not the name of an object.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{name:?} is not an object name: {reason}")]
pub struct NotAnObjectName {
    /// The text, cut where it is very long.
    pub name: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl ObjectName {
    /// Checks `name`.
    ///
    /// # Errors
    /// [`NotAnObjectName`] where it is empty, longer than [`OBJECT_NAME_BYTES_MAX`], or has a part that is
    /// empty, begins with a dot or holds other characters.
    pub fn new(name: &str) -> Result<Self, NotAnObjectName> {
        let wrong = |reason| NotAnObjectName {
            name: name.chars().take(80).collect(),
            reason,
        };
        if name.is_empty() {
            return Err(wrong("it is empty"));
        }
        if name.len() > OBJECT_NAME_BYTES_MAX {
            return Err(wrong("it is longer than 512 bytes"));
        }
        for part in name.split('/') {
            if part.is_empty() {
                return Err(wrong("a part between slashes is empty"));
            }
            if part.starts_with('.') {
                return Err(wrong("a part begins with a dot"));
            }
            if !part.bytes().all(is_name_byte) {
                return Err(wrong("only letters, digits, '.', '_', '-' and '/' may be"));
            }
        }
        Ok(Self(name.into()))
    }

    /// The probe that `prepare` and `check` create and delete. It begins with a dot, so no list of an archive shows
    /// it, and no object of an archive can have its name.
    pub fn probe() -> Self {
        Self(PROBE.into())
    }

    /// Whether it is [`Self::probe`].
    pub fn is_probe(&self) -> bool {
        &*self.0 == PROBE
    }

    /// The name as stores spell it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for ObjectName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Sixteen random bytes that name one archive. Every block carries them, so that an object copied from
/// another archive is noticed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArchiveId([u8; 16]);

/// The text is not thirty-two hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an archive id has thirty-two hexadecimal digits")]
pub struct NotAnArchiveId;

impl ArchiveId {
    /// Wraps sixteen bytes, which the caller took from a source of randomness or from a block.
    pub const fn from_raw(raw: [u8; 16]) -> Self {
        Self(raw)
    }

    /// The bytes as blocks store them.
    pub const fn raw(&self) -> &[u8; 16] {
        &self.0
    }
}

impl std::str::FromStr for ArchiveId {
    type Err = NotAnArchiveId;

    fn from_str(text: &str) -> Result<Self, NotAnArchiveId> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NotAnArchiveId);
        }
        u128::from_str_radix(text, 16)
            .map(|value| Self(value.to_be_bytes()))
            .map_err(|_| NotAnArchiveId)
    }
}

impl fmt::Display for ArchiveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for ArchiveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ArchiveId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ArchiveId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a segment covers: bytes `first..=last` of the replication stream, received between two times.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Span {
    /// The offset of the first byte.
    pub first: Offset,
    /// The offset of the last byte.
    pub last: Offset,
    /// When the first bytes were received, as the clock gave it.
    pub first_at: UnixMillis,
    /// When the last bytes were received, as the clock gave it: earlier than `first_at` where the clock was
    /// set back.
    pub last_at: UnixMillis,
}

impl Span {
    /// How many bytes of the replication stream it covers; zero where `last` lies before `first`.
    pub const fn bytes(&self) -> u64 {
        self.last.next().bytes_since(self.first)
    }
}

/// What an object is, as its name says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Object {
    /// The archive's own document.
    Archive,
    /// A timeline's document.
    Timeline {
        /// The timeline's number.
        seq: TimelineSeq,
        /// Its replication id.
        id: ReplicationId,
    },
    /// The note that a suspect timeline was accepted as the head.
    Accepted {
        /// The timeline's number.
        seq: TimelineSeq,
        /// Its replication id.
        id: ReplicationId,
        /// The highest timeline number when it was accepted.
        rank: TimelineSeq,
        /// Which acceptance at that rank it is: the later one counts.
        order: u32,
    },
    /// An RDB payload.
    Snapshot {
        /// The timeline's number.
        seq: TimelineSeq,
        /// Its replication id.
        id: ReplicationId,
        /// The last byte of the replication stream that the payload includes.
        offset: Offset,
        /// When it was taken.
        at: UnixMillis,
        /// No server that was followed made it, but one that was filled from the archive.
        derived: bool,
    },
    /// A part of an RDB payload that is too large for one object.
    SnapshotPart {
        /// The timeline's number.
        seq: TimelineSeq,
        /// Its replication id.
        id: ReplicationId,
        /// The last byte of the replication stream that the payload includes.
        offset: Offset,
        /// When it was taken.
        at: UnixMillis,
        /// As of a snapshot in one object.
        derived: bool,
        /// Which part it is, from 1 to [`PART_MAX`].
        part: u32,
        /// Whether it is the last one, which bears the end block: never the first.
        last: bool,
    },
    /// A contiguous piece of the replication stream.
    Segment {
        /// The timeline's number.
        seq: TimelineSeq,
        /// Its replication id.
        id: ReplicationId,
        /// What it covers.
        span: Span,
        /// Whether upkeep made it out of others.
        merged: bool,
    },
}

impl Object {
    /// The object's name.
    ///
    /// Numbers beyond the digits of a name (timeline 100 000 000 and later) widen it, and [`Object::parse`]
    /// does not know the result; times are taken down to [`UNIX_MILLIS_MAX`].
    pub fn name(&self) -> ObjectName {
        ObjectName(self.text().into())
    }

    fn text(&self) -> String {
        match self {
            Self::Archive => ARCHIVE.to_owned(),
            Self::Timeline { seq, id } => timeline_prefix(*seq, id) + TIMELINE,
            Self::Accepted {
                seq,
                id,
                rank,
                order,
            } => format!(
                "{}{ACCEPTED}{:0NUMBER_DIGITS$}-{order:0NUMBER_DIGITS$}{DOCUMENT_SUFFIX}",
                timeline_prefix(*seq, id),
                rank.as_u32(),
            ),
            Self::Snapshot {
                seq,
                id,
                offset,
                at,
                derived,
            } => format!(
                "{}{:0OFFSET_DIGITS$}-{:0MILLIS_DIGITS$}{}{SNAPSHOT_SUFFIX}",
                snapshots_prefix(*seq, id),
                offset.as_u64(),
                at.min(&UNIX_MILLIS_MAX).0,
                if *derived { DERIVED } else { "" },
            ),
            Self::SnapshotPart {
                seq,
                id,
                offset,
                at,
                derived,
                part,
                last,
            } => format!(
                "{}{:0OFFSET_DIGITS$}-{:0MILLIS_DIGITS$}{}-{part:0PART_DIGITS$}{}{SNAPSHOT_SUFFIX}",
                snapshots_prefix(*seq, id),
                offset.as_u64(),
                at.min(&UNIX_MILLIS_MAX).0,
                if *derived { DERIVED } else { "" },
                if *last { LAST_PART } else { "" },
            ),
            Self::Segment {
                seq,
                id,
                span,
                merged,
            } => format!(
                "{}{:0OFFSET_DIGITS$}-{:0OFFSET_DIGITS$}-{:0MILLIS_DIGITS$}-{:0MILLIS_DIGITS$}{SEGMENT_SUFFIX}",
                if *merged {
                    merged_prefix(*seq, id)
                } else {
                    segments_prefix(*seq, id)
                },
                span.first.as_u64(),
                span.last.as_u64(),
                span.first_at.min(UNIX_MILLIS_MAX).0,
                span.last_at.min(UNIX_MILLIS_MAX).0,
            ),
        }
    }

    /// Whether the name of a segment is that of a merged one. Quicker than [`Self::parse`], for names that came out of it.
    pub fn is_merged_segment(name: &ObjectName) -> bool {
        let in_timeline = name.as_str().strip_prefix(TIMELINES);
        let object = in_timeline.and_then(|rest| rest.split_once('/'));
        object.is_some_and(|(_, object)| object.starts_with(MERGED))
    }

    /// What `name` names, or `None` for a name that is not made here: readers pass over such objects.
    pub fn parse(name: &str) -> Option<Self> {
        if name.len() > OBJECT_NAME_BYTES_MAX {
            return None;
        }
        let object = if name == ARCHIVE {
            Self::Archive
        } else {
            Self::parse_in_timeline(name.strip_prefix(TIMELINES)?)?
        };
        // One object, one name: what differs in case or in a sign is not ours.
        (object.text() == name).then_some(object)
    }

    fn parse_in_timeline(name: &str) -> Option<Self> {
        let (timeline, rest) = name.split_once('/')?;
        let (seq, id) = timeline.split_once('-')?;
        let seq = TimelineSeq::new(number(seq, NUMBER_DIGITS)?.try_into().ok()?);
        let id = id.parse().ok()?;
        if rest == TIMELINE {
            return Some(Self::Timeline { seq, id });
        }
        if let Some(accepted) = rest.strip_prefix(ACCEPTED) {
            let (rank, order) = accepted.strip_suffix(DOCUMENT_SUFFIX)?.split_once('-')?;
            return Some(Self::Accepted {
                seq,
                id,
                rank: TimelineSeq::new(number(rank, NUMBER_DIGITS)?.try_into().ok()?),
                order: number(order, NUMBER_DIGITS)?.try_into().ok()?,
            });
        }
        if let Some(snapshot) = rest.strip_prefix(SNAPSHOTS) {
            let (offset, rest) = snapshot.strip_suffix(SNAPSHOT_SUFFIX)?.split_once('-')?;
            let offset = Offset::new(number(offset, OFFSET_DIGITS)?);
            let (at, rest) = rest.split_at_checked(MILLIS_DIGITS)?;
            let at = UnixMillis(number(at, MILLIS_DIGITS)?);
            let (derived, rest) = match rest.strip_prefix(DERIVED) {
                Some(rest) => (true, rest),
                None => (false, rest),
            };
            if rest.is_empty() {
                return Some(Self::Snapshot {
                    seq,
                    id,
                    offset,
                    at,
                    derived,
                });
            }
            let part = rest.strip_prefix('-')?;
            let (part, last) = match part.strip_suffix(LAST_PART) {
                Some(part) => (part, true),
                None => (part, false),
            };
            let part = number(part, PART_DIGITS)?.try_into().ok()?;
            let first = if last { 2 } else { 1 };
            return (part >= first).then_some(Self::SnapshotPart {
                seq,
                id,
                offset,
                at,
                derived,
                part,
                last,
            });
        }
        let (merged, segment) = match rest.strip_prefix(SEGMENTS) {
            Some(segment) => (false, segment),
            None => (true, rest.strip_prefix(MERGED)?),
        };
        let span = parse_span(segment.strip_suffix(SEGMENT_SUFFIX)?)?;
        Some(Self::Segment {
            seq,
            id,
            span,
            merged,
        })
    }

    /// The word for this kind of object in messages.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Archive => "archive document",
            Self::Timeline { .. } => "timeline document",
            Self::Accepted { .. } => "acceptance",
            Self::Snapshot { derived: false, .. } => "snapshot",
            Self::Snapshot { derived: true, .. } => "derived snapshot",
            Self::SnapshotPart { .. } => "part of a snapshot",
            Self::Segment { merged: false, .. } => "segment",
            Self::Segment { merged: true, .. } => "merged segment",
        }
    }

    /// The part of a snapshot that comes behind this one. `None` where there is none, or no number is left.
    pub fn part_behind(&self, ends: bool) -> Option<Self> {
        match *self {
            Self::SnapshotPart {
                seq,
                id,
                offset,
                at,
                derived,
                part,
                last: false,
            } if part < PART_MAX => Some(Self::SnapshotPart {
                seq,
                id,
                offset,
                at,
                derived,
                part: part + 1,
                last: ends,
            }),
            _ => None,
        }
    }

    /// Whether it is a snapshot, or a part of one.
    pub const fn is_snapshot(&self) -> bool {
        matches!(self, Self::Snapshot { .. } | Self::SnapshotPart { .. })
    }

    /// The timeline's number and replication id; `None` for the archive's own document.
    pub const fn timeline(&self) -> Option<(TimelineSeq, ReplicationId)> {
        match self {
            Self::Archive => None,
            Self::Timeline { seq, id }
            | Self::Accepted { seq, id, .. }
            | Self::Snapshot { seq, id, .. }
            | Self::SnapshotPart { seq, id, .. }
            | Self::Segment { seq, id, .. } => Some((*seq, *id)),
        }
    }
}

/// A span of at least one byte, behind offset 0 (which is before any byte) and below the highest number
/// (behind which none could follow).
fn parse_span(text: &str) -> Option<Span> {
    let mut parts = text.split('-');
    let span = Span {
        first: Offset::new(number(parts.next()?, OFFSET_DIGITS)?),
        last: Offset::new(number(parts.next()?, OFFSET_DIGITS)?),
        first_at: UnixMillis(number(parts.next()?, MILLIS_DIGITS)?),
        last_at: UnixMillis(number(parts.next()?, MILLIS_DIGITS)?),
    };
    let in_range = Offset::ZERO < span.first && span.last < Offset::new(u64::MAX);
    (parts.next().is_none() && in_range && span.first <= span.last).then_some(span)
}

fn number(text: &str, digits: usize) -> Option<u64> {
    if text.len() != digits || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// Where all timelines lie.
pub const fn timelines_prefix() -> &'static str {
    TIMELINES
}

/// Where every timeline of one number lies: one, unless two creators raced for it.
pub fn timeline_number_prefix(seq: TimelineSeq) -> String {
    format!("{TIMELINES}{:0NUMBER_DIGITS$}-", seq.as_u32())
}

/// Behind which every timeline of a higher number lies, and none of this or a lower one.
pub fn timelines_after(seq: TimelineSeq) -> String {
    format!("{TIMELINES}{:0NUMBER_DIGITS$}", seq.next().as_u32())
}

/// Where everything of one timeline lies.
pub fn timeline_prefix(seq: TimelineSeq, id: &ReplicationId) -> String {
    format!("{TIMELINES}{:0NUMBER_DIGITS$}-{id}/", seq.as_u32())
}

/// Where the acceptances of one timeline lie.
pub fn accepted_prefix(seq: TimelineSeq, id: &ReplicationId) -> String {
    timeline_prefix(seq, id) + ACCEPTED
}

/// Where the snapshots of one timeline lie.
pub fn snapshots_prefix(seq: TimelineSeq, id: &ReplicationId) -> String {
    timeline_prefix(seq, id) + SNAPSHOTS
}

/// Where the segments of one timeline lie.
pub fn segments_prefix(seq: TimelineSeq, id: &ReplicationId) -> String {
    timeline_prefix(seq, id) + SEGMENTS
}

/// Where the merged segments of one timeline lie.
pub fn merged_prefix(seq: TimelineSeq, id: &ReplicationId) -> String {
    timeline_prefix(seq, id) + MERGED
}

#[cfg(test)]
mod tests;
