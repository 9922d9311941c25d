//! A store in a directory. An object is written under a temporary name, synced, and linked to its own name,
//! which fails where that exists: so names appear whole, once, and survive a crash.

use std::collections::hash_map::RandomState;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::JoinHandle;

use super::{Created, Listed, Store, StoreError, StoreErrorKind, Upload};
use crate::archive::layout::ObjectName;
use crate::position::UnixMillis;

mod problem;
#[cfg(test)]
mod tests;

use problem::explain;

/// Where objects lie until they are whole, inside the archive so that they can be linked. No object name
/// begins with a dot.
const TEMPORARY: &str = ".tmp-uploads";

/// What a crash left is cleared away when it has not been touched for this long, in milliseconds.
const LEFTOVER_MILLIS_MIN: u64 = 24 * 60 * 60 * 1000;

/// How often a new temporary name is tried.
const TEMPORARY_NAME_TRIES_MAX: u32 = 16;

/// Bytes of an upload that gather in the system's cache before they are sent on to the disk.
const SYNC_AHEAD_BYTES: u64 = 16 * 1024 * 1024;

/// How many directories are remembered as made and synced.
const KNOWN_DIRECTORIES_MAX: usize = 1024;

/// A store in a directory.
#[derive(Clone, Debug)]
pub struct FsStore {
    place: Arc<Place>,
}

/// The directory, and what is known of it.
#[derive(Debug)]
struct Place {
    root: PathBuf,
    /// Directories whose own entries in their parents are known to be on disk.
    known: Mutex<Vec<PathBuf>>,
}

/// The directory of a `file://` address, from what follows the two slashes.
///
/// # Errors
/// Says in words what is wrong with it.
pub(super) fn path_of_url(rest: &str) -> Result<PathBuf, String> {
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    if !path.starts_with('/') {
        return Err(
            "a relative path, or another host's: write three slashes and an absolute path, as in \
             file:///var/lib/perennial"
                .to_owned(),
        );
    }
    if path.contains(['?', '#']) {
        return Err("takes no parameters: write '?' as %3F and '#' as %23".to_owned());
    }
    let decoded = percent_decoded(path).ok_or("a '%' is not followed by two digits: write %25")?;
    if decoded.contains('\0') {
        return Err("a path cannot hold a zero byte".to_owned());
    }
    Ok(PathBuf::from(decoded))
}

/// Undoes percent-encoding; nothing where it is broken.
pub(super) fn percent_decoded(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            decoded.push(*byte);
            continue;
        }
        let (digits, after) = rest.split_first_chunk::<2>()?;
        let digit = |digit: u8| char::from(digit).to_digit(16);
        let value = digit(digits[0])? << 4 | digit(digits[1])?;
        decoded.push(u8::try_from(value).ok()?);
        rest = after;
    }
    String::from_utf8(decoded).ok()
}

impl FsStore {
    /// A store in the directory `root`. Nothing is read or written yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            place: Arc::new(Place {
                root: root.into(),
                known: Mutex::default(),
            }),
        }
    }

    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        name: Option<&ObjectName>,
        work: impl FnOnce(&Place) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let place = Arc::clone(&self.place);
        let result = spawn(move || work(&place)).await;
        result.map_err(|error| self.place.error(operation, name, &error))
    }
}

async fn spawn<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[async_trait]
impl Store for FsStore {
    async fn create(&self, name: &ObjectName, body: Vec<Bytes>) -> Result<Created, StoreError> {
        let target = name.clone();
        self.blocking("create", Some(name), move |place| {
            let mut temporary = place.temporary()?;
            for part in &body {
                temporary.file.write_all(part)?;
            }
            place.publish(temporary, &target)
        })
        .await
    }

    async fn begin_upload(&self, name: &ObjectName) -> Result<Box<dyn Upload>, StoreError> {
        let temporary = self
            .blocking("begin upload of", Some(name), Place::temporary)
            .await?;
        Ok(Box::new(FsUpload {
            store: self.clone(),
            name: name.clone(),
            temporary: Some(temporary),
            unsynced: 0,
            syncing: None,
        }))
    }

