//! `perennial ls`: every object of an archive.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::flags::ArchiveArguments;
use super::status::{time, timeline_line};
use super::{open_store, say, tell};
use crate::archive::layout::ObjectName;
use crate::archive::retention::outermost;
use crate::archive::timeline::Timeline;
use crate::store::catalog;

/// Prints the list.
///
/// # Errors
/// Where the archive cannot be read.
pub async fn run(arguments: &ArchiveArguments) -> anyhow::Result<()> {
    let store = open_store(&arguments.archive)?;
    let loaded = catalog::load(&*store, &[]).await?;
    let catalog = &loaded.catalog;
    if arguments.json {
        let objects: Vec<Value> = catalog.timelines().flat_map(objects_json).collect();
        say(&serde_json::to_string_pretty(&objects)?);
        return Ok(());
    }
    let head = catalog.head();
    for timeline in catalog.timelines() {
        tell(&timeline_line(catalog, timeline, head));
        for line in lines(timeline) {
            say(&line);
        }
    }
    Ok(())
}

/// The segments that others cover.
fn covered(timeline: &Timeline) -> HashSet<&ObjectName> {
    let covered = outermost(timeline).into_iter().flat_map(|(_, of)| of);
    covered.map(|segment| &segment.name).collect()
}

fn objects_json(timeline: &Timeline) -> Vec<Value> {
    let seq = timeline.seq().as_u32();
    let covered = covered(timeline);
    let snapshots = timeline.snapshots.iter().map(|snapshot| {
        json!({
            "kind": "snapshot", "timeline": seq, "name": snapshot.name.as_str(),
            "offset": snapshot.offset.as_u64(), "at": snapshot.at.0, "bytes": snapshot.bytes,
            "derived": snapshot.derived,
            "parts": snapshot.parts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        })
    });
    let segments = timeline.segments.iter().map(|segment| {
        json!({
            "kind": "segment", "timeline": seq, "name": segment.name.as_str(),
            "first": segment.span.first.as_u64(), "last": segment.span.last.as_u64(),
            "first_at": segment.span.first_at.0, "last_at": segment.span.last_at.0,
            "bytes": segment.bytes, "covered": covered.contains(&segment.name),
        })
    });
    snapshots.chain(segments).collect()
}

fn lines(timeline: &Timeline) -> Vec<String> {
    let covered = covered(timeline);
    let snapshots = timeline.snapshots.iter().map(|snapshot| {
        format!(
            "  snapshot  at offset {:>17}  {}  {}{}",
            snapshot.offset.as_u64(),
            time(snapshot.at),
            bytesize::ByteSize(snapshot.bytes),
            if snapshot.derived { "  derived" } else { "" },
        )
    });
    let segments = timeline.segments.iter().map(|segment| {
        let standing = match covered.contains(&segment.name) {
            true => "  merged",
            false => "",
        };
        format!(
            "  segment   {:>12} to {:>12}  {}  {}{standing}",
            segment.span.first.as_u64(),
            segment.span.last.as_u64(),
            time(segment.span.last_at),
            bytesize::ByteSize(segment.bytes)
        )
    });
    snapshots.chain(segments).collect()
}
