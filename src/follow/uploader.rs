//! Sealed pieces into the store, a few at a time, retried for ever; what is durable moves in order.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use crate::archive::block::{BlockContext, Boundary};
use crate::archive::layout::{Object, ObjectName, Span};
use crate::archive::segment::verify_segment;
use crate::follow::budget::Reservation;
use crate::follow::durable::Durable;
use crate::store::{Store, StoreError, StoreErrorKind, create_or_same};

/// Pieces that are written at the same time.
pub const UPLOADS_IN_FLIGHT_MAX: usize = 4;
/// The first wait before a retry.
pub const RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest wait before a retry.
pub const RETRY_MAX: Duration = Duration::from_secs(30);

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
}

/// Uploads for one timeline.
#[derive(Debug)]
pub struct Uploader {
    store: Arc<dyn Store>,
    context: BlockContext,
    durable: Mutex<Durable>,
    progress: watch::Sender<Progress>,
    in_flight: AtomicUsize,
    slots: Semaphore,
}

impl Uploader {
    /// Uploads under `context`; the archive already reaches up to `known`.
    pub fn new(store: Arc<dyn Store>, context: BlockContext, known: Option<Boundary>) -> Arc<Self> {
        let durable = Durable::new(known);
        let progress = Progress {
            durable: durable.boundary(),
            ..Progress::default()
        };
        Arc::new(Self {
            store,
            context,
            durable: Mutex::new(durable),
            progress: watch::Sender::new(progress),
            in_flight: AtomicUsize::new(0),
            slots: Semaphore::new(UPLOADS_IN_FLIGHT_MAX),
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

    /// Follows the progress.
    pub fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// The last durable command boundary.
    pub fn durable(&self) -> Option<Boundary> {
        self.progress.borrow().durable
    }

    /// Pieces on their way.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Whether another piece would start at once rather than wait: else the next one may go on gathering.
    pub fn has_slot(&self) -> bool {
        self.in_flight() < UPLOADS_IN_FLIGHT_MAX
    }

    /// Starts to upload a piece. Retried until it is there or the process ends.
    pub fn submit(self: &Arc<Self>, piece: Piece) {
        let in_flight = self.in_flight.fetch_add(1, Ordering::AcqRel) + 1;
        self.progress
            .send_modify(|progress| progress.in_flight = in_flight);
        let uploader = Arc::clone(self);
        tokio::spawn(async move { uploader.upload(piece).await });
    }

    async fn upload(self: Arc<Self>, piece: Piece) {
        let mut bytes = Vec::with_capacity(piece.blocks.len());
        let mut held = Vec::with_capacity(piece.blocks.len());
        for block in piece.blocks {
            let (block, reservation) = block
                .await
                .expect("compression is neither cancelled nor panics");
            bytes.push(block);
            held.push(reservation);
        }
        let object = Object::Segment {
            seq: self.context.timeline,
            id: self.context.id,
            span: piece.span,
            merged: false,
        };
        let name = object.name();
        {
            let _slot = self
                .slots
                .acquire()
                .await
                .expect("the semaphore is never closed");
            self.create(&name, bytes).await;
        }
        drop(held);
        tracing::debug!(object = %name, "segment stored");
        self.stored(|durable| durable.confirm(piece.span, piece.boundary));
    }

    /// Creates an object, however long it takes.
    async fn create(&self, name: &ObjectName, bytes: Vec<Bytes>) {
        let mut retry = Retry::new();
        loop {
            match create_or_same(&*self.store, name, bytes.clone()).await {
                Ok(_) => break,
                // Another streamer of this history cut the same piece and noted other times inside.
                Err(error)
                    if error.kind == StoreErrorKind::Conflict
                        && self.holds_the_same_stream(name, &bytes).await =>
                {
                    break;
                }
                Err(error) => {
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
        let Ok(present) = self.store.read(name, None).await else {
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
            let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
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
    let random = getrandom::u32().unwrap_or(u32::MAX);
    wait.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX) / 2.0)
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
