//! What nobody can ask for any more.
//!
//! Kept is a position and everything behind it, for each timeline that is needed; the others are not. Each rule only
//! ever lowers that position. What results is compared with what was there before anything is deleted.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{CLOCK_SKEW_MILLIS_MAX, Policy, Stock};
use crate::archive::layout::ObjectName;
use crate::archive::plan::covers;
use crate::archive::timeline::{Catalog, Run, SnapshotEntry, Timeline};
use crate::position::{Offset, Position, ReplicationId, TimelineSeq, UnixMillis};

/// So many ends of branches that the head left behind are kept whatever their age: an acceptance, or a seed, may turn
/// out to have been wrong.
pub const SUPERSEDED_KEPT: usize = 3;

/// Parts of a snapshot without its end are left alone so long after the last of them, milliseconds.
const FRAGMENT_MILLIS_MIN: u64 = 24 * 60 * 60 * 1000;

/// What is to be deleted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrunePlan {
    /// Every moment from here on stays.
    pub window_start: UnixMillis,
    /// Everything since then stays although it is older, because the head's snapshots before the window were derived from it.
    pub held_since: Option<UnixMillis>,
    /// What goes, in this order, each with its stored size in bytes: snapshots before the replication stream behind them,
    /// so that what is left when it is cut short does not look like a gap.
    pub deletions: Vec<(ObjectName, u64)>,
}

impl PrunePlan {
    /// Stored bytes that become free.
    pub fn bytes(&self) -> u64 {
        self.deletions.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Why nothing may be deleted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PruneError {
    /// Who needs whom cannot be told.
    #[error(
        "timeline {timeline} continues timeline {parent}, which is not there or whose timeline.json is missing: what is needed cannot be told, \
         so nothing is pruned; put it back from a version that the bucket kept or from a copy"
    )]
    ParentMissing {
        /// The child.
        timeline: TimelineSeq,
        /// What it continues.
        parent: TimelineSeq,
    },
    /// What lies there cannot be told to be needed or not.
    #[error(
        "a snapshot or a segment lies in timeline {timeline} of replication id {id}, which counts for nothing: its \
         timeline.json is missing, or another timeline bears its number. What is needed cannot be told, so nothing is \
         pruned; put timeline.json back from a version that the bucket kept or from a copy, or take that folder away"
    )]
    Uncounted {
        /// Its number.
        timeline: TimelineSeq,
        /// Its replication id.
        id: ReplicationId,
    },
    /// A mistake of ours in this file, found before it did harm.
    #[error(
        "pruning would change what can be restored of timeline {timeline}: nothing is deleted; please report this"
    )]
    Unsafe {
        /// Where.
        timeline: TimelineSeq,
    },
}

/// Computes what may go. `filled` are the folders that hold a snapshot or a segment, counted or not.
///
/// # Errors
/// [`PruneError`].
pub fn prune(
    stock: &Stock<'_>,
    policy: &Policy,
    filled: &BTreeSet<(TimelineSeq, ReplicationId)>,
) -> Result<PrunePlan, PruneError> {
    everything_is_counted(stock.catalog, filled)?;
    every_parent_is_there(stock.catalog)?;
    let millis = policy
        .retention_millis
        .saturating_add(CLOCK_SKEW_MILLIS_MAX);
    let window_start = UnixMillis(stock.now.0.saturating_sub(millis));
    let needed = Needed::of(stock, window_start);
    let mut deletions = needed.derived(window_start);
    deletions.extend(needed.deletions());
    deletions.extend(needed.fragments(window_start));
    let signs = needed.signs_of_life();
    deletions.retain(|(name, _)| !signs.contains(name));
    needed.check(&deletions)?;
    Ok(PrunePlan {
        window_start,
        held_since: needed.held_since(window_start),
        deletions,
    })
}

