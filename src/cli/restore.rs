//! `perennial restore`: a moment of the archive to files, or into a server.

use std::path::Path;
use std::sync::Arc;

use anyhow::{anyhow, bail};
use serde_json::json;
use tokio::sync::watch;

use super::flags::{FormatFlag, RestoreArguments};
use super::progress::Progress;
use super::seed_once::Destination;
use super::when::{Planned, When, plan_for, ttl};
use super::{
    EXIT_NOTHING, Exit, open_store, rehearsal, say, seed_once, stop_on_signals, stopped, tell,
    through_scratch,
};
use crate::archive::layout::ArchiveId;
use crate::archive::plan::PlanError;
use crate::archive::timeline::Catalog;
use crate::clock::Clock;
use crate::position::UnixMillis;
use crate::restore::around::{self, Around};
use crate::restore::moment::MomentError;
use crate::restore::source::{SourceError, Unusable};
use crate::restore::to_commands::ToCommandsError;
use crate::restore::to_dir::ToDirError;
use crate::restore::to_dump::ToDumpError;
use crate::restore::to_replica::SeedError;
use crate::restore::ttl::Ttl;
use crate::restore::{source, to_dir};
use crate::shell::quoted;
use crate::store::catalog::{self, CatalogError, Loaded};
use crate::store::{Store, StoreErrorKind};

/// Restores.
///
/// # Errors
/// What failed, on what; exit code 3 where there is nothing to restore.
pub async fn run(arguments: RestoreArguments, clock: Arc<dyn Clock>) -> anyhow::Result<()> {
    // Once for all tries: "10m ago" stays the same moment.
    let now = clock.unix();
    let mut stop = stop_on_signals()?;
    let mut tries = Tries::default();
    loop {
        match run_once(&arguments, now, Arc::clone(&clock), &mut stop, &mut tries).await {
            Err(error) => tries.go_on_after(error)?,
            Ok(()) => return Ok(()),
        }
    }
}

/// What earlier tries of a restore have found out.
#[derive(Default)]
struct Tries {
    around: Around,
    /// What was planned: later tries restore the very same moment.
    planned: Option<Planned>,
    /// Why the last one failed, and over what.
    failed: Option<(anyhow::Error, Unusable)>,
}

