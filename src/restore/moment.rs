//! From a moment to a boundary: reads the one segment that the names point to, and as much before it as it takes to know
//! where commands end.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::ahead::ReadAhead;
use super::source::SourceError;
use crate::archive::block::{Block, Content};
use crate::archive::layout::{ArchiveId, Object};
use crate::archive::moment::{Located, OutsideWindow, Stretch, Way};
use crate::archive::segment::SegmentReader;
use crate::archive::timeline::SegmentEntry;
use crate::position::{Offset, Position, UnixMillis};
use crate::proto::resp::CommandCursor;
use crate::store::Store;

/// Why a moment was not found.
#[derive(Debug, thiserror::Error)]
pub enum MomentError {
    /// It cannot be restored.
    #[error(transparent)]
    Outside(#[from] OutsideWindow),
    /// The archive cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// A boundary to restore to, and what it stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// The last command boundary outside MULTI at or before what was asked for.
    pub position: Position,
    /// Everything received up to this time is included, as the clock of the streamer gave it.
    pub received_until: UnixMillis,
    /// What comes behind it.
    pub next: Next,
}

/// What comes behind a moment on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Bytes that are known to have been received by this time, and perhaps a little earlier.
    By(UnixMillis),
    /// Bytes that the archive has not: when they came cannot be told.
    Missing,
    /// Nothing: the way ends.
    Nothing,
}

impl Found {
    /// When what comes next had been received, where that is in the archive.
    pub const fn next_by(&self) -> Option<UnixMillis> {
        match self.next {
            Next::By(at) => Some(at),
            Next::Missing | Next::Nothing => None,
        }
    }
}

/// The moments of an archive.
#[derive(Debug)]
pub struct Moments<'a> {
    /// Where it lies.
    pub store: &'a Arc<dyn Store>,
    /// Its id.
    pub archive: ArchiveId,
    /// Where to look.
    pub way: &'a Way,
}

