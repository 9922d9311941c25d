//! A large object on its way: a task sends it in a resumable session, part by part, as it is written.
//!
//! The library goes on by itself with a session that broke. It is given up when a part has failed
//! [`PART_FAILURES_MAX`] times without any progress in between, or has not moved for [`PART_TIME_MAX`].

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use crc_fast::Digest;
use google_cloud_gax::error::Error;
use google_cloud_gax::exponential_backoff::ExponentialBackoffBuilder;
use google_cloud_gax::retry_policy::RetryPolicy;
use google_cloud_gax::retry_result::RetryResult;
use google_cloud_gax::retry_state::RetryState;
use google_cloud_storage::client::Storage;
use google_cloud_storage::error::WriteError;
use google_cloud_storage::model::Object as Stored;
use google_cloud_storage::retry_policy::RetryableErrors;
use google_cloud_storage::streaming_source::{SizeHint, StreamingSource};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::problem::{Asked, Problem, cause, explain};
use super::{GcsStore, crc_of, crc32c, is_already_present, with_conditions};
use crate::archive::layout::ObjectName;
use crate::store::{Created, StoreError, Upload};

/// Bytes of one part, which the library keeps until the service has them: whole quanta.
const PART_BYTES: usize = 8 * 1024 * 1024;
/// The service keeps multiples of this many bytes of a part that does not arrive whole.
const QUANTUM_BYTES: u64 = 256 * 1024;
/// Pieces that wait while a part is sent.
const PIECES_AHEAD_MAX: usize = 1;
/// How long one part may take, trying again included.
const PART_TIME_MAX: Duration = Duration::from_secs(120);
/// How often one part may fail before the upload is given up.
const PART_FAILURES_MAX: u32 = 5;
/// The first wait after a failure, and the longest.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(4);

/// A large object on its way. Dropped or aborted, it never appears; its session, which nobody sees or pays for,
/// ends by itself after a week.
pub(super) struct GcsUpload {
    store: GcsStore,
    name: ObjectName,
    pieces: mpsc::Sender<Piece>,
    task: JoinHandle<Result<Stored, Error>>,
    ended: Option<Result<Created, Problem>>,
    crc: Digest,
    bytes: u64,
}

enum Piece {
    Bytes(Bytes),
    /// Said in so many words: that nothing more comes must never be taken for the end.
    End,
}

impl GcsUpload {
    pub(super) fn begin(store: GcsStore, objects: &Storage, name: &ObjectName) -> Self {
        let address = &store.place.address;
        let (pieces, receiver) = mpsc::channel(PIECES_AHEAD_MAX);
        let taken = Arc::new(AtomicU64::new(0));
        let source = Source::new(receiver, Arc::clone(&taken));
        let waits = ExponentialBackoffBuilder::new()
            .with_initial_delay(RETRY_FIRST)
            .with_maximum_delay(RETRY_MAX)
            .clamp();
        let full_name = address.object(name.as_str());
        let write = objects
            .write_object(address.bucket_resource(), full_name, source)
            .with_resumable_upload_threshold(0_usize)
            .with_resumable_upload_buffer_size(PART_BYTES)
            .with_retry_policy(WhileItMoves::new(taken))
            .with_backoff_policy(waits);
        let write = with_conditions(write, address, store.place.class_of(name));
        let task = tokio::spawn(write.send_buffered());
        Self {
            store,
            name: name.clone(),
            pieces,
            task,
            ended: None,
            crc: crc32c(),
            bytes: 0,
        }
    }

    /// Hands a piece to the task; `false` where it has ended.
    async fn hand_over(&mut self, piece: Piece) -> bool {
        if self.ended.is_some() {
            return false;
        }
        match tokio::time::timeout(PART_TIME_MAX, self.pieces.send(piece)).await {
            Ok(Ok(())) => true,
            Ok(Err(_)) => {
                self.end().await;
                false
            }
            Err(_) => {
                self.give_up();
                false
            }
        }
    }

    /// Waits for the task's end.
    async fn end(&mut self) {
        if self.ended.is_some() {
            return;
        }
        let Ok(joined) = tokio::time::timeout(PART_TIME_MAX, &mut self.task).await else {
            return self.give_up();
        };
        let ended = match joined {
            Ok(Ok(stored)) => self.checked(stored).await,
            Ok(Err(error)) if is_already_present(&error) => Ok(Created::AlreadyPresent),
            Ok(Err(error)) => match damaged(&error) {
                Some(stored) => self.checked(stored).await,
                None => Err(explain(&error, Asked::Create, &self.store.place.address)),
            },
            Err(error) => Err(Problem::invalid(format!(
                "the upload ended by itself: {error}"
            ))),
        };
        self.ended = Some(ended);
    }

