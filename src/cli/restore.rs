//! `perennial restore`: a moment of the archive to files.

use std::str::FromStr;
use std::sync::Arc;

use anyhow::bail;
use serde_json::json;

use super::flags::RestoreArguments;
use super::progress::Progress;
use super::{EXIT_NOTHING, Exit, open_store, say};
use crate::archive::plan::{Plan, PlanError, Target, plan};
use crate::clock::Clock;
use crate::position::{Offset, Position, TimelineSeq};
use crate::restore::{source, to_dir};
use crate::shell::quoted;
use crate::store::catalog::{self, CatalogError, Loaded};
use crate::store::{Store, StoreErrorKind};

/// Restores.
///
/// # Errors
/// What failed, on what; exit code 3 where there is nothing to restore.
pub async fn run(arguments: RestoreArguments, clock: Arc<dyn Clock>) -> anyhow::Result<()> {
    let at: When = arguments
        .at
        .parse()
        .map_err(|message| Exit { message, code: 2 })?;
    let store = open_store(&arguments.archive)?;
    let loaded = match catalog::load(&*store, &[]).await {
        Ok(loaded) => loaded,
        Err(error) if is_missing(&error) => return nothing(&arguments, error.to_string()),
        Err(error) => return Err(error.into()),
    };
    let planned = match plan_for(at, loaded, &*store).await? {
        (Ok(planned), loaded) => (planned, loaded),
        (Err(error @ (PlanError::Empty | PlanError::OnlySuspects)), _) => {
            return nothing(&arguments, format!("{}: {error}", store.address()));
        }
        (Err(error), _) => return Err(error.into()),
    };
    let (planned, loaded) = planned;
    if arguments.dry_run {
        print_plan(&planned, arguments.json);
        if matches!(at, When::Offset(..)) && !arguments.json {
            say("whether the offset lies between two commands is found out by restoring");
        }
        return Ok(());
    }
    let archive = loaded.catalog.archive().map(|document| document.archive);
    let archive = archive.ok_or_else(|| anyhow::anyhow!("archive.json is missing"))?;
    // Where the end cannot be read the restore itself says so, in its place.
    let payload_bytes = source::payload_bytes(&*store, &planned).await.ok();
    let total = payload_bytes.map(|bytes| bytes + planned.stream_bytes());
    let mut progress = Progress::new(clock, total);
    let restored = to_dir::restore(
        store,
        archive,
        &planned,
        &arguments.to,
        arguments.force,
        |bytes| progress.add(bytes),
    )
    .await;
    progress.end();
    let restored = restored?;
    say_restored(&planned, &restored, arguments.json);
    Ok(())
}

