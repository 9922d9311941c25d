//! `perennial ls`: every object of an archive.

use serde_json::json;

use super::flags::ArchiveArguments;
use super::status::{time, timeline_line};
use super::{open_store, say};
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
        let objects: Vec<_> = catalog
            .timelines()
            .flat_map(|timeline| {
                let seq = timeline.seq().as_u32();
                let snapshots = timeline.snapshots.iter().map(move |snapshot| {
                    json!({
                        "kind": "snapshot", "timeline": seq, "name": snapshot.name.as_str(),
                        "offset": snapshot.offset.as_u64(), "at": snapshot.at.0, "bytes": snapshot.bytes,
                        "derived": snapshot.derived,
                        "parts": snapshot.parts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
                    })
                });
                let segments = timeline.segments.iter().map(move |segment| {
                    json!({
                        "kind": "segment", "timeline": seq, "name": segment.name.as_str(),
                        "first": segment.span.first.as_u64(), "last": segment.span.last.as_u64(),
                        "first_at": segment.span.first_at.0, "last_at": segment.span.last_at.0,
                        "bytes": segment.bytes,
                    })
                });
                snapshots.chain(segments)
            })
            .collect();
        say(&serde_json::to_string_pretty(&objects)?);
        return Ok(());
    }
    for timeline in catalog.timelines() {
        say(&timeline_line(catalog, timeline));
        for snapshot in &timeline.snapshots {
            say(&format!(
                "  snapshot  at offset {:>12}  {}  {}{}",
                snapshot.offset.as_u64(),
                time(snapshot.at),
                bytesize::ByteSize(snapshot.bytes),
                if snapshot.derived { "  derived" } else { "" },
            ));
        }
        for segment in &timeline.segments {
            say(&format!(
                "  segment   {:>12} to {:>12}  {}  {}",
                segment.span.first.as_u64(),
                segment.span.last.as_u64(),
                time(segment.span.last_at),
                bytesize::ByteSize(segment.bytes)
            ));
        }
    }
    Ok(())
}
