//! From received bytes to pieces: finds command ends, cuts at boundaries, decides when a piece is sealed.
//! Without I/O; what becomes of a sealed piece is the uploader's work.

use bytes::Bytes;

use crate::archive::block::{Boundary, RawBlock};
use crate::archive::segment::{Chunk, SealedSegment, SegmentBuilder};
use crate::position::{Offset, Ticks, UnixMillis};
use crate::proto::resp::{CommandCursor, Malformed};

/// After a GETACK, a shutting-down master also waits for the PINGs that follow (`protocol-facts` 8): they
/// seal at once for this long.
pub const PINGS_SEAL_MILLIS: u64 = 30_000;
/// A piece of nothing but PINGs waits this long for company.
pub const PINGS_WAIT_MILLIS: u64 = 3_600_000;

/// When a piece is sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SealOptions {
    /// Age of its oldest command, milliseconds.
    pub interval_millis: u64,
    /// Bytes of replication stream. A longer command or transaction is cut anywhere and flagged open.
    pub bytes_max: u64,
}

/// Why a piece is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// Somebody waits: a GETACK, or a PING soon after one.
    Waited,
    /// It is old or big enough.
    Full,
    /// Nothing but PINGs for an hour.
    Idle,
}

/// Bytes since the last command boundary: not part of a piece until the command is complete or too long.
#[derive(Debug, Default)]
struct Tail {
    chunks: Vec<(Bytes, UnixMillis, Option<u32>)>,
    bytes: u64,
}

/// One link's way from bytes to pieces.
#[derive(Debug)]
pub struct Pipeline {
    options: SealOptions,
    cursor: CommandCursor,
    builder: SegmentBuilder,
    /// Bytes of the piece that left with [`Pipeline::take_ready`].
    taken: u64,
    tail: Tail,
    /// When the oldest command of the piece that is not a PING came.
    oldest: Option<Ticks>,
    /// When the piece began.
    began: Option<Ticks>,
    /// A GETACK is in the piece.
    waited: bool,
    last_getack: Option<Ticks>,
    last_write: Option<Offset>,
}

impl Pipeline {
    /// Begins behind a command boundary.
    pub fn new(options: SealOptions, at: Boundary) -> Self {
        Self {
            options,
            cursor: CommandCursor::new(at.offset, at.database),
            builder: SegmentBuilder::new(at.offset, at.database),
            taken: 0,
            tail: Tail::default(),
            oldest: None,
            began: None,
            waited: false,
            last_getack: None,
            last_write: None,
        }
    }

    /// PINGs are sealed at once for a while, as after a GETACK.
    pub fn seal_pings_from(&mut self, now: Ticks) {
        self.last_getack = Some(now);
    }

    /// What gathers is due now, as if somebody waited for it.
    pub fn seal_at_once(&mut self) {
        self.waited |= !self.builder.is_empty();
    }

    /// Takes bytes in. Returns whether a GETACK was among them.
    ///
    /// # Errors
    /// [`Malformed`] where they are no replication stream; what came before the last boundary stays usable.
    pub fn receive(
        &mut self,
        now: Ticks,
        at: UnixMillis,
        mut bytes: Bytes,
    ) -> Result<bool, Malformed> {
        let before = self.cursor.offset();
        let fed = match self.cursor.feed(&bytes) {
            Ok(fed) => fed,
            Err(error) => {
                // The commands before the one that is none are whole: they are kept.
                self.take_whole(now, at, before, &mut bytes, self.cursor.boundary(), true);
                return Err(error);
            }
        };
        if let Some(boundary) = fed.boundary {
            self.take_whole(now, at, before, &mut bytes, boundary, fed.others > 0);
        }
        if !bytes.is_empty() {
            self.tail.bytes += bytes.len() as u64;
            self.tail.chunks.push((bytes, at, self.cursor.database()));
        }
        if self.tail.bytes >= self.options.bytes_max {
            self.flush_tail(Some(now));
        }
        if fed.getack.is_some() {
            self.waited = true;
            self.last_getack = Some(now);
        }
        Ok(fed.getack.is_some())
    }

    /// Moves the bytes up to `boundary` into the piece, with the unfinished command they complete.
    fn take_whole(
        &mut self,
        now: Ticks,
        at: UnixMillis,
        before: Offset,
        bytes: &mut Bytes,
        boundary: crate::proto::resp::Boundary,
        writes: bool,
    ) {
        let whole = usize::try_from(boundary.offset.bytes_since(before)).unwrap_or(bytes.len());
        if whole == 0 {
            return;
        }
        let head = bytes.split_to(whole.min(bytes.len()));
        self.flush_tail(None);
        self.began.get_or_insert(now);
        if writes {
            self.oldest.get_or_insert(now);
            self.last_write = Some(boundary.offset);
        }
        self.builder.push(Chunk {
            bytes: head,
            at,
            boundary: Some((boundary.offset, boundary.database)),
            database_at_end: boundary.database,
        });
    }

