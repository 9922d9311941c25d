//! What upkeep does to an archive, as values: which segments become one, what that one makes superfluous, and what
//! nobody can ask for any more. Computed from a catalogue, the store's dates and the store's clock; carried out by
//! `upkeep`.

mod merge;
mod prune;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use crate::archive::layout::ObjectName;
use crate::archive::timeline::Catalog;
use crate::position::UnixMillis;

pub use merge::{
    Beside, Covered, MERGE_INPUTS_MAX, Merge, is_superfluous_later, merges, outermost, superfluous,
};
pub use prune::{PruneError, PrunePlan, SUPERSEDED_KEPT, prune};

/// Times of the streamers' clocks that lie in the future are not believed further than this beyond the store's own date,
/// milliseconds.
const TRUSTED_AHEAD_MILLIS: u64 = 24 * 60 * 60 * 1000;

/// Clocks may differ by this much: what is that close to the window's start is kept, milliseconds.
pub const CLOCK_SKEW_MILLIS_MAX: u64 = 5 * 60 * 1000;

/// When each object was created, by the store's own clock.
pub type Dates = HashMap<ObjectName, UnixMillis>;

/// How an archive is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Every moment that is not older than this can be restored, milliseconds.
    pub retention_millis: u64,
    /// What a verified segment covers stays this long beside it, milliseconds: whoever has listed it may still be
    /// about to read it.
    pub grace_millis: u64,
    /// Segments stored within this time become one, milliseconds.
    pub minute_millis: u64,
    /// Those received within this time become one in turn, milliseconds.
    pub hour_millis: u64,
    /// But no larger than this, stored bytes.
    pub merged_bytes_max: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            retention_millis: 7 * 24 * 60 * 60 * 1000,
            grace_millis: 10 * 60 * 1000,
            minute_millis: 60 * 1000,
            hour_millis: 60 * 60 * 1000,
            merged_bytes_max: 64 * 1024 * 1024,
        }
    }
}

/// An archive as it is at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Stock<'a> {
    /// What it holds.
    pub catalog: &'a Catalog,
    /// Since when.
    pub dates: &'a Dates,
    /// A moment that the store's clock has passed: never later than now.
    pub now: UnixMillis,
}

impl Stock<'_> {
    /// When an object was created. One that nobody has dated counts as new.
    fn created(&self, name: &ObjectName) -> UnixMillis {
        self.dates.get(name).copied().unwrap_or(self.now)
    }

    /// Whether the store has dated an object.
    fn is_dated(&self, name: &ObjectName) -> bool {
        self.dates.contains_key(name)
    }

    /// The latest moment that an object may hold, of which its name says `at`: nothing is stored before it happened, and
    /// a date that was set back when an archive was copied makes nothing old that its name does not. A name from the
    /// future was given by a clock that was ahead: of such a one no more is believed than a day beyond the date.
    fn moment(&self, name: &ObjectName, at: UnixMillis) -> UnixMillis {
        let created = self.created(name);
        if at <= self.now {
            return created.max(at);
        }
        UnixMillis(created.0.saturating_add(TRUSTED_AHEAD_MILLIS))
    }

    fn is_older(&self, name: &ObjectName, millis: u64) -> bool {
        self.created(name).0.saturating_add(millis) <= self.now.0
    }
}
