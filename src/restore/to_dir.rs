//! Restores to files that a server can start from: `appendonlydir/` as 7.0 and later write it, `appendonly.aof`
//! as 4.0 to 6.2 do, `dump.rdb` where an older server has nothing to replay.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::rewrite::Tally;
use super::source::{self, Checked, SourceError, Spelling};
use super::ttl::{Ttl, TtlError, Writer};
use crate::archive::layout::ArchiveId;
use crate::archive::plan::Plan;
use crate::archive::snapshot::{RdbHead, RdbMagic, read_head};
use crate::position::{Offset, TimelineSeq};
use crate::proto::handshake::command;
use crate::store::Store;

/// The folder that a server with `appendonly yes` starts from (`protocol-facts` 5.1).
const AOF_DIRECTORY: &str = "appendonlydir";
const MANIFEST: &str = "appendonly.aof.manifest";
const BASE: &str = "appendonly.aof.1.base.rdb";
const INCREMENTAL: &str = "appendonly.aof.1.incr.aof";
/// The one file of 4.0 to 6.2: the payload and the replication stream behind it (`protocol-facts` 5.2).
const AOF_FILE: &str = "appendonly.aof";
/// What a server with `appendonly no` starts from.
const DUMP: &str = "dump.rdb";
/// As much of the payload as its head may take, bytes.
const HEAD_BYTES: usize = 64 * 1024;
/// The first RDB version of servers that read `appendonlydir/`: 7.0.
const FIRST_VERSION_WITH_DIRECTORY: u32 = 10;
/// The first RDB version of servers that read a payload at the head of `appendonly.aof`: 4.0.
const FIRST_VERSION_WITH_PREAMBLE: u32 = 8;

/// The first RDB version of servers whose hash fields may expire: redis 7.4.
const FIRST_VERSION_WITH_FIELD_TTLS: u32 = 12;

/// Why files could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ToDirError {
    /// The archive.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The file system.
    #[error("{operation} {}: {error}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A file is in the way.
    #[error("{} is a file: --to needs a folder, which is made if it is not there", path.display())]
    NotAFolder {
        /// The file.
        path: PathBuf,
    },
    /// Times of expiry cannot be changed as asked for.
    #[error(transparent)]
    Ttl(#[from] TtlError),
    /// There is data already.
    #[error(
        "{} already holds data ({found}): nothing was touched; choose another folder, or --force to move it aside",
        path.display()
    )]
    HasData {
        /// The folder.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// Written by a server before 4.0, with writes behind the snapshot.
    #[error(
        "written by {server}: servers before 4.0 cannot start from a snapshot and a replication stream behind it; \
         seed instead: start an empty server and `perennial run` beside it, or restore the snapshot alone with \
         --at offset:{snapshot}@{timeline}"
    )]
    TooOld {
        /// The snapshot's offset.
        snapshot: Offset,
        /// The timeline that holds it.
        timeline: TimelineSeq,
        /// What the payload's head says.
        server: String,
    },
}

/// Which files were written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// `appendonlydir/`, for 7.0 and later.
    Directory,
    /// `appendonly.aof`, for 4.0 to 6.2; later ones read it as well.
    File,
    /// `dump.rdb`: there is nothing behind the snapshot.
    Dump,
}

