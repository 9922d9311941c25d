use proptest::prelude::*;

use super::*;

const ID: &str = "0123456789abcdef0123456789abcdef01234567";

fn id() -> ReplicationId {
    ID.parse().unwrap()
}

fn segment(first: u64, last: u64, first_at: u64, last_at: u64) -> Object {
    Object::Segment {
        seq: TimelineSeq::new(3),
        id: id(),
        span: Span {
            first: Offset::new(first),
            last: Offset::new(last),
            first_at: UnixMillis(first_at),
            last_at: UnixMillis(last_at),
        },
        merged: false,
    }
}

fn part(part: u32, last: bool) -> Object {
    Object::SnapshotPart {
        seq: TimelineSeq::new(3),
        id: id(),
        offset: Offset::new(42),
        at: UnixMillis(1_700_000_000_000),
        derived: false,
        part,
        last,
    }
}

#[test]
fn names_are_spelled_as_documented() {
    let seq = TimelineSeq::new(3);
    let merged = match segment(1, 99, 1_700_000_000_000, 1_700_000_000_999) {
        Object::Segment { seq, id, span, .. } => Object::Segment {
            seq,
            id,
            span,
            merged: true,
        },
        other => other,
    };
    let documented = [
        (Object::Archive, "archive.json".to_owned()),
        (
            Object::Timeline { seq, id: id() },
            format!("timelines/00000003-{ID}/timeline.json"),
        ),
        (
            Object::Accepted {
                seq,
                id: id(),
                rank: TimelineSeq::new(5),
                order: 1,
            },
            format!("timelines/00000003-{ID}/accepted-00000005-00000001.json"),
        ),
        (
            Object::Snapshot {
                seq,
                id: id(),
                offset: Offset::new(42),
                at: UnixMillis(1_700_000_000_000),
                derived: false,
            },
            format!(
                "timelines/00000003-{ID}/snapshots/00000000000000000042-1700000000000.rdb.blocks"
            ),
        ),
        (
            Object::Snapshot {
                seq,
                id: id(),
                offset: Offset::new(42),
                at: UnixMillis(1_700_000_000_000),
                derived: true,
            },
            format!(
                "timelines/00000003-{ID}/snapshots/00000000000000000042-1700000000000-derived.rdb.blocks"
            ),
        ),
        (
            Object::SnapshotPart {
                seq,
                id: id(),
                offset: Offset::new(42),
                at: UnixMillis(1_700_000_000_000),
                derived: true,
                part: 2,
                last: true,
            },
            format!(
                "timelines/00000003-{ID}/snapshots/00000000000000000042-1700000000000-derived-0002-end.rdb.blocks"
            ),
        ),
        (
            part(7, false),
            format!(
                "timelines/00000003-{ID}/snapshots/00000000000000000042-1700000000000-0007.rdb.blocks"
            ),
        ),
        (
            part(8, true),
            format!(
                "timelines/00000003-{ID}/snapshots/00000000000000000042-1700000000000-0008-end.rdb.blocks"
            ),
        ),
        (
            segment(1, 99, 1_700_000_000_000, 1_700_000_000_999),
            format!(
                "timelines/00000003-{ID}/segments/00000000000000000001-00000000000000000099-1700000000000-1700000000999.blocks"
            ),
        ),
        (
            merged,
            format!(
                "timelines/00000003-{ID}/merged/00000000000000000001-00000000000000000099-1700000000000-1700000000999.blocks"
            ),
        ),
    ];
    for (object, name) in documented {
        assert_eq!(object.name().as_str(), name);
        assert_eq!(Object::parse(&name), Some(object));
        let is_merged = matches!(object, Object::Segment { merged: true, .. });
        assert_eq!(Object::is_merged_segment(&object.name()), is_merged);
    }
}

#[test]
fn other_names_are_passed_over() {
    let timeline = format!("timelines/00000003-{ID}");
    for name in [
        String::new(),
        "archive.json.bak".to_owned(),
        "timelines".to_owned(),
        format!("{timeline}/"),
        format!("{timeline}/timeline.json/x"),
        format!("timelines/3-{ID}/timeline.json"),
        format!("timelines/+0000003-{ID}/timeline.json"),
        format!("timelines/00000003-{}/timeline.json", ID.to_uppercase()),
        format!("{timeline}/snapshots/42-1700000000000.rdb.blocks"),
        part(0, false).name().to_string(),
        part(1, true).name().to_string(),
        part(10_000, false).name().to_string(),
        part(2, false).name().to_string().replace("-0002", "-2"),
        part(2, true).name().to_string().replace("-end", "-end-end"),
        format!(
            "{timeline}/segments/00000000000000000009-00000000000000000001-1700000000000-1700000000999.blocks"
        ),
        format!(
            "{timeline}/segments/00000000000000000000-00000000000000000001-1700000000000-1700000000999.blocks"
        ),
        format!(
            "{timeline}/segments/00000000000000000001-18446744073709551615-1700000000000-1700000000999.blocks"
        ),
        format!(
            "{timeline}/segments/00000000000000000001-99999999999999999999-1700000000000-1700000000999.blocks"
        ),
        format!(
            "{timeline}/segments/00000000000000000001-00000000000000000009-1700000000000-1700000000999-1.blocks"
        ),
        format!(
            "{timeline}/elsewhere/00000000000000000001-00000000000000000009-1700000000000-1700000000999.blocks"
        ),
    ] {
        assert_eq!(Object::parse(&name), None, "{name}");
    }
}

