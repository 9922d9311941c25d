//! What was listed of an archive, kept between two looks at it, so that the second one lists only what came later.
//!
//! Objects never change and only upkeep deletes, after what replaces them is there. So what was listed stays true as
//! far as it says which bytes the archive holds. It may lack what another streamer created under an earlier name, and
//! it may name what upkeep has merged or pruned since: whoever wants to read from old positions, or to decide anything
//! but to go on at the end, asks for [`Listing::Whole`].

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use super::{CatalogError, read_document};
use crate::archive::layout::{
    ArchiveDocument, Object, ObjectName, Span, TimelineDocument, accepted_prefix, merged_prefix,
    segments_prefix, timeline_prefix, timelines_after, timelines_prefix,
};
use crate::archive::retention::Dates;
use crate::archive::timeline::Catalog;
use crate::position::{Offset, ReplicationId, Ticks, TimelineSeq, UnixMillis};
use crate::store::measured::LIST_PAGE_OBJECTS;
use crate::store::{Listed, Store, StoreError};

/// Of so many objects the names are kept: some twenty megabytes. A larger archive is listed whole each time.
pub const KEPT_OBJECTS_MAX: usize = 200_000;
/// Documents that are read at the same time.
const DOCUMENTS_IN_FLIGHT_MAX: usize = 16;
/// Listed whole again after this, milliseconds, even where only what came later is asked for.
pub const RELIST_MILLIS: u64 = 3_600_000;
/// So many of the last known segments of a timeline are listed again: another streamer of the same history cuts its
/// pieces elsewhere, and one that reaches beyond our last may begin before it.
const LOOK_BACK_SEGMENTS: usize = 500;
/// A list that took longer is completed by what was merged meanwhile. What was merged stays twice as long beside the
/// merged segment (`archive::retention`).
const SLOW_LIST: Duration = Duration::from_secs(300);
/// No archive is older, 2020-01-01: an earlier date is what copies without dates, images and zip files bear.
const EARLIEST: UnixMillis = UnixMillis(1_577_836_800_000);
/// Lists for one known timeline where only what came later is listed: acceptances, merged segments, and the rest.
const LISTS_PER_TIMELINE: u64 = 3;

/// How much is listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Listing {
    /// Everything: a request for every thousand objects.
    #[default]
    Whole,
    /// What came after the last listing, where that takes fewer requests.
    Later,
}

/// What is known of an archive's objects.
#[derive(Debug, Default)]
pub struct Kept {
    documents: BTreeMap<(TimelineSeq, ReplicationId), TimelineDocument>,
    /// Every object, with its stored size in bytes and the store's date.
    objects: BTreeMap<Object, (u64, UnixMillis)>,
    /// When everything was listed for the last time.
    whole_at: Option<Ticks>,
}

impl Kept {
    /// Lists; tells how much was listed in the end.
    pub(super) async fn list(
        &mut self,
        store: &dyn Store,
        listing: Listing,
        now: Ticks,
    ) -> Result<Listing, CatalogError> {
        let listing = match listing {
            Listing::Later if self.later_is_cheaper(now) => Listing::Later,
            _ => Listing::Whole,
        };
        match listing {
            Listing::Whole => {
                self.whole_at = None;
                let (listed, was_slow) = list_all(store).await?;
                self.objects.clear();
                self.take(listed);
                if was_slow {
                    for (seq, id) in self.folders() {
                        let merged = store.list(&merged_prefix(seq, &id), None).await?;
                        self.take(merged);
                    }
                }
                self.whole_at = Some(now);
            }
            Listing::Later => {
                for listed in self.list_later(store).await? {
                    self.take(listed);
                }
                self.forget_merged();
            }
        }
        self.read_documents(store).await?;
        Ok(listing)
    }

    /// The documents of the timelines and all objects, for the catalogue.
    pub(super) fn parts(
        &self,
    ) -> (
        Vec<TimelineDocument>,
        impl Iterator<Item = (ObjectName, Object, u64)>,
    ) {
        let documents = self.documents.values().cloned().collect();
        let objects = self.dated();
        let objects = objects.map(|(name, object, bytes, _)| (name, object, bytes));
        (documents, objects)
    }

