//! The end of a snapshot's way that touches the store: one object, or numbered parts.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{Parting, TooLarge, WriteError};
use crate::archive::block::RawBlock;
use crate::archive::layout::Object;
use crate::archive::snapshot::SnapshotBuilder;
use crate::follow::budget::Reservation;
use crate::follow::encode::Encoder;
use crate::follow::spool::Spooled;
use crate::follow::uploader::{EncodedBlock, Uploader};
use crate::store::{Created, StoreError, StoreErrorKind, Upload, create_or_same};

/// What an upload holds counts up to this part of the budget. More would let a snapshot stop the link that the
/// replication stream comes over, and on older servers the snapshot itself, which then never fills its part.
const UPLOAD_SHARE_OF_BUDGET: u64 = 4;

/// A block whose turn to be uploaded has not come.
pub(super) enum Waiting {
    /// In memory, as one of a few.
    Memory(EncodedBlock, OwnedSemaphorePermit),
    /// In a scratch file.
    Spooled(Spooled),
}

/// Writes blocks in order.
pub(super) struct Writer {
    upload: Box<dyn Upload>,
    /// The part that is being written, where there are several.
    part: Option<Object>,
    object_bytes: u64,
    parting: Arc<Parting>,
    uploading: Reservation,
    uploader: Arc<Uploader>,
}

impl Writer {
    /// Begins the object, or the first part.
    pub(super) async fn begin(
        builder: &SnapshotBuilder,
        uploader: Arc<Uploader>,
        parting: Arc<Parting>,
    ) -> Result<Self, StoreError> {
        let context = uploader.context();
        let first_part = builder.first_part(context.timeline, context.id);
        let part = parting.in_parts().then_some(first_part);
        let name = part.map_or_else(
            || builder.name(context.timeline, context.id),
            |part| part.name(),
        );
        let upload = uploader.store().begin_upload(&name).await?;
        Ok(Self {
            upload,
            part,
            object_bytes: 0,
            parting,
            uploading: uploader.shared().budget.reserve(0),
            uploader,
        })
    }

    /// Whether the snapshot is stored in parts.
    pub(super) fn in_parts(&self) -> bool {
        self.part.is_some()
    }

    /// Writes what comes until no more does, and gives itself back to be completed.
    pub(super) async fn write_all(
        mut self,
        mut blocks: mpsc::UnboundedReceiver<Waiting>,
    ) -> Result<Self, WriteError> {
        while let Some(waiting) = blocks.recv().await {
            match waiting {
                Waiting::Memory(encoded, _ahead) => {
                    let (bytes, held) = encoded
                        .await
                        .expect("compression neither panics nor is cancelled");
                    self.write(bytes, held).await?;
                }
                Waiting::Spooled(spooled) => {
                    let held = self.uploader.shared().budget.reserve(spooled.bytes());
                    self.write(spooled.take().await?, held).await?;
                }
            }
        }
        Ok(self)
    }

    async fn write(&mut self, bytes: Bytes, held: Reservation) -> Result<(), WriteError> {
        let length = bytes.len() as u64;
        if self.object_bytes > 0 && self.object_bytes + length > self.parting.part_bytes_max {
            self.next_part().await?;
        }
        self.object_bytes += length;
        let written = self.upload.write(bytes).await;
        let share = self.uploader.shared().budget.bytes_max() / UPLOAD_SHARE_OF_BUDGET;
        self.uploading.resize(self.upload.held_bytes().min(share));
        drop(held);
        Ok(written?)
    }

    /// Completes the part that is full and begins another one.
    async fn next_part(&mut self) -> Result<(), WriteError> {
        let bytes_max = self.parting.part_bytes_max;
        let Some(part) = self.part else {
            self.parting.overflowed.store(true, Ordering::Relaxed);
            return Err(TooLarge::ForOneObject(bytes_max).into());
        };
        let too_large = || TooLarge::ForAllParts(bytes_max);
        let next = part.part_behind(false).ok_or_else(too_large)?;
        // A number must be left for the end.
        next.part_behind(true).ok_or_else(too_large)?;
        let upload = self.uploader.store().begin_upload(&next.name()).await?;
        let full = std::mem::replace(&mut self.upload, upload);
        complete_part(full, part, &self.uploader).await?;
        self.part = Some(next);
        self.object_bytes = 0;
        tracing::info!(part = %part.name(), "a part of the snapshot is stored");
        Ok(())
    }

    /// Makes the snapshot appear. Of parts, `end` is the last, whose name makes a snapshot of them.
    pub(super) async fn complete(
        self,
        end: Option<RawBlock>,
        encoder: &Arc<Encoder>,
    ) -> Result<(), WriteError> {
        let Some((part, end)) = self.part.zip(end) else {
            self.upload.complete().await?;
            return Ok(());
        };
        complete_part(self.upload, part, &self.uploader).await?;
        let last = part
            .part_behind(true)
            .ok_or(TooLarge::ForAllParts(self.parting.part_bytes_max))?;
        let held = self
            .uploader
            .shared()
            .budget
            .reserve(end.raw_bytes() as u64);
        let (bytes, _held) = encoder.encode(end, self.uploader.context(), held).await;
        create_or_same(&**self.uploader.store(), &last.name(), vec![bytes]).await?;
        Ok(())
    }
}

/// Two payloads taken at one offset need not be equal byte for byte, so their parts must never be mixed.
async fn complete_part(
    upload: Box<dyn Upload>,
    part: Object,
    uploader: &Uploader,
) -> Result<(), StoreError> {
    match upload.complete().await? {
        Created::New => Ok(()),
        Created::AlreadyPresent => Err(StoreError::new(
            StoreErrorKind::Conflict,
            "create",
            &part.name(),
            uploader.store().address(),
            "an object of that name is there, perhaps of another snapshot: this one is given up"
                .into(),
        )),
    }
}