    fn give_up(&mut self) {
        self.task.abort();
        let place = &self.store.place;
        place.renew(&place.current());
        self.ended = Some(Err(Problem::slow(PART_TIME_MAX)));
    }

    /// Compares what the service has with what was written. Usually it has done so itself, before the object
    /// appeared; where the session broke in between it was told no checksum.
    async fn checked(&self, stored: Stored) -> Result<Created, Problem> {
        let crc = stored
            .checksums
            .as_ref()
            .and_then(|checksums| checksums.crc32c);
        let whole = u64::try_from(stored.size).is_ok_and(|size| size == self.bytes);
        if whole && crc.is_none_or(|crc| crc == crc_of(&self.crc)) {
            return Ok(Created::New);
        }
        let place = &self.store.place;
        let full_name = place.address.object(self.name.as_str());
        let deleted = place.delete(&full_name, Some(stored.generation)).await;
        Err(match deleted {
            Ok(()) => Problem::unavailable(
                "the object arrived damaged and was deleted again; another attempt may succeed"
                    .to_owned(),
            ),
            Err(problem) => Problem::invalid(format!(
                "the object arrived damaged and could not be deleted again: delete it by hand ({})",
                problem.detail
            )),
        })
    }

    fn failed(&self, operation: &'static str, problem: Problem) -> StoreError {
        self.store.about(operation, &self.name, problem)
    }
}

/// The object that the library itself found damaged: it is there all the same.
fn damaged(error: &Error) -> Option<Stored> {
    match cause::<WriteError>(error)? {
        WriteError::ChecksumMismatch { object, .. } => Some(object.as_ref().clone()),
        _ => None,
    }
}

#[async_trait]
impl Upload for GcsUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.crc.update(&bytes);
        self.bytes += bytes.len() as u64;
        if self.hand_over(Piece::Bytes(bytes)).await {
            return Ok(());
        }
        match self.ended.clone() {
            // The service has said early what `complete` will say.
            Some(Ok(_)) | None => Ok(()),
            Some(Err(problem)) => Err(self.failed("upload", problem)),
        }
    }

    async fn complete(mut self: Box<Self>) -> Result<Created, StoreError> {
        self.hand_over(Piece::End).await;
        self.end().await;
        match self.ended.take() {
            Some(Ok(created)) => Ok(created),
            Some(Err(problem)) => Err(self.failed("complete upload of", problem)),
            None => Err(self.failed("complete upload of", Problem::slow(PART_TIME_MAX))),
        }
    }

    async fn abort(self: Box<Self>) {}
}

impl Drop for GcsUpload {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An object that is there whole, as the library reads it.
pub(super) struct Whole {
    parts: std::vec::IntoIter<Bytes>,
    bytes: u64,
}

impl Whole {
    pub(super) fn new(parts: Vec<Bytes>) -> Self {
        Self {
            bytes: parts.iter().map(|part| part.len() as u64).sum(),
            parts: parts.into_iter(),
        }
    }
}

impl StreamingSource for Whole {
    type Error = Infallible;

    async fn next(&mut self) -> Option<Result<Bytes, Infallible>> {
        self.parts.next().map(Ok)
    }

    async fn size_hint(&self) -> Result<SizeHint, Infallible> {
        Ok(SizeHint::with_exact(self.bytes))
    }
}

/// What the library reads from while an upload goes on.
struct Source {
    pieces: mpsc::Receiver<Piece>,
    /// What is left of the piece that is being handed on, and where it lies in the object.
    rest: Bytes,
    offset: u64,
    /// How often bytes were handed on: the library asks for more only when the part before has arrived.
    taken: Arc<AtomicU64>,
    ended: bool,
}

impl Source {
    fn new(pieces: mpsc::Receiver<Piece>, taken: Arc<AtomicU64>) -> Self {
        Self {
            pieces,
            rest: Bytes::new(),
            offset: 0,
            taken,
            ended: false,
        }
    }

