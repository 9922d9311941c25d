//! Which snapshots there are, looked at now and then beside `perennial run`, where somebody reads its metrics: other
//! processes take some, and prune some.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::observe::Observed;
use crate::archive::layout::{Object, snapshots_prefix};
use crate::follow::jittered;
use crate::position::{Offset, UnixMillis};
use crate::store::{Store, StoreError};

/// The time between two looks. Each is one list for every timeline that holds snapshots of the head's history.
const EVERY: Duration = Duration::from_secs(600);

/// Looks, until this is dropped.
pub(super) struct Glances(JoinHandle<()>);

impl Drop for Glances {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells `observed` now and then.
pub(super) fn beside(store: Arc<dyn Store>, observed: Arc<Observed>) -> Glances {
    Glances(tokio::spawn(async move {
        loop {
            // Two of them on one archive should not always meet.
            tokio::time::sleep(jittered(EVERY)).await;
            // An idle archive costs nothing that nobody asks for.
            if !observed.was_read() {
                continue;
            }
            if let Err(error) = glance(&*store, &observed).await {
                tracing::debug!(%error, "which snapshots there are is not known");
            }
        }
    }))
}

async fn glance(store: &dyn Store, observed: &Observed) -> Result<(), StoreError> {
    let mut times = Vec::new();
    for step in observed.way() {
        let prefix = snapshots_prefix(step.timeline, &step.id);
        let listed = store.list(&prefix, None).await?;
        let taken = listed
            .iter()
            .filter_map(|entry| taken(entry.name.as_str()))
            .filter(|(offset, _)| *offset <= step.upto);
        times.extend(taken.map(|(_, at)| at));
    }
    observed.snapshots_listed(&times);
    Ok(())
}

/// Where and when a snapshot was taken that this object is, or ends.
fn taken(name: &str) -> Option<(Offset, UnixMillis)> {
    match Object::parse(name)? {
        Object::Snapshot { offset, at, .. }
        | Object::SnapshotPart {
            offset,
            at,
            last: true,
            ..
        } => Some((offset, at)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::archive::layout::ObjectName;
    use crate::archive::timeline::sketch::Sketch;
    use crate::clock::SystemClock;
    use crate::http::Pages;
    use crate::store::memory::MemoryStore;

    fn told(observed: &Observed, metric: &str) -> String {
        let page = observed.page("/metrics").unwrap();
        let name = format!("perennial_{metric}_timestamp_seconds ");
        let mut lines = page.body.lines();
        let value = lines.find_map(|line| line.strip_prefix(&name));
        value.unwrap_or_else(|| panic!("{}", page.body)).to_owned()
    }

    /// Snapshots of a sketch are taken at a time equal to their offset, milliseconds.
    #[tokio::test]
    async fn what_others_take_and_prune_is_seen() {
        let catalog = Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(1000)
            .segment(1001, 9000)
            .snapshot(5000)
            .timeline(2, 2, Some((1, 8000)), 8000)
            .segment(8001, 9000)
            .snapshot(8500)
            .catalog();
        let observed = Observed::new(Arc::new(SystemClock::new())).unwrap();
        observed.archive_read(&catalog);
        assert_eq!(told(&observed, "restorable_from"), "1");
        assert_eq!(told(&observed, "snapshot"), "8.5");
        let store = MemoryStore::new();
        let names = |catalog: &crate::archive::timeline::Catalog| -> Vec<ObjectName> {
            let snapshots = catalog.timelines().flat_map(|it| &it.snapshots);
            snapshots.map(|it| it.name.clone()).collect()
        };
        let another = Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(8900)
            .timeline(2, 2, None, 0)
            .snapshot(8700)
            .catalog();
        for name in names(&catalog).iter().skip(1).chain(&names(&another)) {
            let body = vec![Bytes::from_static(b"never read")];
            store.create(name, body).await.unwrap();
        }
        glance(&store, &observed).await.unwrap();
        assert_eq!(told(&observed, "restorable_from"), "5", "one was pruned");
        assert_eq!(
            told(&observed, "snapshot"),
            "8.7",
            "one was taken; 8.9 lies behind the fork"
        );
    }
}
