//! Every flag, once: its name, its environment variable, its help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::Exit;
use crate::advice::unreadable;
use crate::config::{RunSettings, SnapshotSettings, TlsSettings, UpkeepSettings};
use crate::decide::Policy;
use crate::follow::AckMode;

/// Redis that comes back: follows a Redis or Valkey master as a replica, keeps every write in an archive, and
/// fills the master again when it comes up empty.
#[derive(Debug, Parser)]
#[command(
    name = "perennial",
    version,
    max_term_width = 100,
    after_help = "\
Start here, beside a running Redis:
  perennial run --redis redis://127.0.0.1:6379 \\
      --archive file:///var/lib/perennial

Then look at what is kept, and try a restore:
  perennial status --archive file:///var/lib/perennial
  perennial restore --archive file:///var/lib/perennial \\
      --to /tmp/restored --dry-run

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nothing to restore. PERENNIAL_LOG=debug says more."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Follow a master into the archive, and seed it when it comes up empty
    Run(Box<RunArguments>),
    /// Look at server, settings and archive before they are needed, and say what to change
    Check(Box<CheckArguments>),
    /// Restore the archive, as of any moment, to files or into a server
    Restore(Box<RestoreArguments>),
    /// Read an archive and say what is damaged or missing; with --drill, prove a restore by restoring
    Verify(VerifyArguments),
    /// Tell how an archive stands: what can be restored, what is wrong
    Status(ArchiveArguments),
    /// List the timelines, snapshots and segments of an archive
    Ls(ArchiveArguments),
    /// Take a snapshot of a followed server now
    Snapshot(Box<OneSnapshotArguments>),
    /// Tell what a snapshot or a dump file holds: keys by type, the biggest, prefixes, one value
    Inspect(InspectArguments),
    /// Make a suspect timeline the head, so that seeds use it
    Accept(AcceptArguments),
    /// Merge the small segments of an archive, and delete what is older than the window
    Prune(PruneArguments),
    /// Print completions for a shell
    Completions(CompletionsArguments),
    /// Print the manual page, as roff
    Man(ManArguments),
}

/// The archive of a command that reads one.
#[derive(Debug, Args)]
pub struct ArchiveArguments {
    /// Where the archive lies: file:///absolute/directory, s3://bucket/prefix?region=… or gs://bucket/prefix
    #[arg(
        long,
        env = "PERENNIAL_ARCHIVE",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub archive: String,

    /// Print JSON with stable field names
    #[arg(long, env = "PERENNIAL_JSON", hide_env_values = true)]
    pub json: bool,
}

/// `perennial inspect`
#[derive(Debug, Args)]
#[command(after_help = "\
Of an archive it reads the snapshot with which a restore of that moment begins; writes that came after it are not \
in there. Sizes are what a key takes in the dump, where texts may be compressed. Names are shown with \\xNN for bytes \
that are not text and \\\\ for a backslash, and --key takes them so. Memory does not depend on the dump, but for the \
one value of --key.

A type that is not known here (of a newer server, for example) ends the reading with an error; backups and restores do \
not depend on it.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no snapshot or no such key.")]
#[command(group(clap::ArgGroup::new("source").args(["archive", "file"]).required(true).multiple(true)))]
pub struct InspectArguments {
    /// Where the archive lies: file:///absolute/directory, s3://bucket/prefix?region=… or gs://bucket/prefix
    #[arg(
        long,
        env = "PERENNIAL_ARCHIVE",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub archive: Option<String>,

    /// A dump file (dump.rdb) instead of an archive
    #[arg(
        long,
        env = "PERENNIAL_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub file: Option<PathBuf>,

