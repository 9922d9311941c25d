//! The only reader of time, behind a trait, so that tests and simulations move it by hand.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::position::{Ticks, UnixMillis};

/// Tells the time.
pub trait Clock: Send + Sync + std::fmt::Debug + 'static {
    /// The wall clock. It may jump in either direction: never compute a wait from it.
    fn unix(&self) -> UnixMillis;

    /// A clock that never goes back, for ages, waits and deadlines.
    fn ticks(&self) -> Ticks;
}

/// The machine's own clocks.
#[derive(Debug)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// Starts counting ticks now.
    #[allow(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the time"
    )]
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[allow(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the time"
    )]
    fn unix(&self) -> UnixMillis {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        UnixMillis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the time"
    )]
    fn ticks(&self) -> Ticks {
        Ticks(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}
