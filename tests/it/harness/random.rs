//! A small random generator whose seed is printed and can be given again.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// SplitMix64: enough to choose commands and bytes, and the same everywhere.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator seeded from `$PERENNIAL_TEST_SEED`, or at random. Prints the seed.
    pub fn new() -> Self {
        let seed = match std::env::var("PERENNIAL_TEST_SEED") {
            Ok(text) => text.parse().expect("PERENNIAL_TEST_SEED is a number"),
            Err(_) => RandomState::new().build_hasher().finish(),
        };
        eprintln!("random seed: PERENNIAL_TEST_SEED={seed}");
        Self(seed)
    }

    /// A generator with a seed that never changes, for data that need not vary.
    pub fn fixed(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }

    /// `count` bytes that do not compress.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.bits().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}
