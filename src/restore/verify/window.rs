//! Which objects a restore of any moment since a time needs.

use std::collections::BTreeMap;

use crate::archive::timeline::Catalog;
use crate::position::{Offset, Position, TimelineSeq, UnixMillis};

/// What is looked at of each timeline: what lies at or behind an offset. Nothing of one that is not in it.
#[derive(Debug)]
pub(super) struct Window(BTreeMap<TimelineSeq, Offset>);

impl Window {
    pub(super) fn of(catalog: &Catalog, since: Option<UnixMillis>) -> Self {
        let Some(since) = since else {
            let all = catalog.timelines();
            return Self(all.map(|timeline| (timeline.seq(), Offset::ZERO)).collect());
        };
        let mut needed = BTreeMap::new();
        let head = catalog.head().map(|head| head.timeline);
        for timeline in catalog.timelines() {
            let seq = timeline.seq();
            if timeline.last_at() < since && Some(seq) != head {
                continue;
            }
            let end = timeline.runs().last().map(|run| run.last);
            let offset = end.max(catalog.end(seq)).unwrap_or(timeline.document.start);
            let tip = Position {
                timeline: seq,
                offset,
            };
            mark(catalog, tip, since, &mut needed);
        }
        Self(needed)
    }

    /// Whether anything of it is looked at.
    pub(super) fn holds(&self, seq: TimelineSeq) -> bool {
        self.0.contains_key(&seq)
    }

    pub(super) fn needs_snapshot(&self, seq: TimelineSeq, offset: Offset) -> bool {
        self.0.get(&seq).is_some_and(|from| offset >= *from)
    }

    pub(super) fn needs_segment(&self, seq: TimelineSeq, last: Offset) -> bool {
        self.0.get(&seq).is_some_and(|from| last > *from)
    }

    /// Whether a hole that ends at this offset is part of it.
    pub(super) fn needs_hole(&self, seq: TimelineSeq, resumes_at: Offset) -> bool {
        self.0.get(&seq).is_some_and(|from| resumes_at > *from)
    }
}

/// Marks the way from `tip` back to the newest snapshot that was there at `since`.
fn mark(
    catalog: &Catalog,
    tip: Position,
    since: UnixMillis,
    needed: &mut BTreeMap<TimelineSeq, Offset>,
) {
    for at in catalog.lineage(tip) {
        let Some(timeline) = catalog.timeline(at.timeline) else {
            return;
        };
        let mut snapshots = timeline.snapshots.iter().rev();
        let base = snapshots.find(|snapshot| snapshot.at <= since && snapshot.offset <= at.offset);
        let from = base.map_or(Offset::ZERO, |snapshot| snapshot.offset);
        let entry = needed.entry(at.timeline).or_insert(from);
        *entry = from.min(*entry);
        if base.is_some() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::timeline::sketch::Sketch;

    /// Snapshots are taken at a time equal to their offset.
    fn window(since: Option<u64>) -> Vec<(u32, u64)> {
        let catalog = Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(0)
            .segment(1, 100)
            .snapshot(50)
            .timeline(2, 2, Some((1, 100)), 100)
            .segment(101, 200)
            .snapshot(150)
            .catalog();
        let window = Window::of(&catalog, since.map(UnixMillis));
        let entries = window.0.iter();
        entries
            .map(|(seq, from)| (seq.as_u32(), from.as_u64()))
            .collect()
    }

    #[test]
    fn a_window_begins_with_the_snapshot_before_it() {
        assert_eq!(window(None), [(1, 0), (2, 0)]);
        assert_eq!(window(Some(10)), [(1, 0), (2, 0)]);
        assert_eq!(window(Some(60)), [(1, 50), (2, 0)]);
        assert_eq!(window(Some(140)), [(1, 50), (2, 0)], "through the parent");
        assert_eq!(window(Some(150)), [(2, 150)]);
        assert_eq!(
            window(Some(9999)),
            [(2, 150)],
            "what a restore of latest needs"
        );
    }
}
