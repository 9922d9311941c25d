//! The flags of the commands that change an archive: `accept`, `prune`; and how `run` keeps it.

use clap::Args;

use super::super::Exit;
use super::ArchiveArguments;
use crate::config::UpkeepSettings;

/// `perennial accept`
#[derive(Debug, Args)]
#[command(after_help = "\
A timeline is suspect when it began at a server that may be stale or foreign while the archive already had \
data: a server that took writes before it could be seeded, for example. It is archived like any other, but \
`latest` and seeds go on using the timeline before it. Look at both with `perennial status` first: accepting \
makes the suspect one the head. The other stays in the archive and can still be restored by --at timeline:SEQ.")]
pub struct AcceptArguments {
    /// Where the archive lies
    #[arg(
        long,
        env = "PERENNIAL_ARCHIVE",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub archive: String,

    /// The number of the timeline; the newest suspect one if left out
    #[arg(value_name = "TIMELINE")]
    pub timeline: Option<u32>,

    /// Accept even an ancestor of the head: what came after it is left out of the next seed
    #[arg(long, env = "PERENNIAL_FORCE", hide_env_values = true)]
    pub force: bool,

    /// Why, for whoever reads the archive later
    #[arg(
        long,
        env = "PERENNIAL_REASON",
        hide_env_values = true,
        default_value = "accepted by hand",
        value_name = "TEXT"
    )]
    pub reason: String,
}

/// How an archive is kept.
#[derive(Debug, Args)]
pub struct UpkeepArguments {
    /// Delete nothing, neither what is too old nor what was merged
    #[arg(long, env = "PERENNIAL_NO_DELETE", hide_env_values = true)]
    pub no_delete: bool,

    /// Segments stored within this time are merged
    #[arg(
        long,
        env = "PERENNIAL_MERGE_MINUTE",
        hide = true,
        value_name = "TIME",
        default_value = "1m"
    )]
    pub merge_minute: String,

    /// Segments received within this time are merged in turn
    #[arg(
        long,
        env = "PERENNIAL_MERGE_HOUR",
        hide = true,
        value_name = "TIME",
        default_value = "1h"
    )]
    pub merge_hour: String,

    /// What was merged stays this long beside the merged segment
    #[arg(
        long,
        env = "PERENNIAL_MERGE_GRACE",
        hide = true,
        value_name = "TIME",
        default_value = "10m"
    )]
    pub merge_grace: String,
}

/// `perennial prune`
#[derive(Debug, Args)]
#[command(after_help = "\
`perennial run` does the same every few minutes by itself: this is for an archive that nothing writes to any more, and \
to see what would be done. Nothing that a restore inside --retention needs is deleted, on any branch; nor the last \
restorable snapshot, whatever its age. What was merged is deleted ten minutes after, so a second call finishes.

Exit codes: 0 done, or nothing was to be done, 1 failed, or something needs a person (with --dry-run: would), 2 wrong usage.")]
pub struct PruneArguments {
    /// The archive.
    #[command(flatten)]
    pub archive: ArchiveArguments,

    /// Every moment that is not older can be restored; what only older ones need is deleted. forever keeps everything.
    /// What `perennial run` is given; needed unless --dry-run, which takes 7d
    #[arg(
        long,
        env = "PERENNIAL_RETENTION",
        hide_env_values = true,
        value_name = "TIME"
    )]
    pub retention: Option<String>,

    /// How it is kept.
    #[command(flatten)]
    pub upkeep: UpkeepArguments,

    /// Print what would be done, and do nothing
    #[arg(long, env = "PERENNIAL_DRY_RUN", hide_env_values = true)]
    pub dry_run: bool,
}

impl PruneArguments {
    /// The window. Nobody but who runs the archive knows what it was promised: only where nothing is deleted there is
    /// one that we choose.
    ///
    /// # Errors
    /// Where it has to be given.
    pub fn window(&self) -> Result<String, Exit> {
        match &self.retention {
            Some(given) => Ok(given.clone()),
            None if self.dry_run => Ok(UpkeepSettings::default().retention),
            None => Err(Exit {
                message: "--retention is needed: what only older moments need is deleted for good. Give what \
                          `perennial run` is given, or forever to merge only; --dry-run shows what would be done"
                    .into(),
                code: 2,
            }),
        }
    }
}

impl UpkeepArguments {
    /// As typed, with --retention.
    pub fn settings(self, retention: String) -> UpkeepSettings {
        UpkeepSettings {
            retention,
            no_delete: self.no_delete,
            merge_minute: self.merge_minute,
            merge_hour: self.merge_hour,
            merge_grace: self.merge_grace,
        }
    }
}
