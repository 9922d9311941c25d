//! Takes an RDB payload out of a snapshot's blocks, checked.

use bytes::Bytes;

use super::{PayloadScan, SnapshotEnd, SnapshotError, SnapshotSummary};
use crate::archive::block::{Block, BlockContext, BlockDecoder, BlockError, Content};
use crate::archive::layout::{ArchiveId, Object, ObjectName};
use crate::position::{Offset, ReplicationId, TimelineSeq, UnixMillis};

/// The object is not the snapshot that its name says.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotReadError {
    /// The name is not a snapshot's.
    #[error("{name} is not a snapshot")]
    NotASnapshot {
        /// The name.
        name: ObjectName,
    },
    /// A block cannot be used.
    #[error("snapshot {name}: {source}")]
    Block {
        /// The object.
        name: ObjectName,
        /// What is wrong, and where.
        source: BlockError,
    },
    /// A block belongs to another archive, timeline, snapshot or kind of object.
    #[error("snapshot {name}: byte {at}: the block's {what} is {found}, expected {expected}")]
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
    #[error(
        "snapshot {name}: byte {at}: the block begins at payload byte {found}, expected {expected}"
    )]
    NotContiguous {
        /// The object.
        name: ObjectName,
        /// Where the block begins in the object.
        at: u64,
        /// The payload byte that had to come.
        expected: u64,
        /// The block's first payload byte.
        found: u64,
    },
    /// The object ends before its end block: it was never complete.
    #[error("snapshot {name}: no end after {bytes} bytes of payload")]
    NoEnd {
        /// The object.
        name: ObjectName,
        /// How many bytes of the payload came.
        bytes: u64,
    },
    /// Something follows the end block.
    #[error("snapshot {name}: byte {at}: something follows the end")]
    AfterEnd {
        /// The object.
        name: ObjectName,
        /// Where it begins in the object.
        at: u64,
    },
    /// The end block says something else than the payload.
    #[error(
        "snapshot {name}: the end says {what} {expected:x} (hexadecimal), the payload {found:x}"
    )]
    EndDiffers {
        /// The object.
        name: ObjectName,
        /// What differs.
        what: &'static str,
        /// What the end block says.
        expected: u64,
        /// What the payload gives.
        found: u64,
    },
    /// The end block is shorter than its fields.
    #[error("snapshot {name}: byte {at}: the end block is too short")]
    EndTooShort {
        /// The object.
        name: ObjectName,
        /// Where the block begins in the object.
        at: u64,
    },
    /// The blocks are whole, but their payload is not an RDB payload.
    #[error("snapshot {name}: {source}")]
    Payload {
        /// The object.
        name: ObjectName,
        /// What is wrong.
        source: SnapshotError,
    },
}

/// Takes the RDB payload out of a snapshot as the object's bytes arrive, in order and checked. One in parts is read
/// like one object; before each part but the first comes [`begin_part`](Self::begin_part).
///
/// After every [`push`](Self::push), call [`next`](Self::next) until it yields `None`; at the end
/// [`finish`](Self::finish), before which the payload must not be trusted as whole.
#[derive(Debug)]
pub struct SnapshotReader {
    name: ObjectName,
    timeline: TimelineSeq,
    id: ReplicationId,
    offset: Offset,
    taken_at: UnixMillis,
    derived: bool,
    archive: Option<ArchiveId>,
    decoder: BlockDecoder,
    scan: PayloadScan,
    end: Option<SnapshotEnd>,
}

impl SnapshotReader {
    /// A reader of the snapshot `object`, or of one whose first part it is.
    ///
    /// # Errors
    /// [`SnapshotReadError::NotASnapshot`] where `object` names something else.
    pub fn new(object: &Object) -> Result<Self, SnapshotReadError> {
        let name = object.name();
        let (Object::Snapshot {
            seq,
            id,
            offset,
            at,
            derived,
        }
        | Object::SnapshotPart {
            seq,
            id,
            offset,
            at,
            derived,
            ..
        }) = *object
        else {
            return Err(SnapshotReadError::NotASnapshot { name });
        };
        Ok(Self {
            name,
            timeline: seq,
            id,
            offset,
            taken_at: at,
            derived,
            archive: None,
            decoder: BlockDecoder::new(),
            scan: PayloadScan::new(),
            end: None,
        })
    }

    /// Requires every block to belong to `archive`. Without this, to the archive of the first block.
    #[must_use]
    pub const fn in_archive(mut self, archive: ArchiveId) -> Self {
        self.archive = Some(archive);
        self
    }

