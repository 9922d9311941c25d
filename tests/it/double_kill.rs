//! Both die, in either order, at any moment, again and again, under clients that never stop: what WAIT confirmed is
//! back each time. `PERENNIAL_KILLS=300` for longer than the default.

use std::time::Duration;

use crate::harness::random::Random;
use crate::harness::{Archive, BornAsReplica, DEADLINE, Load, REDIS_7_0, Writers, until};

#[test]
fn nothing_confirmed_is_lost_however_both_are_killed() {
    let kills = std::env::var("PERENNIAL_KILLS").map_or(12, |text| text.parse::<u32>().unwrap());
    let archive = Archive::new();
    let Some(mut born) = BornAsReplica::start(REDIS_7_0, &archive) else {
        return;
    };
    let mut random = Random::new();
    let writers = Writers::start(&born.server.address(), Load::default());
    for _ in 0..kills {
        // The moment is part of the test: anywhere between a seed and long after it.
        std::thread::sleep(Duration::from_millis(random.below(400)));
        let confirmed = writers.ledger();
        let what = random.below(4);
        match what {
            0 => {
                born.server.kill();
                born.perennial.kill();
            }
            1 => {
                born.perennial.kill();
                born.server.kill();
            }
            2 => born.server.kill(),
            _ => born.perennial.kill(),
        }
        if what != 3 {
            // Sometimes a dump is left, from a seed: stale, and it must not matter.
            if random.below(2) == 0 {
                let _ = std::fs::remove_file(born.server.folder().join("dump.rdb"));
            }
            born.server.start_again_without_waiting();
        }
        if what != 2 {
            born.perennial.start_again();
        }
        until("it is a master again", DEADLINE, || born.server.is_master());
        confirmed.assert_all_in(&born.server.address());
    }
    writers.until_confirmed_more(50);
    let ledger = writers.stop();
    eprintln!("{kills} kills, {} confirmed writes checked", ledger.0.len());
    ledger.assert_all_in(&born.server.address());
    let folder = archive.restore("restored", &[]);
    let restored = REDIS_7_0
        .start(&["--dir", folder.to_str().unwrap(), "--appendonly", "yes"])
        .unwrap();
    ledger.assert_all_in(&restored.address());
    assert!(
        archive.status().suspects().is_empty(),
        "{:#?}",
        archive.status()
    );
    born.perennial.assert_healthy();
}
