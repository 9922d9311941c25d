//! Gathers the replication stream into blocks, and checks the blocks of a segment against its name. When to
//! seal a segment, and where it goes, is left to the caller.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use bytes::Bytes;

use super::block::{
    Block, BlockContext, BlockDecoder, BlockError, Boundary, Content, MARK_INTERVAL_MILLIS_MIN,
    MARKS_PER_BLOCK_MAX, Mark, RawBlock,
};
use super::layout::{ArchiveId, Object, ObjectName, Span, UNIX_MILLIS_MAX};
use super::pieces::Pieces;
use crate::position::{Offset, ReplicationId, TimelineSeq, UnixMillis};

/// Blocks of a segment hold up to this many bytes of the replication stream, so that they can be compressed
/// while the segment still grows. Larger frames gain little: 2.96 times at 1 MiB, 2.79 at 64 KiB.
pub const SEGMENT_BLOCK_RAW_BYTES: usize = 1024 * 1024;

/// The longest segment that [`verify_segment`] holds in memory, in bytes of the replication stream. A
/// [`SegmentReader`] has no such bound.
pub const SEGMENT_IN_MEMORY_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Bytes of the replication stream that arrived together.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The bytes, directly behind those of the chunk before.
    pub bytes: Bytes,
    /// When they were received.
    pub at: UnixMillis,
    /// The last command boundary outside MULTI inside them, and the database selected there.
    pub boundary: Option<(Offset, Option<u32>)>,
    /// The database selected after the last of them.
    pub database_at_end: Option<u32>,
}

/// Gathers the replication stream into the blocks of one segment.
#[derive(Debug)]
pub struct SegmentBuilder {
    after: Offset,
    last: Offset,
    times: Option<(UnixMillis, UnixMillis)>,
    boundary: Option<Boundary>,
    database: Option<u32>,
    block: Gathering,
    ready: VecDeque<RawBlock>,
}

/// A finished segment: what is left to encode, and what its name must say.
#[derive(Debug)]
pub struct SealedSegment {
    /// The blocks that were not taken before, in order. The last block of the segment is always among them.
    pub blocks: Vec<RawBlock>,
    /// What all its blocks cover.
    pub span: Span,
    /// The last command boundary outside MULTI in it.
    pub boundary: Option<Boundary>,
    /// The database selected after its last byte.
    pub database_end: Option<u32>,
    /// `true` where it does not end at a command boundary outside MULTI.
    pub open: bool,
}

impl SealedSegment {
    /// Its name on a timeline.
    pub fn name(&self, timeline: TimelineSeq, id: ReplicationId) -> ObjectName {
        Object::Segment {
            seq: timeline,
            id,
            span: self.span,
            merged: false,
        }
        .name()
    }
}

impl SegmentBuilder {
    /// A segment whose first byte is `after + 1`, where `database` is selected.
    pub fn new(after: Offset, database: Option<u32>) -> Self {
        Self {
            after,
            last: after,
            times: None,
            boundary: None,
            database,
            block: Gathering::new(after, database),
            ready: VecDeque::new(),
        }
    }

    /// Appends a chunk. Compresses nothing, copies only small chunks.
    ///
    /// Blocks are cut between chunks, where the selected database is known; only a chunk longer than
    /// [`SEGMENT_BLOCK_RAW_BYTES`] is cut inside. A chunk without bytes is passed over.
    pub fn push(&mut self, chunk: Chunk) {
        let Chunk {
            mut bytes,
            at,
            boundary,
            database_at_end,
        } = chunk;
        if bytes.is_empty() {
            return;
        }
        // A name cannot spell a later time, and names must equal what the blocks cover.
        let at = at.min(UNIX_MILLIS_MAX);
        let end = self.last.plus(bytes.len() as u64);
        let boundary = boundary.map(|(offset, database)| Boundary { offset, database });
        debug_assert!(boundary.is_none_or(|b| self.last < b.offset && b.offset <= end));
        let boundary = boundary.filter(|b| self.last < b.offset && b.offset <= end);

        if self.block.len() + bytes.len() > SEGMENT_BLOCK_RAW_BYTES {
            self.close_block(self.database);
        }
        while bytes.len() > SEGMENT_BLOCK_RAW_BYTES {
            self.block
                .push(bytes.split_to(SEGMENT_BLOCK_RAW_BYTES), at, boundary);
            self.close_block(None);
        }
        self.block.push(bytes, at, boundary);
        self.last = end;
        self.boundary = boundary.or(self.boundary);
        self.database = database_at_end;
        self.times = Some((self.times.map_or(at, |(first, _)| first), at));
    }

