//! The tree of timelines that a listing describes: what is covered, what can be restored, which end is the
//! head. Pure values; reading them through a store is `store::catalog`'s work.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::archive::layout::{ArchiveDocument, Object, ObjectName, Span, TimelineDocument};
use crate::position::{Offset, Position, ReplicationId, TimelineSeq, UnixMillis};

/// How long ago two branches may both have moved before a seed refuses to choose between them.
pub const CONTESTED_MILLIS: u64 = 5 * 60 * 1000;

/// Bytes that arrived this much later than an acceptance were on their way when it was made.
const ACCEPTED_MARGIN_MILLIS: u64 = 2_000;

/// A complete snapshot, as its name tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotEntry {
    /// The object's name.
    pub name: ObjectName,
    /// The position it holds, on its own timeline.
    pub offset: Offset,
    /// When it was taken.
    pub at: UnixMillis,
    /// Stored size in bytes.
    pub bytes: u64,
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
    boundary: Option<Offset>,
    runs: Vec<Run>,
}

impl Timeline {
    fn new(document: TimelineDocument) -> Self {
        Self {
            document,
            accepted: None,
            accepted_at: None,
            snapshots: Vec::new(),
            segments: Vec::new(),
            boundary: None,
            runs: Vec::new(),
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

    /// Stored bytes of everything under this timeline.
    pub fn stored_bytes(&self) -> u64 {
        let segments = self.segments.iter().map(|entry| entry.bytes);
        segments
            .chain(self.snapshots.iter().map(|entry| entry.bytes))
            .sum()
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
    fn reach(&self, base: Offset) -> Offset {
        let run = self
            .runs
            .iter()
            .find(|run| run.after <= base && base <= run.last);
        run.map_or(base, |run| run.last)
    }

    fn finish(&mut self) {
        self.snapshots.sort_by_key(|entry| (entry.offset, entry.at));
        self.segments.sort_by(|a, b| {
            (a.span.first, std::cmp::Reverse(a.span.last), &a.name).cmp(&(
                b.span.first,
                std::cmp::Reverse(b.span.last),
                &b.name,
            ))
        });
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
    fn weight(&self) -> (bool, bool) {
        (self.has_content(), self.document.mapped)
    }
}

/// Joins stretches that touch or overlap. `runs` come sorted by their start.
fn merge_runs(runs: impl Iterator<Item = Run>) -> Vec<Run> {
    let mut merged: Vec<Run> = Vec::new();
    for run in runs {
        match merged.last_mut() {
            Some(last) if run.after <= last.last => last.last = last.last.max(run.last),
            _ => merged.push(run),
        }
    }
    merged
}

/// Everything a listing and the small documents say about one archive.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    archive: Option<ArchiveDocument>,
    timelines: BTreeMap<TimelineSeq, Timeline>,
    /// The highest number of any folder, counted or not.
    highest: Option<TimelineSeq>,
    /// Things that are wrong with the listing, in plain words.
    pub problems: Vec<String>,
}

impl Catalog {
    /// Builds the tree from what a listing found.
    ///
    /// Two streamers that race for a number can leave two folders with the same one; whoever saw the other
    /// moved on and left an empty folder (see `follow`), so the one with content counts. A mapped one never gets
    /// any, and a server may be half filled under its id: it counts more than an empty one. Given up, it does no
    /// harm: it stands for the same data as its parent's position.
    pub fn new(
        archive: Option<ArchiveDocument>,
        documents: Vec<TimelineDocument>,
        objects: impl IntoIterator<Item = (ObjectName, Object, u64)>,
    ) -> Self {
        let mut folders: BTreeMap<(TimelineSeq, ReplicationId), Timeline> = documents
            .into_iter()
            .map(|document| ((document.seq, document.id), Timeline::new(document)))
            .collect();
        let mut problems = Vec::new();
        let mut highest = folders.keys().map(|(seq, _)| *seq).max();
        for (name, object, bytes) in objects {
            let Some((seq, id)) = object.timeline() else {
                continue;
            };
            highest = highest.max(Some(seq));
            let Some(timeline) = folders.get_mut(&(seq, id)) else {
                if !matches!(object, Object::Timeline { .. }) {
                    problems.push(format!("{name} lies in a timeline without timeline.json"));
                }
                continue;
            };
            match object {
                Object::Snapshot { offset, at, .. } => {
                    timeline.snapshots.push(SnapshotEntry {
                        name,
                        offset,
                        at,
                        bytes,
                    });
                }
                Object::Segment { span, .. } => {
                    timeline.segments.push(SegmentEntry { name, span, bytes })
                }
                Object::Accepted { rank, order, .. } => {
                    timeline.accepted = timeline.accepted.max(Some((rank, order)));
                }
                Object::Archive | Object::Timeline { .. } => {}
            }
        }
        let mut timelines: BTreeMap<TimelineSeq, Timeline> = BTreeMap::new();
        let mut contested: Vec<TimelineSeq> = Vec::new();
        for ((seq, _), mut timeline) in folders {
            timeline.finish();
            let Some(kept) = timelines.get(&seq) else {
                timelines.insert(seq, timeline);
                continue;
            };
            match timeline.weight().cmp(&kept.weight()) {
                Ordering::Less => {}
                Ordering::Greater => {
                    contested.retain(|other| *other != seq);
                    timelines.insert(seq, timeline);
                }
                Ordering::Equal if kept.has_content() => problems.push(format!(
                    "two timelines bear the number {seq}, {} is not used",
                    timeline.id()
                )),
                // Which of the two was given up cannot be told: neither counts.
                Ordering::Equal => contested.push(seq),
            }
        }
        timelines.retain(|seq, _| !contested.contains(seq));
        Self {
            archive,
            timelines,
            highest,
            problems,
        }
    }

    /// `archive.json`, where there is one.
    pub fn archive(&self) -> Option<&ArchiveDocument> {
        self.archive.as_ref()
    }

    /// All timelines, by number.
    pub fn timelines(&self) -> impl DoubleEndedIterator<Item = &Timeline> {
        self.timelines.values()
    }

    /// One timeline.
    pub fn timeline(&self, seq: TimelineSeq) -> Option<&Timeline> {
        self.timelines.get(&seq)
    }

    /// The timeline with the highest number.
    pub fn newest(&self) -> Option<&Timeline> {
        self.timelines.values().next_back()
    }

    /// The number the next timeline takes.
    pub fn next_seq(&self) -> TimelineSeq {
        self.highest.map_or(TimelineSeq::FIRST, TimelineSeq::next)
    }

    /// Records when a timeline was accepted, as the note of its acceptance says.
    pub fn set_accepted_at(&mut self, seq: TimelineSeq, at: UnixMillis) {
        if let Some(timeline) = self.timelines.get_mut(&seq) {
            timeline.accepted_at = Some(at);
        }
    }

    /// Records the last command boundary of a timeline, found in its blocks: what may be acknowledged,
    /// resumed from and restored to. Bytes beyond it belong to an unfinished command or transaction.
    pub fn set_boundary(&mut self, seq: TimelineSeq, boundary: Offset) {
        if let Some(timeline) = self.timelines.get_mut(&seq) {
            timeline.boundary = Some(boundary);
        }
    }

    /// Leaves a damaged segment out: it covers nothing.
    pub fn leave_out(&mut self, name: &ObjectName, why: String) {
        for timeline in self.timelines.values_mut() {
            let before = timeline.segments.len();
            timeline.segments.retain(|segment| segment.name != *name);
            if timeline.segments.len() != before {
                timeline.finish();
            }
        }
        self.problems.push(format!("{name} is damaged: {why}"));
    }

    /// The parent, where it is there and older: a cycle cannot be walked.
    fn parent(&self, timeline: &Timeline) -> Option<(&Timeline, Position)> {
        let position = timeline.document.parent?;
        let parent = self.timelines.get(&position.timeline)?;
        (parent.seq() < timeline.seq()).then_some((parent, position))
    }

    /// Positions from which the stream of `timeline` can be applied: complete snapshots, and its start where
    /// the parent can be restored there.
    fn bases<'a>(&'a self, timeline: &'a Timeline) -> impl Iterator<Item = Offset> + 'a {
        let inherited = self
            .parent(timeline)
            .filter(|(parent, position)| self.restorable_on(parent, position.offset))
            .map(|_| timeline.document.start);
        inherited
            .into_iter()
            .chain(timeline.snapshots.iter().map(|snapshot| snapshot.offset))
    }

    fn restorable_on(&self, timeline: &Timeline, offset: Offset) -> bool {
        self.bases(timeline)
            .any(|base| base <= offset && timeline.reach(base) >= offset)
    }

    /// `true` where everything up to this position can be rebuilt from the store alone.
    pub fn is_restorable(&self, position: Position) -> bool {
        self.timelines
            .get(&position.timeline)
            .is_some_and(|timeline| self.restorable_on(timeline, position.offset))
    }

    /// The highest byte of a timeline up to which everything can be rebuilt, an unfinished command at its end
    /// included. `None` where nothing can.
    pub fn stored_end(&self, seq: TimelineSeq) -> Option<Offset> {
        let timeline = self.timelines.get(&seq)?;
        self.bases(timeline).map(|base| timeline.reach(base)).max()
    }

    /// The highest position of a timeline that can be restored: the last command boundary where it is known.
    pub fn end(&self, seq: TimelineSeq) -> Option<Offset> {
        let end = self.stored_end(seq)?;
        let boundary = self.timelines.get(&seq)?.boundary;
        Some(boundary.map_or(end, |boundary| boundary.min(end)))
    }

    /// Restorable stretches of a timeline in its own offsets, in order: any offset inside can be restored.
    pub fn windows(&self, seq: TimelineSeq) -> Vec<Run> {
        let Some(timeline) = self.timelines.get(&seq) else {
            return Vec::new();
        };
        let mut windows: Vec<Run> = self
            .bases(timeline)
            .map(|base| Run {
                after: base,
                last: timeline.reach(base),
            })
            .collect();
        windows.sort_by_key(|run| run.after);
        merge_runs(windows.into_iter())
    }

    /// Holes of a timeline: behind something restorable, up to where something restorable begins again; behind
    /// the last, up to where bytes are stored that nothing leads to. Where another timeline goes on from the end,
    /// those are what was under way when everything died: no part of the history.
    pub fn gaps(&self, seq: TimelineSeq) -> Vec<Gap> {
        let windows = self.windows(seq);
        let between = windows.windows(2).map(|pair| Gap {
            after: pair[0].last,
            resumes_at: pair[1].after,
        });
        let end = windows.last().map(|window| window.last);
        let stranded = self.timelines.get(&seq).and_then(|timeline| {
            let mut starts = timeline.runs.iter().map(|run| run.after);
            starts.find(|after| Some(*after) > end)
        });
        let last = end
            .zip(stranded)
            .filter(|_| !self.goes_on_from_the_end(seq))
            .map(|(after, resumes_at)| Gap { after, resumes_at });
        between.chain(last).collect()
    }

    fn goes_on_from_the_end(&self, seq: TimelineSeq) -> bool {
        let (from, to) = (self.end(seq), self.stored_end(seq));
        self.timelines
            .values()
            .filter_map(|timeline| timeline.document.parent)
            .any(|parent| {
                parent.timeline == seq && from <= Some(parent.offset) && Some(parent.offset) <= to
            })
    }

    /// Why this timeline is never chosen by a seed, or `None`. A timeline that continues a suspect one is
    /// suspect with it, until one of them is accepted.
    pub fn suspect(&self, seq: TimelineSeq) -> Option<&str> {
        let timeline = self.timelines.get(&seq)?;
        if timeline.accepted.is_some() {
            return None;
        }
        if let Some(why) = &timeline.document.suspect {
            return Some(why);
        }
        self.parent(timeline)
            .and_then(|(parent, _)| self.suspect(parent.seq()))
    }

    fn rank(timeline: &Timeline) -> (TimelineSeq, u32) {
        let own = (timeline.seq(), 0);
        timeline.accepted.map_or(own, |accepted| accepted.max(own))
    }

    /// What `latest` means: the end of the newest timeline that is not suspect and can be restored at all.
    pub fn head(&self) -> Option<Position> {
        self.timelines
            .values()
            .filter(|timeline| self.suspect(timeline.seq()).is_none())
            .filter_map(|timeline| {
                let offset = self.end(timeline.seq())?;
                Some((
                    Self::rank(timeline),
                    Position {
                        timeline: timeline.seq(),
                        offset,
                    },
                ))
            })
            .max_by_key(|(rank, _)| *rank)
            .map(|(_, position)| position)
    }

    /// When the last byte that a timeline speaks of was received: of one that stands for a seed, its parent's.
    /// Nothing was heard of a server when such a one was made.
    pub fn received_at(&self, seq: TimelineSeq) -> UnixMillis {
        let mut current = self.timelines.get(&seq);
        while let Some(timeline) = current {
            if !timeline.document.mapped || timeline.has_content() {
                return timeline.last_at();
            }
            current = self.parent(timeline).map(|(parent, _)| parent);
        }
        UnixMillis::default()
    }

    /// Whether a server under `id` at `offset` was being filled by a seed of this archive that it did not see the
    /// end of: what it holds is an older state of what the seed restores.
    pub fn is_unfinished_seed(&self, id: ReplicationId, offset: Offset) -> bool {
        self.timelines.values().any(|timeline| {
            timeline.document.mapped && timeline.id() == id && offset < timeline.document.start
        })
    }

    /// `true` where anything at all can be restored.
    pub fn has_data(&self) -> bool {
        self.timelines.keys().any(|seq| self.end(*seq).is_some())
    }

    /// The chain of a timeline from itself to its root: each with the last of its offsets that counts.
    pub fn lineage(&self, position: Position) -> Vec<Position> {
        let mut chain = vec![position];
        let mut current = self.timelines.get(&position.timeline);
        while let Some((parent, at)) = current.and_then(|timeline| self.parent(timeline)) {
            chain.push(at);
            current = Some(parent);
        }
        chain
    }

    /// `true` where `position` is on the way from the root to `tip`.
    pub fn is_ancestor(&self, position: Position, tip: Position) -> bool {
        self.lineage(tip)
            .iter()
            .any(|at| at.timeline == position.timeline && position.offset <= at.offset)
    }

    /// The newest timeline, where it is a root under `id` whose first snapshot never became complete and whose
    /// bytes all lie at or before `offset`: the next attempt goes on in it instead of leaving one behind each
    /// time. Bytes beyond `offset` would mean that the server was rolled back.
    pub fn unfinished_root(&self, id: ReplicationId, offset: Offset) -> Option<&Timeline> {
        let newest = self.newest()?;
        let unfinished = newest.id() == id
            && newest.document.parent.is_none()
            && newest.snapshots.is_empty()
            && newest.document.start <= offset
            && newest.runs.last().is_none_or(|run| run.last <= offset);
        unfinished.then_some(newest)
    }

    /// Another branch than the head's that may be the better one: its end is not on the head's way, it is not
    /// suspect, and bytes arrived there after the head's timeline began: within [`CONTESTED_MILLIS`], or later
    /// than the head's own last ones. Only a person can tell the second kind.
    pub fn rival(&self, now: UnixMillis) -> Option<Position> {
        let head = self.head()?;
        let head_timeline = self.timelines.get(&head.timeline)?;
        let head_began = head_timeline.document.created_at;
        let head_last_at = self.received_at(head.timeline);
        // A person who accepted the head chose it over everything that was there, not over what came later.
        let chosen = head_timeline.accepted.zip(head_timeline.accepted_at);
        let chosen_over = |timeline: &Timeline| {
            chosen.is_some_and(|((rank, _), at)| {
                timeline.seq() <= rank && timeline.last_at().0 <= at.0 + ACCEPTED_MARGIN_MILLIS
            })
        };
        self.timelines.values().rev().find_map(|timeline| {
            let end = Position {
                timeline: timeline.seq(),
                offset: self.end(timeline.seq())?,
            };
            let last_at = timeline.last_at();
            let lately =
                now.0.saturating_sub(last_at.0) <= CONTESTED_MILLIS || last_at > head_last_at;
            let rival = lately
                && last_at > head_began
                && self.suspect(timeline.seq()).is_none()
                && !chosen_over(timeline)
                && !self.is_ancestor(end, head);
            rival.then_some(end)
        })
    }
}

/// A catalogue written as text, for tests here and in the modules that decide from one.
#[cfg(test)]
pub(crate) mod sketch {
    use super::*;
    use crate::archive::layout::Source;

    /// A replication id whose every byte is `byte`.
    pub(crate) fn id(byte: u8) -> ReplicationId {
        ReplicationId::from_raw([byte; 20])
    }

    /// Adds timelines one by one.
    #[derive(Default)]
    pub(crate) struct Sketch {
        documents: Vec<TimelineDocument>,
        objects: Vec<(ObjectName, Object, u64)>,
    }

    impl Sketch {
        pub(crate) fn timeline(
            mut self,
            seq: u32,
            byte: u8,
            parent: Option<(u32, u64)>,
            start: u64,
        ) -> Self {
            self.documents.push(TimelineDocument {
                format: crate::archive::layout::DOCUMENT_FORMAT,
                seq: TimelineSeq::new(seq),
                id: id(byte),
                parent: parent.map(|(timeline, offset)| Position {
                    timeline: TimelineSeq::new(timeline),
                    offset: Offset::new(offset),
                }),
                start: Offset::new(start),
                mapped: false,
                suspect: None,
                created_at: UnixMillis(u64::from(seq) * 1000),
                created_by: "test".into(),
                source: Source {
                    server: "redis".into(),
                    version: "7.0.15".into(),
                    run_id: format!("run-{byte}"),
                    address: "127.0.0.1:6379".into(),
                    replica: false,
                },
            });
            self
        }

        pub(crate) fn mapped(mut self) -> Self {
            self.documents.last_mut().unwrap().mapped = true;
            self
        }

        pub(crate) fn version(mut self, version: &str) -> Self {
            self.documents.last_mut().unwrap().source.version = version.into();
            self
        }

        pub(crate) fn suspect(mut self, why: &str) -> Self {
            self.documents.last_mut().unwrap().suspect = Some(why.into());
            self
        }

        fn push(mut self, object: Object) -> Self {
            self.objects.push((object.name(), object, 100));
            self
        }

        pub(crate) fn snapshot(self, offset: u64) -> Self {
            let (seq, id) = self.last();
            self.push(Object::Snapshot {
                seq,
                id,
                offset: Offset::new(offset),
                at: UnixMillis(offset),
            })
        }

        pub(crate) fn segment(self, first: u64, last: u64) -> Self {
            self.segment_at(first, last, first, last)
        }

        pub(crate) fn segment_at(self, first: u64, last: u64, first_at: u64, last_at: u64) -> Self {
            let (seq, id) = self.last();
            let span = Span {
                first: Offset::new(first),
                last: Offset::new(last),
                first_at: UnixMillis(first_at),
                last_at: UnixMillis(last_at),
            };
            self.push(Object::Segment {
                seq,
                id,
                span,
                merged: false,
            })
        }

        pub(crate) fn accepted(self, rank: u32, order: u32) -> Self {
            let (seq, id) = self.last();
            self.push(Object::Accepted {
                seq,
                id,
                rank: TimelineSeq::new(rank),
                order,
            })
        }

        fn last(&self) -> (TimelineSeq, ReplicationId) {
            let document = self.documents.last().unwrap();
            (document.seq, document.id)
        }

        pub(crate) fn catalog(self) -> Catalog {
            Catalog::new(None, self.documents, self.objects)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::sketch::{Sketch, id};
    use super::*;

    fn at(timeline: u32, offset: u64) -> Position {
        Position {
            timeline: TimelineSeq::new(timeline),
            offset: Offset::new(offset),
        }
    }

    #[test]
    fn nothing_is_restorable_before_a_snapshot_is_complete() {
        let catalog = Sketch::default()
            .timeline(1, 1, None, 0)
            .segment(1, 100)
            .catalog();
        assert_eq!(catalog.head(), None);
        assert!(!catalog.has_data());
    }

    #[test]
    fn the_end_is_contiguous_from_a_snapshot_and_overlaps_count_once() {
        let catalog = Sketch::default()
            .timeline(1, 1, None, 0)
            .segment(1, 100)
            .snapshot(40)
            .segment(61, 150)
            .segment(152, 200)
            .catalog();
        assert_eq!(catalog.head(), Some(at(1, 150)), "151 is missing");
        assert!(catalog.is_restorable(at(1, 40)) && catalog.is_restorable(at(1, 150)));
        assert!(!catalog.is_restorable(at(1, 39)) && !catalog.is_restorable(at(1, 151)));
        let stranded = Gap {
            after: Offset::new(150),
            resumes_at: Offset::new(151),
        };
        assert_eq!(catalog.gaps(TimelineSeq::new(1)), [stranded]);
    }

    #[test]
    fn what_was_under_way_when_history_went_on_elsewhere_is_no_gap() {
        let forked = |offset| {
            Sketch::default()
                .timeline(1, 1, None, 0)
                .snapshot(0)
                .segment(1, 100)
                .segment(152, 200)
                .timeline(2, 2, Some((1, offset)), offset)
                .catalog()
                .gaps(TimelineSeq::new(1))
        };
        assert_eq!(forked(100), []);
        assert_eq!(forked(50).len(), 1, "a branch: the end is still open");
    }

    #[test]
    fn a_gap_lies_between_two_restorable_stretches() {
        let catalog = Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(0)
            .segment(1, 100)
            .segment(201, 300)
            .snapshot(250)
            .catalog();
        assert_eq!(
            catalog.gaps(TimelineSeq::new(1)),
            [Gap {
                after: Offset::new(100),
                resumes_at: Offset::new(250)
            }]
        );
        assert_eq!(catalog.head(), Some(at(1, 300)));
        assert!(!catalog.is_restorable(at(1, 220)));
    }

    #[test]
    fn a_child_begins_where_its_parent_can_be_restored() {
        let sketch = || {
            Sketch::default()
                .timeline(1, 1, None, 0)
                .snapshot(0)
                .segment(1, 100)
        };
        let whole = sketch()
            .timeline(2, 2, Some((1, 80)), 80)
            .segment(81, 90)
            .catalog();
        assert_eq!(whole.head(), Some(at(2, 90)));
        assert!(whole.is_ancestor(at(1, 80), at(2, 90)));
        assert!(
            !whole.is_ancestor(at(1, 81), at(2, 90)),
            "the parent counts only up to the fork"
        );
        let torn = sketch()
            .timeline(2, 2, Some((1, 120)), 120)
            .segment(121, 130)
            .catalog();
        assert_eq!(
            torn.head(),
            Some(at(1, 100)),
            "the parent's bytes up to the fork are not there"
        );
    }

    #[test]
    fn a_child_with_offsets_of_its_own_is_restorable_in_its_own_offsets() {
        let catalog = Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(0)
            .segment(1, 100)
            .timeline(2, 2, Some((1, 100)), 5000)
            .segment(5001, 5010)
            .catalog();
        assert_eq!(catalog.head(), Some(at(2, 5010)));
    }

    #[test]
    fn suspects_and_what_continues_them_are_never_the_head_until_accepted() {
        let sketch = || {
            Sketch::default()
                .timeline(1, 1, None, 0)
                .snapshot(0)
                .segment(1, 100)
                .timeline(2, 2, None, 0)
                .suspect("from an empty server")
                .snapshot(3)
        };
        let child = || sketch().timeline(3, 3, Some((2, 3)), 3).segment(4, 9);
        assert_eq!(sketch().catalog().head(), Some(at(1, 100)));
        assert_eq!(child().catalog().head(), Some(at(1, 100)));
        assert_eq!(child().accepted(3, 1).catalog().head(), Some(at(3, 9)));
        assert_eq!(sketch().accepted(2, 1).catalog().head(), Some(at(2, 3)));
    }

    #[test]
    fn an_acceptance_outranks_everything_numbered_before_it_and_nothing_after() {
        let catalog = Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(0)
            .accepted(2, 1)
            .timeline(2, 2, None, 0)
            .snapshot(0)
            .catalog();
        assert_eq!(catalog.head(), Some(at(1, 0)));
        let later = Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(0)
            .accepted(2, 1)
            .timeline(2, 2, None, 0)
            .snapshot(0)
            .timeline(3, 3, Some((1, 0)), 0)
            .catalog();
        assert_eq!(later.head(), Some(at(3, 0)));
    }

    #[test]
    fn an_unfinished_command_at_the_end_is_not_part_of_the_head() {
        let mut catalog = Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(0)
            .segment(1, 100)
            .catalog();
        catalog.set_boundary(TimelineSeq::new(1), Offset::new(90));
        assert_eq!(catalog.head(), Some(at(1, 90)));
        assert_eq!(
            catalog.stored_end(TimelineSeq::new(1)),
            Some(Offset::new(100))
        );
    }

    #[test]
    fn two_branches_that_both_moved_lately_are_rivals() {
        let sketch = |last| {
            Sketch::default()
                .timeline(1, 1, None, 0)
                .snapshot(0)
                .segment(1, last)
                .timeline(2, 2, Some((1, 100)), 100)
                .segment(101, 3000)
                .catalog()
        };
        let now = UnixMillis(4000);
        assert_eq!(sketch(100).rival(now), None);
        assert_eq!(
            sketch(1500).rival(now),
            None,
            "the old branch ended before the new one began"
        );
        assert_eq!(sketch(2500).rival(now), Some(at(1, 2500)));
        let accepted_at = |at| {
            let mut chosen = Sketch::default()
                .timeline(1, 1, None, 0)
                .snapshot(0)
                .segment(1, 2500)
                .timeline(2, 2, Some((1, 100)), 100)
                .segment(101, 3000)
                .accepted(2, 1)
                .catalog();
            chosen.set_accepted_at(TimelineSeq::new(2), UnixMillis(at));
            chosen.rival(now)
        };
        assert_eq!(accepted_at(2500), None, "somebody chose");
        assert_eq!(
            accepted_at(100),
            Some(at(1, 2500)),
            "what came later was not chosen over"
        );
        let long_after = UnixMillis(4000 + 10 * CONTESTED_MILLIS);
        assert_eq!(
            sketch(3500).rival(long_after),
            Some(at(1, 3500)),
            "it outlived the head"
        );
        assert_eq!(
            sketch(2500).rival(UnixMillis(4000 + CONTESTED_MILLIS)),
            None,
            "long ago"
        );
    }

    #[test]
    fn a_root_without_a_snapshot_is_gone_on_with_unless_the_server_was_rolled_back() {
        let root = || Sketch::default().timeline(1, 1, None, 10).segment(11, 100);
        let found = |sketch: Sketch, byte, offset| {
            let catalog = sketch.catalog();
            catalog
                .unfinished_root(id(byte), Offset::new(offset))
                .map(Timeline::seq)
        };
        assert_eq!(found(root(), 1, 100), Some(TimelineSeq::FIRST));
        assert_eq!(
            found(root(), 1, 99),
            None,
            "its byte 100 may be another one now"
        );
        assert_eq!(found(root(), 2, 100), None, "another history");
        assert_eq!(found(root().snapshot(50), 1, 100), None, "it is finished");
        assert_eq!(
            found(root().timeline(2, 2, None, 0), 1, 100),
            None,
            "not the newest"
        );
    }

    #[test]
    fn of_two_folders_with_one_number_the_one_with_content_counts() {
        let catalog = Sketch::default()
            .timeline(1, 1, None, 0)
            .timeline(1, 2, None, 0)
            .snapshot(7)
            .timeline(1, 3, None, 0)
            .catalog();
        assert_eq!(catalog.timelines().count(), 1);
        assert_eq!(catalog.newest().unwrap().id(), id(2));
        assert!(catalog.problems.is_empty());
    }

    #[test]
    fn of_two_empty_folders_with_one_number_neither_counts_and_the_number_is_used_up() {
        let catalog = Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(0)
            .timeline(2, 2, Some((1, 0)), 0)
            .timeline(2, 3, Some((1, 0)), 0)
            .catalog();
        assert_eq!(catalog.head(), Some(at(1, 0)));
        assert_eq!(catalog.next_seq(), TimelineSeq::new(3));
    }

    #[test]
    fn of_two_empty_folders_with_one_number_the_mapped_one_counts() {
        let sketch = |mapped_first: bool| {
            let sketch = Sketch::default()
                .timeline(1, 1, None, 0)
                .snapshot(0)
                .timeline(2, 2, Some((1, 0)), 0);
            let sketch = if mapped_first {
                sketch.mapped()
            } else {
                sketch
            };
            let sketch = sketch.timeline(2, 3, Some((1, 0)), 0);
            if mapped_first {
                sketch
            } else {
                sketch.mapped()
            }
        };
        for (mapped_first, expected) in [(true, 2), (false, 3)] {
            let catalog = sketch(mapped_first).catalog();
            assert_eq!(catalog.newest().unwrap().id(), id(expected));
            assert_eq!(catalog.head(), Some(at(2, 0)));
        }
        let both = sketch(true).mapped().catalog();
        assert_eq!(both.head(), Some(at(1, 0)), "neither counts");
        let with_content = sketch(true).segment(1, 9).catalog();
        assert_eq!(with_content.newest().unwrap().id(), id(3));
    }
}
