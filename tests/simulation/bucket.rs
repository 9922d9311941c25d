//! The store: one bucket for all, behind a network of its own. What a process asks for comes late, out of order, not at all,
//! or is done and reported as failed; what was on its way when the process died is done or not.

use std::cell::RefCell;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use perennial::archive::layout::ObjectName;
use perennial::position::UnixMillis;
use perennial::store::memory::MemoryStore;
use perennial::store::{Created, Listed, Store, StoreError, StoreErrorKind, Upload};
use tokio::time::Instant;

use crate::wire::{Process, is_dead};
use crate::{chance, clock, trace};

thread_local! {
    static WEATHER: RefCell<Weather> = RefCell::new(Weather::default());
}

/// How the store is at the moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// A request takes up to so many milliseconds.
    pub latency_max: u64,
    /// So many in a hundred fail.
    pub fails_percent: u64,
    /// Everything is refused until then.
    pub refuses_until: Option<Instant>,
    /// Nothing is answered until then.
    pub hangs_until: Option<Instant>,
}

/// Changes how the store is.
pub fn weather(change: impl FnOnce(&mut Weather)) {
    WEATHER.with_borrow_mut(change);
}

/// The bucket as one process sees it.
#[derive(Clone, Debug)]
pub struct Bucket {
    objects: MemoryStore,
    process: Process,
}

/// What becomes of a request.
enum Fate {
    Done,
    Refused,
    DoneButFailed,
}

impl Bucket {
    pub fn new(objects: MemoryStore, process: Process) -> Self {
        Self { objects, process }
    }

    /// Does `work` as the weather allows, in a task of its own: it goes on without whoever asked.
    async fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        name: &str,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (process, objects) = (self.process, self.objects.clone());
        let text = format!("store {process} {what} {name}");
        let task = tokio::spawn(async move {
            let fate = on_the_way().await;
            // On its way when its process died: half of it arrives.
            if is_dead(process) && chance::percent(50) {
                std::future::pending::<()>().await;
            }
            let outcome = match fate {
                Fate::Refused => Err(failed(what)),
                Fate::Done | Fate::DoneButFailed => {
                    objects.set_now(UnixMillis(clock::store_unix()));
                    trace::bytes(text.as_bytes());
                    trace::bytes(&chance::elapsed().as_millis().to_le_bytes());
                    work.await
                }
            };
            tokio::time::sleep(latency()).await;
            match fate {
                Fate::DoneButFailed => Err(failed(what)),
                Fate::Done | Fate::Refused => outcome,
            }
        });
        let outcome = task.await;
        if is_dead(process) {
            std::future::pending::<()>().await;
        }
        outcome.unwrap_or_else(|_| Err(failed(what)))
    }
}

fn latency() -> Duration {
    let longest = WEATHER.with_borrow(|weather| weather.latency_max);
    let longest = if chance::percent(3) {
        longest * 20
    } else {
        longest
    };
    chance::millis(0, longest / 2)
}

async fn on_the_way() -> Fate {
    tokio::time::sleep(latency()).await;
    let weather = WEATHER.with_borrow(|weather| *weather);
    let now = chance::now();
    if let Some(until) = weather.hangs_until.filter(|until| *until > now) {
        tokio::time::sleep_until(until).await;
    }
    if weather.refuses_until.is_some_and(|until| until > now) {
        return Fate::Refused;
    }
    match chance::percent(weather.fails_percent) {
        false => Fate::Done,
        true => {
            trace::count("store faults");
            match chance::percent(50) {
                true => Fate::Refused,
                false => Fate::DoneButFailed,
            }
        }
    }
}

fn failed(what: &'static str) -> StoreError {
    StoreError::about_store(
        StoreErrorKind::Unavailable,
        what,
        "simulated".into(),
        "made to fail".into(),
    )
}

#[async_trait]
impl Store for Bucket {
    async fn create(&self, name: &ObjectName, body: Vec<Bytes>) -> Result<Created, StoreError> {
        let (objects, name) = (self.objects.clone(), name.clone());
        let text = name.to_string();
        self.ask(
            "create",
            &text,
            async move { objects.create(&name, body).await },
        )
        .await
    }

    async fn begin_upload(&self, name: &ObjectName) -> Result<Box<dyn Upload>, StoreError> {
        self.ask("begin", name.as_str(), async { Ok(()) }).await?;
        Ok(Box::new(Uploading {
            bucket: self.clone(),
            name: name.clone(),
            body: Vec::new(),
        }))
    }

    async fn read(
        &self,
        name: &ObjectName,
        range: Option<Range<u64>>,
    ) -> Result<Bytes, StoreError> {
        let (objects, name) = (self.objects.clone(), name.clone());
        let text = name.to_string();
        self.ask(
            "read",
            &text,
            async move { objects.read(&name, range).await },
        )
        .await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> Result<Vec<Listed>, StoreError> {
        let (objects, prefix) = (self.objects.clone(), prefix.to_owned());
        let (text, after) = (prefix.clone(), start_after.map(str::to_owned));
        self.ask("list", &text, async move {
            objects.list(&prefix, after.as_deref()).await
        })
        .await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let (objects, name) = (self.objects.clone(), name.clone());
        let text = name.to_string();
        trace::count("objects deleted");
        self.ask("delete", &text, async move { objects.delete(&name).await })
            .await
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        self.ask("prepare", "", async { Ok(()) }).await
    }

    fn address(&self) -> String {
        "simulated".into()
    }
}

struct Uploading {
    bucket: Bucket,
    name: ObjectName,
    body: Vec<Bytes>,
}

#[async_trait]
impl Upload for Uploading {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.bucket
            .ask("write", self.name.as_str(), async { Ok(()) })
            .await?;
        self.body.push(bytes);
        Ok(())
    }

    async fn complete(self: Box<Self>) -> Result<Created, StoreError> {
        let Self { bucket, name, body } = *self;
        let objects = bucket.objects.clone();
        let text = name.to_string();
        bucket
            .ask("complete", &text, async move {
                objects.create(&name, body).await
            })
            .await
    }

    async fn abort(self: Box<Self>) {}
}
