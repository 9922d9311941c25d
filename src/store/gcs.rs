//! A store in a bucket of Google Cloud Storage. An object is created only where none of its name is
//! (`ifGenerationMatch=0`), in one request or, where it is large, at the end of a resumable session: so names
//! appear whole and once.
//!
//! Checksums: everything written is sent with its CRC-32C, which the service checks before the object appears,
//! or is compared with the service's own afterwards where a session broke in between. An object that is read as
//! a whole is compared with the service's CRC-32C; parts of objects are not (the archive's blocks have checksums
//! of their own).

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};
use google_cloud_gax::error::Error;
use google_cloud_storage::builder::storage::WriteObject;
use google_cloud_storage::model::{ListObjectsResponse, Object as Stored};
use google_cloud_storage::model_ext::ReadRange;
use tokio::sync::OnceCell;

use super::{Created, Listed, Store, StoreError, Upload};
use crate::archive::layout::{Object, ObjectName, PROBE};
use crate::position::UnixMillis;

mod address;
mod client;
mod problem;
#[cfg(test)]
pub(super) mod tests;
mod upload;

pub use address::GcsAddress;
use client::{ATTEMPT_TIME_MAX, Clients, attempts, time_for, within};
use problem::{Asked, Problem, explain, is_refused_to_replace, said, status};
use upload::{GcsUpload, Whole};

/// Objects asked for in one page of a list; more are not given.
const LIST_PAGE_OBJECTS: i32 = 1000;
/// So much is reserved for an object because an answer says how long it is, in bytes; the rest as it comes.
const RESERVED_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// What is in it, for whoever finds it.
const PROBE_TEXT: &[u8] =
    b"Created by Perennial to see whether it may write here. It may be deleted.\n";

/// A store in a bucket.
#[derive(Clone, Debug)]
pub struct GcsStore {
    place: Arc<Place>,
}

/// The place, and the clients once they are made.
#[derive(Debug)]
struct Place {
    address: GcsAddress,
    clients: Mutex<Arc<OnceCell<Clients>>>,
}

impl GcsStore {
    /// A store at `address`. Nothing is asked yet, not even for credentials.
    pub fn new(address: GcsAddress) -> Self {
        Self {
            place: Arc::new(Place {
                address,
                clients: Mutex::default(),
            }),
        }
    }

    fn about(&self, operation: &'static str, name: &ObjectName, problem: Problem) -> StoreError {
        StoreError::new(
            problem.kind,
            operation,
            name,
            self.address(),
            problem.detail,
        )
    }

    fn about_store(&self, operation: &'static str, problem: Problem) -> StoreError {
        StoreError::about_store(problem.kind, operation, self.address(), problem.detail)
    }
}

#[async_trait]
impl Store for GcsStore {
    async fn create(&self, name: &ObjectName, body: Vec<Bytes>) -> Result<Created, StoreError> {
        let full_name = self.place.address.object(name.as_str());
        let (crc, bytes) = crc_and_length(&body);
        let class = self.place.class_of(name);
        attempts(|| {
            let created = self.place.create(&full_name, &body, crc, class);
            self.place.within(time_for(bytes), created)
        })
        .await
        .map(|stored| match stored {
            Some(_) => Created::New,
            None => Created::AlreadyPresent,
        })
        .map_err(|problem| self.about("create", name, problem))
    }

    async fn begin_upload(&self, name: &ObjectName) -> Result<Box<dyn Upload>, StoreError> {
        let clients = attempts(|| self.place.within(ATTEMPT_TIME_MAX, self.place.clients()))
            .await
            .map_err(|problem| self.about("begin upload of", name, problem))?;
        let upload = GcsUpload::begin(self.clone(), &clients.objects, name);
        Ok(Box::new(upload))
    }

    async fn read(
        &self,
        name: &ObjectName,
        range: Option<Range<u64>>,
    ) -> Result<Bytes, StoreError> {
        attempts(|| self.place.read(name, range.as_ref()))
            .await
            .map_err(|problem| self.about("read", name, problem))
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> Result<Vec<Listed>, StoreError> {
        self.place
            .list(prefix, start_after)
            .await
            .map_err(|problem| self.about_store("list", problem))
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let full_name = self.place.address.object(name.as_str());
        self.place
            .delete(&full_name, None)
            .await
            .map_err(|problem| self.about("delete", name, problem))
    }

    async fn modified(&self, name: &ObjectName) -> Result<Option<UnixMillis>, StoreError> {
        let full_name = self.place.address.object(name.as_str());
        let page = attempts(|| {
            self.place.within(
                ATTEMPT_TIME_MAX,
                self.place.page(name.as_str(), None, "", 1),
            )
        });
        let page = page
            .await
            .map_err(|problem| self.about_store("list", problem))?;
        let found = page.objects.iter().find(|object| object.name == full_name);
        Ok(found.map(|object| listed(name.clone(), object).modified))
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        self.place
            .prepare()
            .await
            .map_err(|problem| self.about_store("prepare", problem))
    }

    fn address(&self) -> String {
        self.place.address.to_string()
    }
}

impl Place {
    async fn clients(&self) -> Result<Clients, Problem> {
        let cell = self.current();
        let made = cell.get_or_try_init(|| Clients::new(&self.address));
        made.await.cloned()
    }

