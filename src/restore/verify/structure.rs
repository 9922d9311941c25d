//! What the names and documents of an archive tell by themselves: what leads nowhere, and what is missing. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::archive::layout::{Object, timeline_prefix};
use crate::archive::timeline::{Catalog, Timeline};
use crate::check::Finding;
use crate::position::UnixMillis;
use crate::store::Listed;

use super::COPY;
use super::window::Window;

/// What is younger than this may still be on its way: segments are uploaded a few at a time, parts of a snapshot one by
/// one. Milliseconds.
const UNDER_WAY_MILLIS: u64 = 15 * 60 * 1000;

pub(super) fn findings(
    catalog: &Catalog,
    listed: &[Listed],
    now: UnixMillis,
    window: &Window,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    // The store's clock has passed the newest object. Where nothing came since, ours tells how long ago that was: an
    // archive that nobody writes to would else be young for ever.
    let newest = listed.iter().map(|entry| entry.modified).max();
    let now = newest.unwrap_or_default().max(now);
    foreign_names(listed, &mut findings);
    without_documents(catalog, listed, &mut findings);
    parts(catalog, listed, now, window, &mut findings);
    for timeline in catalog.timelines() {
        if window.holds(timeline.seq()) {
            gaps(catalog, timeline, listed, now, window, &mut findings);
            lost_end(catalog, timeline, now, window, &mut findings);
            parents(catalog, timeline, &mut findings);
        }
    }
    let has_objects = catalog.timelines().any(Timeline::has_content);
    if !has_objects && !listed.is_empty() {
        findings.push(Finding::warn(
            "restorable",
            "nothing has been archived yet",
            "nothing, if the archive is new: is `perennial run` running?",
        ));
    }
    if !catalog.has_data() && has_objects {
        findings.push(Finding::bad(
            "restorable",
            "nothing can be restored: there is no complete snapshot that something leads on from",
            COPY,
        ));
    }
    findings
}

/// Names that no Perennial makes. Readers pass over them, so one of ours whose name is damaged is missing as well.
fn foreign_names(listed: &[Listed], findings: &mut Vec<Finding>) {
    let mut foreign = listed
        .iter()
        .filter(|entry| Object::parse(entry.name.as_str()).is_none())
        .map(|entry| &entry.name);
    if let Some(first) = foreign.next() {
        let count = 1 + foreign.count();
        findings.push(Finding::warn(
            "names",
            format!("{count} objects bear names that no Perennial makes and are passed over, {first} among them"),
            "nothing, if you know what they are; an archive should have its place for itself",
        ));
    }
}

fn without_documents(catalog: &Catalog, listed: &[Listed], findings: &mut Vec<Finding>) {
    let objects = listed
        .iter()
        .filter_map(|entry| Object::parse(entry.name.as_str()));
    let (documents, others): (Vec<Object>, Vec<Object>) = objects
        .filter(|object| object.timeline().is_some())
        .partition(|object| matches!(object, Object::Timeline { .. }));
    let with: BTreeSet<_> = documents.iter().filter_map(Object::timeline).collect();
    let others: BTreeSet<_> = others.iter().filter_map(Object::timeline).collect();
    for (seq, id) in others.difference(&with) {
        findings.push(Finding::bad(
            "timeline-document",
            format!(
                "{}timeline.json is missing: nothing of that timeline is used",
                timeline_prefix(*seq, id)
            ),
            COPY,
        ));
    }
    for (seq, id) in others.intersection(&with) {
        // Where none of that number is used its document is damaged, which is said elsewhere.
        if catalog.timeline(*seq).is_some_and(|used| used.id() != *id) {
            findings.push(Finding::bad(
                "timeline-number",
                format!("two timelines bear the number {seq}: {id} is not used"),
                "find out who wrote either, and move the wrong one elsewhere",
            ));
        }
    }
    for timeline in catalog.timelines() {
        if let Some(parent) = timeline.document.parent
            && catalog.timeline(parent.timeline).is_none()
            && !others.iter().any(|(seq, _)| *seq == parent.timeline)
        {
            findings.push(Finding::bad(
                "parent",
                format!(
                    "timeline {} continues timeline {}, of which nothing is there",
                    timeline.seq(),
                    parent.timeline
                ),
                COPY,
            ));
        }
    }
}

