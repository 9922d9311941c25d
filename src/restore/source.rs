//! A plan's bytes, in order and checked: the RDB payload, then the replication stream behind it. Every block
//! is verified; what the plan promised and the store does not hold is an error, never a shorter restore.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::archive::block::{Block, Content, decode_header};
use crate::archive::layout::{ArchiveId, Object, ObjectName};
use crate::archive::plan::{Leg, Plan};
use crate::archive::segment::{SegmentError, SegmentReader};
use crate::archive::snapshot::{SnapshotReadError, SnapshotReader};
use crate::position::Offset;
use crate::proto::resp::{CommandCursor, Malformed};
use crate::store::{Store, StoreError};

/// Bytes of an object read at once.
const READ_BYTES: u64 = 4 * 1024 * 1024;
/// Pieces read ahead of whoever takes them.
const PIECES_AHEAD_MAX: usize = 2;
/// The end block of a snapshot lies within this many last bytes of its object.
const END_BLOCK_BYTES_MAX: u64 = 256 * 1024;

/// Why an archive cannot be restored from.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A segment is damaged.
    #[error("{name}: {error}")]
    Segment {
        /// The object.
        name: ObjectName,
        /// What is wrong.
        error: Box<SegmentError>,
    },
    /// A snapshot is damaged.
    #[error("{name}: {error}")]
    Snapshot {
        /// The object.
        name: ObjectName,
        /// What is wrong.
        error: Box<SnapshotReadError>,
    },
    /// A snapshot's end block is not where it should be.
    #[error("{name} has no end block: the object is cut short or damaged")]
    NoEnd {
        /// The object.
        name: ObjectName,
    },
    /// A name that is not what the plan took it for.
    #[error("{name} is not the name of a {kind}")]
    WrongKind {
        /// The object.
        name: ObjectName,
        /// What was expected.
        kind: &'static str,
    },
    /// Two segments do not touch.
    #[error("a hole in timeline {timeline}: {name} begins behind offset {expected}")]
    Hole {
        /// The timeline's number.
        timeline: crate::position::TimelineSeq,
        /// The segment behind the hole.
        name: ObjectName,
        /// Where it had to begin at the latest.
        expected: Offset,
    },
    /// The plan promised more than its segments hold.
    #[error("the replication stream ends at offset {found}, not at {expected}")]
    Short {
        /// The end that was planned.
        expected: Offset,
        /// The end that was found.
        found: Offset,
    },
    /// What is stored is no replication stream.
    #[error("the archived replication stream is malformed: {0}")]
    Malformed(#[from] Malformed),
    /// The end is not between two commands.
    #[error(
        "the restore would end inside a command or transaction at offset {offset}; the last whole one ends at {boundary}"
    )]
    NotABoundary {
        /// The end that was asked for.
        offset: Offset,
        /// The last boundary before it.
        boundary: Offset,
    },
}

/// Checked bytes that are read ahead by a task of their own.
#[derive(Debug)]
pub struct Checked {
    pieces: mpsc::Receiver<Result<Bytes, SourceError>>,
    task: JoinHandle<()>,
}

impl Checked {
    /// The next bytes; `None` at the end, which is reached only when everything was there and right.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        self.pieces.recv().await.transpose()
    }

    fn spawn<F, Fut>(read: F) -> Self
    where
        F: FnOnce(mpsc::Sender<Result<Bytes, SourceError>>) -> Fut,
        Fut: Future<Output = Result<(), SourceError>> + Send + 'static,
    {
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD_MAX);
        let reading = read(sender.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = reading.await {
                let _ = sender.send(Err(error)).await;
            }
        });
        Self { pieces, task }
    }
}

