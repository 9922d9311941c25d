//! Scratch servers: a server that is filled from the archive and looked at, and of which nothing stays. Either one of
//! our own, started from a program in a folder of its own, or an empty one that somebody lends us.

mod leftovers;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::sleep;

use super::control::{Control, ControlError};
use super::info::Info;
use super::net::{Address, BadAddress, Endpoint};
use crate::archive::snapshot::RdbMagic;
use crate::decide::{UnreadablePayload, readable};

/// How long a server that was started may take until it answers for the first time; loading comes after that.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// The time between two looks at a server that starts, loads or saves.
const POLL: Duration = Duration::from_millis(20);
/// The first version with FLUSHALL ASYNC.
const FIRST_VERSION_THAT_FREES_LATER: (u32, u32) = (4, 0);
/// How many databases a server of our own has. Bounds nothing of use: no payload that was seen names a higher one.
const DATABASES: &str = "10000";
/// Lines of the server's log that an error shows.
const LOG_LINES_SHOWN: usize = 12;
/// The socket file of a server of our own, in its folder.
const SOCKET: &str = "server.sock";
const LOG: &str = "server.log";
/// What a server of our own saves to.
const DUMP: &str = "dump.rdb";

/// Where a scratch server comes from: `--scratch`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ScratchPlace {
    /// A program, `redis-server` or `valkey-server`, as a path or as a name to be found in `PATH`.
    Program(PathBuf),
    /// A server that is empty and stays so.
    Server(Address),
}

impl FromStr for ScratchPlace {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        match text.contains("://") {
            true => text.parse().map(Self::Server),
            false => Ok(Self::Program(text.into())),
        }
    }
}

impl fmt::Display for ScratchPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program(path) => path.display().fmt(f),
            Self::Server(address) => address.fmt(f),
        }
    }
}

/// What a server begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start<'a> {
    /// Nothing.
    Empty,
    /// The files of a restore. The server works in that folder and may write to it.
    On {
        /// The folder that was restored to.
        folder: &'a Path,
        /// `appendonly`, as the restore says.
        append_only: bool,
    },
}

/// Why there is no scratch server.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// The program cannot be run.
    #[error("cannot run {}: {error}; --scratch takes the path of a redis-server or valkey-server, or the URL of an empty server", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The program is something else.
    #[error("{} is not a redis-server or valkey-server: to --version it says {said:?}", program.display())]
    NotAServer {
        /// The program.
        program: PathBuf,
        /// The first line.
        said: String,
    },
    /// The temporary folder.
    #[error("{operation} {}: {error}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// It ended, or never answered.
    #[error("the scratch server {}: {what}{}", program.display(), shown(log))]
    Failed {
        /// The program.
        program: PathBuf,
        /// What became of it.
        what: String,
        /// The last lines of its log.
        log: String,
    },
    /// It does not say what it should.
    #[error("the scratch server: {0}")]
    Control(#[from] ControlError),
    /// It has data, or replicas, or a master.
    #[error(
        "the scratch server {address} {what}: nothing was touched; give an empty master of its own, it will be emptied"
    )]
    InUse {
        /// Its address.
        address: String,
        /// How it is in use.
        what: String,
    },
    /// It cannot reach us.
    #[error(
        "the scratch server {address} is on another machine: give one on this machine, or the path of a program"
    )]
    Elsewhere {
        /// Its address.
        address: String,
    },
    /// It cannot read what it would be filled with.
    #[error("the scratch server: {0}")]
    Unreadable(#[from] UnreadablePayload),
    /// Files need a server of our own.
    #[error(
        "the scratch server {address} works in a folder of its own: this needs the path of a program"
    )]
    NoFolder {
        /// Its address.
        address: String,
    },
    /// It could not save.
    #[error("the scratch server could not save: {status}")]
    NotSaved {
        /// What it says.
        status: String,
    },
}

fn shown(log: &str) -> String {
    match log.is_empty() {
        true => String::new(),
        false => format!("; the end of its log:\n{log}"),
    }
}

impl ScratchPlace {
    /// Starts a server, or takes the one that is lent, and waits until it has loaded.
    ///
    /// # Errors
    /// [`ScratchError`]; then nothing of it is left.
    pub async fn open(&self, start: Start<'_>) -> Result<Scratch, ScratchError> {
        match (self, start) {
            (Self::Program(program), start) => Scratch::start(program, start).await,
            (Self::Server(address), Start::Empty) => Scratch::borrow(address).await,
            (Self::Server(address), Start::On { .. }) => Err(ScratchError::NoFolder {
                address: address.to_string(),
            }),
        }
    }
}

