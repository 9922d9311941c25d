//! How a server's history relates to the archive's.

use crate::archive::plan::{Target, continuation};
use crate::archive::timeline::Catalog;
use crate::position::{Offset, Position, ReplicationId, UnixMillis};

/// What the server is to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It takes writes.
    Master,
    /// It is a replica whose master is our seeder: born so by its configuration, or taken over for a seed.
    ReplicaOfUs,
    /// It is a replica of some other server.
    Replica {
        /// Its own link is up: it can be followed in its master's coordinates (4.0+, `protocol-facts` 2.1).
        link_up: bool,
    },
}

/// What one INFO says, reduced to what a decision needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Server {
    /// What it is to us.
    pub role: Role,
    /// `run_id`: names the process.
    pub run_id: String,
    /// `master_replid`.
    pub id: ReplicationId,
    /// `master_repl_offset`.
    pub offset: Offset,
    /// `master_replid2` and the last offset it can continue from (`second_repl_offset` - 1).
    pub previous: Option<(ReplicationId, Offset)>,
    /// No key in any database and no function library.
    pub empty: bool,
    /// Nothing was written or saved since the process started; keys may have expired.
    pub untouched: bool,
    /// Milliseconds since the process started.
    pub uptime_millis: u64,
    /// Commands of a master that it could not apply since it started (`unexpected_error_replies`, 7.0+).
    pub replication_errors: u64,
}

/// A position to ask for in PSYNC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The replication id to name.
    pub id: ReplicationId,
    /// The position that the archive holds; the byte asked for is the one after it.
    pub position: Position,
    /// The server's answer may be stored in the same timeline: the position is the head, or the end of the
    /// newest timeline.
    pub tip: bool,
}

/// How the histories relate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    /// The archive holds nothing that can be restored.
    NoArchive,
    /// The server has everything the archive holds up to a tip, and can continue there.
    Tip(Offer),
    /// The server's history left the archive's exactly at a position that lies below the head on the head's
    /// own way: started from an older dump, or promoted without the last bytes.
    Behind(Offer),
    /// A replica of ours stands at a covered position on the head's way, from which stored bytes lead to the head.
    Inside(Offer),
    /// The server stands at a position of the head's own history from which the archive cannot go on: before its
    /// first snapshot, in a gap, or below one. It has nothing that the head does not have.
    Older,
    /// A seed under an id of its own, or over several timelines, was cut short, or came to its end when the archive had grown: the server is half
    /// filled. Wherever the head is now, it has nothing that the archive does not have.
    HalfFilled,
    /// The server continues a covered position that is not the head: a branch that lived on.
    Branch(Offer),
    /// Nothing connects the two.
    Unknown {
        /// It is the very process that the head was captured from, a master that has been nobody's replica since:
        /// its backlog expired and with it its id (`protocol-facts` 2.6), its data did not.
        same_process: bool,
    },
}

/// Everything [`super::before_sync`] looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Look {
    /// What the server is to us.
    pub role: Role,
    /// How its history relates to the archive's.
    pub relation: Relation,
    /// It has no data.
    pub empty: bool,
    /// Nothing happened to its data since its process started.
    pub untouched: bool,
    /// Its process started after the last byte of the head was received: whatever it holds came from a file
    /// or from clients since, not from having been a replica all along.
    pub restarted: bool,
    /// It could not apply everything that it was sent as a replica: its data are not those of its offset.
    pub tainted: bool,
    /// Another branch that advanced lately beside the head: no automatic seed may choose between them.
    pub rival: Option<Position>,
    /// It is a replica under an id that the head has left just now: its master may be dead without its knowing.
    pub left_behind: bool,
}

impl Look {
    /// The same, knowing the id and the end of a seed that has not come to its end. Whoever copied the server that is being
    /// filled, and was made a master, bears that id and stands below that end like a replica that lagged; but it never had
    /// the rest.
    #[must_use]
    pub fn beside(self, seed: Option<(ReplicationId, Offset)>, server: &Server) -> Self {
        let is_copy = |(id, end)| {
            let previous = server.previous;
            previous.is_some_and(|(previous, last)| previous == id && last < end)
        };
        if server.role != Role::Master || !seed.is_some_and(is_copy) {
            return self;
        }
        Self {
            relation: Relation::HalfFilled,
            ..self
        }
    }
}

/// A replica calls its link up for so long after its master has died without a word, milliseconds: `repl-timeout`, 60 s
/// where nobody has set it, and as much again.
const UNNOTICED_MILLIS_MAX: u64 = 120_000;
/// Clocks of machines in one place differ by this much, milliseconds.
const CLOCK_SKEW_MILLIS: u64 = 5_000;

/// Looks at a server beside an archive. `now` is our own wall clock.
pub fn look(server: &Server, catalog: &Catalog, now: UnixMillis) -> Look {
    let head_last_at = catalog
        .head()
        .map(|head| catalog.received_at(head.timeline));
    // A clock that was set back proves nothing: taken for a restart, which trusts the server less. Streamers'
    // clocks differ by seconds.
    let started_after = |at: UnixMillis| {
        at.0 > now.0 + CLOCK_SKEW_MILLIS || server.uptime_millis < now.0.saturating_sub(at.0)
    };
    let relation = relate(server, catalog);
    Look {
        role: server.role,
        relation,
        empty: server.empty,
        untouched: server.untouched,
        restarted: head_last_at.is_some_and(started_after),
        tainted: server.replication_errors > 0,
        rival: catalog.rival(now),
        left_behind: is_left_behind(server, &relation, catalog, now),
    }
}