    /// The next block that is full, to be encoded elsewhere.
    pub fn take_ready(&mut self) -> Option<RawBlock> {
        self.ready.pop_front()
    }

    /// How many bytes of the replication stream the segment covers so far.
    pub const fn raw_bytes(&self) -> u64 {
        self.last.bytes_since(self.after)
    }

    /// The offset of its last byte so far; the offset before its first one where it is empty.
    pub const fn last(&self) -> Offset {
        self.last
    }

    /// The last command boundary outside MULTI so far.
    pub const fn boundary(&self) -> Option<Boundary> {
        self.boundary
    }

    /// `true` as long as it covers nothing.
    pub const fn is_empty(&self) -> bool {
        self.raw_bytes() == 0
    }

    /// When its first bytes were received.
    pub fn first_at(&self) -> Option<UnixMillis> {
        self.times.map(|(first_at, _)| first_at)
    }

    /// Ends the segment. `None` where it covers nothing.
    pub fn finish(mut self) -> Option<SealedSegment> {
        let (first_at, last_at) = self.times?;
        self.close_block(self.database);
        Some(SealedSegment {
            blocks: self.ready.into(),
            span: Span {
                first: self.after.next(),
                last: self.last,
                first_at,
                last_at,
            },
            boundary: self.boundary,
            database_end: self.database,
            open: self.boundary.map(|b| b.offset) != Some(self.last),
        })
    }

    fn close_block(&mut self, database_end: Option<u32>) {
        let next = Gathering::new(self.block.last, database_end);
        let full = std::mem::replace(&mut self.block, next);
        self.ready.extend(full.finish(database_end));
    }
}

/// A block that still grows.
#[derive(Debug)]
struct Gathering {
    after: Offset,
    last: Offset,
    pieces: Pieces,
    marks: Marks,
    boundary: Option<Boundary>,
    database_start: Option<u32>,
    times: Option<(UnixMillis, UnixMillis)>,
}

impl Gathering {
    fn new(after: Offset, database_start: Option<u32>) -> Self {
        Self {
            after,
            last: after,
            pieces: Pieces::default(),
            marks: Marks::new(),
            boundary: None,
            database_start,
            times: None,
        }
    }

    const fn len(&self) -> usize {
        self.pieces.len()
    }

    /// `boundary` may lie in a later block.
    fn push(&mut self, bytes: Bytes, at: UnixMillis, boundary: Option<Boundary>) {
        let before = self.last;
        self.last = before.plus(bytes.len() as u64);
        self.pieces.push(bytes);
        self.marks.push(Mark {
            at,
            offset: self.last,
        });
        let inside = boundary.filter(|b| before < b.offset && b.offset <= self.last);
        self.boundary = inside.or(self.boundary);
        self.times = Some((self.times.map_or(at, |(first, _)| first), at));
    }

    fn finish(self, database_end: Option<u32>) -> Option<RawBlock> {
        let (first_at, last_at) = self.times?;
        Some(RawBlock {
            content: Content::Commands {
                first: self.after.next(),
                last: self.last,
            },
            pieces: self.pieces,
            marks: self.marks.marks,
            boundary: self.boundary,
            database_start: self.database_start,
            database_end,
            first_at,
            last_at,
        })
    }
}

/// Thins the times of a block out to [`MARKS_PER_BLOCK_MAX`].
#[derive(Debug)]
struct Marks {
    marks: Vec<Mark>,
    /// The earliest time that the last mark stands for.
    since: UnixMillis,
    /// How long a mark may go on moving, in milliseconds.
    interval: u64,
}

impl Marks {
    const fn new() -> Self {
        Self {
            marks: Vec::new(),
            since: UnixMillis(0),
            interval: MARK_INTERVAL_MILLIS_MIN,
        }
    }

