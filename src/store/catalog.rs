//! Reads an archive's catalogue through a store, and writes the few small documents it consists of.

use std::collections::BTreeMap;

use crate::archive::block::Boundary;
use crate::archive::document::DOCUMENT_BYTES_MAX;
use crate::archive::layout::{
    AcceptedDocument, ArchiveDocument, ArchiveId, DOCUMENT_FORMAT, DocumentError, Object,
    ObjectName, TimelineDocument, is_name_right, timeline_number_prefix, timelines_prefix,
};
use crate::archive::segment::SegmentReader;
use crate::archive::snapshot::{END_BLOCK_BYTES_MAX, payload_bytes_in};
use crate::archive::timeline::{Catalog, SegmentEntry, SnapshotEntry};
use crate::position::{Position, ReplicationId, Ticks, TimelineSeq, UnixMillis};
use crate::store::{Store, StoreError, StoreErrorKind, create_or_same};

mod kept;
mod surveyed;

pub use kept::{KEPT_OBJECTS_MAX, Kept, Listing, RELIST_MILLIS};
pub use surveyed::{Survey, survey};

/// How many bytes of an object are read at once.
pub const READ_BYTES: u64 = 8 * 1024 * 1024;

/// Why an archive cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A document cannot be read.
    #[error("{name} in {address}: {error}")]
    Document {
        /// The object.
        name: ObjectName,
        /// The store.
        address: String,
        /// What is wrong.
        error: DocumentError,
    },
    /// There is no archive.
    #[error(
        "there is no archive at {address}: archive.json is missing; check the address, or let `perennial run` create one"
    )]
    Missing {
        /// The store.
        address: String,
    },
    /// The document is gone and what it was the document of is there: with another one it could not be restored.
    #[error(
        "archive.json is missing at {address}, and timelines are there: nothing was written. Put that archive.json back, \
         from a version that the bucket kept or from a copy; only to begin anew, give another address"
    )]
    Beheaded {
        /// The store.
        address: String,
    },
    /// The archive is not the one that this process began with.
    #[error(
        "the archive at {address} is another one than at the start: was it deleted or replaced under us? Nothing more is \
         written to it; start perennial again to use it"
    )]
    Another {
        /// The store.
        address: String,
    },
    /// The archive belongs to another data set.
    #[error("the archive at {address} {}", wrong_name(found.as_deref(), wanted))]
    WrongName {
        /// The store.
        address: String,
        /// The name asked for.
        wanted: String,
        /// The archive's name.
        found: Option<String>,
    },
}

fn wrong_name(found: Option<&str>, wanted: &str) -> String {
    match found {
        Some(found) => format!(
            "belongs to the data set {found}, not to {wanted}: nothing was written; give every data set an archive of \
             its own, or correct --name"
        ),
        None => format!(
            "has no name, so nothing says that it is that of {wanted}: nothing was written; if it is, leave --name out \
             (an archive gets its name when it begins), else give {wanted} an archive of its own"
        ),
    }
}

impl CatalogError {
    /// Whether the same may work later without anybody's doing.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            Self::Document { .. }
            | Self::Missing { .. }
            | Self::Beheaded { .. }
            | Self::Another { .. }
            | Self::WrongName { .. } => false,
        }
    }
}

/// A catalogue, and the ends of its timelines that were looked into.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The tree of timelines.
    pub catalog: Catalog,
    boundaries: BTreeMap<TimelineSeq, Boundary>,
    damaged: Vec<Damaged>,
    /// The head, where it is there only because something damaged was left out of another timeline.
    instead: Option<TimelineSeq>,
    listing: Listing,
}

/// A segment at the end of a timeline that cannot be trusted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the end of timeline {timeline} is damaged: {name}: {why}; {}", what_to_do(*is_covered))]
pub struct Damaged {
    /// The timeline's number.
    pub timeline: TimelineSeq,
    /// The object.
    pub name: ObjectName,
    /// What is wrong.
    pub why: String,
    /// Other objects lead just as far: a merged segment is damaged, and what it was made of is there.
    pub is_covered: bool,
}

const fn what_to_do(is_covered: bool) -> &'static str {
    if is_covered {
        "other objects hold the same bytes and are used instead; `perennial verify` tells what else is damaged"
    } else {
        "put an undamaged copy in its place, or take the object away to go on without it"
    }
}

impl Loaded {
    /// How much was listed for it.
    pub fn listing(&self) -> Listing {
        self.listing
    }