impl Tries {
    /// Another try may do where a single object is at fault and nothing was restored yet.
    fn go_on_after(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        match unusable(&error) {
            Some(unusable) if self.around.pass_over(&unusable.name) => {
                self.failed = Some((error, unusable));
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Plans, or plans again.
    async fn plan(
        &mut self,
        when: When,
        loaded: &mut Loaded,
        store: &Arc<dyn Store>,
        archive: ArchiveId,
        now: UnixMillis,
    ) -> anyhow::Result<Result<Planned, PlanError>> {
        let Some((error, unusable)) = self.failed.take() else {
            return plan_for(when, loaded, store, archive, now).await;
        };
        let planned = match self.planned.take() {
            Some(planned) => self.again(planned, &loaded.catalog),
            None => {
                self.looked_up_again(when, loaded, store, archive, now)
                    .await?
            }
        };
        let Some(planned) = planned else {
            return Err(error);
        };
        tracing::warn!("{}", around::said(&unusable, &planned.plan));
        loaded.catalog = self.around.rest(&loaded.catalog).into_owned();
        Ok(Ok(planned))
    }

    /// The same moment from other objects, where they lead to it.
    fn again(&self, planned: Planned, catalog: &Catalog) -> Option<Planned> {
        let plan = self.around.plan(catalog, planned.plan.target, None).ok()?;
        Some(Planned { plan, ..planned })
    }

    /// Where not even the moment was found: in what other objects say of it.
    async fn looked_up_again(
        &self,
        when: When,
        loaded: &mut Loaded,
        store: &Arc<dyn Store>,
        archive: ArchiveId,
        now: UnixMillis,
    ) -> anyhow::Result<Option<Planned>> {
        let Some(rest) = self.around.rest_of_all_moments(&loaded.catalog) else {
            return Ok(None);
        };
        loaded.catalog = rest;
        Ok(plan_for(when, loaded, store, archive, now).await?.ok())
    }
}

/// The object over which a restore failed, where that is its fault alone.
fn unusable(error: &anyhow::Error) -> Option<Unusable> {
    if let Some(SeedError::Unusable(unusable)) = seed_of(error) {
        return Some(unusable.clone());
    }
    source_of(error).and_then(SourceError::unusable)
}

fn seed_of(error: &anyhow::Error) -> Option<&SeedError> {
    if let Some(ToCommandsError::Dump(ToDumpError::Seed(error))) = error.downcast_ref() {
        return Some(error);
    }
    if let Some(ToDumpError::Seed(error)) = error.downcast_ref() {
        return Some(error);
    }
    error.downcast_ref()
}

fn source_of(error: &anyhow::Error) -> Option<&SourceError> {
    if let Some(error) = seed_of(error) {
        return error.source();
    }
    if let Some(MomentError::Source(error)) = error.downcast_ref() {
        return Some(error);
    }
    match error.downcast_ref() {
        Some(ToDirError::Source(error)) => Some(error),
        _ => None,
    }
}

async fn run_once(
    arguments: &RestoreArguments,
    now: UnixMillis,
    clock: Arc<dyn Clock>,
    stop: &mut watch::Receiver<bool>,
    tries: &mut Tries,
) -> anyhow::Result<()> {
    let when = When::read(&arguments.at, now)?;
    let to = Destination::read(arguments)?;
    let store = open_store(&arguments.archive)?;
    let prepared = tokio::select! {
        prepared = prepare(arguments, when, store, now, tries) => prepared?,
        () = stopped(stop) => bail!("stopped by a signal"),
    };
    let Some((archived, planned)) = prepared else {
        return Ok(());
    };
    if let When::Latest | When::Timeline(_) = when
        && let Some(rest) = archived.catalog.left_out(planned.plan.target.timeline)
    {
        tracing::warn!("{rest}");
    }
    if arguments.dry_run {
        return tokio::select! {
            rehearsed = rehearsal::run(&archived, &planned, &to, arguments, &*clock) => rehearsed,
            () = stopped(stop) => bail!("stopped by a signal"),
        };
    }
    match to {
        // Commands go to the standard output, and nothing else.
        Destination::Commands => planned.said().iter().for_each(|it| tracing::info!("{it}")),
        _ if arguments.json => {}
        _ => planned.said().iter().for_each(|line| tell(line)),
    }
    match to {
        Destination::Folder(folder) => {
            restore_folder(archived, &planned, &folder, arguments, clock, stop).await
        }
        Destination::Server(server) => {
            let around = &mut tries.around;
            seed_once::run(archived, planned, *server, arguments, clock, stop, around).await
        }
        Destination::Commands => {
            through_scratch::commands(archived, &planned, arguments, clock, stop).await
        }
    }
}

/// Reads what the archive holds and plans; nothing where there is none of it and that is no error.
async fn prepare(
    arguments: &RestoreArguments,
    when: When,
    store: Arc<dyn Store>,
    now: UnixMillis,
    tries: &mut Tries,
) -> anyhow::Result<Option<(Archived, Planned)>> {
    let nothing = |message| nothing(arguments, message).map(|()| None);
    let mut loaded = match catalog::load(&*store, &[]).await {
        Ok(loaded) => loaded,
        Err(error) if is_missing(&error) => return nothing(error.to_string()),
        Err(error) => return Err(error.into()),
    };
    let archive = loaded.catalog.archive().map(|document| document.archive);
    let archive = archive.ok_or_else(|| anyhow::anyhow!("archive.json is missing"))?;
    let planned = match tries.plan(when, &mut loaded, &store, archive, now).await? {
        Ok(planned) => planned,
        Err(error @ (PlanError::Empty | PlanError::OnlySuspects)) => {
            return nothing(format!("{}: {error}", store.address()));
        }
        Err(error) => return Err(error.into()),
    };
    tries.planned = Some(planned.clone());
    let archived = Archived {
        store,
        archive,
        catalog: loaded.catalog,
    };
    Ok(Some((archived, planned)))
}

/// What is restored from.
#[derive(Debug)]
pub struct Archived {
    /// Where it lies.
    pub store: Arc<dyn Store>,
    /// Its id.
    pub archive: ArchiveId,
    /// What it holds.
    pub catalog: Catalog,
}

/// What is asked for of files.
pub(super) fn folder_options(
    planned: &Planned,
    arguments: &RestoreArguments,
    clock: &dyn Clock,
) -> to_dir::Options {
    to_dir::Options {
        force: arguments.force,
        format: match arguments.format {
            FormatFlag::Auto => to_dir::Format::Auto,
            FormatFlag::Aof => to_dir::Format::Aof,
            FormatFlag::Rdb => to_dir::Format::Rdb,
        },
        ttl: ttl(planned, arguments, clock),
    }
}

/// Whether only a server can make the files: a dump of more than the snapshot as it was stored.
pub(super) fn needs_scratch(planned: &Planned, options: to_dir::Options) -> bool {
    let is_payload = planned.plan.stream_bytes() == 0 && options.ttl == Ttl::Keep;
    options.format == to_dir::Format::Rdb && !is_payload
}

async fn restore_folder(
    archived: Archived,
    planned: &Planned,
    folder: &Path,
    arguments: &RestoreArguments,
    clock: Arc<dyn Clock>,
    stop: &mut watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let plan = &planned.plan;
    let options = folder_options(planned, arguments, &*clock);
    if needs_scratch(planned, options) {
        return through_scratch::dump(archived, planned, folder, arguments, clock, stop).await;
    }
    // Where the end cannot be read the restore itself says so, in its place.
    let payload_bytes = source::payload_bytes(&*archived.store, plan).await.ok();
    let total = payload_bytes.map(|bytes| bytes + plan.stream_bytes());
    let mut progress = Progress::new(clock, total);
    let restoring = to_dir::restore(
        archived.store,
        archived.archive,
        plan,
        folder,
        options,
        |bytes| progress.add(bytes),
    );
    let restored = tokio::select! {
        restored = restoring => restored.map_err(anyhow::Error::new),
        () = stopped(stop) => Err(anyhow!("stopped by a signal: nothing was restored")),
    };
    progress.end();
    say_restored(planned, &restored?, arguments.json);
    Ok(())
}

/// How a server is started on what was restored.
pub(super) fn start_command(server: &str, folder: &Path, layout: to_dir::Layout) -> String {
    let program = match server.starts_with("valkey") {
        true => "valkey-server",
        false => "redis-server",
    };
    format!(
        "{program} --dir {} --appendonly {}",
        quoted(&folder.display().to_string()),
        layout.append_only(),
    )
}

fn say_restored(planned: &Planned, restored: &to_dir::Restored, json: bool) {
    let plan = &planned.plan;
    let (layout, tally) = (restored.layout, restored.rewritten);
    if let Some(warning) = tally.warning() {
        tracing::warn!("{warning}");
    }
    let start = start_command(&restored.server, &restored.directory, layout);
    if json {
        say(&json!({
            "directory": restored.directory,
            "layout": layout.name(),
            "appendonly": layout.append_only(),
            "start": start,
            "timeline": plan.target.timeline.as_u32(),
            "offset": plan.target.offset.as_u64(),
            "until_ms": plan.until.0,
            "received_until_ms": planned.received_until().map(|at| at.0),
            "next_by_ms": planned.next_by().map(|at| at.0),
            "payload_bytes": restored.payload_bytes,
            "stream_bytes": restored.stream_bytes,
            "rewritten_ttls": tally.ttls,
            "rewritten_hpersists": tally.field_persists,
            "scripts": tally.scripts,
            "server": restored.server,
            "moved_aside": restored.moved_aside,
        })
        .to_string());
        return;
    }
    for name in &restored.moved_aside {
        tell(&format!("what was there is kept as {name}"));
    }
    tell(&format!(
        "restored {} to {}: {} of snapshot and {} of replication stream, written by {}",
        plan.target,
        restored.directory.join(layout.name()).display(),
        bytesize::ByteSize(restored.payload_bytes),
        bytesize::ByteSize(restored.stream_bytes),
        restored.server,
    ));
    if tally.is_changed() {
        tell(&tally.said());
    }
    tell(&format!("start a server on it:\n  {start}"));
    match layout {
        to_dir::Layout::Directory => tell(&format!(
            "(not older than what wrote it, {}: a server before 7.0 would pass over the folder and start EMPTY)",
            restored.server
        )),
        to_dir::Layout::File => {
            tell("(one append-only file, for 4.0 to 6.2; later versions take it over at the start)")
        }
        to_dir::Layout::Dump => tell(
            "(only with appendonly no: with appendonly yes the server would pass over dump.rdb and start EMPTY)",
        ),
    }
}

pub(super) fn is_missing(error: &CatalogError) -> bool {
    match error {
        CatalogError::Missing { .. } => true,
        // `run` makes a folder at its first start, but no bucket: a missing one is a wrong address, and whoever starts
        // a server after `--if-archive-exists` must not take it for a first start.
        CatalogError::Store(error) => {
            error.kind == StoreErrorKind::NotFound
                && !error.is_about_missing_object()
                && error.address.starts_with("file://")
        }
        CatalogError::Document { .. }
        | CatalogError::Beheaded { .. }
        | CatalogError::Another { .. }
        | CatalogError::WrongName { .. } => false,
    }
}

fn nothing(arguments: &RestoreArguments, message: String) -> anyhow::Result<()> {
    if arguments.if_archive_exists {
        let said = format!("nothing restored: {message}");
        match arguments.to.as_str() {
            "-" => tracing::info!("{said}"),
            _ => tell(&said),
        }
        return Ok(());
    }
    Err(Exit {
        message,
        code: EXIT_NOTHING,
    }
    .into())
}
