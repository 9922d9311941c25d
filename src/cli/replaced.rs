//! Whether the archive is still the one that it was at the start. Whoever follows only writes: a bucket that was emptied, or a
//! volume that is no longer mounted, takes new segments as well, and `WAIT` would go on promising what nobody can restore.

use std::sync::Arc;
use std::time::Duration;

use crate::archive::layout::ArchiveId;
use crate::clock::Clock;
use crate::follow::Report;
use crate::position::Ticks;
use crate::store::Store;
use crate::store::catalog::{self, CatalogError};

/// How often it is looked at whether a look is due.
const PULSE: Duration = Duration::from_secs(1);
/// The shortest time between two looks while writes are stored, milliseconds.
const LOOK_MILLIS: u64 = 60_000;
/// A look that failed is tried again after this, milliseconds.
const RETRY_MILLIS: u64 = 10_000;
/// The longest time between two looks, milliseconds.
const LOOK_MILLIS_MAX: u64 = 24 * 60 * 60_000;

/// Ends when the archive is another one, or gone, with what to say.
pub(super) async fn replaced(
    store: Arc<dyn Store>,
    archive: ArchiveId,
    report: Arc<Report>,
    clock: Arc<dyn Clock>,
) -> anyhow::Error {
    let mut due = Due::new(clock.ticks());
    loop {
        tokio::time::sleep(PULSE).await;
        let seen = report.seen();
        if !due.is_due(clock.ticks(), seen.pieces, seen.failing.is_some()) {
            continue;
        }
        match catalog::archive_of(&*store).await {
            Ok(Some(found)) if found == archive => due.looked(clock.ticks(), seen.pieces),
            Ok(_) => return is_another(&*store),
            // A document that is damaged is there; a restore says so.
            Err(CatalogError::Store(error)) => {
                tracing::debug!("whether the archive is still there: {error}");
            }
            Err(_) => due.looked(clock.ticks(), seen.pieces),
        }
    }
}

/// What is said of an archive that was exchanged.
pub(super) fn is_another(store: &dyn Store) -> anyhow::Error {
    CatalogError::Another {
        address: store.address(),
    }
    .into()
}

/// When to look.
#[derive(Debug)]
struct Due {
    looked: Ticks,
    tried: Option<Ticks>,
    /// Pieces with writes that were sent to the store by the last look.
    pieces: u64,
    /// The store has failed since the last look.
    failed: bool,
}

impl Due {
    const fn new(now: Ticks) -> Self {
        Self {
            looked: now,
            tried: None,
            pieces: 0,
            failed: false,
        }
    }

    /// `pieces` with writes were sent to the store so far. (PINGs are stored once an hour, and an idle server costs no more
    /// than that.)
    fn is_due(&mut self, now: Ticks, pieces: u64, failing: bool) -> bool {
        self.failed |= failing;
        let since = now.since(self.looked);
        let busy = pieces != self.pieces && since >= LOOK_MILLIS;
        let due = (self.failed && !failing) || busy || since >= LOOK_MILLIS_MAX;
        let tried_lately = |tried: Ticks| now.since(tried) < RETRY_MILLIS;
        if !due || self.tried.is_some_and(tried_lately) {
            return false;
        }
        self.tried = Some(now);
        true
    }

    const fn looked(&mut self, now: Ticks, pieces: u64) {
        *self = Self {
            looked: now,
            tried: None,
            pieces,
            failed: false,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1000;

    /// The seconds at which a look was made.
    fn looks(until: u64, works: bool, seen: impl Fn(u64) -> (u64, bool)) -> Vec<u64> {
        let mut due = Due::new(Ticks(0));
        let mut looks = Vec::new();
        for second in 1..=until {
            let now = Ticks(second * SECOND);
            let (pieces, failing) = seen(second);
            if due.is_due(now, pieces, failing) {
                looks.push(second);
                if works {
                    due.looked(now, pieces);
                }
            }
        }
        looks
    }

    #[test]
    fn a_busy_one_is_looked_at_each_minute() {
        assert_eq!(looks(200, true, |second| (second, false)), [60, 120, 180]);
    }

    #[test]
    fn one_write_is_enough() {
        let one = |second| (u64::from(second > 4000), false);
        assert_eq!(looks(8000, true, one), [4001]);
    }

    #[test]
    fn an_idle_one_is_looked_at_once_a_day() {
        let day = 24 * 3600;
        assert_eq!(looks(2 * day, true, |_| (0, false)), [day, 2 * day]);
    }

    #[test]
    fn behind_a_failure_at_once() {
        let outage = |second| (0, (10..20).contains(&second));
        assert_eq!(looks(59, true, outage), [20]);
    }

    #[test]
    fn a_store_that_does_not_answer_is_not_asked_all_the_time() {
        assert_eq!(looks(85, false, |_| (1, false)), [60, 70, 80]);
    }
}
