//! Where the bytes behind the answer to PSYNC belong.

use std::fmt;

use super::relation::{Offer, Role, Server};
use super::table::{Follow, Suspicion};
use crate::position::{Offset, Position, ReplicationId, TimelineSeq};

/// The answer to PSYNC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// `+FULLRESYNC <id> <offset>`.
    Full {
        /// The history the payload belongs to.
        id: ReplicationId,
        /// The payload's position.
        offset: Offset,
    },
    /// `+CONTINUE [<id>]`.
    Continued {
        /// The new name of the history, where the server told one.
        id: Option<ReplicationId>,
    },
}

/// Where the bytes that follow belong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The same timeline goes on, byte after byte.
    Resume(Position),
    /// The same timeline goes on behind a hole: the backlog was too short. A new snapshot is needed.
    Gap {
        /// The timeline that goes on.
        timeline: TimelineSeq,
        /// Where the archive ended.
        from: Offset,
        /// The offset before the first byte that follows.
        to: Offset,
    },
    /// A new timeline begins.
    NewTimeline {
        /// Its replication id.
        id: ReplicationId,
        /// Where it leaves another one, if it does.
        parent: Option<Position>,
        /// The offset before its own first byte.
        start: Offset,
        /// The offset before the first byte that follows; beyond `start` there is a hole.
        streams_after: Offset,
        /// A snapshot is needed before anything can be restored beyond the start.
        snapshot: bool,
        /// It is not to be trusted, and why.
        suspect: Option<Suspicion>,
    },
    /// The answer does not fit what was decided: look again.
    Again(Again),
}

/// Why to look again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Again {
    /// Between looking and asking, the server became another one or changed its history.
    ServerChanged,
    /// Another streamer began a timeline at the same moment.
    NumberTaken,
    /// A replica that has not yet received what the archive already holds.
    ReplicaLags,
}

impl fmt::Display for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ServerChanged => "the server's history changed between looking and asking",
            Self::NumberTaken => {
                "another streamer began a timeline in this archive at the same moment"
            }
            Self::ReplicaLags => "this replica has not received what the archive already holds",
        })
    }
}

/// Decides from the answer. `before` is the look the [`Follow`] was decided on, `after` an INFO taken after
/// the answer: a full resync counts only if both speak of the same process and history, because a server may
/// restart empty between INFO and PSYNC.
pub fn after_sync(follow: &Follow, reply: Reply, before: &Server, after: &Server) -> Outcome {
    match (follow.offer, reply) {
        (Some(offer), Reply::Continued { id }) => {
            let id = id.unwrap_or(offer.id);
            if id == offer.id && offer.tip {
                return Outcome::Resume(offer.position);
            }
            let start = offer.position.offset;
            Outcome::NewTimeline {
                id,
                parent: Some(offer.position),
                start,
                streams_after: start,
                snapshot: false,
                suspect: follow.suspect,
            }
        }
        (None, Reply::Continued { .. }) => Outcome::Again(Again::ServerChanged),
        (_, Reply::Full { id, .. }) if after.run_id != before.run_id || after.id != id => {
            Outcome::Again(Again::ServerChanged)
        }
        (None, Reply::Full { id, offset }) => root(id, offset, follow.suspect),
        (Some(offer), Reply::Full { id, offset }) => {
            if id == offer.id && offset < offer.position.offset {
                return match after.role {
                    Role::Master => root(id, offset, Some(Suspicion::RolledBack)),
                    Role::Replica { .. } | Role::ReplicaOfUs => Outcome::Again(Again::ReplicaLags),
                };
            }
            if id == offer.id && offer.tip {
                let timeline = offer.position.timeline;
                return Outcome::Gap {
                    timeline,
                    from: offer.position.offset,
                    to: offset,
                };
            }
            if id != offer.id && !descends(&offer, before, after) {
                return Outcome::Again(Again::ServerChanged);
            }
            Outcome::NewTimeline {
                id,
                parent: Some(offer.position),
                start: offer.position.offset,
                streams_after: offset,
                snapshot: true,
                suspect: follow.suspect,
            }
        }
    }
}

/// Whether the server's history contains what was offered, under an id that it had before its own.
fn descends(offer: &Offer, before: &Server, after: &Server) -> bool {
    let says_so = |server: &Server| {
        server
            .previous
            .is_some_and(|(id, last)| id == offer.id && last >= offer.position.offset)
    };
    // A server that came from a dump and was promoted before it ever had a link has no backlog. Its first PSYNC makes
    // one, takes a new id and forgets the one before; the process, its data and its offset stay.
    let forgot = (before.role, after.role, after.previous) == (Role::Master, Role::Master, None)
        && after.offset >= before.offset;
    says_so(after) || (forgot && says_so(before))
}

