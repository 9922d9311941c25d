//! The algebra of timelines, plans, merging and pruning against a model that knows nothing but single bytes.
//!
//! An archive is a few timelines over some sixty offsets. The model holds, for each timeline, which bytes are stored and
//! where snapshots lie, and follows the definitions word by word, however slowly.

use std::collections::{BTreeSet, HashSet};

use proptest::prelude::*;

use super::layout::ObjectName;
use super::plan::{Plan, Target, continuation, plan};
use super::retention::{Dates, Merge, Policy, Stock, merges, prune, superfluous};
use super::timeline::sketch::Sketch;
use super::timeline::{Catalog, Timeline};
use crate::position::{Offset, Position, ReplicationId, TimelineSeq, UnixMillis};

/// No timeline reaches further.
const OFFSETS: u64 = 64;
const MINUTE: u64 = 60 * 1000;

/// What is stored under one timeline.
#[derive(Clone, Debug)]
struct Branch {
    /// An older timeline, by its place, and the last of its offsets that counts.
    parent: Option<(usize, u64)>,
    /// Its own offset that stands for the same data as the parent's.
    start: u64,
    mapped: bool,
    suspect: bool,
    accepted: Option<u32>,
    /// Offset, and whether it is derived.
    snapshots: Vec<(u64, bool)>,
    /// The first byte, how many follow it, and whether it is a merged one.
    segments: Vec<(u64, u64, bool)>,
}

impl Branch {
    fn holds(&self, byte: u64) -> bool {
        let mut segments = self.segments.iter();
        segments.any(|(first, more, _)| (*first..=first + more).contains(&byte))
    }

    fn holds_all(&self, after: u64, to: u64) -> bool {
        (after + 1..=to).all(|byte| self.holds(byte))
    }
}

#[derive(Clone, Debug)]
struct Archive(Vec<Branch>);

impl Archive {
    /// No timeline is left before it begins, nor has it a snapshot from before; a name is there once.
    fn make_sense(&mut self) {
        for place in 0..self.0.len() {
            let parent = self.0[place].parent;
            let parent = parent.map(|(parent, at)| (parent, at.max(self.0[parent].start)));
            let branch = &mut self.0[place];
            branch.parent = parent;
            if !branch.mapped {
                branch.start = parent.map_or(0, |(_, at)| at);
            }
            for (offset, _) in &mut branch.snapshots {
                *offset = branch.start.max(*offset);
            }
            branch.snapshots.sort_unstable();
            branch.snapshots.dedup();
            branch.segments.sort_unstable();
            branch.segments.dedup();
        }
    }

    fn catalog(&self) -> Catalog {
        let mut sketch = Sketch::default();
        for (place, branch) in self.0.iter().enumerate() {
            let parent = branch.parent.map(|(place, offset)| (seq(place), offset));
            // Two of them bear the same id now and then, as timelines of one master do.
            let byte = u8::try_from(place / 2 + 1).unwrap();
            sketch = sketch.timeline(seq(place), byte, parent, branch.start);
            if branch.mapped {
                sketch = sketch.mapped();
            }
            if branch.suspect {
                sketch = sketch.suspect("may be stale");
            }
            for (offset, derived) in &branch.snapshots {
                sketch = match derived {
                    true => sketch.derived(*offset),
                    false => sketch.snapshot(*offset),
                };
            }
            for (first, more, merged) in &branch.segments {
                sketch = match merged {
                    true => sketch.merged(*first, first + more),
                    false => sketch.segment(*first, first + more),
                };
            }
            if let Some(rank) = branch.accepted {
                sketch = sketch.accepted(rank, 1);
            }
        }
        sketch.catalog()
    }

    /// The definition: from a snapshot, or from a start that its parent can be restored to, over bytes without a hole.
    fn is_restorable(&self, place: usize, offset: u64) -> bool {
        let branch = &self.0[place];
        let from = |base: u64| base <= offset && branch.holds_all(base, offset);
        let inherited = branch
            .parent
            .is_some_and(|(parent, at)| self.is_restorable(parent, at));
        (inherited && from(branch.start)) || branch.snapshots.iter().any(|(base, _)| from(*base))
    }

    fn is_suspect(&self, place: usize) -> bool {
        let branch = &self.0[place];
        let of_parent = || {
            let parent = branch.parent;
            parent.is_some_and(|(parent, _)| self.is_suspect(parent))
        };
        branch.accepted.is_none() && (branch.suspect || of_parent())
    }

    fn end(&self, place: usize) -> Option<u64> {
        (0..=OFFSETS)
            .rev()
            .find(|offset| self.is_restorable(place, *offset))
    }