    async fn read(
        &self,
        name: &ObjectName,
        range: Option<Range<u64>>,
    ) -> Result<Bytes, StoreError> {
        let source = name.clone();
        self.blocking("read", Some(name), move |place| {
            read(&place.path(&source), range).map(Bytes::from)
        })
        .await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> Result<Vec<Listed>, StoreError> {
        let prefix = prefix.to_owned();
        let start_after = start_after.map(str::to_owned);
        self.blocking("list", None, move |place| {
            // A missing place (a volume that is not mounted) must not look like an empty archive.
            fs::read_dir(&place.root)?;
            let mut walk = Walk {
                place,
                prefix: &prefix,
                start_after: start_after.as_deref(),
                found: Vec::new(),
            };
            let parent = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
            if parent.is_empty() || ObjectName::new(parent.trim_end_matches('/')).is_ok() {
                walk.directory(parent)?;
            }
            walk.found.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(walk.found)
        })
        .await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let target = name.clone();
        self.blocking("delete", Some(name), move |place| {
            match fs::remove_file(place.path(&target)) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        })
        .await
    }

    async fn modified(&self, name: &ObjectName) -> Result<Option<UnixMillis>, StoreError> {
        let target = name.clone();
        self.blocking("look at", Some(name), move |place| {
            match fs::metadata(place.path(&target)) {
                Ok(metadata) => Ok(Some(modified(&metadata))),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        self.blocking("prepare", None, Place::prepare).await
    }

    fn address(&self) -> String {
        self.place.address()
    }
}

impl Place {
    fn address(&self) -> String {
        // What `path_of_url` reads back as this directory, for commands that are copied from messages.
        let path = self.root.display().to_string();
        let path = path.replace('%', "%25").replace('?', "%3F");
        format!("file://{}", path.replace('#', "%23"))
    }

    fn path(&self, name: &ObjectName) -> PathBuf {
        self.root.join(name.as_str())
    }

    fn error(
        &self,
        operation: &'static str,
        name: Option<&ObjectName>,
        error: &io::Error,
    ) -> StoreError {
        // A directory may be gone: look again instead of trusting what is remembered.
        self.forget_directories();
        let (kind, detail) = explain(error, &self.root);
        match name {
            Some(name) => StoreError::new(kind, operation, name, self.address(), detail),
            None => StoreError::about_store(kind, operation, self.address(), detail),
        }
    }

    fn forget_directories(&self) {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// A new file without a name that readers see.
    fn temporary(&self) -> io::Result<Temporary> {
        let folder = self.root.join(TEMPORARY);
        for _ in 0..TEMPORARY_NAME_TRIES_MAX {
            // Not the process id alone: two containers both have 1.
            let random = RandomState::new().build_hasher().finish();
            let path = folder.join(format!("{}-{random:016x}", std::process::id()));
            let opened = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o640)
                .open(&path);
            match opened {
                Ok(file) => return Ok(Temporary { file, path }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                // Only `prepare` makes the folder: where a volume went away under us, nothing may be written
                // into the directory that is left.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    return Err(io::Error::new(
                        ErrorKind::NotFound,
                        format!(
                            "its folder {TEMPORARY} is not there: check that the archive's volume is mounted"
                        ),
                    ));
                }
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("no free temporary name"))
    }

    /// Gives a whole file its name.
    fn publish(&self, temporary: Temporary, name: &ObjectName) -> io::Result<Created> {
        temporary.file.sync_all()?;
        let path = self.path(name);
        let parent = path.parent().unwrap_or(&self.root);
        self.make_directory(parent)?;
        let linked = match fs::hard_link(&temporary.path, &path) {
            // Somebody removed a directory that we remember as made.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.forget_directories();
                self.make_directory(parent)?;
                fs::hard_link(&temporary.path, &path)
            }
            result => result,
        };
        let created = match linked {
            Ok(()) => Created::New,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Created::AlreadyPresent,
            Err(error) => return Err(error),
        };
        // Also where it was there before: whoever created it may not have come to this line yet.
        sync_directory(parent)?;
        Ok(created)
    }

    /// Makes a directory below the archive's own and its parents, and syncs their entries.
    fn make_directory(&self, directory: &Path) -> io::Result<()> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.iter().any(|path| path == directory) {
            return Ok(());
        }
        let below_root = directory.strip_prefix(&self.root).unwrap_or(directory);
        let mut path = self.root.clone();
        for part in below_root.components() {
            let parent = path.clone();
            path.push(part);
            create_directory(&path)?;
            // Also where it was there: who made it may not have synced it yet.
            sync_directory(&parent)?;
        }
        if known.len() >= KNOWN_DIRECTORIES_MAX {
            known.clear();
        }
        known.push(directory.to_owned());
        Ok(())
    }

    /// Makes the archive's own directory, with the parents that are missing.
    fn make_root(&self) -> io::Result<()> {
        let missing: Vec<&Path> = self
            .root
            .ancestors()
            .take_while(|path| !path.is_dir())
            .collect();
        for path in missing.into_iter().rev() {
            create_directory(path)?;
            if let Some(parent) = path.parent() {
                sync_directory(parent)?;
            }
        }
        Ok(())
    }

    /// Writes one file in the way all objects are written, and clears leftovers away.
    fn prepare(&self) -> io::Result<()> {
        self.make_root()?;
        let folder = self.root.join(TEMPORARY);
        self.make_directory(&folder)?;
        let mut probe = self.temporary()?;
        probe.file.write_all(b"perennial")?;
        probe.file.sync_all()?;
        let link = probe.path.with_extension("probe");
        fs::hard_link(&probe.path, &link)?;
        let second = fs::hard_link(&probe.path, &link);
        fs::remove_file(&link)?;
        match second {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(()) => {
                return Err(io::Error::new(
                    ErrorKind::Unsupported,
                    "this file system lets two files have one name",
                ));
            }
        }
        sync_directory(&folder)?;
        // "Now" by the clock that dated the leftovers.
        let now = modified(&probe.file.metadata()?);
        clear_leftovers(&folder, now)
    }
}

/// Makes a directory, or finds it there.
fn create_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            Err(io::Error::from(ErrorKind::NotADirectory))
        }
        result => result,
    }
}

