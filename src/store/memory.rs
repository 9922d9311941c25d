//! A store in memory, for tests: as strict as the real ones, with a clock that is moved by hand.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

use super::{Created, Listed, Store, StoreError, StoreErrorKind, Upload};
use crate::archive::layout::ObjectName;
use crate::position::UnixMillis;

/// A store in memory. Clones share the objects.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    objects: BTreeMap<String, Stored>,
    now: UnixMillis,
}

#[derive(Debug)]
struct Stored {
    name: ObjectName,
    bytes: Bytes,
    modified: UnixMillis,
}

impl MemoryStore {
    /// An empty store, whose clock stands at 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the time at which objects are created from here on.
    pub fn set_now(&self, now: UnixMillis) {
        self.lock().now = now;
    }

    /// Puts an object there whatever was there before: damage, for tests.
    pub fn overwrite(&self, name: &ObjectName, bytes: Bytes) {
        let mut shared = self.lock();
        let stored = Stored {
            name: name.clone(),
            bytes,
            modified: shared.now,
        };
        shared.objects.insert(name.to_string(), stored);
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Every change is one insert or remove: a panic elsewhere leaves nothing half done.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, name: &ObjectName, bytes: Bytes) -> Created {
        let mut shared = self.lock();
        let modified = shared.now;
        if shared.objects.contains_key(name.as_str()) {
            return Created::AlreadyPresent;
        }
        let stored = Stored {
            name: name.clone(),
            bytes,
            modified,
        };
        shared.objects.insert(name.to_string(), stored);
        Created::New
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn create(&self, name: &ObjectName, body: Vec<Bytes>) -> Result<Created, StoreError> {
        Ok(self.insert(name, body.concat().into()))
    }

    async fn begin_upload(&self, name: &ObjectName) -> Result<Box<dyn Upload>, StoreError> {
        Ok(Box::new(MemoryUpload {
            store: self.clone(),
            name: name.clone(),
            bytes: BytesMut::new(),
        }))
    }

    async fn read(
        &self,
        name: &ObjectName,
        range: Option<Range<u64>>,
    ) -> Result<Bytes, StoreError> {
        let shared = self.lock();
        let Some(stored) = shared.objects.get(name.as_str()) else {
            return Err(StoreError::new(
                StoreErrorKind::NotFound,
                "read",
                name,
                self.address(),
                "there is no such object".to_owned(),
            ));
        };
        let Some(range) = range else {
            return Ok(stored.bytes.clone());
        };
        let within = |place| {
            usize::try_from(place).map_or(stored.bytes.len(), |place: usize| {
                place.min(stored.bytes.len())
            })
        };
        let end = within(range.end);
        let start = within(range.start).min(end);
        Ok(stored.bytes.slice(start..end))
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> Result<Vec<Listed>, StoreError> {
        let after = start_after.map_or(Bound::Unbounded, Bound::Excluded);
        Ok(self
            .lock()
            .objects
            .range::<str, _>((after, Bound::Unbounded))
            .filter(|(name, _)| name.starts_with(prefix))
            .map(|(_, stored)| Listed {
                name: stored.name.clone(),
                bytes: stored.bytes.len() as u64,
                modified: stored.modified,
            })
            .collect())
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.lock().objects.remove(name.as_str());
        Ok(())
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn address(&self) -> String {
        "memory".to_owned()
    }
}

struct MemoryUpload {
    store: MemoryStore,
    name: ObjectName,
    bytes: BytesMut,
}

#[async_trait]
impl Upload for MemoryUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn complete(self: Box<Self>) -> Result<Created, StoreError> {
        let Self { store, name, bytes } = *self;
        Ok(store.insert(&name, bytes.freeze()))
    }

    async fn abort(self: Box<Self>) {}
}