impl Layout {
    /// What it is called in the folder.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Directory => AOF_DIRECTORY,
            Self::File => AOF_FILE,
            Self::Dump => DUMP,
        }
    }

    /// What `appendonly` must be, or the server starts empty (`protocol-facts` 5.3).
    pub const fn append_only(self) -> &'static str {
        match self {
            Self::Directory | Self::File => "yes",
            Self::Dump => "no",
        }
    }

    /// Which one the servers that a plan's bytes come from can start from. `None`: none.
    fn for_servers(head: Option<&RdbHead>, plan: &Plan) -> Option<Self> {
        let version = match head {
            Some(head) if head.magic == RdbMagic::Redis => head.version,
            // A numbering of its own, or no head at all: nothing old.
            _ => FIRST_VERSION_WITH_DIRECTORY,
        };
        // A history that began on an older server and goes on on a newer one needs the newer one.
        let newest = |wanted: (u32, u32)| {
            let mut sources = plan.legs.iter().map(|leg| &leg.source);
            sources.any(|source| {
                source.server == "valkey" || source.version_numbers().is_some_and(|it| it >= wanted)
            })
        };
        if version >= FIRST_VERSION_WITH_DIRECTORY || newest((7, 0)) {
            Some(Self::Directory)
        } else if plan.stream_bytes() == 0 {
            Some(Self::Dump)
        } else if version >= FIRST_VERSION_WITH_PREAMBLE || newest((4, 0)) {
            Some(Self::File)
        } else {
            None
        }
    }
}

/// Which files are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// Those that the servers which the archive was taken from start from.
    #[default]
    Auto,
    /// Append-only files, also where nothing is behind the snapshot.
    Aof,
    /// A `dump.rdb`. What lies behind the snapshot needs a scratch server: see `to_dump`.
    Rdb,
}

impl Format {
    fn layout(self, head: Option<&RdbHead>, plan: &Plan) -> Option<Layout> {
        let usual = Layout::for_servers(head, plan);
        match self {
            Self::Auto => usual,
            Self::Aof if usual == Some(Layout::Dump) => head
                .is_some_and(|head| head.version >= FIRST_VERSION_WITH_PREAMBLE)
                .then_some(Layout::File),
            Self::Aof => usual,
            Self::Rdb => (plan.stream_bytes() == 0).then_some(Layout::Dump),
        }
    }
}

/// How files are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Data that is there is moved aside.
    pub force: bool,
    /// Which files.
    pub format: Format,
    /// What becomes of times of expiry.
    pub ttl: Ttl,
}

/// Whether a payload can hold fields of hashes that expire: of redis 7.4 and later, of valkey 9 and later.
fn fields_may_expire(head: &RdbHead) -> bool {
    head.magic != RdbMagic::Redis || head.version >= FIRST_VERSION_WITH_FIELD_TTLS
}

/// What was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restored {
    /// The folder that was given.
    pub directory: PathBuf,
    /// Which files.
    pub layout: Layout,
    /// What had to be rewritten.
    pub rewritten: Tally,
    /// Bytes of RDB payload.
    pub payload_bytes: u64,
    /// Bytes of replication stream.
    pub stream_bytes: u64,
    /// The version of the server that wrote the payload, where it says.
    pub server: String,
    /// What was there before, under its new names.
    pub moved_aside: Vec<String>,
}

pub(super) fn io_error<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> ToDirError + 'a {
    move |error| ToDirError::Io {
        operation,
        path: path.to_owned(),
        error,
    }
}

