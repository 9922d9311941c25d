//! A store on Amazon S3 and everything that speaks its protocol. Names are created with `If-None-Match: *`, which
//! fails where the name exists; S3 shows an object only when all of it has arrived, and answers when it is safe.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::Credentials;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::types::{ServerSideEncryption, StorageClass};
use bytes::{Bytes, BytesMut};
use tokio::sync::OnceCell;
use tokio::time::{sleep, timeout};

use super::{Created, Listed, Store, StoreError, StoreErrorKind, Upload};
use crate::archive::layout::{Object, ObjectName};
use crate::position::UnixMillis;

mod address;
mod client;
mod list_end;
mod prepare;
mod problem;
mod upload;

pub use upload::{PART_BYTES_FIRST, PARTS_HELD_BYTES_MAX};

use address::{Encryption, S3Address};
use client::{RETRY_FIRST, TRIES_MAX, limits, try_max};
use list_end::ListEnd;
use problem::{Action, Problem};

/// How often a create that met another one of the same name is tried. S3 asks for that with status 409.
const CONFLICT_TRIES_MAX: u32 = 6;
/// So much is reserved for an object because an answer says how long it is, in bytes; the rest as it comes.
const RESERVED_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// A store in a bucket.
#[derive(Clone)]
pub struct S3Store {
    place: Arc<Place>,
}

/// The bucket and the way to it.
struct Place {
    address: S3Address,
    /// Who we are, where the environment is not to be asked.
    credentials: Option<Credentials>,
    /// Made at the first request: opening a store costs nothing.
    client: OnceCell<Client>,
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the client: it knows the credentials.
        f.debug_tuple("S3Store").field(&self.place.address).finish()
    }
}

/// An operation that goes on, for errors: what was tried, and on what.
#[derive(Clone, Copy)]
struct Attempt<'a> {
    operation: &'static str,
    name: Option<&'a ObjectName>,
    action: Action,
}

impl<'a> Attempt<'a> {
    const fn on(operation: &'static str, name: &'a ObjectName, action: Action) -> Self {
        Self {
            operation,
            name: Some(name),
            action,
        }
    }

    const fn on_store(operation: &'static str, action: Action) -> Self {
        Self {
            operation,
            name: None,
            action,
        }
    }
}

impl S3Store {
    /// The store of an `s3://` address. Nothing is read or written yet.
    ///
    /// # Errors
    /// Says in words what is wrong with the address.
    pub fn open(url: &str) -> Result<Self, String> {
        Ok(Self {
            place: Arc::new(Place::new(S3Address::parse(url)?, None)),
        })
    }

    /// The same with these credentials instead of the ones that the environment knows.
    ///
    /// # Errors
    /// As [`S3Store::open`].
    #[cfg(any(test, feature = "faulty"))]
    pub fn open_as(url: &str, key: &str, secret: &str) -> Result<Self, String> {
        let credentials = Credentials::new(key, secret, None, None, "a test");
        Ok(Self {
            place: Arc::new(Place::new(S3Address::parse(url)?, Some(credentials))),
        })
    }

    /// All objects of the bucket whose keys begin with `prefix` and come after `start_after`.
    async fn list_keys(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        mut each: impl FnMut(String, u64, UnixMillis) + Send,
    ) -> Result<(), StoreError> {
        let attempt = Attempt::on_store("list", Action::List);
        let client = self.place.client(attempt).await?;
        let mut token: Option<String> = None;
        loop {
            let end = ListEnd::default();
            let page = client
                .list_objects_v2()
                .bucket(&self.place.address.bucket)
                .prefix(prefix)
                .set_start_after(start_after.map(str::to_owned))
                .set_continuation_token(token.clone())
                .customize()
                .interceptor(end.clone())
                .send()
                .await
                .map_err(|error| self.place.sdk_error(attempt, &error))?;
            if page.is_truncated.is_none() || !end.seen() {
                let detail = "the list did not arrive whole: is there a proxy in between?";
                return Err(self.place.error(
                    attempt,
                    StoreErrorKind::Unavailable,
                    detail.to_owned(),
                ));
            }
            for object in page.contents.unwrap_or_default() {
                let bytes = object
                    .size
                    .and_then(|size| u64::try_from(size).ok())
                    .unwrap_or(0);
                let modified = object.last_modified.and_then(|time| time.to_millis().ok());
                let modified = modified
                    .and_then(|time| u64::try_from(time).ok())
                    .unwrap_or(0);
                if let Some(key) = object.key {
                    each(key, bytes, UnixMillis(modified));
                }
            }
            if page.is_truncated != Some(true) {
                return Ok(());
            }
            // The same place again would be an endless list.
            if page.next_continuation_token.is_none() || page.next_continuation_token == token {
                let detail =
                    "the list breaks off: the store says that there is more, but not where";
                return Err(self.place.error(
                    attempt,
                    StoreErrorKind::Unavailable,
                    detail.to_owned(),
                ));
            }
            token = page.next_continuation_token;
        }
    }
}