impl Moments<'_> {
    /// The last boundary of which everything was received at or before `moment`.
    ///
    /// # Errors
    /// [`MomentError`].
    pub async fn at_time(&self, moment: UnixMillis, now: UnixMillis) -> Result<Found, MomentError> {
        let located = self.way.at_time(moment, now)?;
        let mut reached = self.reached(&located);
        let mut next = self.next(&located);
        if let Some(segment) = self.segment(&located) {
            let mut times = located.times.clone();
            for (at, offset) in self.marks(segment).await? {
                let at = times.at(at);
                if at > moment {
                    next = Next::By(at);
                    break;
                }
                reached = reached.max((offset, at));
            }
        }
        self.found(&located, reached, next).await
    }

    /// The last boundary at or before `position`.
    ///
    /// # Errors
    /// [`MomentError`].
    pub async fn at_offset(&self, position: Position) -> Result<Found, MomentError> {
        let located = self.way.at_offset(position)?;
        let mut reached = self.reached(&located);
        let mut next = self.next(&located);
        if let Some(segment) = self.segment(&located) {
            let mut times = located.times.clone();
            for (at, offset) in self.marks(segment).await? {
                let at = times.at(at);
                if offset > position.offset {
                    next = Next::By(at);
                    // Bytes of one mark came together, as far as is known. Where a mark ends at the offset itself, it
                    // has told already.
                    if reached.0 < position.offset {
                        reached = (position.offset, at);
                    }
                    break;
                }
                reached = reached.max((offset, at));
            }
        }
        self.found(&located, reached, next).await
    }

    fn stretch(&self, located: &Located) -> &Stretch {
        &self.way.stretches()[located.stretch]
    }

    fn segment(&self, located: &Located) -> Option<&SegmentEntry> {
        let segments = &self.stretch(located).segments;
        located.segment.map(|index| &segments[index].0)
    }

    /// What is there in front of the segment, and since when.
    fn reached(&self, located: &Located) -> (Offset, UnixMillis) {
        let stretch = self.stretch(located);
        let before = located.segment.and_then(|index| index.checked_sub(1));
        match before.map(|index| &stretch.segments[index]) {
            Some((segment, _, last_at)) => (segment.span.last, *last_at),
            None => (stretch.after, stretch.begins_at),
        }
    }

    /// What lies behind the segment.
    fn next(&self, located: &Located) -> Next {
        let stretch = self.stretch(located);
        let index = located.segment.map_or(0, |index| index + 1);
        if let Some((_, first_at, _)) = stretch.segments.get(index) {
            return Next::By(*first_at);
        }
        for stretch in self.way.stretches().iter().skip(located.stretch + 1) {
            if !stretch.continues {
                return Next::Missing;
            }
            if let Some((_, first_at, _)) = stretch.segments.first() {
                return Next::By(*first_at);
            }
        }
        if self.way.is_broken_off() {
            Next::Missing
        } else {
            Next::Nothing
        }
    }

    async fn found(
        &self,
        located: &Located,
        (reached, received_until): (Offset, UnixMillis),
        next: Next,
    ) -> Result<Found, MomentError> {
        let stretch = self.stretch(located);
        let limit = reached.min(stretch.to).max(stretch.after);
        let offset = self.boundary_before(stretch, limit).await?;
        Ok(Found {
            position: Position {
                timeline: stretch.timeline,
                offset,
            },
            received_until,
            next,
        })
    }

    /// When the bytes of a segment were received, up to which offset each.
    async fn marks(
        &self,
        segment: &SegmentEntry,
    ) -> Result<Vec<(UnixMillis, Offset)>, SourceError> {
        let mut marks = Vec::new();
        self.blocks(segment, |block| {
            marks.extend(block.marks.iter().map(|mark| (mark.at, mark.offset)));
            if let Content::Commands { last, .. } = block.header.content {
                marks.push((block.header.last_at, last));
            }
            Ok(())
        })
        .await?;
        Ok(marks)
    }

    /// The last command boundary outside MULTI at or before `limit`, which lies in the stretch.
    async fn boundary_before(
        &self,
        stretch: &Stretch,
        limit: Offset,
    ) -> Result<Offset, SourceError> {
        if limit <= stretch.after {
            return Ok(stretch.after);
        }
        let upto = stretch
            .segments
            .iter()
            .position(|(segment, ..)| segment.span.last >= limit)
            .unwrap_or(stretch.segments.len().saturating_sub(1));
        let (from, known) = self.known_boundary(stretch, upto, limit).await?;
        if known == limit {
            return Ok(known);
        }
        let mut cursor = CommandCursor::new(known, None);
        for (segment, ..) in &stretch.segments[from..=upto] {
            self.blocks(segment, |block| {
                let wanted = part(&block, cursor.offset().next()..=limit);
                Ok(cursor.feed(wanted).map(drop)?)
            })
            .await?;
        }
        Ok(cursor.boundary().offset)
    }

    /// A boundary at or before `limit` that is written down, and from which segment on the bytes behind it come: the
    /// last one in the segment that holds `limit`, or in the nearest one before it that has any.
    async fn known_boundary(
        &self,
        stretch: &Stretch,
        upto: usize,
        limit: Offset,
    ) -> Result<(usize, Offset), SourceError> {
        for index in (0..=upto).rev() {
            let mut found = None;
            self.blocks(&stretch.segments[index].0, |block| {
                let boundary = block.header.boundary.map(|boundary| boundary.offset);
                found = boundary.filter(|offset| *offset <= limit).or(found);
                Ok(())
            })
            .await?;
            if let Some(offset) = found.filter(|offset| *offset > stretch.after) {
                return Ok((index, offset));
            }
        }
        Ok((0, stretch.after))
    }

    /// Reads a segment and checks it against its name.
    async fn blocks(
        &self,
        segment: &SegmentEntry,
        mut each: impl FnMut(Block) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let name = &segment.name;
        let damaged = |error| SourceError::Segment {
            name: name.clone(),
            error: Box::new(error),
        };
        let object = Object::parse(name.as_str()).ok_or_else(|| SourceError::WrongKind {
            name: name.clone(),
            kind: "segment",
        })?;
        let mut reader = SegmentReader::new(&object)
            .map_err(damaged)?
            .in_archive(self.archive);
        let mut objects =
            ReadAhead::new(Arc::clone(self.store), vec![(name.clone(), segment.bytes)]);
        let unread = |error| SourceError::of_read(name, error);
        while let Some(piece) = objects.next().await.map_err(unread)? {
            reader.push(piece.bytes);
            while let Some(block) = reader.next().map_err(damaged)? {
                each(block)?;
            }
        }
        reader.finish().map_err(damaged)
    }
}

/// The bytes of a block whose offsets lie in the range.
fn part(block: &Block, wanted: RangeInclusive<Offset>) -> &[u8] {
    let Content::Commands { first, last } = block.header.content else {
        return &[];
    };
    if *wanted.end() < first || last < *wanted.start() {
        return &[];
    }
    let at = |offset: Offset| usize::try_from(offset.bytes_since(first)).unwrap_or(usize::MAX);
    let to = at(wanted.end().next()).min(block.payload.len());
    &block.payload[at(*wanted.start()).min(to)..to]
}

#[cfg(test)]
mod tests;
