//! What goes wrong, and when: drawn from a seed, round by round, without looking at what happens.

use std::time::Duration;

use crate::harness::random::Random;
use crate::harness::s3::Trouble;

/// The most that goes wrong in one round.
const FAULTS_MAX: u64 = 4;
/// The longest between two faults of a round, milliseconds: shorter than a seed, so that they meet.
const GAP_MS: u64 = 700;
/// The longest that something is stopped, down or in trouble, milliseconds.
const SPAN_MS: u64 = 3_000;
/// Of requests to a store in trouble, so many in a thousand go wrong.
const PER_MILLE: [u64; 3] = [100, 400, 900];

/// Who is promoted, and what the one before is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failover {
    /// The master is killed.
    Killed,
    /// The master hangs, and wakes up when another one is.
    Hanging,
    /// The replica misses what comes last, and the master is killed.
    Lagging,
    /// `FAILOVER TO`: both agree.
    Agreed,
}

/// One thing that goes wrong. What is down or stopped comes back by itself after its span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`, and started again, with what lies in its folder or without.
    KillMaster {
        empty: bool,
        down: Duration,
    },
    KillReplica {
        empty: bool,
        down: Duration,
    },
    KillPerennial {
        which: usize,
        down: Duration,
    },
    /// Everybody at once: servers and Perennials, in this order or the other.
    KillAll {
        servers_first: bool,
        empty: bool,
        down: Duration,
    },
    /// SIGTERM.
    TerminateMaster {
        down: Duration,
    },
    TerminatePerennial {
        which: usize,
        down: Duration,
    },
    /// SIGSTOP, and SIGCONT.
    StopMaster {
        span: Duration,
    },
    StopReplica {
        span: Duration,
    },
    StopPerennial {
        which: usize,
        span: Duration,
    },
    /// Perennial's connections to its server.
    CutLink {
        which: usize,
    },
    CutLinkAfter {
        which: usize,
        bytes: u64,
    },
    StallLink {
        which: usize,
        span: Duration,
    },
    DelayLink {
        which: usize,
        span: Duration,
    },
    /// The store.
    StoreDown {
        span: Duration,
    },
    StoreHangs {
        span: Duration,
    },
    StoreTrouble {
        per_mille: u64,
        seed: u64,
        trouble: Trouble,
        span: Duration,
    },
    /// A dump that a later restart finds.
    Save,
    Failover(Failover),
}

/// A fault and how long after the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub after: Duration,
    pub fault: Fault,
}

/// The next round. It takes the same draws whatever has happened, so a seed gives the same rounds.
pub fn round(random: &mut Random, perennials: usize) -> Vec<Step> {
    let count = 1 + random.below(FAULTS_MAX);
    (0..count)
        .map(|_| Step {
            after: Duration::from_millis(random.below(GAP_MS)),
            fault: fault(random, perennials),
        })
        .collect()
}

fn fault(random: &mut Random, perennials: usize) -> Fault {
    let empty = random.below(2) == 0;
    let which = usize::try_from(random.below(perennials as u64)).unwrap();
    let span = Duration::from_millis(50 + random.below(SPAN_MS));
    let down = Duration::from_millis(random.below(SPAN_MS / 3));
    match random.below(32) {
        0..4 => Fault::KillMaster { empty, down },
        4 => Fault::KillReplica { empty, down },
        5 => Fault::Failover(Failover::Lagging),
        6..9 => Fault::KillPerennial { which, down },
        9..12 => Fault::KillAll {
            servers_first: random.below(2) == 0,
            empty,
            down,
        },
        12 => Fault::TerminateMaster { down },
        13 => Fault::TerminatePerennial { which, down },
        14 => Fault::StopMaster { span },
        15 => Fault::StopReplica { span },
        16..18 => Fault::StopPerennial { which, span },
        18 => Fault::CutLink { which },
        19 => Fault::CutLinkAfter {
            which,
            bytes: random.below(100_000),
        },
        20 => Fault::StallLink { which, span },
        21 => Fault::DelayLink { which, span },
        22 => Fault::StoreDown { span },
        23 => Fault::StoreHangs { span },
        24..27 => Fault::StoreTrouble {
            per_mille: PER_MILLE[usize::try_from(random.below(3)).unwrap()],
            seed: random.bits(),
            trouble: trouble(random),
            span,
        },
        27 => Fault::Save,
        28 => Fault::Failover(Failover::Killed),
        29 => Fault::Failover(Failover::Hanging),
        30 => Fault::Failover(Failover::Lagging),
        _ => Fault::Failover(Failover::Agreed),
    }
}

fn trouble(random: &mut Random) -> Trouble {
    match random.below(7) {
        0 => Trouble::Status(503),
        1 => Trouble::Status(500),
        2 => Trouble::Cut,
        3 => Trouble::CutWithin,
        4 => Trouble::DoneBut(500),
        5 => Trouble::DoneButCut,
        _ => Trouble::Late(Duration::from_millis(random.below(700))),
    }
}

#[test]
fn a_seed_gives_the_same_rounds_and_every_fault_comes() {
    let rounds = |seed| {
        let mut random = Random::fixed(seed);
        (0..200)
            .flat_map(|_| round(&mut random, 2))
            .collect::<Vec<Step>>()
    };
    let first = rounds(7);
    assert_eq!(first, rounds(7));
    assert_ne!(first, rounds(8));
    let name = |step: &Step| {
        let text = format!("{:?}", step.fault);
        let end = text.find([' ', '}']).unwrap_or(text.len());
        text[..end].to_owned()
    };
    let names: std::collections::BTreeSet<String> = first.iter().map(name).collect();
    // Every variant of `Fault`, `Failover` four times.
    assert_eq!(names.len(), 17 + 4, "{names:?}");
}
