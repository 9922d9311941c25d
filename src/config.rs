//! From flags as they were typed to each part's own checked options. Knows nothing of the command line.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::archive::retention::Policy as KeepPolicy;
use crate::decide::Policy;
use crate::follow::rate::UPLOADS_PER_SECOND_MAX;
use crate::follow::snapshots::PART_BYTES_MAX;
use crate::follow::{AckMode, FollowOptions, SealOptions, SpoolOptions};
use crate::proto::handshake::Auth;
use crate::restore::seeder::SeederOptions;
use crate::server::net::{Address, Credentials, Endpoint};
use crate::server::tls::{IdentityFiles, TlsClient, TlsFileError, TlsServer};

mod sentinel;
mod snapshots;

pub use sentinel::{SentinelOptions, SentinelSettings};
pub use snapshots::SnapshotSettings;

/// What `perennial run` was told, as typed.
#[derive(Clone, Debug)]
pub struct RunSettings {
    /// `--redis`
    pub redis: String,
    /// Who names the server.
    pub sentinel: SentinelSettings,
    /// `--archive`
    pub archive: String,
    /// `--name`
    pub name: Option<String>,
    /// `--seed`
    pub seed: Policy,
    /// `--seed-listen`
    pub seed_listen: String,
    /// `--seed-announce`
    pub seed_announce: Option<String>,
    /// The content of `--seed-password-file`
    pub seed_password: Option<String>,
    /// The content of `--redis-password-file`
    pub redis_password: Option<String>,
    /// `--ack`
    pub ack: AckMode,
    /// `--flush-interval`
    pub flush_interval: String,
    /// `--flush-bytes`
    pub flush_bytes: String,
    /// `--buffer-bytes`
    pub buffer_bytes: String,
    /// `--snapshot-part-bytes`
    pub snapshot_part_bytes: String,
    /// When other snapshots are taken, and from where.
    pub snapshots: SnapshotSettings,
    /// `--spool-dir`
    pub spool_dir: Option<PathBuf>,
    /// `--spool-bytes`
    pub spool_bytes: String,
    /// `--uploads-per-second`
    pub uploads_per_second: Option<String>,
    /// `--shutdown-timeout`
    pub shutdown_timeout: String,
    /// How the archive is kept.
    pub upkeep: UpkeepSettings,
    /// `--upkeep-interval`
    pub upkeep_interval: String,
    /// `--http`
    pub http: Option<String>,
    /// Everything about TLS.
    pub tls: TlsSettings,
}

/// How an archive is kept, as typed.
#[derive(Clone, Debug)]
pub struct UpkeepSettings {
    /// `--retention`
    pub retention: String,
    /// `--no-delete`
    pub no_delete: bool,
    /// `--merge-minute`
    pub merge_minute: String,
    /// `--merge-hour`
    pub merge_hour: String,
    /// `--merge-grace`
    pub merge_grace: String,
}

impl Default for UpkeepSettings {
    fn default() -> Self {
        Self {
            retention: "7d".into(),
            no_delete: false,
            merge_minute: "1m".into(),
            merge_hour: "1h".into(),
            merge_grace: "10m".into(),
        }
    }
}

/// The least that --retention may be: a restore takes its time as well.
const RETENTION_MIN: Duration = Duration::from_secs(60);

impl UpkeepSettings {
    /// Checks all of it.
    ///
    /// # Errors
    /// [`BadSetting`].
    pub fn check(self) -> Result<crate::upkeep::Options, BadSetting> {
        let retention = match self.retention.as_str() {
            "forever" => Duration::MAX,
            text => duration_or("retention", text, ", or forever")?,
        };
        if retention < RETENTION_MIN {
            return Err(bad(
                "retention",
                "shorter than a minute; write forever to keep everything",
            ));
        }
        Ok(crate::upkeep::Options {
            policy: KeepPolicy {
                retention_millis: millis(retention),
                grace_millis: millis(duration("merge-grace", &self.merge_grace)?),
                minute_millis: millis(duration("merge-minute", &self.merge_minute)?).max(1),
                hour_millis: millis(duration("merge-hour", &self.merge_hour)?).max(1),
                ..KeepPolicy::default()
            },
            may_delete: !self.no_delete,
        })
    }
}

