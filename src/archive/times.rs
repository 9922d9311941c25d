//! Makes the times of an archive's bytes monotone: clocks are set back, and some were wrong.

use crate::position::UnixMillis;

/// A time further than this past what later bytes say came from a clock that was wrong, milliseconds.
const CLOCK_AHEAD_MILLIS_MAX: u64 = 24 * 60 * 60 * 1000;

/// The times that count, of pieces that follow one another in offsets.
#[derive(Clone, Debug)]
pub struct Times {
    /// For each piece, the earliest time at which it ends or any later one begins or ends, told by a clock that was not
    /// behind.
    later: std::vec::IntoIter<UnixMillis>,
    earliest_later: UnixMillis,
    now: UnixMillis,
}

impl Times {
    /// For pieces that begin and end at these times, in the order of their offsets. A beginning of `u64::MAX` says
    /// nothing.
    pub fn new(pieces: impl Iterator<Item = (UnixMillis, UnixMillis)>) -> Self {
        let told: Vec<UnixMillis> = pieces.flat_map(|(first, last)| [first, last]).collect();
        let behind = behind(&told);
        let mut earliest = UnixMillis(u64::MAX);
        let mut later: Vec<UnixMillis> = Vec::with_capacity(told.len() / 2);
        for (number, at) in told.iter().enumerate().rev() {
            let is_begin = number % 2 == 0;
            if is_begin {
                // The end of the piece itself is counted by now, its beginning is not.
                later.push(earliest);
            }
            if !behind[number] {
                earliest = earliest.min(*at);
            }
        }
        later.reverse();
        Self {
            later: later.into_iter(),
            earliest_later: UnixMillis(u64::MAX),
            now: UnixMillis(0),
        }
    }

    /// For other pieces that hold the rest: time goes on.
    #[must_use]
    pub fn again(&self, pieces: impl Iterator<Item = (UnixMillis, UnixMillis)>) -> Self {
        Self {
            now: self.now,
            ..Self::new(pieces)
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
        let trusted = if is_far_ahead(at, self.earliest_later) {
            self.earliest_later
        } else {
            at
        };
        self.now = self.now.max(trusted);
        self.now
    }
}

fn is_far_ahead(at: UnixMillis, of: UnixMillis) -> bool {
    at.0 > of.0.saturating_add(CLOCK_AHEAD_MILLIS_MAX)
}

/// Which of these times were told by a clock that was behind: it fell far, and then jumped to where it had been before. A
/// fall that is not taken back says that the clock was ahead before it; so does one behind the jump, which then was none to
/// the right time either.
fn behind(told: &[UnixMillis]) -> Vec<bool> {
    let mut behind = vec![false; told.len()];
    let says_something = |number: &usize| told[*number] != UnixMillis(u64::MAX);
    let places: Vec<usize> = (0..told.len()).filter(says_something).collect();
    let mut earliest_later = UnixMillis(u64::MAX);
    for pair in places.windows(2).rev() {
        let (number, at, previous) = (pair[1], told[pair[1]], told[pair[0]]);
        if is_far_ahead(at, previous) && !is_far_ahead(at, earliest_later) {
            let is_lower = |other: &UnixMillis| is_far_ahead(at, *other) || other.0 == u64::MAX;
            let lower = told[..number]
                .iter()
                .rev()
                .take_while(|other| is_lower(other));
            let from = number - lower.count();
            let had_been =
                |other: &UnixMillis| is_far_ahead(*other, previous) && !is_far_ahead(*other, at);
            if told[..from].iter().rev().any(had_been) {
                behind[from..number].fill(true);
            }
        }
        if !behind[number] {
            earliest_later = earliest_later.min(at);
        }
    }
    behind
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = CLOCK_AHEAD_MILLIS_MAX;

    /// Times for pieces that begin and end at these.
    fn times(pieces: &[(u64, u64)]) -> Times {
        let unix = |(first, last): &(u64, u64)| (UnixMillis(*first), UnixMillis(*last));
        Times::new(pieces.iter().map(unix))
    }

    /// What counts for the beginnings and ends of pieces.
    fn counted(pieces: &[(u64, u64)]) -> Vec<u64> {
        let mut times = times(pieces);
        let mut counted = Vec::new();
        for (first, last) in pieces {
            times.begin();
            counted.extend([first, last].map(|at| times.at(UnixMillis(*at)).0));
        }
        counted
    }

    #[test]
    fn a_clock_that_goes_back_is_held() {
        let mut times = times(&[(1000, 1000), (900, 1001)]);
        times.begin();
        assert_eq!(times.at(UnixMillis(1000)), UnixMillis(1000));
        times.begin();
        assert_eq!(times.at(UnixMillis(900)), UnixMillis(1000));
        assert_eq!(times.at(UnixMillis(1001)), UnixMillis(1001));
    }

    #[test]
    fn a_clock_that_was_far_ahead_is_not_believed() {
        let mut times = times(&[(1000, 1500), (50 * DAY, 50 * DAY), (2000, 60 * DAY)]);
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

    #[test]
    fn a_clock_that_was_far_behind_for_a_while_says_nothing_of_what_was_before() {
        let now = 100 * DAY;
        let right = (now, now + 10);
        let later = (now + 50, now + 60);
        let held = [now, now + 10, now + 10, now + 10, now + 50, now + 60];
        assert_eq!(counted(&[right, (5, 20), later]), held);
        // Also where pieces became one, and where it fell twice or came back halfway.
        assert_eq!(counted(&[right, (5, now + 50)])[..2], held[..2]);
        assert_eq!(counted(&[right, (5, 20), (7, 8), later])[..2], held[..2]);
        let halfway = counted(&[right, (5, 20), (50 * DAY, 50 * DAY), later]);
        assert_eq!(halfway[..2], held[..2]);
        assert_eq!(halfway[6..], held[4..]);
    }

    #[test]
    fn two_clocks_of_which_one_is_ahead_take_nothing_from_each_other() {
        const HOUR: u64 = DAY / 24;
        let at = |hour: u64| (hour * HOUR, hour * HOUR);
        let pieces = [1000, 1048, 1001, 1049, 1002, 1050, 1003].map(at);
        let hours = [1000, 1001, 1001, 1002, 1002, 1003, 1003];
        let expected: Vec<u64> = hours.iter().flat_map(|it| [it * HOUR; 2]).collect();
        assert_eq!(counted(&pieces), expected);
    }

    #[test]
    fn a_machine_that_begins_in_1970_at_each_start() {
        let now = 1000 * DAY;
        let pieces = [(5, 20), (now, now + 5), (7, 30), (now + 50, now + 60)];
        let expected = [5, 20, now, now + 5, now + 5, now + 5, now + 50, now + 60];
        assert_eq!(counted(&pieces), expected);
    }

    #[test]
    fn ahead_then_behind_then_right() {
        let now = 100 * DAY;
        let pieces = [
            (now, now + 10),
            (900 * DAY, 900 * DAY + 5),
            (5, 20),
            (now + 50, now + 60),
        ];
        let end = now + 50;
        assert_eq!(
            counted(&pieces),
            [now, now + 10, end, end, end, end, end, now + 60]
        );
    }

    #[test]
    fn a_fall_that_is_not_taken_back_is_the_right_time() {
        assert_eq!(counted(&[(50 * DAY, 50 * DAY), (5, 20)]), [5, 5, 5, 20]);
        // Nor by one that says nothing.
        assert_eq!(
            counted(&[(50 * DAY, 50 * DAY), (5, 20), (u64::MAX, 30)])[..4],
            [5, 5, 5, 20]
        );
    }
}
