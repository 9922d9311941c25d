use super::*;
use crate::archive::timeline::sketch::Sketch;

const NOW: UnixMillis = UnixMillis(1_000_000);

fn at(timeline: u32, offset: u64) -> Position {
    Position {
        timeline: TimelineSeq::new(timeline),
        offset: Offset::new(offset),
    }
}

fn way(catalog: &Catalog) -> Way {
    Way::new(catalog, catalog.head().unwrap())
}

/// (timeline, the stretch's first offset, the segment's first offset) of a moment.
fn place(way: &Way, located: &Located) -> (u32, u64, Option<u64>) {
    let stretch = &way.stretches()[located.stretch];
    (
        stretch.timeline.as_u32(),
        stretch.after.as_u64(),
        located
            .segment
            .map(|index| stretch.segments[index].0.span.first.as_u64()),
    )
}

fn at_time(way: &Way, millis: u64) -> Result<(u32, u64, Option<u64>), OutsideWindow> {
    way.at_time(UnixMillis(millis), NOW)
        .map(|located| place(way, &located))
}

fn at_offset(
    way: &Way,
    timeline: u32,
    offset: u64,
) -> Result<(u32, u64, Option<u64>), OutsideWindow> {
    way.at_offset(at(timeline, offset))
        .map(|located| place(way, &located))
}

/// A failover at 150, behind which the old master lived on for a while.
fn failed_over() -> Sketch {
    Sketch::default()
        .timeline(1, 1, None, 50)
        .snapshot(50)
        .segment_at(51, 100, 1000, 2000)
        .segment_at(101, 200, 3000, 9000)
        .timeline(2, 2, Some((1, 150)), 150)
        .segment_at(151, 180, 6000, 7000)
}

#[test]
fn the_last_piece_that_begins_before_a_moment_holds_it() {
    let catalog = failed_over().catalog();
    let way = way(&catalog);
    assert_eq!(at_time(&way, 50), Ok((1, 50, None)));
    assert_eq!(at_time(&way, 999), Ok((1, 50, None)));
    assert_eq!(at_time(&way, 1000), Ok((1, 50, Some(51))));
    assert_eq!(at_time(&way, 2500), Ok((1, 50, Some(51))));
    assert_eq!(at_time(&way, 3000), Ok((1, 50, Some(101))));
    assert_eq!(
        at_time(&way, 5999),
        Ok((1, 50, Some(101))),
        "what the old master still took is of another branch"
    );
    assert_eq!(at_time(&way, 6000), Ok((2, 150, Some(151))));
    assert_eq!(at_time(&way, 900_000), Ok((2, 150, Some(151))));
    let lost = Way::new(&catalog, at(1, 200));
    assert_eq!(at_time(&lost, 8000), Ok((1, 50, Some(101))));
    assert_eq!(lost.stretches().len(), 1);
}

#[test]
fn what_lies_outside_names_the_nearest_moments() {
    let catalog = failed_over().catalog();
    let way = way(&catalog);
    assert_eq!(
        at_time(&way, 49).unwrap_err().to_string(),
        "1970-01-01T00:00:00.049Z lies before what the archive can restore; the nearest restorable moment is \
         1970-01-01T00:00:00.050Z (timeline 1 offset 50)"
    );
    assert_eq!(
        at_time(&way, 1_000_001).unwrap_err().to_string(),
        "1970-01-01T00:16:40.001Z lies in the future; the nearest restorable moment is 1970-01-01T00:00:07.000Z \
         (timeline 2 offset 180)"
    );
    let behind = at_offset(&way, 2, 181).unwrap_err();
    assert!(
        matches!(behind, OutsideWindow::Behind { future: false, last, .. } if last.position == at(2, 180))
    );
    let before = at_offset(&way, 1, 49).unwrap_err();
    assert!(matches!(before, OutsideWindow::Before { first, .. } if first.position == at(1, 50)));
}