    /// The end of the highest ranking timeline that is not suspect and can be restored. Without mapped ones.
    fn head(&self) -> Option<(usize, u64)> {
        let rank = |place: usize| {
            let own = (seq(place), 0);
            let accepted = self.0[place].accepted.map(|rank| (rank, 1));
            accepted.map_or(own, |accepted| accepted.max(own))
        };
        (0..self.0.len())
            .filter(|place| !self.is_suspect(*place))
            .filter_map(|place| Some((rank(place), place, self.end(place)?)))
            .max_by_key(|(rank, ..)| *rank)
            .map(|(_, place, end)| (place, end))
    }
}

fn seq(place: usize) -> u32 {
    u32::try_from(place).unwrap() + 1
}

fn at(place: usize, offset: u64) -> Position {
    Position {
        timeline: TimelineSeq::new(seq(place)),
        offset: Offset::new(offset),
    }
}

fn branch(place: usize) -> impl Strategy<Value = Branch> {
    let parent = prop::option::weighted(0.7, (any::<prop::sample::Index>(), 0..50_u64));
    let snapshots = prop::collection::vec((0..50_u64, prop::bool::weighted(0.2)), 0..3);
    let segments = prop::collection::vec((1..50_u64, 0..14_u64, prop::bool::weighted(0.3)), 0..9);
    (
        parent,
        snapshots,
        segments,
        prop::option::weighted(0.15, 0..50_u64),
        prop::bool::weighted(0.2),
        prop::option::weighted(0.1, 1..6_u32),
        prop::bool::weighted(0.3),
    )
        .prop_map(move |it| {
            let (parent, snapshots, mut segments, mapped_to, suspect, accepted, chained) = it;
            if chained {
                // One behind the other, as a streamer leaves them.
                let mut first = 1;
                for segment in &mut segments {
                    segment.0 = first;
                    segment.1 %= 7;
                    first += segment.1 + 1;
                }
            }
            let parent = parent
                .filter(|_| place > 0)
                .map(|(parent, offset)| (parent.index(place), offset));
            Branch {
                parent,
                start: mapped_to.unwrap_or_default(),
                mapped: parent.is_some() && mapped_to.is_some(),
                suspect: suspect && parent.is_none(),
                accepted,
                snapshots,
                segments,
            }
        })
}

fn archive() -> impl Strategy<Value = Archive> {
    let branches = (branch(0), branch(1), branch(2), branch(3), branch(4));
    (branches, 1..=5_usize).prop_map(|((a, b, c, d, e), count)| {
        let mut archive = Archive(vec![a, b, c, d, e].into_iter().take(count).collect());
        archive.make_sense();
        archive
    })
}

/// One that no timeline of its own was given for a seed.
fn unmapped() -> impl Strategy<Value = Archive> {
    archive().prop_map(|mut archive| {
        for branch in &mut archive.0 {
            branch.mapped = false;
        }
        archive
    })
}

/// Every byte that a plan promises is in the segments that it names, in order, from a snapshot that is there.
fn check_plan(archive: &Archive, plan: &Plan, target: Position) -> Result<(), TestCaseError> {
    prop_assert_eq!(plan.target, target);
    let mut reached = Position {
        timeline: plan.snapshot_timeline.0,
        offset: plan.snapshot.offset,
    };
    for leg in &plan.legs {
        reached = entered(archive, reached, leg.timeline);
        prop_assert_eq!(
            reached.offset,
            leg.after,
            "a leg begins where the one before ends"
        );
        for segment in &leg.segments {
            prop_assert!(segment.span.first <= reached.offset.next(), "a hole");
            prop_assert!(segment.span.last > reached.offset, "a segment for nothing");
            reached.offset = segment.span.last;
        }
        prop_assert!(reached.offset >= leg.to, "it ends early");
        reached.offset = leg.to;
    }
    reached = entered(archive, reached, target.timeline);
    prop_assert_eq!(reached, target);
    Ok(())
}

/// The position on `timeline` that stands for this one, through children that nothing was added on.
fn entered(archive: &Archive, from: Position, timeline: TimelineSeq) -> Position {
    let mut way = Vec::new();
    let mut place = timeline.as_u32() as usize - 1;
    while seq(place) != from.timeline.as_u32() {
        way.push(place);
        let Some((parent, _)) = archive.0[place].parent else {
            return from;
        };
        place = parent;
    }
    let mut reached = from;
    for place in way.into_iter().rev() {
        let (_, left) = archive.0[place].parent.unwrap();
        if reached.offset != Offset::new(left) {
            return reached;
        }
        reached = at(place, archive.0[place].start);
    }
    reached
}

/// A byte comes every so often.
const BYTE_MILLIS: u64 = 5 * MINUTE;
const NOW: u64 = 1000 * MINUTE;

/// When a byte came.
const fn received(offset: u64) -> u64 {
    offset * BYTE_MILLIS
}