    /// All objects, each with its stored size in bytes and when it was created, by the store's clock, where that can tell.
    fn dated(&self) -> impl Iterator<Item = (ObjectName, Object, u64, Option<UnixMillis>)> {
        self.objects.iter().map(|(object, (bytes, date))| {
            let date = Some(*date).filter(|date| *date >= EARLIEST);
            (object.name(), *object, *bytes, date)
        })
    }

    /// The catalogue, and when each object was created. Both share the names.
    pub(super) fn dated_catalog(&self, archive: ArchiveDocument) -> (Catalog, Dates) {
        let mut dates = Dates::with_capacity(self.objects.len());
        let objects = self.dated().map(|(name, object, bytes, date)| {
            dates.extend(date.map(|date| (name.clone(), date)));
            (name, object, bytes)
        });
        let documents = self.documents.values().cloned().collect();
        let catalog = Catalog::new(Some(archive), documents, objects);
        (catalog, dates)
    }

    /// Keeps the documents alone.
    pub(super) fn forget_objects(&mut self) {
        self.objects = BTreeMap::new();
        self.whole_at = None;
    }

    /// Frees what is too much to be kept until the next look.
    pub(super) fn trim(&mut self) {
        if self.objects.len() > KEPT_OBJECTS_MAX {
            *self = Self::default();
        }
    }

    fn later_is_cheaper(&self, now: Ticks) -> bool {
        let fresh = self
            .whole_at
            .is_some_and(|at| now.since(at) < RELIST_MILLIS);
        let whole = (self.objects.len() as u64).div_ceil(LIST_PAGE_OBJECTS);
        fresh && 1 + LISTS_PER_TIMELINE * (self.folders().len() as u64) < whole
    }

    /// Known timelines, those without a document as well.
    pub(super) fn folders(&self) -> Vec<(TimelineSeq, ReplicationId)> {
        let mut folders: Vec<_> = self.objects.keys().filter_map(Object::timeline).collect();
        folders.sort_unstable();
        folders.dedup();
        folders
    }

    /// Those that hold data, with a document or without.
    pub(super) fn filled(&self) -> BTreeSet<(TimelineSeq, ReplicationId)> {
        let objects = self.objects.keys();
        objects
            .filter(|object| {
                matches!(
                    object,
                    Object::Snapshot { .. } | Object::SnapshotPart { .. } | Object::Segment { .. }
                )
            })
            .filter_map(Object::timeline)
            .collect()
    }

    async fn list_later(&self, store: &dyn Store) -> Result<Vec<Vec<Listed>>, StoreError> {
        let folders = self.folders();
        let mut found = Vec::new();
        for (seq, id) in &folders {
            let folder = timeline_prefix(*seq, id);
            // Merged segments come last: what upkeep has deleted before the first list is among them by now.
            let after = self.last_known(*seq, *id);
            found.push(store.list(&folder, Some(&after)).await?);
            found.push(store.list(&merged_prefix(*seq, id), None).await?);
            found.push(store.list(&accepted_prefix(*seq, id), None).await?);
        }
        // A folder that bears a known number and was not seen lost the race for it and stays empty: whoever creates
        // one looks again and gives up where another is there.
        if let Some((highest, _)) = folders.last() {
            let after = timelines_after(*highest);
            found.push(store.list(timelines_prefix(), Some(&after)).await?);
        }
        Ok(found)
    }

    /// Behind which name a timeline is listed again: some segments before the last known one.
    fn last_known(&self, seq: TimelineSeq, id: ReplicationId) -> String {
        let segment = |number, merged| Object::Segment {
            seq,
            id,
            span: Span {
                first: Offset::new(number),
                last: Offset::new(number),
                first_at: UnixMillis(0),
                last_at: UnixMillis(0),
            },
            merged,
        };
        self.objects
            .range(segment(0, false)..=segment(u64::MAX, true))
            .map(|(object, _)| object)
            .filter(|object| matches!(object, Object::Segment { merged: false, .. }))
            .rev()
            .nth(LOOK_BACK_SEGMENTS)
            .map_or_else(
                || segments_prefix(seq, &id),
                |object| object.name().to_string(),
            )
    }

