//! Makes several segments one, and finds out whether segments agree, in bounded memory: blocks go on as they are
//! stored, and wherever segments overlap their bytes are compared.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};

use super::blocks::{Blocks, Verbatim};
use crate::archive::block::{Compressor, Content};
use crate::archive::cut;
use crate::archive::layout::{ArchiveId, ObjectName};
use crate::archive::retention::Merge;
use crate::archive::segment::SegmentError;
use crate::archive::timeline::SegmentEntry;
use crate::position::Offset;
use crate::store::{Store, StoreError, Upload};

/// A merged segment up to this length, in bytes, is gathered in memory and created with one request.
const CREATE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Segments whose reading begins before it is their turn: a store answers each request late.
const READ_AHEAD_MAX: usize = 8;
/// Only those up to this length, in bytes, so that they are bounded in memory.
const READ_AHEAD_BYTES_MAX: u64 = 256 * 1024;

/// Why segments are not made one.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The store failed; it may work the next time.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A segment is not what its name says.
    #[error("{name} is damaged: {error}")]
    Damaged {
        /// The object.
        name: ObjectName,
        /// What is wrong.
        error: Box<SegmentError>,
    },
    /// Two segments say different things about the same bytes.
    #[error("{left} and {right} differ behind offset {behind}: two histories under one name")]
    Differ {
        /// One of them.
        left: ObjectName,
        /// The other.
        right: ObjectName,
        /// They may agree up to here.
        behind: Offset,
    },
    /// What was written is not what is read.
    #[error("{name} reads back with other bytes than it was made of")]
    ReadBack {
        /// The object.
        name: ObjectName,
    },
}

impl JoinError {
    pub(super) fn damaged(entry: &SegmentEntry, error: SegmentError) -> Self {
        Self::Damaged {
            name: entry.name.clone(),
            error: Box::new(error),
        }
    }

    /// The objects that nothing more is done with until a person has looked.
    pub fn suspects(&self) -> Vec<ObjectName> {
        match self {
            Self::Store(_) => Vec::new(),
            Self::Damaged { name, .. } | Self::ReadBack { name } => vec![name.clone()],
            Self::Differ { left, right, .. } => vec![left.clone(), right.clone()],
        }
    }
}

/// Makes the merged segment, and reads it back.
///
/// # Errors
/// [`JoinError`]; whatever became of the new segment, the old ones are as they were.
pub(super) async fn merge(
    store: &Arc<dyn Store>,
    archive: ArchiveId,
    merge: &Merge,
) -> Result<(), JoinError> {
    let name = merge.object().name();
    let written = write(store, archive, merge, &name).await?;
    let entry = SegmentEntry {
        name,
        span: merge.span,
        bytes: merge.bytes(),
    };
    // Another Perennial may have been first, with its blocks cut elsewhere: what counts is what they hold.
    let read = compare(store, archive, &entry, &[]).await?;
    if read == written {
        return Ok(());
    }
    Err(JoinError::ReadBack { name: entry.name })
}

async fn write(
    store: &Arc<dyn Store>,
    archive: ArchiveId,
    merge: &Merge,
    name: &ObjectName,
) -> Result<u64, JoinError> {
    let mut walk = Walk::new(store, archive, &merge.inputs)?;
    if merge.bytes() <= CREATE_BYTES_MAX {
        walk.sink = Sink::Gathered(Vec::new());
        walk.along(&merge.chain).await?;
        if let Sink::Gathered(blocks) = walk.sink {
            store.create(name, blocks).await?;
        }
        return Ok(walk.digest.finalize());
    }
    walk.sink = Sink::Upload(store.begin_upload(name).await?);
    let walked = walk.along(&merge.chain).await;
    let Sink::Upload(upload) = walk.sink else {
        return Ok(walk.digest.finalize());
    };
    if let Err(error) = walked {
        upload.abort().await;
        return Err(error);
    }
    upload.complete().await?;
    Ok(walk.digest.finalize())
}

/// Reads a segment and everything in `covered`, and compares; yields a checksum over the bytes of the first.
///
/// # Errors
/// [`JoinError`].
pub(super) async fn compare(
    store: &Arc<dyn Store>,
    archive: ArchiveId,
    by: &SegmentEntry,
    covered: &[SegmentEntry],
) -> Result<u64, JoinError> {
    let mut inputs = vec![by.clone()];
    inputs.extend_from_slice(covered);
    let mut walk = Walk::new(store, archive, &inputs)?;
    walk.along(std::slice::from_ref(by)).await?;
    Ok(walk.digest.finalize())
}

/// Where the bytes go.
enum Sink {
    Nowhere,
    Gathered(Vec<Bytes>),
    Upload(Box<dyn Upload>),
}

impl Sink {
    async fn take(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        match self {
            Self::Nowhere => Ok(()),
            Self::Gathered(blocks) => {
                blocks.push(bytes);
                Ok(())
            }
            Self::Upload(upload) => upload.write(bytes).await,
        }
    }
}

/// Walks along a chain of segments; those beside it are read at the same time and have to agree.
struct Walk {
    /// Those whose first byte was not reached.
    waiting: VecDeque<Blocks>,
    /// Those that the walk is inside of.
    beside: Vec<Blocks>,
    sink: Sink,
    digest: Digest,
    compressor: Option<Compressor>,
    reached: Offset,
    /// The database selected behind what was reached.
    database: Option<u32>,
}

