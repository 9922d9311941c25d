//! The only reader of chance for everything that `run` does: ids and the length of waits. A simulation decides it by
//! a seed, so that two runs are the same.

/// Why there is nothing.
pub use getrandom::Error;

/// Fills `bytes`.
///
/// # Errors
/// What the system says.
pub fn fill(bytes: &mut [u8]) -> Result<(), Error> {
    #[cfg(feature = "simulation")]
    if seeded::fill(bytes) {
        return Ok(());
    }
    getrandom::fill(bytes)
}

/// A number.
///
/// # Errors
/// What the system says.
pub fn u32() -> Result<u32, Error> {
    let mut bytes = [0; 4];
    fill(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// Chance by a seed, for the thread that asked for it.
#[cfg(feature = "simulation")]
pub mod seeded {
    use std::cell::Cell;

    thread_local! {
        static STATE: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// From here on this thread draws from `seed`, or from the system again.
    pub fn begin(seed: Option<u64>) {
        STATE.set(seed);
    }

    /// Whether this thread is simulated: it has no other threads to turn to either.
    pub fn is_seeded() -> bool {
        STATE.get().is_some()
    }

    pub(super) fn fill(bytes: &mut [u8]) -> bool {
        let Some(mut state) = STATE.get() else {
            return false;
        };
        for chunk in bytes.chunks_mut(8) {
            // SplitMix64.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut bits = state;
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bits ^= bits >> 31;
            chunk.copy_from_slice(&bits.to_le_bytes()[..chunk.len()]);
        }
        STATE.set(Some(state));
        true
    }
}