/// What `perennial run` was told about TLS, as typed.
#[derive(Clone, Debug, Default)]
pub struct TlsSettings {
    /// `--redis-ca-file`
    pub redis_ca_file: Option<PathBuf>,
    /// `--redis-cert-file`
    pub redis_cert_file: Option<PathBuf>,
    /// `--redis-key-file`
    pub redis_key_file: Option<PathBuf>,
    /// `--redis-server-name`
    pub redis_server_name: Option<String>,
    /// `--seed-cert-file`
    pub seed_cert_file: Option<PathBuf>,
    /// `--seed-key-file`
    pub seed_key_file: Option<PathBuf>,
    /// `--seed-client-ca-file`
    pub seed_client_ca_file: Option<PathBuf>,
}

/// What `perennial run` needs, checked.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The server; with Sentinels only how to get into the one that they name.
    pub redis: Address,
    /// Who names the server.
    pub sentinel: Option<SentinelOptions>,
    /// The data set's name.
    pub name: Option<String>,
    /// What may be seeded.
    pub seed: Policy,
    /// Where and how to play master.
    pub seeder: SeederOptions,
    /// How to follow.
    pub follow: FollowOptions,
    /// How long stopping may take.
    pub shutdown_timeout: Duration,
    /// How to keep the archive.
    pub upkeep: crate::upkeep::Options,
    /// How often; `None` is never.
    pub upkeep_interval: Option<Duration>,
    /// Where metrics and health are served.
    pub http: Option<SocketAddr>,
}

/// A setting that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("--{flag}: {reason}")]
pub struct BadSetting {
    flag: &'static str,
    reason: String,
}

impl BadSetting {
    /// The same of a server that was not given as `--redis`.
    #[must_use]
    pub fn of_server(mut self, flag: &'static str) -> Self {
        if self.flag == "redis" {
            self.flag = flag;
        }
        self
    }
}

fn bad(flag: &'static str, reason: impl fmt::Display) -> BadSetting {
    BadSetting {
        flag,
        reason: reason.to_string(),
    }
}

/// The least memory that works: a snapshot alone holds some blocks of 4 MiB at a time.
const BUFFER_BYTES_MIN: u64 = 24 * 1024 * 1024;

/// The smallest part of a snapshot: its blocks are larger, and get a part each.
const SNAPSHOT_PART_BYTES_MIN: u64 = 1024 * 1024;
/// The least room for scratch files that is of use.
const SPOOL_BYTES_MIN: u64 = 1024 * 1024;

/// How many uploads may begin per second where each costs money, sustained.
const UPLOADS_PER_SECOND: u64 = 20;

/// The longest data set name, characters.
const NAME_CHARACTERS_MAX: usize = 200;

