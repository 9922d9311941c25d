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
    /// No master has sent it anything since it started, or since its statistics were set back (`total_net_repl_input_bytes`, 7.0+).
    pub never_replicated: bool,
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
    /// Its process started after the last byte of the head was received, or so shortly before that clocks cannot tell, or its past
    /// was never sent to it: whatever it holds came from a file or from clients since, not from having been a replica all along.
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
    // A clock that was set back proves nothing: taken for a restart, which trusts the server less. The byte may bear the time
    // of another streamer's clock: only a process that is older than it by what clocks differ was surely there.
    let started_after = |at: UnixMillis| {
        let heard_ago = now.0.saturating_sub(at.0);
        at.0 > now.0 + CLOCK_SKEW_MILLIS || server.uptime_millis < heard_ago + CLOCK_SKEW_MILLIS
    };
    let relation = relate(server, catalog);
    Look {
        role: server.role,
        relation,
        empty: server.empty,
        untouched: server.untouched,
        restarted: head_last_at.is_some_and(started_after) || came_from_a_file(server, catalog),
        tainted: server.replication_errors > 0,
        rival: catalog.rival(now),
        left_behind: is_left_behind(server, &relation, catalog, now),
    }
}

/// Whether a master has its past from a file: it bears the id of another history, and never got a byte of it from anybody. An id
/// that it counts under itself is of this process, however it began.
fn came_from_a_file(server: &Server, catalog: &Catalog) -> bool {
    let is_its_own = || {
        let mut timelines = catalog.timelines();
        timelines.any(|timeline| timeline.id() == server.id)
    };
    server.role == Role::Master
        && server.previous.is_some()
        && server.never_replicated
        && !is_its_own()
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
pub(super) mod tests;
