//! A payload as it is received: cut into blocks, compressed, and handed to the [`Writer`] in a task of its own. Between the
//! two wait a few blocks in memory, and where there is a spool, as many as half of it holds: so a payload comes as fast as
//! its master sends it, and a store that is slow or silent for a while holds up nobody.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::writer::{Waiting, Writer};
use super::{BLOCKS_AHEAD_MAX, Parting, SnapshotFailure, Taken, WriteError};
use crate::archive::block::{Boundary, RawBlock};
use crate::archive::snapshot::SnapshotBuilder;
use crate::clock::Clock;
use crate::follow::budget::{Budget, Reservation};
use crate::follow::encode::Encoder;
use crate::follow::spool::Share;
use crate::follow::uploader::{EncodedBlock, Uploader};
use crate::position::{Offset, Ticks, UnixMillis};
use crate::store::StoreError;

/// A payload on its way into the store. Dropping it before [`SnapshotSink::finish`] leaves nothing behind that is a
/// snapshot: nothing at all of one object, of several the parts that were full, without the one that ends them.
pub struct SnapshotSink {
    builder: SnapshotBuilder,
    blocks: mpsc::UnboundedSender<Waiting>,
    /// Room for blocks in memory.
    ahead: Arc<Semaphore>,
    writing: Writing,
    in_parts: bool,
    budget: Arc<Budget>,
    encoder: Arc<Encoder>,
    uploader: Arc<Uploader>,
    offset: Offset,
    began: Ticks,
    at: UnixMillis,
    required: Option<Required>,
}

/// The payload must say in which database the replication stream goes on: in this one, where that is known.
#[derive(Clone, Copy)]
struct Required(Option<u32>);

impl Required {
    fn check(self, found: Option<u32>) -> Result<(), SnapshotFailure> {
        let Self(expected) = self;
        if found.is_some() && (expected.is_none() || expected == found) {
            return Ok(());
        }
        Err(SnapshotFailure::Database { expected, found })
    }
}

/// The task of the writer: it ends with its owner, and the upload with it.
struct Writing(JoinHandle<Result<Writer, WriteError>>);

