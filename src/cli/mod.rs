//! The command line: flags and their help, one file a subcommand. Nothing here decides about data.

pub mod accept;
pub mod check;
pub mod file;
mod findings;
pub mod flags;
mod glance;
mod heap;
pub mod inspect;
pub mod ls;
pub mod observe;
mod out;
mod pace;
mod progress;
pub mod prune;
mod rehearsal;
mod replaced;
pub mod restore;
pub mod run;
pub mod seed_once;
pub mod shown;
pub mod snapshot;
pub mod status;
mod stored;
pub mod through_scratch;
mod usage;
mod variables;
pub mod verify;
pub mod when;
mod wrap;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use clap::CommandFactory;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::clock::{Clock, SystemClock};
use file::FromFile;
use flags::{Cli, Command, LogFormat};
use out::{complain, say, tell};

/// What is logged of the libraries below us. That the machine names no region is said six times where none of them was
/// needed, and by ourselves where one is.
const OTHERS: &str = "warn,aws_config::imds::region=error";

/// There is nothing to restore.
pub const EXIT_NOTHING: u8 = 3;

/// An error with an exit code of its own.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Exit {
    /// What to say.
    pub message: String,
    /// What to return.
    pub code: u8,
}

/// Runs the command line given to this process.
pub fn main() -> ExitCode {
    heap::give_back_what_is_freed();
    let typed = std::env::args_os().collect();
    let (arguments, from_file) = match file::with_file(&Cli::command(), typed) {
        Ok(read) => read,
        Err(error) => {
            complain(&error.into());
            return ExitCode::from(2);
        }
    };
    let cli = match usage::read(arguments) {
        Ok(cli) => cli,
        Err(answer) => return answered(&answer),
    };
    let format = match &cli.command {
        Command::Run(arguments) => arguments.log_format,
        _ => LogFormat::Text,
    };
    if let Err(error) = start_logging(format) {
        complain(&error);
        return ExitCode::from(2);
    }
    variables::warn_of_unknown(&Cli::command());
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&anyhow::Error::new(error).context("start"));
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(dispatch(cli.command, &from_file));
    // Uploads that were given up on must not keep the process.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => all_is_said(out::lost()),
        Err(error) => {
            complain(&error);
            error
                .downcast_ref::<Exit>()
                .map_or(ExitCode::FAILURE, |exit| ExitCode::from(exit.code))
        }
    }
}

/// Prints what clap answers by itself: help, the version, or what is wrong with the usage.
fn answered(answer: &clap::Error) -> ExitCode {
    let printed = answer.print();
    match answer.exit_code() {
        0 => all_is_said(printed.err()),
        _ => ExitCode::from(2),
    }
}

/// A success of which not everything could be printed is none: what a script kept of it is not whole.
fn all_is_said(lost: Option<std::io::Error>) -> ExitCode {
    match lost {
        None => return ExitCode::SUCCESS,
        Some(error) if out::is_gone(&error) => {}
        Some(error) => complain(&anyhow::Error::new(error).context(
            "what was asked for was done, but not all that there is to say of it could be printed: write to standard \
             output",
        )),
    }
    ExitCode::FAILURE
}

async fn dispatch(command: Command, from_file: &FromFile) -> anyhow::Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    match command {
        Command::Run(arguments) => {
            let usage = |complaint: String| Exit {
                message: from_file.about(&complaint),
                code: 2,
            };
            let settings = arguments.settings().map_err(|error| usage(error.message))?;
            let store = open_store(&settings.archive).map_err(|error| usage(error.to_string()))?;
            let options = settings.check().map_err(|error| usage(error.to_string()))?;
            run::run(options, store, clock, stop_on_signals()?).await
        }
        Command::Check(arguments) => check::run(*arguments, clock).await,
        Command::Restore(arguments) => restore::run(*arguments, clock).await,
        Command::Verify(arguments) => verify::run(arguments, clock).await,
        Command::Status(arguments) => status::run(&arguments, &*clock).await,
        Command::Ls(arguments) => ls::run(&arguments).await,
        Command::Inspect(arguments) => inspect::run(arguments, clock).await,
        Command::Accept(arguments) => accept::run(&arguments, &*clock).await,
        Command::Snapshot(arguments) => snapshot::run(*arguments, clock, stop_on_signals()?).await,
        Command::Prune(arguments) => prune::run(arguments, clock).await,
        Command::Completions(arguments) => {
            shown::completions(&arguments);
            Ok(())
        }
        Command::Man(arguments) => shown::man(&arguments),
    }
}

/// Opens the store of an `--archive`; a bad address is a usage error.
fn open_store(url: &str) -> anyhow::Result<Arc<dyn crate::store::Store>> {
    crate::store::open(url).map_err(|error| {
        Exit {
            message: format!("--archive: {error}"),
            code: 2,
        }
        .into()
    })
}

fn start_logging(format: LogFormat) -> anyhow::Result<()> {
    let wanted = std::env::var("PERENNIAL_LOG").unwrap_or_default();
    // A word that is no level would be taken for a module's name, and everything else be silent.
    let levels = ["", "off", "error", "warn", "info", "debug", "trace"];
    if !wanted.contains('=') && !levels.contains(&wanted.as_str()) {
        anyhow::bail!(
            "PERENNIAL_LOG: {wanted:?} is not a level: write error, warn, info, debug or trace"
        );
    }
    // A bare level is ours alone: what HTTP libraries say below a warning is long, and may hold request headers.
    let directives = match wanted.as_str() {
        "" => format!("{OTHERS},perennial=info"),
        level @ ("info" | "debug" | "trace") => format!("{OTHERS},perennial={level}"),
        other => other.to_owned(),
    };
    let filter = tracing_subscriber::EnvFilter::try_new(directives)
        .map_err(|error| anyhow::anyhow!("PERENNIAL_LOG: {error}"))?;
    // https://no-color.org
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A log that cannot be written, on a full disk, is no reason to end: complaining about it would panic.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal() && !plain)
        .with_target(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}

/// `true` after the first SIGTERM or SIGINT; the second one ends the process at once.
fn stop_on_signals() -> anyhow::Result<watch::Receiver<bool>> {
    let (sender, receiver) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if first {
                sender.send_replace(true);
            } else {
                tracing::warn!(
                    "second signal: stopping at once; what is not stored is lost with the master"
                );
                std::process::exit(130);
            }
        }
    });
    Ok(receiver)
}

/// Waits until a signal came.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}