impl RunSettings {
    /// Checks everything that can be checked without connecting anywhere.
    ///
    /// # Errors
    /// [`BadSetting`] names the flag and what to write instead.
    pub fn check(self) -> Result<RunOptions, BadSetting> {
        let redis = server(&self.redis, self.redis_password, &self.tls)?;
        let sentinel = self.sentinel.check(&redis, &self.tls)?;
        let name = name(self.name)?;
        let flush_bytes = bytes("flush-bytes", &self.flush_bytes, 64 * 1024)?;
        let buffer_bytes = bytes("buffer-bytes", &self.buffer_bytes, BUFFER_BYTES_MIN)?;
        if flush_bytes > buffer_bytes {
            return Err(bad(
                "flush-bytes",
                "larger than --buffer-bytes: a piece must fit into the buffer",
            ));
        }
        let snapshot_part_bytes = bytes(
            "snapshot-part-bytes",
            &self.snapshot_part_bytes,
            SNAPSHOT_PART_BYTES_MIN,
        )?;
        if snapshot_part_bytes > PART_BYTES_MAX {
            return Err(bad(
                "snapshot-part-bytes",
                "larger than 300GB: more does not fit into one object on every store",
            ));
        }
        let spool = spool(self.spool_dir, &self.spool_bytes, flush_bytes)?;
        let rate = uploads_per_second(self.uploads_per_second.as_deref(), &self.archive)?;
        let interval = duration("flush-interval", &self.flush_interval)?;
        if interval > Duration::from_secs(60) {
            return Err(bad(
                "flush-interval",
                "longer than 60s: what is not stored is lost with the master",
            ));
        }
        let shutdown_timeout = duration("shutdown-timeout", &self.shutdown_timeout)?;
        let http = self.http.as_deref().map(http).transpose()?;
        let schedule = self.snapshots.schedule()?;
        let snapshot_source = self.snapshots.source(&self.tls)?;
        let upkeep_interval = duration_or(
            "upkeep-interval",
            &self.upkeep_interval,
            ", or 0s for never",
        )?;
        let seed_tls = seed_tls(self.tls)?;
        Ok(RunOptions {
            upkeep: self.upkeep.check()?,
            upkeep_interval: (!upkeep_interval.is_zero()).then_some(upkeep_interval),
            redis,
            sentinel,
            name,
            seed: self.seed,
            seeder: seeder(
                &self.seed_listen,
                self.seed_announce,
                self.seed_password,
                seed_tls.clone(),
            )?,
            follow: FollowOptions {
                seal: SealOptions {
                    interval_millis: millis(interval).max(1),
                    bytes_max: flush_bytes,
                },
                buffer_bytes,
                snapshot_part_bytes,
                spool,
                uploads_per_second: rate,
                schedule,
                snapshot_source,
                ack: self.ack,
                shutdown_millis: millis(shutdown_timeout),
                tls: seed_tls,
            },
            shutdown_timeout,
            http,
        })
    }
}

/// The data set's name; an empty one is none.
///
/// # Errors
/// [`BadSetting`].
pub fn name(given: Option<String>) -> Result<Option<String>, BadSetting> {
    let name = given.filter(|name| !name.is_empty());
    let is_long = |name: &String| name.chars().count() > NAME_CHARACTERS_MAX;
    match name.as_ref().is_some_and(is_long) {
        true => Err(bad(
            "name",
            format!("longer than {NAME_CHARACTERS_MAX} characters"),
        )),
        false => Ok(name),
    }
}

/// Looks once whether scratch files can be made there: better now than in the next outage of the store.
fn spool(
    dir: Option<PathBuf>,
    bytes_text: &str,
    flush_bytes: u64,
) -> Result<Option<SpoolOptions>, BadSetting> {
    let bytes_max = bytes("spool-bytes", bytes_text, SPOOL_BYTES_MIN)?;
    let Some(dir) = dir else { return Ok(None) };
    if flush_bytes > bytes_max / 2 {
        return Err(bad(
            "spool-bytes",
            "less than twice --flush-bytes: pieces must fit into it",
        ));
    }
    if let Err(error) = tempfile::tempfile_in(&dir) {
        return Err(bad(
            "spool-dir",
            format!(
                "no file can be made in {}: {error}; name a folder that is there and can be written",
                dir.display()
            ),
        ));
    }
    Ok(Some(SpoolOptions { dir, bytes_max }))
}

/// In a bucket each upload costs money; in a folder it does not.
fn uploads_per_second(text: Option<&str>, archive: &str) -> Result<Option<u64>, BadSetting> {
    let Some(text) = text else {
        let is_bucket = archive.starts_with("s3://") || archive.starts_with("gs://");
        return Ok(is_bucket.then_some(UPLOADS_PER_SECOND));
    };
    if text == "none" {
        return Ok(None);
    }
    match text.parse() {
        Ok(0) => Ok(None),
        Ok(number) if number <= UPLOADS_PER_SECOND_MAX => Ok(Some(number)),
        _ => Err(bad(
            "uploads-per-second",
            format!(
                "{text:?} is not a number up to {UPLOADS_PER_SECOND_MAX}; 0 or none is no limit"
            ),
        )),
    }
}