impl Place {
    fn new(address: S3Address, credentials: Option<Credentials>) -> Self {
        Self {
            address,
            credentials,
            client: OnceCell::new(),
        }
    }

    /// The client, made at the first call.
    async fn client(&self, attempt: Attempt<'_>) -> Result<&Client, StoreError> {
        self.client
            .get_or_try_init(|| client::connect(&self.address, self.credentials.clone()))
            .await
            .map_err(|detail| self.error(attempt, StoreErrorKind::Invalid, detail))
    }

    fn error(&self, attempt: Attempt<'_>, kind: StoreErrorKind, detail: String) -> StoreError {
        let address = self.address.shown.clone();
        match attempt.name {
            Some(name) => StoreError::new(kind, attempt.operation, name, address, detail),
            None => StoreError::about_store(kind, attempt.operation, address, detail),
        }
    }

    fn problem(&self, attempt: Attempt<'_>, problem: &Problem) -> StoreError {
        let (kind, detail) = problem.explain(attempt.action, &self.address);
        self.error(attempt, kind, detail)
    }

    fn sdk_error<E>(&self, attempt: Attempt<'_>, error: &SdkError<E, HttpResponse>) -> StoreError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        self.problem(attempt, &Problem::of(error))
    }

    fn encryption(&self) -> (Option<ServerSideEncryption>, Option<String>) {
        match &self.address.encryption {
            Encryption::BucketDefault => (None, None),
            Encryption::Aes256 => (Some(ServerSideEncryption::Aes256), None),
            Encryption::Kms(key) => (Some(ServerSideEncryption::AwsKms), key.clone()),
        }
    }

    /// The storage class of an object: the bucket's own, but for snapshots.
    fn storage_class(&self, name: &ObjectName) -> Option<StorageClass> {
        let class = self.address.snapshot_storage_class.as_deref()?;
        let is_snapshot = Object::parse(name.as_str()).is_some_and(|object| object.is_snapshot());
        is_snapshot.then(|| StorageClass::from(class))
    }

    /// Puts an object unless one of that key is there. A conflict with another such request is tried again.
    async fn put_once(
        &self,
        client: &Client,
        key: &str,
        class: Option<StorageClass>,
        body: Bytes,
    ) -> Result<Created, Problem> {
        let (encryption, encryption_key) = self.encryption();
        let mut tries = 0;
        loop {
            let put = client
                .put_object()
                .bucket(&self.address.bucket)
                .key(key)
                .if_none_match("*")
                .set_server_side_encryption(encryption.clone())
                .set_ssekms_key_id(encryption_key.clone())
                .set_storage_class(class.clone())
                // A reference to the same bytes.
                .body(body.clone().into())
                .customize()
                .config_override(limits(body.len() as u64));
            let Err(error) = put.send().await else {
                return Ok(Created::New);
            };
            let problem = Problem::of(&error);
            if problem.is_present() {
                return Ok(Created::AlreadyPresent);
            }
            tries += 1;
            if !problem.is_conflict() || tries >= CONFLICT_TRIES_MAX {
                return Err(problem);
            }
            sleep(RETRY_FIRST.saturating_mul(tries)).await;
        }
    }