#[test]
fn a_gap_names_both_its_sides() {
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .segment_at(1, 100, 1000, 2000)
        .segment_at(201, 9000, 5000, 10_000)
        .snapshot(8000)
        .catalog();
    let way = way(&catalog);
    assert_eq!(at_time(&way, 2000), Ok((1, 0, Some(1))));
    for moment in [2001, 7999] {
        assert_eq!(
            at_time(&way, moment).unwrap_err(),
            OutsideWindow::Gap {
                wanted: UnixMillis(moment).to_string(),
                before: Moment {
                    position: at(1, 100),
                    at: UnixMillis(2000)
                },
                after: Moment {
                    position: at(1, 8000),
                    at: UnixMillis(8000)
                },
            }
        );
    }
    assert_eq!(at_time(&way, 8000), Ok((1, 8000, Some(201))));
    assert!(matches!(
        at_offset(&way, 1, 101),
        Err(OutsideWindow::Gap { .. })
    ));
    assert!(matches!(
        at_offset(&way, 1, 7999),
        Err(OutsideWindow::Gap { .. })
    ));
    assert_eq!(at_offset(&way, 1, 8000), Ok((1, 8000, None)));
    assert_eq!(at_offset(&way, 1, 8001), Ok((1, 8000, Some(201))));
    let (first, last) = way.window().unwrap();
    assert_eq!((first.position, last.position), (at(1, 0), at(1, 9000)));
}

#[test]
fn behind_a_hole_nothing_leads_to_there_is_no_moment() {
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .segment_at(1, 100, 1000, 2000)
        .segment_at(201, 300, 5000, 6000)
        .catalog();
    let way = way(&catalog);
    assert_eq!(at_time(&way, 2000), Ok((1, 0, Some(1))));
    for moment in [2001, 5500, 900_000] {
        let error = at_time(&way, moment).unwrap_err();
        assert!(
            matches!(error, OutsideWindow::Behind { future: false, last, .. } if last.position == at(1, 100))
        );
    }
}

#[test]
fn a_seed_that_was_rewritten_is_on_the_way_and_holds_nothing() {
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .segment_at(1, 100, 1000, 2000)
        .timeline(2, 2, Some((1, 100)), 130)
        .mapped()
        .timeline(3, 3, Some((2, 130)), 130)
        .segment_at(131, 140, 5000, 6000)
        .catalog();
    let way = way(&catalog);
    assert_eq!(at_time(&way, 1999), Ok((1, 0, Some(1))));
    assert_eq!(at_time(&way, 2000), Ok((3, 130, None)), "the same data");
    assert_eq!(at_time(&way, 4999), Ok((3, 130, None)));
    assert_eq!(at_time(&way, 5000), Ok((3, 130, Some(131))));
}

#[test]
fn clocks_that_were_wrong_do_not_lead_astray() {
    const DAY: u64 = 24 * 60 * 60 * 1000;
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .segment_at(1, 100, 1000, 2000)
        .segment_at(101, 200, 90 * DAY, 90 * DAY)
        .segment_at(201, 300, 1500, 4000)
        .catalog();
    let way = way(&catalog);
    assert_eq!(at_time(&way, 1999), Ok((1, 0, Some(1))));
    assert_eq!(
        at_time(&way, 2000),
        Ok((1, 0, Some(201))),
        "the days ahead are not believed, the one set back is held"
    );
    assert_eq!(way.window().unwrap().1.at, UnixMillis(4000));
}

#[test]
fn nothing_restorable_is_nothing() {
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .segment(1, 9)
        .catalog();
    let way = Way::new(&catalog, at(1, 9));
    assert!(way.window().is_none());
    assert_eq!(
        at_time(&way, 5),
        Err(OutsideWindow::Nothing(TimelineSeq::new(1)))
    );
    assert_eq!(
        at_offset(&way, 1, 5),
        Err(OutsideWindow::Nothing(TimelineSeq::new(1)))
    );
}

#[test]
fn timelines_off_the_way_hold_what_it_does_not() {
    let catalog = failed_over().catalog();
    let off = |catalog: &Catalog, moment, later_than: Option<u64>| {
        let tip = catalog.head().unwrap();
        let later_than = later_than.map(UnixMillis);
        let found = elsewhere(catalog, tip, UnixMillis(moment), later_than);
        found.iter().map(|seq| seq.as_u32()).collect::<Vec<_>>()
    };
    assert_eq!(off(&catalog, 8000, Some(7000)), [1], "the old master's");
    assert!(off(&catalog, 9500, Some(9000)).is_empty());
    let two_roots = Sketch::default()
        .timeline(1, 1, None, 50)
        .snapshot(50)
        .segment_at(51, 100, 60, 70)
        .timeline(2, 2, None, 500)
        .snapshot(500)
        .segment_at(501, 600, 1000, 2000)
        .catalog();
    assert_eq!(off(&two_roots, 100, None), [1]);
    assert!(off(&two_roots, 49, None).is_empty());
    assert!(off(&two_roots, 3000, Some(2000)).is_empty());
}
