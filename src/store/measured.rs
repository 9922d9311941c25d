//! Wraps a store and tells an [`Observer`] what became of each operation and how long it took: for metrics, for tests
//! that count, and for what an archive costs.
//!
//! What counts as one operation is one call that reaches the store: create, begin of an upload, each of its writes, its
//! completion, read, list, delete and prepare. One operation may be several requests of HTTP: a list asks once for
//! every [`LIST_PAGE_OBJECTS`] objects, an upload sends its parts as they fill, and what failed is tried again.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Created, Listed, Store, StoreError, StoreErrorKind, Upload};
use crate::archive::layout::ObjectName;
use crate::clock::Clock;
use crate::position::UnixMillis;

/// How many objects one request for a list brings, on S3 and on Google Cloud Storage.
pub const LIST_PAGE_OBJECTS: u64 = 1000;

/// The operations that are told apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Operation {
    /// [`Store::create`].
    Create,
    /// [`Store::begin_upload`].
    BeginUpload,
    /// [`Upload::write`].
    Write,
    /// [`Upload::complete`].
    Complete,
    /// [`Store::read`].
    Read,
    /// [`Store::list`].
    List,
    /// [`Store::delete`].
    Delete,
    /// [`Store::prepare`].
    Prepare,
}

impl Operation {
    /// All of them, in the order in which they are declared.
    pub const ALL: [Self; 8] = [
        Self::Create,
        Self::BeginUpload,
        Self::Write,
        Self::Complete,
        Self::Read,
        Self::List,
        Self::Delete,
        Self::Prepare,
    ];

    /// As a verb, for messages.
    pub const fn verb(self) -> &'static str {
        match self {
            Self::BeginUpload => "begin upload of",
            other => other.label(),
        }
    }

    /// As one word, for metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::BeginUpload => "begin_upload",
            Self::Write => "write",
            Self::Complete => "complete",
            Self::Read => "read",
            Self::List => "list",
            Self::Delete => "delete",
            Self::Prepare => "prepare",
        }
    }
}

/// An operation that came to its end. One that was dropped on the way is not told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Observation {
    /// What was done.
    pub operation: Operation,
    /// Whether it succeeded; otherwise what kind of thing went wrong.
    pub result: Result<(), StoreErrorKind>,
    /// How long it took, milliseconds.
    pub millis: u64,
    /// Bytes that were sent (create, write) or came (read); nothing for the others, nor for a read that failed.
    pub bytes: u64,
    /// Objects that a list brought.
    pub objects: u64,
}

/// Is told of every operation. Called on the way of the data: it must be quick and never wait.
pub trait Observer: fmt::Debug + Send + Sync {
    /// This happened.
    fn observe(&self, observation: &Observation);
}

/// Counts, in atomics that may be read at any time.
#[derive(Debug, Default)]
pub struct Counts {
    done: [AtomicU64; Operation::ALL.len()],
    failed: [AtomicU64; Operation::ALL.len()],
    bytes: [AtomicU64; Operation::ALL.len()],
    list_pages: AtomicU64,
}

impl Counts {
    /// Operations of this kind, failed or not.
    pub fn of(&self, operation: Operation) -> u64 {
        let at = operation as usize;
        self.done[at].load(Ordering::Relaxed) + self.failed[at].load(Ordering::Relaxed)
    }

    /// Operations of this kind that failed.
    pub fn failed(&self, operation: Operation) -> u64 {
        self.failed[operation as usize].load(Ordering::Relaxed)
    }

    /// Bytes that operations of this kind carried.
    pub fn bytes(&self, operation: Operation) -> u64 {
        self.bytes[operation as usize].load(Ordering::Relaxed)
    }

    /// Requests that the lists were, as pages of [`LIST_PAGE_OBJECTS`].
    pub fn list_pages(&self) -> u64 {
        self.list_pages.load(Ordering::Relaxed)
    }

    /// Operations of every kind.
    pub fn all(&self) -> u64 {
        Operation::ALL.into_iter().map(|kind| self.of(kind)).sum()
    }
}

impl Observer for Counts {
    fn observe(&self, observation: &Observation) {
        let at = observation.operation as usize;
        let counted = match observation.result {
            Ok(()) => &self.done[at],
            Err(_) => &self.failed[at],
        };
        counted.fetch_add(1, Ordering::Relaxed);
        self.bytes[at].fetch_add(observation.bytes, Ordering::Relaxed);
        if observation.operation == Operation::List {
            // A list without objects is a request, too; one that ends with a full page says so itself.
            let pages = observation.objects.div_ceil(LIST_PAGE_OBJECTS).max(1);
            self.list_pages.fetch_add(pages, Ordering::Relaxed);
        }
    }
}

/// A store whose operations are told to an observer.
#[derive(Clone, Debug)]
pub struct MeasuredStore {
    inner: Arc<dyn Store>,
    meter: Meter,
}

/// What measures: handed on to uploads.
#[derive(Clone, Debug)]
struct Meter {
    observer: Arc<dyn Observer>,
    clock: Arc<dyn Clock>,
}

impl Meter {
    async fn measure<T>(
        &self,
        operation: Operation,
        sent: u64,
        work: impl Future<Output = Result<T, StoreError>> + Send,
        // Bytes and objects that came.
        came: impl FnOnce(&T) -> (u64, u64) + Send,
    ) -> Result<T, StoreError> {
        let began = self.clock.ticks();
        let result = work.await;
        let (bytes, objects) = result.as_ref().map_or((0, 0), came);
        self.observer.observe(&Observation {
            operation,
            result: result.as_ref().map(|_| ()).map_err(|error| error.kind),
            millis: self.clock.ticks().since(began),
            bytes: sent + bytes,
            objects,
        });
        result
    }
}