/// Snapshots of which parts are there and that are not whole.
fn parts(
    catalog: &Catalog,
    listed: &[Listed],
    now: UnixMillis,
    window: &Window,
    findings: &mut Vec<Finding>,
) {
    let used: BTreeSet<&str> = catalog
        .timelines()
        .flat_map(|timeline| &timeline.snapshots)
        .flat_map(|snapshot| {
            let before = snapshot.parts.iter().map(|(name, _)| name.as_str());
            before.chain([snapshot.name.as_str()])
        })
        .collect();
    // Each with when its newest part came.
    let mut unfinished: BTreeMap<_, UnixMillis> = BTreeMap::new();
    for entry in listed {
        let Some(Object::SnapshotPart {
            seq, offset, at, ..
        }) = Object::parse(entry.name.as_str())
        else {
            continue;
        };
        if !used.contains(entry.name.as_str()) && window.needs_snapshot(seq, offset) {
            let newest = unfinished.entry((seq, offset, at)).or_default();
            *newest = entry.modified.max(*newest);
        }
    }
    for ((seq, offset, _), newest) in unfinished {
        let found = format!(
            "the snapshot of timeline {seq} at offset {offset} in parts is not whole: one is missing, or it was \
             never completed"
        );
        let is_young = now.0.saturating_sub(newest.0) < UNDER_WAY_MILLIS;
        findings.push(match is_young {
            true => Finding::warn(
                "snapshot-parts",
                found,
                "nothing, if it is being written now",
            ),
            false => Finding::bad("snapshot-parts", found, COPY),
        });
    }
}

fn gaps(
    catalog: &Catalog,
    timeline: &Timeline,
    listed: &[Listed],
    now: UnixMillis,
    window: &Window,
    findings: &mut Vec<Finding>,
) {
    let seq = timeline.seq();
    for gap in catalog.gaps(seq) {
        if !window.needs_hole(seq, gap.resumes_at) {
            continue;
        }
        let found = format!(
            "moments of timeline {seq} between offsets {} and {} cannot be restored: a segment is missing, or the \
             master's backlog was too short to go on",
            gap.after, gap.resumes_at
        );
        let behind = timeline
            .segments
            .iter()
            .find(|segment| segment.span.first.previous() == gap.resumes_at);
        let modified = behind.and_then(|segment| {
            let entry = listed.iter().find(|entry| entry.name == segment.name)?;
            Some(entry.modified)
        });
        let is_young = modified.is_some_and(|at| now.0.saturating_sub(at.0) < UNDER_WAY_MILLIS);
        findings.push(match is_young {
            true => Finding::warn("gap", found, "nothing, if it is being written now: verify again"),
            false => Finding::bad(
                "gap",
                found,
                "put the missing segment back, where there is a copy; else `--since` a later moment verifies what \
                 came after it",
            ),
        });
    }
}

/// The end of a timeline that another one goes on from, and that is no longer there: whatever that other one has itself, the
/// moments between cannot be restored.
fn lost_end(
    catalog: &Catalog,
    timeline: &Timeline,
    now: UnixMillis,
    window: &Window,
    findings: &mut Vec<Finding>,
) {
    let seq = timeline.seq();
    let left_out = catalog.left_out(seq);
    let Some((end, child, at)) =
        left_out.and_then(|it| it.continued.map(|(child, at)| (it.end, child, at)))
    else {
        return;
    };
    // Where bytes are stored behind the hole it is a gap; where all of the other one is lost with it, that is what counts.
    let is_said =
        catalog.gaps(seq).iter().any(|gap| gap.after == end) || catalog.end(child).is_none();
    if is_said || !window.needs_hole(seq, at) {
        return;
    }
    let created = catalog
        .timeline(child)
        .map(|child| child.document.created_at);
    let is_young = created.is_some_and(|at| now.0.saturating_sub(at.0) < UNDER_WAY_MILLIS);
    let found = format!(
        "moments of timeline {seq} between offsets {end} and {at} cannot be restored: a segment is missing, which timeline {child} \
         went on from"
    );
    findings.push(match is_young {
        true => Finding::warn(
            "gap",
            found,
            "nothing, if it is being written now: verify again",
        ),
        false => Finding::bad("gap", found, COPY),
    });
}

