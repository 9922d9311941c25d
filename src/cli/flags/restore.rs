//! The flags of `perennial restore`.

use clap::{Args, ValueEnum};

use super::{SeedArguments, ServerArguments};

const COPY_LISTEN: &str = "Where to play master until the server is filled; port 0 takes a free one. Never the --seed-listen of a \
     `perennial run`, which would promote a server that is half filled";

/// `perennial restore`
#[derive(Debug, Args)]
#[command(after_help = "\
What is written depends on the server that was archived: an `appendonlydir/` (7.0 and later, Valkey), an \
`appendonly.aof` (4.0 to 6.2) or a `dump.rdb`. The last lines of the output say how to start a server on it. \
Everything is checked on the way, and the files appear only when all of them are complete.

With a server's URL an empty server is filled and left a master, with a history of its own; nothing is written to the \
archive. It connects to us for that: see --seed-listen where it is on another machine.

Examples:
  perennial restore --archive file:///archive --to /var/lib/redis \\
      --at 2026-11-21T14:30:00Z
  perennial restore --archive file:///archive --to redis://127.0.0.1:7000 \\
      --at \"10m ago\"

Exit codes: 0 done, 1 failed or, with --dry-run, would be refused, 2 wrong usage, 3 nothing to restore.")]
// Not the address of a `run` in the same environment: that one would take an unfinished copy for its own replica.
#[command(
    mut_arg("seed_listen", |it| it.env("PERENNIAL_COPY_LISTEN").help(COPY_LISTEN)),
    mut_arg("seed_announce", |it| it.env("PERENNIAL_COPY_ANNOUNCE"))
)]
pub struct RestoreArguments {
    /// Where the archive lies
    #[arg(
        long,
        env = "PERENNIAL_ARCHIVE",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub archive: String,

    /// Where to: a folder, created if it is not there, or a server (redis://..., rediss://..., unix:///path); refused
    /// if it holds data. With -, commands for redis-cli --pipe (needs --scratch)
    #[arg(
        long,
        env = "PERENNIAL_TO",
        hide_env_values = true,
        value_name = "DIR|URL|-"
    )]
    pub to: String,

    /// Which moment: latest, a time with its zone (2026-11-21T14:30:00Z), "10m ago", offset:N, or timeline:SEQ
    /// (its end). Times and offsets count on the way to the head; TIME@SEQ and offset:N@SEQ on that to the end of
    /// another timeline
    #[arg(
        long,
        env = "PERENNIAL_AT",
        hide_env_values = true,
        default_value = "latest",
        value_name = "WHEN"
    )]
    pub at: String,

    /// Print what would be read and whether it would be refused, and restore nothing
    #[arg(long, env = "PERENNIAL_DRY_RUN", hide_env_values = true)]
    pub dry_run: bool,

    /// Print the plan or the outcome as JSON
    #[arg(long, env = "PERENNIAL_JSON", hide_env_values = true)]
    pub json: bool,

    /// Times of expiry: keep them, so that what has expired since that moment is gone; shift each, so that as much is left as
    /// there was then; or none, so that nothing expires. Servers of 7.0 and later
    #[arg(
        long,
        env = "PERENNIAL_TTL",
        hide_env_values = true,
        value_enum,
        default_value_t = TtlFlag::Keep
    )]
    pub ttl: TtlFlag,

    /// Which files: those that the archived server starts from, append-only files, or a dump.rdb (which needs --scratch
    /// where something is behind the snapshot)
    #[arg(
        long,
        env = "PERENNIAL_FORMAT",
        hide_env_values = true,
        value_enum,
        default_value_t = FormatFlag::Auto
    )]
    pub format: FormatFlag,

    /// For --format rdb and --to -: the path of a redis-server or valkey-server, started for a moment and filled with the moment
    #[arg(
        long,
        env = "PERENNIAL_SCRATCH",
        hide_env_values = true,
        value_name = "PROGRAM"
    )]
    pub scratch: Option<String>,

    /// Restore although there is data: in a folder it is renamed, not deleted; a server loses it;
    /// commands replace keys of the same name
    #[arg(long, env = "PERENNIAL_FORCE", hide_env_values = true)]
    pub force: bool,

    /// Succeed when there is no archive or nothing in it
    #[arg(long, env = "PERENNIAL_IF_ARCHIVE_EXISTS", hide_env_values = true)]
    pub if_archive_exists: bool,

    /// How to reach the server.
    #[command(flatten, next_help_heading = "Where --to is a server")]
    pub server: ServerArguments,

    /// Where to play master.
    #[command(flatten, next_help_heading = "Where --to is a server")]
    pub seeding: SeedArguments,
}

/// `--ttl`
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum TtlFlag {
    /// What has expired since is gone
    Keep,
    /// As much time is left as there was then
    Shift,
    /// Nothing expires
    None,
}

/// `--format`
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum FormatFlag {
    /// What the archived server starts from
    Auto,
    /// Append-only files
    Aof,
    /// A dump.rdb
    Rdb,
}
