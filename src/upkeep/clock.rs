//! What time it is at the store: objects bear its dates, so nobody else's clock decides what is old.

use bytes::Bytes;

use crate::archive::layout::ObjectName;
use crate::archive::retention::CLOCK_SKEW_MILLIS_MAX;
use crate::clock::Clock;
use crate::position::UnixMillis;
use crate::store::{Created, Store, StoreError};

const TEXT: &[u8] = b"written by perennial to learn the store's time; may be deleted\n";

/// The store's time, or why nothing may be deleted. It is never told too late: `newest` is the date of the newest
/// object, and where that is not about now a small object is created to see what date it gets.
pub(super) async fn of_store(
    store: &dyn Store,
    clock: &dyn Clock,
    newest: UnixMillis,
) -> Result<Result<UnixMillis, String>, StoreError> {
    if is_about(clock.unix(), newest) {
        return Ok(Ok(newest));
    }
    let Some(now) = ask(store).await? else {
        return Ok(Err(
            "the store's time cannot be told now; it is tried again later".to_owned(),
        ));
    };
    let ours = clock.unix();
    let now = now.max(newest);
    if is_about(ours, now) {
        return Ok(Ok(now));
    }
    let seconds = ours.0.abs_diff(now.0) / 1000;
    let way = if ours < now { "behind" } else { "ahead of" };
    Ok(Err(format!(
        "this machine's clock is {seconds} s {way} the store's: nothing is deleted until one of them is set right"
    )))
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