    /// Ends the part before and goes on with `name`. Whether it belongs to the same snapshot its blocks say.
    ///
    /// # Errors
    /// [`SnapshotReadError::Block`] where the part before ends inside a block.
    pub fn begin_part(&mut self, name: ObjectName) -> Result<(), SnapshotReadError> {
        let before = std::mem::replace(&mut self.name, name);
        let decoder = std::mem::take(&mut self.decoder);
        decoder.finish().map_err(|source| SnapshotReadError::Block {
            name: before,
            source,
        })
    }

    /// Takes the object's next bytes.
    pub fn push(&mut self, bytes: Bytes) {
        self.decoder.push(bytes);
    }

    /// The next bytes of the payload.
    ///
    /// # Errors
    /// [`SnapshotReadError`]: a block is damaged or foreign, or does not follow the one before, or the end
    /// does not agree with the payload.
    #[allow(
        clippy::should_implement_trait,
        reason = "fallible, and more may come after `None`"
    )]
    pub fn next(&mut self) -> Result<Option<Bytes>, SnapshotReadError> {
        loop {
            let at = self.decoder.at();
            let block = match self.decoder.next() {
                Ok(Some(block)) => block,
                Ok(None) => return Ok(None),
                Err(source) => {
                    let name = self.name.clone();
                    return Err(SnapshotReadError::Block { name, source });
                }
            };
            if self.end.is_some() {
                let name = self.name.clone();
                return Err(SnapshotReadError::AfterEnd { name, at });
            }
            self.check_context(&block, at)?;
            match block.header.content {
                Content::Rdb { first, .. } => return self.take_rdb(block, first, at).map(Some),
                // Looks on for what must not follow.
                Content::End { bytes } => self.take_end(&block.payload, bytes, at)?,
                Content::Commands { .. } => {
                    return Err(self.foreign(at, "kind", &"rdb", &block.header.content.word()));
                }
            }
        }
    }

    /// Ends the object.
    ///
    /// # Errors
    /// [`SnapshotReadError`]: it ends inside a block or before its end block, or the payload differs from
    /// what the end block says.
    pub fn finish(self) -> Result<SnapshotSummary, SnapshotReadError> {
        let name = self.name;
        if let Err(source) = self.decoder.finish() {
            return Err(SnapshotReadError::Block { name, source });
        }
        let bytes = self.scan.bytes;
        let Some(end) = self.end else {
            return Err(SnapshotReadError::NoEnd { name, bytes });
        };
        let summary = match self.scan.finish() {
            Ok(summary) => summary,
            Err(source) => return Err(SnapshotReadError::Payload { name, source }),
        };
        if end.crc64 != summary.crc64 {
            return Err(SnapshotReadError::EndDiffers {
                name,
                what: "checksum",
                expected: end.crc64,
                found: summary.crc64,
            });
        }
        Ok(summary)
    }

    fn take_rdb(&mut self, block: Block, first: u64, at: u64) -> Result<Bytes, SnapshotReadError> {
        let expected = self.scan.bytes;
        if first != expected {
            return Err(SnapshotReadError::NotContiguous {
                name: self.name.clone(),
                at,
                expected,
                found: first,
            });
        }
        self.scan.update(&block.payload);
        Ok(block.payload)
    }

    fn take_end(&mut self, payload: &[u8], bytes: u64, at: u64) -> Result<(), SnapshotReadError> {
        let name = self.name.clone();
        let Some(end) = SnapshotEnd::decode(payload) else {
            return Err(SnapshotReadError::EndTooShort { name, at });
        };
        for expected in [bytes, end.bytes] {
            if expected != self.scan.bytes {
                return Err(SnapshotReadError::EndDiffers {
                    name,
                    what: "length",
                    expected,
                    found: self.scan.bytes,
                });
            }
        }
        let facts = end.facts.as_ref();
        if let Some(made) = facts.map(|facts| facts.replayed_from.is_some())
            && made != self.derived
        {
            let word = |derived| if derived { "derived" } else { "a server's own" };
            return Err(self.foreign(at, "origin", &word(self.derived), &word(made)));
        }
        self.end = Some(end);
        Ok(())
    }

    fn check_context(&mut self, block: &Block, at: u64) -> Result<(), SnapshotReadError> {
        let header = &block.header;
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
        let offset = header.boundary.map_or(Offset::ZERO, |b| b.offset);
        if offset != self.offset {
            return Err(self.foreign(at, "offset", &self.offset, &offset));
        }
        if header.first_at != self.taken_at {
            return Err(self.foreign(at, "time", &self.taken_at.0, &header.first_at.0));
        }
        Ok(())
    }

    fn foreign(
        &self,
        at: u64,
        what: &'static str,
        expected: &dyn std::fmt::Display,
        found: &dyn std::fmt::Display,
    ) -> SnapshotReadError {
        SnapshotReadError::Foreign {
            name: self.name.clone(),
            at,
            what,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}