fn clear_leftovers(folder: &Path, now: UnixMillis) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // Another process may clear it away, or finish it, at the same moment.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if now.0.saturating_sub(modified(&metadata).0) > LEFTOVER_MILLIS_MIN {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

fn read(path: &Path, range: Option<Range<u64>>) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let range = range.unwrap_or(0..length);
    let end = range.end.min(length);
    let start = range.start.min(end);
    let bytes = usize::try_from(end - start).map_err(|_| ErrorKind::OutOfMemory)?;
    if start > 0 {
        file.seek(SeekFrom::Start(start))?;
    }
    let mut buffer = vec![0; bytes];
    file.read_exact(&mut buffer)?;
    Ok(buffer)
}

fn modified(metadata: &fs::Metadata) -> UnixMillis {
    let since_epoch = metadata
        .modified()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .unwrap_or_default();
    UnixMillis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match File::open(path)?.sync_all() {
        // Some network file systems cannot sync a directory; they write entries through.
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
        result => result,
    }
}

/// Looks through the directories below one name.
struct Walk<'a> {
    place: &'a Place,
    prefix: &'a str,
    start_after: Option<&'a str>,
    found: Vec<Listed>,
}

impl Walk<'_> {
    /// `within` is empty or ends with a slash.
    fn directory(&mut self, within: &str) -> io::Result<()> {
        let entries = match fs::read_dir(self.place.root.join(within)) {
            Ok(entries) => entries,
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let Some(name) = entry
                .file_name()
                .to_str()
                .map(|name| format!("{within}{name}"))
            else {
                continue;
            };
            let Ok(object) = ObjectName::new(&name) else {
                continue;
            };
            // It may be deleted while we look.
            let kind = match entry.file_type() {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                kind => kind?,
            };
            if kind.is_dir() {
                let below = name + "/";
                let may_match = below.starts_with(self.prefix) || self.prefix.starts_with(&below);
                // Every name below lies behind `start_after`, or none does, unless it is one of them.
                let is_past = |after: &str| below.as_str() < after && !after.starts_with(&below);
                if may_match && !self.start_after.is_some_and(is_past) {
                    self.directory(&below)?;
                }
            } else if kind.is_file()
                && name.starts_with(self.prefix)
                && self.start_after.is_none_or(|after| name.as_str() > after)
            {
                self.file(object, &entry)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, name: ObjectName, entry: &fs::DirEntry) -> io::Result<()> {
        let metadata = match entry.metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            metadata => metadata?,
        };
        self.found.push(Listed {
            name,
            bytes: metadata.len(),
            modified: modified(&metadata),
        });
        Ok(())
    }
}