/// Timelines with bytes that nothing leads to.
fn parents(catalog: &Catalog, timeline: &Timeline, findings: &mut Vec<Finding>) {
    let seq = timeline.seq();
    // Of a number that two folders bear, upkeep leaves one object to tell them apart.
    if catalog.end(seq).is_some() || !timeline.has_content() || catalog.has_twin(seq) {
        return;
    }
    let is_abandoned = catalog.head().is_some_and(|head| head.timeline > seq);
    match timeline.document.parent {
        Some(parent) => findings.push(Finding::bad(
            "parent",
            format!(
                "timeline {seq} continues {parent}, which cannot be restored: nothing of timeline {seq} can"
            ),
            COPY,
        )),
        None if is_abandoned => findings.push(Finding::warn(
            "restorable",
            format!(
                "timeline {seq} has no complete snapshot: it never became complete, or it is missing"
            ),
            "nothing, if its first attempt failed; later timelines do not need it",
        )),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::timeline::sketch::Sketch;
    use crate::check::Level;
    use crate::position::Offset;

    /// The identifiers of what is bad, for objects that are all old.
    fn bad(sketch: Sketch) -> Vec<&'static str> {
        let catalog = sketch.catalog();
        let window = Window::of(&catalog, None);
        let findings = findings(&catalog, &[], UnixMillis(u64::MAX / 2), &window);
        let bad = findings
            .iter()
            .filter(|finding| finding.level == Level::Bad);
        bad.map(|finding| finding.id).collect()
    }

    fn whole() -> Sketch {
        Sketch::default().timeline(1, 1, None, 0).snapshot(0)
    }

    #[test]
    fn what_is_whole_has_no_finding() {
        assert!(bad(whole().segment(1, 10).segment(11, 20)).is_empty());
        assert!(
            bad(whole()
                .segment(1, 10)
                .timeline(2, 2, Some((1, 10)), 10)
                .segment(11, 20))
            .is_empty()
        );
        assert!(bad(Sketch::default()).is_empty());
    }

    #[test]
    fn a_segment_that_is_missing_is_a_gap() {
        assert_eq!(bad(whole().segment(1, 10).segment(21, 30)), ["gap"]);
        assert_eq!(
            bad(whole().segment(1, 10).segment(21, 30).snapshot(25)),
            ["gap"]
        );
    }

    #[test]
    fn an_end_that_is_missing_is_found_though_what_went_on_from_it_has_a_snapshot_of_its_own() {
        let went_on = |sketch: Sketch| {
            let child = sketch.timeline(2, 2, Some((1, 10)), 10);
            child.segment(11, 20).snapshot(15)
        };
        assert!(bad(went_on(whole().segment(1, 10))).is_empty());
        assert_eq!(bad(went_on(whole().segment(1, 5))), ["gap"]);
        assert_eq!(bad(went_on(whole().segment(1, 3).segment(6, 10))), ["gap"]);
        assert!(
            bad(went_on(whole().segment(1, 5)).suspect("it bears no witness")).is_empty(),
            "nobody knows whether that was ever here"
        );
    }

    #[test]
    fn what_is_behind_a_gap_gets_older_though_nothing_comes() {
        let catalog = whole().segment(1, 10).segment(21, 30).catalog();
        let segments = catalog.timelines().flat_map(|it| &it.segments);
        let listed: Vec<Listed> = segments
            .map(|segment| Listed {
                name: segment.name.clone(),
                bytes: segment.bytes,
                modified: UnixMillis(1_000_000),
            })
            .collect();
        let level = |now| {
            let window = Window::of(&catalog, None);
            let found = findings(&catalog, &listed, UnixMillis(now), &window);
            let gap = found.iter().find(|finding| finding.id == "gap");
            gap.map(|finding| finding.level)
        };
        assert_eq!(level(1_000_000), Some(Level::Warn));
        assert_eq!(level(0), Some(Level::Warn), "our clock is behind");
        assert_eq!(level(1_000_000 + UNDER_WAY_MILLIS), Some(Level::Bad));
    }

    #[test]
    fn a_fork_whose_parent_does_not_reach_it_is_unreachable() {
        let short = whole().segment(1, 5);
        assert_eq!(
            bad(short.timeline(2, 2, Some((1, 10)), 10).segment(11, 20)),
            ["parent"]
        );
        let without = Sketch::default()
            .timeline(2, 2, Some((1, 10)), 10)
            .segment(11, 20);
        assert_eq!(bad(without), ["parent", "parent", "restorable"]);
    }

    #[test]
    fn an_unfinished_snapshot_is_as_young_as_its_newest_part() {
        let catalog = whole().segment(1, 10).catalog();
        let timeline = catalog.timelines().next().unwrap();
        let entry = |part: u32, modified: u64| Listed {
            name: Object::SnapshotPart {
                seq: timeline.seq(),
                id: timeline.id(),
                offset: Offset::new(5),
                at: UnixMillis(5),
                derived: false,
                part,
                last: false,
            }
            .name(),
            bytes: 1,
            modified: UnixMillis(modified),
        };
        let level = |listed: &[Listed]| {
            let window = Window::of(&catalog, None);
            let mut found = Vec::new();
            let now = UnixMillis(10 * UNDER_WAY_MILLIS);
            parts(&catalog, listed, now, &window, &mut found);
            found.first().map(|finding| finding.level)
        };
        let old = entry(1, 0);
        let young = entry(2, 10 * UNDER_WAY_MILLIS);
        assert_eq!(level(&[old.clone(), young]), Some(Level::Warn));
        assert_eq!(level(&[old.clone(), entry(2, 1)]), Some(Level::Bad));
        let later = whole().segment(1, 10).snapshot(8).segment(11, 20).catalog();
        let window = Window::of(&later, Some(UnixMillis(9)));
        let mut found = Vec::new();
        parts(
            &later,
            &[old],
            UnixMillis(UNDER_WAY_MILLIS),
            &window,
            &mut found,
        );
        assert_eq!(found.len(), 0, "not needed since then");
    }

    #[test]
    fn a_lost_snapshot_leaves_nothing_to_restore() {
        let lost = Sketch::default().timeline(1, 1, None, 0).segment(1, 10);
        assert_eq!(bad(lost), ["restorable"]);
    }
}