impl Drop for Checked {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends, or says that nobody takes any more.
async fn give(sender: &mpsc::Sender<Result<Bytes, SourceError>>, bytes: Bytes) -> bool {
    bytes.is_empty() || sender.send(Ok(bytes)).await.is_ok()
}

/// The plan's RDB payload.
pub fn payload(store: Arc<dyn Store>, archive: ArchiveId, plan: &Plan) -> Checked {
    let name = plan.snapshot.name.clone();
    Checked::spawn(move |sender| async move {
        let damaged = |error| SourceError::Snapshot {
            name: name.clone(),
            error: Box::new(error),
        };
        let object = Object::parse(name.as_str()).ok_or_else(|| SourceError::WrongKind {
            name: name.clone(),
            kind: "snapshot",
        })?;
        let mut reader = SnapshotReader::new(&object)
            .map_err(damaged)?
            .in_archive(archive);
        let mut at = 0;
        loop {
            let bytes = store.read(&name, Some(at..at + READ_BYTES)).await?;
            if bytes.is_empty() {
                break;
            }
            at += bytes.len() as u64;
            reader.push(bytes);
            while let Some(bytes) = reader.next().map_err(damaged)? {
                if !give(&sender, bytes).await {
                    return Ok(());
                }
            }
        }
        reader.finish().map(drop).map_err(damaged)
    })
}

/// The length of the plan's RDB payload, from the end block.
///
/// # Errors
/// [`SourceError`].
pub async fn payload_bytes(store: &dyn Store, plan: &Plan) -> Result<u64, SourceError> {
    let name = &plan.snapshot.name;
    let from = plan.snapshot.bytes.saturating_sub(END_BLOCK_BYTES_MAX);
    let tail = store.read(name, Some(from..plan.snapshot.bytes)).await?;
    // Headers bear a checksum of their own, so what decodes as one is one.
    (0..tail.len())
        .rev()
        .find_map(|at| match decode_header(&tail[at..], from + at as u64) {
            Ok(Some((header, _))) => match header.content {
                Content::End { bytes } => Some(bytes),
                Content::Rdb { .. } | Content::Commands { .. } => None,
            },
            _ => None,
        })
        .ok_or_else(|| SourceError::NoEnd { name: name.clone() })
}

/// The plan's replication stream, cut at its target, which must be a command boundary.
pub fn stream(store: Arc<dyn Store>, archive: ArchiveId, plan: &Plan) -> Checked {
    let (legs, target) = (plan.legs.clone(), plan.target.offset);
    let start = legs.first().map_or(target, |leg| leg.after);
    Checked::spawn(move |sender| async move {
        // Offsets may begin anew from leg to leg; the commands go on.
        let mut cursor = CommandCursor::new(start, None);
        for leg in &legs {
            read_leg(&*store, archive, leg, &mut cursor, &sender).await?;
        }
        if cursor.at_boundary() {
            return Ok(());
        }
        Err(SourceError::NotABoundary {
            offset: target,
            boundary: cursor.boundary().offset,
        })
    })
}

async fn read_leg(
    store: &dyn Store,
    archive: ArchiveId,
    leg: &Leg,
    cursor: &mut CommandCursor,
    sender: &mpsc::Sender<Result<Bytes, SourceError>>,
) -> Result<(), SourceError> {
    let mut reached = leg.after;
    for segment in &leg.segments {
        let name = &segment.name;
        let damaged = |error| SourceError::Segment {
            name: name.clone(),
            error: Box::new(error),
        };
        if segment.span.first > reached.next() {
            return Err(SourceError::Hole {
                timeline: leg.timeline,
                name: name.clone(),
                expected: reached.next(),
            });
        }
        let object = Object::parse(name.as_str()).ok_or_else(|| SourceError::WrongKind {
            name: name.clone(),
            kind: "segment",
        })?;
        let mut reader = SegmentReader::new(&object)
            .map_err(damaged)?
            .in_archive(archive);
        let mut at = 0;
        loop {
            let bytes = store.read(name, Some(at..at + READ_BYTES)).await?;
            if bytes.is_empty() {
                break;
            }
            at += bytes.len() as u64;
            reader.push(bytes);
            while let Some(block) = reader.next().map_err(damaged)? {
                let bytes = cut(block, reached, leg.to);
                reached = reached.plus(bytes.len() as u64);
                cursor.feed(&bytes)?;
                if !give(sender, bytes).await {
                    return Ok(());
                }
            }
        }
        reader.finish().map_err(damaged)?;
    }
    if reached != leg.to {
        return Err(SourceError::Short {
            expected: leg.to,
            found: reached,
        });
    }
    Ok(())
}

/// The part of a block that lies in `(reached, to]`: neighbours overlap byte for byte.
fn cut(block: Block, reached: Offset, to: Offset) -> Bytes {
    let Content::Commands { first, last } = block.header.content else {
        return Bytes::new();
    };
    let mut bytes = block.payload;
    let skip = usize::try_from(reached.next().bytes_since(first)).unwrap_or(usize::MAX);
    let drop = usize::try_from(last.bytes_since(to)).unwrap_or(usize::MAX);
    bytes.truncate(bytes.len().saturating_sub(drop));
    if skip >= bytes.len() {
        return Bytes::new();
    }
    bytes.split_off(skip)
}
