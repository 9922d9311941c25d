//! The binary under test: `run` as a child process, everything else as one-shot calls.

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use super::process::{Process, run_to_end};
use super::{Archive, DEADLINE, Kind, Port, Server, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_perennial");

/// A one-shot call takes no longer, restores of the largest test values included.
const CLI_DEADLINE: Duration = Duration::from_secs(120);

/// What Perennial promises to have resident at most, whatever the data and however slow the store.
#[allow(dead_code, reason = "the benches print what they measure")]
pub const RESIDENT_BYTES_MAX: u64 = 100 * 1024 * 1024;

/// Runs a subcommand to its end: (exit code, stdout, stderr).
#[track_caller]
pub fn run_cli(arguments: &[&str]) -> (i32, String, String) {
    run_to_end(Path::new(PROGRAM), arguments, &[], CLI_DEADLINE)
}

/// The same with environment variables.
#[track_caller]
pub fn run_cli_with(arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
    run_to_end(Path::new(PROGRAM), arguments, environment, CLI_DEADLINE)
}

/// The same, again where the store cannot list at the moment: the one of these tests fails with every object that goes away while it
/// lists, and in an archive of thousands, beside merges, that is often.
#[track_caller]
pub fn run_cli_when_it_can(
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> (i32, String, String) {
    const TRIES: usize = 30;
    let cannot_now =
        |(_, _, err): &(i32, String, String)| err.contains("it cannot now (InternalError)");
    let mut outcomes = (1..TRIES).map(|_| run_cli_with(arguments, environment));
    let could = outcomes.find(|outcome| !cannot_now(outcome));
    could.unwrap_or_else(|| run_cli_with(arguments, environment))
}

/// A server whose configuration names Perennial's seed port as its master, at every start, and Perennial beside it.
#[derive(Debug)]
pub struct BornAsReplica {
    pub server: Server,
    pub perennial: Perennial,
    // Reserved until the end: Perennial listens there only from time to time.
    seeder: Port,
}

impl BornAsReplica {
    /// Starts both, and waits until the empty server has been promoted and is followed.
    #[track_caller]
    pub fn start(kind: Kind, archive: &Archive) -> Option<Self> {
        Self::start_with(kind, archive, &[])
    }

    /// The same with more of the server's settings.
    #[track_caller]
    pub fn start_with(kind: Kind, archive: &Archive, config: &[&str]) -> Option<Self> {
        let seeder = Port::reserve();
        let server = kind.start_waiting_with(&seeder, config)?;
        let listen = seeder.address();
        let perennial = Perennial::follow_url(&server.url(), archive, &["--seed-listen", &listen]);
        until("the empty server is promoted", DEADLINE, || {
            server.is_master()
        });
        archive.until_durable();
        Some(Self {
            server,
            perennial,
            seeder,
        })
    }

    /// Starts Perennial anew on the same seed port with more flags; the one before is killed.
    pub fn follow_with(&mut self, archive: &Archive, more: &[&str]) {
        self.perennial.kill();
        let listen = self.seeder.address();
        let flags = [&["--seed-listen", listen.as_str()], more].concat();
        self.perennial = Perennial::follow_url(&self.server.url(), archive, &flags);
    }
}

/// A running `perennial run`. Dropped, it is killed.
#[derive(Debug)]
pub struct Perennial {
    process: Process,
    command: Vec<String>,
    environment: Vec<(String, String)>,
    folder: TempDir,
}

impl Perennial {
    /// `perennial run` with these flags.
    pub fn run(arguments: &[&str]) -> Self {
        Self::run_with(arguments, &[])
    }

    /// The same with environment variables.
    pub fn run_with(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::run_behind(&[], arguments, environment)
    }

    /// The same by a command that prepares something and then becomes the program given behind it:
    /// `["sh", "-c", "ulimit -n 40; exec \"$@\"", "sh"]`.
    pub fn run_behind(before: &[&str], arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let command: Vec<String> = [before, &[PROGRAM, "run"], arguments]
            .concat()
            .into_iter()
            .map(ToOwned::to_owned)
            .collect();
        let environment: Vec<(String, String)> = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let process = spawn(&command, &environment, folder.path());
        Self {
            process,
            command,
            environment,
            folder,
        }
    }

    /// Follows `url` into `archive`, with more flags.
    pub fn follow_url(url: &str, archive: &Archive, more: &[&str]) -> Self {
        let archive_url = archive.url();
        let mut arguments = vec!["--redis", url, "--archive", &archive_url];
        arguments.extend(more);
        Self::run_with(&arguments, &archive.environment())
    }

    /// Follows a server, and waits until something is durable.
    #[track_caller]
    pub fn follow(server: &Server, archive: &Archive, more: &[&str]) -> Self {
        let mut perennial = Self::follow_url(&server.url(), archive, more);
        let what = format!("something of {} is durable", server.address());
        until(&what, DEADLINE, || {
            assert!(perennial.exited().is_none(), "perennial has ended");
            let status = archive.try_status();
            status.is_ok_and(|status| status.durable_offset.is_some())
        });
        perennial
    }

    /// Starts it again after its end, with the same flags and the same log.
    #[track_caller]
    pub fn start_again(&mut self) {
        assert!(self.process.exited().is_some(), "perennial still runs");
        self.process = spawn(&self.command, &self.environment, self.folder.path());
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM.
    pub fn terminate(&mut self) {
        self.process.signal(Signal::TERM);
    }

    /// SIGSTOP.
    pub fn pause(&mut self) {
        self.process.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        self.process.signal(Signal::CONT);
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        self.process.wait(deadline)
    }

    /// Its exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.process.exited()
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until the log contains `text`.
    #[track_caller]
    pub fn until_logged(&self, text: &str) {
        until(&format!("perennial logs {text:?}"), DEADLINE, || {
            self.log().contains(text)
        });
    }

    /// Fails when it has panicked or ended.
    #[track_caller]
    pub fn assert_healthy(&mut self) {
        assert!(!self.log().contains("panicked at"), "{}", self.log());
        assert!(self.exited().is_none(), "perennial ended: {}", self.log());
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The largest resident size so far, in bytes.
    pub fn resident_bytes_peak(&self) -> Option<u64> {
        self.process.resident_bytes_peak()
    }

    /// Lets that begin anew.
    #[allow(dead_code, reason = "the benches measure whole runs")]
    pub fn forget_resident_peak(&self) {
        self.process.forget_resident_peak();
    }
}

fn spawn(command: &[String], environment: &[(String, String)], folder: &Path) -> Process {
    let ours = [("RUST_BACKTRACE", "1"), ("NO_COLOR", "1")];
    let given = environment
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let environment: Vec<(&str, &str)> = ours.into_iter().chain(given).collect();
    Process::start(
        "perennial run",
        Path::new(&command[0]),
        &command[1..],
        &environment,
        &folder.join("perennial.log"),
    )
}