fn root(id: ReplicationId, offset: Offset, suspect: Option<Suspicion>) -> Outcome {
    Outcome::NewTimeline {
        id,
        parent: None,
        start: offset,
        streams_after: offset,
        snapshot: true,
        suspect,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::timeline::sketch::id;
    use crate::decide::relation::tests::{at, offer, server};

    fn offering(tip: bool, suspect: Option<Suspicion>) -> Follow {
        Follow {
            offer: Some(offer(1, 1, 100, tip)),
            suspect,
            accept: false,
        }
    }

    fn full(byte: u8, offset: u64) -> Reply {
        Reply::Full {
            id: id(byte),
            offset: Offset::new(offset),
        }
    }

    fn promoted(byte: u8, previous: u8, last: u64) -> Server {
        Server {
            previous: Some((id(previous), Offset::new(last))),
            ..server(byte, last)
        }
    }

    #[test]
    fn continuing_a_tip_under_the_same_id_resumes() {
        for reply in [None, Some(id(1))] {
            let outcome = after_sync(
                &offering(true, None),
                Reply::Continued { id: reply },
                &server(1, 100),
                &server(1, 100),
            );
            assert_eq!(outcome, Outcome::Resume(at(1, 100)));
        }
    }

    #[test]
    fn a_new_id_or_an_older_position_begins_a_child() {
        for (tip, byte) in [(true, 2), (false, 1), (false, 2)] {
            let suspect = Some(Suspicion::StaleAndWritten);
            let reply = Reply::Continued { id: Some(id(byte)) };
            let outcome = after_sync(
                &offering(tip, suspect),
                reply,
                &server(1, 100),
                &server(byte, 100),
            );
            assert_eq!(
                outcome,
                Outcome::NewTimeline {
                    id: id(byte),
                    parent: Some(at(1, 100)),
                    start: Offset::new(100),
                    streams_after: Offset::new(100),
                    snapshot: false,
                    suspect,
                }
            );
        }
    }

    #[test]
    fn row_same_id_ahead_of_ours_is_a_gap_in_the_same_timeline() {
        let outcome = after_sync(
            &offering(true, None),
            full(1, 900),
            &server(1, 900),
            &server(1, 900),
        );
        assert_eq!(
            outcome,
            Outcome::Gap {
                timeline: TimelineSeq::new(1),
                from: Offset::new(100),
                to: Offset::new(900)
            }
        );
    }

    #[test]
    fn row_same_id_behind_ours_is_a_suspect_root_of_a_master_and_a_retry_of_a_replica() {
        let outcome = after_sync(
            &offering(true, None),
            full(1, 90),
            &server(1, 90),
            &server(1, 90),
        );
        assert!(matches!(
            outcome,
            Outcome::NewTimeline {
                parent: None,
                suspect: Some(Suspicion::RolledBack),
                ..
            }
        ));
        let replica = Server {
            role: Role::Replica { link_up: true },
            ..server(1, 90)
        };
        let outcome = after_sync(&offering(true, None), full(1, 90), &replica, &replica);
        assert_eq!(outcome, Outcome::Again(Again::ReplicaLags));
    }

    #[test]
    fn a_full_resync_of_a_descendant_is_a_child_behind_a_hole() {
        let before = promoted(2, 1, 150);
        let outcome = after_sync(&offering(true, None), full(2, 900), &before, &before);
        assert_eq!(
            outcome,
            Outcome::NewTimeline {
                id: id(2),
                parent: Some(at(1, 100)),
                start: Offset::new(100),
                streams_after: Offset::new(900),
                snapshot: true,
                suspect: None,
            }
        );
    }

    /// A replica of ours came from a dump ahead of the archive and was promoted: PSYNC makes it forget our id.
    #[test]
    fn a_descendant_that_forgets_its_past_at_psync_is_a_child_behind_a_hole() {
        let before = promoted(2, 1, 150);
        let answer =
            |after: &Server| after_sync(&offering(true, None), full(3, 150), &before, after);
        let renamed = |server: Server| Server {
            run_id: before.run_id.clone(),
            ..server
        };
        let outcome = answer(&renamed(server(3, 150)));
        assert_eq!(
            outcome,
            Outcome::NewTimeline {
                id: id(3),
                parent: Some(at(1, 100)),
                start: Offset::new(100),
                streams_after: Offset::new(150),
                snapshot: true,
                suspect: None,
            }
        );
        let again = Outcome::Again(Again::ServerChanged);
        for other in [
            server(3, 150),
            renamed(server(3, 149)),
            renamed(promoted(3, 9, 150)),
            renamed(Server {
                role: Role::Replica { link_up: true },
                ..server(3, 150)
            }),
        ] {
            assert_eq!(answer(&other), again, "{other:?}");
        }
    }

    #[test]
    fn a_full_resync_of_anything_else_is_looked_at_again() {
        let again = Outcome::Again(Again::ServerChanged);
        let follow = offering(true, None);
        assert_eq!(
            after_sync(&follow, full(2, 900), &server(1, 100), &server(2, 900)),
            again
        );
        let fork = promoted(2, 1, 50);
        assert_eq!(
            after_sync(&follow, full(2, 900), &fork, &fork),
            again,
            "it lacks our last bytes"
        );
        let root = Follow {
            offer: None,
            suspect: None,
            accept: false,
        };
        let restarted = Server {
            run_id: "another".into(),
            ..server(2, 0)
        };
        assert_eq!(
            after_sync(&root, full(2, 0), &server(2, 0), &restarted),
            again
        );
        assert_eq!(
            after_sync(&root, full(3, 0), &server(2, 0), &server(2, 0)),
            again
        );
    }

    #[test]
    fn a_root_begins_where_the_full_resync_stands() {
        let follow = Follow {
            offer: None,
            suspect: Some(Suspicion::UnknownPast),
            accept: false,
        };
        // A server without a backlog changes its id at the first PSYNC.
        let outcome = after_sync(
            &follow,
            full(5, 42),
            &server(2, 0),
            &Server {
                id: id(5),
                ..server(2, 42)
            },
        );
        assert_eq!(
            outcome,
            Outcome::NewTimeline {
                id: id(5),
                parent: None,
                start: Offset::new(42),
                streams_after: Offset::new(42),
                snapshot: true,
                suspect: Some(Suspicion::UnknownPast),
            }
        );
    }
}