    /// Which moment of the archive, as `perennial restore` takes it
    #[arg(
        long,
        env = "PERENNIAL_AT",
        hide_env_values = true,
        default_value = "latest",
        value_name = "WHEN"
    )]
    pub at: String,

    /// How many of the biggest keys and of the heaviest prefixes are shown
    #[arg(
        long,
        env = "PERENNIAL_TOP",
        hide_env_values = true,
        default_value = "10",
        value_parser = clap::value_parser!(u16).range(..=10_000),
        value_name = "COUNT"
    )]
    pub top: u16,

    /// What ends the prefix of a name
    #[arg(
        long,
        env = "PERENNIAL_PREFIX_SEPARATOR",
        hide_env_values = true,
        default_value = ":",
        value_name = "TEXT"
    )]
    pub prefix_separator: String,

    /// Show this key and its value, and nothing else
    #[arg(
        long,
        env = "PERENNIAL_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    pub key: Option<String>,

    /// The database of --key
    #[arg(
        long,
        env = "PERENNIAL_DATABASE",
        hide_env_values = true,
        default_value = "0",
        value_name = "NUMBER"
    )]
    pub database: u64,

    /// Print JSON with stable field names
    #[arg(long, env = "PERENNIAL_JSON", hide_env_values = true)]
    pub json: bool,
}

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

const COPY_LISTEN: &str = "Where to play master until the server is filled; port 0 takes a free one. Never the --seed-listen of a \
     `perennial run`, which would promote a server that is half filled";

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

/// `perennial verify`
#[derive(Debug, Args)]
#[command(after_help = "\
Without --drill it reads every object and checks documents, names, checksums, and that everything leads on from \
something. With --drill it also restores into a scratch server, which is thrown away: an earlier snapshot and what \
came after it must give the same data as a later snapshot, which the master made itself; and latest must be taken \
without an error. The scratch server must read what the archived one wrote, and needs memory for all its data. What \
has expired by then cannot be compared any more.

Exit codes: 0 nothing is bad, 1 something is, or it could not be verified, 2 wrong usage.

Examples:
  perennial verify --archive file:///var/lib/perennial
  perennial verify --archive file:///var/lib/perennial \\
      --drill --scratch /usr/bin/redis-server")]
pub struct VerifyArguments {
    /// Where the archive lies
    #[arg(
        long,
        env = "PERENNIAL_ARCHIVE",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub archive: String,

    /// Only what restores of moments since then need: 7d, "10m ago" or 2026-01-31T12:00:00Z
    #[arg(
        long,
        env = "PERENNIAL_SINCE",
        hide_env_values = true,
        value_name = "WHEN"
    )]
    pub since: Option<String>,

    /// Restore into the server of --scratch, and compare
    #[arg(
        long,
        env = "PERENNIAL_DRILL",
        hide_env_values = true,
        requires = "scratch"
    )]
    pub drill: bool,

    /// With --drill, a redis-server or valkey-server to start, or the URL of an empty master on this machine,
    /// which is left empty
    #[arg(
        long,
        env = "PERENNIAL_SCRATCH",
        hide_env_values = true,
        value_name = "PROGRAM|URL"
    )]
    pub scratch: Option<String>,

    /// Write when this last succeeded to a file, for the textfile collector of node_exporter
    #[arg(
        long,
        env = "PERENNIAL_METRICS_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub metrics_file: Option<PathBuf>,

    /// Print JSON with stable field names
    #[arg(long, env = "PERENNIAL_JSON", hide_env_values = true)]
    pub json: bool,
}

/// `perennial completions`
#[derive(Debug, Args)]
#[command(after_help = "\
For bash:  perennial completions bash > /etc/bash_completion.d/perennial
For zsh:   perennial completions zsh > /usr/share/zsh/site-functions/_perennial
For fish:  perennial completions fish > ~/.config/fish/completions/perennial.fish")]
pub struct CompletionsArguments {
    /// Which shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// The shells that there are completions for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// `perennial man`
#[derive(Debug, Args)]
#[command(after_help = "\
To install:  perennial man > /usr/local/share/man/man1/perennial.1
             perennial man run > /usr/local/share/man/man1/perennial-run.1
To read:     perennial man run | man -l -")]
pub struct ManArguments {
    /// The page of this command; of the whole program if left out
    #[arg(value_name = "COMMAND")]
    pub command: Option<String>,
}

/// `--log-format`
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// One line for people
    Text,
    /// One line of JSON
    Json,
}

