use std::collections::BTreeSet;

use super::*;
use crate::archive::timeline::sketch::Sketch;
use crate::archive::timeline::{Catalog, SegmentEntry};
use crate::position::{Offset, ReplicationId, TimelineSeq};

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
    for fragment in catalog.fragments() {
        for (name, _) in &fragment.objects {
            let at = UnixMillis(fragment.offset.as_u64() * MINUTE);
            dates.insert(name.clone(), at);
        }
    }
    dates
}

fn filled(catalog: &Catalog) -> BTreeSet<(TimelineSeq, ReplicationId)> {
    let filled = catalog.timelines().filter(|it| it.has_content());
    filled.map(|it| (it.seq(), it.id())).collect()
}

fn planned(catalog: &Catalog, minute: u64, days: u64) -> PrunePlan {
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
    prune(&stock, &policy, &filled(catalog)).unwrap()
}

fn held_since(catalog: &Catalog, minute: u64) -> Option<UnixMillis> {
    planned(catalog, minute, 7).held_since
}

/// What is pruned at `minute`, as (timeline, "snapshot" or "segment", offset or last offset).
fn pruned(catalog: &Catalog, minute: u64, days: u64) -> Vec<(u32, &'static str, u64)> {
    planned(catalog, minute, days)
        .deletions
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
fn a_derived_snapshot_makes_nothing_superfluous_but_older_derived_ones() {
    let sketch = || {
        Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(0)
            .segment(1, D)
            .derived(D)
            .segment(D + 1, 2 * D)
            .derived(2 * D)
            .segment(2 * D + 1, 3 * D)
            .derived(3 * D)
            .segment(3 * D + 1, 12 * D)
    };
    let derived = sketch().catalog();
    // All moments from the server's own snapshot on stay, and the one with which restores of the window begin.
    assert_eq!(
        pruned(&derived, 10 * D + 10, 7),
        [(1, "snapshot", D), (1, "snapshot", 2 * D)]
    );
    assert_eq!(
        pruned(&derived, 1000 * D, 7),
        [(1, "snapshot", D), (1, "snapshot", 2 * D)],
        "whatever their age"
    );
    assert_eq!(pruned(&derived, 9 * D + 10, 7), [(1, "snapshot", D)]);
    assert_eq!(held_since(&derived, 1000 * D), Some(UnixMillis(0)));
    assert_eq!(held_since(&derived, 8 * D), None, "not held by it yet");
    // As soon as a server has made another one.
    let made = sketch().snapshot(12 * D).segment(12 * D + 1, 30 * D);
    let made = made.catalog();
    assert_eq!(held_since(&made, 20 * D), None);
    assert_eq!(
        pruned(&made, 20 * D, 7),
        [
            (1, "snapshot", 0),
            (1, "snapshot", D),
            (1, "snapshot", 2 * D),
            (1, "snapshot", 3 * D),
            (1, "segment", D),
            (1, "segment", 2 * D),
            (1, "segment", 3 * D),
            (1, "segment", 12 * D),
        ]
    );
}

#[test]
fn a_derived_snapshot_stays_where_nothing_else_leads_to_its_place() {
    // What it was made from was lost in between.
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .segment(1, D - 100)
        .derived(D)
        .segment(D + 1, 2 * D)
        .derived(2 * D)
        .segment(2 * D + 1, 12 * D)
        .catalog();
    assert_eq!(pruned(&catalog, 1000 * D, 7), []);
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

/// A seed that never succeeded, and one that never began, continue nothing.
#[test]
fn a_superseded_head_stays_whoever_stands_for_it_without_content() {
    for is_mapped in [true, false] {
        let mut sketch = Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(1)
            .segment(2, 10)
            .timeline(2, 2, Some((1, 10)), 10)
            .timeline(3, 3, Some((2, 10)), 10);
        if is_mapped {
            sketch = sketch.mapped();
        }
        let catalog = sketch
            .timeline(4, 4, None, 0)
            .snapshot(1)
            .segment(2, 10)
            .catalog();
        assert_eq!(catalog.head().unwrap().timeline, TimelineSeq::new(4));
        assert_eq!(pruned(&catalog, 100 * D, 7), []);
    }
}

/// Where something goes on behind one without content, its end stands for all of them.
#[test]
fn a_child_without_content_that_is_continued_continues() {
    let mut sketch = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(1)
        .segment(2, 10)
        .timeline(2, 2, Some((1, 10)), 10)
        .timeline(3, 3, Some((2, 10)), 10)
        .snapshot(11)
        .segment(12, 20);
    for seq in 4..=6 {
        sketch = sketch
            .timeline(seq, u8::try_from(seq).unwrap(), None, 0)
            .snapshot(u64::from(seq) * 100);
    }
    let catalog = sketch.catalog();
    assert_eq!(
        pruned(&catalog, 100 * D, 7),
        [(1, "snapshot", 1), (1, "segment", 10)]
    );
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
    let refused = prune(&stock, &Policy::default(), &filled(&catalog)).unwrap_err();
    assert!(
        refused.to_string().contains("timeline.json is missing"),
        "{refused}"
    );
}

/// Whoever continues it may need what lies in a folder that lost its document, and the other way round.
#[test]
fn nothing_is_pruned_beside_data_that_does_not_count() {
    let catalog = Sketch::default()
        .timeline(2, 2, None, 0)
        .snapshot(10)
        .catalog();
    let dates = dates(&catalog);
    let stock = Stock {
        catalog: &catalog,
        dates: &dates,
        now: UnixMillis(1000 * DAY),
    };
    let lost = [
        (TimelineSeq::new(3), ReplicationId::from_raw([3; 20])),
        (TimelineSeq::new(2), ReplicationId::from_raw([9; 20])),
    ];
    for lost in lost {
        let mut filled = filled(&catalog);
        assert!(prune(&stock, &Policy::default(), &filled).is_ok());
        filled.insert(lost);
        let refused = prune(&stock, &Policy::default(), &filled).unwrap_err();
        let (timeline, id) = lost;
        assert_eq!(refused, PruneError::Uncounted { timeline, id });
        assert!(refused.to_string().contains("timeline.json"), "{refused}");
    }
}

#[test]
fn parts_without_their_end_go_when_they_are_old_and_superseded() {
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .segment(1, D)
        .part(D, 1, false)
        .part(D, 2, false)
        .segment(D + 1, 2 * D)
        .snapshot(2 * D)
        .segment(2 * D + 1, 30 * D)
        .part(10 * D, 1, false)
        .part(25 * D, 1, false)
        .catalog();
    let parts = |minute| {
        let pruned = pruned(&catalog, minute, 7).into_iter();
        let parts = pruned.filter(|(_, what, _)| *what == "part");
        parts.map(|(.., offset)| offset).collect::<Vec<_>>()
    };
    assert_eq!(parts(8 * D), [0; 0], "the base is older");
    assert_eq!(parts(30 * D), [D, D], "the others may be put right");
    // Nothing leads to this one any more: it goes with all the rest, when it is old.
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .part(D, 1, false)
        .part(29 * D, 1, false)
        .timeline(2, 2, None, 0)
        .snapshot(2 * D)
        .catalog();
    let dates = dates(&catalog);
    let stock = Stock {
        catalog: &catalog,
        dates: &dates,
        now: UnixMillis(30 * DAY),
    };
    for retention_millis in [MINUTE, 7 * DAY] {
        let policy = Policy {
            retention_millis,
            ..Policy::default()
        };
        let plan = prune(&stock, &policy, &filled(&catalog)).unwrap();
        assert_eq!(plan.deletions.len(), 1, "{:?}", plan.deletions);
        assert_eq!(plan.deletions[0].0, catalog.fragments()[0].objects[0].0);
    }
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

/// An archive that was copied without its files' dates is as old as its names say.
#[test]
fn a_date_that_was_set_back_makes_nothing_old() {
    let day = |days: u64| days * DAY;
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(day(90))
        .segment_at(day(90) + 1, day(95), day(90), day(95))
        .snapshot(day(95))
        .segment_at(day(95) + 1, day(99), day(95), day(99))
        .catalog();
    let all = dates(&catalog).into_keys();
    let stock_dates: Dates = all.map(|name| (name, UnixMillis(1))).collect();
    let stock = Stock {
        catalog: &catalog,
        dates: &stock_dates,
        now: UnixMillis(day(100)),
    };
    let plan = prune(&stock, &Policy::default(), &filled(&catalog)).unwrap();
    assert_eq!(plan.deletions, []);
    let stock = Stock {
        now: UnixMillis(day(103)),
        ..stock
    };
    let plan = prune(&stock, &Policy::default(), &filled(&catalog)).unwrap();
    assert_eq!(plan.deletions.len(), 2, "in the end it is old");
    // A name that says less than the date does: the clock was behind when it was written.
    let name = &catalog.timelines().next().unwrap().snapshots[0].name;
    let late: Dates = [(name.clone(), UnixMillis(day(99)))].into();
    let stock = Stock {
        dates: &late,
        ..stock
    };
    assert_eq!(stock.moment(name, UnixMillis(day(2))), UnixMillis(day(99)));
}

#[test]
fn what_nobody_has_dated_is_new_and_is_not_merged() {
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .segment(1, 2)
        .segment(3, 4)
        .segment(5, 6)
        .segment(7, 8)
        .catalog();
    let mut dates = dates(&catalog);
    let first = &catalog.timelines().next().unwrap().segments[0];
    dates.remove(&first.name);
    let stock = Stock {
        catalog: &catalog,
        dates: &dates,
        now: UnixMillis(100 * DAY),
    };
    assert_eq!(stock.moment(&first.name, UnixMillis(2)), stock.now);
    let merges = merges(&stock, &coarse(), &BTreeSet::new());
    assert_eq!(merges.len(), 1);
    assert_eq!(merges[0].inputs.len(), 3, "it does not hold the others up");
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

/// A first pass over a year of segments must not need a gigabyte: whatever is planned shares the names of the catalogue.
#[test]
fn plans_share_the_names_of_the_catalogue() {
    let mut sketch = Sketch::default().timeline(1, 1, None, 0).snapshot(0);
    for minute in 0..100 {
        sketch = sketch.segment(minute + 1, minute + 1);
    }
    let catalog = sketch.merged(1, 50).snapshot(90).catalog();
    let dates = dates(&catalog);
    let stock = Stock {
        catalog: &catalog,
        dates: &dates,
        now: UnixMillis(30 * DAY),
    };
    let policy = Policy {
        retention_millis: DAY,
        ..coarse()
    };
    let texts = |names: Vec<&ObjectName>| -> BTreeSet<*const u8> {
        let texts = names.into_iter().map(|name| name.as_str().as_ptr());
        texts.collect()
    };
    let timeline = catalog.timelines().next().unwrap();
    let segments = timeline.segments.iter().map(|it| &it.name);
    let snapshots = timeline.snapshots.iter().map(|it| &it.name);
    let held = texts(segments.chain(snapshots).collect());
    assert_eq!(held.len(), 103);
    let merges = merges(&stock, &policy, &BTreeSet::new());
    let inputs = merges
        .iter()
        .flat_map(|it| it.inputs.iter().chain(&it.chain));
    let inputs = texts(inputs.map(|it| &it.name).collect());
    let superfluous = superfluous(&stock, &policy, &BTreeSet::new());
    let covered = superfluous.iter().flat_map(|it| &it.of);
    let covered = texts(covered.map(|it| &it.name).collect());
    let prune = prune(&stock, &policy, &filled(&catalog)).unwrap();
    let deleted = texts(prune.deletions.iter().map(|(name, _)| name).collect());
    for (what, planned) in [("merge", inputs), ("covered", covered), ("prune", deleted)] {
        assert!(planned.len() > 10, "{what}: {}", planned.len());
        assert!(planned.is_subset(&held), "{what}");
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

/// Two streamers raced for number 1, and one of them left an empty folder. Once all that timeline 1 holds has gone, nobody could
/// tell which of the two was given up.
#[test]
fn of_a_number_that_two_folders_bear_something_stays() {
    let day = |day: u64| day * DAY / MINUTE;
    let sketch = || {
        Sketch::default()
            .timeline(1, 9, None, 0)
            .timeline(1, 1, None, 0)
            .snapshot(0)
            .segment(1, 10)
            .segment(11, 20)
            .timeline(2, 2, Some((1, 20)), 20)
            .segment(21, 30)
            .snapshot(30)
            .segment(31, day(30))
            .snapshot(day(30))
    };
    let gone = pruned(&sketch().catalog(), day(60), 7);
    assert!(gone.contains(&(1, "snapshot", 0)) && gone.contains(&(1, "segment", 10)));
    assert!(!gone.contains(&(1, "segment", 20)), "{gone:?}");
    let without_twin = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .segment(1, 20)
        .timeline(2, 2, Some((1, 20)), 20)
        .snapshot(30)
        .segment(31, day(30))
        .snapshot(day(30));
    assert!(pruned(&without_twin.catalog(), day(60), 7).contains(&(1, "segment", 20)));
}
