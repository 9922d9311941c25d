//! The table of the design's section 4, before PSYNC is asked: one `match`, a row each.

use std::fmt;

use super::relation::{Look, Offer, Relation, Role};
use crate::position::Position;

/// `--seed`: what may be done to a server without being asked each time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Policy {
    /// Seed a server that comes up empty, or provably older than the archive with nothing written since.
    #[default]
    Auto,
    /// Seed only a server without any data.
    IfEmpty,
    /// Never seed. An empty server beside an archive with data is not followed either.
    Never,
    /// Break the glass: whatever this server holds is the head from now on.
    StartOver,
}

/// Why a timeline is suspect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suspicion {
    /// The server has data under an id the archive does not know.
    UnknownPast,
    /// The server is empty, but not freshly started: emptied by somebody, or written to and emptied.
    EmptiedUnseen,
    /// The server restarted from an older state and was written to before it could be seeded.
    StaleAndWritten,
    /// The server is older than the archive, untouched, and the policy forbids seeding it.
    StaleNotSeeded,
    /// The server bears the archive's id with a lower offset: rolled back, its bytes would differ.
    RolledBack,
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownPast => {
                "the server had data under a replication id this archive does not know: it may be stale or foreign"
            }
            Self::EmptiedUnseen => {
                "the server was empty but had been written to since its start, under an unknown replication id"
            }
            Self::StaleAndWritten => {
                "the server restarted from a state older than this archive and took writes before it could be seeded"
            }
            Self::StaleNotSeeded => {
                "the server is older than this archive and the policy does not allow seeding a server with data"
            }
            Self::RolledBack => {
                "the server bears this archive's replication id with a lower offset: it was rolled back"
            }
        })
    }
}

/// Why nothing is done, and what would change it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// An empty server, an archive with data, and `--seed never`.
    SeedForbidden,
    /// Two branches advanced lately; a person must choose.
    Contested(Position),
    /// A replica whose own link is down: it waits for its master, which may be another seeder.
    ReplicaWaits,
    /// A replica whose master may be dead without its knowing.
    LeftBehind,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SeedForbidden => f.write_str(
                "the server is empty, or waits for us with less than the archive has, and --seed never forbids \
                 seeding: not following, so that it does not become the history; use --seed auto, or --seed start-over to \
                 begin anew",
            ),
            Self::Contested(rival) => write!(
                f,
                "two branches advanced lately, the head and {rival}: not seeding until one stops or \
                 `perennial accept` chooses"
            ),
            Self::ReplicaWaits => f.write_str(
                "the server is a replica whose own link to its master is down: leaving it alone until that \
                 link is up or it is promoted",
            ),
            Self::LeftBehind => f.write_str(
                "the server is a replica under a replication id that the archive's head left within the last two \
                 minutes: its master may be dead without its knowing; if its link is still up then, that history is \
                 followed as a branch",
            ),
        }
    }
}

/// How to follow: what to ask in PSYNC, and what is thought of the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Follow {
    /// The position to offer; `None` asks for a full resync under a new root.
    pub offer: Option<Offer>,
    /// A new timeline would be suspect, and why.
    pub suspect: Option<Suspicion>,
    /// Whatever timeline it comes to is the head from now on, suspect or not: somebody broke the glass.
    pub accept: bool,
}

/// What to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Ask PSYNC.
    Follow(Follow),
    /// Take the master over and fill it from the archive.
    Seed,
    /// Answer the replica that already asks us with a full resync.
    SeedReplica,
    /// Answer the replica that already asks us from where it stands, up to the head.
    ContinueReplica(Offer),
    /// Make the replica a master as it is, then look again.
    Promote,
    /// Nothing, for now: said, and looked at again.
    Refuse(Refusal),
}

/// The table of section 4.
pub fn before_sync(look: &Look, policy: Policy) -> Action {
    match look.role {
        Role::Replica { link_up: false } => Action::Refuse(Refusal::ReplicaWaits),
        Role::Replica { link_up: true } if look.left_behind && policy != Policy::StartOver => {
            Action::Refuse(Refusal::LeftBehind)
        }
        Role::Replica { link_up: true } => Action::Follow(follow(look, policy)),
        Role::Master => master(look, policy),
        Role::ReplicaOfUs => replica_of_us(look, policy),
    }
}

