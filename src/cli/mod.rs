//! The command line: flags and their help, one file a subcommand. Nothing here decides about data.

pub mod accept;
pub mod flags;
pub mod ls;
pub mod restore;
pub mod run;
pub mod status;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::clock::{Clock, SystemClock};
use flags::{Cli, Command};

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
    let cli = Cli::parse();
    if let Err(error) = start_logging() {
        complain(&error);
        return ExitCode::from(2);
    }
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
    let outcome = runtime.block_on(dispatch(cli.command));
    // Uploads that were given up on must not keep the process.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            error
                .downcast_ref::<Exit>()
                .map_or(ExitCode::FAILURE, |exit| ExitCode::from(exit.code))
        }
    }
}

async fn dispatch(command: Command) -> anyhow::Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    match command {
        Command::Run(arguments) => {
            let settings = arguments.settings()?;
            let store = open_store(&settings.archive)?;
            let options = settings.check().map_err(|error| Exit {
                message: error.to_string(),
                code: 2,
            })?;
            run::run(options, store, clock, stop_on_signals()?).await
        }
        Command::Restore(arguments) => restore::run(arguments).await,
        Command::Status(arguments) => status::run(&arguments, &*clock).await,
        Command::Ls(arguments) => ls::run(&arguments).await,
        Command::Accept(arguments) => accept::run(&arguments, &*clock).await,
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

fn complain(error: &anyhow::Error) {
    let _ = writeln!(std::io::stderr(), "perennial: {error:#}");
}

/// Prints to standard output; a reader that has gone away is no error of ours.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn start_logging() -> anyhow::Result<()> {
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
        "" => "warn,perennial=info".to_owned(),
        level @ ("info" | "debug" | "trace") => format!("warn,perennial={level}"),
        other => other.to_owned(),
    };
    let filter = tracing_subscriber::EnvFilter::try_new(directives)
        .map_err(|error| anyhow::anyhow!("PERENNIAL_LOG: {error}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
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
