use std::collections::BTreeSet;

use super::*;
use crate::archive::timeline::sketch::Sketch;
use crate::archive::timeline::{Catalog, SegmentEntry};
use crate::position::{Offset, TimelineSeq};

const DAY: u64 = 24 * 60 * 60 * 1000;
const MINUTE: u64 = 60 * 1000;

/// In these archives an offset is a time in minutes: what was received at offset n was stored n minutes after the
/// beginning.
fn dates(catalog: &Catalog) -> Dates {
    let mut dates = Dates::new();
    for timeline in catalog.timelines() {
        for segment in &timeline.segments {
            let at = UnixMillis(segment.span.last.as_u64() * MINUTE);
            dates.insert(segment.name.clone(), at);
        }
        for snapshot in &timeline.snapshots {
            for (name, _) in snapshot.objects() {
                dates.insert(name, UnixMillis(snapshot.offset.as_u64() * MINUTE));
            }
        }
    }
    dates
}

fn folders(catalog: &Catalog) -> BTreeSet<TimelineSeq> {
    catalog.timelines().map(|it| it.seq()).collect()
}

/// What is pruned at `minute`, as (timeline, "snapshot" or "segment", offset or last offset).
fn pruned(catalog: &Catalog, minute: u64, days: u64) -> Vec<(u32, &'static str, u64)> {
    let dates = dates(catalog);
    let stock = Stock {
        catalog,
        dates: &dates,
        now: UnixMillis(minute * MINUTE),
    };
    let policy = Policy {
        retention_millis: days * DAY,
        ..Policy::default()
    };
    let plan = prune(&stock, &policy, &folders(catalog)).unwrap();
    plan.deletions
        .iter()
        .map(|(name, _)| {
            use crate::archive::layout::Object;
            match Object::parse(name.as_str()) {
                Some(Object::Snapshot { seq, offset, .. }) => {
                    (seq.as_u32(), "snapshot", offset.as_u64())
                }
                Some(Object::SnapshotPart { seq, offset, .. }) => {
                    (seq.as_u32(), "part", offset.as_u64())
                }
                Some(Object::Segment { seq, span, .. }) => {
                    (seq.as_u32(), "segment", span.last.as_u64())
                }
                other => panic!("{other:?} is never deleted"),
            }
        })
        .collect()
}

/// Minutes of a day.
const D: u64 = 24 * 60;

#[test]
fn kept_is_the_newest_snapshot_before_the_window_and_all_after_it() {
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .segment(1, D)
        .snapshot(D)
        .segment(D + 1, 2 * D)
        .snapshot(2 * D)
        .segment(2 * D + 1, 12 * D)
        .catalog();
    assert_eq!(pruned(&catalog, 8 * D, 7), [], "five minutes of doubt");
    assert_eq!(
        pruned(&catalog, 8 * D + 10, 7),
        [(1, "snapshot", 0), (1, "segment", D)]
    );
    assert_eq!(
        pruned(&catalog, 9 * D + 10, 7),
        [
            (1, "snapshot", 0),
            (1, "snapshot", D),
            (1, "segment", D),
            (1, "segment", 2 * D)
        ]
    );
    assert_eq!(
        pruned(&catalog, 1000 * D, 7).len(),
        4,
        "the last restorable snapshot stays, whatever its age"
    );
}

#[test]
fn a_branch_needs_its_parent_up_to_the_fork() {
    // The child has no snapshot of its own: what it continues has to stay.
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .segment(1, D)
        .snapshot(D)
        .segment(D + 1, 2 * D)
        .timeline(2, 2, Some((1, 2 * D)), 2 * D)
        .segment(2 * D + 1, 30 * D)
        .catalog();
    assert_eq!(
        pruned(&catalog, 30 * D, 7),
        [(1, "snapshot", 0), (1, "segment", D)]
    );
    // With a snapshot of its own before the window it does not.
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .segment(1, 2 * D)
        .timeline(2, 2, Some((1, 2 * D)), 2 * D)
        .segment(2 * D + 1, 3 * D)
        .snapshot(3 * D)
        .segment(3 * D + 1, 30 * D)
        .catalog();
    assert_eq!(
        pruned(&catalog, 30 * D, 7),
        [
            (1, "snapshot", 0),
            (1, "segment", 2 * D),
            (2, "segment", 3 * D)
        ]
    );
    // A third branch from the parent keeps it alive; what the second one dropped is no gap.
    let sketch = |sketch: Sketch| {
        sketch
            .timeline(1, 1, None, 0)
            .snapshot(0)
            .segment(1, 2 * D)
            .timeline(2, 2, Some((1, D)), D)
            .segment(D + 1, 29 * D)
            .timeline(3, 3, Some((1, 2 * D)), 2 * D)
    };
    let catalog = sketch(Sketch::default())
        .segment(2 * D + 1, 3 * D)
        .snapshot(3 * D)
        .segment(3 * D + 1, 30 * D)
        .catalog();
    assert_eq!(pruned(&catalog, 30 * D, 7), [(3, "segment", 3 * D)]);
    let after = sketch(Sketch::default())
        .snapshot(3 * D)
        .segment(3 * D + 1, 30 * D)
        .catalog();
    assert_eq!(after.gaps(TimelineSeq::new(3)), []);
}

#[test]
fn suspects_and_superseded_heads_stay() {
    let mut sketch = Sketch::default();
    for seq in 1..=6 {
        sketch = sketch
            .timeline(seq, u8::try_from(seq).unwrap(), None, 0)
            .snapshot(u64::from(seq))
            .segment(u64::from(seq) + 1, 10);
    }
    let catalog = sketch
        .timeline(7, 7, None, 0)
        .suspect("foreign")
        .snapshot(7)
        .segment(8, 10)
        .catalog();
    assert_eq!(catalog.head().unwrap().timeline, TimelineSeq::new(6));
    // 3, 4 and 5 were heads before; 7 waits for a person.
    let pruned: BTreeSet<u32> = pruned(&catalog, 100 * D, 7)
        .into_iter()
        .map(|(seq, ..)| seq)
        .collect();
    assert_eq!(pruned, [1, 2].into());
}

