//! Real servers as child processes: found, started on free ports, killed, paused, started again on the same port.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use super::process::Process;
use super::{Client, DEADLINE, Port, until};

/// A kind of server that tests can ask for. Add one here, to [`on_every_server`] and to `scripts/servers.sh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Names the folder under `target/servers` and the skip message.
    pub name: &'static str,
    /// The variable that names its program.
    pub variable: &'static str,
    /// What the program is called in its folder and in PATH.
    program: &'static str,
    /// How `--version` must begin.
    version: &'static str,
    /// The version of Redis whose commands it knows: (major, minor). Valkey began as 7.2.
    pub speaks: (u32, u32),
    /// Fields of hashes can expire.
    pub field_expiry: bool,
    /// Built with TLS.
    pub tls: bool,
}

/// Redis 6.2, the last one with relative expiry times in the replication stream and one AOF file.
pub const REDIS_6_2: Kind = Kind {
    name: "redis-6.2",
    variable: "PERENNIAL_REDIS_6_2",
    program: "redis-server",
    version: "Redis server v=6.2.",
    speaks: (6, 2),
    field_expiry: false,
    tls: false,
};

/// Redis 7.0, the version of Debian 12 and Ubuntu 24.04.
pub const REDIS_7_0: Kind = Kind {
    name: "redis-7.0",
    variable: "PERENNIAL_REDIS_7_0",
    program: "redis-server",
    version: "Redis server v=7.0.",
    speaks: (7, 0),
    field_expiry: false,
    tls: true,
};

/// Redis 8.0, the version of Debian 13.
pub const REDIS_8_0: Kind = Kind {
    name: "redis-8.0",
    variable: "PERENNIAL_REDIS_8_0",
    program: "redis-server",
    version: "Redis server v=8.0.",
    speaks: (8, 0),
    field_expiry: true,
    tls: true,
};

/// Valkey 8.1, the version of Debian 13.
pub const VALKEY_8_1: Kind = Kind {
    name: "valkey-8.1",
    variable: "PERENNIAL_VALKEY_8_1",
    program: "valkey-server",
    version: "Valkey server v=8.1.",
    speaks: (7, 2),
    field_expiry: false,
    tls: true,
};

/// Valkey 9.1, with a payload format of its own.
pub const VALKEY_9_1: Kind = Kind {
    name: "valkey-9.1",
    variable: "PERENNIAL_VALKEY_9_1",
    program: "valkey-server",
    version: "Valkey server v=9.1.",
    speaks: (7, 2),
    field_expiry: true,
    tls: false,
};

/// The named scenarios, each a `fn(Kind)` of this module, as one test for each kind of server: `name::redis_6_2` and so
/// on. `since 7.0;` in front leaves 6.2 out, for what that version does not have. `up to 7.0;` is for what is long and
/// differs only in how a full sync comes: on the link before 7.0, beside it since; `oldest, usual and newest;` likewise.
#[macro_export]
macro_rules! on_every_server {
    (since 7.0; $($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            use $crate::harness::servers;
            #[test] fn redis_7_0() { super::$scenario(servers::REDIS_7_0); }
            #[test] fn redis_8_0() { super::$scenario(servers::REDIS_8_0); }
            #[test] fn valkey_8_1() { super::$scenario(servers::VALKEY_8_1); }
            #[test] fn valkey_9_1() { super::$scenario(servers::VALKEY_9_1); }
        }
    )+};
    (oldest, usual and newest; $($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            use $crate::harness::servers;
            #[test] fn redis_6_2() { super::$scenario(servers::REDIS_6_2); }
            #[test] fn redis_7_0() { super::$scenario(servers::REDIS_7_0); }
            #[test] fn valkey_9_1() { super::$scenario(servers::VALKEY_9_1); }
        }
    )+};
    (up to 7.0; $($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            use $crate::harness::servers;
            #[test] fn redis_6_2() { super::$scenario(servers::REDIS_6_2); }
            #[test] fn redis_7_0() { super::$scenario(servers::REDIS_7_0); }
        }
    )+};
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            use $crate::harness::servers;
            #[test] fn redis_6_2() { super::$scenario(servers::REDIS_6_2); }
            #[test] fn redis_7_0() { super::$scenario(servers::REDIS_7_0); }
            #[test] fn redis_8_0() { super::$scenario(servers::REDIS_8_0); }
            #[test] fn valkey_8_1() { super::$scenario(servers::VALKEY_8_1); }
            #[test] fn valkey_9_1() { super::$scenario(servers::VALKEY_9_1); }
        }
    )+};
}

