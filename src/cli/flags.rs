//! Every flag, once: its name, its environment variable, its help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::Exit;
use crate::advice::unreadable;
use crate::config::{RunSettings, SentinelSettings, SnapshotSettings, TlsSettings, UpkeepSettings};
use crate::decide::Policy;
use crate::follow::AckMode;

mod keeping;
mod looks;
mod restore;
mod shown;

pub use keeping::{AcceptArguments, PruneArguments, UpkeepArguments};
pub use looks::{CheckArguments, InspectArguments, VerifyArguments};
pub use restore::{FormatFlag, RestoreArguments, TtlFlag};
pub use shown::{CompletionsArguments, ManArguments, Shell};

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

    /// Who names the server.
    #[command(flatten)]
    pub sentinel: SentinelArguments,

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
    /// whose password is used where it has none. With the word archive, from what is archived (needs --scratch): nobody
    /// forks. The first one always comes from the server
    #[arg(
        long,
        env = "PERENNIAL_SNAPSHOT_FROM",
        hide_env_values = true,
        value_name = "URL|archive"
    )]
    pub snapshot_from: Option<String>,

    /// For --snapshot-from archive: the path of a redis-server or valkey-server of the version that is followed. It runs
    /// while a snapshot is made, on this machine, and needs memory for all the data
    #[arg(
        long,
        env = "PERENNIAL_SCRATCH",
        hide_env_values = true,
        value_name = "PROGRAM"
    )]
    pub scratch: Option<String>,
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

/// Sentinels that name the server.
#[derive(Debug, Args)]
pub struct SentinelArguments {
    /// Sentinels that are asked which server is the master, with commas between them; it is followed through failovers.
    /// Of --redis only the scheme, the user and the password count then
    #[arg(
        long,
        env = "PERENNIAL_SENTINEL",
        hide_env_values = true,
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub sentinel: Vec<String>,

    /// The name by which the Sentinels know the master
    #[arg(
        long,
        env = "PERENNIAL_SENTINEL_MASTER",
        hide_env_values = true,
        value_name = "NAME"
    )]
    pub sentinel_master: Option<String>,

    /// A file with the Sentinels' own password, where they want one. Or the password itself in
    /// PERENNIAL_SENTINEL_PASSWORD
    #[arg(
        long,
        env = "PERENNIAL_SENTINEL_PASSWORD_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub sentinel_password_file: Option<PathBuf>,
}

impl SentinelArguments {
    /// The settings as typed, the password read from its file.
    ///
    /// # Errors
    /// Where the file cannot be read: a usage error.
    pub fn settings(self) -> Result<SentinelSettings, Exit> {
        Ok(SentinelSettings {
            addresses: self.sentinel,
            master: self.sentinel_master,
            password: secret("sentinel-password", self.sentinel_password_file)?,
        })
    }
}

/// `perennial snapshot`
#[derive(Debug, Args)]
#[command(after_help = "\
It follows the server for a moment, from where the archive ends, stores what is missing up to the snapshot and then \
the snapshot itself, so it can be used beside a running `perennial run`, which counts its next one from this one. The \
server forks once, or the replica of --snapshot-from, or nobody. Nothing is begun: where the archive does not hold this server's \
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

    /// Take it from this replica of the server, so that the server does not fork; or, with the word archive, from what is
    /// archived (needs --scratch): nobody forks
    #[arg(
        long,
        env = "PERENNIAL_SNAPSHOT_FROM",
        hide_env_values = true,
        value_name = "URL|archive"
    )]
    pub snapshot_from: Option<String>,

    /// For --snapshot-from archive: the path of a redis-server or valkey-server of the version that is followed
    #[arg(
        long,
        env = "PERENNIAL_SCRATCH",
        hide_env_values = true,
        value_name = "PROGRAM"
    )]
    pub scratch: Option<String>,

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
            sentinel: self.sentinel.settings()?,
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
                scratch: self.snapshots.scratch,
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
            sentinel: SentinelSettings::default(),
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
                scratch: self.scratch,
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
