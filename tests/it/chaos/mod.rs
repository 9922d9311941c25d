//! Chaos: a master, a real replica and one or two Perennials over a bucket, everything killed, stopped, cut off and
//! failed over at random while clients never stop. No write that Perennial has confirmed may be missing, at any
//! master, in any restore; the sum of all accounts holds; master, replica and restored files are the same at the end.
//!
//! `PERENNIAL_CHAOS_SECONDS` is the length of each life (`make chaos MINUTES=60`), `PERENNIAL_CHAOS_SEED` repeats what
//! goes wrong and when; how the processes fall in with it differs each time.

mod clients;
mod judge;
mod schedule;
mod world;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::Path;
use std::time::{Duration, Instant};

use self::world::World;
use crate::harness::Kind;
use crate::harness::random::Random;
use crate::harness::servers::{REDIS_6_2, REDIS_7_0, REDIS_8_0, VALKEY_9_1};

/// How long a life is unless told otherwise.
const SECONDS: u64 = 40;
/// After so many rounds everything is restored while the clients write on.
const ROUNDS_PER_AUDIT: u32 = 5;

#[test]
fn redis_6_2() {
    nothing_confirmed_is_lost_on(REDIS_6_2);
}

#[test]
fn redis_7_0() {
    nothing_confirmed_is_lost_on(REDIS_7_0);
}

#[test]
fn redis_8_0() {
    nothing_confirmed_is_lost_on(REDIS_8_0);
}

#[test]
fn valkey_9_1() {
    nothing_confirmed_is_lost_on(VALKEY_9_1);
}

fn nothing_confirmed_is_lost_on(kind: Kind) {
    let seconds = std::env::var("PERENNIAL_CHAOS_SECONDS")
        .map_or(SECONDS, |text| text.parse().expect("a number of seconds"));
    let seed = std::env::var("PERENNIAL_CHAOS_SEED").map_or_else(
        |_| RandomState::new().build_hasher().finish(),
        |text| text.parse().expect("PERENNIAL_CHAOS_SEED is a number"),
    );
    eprintln!("PERENNIAL_CHAOS_SEED={seed}");
    let mut random = Random::fixed(seed);
    let keep = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/chaos")
        .join(format!("{}-{seed}", kind.name));
    let Some(mut world) = World::start(kind, &mut random, keep) else {
        return;
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut rounds = 0;
    while Instant::now() < end {
        rounds += 1;
        world.tell(&format!("round {rounds}"));
        for step in schedule::round(&mut random, world.perennials()) {
            world.carry_out(step);
        }
        world.until_well();
        if rounds % ROUNDS_PER_AUDIT == 0 {
            world.audit();
        }
    }
    world.tell(&format!("{rounds} rounds are over"));
    world.end_well();
}