    fn current(&self) -> Arc<OnceCell<Clients>> {
        let current = self.clients.lock();
        Arc::clone(&current.unwrap_or_else(PoisonError::into_inner))
    }

    /// Whoever asks next gets new clients, unless somebody has seen to that.
    fn renew(&self, used: &Arc<OnceCell<Clients>>) {
        let mut current = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&current, used) {
            *current = Arc::default();
        }
    }

    /// Runs `work`, and says so when it takes too long. It may hang with its connection, which all requests share
    /// (HTTP/2) and the library never looks after: without new clients they would hang until the system gives that
    /// connection up, a quarter of an hour later.
    async fn within<T>(
        &self,
        time_max: Duration,
        work: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        let used = self.current();
        within(time_max, work, || self.renew(&used)).await
    }

    /// The storage class that is asked for: only snapshots are large enough to be worth one.
    fn class_of(&self, name: &ObjectName) -> Option<&str> {
        match Object::parse(name.as_str()) {
            Some(object) if object.is_snapshot() => self.address.snapshot_storage_class.as_deref(),
            _ => None,
        }
    }

    /// Creates an object in one request; `None` where one of that name was there.
    async fn create(
        &self,
        full_name: &str,
        body: &[Bytes],
        crc: u32,
        class: Option<&str>,
    ) -> Result<Option<Stored>, Problem> {
        let clients = self.clients().await?;
        let write = clients
            .objects
            .write_object(
                self.address.bucket_resource(),
                full_name,
                Whole::new(body.to_vec()),
            )
            .with_known_crc32c(crc)
            // Always one request: a piece that is tried again is sent again as a whole.
            .with_resumable_upload_threshold(usize::MAX);
        let write = with_conditions(write, &self.address, class);
        match write.send_buffered().await {
            Ok(stored) => Ok(Some(stored)),
            Err(error) if is_already_present(&error) => Ok(None),
            Err(error) => Err(explain(&error, Asked::Create, &self.address)),
        }
    }

