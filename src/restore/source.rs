//! A plan's bytes, in order and checked: the RDB payload, then the replication stream behind it. Every block
//! is verified; what the plan promised and the store does not hold is an error, never a shorter restore.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::ahead::{self, ReadAhead};
use super::rewrite::{Rewriter, Tally};
use crate::archive::block::{Block, Content};
use crate::archive::layout::{ArchiveId, Object, ObjectName, merged_prefix, segments_prefix};
use crate::archive::plan::{Leg, Plan, Rewriting};
use crate::archive::segment::{SegmentError, SegmentReader};
use crate::archive::snapshot::{
    END_BLOCK_BYTES_MAX, SnapshotReadError, SnapshotReader, payload_bytes_in,
};
use crate::archive::timeline::SegmentEntry;
use crate::archive::times::Times;
use crate::position::{Offset, UnixMillis};
use crate::proto::resp::{CommandCursor, Malformed};
use crate::store::{Store, StoreError, StoreErrorKind};

/// Pieces read ahead of whoever takes them.
const PIECES_AHEAD_MAX: usize = 2;
/// So often in a row, without a byte in between, the list of segments is read again because one of them is gone.
const LISTED_AGAIN_MAX: u32 = 3;

/// Which bytes of the replication stream are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spelling {
    /// As they were archived.
    Archived,
    /// As a later replay needs them: the same, where nothing has to be rewritten.
    Rewritten,
}

/// Why an archive cannot be restored from.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object is gone that was there when the restore was planned.
    #[error("{error}")]
    Gone {
        /// The object.
        name: ObjectName,
        /// What the store said.
        error: Box<StoreError>,
    },
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

impl SourceError {
    /// Of a read of this object.
    pub(super) fn of_read(name: &ObjectName, error: StoreError) -> Self {
        if error.kind != StoreErrorKind::NotFound {
            return Self::Store(error);
        }
        Self::Gone {
            name: name.clone(),
            error: Box::new(error),
        }
    }

    /// Whether an object is gone that was there when the restore was planned: planned again, it may well succeed.
    pub const fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. })
    }

    /// The object that cannot be used, however often it is read: damaged, or gone. Nothing where the store does not answer,
    /// and where no single object is at fault.
    pub fn unusable(&self) -> Option<Unusable> {
        match self {
            Self::Gone { name, .. }
            | Self::Segment { name, .. }
            | Self::Snapshot { name, .. }
            | Self::NoEnd { name } => Some(Unusable {
                name: name.clone(),
                why: self.to_string(),
            }),
            Self::Store(_)
            | Self::WrongKind { .. }
            | Self::Hole { .. }
            | Self::Short { .. }
            | Self::Malformed(_)
            | Self::NotABoundary { .. } => None,
        }
    }
}

/// An object that cannot be restored from.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{why}")]
pub struct Unusable {
    /// Its name; of a snapshot in parts, that of one of them.
    pub name: ObjectName,
    /// What is wrong with it, and its name.
    pub why: String,
}

/// Checked bytes that are read ahead by a task of their own.
#[derive(Debug)]
pub struct Checked {
    pieces: mpsc::Receiver<Result<Bytes, SourceError>>,
    tally: watch::Receiver<Tally>,
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

    /// What was rewritten in the bytes read so far; of all of them once [`next`](Self::next) has given `None`.
    pub fn tally(&self) -> Tally {
        *self.tally.borrow()
    }

