//! When another snapshot is due: from how much a restore would have to replay, and from how old the last one is. Pure;
//! taking it is left to `later`.

use std::fmt;
use std::time::Duration;

use super::uploader::backoff;
use crate::position::{Offset, Ticks};

/// Below this much replication stream no snapshot is due for its sake, bytes: a restore replays it in seconds.
pub const LOG_BYTES_MIN: u64 = 256 * 1024 * 1024;
/// How long a process follows before its first snapshot on schedule, milliseconds: an attempt that died with the
/// process before this one left no trace, and one that dies each time must not make the master fork each time.
pub const SETTLE_MILLIS: u64 = 10 * 60 * 1000;
/// The first wait after an attempt that came to nothing before anybody forked.
const RETRY_FIRST: Duration = Duration::from_secs(60);

/// When a snapshot is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScheduleOptions {
    /// This long after the last one, where something was written; `None` for never, milliseconds.
    pub interval_millis: Option<u64>,
    /// Never earlier than this after the last one or the last attempt, milliseconds.
    pub min_interval_millis: u64,
    /// When the replication stream since the last one is this many thousandths of its payload; `None` for never.
    pub log_thousandths: Option<u64>,
    /// And at least this much, bytes.
    pub log_bytes_min: u64,
}

/// Why one is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// A restore would replay so many bytes of replication stream.
    Log(u64),
    /// The last one is so many milliseconds old.
    Age(u64),
    /// Somebody asked for it.
    Asked,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log(bytes) => write!(
                f,
                "a restore would replay {} of replication stream",
                bytesize::ByteSize(*bytes)
            ),
            Self::Age(millis) => {
                let age = Duration::from_secs(millis / 1000);
                write!(f, "the last one is {} old", humantime::format_duration(age))
            }
            Self::Asked => f.write_str("asked for"),
        }
    }
}

/// The snapshot that a restore would begin with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// How long ago it was taken, milliseconds.
    pub age_millis: u64,
    /// The length of its payload.
    pub payload_bytes: u64,
    /// What a restore of `offset` replays behind it, bytes.
    pub stream_bytes: u64,
    /// A position on the timeline that is written to, in its own offsets: the snapshot's, or one behind it.
    pub offset: Offset,
}

/// When the next one is due.
#[derive(Debug)]
pub struct Schedule {
    options: ScheduleOptions,
    /// Not before this, whatever the last one's age.
    not_before: Ticks,
    /// Attempts in a row that came to nothing.
    failed: u32,
    asked: bool,
    /// The last one, and when that was said of it.
    last: Option<(Standing, Ticks)>,
    /// How far the last write reaches that was seen. PINGs are none.
    written: Option<Offset>,
}

impl Schedule {
    /// Nothing is known yet.
    pub fn new(options: ScheduleOptions, now: Ticks) -> Self {
        Self {
            options,
            not_before: now.plus(SETTLE_MILLIS.min(options.min_interval_millis)),
            failed: 0,
            asked: false,
            last: None,
            written: None,
        }
    }

    /// Another timeline is written to. Without a snapshot that leads to it the first one is no matter of schedule.
    ///
    /// Whether what is stored behind an earlier one is more than PINGs is not known: the next write tells.
    pub fn begin(&mut self, now: Ticks, last: Option<Standing>) {
        self.last = last.map(|last| (last, now));
        self.written = None;
    }

    /// There is a newer snapshot, whoever took it.
    pub fn stands(&mut self, now: Ticks, last: Standing) {
        self.last = Some((last, now));
        self.asked = false;
        self.failed = 0;
        let may = self
            .options
            .min_interval_millis
            .saturating_sub(last.age_millis);
        self.not_before = self.not_before.max(now.plus(may));
    }

    /// A write was received that ends at `offset` at the latest.
    pub fn wrote(&mut self, offset: Offset) {
        self.written = self.written.max(Some(offset));
    }

    /// The next one is to be taken at once, whatever the last one's age.
    pub fn ask(&mut self) {
        self.asked = true;
    }

    /// An attempt failed. `forked`: a server may have forked for it. How long nothing is tried now, milliseconds.
    pub fn failed(&mut self, now: Ticks, forked: bool) -> u64 {
        self.failed += 1;
        self.asked = false;
        let longest = Duration::from_millis(self.options.min_interval_millis);
        let wait = if forked {
            longest
        } else {
            backoff(RETRY_FIRST.min(longest), longest, self.failed)
        };
        let wait_millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        // Also earlier than what was said when it began.
        self.not_before = now.plus(wait_millis);
        wait_millis
    }

