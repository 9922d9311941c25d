//! Which segments become one, and which ones that one makes superfluous.

use std::collections::BTreeSet;
use std::ops::Range;

use super::{Policy, Stock};
use crate::archive::layout::{Object, ObjectName, Span};
use crate::archive::plan::chain;
use crate::archive::timeline::{SegmentEntry, Timeline};
use crate::position::{ReplicationId, TimelineSeq, UnixMillis};

/// Segments that are made one at once: it bounds what one merge asks of the store.
pub const MERGE_INPUTS_MAX: usize = 512;
/// A segment whose times lie further apart had a clock that jumped, milliseconds: a later replay of relative TTLs tells
/// that from where segments begin, so it stays as it is.
const TIMES_APART_MILLIS_MAX: u64 = 24 * 60 * 60 * 1000;

/// Several segments to be made one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Merge {
    /// The timeline's number.
    pub timeline: TimelineSeq,
    /// Its replication id.
    pub id: ReplicationId,
    /// All of them, by first byte. None covers another.
    pub inputs: Vec<SegmentEntry>,
    /// Those whose bytes are taken, in order; the others must agree with them where they overlap.
    pub chain: Vec<SegmentEntry>,
    /// What the new one covers.
    pub span: Span,
}

impl Merge {
    /// The new segment.
    pub fn object(&self) -> Object {
        Object::Segment {
            seq: self.timeline,
            id: self.id,
            span: self.span,
            merged: true,
        }
    }

    /// Stored bytes that it will have, about.
    pub fn bytes(&self) -> u64 {
        self.chain.iter().map(|segment| segment.bytes).sum()
    }

    fn of(timeline: &Timeline, inputs: &[SegmentEntry]) -> Option<Self> {
        let (first, last) = (inputs.first()?, inputs.last()?);
        let after = first.span.first.previous();
        let chain = chain(inputs, after, last.span.last);
        let (begin, end) = (chain.first()?.span, chain.last()?.span);
        (inputs.len() > 1 && end.last == last.span.last).then(|| Self {
            timeline: timeline.seq(),
            id: timeline.id(),
            inputs: inputs.to_vec(),
            span: Span {
                first: begin.first,
                last: end.last,
                first_at: begin.first_at,
                last_at: end.last_at,
            },
            chain,
        })
    }
}

/// What one segment makes superfluous, as far as the names tell: its bytes have to be looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Covered {
    /// The one that stays.
    pub by: SegmentEntry,
    /// The others: each covers strictly less, or the same under a greater name.
    pub of: Vec<SegmentEntry>,
}

/// Everything that can be made one now: segments that were stored within a minute, then all that were received within
/// an hour, except `barred` ones and across them.
///
/// Which segments go together follows from names and dates alone, which are the same for everybody: two that merge at
/// the same time make the same object.
pub fn merges(stock: &Stock<'_>, policy: &Policy, barred: &BTreeSet<ObjectName>) -> Vec<Merge> {
    let mut merges = Vec::new();
    for timeline in stock.catalog.timelines() {
        let outermost = outermost(timeline).into_iter();
        let segments: Vec<SegmentEntry> = outermost.map(|(it, _)| it.clone()).collect();
        let seen: Vec<Seen> = segments
            .iter()
            .map(|segment| Seen::of(stock, barred, segment))
            .collect();
        let minutes = Grouping {
            now: stock.now,
            policy,
            segments: &segments,
            seen: &seen,
            level: Level::Minute,
        };
        let hours = Grouping {
            level: Level::Hour,
            ..minutes
        };
        let of = |group: &Range<usize>| Merge::of(timeline, &segments[group.clone()]);
        // An hour whose minutes are still to be merged comes next time.
        let mut is_busy = vec![false; segments.len()];
        for group in minutes.groups() {
            if let Some(merge) = of(&group) {
                is_busy[group].fill(true);
                merges.push(merge);
            }
        }
        let by_hour = hours.groups().into_iter();
        let free = by_hour.filter(|group| !is_busy[group.clone()].contains(&true));
        merges.extend(free.filter_map(|group| of(&group)));
    }
    merges
}

/// What lies beside a segment that covers it for longer than the grace period.
pub fn superfluous(
    stock: &Stock<'_>,
    policy: &Policy,
    barred: &BTreeSet<ObjectName>,
) -> Vec<Covered> {
    covered(stock, barred)
        .filter(|(by, _)| stock.is_older(&by.name, policy.grace_millis))
        .map(|(by, of)| Covered {
            by: by.clone(),
            of: of.into_iter().cloned().collect(),
        })
        .collect()
}

/// Whether something is going to be superfluous when the grace period is over.
pub fn is_superfluous_later(
    stock: &Stock<'_>,
    policy: &Policy,
    barred: &BTreeSet<ObjectName>,
) -> bool {
    covered(stock, barred)
        .any(|(by, _)| stock.is_dated(&by.name) && !stock.is_older(&by.name, policy.grace_millis))
}

/// A segment, and those that it covers.
pub type Beside<'a> = (&'a SegmentEntry, Vec<&'a SegmentEntry>);