/// Objects are stored some minutes after the last byte that they speak of, those that another streamer stores once more
/// much later.
fn dates(catalog: &Catalog, delays: &[u64]) -> Dates {
    let mut delays = delays.iter().cycle();
    let mut stored = |offset: Offset| {
        let at = received(offset.as_u64()) + delays.next().unwrap() * MINUTE;
        UnixMillis(at.min(NOW))
    };
    let mut dates = Dates::new();
    for timeline in catalog.timelines() {
        for snapshot in &timeline.snapshots {
            dates.insert(snapshot.name.clone(), stored(snapshot.offset));
        }
        for segment in &timeline.segments {
            dates.insert(segment.name.clone(), stored(segment.span.last));
        }
    }
    dates
}

fn names(timeline: &Timeline) -> impl Iterator<Item = ObjectName> + '_ {
    let snapshots = timeline.snapshots.iter().map(|it| it.name.clone());
    snapshots.chain(timeline.segments.iter().map(|it| it.name.clone()))
}

fn filled(catalog: &Catalog) -> BTreeSet<(TimelineSeq, ReplicationId)> {
    let filled = catalog.timelines().filter(|it| it.has_content());
    filled.map(|it| (it.seq(), it.id())).collect()
}

fn restorable(catalog: &Catalog) -> BTreeSet<Position> {
    let places = 0..catalog.timelines().count();
    places
        .flat_map(|place| (0..=OFFSETS).map(move |offset| at(place, offset)))
        .filter(|position| catalog.is_restorable(*position))
        .collect()
}

/// The same archive after a merge.
fn with_merged(archive: &Archive, merge: &Merge) -> Archive {
    let mut after = archive.clone();
    let place = merge.timeline.as_u32() as usize - 1;
    let (first, last) = (merge.span.first.as_u64(), merge.span.last.as_u64());
    after.0[place].segments.push((first, last - first, true));
    after
}