    /// Everything damaged that was met.
    pub fn all_damaged(&self) -> &[Damaged] {
        &self.damaged
    }

    /// What is damaged at the end of a timeline, and nowhere else. Following goes on from before it, because the master
    /// may still have those bytes; whoever restores must not take the shorter history for the whole. Nor the history of another
    /// timeline, which is the head only because of that damage.
    pub fn damaged(&self, seq: TimelineSeq) -> Option<&Damaged> {
        let is_instead = self.instead == Some(seq);
        self.damaged
            .iter()
            .find(|damaged| (damaged.timeline == seq || is_instead) && !damaged.is_covered)
    }

    /// A position as a boundary: with the database selected there, where it is known.
    pub fn boundary(&self, position: Position) -> Boundary {
        let known = self.boundaries.get(&position.timeline);
        let database = known
            .filter(|b| b.offset == position.offset)
            .and_then(|b| b.database);
        Boundary {
            offset: position.offset,
            database,
        }
    }

    /// Looks into the last segments of a timeline for its last command boundary. Segments that are damaged
    /// are left out of the catalogue and said: what they held may still come again from the master.
    ///
    /// # Errors
    /// What the store says.
    pub async fn resolve(&mut self, store: &dyn Store, seq: TimelineSeq) -> Result<(), StoreError> {
        loop {
            let Some(end) = self.catalog.stored_end(seq) else {
                return Ok(());
            };
            let Some(timeline) = self.catalog.timeline(seq) else {
                return Ok(());
            };
            let floor = timeline
                .snapshots
                .iter()
                .map(|snapshot| snapshot.offset)
                .chain([timeline.document.start])
                .filter(|base| *base <= end)
                .max()
                .unwrap_or(timeline.document.start);
            let mut candidates: Vec<&SegmentEntry> = timeline
                .segments
                .iter()
                .filter(|segment| segment.span.last <= end && segment.span.last > floor)
                .collect();
            candidates.sort_by_key(|segment| std::cmp::Reverse(segment.span.last));
            let mut found = None;
            let mut damaged = None;
            for segment in candidates {
                match last_boundary(store, &segment.name).await? {
                    Ok(boundary) => found = boundary.filter(|boundary| boundary.offset > floor),
                    Err(why) => damaged = Some((segment.name.clone(), why)),
                }
                if found.is_some() || damaged.is_some() {
                    break;
                }
            }
            if let Some((name, why)) = damaged {
                self.catalog.leave_out(&name, why.clone());
                self.damaged.push(Damaged {
                    timeline: seq,
                    name,
                    why,
                    is_covered: self.catalog.stored_end(seq) == Some(end),
                });
                continue;
            }
            let boundary = found.unwrap_or(Boundary {
                offset: floor,
                database: None,
            });
            self.catalog.set_boundary(seq, boundary.offset);
            self.boundaries.insert(seq, boundary);
            return Ok(());
        }
    }
}