    /// A server forks, or is about to: for an attempt that begins, or for a first snapshot.
    pub fn forked(&mut self, now: Ticks) {
        self.not_before = self
            .not_before
            .max(now.plus(self.options.min_interval_millis));
    }

    /// The offset below which a snapshot would be older than what there is.
    pub fn floor(&self) -> Offset {
        self.last.map_or(Offset::ZERO, |(last, _)| last.offset)
    }

    /// Whether one is due, where everything up to `received` was received.
    pub fn due(&self, now: Ticks, received: Offset) -> Option<Reason> {
        if self.asked {
            return Some(Reason::Asked);
        }
        let (last, told) = self.last?;
        if self.due_at(received)? > now {
            return None;
        }
        let stream = stream_bytes(&last, received);
        if self.is_long(&last, stream) {
            return Some(Reason::Log(stream));
        }
        Some(Reason::Age(last.age_millis.saturating_add(now.since(told))))
    }

    /// When one will be due, if nothing more comes; in the past where one is. `None` where none will.
    pub fn due_at(&self, received: Offset) -> Option<Ticks> {
        let (last, told) = self.last?;
        let is_written = self.written.is_some_and(|written| written > last.offset);
        if !is_written {
            return None;
        }
        let aged = |millis: u64| told.plus(millis.saturating_sub(last.age_millis));
        let allowed = self.not_before.max(aged(self.options.min_interval_millis));
        if self.is_long(&last, stream_bytes(&last, received)) {
            return Some(allowed);
        }
        self.options
            .interval_millis
            .map(|interval| aged(interval).max(allowed))
    }

    /// Whether what a restore replays is out of proportion to what it loads.
    fn is_long(&self, last: &Standing, stream: u64) -> bool {
        self.options.log_thousandths.is_some_and(|thousandths| {
            let proportion = u128::from(last.payload_bytes) * u128::from(thousandths) / 1000;
            stream >= self.options.log_bytes_min && u128::from(stream) >= proportion
        })
    }
}