    /// Moves the unfinished command into the piece, which is open then unless a boundary follows.
    fn flush_tail(&mut self, overlong: Option<Ticks>) {
        if let Some(now) = overlong {
            self.began.get_or_insert(now);
            self.oldest.get_or_insert(now);
        }
        for (bytes, at, database_at_end) in std::mem::take(&mut self.tail).chunks {
            self.builder.push(Chunk {
                bytes,
                at,
                boundary: None,
                database_at_end,
            });
        }
    }

    /// When the oldest write came that is not sealed yet; PINGs aside, and commands that are not whole.
    pub fn oldest_write(&self) -> Option<Ticks> {
        self.oldest
    }

    /// How far the last write reaches, PINGs that came in one read with it included.
    pub fn last_write(&self) -> Option<Offset> {
        self.last_write
    }

    /// Whether the piece should be sealed now.
    pub fn due(&self, now: Ticks) -> Option<Due> {
        if self.builder.is_empty() {
            return None;
        }
        if self.waited {
            return Some(Due::Waited);
        }
        if self.builder.raw_bytes() >= self.options.bytes_max {
            return Some(Due::Full);
        }
        let when = self.due_at()?;
        (now >= when).then_some(if self.oldest.is_some() {
            Due::Full
        } else if self.answers_a_getack(now) {
            Due::Waited
        } else {
            Due::Idle
        })
    }

    /// When the piece will be due, if nothing more comes. [`Ticks`] in the past where it is.
    pub fn due_at(&self) -> Option<Ticks> {
        if self.builder.is_empty() {
            return None;
        }
        let began = self.began?;
        if self.waited {
            return Some(began);
        }
        match self.oldest {
            Some(oldest) => Some(oldest.plus(self.options.interval_millis)),
            None if self.answers_a_getack(began) => Some(began),
            None => Some(began.plus(PINGS_WAIT_MILLIS)),
        }
    }

    fn answers_a_getack(&self, now: Ticks) -> bool {
        self.last_getack
            .is_some_and(|at| now.since(at) <= PINGS_SEAL_MILLIS)
    }

    /// The next full block of the piece, to be compressed while the piece still grows.
    pub fn take_ready(&mut self) -> Option<RawBlock> {
        let block = self.builder.take_ready()?;
        self.taken += block.raw_bytes() as u64;
        Some(block)
    }

    /// Ends the piece at its last byte; what belongs to an unfinished command goes into the next one.
    pub fn seal(&mut self) -> Option<SealedSegment> {
        if self.builder.is_empty() {
            return None;
        }
        let database = match self.builder.boundary() {
            Some(boundary) if boundary.offset == self.builder.last() => boundary.database,
            _ => self.cursor.database(),
        };
        let next = SegmentBuilder::new(self.builder.last(), database);
        let piece = std::mem::replace(&mut self.builder, next);
        self.taken = 0;
        self.oldest = None;
        self.began = None;
        self.waited = false;
        piece.finish()
    }

    /// Bytes of the piece that gathers, those that were taken included.
    pub fn raw_bytes(&self) -> u64 {
        self.builder.raw_bytes()
    }

    /// The last byte received.
    pub fn offset(&self) -> Offset {
        self.cursor.offset()
    }

    /// The last command boundary received: where to resume after a lost link.
    pub fn boundary(&self) -> Boundary {
        let boundary = self.cursor.boundary();
        Boundary {
            offset: boundary.offset,
            database: boundary.database,
        }
    }

