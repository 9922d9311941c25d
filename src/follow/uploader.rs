//! Sealed pieces into the store, a few at a time, retried for ever; what is durable moves in order. What waits
//! beyond half of the memory budget waits in the spool, where there is one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{
    Notify, OwnedSemaphorePermit, RwLock, RwLockReadGuard, RwLockWriteGuard, Semaphore, watch,
};
use tokio::task::JoinHandle;

use crate::archive::block::{BlockContext, Boundary};
use crate::archive::layout::{Object, ObjectName, Span};
use crate::archive::segment::verify_segment;
use crate::clock::Clock;
use crate::follow::budget::{Budget, Reservation};
use crate::follow::durable::Durable;
use crate::follow::rate::Rate;
use crate::follow::spool::{Share, Spool, SpoolError, Spooled};
use crate::position::Ticks;
use crate::store::{Store, StoreError, StoreErrorKind, create_or_same};

/// How much longer than ours an object may be that holds the same stream, cut into other blocks: bytes.
const SAME_STREAM_SLACK: u64 = 64 * 1024;
/// Pieces that are written at the same time.
pub const UPLOADS_IN_FLIGHT_MAX: usize = 4;
/// The first wait before a retry.
pub const RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest wait before a retry.
pub const RETRY_MAX: Duration = Duration::from_secs(30);
/// Uploads in a row that must succeed one at a time after one that failed, before they go together again: on a
/// slow line those that share it would all run out of time, again and again.
pub const ALONE_AFTER_FAILURE: u32 = 16;

/// A compressed block and its share of the memory budget.
pub type EncodedBlock = JoinHandle<(Bytes, Reservation)>;

/// A sealed piece on its way.
#[derive(Debug)]
pub struct Piece {
    /// What it covers.
    pub span: Span,
    /// The last command boundary inside.
    pub boundary: Option<Boundary>,
    /// Its blocks, in order, perhaps still being compressed.
    pub blocks: Vec<EncodedBlock>,
}

/// A piece whose blocks are compressed.
#[derive(Debug)]
enum Waiting {
    Memory(Vec<Bytes>, Vec<Reservation>),
    Spooled(Spooled),
}

/// A piece whose turn has not come.
#[derive(Debug)]
struct Queued {
    span: Span,
    boundary: Option<Boundary>,
    waiting: JoinHandle<Waiting>,
}

#[derive(Debug, Default)]
struct Queue {
    pieces: VecDeque<Queued>,
    /// Whether a task takes them out one by one.
    served: bool,
    /// Pieces that were put in, and that were taken out, since the start.
    came: u64,
    went: u64,
}

/// What the rest of the process may know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last command boundary up to which the store alone can rebuild everything.
    pub durable: Option<Boundary>,
    /// Pieces and snapshots stored.
    pub stored: u64,
    /// Pieces on their way.
    pub in_flight: usize,
    /// The store refuses at the moment, in its words.
    pub failing: Option<String>,
    /// A piece could not be read back from a scratch file: what follows it never becomes durable here.
    pub lost: Option<String>,
}

/// What all uploads of a process share, over links and timelines.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Memory for everything in flight.
    pub budget: Arc<Budget>,
    /// Where to put what exceeds it.
    pub spool: Option<Arc<Spool>>,
    /// How often an upload may begin; `None` as often as there is something.
    pub rate: Option<Arc<Mutex<Rate>>>,
    /// Tells the rate's time.
    pub clock: Arc<dyn Clock>,
}

/// Uploads for one timeline.
#[derive(Debug)]
pub struct Uploader {
    store: Arc<dyn Store>,
    context: BlockContext,
    shared: Shared,
    durable: Mutex<Durable>,
    progress: watch::Sender<Progress>,
    in_flight: AtomicUsize,
    queue: Mutex<Queue>,
    slots: Arc<Semaphore>,
    /// Bytes that are being uploaded.
    uploading: AtomicU64,
    uploaded: Notify,
    /// A piece was taken out of the queue.
    turn: Notify,
    line: Line,
}

/// The way to the store: shared while all is well, one upload at a time for a while after a failure.
#[derive(Debug, Default)]
struct Line {
    /// Fair: whoever goes alone waits for those on their way, and they do not overtake.
    lock: RwLock<()>,
    alone: AtomicU32,
}

