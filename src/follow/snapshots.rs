//! RDB payloads into the store: from the second connection, or from the link's own full resync on servers
//! that cannot do without.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::archive::block::{Boundary, RawBlock};
use crate::archive::snapshot::{SnapshotBuilder, SnapshotError};
use crate::clock::Clock;
use crate::follow::budget::{Budget, Reservation};
use crate::follow::encode::Encoder;
use crate::follow::link::Link;
use crate::follow::uploader::{EncodedBlock, Uploader, backoff, jittered};
use crate::position::{Offset, ReplicationId, Ticks};
use crate::proto::handshake::PsyncRequest;
use crate::proto::replica::{Event, Refusal, ReplicaOptions};
use crate::server::net::{Address, Endpoint};
use crate::store::{StoreError, Upload};

/// Blocks of one snapshot that are compressed ahead of the upload.
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

/// What an upload holds counts up to this part of the budget. More would let a snapshot stop the link that the
/// replication stream comes over, and on older servers the snapshot itself, which then never fills its part.
const UPLOAD_SHARE_OF_BUDGET: u64 = 4;

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
    /// The store failed.
    #[error("the snapshot could not be stored: {0}")]
    Store(#[from] StoreError),
}

/// A payload on its way into the store. Dropping it before [`SnapshotSink::finish`] leaves nothing behind.
pub struct SnapshotSink {
    builder: SnapshotBuilder,
    upload: Box<dyn Upload>,
    uploading: Reservation,
    encoding: VecDeque<EncodedBlock>,
    budget: Arc<Budget>,
    encoder: Arc<Encoder>,
    uploader: Arc<Uploader>,
    offset: Offset,
}

impl SnapshotSink {
    /// Begins the upload of a payload that stands at `offset`.
    ///
    /// # Errors
    /// What the store says.
    pub async fn begin(
        uploader: Arc<Uploader>,
        encoder: Arc<Encoder>,
        budget: Arc<Budget>,
        offset: Offset,
        clock: &dyn Clock,
    ) -> Result<Self, StoreError> {
        let builder = SnapshotBuilder::new(offset, clock.unix());
        let context = uploader.context();
        let name = builder.name(context.timeline, context.id);
        let upload = uploader.store().begin_upload(&name).await?;
        Ok(Self {
            builder,
            upload,
            uploading: budget.reserve(0),
            encoding: VecDeque::new(),
            budget,
            encoder,
            uploader,
            offset,
        })
    }