    /// Deletes an object; that there is none is success.
    async fn delete_key(&self, client: &Client, key: &str) -> Result<(), Problem> {
        let delete = client
            .delete_object()
            .bucket(&self.address.bucket)
            .key(key)
            .send();
        match delete.await {
            Ok(_) => Ok(()),
            Err(error) => {
                let problem = Problem::of(&error);
                if problem.is(&["NoSuchKey"]) {
                    Ok(())
                } else {
                    Err(problem)
                }
            }
        }
    }

    /// The length of an object, or nothing where there is none.
    async fn length(&self, client: &Client, key: &str) -> Result<Option<u64>, Problem> {
        let head = client
            .head_object()
            .bucket(&self.address.bucket)
            .key(key)
            .send();
        match head.await {
            Ok(head) => Ok(head
                .content_length
                .and_then(|length| u64::try_from(length).ok())),
            Err(error) => {
                let problem = Problem::of(&error);
                // An answer to HEAD has no body, hence no word for what is missing.
                if problem.status == Some(404) {
                    Ok(None)
                } else {
                    Err(problem)
                }
            }
        }
    }

    /// Reads an object, or a part of it, once.
    async fn get(
        &self,
        client: &Client,
        name: &ObjectName,
        range: Option<&Range<u64>>,
    ) -> Result<Bytes, Got> {
        let get = client
            .get_object()
            .bucket(&self.address.bucket)
            .key(self.address.key(name.as_str()))
            .set_range(range.map(range_header));
        let output = match get.send().await {
            Ok(output) => output,
            Err(error) => {
                let problem = Problem::of(&error);
                if range.is_some() && problem.is_past_the_end() {
                    return Ok(Bytes::new());
                }
                return Err(Got::Refused(problem));
            }
        };
        let length = output
            .content_length()
            .and_then(|length| u64::try_from(length).ok());
        if let Some(range) = range {
            let wanted = range.end - range.start;
            let is_part = output.content_range().is_some();
            if !is_part && (range.start > 0 || length.is_none_or(|length| length > wanted)) {
                return Err(Got::NoRanges);
            }
        }
        let limit = try_max(length.unwrap_or_default());
        match timeout(limit, body_of(output, length.unwrap_or_default())).await {
            Ok(body) => body.map_err(Got::Broken),
            Err(_) => Err(Got::Broken(Problem::too_slow())),
        }
    }
}

/// Why a read brought nothing.
enum Got {
    /// The answer was no.
    Refused(Problem),
    /// The answer broke off.
    Broken(Problem),
    /// All of it came, where a part was asked for.
    NoRanges,
}

async fn body_of(output: GetObjectOutput, length: u64) -> Result<Bytes, Problem> {
    let mut body = output.body;
    let reserved = length.min(RESERVED_BYTES_MAX);
    let mut bytes = BytesMut::with_capacity(usize::try_from(reserved).unwrap_or_default());
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| Problem::of_body(&error))?;
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

/// `bytes=first-last`, the last one included; open where numbers of 63 bits end.
fn range_header(range: &Range<u64>) -> String {
    match i64::try_from(range.end) {
        Ok(end) => format!("bytes={}-{}", range.start, end - 1),
        Err(_) => format!("bytes={}-", range.start),
    }
}

fn one_body(parts: Vec<Bytes>) -> Bytes {
    match <[Bytes; 1]>::try_from(parts) {
        Ok([only]) => only,
        // A copy while the request lasts, so that the signature covers the bytes and a retry finds them.
        Err(parts) => parts.concat().into(),
    }
}

#[async_trait]
impl Store for S3Store {
    async fn create(&self, name: &ObjectName, body: Vec<Bytes>) -> Result<Created, StoreError> {
        let attempt = Attempt::on("create", name, Action::Put);
        let place = &self.place;
        let client = place.client(attempt).await?;
        let key = place.address.key(name.as_str());
        place
            .put_once(client, &key, place.storage_class(name), one_body(body))
            .await
            .map_err(|problem| place.problem(attempt, &problem))
    }

    async fn begin_upload(&self, name: &ObjectName) -> Result<Box<dyn Upload>, StoreError> {
        let attempt = Attempt::on("begin upload of", name, Action::Put);
        // Nothing is asked of the store before there is a part to send.
        let client = self.place.client(attempt).await?.clone();
        Ok(Box::new(upload::S3Upload::new(
            Arc::clone(&self.place),
            client,
            name.clone(),
        )))
    }

