//! The blocks of a stored segment one by one, checked, each with its bytes as they are stored.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::task::JoinHandle;

use super::JoinError;
use crate::archive::block::Block;
use crate::archive::layout::{ArchiveId, Object};
use crate::archive::segment::{SegmentError, SegmentReader};
use crate::archive::timeline::SegmentEntry;
use crate::position::Offset;
use crate::store::{Store, StoreError};

/// Bytes of an object read at once.
pub(super) const READ_BYTES: u64 = 1024 * 1024;

/// A block, and its bytes in the object.
#[derive(Debug)]
pub(super) struct Verbatim {
    pub(super) block: Block,
    pub(super) stored: Bytes,
}

/// A segment that is being read.
#[derive(Debug)]
pub(super) struct Blocks {
    store: Arc<dyn Store>,
    pub(super) entry: SegmentEntry,
    /// `None` at the end.
    reader: Option<SegmentReader>,
    /// Bytes that no block was made of yet.
    raw: BytesMut,
    /// Where the next read begins.
    at: u64,
    ahead: Option<Reading>,
    /// Whether all of it was read.
    was_read: bool,
    /// The last byte that was compared with, or given to, what the others say.
    pub(super) reached: Offset,
    /// A block that reaches beyond that.
    pub(super) current: Option<Verbatim>,
}

/// A read that has begun.
#[derive(Debug)]
struct Reading(JoinHandle<Result<Bytes, StoreError>>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Blocks {
    pub(super) fn new(
        store: &Arc<dyn Store>,
        archive: ArchiveId,
        entry: &SegmentEntry,
    ) -> Result<Self, JoinError> {
        let damaged = |error| JoinError::damaged(entry, error);
        let object = Object::parse(entry.name.as_str());
        let object = object.ok_or_else(|| {
            damaged(SegmentError::NotASegment {
                name: entry.name.clone(),
            })
        })?;
        let reader = SegmentReader::new(&object)
            .map_err(damaged)?
            .in_archive(archive);
        Ok(Self {
            store: Arc::clone(store),
            entry: entry.clone(),
            reader: Some(reader),
            raw: BytesMut::new(),
            at: 0,
            ahead: None,
            was_read: false,
            reached: entry.span.first.previous(),
            current: None,
        })
    }

    /// Whether nobody has begun to read it.
    pub(super) fn is_unread(&self) -> bool {
        self.at == 0 && self.ahead.is_none() && !self.was_read
    }

    /// Whether a read has begun that nobody has waited for.
    pub(super) fn is_ahead(&self) -> bool {
        self.ahead.is_some()
    }

    /// Begins to read before anybody waits for it.
    pub(super) fn read_ahead(&mut self) {
        let (store, name) = (Arc::clone(&self.store), self.entry.name.clone());
        let read = async move { store.read(&name, Some(0..READ_BYTES)).await };
        self.ahead = Some(Reading(tokio::spawn(read)));
    }

    /// The block behind [`reached`](Self::reached): the one that was left, or the next. `None` behind the last one, when
    /// the whole object was right.
    pub(super) async fn next(&mut self) -> Result<Option<Verbatim>, JoinError> {
        if let Some(current) = self.current.take() {
            return Ok(Some(current));
        }
        loop {
            let Some(reader) = &mut self.reader else {
                return Ok(None);
            };
            let next = reader.next();
            let next = next.map_err(|error| JoinError::damaged(&self.entry, error))?;
            if let Some(block) = next {
                let length = usize::try_from(block.header.block_bytes()).unwrap_or(usize::MAX);
                // The reader has seen all of it.
                let stored = self.raw.split_to(length.min(self.raw.len())).freeze();
                return Ok(Some(Verbatim { block, stored }));
            }
            if self.was_read {
                let finished = self.reader.take().map(SegmentReader::finish);
                return match finished {
                    Some(Err(error)) => Err(JoinError::damaged(&self.entry, error)),
                    Some(Ok(())) | None => Ok(None),
                };
            }
            let bytes = self.read().await?;
            self.at += bytes.len() as u64;
            self.was_read = (bytes.len() as u64) < READ_BYTES;
            self.raw.extend_from_slice(&bytes);
            if let Some(reader) = &mut self.reader {
                reader.push(bytes);
            }
        }
    }

    async fn read(&mut self) -> Result<Bytes, StoreError> {
        if let Some(mut reading) = self.ahead.take() {
            return (&mut reading.0)
                .await
                .expect("reading neither panics nor is cancelled");
        }
        let range = self.at..self.at + READ_BYTES;
        self.store.read(&self.entry.name, Some(range)).await
    }
}
