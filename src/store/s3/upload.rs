//! Large objects in parts. What fits into one part is put whole, so that small objects cost one request.
//!
//! S3 takes 10,000 parts of one object, so parts grow: memory stays small for what is common, and the largest object
//! still fits. Bytes are held in two places only, the part that gathers and the part that is being sent.

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::{Bytes, BytesMut};
use tokio::task::JoinHandle;

use super::address::Checksums;
use super::client::{limits, try_max};
use super::problem::{Action, Problem};
use super::{Attempt, Place};
use crate::archive::layout::ObjectName;
use crate::store::{Created, StoreError, StoreErrorKind, Upload};

/// Bytes of the first parts.
pub const PART_BYTES_FIRST: usize = 8 * 1024 * 1024;
/// So many parts have one size before they double.
const PARTS_OF_A_SIZE: usize = 640;
/// How often they double: 640 parts of 8 MiB, 640 of 16 MiB and 8,720 of 32 MiB are 308 GB.
const DOUBLINGS_MAX: usize = 2;
/// S3 takes no more parts of one object.
const PARTS_MAX: usize = 10_000;
/// The most bytes that an upload holds, gathering and being sent: while large parts are sent, nothing gathers.
pub const PARTS_HELD_BYTES_MAX: usize = PART_BYTES_FIRST << DOUBLINGS_MAX;
/// Putting the parts together takes a store this long for each, as the bytes that would be carried in that time.
const COMPLETE_BYTES_PER_PART: u64 = 64 * 1024;

/// The size of a part, from 1.
fn part_bytes(number: usize) -> usize {
    let doublings = (number.saturating_sub(1) / PARTS_OF_A_SIZE).min(DOUBLINGS_MAX);
    PART_BYTES_FIRST << doublings
}

/// A large object on its way.
pub(super) struct S3Upload {
    place: Arc<Place>,
    client: Client,
    name: ObjectName,
    gathering: BytesMut,
    /// There is one as soon as the first part is full.
    upload: Option<String>,
    /// The part that is being sent.
    flight: Option<Flight>,
    sent: Vec<CompletedPart>,
    is_lost: bool,
}

struct Flight {
    bytes: usize,
    part: JoinHandle<Result<CompletedPart, Problem>>,
}

impl S3Upload {
    pub(super) fn new(place: Arc<Place>, client: Client, name: ObjectName) -> Self {
        Self {
            place,
            client,
            name,
            gathering: BytesMut::new(),
            upload: None,
            flight: None,
            sent: Vec::new(),
            is_lost: false,
        }
    }

    fn key(&self) -> String {
        self.place.address.key(self.name.as_str())
    }

    fn error(&self, operation: &'static str, problem: &Problem) -> StoreError {
        self.place
            .problem(Attempt::on(operation, &self.name, Action::Put), problem)
    }

    fn lost(&self, operation: &'static str) -> StoreError {
        self.place.error(
            Attempt::on(operation, &self.name, Action::Put),
            StoreErrorKind::Unavailable,
            "an earlier write failed or was given up: begin again".to_owned(),
        )
    }

    /// The number of the part that gathers, from 1.
    fn number(&self) -> usize {
        self.sent.len() + usize::from(self.flight.is_some()) + 1
    }

    /// Begins the upload in the store, once.
    async fn begin(&mut self) -> Result<String, Problem> {
        if let Some(upload) = &self.upload {
            return Ok(upload.clone());
        }
        let (encryption, encryption_key) = self.place.encryption();
        let with_checksums = self.place.address.checksums == Checksums::WhenSupported;
        let begun = self
            .client
            .create_multipart_upload()
            .bucket(&self.place.address.bucket)
            .key(self.key())
            .set_server_side_encryption(encryption)
            .set_ssekms_key_id(encryption_key)
            .set_storage_class(self.place.storage_class(&self.name))
            .set_checksum_algorithm(with_checksums.then_some(ChecksumAlgorithm::Crc32))
            .send()
            .await
            .map_err(|error| Problem::of(&error))?;
        let upload = begun.upload_id.ok_or_else(Problem::unreadable)?;
        self.upload = Some(upload.clone());
        Ok(upload)
    }