/// Whether a replica is under an id that the head has left, so lately that its link would look up though its master is dead.
/// A branch of its own, even one without a byte, would rank above what was acknowledged since (decision 54).
fn is_left_behind(
    server: &Server,
    relation: &Relation,
    catalog: &Catalog,
    now: UnixMillis,
) -> bool {
    let is_on_a_branch =
        matches!(relation, Relation::Branch(offer) if offer.id == server.id && !offer.tip);
    let head = catalog.head();
    let head = head.and_then(|head| catalog.timeline(head.timeline));
    matches!(server.role, Role::Replica { .. })
        && is_on_a_branch
        && head
            .is_some_and(|head| head.document.created_at.0.abs_diff(now.0) < UNNOTICED_MILLIS_MAX)
}

fn relate(server: &Server, catalog: &Catalog) -> Relation {
    if !catalog.has_data() {
        return Relation::NoArchive;
    }
    if server.role == Role::ReplicaOfUs
        && let Some(offer) = covered(catalog, server.id, server.offset)
        && offer.position.offset == server.offset
        && on_the_heads_way(catalog, offer.position)
    {
        // Below a gap nothing leads on from there, but the head has all of it.
        return if leads_to_the_head(catalog, offer.position) {
            Relation::Inside(offer)
        } else {
            Relation::Older
        };
    }
    if server.role == Role::ReplicaOfUs
        && (catalog.is_unfinished_seed(server.id, server.offset)
            || catalog.is_before_its_beginning(server.id, server.offset)
            || catalog.is_overtaken_seed(server.id, server.offset))
    {
        return Relation::HalfFilled;
    }
    if server.role == Role::ReplicaOfUs && is_older(catalog, server.id, server.offset) {
        return Relation::Older;
    }
    // The current id: its own end is offered, whatever the server's offset; PSYNC's answer tells the rest.
    if let Some(offer) = covered(catalog, server.id, Offset::new(u64::MAX)) {
        return if offer.tip {
            Relation::Tip(offer)
        } else {
            Relation::Branch(offer)
        };
    }
    let Some((id, last)) = server.previous else {
        return Relation::Unknown {
            same_process: same_process(server, catalog),
        };
    };
    // Through the previous id it has been a master since: as a replica of ours it may hold what clients wrote.
    if server.untouched || server.role != Role::ReplicaOfUs {
        if catalog.is_unfinished_seed(id, last) {
            return Relation::HalfFilled;
        }
        if is_older(catalog, id, last) {
            return Relation::Older;
        }
    }
    if let Some(offer) = covered(catalog, id, last) {
        return if offer.tip {
            Relation::Tip(offer)
        } else if offer.position.offset == last && on_the_heads_way(catalog, offer.position) {
            Relation::Behind(offer)
        } else {
            Relation::Branch(offer)
        };
    }
    Relation::Unknown {
        same_process: same_process(server, catalog),
    }
}

/// The highest restorable position at or below `last` under a replication id, newest timeline first.
fn covered(catalog: &Catalog, id: ReplicationId, last: Offset) -> Option<Offer> {
    catalog
        .timelines()
        .rev()
        .filter(|timeline| timeline.id() == id)
        .find_map(|timeline| {
            let end = catalog.end(timeline.seq())?;
            let position = Position {
                timeline: timeline.seq(),
                offset: end.min(last),
            };
            let tip = position.offset == end
                && (catalog.head() == Some(position)
                    || catalog
                        .newest()
                        .is_some_and(|newest| newest.seq() == timeline.seq()));
            catalog
                .is_restorable(position)
                .then_some(Offer { id, position, tip })
        })
}

/// Whether `last` under `id` lies on the head's way, below where that way leaves the id, and the archive does
/// not hold it: what an id counts up to is one history, whether its beginning is stored or not.
fn is_older(catalog: &Catalog, id: ReplicationId, last: Offset) -> bool {
    let Some(head) = catalog.head() else {
        return false;
    };
    catalog.lineage(head).into_iter().any(|step| {
        catalog
            .timeline(step.timeline)
            .is_some_and(|timeline| timeline.id() == id)
            && last < step.offset
            && !catalog.is_restorable(Position {
                timeline: step.timeline,
                offset: last,
            })
            && covered_exactly(catalog, id, last).is_none()
    })
}

/// A timeline under `id` on which exactly this offset can be restored.
fn covered_exactly(catalog: &Catalog, id: ReplicationId, offset: Offset) -> Option<Position> {
    let timelines = catalog.timelines().filter(|timeline| timeline.id() == id);
    timelines
        .map(|timeline| Position {
            timeline: timeline.seq(),
            offset,
        })
        .find(|position| catalog.is_restorable(*position))
}

fn leads_to_the_head(catalog: &Catalog, from: Position) -> bool {
    continuation(catalog, from, Target::Latest).is_ok()
}

fn on_the_heads_way(catalog: &Catalog, position: Position) -> bool {
    catalog
        .head()
        .is_some_and(|head| catalog.is_ancestor(position, head))
}

fn same_process(server: &Server, catalog: &Catalog) -> bool {
    let Some((end, head)) = catalog.head().and_then(|head| {
        catalog
            .timeline(head.timeline)
            .map(|timeline| (head.offset, timeline))
    }) else {
        return false;
    };
    // A replica is the same process with whatever its master sent last: a full resync leaves no trace of the id
    // before, and gives it its master's offset.
    server.role == Role::Master
        && server.previous.is_none()
        && server.offset >= end
        && !server.run_id.is_empty()
        && head.document.source.run_id == server.run_id
        && head.document.source.run_id != "?"
}

#[cfg(test)]
pub(super) mod tests {
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
            uptime_millis: 10_000 - (bytes_at + seed_at) / 2,
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
        assert!(!aged(age_of_last_byte + 1));
    }
}