/// Data without a timeline that counts may be what others are needed for.
fn everything_is_counted(
    catalog: &Catalog,
    filled: &BTreeSet<(TimelineSeq, ReplicationId)>,
) -> Result<(), PruneError> {
    let is_counted = |seq, id| {
        let timeline = catalog.timeline(seq);
        timeline.is_some_and(|timeline| timeline.id() == id)
    };
    let uncounted = filled.iter().find(|(seq, id)| !is_counted(*seq, *id));
    match uncounted {
        Some((timeline, id)) => Err(PruneError::Uncounted {
            timeline: *timeline,
            id: *id,
        }),
        None => Ok(()),
    }
}

fn every_parent_is_there(catalog: &Catalog) -> Result<(), PruneError> {
    for timeline in catalog.timelines() {
        if let Some(parent) = timeline.document.parent
            && catalog.timeline(parent.timeline).is_none()
        {
            return Err(PruneError::ParentMissing {
                timeline: timeline.seq(),
                parent: parent.timeline,
            });
        }
    }
    Ok(())
}

/// From where on each timeline is needed; one that is not in here is not.
struct Needed<'a> {
    stock: &'a Stock<'a>,
    from: BTreeMap<TimelineSeq, Offset>,
}

impl<'a> Needed<'a> {
    fn of(stock: &'a Stock<'a>, window_start: UnixMillis) -> Self {
        let mut needed = Self {
            stock,
            from: BTreeMap::new(),
        };
        let catalog = stock.catalog;
        for timeline in catalog.timelines() {
            needed.window(timeline, window_start);
        }
        let head = catalog.head();
        let newest = catalog.newest().map(Timeline::seq);
        for seq in head.map(|head| head.timeline).into_iter().chain(newest) {
            needed.end(seq);
        }
        for timeline in catalog.timelines() {
            let is_pending = head.is_none_or(|head| head.timeline < timeline.seq());
            if is_pending && catalog.suspect(timeline.seq()).is_some() {
                needed.whole(timeline);
            }
        }
        for seq in superseded(catalog, head) {
            needed.end(seq);
        }
        needed
    }

    /// Of timelines that nobody needs, one object each where another folder bears the same number: emptied, neither of the two
    /// could be told from the one that was given up, and neither would count.
    fn signs_of_life(&self) -> HashSet<ObjectName> {
        let catalog = self.stock.catalog;
        let twins = catalog.timelines().filter(|timeline| {
            catalog.has_twin(timeline.seq()) && !self.from.contains_key(&timeline.seq())
        });
        let last = |timeline: &Timeline| match (timeline.segments.last(), timeline.snapshots.last())
        {
            (Some(segment), _) => vec![segment.name.clone()],
            (None, Some(snapshot)) => {
                let objects = snapshot.objects().into_iter();
                objects.map(|(name, _)| name).collect()
            }
            (None, None) => Vec::new(),
        };
        twins.flat_map(last).collect()
    }

    fn keep(&mut self, seq: TimelineSeq, offset: Offset) {
        let from = self.from.entry(seq).or_insert(offset);
        *from = offset.min(*from);
    }

    /// The newest snapshot of a server at or before the window's start, and all after it. A derived one is a calculation:
    /// what it was made from stays until a server makes another one (decision 46).
    fn window(&mut self, timeline: &Timeline, start: UnixMillis) {
        let stock = self.stock;
        let segments = timeline.segments.iter();
        let mut moments = segments
            .map(|segment| stock.moment(&segment.name, segment.span.last_at))
            .chain(
                timeline
                    .snapshots
                    .iter()
                    .map(|snapshot| stock.moment(&snapshot.name, snapshot.at)),
            );
        if !moments.any(|moment| moment >= start) {
            return;
        }
        let before = timeline
            .snapshots
            .iter()
            .rfind(|it| !it.derived && stock.moment(&it.name, it.at) <= start);
        match before {
            Some(snapshot) => self.keep(timeline.seq(), snapshot.offset),
            None => self.whole(timeline),
        }
    }

