//! Reads objects of the store a few at a time and gives their bytes in order: a store answers each request late,
//! and many at once. What the bytes mean is left to `source`.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::archive::layout::ObjectName;
use crate::store::{Store, StoreError};

/// Bytes of an object read at once.
pub(super) const READ_BYTES: u64 = 2 * 1024 * 1024;
/// Reads that are under way or done and not yet taken: many small objects at once.
pub(super) const READS_AHEAD_MAX: usize = 32;
/// Bytes that these may hold: few large ones. One read is always allowed.
pub(super) const READ_AHEAD_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Times that one range is asked for, beyond what the store tries by itself.
const READ_TRIES_MAX: u32 = 5;
/// The wait before the second try; it doubles with each, 7.5 s in all.
const READ_RETRY_FIRST: Duration = Duration::from_millis(500);

/// An object whose reading has begun.
#[derive(Debug)]
struct Place {
    name: ObjectName,
    /// Where the next read begins.
    at: u64,
    /// Where the last one ends: one byte behind the length that the list promised, so that what follows is seen.
    end: u64,
}

/// Bytes of an object.
#[derive(Debug)]
pub(super) struct Piece {
    /// The bytes.
    pub(super) bytes: Bytes,
    /// Whether the object ends with them.
    pub(super) last: bool,
}

/// Objects, read ahead.
#[derive(Debug)]
pub(super) struct ReadAhead {
    store: Arc<dyn Store>,
    /// Names and lengths of the objects whose reading has not begun.
    objects: std::vec::IntoIter<(ObjectName, u64)>,
    place: Option<Place>,
    under_way: VecDeque<Reading>,
    bytes: u64,
    /// How many reads may be ahead. Grows with what is taken: whoever looks at the head of a payload takes little.
    window: usize,
}

#[derive(Debug)]
struct Reading {
    task: JoinHandle<Result<Bytes, StoreError>>,
    bytes: u64,
    last: bool,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ReadAhead {
    /// Of `objects`, in this order, each with its length in bytes as the list of the store gives it.
    pub(super) fn new(store: Arc<dyn Store>, objects: Vec<(ObjectName, u64)>) -> Self {
        Self {
            store,
            objects: objects.into_iter(),
            place: None,
            under_way: VecDeque::new(),
            bytes: 0,
            window: 1,
        }
    }

    /// The next bytes; `None` behind the last object. Each object gives at least one piece.
    ///
    /// # Errors
    /// What the store says of this very piece, whatever became of later ones.
    pub(super) async fn next(&mut self) -> Result<Option<Piece>, StoreError> {
        self.fill();
        let Some(mut reading) = self.under_way.pop_front() else {
            return Ok(None);
        };
        let bytes = (&mut reading.task)
            .await
            .expect("reading neither panics nor is cancelled")?;
        self.bytes -= reading.bytes;
        self.window = (self.window * 2).min(READS_AHEAD_MAX);
        self.fill();
        Ok(Some(Piece {
            bytes,
            last: reading.last,
        }))
    }

    fn fill(&mut self) {
        while self.under_way.len() < self.window {
            if self.place.is_none() {
                self.place = self.objects.next().map(|(name, length)| Place {
                    name,
                    at: 0,
                    end: length.saturating_add(1),
                });
            }
            let Some(place) = &mut self.place else { return };
            let to = place.end.min(place.at.saturating_add(READ_BYTES));
            let (range, last) = (place.at..to, to == place.end);
            let bytes = range.end - range.start;
            if !self.under_way.is_empty() && self.bytes + bytes > READ_AHEAD_BYTES_MAX {
                return;
            }
            place.at = to;
            let (store, name) = (Arc::clone(&self.store), place.name.clone());
            let task = tokio::spawn(async move { read(&*store, &name, range).await });
            self.bytes += bytes;
            self.under_way.push_back(Reading { task, bytes, last });
            if last {
                self.place = None;
            }
        }
    }
}

/// Reads once more where that may help: a restore that took an hour does not end with one bad minute.
///
/// # Errors
/// What the store said last.
pub(super) async fn read(
    store: &dyn Store,
    name: &ObjectName,
    range: Range<u64>,
) -> Result<Bytes, StoreError> {
    let mut tries = 1;
    loop {
        let error = match store.read(name, Some(range.clone())).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) if !error.is_retryable() || tries >= READ_TRIES_MAX => return Err(error),
            Err(error) => error,
        };
        let wait = READ_RETRY_FIRST * 2_u32.pow(tries - 1);
        tracing::warn!(%error, tries, "reading again in {wait:?}");
        tokio::time::sleep(wait).await;
        tries += 1;
    }
}

#[cfg(test)]
mod tests;
