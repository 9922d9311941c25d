//! Each process has a clock of its own; the store's is another.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use perennial::clock::Clock;
use perennial::position::{Ticks, UnixMillis};

use crate::chance;

/// When every run begins, Unix milliseconds.
const BEGIN: u64 = 1_800_000_000_000;

thread_local! {
    static STORE_AHEAD: RefCell<i64> = const { RefCell::new(0) };
    static SKEWS: RefCell<BTreeMap<String, Arc<AtomicI64>>> = const { RefCell::new(BTreeMap::new()) };
}

/// Begins a run.
pub fn begin(store_ahead: i64) {
    STORE_AHEAD.set(store_ahead);
    SKEWS.take();
}

/// The time of day, without any error.
pub fn unix() -> u64 {
    BEGIN + u64::try_from(chance::elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The store's time of day.
pub fn store_unix() -> u64 {
    unix().saturating_add_signed(STORE_AHEAD.with_borrow(|ahead| *ahead))
}

/// Moves the clock of a machine.
pub fn skew(machine: &str, millis: i64) {
    of(machine).store(millis, Ordering::Relaxed);
}

fn of(machine: &str) -> Arc<AtomicI64> {
    SKEWS.with_borrow_mut(|skews| Arc::clone(skews.entry(machine.to_owned()).or_default()))
}

/// The clock of a process that begins now.
#[derive(Debug)]
pub struct Simulated {
    skew: Arc<AtomicI64>,
    began: std::time::Duration,
}

impl Simulated {
    pub fn of(machine: &str) -> Self {
        Self {
            skew: of(machine),
            began: chance::elapsed(),
        }
    }
}

impl Clock for Simulated {
    fn unix(&self) -> UnixMillis {
        UnixMillis(unix().saturating_add_signed(self.skew.load(Ordering::Relaxed)))
    }

    fn ticks(&self) -> Ticks {
        let since = chance::elapsed().saturating_sub(self.began);
        Ticks(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}
