//! Scratch files for what waits for the store beyond the memory budget. They have no names: a crash leaves
//! nothing behind, and what was in them comes again from the master's backlog.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// Scratch files that a full spool has, about: each one is given up when all in it has been read back.
pub const SCRATCH_FILES_MAX: u64 = 16;
/// Pieces and blocks that wait in the spool. Each costs some memory, however small it is.
pub const SPOOLED_MAX: u64 = 32_768;

/// Where and how much.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpoolOptions {
    /// The folder of the scratch files.
    pub dir: PathBuf,
    /// The most that they take, bytes.
    pub bytes_max: u64,
}

/// Something could not be read back: it is lost.
#[derive(Debug, thiserror::Error)]
#[error("{bytes} bytes cannot be read back from a scratch file in {}: {reason}", dir.display())]
pub struct SpoolError {
    dir: PathBuf,
    bytes: u64,
    reason: String,
}

/// How much of the spool somebody may fill.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Share {
    /// All of it.
    Whole,
    /// Half of it: a snapshot leaves room for the replication stream.
    Half,
}

/// The scratch files.
pub struct Spool {
    options: SpoolOptions,
    state: Mutex<State>,
    freed: Notify,
    failing: AtomicBool,
}

#[derive(Default)]
struct State {
    /// The file that is written to, for each share: what is uploaded in different orders does not keep each other's
    /// room.
    current: [Option<Arc<Scratch>>; 2],
    used: u64,
    waiting: u64,
    /// A piece of the replication stream found no room, and none was made since.
    full: bool,
}

struct Scratch {
    file: File,
    /// Counted under the lock of the spool's state.
    counts: Mutex<Counts>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    bytes: u64,
    waiting: u64,
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool")
            .field("options", &self.options)
            .field("used", &self.used())
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Spool {
    /// A spool with nothing in it; no file is made before one is needed.
    pub fn new(options: SpoolOptions) -> Arc<Self> {
        Arc::new(Self {
            options,
            state: Mutex::default(),
            freed: Notify::new(),
            failing: AtomicBool::new(false),
        })
    }

    /// All of it, bytes.
    pub fn bytes_max(&self) -> u64 {
        self.options.bytes_max
    }

    /// Bytes of scratch files now. A file counts whole until all in it has been read back.
    pub fn used(&self) -> u64 {
        lock(&self.state).used
    }

    /// Whether it took nothing more when last asked: full, or its disk fails.
    pub fn is_full(&self) -> bool {
        !self.may_take() || self.failing.load(Ordering::Acquire)
    }

    /// Whether another piece may find room. A disk that failed is tried again with each.
    pub fn may_take(&self) -> bool {
        !lock(&self.state).full
    }

    /// Makes all that waits in the current file unreadable.
    #[cfg(test)]
    pub fn spoil(&self) {
        let state = lock(&self.state);
        let mut current = state.current.iter().flatten();
        let current = current.next().expect("something is spooled");
        current.file.set_len(0).expect("scratch files can be cut");
    }

    /// Ends when something is given back after this call.
    pub fn freed(&self) -> impl Future<Output = ()> {
        self.freed.notified()
    }

    /// Waits until at least half of it is free.
    pub async fn half_free(&self) {
        loop {
            let freed = self.freed.notified();
            if self.used() <= self.bytes_max() / 2 {
                return;
            }
            freed.await;
        }
    }

    /// Writes `parts` one behind the other.
    ///
    /// # Errors
    /// Gives them back where there is no room or the disk fails, which is said once.
    pub async fn put(
        self: &Arc<Self>,
        parts: Vec<Bytes>,
        share: Share,
    ) -> Result<Spooled, Vec<Bytes>> {
        let spool = Arc::clone(self);
        tokio::task::spawn_blocking(move || spool.put_blocking(parts, share))
            .await
            .expect("writing a scratch file neither panics nor is cancelled")
    }

    fn put_blocking(
        self: &Arc<Self>,
        parts: Vec<Bytes>,
        share: Share,
    ) -> Result<Spooled, Vec<Bytes>> {
        let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let written = match self.take_place(bytes, share) {
            Ok(None) => return Err(parts),
            Ok(Some(place)) => place.write(&parts).map(|checksum| Spooled {
                place,
                bytes,
                checksum,
            }),
            Err(error) => Err(error),
        };
        match written {
            Ok(spooled) => {
                if self.failing.swap(false, Ordering::AcqRel) {
                    tracing::info!("scratch files can be written again");
                }
                Ok(spooled)
            }
            Err(error) => {
                // The rest of that file is not trusted any more.
                lock(&self.state).current[share as usize] = None;
                if !self.failing.swap(true, Ordering::AcqRel) {
                    tracing::error!(
                        "--spool-dir {}: a scratch file cannot be written: {error}; nothing is lost, but beyond \
                         --buffer-bytes the link is closed until it works: make room there or name another folder",
                        self.options.dir.display()
                    );
                }
                Err(parts)
            }
        }
    }

    /// Room for `bytes` in a scratch file; `None` where there is not enough.
    fn take_place(self: &Arc<Self>, bytes: u64, share: Share) -> io::Result<Option<Place>> {
        let mut state = lock(&self.state);
        let limit = match share {
            Share::Whole => self.bytes_max(),
            Share::Half => self.bytes_max() / 2,
        };
        if state.used.saturating_add(bytes) > limit || state.waiting >= SPOOLED_MAX {
            // An empty spool is not full: what it cannot hold is larger than all of it, and nothing would be freed.
            state.full |= share == Share::Whole && state.waiting > 0;
            return Ok(None);
        }
        let file_bytes_max = self.bytes_max() / SCRATCH_FILES_MAX;
        let fits = |scratch: &Arc<Scratch>| lock(&scratch.counts).bytes + bytes <= file_bytes_max;
        let scratch = match state.current[share as usize].take().filter(fits) {
            Some(scratch) => scratch,
            None => Arc::new(Scratch {
                file: tempfile::tempfile_in(&self.options.dir)?,
                counts: Mutex::default(),
            }),
        };
        let at = {
            let mut counts = lock(&scratch.counts);
            let at = counts.bytes;
            counts.bytes += bytes;
            counts.waiting += 1;
            at
        };
        state.used += bytes;
        state.waiting += 1;
        state.full &= share == Share::Half;
        state.current[share as usize] = Some(Arc::clone(&scratch));
        Ok(Some(Place {
            spool: Arc::clone(self),
            scratch,
            at,
        }))
    }
}

/// A stretch of a scratch file, given back when dropped.
struct Place {
    spool: Arc<Spool>,
    scratch: Arc<Scratch>,
    at: u64,
}

impl Place {
    /// Writes the parts and gives their checksum.
    fn write(&self, parts: &[Bytes]) -> io::Result<u64> {
        let mut at = self.at;
        for part in parts {
            self.scratch.file.write_all_at(part, at)?;
            at += part.len() as u64;
        }
        Ok(checksum(parts))
    }