/// `--seed`
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SeedFlag {
    /// Seed a server that comes up empty, or from a dump provably older than the archive with nothing written
    /// since
    Auto,
    /// Seed only a server without any data
    IfEmpty,
    /// Never seed; an empty server beside an archive with data is not followed either
    Never,
    /// Whatever this server holds is the head from now on (break-glass)
    StartOver,
}

/// `--ack`
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum AckFlag {
    /// WAIT returns when the write is in the archive
    Durable,
    /// WAIT returns when the write was received; WAITAOF 0 1 (7.2+) still means in the archive
    Received,
}

/// `perennial run`
#[derive(Debug, Args)]
#[command(after_help = "\
What it does: connects as a replica, stores a snapshot and then every byte of the replication stream, and \
acknowledges to the master only what is stored. So `WAIT 1 0` after a write returns when the write is in the \
archive. When the server comes up empty (or from an older dump), it is filled from the archive before it is \
followed again. A server with data of its own is never overwritten.

To close the moment between an empty start and the seed, let the server be born a replica:
  redis-server --replicaof 127.0.0.1 6390 --replica-serve-stale-data no
  perennial run --seed-listen 127.0.0.1:6390 ...

On SIGTERM it goes on until the master closes the link or --shutdown-timeout is near, stores the rest and exits \
with 0. A second signal ends it at once.")]
pub struct RunArguments {
    /// The server: redis://[user:password@]host:port, rediss://... for TLS, or unix:///path
    #[arg(
        long,
        env = "PERENNIAL_REDIS",
        hide_env_values = true,
        value_name = "URL",
        default_value = "redis://127.0.0.1:6379",
        hide_env_values = true
    )]
    pub redis: String,

    /// How to reach the server.
    #[command(flatten)]
    pub server: ServerArguments,

    /// Where the archive lies: file:///absolute/directory, s3://bucket/prefix?region=… or gs://bucket/prefix
    #[arg(
        long,
        env = "PERENNIAL_ARCHIVE",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub archive: String,

    /// The data set's name: an archive of another name is refused
    #[arg(
        long,
        env = "PERENNIAL_NAME",
        hide_env_values = true,
        value_name = "NAME"
    )]
    pub name: Option<String>,

    /// Which servers may be filled from the archive
    #[arg(long, env = "PERENNIAL_SEED", hide_env_values = true, value_enum, default_value_t = SeedFlag::Auto)]
    pub seed: SeedFlag,

    /// Where to play master.
    #[command(flatten)]
    pub seeding: SeedArguments,

    /// What is acknowledged to the master
    #[arg(long, env = "PERENNIAL_ACK", hide_env_values = true, value_enum, default_value_t = AckFlag::Durable)]
    pub ack: AckFlag,

    /// The longest that a write waits in memory before its upload begins
    #[arg(
        long,
        env = "PERENNIAL_FLUSH_INTERVAL",
        hide_env_values = true,
        value_name = "TIME",
        default_value = "1s"
    )]
    pub flush_interval: String,

    /// Upload earlier when this much has gathered
    #[arg(
        long,
        env = "PERENNIAL_FLUSH_BYTES",
        hide_env_values = true,
        value_name = "SIZE",
        default_value = "8MiB"
    )]
    pub flush_bytes: String,

    /// Memory for everything on its way to the archive
    #[arg(
        long,
        env = "PERENNIAL_BUFFER_BYTES",
        hide_env_values = true,
        value_name = "SIZE",
        default_value = "32MiB"
    )]
    pub buffer_bytes: String,

    /// A folder for scratch files: what waits for the archive beyond --buffer-bytes goes there. Without it there are
    /// none, and the link is closed when memory is full
    #[arg(
        long,
        env = "PERENNIAL_SPOOL_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub spool_dir: Option<PathBuf>,

    /// With --spool-dir, the most that scratch files may take
    #[arg(
        long,
        env = "PERENNIAL_SPOOL_BYTES",
        hide_env_values = true,
        value_name = "SIZE",
        default_value = "1GiB"
    )]
    pub spool_bytes: String,

    /// How many segments may be uploaded per second, sustained; five times as many at once. 0 or none is no
    /// limit. 20 if left out where the archive is a bucket, no limit where it is a folder
    #[arg(
        long,
        env = "PERENNIAL_UPLOADS_PER_SECOND",
        hide_env_values = true,
        value_name = "N"
    )]
    pub uploads_per_second: Option<String>,

    /// Store a snapshot larger than this in several objects
    #[arg(
        long,
        env = "PERENNIAL_SNAPSHOT_PART_BYTES",
        hide = true,
        value_name = "SIZE",
        default_value = "300GB"
    )]
    pub snapshot_part_bytes: String,

    /// When other snapshots are taken.
    #[command(flatten)]
    pub snapshots: SnapshotArguments,

    /// How long stopping may take, the last uploads included
    #[arg(
        long,
        env = "PERENNIAL_SHUTDOWN_TIMEOUT",
        hide_env_values = true,
        value_name = "TIME",
        default_value = "20s"
    )]
    pub shutdown_timeout: String,

    /// Every moment that is not older can be restored; what only older ones need is deleted. forever keeps everything
    #[arg(
        long,
        env = "PERENNIAL_RETENTION",
        hide_env_values = true,
        value_name = "TIME",
        default_value = "7d"
    )]
    pub retention: String,

    /// How the archive is kept.
    #[command(flatten)]
    pub upkeep: UpkeepArguments,

    /// How often segments are merged and what is too old is deleted, where there is something to do; 0s is never
    #[arg(
        long,
        env = "PERENNIAL_UPKEEP_INTERVAL",
        hide_env_values = true,
        value_name = "TIME",
        default_value = "5m"
    )]
    pub upkeep_interval: String,

    /// Serve /metrics, /readyz and /healthz on this address, 127.0.0.1:9121 for example; not at all if left
    /// out
    #[arg(
        long,
        env = "PERENNIAL_HTTP",
        hide_env_values = true,
        value_name = "ADDR"
    )]
    pub http: Option<String>,

    /// How each line of the log is written
    #[arg(long, env = "PERENNIAL_LOG_FORMAT", hide_env_values = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// A TOML file of these flags without their --; a flag or a variable goes before the file
    #[arg(
        long,
        env = "PERENNIAL_CONFIG",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub config: Option<PathBuf>,
}