fn covered<'a>(
    stock: &Stock<'a>,
    barred: &'a BTreeSet<ObjectName>,
) -> impl Iterator<Item = Beside<'a>> {
    let timelines = stock.catalog.timelines();
    timelines
        .flat_map(outermost)
        .map(|(by, mut of)| {
            of.retain(|segment| !barred.contains(&segment.name));
            (by, of)
        })
        .filter(|(by, of)| !of.is_empty() && !barred.contains(&by.name))
}

/// The segments of a timeline that no other covers, each with those that it covers.
///
/// Sorted by first byte, the longest first, the smaller name first, a segment is covered where an earlier one reaches at
/// least as far.
pub fn outermost(timeline: &Timeline) -> Vec<Beside<'_>> {
    let mut outermost: Vec<Beside<'_>> = Vec::new();
    for segment in &timeline.segments {
        match outermost.last_mut() {
            Some((by, of)) if segment.span.last <= by.span.last => of.push(segment),
            _ => outermost.push((segment, Vec::new())),
        }
    }
    outermost
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    /// By when they were stored: one clock, the store's.
    Minute,
    /// By when they were received: what was merged late was stored late.
    Hour,
}

/// What is looked up of a segment once, however often it is asked for.
#[derive(Clone, Copy)]
struct Seen {
    /// By the store's clock; one that nobody has dated counts as new.
    created: UnixMillis,
    is_dated: bool,
    is_merged: bool,
    is_barred: bool,
}

impl Seen {
    fn of(stock: &Stock<'_>, barred: &BTreeSet<ObjectName>, segment: &SegmentEntry) -> Self {
        let created = stock.dates.get(&segment.name).copied();
        Self {
            created: created.unwrap_or(stock.now),
            is_dated: created.is_some(),
            is_merged: Object::is_merged_segment(&segment.name),
            is_barred: barred.contains(&segment.name),
        }
    }
}

#[derive(Clone, Copy)]
struct Grouping<'a> {
    now: UnixMillis,
    policy: &'a Policy,
    segments: &'a [SegmentEntry],
    /// Of each of them.
    seen: &'a [Seen],
    level: Level,
}

impl Grouping<'_> {
    /// Stretches of segments that become one, by their places.
    fn groups(&self) -> Vec<Range<usize>> {
        let mut groups = Vec::new();
        let mut first = 0;
        while first < self.segments.len() {
            let length = if self.may_be_merged(first) {
                self.length(first)
            } else {
                1
            };
            let group = first..first + length;
            first = group.end;
            if self.is_complete(group.clone()) {
                groups.push(group);
            }
        }
        groups
    }

    /// How many belong together, from this one on.
    fn length(&self, first: usize) -> usize {
        let (mut bytes, mut length) = (0_u64, 0);
        let mut reached = self.segments[first].span.first.previous();
        let places = first..self.segments.len();
        for place in places.take(MERGE_INPUTS_MAX) {
            let segment = &self.segments[place];
            bytes = bytes.saturating_add(segment.bytes);
            let belongs = segment.span.first <= reached.next()
                && bytes <= self.policy.merged_bytes_max
                && self.may_be_merged(place)
                && self.is_near(first, place);
            if !belongs {
                break;
            }
            reached = segment.span.last;
            length += 1;
        }
        length.max(1)
    }

    fn may_be_merged(&self, place: usize) -> bool {
        let (segment, seen) = (&self.segments[place], self.seen[place]);
        let apart = segment.span.last_at.0.abs_diff(segment.span.first_at.0);
        let is_small = match self.level {
            Level::Minute => !seen.is_merged,
            Level::Hour => {
                apart < self.policy.hour_millis / 2
                    && segment.bytes < self.policy.merged_bytes_max / 2
            }
        };
        // One without a date never gets older, and its neighbours would wait for it.
        is_small && apart <= TIMES_APART_MILLIS_MAX && seen.is_dated && !seen.is_barred
    }

    fn is_near(&self, first: usize, place: usize) -> bool {
        let begin = |place: usize| self.segments[place].span.first_at.0;
        self.time_of(place).0 < self.time_of(first).0.saturating_add(self.millis())
            && begin(place).abs_diff(begin(first)) <= TIMES_APART_MILLIS_MAX
    }

    fn time_of(&self, place: usize) -> UnixMillis {
        match self.level {
            Level::Minute => self.seen[place].created,
            Level::Hour => self.segments[place].span.first_at,
        }
    }

    const fn millis(&self) -> u64 {
        match self.level {
            Level::Minute => self.policy.minute_millis,
            Level::Hour => self.policy.hour_millis,
        }
    }

    /// Whether nothing more can belong to a group: something that does not follows it, or its time has passed. The
    /// store's time: the streamers' clocks say what belongs together, never that it is over.
    fn is_complete(&self, group: Range<usize>) -> bool {
        let (is_followed, length) = (group.end < self.segments.len(), group.len());
        let all_older = |millis: u64| {
            let mut seen = self.seen[group.clone()].iter();
            seen.all(|it| it.created.0.saturating_add(millis) <= self.now.0)
        };
        let minute = self.policy.minute_millis;
        length > 1
            && ((is_followed && all_older(minute))
                || all_older(self.millis().saturating_add(minute)))
    }
}
