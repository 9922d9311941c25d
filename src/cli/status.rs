//! `perennial status`: how an archive stands, for people and as JSON.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::flags::ArchiveArguments;
use super::stored::Stored;
use super::{open_store, say, tell};
use crate::archive::timeline::{Catalog, Timeline};
use crate::clock::Clock;
use crate::position::{Position, TimelineSeq, UnixMillis};
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
        tell(&as_text(&loaded, &store.address(), now));
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
        "restorable": head.map(|head| window_json(catalog, head)),
        "stored": Stored::of(catalog).as_json(),
        "timelines": catalog.timelines().map(|timeline| timeline_json(catalog, timeline, head)).collect::<Vec<_>>(),
        "problems": problems(catalog, address, now),
    })
}

/// From which position on every moment up to the head can be restored, and when that was.
fn window_start(catalog: &Catalog, head: Position) -> (Position, UnixMillis) {
    let mut start = (head, catalog.received_at(head.timeline));
    for at in catalog.lineage(head) {
        let windows = catalog.windows(at.timeline);
        let window = windows
            .iter()
            .find(|run| run.after <= at.offset && at.offset <= run.last);
        let (Some(window), Some(timeline)) = (window, catalog.timeline(at.timeline)) else {
            return start;
        };
        let mut snapshots = timeline.snapshots.iter();
        if let Some(first) = snapshots.find(|snapshot| snapshot.offset >= window.after)
            && first.offset <= at.offset
        {
            let position = Position {
                timeline: at.timeline,
                offset: first.offset,
            };
            start = (position, first.at);
        }
        // Behind a gap, or a root: what lies before does not lead here.
        if window.after > timeline.document.start {
            return start;
        }
    }
    start
}

fn window_json(catalog: &Catalog, head: Position) -> Value {
    let (from, from_at) = window_start(catalog, head);
    json!({
        "from": position(from),
        "from_at": from_at.0,
        "to": position(head),
        "to_at": catalog.received_at(head.timeline).0,
    })
}