/// Writes everything under a temporary name, syncs it, and renames it at the very end: a folder that is there
/// is whole. `report` is told how many bytes were written.
///
/// # Errors
/// [`ToDirError`]; nothing that was there before is touched, and nothing half-written stays.
pub async fn restore(
    store: Arc<dyn Store>,
    archive: ArchiveId,
    plan: &Plan,
    directory: &Path,
    options: Options,
    mut report: impl FnMut(u64),
) -> Result<Restored, ToDirError> {
    let place = Place::prepare(directory, options.force)?;
    let staging = place.staging.0.clone();
    let mut base = FileWriter::create(&staging.join(BASE))?;
    let mut head = Vec::new();
    let mut payload = source::payload(Arc::clone(&store), archive, plan);
    copy(&mut payload, &mut base, &mut report, |bytes| {
        let wanted = HEAD_BYTES.saturating_sub(head.len()).min(bytes.len());
        head.extend_from_slice(&bytes[..wanted]);
    })
    .await?;
    let payload_bytes = base.bytes;
    let head = read_head(&head);
    let server = written_by(head.as_ref());
    let layout = layout(head.as_ref(), plan, options)?;

    let mut rest = match layout {
        Layout::Directory => {
            base.finish()?;
            FileWriter::create(&staging.join(INCREMENTAL))?
        }
        Layout::File | Layout::Dump => base,
    };
    // A payload taken from a replica may stand in another database than 0 with no SELECT in the replication
    // stream behind it (`protocol-facts` 2.3); the file begins in database 0.
    if layout != Layout::Dump
        && let Some(database) = head.and_then(|head| head.stream_database)
    {
        rest.write(&command(&[b"SELECT", database.to_string().as_bytes()]))?;
    }
    let before = rest.bytes;
    let mut stream = source::stream(store, archive, plan, Spelling::Rewritten);
    copy(&mut stream, &mut rest, &mut report, |_| {}).await?;
    let rewritten = stream.tally();
    let stream_bytes = rest.bytes - before;
    rest.write(&options.ttl.epilogue())?;
    rest.finish()?;

    if layout == Layout::Directory {
        let mut manifest = FileWriter::create(&staging.join(MANIFEST))?;
        let lines = format!("file {BASE} seq 1 type b\nfile {INCREMENTAL} seq 1 type i\n");
        manifest.write(lines.as_bytes())?;
        manifest.finish()?;
    }
    let moved_aside = place.publish(layout)?;
    Ok(Restored {
        directory: directory.to_owned(),
        layout,
        rewritten,
        payload_bytes,
        stream_bytes,
        server,
        moved_aside,
    })
}

/// Tells why [`restore`] would refuse, as far as that can be known before anything is written: by what lies in the folder
/// already, and by the head of the payload.
///
/// # Errors
/// [`ToDirError`].
pub async fn examine(
    store: Arc<dyn Store>,
    archive: ArchiveId,
    plan: &Plan,
    directory: &Path,
    options: Options,
) -> Result<(), ToDirError> {
    examine_folder(directory, options.force)?;
    let first = source::payload(store, archive, plan).next().await?;
    let head = first.and_then(|bytes| read_head(&bytes));
    layout(head.as_ref(), plan, options).map(drop)
}

/// The same of the folder alone.
///
/// # Errors
/// [`ToDirError`].
pub fn examine_folder(directory: &Path, force: bool) -> Result<(), ToDirError> {
    let mut ancestors = directory.ancestors();
    if let Some(there) = ancestors.find(|path| path.symlink_metadata().is_ok())
        && !there.is_dir()
    {
        let path = there.to_owned();
        return Err(ToDirError::NotAFolder { path });
    }
    refuse_data(directory, force).map(drop)
}

/// Which files are written.
fn layout(head: Option<&RdbHead>, plan: &Plan, options: Options) -> Result<Layout, ToDirError> {
    let server = written_by(head);
    let Some(layout) = options.format.layout(head, plan) else {
        return Err(ToDirError::TooOld {
            snapshot: plan.snapshot.offset,
            timeline: plan.snapshot_timeline.0,
            server,
        });
    };
    let writer = Writer {
        server,
        is_append_only_folder: layout == Layout::Directory,
        fields_may_expire: head.is_none_or(fields_may_expire),
    };
    options.ttl.check_files(plan, &writer)?;
    Ok(layout)
}

/// A folder that is being restored to.
pub(super) struct Place {
    directory: PathBuf,
    /// Where everything is written first.
    pub(super) staging: RemoveOnDrop,
    /// What is in the way and may be moved.
    aside: Vec<&'static str>,
    /// Dropped last.
    _created: RemoveIfEmpty,
}