/// When snapshots behind the first one are taken, and from where.
#[derive(Debug, Args)]
pub struct SnapshotArguments {
    /// Take another snapshot this long after the last one, if anything was written; none for no such interval
    #[arg(
        long,
        env = "PERENNIAL_SNAPSHOT_INTERVAL",
        hide_env_values = true,
        value_name = "TIME",
        default_value = "24h"
    )]
    pub snapshot_interval: String,

    /// Never take one earlier than this after the last one: each makes a server fork
    #[arg(
        long,
        env = "PERENNIAL_SNAPSHOT_MIN_INTERVAL",
        hide_env_values = true,
        value_name = "TIME",
        default_value = "1h"
    )]
    pub snapshot_min_interval: String,

    /// Take another one when the replication stream since the last one is so many times its size, and at least
    /// 256 MiB: a restore replays it. None for never
    #[arg(
        long,
        env = "PERENNIAL_SNAPSHOT_LOG_RATIO",
        hide_env_values = true,
        value_name = "RATIO",
        default_value = "1.0"
    )]
    pub snapshot_log_ratio: String,

    /// The least replication stream for --snapshot-log-ratio
    #[arg(
        long,
        env = "PERENNIAL_SNAPSHOT_LOG_BYTES",
        hide = true,
        value_name = "SIZE",
        default_value = "256MiB"
    )]
    pub snapshot_log_bytes: String,

    /// Take them from this replica of the server, so that the server does not fork; redis://... as for --redis,
    /// whose password is used where it has none. The first one always comes from the server
    #[arg(
        long,
        env = "PERENNIAL_SNAPSHOT_FROM",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub snapshot_from: Option<String>,
}

