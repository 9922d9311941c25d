//! A moment as one `dump.rdb`: a scratch server is filled with it and saves it.

use std::path::Path;
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
    /// sent, and of how many.
    ///
    /// # Errors
    /// [`ToDumpError`]; nothing that was there before is touched, and nothing half-written stays.
    pub async fn write(
        &self,
        directory: &Path,
        force: bool,
        told: impl FnMut(u64, u64) + Send,
    ) -> Result<Dumped, ToDumpError> {
        let place = Place::prepare(directory, force)?;
        let mut scratch = self.scratch.open(Start::Empty).await?;
        self.fill(&mut scratch, told).await?;
        let saved = scratch.save().await?;
        let target = place.file();
        let bytes = copy(&saved, &target)?;
        let server = format!(
            "{} {}",
            scratch.info().server_name(),
            scratch.info().version()
        );
        scratch.close().await?;
        Ok(Dumped {
            server,
            bytes,
            moved_aside: place.publish(Layout::Dump)?,
        })
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
        seed.run(scratch.control(), unchanged, told).await?;
        Ok(())
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