impl Place {
    /// Makes the folder, refuses data in it, and makes a staging folder.
    pub(super) fn prepare(directory: &Path, force: bool) -> Result<Self, ToDirError> {
        if directory.is_file() {
            return Err(ToDirError::NotAFolder {
                path: directory.to_owned(),
            });
        }
        let created = RemoveIfEmpty(missing(directory));
        std::fs::create_dir_all(directory).map_err(io_error("create folder", directory))?;
        let aside = refuse_data(directory, force)?;
        let staging = directory.join(format!(".perennial-restore-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&staging);
        std::fs::create_dir(&staging).map_err(io_error("create folder", &staging))?;
        Ok(Self {
            directory: directory.to_owned(),
            staging: RemoveOnDrop(staging),
            aside: aside.unwrap_or_default(),
            _created: created,
        })
    }

    /// Renames what was staged to where a server looks for it: the folder itself, or the file in it. Tells what was moved
    /// out of the way.
    pub(super) fn publish(self, layout: Layout) -> Result<Vec<String>, ToDirError> {
        let staging = &self.staging.0;
        sync_directory(staging)?;
        let moved_aside = move_aside(&self.directory, &self.aside)?;
        let whole = match layout {
            Layout::Directory => staging.clone(),
            Layout::File | Layout::Dump => staging.join(BASE),
        };
        let place = self.directory.join(layout.name());
        std::fs::rename(&whole, &place).map_err(io_error("rename to", &place))?;
        sync_directory(&self.directory)?;
        Ok(moved_aside)
    }

    /// The file that becomes `appendonly.aof` or `dump.rdb`.
    pub(super) fn file(&self) -> PathBuf {
        self.staging.0.join(BASE)
    }
}

fn written_by(head: Option<&RdbHead>) -> String {
    let Some(head) = head else {
        return "an unknown server".into();
    };
    match (head.aux("redis-ver"), head.aux("valkey-ver")) {
        (_, Some(version)) => format!("valkey {version}"),
        (Some(version), None) => format!("redis {version}"),
        (None, None) => format!("a server of {} version {}", head.magic, head.version),
    }
}

async fn copy(
    from: &mut Checked,
    to: &mut FileWriter,
    report: &mut impl FnMut(u64),
    mut look: impl FnMut(&[u8]),
) -> Result<(), ToDirError> {
    while let Some(bytes) = from.next().await? {
        look(&bytes);
        let length = bytes.len() as u64;
        // Large writes to a local file: kept off the threads that serve connections.
        tokio::task::block_in_place(|| to.write(&Bytes::clone(&bytes)))?;
        report(length);
    }
    Ok(())
}

/// What in a folder a server would start from, or that a restore would hide.
const DATA: [&str; 3] = [AOF_DIRECTORY, DUMP, AOF_FILE];

fn refuse_data(directory: &Path, force: bool) -> Result<Option<Vec<&'static str>>, ToDirError> {
    let found: Vec<&'static str> = DATA
        .into_iter()
        .filter(|name| directory.join(name).symlink_metadata().is_ok())
        .collect();
    if found.is_empty() {
        return Ok(None);
    }
    if force {
        return Ok(Some(found));
    }
    Err(ToDirError::HasData {
        path: directory.to_owned(),
        found: found.join(", "),
    })
}

fn move_aside(directory: &Path, names: &[&str]) -> Result<Vec<String>, ToDirError> {
    let mut moved = Vec::new();
    for name in names {
        let from = directory.join(name);
        let free = (1..)
            .map(|number| format!("{name}.before-restore-{number}"))
            .find(|name| directory.join(name).symlink_metadata().is_err())
            .expect("some number is free");
        std::fs::rename(&from, directory.join(&free)).map_err(io_error("move aside", &from))?;
        moved.push(free);
    }
    Ok(moved)
}

fn sync_directory(path: &Path) -> Result<(), ToDirError> {
    let synced = std::fs::File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(io_error("sync folder", path))
}

/// The folders that have to be made, the innermost first.
fn missing(directory: &Path) -> Vec<PathBuf> {
    let ancestors = directory
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty());
    ancestors
        .take_while(|path| path.symlink_metadata().is_err())
        .map(Path::to_owned)
        .collect()
}

/// Folders that were made for a restore go again if it leaves nothing in them.
struct RemoveIfEmpty(Vec<PathBuf>);

impl Drop for RemoveIfEmpty {
    fn drop(&mut self) {
        for directory in &self.0 {
            if std::fs::remove_dir(directory).is_err() {
                return;
            }
        }
    }
}

