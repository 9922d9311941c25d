use super::*;
use crate::archive::timeline::sketch::{Sketch, id};
use crate::position::TimelineSeq;

pub(in crate::decide) fn server(byte: u8, offset: u64) -> Server {
    Server {
        role: Role::Master,
        run_id: format!("run-{byte}"),
        id: id(byte),
        offset: Offset::new(offset),
        previous: None,
        empty: false,
        untouched: true,
        uptime_millis: 1,
        replication_errors: 0,
        never_replicated: false,
    }
}

pub(in crate::decide) fn at(timeline: u32, offset: u64) -> Position {
    Position {
        timeline: TimelineSeq::new(timeline),
        offset: Offset::new(offset),
    }
}

pub(in crate::decide) fn offer(byte: u8, timeline: u32, offset: u64, tip: bool) -> Offer {
    Offer {
        id: id(byte),
        position: at(timeline, offset),
        tip,
    }
}

/// Timeline 1 (id 1) to 100, its child 2 (id 2) from there to 200.
fn chain() -> Catalog {
    Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .segment(1, 100)
        .timeline(2, 2, Some((1, 100)), 100)
        .segment(101, 200)
        .catalog()
}

fn promoted(byte: u8, previous: u8, last: u64) -> Server {
    Server {
        previous: Some((id(previous), Offset::new(last))),
        ..server(byte, last)
    }
}

#[test]
fn an_archive_without_a_complete_snapshot_relates_to_nothing() {
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .segment(1, 9)
        .catalog();
    assert_eq!(relate(&server(1, 9), &catalog), Relation::NoArchive);
}

#[test]
fn the_current_id_offers_the_archives_end_whatever_the_servers_offset() {
    for offset in [150, 200, 5000] {
        assert_eq!(
            relate(&server(2, offset), &chain()),
            Relation::Tip(offer(2, 2, 200, true))
        );
    }
}

#[test]
fn a_promoted_server_that_has_everything_continues_the_tip() {
    assert_eq!(
        relate(&promoted(9, 2, 200), &chain()),
        Relation::Tip(offer(2, 2, 200, true))
    );
    assert_eq!(
        relate(&promoted(9, 2, 250), &chain()),
        Relation::Tip(offer(2, 2, 200, true))
    );
}

#[test]
fn a_server_that_left_our_history_below_the_head_is_behind() {
    assert_eq!(
        relate(&promoted(9, 2, 150), &chain()),
        Relation::Behind(offer(2, 2, 150, false))
    );
    assert_eq!(
        relate(&promoted(9, 1, 60), &chain()),
        Relation::Behind(offer(1, 1, 60, false))
    );
    assert_eq!(
        relate(&promoted(9, 1, 100), &chain()),
        Relation::Behind(offer(1, 1, 100, false))
    );
}

#[test]
fn an_old_master_that_went_on_is_a_branch() {
    assert_eq!(
        relate(&server(1, 170), &chain()),
        Relation::Branch(offer(1, 1, 100, false))
    );
    assert_eq!(
        relate(&promoted(9, 1, 170), &chain()),
        Relation::Branch(offer(1, 1, 100, false))
    );
}

#[test]
fn positions_of_our_history_that_the_archive_does_not_hold_are_older() {
    let catalog = Sketch::default()
        .timeline(1, 1, None, 500)
        .snapshot(500)
        .catalog();
    assert_eq!(
        relate(&promoted(9, 1, 400), &catalog),
        Relation::Older,
        "before the first snapshot"
    );
    let ours = Server {
        role: Role::ReplicaOfUs,
        ..server(1, 400)
    };
    assert_eq!(relate(&ours, &catalog), Relation::Older);
    let wrote = Server {
        role: Role::ReplicaOfUs,
        untouched: false,
        ..promoted(9, 1, 400)
    };
    assert_eq!(
        relate(&wrote, &catalog),
        Relation::Unknown {
            same_process: false
        },
        "a master since, and written to: its data are its own"
    );
    let gap = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .segment(1, 100)
        .segment(201, 300)
        .snapshot(250)
        .catalog();
    assert_eq!(
        relate(&promoted(9, 1, 150), &gap),
        Relation::Older,
        "inside a gap"
    );
    assert_eq!(
        relate(&promoted(9, 1, 60), &gap),
        Relation::Behind(offer(1, 1, 60, false))
    );
    assert_eq!(
        relate(&promoted(9, 1, 300), &gap),
        Relation::Tip(offer(1, 1, 300, true))
    );
}