/// How to reach a server, besides its address.
#[derive(Debug, Args)]
pub struct ServerArguments {
    /// A file with the server's password, instead of one in --redis; or the password itself in
    /// PERENNIAL_REDIS_PASSWORD
    #[arg(
        long,
        env = "PERENNIAL_REDIS_PASSWORD_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub redis_password_file: Option<PathBuf>,

    /// With rediss://, the authorities to trust, PEM; those of the system if left out
    #[arg(
        long,
        env = "PERENNIAL_REDIS_CA_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub redis_ca_file: Option<PathBuf>,

    /// With rediss://, our client certificate with its chain, PEM; servers want one unless tls-auth-clients
    /// is no
    #[arg(
        long,
        env = "PERENNIAL_REDIS_CERT_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub redis_cert_file: Option<PathBuf>,

    /// The key of --redis-cert-file, PEM
    #[arg(
        long,
        env = "PERENNIAL_REDIS_KEY_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub redis_key_file: Option<PathBuf>,

    /// With rediss://, the name that the server's certificate must bear; the URL's host if left out
    #[arg(
        long,
        env = "PERENNIAL_REDIS_SERVER_NAME",
        hide_env_values = true,
        value_name = "NAME"
    )]
    pub redis_server_name: Option<String>,
}

/// Where to play master for a seed.
#[derive(Debug, Args)]
pub struct SeedArguments {
    /// Where to play master for a seed; port 0 takes one that follows from the archive. Give a fixed port to a server that is born a
    /// replica of it
    #[arg(
        long,
        env = "PERENNIAL_SEED_LISTEN",
        hide_env_values = true,
        value_name = "ADDR",
        default_value = "127.0.0.1:0"
    )]
    pub seed_listen: String,

    /// What the server is told to connect to, where that differs from --seed-listen
    #[arg(
        long,
        env = "PERENNIAL_SEED_ANNOUNCE",
        hide_env_values = true,
        value_name = "HOST:PORT"
    )]
    pub seed_announce: Option<String>,

    /// A file with the password that a server must send as masterauth; needed off loopback. Or the password
    /// itself in PERENNIAL_SEED_PASSWORD
    #[arg(
        long,
        env = "PERENNIAL_SEED_PASSWORD_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub seed_password_file: Option<PathBuf>,

    /// Our certificate for servers that connect to the seed address by TLS (tls-replication yes), PEM
    #[arg(
        long,
        env = "PERENNIAL_SEED_CERT_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub seed_cert_file: Option<PathBuf>,

    /// The key of --seed-cert-file, PEM
    #[arg(
        long,
        env = "PERENNIAL_SEED_KEY_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub seed_key_file: Option<PathBuf>,

    /// Let in at the seed address only servers that show a certificate of these authorities, PEM
    #[arg(
        long,
        env = "PERENNIAL_SEED_CLIENT_CA_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub seed_client_ca_file: Option<PathBuf>,
}

/// `perennial snapshot`
#[derive(Debug, Args)]
#[command(after_help = "\
It follows the server for a moment, from where the archive ends, stores what is missing up to the snapshot and then \
the snapshot itself, so it can be used beside a running `perennial run`, which counts its next one from this one. The \
server forks once, or the replica of --snapshot-from. Nothing is begun: where the archive does not hold this server's \
history up to now, it fails and says so.