/// A place on the line, until dropped.
enum OnLine<'a> {
    Together { _guard: RwLockReadGuard<'a, ()> },
    Alone { _guard: RwLockWriteGuard<'a, ()> },
}

impl Line {
    async fn enter(&self) -> OnLine<'_> {
        if self.alone.load(Ordering::Acquire) == 0 {
            let guard = self.lock.read().await;
            // It may have failed while this one waited.
            if self.alone.load(Ordering::Acquire) == 0 {
                return OnLine::Together { _guard: guard };
            }
        }
        OnLine::Alone {
            _guard: self.lock.write().await,
        }
    }

    fn failed(&self) {
        self.alone.store(ALONE_AFTER_FAILURE, Ordering::Release);
    }

    fn went_well(&self, on_line: &OnLine<'_>) {
        if matches!(on_line, OnLine::Alone { .. }) {
            let less = |alone: u32| Some(alone.saturating_sub(1));
            let _ = self
                .alone
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Uploader {
    /// Uploads under `context`; the archive already reaches up to `known`.
    pub fn new(
        store: Arc<dyn Store>,
        context: BlockContext,
        known: Option<Boundary>,
        shared: Shared,
    ) -> Arc<Self> {
        let durable = Durable::new(known);
        let progress = Progress {
            durable: durable.boundary(),
            ..Progress::default()
        };
        Arc::new(Self {
            store,
            context,
            shared,
            durable: Mutex::new(durable),
            progress: watch::Sender::new(progress),
            in_flight: AtomicUsize::new(0),
            queue: Mutex::default(),
            slots: Arc::new(Semaphore::new(UPLOADS_IN_FLIGHT_MAX)),
            uploading: AtomicU64::new(0),
            uploaded: Notify::new(),
            turn: Notify::new(),
            line: Line::default(),
        })
    }

    /// What blocks of this timeline say of themselves.
    pub fn context(&self) -> BlockContext {
        self.context
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// What it shares with all others.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Follows the progress.
    pub fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// The last durable command boundary.
    pub fn durable(&self) -> Option<Boundary> {
        self.progress.borrow().durable
    }

    /// Why not everything that was received will be in the store: a scratch file could not be read.
    pub fn lost(&self) -> Option<String> {
        self.progress.borrow().lost.clone()
    }

    /// Pieces on their way.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// When another piece would start at once rather than wait: until then the next one may go on gathering.
    /// `None` before one of those on their way is stored.
    pub fn ready_at(&self, now: Ticks) -> Option<Ticks> {
        if self.in_flight() >= UPLOADS_IN_FLIGHT_MAX {
            return None;
        }
        let rate = self.shared.rate.as_ref();
        Some(rate.map_or(now, |rate| lock(rate).ready_at(now)))
    }

    /// Starts to upload a piece. Retried until it is there or the process ends.
    pub fn submit(self: &Arc<Self>, piece: Piece) {
        let in_flight = self.in_flight.fetch_add(1, Ordering::AcqRel) + 1;
        self.progress
            .send_modify(|progress| progress.in_flight = in_flight);
        let mut queue = lock(&self.queue);
        let number = queue.came;
        queue.came += 1;
        let uploader = Arc::clone(self);
        queue.pieces.push_back(Queued {
            span: piece.span,
            boundary: piece.boundary,
            waiting: tokio::spawn(async move { uploader.compressed(piece.blocks, number).await }),
        });
        if !queue.served {
            queue.served = true;
            let uploader = Arc::clone(self);
            tokio::spawn(async move { uploader.serve_queue().await });
        }
    }

    /// Waits for the compression, and puts into the spool what will have to wait while memory is short.
    async fn compressed(&self, blocks: Vec<EncodedBlock>, number: u64) -> Waiting {
        let mut bytes = Vec::with_capacity(blocks.len());
        let mut held = Vec::with_capacity(blocks.len());
        for block in blocks {
            let (block, reservation) = block
                .await
                .expect("compression is neither cancelled nor panics");
            bytes.push(block);
            held.push(reservation);
        }
        let Some(spool) = &self.shared.spool else {
            return Waiting::Memory(bytes, held);
        };
        let length = bytes.iter().map(|bytes| bytes.len() as u64).sum();
        loop {
            let (turn, freed) = (self.turn.notified(), spool.freed());
            if !self.has_to_wait(number, length) || !self.shared.budget.is_over_half() {
                return Waiting::Memory(bytes, held);
            }
            bytes = match spool.put(bytes, Share::Whole).await {
                Ok(spooled) => return Waiting::Spooled(spooled),
                Err(bytes) => bytes,
            };
            if lock(&self.queue).went > number {
                return Waiting::Memory(bytes, held);
            }
            // Offered again when there is room, as long as it is not its turn.
            tokio::select! {
                () = turn => {}
                () = freed => {}
            }
        }
    }

    /// Whether the upload of a piece would not begin now.
    fn has_to_wait(&self, number: u64, bytes: u64) -> bool {
        let went = lock(&self.queue).went;
        let has_slot = went > number || (went == number && self.slots.available_permits() > 0);
        !has_slot || !self.may_upload(bytes)
    }

    /// Takes the pieces out in order, each when there is a slot, a token, and memory for it.
    async fn serve_queue(self: Arc<Self>) {
        loop {
            let slot = Arc::clone(&self.slots)
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            let queued = {
                let mut queue = lock(&self.queue);
                let Some(queued) = queue.pieces.pop_front() else {
                    queue.served = false;
                    return;
                };
                queue.went += 1;
                queued
            };
            self.turn.notify_waiters();
            self.token().await;
            let waiting = queued
                .waiting
                .await
                .expect("waiting in the spool neither panics nor is cancelled");
            let (bytes, held) = match self.in_memory(waiting).await {
                Ok(ready) => ready,
                Err(error) => {
                    self.lose(queued.span, &error);
                    continue;
                }
            };
            let uploader = Arc::clone(&self);
            tokio::spawn(async move {
                uploader
                    .upload(queued.span, queued.boundary, bytes, held, slot)
                    .await;
            });
        }
    }

    /// Waits until the rate allows another upload.
    async fn token(&self) {
        let Some(rate) = &self.shared.rate else {
            return;
        };
        loop {
            let now = self.shared.clock.ticks();
            let taken = lock(rate).take(now);
            match taken {
                Ok(()) => return,
                Err(ready) => tokio::time::sleep(Duration::from_millis(ready.since(now))).await,
            }
        }
    }

    /// With a spool, what is being uploaded leaves half of the memory to what comes in.
    fn may_upload(&self, bytes: u64) -> bool {
        let uploading = self.uploading.load(Ordering::Acquire);
        uploading == 0
            || self.shared.spool.is_none()
            || uploading + bytes <= self.shared.budget.bytes_max() / 2
    }

    /// Waits for memory, and reads back what was in the spool.
    async fn in_memory(
        &self,
        waiting: Waiting,
    ) -> Result<(Vec<Bytes>, Vec<Reservation>), SpoolError> {
        let budget = &self.shared.budget;
        let (length, spooled) = match &waiting {
            Waiting::Memory(bytes, _) => (bytes.iter().map(|b| b.len() as u64).sum(), false),
            Waiting::Spooled(spooled) => (spooled.bytes(), true),
        };
        loop {
            let uploaded = self.uploaded.notified();
            let freed = budget.freed();
            let alone = self.uploading.load(Ordering::Acquire) == 0;
            // Alone it goes on in any case: what holds the memory may be waiting behind it.
            let has_memory = !spooled || budget.used() + length <= budget.bytes_max();
            if alone || (has_memory && self.may_upload(length)) {
                break;
            }
            tokio::select! {
                () = uploaded => {}
                () = freed => {}
            }
        }
        self.uploading.fetch_add(length, Ordering::AcqRel);
        match waiting {
            Waiting::Memory(bytes, held) => Ok((bytes, held)),
            Waiting::Spooled(spooled) => {
                let held = budget.reserve(length);
                match spooled.take().await {
                    Ok(bytes) => Ok((vec![bytes], vec![held])),
                    Err(error) => {
                        self.end_upload(length);
                        Err(error)
                    }
                }
            }
        }
    }

    fn end_upload(&self, bytes: u64) {
        self.uploading.fetch_sub(bytes, Ordering::AcqRel);
        self.uploaded.notify_waiters();
    }

    /// Nothing behind such a piece is ever confirmed as durable here; whoever follows has to ask for it again.
    fn lose(&self, span: Span, error: &SpoolError) {
        tracing::error!(
            first = span.first.as_u64(),
            last = span.last.as_u64(),
            "{error}; asking the master for it again"
        );
        let in_flight = self.in_flight.fetch_sub(1, Ordering::AcqRel) - 1;
        self.progress.send_modify(|progress| {
            progress.in_flight = in_flight;
            progress.lost.get_or_insert_with(|| error.to_string());
        });
    }

    async fn upload(
        &self,
        span: Span,
        boundary: Option<Boundary>,
        mut bytes: Vec<Bytes>,
        held: Vec<Reservation>,
        slot: OwnedSemaphorePermit,
    ) {
        let length = bytes.iter().map(|bytes| bytes.len() as u64).sum();
        let object = Object::Segment {
            seq: self.context.timeline,
            id: self.context.id,
            span,
            merged: false,
        };
        let name = object.name();
        // Copied once here rather than for each try by a store that sends one body.
        if bytes.len() > 1 {
            bytes = vec![bytes.concat().into()];
        }
        self.create(&name, bytes).await;
        drop((held, slot));
        self.end_upload(length);
        tracing::debug!(object = %name, "segment stored");
        self.stored(|durable| durable.confirm(span, boundary));
    }

    /// Creates an object, however long it takes.
    async fn create(&self, name: &ObjectName, bytes: Vec<Bytes>) {
        let mut retry = Retry::new();
        loop {
            let on_line = self.line.enter().await;
            match create_or_same(&*self.store, name, bytes.clone()).await {
                Ok(_) => {
                    self.line.went_well(&on_line);
                    break;
                }
                // Another streamer of this history cut the same piece and noted other times inside.
                Err(error)
                    if error.kind == StoreErrorKind::Conflict
                        && self.holds_the_same_stream(name, &bytes).await =>
                {
                    break;
                }
                Err(error) => {
                    self.line.failed();
                    drop(on_line);
                    let wait = retry.after(&error);
                    let said = error.to_string();
                    self.progress
                        .send_modify(|progress| progress.failing = Some(said));
                    tokio::time::sleep(wait).await;
                }
            }
        }
        retry.recovered();
        self.progress
            .send_modify(|progress| progress.failing = None);
    }

    /// Whether the object that is there holds the same bytes of the replication stream.
    async fn holds_the_same_stream(&self, name: &ObjectName, bytes: &[Bytes]) -> bool {
        let Some(object) = Object::parse(name.as_str()) else {
            return false;
        };
        // Whatever is there: what is much longer than ours is not the same.
        let ours: u64 = bytes.iter().map(|piece| piece.len() as u64).sum();
        let range = 0..ours.saturating_mul(2).saturating_add(SAME_STREAM_SLACK);
        let Ok(present) = self.store.read(name, Some(range)).await else {
            return false;
        };
        let payloads = |bytes: Bytes| {
            let blocks = verify_segment(&object, bytes).ok()?;
            Some(
                blocks
                    .into_iter()
                    .map(|block| block.payload)
                    .collect::<Vec<_>>()
                    .concat(),
            )
        };
        let present = payloads(present);
        present.is_some() && present == payloads(bytes.concat().into())
    }

    fn stored(&self, change: impl FnOnce(&mut Durable)) {
        let boundary = {
            let mut durable = lock(&self.durable);
            change(&mut durable);
            durable.boundary()
        };
        let in_flight = self.in_flight.fetch_sub(1, Ordering::AcqRel) - 1;
        self.progress.send_modify(|progress| {
            progress.stored += 1;
            progress.in_flight = in_flight;
            // Two uploads may report in either order; what is durable never goes back.
            if progress.durable.map(|b| b.offset) < boundary.map(|b| b.offset) {
                progress.durable = boundary;
            }
        });
    }

    /// A snapshot at `at` is complete in the store.
    pub fn snapshot_complete(&self, at: Boundary) {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        self.stored(|durable| durable.base(at));
    }

    /// Waits until nothing is on its way.
    pub async fn drained(&self) {
        let mut progress = self.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = progress.wait_for(|progress| progress.in_flight == 0).await;
    }
}

/// Waits that grow, with jitter, and errors said once in a while instead of each time.
#[derive(Debug)]
pub struct Retry {
    attempts: u32,
}

impl Retry {
    /// Nothing has failed yet.
    pub fn new() -> Self {
        Self { attempts: 0 }
    }

    /// Notes a failure, says it, and tells how long to wait. What cannot heal by itself is retried slowly.
    pub fn after(&mut self, error: &StoreError) -> Duration {
        self.attempts += 1;
        let retryable = error.is_retryable();
        // The 1st, 2nd, 4th, 8th ... time, and every time for what somebody must change.
        if !retryable {
            tracing::error!(
                attempt = self.attempts,
                "{error}; still trying, but somebody must change something"
            );
        } else if self.attempts.is_power_of_two() {
            tracing::warn!(attempt = self.attempts, "{error}; still trying");
        }
        if retryable {
            jittered(backoff(RETRY_FIRST, RETRY_MAX, self.attempts))
        } else {
            jittered(RETRY_MAX)
        }
    }

    /// Says that it works again, if it had been said that it does not.
    pub fn recovered(&self) {
        if self.attempts > 0 {
            tracing::info!(attempts = self.attempts + 1, "the store works again");
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self::new()
    }
}

/// `first`, doubled with each attempt after the first, up to `longest`.
pub fn backoff(first: Duration, longest: Duration, attempts: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(attempts.saturating_sub(1).min(16));
    first.saturating_mul(doubled).min(longest)
}

/// Between half of `wait` and all of it, so that many processes do not retry in step.
pub fn jittered(wait: Duration) -> Duration {
    let drawn = crate::random::u32().unwrap_or(u32::MAX);
    wait.mul_f64(0.5 + f64::from(drawn) / f64::from(u32::MAX) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_a_bound() {
        let waits: Vec<u128> = (1..=6)
            .map(|n| backoff(RETRY_FIRST, Duration::from_secs(1), n).as_millis())
            .collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff(RETRY_FIRST, RETRY_MAX, u32::MAX), RETRY_MAX);
        let wait = jittered(Duration::from_secs(2));
        assert!(wait >= Duration::from_secs(1) && wait <= Duration::from_secs(2));
    }
}

#[cfg(test)]
mod queue_tests;