fn http(text: &str) -> Result<SocketAddr, BadSetting> {
    text.parse().map_err(|_| {
        bad(
            "http",
            format!("{text:?} is not an address and a port like 127.0.0.1:9121"),
        )
    })
}

/// The server's address with everything that it takes to get in.
///
/// # Errors
/// [`BadSetting`].
pub fn server(
    url: &str,
    password: Option<String>,
    tls: &TlsSettings,
) -> Result<Address, BadSetting> {
    let mut redis: Address = url.parse().map_err(|error| bad("redis", error))?;
    if let Some(password) = password {
        let user = redis
            .credentials
            .take()
            .and_then(|credentials| credentials.user);
        redis.credentials = Some(Credentials { user, password });
    }
    if redis
        .credentials
        .as_ref()
        .is_some_and(|credentials| credentials.password.is_empty())
    {
        return Err(bad(
            "redis",
            "a user without a password: write user:password@, or give --redis-password-file",
        ));
    }
    encrypt(&mut redis, tls)?;
    Ok(redis)
}

/// Where and how to play master.
///
/// # Errors
/// [`BadSetting`].
pub fn seeder(
    listen: &str,
    announce: Option<String>,
    password: Option<String>,
    tls: Option<TlsServer>,
) -> Result<SeederOptions, BadSetting> {
    let listen: SocketAddr = listen.parse().map_err(|_| {
        bad(
            "seed-listen",
            format!("{listen:?} is not an address and a port like 127.0.0.1:6390"),
        )
    })?;
    if !listen.ip().is_loopback() && password.is_none() {
        return Err(bad(
            "seed-listen",
            "on an address that others can reach, --seed-password-file is needed (the server's masterauth): whoever \
             connects there is given all data",
        ));
    }
    if password.as_ref().is_some_and(String::is_empty) {
        return Err(bad(
            "seed-password-file",
            "is empty: no server sends an empty masterauth, and anybody else could",
        ));
    }
    let announce = announce
        .map(|text| {
            let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong_announce(&text))?;
            let port = port.parse().map_err(|_| wrong_announce(&text))?;
            // The server is told host and port apart.
            let host = host.trim_start_matches('[').trim_end_matches(']');
            Ok((host.to_owned(), port))
        })
        .transpose()?;
    let auth = password.map(|password| Auth {
        user: None,
        password,
    });
    Ok(SeederOptions {
        listen,
        announce,
        auth,
        tls,
    })
}

fn wrong_announce(text: &str) -> BadSetting {
    bad(
        "seed-announce",
        format!("{text:?} is not HOST:PORT, as in backup.example:6390"),
    )
}

/// Gives an address of `rediss://` its certificates; refuses them for any other.
fn encrypt(redis: &mut Address, settings: &TlsSettings) -> Result<(), BadSetting> {
    let given = [
        ("redis-ca-file", settings.redis_ca_file.is_some()),
        ("redis-cert-file", settings.redis_cert_file.is_some()),
        ("redis-key-file", settings.redis_key_file.is_some()),
        ("redis-server-name", settings.redis_server_name.is_some()),
    ];
    let Endpoint::Tls { host, tls, .. } = &mut redis.endpoint else {
        // Whoever gives a certificate means TLS: never without it by a letter left out.
        return match given.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(bad(
                flag,
                "is for TLS: write --redis rediss://host:port, with the server's tls-port",
            )),
            None => Ok(()),
        };
    };
    *tls = TlsClient {
        ca_file: settings.redis_ca_file.clone(),
        identity: identity(
            ("redis-cert-file", settings.redis_cert_file.clone()),
            ("redis-key-file", settings.redis_key_file.clone()),
        )?,
        server_name: settings.redis_server_name.clone(),
    };
    tls.name_for(host)
        .map_err(|error| bad("redis-server-name", error))?;
    let otherwise = match tls.identity {
        Some(_) => "redis-cert-file",
        None => "redis-ca-file",
    };
    let files = [
        ("redis-ca-file", &settings.redis_ca_file),
        ("redis-cert-file", &settings.redis_cert_file),
        ("redis-key-file", &settings.redis_key_file),
    ];
    let named = |error: TlsFileError| bad(flag_of(&error, files, otherwise), error);
    tls.load().map_err(named).map(drop)
}

