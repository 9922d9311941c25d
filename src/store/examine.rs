//! Looks at a store for `perennial check`: what `prepare` says, and what happens to a small object that is created,
//! read, uploaded over and deleted. It leaves nothing behind but, where deleting is refused, the probe of `prepare`.

use bytes::Bytes;

use super::{Created, Store, StoreError};
use crate::archive::layout::{ObjectName, timelines_prefix};
use crate::check::{ProbeFacts, StoreFacts};
use crate::clock::Clock;

/// So many creates are timed.
const CREATES: usize = 5;
/// So often an upload over the probe is tried where it seems to overwrite: somebody else, who was starting at that
/// moment, may have deleted a probe that he had created.
const UPLOAD_TRIES_MAX: usize = 3;
/// A probe of somebody else that is older belongs to nobody any more, milliseconds.
const LEFTOVER_MILLIS_MIN: u64 = 60_000;
const TEXT: &[u8] = b"written by perennial check; may be deleted\n";

/// Looks at a store.
pub async fn examine(store: &dyn Store, clock: &dyn Clock) -> StoreFacts {
    let prepared = store.prepare().await;
    let listed = store.list(timelines_prefix(), None).await.map(drop);
    let probe = match &prepared {
        Ok(()) => Some(probe(store, clock).await),
        Err(_) => None,
    };
    StoreFacts {
        prepared,
        listed,
        probe,
    }
}

async fn probe(store: &dyn Store, clock: &dyn Clock) -> ProbeFacts {
    let mut facts = ProbeFacts::default();
    let mut is_ours = false;
    facts.error = probe_into(store, clock, &mut facts, &mut is_ours)
        .await
        .err();
    if facts.error.is_some() && is_ours {
        // What could not be read, say, need not stay.
        let _ = store.delete(&ObjectName::probe()).await;
    }
    facts
}

async fn probe_into(
    store: &dyn Store,
    clock: &dyn Clock,
    facts: &mut ProbeFacts,
    is_ours: &mut bool,
) -> Result<(), StoreError> {
    let name = ObjectName::probe();
    let body = || vec![Bytes::from_static(TEXT)];
    for round in 0..CREATES {
        let began = clock.ticks();
        let created = store.create(&name, body()).await?;
        let took = clock.ticks().0.saturating_sub(began.0);
        if created == Created::AlreadyPresent {
            // Only its creator deletes a probe: another process may be about to create it a second time. One that
            // stays belongs to somebody who may not delete.
            if round == 0 {
                facts.create_millis.push(took);
                facts.read_back = Some(!store.read(&name, None).await?.is_empty());
            }
            if !is_leftover(store, clock, &name).await? {
                return Ok(());
            }
        } else {
            *is_ours = true;
            facts.create_millis.push(took);
            if facts.clock_ahead_millis.is_none() {
                look_at(store, clock, &name, facts).await?;
            }
        }
        let deleted = store.delete(&name).await;
        let is_refused = deleted.is_err();
        facts.deleted = Some(deleted);
        if is_refused {
            return Ok(());
        }
    }
    facts.upload_conditional = Some(uploads_are_conditional(store, &name).await?);
    store.delete(&name).await
}

async fn is_leftover(
    store: &dyn Store,
    clock: &dyn Clock,
    name: &ObjectName,
) -> Result<bool, StoreError> {
    let modified = store.modified(name).await?;
    Ok(modified
        .is_none_or(|modified| clock.unix().0.saturating_sub(modified.0) > LEFTOVER_MILLIS_MIN))
}

/// A probe that was created a moment ago.
async fn look_at(
    store: &dyn Store,
    clock: &dyn Clock,
    name: &ObjectName,
    facts: &mut ProbeFacts,
) -> Result<(), StoreError> {
    let now = clock.unix().0;
    if let Some(modified) = store.modified(name).await? {
        let difference = now.abs_diff(modified.0);
        let difference = i64::try_from(difference).unwrap_or(i64::MAX);
        facts.clock_ahead_millis = Some(if now >= modified.0 {
            difference
        } else {
            -difference
        });
    }
    let read = store.read(name, None).await;
    facts.read_back = Some(match read {
        Ok(bytes) => bytes.as_ref() == TEXT,
        Err(error) if error.kind == super::StoreErrorKind::NotFound => false,
        Err(error) => return Err(error),
    });
    Ok(())
}

async fn uploads_are_conditional(store: &dyn Store, name: &ObjectName) -> Result<bool, StoreError> {
    for _ in 0..UPLOAD_TRIES_MAX {
        store.create(name, vec![Bytes::from_static(TEXT)]).await?;
        let mut upload = store.begin_upload(name).await?;
        upload.write(Bytes::from_static(TEXT)).await?;
        if upload.complete().await? == Created::AlreadyPresent {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Level, of_store};
    use crate::clock::SystemClock;
    use crate::store::fs::FsStore;

    #[tokio::test]
    async fn a_folder_is_well_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let store = FsStore::new(folder.path());
        let facts = examine(&store, &SystemClock::new()).await;
        let findings = of_store(&facts);
        assert!(
            findings.iter().all(|finding| finding.level == Level::Ok),
            "{findings:?}"
        );
        assert_eq!(findings.len(), 9, "{findings:?}");
        assert!(!folder.path().join(ObjectName::probe().as_str()).exists());
    }
}
