//! What upkeep has done since the start of the process, for whoever shows it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts that only grow, but for those that say how things stand.
#[derive(Debug, Default)]
pub struct Report {
    merges: AtomicU64,
    failed: AtomicU64,
    merged_deleted: AtomicU64,
    pruned: AtomicU64,
    refused: AtomicU64,
    barred: AtomicU64,
}

/// The same at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Merged segments made.
    pub merges: u64,
    /// Merges that failed.
    pub merges_failed: u64,
    /// Objects deleted because a merged segment covers them.
    pub deleted_merged: u64,
    /// Objects deleted because nobody can ask for them any more.
    pub deleted_pruned: u64,
    /// Times that deleting was refused, by the store or by ourselves.
    pub deletions_refused: u64,
    /// Segments that nothing is done with until a person has looked.
    pub barred: u64,
}

impl Report {
    /// What it says now.
    pub fn tally(&self) -> Tally {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Tally {
            merges: of(&self.merges),
            merges_failed: of(&self.failed),
            deleted_merged: of(&self.merged_deleted),
            deleted_pruned: of(&self.pruned),
            deletions_refused: of(&self.refused),
            barred: of(&self.barred),
        }
    }

    pub(super) fn merged(&self, done: bool) {
        let count = if done { &self.merges } else { &self.failed };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn deleted(&self, pruned: bool) {
        let count = if pruned {
            &self.pruned
        } else {
            &self.merged_deleted
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn barred(&self, segments: usize) {
        self.barred.store(segments as u64, Ordering::Relaxed);
    }
}
