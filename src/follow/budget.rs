//! One memory budget for everything in flight between the socket and the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Counts bytes that are held; never blocks whoever adds, so that nothing that was read is dropped. The
/// reader looks at [`Budget::has_room`] before it reads more.
#[derive(Debug)]
pub struct Budget {
    bytes_max: u64,
    used: AtomicU64,
    freed: Notify,
}

impl Budget {
    /// A budget of `bytes_max` bytes.
    pub fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self {
            bytes_max,
            used: AtomicU64::new(0),
            freed: Notify::new(),
        })
    }

    /// Takes `bytes` out of the budget until the reservation is dropped.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Reservation {
        self.used.fetch_add(bytes, Ordering::AcqRel);
        Reservation {
            budget: Arc::clone(self),
            bytes,
        }
    }

    /// All of it, in bytes.
    pub const fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Bytes held now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// Whether more may be read.
    pub fn has_room(&self) -> bool {
        self.used() < self.bytes_max
    }

    /// Whether more than half of it is held.
    pub fn is_over_half(&self) -> bool {
        self.used() > self.bytes_max / 2
    }

    /// Ends when something is given back after this call.
    pub fn freed(&self) -> impl Future<Output = ()> {
        self.freed.notified()
    }

    /// Waits until at least half of the budget is free.
    pub async fn half_free(&self) {
        loop {
            let freed = self.freed.notified();
            if self.used() <= self.bytes_max / 2 {
                return;
            }
            freed.await;
        }
    }

    /// Waits until more may be read.
    pub async fn room(&self) {
        loop {
            let freed = self.freed.notified();
            if self.has_room() {
                return;
            }
            freed.await;
        }
    }
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Reservation {
    /// Changes what is held to `bytes`.
    pub fn resize(&mut self, bytes: u64) {
        if bytes >= self.bytes {
            self.budget
                .used
                .fetch_add(bytes - self.bytes, Ordering::AcqRel);
        } else {
            self.budget
                .used
                .fetch_sub(self.bytes - bytes, Ordering::AcqRel);
            self.budget.freed.notify_waiters();
        }
        self.bytes = bytes;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_free_again() {
        let budget = Budget::new(100);
        let mut first = budget.reserve(80);
        assert!(budget.has_room());
        let second = budget.reserve(50);
        assert!(!budget.has_room());
        first.resize(10);
        assert_eq!(budget.used(), 60);
        drop((first, second));
        assert_eq!(budget.used(), 0);
    }
}
