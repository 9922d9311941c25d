//! A moment as one `dump.rdb`: a scratch server is filled with it and saves it.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use super::seeder::{Seeder, SeederOptions};
use super::to_dir::{Layout, Place, ToDirError, io_error};
use super::to_replica::{Approach, Purpose, Seed, SeedError};
use super::ttl::Ttl;
use crate::archive::layout::ArchiveId;
use crate::archive::plan::Plan;
use crate::archive::timeline::Catalog;
use crate::clock::Clock;
use crate::server::info::{Info, MissingField};
use crate::server::scratch::{Scratch, ScratchError, ScratchPlace, Start};
use crate::store::Store;

/// Why there is no dump.
#[derive(Debug, thiserror::Error)]
pub enum ToDumpError {
    /// The folder.
    #[error(transparent)]
    Folder(#[from] ToDirError),
    /// The scratch server.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// It says too little of itself.
    #[error("the scratch server: {0}")]
    Info(#[from] MissingField),
    /// Where it would get the data.
    #[error("listen for the scratch server: {0}")]
    Listen(std::io::Error),
    /// Somebody wants it to end.
    #[error("stopped by a signal: nothing was restored")]
    Stopped,
    /// It could not be filled.
    #[error("the scratch server: {0}")]
    Seed(#[from] SeedError),
}

/// What a dump is made of.
#[derive(Debug)]
pub struct Dump<'a> {
    /// Where the plan lies.
    pub store: Arc<dyn Store>,
    /// The archive's id.
    pub archive: ArchiveId,
    /// What the archive holds.
    pub catalog: &'a Catalog,
    /// What to restore.
    pub plan: &'a Plan,
    /// Where the scratch server comes from.
    pub scratch: &'a ScratchPlace,
    /// What becomes of times of expiry.
    pub ttl: Ttl,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// What was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dumped {
    /// The server that wrote it.
    pub server: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// What was there before, under its new names.
    pub moved_aside: Vec<String>,
}

impl Dump<'_> {
    /// Writes `dump.rdb` into a folder. It appears only when it is whole. `told` hears how many bytes the scratch server was
    /// sent, and of how many. Ends when `stopped` does.
    ///
    /// # Errors
    /// [`ToDumpError`]; nothing that was there before is touched, and nothing half-written stays.
    pub async fn write(
        &self,
        directory: &Path,
        force: bool,
        stopped: impl Future<Output = ()>,
        told: impl FnMut(u64, u64) + Send,
    ) -> Result<Dumped, ToDumpError> {
        if let ScratchPlace::Server(address) = self.scratch {
            let address = address.to_string();
            return Err(ScratchError::NoFolder { address }.into());
        }
        let place = Place::prepare(directory, force)?;
        self.with_scratch(stopped, async |scratch| {
            self.fill(scratch, told).await?;
            let saved = scratch.save().await?;
            let bytes = copy(&saved, &place.file())?;
            let info = scratch.info();
            Ok(Dumped {
                server: format!("{} {}", info.server_name(), info.version()),
                bytes,
                moved_aside: place.publish(Layout::Dump)?,
            })
        })
        .await
    }

    /// Does something with a scratch server, of which nothing stays however that ends.
    pub(super) async fn with_scratch<T, E: From<ToDumpError>>(
        &self,
        stopped: impl Future<Output = ()>,
        work: impl AsyncFnOnce(&mut Scratch) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut stopped = pin!(stopped);
        let opened = tokio::select! {
            opened = self.scratch.open(Start::Empty) => opened,
            () = &mut stopped => return Err(ToDumpError::Stopped.into()),
        };
        let mut scratch = opened.map_err(ToDumpError::from)?;
        let done = tokio::select! {
            done = work(&mut scratch) => done,
            () = stopped => Err(ToDumpError::Stopped.into()),
        };
        let closed = scratch.close().await.map_err(ToDumpError::from);
        let done = done?;
        closed?;
        Ok(done)
    }

    pub(super) async fn fill(
        &self,
        scratch: &mut Scratch,
        told: impl FnMut(u64, u64) + Send,
    ) -> Result<(), ToDumpError> {
        let options = SeederOptions {
            listen: ([127, 0, 0, 1], 0).into(),
            announce: None,
            auth: None,
            tls: None,
        };
        let seeder = Seeder::open(options, Arc::clone(&self.clock))
            .await
            .map_err(ToDumpError::Listen)?;
        let nobody = |_: &str, _: u16| false;
        let before = scratch.info().server(nobody)?;
        let unchanged = |info: &Info| match info.server(nobody) {
            Ok(now) if now.run_id == before.run_id && now.empty => Ok(()),
            _ => Err("somebody else uses it"),
        };
        let seed = Seed {
            store: Arc::clone(&self.store),
            archive: self.archive,
            catalog: self.catalog,
            plan: self.plan.clone(),
            address: scratch.address().to_string(),
            held: before.id,
            seeder: &seeder,
            approach: Approach::TakeOver,
            purpose: Purpose::Copy(self.ttl),
            clock: &*self.clock,
        };
        let filled = seed.run(scratch.control(), unchanged, told).await;
        if matches!(filled, Err(SeedError::Changed { .. })) {
            scratch.leave_alone();
        }
        Ok(filled.map(drop)?)
    }
}

/// Copies and syncs: the scratch server's folder may be on another file system.
fn copy(from: &Path, to: &Path) -> Result<u64, ToDirError> {
    let copied = tokio::task::block_in_place(|| {
        let bytes = std::fs::copy(from, to)?;
        std::fs::File::open(to)?.sync_all()?;
        Ok(bytes)
    });
    copied.map_err(io_error("copy the dump to", to))
}