pub(super) struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct FileWriter {
    path: PathBuf,
    file: std::io::BufWriter<std::fs::File>,
    bytes: u64,
}

impl FileWriter {
    fn create(path: &Path) -> Result<Self, ToDirError> {
        let file = std::fs::File::create_new(path).map_err(io_error("create", path))?;
        Ok(Self {
            path: path.to_owned(),
            file: std::io::BufWriter::new(file),
            bytes: 0,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ToDirError> {
        self.bytes += bytes.len() as u64;
        self.file
            .write_all(bytes)
            .map_err(io_error("write", &self.path))
    }

    fn finish(mut self) -> Result<u64, ToDirError> {
        let flushed = self
            .file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all());
        flushed.map_err(io_error("write", &self.path))?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::plan::{Target, plan};
    use crate::archive::timeline::sketch::Sketch;

    fn head(magic: RdbMagic, version: u32) -> RdbHead {
        RdbHead {
            magic,
            version,
            aux: Vec::new(),
            stream_database: None,
        }
    }

    #[test]
    fn the_layout_is_one_that_the_servers_of_the_archive_start_from() {
        let sketch = |version| {
            Sketch::default()
                .timeline(1, 1, None, 0)
                .version(version)
                .snapshot(0)
        };
        let layout = |sketch: Sketch, payload| {
            let plan = plan(&sketch.catalog(), Target::Latest).unwrap();
            Layout::for_servers(Some(&head(RdbMagic::Redis, payload)), &plan)
        };
        let with_tail = |version, payload| layout(sketch(version).segment(1, 50), payload);
        for (version, payload) in [("7.0.15", 10), ("7.2.6", 11), ("8.0.2", 12)] {
            assert_eq!(with_tail(version, payload), Some(Layout::Directory));
            assert_eq!(layout(sketch(version), payload), Some(Layout::Directory));
        }
        for (version, payload) in [("4.0.14", 8), ("5.0.14", 9), ("6.2.14", 9)] {
            assert_eq!(with_tail(version, payload), Some(Layout::File));
            assert_eq!(layout(sketch(version), payload), Some(Layout::Dump));
        }
        for (version, payload) in [("2.8.24", 6), ("3.2.13", 7)] {
            assert_eq!(with_tail(version, payload), None, "such servers read none");
            assert_eq!(layout(sketch(version), payload), Some(Layout::Dump));
        }
        let upgraded = |version| {
            sketch("6.2.14")
                .segment(1, 50)
                .timeline(2, 2, Some((1, 50)), 50)
                .version(version)
                .segment(51, 60)
        };
        assert_eq!(layout(upgraded("7.0.15"), 9), Some(Layout::Directory));
        assert_eq!(layout(upgraded("6.2.14"), 9), Some(Layout::File));
        let forced = |format: Format, sketch: Sketch, payload| {
            let plan = plan(&sketch.catalog(), Target::Latest).unwrap();
            format.layout(Some(&head(RdbMagic::Redis, payload)), &plan)
        };
        let behind = || sketch("6.2.14").segment(1, 50);
        assert_eq!(forced(Format::Aof, sketch("6.2.14"), 9), Some(Layout::File));
        assert_eq!(forced(Format::Aof, behind(), 9), Some(Layout::File));
        assert_eq!(
            forced(Format::Aof, sketch("7.0.15"), 10),
            Some(Layout::Directory)
        );
        assert_eq!(forced(Format::Aof, sketch("3.2.13"), 7), None);
        assert_eq!(
            forced(Format::Rdb, sketch("7.0.15"), 10),
            Some(Layout::Dump)
        );
        assert_eq!(
            forced(Format::Rdb, behind(), 9),
            None,
            "needs a scratch server"
        );
        let plan = plan(&sketch("9.1.2").catalog(), Target::Latest).unwrap();
        let valkey = head(RdbMagic::Valkey, 80);
        assert_eq!(
            Layout::for_servers(Some(&valkey), &plan),
            Some(Layout::Directory)
        );
    }
}