impl Kind {
    /// The program, where this machine has it.
    pub fn find(&self) -> Option<PathBuf> {
        if let Some(path) = std::env::var_os(self.variable) {
            let path = PathBuf::from(path);
            assert!(
                self.is_this_version(&path),
                "${} = {} is not a {:?}…",
                self.variable,
                path.display(),
                self.version
            );
            return Some(path);
        }
        let unpacked = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("target/servers")
            .join(self.name)
            .join(self.program);
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let installed = std::env::split_paths(&folders).map(|folder| folder.join(self.program));
        std::iter::once(unpacked)
            .chain(installed)
            .find(|path| path.is_file() && self.is_this_version(path))
    }

    /// The same, with the configuration that closes the window in which a busy client can write to an empty server: it
    /// waits for its seed at every start.
    pub fn start_waiting_for(&self, seeder: &Port) -> Option<Server> {
        self.start_waiting_with(seeder, &[])
    }

    /// The same with more settings.
    pub fn start_waiting_with(&self, seeder: &Port, config: &[&str]) -> Option<Server> {
        let port = seeder.number.to_string();
        let waits = [
            "--replicaof",
            "127.0.0.1",
            &port,
            "--replica-serve-stale-data",
            "no",
        ];
        self.start(&[&waits, config].concat())
    }

    /// A server on restored files, which it has loaded. A `dump.rdb`, written where there is no replication stream behind it, is only read
    /// without append-only files.
    pub fn start_on(&self, folder: &Path) -> Option<Server> {
        let append_only = if folder.join("dump.rdb").exists() {
            "no"
        } else {
            "yes"
        };
        let folder = folder.to_str().unwrap();
        let server = self.start(&["--dir", folder, "--appendonly", append_only])?;
        drop(Client::connect_loaded(&server.address()));
        Some(server)
    }

    fn is_this_version(&self, program: &Path) -> bool {
        Command::new(program)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .is_ok_and(|output| output.stdout.starts_with(self.version.as_bytes()))
    }

    /// Starts a server by another program, such as one that prepares something and becomes the server.
    pub fn start_as(&self, program: PathBuf, config: &[&str]) -> Server {
        Server::start(*self, program, Port::reserve(), config)
    }

    /// Starts a server with the harness's defaults and `config` (`["--maxmemory", "1gb"]`) on a free port. None where
    /// the machine has no such server: said and counted; in CI (`$CI` is set) that is a failure.
    pub fn start(&self, config: &[&str]) -> Option<Server> {
        match self.find() {
            Some(program) => Some(self.start_as(program, config)),
            None => {
                skip(&format!(
                    "no {} on this machine: run scripts/servers.sh or set {}",
                    self.name, self.variable
                ));
                None
            }
        }
    }
}

/// Says loudly that a test did not run, and counts it in the file `$PERENNIAL_SKIPS` (the Makefile prints the count).
/// Written past the test runner's capture.
pub fn skip(why: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "in CI nothing is skipped: {why}"
    );
    skip_in_ci_too(why);
}

