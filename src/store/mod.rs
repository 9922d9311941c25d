//! One small trait over object stores, one file per backend. What the objects mean is left to `archive`.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::archive::layout::ObjectName;
use crate::position::UnixMillis;

pub mod catalog;
mod error;
pub mod examine;
#[cfg(any(test, feature = "faulty"))]
pub mod faulty;
pub mod fs;
#[cfg(feature = "gcs")]
pub mod gcs;
pub mod measured;
pub mod memory;
#[cfg(feature = "s3")]
pub mod s3;
#[cfg(test)]
mod tests;

pub use error::{StoreError, StoreErrorKind};
pub use measured::Operation;

/// What became of a conditional create.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Created {
    /// The object is there now, with these bytes.
    New,
    /// An object of this name was there before, perhaps with other bytes: see [`create_or_same`].
    AlreadyPresent,
}

/// What became of [`create_or_same`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SameOrNew {
    /// The object is there now.
    New,
    /// It was there before, with the same bytes.
    Same,
}

/// An object in a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Its name.
    pub name: ObjectName,
    /// Its length in bytes.
    pub bytes: u64,
    /// When it was created, by the store's own clock.
    pub modified: UnixMillis,
}

/// A place for immutable objects. Objects appear whole or not at all, and never change.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Creates an object unless one of that name is there. When this returns without error the object
    /// survives a crash of the store's machine. After an error it may be there all the same.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn create(&self, name: &ObjectName, body: Vec<Bytes>) -> Result<Created, StoreError>;

    /// Begins a large object, whose name appears only with [`Upload::complete`].
    ///
    /// # Errors
    /// [`StoreError`].
    async fn begin_upload(&self, name: &ObjectName) -> Result<Box<dyn Upload>, StoreError>;

    /// Reads an object, or the part of `range` that lies inside it (nothing where it begins past the end).
    /// All of it is held in memory: large objects are read in ranges.
    ///
    /// # Errors
    /// [`StoreError`], of kind [`StoreErrorKind::NotFound`] where there is none.
    async fn read(&self, name: &ObjectName, range: Option<Range<u64>>)
    -> Result<Bytes, StoreError>;

    /// All objects whose names begin with `prefix` and come after `start_after`, sorted by name as bytes.
    /// Files that are no objects of an archive are passed over.
    ///
    /// # Errors
    /// [`StoreError`], of kind [`StoreErrorKind::NotFound`] where the place itself (directory, bucket) is
    /// missing: that must not look like an archive without data.
    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> Result<Vec<Listed>, StoreError>;

    /// Deletes an object. That there is none is success.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError>;

    /// When an object was created, by the store's own clock; nothing where there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn modified(&self, name: &ObjectName) -> Result<Option<UnixMillis>, StoreError> {
        let listed = self.list(name.as_str(), None).await?;
        let found = listed.into_iter().find(|listed| listed.name == *name);
        Ok(found.map(|listed| listed.modified))
    }

    /// Called once by whoever writes: makes the place where that can be done, proves that it can be written
    /// and that creating is conditional, and clears away what a crash left long ago.
    ///
    /// # Errors
    /// [`StoreError`], whose text says in plain words what to change.
    async fn prepare(&self) -> Result<(), StoreError>;

    /// The store's address for messages, without secrets.
    fn address(&self) -> String;
}

/// A large object on its way. Dropped without [`complete`](Self::complete), it never appears.
#[async_trait]
pub trait Upload: Send {
    /// Appends bytes; returns when there is room for more. After an error the upload is lost.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError>;

    /// Makes the object appear, unless one of that name is there. It survives a crash from here on. After an
    /// error it may be there all the same.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn complete(self: Box<Self>) -> Result<Created, StoreError>;

    /// Bytes that it holds in memory now, beyond what [`write`](Self::write) was called with.
    fn held_bytes(&self) -> u64 {
        0
    }