    /// All of a timeline, and what it continues.
    fn whole(&mut self, timeline: &Timeline) {
        self.keep(timeline.seq(), Offset::ZERO);
        if let Some(parent) = timeline.document.parent
            && parent.timeline < timeline.seq()
        {
            self.position(parent);
        }
    }

    /// The end of a timeline, where it can be restored.
    fn end(&mut self, seq: TimelineSeq) {
        if let Some(offset) = self.stock.catalog.stored_end(seq) {
            self.position(Position {
                timeline: seq,
                offset,
            });
        }
    }

    /// Whatever a restore of this position reads, without derived snapshots.
    fn position(&mut self, position: Position) {
        let Some(timeline) = self.stock.catalog.timeline(position.timeline) else {
            return;
        };
        let base = timeline.snapshots.iter().rfind(|snapshot| {
            !snapshot.derived
                && snapshot.offset <= position.offset
                && covers(timeline, snapshot.offset, position.offset)
        });
        match base {
            Some(snapshot) => self.keep(timeline.seq(), snapshot.offset),
            None => self.whole(timeline),
        }
    }

    /// Derived snapshots that make no restore inside the window shorter, where their place can be restored without any
    /// of them.
    fn derived(&self, window_start: UnixMillis) -> Vec<(ObjectName, u64)> {
        let stock = self.stock;
        let is_before = |it: &SnapshotEntry| stock.moment(&it.name, it.at) <= window_start;
        let mut superseded = Vec::new();
        for (seq, from) in &self.from {
            let Some(timeline) = stock.catalog.timeline(*seq) else {
                continue;
            };
            let Some(first) = timeline.snapshots.iter().rposition(is_before) else {
                continue;
            };
            let before = timeline.snapshots[..first].iter();
            let derived = before.filter(|it| it.derived && it.offset >= *from);
            superseded.extend(derived.map(|it| (*seq, it)));
        }
        if superseded.is_empty() {
            return Vec::new();
        }
        let names = superseded.iter().map(|(_, it)| it.name.clone()).collect();
        let without = stock.catalog.without(&names);
        superseded
            .into_iter()
            .filter(|(timeline, it)| {
                without.is_restorable(Position {
                    timeline: *timeline,
                    offset: it.offset,
                })
            })
            .flat_map(|(_, it)| it.objects().into_iter().rev())
            .collect()
    }

    /// When the head's newest snapshot of a server was taken, or its timeline began, where a derived one could serve the
    /// window.
    fn held_since(&self, window_start: UnixMillis) -> Option<UnixMillis> {
        let catalog = self.stock.catalog;
        let timeline = catalog.timeline(catalog.head()?.timeline)?;
        let mut before = timeline
            .snapshots
            .iter()
            .filter(|it| self.stock.moment(&it.name, it.at) <= window_start)
            .rev()
            .peekable();
        before.next_if(|newest| newest.derived)?;
        let made = before.find(|it| !it.derived);
        Some(made.map_or(timeline.document.created_at, |it| it.at))
    }

    fn deletions(&self) -> Vec<(ObjectName, u64)> {
        let mut deletions = Vec::new();
        for timeline in self.stock.catalog.timelines() {
            let from = self.from.get(&timeline.seq()).copied();
            let snapshots = timeline.snapshots.iter();
            for snapshot in snapshots.filter(|it| from.is_none_or(|from| it.offset < from)) {
                // Without its end it is no snapshot any more.
                deletions.extend(snapshot.objects().into_iter().rev());
            }
            let segments = timeline.segments.iter();
            for segment in segments.filter(|it| from.is_none_or(|from| it.span.last <= from)) {
                deletions.push((segment.name.clone(), segment.bytes));
            }
        }
        deletions
    }

