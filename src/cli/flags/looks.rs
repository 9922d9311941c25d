//! The flags of the commands that only look: `inspect`, `verify`, `check`.

use std::path::PathBuf;

use clap::Args;

use super::{SeedArguments, ServerArguments};

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