    fn read(&self, bytes: u64, expected: u64) -> io::Result<Bytes> {
        let length = usize::try_from(bytes).map_err(io::Error::other)?;
        let mut read = vec![0; length];
        self.scratch.file.read_exact_at(&mut read, self.at)?;
        let read = Bytes::from(read);
        if checksum(std::slice::from_ref(&read)) != expected {
            return Err(io::Error::other("other bytes than were written"));
        }
        Ok(read)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = lock(&self.spool.state);
        state.waiting -= 1;
        let emptied = {
            let mut counts = lock(&self.scratch.counts);
            counts.waiting -= 1;
            (counts.waiting == 0).then_some(counts.bytes)
        };
        let Some(bytes) = emptied else { return };
        state.used -= bytes;
        state.full = false;
        for current in &mut state.current {
            current.take_if(|current| Arc::ptr_eq(current, &self.scratch));
        }
        drop(state);
        self.spool.freed.notify_waiters();
    }
}

fn checksum(parts: &[Bytes]) -> u64 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    digest.finalize()
}

/// Bytes that wait in a scratch file. Dropped, they are gone.
pub struct Spooled {
    place: Place,
    bytes: u64,
    checksum: u64,
}

impl fmt::Debug for Spooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spooled({} bytes)", self.bytes)
    }
}

