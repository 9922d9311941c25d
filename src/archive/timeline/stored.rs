//! What is stored under one timeline: snapshots, segments, and the contiguous stretches that they make.

use std::collections::BTreeMap;

use crate::archive::layout::{ObjectName, Span, TimelineDocument};
use crate::position::{Offset, ReplicationId, TimelineSeq, UnixMillis};

/// A complete snapshot, as its names tell it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotEntry {
    /// The name of the object that ends it: the only one, or the last part.
    pub name: ObjectName,
    /// The parts before that one, in order, each with its stored size in bytes. None where it is one object.
    pub parts: Vec<(ObjectName, u64)>,
    /// The position it holds, on its own timeline.
    pub offset: Offset,
    /// When it was taken.
    pub at: UnixMillis,
    /// It was made by replaying the archive, not by a server that was followed: only the archive says that it is right.
    pub derived: bool,
    /// Stored size in bytes, all parts together.
    pub bytes: u64,
}

impl SnapshotEntry {
    /// The object that ends it, with its stored size in bytes.
    pub fn last_object(&self) -> (ObjectName, u64) {
        let before: u64 = self.parts.iter().map(|(_, bytes)| bytes).sum();
        (self.name.clone(), self.bytes - before)
    }

    /// All its objects in order, each with its stored size in bytes.
    pub fn objects(&self) -> Vec<(ObjectName, u64)> {
        let mut objects = self.parts.clone();
        objects.push(self.last_object());
        objects
    }
}

/// What is there of a snapshot that is not complete.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// The timeline's number and replication id.
    pub timeline: (TimelineSeq, ReplicationId),
    /// The position that it would hold, on its own timeline.
    pub offset: Offset,
    /// When it was begun.
    pub at: UnixMillis,
    /// Its parts in order, each with its stored size in bytes.
    pub objects: Vec<(ObjectName, u64)>,
}

/// The parts of one snapshot, by number: name, stored size in bytes, and whether it is the last one.
#[derive(Debug, Default)]
pub(super) struct Parts(pub(super) BTreeMap<u32, Vec<(ObjectName, u64, bool)>>);

impl Parts {
    pub(super) fn objects(&self) -> Vec<(ObjectName, u64)> {
        let parts = self.0.values().flatten();
        parts
            .map(|(name, bytes, _)| (name.clone(), *bytes))
            .collect()
    }

    /// The whole snapshot, or what is wrong with it.
    pub(super) fn entry(
        self,
        offset: Offset,
        at: UnixMillis,
        derived: bool,
    ) -> Result<SnapshotEntry, String> {
        let Some(last) = self.0.keys().next_back().copied() else {
            return Err("nothing of it is there".into());
        };
        let mut objects = Vec::new();
        for number in 1..=last {
            match self.0.get(&number).map(Vec::as_slice) {
                Some([(name, bytes, is_last)]) if *is_last == (number == last) => {
                    objects.push((name.clone(), *bytes));
                }
                Some([_]) if number == last => {
                    return Err("its last part is not there (yet)".into());
                }
                Some(_) => return Err(format!("part {number} ends it and is not the last one")),
                None => return Err(format!("part {number} is missing")),
            }
        }
        let bytes = objects.iter().map(|(_, bytes)| bytes).sum();
        let (name, _) = objects.pop().ok_or("nothing of it is there")?;
        Ok(SnapshotEntry {
            name,
            parts: objects,
            offset,
            at,
            derived,
            bytes,
        })
    }
}

/// A segment, as its name tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentEntry {
    /// The object's name.
    pub name: ObjectName,
    /// What it covers.
    pub span: Span,
    /// Stored size in bytes.
    pub bytes: u64,
}

/// A contiguous stretch of the replication stream: the bytes in `(after, last]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The offset before the first byte.
    pub after: Offset,
    /// The last byte.
    pub last: Offset,
}