/// The flag that names the file which an error is about; `otherwise` where it is about more than one.
fn flag_of(
    error: &TlsFileError,
    files: [(&'static str, &Option<PathBuf>); 3],
    otherwise: &'static str,
) -> &'static str {
    let Some(path) = error.path() else {
        return otherwise;
    };
    let named = files.iter().find(|(_, file)| file.as_deref() == Some(path));
    named.map_or(otherwise, |(flag, _)| flag)
}

/// Our own certificate at the seed address, if there is one.
///
/// # Errors
/// [`BadSetting`].
pub fn seed_tls(settings: TlsSettings) -> Result<Option<TlsServer>, BadSetting> {
    let identity = identity(
        ("seed-cert-file", settings.seed_cert_file.clone()),
        ("seed-key-file", settings.seed_key_file.clone()),
    )?;
    let Some(identity) = identity else {
        return match settings.seed_client_ca_file {
            Some(_) => Err(bad(
                "seed-client-ca-file",
                "needs --seed-cert-file and --seed-key-file: our own certificate for servers that connect by TLS",
            )),
            None => Ok(None),
        };
    };
    let tls = TlsServer {
        identity,
        client_ca_file: settings.seed_client_ca_file.clone(),
    };
    let files = [
        ("seed-cert-file", &settings.seed_cert_file),
        ("seed-key-file", &settings.seed_key_file),
        ("seed-client-ca-file", &settings.seed_client_ca_file),
    ];
    let named = |error: TlsFileError| bad(flag_of(&error, files, "seed-cert-file"), error);
    tls.load().map_err(named)?;
    Ok(Some(tls))
}

type NamedFile = (&'static str, Option<PathBuf>);

/// A certificate and its key: both or none.
fn identity(certificate: NamedFile, key: NamedFile) -> Result<Option<IdentityFiles>, BadSetting> {
    match (certificate, key) {
        ((_, Some(certificate)), (_, Some(key))) => Ok(Some(IdentityFiles { certificate, key })),
        ((_, None), (_, None)) => Ok(None),
        ((flag, Some(_)), (missing, None)) | ((missing, None), (flag, Some(_))) => {
            Err(bad(flag, format!("needs --{missing} beside it")))
        }
    }
}

fn bytes(flag: &'static str, text: &str, at_least: u64) -> Result<u64, BadSetting> {
    let size: bytesize::ByteSize = text.parse().map_err(|_| {
        bad(
            flag,
            format!(
                "{text:?} is not a size: write bytes, or 64KiB, 8MiB or 1GiB, or 64kB, 8MB or 1GB"
            ),
        )
    })?;
    if size.as_u64() < at_least {
        return Err(bad(
            flag,
            format!(
                "{text} is too little: at least {}",
                bytesize::ByteSize(at_least)
            ),
        ));
    }
    Ok(size.as_u64())
}

fn duration(flag: &'static str, text: &str) -> Result<Duration, BadSetting> {
    duration_or(flag, text, "")
}

/// The same where something `besides` may be written.
fn duration_or(
    flag: &'static str,
    text: &str,
    besides: &'static str,
) -> Result<Duration, BadSetting> {
    humantime::parse_duration(text).map_err(|_| {
        bad(
            flag,
            format!("{text:?} is not a time: write a number with its unit, as in 500ms, 10s, 5m, 24h or 7d{besides}"),
        )
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> RunSettings {
        RunSettings {
            redis: "redis://127.0.0.1:6379".into(),
            sentinel: SentinelSettings::default(),
            archive: "file:///archive".into(),
            name: None,
            seed: Policy::Auto,
            seed_listen: "127.0.0.1:0".into(),
            seed_announce: None,
            seed_password: None,
            redis_password: None,
            ack: AckMode::Durable,
            flush_interval: "1s".into(),
            flush_bytes: "8MiB".into(),
            buffer_bytes: "32MiB".into(),
            snapshot_part_bytes: "300GB".into(),
            snapshots: SnapshotSettings::default(),
            spool_dir: None,
            spool_bytes: "1GiB".into(),
            uploads_per_second: None,
            shutdown_timeout: "20s".into(),
            upkeep: UpkeepSettings::default(),
            upkeep_interval: "5m".into(),
            http: None,
            tls: TlsSettings::default(),
        }
    }

    #[test]
    fn the_defaults_are_good() {
        let options = settings().check().unwrap();
        assert_eq!(
            options.follow.seal,
            SealOptions {
                interval_millis: 1000,
                bytes_max: 8 << 20
            }
        );
        assert_eq!(options.follow.shutdown_millis, 20_000);
    }

    #[test]
    fn what_is_wrong_names_the_flag_and_what_to_write() {
        let check = |change: fn(&mut RunSettings)| {
            let mut settings = settings();
            change(&mut settings);
            settings.check().unwrap_err().to_string()
        };
        assert!(check(|s| s.redis = "localhost".into()).starts_with("--redis: "));
        assert!(check(|s| s.snapshot_part_bytes = "301GB".into()).contains("300GB"));
        assert!(check(|s| s.snapshot_part_bytes = "1KiB".into()).contains("1.0 MiB"));
        assert!(check(|s| s.flush_bytes = "many".into()).contains("8MiB"));
        assert!(check(|s| s.flush_bytes = "64MiB".into()).contains("--buffer-bytes"));
        assert!(
            check(|s| s.spool_bytes = "1KiB".into()).contains("--spool-bytes: 1KiB is too little")
        );
        assert!(check(|s| s.spool_dir = Some("/nowhere".into())).contains("/nowhere"));
        assert!(check(|s| s.uploads_per_second = Some("many".into())).contains("none"));
        assert!(check(|s| s.flush_interval = "soon".into()).contains("500ms"));
        assert!(check(|s| s.flush_interval = "5".into()).contains("with its unit"));
        assert!(check(|s| s.upkeep.retention = "never".into()).contains("7d, or forever"));
        assert!(check(|s| s.upkeep_interval = "never".into()).contains("0s for never"));
        assert!(check(|s| s.snapshots.interval = "daily".into()).contains("24h or 7d, or none"));
        assert!(check(|s| s.seed_listen = "6390".into()).contains("127.0.0.1:6390"));
        assert!(check(|s| s.seed_listen = "0.0.0.0:6390".into()).contains("--seed-password"));
        assert!(check(|s| s.http = Some(":9121".into())).contains("127.0.0.1:9121"));
        assert!(check(|s| s.seed_announce = Some("host".into())).contains("HOST:PORT"));
        assert!(check(|s| s.seed_password = Some(String::new())).contains("is empty"));
    }

    #[test]
    fn uploads_are_bounded_where_they_cost_money() {
        let rate = |archive: &str, text: Option<&str>| {
            let settings = RunSettings {
                archive: archive.into(),
                uploads_per_second: text.map(str::to_owned),
                ..settings()
            };
            settings.check().unwrap().follow.uploads_per_second
        };
        assert_eq!(rate("file:///archive", None), None);
        assert_eq!(rate("s3://bucket/prefix", None), Some(20));
        assert_eq!(rate("gs://bucket/prefix", None), Some(20));
        assert_eq!(rate("s3://bucket/prefix", Some("none")), None);
        assert_eq!(rate("s3://bucket/prefix", Some("0")), None);
        assert_eq!(rate("file:///archive", Some("7")), Some(7));
    }

    #[test]
    fn certificates_go_with_tls_and_with_their_keys() {
        let check = |change: fn(&mut RunSettings)| {
            let mut settings = settings();
            change(&mut settings);
            settings.check().unwrap_err().to_string()
        };
        let file = || Some(PathBuf::from("/nowhere.pem"));
        // Each file is named with the flag that named it.
        let unread = |flag: &str, change: fn(&mut RunSettings)| {
            let said = check(change);
            assert!(said.starts_with(&format!("--{flag}: ")), "{said}");
            assert!(said.contains("check the path"), "{said}");
        };
        unread("redis-ca-file", |s| {
            s.redis = "rediss://host".into();
            s.tls.redis_ca_file = Some("/nowhere.ca".into());
            s.tls.redis_cert_file = Some("/nowhere.pem".into());
            s.tls.redis_key_file = Some("/nowhere.key".into());
        });
        unread("redis-cert-file", |s| {
            s.redis = "rediss://host".into();
            s.tls.redis_cert_file = Some("/nowhere.pem".into());
            s.tls.redis_key_file = Some("/nowhere.key".into());
        });
        unread("seed-client-ca-file", |s| {
            s.tls.seed_cert_file = Some("/nowhere.pem".into());
            s.tls.seed_key_file = Some("/nowhere.key".into());
            s.tls.seed_client_ca_file = Some("/nowhere.ca".into());
        });
        let plain = check(|s| s.tls.redis_ca_file = Some("/nowhere.pem".into()));
        assert!(
            plain.starts_with("--redis-ca-file: ") && plain.contains("rediss://"),
            "{plain}"
        );
        let alone = check(|s| {
            s.redis = "rediss://host".into();
            s.tls.redis_cert_file = Some("/nowhere.pem".into());
        });
        assert!(alone.contains("--redis-key-file"), "{alone}");
        let nowhere = check(|s| {
            s.redis = "rediss://host".into();
            s.tls.redis_ca_file = Some("/nowhere.pem".into());
        });
        assert!(
            nowhere.starts_with("--redis-ca-file: /nowhere.pem"),
            "{nowhere}"
        );
        let named = check(|s| {
            s.redis = "rediss://host".into();
            s.tls.redis_server_name = Some("a b".into());
        });
        assert!(named.starts_with("--redis-server-name: "), "{named}");
        let alone = check(|s| s.tls.seed_key_file = Some("/nowhere.pem".into()));
        assert!(alone.contains("--seed-cert-file"), "{alone}");
        let alone = check(|s| s.tls.seed_client_ca_file = Some("/nowhere.pem".into()));
        assert!(alone.contains("--seed-cert-file"), "{alone}");
        let mut settings = settings();
        settings.tls.seed_cert_file = file();
        settings.tls.seed_key_file = file();
        let nowhere = settings.check().unwrap_err().to_string();
        assert!(nowhere.contains("/nowhere.pem"), "{nowhere}");
    }

    #[test]
    fn the_brackets_of_an_announced_address_are_not_part_of_it() {
        let mut settings = settings();
        settings.seed_announce = Some("[::1]:6390".into());
        let announce = settings.check().unwrap().seeder.announce;
        assert_eq!(announce, Some(("::1".into(), 6390)));
    }

    #[test]
    fn a_password_beside_the_address_replaces_the_one_inside() {
        for redis in [
            "redis://backup:old@127.0.0.1:1",
            "redis://backup@127.0.0.1:1",
        ] {
            let mut settings = settings();
            settings.redis = redis.into();
            settings.redis_password = Some("new".into());
            let credentials = settings.check().unwrap().redis.credentials.unwrap();
            let found = (credentials.user.as_deref(), credentials.password.as_str());
            assert_eq!(found, (Some("backup"), "new"));
        }
        let mut settings = settings();
        settings.redis = "redis://backup@127.0.0.1:1".into();
        assert!(
            settings
                .check()
                .unwrap_err()
                .to_string()
                .contains("--redis-password-file")
        );
    }
}