#[test]
fn a_suspect_tip_that_is_followed_goes_on_in_its_own_timeline() {
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .timeline(2, 2, None, 0)
        .suspect("foreign")
        .snapshot(7)
        .catalog();
    assert_eq!(
        relate(&server(2, 9), &catalog),
        Relation::Tip(offer(2, 2, 7, true))
    );
    assert_eq!(
        relate(&server(1, 9), &catalog),
        Relation::Tip(offer(1, 1, 0, true))
    );
}

#[test]
fn a_replica_of_ours_below_a_gap_is_older_and_above_it_inside() {
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .segment(1, 100)
        .segment(201, 300)
        .snapshot(250)
        .catalog();
    let ours = |offset| Server {
        role: Role::ReplicaOfUs,
        ..server(1, offset)
    };
    assert_eq!(relate(&ours(60), &catalog), Relation::Older);
    assert_eq!(
        relate(&ours(260), &catalog),
        Relation::Inside(offer(1, 1, 260, false))
    );
}

#[test]
fn a_replica_of_ours_at_a_covered_position_is_inside() {
    let ours = |byte, offset| Server {
        role: Role::ReplicaOfUs,
        ..server(byte, offset)
    };
    assert_eq!(
        relate(&ours(2, 150), &chain()),
        Relation::Inside(offer(2, 2, 150, false))
    );
    assert_eq!(
        relate(&ours(2, 200), &chain()),
        Relation::Inside(offer(2, 2, 200, true))
    );
    assert_eq!(
        relate(&ours(1, 60), &chain()),
        Relation::Inside(offer(1, 1, 60, false))
    );
    assert_eq!(
        relate(&ours(2, 201), &chain()),
        Relation::Tip(offer(2, 2, 200, true)),
        "ahead of us: it is not inside, and the table promotes it"
    );
}

/// Timeline 1 (id 1) to 100; a seed of it under id 2 ends at 130.
fn seeded_under_an_id_of_its_own() -> Sketch {
    Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .segment(1, 100)
        .timeline(2, 2, Some((1, 100)), 130)
        .mapped()
}

/// Timeline 2 goes on behind 1 under an id of its own: who bears that id before it began was being filled.
#[test]
fn a_seed_over_several_timelines_that_was_cut_short_leaves_a_half_filled_server() {
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(10)
        .segment(11, 100)
        .timeline(2, 2, Some((1, 100)), 100)
        .segment(101, 200)
        .catalog();
    for offset in [10, 50, 99] {
        let ours = Server {
            role: Role::ReplicaOfUs,
            ..server(2, offset)
        };
        assert_eq!(relate(&ours, &catalog), Relation::HalfFilled, "{offset}");
        // Somebody made it a master: a replica that had just learned of the id looks the same.
        let promoted = promoted(9, 2, offset);
        assert_eq!(relate(&promoted, &catalog), Relation::Older, "{offset}");
    }
    let at_the_beginning = Server {
        role: Role::ReplicaOfUs,
        ..server(2, 100)
    };
    let inside = Relation::Inside(offer(2, 2, 100, false));
    assert_eq!(relate(&at_the_beginning, &catalog), inside);
    // Under the first id these are places where its own server stood.
    let own = Server {
        role: Role::ReplicaOfUs,
        ..server(1, 50)
    };
    assert_ne!(relate(&own, &catalog), Relation::HalfFilled);
    let lived_on = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(10)
        .segment(11, 100)
        .timeline(2, 2, Some((1, 100)), 100)
        .segment(101, 200)
        .timeline(3, 1, Some((2, 150)), 150)
        .catalog();
    assert_ne!(relate(&own, &lived_on), Relation::HalfFilled);
}