fn master(look: &Look, policy: Policy) -> Action {
    let seedable = match look.relation {
        // An id that is known is a live history: it never seeds, empty or not.
        Relation::NoArchive | Relation::Tip(_) | Relation::Branch(_) | Relation::Inside(_) => false,
        Relation::Behind(_) | Relation::Older | Relation::HalfFilled => look.untouched,
        Relation::Unknown { .. } => look.untouched && look.empty,
    };
    if !seedable {
        return Action::Follow(follow(look, policy));
    }
    match policy {
        Policy::Auto => unless_contested(look, Action::Seed),
        Policy::IfEmpty if look.empty => unless_contested(look, Action::Seed),
        Policy::Never if look.empty => Action::Refuse(Refusal::SeedForbidden),
        Policy::IfEmpty | Policy::Never | Policy::StartOver => Action::Follow(follow(look, policy)),
    }
}

fn replica_of_us(look: &Look, policy: Policy) -> Action {
    let serve = match look.relation {
        // Ahead of us, beside us or as far as us: never served.
        Relation::NoArchive | Relation::Tip(_) | Relation::Branch(_) => Action::Promote,
        // A seed that was refused because of such errors: filled anew, never promoted as it is.
        Relation::Inside(_) if look.tainted => Action::SeedReplica,
        Relation::Inside(offer) if offer.tip => Action::Promote,
        Relation::Inside(offer) => Action::ContinueReplica(offer),
        // It bears the id of our own history: no client wrote to it since.
        Relation::Older | Relation::HalfFilled => Action::SeedReplica,
        Relation::Behind(_) if look.untouched => Action::SeedReplica,
        Relation::Unknown { .. } if look.empty => Action::SeedReplica,
        Relation::Behind(_) | Relation::Unknown { .. } => Action::Promote,
    };
    match (serve, policy) {
        (Action::Promote, _) | (_, Policy::StartOver) => Action::Promote,
        (_, Policy::Never) => Action::Refuse(Refusal::SeedForbidden),
        // A full resync would overwrite data, however old.
        (Action::SeedReplica, Policy::IfEmpty)
            if !look.empty && !look.tainted && look.relation != Relation::HalfFilled =>
        {
            Action::Promote
        }
        (serve, Policy::Auto | Policy::IfEmpty) => unless_contested(look, serve),
    }
}

fn unless_contested(look: &Look, action: Action) -> Action {
    look.rival
        .map_or(action, |rival| Action::Refuse(Refusal::Contested(rival)))
}

fn follow(look: &Look, policy: Policy) -> Follow {
    let (offer, suspect) = match look.relation {
        Relation::NoArchive => (None, None),
        Relation::Tip(offer) | Relation::Inside(offer) => (Some(offer), None),
        Relation::Behind(offer) | Relation::Branch(offer) => (Some(offer), restarted(look)),
        Relation::Older | Relation::HalfFilled => {
            (None, restarted(look).or(Some(Suspicion::UnknownPast)))
        }
        Relation::Unknown { same_process: true } => (None, None),
        Relation::Unknown {
            same_process: false,
        } if look.empty => (None, Some(Suspicion::EmptiedUnseen)),
        Relation::Unknown {
            same_process: false,
        } => (None, Some(Suspicion::UnknownPast)),
    };
    let accept = policy == Policy::StartOver;
    Follow {
        offer,
        suspect: suspect.filter(|_| !accept),
        accept,
    }
}

