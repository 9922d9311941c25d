//! Bytes of the replication stream that are stored more than once must be the same. The names tell beforehand where
//! segments overlap: each is read alone, in any order, and leaves a checksum of every stretch that another one holds too.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use crc_fast::{CrcAlgorithm, Digest};

use super::read::Job;
use crate::archive::block::{Block, Content};
use crate::archive::layout::ObjectName;
use crate::archive::timeline::SegmentEntry;
use crate::position::Offset;

/// A stretch of one timeline that lies in more than one segment: its first byte, and its last.
pub(super) type Stretch = (Offset, Offset);

/// What was seen of the stretches of one timeline.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<HashMap<Stretch, (u64, ObjectName)>>);

impl Seen {
    /// Notes a checksum; the name of the segment that gave another one, where there is such.
    fn note(&self, stretch: Stretch, checksum: u64, name: &ObjectName) -> Option<ObjectName> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, by) = seen
            .entry(stretch)
            .or_insert_with(|| (checksum, name.clone()));
        (*first != checksum).then(|| by.clone())
    }
}

/// Jobs for the segments of one timeline, each with the stretches that it shares.
pub(super) fn split(segments: Vec<SegmentEntry>) -> Vec<Job> {
    let seen = Arc::new(Seen::default());
    let shared = shared(&segments);
    segments
        .into_iter()
        .map(|segment| {
            let span = segment.span;
            let inside = shared.range((span.first, Offset::ZERO)..);
            let inside = inside.take_while(|(_, last)| *last <= span.last);
            let stretches = inside.copied().collect();
            let stretches = Stretches::new(stretches, Arc::clone(&seen));
            Job::Segment(segment, Box::new(stretches))
        })
        .collect()
}

/// Stretches between two places where a segment begins or ends, that lie in two segments or more.
fn shared(segments: &[SegmentEntry]) -> BTreeSet<Stretch> {
    // How many segments more there are from this byte on.
    let mut changes: BTreeMap<Offset, i64> = BTreeMap::new();
    for segment in segments {
        *changes.entry(segment.span.first).or_default() += 1;
        *changes.entry(segment.span.last.next()).or_default() -= 1;
    }
    // Places at which one begins and another ends are cuts all the same.
    let mut depth = 0;
    let mut stretches = BTreeSet::new();
    let mut begin = Offset::ZERO;
    for (place, change) in changes {
        if depth > 1 {
            stretches.insert((begin, place.previous()));
        }
        depth += change;
        begin = place;
    }
    stretches
}

/// The shared stretches of one segment while it passes.
#[derive(Debug)]
pub(super) struct Stretches {
    left: std::collections::VecDeque<Stretch>,
    digest: Option<Digest>,
    seen: Arc<Seen>,
}

impl Stretches {
    fn new(left: std::collections::VecDeque<Stretch>, seen: Arc<Seen>) -> Self {
        Self {
            left,
            digest: None,
            seen,
        }
    }

    /// Takes the segment's next block. Gives the stretches in which another segment has other bytes.
    pub(super) fn push(&mut self, block: &Block, name: &ObjectName) -> Vec<(Stretch, ObjectName)> {
        let Content::Commands { first, last } = block.header.content else {
            return Vec::new();
        };
        let mut differing = Vec::new();
        while let Some(&(from, to)) = self.left.front() {
            if from > last {
                break;
            }
            let begin = usize::try_from(from.max(first).bytes_since(first)).unwrap_or(usize::MAX);
            let end = usize::try_from(to.min(last).next().bytes_since(first)).unwrap_or(usize::MAX);
            let bytes = block.payload.get(begin..end).unwrap_or_default();
            let digest = self
                .digest
                .get_or_insert_with(|| Digest::new(CrcAlgorithm::Crc64Nvme));
            digest.update(bytes);
            if to > last {
                break;
            }
            if let Some(digest) = self.digest.take()
                && let Some(other) = self.seen.note((from, to), digest.finalize(), name)
            {
                differing.push(((from, to), other));
            }
            self.left.pop_front();
        }
        differing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::timeline::sketch::Sketch;

    fn stretches(spans: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let mut sketch = Sketch::default().timeline(1, 1, None, 0);
        for (first, last) in spans {
            sketch = sketch.segment(*first, *last);
        }
        let catalog = sketch.catalog();
        let timeline = catalog.timelines().next().unwrap();
        let shared = shared(&timeline.segments);
        let numbers = shared.iter().map(|(a, b)| (a.as_u64(), b.as_u64()));
        numbers.collect()
    }

    #[test]
    fn only_what_lies_in_two_is_shared() {
        assert_eq!(stretches(&[(1, 10), (11, 20)]), []);
        assert_eq!(stretches(&[(1, 10), (8, 20)]), [(8, 10)]);
        assert_eq!(
            stretches(&[(1, 10), (11, 20), (1, 20)]),
            [(1, 10), (11, 20)],
            "a merged one and what it was made of"
        );
        assert_eq!(
            stretches(&[(1, 30), (5, 10), (8, 20)]),
            [(5, 7), (8, 10), (11, 20)]
        );
    }
}