#[test]
fn snapshots_in_parts_are_one_and_lose_their_end_first() {
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .part(0, 1, false)
        .part(0, 2, true)
        .segment(1, 2 * D)
        .snapshot(2 * D)
        .segment(2 * D + 1, 30 * D)
        .part(3 * D, 1, false)
        .catalog();
    assert_eq!(
        pruned(&catalog, 30 * D, 7),
        [(1, "part", 0), (1, "part", 0), (1, "segment", 2 * D)],
        "a snapshot that is being written counts for nothing and is left alone"
    );
}

#[test]
fn nothing_is_pruned_from_a_tree_with_a_hole() {
    let catalog = Sketch::default()
        .timeline(2, 2, Some((1, 80)), 80)
        .segment(81, 100)
        .catalog();
    let dates = dates(&catalog);
    let stock = Stock {
        catalog: &catalog,
        dates: &dates,
        now: UnixMillis(1000 * DAY),
    };
    let refused = prune(&stock, &Policy::default(), &folders(&catalog)).unwrap_err();
    assert!(
        refused.to_string().contains("timeline.json is missing"),
        "{refused}"
    );
}

#[test]
fn a_clock_far_ahead_does_not_hold_a_timeline_for_ever() {
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(1)
        .segment_at(2, 10, 2, 5000 * DAY)
        .timeline(2, 2, None, 0)
        .snapshot(1)
        .segment(2, 10)
        .catalog();
    let stock_dates = dates(&catalog);
    let stock = Stock {
        catalog: &catalog,
        dates: &stock_dates,
        now: UnixMillis(100 * DAY),
    };
    let timeline = catalog.timeline(TimelineSeq::new(1)).unwrap();
    let segment = &timeline.segments[0];
    let moment = stock.moment(&segment.name, segment.span.last_at);
    assert_eq!(moment, UnixMillis(10 * MINUTE + DAY));
}

/// (first, last) of the inputs of each merge at `minute`.
fn merged(catalog: &Catalog, minute: u64, policy: Policy) -> Vec<Vec<(u64, u64)>> {
    let dates = dates(catalog);
    let stock = Stock {
        catalog,
        dates: &dates,
        now: UnixMillis(minute * MINUTE),
    };
    let spans = |segments: &[SegmentEntry]| {
        segments
            .iter()
            .map(|it| (it.span.first.as_u64(), it.span.last.as_u64()))
            .collect()
    };
    merges(&stock, &policy, &BTreeSet::new())
        .iter()
        .map(|merge| spans(&merge.inputs))
        .collect()
}

/// Ten minutes are a minute here.
fn coarse() -> Policy {
    Policy {
        minute_millis: 10 * MINUTE,
        hour_millis: 100 * MINUTE,
        ..Policy::default()
    }
}

#[test]
fn what_was_stored_within_a_minute_becomes_one() {
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .segment(1, 2)
        .segment(3, 4)
        // Another streamer's, cut elsewhere.
        .segment(4, 8)
        .segment(9, 11)
        .segment(13, 14)
        .segment(15, 16)
        .catalog();
    let groups = vec![vec![(1, 2), (3, 4), (4, 8), (9, 11)]];
    assert_eq!(
        merged(&catalog, 15, coarse()),
        Vec::<Vec<_>>::new(),
        "too fresh"
    );
    assert_eq!(merged(&catalog, 21, coarse()), groups, "the hole ends it");
    let both = [groups, vec![vec![(13, 14), (15, 16)]]].concat();
    assert_eq!(merged(&catalog, 40, coarse()), both);
}

#[test]
fn an_hour_follows_its_minutes() {
    let mut sketch = Sketch::default().timeline(1, 1, None, 0).snapshot(0);
    for first in (1..200).step_by(10) {
        sketch = sketch.merged(first, first + 9);
    }
    let policy = Policy {
        // The names of these give milliseconds for minutes.
        hour_millis: 100,
        minute_millis: 10,
        ..Policy::default()
    };
    let groups = merged(&sketch.catalog(), 1000, policy);
    let ends: Vec<_> = groups
        .iter()
        .map(|group| (group[0].0, group[group.len() - 1].1))
        .collect();
    assert_eq!(ends, [(1, 100), (101, 200)]);
}

#[test]
fn what_is_covered_goes_after_the_grace_period() {
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .merged(1, 10)
        .segment(1, 5)
        .segment(6, 10)
        .segment(1, 10)
        .segment(8, 12)
        .catalog();
    let dates = dates(&catalog);
    let at = |minute: u64, barred: &BTreeSet<ObjectName>| {
        let stock = Stock {
            catalog: &catalog,
            dates: &dates,
            now: UnixMillis(minute * MINUTE),
        };
        superfluous(&stock, &Policy::default(), barred)
    };
    assert_eq!(at(19, &BTreeSet::new()), []);
    let covered = at(20, &BTreeSet::new());
    assert_eq!(covered.len(), 1);
    assert!(covered[0].by.name.as_str().contains("/merged/"));
    let of: Vec<_> = covered[0]
        .of
        .iter()
        .map(|it| (it.span.first, it.span.last))
        .collect();
    let span = |first, last| (Offset::new(first), Offset::new(last));
    assert_eq!(of, [span(1, 10), span(1, 5), span(6, 10)]);
    let barred = [covered[0].by.name.clone()].into();
    assert_eq!(at(20, &barred), []);
}