    /// Forgets what a longer merged segment covers: upkeep deletes it sooner or later, and it says nothing more.
    fn forget_merged(&mut self) {
        let mut covered_by: Option<((TimelineSeq, ReplicationId), Offset)> = None;
        let mut merged: Vec<((TimelineSeq, ReplicationId), Span)> = Vec::new();
        for object in self.objects.keys() {
            if let Object::Segment {
                seq,
                id,
                span,
                merged: true,
            } = *object
            {
                merged.push(((seq, id), span));
            }
        }
        merged.retain(|(folder, span)| {
            let is_longer = covered_by.is_none_or(|(of, last)| of != *folder || last < span.last);
            if is_longer {
                covered_by = Some((*folder, span.last));
            }
            is_longer
        });
        self.objects.retain(|object, _| {
            let Object::Segment {
                seq, id, ref span, ..
            } = *object
            else {
                return true;
            };
            let behind = merged.partition_point(|(folder, merged)| {
                (*folder, merged.first) <= ((seq, id), span.first)
            });
            let before = behind.checked_sub(1).map(|at| &merged[at]);
            !before.is_some_and(|(folder, merged)| {
                *folder == (seq, id) && span.last <= merged.last && span.bytes() < merged.bytes()
            })
        });
    }

    fn take(&mut self, listed: Vec<Listed>) {
        for entry in listed {
            if let Some(object) = Object::parse(entry.name.as_str()) {
                self.objects.insert(object, (entry.bytes, entry.modified));
            }
        }
    }

    /// Documents never change: each is read once.
    async fn read_documents(&mut self, store: &dyn Store) -> Result<(), CatalogError> {
        let objects = &self.objects;
        self.documents
            .retain(|(seq, id), _| objects.contains_key(&Object::Timeline { seq: *seq, id: *id }));
        let unread: Vec<(TimelineSeq, ReplicationId)> = objects
            .keys()
            .filter_map(|object| match *object {
                Object::Timeline { seq, id } => Some((seq, id)),
                _ => None,
            })
            .filter(|of| !self.documents.contains_key(of))
            .collect();
        // A history of many restarts has many of them, and each is a request.
        for some in unread.chunks(DOCUMENTS_IN_FLIGHT_MAX) {
            let reads = some.iter().map(async |(seq, id)| {
                let name = Object::Timeline { seq: *seq, id: *id }.name();
                read_document(store, &name, TimelineDocument::decode).await
            });
            for (of, document) in some.iter().zip(all(reads).await) {
                self.documents.insert(*of, document?);
            }
        }
        Ok(())
    }
}

/// Waits for all of these, beside each other.
async fn all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    poll_fn(|context| {
        let mut wait = Poll::Ready(());
        for (future, output) in running.iter_mut().zip(&mut outputs) {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    Poll::Ready(done) => *output = Some(done),
                    Poll::Pending => wait = Poll::Pending,
                }
            }
        }
        wait
    })
    .await;
    outputs.into_iter().flatten().collect()
}

/// Lists everything, and tells whether that took so long that upkeep may have deleted, before its page came, what the
/// page of merged segments was too early for: their names come first.
async fn list_all(store: &dyn Store) -> Result<(Vec<Listed>, bool), StoreError> {
    let mut list = std::pin::pin!(store.list(timelines_prefix(), None));
    tokio::select! {
        // First, so that a process which was stopped meanwhile notices.
        biased;
        () = tokio::time::sleep(SLOW_LIST) => Ok((list.await?, true)),
        listed = &mut list => Ok((listed?, false)),
    }
}

#[cfg(test)]
mod tests;
