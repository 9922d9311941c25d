//! The world's own chance and time. Perennial's is `perennial::random`: a draw there does not shift what happens here.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

thread_local! {
    static STATE: Cell<u64> = const { Cell::new(0) };
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Begins a run.
pub fn begin(seed: u64) {
    STATE.set(seed ^ 0x5851_f42d_4c95_7f2d);
    BEGAN.set(Some(now()));
}

/// The simulated time.
#[allow(
    clippy::disallowed_methods,
    reason = "the runtime's paused clock is the simulation's time"
)]
pub fn now() -> Instant {
    Instant::now()
}

/// Simulated time since the run began.
pub fn elapsed() -> Duration {
    BEGAN.get().map_or(Duration::ZERO, |began| now() - began)
}

/// Any number.
pub fn number() -> u64 {
    let state = STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set(state);
    let mut bits = state;
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A number below `end`; 0 where there is none.
pub fn below(end: u64) -> u64 {
    number() % end.max(1)
}

/// A number of `from..=to`.
pub fn between(from: u64, to: u64) -> u64 {
    from + below(to - from + 1)
}

/// True so many times in a hundred.
pub fn percent(percent: u64) -> bool {
    below(100) < percent
}

/// A time between two numbers of milliseconds.
pub fn millis(from: u64, to: u64) -> Duration {
    Duration::from_millis(between(from, to))
}

/// One of them.
pub fn one_of<T: Copy>(of: &[T]) -> T {
    of[usize::try_from(below(of.len() as u64)).unwrap_or_default()]
}

/// A replication id, or a run id.
pub fn id() -> String {
    format!("{:016x}{:016x}{:08x}", number(), number(), below(1 << 32))
}
