//! Wraps a store and lets its operations fail, at a place or at random from a seed: for tests.
//!
//! Counted is each [`Operation`]. Giving an upload up always succeeds.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

pub use super::Operation;
use super::{Created, Listed, Store, StoreError, StoreErrorKind, Upload};
use crate::archive::layout::ObjectName;
use crate::position::UnixMillis;

/// What happens to an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It is not done, and fails.
    Refuse,
    /// It stops half way and fails: of a body only the first half arrives and nothing appears, of an answer
    /// nothing is yielded.
    CutShort,
    /// It is done, this many milliseconds later.
    Delay(u64),
    /// It is done and reported as failed.
    DoneButReportedFailed,
}

/// The switch for a [`FaultyStore`]'s faults. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    state: Arc<Mutex<State>>,
    let_go: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    operations: u64,
    by_kind: BTreeMap<Operation, u64>,
    at: BTreeMap<u64, Fault>,
    at_kind: BTreeMap<(Operation, u64), Fault>,
    refuse_all: bool,
    delay_all: Option<u64>,
    hold_all: bool,
    random: Option<Random>,
}

#[derive(Debug)]
struct Random {
    state: u64,
    per_mille: u64,
    faults: Vec<Fault>,
}

impl Faults {
    /// No faults yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the `n`-th operation fail, counted from 1 over all kinds.
    pub fn at(&self, n: u64, fault: Fault) {
        self.lock().at.insert(n, fault);
    }

    /// Lets the `n`-th operation of one kind fail, counted from 1.
    pub fn at_kind(&self, operation: Operation, n: u64, fault: Fault) {
        self.lock().at_kind.insert((operation, n), fault);
    }

    /// Lets this many operations in a thousand fail, with one of `faults` each, as `seed` decides.
    pub fn at_random(&self, seed: u64, per_mille: u64, faults: &[Fault]) {
        self.lock().random = Some(Random {
            state: seed,
            per_mille,
            faults: faults.to_vec(),
        });
    }

    /// Refuses every operation, or no longer.
    pub fn refuse_all(&self, refuse: bool) {
        self.lock().refuse_all = refuse;
    }

    /// Delays every operation by this many milliseconds; 0 ends that.
    pub fn delay_all(&self, millis: u64) {
        self.lock().delay_all = (millis > 0).then_some(millis);
    }

    /// Holds every operation until this is taken back.
    pub fn hold_all(&self, hold: bool) {
        self.lock().hold_all = hold;
        self.let_go.notify_waiters();
    }

    /// Takes all faults back; what was counted stays.
    pub fn clear(&self) {
        let mut state = self.lock();
        *state = State {
            operations: state.operations,
            by_kind: std::mem::take(&mut state.by_kind),
            ..State::default()
        };
        self.let_go.notify_waiters();
    }

    /// How many operations there were.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// How many operations of one kind there were.
    pub fn count(&self, operation: Operation) -> u64 {
        self.lock().by_kind.get(&operation).copied().unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation, waits where it is to be late, and says how it fails.
    async fn meet(&self, operation: Operation) -> Option<Fault> {
        let (fault, delay) = self.lock().decide(operation);
        let late = match fault {
            Some(Fault::Delay(millis)) => Some(millis),
            _ => delay,
        };
        if let Some(millis) = late {
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        loop {
            let let_go = self.let_go.notified();
            if !self.lock().hold_all {
                break;
            }
            let_go.await;
        }
        fault.filter(|fault| !matches!(fault, Fault::Delay(_)))
    }
}

impl State {
    fn decide(&mut self, operation: Operation) -> (Option<Fault>, Option<u64>) {
        self.operations += 1;
        let of_kind = self.by_kind.entry(operation).or_insert(0);
        *of_kind += 1;
        let chosen = self
            .at
            .remove(&self.operations)
            .or_else(|| self.at_kind.remove(&(operation, *of_kind)));
        // Drawn at every operation, so that the other faults do not shift what the seed decides.
        let drawn = self.random.as_mut().and_then(Random::draw);
        let fault = if self.refuse_all {
            Some(Fault::Refuse)
        } else {
            chosen.or(drawn)
        };
        (fault, self.delay_all)
    }
}

impl Random {
    fn draw(&mut self) -> Option<Fault> {
        let fails = self.next() % 1000 < self.per_mille;
        let choice = self.next();
        let count = self.faults.len() as u64;
        if !fails || count == 0 {
            return None;
        }
        usize::try_from(choice % count)
            .ok()
            .and_then(|index| self.faults.get(index).copied())
    }

    /// Counts up by an odd number and mixes the bits (the generator known as SplitMix64).
    const fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}

/// A store whose operations fail as its [`Faults`] say.
#[derive(Clone, Debug)]
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    faults: Faults,
}

impl FaultyStore {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Store>, faults: Faults) -> Self {
        Self { inner, faults }
    }