    fn push(&mut self, mark: Mark) {
        // Where the clock was set back there is a new mark: the old one's time was never reached again.
        let age = mark.at.0.checked_sub(self.since.0);
        if let Some(last) = self.marks.last_mut()
            && age.is_some_and(|age| age < self.interval)
            && last.at <= mark.at
        {
            *last = mark;
            return;
        }
        if self.marks.len() == MARKS_PER_BLOCK_MAX {
            self.halve();
        }
        self.since = mark.at;
        self.marks.push(mark);
    }

    /// Keeps every second mark, the last one among them, and moves them further apart from here on.
    fn halve(&mut self) {
        let mut keep = self.marks.len() % 2 == 1;
        self.marks.retain(|_| {
            keep = !keep;
            !keep
        });
        self.interval = self.interval.saturating_mul(2);
    }
}

/// The object is not the segment that its name says.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The name is not a segment's.
    #[error("{name} is not a segment")]
    NotASegment {
        /// The name.
        name: ObjectName,
    },
    /// A block cannot be used.
    #[error("segment {name}: {source}")]
    Block {
        /// The object.
        name: ObjectName,
        /// What is wrong, and where.
        source: BlockError,
    },
    /// A block belongs to another archive, timeline or kind of object.
    #[error("segment {name}: byte {at}: the block's {what} is {found}, expected {expected}")]
    Foreign {
        /// The object.
        name: ObjectName,
        /// Where the block begins in the object.
        at: u64,
        /// What differs.
        what: &'static str,
        /// What the name, or the block before, says.
        expected: String,
        /// What the block says.
        found: String,
    },
    /// A block does not begin where the one before it ends.
    #[error("segment {name}: byte {at}: the block begins at offset {found}, expected {expected}")]
    NotContiguous {
        /// The object.
        name: ObjectName,
        /// Where the block begins in the object.
        at: u64,
        /// The offset that had to come.
        expected: Offset,
        /// The block's first offset.
        found: Offset,
    },
    /// The blocks cover something else than the name says.
    #[error("segment {name}: the name says {what} {expected}, the blocks say {found}")]
    NameDiffers {
        /// The object.
        name: ObjectName,
        /// What differs.
        what: &'static str,
        /// What the name says.
        expected: u64,
        /// What the blocks say.
        found: u64,
    },
    /// More than may be held in memory at once.
    #[error("segment {name}: {bytes} bytes are too many to be read at once (at most {max})")]
    TooLong {
        /// The object.
        name: ObjectName,
        /// How many bytes of the replication stream the name says.
        bytes: u64,
        /// The bound.
        max: u64,
    },
}

/// Takes the blocks out of a segment as its bytes arrive, and checks them against its name.
///
/// After every [`push`](Self::push), call [`next`](Self::next) until it yields `None`; at the end
/// [`finish`](Self::finish), without which a cut object is not noticed.
#[derive(Debug)]
pub struct SegmentReader {
    name: ObjectName,
    timeline: TimelineSeq,
    id: ReplicationId,
    span: Span,
    archive: Option<ArchiveId>,
    decoder: BlockDecoder,
    /// The last byte seen.
    last: Offset,
    last_at: Option<UnixMillis>,
}

impl SegmentReader {
    /// A reader of the segment `object`.
    ///
    /// # Errors
    /// [`SegmentError::NotASegment`] where `object` names something else.
    pub fn new(object: &Object) -> Result<Self, SegmentError> {
        let name = object.name();
        let Object::Segment { seq, id, span, .. } = *object else {
            return Err(SegmentError::NotASegment { name });
        };
        Ok(Self {
            name,
            timeline: seq,
            id,
            span,
            archive: None,
            decoder: BlockDecoder::new(),
            last: span.first.previous(),
            last_at: None,
        })
    }

    /// Requires every block to belong to `archive`. Without this, to the archive of the first block.
    #[must_use]
    pub const fn in_archive(mut self, archive: ArchiveId) -> Self {
        self.archive = Some(archive);
        self
    }

    /// Takes the object's next bytes.
    pub fn push(&mut self, bytes: Bytes) {
        self.decoder.push(bytes);
    }