/// A file on its way to a name. Removed when dropped: once linked, its bytes live on under that name.
#[derive(Debug)]
struct Temporary {
    file: File,
    path: PathBuf,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What cannot be removed is a leftover, which `prepare` clears away.
        let _ = fs::remove_file(&self.path);
    }
}

struct FsUpload {
    store: FsStore,
    name: ObjectName,
    /// Absent after a write that failed or was given up half way.
    temporary: Option<Temporary>,
    /// Bytes written since the last sync ahead began.
    unsynced: u64,
    /// A sync ahead that still runs.
    syncing: Option<JoinHandle<io::Result<()>>>,
}

impl FsUpload {
    /// Waits for the sync ahead before, if one runs: one at a time, so that a disk that is slower than what comes
    /// slows the upload down. The system tells of bytes that could not be written once only: what it tells here it
    /// would not tell the sync at the end.
    async fn synced(&mut self) -> io::Result<()> {
        match self.syncing.take() {
            Some(syncing) => syncing
                .await
                .unwrap_or_else(|error| Err(io::Error::other(error))),
            None => Ok(()),
        }
    }

    /// Begins to sync what was written while the next bytes come: little is left to wait for at the end, and
    /// segments that are synced beside a snapshot do not wait for all of it.
    async fn sync_ahead(&mut self, temporary: &Temporary) -> io::Result<()> {
        self.synced().await?;
        let file = temporary.file.try_clone()?;
        self.syncing = Some(tokio::task::spawn_blocking(move || file.sync_data()));
        self.unsynced = 0;
        Ok(())
    }

    fn error(&self, operation: &'static str, error: &io::Error) -> StoreError {
        self.store.place.error(operation, Some(&self.name), error)
    }

    fn take(&mut self, operation: &'static str) -> Result<Temporary, StoreError> {
        self.temporary.take().ok_or_else(|| {
            StoreError::new(
                StoreErrorKind::Unavailable,
                operation,
                &self.name,
                self.store.address(),
                "an earlier write failed or was given up: begin again".to_owned(),
            )
        })
    }
}

#[async_trait]
impl Upload for FsUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        // Not put back before all has gone well: then nothing can be completed.
        let mut temporary = self.take("write")?;
        if self.unsynced >= SYNC_AHEAD_BYTES {
            let begun = self.sync_ahead(&temporary).await;
            begun.map_err(|error| self.error("write", &error))?;
        }
        self.unsynced += bytes.len() as u64;
        let written = self
            .store
            .blocking("write", Some(&self.name), move |_| {
                temporary.file.write_all(&bytes)?;
                Ok(temporary)
            })
            .await?;
        self.temporary = Some(written);
        Ok(())
    }

    async fn complete(mut self: Box<Self>) -> Result<Created, StoreError> {
        let temporary = self.take("complete")?;
        let synced = self.synced().await;
        synced.map_err(|error| self.error("complete", &error))?;
        let name = self.name.clone();
        self.store
            .blocking("complete", Some(&self.name), move |place| {
                place.publish(temporary, &name)
            })
            .await
    }

    async fn abort(mut self: Box<Self>) {
        // Removing a large file takes time.
        if let Some(temporary) = self.temporary.take() {
            let _ = spawn(move || {
                drop(temporary);
                Ok(())
            })
            .await;
        }
    }
}