    /// Gives the upload up and frees what it holds, as far as that can be done.
    async fn abort(self: Box<Self>);
}

/// Creates an object, or finds it there with the same bytes, which is success: after an uncertain error the
/// first try may have been done, and two streamers of one history write the same.
///
/// # Errors
/// [`StoreError`], of kind [`StoreErrorKind::Conflict`] where it is there with different bytes.
pub async fn create_or_same(
    store: &dyn Store,
    name: &ObjectName,
    body: Vec<Bytes>,
) -> Result<SameOrNew, StoreError> {
    // Counted references, not copies.
    if store.create(name, body.clone()).await? == Created::New {
        return Ok(SameOrNew::New);
    }
    // One byte more than ours shows that it is longer; whatever lies there is not held in memory as a whole.
    let bytes = body.iter().map(|part| part.len() as u64).sum::<u64>();
    let present = store.read(name, Some(0..bytes + 1)).await?;
    if is_concatenation(&present, &body) {
        return Ok(SameOrNew::Same);
    }
    let is_longer = present.len() as u64 > bytes;
    Err(StoreError::new(
        StoreErrorKind::Conflict,
        "create",
        name,
        store.address(),
        format!(
            "an object of that name is there with other bytes ({}{} bytes, these are {bytes}): it is left alone, \
             look at who else writes to this archive",
            if is_longer { "at least " } else { "" },
            present.len(),
        ),
    ))
}

fn is_concatenation(whole: &[u8], parts: &[Bytes]) -> bool {
    let mut rest = whole;
    for part in parts {
        match rest.strip_prefix(part.as_ref()) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    rest.is_empty()
}

/// Opens the store at `url`: `file:///directory`, `s3://bucket/prefix` or `gs://bucket/prefix`. Nothing is read or
/// written yet.
///
/// # Errors
/// [`StoreError`] of kind [`StoreErrorKind::Invalid`], saying what is supported.
pub fn open(url: &str) -> Result<Arc<dyn Store>, StoreError> {
    const SUPPORTED: &str = "supported are file:///absolute/directory, s3://bucket/prefix?region=… and \
                             gs://bucket/prefix";
    // The rest of an address that is not understood may hold a password: only its scheme is repeated.
    let invalid = |shown: &str, detail: String| {
        StoreError::about_store(StoreErrorKind::Invalid, "open", shown.to_owned(), detail)
    };
    let Some((scheme, rest)) = url.split_once("://") else {
        let shown = url.split_once(':').map_or(url, |(scheme, _)| scheme);
        let detail = match url.starts_with('/') {
            true => format!("not an archive's address: write file://{url} for that folder"),
            false => format!("not an archive's address: {SUPPORTED}"),
        };
        return Err(invalid(shown, detail));
    };
    let shown = format!("{scheme}://");
    match scheme {
        "file" => {
            let path = fs::path_of_url(rest).map_err(|detail| invalid(url, detail))?;
            Ok(Arc::new(fs::FsStore::new(path)))
        }
        #[cfg(feature = "s3")]
        "s3" => match s3::S3Store::open(url) {
            Ok(store) => Ok(Arc::new(store)),
            Err(detail) => Err(invalid(&shown, detail)),
        },
        #[cfg(not(feature = "s3"))]
        "s3" => Err(invalid(&shown, not_built("s3"))),
        #[cfg(feature = "gcs")]
        "gs" => {
            let address = gcs::GcsAddress::parse(rest).map_err(|detail| invalid(&shown, detail))?;
            Ok(Arc::new(gcs::GcsStore::new(address)))
        }
        #[cfg(not(feature = "gcs"))]
        "gs" => Err(invalid(&shown, not_built("gcs"))),
        _ => Err(invalid(&shown, format!("unknown scheme: {SUPPORTED}"))),
    }
}

#[cfg(not(all(feature = "s3", feature = "gcs")))]
fn not_built(feature: &str) -> String {
    format!("this program was built without the feature {feature}")
}