#[test]
fn a_replica_under_an_id_that_the_head_has_just_left_is_left_behind() {
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(10)
        .segment(11, 100)
        .timeline(2, 2, Some((1, 90)), 90)
        .segment(91, 200)
        .catalog();
    let created = catalog.newest().unwrap().document.created_at.0;
    let replica = Server {
        role: Role::Replica { link_up: true },
        ..server(1, 100)
    };
    let left = |server: &Server, after: u64| {
        look(server, &catalog, UnixMillis(created + after)).left_behind
    };
    assert!(left(&replica, 0) && left(&replica, UNNOTICED_MILLIS_MAX - 1));
    assert!(!left(&replica, UNNOTICED_MILLIS_MAX), "its master lives");
    let master = server(1, 100);
    assert!(!left(&master, 0), "it is what clients see");
    let of_the_head = Server {
        role: Role::Replica { link_up: true },
        ..server(2, 150)
    };
    assert!(!left(&of_the_head, 0));
    let of_another = Server {
        role: Role::Replica { link_up: true },
        ..promoted(3, 1, 100)
    };
    assert!(!left(&of_another, 0), "a new id: somebody was promoted");
}

#[test]
fn a_replica_that_got_all_of_an_older_state_under_an_id_of_its_own_is_half_filled() {
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .segment(1, 101)
        .timeline(2, 2, Some((1, 100)), 130)
        .mapped()
        .catalog();
    let ours = Server {
        role: Role::ReplicaOfUs,
        ..server(2, 130)
    };
    assert_eq!(relate(&ours, &catalog), Relation::HalfFilled);
    // Once promoted, clients may have written to it.
    assert_eq!(
        relate(&promoted(9, 2, 130), &catalog),
        Relation::Tip(offer(2, 2, 130, true))
    );
}

/// Under an archived id nothing in the archive tells: a replica that lagged looks the same.
#[test]
fn whoever_copied_a_server_in_the_middle_of_a_seed_is_half_filled() {
    let catalog = Sketch::default()
        .timeline(1, 1, None, 0)
        .snapshot(0)
        .segment(1, 60)
        .segment(61, 100)
        .catalog();
    let related = |server: &Server, seed| {
        let looked = look(server, &catalog, UnixMillis(0));
        looked.beside(seed, server).relation
    };
    let seed = Some((id(1), Offset::new(100)));
    let copy = promoted(9, 1, 60);
    let behind = Relation::Behind(offer(1, 1, 60, false));
    assert_eq!(related(&copy, seed), Relation::HalfFilled);
    assert_eq!(related(&copy, None), behind, "no seed was under way");
    assert_eq!(related(&copy, Some((id(2), Offset::new(100)))), behind);
    let whole = promoted(9, 1, 100);
    let tip = Relation::Tip(offer(1, 1, 100, true));
    assert_eq!(related(&whole, seed), tip, "it has all of it");
    let ours = Server {
        role: Role::ReplicaOfUs,
        ..server(1, 60)
    };
    let inside = Relation::Inside(offer(1, 1, 60, false));
    assert_eq!(related(&ours, seed), inside, "the seed goes on");
}

#[test]
fn wherever_a_seed_under_an_id_of_its_own_is_cut_short_the_server_is_recognised() {
    let catalog = seeded_under_an_id_of_its_own().catalog();
    assert_eq!(catalog.head(), Some(at(2, 130)));
    let ours = |byte, offset| Server {
        role: Role::ReplicaOfUs,
        untouched: false,
        ..server(byte, offset)
    };
    for offset in [0, 50, 100, 129] {
        assert_eq!(relate(&ours(2, offset), &catalog), Relation::HalfFilled);
        assert_eq!(
            relate(&promoted(9, 2, offset), &catalog),
            Relation::HalfFilled
        );
    }
    let whole = offer(2, 2, 130, true);
    assert_eq!(relate(&ours(2, 130), &catalog), Relation::Inside(whole));
    for offset in [130, 200] {
        assert_eq!(
            relate(&promoted(9, 2, offset), &catalog),
            Relation::Tip(whole)
        );
    }
    // The payload's own id and offset, from a dump.
    assert_eq!(
        relate(&ours(1, 0), &catalog),
        Relation::Inside(offer(1, 1, 0, false))
    );
    assert_eq!(
        relate(&promoted(9, 1, 60), &catalog),
        Relation::Behind(offer(1, 1, 60, false))
    );
    // A replica of the server that is being filled: it is behind what we offer, and is asked again.
    let replica = Server {
        role: Role::Replica { link_up: true },
        ..server(2, 50)
    };
    assert_eq!(relate(&replica, &catalog), Relation::Tip(whole));
}