    /// The rest, up to where the service may stop in the middle of a part. The library (1.21) goes on with the
    /// wrong bytes where it has to cut a piece in two itself.
    fn up_to_the_next_quantum(&mut self) -> Bytes {
        let room = QUANTUM_BYTES - self.offset % QUANTUM_BYTES;
        let bytes = room.min(self.rest.len() as u64);
        self.offset += bytes;
        self.taken.fetch_add(1, Ordering::Relaxed);
        // Not more than the rest has, so it fits.
        self.rest
            .split_to(usize::try_from(bytes).unwrap_or(usize::MAX))
    }
}

/// Whoever wrote the object went away.
#[derive(Debug, thiserror::Error)]
#[error("the upload was given up")]
struct GivenUp;

impl StreamingSource for Source {
    type Error = GivenUp;

    async fn next(&mut self) -> Option<Result<Bytes, GivenUp>> {
        while self.rest.is_empty() {
            if self.ended {
                return None;
            }
            match self.pieces.recv().await {
                Some(Piece::Bytes(bytes)) => self.rest = bytes,
                Some(Piece::End) => self.ended = true,
                None => return Some(Err(GivenUp)),
            }
        }
        Some(Ok(self.up_to_the_next_quantum()))
    }
}

/// Goes on with a session as long as it moves. A limit on the whole upload would end one that takes hours.
#[derive(Debug)]
struct WhileItMoves {
    taken: Arc<AtomicU64>,
    seen: AtomicU64,
    failures: AtomicU32,
}

impl WhileItMoves {
    fn new(taken: Arc<AtomicU64>) -> Self {
        Self {
            taken,
            seen: AtomicU64::new(0),
            failures: AtomicU32::new(0),
        }
    }
}

impl RetryPolicy for WhileItMoves {
    fn on_error(&self, state: &RetryState, error: Error) -> RetryResult {
        let taken = self.taken.load(Ordering::Relaxed);
        if self.seen.swap(taken, Ordering::Relaxed) != taken {
            self.failures.store(0, Ordering::Relaxed);
        }
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= PART_FAILURES_MAX {
            return RetryResult::Exhausted(error);
        }
        RetryableErrors.on_error(state, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_piece_lies_across_a_place_where_the_service_may_stop() {
        const QUANTUM: usize = 256 * 1024;
        let (sender, receiver) = mpsc::channel(4);
        let lengths = [1, QUANTUM - 2, 2 * QUANTUM + 2, 10];
        for length in lengths {
            let bytes = Bytes::from(vec![7; length]);
            assert!(sender.send(Piece::Bytes(bytes)).await.is_ok());
        }
        let taken = Arc::new(AtomicU64::new(0));
        let mut source = Source::new(receiver, Arc::clone(&taken));
        let mut handed_on = Vec::new();
        let mut end = 0;
        while end < lengths.iter().sum() {
            let piece = source.next().await.unwrap().unwrap();
            assert!(end / QUANTUM == (end + piece.len() - 1) / QUANTUM);
            end += piece.len();
            handed_on.push(piece.len());
        }
        assert_eq!(handed_on, [1, QUANTUM - 2, 1, QUANTUM, QUANTUM, 1, 10]);
        assert_eq!(taken.load(Ordering::Relaxed), 7);
        // The end is only what was said to be it, and no progress.
        assert!(sender.send(Piece::End).await.is_ok());
        assert!(source.next().await.is_none());
        assert!(source.next().await.is_none());
        assert_eq!(taken.load(Ordering::Relaxed), 7);
    }

    #[tokio::test]
    async fn that_nothing_more_comes_is_not_the_end() {
        let (sender, receiver) = mpsc::channel(1);
        drop(sender);
        let mut source = Source::new(receiver, Arc::default());
        assert!(source.next().await.unwrap().is_err());
    }

    fn broken() -> Error {
        Error::http(503, Default::default(), Bytes::new())
    }

    #[test]
    fn failures_are_counted_from_the_last_progress() {
        let taken = Arc::new(AtomicU64::new(0));
        let policy = WhileItMoves::new(Arc::clone(&taken));
        let state = RetryState::new(true);
        for _ in 0..3 {
            for _ in 1..PART_FAILURES_MAX {
                assert!(policy.on_error(&state, broken()).is_continue());
            }
            taken.fetch_add(1, Ordering::Relaxed);
        }
        for _ in 1..PART_FAILURES_MAX {
            assert!(policy.on_error(&state, broken()).is_continue());
        }
        assert!(policy.on_error(&state, broken()).is_exhausted());
    }

    #[test]
    fn what_cannot_heal_ends_an_upload_at_once() {
        let policy = WhileItMoves::new(Arc::default());
        let denied = Error::http(403, Default::default(), Bytes::new());
        assert!(
            policy
                .on_error(&RetryState::new(true), denied)
                .is_permanent()
        );
    }
}