/// A scratch server. One of our own is killed, and its folder removed, when this is dropped; one that was lent is
/// emptied by [`Self::close`].
#[derive(Debug)]
pub struct Scratch {
    address: Address,
    control: Control,
    info: Info,
    own: Option<Own>,
    /// Settings of a server that was lent, as they were.
    before: Vec<(&'static str, String)>,
    /// It was lent, and somebody else uses it now.
    is_left_alone: bool,
}

impl Scratch {
    async fn start(program: &Path, start: Start<'_>) -> Result<Self, ScratchError> {
        let version = version_of(program)?;
        leftovers::end_all(&std::env::temp_dir()).await;
        let mut own = Own::spawn(program, version, start)?;
        let address = Address {
            endpoint: Endpoint::Unix(own.home.path().join(SOCKET).display().to_string()),
            credentials: None,
        };
        let mut control = own.connect(&address).await?;
        let info = own.until_loaded(&mut control).await?;
        Ok(Self {
            address,
            control,
            info,
            own: Some(own),
            before: Vec::new(),
            is_left_alone: false,
        })
    }

    async fn borrow(address: &Address) -> Result<Self, ScratchError> {
        let mut control = Control::connect(address).await?;
        if !control.is_local() {
            let address = address.to_string();
            return Err(ScratchError::Elsewhere { address });
        }
        let info = control.info().await?;
        if let Some(what) = in_use(&info) {
            let address = address.to_string();
            return Err(ScratchError::InUse { address, what });
        }
        Ok(Self {
            address: address.clone(),
            control,
            info,
            own: None,
            before: Vec::new(),
            is_left_alone: false,
        })
    }

    /// Where it listens.
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// What it said of itself when it was there.
    pub const fn info(&self) -> &Info {
        &self.info
    }

    /// The connection for commands.
    pub const fn control(&mut self) -> &mut Control {
        &mut self.control
    }

    /// Whether it is one of our own, to do with as we like.
    pub const fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// Whether it reads such a payload.
    ///
    /// # Errors
    /// [`ScratchError::Unreadable`].
    pub fn reads(&self, magic: RdbMagic, version: u32) -> Result<(), ScratchError> {
        let (name, of_server) = (self.info.server_name(), self.info.version_numbers());
        Ok(readable(magic, version, name, of_server)?)
    }

    /// Makes it a master without data.
    ///
    /// # Errors
    /// [`ScratchError`]; a server of our own that has died is said with its log.
    pub async fn empty(&mut self) -> Result<(), ScratchError> {
        let emptied = self.try_empty().await;
        emptied.map_err(|error| self.explained(error))
    }