    /// One attempt to read an object or a part of it.
    async fn read(&self, name: &ObjectName, range: Option<&Range<u64>>) -> Result<Bytes, Problem> {
        let failed = |error: &Error| explain(error, Asked::Read, &self.address);
        let answer = async {
            let clients = self.clients().await?;
            let request = clients
                .objects
                .read_object(
                    self.address.bucket_resource(),
                    self.address.object(name.as_str()),
                )
                .set_read_range(range.map_or_else(ReadRange::all, as_asked));
            match request.send().await {
                // It begins past the end, and the object is there.
                Err(error) if status(&error) == Some(416) => Ok(None),
                answer => answer.map(Some).map_err(|error| failed(&error)),
            }
        };
        let Some(mut answer) = self.within(ATTEMPT_TIME_MAX, answer).await? else {
            return Ok(Bytes::new());
        };
        let object = answer.object();
        let size = u64::try_from(object.size).unwrap_or(0);
        let expected = range.map_or(size, |range| {
            range.end.min(size).saturating_sub(range.start)
        });
        let body = async {
            let reserved = expected.min(RESERVED_BYTES_MAX);
            let mut bytes = BytesMut::with_capacity(usize::try_from(reserved).unwrap_or(0));
            while let Some(chunk) = answer.next().await {
                bytes.extend_from_slice(&chunk.map_err(|error| failed(&error))?);
            }
            Ok(bytes)
        };
        let mut bytes = self.within(time_for(expected), body).await?;
        // One byte was asked for where none was wanted, to learn whether the object is there.
        if range.is_some_and(Range::is_empty) {
            bytes.clear();
        }
        let crc = object.checksums.and_then(|checksums| checksums.crc32c);
        checked(
            bytes.freeze(),
            expected,
            (expected == size).then_some(crc).flatten(),
        )
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<Listed>, Problem> {
        let all = self.address.object("");
        let mut found = Vec::new();
        let mut token = String::new();
        loop {
            let page = attempts(|| {
                let page = self.page(prefix, start_after, &token, LIST_PAGE_OBJECTS);
                self.within(ATTEMPT_TIME_MAX, page)
            })
            .await?;
            for object in page.objects {
                let name = object.name.strip_prefix(&all).map(ObjectName::new);
                let Some(Ok(name)) = name else { continue };
                // The service begins with the name itself.
                if start_after.is_some_and(|after| name.as_str() <= after) {
                    continue;
                }
                found.push(listed(name, &object));
            }
            if page.next_page_token.is_empty() {
                break;
            }
            if page.next_page_token == token {
                return Err(Problem::invalid(
                    "the list never ends: the endpoint gives the same page again".to_owned(),
                ));
            }
            token = page.next_page_token;
        }
        found.sort_by(|a: &Listed, b| a.name.cmp(&b.name));
        Ok(found)
    }

    async fn page(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        token: &str,
        objects: i32,
    ) -> Result<ListObjectsResponse, Problem> {
        let clients = self.clients().await?;
        let request = clients
            .control
            .list_objects()
            .set_parent(self.address.bucket_resource())
            .set_prefix(self.address.object(prefix))
            .set_lexicographic_start(
                start_after.map_or_else(String::new, |after| self.address.object(after)),
            )
            .set_page_size(objects)
            .set_page_token(token);
        request
            .send()
            .await
            .map_err(|error| explain(&error, Asked::List, &self.address))
    }

    /// Deletes an object; with `generation`, only that one.
    async fn delete(&self, full_name: &str, generation: Option<i64>) -> Result<(), Problem> {
        let once = || async {
            let clients = self.clients().await?;
            let request = clients
                .control
                .delete_object()
                .set_bucket(self.address.bucket_resource())
                .set_object(full_name)
                .set_or_clear_if_generation_match(generation);
            match request.send().await {
                Err(error) if status(&error) != Some(404) => {
                    Err(explain(&error, Asked::Delete, &self.address))
                }
                _ => Ok(()),
            }
        };
        attempts(|| self.within(ATTEMPT_TIME_MAX, once())).await
    }

    /// Proves that the bucket is there, that it can be listed and written, and that creating is conditional.
    async fn prepare(&self) -> Result<(), Problem> {
        attempts(|| self.within(ATTEMPT_TIME_MAX, self.page("", None, "", 1))).await?;
        let name = self.address.object(PROBE);
        let body = [Bytes::from_static(PROBE_TEXT)];
        let (crc, bytes) = crc_and_length(&body);
        let probe = || self.within(time_for(bytes), self.create(&name, &body, crc, None));
        // Where one was left, by somebody who may not delete it, finding it proves both.
        let Some(created) = attempts(probe).await? else {
            return Ok(());
        };
        let again = attempts(probe).await?;
        // Nobody but its creator deletes it, so this proves nothing wrong when several start at once. Whoever
        // may not delete leaves it there.
        if let Err(problem) = self.delete(&name, Some(created.generation)).await {
            tracing::debug!("the probe {name} stays: {}", problem.detail);
        }
        match again {
            None => Ok(()),
            Some(_) => Err(Problem::invalid(
                "an object was created over another one: this endpoint ignores the condition ifGenerationMatch, and                  two writers would destroy each other's data; use Google's own, or another store"
                    .to_owned(),
            )),
        }
    }
}

/// What every write has: it creates and never replaces.
fn with_conditions<T>(
    write: WriteObject<T>,
    address: &GcsAddress,
    class: Option<&str>,
) -> WriteObject<T> {
    let mut write = write.set_if_generation_match(0);
    if let Some(key) = &address.kms_key_name {
        write = write.set_kms_key(key);
    }
    if let Some(class) = class {
        write = write.set_storage_class(class);
    }
    write
}

/// Whether a write was refused because an object of that name is there. Who may not delete may be told that
/// instead of the failed condition: replacing would be deleting.
fn is_already_present(error: &Error) -> bool {
    match status(error) {
        Some(412) => true,
        Some(403) => is_refused_to_replace(&said(error)),
        _ => false,
    }
}

/// A range as the service takes it: at least one byte, and in numbers that it knows.
fn as_asked(range: &Range<u64>) -> ReadRange {
    let bytes = range.end.saturating_sub(range.start).max(1);
    let known = i64::MAX.unsigned_abs();
    if range.start.saturating_add(bytes) > known {
        return ReadRange::offset(range.start.min(known));
    }
    ReadRange::segment(range.start, bytes)
}

fn checked(bytes: Bytes, expected: u64, crc: Option<u32>) -> Result<Bytes, Problem> {
    if bytes.len() as u64 != expected {
        return Err(Problem::unavailable(format!(
            "{} bytes arrived instead of {expected}",
            bytes.len()
        )));
    }
    if crc.is_some_and(|crc| crc != crc_and_length(std::slice::from_ref(&bytes)).0) {
        return Err(Problem::unavailable(
            "the bytes arrived damaged: their CRC-32C is not the service's".to_owned(),
        ));
    }
    Ok(bytes)
}

fn listed(name: ObjectName, object: &Stored) -> Listed {
    let created = object.create_time.unwrap_or_default();
    let millis = created.seconds().saturating_mul(1000) + i64::from(created.nanos() / 1_000_000);
    Listed {
        name,
        bytes: u64::try_from(object.size).unwrap_or(0),
        modified: UnixMillis(u64::try_from(millis).unwrap_or(0)),
    }
}

/// The CRC-32C of all parts together, and how many bytes they are.
fn crc_and_length(parts: &[Bytes]) -> (u32, u64) {
    let mut digest = crc32c();
    for part in parts {
        digest.update(part);
    }
    let bytes = parts.iter().map(|part| part.len() as u64).sum();
    (crc_of(&digest), bytes)
}

fn crc32c() -> Digest {
    Digest::new(CrcAlgorithm::Crc32Iscsi)
}

fn crc_of(digest: &Digest) -> u32 {
    u32::try_from(digest.finalize()).expect("a CRC of 32 bits has 32 bits")
}