/// As many as `PROPTEST_CASES` says, which proptest itself reads only where nothing else is set.
fn cases() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok();
    ProptestConfig::with_cases(cases.map_or(400, |cases| cases.parse().unwrap()))
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn what_can_be_restored_is_what_the_definition_says(archive in archive()) {
        let catalog = archive.catalog();
        for place in 0..archive.0.len() {
            let windows = catalog.windows(TimelineSeq::new(seq(place)));
            for offset in 0..=OFFSETS {
                let expected = archive.is_restorable(place, offset);
                prop_assert_eq!(catalog.is_restorable(at(place, offset)), expected);
                let offset = Offset::new(offset);
                let in_window = windows.iter().any(|it| it.after <= offset && offset <= it.last);
                prop_assert_eq!(in_window, expected);
            }
            let end = catalog.stored_end(TimelineSeq::new(seq(place)));
            prop_assert_eq!(end.map(Offset::as_u64), archive.end(place));
        }
    }

    #[test]
    fn whatever_can_be_restored_has_a_plan_without_a_hole(archive in archive()) {
        let catalog = archive.catalog();
        for place in 0..archive.0.len() {
            for offset in 0..=OFFSETS {
                let target = at(place, offset);
                let planned = plan(&catalog, Target::Offset(target));
                prop_assert_eq!(planned.is_ok(), archive.is_restorable(place, offset));
                if let Ok(planned) = planned {
                    check_plan(&archive, &planned, target)?;
                }
            }
        }
    }

    #[test]
    fn what_continues_a_server_begins_where_it_stands(archive in archive(), place: prop::sample::Index) {
        let catalog = archive.catalog();
        let place = place.index(archive.0.len());
        let Some(end) = archive.end(place) else { return Ok(()) };
        let target = at(place, end);
        for from in catalog.lineage(target) {
            let Ok(planned) = continuation(&catalog, from, Target::Offset(target)) else { continue };
            let mut reached = from;
            for leg in &planned.legs {
                reached = entered(&archive, reached, leg.timeline);
                prop_assert_eq!((reached.timeline, reached.offset), (leg.timeline, leg.after));
                let place = leg.timeline.as_u32() as usize - 1;
                prop_assert!(archive.0[place].holds_all(leg.after.as_u64(), leg.to.as_u64()));
                reached.offset = leg.to;
            }
            prop_assert_eq!(entered(&archive, reached, target.timeline), target);
        }
    }

    #[test]
    fn the_head_is_the_highest_that_is_trusted(archive in unmapped()) {
        let catalog = archive.catalog();
        let expected = archive.head().map(|(place, offset)| at(place, offset));
        prop_assert_eq!(catalog.head(), expected);
        prop_assert_eq!(plan(&catalog, Target::Latest).ok().map(|plan| plan.target), expected);
        for place in 0..archive.0.len() {
            let suspect = catalog.suspect(TimelineSeq::new(seq(place))).is_some();
            prop_assert_eq!(suspect, archive.is_suspect(place));
        }
    }

    #[test]
    fn in_a_gap_is_nothing_that_can_be_restored(archive in archive()) {
        let catalog = archive.catalog();
        for place in 0..archive.0.len() {
            for gap in catalog.gaps(TimelineSeq::new(seq(place))) {
                prop_assert!(archive.is_restorable(place, gap.after.as_u64()));
                let inside = gap.after.as_u64() + 1..gap.resumes_at.as_u64();
                for offset in inside {
                    prop_assert!(!archive.is_restorable(place, offset));
                }
                prop_assert!(!archive.0[place].holds_all(gap.after.as_u64(), gap.resumes_at.as_u64()));
            }
        }
    }

    #[test]
    fn what_is_lost_never_adds_a_moment(archive in archive(), lost in prop::collection::vec(any::<bool>(), 60)) {
        let catalog = archive.catalog();
        let all: Vec<ObjectName> = catalog.timelines().flat_map(names).collect();
        let gone: HashSet<ObjectName> = all.into_iter().zip(lost).filter(|(_, lost)| *lost).map(|(name, _)| name).collect();
        let after = restorable(&catalog.without(&gone));
        prop_assert!(after.is_subset(&restorable(&catalog)));
    }

    /// The moments of a window are every state that a timeline was in since it began, the one at its beginning included.
    #[test]
    fn pruning_takes_no_moment_of_the_window(
        archive in archive(),
        delays in prop::collection::vec(prop_oneof![0..5_u64, 0..300_u64], 60),
        retention in 1..1000_u64,
    ) {
        let catalog = archive.catalog();
        let dates = dates(&catalog, &delays);
        let stock = Stock { catalog: &catalog, dates: &dates, now: UnixMillis(NOW) };
        let policy = Policy { retention_millis: retention * MINUTE, ..Policy::default() };
        let pruned = prune(&stock, &policy, &filled(&catalog));
        prop_assert!(pruned.is_ok(), "it found that it would do harm: {pruned:?}");
        let deletions = pruned.unwrap().deletions;
        let gone: HashSet<ObjectName> = deletions.into_iter().map(|(name, _)| name).collect();
        let after = catalog.without(&gone);
        prop_assert_eq!(after.head(), catalog.head());
        prop_assert_eq!(after.has_data(), catalog.has_data());
        let begin = NOW - retention * MINUTE;
        for place in 0..archive.0.len() {
            for offset in (0..=OFFSETS).filter(|offset| received(offset + 1) > begin) {
                // Whether a timeline still was in its last state then, nobody can tell: bytes that came within the window.
                let Some(last) = archive.end(place).filter(|last| received(*last) > begin) else { continue };
                if offset <= last {
                    let kept = after.is_restorable(at(place, offset));
                    prop_assert_eq!(kept, archive.is_restorable(place, offset), "{}", at(place, offset));
                }
            }
        }
    }

    #[test]
    fn merging_changes_nothing_that_can_be_restored(
        archive in archive(),
        delays in prop::collection::vec(prop_oneof![0..5_u64, 0..300_u64], 60),
        big in 1..600_u64,
    ) {
        let catalog = archive.catalog();
        let dates = dates(&catalog, &delays);
        let stock = Stock { catalog: &catalog, dates: &dates, now: UnixMillis(NOW) };
        let policy = Policy { minute_millis: 30 * MINUTE, merged_bytes_max: big, ..Policy::default() };
        let mut merged = archive.clone();
        for merge in merges(&stock, &policy, &BTreeSet::new()) {
            let mut reached = merge.span.first.previous();
            for segment in &merge.chain {
                prop_assert!(segment.span.first <= reached.next(), "bytes are missing between two of them");
                reached = segment.span.last;
            }
            prop_assert_eq!(reached, merge.span.last);
            for input in &merge.inputs {
                prop_assert!(merge.span.first <= input.span.first && input.span.last <= merge.span.last);
            }
            merged = with_merged(&merged, &merge);
        }
        let catalog = merged.catalog();
        prop_assert_eq!(restorable(&catalog), restorable(&archive.catalog()));

        // Later, what they cover goes.
        let dates = self::dates(&catalog, &delays);
        let later = Stock { catalog: &catalog, dates: &dates, now: UnixMillis(NOW + 1000 * MINUTE) };
        let gone: HashSet<ObjectName> = superfluous(&later, &policy, &BTreeSet::new())
            .into_iter()
            .flat_map(|covered| covered.of)
            .map(|segment| segment.name)
            .collect();
        prop_assert_eq!(restorable(&catalog.without(&gone)), restorable(&catalog));
        prop_assert_eq!(catalog.without(&gone).head(), catalog.head());
    }
}