    async fn read(
        &self,
        name: &ObjectName,
        range: Option<Range<u64>>,
    ) -> Result<Bytes, StoreError> {
        let attempt = Attempt::on("read", name, Action::Get);
        let place = &self.place;
        let client = place.client(attempt).await?;
        if range.as_ref().is_some_and(Range::is_empty) {
            // Such a range cannot be spelled; whether the object is there must be answered all the same.
            let key = place.address.key(name.as_str());
            return match place.length(client, &key).await {
                Ok(Some(_)) => Ok(Bytes::new()),
                Ok(None) => {
                    let detail = "there is no such object".to_owned();
                    Err(place.error(attempt, StoreErrorKind::NotFound, detail))
                }
                Err(problem) => Err(place.problem(attempt, &problem)),
            };
        }
        let mut tries = 0;
        loop {
            let problem = match place.get(client, name, range.as_ref()).await {
                Ok(bytes) => return Ok(bytes),
                Err(Got::NoRanges) => {
                    let detail = "the store ignores Range and would send all of the object: choose another store";
                    return Err(place.error(attempt, StoreErrorKind::Invalid, detail.to_owned()));
                }
                Err(Got::Refused(problem)) => return Err(place.problem(attempt, &problem)),
                Err(Got::Broken(problem)) => problem,
            };
            // The SDK tries again only what fails before the body begins.
            tries += 1;
            if tries >= TRIES_MAX {
                return Err(place.problem(attempt, &problem));
            }
            sleep(RETRY_FIRST.saturating_mul(tries)).await;
        }
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> Result<Vec<Listed>, StoreError> {
        let address = &self.place.address;
        let mut found = Vec::new();
        let after = start_after.map(|after| address.key(after));
        self.list_keys(
            &address.key(prefix),
            after.as_deref().filter(|after| !after.is_empty()),
            |key, bytes, modified| {
                let name = key.strip_prefix(&address.prefix).map(ObjectName::new);
                if let Some(Ok(name)) = name {
                    found.push(Listed {
                        name,
                        bytes,
                        modified,
                    });
                }
            },
        )
        .await?;
        // Not every server that speaks the protocol sorts, or minds where to begin.
        found.retain(|listed| {
            let name = listed.name.as_str();
            name.starts_with(prefix) && start_after.is_none_or(|after| name > after)
        });
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found.dedup_by(|a, b| a.name == b.name);
        Ok(found)
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let attempt = Attempt::on("delete", name, Action::Delete);
        let place = &self.place;
        let client = place.client(attempt).await?;
        place
            .delete_key(client, &place.address.key(name.as_str()))
            .await
            .map_err(|problem| place.problem(attempt, &problem))
    }

    async fn modified(&self, name: &ObjectName) -> Result<Option<UnixMillis>, StoreError> {
        let attempt = Attempt::on("look at", name, Action::Get);
        let place = &self.place;
        let client = place.client(attempt).await?;
        let key = place.address.key(name.as_str());
        let head = client
            .head_object()
            .bucket(&place.address.bucket)
            .key(key)
            .send()
            .await;
        match head {
            Ok(head) => Ok(head
                .last_modified
                .and_then(|time| u64::try_from(time.to_millis().ok()?).ok())
                .map(UnixMillis)),
            Err(error) => {
                let problem = Problem::of(&error);
                if problem.status == Some(404) {
                    return Ok(None);
                }
                Err(place.problem(attempt, &problem))
            }
        }
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        prepare::prepare(self).await
    }

    fn address(&self) -> String {
        self.place.address.shown.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_spelled_with_their_last_byte() {
        assert_eq!(range_header(&(0..1)), "bytes=0-0");
        assert_eq!(range_header(&(5..99)), "bytes=5-98");
        assert_eq!(range_header(&(7..u64::MAX)), "bytes=7-");
    }

    #[test]
    fn opening_shows_what_was_typed_and_connects_nowhere() {
        let store = S3Store::open("s3://bucket/a?endpoint=http://127.0.0.1:1").unwrap();
        assert_eq!(store.address(), "s3://bucket/a?endpoint=http://127.0.0.1:1");
        assert!(S3Store::open("s3://bucket/a?regoin=x").is_err());
    }
}
