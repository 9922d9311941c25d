//! Makes the times of an archive's bytes monotone: clocks are set back, and some were wrong.

use crate::position::UnixMillis;

/// A time further than this past what later bytes say came from a clock that was wrong, milliseconds.
const CLOCK_AHEAD_MILLIS_MAX: u64 = 24 * 60 * 60 * 1000;

/// The times that count, of pieces that follow one another in offsets.
#[derive(Clone, Debug)]
pub struct Times {
    /// For each piece, the earliest time at which any later one begins.
    later: std::vec::IntoIter<UnixMillis>,
    earliest_later: UnixMillis,
    now: UnixMillis,
}

impl Times {
    /// For pieces that begin at these times, in the order of their offsets.
    pub fn new(begins: impl Iterator<Item = UnixMillis>) -> Self {
        let begins: Vec<UnixMillis> = begins.collect();
        let mut earliest = UnixMillis(u64::MAX);
        let mut later: Vec<UnixMillis> = begins
            .iter()
            .rev()
            .map(|begin| {
                let behind = earliest;
                earliest = earliest.min(*begin);
                behind
            })
            .collect();
        later.reverse();
        Self {
            later: later.into_iter(),
            earliest_later: UnixMillis(u64::MAX),
            now: UnixMillis(0),
        }
    }

    /// For other pieces that hold the rest: time goes on.
    #[must_use]
    pub fn again(&self, begins: impl Iterator<Item = UnixMillis>) -> Self {
        Self {
            now: self.now,
            ..Self::new(begins)
        }
    }

    /// Call before the times of the next piece.
    pub fn begin(&mut self) {
        self.earliest_later = self.later.next().unwrap_or(UnixMillis(u64::MAX));
    }

    /// For a piece of which only the beginning counts: its end came no later than what follows.
    pub fn no_later_than_next(&self, at: UnixMillis) -> UnixMillis {
        at.min(self.earliest_later)
    }

    /// The time that counts for bytes which the clock says were received at `at`. A clock that was set back is
    /// held at the latest time; one that was far ahead, as the bytes behind it show, counts as those.
    pub fn at(&mut self, at: UnixMillis) -> UnixMillis {
        let highest = self.earliest_later.0.saturating_add(CLOCK_AHEAD_MILLIS_MAX);
        let trusted = if at.0 > highest {
            self.earliest_later
        } else {
            at
        };
        self.now = self.now.max(trusted);
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = CLOCK_AHEAD_MILLIS_MAX;

    /// Times for pieces that begin at these.
    fn times(begins: &[u64]) -> Times {
        Times::new(begins.iter().copied().map(UnixMillis))
    }

    #[test]
    fn a_clock_that_goes_back_is_held() {
        let mut times = times(&[1000, 900]);
        times.begin();
        assert_eq!(times.at(UnixMillis(1000)), UnixMillis(1000));
        times.begin();
        assert_eq!(times.at(UnixMillis(900)), UnixMillis(1000));
        assert_eq!(times.at(UnixMillis(1001)), UnixMillis(1001));
    }

    #[test]
    fn a_clock_that_was_far_ahead_is_not_believed() {
        let mut times = times(&[1000, 50 * DAY, 2000]);
        times.begin();
        assert_eq!(times.at(UnixMillis(1500)), UnixMillis(1500));
        times.begin();
        assert_eq!(times.at(UnixMillis(50 * DAY)), UnixMillis(2000));
        times.begin();
        assert_eq!(times.at(UnixMillis(2100)), UnixMillis(2100));
        assert_eq!(
            times.at(UnixMillis(60 * DAY)),
            UnixMillis(60 * DAY),
            "nothing says otherwise"
        );
    }
}