/// A promoted replica that misses our last bytes, or an old master that lived on, is what clients see as the
/// master: its branch becomes the head. A process that started after our last byte came back from a file: it
/// does not.
fn restarted(look: &Look) -> Option<Suspicion> {
    match (look.restarted, look.untouched) {
        (true, true) => Some(Suspicion::StaleNotSeeded),
        (true, false) => Some(Suspicion::StaleAndWritten),
        (false, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::relation::tests::{at, offer};

    const POLICIES: [Policy; 4] = [
        Policy::Auto,
        Policy::IfEmpty,
        Policy::Never,
        Policy::StartOver,
    ];
    const ROLES: [Role; 4] = [
        Role::Master,
        Role::ReplicaOfUs,
        Role::Replica { link_up: true },
        Role::Replica { link_up: false },
    ];

    fn relations() -> [Relation; 10] {
        [
            Relation::NoArchive,
            Relation::Tip(offer(1, 1, 100, true)),
            Relation::Behind(offer(1, 1, 50, false)),
            Relation::Inside(offer(1, 1, 50, false)),
            Relation::Inside(offer(1, 1, 100, true)),
            Relation::Branch(offer(2, 2, 100, false)),
            Relation::Older,
            Relation::HalfFilled,
            Relation::Unknown {
                same_process: false,
            },
            Relation::Unknown { same_process: true },
        ]
    }

    /// Every combination, with the action the table gives: 4 x 10 x 2 x 2 x 2 x 2 x 2 x 4.
    fn everything() -> Vec<(Look, Policy, Action)> {
        let mut all = Vec::new();
        for role in ROLES {
            for relation in relations() {
                for bits in 0..32_u8 {
                    let look = Look {
                        role,
                        relation,
                        empty: bits & 1 != 0,
                        untouched: bits & 2 != 0,
                        restarted: bits & 4 != 0,
                        tainted: bits & 16 != 0,
                        rival: (bits & 8 != 0).then(|| at(7, 70)),
                        left_behind: false,
                    };
                    for policy in POLICIES {
                        all.push((look, policy, before_sync(&look, policy)));
                    }
                }
            }
        }
        assert_eq!(all.len(), 4 * 10 * 32 * 4);
        all
    }

    /// Checks one row over all combinations it speaks of, and that there are some.
    fn row(applies: impl Fn(&Look, Policy) -> bool, expected: impl Fn(&Look, Policy) -> Action) {
        let mut checked = 0;
        for (look, policy, action) in everything() {
            let action = without_accept(action);
            if applies(&look, policy) {
                assert_eq!(action, expected(&look, policy), "{look:?} under {policy:?}");
                checked += 1;
            }
        }
        assert!(checked > 0, "a row that applies to nothing proves nothing");
    }

    /// `accept` follows from the policy alone: `row_start_over…` looks at it.
    fn without_accept(action: Action) -> Action {
        match action {
            Action::Follow(follow) => Action::Follow(Follow {
                accept: false,
                ..follow
            }),
            other => other,
        }
    }

    fn root(suspect: Option<Suspicion>) -> Action {
        Action::Follow(Follow {
            offer: None,
            suspect,
            accept: false,
        })
    }

    fn continued(offer: Offer, suspect: Option<Suspicion>) -> Action {
        Action::Follow(Follow {
            offer: Some(offer),
            suspect,
            accept: false,
        })
    }

    fn is_unknown(look: &Look) -> bool {
        matches!(look.relation, Relation::Unknown { .. })
    }

    #[test]
    fn row_continues_the_head_is_followed_and_never_seeds() {
        row(
            |look, _| look.role == Role::Master && matches!(look.relation, Relation::Tip(_)),
            |look, _| match look.relation {
                Relation::Tip(offer) => continued(offer, None),
                _ => unreachable!(),
            },
        );
    }

    #[test]
    fn row_a_branch_that_lived_on_is_followed_from_where_it_left_suspect_only_after_a_restart() {
        let alive = Look {
            restarted: false,
            ..everything()[0].0
        };
        assert_eq!(restarted(&alive), None);
        row(
            |look, policy| {
                look.role == Role::Master
                    && matches!(look.relation, Relation::Branch(_))
                    && policy != Policy::StartOver
            },
            |look, _| match look.relation {
                Relation::Branch(offer) => continued(offer, restarted(look)),
                _ => unreachable!(),
            },
        );
    }

    #[test]
    fn row_no_archive_makes_a_root_of_any_master_with_or_without_data() {
        row(
            |look, _| look.role == Role::Master && look.relation == Relation::NoArchive,
            |_, _| root(None),
        );
    }

    #[test]
    fn row_empty_unknown_and_unwritten_is_seeded() {
        row(
            |look, policy| {
                look.role == Role::Master
                    && is_unknown(look)
                    && look.empty
                    && look.untouched
                    && look.rival.is_none()
                    && matches!(policy, Policy::Auto | Policy::IfEmpty)
            },
            |_, _| Action::Seed,
        );
    }

    #[test]
    fn row_stale_and_provably_behind_is_seeded_under_auto() {
        row(
            |look, policy| {
                look.role == Role::Master
                    && matches!(look.relation, Relation::Behind(_))
                    && look.untouched
                    && look.rival.is_none()
                    && policy == Policy::Auto
            },
            |_, _| Action::Seed,
        );
    }

    #[test]
    fn row_older_than_the_archive_holds_is_seeded_untouched_and_suspect_once_written() {
        let older = |look: &Look| look.role == Role::Master && look.relation == Relation::Older;
        row(
            |look, policy| {
                older(look) && look.untouched && look.rival.is_none() && policy == Policy::Auto
            },
            |_, _| Action::Seed,
        );
        row(
            |look, policy| older(look) && !look.untouched && policy != Policy::StartOver,
            |look, _| {
                root(Some(if look.restarted {
                    Suspicion::StaleAndWritten
                } else {
                    Suspicion::UnknownPast
                }))
            },
        );
        row(
            |look, policy| {
                look.role == Role::ReplicaOfUs
                    && look.relation == Relation::Older
                    && look.rival.is_none()
                    && policy == Policy::Auto
            },
            |_, _| Action::SeedReplica,
        );
    }

    #[test]
    fn row_half_filled_is_filled_again_and_never_promoted_by_itself() {
        let ours =
            |look: &Look| look.role == Role::ReplicaOfUs && look.relation == Relation::HalfFilled;
        row(
            |look, policy| {
                ours(look)
                    && look.rival.is_none()
                    && matches!(policy, Policy::Auto | Policy::IfEmpty)
            },
            |_, _| Action::SeedReplica,
        );
        for (look, policy, action) in everything() {
            if ours(&look) && policy != Policy::StartOver {
                assert_ne!(action, Action::Promote, "{look:?} under {policy:?}");
            }
        }
        row(
            |look, policy| {
                look.role == Role::Master
                    && look.relation == Relation::HalfFilled
                    && look.untouched
                    && look.rival.is_none()
                    && policy == Policy::Auto
            },
            |_, _| Action::Seed,
        );
        row(
            |look, policy| {
                look.role == Role::Master
                    && look.relation == Relation::HalfFilled
                    && !look.untouched
                    && policy != Policy::StartOver
            },
            |look, _| {
                root(Some(if look.restarted {
                    Suspicion::StaleAndWritten
                } else {
                    Suspicion::UnknownPast
                }))
            },
        );
    }

    #[test]
    fn row_a_seed_refused_for_errors_is_never_promoted_as_it_is() {
        row(
            |look, policy| {
                look.role == Role::ReplicaOfUs
                    && look.tainted
                    && matches!(look.relation, Relation::Inside(_))
                    && look.rival.is_none()
                    && matches!(policy, Policy::Auto | Policy::IfEmpty)
            },
            |_, _| Action::SeedReplica,
        );
    }

    #[test]
    fn row_behind_and_written_since_is_a_branch_suspect_only_after_a_restart() {
        row(
            |look, policy| {
                look.role == Role::Master
                    && matches!(look.relation, Relation::Behind(_))
                    && !look.untouched
                    && policy != Policy::StartOver
            },
            |look, _| match look.relation {
                Relation::Behind(offer) => {
                    continued(offer, look.restarted.then_some(Suspicion::StaleAndWritten))
                }
                _ => unreachable!(),
            },
        );
    }

    #[test]
    fn row_data_under_an_unknown_id_is_a_suspect_root() {
        row(
            |look, policy| {
                look.role == Role::Master
                    && look.relation
                        == (Relation::Unknown {
                            same_process: false,
                        })
                    && !look.empty
                    && policy != Policy::StartOver
            },
            |_, _| root(Some(Suspicion::UnknownPast)),
        );
    }

    #[test]
    fn row_the_process_we_followed_under_a_new_id_is_a_root_of_good_standing() {
        row(
            |look, _| {
                look.role == Role::Master
                    && look.relation == (Relation::Unknown { same_process: true })
                    && !(look.empty && look.untouched)
            },
            |_, _| root(None),
        );
    }

    #[test]
    fn row_empty_but_written_to_is_a_suspect_root_never_seeded() {
        row(
            |look, policy| {
                look.role == Role::Master
                    && look.relation
                        == (Relation::Unknown {
                            same_process: false,
                        })
                    && look.empty
                    && !look.untouched
                    && policy != Policy::StartOver
            },
            |_, _| root(Some(Suspicion::EmptiedUnseen)),
        );
    }

    #[test]
    fn row_never_refuses_to_follow_an_empty_server_beside_data() {
        row(
            |look, policy| {
                look.role == Role::Master
                    && policy == Policy::Never
                    && look.empty
                    && look.untouched
                    && (is_unknown(look) || matches!(look.relation, Relation::Behind(_)))
            },
            |_, _| Action::Refuse(Refusal::SeedForbidden),
        );
    }

    #[test]
    fn row_two_heads_advancing_stop_every_automatic_seed() {
        row(
            |look, policy| {
                look.role == Role::Master
                    && look.rival.is_some()
                    && look.untouched
                    && look.empty
                    && is_unknown(look)
                    && matches!(policy, Policy::Auto | Policy::IfEmpty)
            },
            |_, _| Action::Refuse(Refusal::Contested(at(7, 70))),
        );
        for (look, policy, action) in everything() {
            if look.rival.is_some() {
                let seeds = matches!(
                    action,
                    Action::Seed | Action::SeedReplica | Action::ContinueReplica(_)
                );
                assert!(!seeds, "{look:?} under {policy:?}");
            }
        }
    }

    #[test]
    fn row_start_over_never_seeds_and_never_suspects() {
        for (look, policy, action) in everything() {
            if policy == Policy::StartOver {
                match action {
                    Action::Follow(follow) => {
                        assert_eq!((follow.suspect, follow.accept), (None, true), "{look:?}");
                    }
                    Action::Promote | Action::Refuse(Refusal::ReplicaWaits) => {}
                    other => panic!("{other:?} for {look:?}"),
                }
            }
        }
    }

    #[test]
    fn row_a_replica_of_ours_without_data_is_seeded_or_promoted_where_the_archive_is_empty() {
        row(
            |look, policy| {
                look.role == Role::ReplicaOfUs
                    && look.empty
                    && is_unknown(look)
                    && look.rival.is_none()
                    && matches!(policy, Policy::Auto | Policy::IfEmpty)
            },
            |_, _| Action::SeedReplica,
        );
        row(
            |look, _| look.role == Role::ReplicaOfUs && look.relation == Relation::NoArchive,
            |_, _| Action::Promote,
        );
    }

    #[test]
    fn row_a_replica_of_ours_inside_our_history_is_continued_to_the_head() {
        row(
            |look, policy| {
                look.role == Role::ReplicaOfUs
                    && !look.tainted
                    && look.relation == Relation::Inside(offer(1, 1, 50, false))
                    && look.rival.is_none()
                    && matches!(policy, Policy::Auto | Policy::IfEmpty)
            },
            |_, _| Action::ContinueReplica(offer(1, 1, 50, false)),
        );
    }

    #[test]
    fn row_a_replica_of_ours_with_all_of_it_ahead_or_foreign_is_promoted_untouched() {
        row(
            |look, _| {
                look.role == Role::ReplicaOfUs
                    && (matches!(look.relation, Relation::Tip(_) | Relation::Branch(_))
                        || (!look.tainted
                            && look.relation == Relation::Inside(offer(1, 1, 100, true)))
                        || (is_unknown(look) && !look.empty))
            },
            |_, _| Action::Promote,
        );
    }

    #[test]
    fn row_a_replica_of_another_server_is_followed_while_its_link_is_up() {
        for (look, policy, action) in everything() {
            if look.role == (Role::Replica { link_up: true }) {
                assert!(
                    matches!(action, Action::Follow(_)),
                    "{look:?} under {policy:?}"
                );
            }
        }
    }

    #[test]
    fn row_a_replica_that_the_head_has_just_left_behind_is_waited_for() {
        for (look, policy, action) in everything() {
            let left = Look {
                left_behind: true,
                ..look
            };
            let before = before_sync(&left, policy);
            if look.role == (Role::Replica { link_up: true }) && policy != Policy::StartOver {
                assert_eq!(before, Action::Refuse(Refusal::LeftBehind));
            } else {
                assert_eq!(before, action, "{left:?} under {policy:?}");
            }
        }
    }

    #[test]
    fn row_a_replica_of_another_seeder_is_left_alone() {
        row(
            |look, _| look.role == (Role::Replica { link_up: false }),
            |_, _| Action::Refuse(Refusal::ReplicaWaits),
        );
    }

    #[test]
    fn invariant_a_server_with_data_of_its_own_is_never_overwritten() {
        for (look, policy, action) in everything() {
            if matches!(action, Action::Seed | Action::SeedReplica) {
                let ours = look.role == Role::ReplicaOfUs;
                let proven_old = match look.relation {
                    Relation::Behind(_) => look.untouched,
                    Relation::Older | Relation::HalfFilled => look.untouched || ours,
                    Relation::Inside(_) => ours && look.tainted,
                    _ => false,
                };
                assert!(look.empty || proven_old, "{look:?} under {policy:?}");
                assert!(
                    !matches!(look.relation, Relation::Tip(_) | Relation::Branch(_)),
                    "a live history is never seeded: {look:?}"
                );
            }
            if action == Action::Seed {
                assert!(look.untouched, "{look:?} under {policy:?}");
            }
        }
    }

    #[test]
    fn invariant_nothing_unknown_silently_becomes_the_head() {
        for (look, policy, action) in everything() {
            if let Action::Follow(follow) = action
                && look.relation
                    == (Relation::Unknown {
                        same_process: false,
                    })
                && policy != Policy::StartOver
            {
                assert!(follow.suspect.is_some(), "{look:?} under {policy:?}");
            }
        }
    }
}