fn timeline_json(catalog: &Catalog, timeline: &Timeline, head: Option<Position>) -> Value {
    let seq = timeline.seq();
    let document = &timeline.document;
    let stored = Stored::of_timeline(timeline);
    json!({
        "seq": seq.as_u32(),
        "id": timeline.id().to_string(),
        "parent": document.parent.map(position),
        "start": document.start.as_u64(),
        "mapped": document.mapped,
        "end": catalog.end(seq).map(|end| end.as_u64()),
        "suspect": catalog.suspect(seq),
        "accepted": timeline.accepted.is_some(),
        "head": head.is_some_and(|head| head.timeline == seq),
        "created_at": document.created_at.0,
        "last_at": catalog.received_at(seq).0,
        "snapshots": timeline.snapshots.iter().map(|snapshot| json!({
            "offset": snapshot.offset.as_u64(), "at": snapshot.at.0, "bytes": snapshot.bytes,
            "derived": snapshot.derived,
        })).collect::<Vec<_>>(),
        "segments": stored.segments(),
        "bytes": stored.bytes(),
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
                "timeline {seq} is suspect: {why}; if it is another data set, stop that Perennial and give \
                 it an --archive of its own; if it is an older state of this one, start its server empty, and it is filled \
                 from the head; if it is the right one: perennial accept {seq} --archive {}",
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
    if let Some(head) = catalog.head() {
        let (from, from_at) = window_start(catalog, head);
        lines.push(format!(
            "window  every moment since {} ({})\n    from {from} on",
            time(from_at),
            ago(from_at, now)
        ));
    }
    lines.extend(Stored::of(catalog).lines());
    lines.push(String::new());
    Tree::of(catalog).draw(None, "", &mut lines);
    let problems = problems(catalog, address, now);
    if !problems.is_empty() {
        lines.push(String::new());
        lines.extend(problems.iter().map(|problem| format!("! {problem}")));
    }
    lines.join("\n")
}

/// The timelines as they continue each other.
struct Tree<'a> {
    catalog: &'a Catalog,
    children: BTreeMap<Option<TimelineSeq>, Vec<&'a Timeline>>,
    /// On the way to the head.
    way: BTreeSet<TimelineSeq>,
    head: Option<Position>,
}

impl<'a> Tree<'a> {
    fn of(catalog: &'a Catalog) -> Self {
        let mut children: BTreeMap<_, Vec<&Timeline>> = BTreeMap::new();
        for timeline in catalog.timelines() {
            let named = timeline.document.parent.map(|parent| parent.timeline);
            // One whose parent is missing is shown among the roots.
            let of = named.filter(|seq| *seq < timeline.seq() && catalog.timeline(*seq).is_some());
            children.entry(of).or_default().push(timeline);
        }
        let head = catalog.head();
        let way = head.map(|head| catalog.lineage(head)).unwrap_or_default();
        Self {
            catalog,
            children,
            way: way.iter().map(|at| at.timeline).collect(),
            head,
        }
    }

    /// The timelines that continue `parent`, each with its own below it. What leads on stays in its column, so that a history of
    /// many restarts is not a staircase; branches beside it are indented.
    fn draw(&self, mut parent: Option<TimelineSeq>, indent: &str, lines: &mut Vec<String>) {
        while let Some(children) = self.children.get(&parent) {
            let mut on = children.len() - 1;
            for (at, child) in children.iter().enumerate() {
                if self.way.contains(&child.seq()) {
                    on = at;
                }
            }
            for (at, child) in children.iter().enumerate() {
                if at == on {
                    continue;
                }
                let deeper = match parent {
                    Some(_) => format!("{indent}|   "),
                    None => indent.to_owned(),
                };
                self.line(child, &deeper, lines);
                self.draw(Some(child.seq()), &deeper, lines);
            }
            self.line(children[on], indent, lines);
            parent = Some(children[on].seq());
        }
    }

    fn line(&self, timeline: &Timeline, indent: &str, lines: &mut Vec<String>) {
        let text = timeline_line(self.catalog, timeline, self.head);
        lines.extend(text.lines().map(|line| format!("{indent}{line}")));
        for gap in self.catalog.gaps(timeline.seq()) {
            lines.push(format!(
                "{indent}    GAP between offsets {} and {}",
                gap.after, gap.resumes_at
            ));
        }
    }
}

/// One timeline, on two lines that fit a terminal.
pub fn timeline_line(catalog: &Catalog, timeline: &Timeline, head: Option<Position>) -> String {
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
    let head = head.is_some_and(|head| head.timeline == seq);
    let standing = match (head, catalog.suspect(seq).is_some()) {
        (true, _) => "  <- head",
        (false, true) => "  SUSPECT",
        (false, false) => "",
    };
    format!(
        "timeline {seq}  {}  {origin}{standing}\n    {end}, {}",
        &timeline.id().to_string()[..8],
        Stored::of_timeline(timeline).short(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::timeline::sketch::Sketch;

    fn shown(sketch: Sketch) -> Vec<String> {
        let mut lines = Vec::new();
        Tree::of(&sketch.catalog()).draw(None, "", &mut lines);
        let short = |line: &String| line.split("  ").take(1).collect::<String>();
        let heads = lines.iter().filter(|line| line.contains("timeline "));
        heads
            .map(|line| match line.split_once("timeline") {
                Some((indent, rest)) => format!("{indent}{}", short(&rest.trim().to_owned())),
                None => line.clone(),
            })
            .collect()
    }

    fn root() -> Sketch {
        Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(0)
            .segment(1, 100)
    }

    #[test]
    fn a_history_of_restarts_is_no_staircase_and_branches_stand_beside() {
        let restarts = root()
            .timeline(2, 2, Some((1, 100)), 100)
            .segment(101, 200)
            .timeline(3, 3, Some((2, 200)), 200)
            .segment(201, 300);
        assert_eq!(shown(restarts), ["1", "2", "3"]);
        let forked = root()
            .timeline(2, 2, Some((1, 50)), 50)
            .segment(51, 60)
            .timeline(3, 3, Some((1, 100)), 100)
            .segment(101, 120)
            .timeline(4, 4, None, 0)
            .suspect("why")
            .snapshot(0);
        assert_eq!(shown(forked), ["4", "1", "|   2", "3"]);
    }

    #[test]
    fn derived_snapshots_are_told_apart() {
        let line = |sketch: Sketch| {
            let catalog = sketch.catalog();
            timeline_line(
                &catalog,
                catalog.timelines().next().unwrap(),
                catalog.head(),
            )
        };
        assert!(line(root().derived(50)).contains("2 snapshots (1 derived)"));
        assert!(line(root()).contains("1 snapshot,"));
    }

    #[test]
    fn the_window_begins_behind_the_last_gap() {
        let of = |sketch: Sketch| {
            let catalog = sketch.catalog();
            let (from, at) = window_start(&catalog, catalog.head().unwrap());
            (from.timeline.as_u32(), from.offset.as_u64(), at.0)
        };
        assert_eq!(of(root()), (1, 0, 0));
        assert_eq!(of(root().snapshot(50)), (1, 0, 0));
        assert_eq!(of(root().snapshot(120).segment(121, 130)), (1, 120, 120));
        let child = root()
            .timeline(2, 2, Some((1, 80)), 80)
            .segment(81, 90)
            .snapshot(85);
        assert_eq!(of(child), (1, 0, 0), "through the parent");
    }
}
