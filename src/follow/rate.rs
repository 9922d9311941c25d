//! How often an upload may begin: a token bucket, without I/O.

use crate::position::Ticks;

/// Uploads that may begin at once after a quiet time, in seconds' worth of the sustained rate.
pub const BURST_SECONDS: u64 = 5;
/// The highest rate that can be asked for, uploads per second.
pub const UPLOADS_PER_SECOND_MAX: u64 = 100_000;

/// A thousandth of a token comes each millisecond for each upload per second.
const TOKEN: u64 = 1000;

/// The bucket. It begins full.
#[derive(Debug)]
pub struct Rate {
    per_second: u64,
    /// Thousandths of a token.
    held: u64,
    at: Ticks,
}

impl Rate {
    /// `per_second` uploads a second, five seconds' worth of them at once.
    pub fn new(per_second: u64, now: Ticks) -> Self {
        let per_second = per_second.clamp(1, UPLOADS_PER_SECOND_MAX);
        Self {
            per_second,
            held: per_second * BURST_SECONDS * TOKEN,
            at: now,
        }
    }

    fn fill(&mut self, now: Ticks) {
        let come = now.since(self.at).saturating_mul(self.per_second);
        let most = self.per_second * BURST_SECONDS * TOKEN;
        self.held = self.held.saturating_add(come).min(most);
        self.at = now;
    }

    /// When the next upload may begin; `now` where it may at once.
    pub fn ready_at(&mut self, now: Ticks) -> Ticks {
        self.fill(now);
        let missing = TOKEN.saturating_sub(self.held);
        now.plus(missing.div_ceil(self.per_second))
    }

    /// Lets one upload begin.
    ///
    /// # Errors
    /// When to ask again.
    pub fn take(&mut self, now: Ticks) -> Result<(), Ticks> {
        let ready = self.ready_at(now);
        if ready > now {
            return Err(ready);
        }
        self.held -= TOKEN;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_sustained_rate() {
        let mut rate = Rate::new(20, Ticks(0));
        for _ in 0..100 {
            assert_eq!(rate.take(Ticks(0)), Ok(()));
        }
        assert_eq!(rate.take(Ticks(0)), Err(Ticks(50)));
        assert_eq!(rate.take(Ticks(49)), Err(Ticks(50)));
        let mut taken = 0;
        for now in 50..=10_000 {
            taken += u64::from(rate.take(Ticks(now)).is_ok());
        }
        assert_eq!(taken, 200, "20 in each of ten seconds");
    }

    #[test]
    fn a_quiet_time_saves_up_no_more_than_a_burst() {
        let mut rate = Rate::new(1, Ticks(0));
        for _ in 0..5 {
            rate.take(Ticks(0)).unwrap();
        }
        let later = Ticks(3_600_000);
        for _ in 0..5 {
            rate.take(later).unwrap();
        }
        assert_eq!(rate.take(later), Err(later.plus(1000)));
        assert_eq!(rate.ready_at(later), later.plus(1000));
    }
}
