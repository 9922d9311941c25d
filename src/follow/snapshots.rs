//! RDB payloads into the store: from the second connection, or from the link's own full resync on servers
//! that cannot do without.

mod sink;
mod writer;

pub use sink::SnapshotSink;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::archive::block::Boundary;
use crate::archive::layout::PART_MAX;
use crate::archive::snapshot::{SnapshotBuilder, SnapshotError};
use crate::clock::Clock;
use crate::follow::budget::{Budget, Reservation};
use crate::follow::encode::Encoder;
use crate::follow::later::until_stored;
use crate::follow::link::Link;
use crate::follow::spool::SpoolError;
use crate::follow::uploader::{Uploader, backoff, jittered};
use crate::position::{Offset, Position, ReplicationId, Ticks, UnixMillis};
use crate::proto::handshake::PsyncRequest;
use crate::proto::replica::{Event, Refusal, ReplicaOptions};
use crate::server::net::{Address, Endpoint};
use crate::store::StoreError;

/// Blocks of one snapshot that wait in memory for the upload. Where there is a spool, more wait there.
pub const BLOCKS_AHEAD_MAX: usize = 2;
/// The first wait before another attempt at a snapshot.
pub const SNAPSHOT_RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest wait before another attempt at a snapshot: each one makes the master fork.
pub const SNAPSHOT_RETRY_MAX: Duration = Duration::from_secs(60);

/// Attempts that failed since the last one that did not, and when the next one may be.
#[derive(Debug, Default)]
pub struct SnapshotPace {
    failed: u32,
    /// Not before this.
    pub not_before: Ticks,
}

impl SnapshotPace {
    /// Notes a failure; how many there were, and how long to wait.
    pub fn failed(&mut self, now: Ticks) -> (u32, u64) {
        self.failed += 1;
        let wait = jittered(backoff(
            SNAPSHOT_RETRY_FIRST,
            SNAPSHOT_RETRY_MAX,
            self.failed,
        ));
        let wait_millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        self.not_before = now.plus(wait_millis);
        (self.failed, wait_millis)
    }
}

/// What one object of a snapshot may hold, bytes as stored: less than the 308 GB that fit into the parts of an upload
/// to S3 (decision 21). A larger snapshot is stored in several objects.
pub const PART_BYTES_MAX: u64 = 300_000_000_000;

/// Whether snapshots are stored in parts. A name must be chosen before the first byte, and says which.
#[derive(Debug)]
pub struct Parting {
    part_bytes_max: u64,
    /// What the server's data take in memory, bytes: seldom less than their payload.
    data_bytes: AtomicU64,
    /// One object was too small before.
    overflowed: AtomicBool,
}

impl Parting {
    /// Parts of at most `part_bytes_max` as stored.
    pub fn new(part_bytes_max: u64) -> Arc<Self> {
        Arc::new(Self {
            part_bytes_max,
            data_bytes: AtomicU64::new(0),
            overflowed: AtomicBool::new(false),
        })
    }

    /// What the server's data take in memory, as INFO says.
    pub fn set_data_bytes(&self, bytes: u64) {
        self.data_bytes.store(bytes, Ordering::Relaxed);
    }

    fn in_parts(&self) -> bool {
        self.overflowed.load(Ordering::Relaxed)
            || self.data_bytes.load(Ordering::Relaxed) > self.part_bytes_max
    }
}

/// Why a snapshot was not taken. The caller tries again.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotFailure {
    /// The second connection could not be made or broke.
    #[error("the connection for the snapshot from {address} failed: {reason}")]
    Connection {
        /// The server.
        address: String,
        /// What happened.
        reason: String,
    },
    /// The server refused it.
    #[error("{address} refused the snapshot: {refusal}")]
    Refused {
        /// The server.
        address: String,
        /// Its words.
        refusal: Refusal,
    },
    /// The snapshot belongs to another history than the link.
    #[error(
        "the snapshot belongs to history {found}, the replication stream to {expected}: the server changed in between"
    )]
    OtherHistory {
        /// The link's replication id.
        expected: ReplicationId,
        /// The snapshot's.
        found: ReplicationId,
    },
    /// The payload is damaged.
    #[error("the payload from {address} is discarded: {error}")]
    Damaged {
        /// The server.
        address: String,
        /// What is wrong.
        error: SnapshotError,
    },
    /// What the server holds is older than what a snapshot is wanted of.
    #[error(
        "{address} lags behind: its snapshot would stand at {offset}, before {floor}, where it is of no use"
    )]
    Behind {
        /// The server.
        address: String,
        /// Its snapshot's.
        offset: Offset,
        /// Where the stream that is followed begins, or the last snapshot stands.
        floor: Offset,
    },
    /// A server that was filled from the archive does not stand where it was filled to.
    #[error(
        "the scratch server stands at offset {found} of its own history, but was filled up to {expected}"
    )]
    Elsewhere {
        /// Where it was filled to.
        expected: Offset,
        /// Where it says that it stands.
        found: Offset,
    },
    /// A payload from such a server says another database for what follows than was stored, or none.
    #[error(
        "the scratch server goes on in database {}, the archive in {}: its snapshot is not used; please report this",
        shown(*found), shown(*expected)
    )]
    Database {
        /// As the archive has it, where that is known.
        expected: Option<u32>,
        /// As the payload has it.
        found: Option<u32>,
    },
    /// What leads to it is not in the store.
    #[error(
        "the snapshot at offset {0} is given up: the replication stream up to it did not reach the archive in time"
    )]
    NotStored(Offset),
    /// The store failed.
    #[error("the snapshot could not be stored: {0}")]
    Store(#[from] StoreError),
    /// A part of it could not be read back from the spool.
    #[error("the snapshot is given up: {0}")]
    Spool(#[from] SpoolError),
    /// It does not fit where it was begun.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

fn shown(database: Option<u32>) -> String {
    database.map_or_else(|| "?".into(), |database| database.to_string())
}

/// A snapshot that is in the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    /// Where it stands.
    pub offset: Offset,
    /// The length of the payload as the server sent it.
    pub bytes: u64,
    /// When its first byte came.
    pub at: UnixMillis,
    /// From then until it was stored, milliseconds.
    pub millis: u64,
}

/// A snapshot is larger than it was expected to be.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum TooLarge {
    /// For one object. The next attempt makes several.
    #[error(
        "the snapshot is larger than the {0} bytes of one object: the next one will be in parts"
    )]
    ForOneObject(u64),
    /// For all the parts that have a number.
    #[error("the snapshot is larger than {PART_MAX} parts of {0} bytes")]
    ForAllParts(u64),
}