impl Writing {
    async fn ended(&mut self) -> Result<Writer, WriteError> {
        (&mut self.0)
            .await
            .expect("writing neither panics nor is cancelled before its owner is gone")
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl SnapshotSink {
    /// Begins the upload of a payload of which `builder` knows where it stands.
    ///
    /// # Errors
    /// What the store says.
    pub async fn begin(
        uploader: Arc<Uploader>,
        encoder: Arc<Encoder>,
        budget: Arc<Budget>,
        parting: Arc<Parting>,
        builder: SnapshotBuilder,
        clock: &dyn Clock,
    ) -> Result<Self, StoreError> {
        let began = clock.ticks();
        let (offset, at) = (builder.offset(), builder.at());
        let writer = Writer::begin(&builder, Arc::clone(&uploader), parting).await?;
        let in_parts = writer.in_parts();
        let (blocks, waiting) = mpsc::unbounded_channel();
        Ok(Self {
            builder,
            blocks,
            ahead: Arc::new(Semaphore::new(BLOCKS_AHEAD_MAX)),
            writing: Writing(tokio::spawn(writer.write_all(waiting))),
            in_parts,
            budget,
            encoder,
            uploader,
            offset,
            began,
            at,
            required: None,
        })
    }

    /// The payload must say in which database the replication stream goes on, and not another one than this.
    pub fn require_database(&mut self, database: Option<u32>) {
        self.required = Some(Required(database));
    }

    /// Takes some of the payload; waits while neither memory nor the spool has room for it.
    ///
    /// # Errors
    /// What the store says; or the snapshot is too large; or what waited cannot be read back.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), WriteError> {
        self.builder.push(bytes);
        while let Some(block) = self.builder.take_ready() {
            self.hand_over(block).await?;
        }
        Ok(())
    }

    async fn hand_over(&mut self, block: RawBlock) -> Result<(), WriteError> {
        let encoded = self.encode(block);
        let waiting = self.place_for(encoded).await?;
        match self.blocks.send(waiting) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.failure().await),
        }
    }

    fn encode(&self, block: RawBlock) -> EncodedBlock {
        let held: Reservation = self.budget.reserve(block.raw_bytes() as u64);
        let (encoder, context) = (Arc::clone(&self.encoder), self.uploader.context());
        tokio::spawn(async move { encoder.encode(block, context, held).await })
    }

    /// In memory where there is room, else in the spool, else in whichever has room first.
    async fn place_for(&mut self, encoded: EncodedBlock) -> Result<Waiting, WriteError> {
        if let Ok(ahead) = Arc::clone(&self.ahead).try_acquire_owned() {
            return Ok(Waiting::Memory(encoded, ahead));
        }
        let spool = self.uploader.shared().spool.clone();
        let (mut bytes, held) = encoded
            .await
            .expect("compression neither panics nor is cancelled");
        loop {
            // Asked for before the spool is tried: what is freed in between counts.
            let freed = spool.as_ref().map(|spool| spool.freed());
            if let Some(spool) = &spool {
                bytes = match spool.put(vec![bytes], Share::Half).await {
                    Ok(spooled) => return Ok(Waiting::Spooled(spooled)),
                    Err(parts) => parts.concat().into(),
                };
            }
            let ahead = Arc::clone(&self.ahead).acquire_owned();
            tokio::select! {
                ahead = ahead => {
                    let ahead = ahead.expect("the semaphore is never closed");
                    let encoded = tokio::spawn(async move { (bytes, held) });
                    return Ok(Waiting::Memory(encoded, ahead));
                }
                Some(()) = async { freed?.await; Some(()) } => {}
                ended = self.writing.ended() => return Err(early(ended)),
            }
        }
    }

    /// Why the writer ended before its time.
    async fn failure(&mut self) -> WriteError {
        early(self.writing.ended().await)
    }

    /// Checks the payload as a whole, completes the object and counts it as durable.
    ///
    /// # Errors
    /// A damaged payload, and what the store says: then nothing is left in the store.
    pub async fn finish(
        mut self,
        address: &str,
        clock: &dyn Clock,
    ) -> Result<Taken, SnapshotFailure> {
        let builder = std::mem::replace(
            &mut self.builder,
            SnapshotBuilder::new(Offset::ZERO, Default::default()),
        );
        let sealed = builder.finish().map_err(|error| SnapshotFailure::Damaged {
            address: address.into(),
            error,
        })?;
        // A full resync makes the stream select its database itself, unless the payload says where it stands
        // (`repl-stream-db`, a snapshot from a replica: facts 2.3).
        let database = sealed.summary.head.stream_database;
        if let Some(required) = self.required {
            required.check(database)?;
        }
        let mut blocks = sealed.blocks;
        let end = if self.in_parts { blocks.pop() } else { None };
        for block in blocks {
            self.hand_over(block).await?;
        }
        // No more comes: the writer ends.
        let (closed, _) = mpsc::unbounded_channel();
        drop(std::mem::replace(&mut self.blocks, closed));
        let writer = self.writing.ended().await?;
        writer.complete(end, &self.encoder).await?;
        self.uploader.snapshot_complete(Boundary {
            offset: self.offset,
            database,
        });
        Ok(Taken {
            offset: self.offset,
            bytes: sealed.summary.bytes,
            at: self.at,
            millis: clock.ticks().since(self.began),
        })
    }
}

/// A writer ends early only by an error.
fn early(ended: Result<Writer, WriteError>) -> WriteError {
    match ended {
        Err(error) => error,
        Ok(_) => unreachable!("the queue is open as long as its owner writes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_that_goes_on_in_another_database_is_not_used() {
        let check = |expected, found| Required(expected).check(found).is_ok();
        assert!(check(Some(3), Some(3)));
        assert!(check(None, Some(3)), "the archive need not know");
        assert!(!check(Some(3), Some(0)));
        assert!(!check(Some(0), None), "the payload must");
    }
}