    /// Waits for the part that is being sent.
    async fn land(&mut self) -> Result<(), Problem> {
        if let Some(flight) = self.flight.take() {
            let part = flight
                .part
                .await
                .unwrap_or_else(|error| Err(Problem::of_body(&error)))?;
            self.sent.push(part);
        }
        Ok(())
    }

    /// Sends what has gathered, one part at a time.
    async fn send(&mut self) -> Result<(), Problem> {
        let upload = self.begin().await?;
        self.land().await?;
        let number = self.number();
        let body = std::mem::take(&mut self.gathering).freeze();
        self.flight = Some(Flight {
            bytes: body.len(),
            part: tokio::spawn(send_part(
                Arc::clone(&self.place),
                self.client.clone(),
                self.key(),
                upload,
                number,
                body,
            )),
        });
        let next = part_bytes(self.number());
        if self
            .flight
            .as_ref()
            .is_some_and(|flight| flight.bytes + next > PARTS_HELD_BYTES_MAX)
        {
            self.land().await?;
        }
        // Not touched before it is filled, so not resident either.
        self.gathering.reserve(next);
        Ok(())
    }

    async fn gather(&mut self, mut bytes: Bytes) -> Result<(), Problem> {
        while !bytes.is_empty() {
            let size = part_bytes(self.number());
            let room = size.saturating_sub(self.gathering.len());
            let now = bytes.split_to(room.min(bytes.len()));
            self.gathering.extend_from_slice(&now);
            if self.gathering.len() >= size {
                if self.number() > PARTS_MAX {
                    return Err(Problem::too_large());
                }
                self.send().await?;
            }
        }
        Ok(())
    }

    /// Puts the parts together under the name.
    async fn put_together(&mut self, upload: &str) -> Result<Created, Problem> {
        if !self.gathering.is_empty() {
            self.send().await?;
        }
        self.land().await?;
        let parts = std::mem::take(&mut self.sent);
        let allowance = parts.len() as u64 * COMPLETE_BYTES_PER_PART;
        let completed = self
            .client
            .complete_multipart_upload()
            .bucket(&self.place.address.bucket)
            .key(self.key())
            .upload_id(upload)
            .if_none_match("*")
            .multipart_upload(
                CompletedMultipartUpload::builder()
                    .set_parts(Some(parts))
                    .build(),
            )
            .customize()
            .config_override(limits(allowance))
            .send()
            .await;
        let problem = match completed {
            Ok(_) => return Ok(Created::New),
            Err(error) => Problem::of(&error),
        };
        if problem.is_present() {
            return Ok(Created::AlreadyPresent);
        }
        // Another one for this name was under way; or ours was done in a try whose answer was lost.
        let may_be_there = problem.is_conflict() || problem.is(&["NoSuchUpload"]);
        if may_be_there {
            let there = self.place.length(&self.client, &self.key()).await?;
            if there.is_some() {
                return Ok(Created::AlreadyPresent);
            }
        }
        Err(problem)
    }

    /// Takes what is to be freed in the store.
    fn leftover(&mut self) -> Option<Leftover> {
        Some(Leftover {
            upload: self.upload.take()?,
            key: self.key(),
            client: self.client.clone(),
            place: Arc::clone(&self.place),
            flight: self.flight.take(),
        })
    }

    async fn clean_up(&mut self) {
        self.is_lost = true;
        self.gathering = BytesMut::new();
        if let Some(leftover) = self.leftover() {
            leftover.free().await;
        }
    }
}

