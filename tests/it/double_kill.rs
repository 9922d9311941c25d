//! Both die at once, in either order, at any moment, again and again, under clients that never stop: what WAIT
//! confirmed is back each time. `PERENNIAL_KILLS=300` for longer than the default.

use std::time::Duration;

use crate::harness::busy::Ledger;
use crate::harness::random::Random;
use crate::harness::{Archive, BornAsReplica, DEADLINE, Kind, Load, Writers, until};
use crate::on_every_server;

/// Kills unless `PERENNIAL_KILLS` says otherwise.
const KILLS: u32 = 6;
/// So often what is in the archive is also restored by files into a fresh server.
const FILES_EVERY: u32 = 25;
/// The longest between a kill and the next one's beginning, milliseconds: shorter than what a seed takes, and longer.
const MOMENT_MS: u64 = 400;

/// Few writes, most of them confirmed: the time goes into kills and seeds.
const LOAD: Load = Load {
    plain: 1,
    confirming: 3,
    value_bytes: 16,
    pause: Duration::from_millis(8),
};

on_every_server! {
    nothing_confirmed_is_lost_however_both_are_killed,
}

fn nothing_confirmed_is_lost_however_both_are_killed(kind: Kind) {
    let kills = std::env::var("PERENNIAL_KILLS").map_or(KILLS, |text| text.parse().unwrap());
    both_are_killed_in(kind, &Archive::new(), kills);
}

/// The same, so often, wherever the archive lies.
pub fn both_are_killed_in(kind: Kind, archive: &Archive, kills: u32) {
    let Some(mut born) = BornAsReplica::start(kind, archive) else {
        return;
    };
    let mut random = Random::new();
    let writers = Writers::start_waiting_for_ever(&born.server.address(), LOAD);
    writers.until_confirmed_more(1);
    let (mut by_seed, mut by_files) = (0, 0);
    for kill in 1..=kills {
        // The moment is part of the test: anywhere between a seed and long after it.
        std::thread::sleep(Duration::from_millis(random.below(MOMENT_MS)));
        let confirmed = kill_both_and_start_again(&mut born, &writers, &mut random);
        until("it is a master again", DEADLINE, || born.server.is_master());
        confirmed.assert_all_in(&born.server.address());
        by_seed += confirmed.0.len();
        if kill % FILES_EVERY == 0 || kill == kills {
            by_files += in_files(kind, archive, &confirmed, kill);
        }
    }
    writers.until_confirmed_more(20);
    let last = writers.stop();
    last.assert_all_in(&born.server.address());
    in_files(kind, archive, &last, kills + 1);
    eprintln!(
        "{}: {kills} double kills, {} confirmed writes, {by_seed} checks of them behind seeds and {by_files} in \
         restored files, lost 0",
        kind.name,
        last.0.len()
    );
    let status = archive.status();
    assert!(status.suspects().is_empty(), "{status:#?}");
    assert!(status.problems.is_empty(), "{status:#?}");
    born.perennial.assert_healthy();
}

/// Returns what had been confirmed when the second of both died.
fn kill_both_and_start_again(
    born: &mut BornAsReplica,
    writers: &Writers,
    random: &mut Random,
) -> Ledger {
    if random.below(2) == 0 {
        born.server.kill();
        born.perennial.kill();
    } else {
        born.perennial.kill();
        born.server.kill();
    }
    let confirmed = writers.ledger();
    // Sometimes a dump is left, from a seed: stale, and it must not matter.
    if random.below(2) == 0 {
        let _ = std::fs::remove_file(born.server.folder().join("dump.rdb"));
    }
    if random.below(2) == 0 {
        born.server.start_again_without_waiting();
        born.perennial.start_again();
    } else {
        born.perennial.start_again();
        born.server.start_again_without_waiting();
    }
    confirmed
}

/// Looks for the writes in a server that was started from restored files. Returns how many there were.
fn in_files(kind: Kind, archive: &Archive, ledger: &Ledger, kill: u32) -> usize {
    let folder = archive.restore(&format!("restored-{kill}"), &[]);
    let restored = kind.start_on(&folder).unwrap();
    ledger.assert_all_in(&restored.address());
    drop(restored);
    std::fs::remove_dir_all(folder).unwrap();
    ledger.0.len()
}