#[test]
fn after_the_promotion_life_goes_on_behind_the_jump() {
    let catalog = seeded_under_an_id_of_its_own()
        .timeline(3, 3, Some((2, 130)), 130)
        .segment(131, 150)
        .catalog();
    assert_eq!(
        relate(&server(3, 160), &catalog),
        Relation::Tip(offer(3, 3, 150, true))
    );
    assert_eq!(
        relate(&promoted(9, 3, 140), &catalog),
        Relation::Behind(offer(3, 3, 140, false))
    );
    assert_eq!(
        relate(&promoted(9, 2, 130), &catalog),
        Relation::Behind(offer(2, 2, 130, false)),
        "it lacks what came after the promotion"
    );
    assert_eq!(
        relate(&promoted(9, 1, 60), &catalog),
        Relation::Behind(offer(1, 1, 60, false))
    );
}

#[test]
fn half_filled_is_half_filled_wherever_the_head_is() {
    let catalog = seeded_under_an_id_of_its_own()
        .timeline(3, 3, None, 0)
        .snapshot(7)
        .catalog();
    assert_eq!(catalog.head(), Some(at(3, 7)));
    let ours = Server {
        role: Role::ReplicaOfUs,
        ..server(2, 50)
    };
    assert_eq!(relate(&ours, &catalog), Relation::HalfFilled);
}

#[test]
fn a_seed_that_came_to_nothing_is_no_sign_of_life() {
    let catalog = seeded_under_an_id_of_its_own().catalog();
    let bytes_at = catalog.timeline(TimelineSeq::FIRST).unwrap().last_at().0;
    let seed_at = catalog.newest().unwrap().document.created_at.0;
    assert!(bytes_at < seed_at);
    let began_between = Server {
        uptime_millis: 10_000 + CLOCK_SKEW_MILLIS - (bytes_at + seed_at) / 2,
        ..promoted(9, 1, 60)
    };
    let looked = look(&began_between, &catalog, UnixMillis(10_000));
    assert!(looked.restarted, "it never saw the head");
}

#[test]
fn the_same_process_under_a_new_id_is_known_by_its_run_id_unless_it_was_a_replica_since() {
    let known = Server {
        run_id: "run-2".into(),
        ..server(9, 300)
    };
    assert_eq!(
        relate(&known, &chain()),
        Relation::Unknown { same_process: true }
    );
    let wandered = Server {
        previous: Some((id(8), Offset::new(300))),
        ..known
    };
    let known = Server {
        previous: None,
        ..wandered.clone()
    };
    let replica = Server {
        role: Role::Replica { link_up: true },
        ..known.clone()
    };
    let rewound = Server {
        offset: Offset::new(199),
        ..known
    };
    for other in [wandered, replica, rewound] {
        assert_eq!(
            relate(&other, &chain()),
            Relation::Unknown {
                same_process: false
            },
            "{other:?}"
        );
    }
}

#[test]
fn a_process_younger_than_the_heads_last_byte_has_restarted() {
    let catalog = chain();
    let now = UnixMillis(10_000);
    let aged = |uptime_millis| {
        look(
            &Server {
                uptime_millis,
                ..server(2, 200)
            },
            &catalog,
            now,
        )
        .restarted
    };
    let age_of_last_byte = 10_000 - catalog.timeline(TimelineSeq::new(2)).unwrap().last_at().0;
    assert!(aged(age_of_last_byte - 1));
    // Another streamer stored that byte, and its clock was ahead: by ours the process was there already.
    assert!(aged(age_of_last_byte + CLOCK_SKEW_MILLIS - 1));
    assert!(!aged(age_of_last_byte + CLOCK_SKEW_MILLIS));
}

#[test]
fn whoever_has_its_past_from_a_file_has_restarted_however_long_ago() {
    let catalog = chain();
    let old = Server {
        uptime_millis: u64::MAX / 2,
        ..promoted(9, 2, 150)
    };
    let restarted = |server: &Server| look(server, &catalog, UnixMillis(10_000)).restarted;
    assert!(!restarted(&old), "it may have got its past from a master");
    let from_a_file = Server {
        never_replicated: true,
        ..old
    };
    assert!(restarted(&from_a_file));
    let under_its_own_id = Server {
        id: id(2),
        ..from_a_file.clone()
    };
    assert!(
        !restarted(&under_its_own_id),
        "the archive followed this very process"
    );
    let without_a_past = Server {
        previous: None,
        ..from_a_file
    };
    assert!(!restarted(&without_a_past));
}