/// The same for what a machine of CI may lack: a permission, not a program.
pub fn skip_in_ci_too(why: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    let line = format!("SKIPPED: {test}: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    if let Some(file) = std::env::var_os("PERENNIAL_SKIPS") {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(file)
            .unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
}

/// A server of the test's own: its folder, its port, its process. Dropped, all three go.
#[derive(Debug)]
pub struct Server {
    process: Process,
    kind: Kind,
    program: PathBuf,
    port: Port,
    config: Vec<String>,
    folder: TempDir,
}

impl Server {
    fn start(kind: Kind, program: PathBuf, port: Port, config: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config: Vec<String> = config.iter().map(ToString::to_string).collect();
        let process = spawn(kind, &program, port.number, folder.path(), &config);
        let mut server = Self {
            process,
            kind,
            program,
            port,
            config,
            folder,
        };
        server.until_it_answers();
        server
    }

    /// Starts again on the same port, at once, with what lies in the folder and the configuration of the first start.
    #[track_caller]
    pub fn start_again(&mut self) {
        self.start_again_without_waiting();
        self.until_it_answers();
    }

    /// Starts again and returns at once, for a client that wants to be the first.
    #[track_caller]
    pub fn start_again_without_waiting(&mut self) {
        assert!(self.process.exited().is_some(), "the server still runs");
        self.process = spawn(
            self.kind,
            &self.program,
            self.port.number,
            self.folder.path(),
            &self.config,
        );
    }

    /// Any answer will do: a server that waits for its master says `-MASTERDOWN` to a PING. A port that somebody took
    /// although it was reserved is exchanged for another one, unless the server had it before.
    fn until_it_answers(&mut self) {
        let address = self.address();
        loop {
            let answered = until(&format!("{address} answers"), DEADLINE, || {
                if self.process.exited().is_some() {
                    return Some(false);
                }
                let mut client = Client::connect(&address).ok()?;
                client.command(&["PING"]).ok().map(|_| true)
            });
            if answered {
                return;
            }
            let log = self.process.log();
            assert!(
                log.contains("Address already in use") && !log.contains("Ready to accept"),
                "the server ended at once: {log}"
            );
            self.port = Port::reserve();
            self.start_again_without_waiting();
        }
    }

    /// What it was started as.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// `127.0.0.1:<port>`.
    pub fn address(&self) -> String {
        self.port.address()
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// `redis://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// A new connection.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::connect(&self.address()).unwrap()
    }

    /// Its working folder: `dump.rdb`, `appendonlydir`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Removes the dump that a save, or a full sync loaded from disk, left behind.
    pub fn remove_dump(&self) {
        let _ = fs::remove_file(self.folder().join("dump.rdb"));
    }

    /// Removes its append-only files, of whatever version.
    pub fn remove_append_only_files(&self) {
        let _ = fs::remove_dir_all(self.folder().join("appendonlydir"));
        let _ = fs::remove_file(self.folder().join("appendonly.aof"));
    }

    /// What the server has logged, over all starts.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Kills it and starts it empty, as it was started first. A full sync leaves a `dump.rdb` behind where it passes
    /// the disk (on a master before 7.0, on a replica that is seeded): it goes as well.
    #[track_caller]
    pub fn lose_everything(&mut self) {
        self.kill();
        let _ = fs::remove_file(self.folder().join("dump.rdb"));
        self.start_again();
    }

    /// SIGTERM: the orderly shutdown. Returns how long it took.
    #[track_caller]
    pub fn terminate(&mut self) -> Duration {
        let started = std::time::Instant::now();
        self.begin_to_terminate();
        self.until_ended();
        started.elapsed()
    }

    /// SIGTERM, and no waiting for what comes of it.
    pub fn begin_to_terminate(&mut self) {
        self.process.signal(Signal::TERM);
    }

    /// Waits for the end of the process.
    #[track_caller]
    pub fn until_ended(&mut self) {
        self.process.wait(DEADLINE);
    }

    /// SIGSTOP.
    pub fn pause(&mut self) {
        self.process.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        self.process.signal(Signal::CONT);
    }

    /// One section of INFO. Panics when the server does not answer it: see [`Server::try_info`].
    #[track_caller]
    pub fn info(&self, section: &str) -> BTreeMap<String, String> {
        self.try_info(section).expect("INFO is answered")
    }

    /// One section of INFO, where the server answers.
    pub fn try_info(&self, section: &str) -> Option<BTreeMap<String, String>> {
        let mut client = Client::connect(&self.address()).ok()?;
        let super::Value::Bulk(text) = client.command(&["INFO", section]).ok()? else {
            return None;
        };
        Some(
            String::from_utf8_lossy(&text)
                .lines()
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                .collect(),
        )
    }

    /// One number of INFO.
    #[track_caller]
    pub fn info_number(&self, section: &str, field: &str) -> u64 {
        let info = self.info(section);
        let text = info
            .get(field)
            .unwrap_or_else(|| panic!("INFO {section} has no {field}"));
        text.parse()
            .unwrap_or_else(|_| panic!("{field} is not a number: {text}"))
    }

    /// Whether its process is so old that, made a master now, it is not taken for one that came back from an old dump: older than
    /// the archive's last byte by what the clocks of two machines may differ, five seconds (decision 2). INFO counts whole ones.
    pub fn is_not_young(&self) -> bool {
        self.info_number("server", "uptime_in_seconds") >= 7
    }

    /// Whether it answers as a master now.
    pub fn is_master(&self) -> bool {
        self.try_info("replication")
            .is_some_and(|info| info.get("role").is_some_and(|role| role == "master"))
    }

    /// Keys in all databases, where the server answers and is not loading.
    pub fn keys(&self) -> Option<u64> {
        if self.try_info("persistence")?.get("loading")? != "0" {
            return None;
        }
        let databases = self.try_info("keyspace")?;
        let count = databases
            .values()
            .filter_map(|value| value.strip_prefix("keys="))
            .filter_map(|value| value.split(',').next()?.parse::<u64>().ok())
            .sum();
        Some(count)
    }

    /// Waits until it is a master with at least one key: what a seeded and promoted server looks like.
    #[track_caller]
    pub fn until_master_with_data(&self) {
        until(
            &format!("{} is a master with data", self.address()),
            DEADLINE,
            // In this order: before it is taken over it is a master too, and has data before it is promoted.
            || self.keys().is_some_and(|keys| keys > 0) && self.is_master(),
        );
    }
}

/// The harness's defaults come first: what a test gives later wins.
fn spawn(kind: Kind, program: &Path, port: u16, folder: &Path, config: &[String]) -> Process {
    let port = port.to_string();
    let folder_text = folder.to_str().unwrap();
    let defaults = [
        ["--port", &port],
        ["--bind", "127.0.0.1"],
        ["--dir", folder_text],
        ["--save", ""],
        ["--appendonly", "no"],
        ["--repl-diskless-sync-delay", "0"],
    ];
    // Before 7.0 DEBUG is always allowed.
    let debug = ["--enable-debug-command", "yes"];
    let debug = (kind.speaks >= (7, 0)).then_some(debug);
    let arguments: Vec<String> = defaults
        .iter()
        .chain(debug.iter())
        .flatten()
        .map(ToString::to_string)
        .chain(config.iter().cloned())
        .collect();
    fs::create_dir_all(folder).unwrap();
    Process::start(
        &format!("{} on {port}", kind.name),
        program,
        &arguments,
        &[],
        &folder.join("server.log"),
    )
}

crate::on_every_server! {
    a_server_is_killed_and_started_again_on_its_port,
    an_old_dump_is_there_after_a_kill,
}

fn a_server_is_killed_and_started_again_on_its_port(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let address = server.address();
    server.client().line("SET kept no");
    assert_eq!(server.keys(), Some(1));
    for _ in 0..3 {
        server.kill();
        assert!(Client::connect(&address).is_err());
        server.start_again();
        assert_eq!(server.address(), address);
        assert_eq!(server.keys(), Some(0));
    }
}

fn an_old_dump_is_there_after_a_kill(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let mut client = server.client();
    client.line("SET old 1");
    client.line("SAVE");
    client.line("SET new 1");
    server.kill();
    server.start_again();
    assert_eq!(server.keys(), Some(1));
    assert_eq!(server.client().line("GET old").text(), "1");
}

#[test]
fn a_paused_server_does_not_answer_and_an_orderly_stop_is_waited_for() {
    let Some(mut server) = REDIS_7_0.start(&[]) else {
        return;
    };
    server.pause();
    let mut client = server.client();
    client.set_reply_timeout(Duration::from_millis(100));
    assert!(client.command(&["PING"]).is_err());
    server.resume();
    until("it answers again", DEADLINE, || server.is_master());
    server.terminate();
    assert!(server.log().contains("User requested shutdown"));
}

#[test]
fn a_server_born_as_a_replica_takes_no_writes() {
    let nobody = Port::reserve();
    let Some(server) = REDIS_7_0.start_waiting_for(&nobody) else {
        return;
    };
    let mut client = server.client();
    assert!(
        client
            .command(&["GET", "a"])
            .unwrap()
            .is_error("MASTERDOWN")
    );
    assert!(!matches!(
        client.command(&["SET", "a", "b"]).unwrap(),
        super::Value::Simple(_)
    ));
    assert_eq!(server.keys(), Some(0));
}
