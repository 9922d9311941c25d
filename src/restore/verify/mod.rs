//! Reads an archive, or a window of it, and checks everything: documents, names, blocks, checksums, chains, overlaps.
//! Says what is wrong as findings; whether a restore has the right data a drill tells.

mod read;
mod structure;
mod twice;
mod window;

use std::sync::Arc;

use crate::archive::document::DOCUMENT_BYTES_MAX;
use crate::archive::layout::{
    AcceptedDocument, ArchiveDocument, DocumentError, Object, ObjectName, TimelineDocument,
};
use crate::archive::timeline::Catalog;
use crate::check::Finding;
use crate::position::UnixMillis;
use crate::store::{Listed, Store, StoreError, StoreErrorKind};

use read::{Job, read_all};
use window::Window;

/// What was verified.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What was read.
    pub tally: Tally,
}

/// How much was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Documents.
    pub documents: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Segments.
    pub segments: u64,
    /// Bytes of snapshots and segments as stored.
    pub stored_bytes: u64,
    /// Bytes of RDB payload and replication stream in them.
    pub raw_bytes: u64,
}

/// Reads and checks everything that a restore of any moment since `since` needs; everything, where there is none. `now` is
/// what our clock says: what has been there for a while is not on its way any more. `told` hears how many stored bytes
/// were read, and of how many.
///
/// # Errors
/// What the store says, where that is not about a single object.
pub async fn verify(
    store: Arc<dyn Store>,
    since: Option<UnixMillis>,
    now: UnixMillis,
    mut told: impl FnMut(u64, u64),
) -> Result<Report, StoreError> {
    let mut report = Report::default();
    let mut listed = store.list("", None).await?;
    let mut documents = read_documents(&*store, &listed, &mut report).await?;
    let catalog = documents.catalog(&listed);
    let window = Window::of(&catalog, since);
    let jobs = jobs(&catalog, &window);
    let archive = documents.archive.as_ref().map(|document| document.archive);
    let gone = read_all(&store, archive, jobs, &mut report, &mut told).await?;
    let mut catalog = catalog;
    if !gone.is_empty() {
        // Upkeep may have merged or pruned them since; what is lost for good leaves a gap.
        listed = store.list("", None).await?;
        // Timelines that were deleted have no document any more. What is wrong with the others was said.
        let again = &mut Report::default();
        documents = read_documents(&*store, &listed, again).await?;
        catalog = documents.catalog(&listed);
        for name in gone {
            if listed.iter().any(|entry| entry.name == name) {
                report.bad(
                    "object",
                    format!("{name} is listed and cannot be found"),
                    COPY,
                );
            }
        }
    }
    report
        .findings
        .extend(structure::findings(&catalog, &listed, now, &window));
    Ok(report)
}

/// What to do about a damaged object.
const COPY: &str =
    "put an undamaged copy in its place, from a version that the bucket kept or from a copy";

impl Report {
    fn bad(&mut self, id: &'static str, found: String, change: &str) {
        self.findings.push(Finding::bad(id, found, change));
    }
}

/// The documents of an archive, as far as they can be read.
#[derive(Debug, Default)]
struct Documents {
    archive: Option<ArchiveDocument>,
    timelines: Vec<TimelineDocument>,
}

impl Documents {
    fn catalog(&self, listed: &[Listed]) -> Catalog {
        let objects = listed.iter().filter_map(|entry| {
            let object = Object::parse(entry.name.as_str())?;
            Some((entry.name.clone(), object, entry.bytes))
        });
        Catalog::new(self.archive.clone(), self.timelines.clone(), objects)
    }
}

async fn read_documents(
    store: &dyn Store,
    listed: &[Listed],
    report: &mut Report,
) -> Result<Documents, StoreError> {
    let mut documents = Documents::default();
    let names = listed
        .iter()
        .filter_map(|entry| Some((&entry.name, Object::parse(entry.name.as_str())?)));
    for (name, object) in names {
        match object {
            Object::Archive => {
                documents.archive = read_document(
                    store,
                    name,
                    "archive-document",
                    report,
                    ArchiveDocument::decode,
                    ArchiveDocument::is_stored_as,
                )
                .await?;
            }
            Object::Timeline { seq, id } => {
                let document = read_document(
                    store,
                    name,
                    "timeline-document",
                    report,
                    TimelineDocument::decode,
                    TimelineDocument::is_stored_as,
                )
                .await?;
                match document {
                    Some(document) if (document.seq, document.id) != (seq, id) => report.bad(
                        "timeline-document",
                        format!("{name} speaks of timeline {} {}", document.seq, document.id),
                        COPY,
                    ),
                    document => documents.timelines.extend(document),
                }
            }
            Object::Accepted { .. } => {
                read_document(
                    store,
                    name,
                    "acceptance-document",
                    report,
                    AcceptedDocument::decode,
                    AcceptedDocument::is_stored_as,
                )
                .await?;
            }
            Object::Snapshot { .. } | Object::SnapshotPart { .. } | Object::Segment { .. } => {}
        }
    }
    let is_listed = listed
        .iter()
        .any(|entry| Object::parse(entry.name.as_str()) == Some(Object::Archive));
    if !is_listed {
        let found = match listed.is_empty() {
            true => "there is no archive",
            false => "archive.json is missing: nothing can be restored without it",
        };
        report.bad("archive-document", found.into(), COPY);
    }
    Ok(documents)
}

async fn read_document<T>(
    store: &dyn Store,
    name: &ObjectName,
    id: &'static str,
    report: &mut Report,
    decode: impl Fn(&[u8]) -> Result<T, DocumentError>,
    is_stored_as: impl Fn(&T, &[u8]) -> bool,
) -> Result<Option<T>, StoreError> {
    let bytes = match store
        .read(name, Some(0..DOCUMENT_BYTES_MAX as u64 + 1))
        .await
    {
        Ok(bytes) => bytes,
        Err(error) if error.kind == StoreErrorKind::NotFound => {
            report.bad(id, format!("{name} is listed and cannot be found"), COPY);
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    report.tally.documents += 1;
    match decode(&bytes) {
        Ok(document) => {
            if !is_stored_as(&document, &bytes) {
                let found =
                    format!("{name}: no Perennial stores it like that, and it has no checksum");
                report.bad(id, found, COPY);
            }
            Ok(Some(document))
        }
        Err(error) => {
            report.bad(id, format!("{name}: {error}"), COPY);
            Ok(None)
        }
    }
}

/// Everything to be read, the larger objects first: so the last ones are done at about the same time.
fn jobs(catalog: &Catalog, window: &Window) -> Vec<Job> {
    let mut jobs = Vec::new();
    for timeline in catalog.timelines() {
        let seq = timeline.seq();
        let snapshots = timeline.snapshots.iter();
        let snapshots = snapshots.filter(|snapshot| window.needs_snapshot(seq, snapshot.offset));
        jobs.extend(snapshots.map(|snapshot| Job::Snapshot(snapshot.objects())));
        let segments = timeline.segments.iter();
        let segments = segments.filter(|segment| window.needs_segment(seq, segment.span.last));
        let segments: Vec<_> = segments.cloned().collect();
        jobs.extend(twice::split(segments));
    }
    jobs.sort_by_key(|job| std::cmp::Reverse(job.bytes()));
    jobs
}