/// Bytes that no stored object holds, between two stretches that are there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    /// The last byte that is there before the hole.
    pub after: Offset,
    /// The position at which coverage goes on: a snapshot, or the offset before the first byte of a run.
    pub resumes_at: Offset,
}

/// One timeline and everything stored under it.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// What was said of it when it was created.
    pub document: TimelineDocument,
    /// Its rank among acceptances, where `perennial accept` chose it: (highest number then, order).
    pub accepted: Option<(TimelineSeq, u32)>,
    /// When that was, where it was looked up: it was chosen over what was there then.
    pub accepted_at: Option<UnixMillis>,
    /// Complete snapshots, by offset.
    pub snapshots: Vec<SnapshotEntry>,
    /// Segments, by first byte.
    pub segments: Vec<SegmentEntry>,
    /// The last command boundary outside MULTI at or before the end, where it differs from the end and the
    /// blocks have been looked at.
    pub(super) boundary: Option<Offset>,
    pub(super) runs: Vec<Run>,
    /// Its start can be restored from its parent.
    pub(super) inherited: bool,
    /// The timeline, itself or an ancestor, whose suspicion it bears.
    pub(super) suspected_with: Option<TimelineSeq>,
}

impl Timeline {
    pub(super) fn new(document: TimelineDocument) -> Self {
        Self {
            document,
            accepted: None,
            accepted_at: None,
            snapshots: Vec::new(),
            segments: Vec::new(),
            boundary: None,
            runs: Vec::new(),
            inherited: false,
            suspected_with: None,
        }
    }

    /// Its number.
    pub fn seq(&self) -> TimelineSeq {
        self.document.seq
    }

    /// Its replication id.
    pub fn id(&self) -> ReplicationId {
        self.document.id
    }

    /// Contiguous stretches of the replication stream, in order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// When the last byte that is stored here was received; creation time where nothing is.
    pub fn last_at(&self) -> UnixMillis {
        let segments = self.segments.iter().map(|entry| entry.span.last_at);
        let snapshots = self.snapshots.iter().map(|entry| entry.at);
        segments
            .chain(snapshots)
            .max()
            .unwrap_or(self.document.created_at)
    }

    /// How far the stream reaches without a hole from `base`.
    pub(super) fn reach(&self, base: Offset) -> Offset {
        let run = self
            .runs
            .iter()
            .find(|run| run.after <= base && base <= run.last);
        run.map_or(base, |run| run.last)
    }

    pub(super) fn finish(&mut self) {
        // Of several at one place a plan takes the last: rather one that a server made itself.
        self.snapshots
            .sort_by_key(|entry| (entry.offset, !entry.derived, entry.at));
        sort_segments(&mut self.segments);
        self.runs = merge_runs(self.segments.iter().map(|entry| Run {
            after: entry.span.first.previous(),
            last: entry.span.last,
        }));
    }

    /// Whether anything is stored under it.
    pub fn has_content(&self) -> bool {
        !self.snapshots.is_empty() || !self.segments.is_empty()
    }

    /// Of two under one number, the heavier one counts.
    pub(super) fn weight(&self) -> (bool, bool) {
        (self.has_content(), self.document.mapped)
    }
}

/// Sorts by the first byte; of those that begin together the longest comes first, of equal ones the smaller name.
pub fn sort_segments(segments: &mut [SegmentEntry]) {
    segments.sort_by(|a, b| {
        (a.span.first, std::cmp::Reverse(a.span.last), &a.name).cmp(&(
            b.span.first,
            std::cmp::Reverse(b.span.last),
            &b.name,
        ))
    });
}

/// Joins stretches that touch or overlap. `runs` come sorted by their start.
pub(super) fn merge_runs(runs: impl Iterator<Item = Run>) -> Vec<Run> {
    let mut merged: Vec<Run> = Vec::new();
    for run in runs {
        match merged.last_mut() {
            Some(last) if run.after <= last.last => last.last = last.last.max(run.last),
            _ => merged.push(run),
        }
    }
    merged
}