    async fn try_empty(&mut self) -> Result<(), ControlError> {
        self.control.promote().await?;
        // Freed at once, much data would take longer than an answer may.
        let flush: &[&[u8]] = match self.info.version_numbers() >= FIRST_VERSION_THAT_FREES_LATER {
            true => &[b"FLUSHALL", b"ASYNC"],
            false => &[b"FLUSHALL"],
        };
        self.control.command(flush).await?;
        match self.control.command(&[b"FUNCTION", b"FLUSH"]).await {
            // Before 7.0 there are none.
            Ok(_) | Err(ControlError::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Changes a setting, until [`Self::close`].
    ///
    /// # Errors
    /// [`ScratchError`].
    pub async fn set(&mut self, name: &'static str, value: &str) -> Result<(), ScratchError> {
        let set = self.try_set(name, value).await;
        set.map_err(|error| self.explained(error))
    }

    async fn try_set(&mut self, name: &'static str, value: &str) -> Result<(), ControlError> {
        if self.own.is_none() && self.before.iter().all(|(known, _)| *known != name) {
            let before = self.control.setting(name).await?.unwrap_or_default();
            self.before.push((name, before));
        }
        let set = [
            b"CONFIG".as_slice(),
            b"SET",
            name.as_bytes(),
            value.as_bytes(),
        ];
        self.control.command(&set).await.map(drop)
    }

    /// Gives an error of the connection the end of the log, where a server of our own has died.
    pub fn explained(&mut self, error: ControlError) -> ScratchError {
        match &mut self.own {
            Some(own) => own.ended().unwrap_or(ScratchError::Control(error)),
            None => ScratchError::Control(error),
        }
    }

    /// Saves everything to a `dump.rdb` in the server's own folder, and tells where that is: to be copied or moved
    /// before the server goes. Of a replica it is what its master has.
    ///
    /// # Errors
    /// [`ScratchError`].
    pub async fn save(&mut self) -> Result<PathBuf, ScratchError> {
        let Some(own) = &self.own else {
            let address = self.address.to_string();
            return Err(ScratchError::NoFolder { address });
        };
        let path = own.directory.join(DUMP);
        let saved = self.try_save().await;
        match saved.map_err(|error| self.explained(error))? {
            status if status == "ok" => Ok(path),
            status => Err(ScratchError::NotSaved { status }),
        }
    }

    async fn try_save(&mut self) -> Result<String, ControlError> {
        self.control.command(&[b"BGSAVE"]).await?;
        loop {
            let info = self.control.info().await?;
            if info.number("rdb_bgsave_in_progress") == Some(0) {
                let status = info.text("rdb_last_bgsave_status").unwrap_or("?");
                return Ok(status.to_owned());
            }
            sleep(POLL).await;
        }
    }

    /// Somebody else uses it, and nothing was done to it: [`Self::close`] does nothing to it either.
    pub const fn leave_alone(&mut self) {
        self.is_left_alone = true;
    }

    /// Ends it: one of our own is killed, one that was lent is left an empty master.
    ///
    /// # Errors
    /// [`ScratchError`]: then a server that was lent has to be emptied by hand.
    pub async fn close(mut self) -> Result<(), ScratchError> {
        if self.own.is_some() || self.is_left_alone {
            return Ok(());
        }
        // Whatever broke the connection that was used so far.
        self.control = Control::connect(&self.address).await?;
        self.empty().await?;
        for (name, value) in std::mem::take(&mut self.before) {
            let set = [
                b"CONFIG".as_slice(),
                b"SET",
                name.as_bytes(),
                value.as_bytes(),
            ];
            self.control.command(&set).await?;
        }
        Ok(())
    }
}

/// How a server that was lent is in use by somebody.
fn in_use(info: &Info) -> Option<String> {
    let replicas = info.number("connected_slaves").unwrap_or(0);
    let libraries = info.number("number_of_libraries").unwrap_or(0);
    if info.is_loading() {
        Some("is loading".into())
    } else if info.text("role") != Some("master") {
        Some("is a replica".into())
    } else if info.number("cluster_enabled") == Some(1) {
        Some("is a cluster node".into())
    } else if info.keys() > 0 || libraries > 0 {
        Some(format!(
            "holds {} keys and {libraries} libraries",
            info.keys()
        ))
    } else if replicas > 0 {
        Some(format!("has {replicas} replicas"))
    } else {
        None
    }
}

/// Name and version, as `--version` says them.
fn version_of(program: &Path) -> Result<(u32, u32), ScratchError> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| ScratchError::Run {
            program: program.to_owned(),
            error,
        })?;
    let said = String::from_utf8_lossy(&output.stdout);
    let said = said.lines().next().unwrap_or_default();
    version_in(said).ok_or_else(|| ScratchError::NotAServer {
        program: program.to_owned(),
        said: said.chars().take(80).collect(),
    })
}

/// `Redis server v=7.0.15 sha=…`; a Valkey older than the first one with our number is none.
fn version_in(said: &str) -> Option<(u32, u32)> {
    let (_, version) = said.split_once(" server v=")?;
    let mut numbers = version.split('.').map(|part| part.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// A process of our own and its folder. Dropped, both go.
#[derive(Debug)]
struct Own {
    program: PathBuf,
    process: Child,
    /// Where it works.
    directory: PathBuf,
    /// Socket and log, and everything else unless it works in a restored folder.
    home: TempDir,
    /// Says that we live; nothing where files cannot be locked there.
    _owner: Option<File>,
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Own {
    fn spawn(program: &Path, version: (u32, u32), start: Start<'_>) -> Result<Self, ScratchError> {
        let place = std::env::temp_dir();
        let home = tempfile::Builder::new()
            .prefix(leftovers::PREFIX)
            .tempdir()
            .map_err(io_error("create a folder in", &place))?;
        let owner = leftovers::own(home.path()).ok();
        let directory = match start {
            Start::Empty => home.path().to_owned(),
            Start::On { folder, .. } => folder
                .canonicalize()
                .map_err(io_error("open folder", folder))?,
        };
        let append_only = matches!(
            start,
            Start::On {
                append_only: true,
                ..
            }
        );
        let log_path = home.path().join(LOG);
        let log = File::create(&log_path).map_err(io_error("create", &log_path))?;
        let errors = log.try_clone().map_err(io_error("create", &log_path))?;
        let process = Command::new(program)
            .args(settings(version, append_only))
            .arg("--dir")
            .arg(&directory)
            .arg("--unixsocket")
            .arg(home.path().join(SOCKET))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|error| ScratchError::Run {
                program: program.to_owned(),
                error,
            })?;
        is_first_to_go(&process);
        Ok(Self {
            program: program.to_owned(),
            process,
            directory,
            home,
            _owner: owner,
        })
    }

    /// Waits for the first answer.
    async fn connect(&mut self, address: &Address) -> Result<Control, ScratchError> {
        let answers = async {
            loop {
                if let Some(ended) = self.ended() {
                    return Err(ended);
                }
                if let Ok(control) = Control::connect(address).await {
                    return Ok(control);
                }
                sleep(POLL).await;
            }
        };
        match tokio::time::timeout(START_TIMEOUT, answers).await {
            Ok(answered) => answered,
            Err(_) => Err(self.failed("it does not answer".into())),
        }
    }

    async fn until_loaded(&mut self, control: &mut Control) -> Result<Info, ScratchError> {
        loop {
            match control.info().await {
                Ok(info) if !info.is_loading() => return Ok(info),
                Ok(_) => sleep(POLL).await,
                Err(error) => {
                    // It closes its connections a moment before it is gone.
                    sleep(POLL).await;
                    return Err(self.ended().unwrap_or(ScratchError::Control(error)));
                }
            }
        }
    }

    fn ended(&mut self) -> Option<ScratchError> {
        let status = self.process.try_wait().ok()??;
        Some(self.failed(format!("it ended ({status})")))
    }

    fn failed(&self, what: String) -> ScratchError {
        let log = std::fs::read(self.home.path().join(LOG)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(LOG_LINES_SHOWN);
        ScratchError::Failed {
            program: self.program.clone(),
            what,
            log: lines[from..].join("\n"),
        }
    }
}

/// Where memory runs out, it is the scratch server that the kernel takes first, not who started it or the server that it
/// stands beside. Anybody may ask for that, where there is such a thing.
fn is_first_to_go(process: &Child) {
    let adjustment = format!("/proc/{}/oom_score_adj", process.id());
    let _ = std::fs::write(adjustment, "1000");
}

fn io_error<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> ScratchError + 'a {
    move |error| ScratchError::Io {
        operation,
        path: path.to_owned(),
        error,
    }
}

/// Nothing is evicted, nothing saved by itself, nobody reaches it but through its socket file.
fn settings(version: (u32, u32), append_only: bool) -> Vec<&'static str> {
    let mut settings = vec![
        "--port",
        "0",
        "--unixsocketperm",
        "700",
        "--daemonize",
        "no",
        "--save",
        "",
        "--dbfilename",
        DUMP,
        "--appendonly",
        if append_only { "yes" } else { "no" },
        "--auto-aof-rewrite-percentage",
        "0",
        "--aof-load-truncated",
        "no",
        "--maxmemory",
        "0",
        "--databases",
        DATABASES,
        // Our store may be slower than a master.
        "--repl-timeout",
        "3600",
    ];
    if version >= (6, 0) {
        // No second copy of the payload on the disk.
        settings.extend(["--repl-diskless-load", "on-empty-db"]);
    }
    if version >= (7, 0) {
        settings.extend(["--enable-debug-command", "local"]);
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_program_or_an_address() {
        let program: ScratchPlace = "/usr/bin/redis-server".parse().unwrap();
        assert_eq!(
            program,
            ScratchPlace::Program("/usr/bin/redis-server".into())
        );
        let server: ScratchPlace = "redis://127.0.0.1:7000".parse().unwrap();
        assert_eq!(server.to_string(), "redis://127.0.0.1:7000");
        assert!("http://127.0.0.1".parse::<ScratchPlace>().is_err());
    }

    #[test]
    fn versions_are_read_as_servers_say_them() {
        let redis = "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=d81b8ff71cfb150e";
        assert_eq!(version_in(redis), Some((7, 0)));
        assert_eq!(
            version_in("Valkey server v=9.1.2 sha=00000000:0"),
            Some((9, 1))
        );
        assert_eq!(version_in("Python 3.11"), None);
        assert_eq!(version_in(""), None);
    }

    #[test]
    fn a_server_in_use_is_named_as_such() {
        let of = |text: &str| in_use(&Info::parse(&format!("loading:0\nrole:master\n{text}")));
        assert_eq!(of(""), None);
        assert_eq!(
            of("db3:keys=2,expires=0").unwrap(),
            "holds 2 keys and 0 libraries"
        );
        assert_eq!(
            of("number_of_libraries:1").unwrap(),
            "holds 0 keys and 1 libraries"
        );
        assert_eq!(of("connected_slaves:1").unwrap(), "has 1 replicas");
        assert_eq!(of("cluster_enabled:1").unwrap(), "is a cluster node");
        assert_eq!(of("role:slave").unwrap(), "is a replica");
        assert_eq!(in_use(&Info::parse("role:master")).unwrap(), "is loading");
    }
}