    fn spawn<F, Fut>(read: F) -> Self
    where
        F: FnOnce(mpsc::Sender<Result<Bytes, SourceError>>, watch::Sender<Tally>) -> Fut,
        Fut: Future<Output = Result<(), SourceError>> + Send + 'static,
    {
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD_MAX);
        let (told, tally) = watch::channel(Tally::default());
        let reading = read(sender.clone(), told);
        let task = tokio::spawn(async move {
            if let Err(error) = reading.await {
                let _ = sender.send(Err(error)).await;
            }
        });
        Self {
            pieces,
            tally,
            task,
        }
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
    let objects = plan.snapshot.objects();
    let name = objects
        .first()
        .map_or_else(|| plan.snapshot.name.clone(), |(name, _)| name.clone());
    Checked::spawn(move |sender, _| async move {
        let damaged = |error| SourceError::Snapshot {
            name: name.clone(),
            error: Box::new(error),
        };
        // The first part has the others behind it.
        let mut parts = objects.iter().map(|(name, _)| name.clone()).skip(1);
        let object = Object::parse(name.as_str()).ok_or_else(|| SourceError::WrongKind {
            name: name.clone(),
            kind: "snapshot",
        })?;
        let mut reader = SnapshotReader::new(&object)
            .map_err(damaged)?
            .in_archive(archive);
        let mut objects = ReadAhead::new(store, objects.clone());
        let unread = |error| SourceError::of_read(&name, error);
        while let Some(piece) = objects.next().await.map_err(unread)? {
            reader.push(piece.bytes);
            while let Some(bytes) = reader.next().map_err(damaged)? {
                if !give(&sender, bytes).await {
                    return Ok(());
                }
            }
            if piece.last
                && let Some(part) = parts.next()
            {
                reader.begin_part(part).map_err(damaged)?;
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
    let (name, length) = plan.snapshot.last_object();
    let from = length.saturating_sub(END_BLOCK_BYTES_MAX);
    let tail = ahead::read(store, &name, from..length)
        .await
        .map_err(|error| SourceError::of_read(&name, error))?;
    payload_bytes_in(&tail).ok_or(SourceError::NoEnd { name })
}

/// The plan's replication stream, cut at its target, which must be a command boundary.
pub fn stream(
    store: Arc<dyn Store>,
    archive: ArchiveId,
    plan: &Plan,
    spelling: Spelling,
) -> Checked {
    let (legs, target) = (plan.legs.clone(), plan.target.offset);
    let start = legs.first().map_or(target, |leg| leg.after);
    let rewriting = spelling == Spelling::Rewritten && plan.may_be_rewritten();
    Checked::spawn(move |sender, told| async move {
        let mut stream = Stream {
            // Offsets may begin anew from leg to leg; the commands go on.
            cursor: CommandCursor::new(start, None),
            rewriter: rewriting.then(|| Rewriter::new(Rewriting::default())),
            times: Times::new(times_told(&legs)),
            objects: ReadAhead::new(Arc::clone(&store), objects_of(&legs)),
            reached: start,
            store,
            sender,
            told,
        };
        for (at, leg) in legs.iter().enumerate() {
            if !stream.read_leg(archive, leg, &legs[at + 1..]).await? {
                return Ok(());
            }
        }
        if stream.cursor.at_boundary() {
            return Ok(());
        }
        Err(SourceError::NotABoundary {
            offset: target,
            boundary: stream.cursor.boundary().offset,
        })
    })
}

fn segments(legs: &[Leg]) -> impl Iterator<Item = &SegmentEntry> {
    legs.iter().flat_map(|leg| &leg.segments)
}

/// When the pieces begin and end, as their names say.
fn times_told(legs: &[Leg]) -> impl Iterator<Item = (UnixMillis, UnixMillis)> {
    segments(legs).map(|segment| (segment.span.first_at, segment.span.last_at))
}

fn objects_of(legs: &[Leg]) -> Vec<(ObjectName, u64)> {
    segments(legs)
        .map(|segment| (segment.name.clone(), segment.bytes))
        .collect()
}

/// The segments of a leg's timeline. Merged ones come last: what upkeep has deleted before the first list is among them.
async fn stored_segments(store: &dyn Store, leg: &Leg) -> Result<Vec<SegmentEntry>, StoreError> {
    let mut listed = store
        .list(&segments_prefix(leg.timeline, &leg.id), None)
        .await?;
    listed.extend(
        store
            .list(&merged_prefix(leg.timeline, &leg.id), None)
            .await?,
    );
    let segments =
        listed
            .into_iter()
            .filter_map(|listed| match Object::parse(listed.name.as_str()) {
                Some(Object::Segment { span, .. }) => Some(SegmentEntry {
                    name: listed.name,
                    span,
                    bytes: listed.bytes,
                }),
                _ => None,
            });
    Ok(segments.collect())
}

/// A replication stream that is being read.
struct Stream {
    store: Arc<dyn Store>,
    /// The segments of all legs.
    objects: ReadAhead,
    /// The last byte that was given, in the offsets of its leg.
    reached: Offset,
    cursor: CommandCursor,
    rewriter: Option<Rewriter>,
    times: Times,
    sender: mpsc::Sender<Result<Bytes, SourceError>>,
    told: watch::Sender<Tally>,
}

impl Stream {
    /// `false` where nobody takes any more.
    async fn read_leg(
        &mut self,
        archive: ArchiveId,
        leg: &Leg,
        later: &[Leg],
    ) -> Result<bool, SourceError> {
        if let Some(rewriter) = &mut self.rewriter {
            rewriter.set_rewriting(Rewriting::of(&leg.source));
        }
        self.reached = leg.after;
        let mut rest = leg.clone();
        let mut in_a_row = 0;
        loop {
            let began = self.reached;
            let error = match self.read_segments(archive, &rest).await {
                Err(error) if error.is_gone() => error,
                read => return read,
            };
            in_a_row = if self.reached == began {
                in_a_row + 1
            } else {
                1
            };
            if in_a_row > LISTED_AGAIN_MAX {
                return Err(error);
            }
            // Upkeep put another segment in its place: the same bytes under another name.
            let stored = stored_segments(&*self.store, leg).await?;
            rest = leg.behind(self.reached, stored).ok_or(error)?;
            tracing::debug!(timeline = %leg.timeline, reached = %self.reached, "segments are listed again");
            let legs = [std::slice::from_ref(&rest), later].concat();
            self.objects = ReadAhead::new(Arc::clone(&self.store), objects_of(&legs));
            self.times = self.times.again(times_told(&legs));
        }
    }

    async fn read_segments(&mut self, archive: ArchiveId, leg: &Leg) -> Result<bool, SourceError> {
        for segment in &leg.segments {
            self.times.begin();
            let name = &segment.name;
            let damaged = |error| SourceError::Segment {
                name: name.clone(),
                error: Box::new(error),
            };
            if segment.span.first > self.reached.next() {
                return Err(SourceError::Hole {
                    timeline: leg.timeline,
                    name: name.clone(),
                    expected: self.reached.next(),
                });
            }
            let object = Object::parse(name.as_str()).ok_or_else(|| SourceError::WrongKind {
                name: name.clone(),
                kind: "segment",
            })?;
            let mut reader = SegmentReader::new(&object)
                .map_err(damaged)?
                .in_archive(archive);
            let unread = |error| SourceError::of_read(name, error);
            while let Some(piece) = self.objects.next().await.map_err(unread)? {
                reader.push(piece.bytes);
                while let Some(block) = reader.next().map_err(damaged)? {
                    let marks = self.rewriter.as_ref().map(|_| Marks::of(&block));
                    let bytes = cut(block, self.reached, leg.to);
                    let first = self.reached.next();
                    self.reached = self.reached.plus(bytes.len() as u64);
                    self.cursor.feed(&bytes)?;
                    if !self.give(bytes, first, marks).await {
                        return Ok(false);
                    }
                }
                if piece.last {
                    break;
                }
            }
            reader.finish().map_err(damaged)?;
        }
        if self.reached != leg.to {
            return Err(SourceError::Short {
                expected: leg.to,
                found: self.reached,
            });
        }
        Ok(true)
    }

    /// Sends bytes whose first one has offset `first`, rewritten where that was asked for. `false` where nobody
    /// takes any more.
    async fn give(&mut self, bytes: Bytes, first: Offset, marks: Option<Marks>) -> bool {
        let (Some(rewriter), Some(marks)) = (&mut self.rewriter, marks) else {
            return give(&self.sender, bytes).await;
        };
        let mut out = Vec::new();
        let mut rest = bytes;
        let mut next = first;
        for (at, last) in marks.0 {
            let at = self.times.at(at);
            let length = usize::try_from(last.next().bytes_since(next)).unwrap_or(usize::MAX);
            let piece = rest.split_to(length.min(rest.len()));
            next = next.plus(piece.len() as u64);
            rewriter.push(&piece, at, &mut out);
        }
        self.told.send_replace(rewriter.tally());
        let bytes = match out.len() {
            0 | 1 => out.pop().unwrap_or_default(),
            _ => joined(&out),
        };
        give(&self.sender, bytes).await
    }
}

fn joined(pieces: &[Bytes]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    for piece in pieces {
        bytes.extend_from_slice(piece);
    }
    bytes.freeze()
}

/// When the bytes of a block were received, up to which offset each.
struct Marks(Vec<(UnixMillis, Offset)>);

impl Marks {
    fn of(block: &Block) -> Self {
        let marks = block.marks.iter().map(|mark| (mark.at, mark.offset));
        // What no mark speaks of was received with the last bytes.
        let rest = (block.header.last_at, Offset::new(u64::MAX));
        Self(marks.chain([rest]).collect())
    }
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