impl MeasuredStore {
    /// Wraps `inner`. `clock` is what durations are taken with.
    pub fn new(inner: Arc<dyn Store>, observer: Arc<dyn Observer>, clock: Arc<dyn Clock>) -> Self {
        let meter = Meter { observer, clock };
        Self { inner, meter }
    }
}

const fn nothing<T>(_: &T) -> (u64, u64) {
    (0, 0)
}

#[async_trait]
impl Store for MeasuredStore {
    async fn create(&self, name: &ObjectName, body: Vec<Bytes>) -> Result<Created, StoreError> {
        let sent = body.iter().map(|part| part.len() as u64).sum();
        let work = self.inner.create(name, body);
        self.meter
            .measure(Operation::Create, sent, work, nothing)
            .await
    }

    async fn begin_upload(&self, name: &ObjectName) -> Result<Box<dyn Upload>, StoreError> {
        let work = self.inner.begin_upload(name);
        let inner = self
            .meter
            .measure(Operation::BeginUpload, 0, work, nothing)
            .await?;
        let meter = self.meter.clone();
        Ok(Box::new(MeasuredUpload { inner, meter }))
    }

    async fn read(
        &self,
        name: &ObjectName,
        range: Option<Range<u64>>,
    ) -> Result<Bytes, StoreError> {
        let work = self.inner.read(name, range);
        self.meter
            .measure(Operation::Read, 0, work, |bytes| (bytes.len() as u64, 0))
            .await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> Result<Vec<Listed>, StoreError> {
        let work = self.inner.list(prefix, start_after);
        self.meter
            .measure(Operation::List, 0, work, |listed| (0, listed.len() as u64))
            .await
    }

    async fn modified(&self, name: &ObjectName) -> Result<Option<UnixMillis>, StoreError> {
        let work = self.inner.modified(name);
        self.meter
            .measure(Operation::List, 0, work, |found| {
                (0, u64::from(found.is_some()))
            })
            .await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let work = self.inner.delete(name);
        self.meter
            .measure(Operation::Delete, 0, work, nothing)
            .await
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        let work = self.inner.prepare();
        self.meter
            .measure(Operation::Prepare, 0, work, nothing)
            .await
    }

    fn address(&self) -> String {
        self.inner.address()
    }
}

struct MeasuredUpload {
    inner: Box<dyn Upload>,
    meter: Meter,
}

#[async_trait]
impl Upload for MeasuredUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let sent = bytes.len() as u64;
        let work = self.inner.write(bytes);
        self.meter
            .measure(Operation::Write, sent, work, nothing)
            .await
    }

    async fn complete(self: Box<Self>) -> Result<Created, StoreError> {
        let Self { inner, meter } = *self;
        meter
            .measure(Operation::Complete, 0, inner.complete(), nothing)
            .await
    }

    fn held_bytes(&self) -> u64 {
        self.inner.held_bytes()
    }

    async fn abort(self: Box<Self>) {
        self.inner.abort().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::store::memory::MemoryStore;

    fn measured() -> (MeasuredStore, Arc<Counts>) {
        let counts = Arc::new(Counts::default());
        let store = MeasuredStore::new(
            Arc::new(MemoryStore::new()),
            Arc::clone(&counts) as Arc<dyn Observer>,
            Arc::new(SystemClock::new()),
        );
        (store, counts)
    }

    fn name(text: &str) -> ObjectName {
        ObjectName::new(text).unwrap()
    }

    #[tokio::test]
    async fn every_operation_is_told_once_with_what_it_carried() {
        let (store, counts) = measured();
        store
            .create(&name("a"), vec!["xyz".into(), "z".into()])
            .await
            .unwrap();
        store.read(&name("a"), Some(1..3)).await.unwrap();
        assert!(store.read(&name("b"), None).await.is_err());
        let mut upload = store.begin_upload(&name("c")).await.unwrap();
        upload.write("12345".into()).await.unwrap();
        upload.complete().await.unwrap();
        store.delete(&name("c")).await.unwrap();
        store.prepare().await.unwrap();
        let told: Vec<u64> = Operation::ALL.map(|kind| counts.of(kind)).to_vec();
        assert_eq!(told, [1, 1, 1, 1, 2, 0, 1, 1]);
        assert_eq!(counts.all(), 8);
        assert_eq!(counts.failed(Operation::Read), 1);
        assert_eq!(counts.bytes(Operation::Create), 4);
        assert_eq!(counts.bytes(Operation::Read), 2);
        assert_eq!(counts.bytes(Operation::Write), 5);
        assert_eq!(store.address(), "memory");
    }

    #[tokio::test]
    async fn a_list_is_as_many_requests_as_it_has_pages() {
        let (store, counts) = measured();
        store.list("", None).await.unwrap();
        assert_eq!(counts.list_pages(), 1, "an empty one is asked for as well");
        for number in 0..=LIST_PAGE_OBJECTS {
            let object = name(&format!("{number:06}"));
            store.create(&object, vec!["x".into()]).await.unwrap();
        }
        store.list("", None).await.unwrap();
        store.list("", Some("000900")).await.unwrap();
        assert_eq!(counts.list_pages(), 1 + 2 + 1);
        assert_eq!(counts.of(Operation::List), 3);
    }
}