Exit codes: 0 stored, 1 not, 2 wrong usage.")]
pub struct OneSnapshotArguments {
    /// The server: redis://[user:password@]host:port, rediss://... for TLS, or unix:///path
    #[arg(
        long,
        env = "PERENNIAL_REDIS",
        hide_env_values = true,
        value_name = "URL",
        default_value = "redis://127.0.0.1:6379"
    )]
    pub redis: String,

    /// How to reach the server.
    #[command(flatten)]
    pub server: ServerArguments,

    /// Where the archive lies: file:///absolute/directory, s3://bucket/prefix?region=… or gs://bucket/prefix
    #[arg(
        long,
        env = "PERENNIAL_ARCHIVE",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub archive: String,

    /// Take it from this replica of the server, so that the server does not fork
    #[arg(
        long,
        env = "PERENNIAL_SNAPSHOT_FROM",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub snapshot_from: Option<String>,

    /// Print JSON with stable field names
    #[arg(long, env = "PERENNIAL_JSON", hide_env_values = true)]
    pub json: bool,
}

/// `perennial check`
#[derive(Debug, Args)]
#[command(after_help = "\
Give it the flags of `perennial run`. It writes nothing into the server, and into the archive only a probe, a small \
object that it deletes again. Each line is a finding: ok, warn, bad or unknown, what was looked at, and, behind an \
arrow, what to change. Without --redis only the archive is looked at, without --archive only the server.

Exit codes: 0 nothing is bad, 1 something is, 2 wrong usage.")]
pub struct CheckArguments {
    /// The server: redis://[user:password@]host:port, rediss://... for TLS, or unix:///path
    #[arg(
        long,
        env = "PERENNIAL_REDIS",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub redis: Option<String>,

    /// How to reach the server.
    #[command(flatten)]
    pub server: ServerArguments,

    /// Where the archive lies: file:///absolute/directory, s3://bucket/prefix?region=… or gs://bucket/prefix
    #[arg(
        long,
        env = "PERENNIAL_ARCHIVE",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub archive: Option<String>,

    /// The data set's name, compared with the archive's
    #[arg(
        long,
        env = "PERENNIAL_NAME",
        hide_env_values = true,
        value_name = "NAME"
    )]
    pub name: Option<String>,

    /// Where to play master.
    #[command(flatten)]
    pub seeding: SeedArguments,

    /// Print JSON with stable field names
    #[arg(long, env = "PERENNIAL_JSON", hide_env_values = true)]
    pub json: bool,
}

impl RunArguments {
    /// The settings as typed, secrets read from their files.
    ///
    /// # Errors
    /// Where a file cannot be read: a usage error.
    pub fn settings(self) -> Result<RunSettings, Exit> {
        Ok(RunSettings {
            redis: self.redis,
            redis_password: self.server.password()?,
            archive: self.archive,
            name: self.name,
            seed: match self.seed {
                SeedFlag::Auto => Policy::Auto,
                SeedFlag::IfEmpty => Policy::IfEmpty,
                SeedFlag::Never => Policy::Never,
                SeedFlag::StartOver => Policy::StartOver,
            },
            seed_password: self.seeding.password()?,
            ack: match self.ack {
                AckFlag::Durable => AckMode::Durable,
                AckFlag::Received => AckMode::Received,
            },
            flush_interval: self.flush_interval,
            flush_bytes: self.flush_bytes,
            buffer_bytes: self.buffer_bytes,
            snapshot_part_bytes: self.snapshot_part_bytes,
            snapshots: SnapshotSettings {
                interval: self.snapshots.snapshot_interval,
                min_interval: self.snapshots.snapshot_min_interval,
                log_ratio: self.snapshots.snapshot_log_ratio,
                log_bytes: self.snapshots.snapshot_log_bytes,
                from: self.snapshots.snapshot_from,
            },
            spool_dir: self.spool_dir,
            spool_bytes: self.spool_bytes,
            uploads_per_second: self.uploads_per_second,
            shutdown_timeout: self.shutdown_timeout,
            upkeep: self.upkeep.settings(self.retention),
            upkeep_interval: self.upkeep_interval,
            http: self.http,
            tls: tls(&self.server, &self.seeding),
            seed_listen: self.seeding.seed_listen,
            seed_announce: self.seeding.seed_announce,
        })
    }
}