/// Why bytes of a payload were not taken.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What waited cannot be read back.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The snapshot is too large.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

impl From<WriteError> for SnapshotFailure {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Store(error) => Self::Store(error),
            WriteError::Spool(error) => Self::Spool(error),
            WriteError::TooLarge(error) => Self::TooLarge(error),
        }
    }
}

/// A payload that comes on the link itself, on its way into the store in a task of its own: a slow store holds
/// up neither acknowledgements nor the end of the link. What waits for it counts in the budget.
#[derive(Debug)]
pub struct Feed {
    pieces: mpsc::UnboundedSender<Fed>,
    budget: Arc<Budget>,
}

#[derive(Debug)]
enum Fed {
    Bytes(Bytes, Reservation),
    End,
}

impl Feed {
    /// Begins with a payload that stands at `offset`. The task ends when the payload is stored, or cannot be.
    pub fn begin(
        address: String,
        uploader: Arc<Uploader>,
        encoder: Arc<Encoder>,
        budget: Arc<Budget>,
        parting: Arc<Parting>,
        offset: Offset,
        clock: Arc<dyn Clock>,
    ) -> (Self, JoinHandle<Result<Taken, SnapshotFailure>>) {
        // Whoever feeds looks at the budget before reading more: that is the bound of the queue.
        let (pieces, mut fed) = mpsc::unbounded_channel();
        let feed = Self {
            pieces,
            budget: Arc::clone(&budget),
        };
        let task = tokio::spawn(async move {
            let builder = SnapshotBuilder::new(offset, clock.unix());
            let mut sink =
                SnapshotSink::begin(uploader, encoder, budget, parting, builder, &*clock).await?;
            while let Some(piece) = fed.recv().await {
                match piece {
                    Fed::Bytes(bytes, _held) => sink.write(bytes).await?,
                    Fed::End => {
                        let taken = sink.finish(&address, &*clock).await?;
                        tracing::info!(
                            offset = offset.as_u64(),
                            bytes = taken.bytes,
                            "snapshot complete"
                        );
                        return Ok(taken);
                    }
                }
            }
            Err(SnapshotFailure::Connection {
                address,
                reason: "the link ended in the middle of it".into(),
            })
        });
        (feed, task)
    }

    /// The next bytes. Where the task has failed they are of no use; it says so itself.
    pub fn push(&self, bytes: Bytes) {
        let held = self.budget.reserve(bytes.len() as u64);
        let _ = self.pieces.send(Fed::Bytes(bytes, held));
    }

    /// That was all.
    pub fn end(self) {
        let _ = self.pieces.send(Fed::End);
    }
}

/// What is asked for.
#[derive(Debug)]
pub struct Ask {
    /// How we introduce ourselves.
    pub options: ReplicaOptions,
    /// Where the timeline has a snapshot and its replication stream is being stored: is told the offset, and the
    /// snapshot becomes complete only when all before it is stored.
    pub beside: Option<oneshot::Sender<Offset>>,
    /// An older snapshot than this is of no use.
    pub floor: Offset,
    /// Where the server was filled from the archive.
    pub derived: Option<Derived>,
}

/// What a server holds that was filled from the archive: the history and the offset that it names are its own.
#[derive(Debug)]
pub struct Derived {
    /// The history.
    pub id: ReplicationId,
    /// The offset.
    pub stands_at: Offset,
    /// What that is on the timeline that is followed, and the database selected there, where that is known.
    pub is: Boundary,
    /// When the last byte before it was received.
    pub at: UnixMillis,
    /// The snapshot that it was filled with.
    pub from: Position,
}