    /// What was left of snapshots that were cut short, before what is needed: behind that one may be put right by hand.
    fn fragments(&self, window_start: UnixMillis) -> Vec<(ObjectName, u64)> {
        let stock = self.stock;
        // Whatever the window, it takes its time to write a large one.
        let being_written = UnixMillis(stock.now.0.saturating_sub(FRAGMENT_MILLIS_MIN));
        let before = window_start.min(being_written);
        let fragments = stock.catalog.fragments().iter();
        fragments
            .filter(|it| {
                let from = self.from.get(&it.timeline.0);
                from.is_none_or(|from| it.offset < *from)
            })
            .filter(|it| {
                let mut parts = it.objects.iter();
                parts.all(|(name, _)| stock.moment(name, it.at) < before)
            })
            .flat_map(|it| it.objects.iter().rev().cloned())
            .collect()
    }

    /// Compares what can be restored before and after.
    fn check(&self, deletions: &[(ObjectName, u64)]) -> Result<(), PruneError> {
        if deletions.is_empty() {
            return Ok(());
        }
        let before = self.stock.catalog;
        let gone: HashSet<ObjectName> = deletions.iter().map(|(name, _)| name.clone()).collect();
        let after = before.without(&gone);
        if after.head() != before.head() {
            let timeline = before.head().map(|head| head.timeline);
            return Err(PruneError::Unsafe {
                timeline: timeline.unwrap_or(TimelineSeq::FIRST),
            });
        }
        for (seq, from) in &self.from {
            let kept = after.windows(*seq);
            let is_kept = |window: &Run| {
                let begin = window.after.max(*from);
                kept.iter()
                    .any(|kept| kept.after <= begin && window.last <= kept.last)
            };
            let windows = before.windows(*seq);
            if !windows
                .iter()
                .filter(|window| window.last >= *from)
                .all(is_kept)
            {
                return Err(PruneError::Unsafe { timeline: *seq });
            }
        }
        Ok(())
    }
}

/// The ends of branches that the head has left behind: the last few of those that are not on its way, the last few
/// suspects, and the last few of those on its way that went on behind where it left them.
fn superseded(catalog: &Catalog, head: Option<Position>) -> Vec<TimelineSeq> {
    let way: BTreeMap<TimelineSeq, Offset> = head
        .map(|head| catalog.lineage(head))
        .unwrap_or_default()
        .into_iter()
        .map(|step| (step.timeline, step.offset))
        .collect();
    let continued = continued(catalog);
    let (mut aside, mut suspects, mut beyond) = (Vec::new(), Vec::new(), Vec::new());
    for timeline in catalog.timelines() {
        let seq = timeline.seq();
        let Some(offset) = catalog.stored_end(seq).filter(|_| timeline.has_content()) else {
            continue;
        };
        let end = Position {
            timeline: seq,
            offset,
        };
        let superseded_at = catalog.received_at(seq);
        match way.get(&seq) {
            Some(left) if *left < offset => beyond.push((superseded_at, seq)),
            Some(_) => {}
            None if continued.contains(&end) => {}
            None if catalog.suspect(seq).is_some() => suspects.push((superseded_at, seq)),
            None => aside.push((superseded_at, seq)),
        }
    }
    let last = |mut ends: Vec<(UnixMillis, TimelineSeq)>| {
        ends.sort_unstable();
        ends.into_iter()
            .rev()
            .take(SUPERSEDED_KEPT)
            .map(|(_, seq)| seq)
    };
    last(aside)
        .chain(last(suspects))
        .chain(last(beyond))
        .collect()
}

/// Where another branch goes on: where such a one is an end, the other one's end stands for both. A branch without
/// content, a seed that never succeeded, stands for nothing, unless something goes on behind it in turn.
fn continued(catalog: &Catalog) -> BTreeSet<Position> {
    let mut continued = BTreeSet::new();
    let mut alive = BTreeSet::new();
    // A child has a greater number than what it continues.
    for timeline in catalog.timelines().rev() {
        let seq = timeline.seq();
        if !timeline.has_content() && !alive.contains(&seq) {
            continue;
        }
        if let Some(parent) = timeline.document.parent {
            alive.insert(parent.timeline);
            continued.insert(parent);
        }
    }
    continued
}
