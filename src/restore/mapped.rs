//! Under which replication id a plan is served, and up to which offset. Bytes as they were archived go out under
//! their own id, so that surviving replicas continue. Rewritten bytes get an id that nobody knows, and a timeline
//! that says what it stands for: it is in the store before a server gets the first byte, so that whatever is found
//! afterwards is recognised.

use std::sync::Arc;

use super::rewrite::Tally;
use super::seeder::Approved;
use super::source::{self, SourceError, Spelling};
use crate::archive::document::{DOCUMENT_FORMAT, Source, TimelineDocument};
use crate::archive::layout::ArchiveId;
use crate::archive::plan::Plan;
use crate::archive::timeline::Catalog;
use crate::clock::Clock;
use crate::position::{Offset, ReplicationId};
use crate::store::{Store, StoreError, catalog};

/// Between two lines of progress, bytes of replication stream.
const PROGRESS_BYTES: u64 = 256 * 1024 * 1024;

/// Why a seed could not be prepared. Nothing was sent to the server.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The archive cannot be read.
    #[error("the archive cannot be read through: {0}")]
    Source(#[from] SourceError),
    /// The timeline cannot be written down.
    #[error("the timeline of the seed cannot be written: {0}")]
    Store(#[from] StoreError),
    /// Another streamer began a timeline at the same moment.
    #[error("another streamer began a timeline in this archive at the same moment")]
    NumberTaken,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes for a replication id: {0}")]
    Random(String),
}

/// How a plan will be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prepared {
    /// Under which id, and which bytes.
    pub approved: Approved,
    /// The offset at which the server has everything.
    pub end: Offset,
    /// What is rewritten.
    pub tally: Tally,
}

impl Prepared {
    /// The bytes as they are, under the id of the target.
    pub(super) fn archived(plan: &Plan, tally: Tally) -> Self {
        Self {
            approved: Approved {
                id: plan.id,
                spelling: Spelling::Archived,
            },
            end: plan.target.offset,
            tally,
        }
    }
}

/// Whether a plan can be served as it was archived: its offsets count through, and nothing has to be rewritten.
/// Reads the replication stream where that cannot be told otherwise, in bounded memory.
///
/// # Errors
/// [`SourceError`].
pub async fn as_archived(
    store: &Arc<dyn Store>,
    archive: ArchiveId,
    plan: &Plan,
) -> Result<bool, SourceError> {
    if !plan.offsets_continuous {
        return Ok(false);
    }
    Ok(!plan.may_be_rewritten() || !measure(store, archive, plan).await?.is_changed())
}

/// Finds out how a plan is served. Where it needs an id of its own, the timeline of that id is created, or the
/// one that an earlier attempt left is taken again. `seeded` is the server that will be filled.
///
/// # Errors
/// [`PrepareError`].
pub async fn prepare(
    store: &Arc<dyn Store>,
    archive: ArchiveId,
    catalog: &Catalog,
    plan: &Plan,
    seeded: Source,
    clock: &dyn Clock,
) -> Result<Prepared, PrepareError> {
    if plan.offsets_continuous && !plan.may_be_rewritten() {
        return Ok(Prepared::archived(plan, Tally::default()));
    }
    let tally = measure(store, archive, plan).await?;
    if plan.offsets_continuous && !tally.is_changed() {
        return Ok(Prepared::archived(plan, tally));
    }
    let end = plan.snapshot.offset.plus(tally.bytes);
    let id = match left_behind(catalog, plan, end) {
        Some(id) => id,
        None => create(store, catalog, plan, end, seeded, clock).await?,
    };
    Ok(Prepared {
        approved: Approved {
            id,
            spelling: Spelling::Rewritten,
        },
        end,
        tally,
    })
}

/// How long the replication stream is as it will be sent, and what is rewritten in it.
async fn measure(
    store: &Arc<dyn Store>,
    archive: ArchiveId,
    plan: &Plan,
) -> Result<Tally, SourceError> {
    let mut stream = source::stream(Arc::clone(store), archive, plan, Spelling::Rewritten);
    let (mut bytes, mut said) = (0, 0);
    while let Some(piece) = stream.next().await? {
        bytes += piece.len() as u64;
        if bytes - said >= PROGRESS_BYTES {
            said = bytes;
            tracing::info!(
                "looking for what must be rewritten: {} of about {} of replication stream",
                bytesize::ByteSize(bytes),
                bytesize::ByteSize(plan.stream_bytes()),
            );
        }
    }
    Ok(Tally {
        bytes,
        ..stream.tally()
    })
}

/// The id of an earlier attempt at the same seed that came to nothing.
fn left_behind(catalog: &Catalog, plan: &Plan, end: Offset) -> Option<ReplicationId> {
    let head = catalog.timeline(plan.target.timeline)?;
    let same = head.document.mapped
        && !head.has_content()
        && head.document.start == end
        && plan.target.offset == end;
    same.then(|| head.id())
}

async fn create(
    store: &Arc<dyn Store>,
    catalog: &Catalog,
    plan: &Plan,
    end: Offset,
    seeded: Source,
    clock: &dyn Clock,
) -> Result<ReplicationId, PrepareError> {
    let mut raw = [0; 20];
    getrandom::fill(&mut raw).map_err(|error| PrepareError::Random(error.to_string()))?;
    let id = ReplicationId::from_raw(raw);
    let document = TimelineDocument {
        format: DOCUMENT_FORMAT,
        seq: catalog.next_seq(),
        id,
        parent: Some(plan.target),
        start: end,
        mapped: true,
        suspect: None,
        created_at: clock.unix(),
        created_by: concat!("perennial ", env!("CARGO_PKG_VERSION")).to_owned(),
        source: Source {
            // Nothing was received from this process: its run id must not connect it with the head.
            run_id: "?".to_owned(),
            ..seeded
        },
    };
    if !catalog::create_timeline(&**store, &document).await? {
        return Err(PrepareError::NumberTaken);
    }
    tracing::info!(
        timeline = %document.seq, %id, parent = %plan.target, start = %end,
        "a timeline for a seed with rewritten bytes"
    );
    Ok(id)
}