impl Spooled {
    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads them back and gives their room free.
    ///
    /// # Errors
    /// [`SpoolError`]: a read that fails or is short, other bytes than were written. They are lost.
    pub async fn take(self) -> Result<Bytes, SpoolError> {
        tokio::task::spawn_blocking(move || {
            let read = self.place.read(self.bytes, self.checksum);
            read.map_err(|error| SpoolError {
                dir: self.place.spool.options.dir.clone(),
                bytes: self.bytes,
                reason: error.to_string(),
            })
        })
        .await
        .expect("reading a scratch file neither panics nor is cancelled")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    fn spool(bytes_max: u64) -> (tempfile::TempDir, Arc<Spool>) {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().to_owned();
        (folder, Spool::new(SpoolOptions { dir, bytes_max }))
    }

    fn parts(fill: u8, kib: usize) -> Vec<Bytes> {
        let half = Bytes::from(vec![fill; kib * 512]);
        vec![half.clone(), half]
    }

    #[tokio::test]
    async fn what_was_put_comes_back_and_leaves_room() {
        let (folder, spool) = spool(64 * KIB);
        let mut waiting = Vec::new();
        for fill in 0..32 {
            waiting.push(spool.put(parts(fill, 2), Share::Whole).await.unwrap());
        }
        assert_eq!(spool.used(), 64 * KIB);
        assert!(!spool.is_full(), "nobody was turned away yet");
        let names = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(names, 0, "scratch files have no names");
        for (fill, spooled) in (0..32).zip(waiting) {
            assert_eq!(spooled.take().await.unwrap(), parts(fill, 2).concat());
        }
        assert_eq!(spool.used(), 0);
    }

    #[tokio::test]
    async fn a_full_spool_gives_back_what_it_cannot_take() {
        let (_folder, spool) = spool(64 * KIB);
        let first = spool.put(parts(1, 60), Share::Whole).await.unwrap();
        let back = spool.put(parts(2, 8), Share::Whole).await.unwrap_err();
        assert_eq!(back, parts(2, 8));
        assert!(spool.is_full());
        drop(first);
        assert!(!spool.is_full());
        assert_eq!(spool.used(), 0);
        assert!(spool.put(parts(2, 8), Share::Whole).await.is_ok());
    }

    #[tokio::test]
    async fn a_snapshot_leaves_half_to_the_replication_stream() {
        let (_folder, spool) = spool(64 * KIB);
        let _first = spool.put(parts(1, 30), Share::Half).await.unwrap();
        assert!(spool.put(parts(1, 30), Share::Half).await.is_err());
        assert!(!spool.is_full());
        let _second = spool.put(parts(2, 30), Share::Whole).await.unwrap();
        assert_eq!(spool.used(), 60 * KIB);
    }

    #[tokio::test]
    async fn a_folder_that_is_gone_counts_as_full_and_loses_nothing() {
        let (folder, spool) = spool(64 * KIB);
        let path = folder.path().to_owned();
        drop(folder);
        let back = spool.put(parts(1, 4), Share::Whole).await.unwrap_err();
        assert_eq!(back, parts(1, 4));
        assert!(spool.is_full());
        assert_eq!(spool.used(), 0);
        std::fs::create_dir(&path).unwrap();
        let again = spool.put(parts(1, 4), Share::Whole).await.unwrap();
        assert!(!spool.is_full());
        assert_eq!(again.take().await.unwrap(), parts(1, 4).concat());
        std::fs::remove_dir(&path).unwrap();
    }

    #[tokio::test]
    async fn what_is_larger_than_all_of_an_empty_spool_does_not_make_it_full() {
        let (_folder, spool) = spool(64 * KIB);
        assert!(spool.put(parts(1, 66), Share::Whole).await.is_err());
        assert!(!spool.is_full(), "nothing would ever be freed");
    }

    #[tokio::test]
    async fn a_disk_that_failed_is_tried_again() {
        let (folder, spool) = spool(64 * KIB);
        let path = folder.path().to_owned();
        drop(folder);
        assert!(spool.put(parts(1, 4), Share::Whole).await.is_err());
        assert!(spool.is_full() && spool.may_take());
        assert_eq!(lock(&spool.state).waiting, 0);
        std::fs::create_dir(&path).unwrap();
        let _spooled = spool.put(parts(1, 4), Share::Whole).await.unwrap();
        assert!(!spool.is_full());
        std::fs::remove_dir(&path).unwrap();
    }

    #[tokio::test]
    async fn a_short_read_and_other_bytes_are_errors() {
        let (_folder, spool) = spool(64 * KIB);
        let first = spool.put(parts(1, 1), Share::Whole).await.unwrap();
        let second = spool.put(parts(2, 1), Share::Whole).await.unwrap();
        let file = &first.place.scratch.file;
        file.write_all_at(b"x", 7).unwrap();
        file.set_len(2 * KIB - 1).unwrap();
        let error = first.take().await.unwrap_err().to_string();
        assert!(error.contains("other bytes"), "{error}");
        assert!(second.take().await.is_err());
        assert_eq!(spool.used(), 0);
    }
}