#[test]
fn object_names_never_leave_their_folder() {
    for name in [
        "", "/x", "x/", "a//b", "..", "a/../b", ".hidden", "a/.tmp", "a b", "a\\b", "a\0", "\u{e9}",
    ] {
        assert!(ObjectName::new(name).is_err(), "{name:?}");
    }
    assert!(ObjectName::new(&"x".repeat(OBJECT_NAME_BYTES_MAX)).is_ok());
    assert!(ObjectName::new(&"x".repeat(OBJECT_NAME_BYTES_MAX + 1)).is_err());
}

#[test]
fn a_clock_beyond_the_digits_keeps_the_name_readable() {
    let object = segment(1, 2, u64::MAX, u64::MAX);
    let latest = UNIX_MILLIS_MAX.0;
    assert_eq!(
        Object::parse(object.name().as_str()),
        Some(segment(1, 2, latest, latest))
    );
}

#[test]
fn everything_of_a_timeline_lies_under_its_prefixes() {
    let seq = TimelineSeq::new(3);
    let name = segment(1, 2, 3, 4).name();
    for prefix in [
        timelines_prefix().to_owned(),
        timeline_prefix(seq, &id()),
        segments_prefix(seq, &id()),
    ] {
        assert!(name.as_str().starts_with(&prefix), "{prefix}");
    }
    assert!(!name.as_str().starts_with(&merged_prefix(seq, &id())));
    assert!(!name.as_str().starts_with(&snapshots_prefix(seq, &id())));
    assert!(!name.as_str().starts_with(&accepted_prefix(seq, &id())));
}

#[test]
fn later_timelines_lie_behind_earlier_ones() {
    let after = timelines_after(TimelineSeq::new(3));
    let name = |seq| timeline_prefix(TimelineSeq::new(seq), &id());
    assert!(name(2) < after && name(3) < after);
    assert!(name(4) > after && name(40) > after);
}

#[test]
fn archive_ids_are_read_as_they_are_written() {
    let id = ArchiveId::from_raw([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
    assert_eq!(id.to_string(), "000102030405060708090a0b0c0d0eff");
    assert_eq!(id.to_string().parse(), Ok(id));
    for wrong in [
        "",
        "0",
        "+00102030405060708090a0b0c0d0eff",
        "000102030405060708090a0b0c0d0eff00",
    ] {
        assert_eq!(wrong.parse::<ArchiveId>(), Err(NotAnArchiveId), "{wrong}");
    }
}

fn any_id() -> impl Strategy<Value = ReplicationId> {
    any::<[u8; 20]>().prop_map(ReplicationId::from_raw)
}

fn any_seq() -> impl Strategy<Value = TimelineSeq> {
    (0..100_000_000_u32).prop_map(TimelineSeq::new)
}

fn any_at() -> impl Strategy<Value = UnixMillis> {
    (0..=UNIX_MILLIS_MAX.0).prop_map(UnixMillis)
}

prop_compose! {
    fn any_span()(
        first in 1..u64::MAX,
        last in 1..u64::MAX,
        first_at in any_at(),
        last_at in any_at(),
    ) -> Span {
        Span {
            first: Offset::new(first.min(last)),
            last: Offset::new(first.max(last)),
            first_at,
            last_at,
        }
    }
}

fn any_object() -> impl Strategy<Value = Object> {
    prop_oneof![
        Just(Object::Archive),
        (any_seq(), any_id()).prop_map(|(seq, id)| Object::Timeline { seq, id }),
        (any_seq(), any_id(), any_seq(), 0..100_000_000_u32).prop_map(|(seq, id, rank, order)| {
            Object::Accepted {
                seq,
                id,
                rank,
                order,
            }
        }),
        (any_seq(), any_id(), any::<u64>(), any_at(), any::<bool>()).prop_map(
            |(seq, id, offset, at, derived)| {
                Object::Snapshot {
                    seq,
                    id,
                    offset: Offset::new(offset),
                    at,
                    derived,
                }
            }
        ),
        (
            (any_seq(), any_id(), any::<u64>(), any_at()),
            (any::<bool>(), 2..=PART_MAX, any::<bool>())
        )
            .prop_map(|((seq, id, offset, at), (derived, part, last))| {
                Object::SnapshotPart {
                    seq,
                    id,
                    offset: Offset::new(offset),
                    at,
                    derived,
                    part,
                    last,
                }
            }),
        (any_seq(), any_id(), any_span(), any::<bool>()).prop_map(|(seq, id, span, merged)| {
            Object::Segment {
                seq,
                id,
                span,
                merged,
            }
        }),
    ]
}

proptest! {
    #[test]
    fn names_are_read_as_they_are_written(object in any_object()) {
        let name = object.name();
        prop_assert!(ObjectName::new(name.as_str()).is_ok());
        prop_assert_eq!(Object::parse(name.as_str()), Some(object));
    }

    #[test]
    fn names_sort_as_what_they_name(a in any_span(), b in any_span()) {
        let name = |span| Object::Segment {
            seq: TimelineSeq::FIRST,
            id: id(),
            span,
            merged: false,
        }.name();
        prop_assert_eq!(name(a).cmp(&name(b)), a.cmp(&b));
    }

    #[test]
    fn a_damaged_name_is_another_objects_or_nobodys(
        object in any_object(),
        place in any::<prop::sample::Index>(),
        character in any::<char>(),
    ) {
        let mut name: Vec<char> = object.name().as_str().chars().collect();
        let place = place.index(name.len());
        name[place] = character;
        let name: String = name.into_iter().collect();
        if let Some(parsed) = Object::parse(&name) {
            prop_assert_eq!(parsed.name().to_string(), name);
        }
    }

    #[test]
    fn any_text_may_be_parsed(text in ".*") {
        if let Some(object) = Object::parse(&text) {
            prop_assert_eq!(object.name().to_string(), text);
        }
    }
}
