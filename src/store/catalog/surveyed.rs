//! An archive with the dates of its objects: what upkeep plans from.

use std::collections::BTreeSet;

use super::{CatalogError, Kept, Listing, read_archive, without_document};
use crate::archive::layout::ObjectName;
use crate::archive::retention::Dates;
use crate::archive::timeline::Catalog;
use crate::position::{ReplicationId, Ticks, TimelineSeq, UnixMillis};
use crate::store::Store;

/// An archive at one moment. The ends of its timelines have not been looked into.
#[derive(Debug)]
pub struct Survey {
    /// The tree of timelines.
    pub catalog: Catalog,
    /// When each object was created, by the store's clock.
    pub dates: Dates,
    /// The folders that hold a snapshot, a part of one, or a segment.
    pub filled: BTreeSet<(TimelineSeq, ReplicationId)>,
}

impl Survey {
    /// A moment that the store's clock has passed: the date of the newest object.
    pub fn newest(&self) -> UnixMillis {
        self.newest_object()
            .map(|(_, date)| date)
            .unwrap_or_default()
    }

    /// The newest object, and its date.
    pub fn newest_object(&self) -> Option<(&ObjectName, UnixMillis)> {
        let dated = self.dates.iter().map(|(name, date)| (name, *date));
        dated.max_by_key(|(name, date)| (*date, *name))
    }
}

/// Lists everything. What `kept` remembers are the documents.
///
/// # Errors
/// [`CatalogError`].
pub async fn survey(
    store: &dyn Store,
    kept: &mut Kept,
    now: Ticks,
) -> Result<Survey, CatalogError> {
    let Some(archive) = read_archive(store).await? else {
        return Err(without_document(store).await?);
    };
    kept.list(store, Listing::Whole, now).await?;
    let (catalog, dates) = kept.dated_catalog(archive);
    let filled = kept.filled();
    kept.forget_objects();
    Ok(Survey {
        catalog,
        dates,
        filled,
    })
}
