//! What lies in an archive, counted. Bytes that a merged segment holds as well count once; the segments that it was made
//! of, which upkeep deletes after a grace period, are counted beside.

use serde_json::{Value, json};

use crate::archive::retention::outermost;
use crate::archive::timeline::{Catalog, SegmentEntry, Timeline};

/// Objects and their bytes as stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Stored {
    snapshots: u64,
    /// How many of them were made from the archive.
    derived: u64,
    snapshot_bytes: u64,
    /// Segments that no other covers.
    segments: u64,
    segment_bytes: u64,
    /// Bytes of replication stream in them.
    stream_bytes: u64,
    /// Segments that another one covers.
    covered: u64,
    covered_bytes: u64,
}

impl Stored {
    /// All timelines together.
    pub(super) fn of(catalog: &Catalog) -> Self {
        let mut stored = Self::default();
        for timeline in catalog.timelines() {
            stored.add(timeline);
        }
        stored
    }

    /// One of them.
    pub(super) fn of_timeline(timeline: &Timeline) -> Self {
        let mut stored = Self::default();
        stored.add(timeline);
        stored
    }

    fn add(&mut self, timeline: &Timeline) {
        let bytes = |entries: &[&SegmentEntry]| entries.iter().map(|it| it.bytes).sum::<u64>();
        self.snapshots += timeline.snapshots.len() as u64;
        self.derived += timeline.snapshots.iter().filter(|it| it.derived).count() as u64;
        let snapshots = timeline.snapshots.iter();
        self.snapshot_bytes += snapshots.map(|entry| entry.bytes).sum::<u64>();
        for (segment, covered) in outermost(timeline) {
            self.segments += 1;
            self.segment_bytes += segment.bytes;
            self.stream_bytes += segment.span.bytes();
            self.covered += covered.len() as u64;
            self.covered_bytes += bytes(&covered);
        }
    }

    /// How many times smaller the replication stream is as stored, in hundredths.
    fn ratio_hundredths(&self) -> Option<u64> {
        (self.stream_bytes * 100).checked_div(self.segment_bytes)
    }

    /// For programs.
    pub(super) fn as_json(&self) -> Value {
        json!({
            "snapshots": self.snapshots,
            "snapshot_bytes": self.snapshot_bytes,
            "segments": self.segments,
            "segment_bytes": self.segment_bytes,
            "stream_bytes": self.stream_bytes,
            "covered_segments": self.covered,
            "covered_bytes": self.covered_bytes,
        })
    }

    /// For people.
    pub(super) fn lines(&self) -> Vec<String> {
        let ratio = self.ratio_hundredths().map_or_else(String::new, |ratio| {
            format!(" ({}.{:02} to 1)", ratio / 100, ratio % 100)
        });
        let mut lines = vec![
            format!(
                "stored  {}, {}",
                counted(self.snapshots, "snapshot"),
                bytesize::ByteSize(self.snapshot_bytes),
            ),
            format!(
                "        {}, {}: {} of replication stream{ratio}",
                counted(self.segments, "segment"),
                bytesize::ByteSize(self.segment_bytes),
                bytesize::ByteSize(self.stream_bytes),
            ),
        ];
        if self.covered > 0 {
            lines.push(format!(
                "        {}, {}, that merged ones hold too: upkeep deletes them soon",
                counted(self.covered, "segment"),
                bytesize::ByteSize(self.covered_bytes),
            ));
        }
        lines
    }

    /// The counts of one timeline, on one line.
    pub(super) fn short(&self) -> String {
        let derived = match self.derived {
            0 => String::new(),
            derived => format!(" ({derived} derived)"),
        };
        format!(
            "{}{derived}, {}, {}",
            counted(self.snapshots, "snapshot"),
            counted(self.segments, "segment"),
            bytesize::ByteSize(self.bytes()),
        )
    }

    /// Segments that no other covers.
    pub(super) const fn segments(&self) -> u64 {
        self.segments
    }

    /// Stored bytes of snapshots and of segments that no other covers.
    pub(super) const fn bytes(&self) -> u64 {
        self.snapshot_bytes + self.segment_bytes
    }
}

/// `1 snapshot`, `2 snapshots`.
pub(super) fn counted(count: u64, what: &str) -> String {
    if count == 1 {
        format!("1 {what}")
    } else {
        format!("{count} {what}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::timeline::sketch::Sketch;

    /// Each object of a sketch has 100 bytes.
    #[test]
    fn what_was_merged_counts_once_while_it_lies_beside() {
        let raw = || {
            Sketch::default()
                .timeline(1, 1, None, 0)
                .snapshot(0)
                .segment(1, 100)
                .segment(101, 200)
                .segment(201, 300)
        };
        let before = Stored::of(&raw().catalog());
        assert_eq!((before.segments, before.stream_bytes), (3, 300));
        assert_eq!((before.bytes(), before.covered), (400, 0));
        assert_eq!(before.lines().len(), 2);

        let catalog = raw().merged(1, 200).catalog();
        let during = Stored::of(&catalog);
        assert_eq!((during.segments, during.stream_bytes), (2, 300));
        assert_eq!((during.bytes(), during.segment_bytes), (300, 200));
        assert_eq!((during.covered, during.covered_bytes), (2, 200));
        assert!(during.lines()[2].contains("2 segments, 200 B"));
        let timeline = catalog.timelines().next().unwrap();
        assert_eq!(Stored::of_timeline(timeline), during);

        // What is deleted in the end changes nothing but what is counted beside.
        let after = Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(0)
            .merged(1, 200)
            .segment(201, 300);
        let after = Stored::of(&after.catalog());
        assert_eq!(after.lines()[..2], during.lines()[..2]);
        assert_eq!(after.lines().len(), 2);
    }
}