impl Walk {
    /// `inputs` come by first byte, as the chain does, which is among them.
    fn new(
        store: &Arc<dyn Store>,
        archive: ArchiveId,
        inputs: &[SegmentEntry],
    ) -> Result<Self, JoinError> {
        let waiting: Result<VecDeque<Blocks>, JoinError> = inputs
            .iter()
            .map(|input| Blocks::new(store, archive, input))
            .collect();
        Ok(Self {
            waiting: waiting?,
            beside: Vec::new(),
            sink: Sink::Nowhere,
            digest: Digest::new(CrcAlgorithm::Crc64Nvme),
            compressor: None,
            reached: inputs
                .first()
                .map_or(Offset::ZERO, |input| input.span.first.previous()),
            database: None,
        })
    }

    async fn along(&mut self, chain: &[SegmentEntry]) -> Result<(), JoinError> {
        for step in chain {
            let Some(mut leader) = self.take(&step.name) else {
                continue;
            };
            while let Some(verbatim) = leader.next().await? {
                self.step(&leader.entry.name, verbatim).await?;
                tokio::task::yield_now().await;
            }
        }
        // Each ends where its name says, and not with half a block.
        for beside in &mut self.beside {
            while beside.next().await?.is_some() {}
        }
        Ok(())
    }

    fn take(&mut self, name: &ObjectName) -> Option<Blocks> {
        let is_it = |blocks: &Blocks| blocks.entry.name == *name;
        if let Some(at) = self.beside.iter().position(is_it) {
            return Some(self.beside.swap_remove(at));
        }
        let at = self.waiting.iter().position(is_it)?;
        self.waiting.remove(at)
    }

    /// One block of the segment `leader`, or what is left of it behind what was reached.
    async fn step(&mut self, leader: &ObjectName, verbatim: Verbatim) -> Result<(), JoinError> {
        let header = verbatim.block.header;
        let Content::Commands { first, last } = header.content else {
            return Ok(());
        };
        if last <= self.reached {
            return Ok(());
        }
        let payload = verbatim.block.payload.clone();
        self.compare(leader, first, last, &payload).await?;
        let skip = usize::try_from(self.reached.next().bytes_since(first)).unwrap_or(usize::MAX);
        self.digest.update(payload.get(skip..).unwrap_or_default());
        let bytes = if skip == 0 {
            verbatim.stored
        } else {
            self.cut(verbatim)
        };
        self.sink.take(bytes).await?;
        self.reached = last;
        self.database = header.database_end;
        Ok(())
    }

    fn cut(&mut self, verbatim: Verbatim) -> Bytes {
        let context = verbatim.block.header.context;
        let compressor = self.compressor.get_or_insert_with(Compressor::new);
        cut::behind(verbatim.block, self.reached, self.database)
            .map(|block| block.encode(&context, compressor))
            .unwrap_or_default()
    }

    /// Begins to read those that come next, a few at a time.
    fn read_ahead(&mut self) {
        let all = self.beside.iter().chain(&self.waiting);
        let ahead = all.filter(|blocks| blocks.is_ahead()).count();
        let next = self.beside.iter_mut().chain(&mut self.waiting);
        next.filter(|blocks| blocks.entry.bytes <= READ_AHEAD_BYTES_MAX && blocks.is_unread())
            .take(READ_AHEAD_MAX.saturating_sub(ahead))
            .for_each(Blocks::read_ahead);
    }

    /// Compares these bytes, whose first one has offset `first`, with what lies beside them.
    async fn compare(
        &mut self,
        leader: &ObjectName,
        first: Offset,
        last: Offset,
        payload: &Bytes,
    ) -> Result<(), JoinError> {
        while let Some(blocks) = self
            .waiting
            .pop_front_if(|blocks| blocks.entry.span.first <= last)
        {
            self.beside.push(blocks);
        }
        self.read_ahead();
        for at in 0..self.beside.len() {
            if let Some(blocks) = self.beside.get_mut(at) {
                agree(leader, first, last, payload, blocks).await?;
            }
            self.read_ahead();
        }
        self.beside
            .retain(|blocks| blocks.reached < blocks.entry.span.last);
        Ok(())
    }
}

/// Compares what one segment says of these bytes, as far as it reaches.
async fn agree(
    leader: &ObjectName,
    first: Offset,
    last: Offset,
    payload: &Bytes,
    blocks: &mut Blocks,
) -> Result<(), JoinError> {
    let end = last.min(blocks.entry.span.last);
    while blocks.reached < end {
        let Some(theirs) = blocks.next().await? else {
            break;
        };
        let Content::Commands {
            first: begin,
            last: stop,
        } = theirs.block.header.content
        else {
            break;
        };
        let (from, to) = (blocks.reached.next(), stop.min(last));
        let ours = part(payload, first, from, to);
        if ours.is_none() || ours != part(&theirs.block.payload, begin, from, to) {
            return Err(JoinError::Differ {
                left: leader.clone(),
                right: blocks.entry.name.clone(),
                behind: blocks.reached,
            });
        }
        blocks.reached = to;
        blocks.current = (stop > to).then_some(theirs);
    }
    if blocks.reached == blocks.entry.span.last {
        // It ends where its name says.
        while blocks.next().await?.is_some() {}
    }
    Ok(())
}

/// Bytes `from..=to` of a payload that begins at `first`.
fn part(payload: &Bytes, first: Offset, from: Offset, to: Offset) -> Option<&[u8]> {
    let begin = usize::try_from(from.as_u64().checked_sub(first.as_u64())?).ok()?;
    let end = usize::try_from(to.next().as_u64().checked_sub(first.as_u64())?).ok()?;
    payload.get(begin..end)
}