    /// Bytes that are held here: the piece's that were not taken, and the unfinished command's.
    pub fn unsealed_bytes(&self) -> u64 {
        (self.builder.raw_bytes() + self.tail.bytes).saturating_sub(self.taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::block::{BlockContext, Compressor};
    use crate::archive::layout::{ArchiveId, Object};
    use crate::archive::segment::verify_segment;
    use crate::position::{ReplicationId, TimelineSeq};
    use crate::proto::handshake::command;

    const OPTIONS: SealOptions = SealOptions {
        interval_millis: 1000,
        bytes_max: 1000,
    };

    fn pipeline() -> Pipeline {
        Pipeline::new(
            OPTIONS,
            Boundary {
                offset: Offset::new(100),
                database: None,
            },
        )
    }

    fn set(bytes: usize) -> Bytes {
        command(&[b"SET", b"k", &vec![b'x'; bytes]])
    }

    fn receive(pipeline: &mut Pipeline, now: u64, bytes: Bytes) -> bool {
        pipeline
            .receive(Ticks(now), UnixMillis(now), bytes)
            .unwrap()
    }

    #[test]
    fn a_piece_is_due_by_age_of_its_oldest_command() {
        let mut pipeline = pipeline();
        assert_eq!((pipeline.due(Ticks(0)), pipeline.due_at()), (None, None));
        receive(&mut pipeline, 10, set(3));
        receive(&mut pipeline, 900, set(3));
        assert_eq!(pipeline.due_at(), Some(Ticks(1010)));
        assert_eq!(pipeline.due(Ticks(1009)), None);
        assert_eq!(pipeline.due(Ticks(1010)), Some(Due::Full));
        let sealed = pipeline.seal().unwrap();
        assert!(!sealed.open);
        assert_eq!(sealed.span.first, Offset::new(101));
        assert_eq!(pipeline.due(Ticks(9999)), None);
    }

    #[test]
    fn pings_behind_a_write_are_no_writes() {
        let mut pipeline = pipeline();
        receive(&mut pipeline, 10, command(&[b"ping"]));
        assert_eq!(pipeline.last_write(), None);
        receive(&mut pipeline, 20, set(3));
        let written = Some(pipeline.offset());
        receive(&mut pipeline, 30, command(&[b"ping"]));
        receive(&mut pipeline, 40, command(&[b"replconf", b"getack", b"*"]));
        assert_eq!(pipeline.last_write(), written);
        assert!(written < Some(pipeline.offset()));
        pipeline.seal();
        pipeline.seal_at_once();
        assert_eq!(
            pipeline.due(Ticks(40)),
            None,
            "nothing is there to be sealed"
        );
        receive(&mut pipeline, 50 + PINGS_SEAL_MILLIS, command(&[b"ping"]));
        pipeline.seal_at_once();
        let due = pipeline.due(Ticks(50 + PINGS_SEAL_MILLIS));
        assert_eq!(due, Some(Due::Waited));
    }

    #[test]
    fn a_getack_seals_at_once_and_is_part_of_the_piece() {
        let mut pipeline = pipeline();
        receive(&mut pipeline, 10, set(3));
        assert!(receive(
            &mut pipeline,
            11,
            command(&[b"REPLCONF", b"GETACK", b"*"])
        ));
        assert_eq!(pipeline.due(Ticks(11)), Some(Due::Waited));
        let sealed = pipeline.seal().unwrap();
        assert_eq!(sealed.span.last, pipeline.offset());
    }

    #[test]
    fn pings_wait_an_hour_but_not_behind_a_getack() {
        let mut pipeline = pipeline();
        let ping = || command(&[b"ping"]);
        receive(&mut pipeline, 10, ping());
        receive(&mut pipeline, 20, ping());
        assert_eq!(pipeline.due_at(), Some(Ticks(10 + PINGS_WAIT_MILLIS)));
        assert_eq!(pipeline.due(Ticks(10 + PINGS_WAIT_MILLIS)), Some(Due::Idle));
        receive(&mut pipeline, 30, command(&[b"replconf", b"getack", b"*"]));
        assert!(pipeline.seal().is_some());
        receive(&mut pipeline, 30 + PINGS_SEAL_MILLIS, ping());
        assert_eq!(
            pipeline.due(Ticks(30 + PINGS_SEAL_MILLIS)),
            Some(Due::Waited)
        );
        assert!(pipeline.seal().is_some());
        receive(&mut pipeline, 31 + PINGS_SEAL_MILLIS, ping());
        assert_eq!(pipeline.due(Ticks(31 + PINGS_SEAL_MILLIS)), None);
        receive(&mut pipeline, 32 + PINGS_SEAL_MILLIS, set(1));
        assert_eq!(pipeline.due_at(), Some(Ticks(1032 + PINGS_SEAL_MILLIS)));
    }

    /// Ten hours of an idle master, which pings every ten seconds, on a clock moved by hand.
    #[test]
    fn an_idle_master_is_one_piece_an_hour() {
        let options = SealOptions {
            bytes_max: 8 << 20,
            ..OPTIONS
        };
        let at = Boundary {
            offset: Offset::ZERO,
            database: None,
        };
        let mut pipeline = Pipeline::new(options, at);
        let hours = 10;
        let mut sealed = 0;
        for second in (0..hours * 3600).step_by(10) {
            let now = second * 1000;
            receive(&mut pipeline, now, command(&[b"ping"]));
            if pipeline.due(Ticks(now)).is_some() {
                assert!(pipeline.seal().is_some());
                sealed += 1;
            }
        }
        assert!(sealed <= hours, "{sealed} pieces in {hours} hours");
        assert!(
            sealed >= hours - 1,
            "they are stored all the same: {sealed}"
        );
    }

    #[test]
    fn an_unfinished_command_stays_out_of_the_piece() {
        let mut pipeline = pipeline();
        let whole = set(3);
        let half = set(30).slice(..20);
        receive(
            &mut pipeline,
            10,
            [whole.clone(), half.clone()].concat().into(),
        );
        let sealed = pipeline.seal().unwrap();
        assert_eq!(sealed.span.bytes(), whole.len() as u64);
        assert!(!sealed.open);
        assert_eq!(pipeline.unsealed_bytes(), half.len() as u64);
        assert_eq!(
            pipeline.boundary().offset,
            Offset::new(100).plus(whole.len() as u64)
        );
        receive(&mut pipeline, 20, set(30).slice(20..));
        let rest = pipeline.seal().unwrap();
        assert_eq!(rest.span.first, sealed.span.last.next());
        assert_eq!(rest.span.last, pipeline.offset());
    }

    #[test]
    fn a_transaction_is_not_cut_unless_it_is_too_long() {
        let mut pipeline = pipeline();
        receive(&mut pipeline, 10, command(&[b"MULTI"]));
        receive(&mut pipeline, 11, set(300));
        assert!(pipeline.seal().is_none());
        receive(&mut pipeline, 12, set(900));
        assert_eq!(pipeline.due(Ticks(12)), Some(Due::Full));
        let sealed = pipeline.seal().unwrap();
        assert!(sealed.open && sealed.boundary.is_none());
        assert_eq!(pipeline.boundary().offset, Offset::new(100));
        receive(&mut pipeline, 13, command(&[b"EXEC"]));
        let rest = pipeline.seal().unwrap();
        assert!(!rest.open);
        assert_eq!(pipeline.boundary().offset, rest.span.last);
    }

    /// A restore may begin with any piece: the database is told in each.
    #[test]
    fn each_piece_knows_the_database_it_begins_in() {
        let mut pipeline = pipeline();
        receive(&mut pipeline, 10, command(&[b"SELECT", b"3"]));
        receive(&mut pipeline, 10, set(3));
        assert!(pipeline.seal().is_some());
        receive(&mut pipeline, 20, set(4));
        let sealed = pipeline.seal().unwrap();
        let context = BlockContext {
            archive: ArchiveId::from_raw([1; 16]),
            timeline: TimelineSeq::FIRST,
            id: ReplicationId::from_raw([2; 20]),
        };
        let object = Object::Segment {
            seq: context.timeline,
            id: context.id,
            span: sealed.span,
            merged: false,
        };
        let mut compressor = Compressor::new();
        let blocks = sealed.blocks.into_iter();
        let bytes: Vec<Bytes> = blocks
            .map(|block| block.encode(&context, &mut compressor))
            .collect();
        let read = verify_segment(&object, bytes.concat().into()).unwrap();
        assert_eq!(read[0].header.database_start, Some(3));
        assert_eq!(read[0].header.database_end, Some(3));
    }

    #[test]
    fn a_malformed_stream_is_an_error_with_its_offset() {
        let mut pipeline = pipeline();
        receive(&mut pipeline, 10, set(3));
        let end = pipeline.offset();
        let error = pipeline.receive(Ticks(11), UnixMillis(11), Bytes::from_static(b"+PONG\r\n"));
        assert_eq!(error.unwrap_err().offset, end.next());
        assert_eq!(pipeline.seal().unwrap().span.last, end);
    }

    #[test]
    fn whole_commands_before_a_malformed_one_are_kept() {
        let mut pipeline = pipeline();
        let whole = set(3);
        let bytes = [whole.clone(), Bytes::from_static(b"-NOPERM\r\n")].concat();
        assert!(
            pipeline
                .receive(Ticks(11), UnixMillis(11), bytes.into())
                .is_err()
        );
        let end = Offset::new(100).plus(whole.len() as u64);
        assert_eq!(pipeline.boundary().offset, end);
        assert_eq!(
            pipeline.seal().unwrap().span.last,
            end,
            "what is resumed from is in the piece"
        );
    }
}