    /// The switch.
    pub const fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Does what `work` does, unless a fault says otherwise.
    async fn with_fault<T>(
        &self,
        operation: Operation,
        name: Option<&ObjectName>,
        work: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        match self.faults.meet(operation).await {
            None | Some(Fault::Delay(_)) => work.await,
            Some(fault @ (Fault::Refuse | Fault::CutShort)) => {
                Err(failed(self.address(), operation, name, fault))
            }
            Some(fault @ Fault::DoneButReportedFailed) => {
                work.await?;
                Err(failed(self.address(), operation, name, fault))
            }
        }
    }
}

fn failed(
    address: String,
    operation: Operation,
    name: Option<&ObjectName>,
    fault: Fault,
) -> StoreError {
    let kind = StoreErrorKind::Unavailable;
    let detail = format!("made to fail ({fault:?})");
    match name {
        Some(name) => StoreError::new(kind, operation.verb(), name, address, detail),
        None => StoreError::about_store(kind, operation.verb(), address, detail),
    }
}

#[async_trait]
impl Store for FaultyStore {
    async fn create(&self, name: &ObjectName, body: Vec<Bytes>) -> Result<Created, StoreError> {
        let work = self.inner.create(name, body);
        self.with_fault(Operation::Create, Some(name), work).await
    }

    async fn begin_upload(&self, name: &ObjectName) -> Result<Box<dyn Upload>, StoreError> {
        let work = self.inner.begin_upload(name);
        let inner = self
            .with_fault(Operation::BeginUpload, Some(name), work)
            .await?;
        Ok(Box::new(FaultyUpload {
            inner,
            store: self.clone(),
            name: name.clone(),
        }))
    }

    async fn read(
        &self,
        name: &ObjectName,
        range: Option<Range<u64>>,
    ) -> Result<Bytes, StoreError> {
        let work = self.inner.read(name, range);
        self.with_fault(Operation::Read, Some(name), work).await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> Result<Vec<Listed>, StoreError> {
        let work = self.inner.list(prefix, start_after);
        self.with_fault(Operation::List, None, work).await
    }

    async fn modified(&self, name: &ObjectName) -> Result<Option<UnixMillis>, StoreError> {
        let work = self.inner.modified(name);
        self.with_fault(Operation::List, None, work).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let work = self.inner.delete(name);
        self.with_fault(Operation::Delete, Some(name), work).await
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        let work = self.inner.prepare();
        self.with_fault(Operation::Prepare, None, work).await
    }

    fn address(&self) -> String {
        format!("faulty {}", self.inner.address())
    }
}

struct FaultyUpload {
    inner: Box<dyn Upload>,
    store: FaultyStore,
    name: ObjectName,
}

#[async_trait]
impl Upload for FaultyUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let operation = Operation::Write;
        let fault = self.store.faults.meet(operation).await;
        match fault {
            None | Some(Fault::Delay(_)) => return self.inner.write(bytes).await,
            Some(Fault::Refuse) => {}
            Some(Fault::CutShort) => self.inner.write(bytes.slice(..bytes.len() / 2)).await?,
            Some(Fault::DoneButReportedFailed) => self.inner.write(bytes).await?,
        }
        let fault = fault.unwrap_or(Fault::Refuse);
        Err(failed(
            self.store.address(),
            operation,
            Some(&self.name),
            fault,
        ))
    }

    async fn complete(self: Box<Self>) -> Result<Created, StoreError> {
        let Self { inner, store, name } = *self;
        let operation = Operation::Complete;
        let fault = match store.faults.meet(operation).await {
            None | Some(Fault::Delay(_)) => return inner.complete().await,
            Some(fault) => fault,
        };
        if fault == Fault::DoneButReportedFailed {
            inner.complete().await?;
        } else {
            inner.abort().await;
        }
        Err(failed(store.address(), operation, Some(&name), fault))
    }

    async fn abort(self: Box<Self>) {
        self.inner.abort().await;
    }

    fn held_bytes(&self) -> u64 {
        self.inner.held_bytes()
    }
}