impl Derived {
    /// Begins the snapshot, where the server's answer names what it was filled with.
    fn builder(
        &self,
        id: ReplicationId,
        offset: Offset,
    ) -> Result<SnapshotBuilder, SnapshotFailure> {
        is_history(self.id, id)?;
        if self.stands_at != offset {
            return Err(SnapshotFailure::Elsewhere {
                expected: self.stands_at,
                found: offset,
            });
        }
        Ok(SnapshotBuilder::new(self.is.offset, self.at).derived(self.from))
    }
}

fn is_history(expected: ReplicationId, found: ReplicationId) -> Result<(), SnapshotFailure> {
    if found == expected {
        return Ok(());
    }
    Err(SnapshotFailure::OtherHistory { expected, found })
}

/// Fetches a snapshot over a connection of its own. With `rdb-only 1` (6.2+) the master does not feed it the
/// replication stream, so a slow upload fills no output buffer; an older one does so until the payload has
/// been read (`protocol-facts` 2.2).
///
/// # Errors
/// [`SnapshotFailure`]; nothing is left in the store then.
pub async fn fetch(
    source: &Address,
    ask: Ask,
    uploader: Arc<Uploader>,
    encoder: Arc<Encoder>,
    budget: Arc<Budget>,
    parting: Arc<Parting>,
    clock: Arc<dyn Clock>,
) -> Result<Taken, SnapshotFailure> {
    let address = source.to_string();
    let failed = |reason: String| SnapshotFailure::Connection {
        address: source.to_string(),
        reason,
    };
    let Ask {
        options,
        mut beside,
        floor,
        derived,
    } = ask;
    let options = ReplicaOptions {
        rdb_only: true,
        rdb_filter_only: None,
        psync: PsyncRequest::Full,
        ..options
    };
    let mut behind = None;
    let endpoint: &Endpoint = &source.endpoint;
    let mut link = Link::open(endpoint, |_| None, options, Arc::clone(&clock))
        .await
        .map_err(|error| failed(error.to_string()))?;
    let followed = uploader.context().id;
    let mut sink = None;
    loop {
        match link.next(true).await {
            Event::OptionRefused { .. } | Event::PayloadBegins { .. } => {}
            Event::FullResync { id, offset } => {
                let builder = match &derived {
                    Some(derived) => derived.builder(id, offset)?,
                    None => {
                        is_history(followed, id)?;
                        SnapshotBuilder::new(offset, clock.unix())
                    }
                };
                let offset = builder.offset();
                if offset < floor {
                    return Err(SnapshotFailure::Behind {
                        address,
                        offset,
                        floor,
                    });
                }
                if let Some(told) = beside.take() {
                    behind = told.send(offset).is_ok().then_some(offset);
                }
                let begun = SnapshotSink::begin(
                    Arc::clone(&uploader),
                    Arc::clone(&encoder),
                    Arc::clone(&budget),
                    Arc::clone(&parting),
                    builder,
                    &*clock,
                );
                let mut begun = begun.await?;
                if let Some(derived) = &derived {
                    begun.require_database(derived.is.database);
                }
                sink = Some(begun);
            }
            Event::Payload(bytes) => {
                if let Some(sink) = &mut sink {
                    sink.write(bytes).await?;
                }
            }
            Event::PayloadEnds { .. } => {
                let sink = sink.ok_or_else(|| failed("a payload without an offset".into()))?;
                // Else an older master goes on feeding it while the store takes its time.
                drop(link);
                if let Some(offset) = behind
                    && !until_stored(&uploader, offset).await
                {
                    return Err(SnapshotFailure::NotStored(offset));
                }
                return sink.finish(&address, &*clock).await;
            }
            Event::Refused(refusal) => return Err(SnapshotFailure::Refused { address, refusal }),
            Event::Stream(_) | Event::Continued { .. } => {
                return Err(failed("it sent something else than a payload".into()));
            }
            Event::TimedOut { stage, silent_ms } => {
                return Err(failed(format!("{silent_ms} ms of silence while {stage}")));
            }
            Event::ProtocolError {
                stage,
                expected,
                found,
            } => {
                return Err(failed(format!(
                    "while {stage}: expected {expected}, found {found}"
                )));
            }
            Event::Closed { stage } => return Err(failed(format!("closed while {stage}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_that_fail_come_ever_more_slowly_up_to_a_bound() {
        let mut pace = SnapshotPace::default();
        assert_eq!(pace.not_before, Ticks(0), "the first one at once");
        let mut longest = 0;
        for attempt in 1..=12 {
            let (failed, wait) = pace.failed(Ticks(5_000));
            assert_eq!((failed, pace.not_before), (attempt, Ticks(5_000 + wait)));
            let full = 1000 * 2_u64.pow(attempt - 1).min(60);
            assert!(wait >= full / 2 && wait <= full, "{attempt}: {wait}");
            longest = longest.max(wait);
        }
        assert!(longest >= 30_000);
    }
}

#[cfg(test)]
mod parts_tests;
#[cfg(test)]
mod spool_tests;
