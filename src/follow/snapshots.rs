//! RDB payloads into the store: from the second connection, or from the link's own full resync on servers
//! that cannot do without.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::archive::block::{Boundary, RawBlock};
use crate::archive::snapshot::{SnapshotBuilder, SnapshotError};
use crate::clock::Clock;
use crate::follow::budget::{Budget, Reservation};
use crate::follow::encode::Encoder;
use crate::follow::link::Link;
use crate::follow::uploader::{EncodedBlock, Uploader};
use crate::position::{Offset, ReplicationId};
use crate::proto::handshake::PsyncRequest;
use crate::proto::replica::{Event, Refusal, ReplicaOptions};
use crate::server::net::{Address, Endpoint};
use crate::store::{StoreError, Upload};

/// Blocks of one snapshot that are compressed ahead of the upload.
pub const BLOCKS_AHEAD_MAX: usize = 2;

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

/// Fetches a snapshot over a connection of its own (`rdb-only 1`, 7.0+): the master does not feed it the
/// replication stream, so a slow upload fills no output buffer.
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
            Event::OptionRefused {
                option: "rdb-only",
                reply,
            } => {
                return Err(failed(format!("it does not know rdb-only: {reply}")));
            }
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
