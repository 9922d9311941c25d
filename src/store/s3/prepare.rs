//! What is found out before an archive is written: that the bucket is there, that we may write, that a create is
//! conditional. And parts that a crash left behind are freed.
//!
//! The proof needs no permission to delete. A probe is created under a name that no object of an archive can have; the
//! second create must find it. Where it may be deleted it is; where it stays, the next start finds it with one request,
//! and that proves the same: who may not write is refused before the store looks for the object.

use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use bytes::Bytes;

use super::problem::{Action, Problem};
use super::{Attempt, Place, S3Store};
use crate::archive::layout::{Object, PROBE};
use crate::store::{Created, StoreError, StoreErrorKind};

/// What the probe holds, for whoever finds it.
const PROBE_TEXT: &str = "written by perennial to see whether this store creates objects conditionally; may be deleted\n";
/// Parts of an upload that began so long ago belong to nobody any more, in seconds.
const LEFTOVER_SECONDS_MIN: i64 = 24 * 60 * 60;
/// So many leftovers are freed at one start.
const LEFTOVERS_MAX: usize = 1000;
/// So many pages of a thousand uploads are looked at for them: also where a store gives the same page for ever.
const LEFTOVER_PAGES_MAX: usize = 20;

pub(super) async fn prepare(store: &S3Store) -> Result<(), StoreError> {
    let attempt = Attempt::on_store("prepare", Action::Put);
    let place = &store.place;
    let client = place.client(attempt).await?;
    let is_conditional = creates_once(place, client)
        .await
        .map_err(|problem| place.problem(attempt, &problem))?;
    if !is_conditional {
        let detail = "the store ignores If-None-Match and overwrites what is there: two writers would destroy each \
                      other's archive; choose a store with conditional writes, or a newer version of this one";
        return Err(place.error(attempt, StoreErrorKind::Invalid, detail.to_owned()));
    }
    // Costs nothing but space: never a reason not to start.
    if let Err(problem) = free_leftovers(place, client).await {
        let (_, detail) = problem.explain(Action::ListUploads, &place.address);
        tracing::debug!(
            archive = place.address.shown,
            "parts of old uploads cannot be looked for: {detail}"
        );
    }
    Ok(())
}

/// Whether the second create of one name finds the first. A second try has a name of its own: between the two
/// creates of the first, another process that was done may have deleted what it had created.
async fn creates_once(place: &Place, client: &Client) -> Result<bool, Problem> {
    let random = getrandom::u64().unwrap_or_default();
    for name in [PROBE.to_owned(), format!("{PROBE}-{random:016x}")] {
        let key = place.address.key(&name);
        let create = || {
            place.put_once(
                client,
                &key,
                None,
                Bytes::from_static(PROBE_TEXT.as_bytes()),
            )
        };
        if create().await? == Created::AlreadyPresent {
            return Ok(true);
        }
        let second = create().await?;
        // Denied, or held by a lock: it stays, and is small.
        if let Err(problem) = place.delete_key(client, &key).await {
            let (_, detail) = problem.explain(Action::Delete, &place.address);
            tracing::debug!("the probe {key} stays: {detail}");
        }
        if second == Created::AlreadyPresent {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Gives up uploads of this archive's objects that began long ago. "Now" is the store's clock, which dated them.
async fn free_leftovers(place: &Place, client: &Client) -> Result<(), Problem> {
    let (mut key_marker, mut upload_marker) = (None, None);
    let mut freed = 0;
    for _ in 0..LEFTOVER_PAGES_MAX {
        let date = Date::default();
        let page = client
            .list_multipart_uploads()
            .bucket(&place.address.bucket)
            .prefix(&place.address.prefix)
            .set_key_marker(key_marker.take())
            .set_upload_id_marker(upload_marker.take())
            .customize()
            .interceptor(date.clone())
            .send()
            .await
            .map_err(|error| Problem::of(&error))?;
        let Some(now) = date.seen() else {
            return Ok(());
        };
        for upload in page.uploads() {
            let (Some(key), Some(id), Some(begun)) =
                (upload.key(), upload.upload_id(), upload.initiated())
            else {
                continue;
            };
            if now - begun.secs() < LEFTOVER_SECONDS_MIN || !is_ours(place, key) {
                continue;
            }
            if freed == LEFTOVERS_MAX {
                return Ok(());
            }
            free(place, client, key, id).await?;
            freed += 1;
        }
        key_marker = page.next_key_marker.filter(|marker| !marker.is_empty());
        upload_marker = page.next_upload_id_marker;
        if page.is_truncated != Some(true) || key_marker.is_none() {
            break;
        }
    }
    Ok(())
}

fn is_ours(place: &Place, key: &str) -> bool {
    key.strip_prefix(&place.address.prefix)
        .is_some_and(|name| name == PROBE || Object::parse(name).is_some())
}

async fn free(place: &Place, client: &Client, key: &str, upload: &str) -> Result<(), Problem> {
    let aborted = client
        .abort_multipart_upload()
        .bucket(&place.address.bucket)
        .key(key)
        .upload_id(upload)
        .send()
        .await;
    match aborted.map_err(|error| Problem::of(&error)) {
        // Another process was quicker.
        Err(problem) if !problem.is(&["NoSuchUpload"]) => Err(problem),
        _ => {
            tracing::info!("freed the parts of an upload that was never completed: {key}");
            Ok(())
        }
    }
}

/// Reads the store's clock off an answer, in seconds since the epoch.
#[derive(Clone, Default, Debug)]
struct Date(Arc<Mutex<Option<i64>>>);

impl Date {
    fn seen(&self) -> Option<i64> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Intercept for Date {
    fn name(&self) -> &'static str {
        "the store's clock"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context
            .response()
            .headers()
            .get("date")
            .and_then(|text| DateTime::from_str(text, DateTimeFormat::HttpDate).ok());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = date.map(|date| date.secs());
        Ok(())
    }
}