/// What a restore of `received` replays behind a snapshot.
fn stream_bytes(last: &Standing, received: Offset) -> u64 {
    last.stream_bytes
        .saturating_add(received.bytes_since(last.offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;
    const HOUR: u64 = 60 * MINUTE;
    const MIB: u64 = 1024 * 1024;

    const OPTIONS: ScheduleOptions = ScheduleOptions {
        interval_millis: Some(24 * HOUR),
        min_interval_millis: HOUR,
        log_thousandths: Some(1000),
        log_bytes_min: LOG_BYTES_MIN,
    };

    fn standing(age_millis: u64, payload_bytes: u64) -> Standing {
        Standing {
            age_millis,
            payload_bytes,
            stream_bytes: 0,
            offset: Offset::new(1000),
        }
    }

    /// A process that has followed for long, behind a snapshot taken `age_millis` before `now`.
    fn behind(now: u64, age_millis: u64, payload_bytes: u64) -> Schedule {
        let mut schedule = Schedule::new(OPTIONS, Ticks(0));
        schedule.begin(Ticks(now), Some(standing(age_millis, payload_bytes)));
        schedule
    }

    fn at(bytes: u64) -> Offset {
        Offset::new(1000 + bytes)
    }

    #[test]
    fn a_day_after_the_last_one_if_anything_was_written() {
        let mut schedule = behind(2 * HOUR, HOUR, MIB);
        let day = Ticks(2 * HOUR + 23 * HOUR);
        // PINGs for a year.
        assert_eq!(schedule.due(Ticks(365 * 24 * HOUR), at(40 * MIB)), None);
        assert_eq!(schedule.due_at(at(40 * MIB)), None);
        schedule.wrote(at(50));
        assert_eq!(schedule.due_at(at(50)), Some(day));
        assert_eq!(schedule.due(Ticks(day.0 - 1), at(50)), None);
        assert_eq!(schedule.due(day, at(50)), Some(Reason::Age(24 * HOUR)));
        // What was written before the next one is in it.
        schedule.stands(
            day,
            Standing {
                offset: at(50),
                ..standing(0, MIB)
            },
        );
        assert_eq!(schedule.due(Ticks(1000 * HOUR), at(900)), None);
    }

    #[test]
    fn as_soon_as_a_restore_replays_more_than_it_loads() {
        let mut schedule = behind(2 * HOUR, 2 * HOUR, 1000 * MIB);
        let now = Ticks(2 * HOUR);
        schedule.wrote(at(999 * MIB));
        assert_eq!(schedule.due(now, at(999 * MIB)), None);
        let long = Some(Reason::Log(1000 * MIB));
        assert_eq!(schedule.due(now, at(1000 * MIB)), long);

        // A small data set: not before there is something to gain.
        let mut small = behind(2 * HOUR, 2 * HOUR, MIB);
        small.wrote(at(255 * MIB));
        assert_eq!(small.due(now, at(255 * MIB)), None);
        assert_eq!(small.due(now, at(256 * MIB)), Some(Reason::Log(256 * MIB)));
    }

    #[test]
    fn what_is_stored_behind_the_last_one_counts_across_a_restart() {
        let mut schedule = Schedule::new(OPTIONS, Ticks(0));
        let last = Standing {
            stream_bytes: 300 * MIB,
            ..standing(2 * HOUR, MIB)
        };
        schedule.begin(Ticks(0), Some(last));
        schedule.wrote(at(10));
        assert_eq!(schedule.due(Ticks(SETTLE_MILLIS - 1), at(10)), None);
        assert_eq!(
            schedule.due(Ticks(SETTLE_MILLIS), at(10)),
            Some(Reason::Log(300 * MIB + 10))
        );
    }

    #[test]
    fn never_within_the_shortest_interval_of_the_last_one_whoever_took_it() {
        let mut schedule = behind(2 * HOUR, 10 * MINUTE, MIB);
        schedule.wrote(at(1));
        let long = at(999 * MIB);
        let first = Ticks(2 * HOUR + 50 * MINUTE);
        assert_eq!(schedule.due_at(long), Some(first));
        assert_eq!(schedule.due(Ticks(first.0 - 1), long), None);
        assert!(schedule.due(first, long).is_some());

        // Another process was quicker by half an hour.
        schedule.stands(first, standing(30 * MINUTE, MIB));
        assert_eq!(schedule.due_at(long), Some(first.plus(30 * MINUTE)));

        // A new timeline does not make a fork undone.
        schedule.forked(first);
        schedule.begin(first, Some(standing(9 * HOUR, MIB)));
        schedule.wrote(at(1));
        assert_eq!(schedule.due_at(long), Some(first.plus(HOUR)));
    }

    #[test]
    fn an_attempt_that_forked_is_made_again_after_the_shortest_interval_and_others_sooner() {
        let mut schedule = behind(50 * HOUR, 25 * HOUR, MIB);
        schedule.wrote(at(1));
        let now = Ticks(50 * HOUR);
        assert!(schedule.due(now, at(1)).is_some());
        // Until it ends, and if its end is never heard of, it counts as one that forks.
        schedule.forked(now);
        assert_eq!(schedule.due_at(at(1)), Some(now.plus(HOUR)));
        assert_eq!(schedule.failed(now, false), MINUTE);
        assert_eq!(schedule.due_at(at(1)), Some(now.plus(MINUTE)));
        let mut waits = Vec::new();
        let mut then = now;
        for _ in 0..8 {
            then = schedule.due_at(at(1)).unwrap();
            waits.push(schedule.failed(then, false) / MINUTE);
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(schedule.failed(then.plus(HOUR), true), HOUR);
        assert_eq!(schedule.due_at(at(1)), Some(then.plus(2 * HOUR)));
    }

    #[test]
    fn whoever_asks_does_not_wait_and_is_not_asked_for_twice() {
        let mut schedule = Schedule::new(OPTIONS, Ticks(0));
        schedule.begin(Ticks(0), Some(standing(0, MIB)));
        assert_eq!(schedule.due(Ticks(0), at(0)), None);
        schedule.ask();
        assert_eq!(schedule.due(Ticks(0), at(0)), Some(Reason::Asked));
        schedule.failed(Ticks(0), true);
        assert_eq!(schedule.due(Ticks(0), at(0)), None);
    }

    #[test]
    fn neither_may_be_switched_on() {
        let options = ScheduleOptions {
            interval_millis: None,
            log_thousandths: None,
            ..OPTIONS
        };
        let mut schedule = Schedule::new(options, Ticks(0));
        schedule.begin(Ticks(0), Some(standing(99 * HOUR, 1)));
        schedule.wrote(at(1));
        assert_eq!(schedule.due_at(at(1 << 50)), None);
        assert_eq!(schedule.due(Ticks(u64::MAX), at(1 << 50)), None);
    }
}
