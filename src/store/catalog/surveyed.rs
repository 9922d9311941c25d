//! An archive with the dates of its objects: what upkeep plans from.

use std::collections::BTreeSet;

use super::{CatalogError, Kept, Listing, read_archive, without_document};
use crate::archive::retention::Dates;
use crate::archive::timeline::Catalog;
use crate::position::{Ticks, TimelineSeq, UnixMillis};
use crate::store::Store;

/// An archive at one moment. The ends of its timelines have not been looked into.
#[derive(Debug)]
pub struct Survey {
    /// The tree of timelines.
    pub catalog: Catalog,
    /// When each object was created, by the store's clock.
    pub dates: Dates,
    /// The numbers of all timelines that have a folder.
    pub folders: BTreeSet<TimelineSeq>,
}

impl Survey {
    /// A moment that the store's clock has passed: the date of the newest object.
    pub fn newest(&self) -> UnixMillis {
        self.dates.values().copied().max().unwrap_or_default()
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
    let (documents, objects) = kept.parts();
    let catalog = Catalog::new(Some(archive), documents, objects);
    let dates = kept.dates();
    let folders = kept.folders().into_iter().map(|(seq, _)| seq).collect();
    kept.forget_objects();
    Ok(Survey {
        catalog,
        dates,
        folders,
    })
}