impl OneSnapshotArguments {
    /// The settings as typed, and those of `run` that do not matter here.
    ///
    /// # Errors
    /// Where a file cannot be read: a usage error.
    pub fn settings(self) -> Result<RunSettings, Exit> {
        Ok(RunSettings {
            redis_password: self.server.password()?,
            redis: self.redis,
            archive: self.archive,
            name: None,
            seed: Policy::Never,
            seed_listen: "127.0.0.1:0".into(),
            seed_announce: None,
            seed_password: None,
            ack: AckMode::Durable,
            flush_interval: "1s".into(),
            flush_bytes: "8MiB".into(),
            buffer_bytes: "32MiB".into(),
            snapshot_part_bytes: "300GB".into(),
            snapshots: SnapshotSettings {
                from: self.snapshot_from,
                ..Default::default()
            },
            spool_dir: None,
            spool_bytes: "1GiB".into(),
            uploads_per_second: None,
            // Whoever stops it wants no snapshot.
            shutdown_timeout: "0s".into(),
            // Upkeep is for those who stay.
            upkeep: UpkeepSettings::default(),
            upkeep_interval: "0s".into(),
            http: None,
            tls: self.server.tls(),
        })
    }
}

impl ServerArguments {
    fn tls(&self) -> TlsSettings {
        TlsSettings {
            redis_ca_file: self.redis_ca_file.clone(),
            redis_cert_file: self.redis_cert_file.clone(),
            redis_key_file: self.redis_key_file.clone(),
            redis_server_name: self.redis_server_name.clone(),
            ..Default::default()
        }
    }

    /// The password, read from its file.
    ///
    /// # Errors
    /// Where the file cannot be read: a usage error.
    pub fn password(&self) -> Result<Option<String>, Exit> {
        secret("redis-password", self.redis_password_file.clone())
    }
}

impl SeedArguments {
    /// The password, read from its file.
    ///
    /// # Errors
    /// Where the file cannot be read: a usage error.
    pub fn password(&self) -> Result<Option<String>, Exit> {
        secret("seed-password", self.seed_password_file.clone())
    }
}

/// Everything about TLS, as typed.
pub fn tls(server: &ServerArguments, seeding: &SeedArguments) -> TlsSettings {
    TlsSettings {
        seed_cert_file: seeding.seed_cert_file.clone(),
        seed_key_file: seeding.seed_key_file.clone(),
        seed_client_ca_file: seeding.seed_client_ca_file.clone(),
        ..server.tls()
    }
}

/// A secret: from the file that was named, or from the variable of its own, never from a flag that others can see.
fn secret(name: &str, path: Option<PathBuf>) -> Result<Option<String>, Exit> {
    let usage = |message: String| Exit { message, code: 2 };
    let variable = format!("PERENNIAL_{}", name.replace('-', "_").to_uppercase());
    let given = std::env::var(&variable)
        .ok()
        .filter(|value| !value.is_empty());
    let Some(path) = path else { return Ok(given) };
    if given.is_some() {
        return Err(usage(format!(
            "--{name}-file: {variable} is set as well: give one of them"
        )));
    }
    let text = std::fs::read_to_string(&path)
        .map_err(|error| usage(format!("--{name}-file: {}", unreadable(&path, &error))))?;
    let secret = text.trim_end_matches(['\n', '\r']);
    let wrong = match secret {
        "" => "is empty: write the password into it",
        _ if secret.contains(['\n', '\r']) => "has several lines: write the password alone into it",
        _ => return Ok(Some(secret.to_owned())),
    };
    Err(usage(format!("--{name}-file: {} {wrong}", path.display())))
}