    /// Takes some of the payload; waits while the store is slower than the master.
    ///
    /// # Errors
    /// What the store says.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.builder.push(bytes);
        while let Some(block) = self.builder.take_ready() {
            self.encode(block);
            while self.encoding.len() > BLOCKS_AHEAD_MAX {
                self.write_one().await?;
            }
        }
        Ok(())
    }

    fn encode(&mut self, block: RawBlock) {
        let held: Reservation = self.budget.reserve(block.raw_bytes() as u64);
        let (encoder, context) = (Arc::clone(&self.encoder), self.uploader.context());
        let encoded: JoinHandle<_> =
            tokio::spawn(async move { encoder.encode(block, context, held).await });
        self.encoding.push_back(encoded);
    }

    async fn write_one(&mut self) -> Result<(), StoreError> {
        let Some(encoded) = self.encoding.pop_front() else {
            return Ok(());
        };
        let (bytes, held) = encoded
            .await
            .expect("compression neither panics nor is cancelled");
        let written = self.upload.write(bytes).await;
        let share = self.budget.bytes_max() / UPLOAD_SHARE_OF_BUDGET;
        self.uploading.resize(self.upload.held_bytes().min(share));
        drop(held);
        written
    }

    /// Checks the payload as a whole, completes the object and counts it as durable.
    ///
    /// # Errors
    /// A damaged payload, and what the store says: then nothing is left in the store.
    pub async fn finish(mut self, address: &str) -> Result<u64, SnapshotFailure> {
        let builder = std::mem::replace(
            &mut self.builder,
            SnapshotBuilder::new(Offset::ZERO, Default::default()),
        );
        let sealed = match builder.finish() {
            Ok(sealed) => sealed,
            Err(error) => {
                self.upload.abort().await;
                return Err(SnapshotFailure::Damaged {
                    address: address.into(),
                    error,
                });
            }
        };
        for block in sealed.blocks {
            self.encode(block);
        }
        while !self.encoding.is_empty() {
            self.write_one().await?;
        }
        self.upload.complete().await?;
        // A full resync makes the stream select its database itself, unless the payload says where it stands
        // (`repl-stream-db`, a snapshot from a replica: facts 2.3).
        let database = sealed.summary.head.stream_database;
        self.uploader.snapshot_complete(Boundary {
            offset: self.offset,
            database,
        });
        Ok(sealed.summary.bytes)
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
        offset: Offset,
        clock: Arc<dyn Clock>,
    ) -> (Self, JoinHandle<Result<(), SnapshotFailure>>) {
        // Whoever feeds looks at the budget before reading more: that is the bound of the queue.
        let (pieces, mut fed) = mpsc::unbounded_channel();
        let feed = Self {
            pieces,
            budget: Arc::clone(&budget),
        };
        let task = tokio::spawn(async move {
            let mut sink = SnapshotSink::begin(uploader, encoder, budget, offset, &*clock).await?;
            while let Some(piece) = fed.recv().await {
                match piece {
                    Fed::Bytes(bytes, _held) => sink.write(bytes).await?,
                    Fed::End => {
                        let bytes = sink.finish(&address).await?;
                        tracing::info!(%offset, bytes, "snapshot complete");
                        return Ok(());
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

/// Fetches a snapshot over a connection of its own. With `rdb-only 1` (6.2+) the master does not feed it the
/// replication stream, so a slow upload fills no output buffer; an older one does so until the payload has
/// been read (`protocol-facts` 2.2).
///
/// # Errors
/// [`SnapshotFailure`]; nothing is left in the store then.
pub async fn fetch(
    source: &Address,
    options: ReplicaOptions,
    uploader: Arc<Uploader>,
    encoder: Arc<Encoder>,
    budget: Arc<Budget>,
    clock: Arc<dyn Clock>,
) -> Result<(Offset, u64), SnapshotFailure> {
    let address = source.to_string();
    let failed = |reason: String| SnapshotFailure::Connection {
        address: source.to_string(),
        reason,
    };
    let options = ReplicaOptions {
        rdb_only: true,
        rdb_filter_only: None,
        psync: PsyncRequest::Full,
        ..options
    };
    let endpoint: &Endpoint = &source.endpoint;
    let mut link = Link::open(endpoint, |_| None, options, Arc::clone(&clock))
        .await
        .map_err(|error| failed(error.to_string()))?;
    let expected = uploader.context().id;
    let mut sink = None;
    loop {
        match link.next(true).await {
            Event::OptionRefused { .. } | Event::PayloadBegins { .. } => {}
            Event::FullResync { id, .. } if id != expected => {
                return Err(SnapshotFailure::OtherHistory {
                    expected,
                    found: id,
                });
            }
            Event::FullResync { offset, .. } => {
                let begun = SnapshotSink::begin(
                    Arc::clone(&uploader),
                    Arc::clone(&encoder),
                    Arc::clone(&budget),
                    offset,
                    &*clock,
                );
                sink = Some(begun.await?);
            }
            Event::Payload(bytes) => {
                if let Some(sink) = &mut sink {
                    sink.write(bytes).await?;
                }
            }
            Event::PayloadEnds { .. } => {
                let sink = sink.ok_or_else(|| failed("a payload without an offset".into()))?;
                let offset = sink.offset;
                // Else an older master goes on feeding it while the store takes its time.
                drop(link);
                return Ok((offset, sink.finish(&address).await?));
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
