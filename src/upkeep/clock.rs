//! What time it is at the store: objects bear its dates, so nobody else's clock decides what is old.

use bytes::Bytes;

use crate::archive::layout::ObjectName;
use crate::archive::retention::CLOCK_SKEW_MILLIS_MAX;
use crate::clock::Clock;
use crate::position::{Ticks, UnixMillis};
use crate::store::{Created, Store, StoreError};

const TEXT: &[u8] = b"written by perennial to learn the store's time; may be deleted\n";

/// The store's time, or why nothing may be deleted. It is never told too late: `newest` is the date of the newest
/// object, and where that is not about now a small object is created to see what date it gets.
pub(super) async fn of_store(
    store: &dyn Store,
    clock: &dyn Clock,
    newest: Option<(&ObjectName, UnixMillis)>,
) -> Result<Result<UnixMillis, String>, StoreError> {
    if let Some((_, date)) = newest
        && is_about(clock.unix(), date)
    {
        return Ok(Ok(date));
    }
    let Some(now) = ask(store).await? else {
        return Ok(Err(
            "the store's time cannot be told now; it is tried again later".to_owned(),
        ));
    };
    if let Some((name, date)) = newest
        && date.0 > now.0.saturating_add(CLOCK_SKEW_MILLIS_MAX)
    {
        return Ok(Err(format!(
            "{name} is dated {date}, after the store's own time: a clock was wrong, then or now; nothing is deleted \
             until that time has come, or the object's date is set right"
        )));
    }
    let ours = clock.unix();
    let now = newest.map_or(now, |(_, date)| now.max(date));
    if is_about(ours, now) {
        return Ok(Ok(now));
    }
    let seconds = ours.0.abs_diff(now.0) / 1000;
    let way = if ours < now { "behind" } else { "ahead of" };
    Ok(Err(format!(
        "this machine's clock is {seconds} s {way} the store's: nothing is deleted until one of them is set right"
    )))
}

/// What [`of_store`] would say, as far as that can be known without creating anything: a store is taken to have our
/// clock, unless its objects show that one of both is wrong.
pub(super) fn guessed(
    clock: &dyn Clock,
    newest: Option<(&ObjectName, UnixMillis)>,
) -> Result<UnixMillis, String> {
    let ours = clock.unix();
    match newest {
        Some((_, date)) if is_about(ours, date) => Ok(date),
        Some((name, date)) if date > ours => Err(format!(
            "{name} is dated {date}, after the time of this machine: its clock or the store's is wrong, or was then; nothing \
             is deleted until that is set right"
        )),
        _ => Ok(ours),
    }
}

/// The store's time as it was when something was last allowed to be deleted. Where the store's clock is our own, a jump of
/// it shows nowhere else.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    time: UnixMillis,
    ticks: Ticks,
}

impl Known {
    /// Goes on to `now`, or tells why that cannot be. What was refused is not believed the next time either.
    pub(super) fn advance(
        known: Option<Self>,
        now: UnixMillis,
        ticks: Ticks,
    ) -> Result<Self, String> {
        let Some(known) = known else {
            return Ok(Self { time: now, ticks });
        };
        let expected = known.time.0.saturating_add(ticks.since(known.ticks));
        if now.0 > expected.saturating_add(CLOCK_SKEW_MILLIS_MAX) {
            // The same words each time, so that they are said once.
            return Err(format!(
                "the store's time went further since {} than this process has counted: nothing is deleted until it is \
                 set right; where it is right, because this machine slept or its clock was corrected, start this \
                 process again",
                known.time
            ));
        }
        // Never back: a clock that was put back and then right again is no jump.
        let time = now.max(UnixMillis(expected));
        Ok(Self { time, ticks })
    }
}

fn is_about(one: UnixMillis, other: UnixMillis) -> bool {
    one.0.abs_diff(other.0) <= CLOCK_SKEW_MILLIS_MAX
}

/// The date of an object that is created now. One that somebody left is taken away first: whoever is using it at this
/// moment tries again under a name of his own.
async fn ask(store: &dyn Store) -> Result<Option<UnixMillis>, StoreError> {
    let name = ObjectName::probe();
    for _ in 0..2 {
        let created = store.create(&name, vec![Bytes::from_static(TEXT)]).await?;
        let date = match created {
            Created::New => store.modified(&name).await?,
            Created::AlreadyPresent => None,
        };
        store.delete(&name).await?;
        if date.is_some() {
            return Ok(date);
        }
    }
    Ok(None)
}
