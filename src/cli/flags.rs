//! Every flag, once: its name, its environment variable, its help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::Exit;
use crate::config::{RunSettings, TlsSettings};
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
  perennial run --redis redis://127.0.0.1:6379 --archive file:///var/lib/perennial

Then look at what is kept, and try a restore:
  perennial status --archive file:///var/lib/perennial
  perennial restore --archive file:///var/lib/perennial --to /tmp/restored --dry-run

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nothing to restore.
PERENNIAL_LOG=debug says more."
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
    /// Restore the archive to files that a server can start from
    Restore(RestoreArguments),
    /// Tell how an archive stands: what can be restored, what is wrong
    Status(ArchiveArguments),
    /// List the timelines, snapshots and segments of an archive
    Ls(ArchiveArguments),
    /// Make a suspect timeline the head, so that seeds use it
    Accept(AcceptArguments),
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

/// `perennial restore`
#[derive(Debug, Args)]
#[command(after_help = "\
What is written depends on the server that was archived: an `appendonlydir/` (7.0 and later, Valkey), an
`appendonly.aof` (4.0 to 6.2) or a `dump.rdb`. The last lines of the output say how to start a server on it.
Everything is checked on the way, and the files appear only when all of them are complete.")]
pub struct RestoreArguments {
    /// Where the archive lies
    #[arg(
        long,
        env = "PERENNIAL_ARCHIVE",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub archive: String,

    /// The folder to restore to; created if it is not there, refused if it holds data
    #[arg(long, env = "PERENNIAL_TO", hide_env_values = true, value_name = "DIR")]
    pub to: PathBuf,

    /// Which moment: latest, timeline:SEQ (its end), or offset:N (on the way to the head; on another
    /// timeline offset:N@SEQ)
    #[arg(
        long,
        env = "PERENNIAL_AT",
        hide_env_values = true,
        default_value = "latest",
        value_name = "WHEN"
    )]
    pub at: String,

    /// Print what would be read, and restore nothing
    #[arg(long, env = "PERENNIAL_DRY_RUN", hide_env_values = true)]
    pub dry_run: bool,

    /// Print the plan or the outcome as JSON
    #[arg(long, env = "PERENNIAL_JSON", hide_env_values = true)]
    pub json: bool,

    /// Restore into a folder that holds data: what is there is renamed, not deleted
    #[arg(long, env = "PERENNIAL_FORCE", hide_env_values = true)]
    pub force: bool,

    /// Succeed when there is no archive or nothing in it
    #[arg(long, env = "PERENNIAL_IF_ARCHIVE_EXISTS", hide_env_values = true)]
    pub if_archive_exists: bool,
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

    /// A file with the server's password, instead of one in --redis
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

    /// A file with the password that a server must send as masterauth; needed off loopback
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

    /// How long stopping may take, the last uploads included
    #[arg(
        long,
        env = "PERENNIAL_SHUTDOWN_TIMEOUT",
        hide_env_values = true,
        value_name = "TIME",
        default_value = "20s"
    )]
    pub shutdown_timeout: String,
}

impl RunArguments {
    /// The settings as typed, secrets read from their files.
    ///
    /// # Errors
    /// Where a file cannot be read: a usage error.
    pub fn settings(self) -> Result<RunSettings, Exit> {
        Ok(RunSettings {
            redis: self.redis,
            redis_password: secret("redis-password-file", self.redis_password_file)?,
            archive: self.archive,
            name: self.name,
            seed: match self.seed {
                SeedFlag::Auto => Policy::Auto,
                SeedFlag::IfEmpty => Policy::IfEmpty,
                SeedFlag::Never => Policy::Never,
                SeedFlag::StartOver => Policy::StartOver,
            },
            seed_listen: self.seed_listen,
            seed_announce: self.seed_announce,
            seed_password: secret("seed-password-file", self.seed_password_file)?,
            ack: match self.ack {
                AckFlag::Durable => AckMode::Durable,
                AckFlag::Received => AckMode::Received,
            },
            flush_interval: self.flush_interval,
            flush_bytes: self.flush_bytes,
            buffer_bytes: self.buffer_bytes,
            shutdown_timeout: self.shutdown_timeout,
            tls: TlsSettings {
                redis_ca_file: self.redis_ca_file,
                redis_cert_file: self.redis_cert_file,
                redis_key_file: self.redis_key_file,
                redis_server_name: self.redis_server_name,
                seed_cert_file: self.seed_cert_file,
                seed_key_file: self.seed_key_file,
                seed_client_ca_file: self.seed_client_ca_file,
            },
        })
    }
}

fn secret(flag: &str, path: Option<PathBuf>) -> Result<Option<String>, Exit> {
    let Some(path) = path else { return Ok(None) };
    let text = std::fs::read_to_string(&path).map_err(|error| Exit {
        message: format!("--{flag}: read {}: {error}", path.display()),
        code: 2,
    })?;
    Ok(Some(text.trim_end_matches(['\n', '\r']).to_owned()))
}
