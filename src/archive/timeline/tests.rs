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
fn a_snapshot_in_parts_counts_when_all_of_them_are_there() {
    let of = |parts: &[(u32, bool)]| {
        let mut sketch = Sketch::default().timeline(1, 1, None, 0).segment(1, 100);
        for (part, last) in parts {
            sketch = sketch.part(40, *part, *last);
        }
        sketch.catalog()
    };
    let whole = of(&[(1, false), (2, false), (3, true)]);
    assert_eq!(whole.head(), Some(at(1, 100)));
    assert!(whole.problems.is_empty());
    let entry = &whole.newest().unwrap().snapshots[0];
    let numbers: Vec<_> = entry
        .objects()
        .iter()
        .map(|(name, bytes)| {
            let Some(Object::SnapshotPart { part, last, .. }) = Object::parse(name.as_str()) else {
                panic!("{name}");
            };
            (part, last, *bytes)
        })
        .collect();
    assert_eq!(numbers, [(1, false, 100), (2, false, 100), (3, true, 100)]);
    assert_eq!(entry.bytes, 300);

    for (parts, why) in [
        (&[(1_u32, false)] as &[_], "last part"),
        (&[(1, false), (2, false)], "last part"),
        (&[(1, false), (3, true)], "part 2 is missing"),
        (&[(2, false), (3, true)], "part 1 is missing"),
        (&[(2, true)], "part 1 is missing"),
        (&[(1, false), (2, true), (3, true)], "part 2 ends it"),
        (&[(1, false), (2, true), (3, false)], "part 2 ends it"),
        (
            &[(1, false), (2, true), (2, false), (3, true)],
            "part 2 ends it",
        ),
    ] {
        let catalog = of(parts);
        assert_eq!(catalog.head(), None, "{parts:?}");
        let [problem] = catalog.problems.as_slice() else {
            panic!("{parts:?}: {:?}", catalog.problems);
        };
        assert!(problem.contains(why), "{parts:?}: {problem}");
    }
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
fn what_lies_behind_a_hole_at_the_end_is_left_out_and_said() {
    let whole = || {
        Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(10)
            .segment(11, 100)
    };
    assert_eq!(whole().catalog().left_out(TimelineSeq::new(1)), None);
    let left = whole().segment(151, 200).catalog();
    let left = left.left_out(TimelineSeq::new(1)).unwrap();
    assert_eq!(
        (left.end, left.stored_to),
        (Offset::new(100), Some(Offset::new(200)))
    );
    assert_eq!(left.continued, None);
    let child = whole()
        .timeline(2, 2, Some((1, 200)), 200)
        .segment(201, 300);
    let child = child.catalog();
    assert_eq!(child.head(), Some(at(1, 100)));
    let left = child.left_out(TimelineSeq::new(1)).unwrap();
    assert_eq!(
        left.continued,
        Some((TimelineSeq::new(2), Offset::new(200)))
    );
    assert!(left.to_string().contains("WAS in the archive"), "{left}");
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
fn a_history_of_many_restarts_needs_neither_stack_nor_patience() {
    const RESTARTS: u32 = 20_000;
    let mut sketch = Sketch::default().timeline(1, 1, None, 0).snapshot(0);
    for seq in 2..=RESTARTS {
        sketch = sketch.timeline(
            seq,
            1,
            Some((seq - 1, u64::from(seq) - 2)),
            u64::from(seq) - 2,
        );
        sketch = sketch.segment(u64::from(seq) - 1, u64::from(seq) - 1);
    }
    let catalog = sketch.catalog();
    let asked = std::thread::Builder::new().stack_size(256 * 1024);
    let asked = asked.spawn(move || {
        let newest = TimelineSeq::new(RESTARTS);
        assert_eq!(catalog.head(), Some(at(RESTARTS, u64::from(RESTARTS) - 1)));
        assert_eq!(catalog.rival(UnixMillis(0)), None);
        assert!(catalog.suspect(newest).is_none() && catalog.is_inherited(newest));
    });
    asked.unwrap().join().unwrap();
}

#[test]
fn what_lies_before_a_suspicion_does_not_cure_it() {
    let sketch = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .segment(1, 100)
        .accepted(1, 1)
        .timeline(2, 2, Some((1, 60)), 60)
        .suspect("from an old dump")
        .segment(61, 70)
        .timeline(3, 3, Some((2, 70)), 70)
        .segment(71, 80);
    let of = |catalog: &Catalog, seq| {
        let found = catalog.to_be_accepted(TimelineSeq::new(seq));
        found
            .into_iter()
            .map(|(seq, _)| seq.as_u32())
            .collect::<Vec<_>>()
    };
    let catalog = sketch.catalog();
    assert!(catalog.suspect(TimelineSeq::new(3)).is_some());
    assert_eq!(of(&catalog, 1), [0; 0]);
    assert_eq!(of(&catalog, 2), [2]);
    assert_eq!(of(&catalog, 3), [3, 2]);
}

#[test]
fn a_suspect_that_went_on_under_another_id_is_accepted_as_what_it_became() {
    let suspect = || {
        Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(0)
            .segment(1, 100)
            .timeline(2, 2, None, 0)
            .suspect("of unknown past")
            .snapshot(3)
            .segment(4, 9)
    };
    let became = |sketch: Sketch| {
        let catalog = sketch.catalog();
        catalog
            .goes_on_as(TimelineSeq::new(2))
            .map(TimelineSeq::as_u32)
    };
    assert_eq!(became(suspect()), None);
    let next = || suspect().timeline(3, 3, Some((2, 9)), 9).segment(10, 12);
    assert_eq!(became(next()), Some(3));
    let twice = next().timeline(4, 4, Some((3, 12)), 12).segment(13, 20);
    assert_eq!(became(twice), Some(4));
    let earlier = suspect().timeline(3, 3, Some((2, 5)), 5).segment(6, 7);
    assert_eq!(became(earlier), None, "it lacks what came on 2 since");
    assert_eq!(became(next().suspect("of its own")), None);
    assert_eq!(became(suspect().accepted(2, 1)), None);
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

#[test]
fn a_timeline_that_stands_for_a_seed_is_the_head_until_what_was_seeded_grows() {
    let sketch = |end: u64| {
        Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(0)
            .segment(1, end)
            .timeline(2, 2, Some((1, 100)), 130)
            .mapped()
            // Another attempt at the first one.
            .timeline(3, 3, Some((2, 130)), 140)
            .mapped()
    };
    let now = UnixMillis(5000);
    let catalog = sketch(100).catalog();
    assert_eq!(catalog.head(), Some(at(3, 140)));
    assert_eq!(catalog.head_beyond(id(3), Offset::new(140)), None);
    assert!(!catalog.is_overtaken_seed(id(3), Offset::new(140)));

    let catalog = sketch(101).catalog();
    let head = Some(at(1, 101));
    assert_eq!(catalog.head(), head);
    assert_eq!(catalog.rival(now), None);
    assert_eq!(catalog.head_beyond(id(3), Offset::new(140)), head);
    assert_eq!(catalog.head_beyond(id(1), Offset::new(100)), head);
    assert_eq!(catalog.head_beyond(id(1), Offset::new(101)), None);
    for (byte, offset, overtaken) in [
        (2, 130, true),
        (3, 140, true),
        (3, 139, false),
        (1, 100, false),
    ] {
        let found = catalog.is_overtaken_seed(id(byte), Offset::new(offset));
        assert_eq!(found, overtaken, "id {byte} at {offset}");
    }

    // A person chose it, or its server went on.
    let chosen = sketch(101).accepted(3, 1).catalog();
    assert_eq!(chosen.head(), Some(at(3, 140)));
    let went_on = sketch(101).timeline(4, 4, Some((3, 140)), 140).catalog();
    assert_eq!(went_on.head(), Some(at(4, 140)));
}

#[test]
fn an_unfinished_command_is_no_growth_of_what_was_seeded() {
    let mut catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .segment(1, 100)
        .timeline(2, 2, Some((1, 90)), 130)
        .mapped()
        .catalog();
    // Until somebody looks into the end.
    assert_eq!(catalog.head(), Some(at(1, 100)));
    catalog.set_boundary(TimelineSeq::new(1), Offset::new(90));
    assert_eq!(catalog.head(), Some(at(2, 130)));
}
