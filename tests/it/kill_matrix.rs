//! The kill matrix: Perennial, the master, or both, killed or stopped at every step of following and of seeding.
//!
//! Each step is reached by a trap in a proxy (`harness/trap.rs`), not by chance: the connection is held at a byte, and
//! then the blow falls. A cell is a step, a victim and a blow. Each prints one line; `$PERENNIAL_MATRIX_REPORT` names a
//! file that gathers them. By default a step is struck three times, by another choice of blows each, on two kinds of
//! servers; with `PERENNIAL_MATRIX=full` in all ways on all kinds.

mod cuts;
mod follow;
mod held;
mod seed;
mod stage;

use crate::harness::Kind;
use crate::harness::servers::{REDIS_7_0, REDIS_8_0, VALKEY_8_1, VALKEY_9_1};
use stage::{Blow, Stage, Step, Victim, report};

const VICTIMS: [Victim; 4] = [
    Victim::Perennial,
    Victim::Master,
    Victim::PerennialThenMaster,
    Victim::MasterThenPerennial,
];

fn is_full() -> bool {
    std::env::var("PERENNIAL_MATRIX").is_ok_and(|value| value == "full")
}

/// The kinds of servers at which every step is struck, also when the run is not a full one.
const EVERYWHERE: [Kind; 2] = [REDIS_7_0, VALKEY_9_1];
/// At other kinds every so many steps are struck, once each.
const THIN: usize = 5;

/// The blows at the step of this number.
fn blows(kind: Kind, number: usize) -> Vec<(Victim, Blow)> {
    if is_full() {
        let mut all = Vec::new();
        for victim in VICTIMS {
            all.push((victim, Blow::Kill { keep_dump: false }));
            if victim != Victim::Perennial {
                all.push((victim, Blow::Kill { keep_dump: true }));
            }
            all.push((victim, Blow::Stop));
        }
        all.push((Victim::Perennial, Blow::LongStop));
        return all;
    }
    let keep_dump = number % 2 == 1;
    let kill_master = (VICTIMS[1 + number % 3], Blow::Kill { keep_dump });
    if EVERYWHERE.contains(&kind) {
        let kill_perennial = (Victim::Perennial, Blow::Kill { keep_dump: false });
        vec![
            kill_perennial,
            kill_master,
            (VICTIMS[number % 4], Blow::Stop),
        ]
    } else if number.is_multiple_of(THIN) {
        vec![kill_master]
    } else {
        Vec::new()
    }
}

/// Strikes at each of the steps in turn, on one stage.
#[track_caller]
fn strike_at(stage: &mut Stage, steps: &[Step]) {
    let kind = stage.server.kind();
    let mut cells = 0;
    for (number, step) in steps.iter().enumerate() {
        for (victim, blow) in blows(kind, number) {
            stage.cell(step, victim, blow);
            cells += 1;
        }
    }
    let (first, kind) = (&steps[0].name, kind.name);
    report(&format!(
        "{first} and on, {kind}: {} steps, {cells} cells",
        steps.len()
    ));
}

/// The named scenarios, as a test for each kind of server of [`EVERYWHERE`].
macro_rules! on_matrix_servers {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            use crate::harness::servers;
            #[test] fn redis_7_0() { super::$scenario(servers::REDIS_7_0); }
            #[test] fn valkey_9_1() { super::$scenario(servers::VALKEY_9_1); }
        }
    )+};
}
pub(crate) use on_matrix_servers;

/// The whole matrix, thin unless the run is a full one.
fn everything(kind: Kind) {
    follow::while_resuming(kind);
    follow::inside_the_stream(kind);
    follow::in_a_full_resync(kind);
    follow::in_the_first_sync(kind);
    seed::born_as_a_replica(kind);
    seed::until_a_child_of_a_replica_born(kind);
    seed::taken_over(kind);
    seed::until_a_child_of_a_server_taken_over(kind);
}

#[test]
fn everything_on_redis_8_0() {
    everything(REDIS_8_0);
}

#[test]
fn everything_on_valkey_8_1() {
    everything(VALKEY_8_1);
}
