//! The tree of timelines that a listing describes: what is covered, what can be restored, which end is the
//! head. Pure values; reading them through a store is `store::catalog`'s work.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

use crate::archive::layout::{ArchiveDocument, Object, ObjectName, TimelineDocument};
use crate::position::{Offset, Position, ReplicationId, TimelineSeq, UnixMillis};

use stored::{Parts, merge_runs};
mod stored;

pub use stored::{Fragment, Gap, Run, SegmentEntry, SnapshotEntry, Timeline, sort_segments};

/// How long ago two branches may both have moved before a seed refuses to choose between them.
pub const CONTESTED_MILLIS: u64 = 5 * 60 * 1000;

/// Bytes that arrived this much later than an acceptance were on their way when it was made.
const ACCEPTED_MARGIN_MILLIS: u64 = 2_000;

/// Everything a listing and the small documents say about one archive.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    archive: Option<ArchiveDocument>,
    timelines: BTreeMap<TimelineSeq, Timeline>,
    /// The highest number of any folder, counted or not.
    highest: Option<TimelineSeq>,
    fragments: Vec<Fragment>,
    /// Numbers that two folders bear.
    twins: BTreeSet<TimelineSeq>,
    /// Things that are wrong with the listing, in plain words.
    pub problems: Vec<String>,
}

