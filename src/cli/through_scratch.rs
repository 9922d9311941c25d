//! `perennial restore --format rdb` and `--to -`: what a scratch server makes of a moment.

use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use tokio::sync::watch;

use super::flags::RestoreArguments;
use super::progress::Progress;
use super::restore::{Archived, start_command};
use super::when::{Planned, ttl};
use super::{Exit, say, stopped, tell};
use crate::clock::Clock;
use crate::restore::to_dir::Layout;
use crate::restore::to_dump::{Dump, Dumped};
use crate::server::scratch::ScratchPlace;

/// A `dump.rdb` in a folder: what lies behind the snapshot has to be applied by a server, which then saves.
///
/// # Errors
/// What failed; then there is none.
pub async fn dump(
    archived: Archived,
    planned: &Planned,
    folder: &Path,
    arguments: &RestoreArguments,
    clock: Arc<dyn Clock>,
    stop: &mut watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let scratch = scratch_for_dump(arguments)?;
    let mut progress = Progress::lines("restoring", Arc::clone(&clock), None);
    let told = |sent, total| progress.stands_at(sent, total);
    let dump = of(&archived, planned, &scratch, arguments, clock);
    let dumped = dump
        .write(folder, arguments.force, stopped(stop), told)
        .await?;
    say_dumped(planned, &dumped, folder, arguments.json);
    Ok(())
}

/// RESTORE commands on the standard output.
///
/// # Errors
/// What failed; then not everything was written.
pub async fn commands(
    archived: Archived,
    planned: &Planned,
    arguments: &RestoreArguments,
    clock: Arc<dyn Clock>,
    stop: &mut watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let scratch = scratch_for_commands(arguments)?;
    let mut progress = Progress::lines("restoring", Arc::clone(&clock), None);
    let told = |sent, total| progress.stands_at(sent, total);
    let dump = of(&archived, planned, &scratch, arguments, clock);
    let mut out = BufWriter::new(std::io::stdout());
    let written = dump
        .write_commands(&mut out, arguments.force, stopped(stop), told)
        .await?;
    tracing::info!(
        "restored {} as commands: {} keys, {}",
        planned.plan.target,
        written.keys,
        bytesize::ByteSize(written.bytes)
    );
    Ok(())
}

/// The scratch server of a dump.
///
/// # Errors
/// Where none is given: a usage error.
pub(super) fn scratch_for_dump(arguments: &RestoreArguments) -> Result<ScratchPlace, Exit> {
    scratch(
        arguments,
        "--format rdb: something lies behind the snapshot, or times of expiry have to be changed, and only a server can \
         make one dump of it all",
    )
}

/// The scratch server that makes commands.
///
/// # Errors
/// As [`scratch_for_dump`].
pub(super) fn scratch_for_commands(arguments: &RestoreArguments) -> Result<ScratchPlace, Exit> {
    scratch(
        arguments,
        "--to -: only a server can make commands of a snapshot",
    )
}

fn scratch(arguments: &RestoreArguments, why: &str) -> Result<ScratchPlace, Exit> {
    let usage = |message: String| Exit { message, code: 2 };
    let Some(place) = &arguments.scratch else {
        return Err(usage(format!(
            "{why}: give --scratch with the path of a redis-server or valkey-server that reads the archive"
        )));
    };
    place
        .parse()
        .map_err(|error| usage(format!("--scratch: {error}")))
}

fn of<'a>(
    archived: &'a Archived,
    planned: &'a Planned,
    scratch: &'a ScratchPlace,
    arguments: &RestoreArguments,
    clock: Arc<dyn Clock>,
) -> Dump<'a> {
    Dump {
        store: Arc::clone(&archived.store),
        archive: archived.archive,
        catalog: &archived.catalog,
        plan: &planned.plan,
        scratch,
        ttl: ttl(planned, arguments, &*clock),
        clock,
    }
}

fn say_dumped(planned: &Planned, dumped: &Dumped, folder: &Path, json: bool) {
    let plan = &planned.plan;
    let start = start_command(&dumped.server, folder, Layout::Dump);
    if json {
        say(&json!({
            "directory": folder,
            "layout": "dump.rdb",
            "appendonly": "no",
            "start": start,
            "timeline": plan.target.timeline.as_u32(),
            "offset": plan.target.offset.as_u64(),
            "until_ms": plan.until.0,
            "received_until_ms": planned.received_until().map(|at| at.0),
            "next_by_ms": planned.next_by().map(|at| at.0),
            "payload_bytes": dumped.bytes,
            "stream_bytes": 0,
            "rewritten_ttls": null,
            "rewritten_hpersists": null,
            "scripts": null,
            "server": dumped.server,
            "moved_aside": dumped.moved_aside,
        })
        .to_string());
        return;
    }
    for name in &dumped.moved_aside {
        tell(&format!("what was there is kept as {name}"));
    }
    tell(&format!(
        "restored {} to {}: {}, written by {}\nstart a server on it:\n  {start}\n(only with appendonly no: with \
         appendonly yes the server would pass over dump.rdb and start EMPTY)",
        plan.target,
        folder.join("dump.rdb").display(),
        bytesize::ByteSize(dumped.bytes),
        dumped.server,
    ));
}