/// Reads a segment and tells its last command boundary, or why it cannot be trusted.
async fn last_boundary(
    store: &dyn Store,
    name: &ObjectName,
) -> Result<Result<Option<Boundary>, String>, StoreError> {
    let Some(mut reader) =
        Object::parse(name.as_str()).and_then(|object| SegmentReader::new(&object).ok())
    else {
        return Ok(Err("not a segment's name".into()));
    };
    let mut boundary = None;
    let mut at = 0;
    loop {
        let bytes = store.read(name, Some(at..at + READ_BYTES)).await?;
        if bytes.is_empty() {
            break;
        }
        at += bytes.len() as u64;
        reader.push(bytes);
        loop {
            match reader.next() {
                Ok(Some(block)) => boundary = block.header.boundary.or(boundary),
                Ok(None) => break,
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
    }
    Ok(reader
        .finish()
        .map(|()| boundary)
        .map_err(|error| error.to_string()))
}

/// The length of a snapshot's payload, as its end block says; nothing where there is none.
///
/// # Errors
/// What the store says.
pub async fn payload_bytes(
    store: &dyn Store,
    snapshot: &SnapshotEntry,
) -> Result<Option<u64>, StoreError> {
    let (name, length) = snapshot.last_object();
    let from = length.saturating_sub(END_BLOCK_BYTES_MAX);
    let tail = store.read(&name, Some(from..length)).await?;
    Ok(payload_bytes_in(&tail))
}

/// Reads the catalogue: everything is listed, every timeline's document read. The ends of the head, of the newest
/// timeline and of the timelines under `ids` are looked into.
///
/// # Errors
/// [`CatalogError`]; an archive written by a newer version is one.
pub async fn load(store: &dyn Store, ids: &[ReplicationId]) -> Result<Loaded, CatalogError> {
    load_kept(store, ids, &mut Kept::default(), Listing::Whole, Ticks(0)).await
}

/// The same for whoever looks again and again: with [`Listing::Later`] only what came since the last look is listed,
/// where that is cheaper. [`Loaded::listing`] tells what was done.
///
/// # Errors
/// As [`load`].
pub async fn load_kept(
    store: &dyn Store,
    ids: &[ReplicationId],
    kept: &mut Kept,
    listing: Listing,
    now: Ticks,
) -> Result<Loaded, CatalogError> {
    match load_once(store, ids, kept, listing, now).await {
        // Something that was listed was merged or pruned since. A place that is missing stays missing.
        Err(CatalogError::Store(error)) if error.is_about_missing_object() => {
            load_once(store, ids, kept, Listing::Whole, now).await
        }
        loaded => loaded,
    }
}

async fn load_once(
    store: &dyn Store,
    ids: &[ReplicationId],
    kept: &mut Kept,
    listing: Listing,
    now: Ticks,
) -> Result<Loaded, CatalogError> {
    let Some(archive) = read_archive(store).await? else {
        return Err(without_document(store).await?);
    };
    let listing = kept.list(store, listing, now).await?;
    let (documents, objects) = kept.parts();
    let mut loaded = Loaded {
        catalog: Catalog::new(Some(archive), documents, objects),
        boundaries: BTreeMap::new(),
        damaged: Vec::new(),
        instead: None,
        listing,
    };
    kept.trim();
    let accepted = loaded
        .catalog
        .head()
        .and_then(|head| loaded.catalog.timeline(head.timeline))
        .and_then(|timeline| {
            timeline
                .accepted
                .map(|(rank, order)| (timeline.seq(), timeline.id(), rank, order))
        });
    if let Some((seq, id, rank, order)) = accepted {
        let name = Object::Accepted {
            seq,
            id,
            rank,
            order,
        }
        .name();
        let document = read_document(store, &name, AcceptedDocument::decode).await?;
        loaded.catalog.set_accepted_at(seq, document.accepted_at);
    }
    let wanted: Vec<TimelineSeq> = {
        let catalog = &loaded.catalog;
        let head = catalog.head().map(|head| head.timeline);
        let newest = catalog.newest().map(|timeline| timeline.seq());
        let named = catalog
            .timelines()
            .filter(|timeline| ids.contains(&timeline.id()));
        head.into_iter()
            .chain(newest)
            .chain(named.map(|timeline| timeline.seq()))
            .collect()
    };
    let head_of = |catalog: &Catalog| catalog.head().map(|head| head.timeline);
    let by_names = head_of(&loaded.catalog);
    for seq in wanted {
        if !loaded.boundaries.contains_key(&seq) {
            loaded.resolve(store, seq).await?;
        }
    }
    loaded.instead = head_of(&loaded.catalog).filter(|head| Some(*head) != by_names);
    Ok(loaded)
}

async fn read_document<T>(
    store: &dyn Store,
    name: &ObjectName,
    decode: impl Fn(&[u8]) -> Result<T, DocumentError>,
) -> Result<T, CatalogError> {
    // One that is longer is refused, and not held in memory for that.
    let bytes = store
        .read(name, Some(0..DOCUMENT_BYTES_MAX as u64 + 1))
        .await?;
    decode(&bytes).map_err(|error| CatalogError::Document {
        name: name.clone(),
        address: store.address(),
        error,
    })
}

async fn read_archive(store: &dyn Store) -> Result<Option<ArchiveDocument>, CatalogError> {
    let name = Object::Archive.name();
    match read_document(store, &name, ArchiveDocument::decode).await {
        Ok(document) => Ok(Some(document)),
        Err(CatalogError::Store(error)) if error.kind == StoreErrorKind::NotFound => {
            // A missing place is not a missing document; any list tells, and this one is short.
            store.list(name.as_str(), None).await?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Which archive is there, if any.
///
/// # Errors
/// [`CatalogError`] where its document cannot be read.
pub async fn archive_of(store: &dyn Store) -> Result<Option<ArchiveId>, CatalogError> {
    let document = read_archive(store).await?;
    Ok(document.map(|document| document.archive))
}

/// Whether nothing is there, or an archive that lost its document: the second must not pass for a first start.
async fn without_document(store: &dyn Store) -> Result<CatalogError, StoreError> {
    let address = store.address();
    let timelines = store.list(timelines_prefix(), None).await?;
    Ok(if timelines.is_empty() {
        CatalogError::Missing { address }
    } else {
        CatalogError::Beheaded { address }
    })
}

/// Reads `archive.json`, or creates it. An archive of another name is refused: two hundred templated sidecars
/// and one forgotten prefix must not write into one. Nor is another one begun over timelines that are there: their
/// blocks bear the id of the one that is gone, and a restore takes no others.
///
/// # Errors
/// [`CatalogError`].
pub async fn open_archive(
    store: &dyn Store,
    name: Option<&str>,
    now: UnixMillis,
) -> Result<ArchiveDocument, CatalogError> {
    loop {
        if let Some(found) = read_archive(store).await? {
            return match name {
                Some(wanted) if !is_name_right(found.name.as_deref(), name) => {
                    Err(CatalogError::WrongName {
                        address: store.address(),
                        wanted: wanted.to_owned(),
                        found: found.name,
                    })
                }
                _ => Ok(found),
            };
        }
        let error = without_document(store).await?;
        if matches!(error, CatalogError::Beheaded { .. }) {
            // Somebody else may have created both since it was looked for.
            if read_archive(store).await?.is_some() {
                continue;
            }
            return Err(error);
        }
        let document = ArchiveDocument {
            format: DOCUMENT_FORMAT,
            archive: random_archive_id(store)?,
            name: name.map(str::to_owned),
            created_at: now,
        };
        // Somebody else may have been first: theirs counts, and is read in the next round.
        store
            .create(&Object::Archive.name(), vec![document.encode()])
            .await?;
    }
}

fn random_archive_id(store: &dyn Store) -> Result<ArchiveId, StoreError> {
    let mut bytes = [0; 16];
    crate::random::fill(&mut bytes).map_err(|error| {
        let detail = format!("the system gives no random bytes: {error}");
        StoreError::about_store(
            StoreErrorKind::Unavailable,
            "create",
            store.address(),
            detail,
        )
    })?;
    Ok(ArchiveId::from_raw(bytes))
}

/// Creates a timeline under the number that the document bears; `false` where somebody else took it: then it
/// must be decided anew, from a catalogue that knows the other one.
///
/// The number is part of a name that also bears the replication id, so two creators of different histories do
/// not collide on one object: each looks again after creating, and whoever sees the other gives up. At least
/// one of two sees the other. What is left behind is an empty folder, which the catalogue passes over.
///
/// # Errors
/// What the store says.
pub async fn create_timeline(
    store: &dyn Store,
    document: &TimelineDocument,
) -> Result<bool, StoreError> {
    let object = Object::Timeline {
        seq: document.seq,
        id: document.id,
    };
    let prefix = timeline_number_prefix(document.seq);
    if !store.list(&prefix, None).await?.is_empty() {
        return Ok(false);
    }
    match create_or_same(store, &object.name(), vec![document.encode()]).await {
        // Another streamer of the same history was first.
        Err(error) if error.kind == StoreErrorKind::Conflict => return Ok(false),
        created => created?,
    };
    let seen = store.list(&prefix, None).await?;
    Ok(seen
        .iter()
        .all(|entry| Object::parse(entry.name.as_str()) == Some(object)))
}

/// Makes a timeline the head: above everything numbered so far, below everything numbered later.
///
/// # Errors
/// [`CatalogError`].
pub async fn accept(
    store: &dyn Store,
    catalog: &Catalog,
    seq: TimelineSeq,
    id: ReplicationId,
    document: AcceptedDocument,
) -> Result<(), StoreError> {
    let newest = catalog.newest().map_or(seq, |newest| newest.seq());
    let rank = newest.max(seq);
    let mut order = catalog
        .timelines()
        .filter_map(|timeline| timeline.accepted)
        .filter(|(at, _)| *at == rank)
        .map(|(_, order)| order + 1)
        .max()
        .unwrap_or(1);
    loop {
        let name = Object::Accepted {
            seq,
            id,
            rank,
            order,
        }
        .name();
        match create_or_same(store, &name, vec![document.encode()]).await {
            Ok(_) => return Ok(()),
            Err(error) if error.kind == StoreErrorKind::Conflict => order += 1,
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