/// What lies behind a hole at the end of a timeline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeftOut {
    /// The timeline.
    pub timeline: TimelineSeq,
    /// The last byte before the hole.
    pub end: Offset,
    /// The last byte stored behind it.
    pub stored_to: Option<Offset>,
    /// The timeline that continues behind it, and where: its parent's bytes up to there were once stored.
    pub continued: Option<(TimelineSeq, Offset)>,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "timeline {} is missing what comes behind offset {}; left out is",
            self.timeline, self.end
        )?;
        if let Some(last) = self.stored_to {
            write!(f, " what is stored from there up to offset {last}")?;
        }
        if let Some((child, offset)) = self.continued {
            let and = if self.stored_to.is_some() {
                ", and"
            } else {
                ""
            };
            write!(
                f,
                "{and} timeline {child}, which continues it at offset {offset}: that much WAS in the archive once"
            )?;
        }
        f.write_str("; `perennial verify` tells what is missing")
    }
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
        let (mut problems, mut fragments) = (Vec::new(), Vec::new());
        let mut in_parts: BTreeMap<_, Parts> = BTreeMap::new();
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
                Object::Snapshot {
                    offset,
                    at,
                    derived,
                    ..
                } => {
                    timeline.snapshots.push(SnapshotEntry {
                        name,
                        parts: Vec::new(),
                        offset,
                        at,
                        derived,
                        bytes,
                    });
                }
                Object::SnapshotPart {
                    offset,
                    at,
                    derived,
                    part,
                    last,
                    ..
                } => {
                    let parts = in_parts.entry((seq, id, offset, at, derived)).or_default();
                    parts.0.entry(part).or_default().push((name, bytes, last));
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
        for ((seq, id, offset, at, derived), parts) in in_parts {
            let Some(timeline) = folders.get_mut(&(seq, id)) else {
                continue;
            };
            let objects = parts.objects();
            match parts.entry(offset, at, derived) {
                Ok(entry) => timeline.snapshots.push(entry),
                Err(why) => {
                    problems.push(format!(
                        "the snapshot of timeline {seq} at offset {offset} is not used: {why}; unless it is being \
                         written now, what is there of it is of no use"
                    ));
                    fragments.push(Fragment {
                        timeline: (seq, id),
                        offset,
                        at,
                        objects,
                    });
                }
            }
        }
        let mut timelines: BTreeMap<TimelineSeq, Timeline> = BTreeMap::new();
        let mut contested: Vec<TimelineSeq> = Vec::new();
        let mut twins = BTreeSet::new();
        for ((seq, _), mut timeline) in folders {
            timeline.finish();
            let Some(kept) = timelines.get(&seq) else {
                timelines.insert(seq, timeline);
                continue;
            };
            twins.insert(seq);
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
        let mut catalog = Self {
            archive,
            timelines,
            highest,
            fragments,
            problems,
            twins,
        };
        catalog.hand_down();
        catalog
    }

    /// What a timeline has from its ancestors: one pass, since each is younger than its parent. A history of many restarts is a
    /// long chain, and everything asks for this.
    fn hand_down(&mut self) {
        let all: Vec<TimelineSeq> = self.timelines.keys().copied().collect();
        for seq in all {
            let Some(timeline) = self.timelines.get(&seq) else {
                continue;
            };
            let parent = self.parent(timeline);
            let inherited =
                parent.is_some_and(|(parent, at)| Self::restorable_on(parent, at.offset));
            let suspected_with = match (&timeline.accepted, &timeline.document.suspect) {
                (Some(_), _) => None,
                (None, Some(_)) => Some(seq),
                (None, None) => parent.and_then(|(parent, _)| parent.suspected_with),
            };
            if let Some(timeline) = self.timelines.get_mut(&seq) {
                (timeline.inherited, timeline.suspected_with) = (inherited, suspected_with);
            }
        }
    }

    /// Whether another folder bears the number of this timeline: which of the two counts is told by what they hold.
    pub fn has_twin(&self, seq: TimelineSeq) -> bool {
        self.twins.contains(&seq)
    }

    /// Snapshots of which parts are missing: cut short, or being written.
    pub fn fragments(&self) -> &[Fragment] {
        &self.fragments
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
        self.hand_down();
        self.problems.push(format!("{name} is damaged: {why}"));
    }

    /// The same archive without these objects.
    #[must_use]
    pub fn without(&self, gone: &HashSet<ObjectName>) -> Self {
        let mut rest = self.clone();
        for timeline in rest.timelines.values_mut() {
            timeline
                .segments
                .retain(|segment| !gone.contains(&segment.name));
            timeline.snapshots.retain(|snapshot| {
                let parts = snapshot.parts.iter().map(|(name, _)| name);
                parts
                    .chain([&snapshot.name])
                    .all(|name| !gone.contains(name))
            });
            timeline.finish();
        }
        rest.hand_down();
        rest
    }

    /// The same without a snapshot, as if it had never been taken.
    #[must_use]
    pub fn without_snapshot(&self, name: &ObjectName) -> Self {
        self.without(&HashSet::from([name.clone()]))
    }

    /// The parent, where it is there and older: a cycle cannot be walked.
    fn parent(&self, timeline: &Timeline) -> Option<(&Timeline, Position)> {
        let position = timeline.document.parent?;
        let parent = self.timelines.get(&position.timeline)?;
        (parent.seq() < timeline.seq()).then_some((parent, position))
    }

    /// Whether the start of a timeline can be restored from its parent.
    pub fn is_inherited(&self, seq: TimelineSeq) -> bool {
        let timeline = self.timelines.get(&seq);
        timeline.is_some_and(|timeline| timeline.inherited)
    }

    /// Positions from which the stream of `timeline` can be applied: complete snapshots, and its start where
    /// the parent can be restored there.
    fn bases(timeline: &Timeline) -> impl Iterator<Item = Offset> + '_ {
        let inherited = timeline.inherited.then_some(timeline.document.start);
        inherited
            .into_iter()
            .chain(timeline.snapshots.iter().map(|snapshot| snapshot.offset))
    }

    fn restorable_on(timeline: &Timeline, offset: Offset) -> bool {
        Self::bases(timeline).any(|base| base <= offset && timeline.reach(base) >= offset)
    }

    /// `true` where everything up to this position can be rebuilt from the store alone.
    pub fn is_restorable(&self, position: Position) -> bool {
        self.timelines
            .get(&position.timeline)
            .is_some_and(|timeline| Self::restorable_on(timeline, position.offset))
    }

    /// The highest byte of a timeline up to which everything can be rebuilt, an unfinished command at its end
    /// included. `None` where nothing can.
    pub fn stored_end(&self, seq: TimelineSeq) -> Option<Offset> {
        let timeline = self.timelines.get(&seq)?;
        Self::bases(timeline).map(|base| timeline.reach(base)).max()
    }

    /// The highest position of a timeline that can be restored: the last command boundary where it is known.
    pub fn end(&self, seq: TimelineSeq) -> Option<Offset> {
        let end = self.stored_end(seq)?;
        let boundary = self.timelines.get(&seq)?.boundary;
        Some(boundary.map_or(end, |boundary| boundary.min(end)))
    }

    /// What lies behind a hole at the end of a timeline, and so is no part of any restore of that end: pieces that a
    /// crash left, or bytes that somebody had and the archive has lost.
    pub fn left_out(&self, seq: TimelineSeq) -> Option<LeftOut> {
        let timeline = self.timelines.get(&seq)?;
        let end = self.stored_end(seq)?;
        let stored = timeline.runs().last().map(|run| run.last);
        let stored_to = stored.filter(|last| *last > end);
        let continued = self.timelines.values().find_map(|child| {
            let parent = child.document.parent?;
            let is_behind = parent.timeline == seq && parent.offset > end;
            (is_behind && self.suspect(child.seq()).is_none())
                .then_some((child.seq(), parent.offset))
        });
        (stored_to.is_some() || continued.is_some()).then_some(LeftOut {
            timeline: seq,
            end,
            stored_to,
            continued,
        })
    }

    /// Restorable stretches of a timeline in its own offsets, in order: any offset inside can be restored.
    pub fn windows(&self, seq: TimelineSeq) -> Vec<Run> {
        let Some(timeline) = self.timelines.get(&seq) else {
            return Vec::new();
        };
        let mut windows: Vec<Run> = Self::bases(timeline)
            .map(|base| Run {
                after: base,
                last: timeline.reach(base),
            })
            .collect();
        windows.sort_by_key(|run| run.after);
        merge_runs(windows.into_iter())
    }

    /// Whether bytes of the same timeline are stored behind a position, a command that it ends in aside.
    pub fn holds_beyond(&self, position: Position) -> bool {
        let end = self
            .stored_end(position.timeline)
            .max(Some(position.offset));
        self.timelines
            .get(&position.timeline)
            .and_then(|timeline| timeline.runs.last())
            .is_some_and(|run| Some(run.last) > end)
    }

    /// Holes of a timeline: behind something restorable, up to where something restorable begins again; behind
    /// the last, up to where bytes are stored that nothing leads to. Where another timeline goes on from the end,
    /// those are what was under way when everything died: no part of the history.
    ///
    /// A start alone, with nothing behind it, is what is left where upkeep has pruned up to a later snapshot while
    /// another branch still needs the parent: no gap.
    pub fn gaps(&self, seq: TimelineSeq) -> Vec<Gap> {
        let mut windows = self.windows(seq);
        let start = self.timelines.get(&seq).map(|it| it.document.start);
        let is_bare = |window: &Run| window.after == window.last && Some(window.last) == start;
        let has_snapshot_there = |at: Offset| {
            let timeline = self.timelines.get(&seq);
            timeline.is_some_and(|it| it.snapshots.iter().any(|snapshot| snapshot.offset == at))
        };
        if windows.len() > 1
            && let Some(first) = windows.first()
            && is_bare(first)
            && !has_snapshot_there(first.after)
        {
            windows.remove(0);
        }
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
        let cause = self.timelines.get(&seq)?.suspected_with?;
        self.timelines.get(&cause)?.document.suspect.as_deref()
    }

    /// The timelines of which one must be accepted before this one is no longer suspect: itself and its ancestors up to the one
    /// that the suspicion began with. What lies before that cures nothing. Empty where nothing is suspected.
    pub fn to_be_accepted(&self, seq: TimelineSeq) -> Vec<(TimelineSeq, ReplicationId)> {
        if self.suspect(seq).is_none() {
            return Vec::new();
        }
        let mut found = Vec::new();
        let mut current = self.timelines.get(&seq);
        while let Some(timeline) = current {
            found.push((timeline.seq(), timeline.id()));
            if timeline.document.suspect.is_some() {
                break;
            }
            current = self.parent(timeline).map(|(parent, _)| parent);
        }
        found
    }

    /// The newest timeline that goes on from the end of a suspect one and is suspect only with it: what its server became.
    pub fn goes_on_as(&self, seq: TimelineSeq) -> Option<TimelineSeq> {
        self.suspect(seq)?;
        let next = self.timelines.values().rev().find(|timeline| {
            let of_it = self
                .parent(timeline)
                .is_some_and(|(_, at)| at.timeline == seq && Some(at.offset) >= self.end(seq));
            of_it
                && self.end(timeline.seq()).is_some()
                && self.to_be_accepted(timeline.seq()).len() > 1
        })?;
        Some(self.goes_on_as(next.seq()).unwrap_or(next.seq()))
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
            .filter(|timeline| !self.is_overtaken(timeline))
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

    /// The head, where it is more than what a server has that stands at `offset` under `id`.
    pub fn head_beyond(&self, id: ReplicationId, offset: Offset) -> Option<Position> {
        let head = self.head()?;
        let timeline = self.timelines.get(&head.timeline)?;
        let is_held = timeline.id() == id && head.offset <= offset;
        (!is_held).then_some(head)
    }

    /// Whether a timeline only stands for a seed, and what was seeded has grown since: it is an older state of it.
    fn is_overtaken(&self, timeline: &Timeline) -> bool {
        let mut current = timeline;
        while current.document.mapped && !current.has_content() && current.accepted.is_none() {
            let Some((parent, position)) = self.parent(current) else {
                return false;
            };
            if self.end(parent.seq()) > Some(position.offset) {
                return true;
            }
            current = parent;
        }
        false
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

    /// Whether a server bears an id at an offset before the timelines under it begin, all of them behind another id: a
    /// seed goes out under the id of its end from its snapshot on. A replica that has just learned of its master's new id
    /// looks the same for a moment; what either holds is in the archive.
    pub fn is_before_its_beginning(&self, id: ReplicationId, offset: Offset) -> bool {
        let under_it = || self.timelines.values().filter(|it| it.id() == id);
        let is_behind_another_id = |it: &Timeline| {
            let parent = it.document.parent;
            let parent = parent.and_then(|parent| self.timelines.get(&parent.timeline));
            parent.is_some_and(|parent| parent.id() != id)
        };
        under_it().all(|it| offset < it.document.start) && under_it().any(is_behind_another_id)
    }

    /// Whether a server under `id` at `offset` got all of a seed of this archive that is no longer all of it.
    pub fn is_overtaken_seed(&self, id: ReplicationId, offset: Offset) -> bool {
        self.timelines.values().any(|timeline| {
            timeline.id() == id && offset == timeline.document.start && self.is_overtaken(timeline)
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
                timeline.seq() <= rank
                    && timeline.last_at().0 <= at.0.saturating_add(ACCEPTED_MARGIN_MILLIS)
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
                && !self.is_overtaken(timeline)
                && !chosen_over(timeline)
                && !self.is_ancestor(end, head);
            rival.then_some(end)
        })
    }
}

#[cfg(test)]
pub(crate) mod sketch;
#[cfg(test)]
mod tests;