async fn send_part(
    place: Arc<Place>,
    client: Client,
    key: String,
    upload: String,
    number: usize,
    body: Bytes,
) -> Result<CompletedPart, Problem> {
    // Never above PARTS_MAX.
    let number = i32::try_from(number).unwrap_or(i32::MAX);
    let bytes = body.len() as u64;
    let sent = client
        .upload_part()
        .bucket(&place.address.bucket)
        .key(key)
        .upload_id(upload)
        .part_number(number)
        .body(body.into())
        .customize()
        .config_override(limits(bytes))
        .send()
        .await
        .map_err(|error| Problem::of(&error))?;
    Ok(CompletedPart::builder()
        .part_number(number)
        .set_e_tag(sent.e_tag)
        .set_checksum_crc32(sent.checksum_crc32)
        .build())
}

/// Parts in the store of an upload that will not be completed.
struct Leftover {
    upload: String,
    key: String,
    client: Client,
    place: Arc<Place>,
    flight: Option<Flight>,
}

impl Leftover {
    /// As far as it can be done; what is left then, `prepare` clears away, or a rule of the bucket.
    async fn free(self) {
        if let Some(flight) = self.flight {
            flight.part.abort();
            let _ = flight.part.await;
        }
        let aborted = self
            .client
            .abort_multipart_upload()
            .bucket(&self.place.address.bucket)
            .key(self.key)
            .upload_id(self.upload)
            .send();
        if let Ok(Err(error)) = tokio::time::timeout(try_max(0), aborted).await {
            let problem = Problem::of(&error);
            let (_, detail) = problem.explain(Action::Abort, &self.place.address);
            tracing::debug!("parts of an upload stay behind: {detail}");
        }
    }
}

impl Drop for S3Upload {
    fn drop(&mut self) {
        let Some(leftover) = self.leftover() else {
            return;
        };
        // Without a runtime the process is ending.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(leftover.free());
        }
    }
}

#[async_trait]
impl Upload for S3Upload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        if self.is_lost {
            return Err(self.lost("write"));
        }
        // Not taken back before all has gone well: a write that was given up half way must not be completed.
        self.is_lost = true;
        if let Err(problem) = self.gather(bytes).await {
            let error = self.error("write", &problem);
            self.clean_up().await;
            return Err(error);
        }
        self.is_lost = false;
        Ok(())
    }

    async fn complete(mut self: Box<Self>) -> Result<Created, StoreError> {
        if self.is_lost {
            return Err(self.lost("complete"));
        }
        let begun = match self.upload.clone() {
            // Goes in parts however small it is: whether those are put together conditionally is the question.
            None if self.name.is_probe() => Some(
                self.begin()
                    .await
                    .map_err(|problem| self.error("complete", &problem))?,
            ),
            begun => begun,
        };
        let Some(upload) = begun else {
            let body = std::mem::take(&mut self.gathering).freeze();
            let class = self.place.storage_class(&self.name);
            let put = self
                .place
                .put_once(&self.client, &self.key(), class, body)
                .await;
            return put.map_err(|problem| self.error("complete", &problem));
        };
        let completed = self.put_together(&upload).await;
        match completed {
            // Nothing is left to free.
            Ok(Created::New) => self.upload = None,
            _ => self.clean_up().await,
        }
        completed.map_err(|problem| self.error("complete", &problem))
    }

    async fn abort(mut self: Box<Self>) {
        self.clean_up().await;
    }

    fn held_bytes(&self) -> u64 {
        let flying = self.flight.as_ref().map_or(0, |flight| flight.bytes);
        (self.gathering.len() + flying) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_snapshot_fits_into_the_parts_there_are() {
        let all: u64 = (1..=PARTS_MAX)
            .map(|number| part_bytes(number) as u64)
            .sum();
        assert!(all >= 300_000_000_000, "{all}");
        assert_eq!(part_bytes(1), PART_BYTES_FIRST);
        assert_eq!(part_bytes(640), PART_BYTES_FIRST);
        assert_eq!(part_bytes(641), 2 * PART_BYTES_FIRST);
        assert_eq!(part_bytes(PARTS_MAX), PARTS_HELD_BYTES_MAX);
    }
}
