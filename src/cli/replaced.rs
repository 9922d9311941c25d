//! Whether the archive is still the one that it was at the start. Whoever follows only writes: a bucket that was emptied, or a
//! volume that is no longer mounted, takes new segments as well, and `WAIT` would go on promising what nobody can restore.

use std::sync::Arc;
use std::time::Duration;

use crate::archive::layout::ArchiveId;
use crate::clock::Clock;
use crate::follow::Report;
use crate::position::{Offset, Ticks};
use crate::store::Store;
use crate::store::catalog::{self, CatalogError};

/// How often it is looked at whether a look is due.
const PULSE: Duration = Duration::from_secs(1);
/// The shortest time between two looks while writes are stored, milliseconds.
const LOOK_MILLIS: u64 = 60_000;
/// What is stored after a silence of this length is an idle server's PINGs, milliseconds: they are stored once an hour, and an
/// idle server costs no more than that.
const IDLE_MILLIS: u64 = 30 * 60_000;
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
        if !due.is_due(clock.ticks(), seen.durable, seen.failing.is_some()) {
            continue;
        }
        match catalog::archive_of(&*store).await {
            Ok(Some(found)) if found == archive => due.looked(clock.ticks()),
            Ok(_) => return is_another(&*store),
            // A document that is damaged is there; a restore says so.
            Err(CatalogError::Store(error)) => {
                tracing::debug!("whether the archive is still there: {error}");
            }
            Err(_) => due.looked(clock.ticks()),
        }
    }
}

/// What is said of an archive that was exchanged.
pub(super) fn is_another(store: &dyn Store) -> anyhow::Error {
    anyhow::anyhow!(
        "the archive at {} is another one than at the start: was it deleted or replaced under us? Nothing more is \
         written to it; start perennial again to use it",
        store.address()
    )
}

/// When to look.
#[derive(Debug)]
struct Due {
    looked: Ticks,
    /// When something was stored last.
    advanced: Ticks,
    durable: Option<Offset>,
    /// Writes were stored since the last look.
    busy: bool,
    /// The store has failed since the last look.
    failed: bool,
}

impl Due {
    const fn new(now: Ticks) -> Self {
        Self {
            looked: now,
            advanced: now,
            durable: None,
            busy: false,
            failed: false,
        }
    }

    fn is_due(&mut self, now: Ticks, durable: Option<Offset>, failing: bool) -> bool {
        if self.durable != durable {
            self.busy |= self.durable.is_some() && now.since(self.advanced) < IDLE_MILLIS;
            (self.durable, self.advanced) = (durable, now);
        }
        self.failed |= failing;
        let since = now.since(self.looked);
        (self.failed && !failing) || (self.busy && since >= LOOK_MILLIS) || since >= LOOK_MILLIS_MAX
    }

    const fn looked(&mut self, now: Ticks) {
        self.looked = now;
        (self.busy, self.failed) = (false, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1000;
    const HOUR: u64 = 3600 * SECOND;

    /// The seconds at which a look was due.
    fn looks(until: u64, seen: impl Fn(u64) -> (u64, bool)) -> Vec<u64> {
        let mut due = Due::new(Ticks(0));
        let mut looks = Vec::new();
        for second in 1..=until {
            let now = Ticks(second * SECOND);
            let (durable, failing) = seen(second);
            if due.is_due(now, Some(Offset::new(durable)), failing) {
                due.looked(now);
                looks.push(second);
            }
        }
        looks
    }

    #[test]
    fn a_busy_one_is_looked_at_each_minute() {
        assert_eq!(looks(200, |second| (second, false)), [60, 120, 180]);
    }

    #[test]
    fn one_write_is_enough() {
        let two = |second| (u64::from(second > 100), false);
        assert_eq!(looks(4000, two), [101]);
    }

    #[test]
    fn an_idle_one_is_looked_at_once_a_day() {
        let hourly = |second| (second * SECOND / HOUR, false);
        let day = 24 * 3600;
        assert_eq!(looks(2 * day, hourly), [day, 2 * day]);
    }

    #[test]
    fn behind_a_failure_at_once() {
        let outage = |second| (0, (10..20).contains(&second));
        assert_eq!(looks(59, outage), [20]);
    }
}