    /// The next block that is complete, checked.
    ///
    /// # Errors
    /// [`SegmentError`]: a block is damaged or foreign, or does not follow the one before.
    #[allow(
        clippy::should_implement_trait,
        reason = "fallible, and more may come after `None`"
    )]
    pub fn next(&mut self) -> Result<Option<Block>, SegmentError> {
        let at = self.decoder.at();
        let block = self.decoder.next().map_err(|source| SegmentError::Block {
            name: self.name.clone(),
            source,
        })?;
        if let Some(block) = &block {
            self.check(block, at)?;
        }
        Ok(block)
    }

    /// Ends the object.
    ///
    /// # Errors
    /// [`SegmentError`]: it ends inside a block, or earlier or later than its name says.
    pub fn finish(self) -> Result<(), SegmentError> {
        let Self {
            name,
            span,
            decoder,
            last,
            last_at,
            ..
        } = self;
        if let Err(source) = decoder.finish() {
            return Err(SegmentError::Block { name, source });
        }
        let (what, expected, found) = if last != span.last {
            ("last offset", span.last.as_u64(), last.as_u64())
        } else if last_at != Some(span.last_at) {
            ("last time", span.last_at.0, last_at.map_or(0, |at| at.0))
        } else {
            return Ok(());
        };
        Err(SegmentError::NameDiffers {
            name,
            what,
            expected,
            found,
        })
    }

    fn check(&mut self, block: &Block, at: u64) -> Result<(), SegmentError> {
        let header = &block.header;
        let Content::Commands { first, last } = header.content else {
            return Err(self.foreign(at, "kind", &"commands", &header.content.word()));
        };
        let BlockContext {
            archive,
            timeline,
            id,
        } = header.context;
        let expected = *self.archive.get_or_insert(archive);
        if archive != expected {
            return Err(self.foreign(at, "archive", &expected, &archive));
        }
        if timeline != self.timeline {
            return Err(self.foreign(at, "timeline", &self.timeline, &timeline));
        }
        if id != self.id {
            return Err(self.foreign(at, "replication id", &self.id, &id));
        }
        if first != self.last.next() {
            return Err(SegmentError::NotContiguous {
                name: self.name.clone(),
                at,
                expected: self.last.next(),
                found: first,
            });
        }
        if self.last_at.is_none() && header.first_at != self.span.first_at {
            return Err(SegmentError::NameDiffers {
                name: self.name.clone(),
                what: "first time",
                expected: self.span.first_at.0,
                found: header.first_at.0,
            });
        }
        // At once, not only at the end: what lies beyond the name must not pile up at the reader.
        if last > self.span.last {
            return Err(SegmentError::NameDiffers {
                name: self.name.clone(),
                what: "last offset",
                expected: self.span.last.as_u64(),
                found: last.as_u64(),
            });
        }
        self.last = last;
        self.last_at = Some(header.last_at);
        Ok(())
    }

    fn foreign(
        &self,
        at: u64,
        what: &'static str,
        expected: &dyn std::fmt::Display,
        found: &dyn std::fmt::Display,
    ) -> SegmentError {
        SegmentError::Foreign {
            name: self.name.clone(),
            at,
            what,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}

/// Checks a whole segment against its name: blocks contiguous, of this timeline and of one archive, and
/// covering exactly what the name says. Yields its blocks.
///
/// # Errors
/// [`SegmentError`]; among them [`SegmentError::TooLong`] for more than [`SEGMENT_IN_MEMORY_BYTES_MAX`].
pub fn verify_segment(object: &Object, bytes: Bytes) -> Result<Vec<Block>, SegmentError> {
    let mut reader = SegmentReader::new(object)?;
    if reader.span.bytes() > SEGMENT_IN_MEMORY_BYTES_MAX {
        return Err(SegmentError::TooLong {
            bytes: reader.span.bytes(),
            max: SEGMENT_IN_MEMORY_BYTES_MAX,
            name: reader.name,
        });
    }
    reader.push(bytes);
    let mut blocks = Vec::new();
    while let Some(block) = reader.next()? {
        blocks.push(block);
    }
    reader.finish()?;
    Ok(blocks)
}