fn say_restored(planned: &Plan, restored: &to_dir::Restored, json: bool) {
    let (layout, tally) = (restored.layout, restored.rewritten);
    if let Some(warning) = tally.warning() {
        tracing::warn!("{warning}");
    }
    let start = format!(
        "{} --dir {} --appendonly {}",
        if restored.server.starts_with("valkey") {
            "valkey-server"
        } else {
            "redis-server"
        },
        quoted(&restored.directory.display().to_string()),
        layout.append_only(),
    );
    if json {
        say(&json!({
            "directory": restored.directory,
            "layout": layout.name(),
            "appendonly": layout.append_only(),
            "start": start,
            "timeline": planned.target.timeline.as_u32(),
            "offset": planned.target.offset.as_u64(),
            "until_ms": planned.until.0,
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
        say(&format!("what was there is kept as {name}"));
    }
    say(&format!(
        "restored {} to {}: {} of snapshot and {} of replication stream, written by {}",
        planned.target,
        restored.directory.join(layout.name()).display(),
        bytesize::ByteSize(restored.payload_bytes),
        bytesize::ByteSize(restored.stream_bytes),
        restored.server,
    ));
    if tally.is_changed() {
        say(&tally.said());
    }
    say(&format!("start a server on it:\n  {start}"));
    match layout {
        to_dir::Layout::Directory => say(&format!(
            "(not older than what wrote it, {}: a server before 7.0 would pass over the folder and start EMPTY)",
            restored.server
        )),
        to_dir::Layout::File => {
            say("(one append-only file, for 4.0 to 6.2; later versions take it over at the start)")
        }
        to_dir::Layout::Dump => say(
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
            error.kind == StoreErrorKind::NotFound && error.address.starts_with("file://")
        }
        CatalogError::Document { .. }
        | CatalogError::Beheaded { .. }
        | CatalogError::WrongName { .. } => false,
    }
}

fn nothing(arguments: &RestoreArguments, message: String) -> anyhow::Result<()> {
    if arguments.if_archive_exists {
        say(&format!("nothing restored: {message}"));
        return Ok(());
    }
    Err(Exit {
        message,
        code: EXIT_NOTHING,
    }
    .into())
}

/// Looks into the end of the timeline that is asked for, and plans.
pub(super) async fn plan_for(
    at: When,
    mut loaded: Loaded,
    store: &dyn Store,
) -> anyhow::Result<(Result<Plan, PlanError>, Loaded)> {
    let catalog = &loaded.catalog;
    let head = catalog.head();
    // An offset without a timeline counts on the head's way: before a failover or a seed, on an ancestor.
    let on_the_way = |offset: Offset| {
        let way = head.map(|head| catalog.lineage(head)).unwrap_or_default();
        let step = way.iter().find(|step| {
            catalog
                .timeline(step.timeline)
                .is_some_and(|timeline| timeline.document.start <= offset)
        });
        step.or(way.last()).map(|step| step.timeline)
    };
    let target = match at {
        When::Latest => Target::Latest,
        When::Timeline(seq) => Target::Timeline(seq),
        When::Offset(offset, timeline) => match timeline.or_else(|| on_the_way(offset)) {
            Some(timeline) => Target::Offset(Position { timeline, offset }),
            // An archive without a head is empty: planned as such.
            None => Target::Latest,
        },
    };
    if let Target::Timeline(seq) = target {
        loaded.resolve(store, seq).await?;
    }
    let end_of = match target {
        Target::Latest => loaded.catalog.head().map(|head| head.timeline),
        Target::Timeline(seq) => Some(seq),
        Target::Offset(_) => None,
    };
    if let Some(damaged) = end_of.and_then(|seq| loaded.damaged(seq)) {
        bail!("{damaged}; or restore what lies before it with --at offset:N");
    }
    Ok((plan(&loaded.catalog, target), loaded))
}

/// `--at`, as typed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum When {
    Latest,
    Timeline(TimelineSeq),
    Offset(Offset, Option<TimelineSeq>),
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unreadable = || {
            format!(
                "--at {text}: write latest, timeline:SEQ, offset:N or offset:N@SEQ; `perennial ls` shows what there is"
            )
        };
        let seq = |text: &str| text.parse().map(TimelineSeq::new).map_err(|_| unreadable());
        if text == "latest" {
            return Ok(Self::Latest);
        }
        if let Some(number) = text.strip_prefix("timeline:") {
            return Ok(Self::Timeline(seq(number)?));
        }
        let position = text.strip_prefix("offset:").ok_or_else(unreadable)?;
        let (offset, timeline) = match position.split_once('@') {
            Some((offset, timeline)) => (offset, Some(seq(timeline)?)),
            None => (position, None),
        };
        Ok(Self::Offset(
            offset.parse().map(Offset::new).map_err(|_| unreadable())?,
            timeline,
        ))
    }
}

fn print_plan(plan: &Plan, json: bool) {
    let summary = plan.summary();
    if json {
        say(&serde_json::to_string_pretty(&summary).unwrap_or_default());
        return;
    }
    let mut text = format!(
        "would restore {} (replication id {})\n  last byte received  {}\n  objects             {} ({})\n  replication stream  {}\n  snapshot            {}",
        plan.target,
        plan.id,
        super::status::time(plan.until),
        plan.objects(),
        bytesize::ByteSize(plan.stored_bytes()),
        bytesize::ByteSize(plan.stream_bytes()),
        plan.snapshot.name,
    );
    for leg in &plan.legs {
        text += &format!(
            "\n  then timeline {}: offsets {} to {} from {} segments",
            leg.timeline,
            leg.after.next(),
            leg.to,
            leg.segments.len()
        );
    }
    say(&text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_written() {
        let seq = TimelineSeq::new(3);
        assert_eq!("latest".parse(), Ok(When::Latest));
        assert_eq!("timeline:3".parse(), Ok(When::Timeline(seq)));
        assert_eq!("offset:17".parse(), Ok(When::Offset(Offset::new(17), None)));
        assert_eq!(
            "offset:17@3".parse(),
            Ok(When::Offset(Offset::new(17), Some(seq)))
        );
        for text in [
            "teatime",
            "offset:",
            "offset:x",
            "offset:1@",
            "timeline:",
            "",
        ] {
            assert!(
                text.parse::<When>().unwrap_err().contains("timeline:SEQ"),
                "{text}"
            );
        }
    }
}
