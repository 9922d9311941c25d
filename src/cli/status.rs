//! `perennial status`: how an archive stands, for people and as JSON.

use serde_json::{Value, json};

use super::flags::ArchiveArguments;
use super::{open_store, say};
use crate::archive::timeline::{Catalog, Timeline};
use crate::clock::Clock;
use crate::position::{Position, UnixMillis};
use crate::shell::quoted;
use crate::store::catalog::{self, Loaded};

/// Prints the status.
///
/// # Errors
/// Where the archive cannot be read.
pub async fn run(arguments: &ArchiveArguments, clock: &dyn Clock) -> anyhow::Result<()> {
    let store = open_store(&arguments.archive)?;
    let loaded = catalog::load(&*store, &[]).await?;
    let now = clock.unix();
    if arguments.json {
        say(&serde_json::to_string_pretty(&as_json(
            &loaded,
            &store.address(),
            now,
        ))?);
    } else {
        say(&as_text(&loaded, &store.address(), now));
    }
    Ok(())
}

fn position(position: Position) -> Value {
    json!({ "timeline": position.timeline.as_u32(), "offset": position.offset.as_u64() })
}

/// The status as JSON.
pub fn as_json(loaded: &Loaded, address: &str, now: UnixMillis) -> Value {
    let catalog = &loaded.catalog;
    let head = catalog.head();
    let head_json = head.map(|head| {
        let at = catalog.received_at(head.timeline);
        json!({ "timeline": head.timeline.as_u32(), "offset": head.offset.as_u64(), "at": at.0 })
    });
    json!({
        "archive": address,
        "archive_id": catalog.archive().map(|document| document.archive.to_string()),
        "name": catalog.archive().and_then(|document| document.name.clone()),
        "head": head_json,
        "durable_offset": head.map(|head| head.offset.as_u64()),
        "timelines": catalog.timelines().map(|timeline| timeline_json(catalog, timeline)).collect::<Vec<_>>(),
        "problems": problems(catalog, address, now),
    })
}

fn timeline_json(catalog: &Catalog, timeline: &Timeline) -> Value {
    let seq = timeline.seq();
    let document = &timeline.document;
    json!({
        "seq": seq.as_u32(),
        "id": timeline.id().to_string(),
        "parent": document.parent.map(position),
        "start": document.start.as_u64(),
        "mapped": document.mapped,
        "end": catalog.end(seq).map(|end| end.as_u64()),
        "suspect": catalog.suspect(seq),
        "accepted": timeline.accepted.is_some(),
        "head": catalog.head().is_some_and(|head| head.timeline == seq),
        "created_at": document.created_at.0,
        "last_at": catalog.received_at(seq).0,
        "snapshots": timeline.snapshots.iter().map(|snapshot| json!({
            "offset": snapshot.offset.as_u64(), "at": snapshot.at.0, "bytes": snapshot.bytes,
        })).collect::<Vec<_>>(),
        "segments": timeline.segments.len(),
        "bytes": timeline.stored_bytes(),
        "gaps": catalog.gaps(seq).iter().map(|gap| json!({
            "after": gap.after.as_u64(), "before": gap.resumes_at.as_u64(),
        })).collect::<Vec<_>>(),
        "source": {
            "server": document.source.server, "version": document.source.version,
            "run_id": document.source.run_id, "address": document.source.address,
        },
    })
}

/// What is wrong, and what to do about it.
pub fn problems(catalog: &Catalog, address: &str, now: UnixMillis) -> Vec<String> {
    let mut problems = catalog.problems.clone();
    if !catalog.has_data() {
        problems.push(
            "nothing can be restored yet: no snapshot is complete; is `perennial run` running and its server up?"
                .into(),
        );
    }
    let head = catalog.head();
    for timeline in catalog.timelines() {
        let seq = timeline.seq();
        // Where the head went on later, somebody has dealt with it: the list of timelines still shows it.
        let pending = head.is_none_or(|head| head.timeline < seq);
        if let Some(why) = catalog.suspect(seq).filter(|_| pending) {
            problems.push(format!(
                "timeline {seq} is suspect: {why}; if it is not the right one, start its server empty, and it is \
                 filled from the head; if it is: perennial accept {seq} --archive {}",
                quoted(address)
            ));
        }
        for gap in catalog.gaps(seq) {
            problems.push(format!(
                "timeline {seq} has a gap: moments between offsets {} and {} cannot be restored; a larger \
                 repl-backlog-size on the master avoids this",
                gap.after, gap.resumes_at
            ));
        }
        let incomplete = timeline.document.parent.is_none()
            && timeline.snapshots.is_empty()
            && head.is_none_or(|head| head.timeline < seq);
        if incomplete && catalog.has_data() {
            problems.push(format!(
                "timeline {seq} has no complete snapshot yet: nothing on it can be restored"
            ));
        }
    }
    if let Some(rival) = catalog.rival(now) {
        problems.push(format!(
            "two branches advanced lately, the head and {rival}: no automatic seed until one stops or \
             `perennial accept` chooses"
        ));
    }
    problems
}

/// A moment as text, in UTC.
pub fn time(at: UnixMillis) -> String {
    at.to_string()
}

fn ago(at: UnixMillis, now: UnixMillis) -> String {
    let seconds = now.0.saturating_sub(at.0) / 1000;
    format!(
        "{} ago",
        humantime::format_duration(std::time::Duration::from_secs(seconds))
    )
}

fn as_text(loaded: &Loaded, address: &str, now: UnixMillis) -> String {
    let catalog = &loaded.catalog;
    let name = catalog.archive().and_then(|document| document.name.clone());
    let mut lines = vec![match name {
        Some(name) => format!("archive {address} of {name}"),
        None => format!("archive {address}"),
    }];
    match catalog.head() {
        Some(head) => {
            let at = catalog.received_at(head.timeline);
            lines.push(format!(
                "latest  {head}\n    last byte received {} ({})",
                time(at),
                ago(at, now)
            ));
        }
        None => lines.push("latest  nothing can be restored".into()),
    }
    lines.push(String::new());
    lines.extend(
        catalog
            .timelines()
            .map(|timeline| timeline_line(catalog, timeline)),
    );
    let problems = problems(catalog, address, now);
    if !problems.is_empty() {
        lines.push(String::new());
        lines.extend(problems.iter().map(|problem| format!("! {problem}")));
    }
    lines.join("\n")
}

/// One timeline, on two lines that fit a terminal.
pub fn timeline_line(catalog: &Catalog, timeline: &Timeline) -> String {
    let seq = timeline.seq();
    let origin = match timeline.document.parent {
        Some(parent) if timeline.document.mapped => {
            format!("stands for a seed of {parent} with rewritten bytes")
        }
        Some(parent) => format!("continues {parent}"),
        None => "begins with a snapshot".into(),
    };
    let end = catalog.end(seq).map_or_else(
        || "nothing restorable".into(),
        |end| format!("up to offset {end}"),
    );
    let head = catalog.head().is_some_and(|head| head.timeline == seq);
    let standing = match (head, catalog.suspect(seq).is_some()) {
        (true, _) => "  <- head",
        (false, true) => "  SUSPECT",
        (false, false) => "",
    };
    format!(
        "timeline {seq}  {}  {origin}{standing}\n    {end}, {}, {}, {}",
        &timeline.id().to_string()[..8],
        counted(timeline.snapshots.len(), "snapshot"),
        counted(timeline.segments.len(), "segment"),
        bytesize::ByteSize(timeline.stored_bytes()),
    )
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 {
        format!("1 {what}")
    } else {
        format!("{count} {what}s")
    }
}
