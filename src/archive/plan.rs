//! A restore as a value: which snapshot, which segments in which order, cut where. Printed by `--dry-run`,
//! tested without a bucket, carried out by `restore`.

use serde::Serialize;

use crate::archive::document::Source;
use crate::archive::timeline::{Catalog, SegmentEntry, SnapshotEntry, Timeline, sort_segments};
use crate::position::{Offset, Position, ReplicationId, TimelineSeq, UnixMillis};

/// Which moment is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Target {
    /// The head: the end of the newest timeline that is not suspect.
    #[default]
    Latest,
    /// The end of one timeline, suspect or not.
    Timeline(TimelineSeq),
    /// An offset on one timeline, which must be a command boundary: the error of the restore names the last
    /// one before it.
    Offset(Position),
}

/// Why a moment cannot be restored.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlanError {
    /// Nothing in the archive can be restored yet.
    #[error("nothing to restore: the archive holds no complete snapshot")]
    Empty,
    /// Only suspect timelines can be restored.
    #[error(
        "nothing to restore without a choice: every restorable timeline is suspect; look at `perennial \
         status`, then `perennial accept` one or name it with --at timeline:SEQ"
    )]
    OnlySuspects,
    /// There is no timeline of this number.
    #[error("there is no timeline {0} in the archive; `perennial ls` lists them")]
    NoSuchTimeline(TimelineSeq),
    /// The position lies outside what can be rebuilt.
    #[error("{position} cannot be restored: {}", nearest(*before, *after))]
    NotRestorable {
        /// What was asked for.
        position: Position,
        /// The nearest restorable offset before it on that timeline.
        before: Option<Offset>,
        /// The nearest restorable offset after it on that timeline.
        after: Option<Offset>,
    },
}

fn nearest(before: Option<Offset>, after: Option<Offset>) -> String {
    match (before, after) {
        (Some(before), Some(after)) => {
            format!(
                "the archive has a gap there; the nearest restorable offsets are {before} and {after}"
            )
        }
        (Some(before), None) => format!("the timeline is restorable up to offset {before}"),
        (None, Some(after)) => format!("the timeline is restorable from offset {after} on"),
        (None, None) => "nothing on that timeline can be restored".into(),
    }
}

/// What a later replay of a server's replication stream needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rewriting {
    /// TTLs may be spelled relative to the moment of the write (`protocol-facts` 6.1).
    pub relative_ttl: bool,
    /// HPERSIST is passed over once the TTL of the field has run out (`protocol-facts` 6.3).
    pub field_persist: bool,
}

impl Rewriting {
    /// What bytes of this server may need. Of a server that cannot be told nothing is taken for granted: what is
    /// spelled absolute passes unchanged anyway.
    pub fn of(source: &Source) -> Self {
        let redis = source.server != "valkey";
        let version = source.version_numbers();
        Self {
            // A replica passes on what its master spells, which may be an older server.
            relative_ttl: source.replica || (redis && version.is_none_or(|it| it < (7, 0))),
            field_persist: redis && version.is_none_or(|it| it >= (7, 4)),
        }
    }

    /// Whether there is nothing to look for.
    pub const fn is_none(self) -> bool {
        !self.relative_ttl && !self.field_persist
    }
}

/// A contiguous part of the replication stream on one timeline: the bytes in `(after, to]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leg {
    /// The timeline whose objects are read.
    pub timeline: TimelineSeq,
    /// Its replication id.
    pub id: ReplicationId,
    /// The server that sent the bytes.
    pub source: Source,
    /// The offset before the first byte.
    pub after: Offset,
    /// The last byte.
    pub to: Offset,
    /// The segments to read, in order; neighbours may overlap, the reader cuts them.
    pub segments: Vec<SegmentEntry>,
}

impl Leg {
    /// What is left of it behind `reached`, read from what is stored now: upkeep may have put one segment in the place
    /// of several. `None` where something is missing.
    pub fn behind(&self, reached: Offset, mut stored: Vec<SegmentEntry>) -> Option<Self> {
        sort_segments(&mut stored);
        let segments = chain(&stored, reached, self.to);
        let end = segments.last().map_or(reached, |last| last.span.last);
        (end >= self.to).then(|| Self {
            after: reached,
            segments,
            ..self.clone()
        })
    }
}

/// What a restore reads, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The position that will be reached.
    pub target: Position,
    /// The replication id of the target's timeline.
    pub id: ReplicationId,
    /// The timeline that holds the snapshot, and its replication id.
    pub snapshot_timeline: (TimelineSeq, ReplicationId),
    /// The snapshot to begin with.
    pub snapshot: SnapshotEntry,
    /// The replication stream behind it; empty where the snapshot is the target.
    pub legs: Vec<Leg>,
    /// `true` where offsets count through from the snapshot to the target: the seed may then bear the
    /// target's own replication id.
    pub offsets_continuous: bool,
    /// When the last byte was received, as the newest segment's name tells it.
    pub until: UnixMillis,
}

impl Plan {
    /// Whether some of the replication stream may have to be rewritten before it is replayed.
    pub fn may_be_rewritten(&self) -> bool {
        self.legs
            .iter()
            .any(|leg| !Rewriting::of(&leg.source).is_none())
    }

    /// Bytes of replication stream to apply.
    pub fn stream_bytes(&self) -> u64 {
        self.legs
            .iter()
            .map(|leg| leg.to.bytes_since(leg.after))
            .sum()
    }

    /// Stored bytes to read.
    pub fn stored_bytes(&self) -> u64 {
        let segments = self.legs.iter().flat_map(|leg| &leg.segments);
        self.snapshot.bytes + segments.map(|segment| segment.bytes).sum::<u64>()
    }

    /// Objects to read.
    pub fn objects(&self) -> usize {
        self.snapshot.parts.len() + 1 + self.segments()
    }

    /// Segments to read.
    pub fn segments(&self) -> usize {
        self.legs.iter().map(|leg| leg.segments.len()).sum()
    }

    /// What `--dry-run --json` prints.
    pub fn summary(&self) -> PlanSummary {
        PlanSummary {
            timeline: self.target.timeline.as_u32(),
            offset: self.target.offset.as_u64(),
            replication_id: self.id.to_string(),
            until_ms: self.until.0,
            snapshot: self.snapshot.name.to_string(),
            segments: self.segments(),
            timelines: self.legs.iter().map(|leg| leg.timeline.as_u32()).collect(),
            stored_bytes: self.stored_bytes(),
            stream_bytes: self.stream_bytes(),
        }
    }
}

/// A plan for people and scripts.
#[derive(Clone, Debug, Serialize)]
pub struct PlanSummary {
    /// Target timeline.
    pub timeline: u32,
    /// Target offset.
    pub offset: u64,
    /// The target timeline's replication id.
    pub replication_id: String,
    /// Time of the last byte, Unix milliseconds.
    pub until_ms: u64,
    /// Object name of the snapshot, or of its last part.
    pub snapshot: String,
    /// Number of segments to read.
    pub segments: usize,
    /// The timelines walked through behind the snapshot.
    pub timelines: Vec<u32>,
    /// Bytes to read from the store.
    pub stored_bytes: u64,
    /// Bytes of replication stream to apply.
    pub stream_bytes: u64,
}

/// Computes what a restore of `target` reads: the newest complete snapshot at or before it on the way from
/// the root, and the fewest segments that cover the rest.
///
/// # Errors
/// [`PlanError`] where nothing is there, or the position lies in a gap or outside the archive.
pub fn plan(catalog: &Catalog, target: Target) -> Result<Plan, PlanError> {
    let position = resolve(catalog, target)?;
    if !catalog.is_restorable(position) {
        return Err(not_restorable(catalog, position));
    }
    let mut legs = Vec::new();
    let mut offsets_continuous = true;
    for (at, child_start) in with_child_starts(catalog, position) {
        let timeline = catalog
            .timeline(at.timeline)
            .ok_or(PlanError::NoSuchTimeline(at.timeline))?;
        offsets_continuous &= child_start.is_none_or(|start| start == at.offset);
        let base = timeline.snapshots.iter().rev().find(|snapshot| {
            snapshot.offset <= at.offset && covers(timeline, snapshot.offset, at.offset)
        });
        let after = base.map_or(timeline.document.start, |snapshot| snapshot.offset);
        if after < at.offset {
            legs.push(leg(timeline, after, at.offset));
        }
        let Some(snapshot) = base else { continue };
        legs.reverse();
        let until = legs
            .iter()
            .flat_map(|leg| &leg.segments)
            .map(|segment| segment.span.last_at)
            .fold(snapshot.at, UnixMillis::max);
        return Ok(Plan {
            target: position,
            id: catalog
                .timeline(position.timeline)
                .map_or(timeline.id(), Timeline::id),
            snapshot_timeline: (timeline.seq(), timeline.id()),
            snapshot: snapshot.clone(),
            legs,
            offsets_continuous,
            until,
        });
    }
    Err(not_restorable(catalog, position))
}

/// Computes what brings a server from `from` to `target`: the plan of a restore of `target` with its
/// replication stream beginning at `from`, which must lie on the way from the root to the target.
///
/// # Errors
/// [`PlanError`] where the target cannot be restored, or `from` is not on its way.
pub fn continuation(catalog: &Catalog, from: Position, target: Target) -> Result<Plan, PlanError> {
    let mut whole = plan(catalog, target)?;
    let mut legs = Vec::new();
    let mut offsets_continuous = true;
    for (at, child_start) in with_child_starts(catalog, whole.target) {
        let timeline = catalog
            .timeline(at.timeline)
            .ok_or(PlanError::NoSuchTimeline(at.timeline))?;
        offsets_continuous &= child_start.is_none_or(|start| start == at.offset);
        let here = at.timeline == from.timeline && from.offset <= at.offset;
        let after = if here {
            from.offset
        } else {
            timeline.document.start
        };
        if after < at.offset {
            if !covers(timeline, after, at.offset) {
                return Err(not_restorable(
                    catalog,
                    Position {
                        timeline: at.timeline,
                        offset: after.next(),
                    },
                ));
            }
            legs.push(leg(timeline, after, at.offset));
        }
        if here {
            legs.reverse();
            whole.legs = legs;
            whole.offsets_continuous = offsets_continuous;
            return Ok(whole);
        }
    }
    Err(not_restorable(catalog, from))
}

fn resolve(catalog: &Catalog, target: Target) -> Result<Position, PlanError> {
    match target {
        Target::Latest => catalog.head().ok_or(if catalog.has_data() {
            PlanError::OnlySuspects
        } else {
            PlanError::Empty
        }),
        Target::Timeline(seq) => {
            if catalog.timeline(seq).is_none() {
                return Err(PlanError::NoSuchTimeline(seq));
            }
            let offset = catalog.end(seq).ok_or(PlanError::Empty)?;
            Ok(Position {
                timeline: seq,
                offset,
            })
        }
        Target::Offset(position) => {
            if catalog.timeline(position.timeline).is_none() {
                return Err(PlanError::NoSuchTimeline(position.timeline));
            }
            Ok(position)
        }
    }
}

/// The way from the target back to the root, each step with the start of the child it was reached from.
fn with_child_starts(catalog: &Catalog, position: Position) -> Vec<(Position, Option<Offset>)> {
    let mut child_start = None;
    catalog
        .lineage(position)
        .into_iter()
        .map(|at| {
            let step = (at, child_start);
            child_start = catalog
                .timeline(at.timeline)
                .map(|timeline| timeline.document.start);
            step
        })
        .collect()
}

/// Whether `(after, to]` is there without a hole.
pub(super) fn covers(timeline: &Timeline, after: Offset, to: Offset) -> bool {
    after == to
        || timeline
            .runs()
            .iter()
            .any(|run| run.after <= after && to <= run.last)
}

fn leg(timeline: &Timeline, after: Offset, to: Offset) -> Leg {
    Leg {
        timeline: timeline.seq(),
        id: timeline.id(),
        source: timeline.document.source.clone(),
        after,
        to,
        segments: segments_over(timeline, after, to),
    }
}

/// The segments of a timeline that cover `(after, to]`.
pub(super) fn segments_over(timeline: &Timeline, after: Offset, to: Offset) -> Vec<SegmentEntry> {
    chain(&timeline.segments, after, to)
}

/// The fewest segments that cover `(after, to]`: at each step the one that reaches furthest, so merged ones go before
/// what they were made of. Short where there is a hole. `segments` are in the order of [`Timeline::segments`].
pub(super) fn chain(segments: &[SegmentEntry], after: Offset, to: Offset) -> Vec<SegmentEntry> {
    let mut chain: Vec<SegmentEntry> = Vec::new();
    let mut reached = after;
    let mut candidates = segments.iter().peekable();
    while reached < to {
        let mut furthest: Option<&SegmentEntry> = None;
        while let Some(segment) = candidates.next_if(|segment| segment.span.first <= reached.next())
        {
            if furthest.is_none_or(|best| segment.span.last > best.span.last) {
                furthest = Some(segment);
            }
        }
        match furthest {
            Some(segment) if segment.span.last > reached => {
                reached = segment.span.last;
                chain.push(segment.clone());
            }
            // Not reached for a position that `is_restorable`; a short leg is caught by the reader.
            _ => break,
        }
    }
    chain
}

fn not_restorable(catalog: &Catalog, position: Position) -> PlanError {
    let windows = catalog.windows(position.timeline);
    let before = windows
        .iter()
        .rev()
        .find(|run| run.last < position.offset)
        .map(|run| run.last);
    let after = windows
        .iter()
        .find(|run| run.after > position.offset)
        .map(|run| run.after);
    PlanError::NotRestorable {
        position,
        before,
        after,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::timeline::sketch::{Sketch, id};

    fn at(timeline: u32, offset: u64) -> Position {
        Position {
            timeline: TimelineSeq::new(timeline),
            offset: Offset::new(offset),
        }
    }

    /// (timeline, after, to, (first, last) of its segments)
    type Spans = Vec<(u32, u64, u64, Vec<(u64, u64)>)>;

    fn spans(plan: &Plan) -> Spans {
        plan.legs
            .iter()
            .map(|leg| {
                let segments = leg.segments.iter();
                (
                    leg.timeline.as_u32(),
                    leg.after.as_u64(),
                    leg.to.as_u64(),
                    segments
                        .map(|s| (s.span.first.as_u64(), s.span.last.as_u64()))
                        .collect(),
                )
            })
            .collect()
    }

    #[test]
    fn the_newest_snapshot_before_the_target_and_the_fewest_segments() {
        let catalog = Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(0)
            .segment(1, 100)
            .segment(50, 60)
            .segment(90, 200)
            .segment(101, 150)
            .snapshot(120)
            .segment(201, 300)
            .catalog();
        let latest = plan(&catalog, Target::Latest).unwrap();
        assert_eq!(latest.target, at(1, 300));
        assert_eq!(latest.snapshot.offset, Offset::new(120));
        assert_eq!(spans(&latest), [(1, 120, 300, vec![(90, 200), (201, 300)])]);
        let earlier = plan(&catalog, Target::Offset(at(1, 110))).unwrap();
        assert_eq!(earlier.snapshot.offset, Offset::ZERO);
        assert_eq!(spans(&earlier), [(1, 0, 110, vec![(1, 100), (90, 200)])]);
    }

    #[test]
    fn ancestors_count_only_up_to_the_fork() {
        let catalog = Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(0)
            .segment(1, 100)
            .snapshot(90)
            .timeline(2, 2, Some((1, 80)), 80)
            .segment(81, 130)
            .timeline(3, 3, Some((2, 130)), 130)
            .segment(131, 140)
            .catalog();
        let plan = plan(&catalog, Target::Latest).unwrap();
        assert_eq!(plan.id, id(3));
        assert_eq!(
            plan.snapshot.offset,
            Offset::ZERO,
            "the snapshot at 90 lies behind the fork"
        );
        assert_eq!(
            spans(&plan),
            [
                (1, 0, 80, vec![(1, 100)]),
                (2, 80, 130, vec![(81, 130)]),
                (3, 130, 140, vec![(131, 140)])
            ]
        );
        assert!(plan.offsets_continuous);
    }

    #[test]
    fn offsets_of_its_own_are_said() {
        let catalog = Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(0)
            .segment(1, 100)
            .timeline(2, 2, Some((1, 100)), 5000)
            .segment(5001, 5010)
            .catalog();
        let plan = plan(&catalog, Target::Latest).unwrap();
        assert!(!plan.offsets_continuous);
        assert_eq!(
            spans(&plan),
            [
                (1, 0, 100, vec![(1, 100)]),
                (2, 5000, 5010, vec![(5001, 5010)])
            ]
        );
    }

    #[test]
    fn a_gap_names_the_nearest_moments_on_either_side() {
        let catalog = Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(0)
            .segment(1, 100)
            .segment(201, 300)
            .snapshot(250)
            .catalog();
        let error = plan(&catalog, Target::Offset(at(1, 220))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "timeline 1 offset 220 cannot be restored: the archive has a gap there; the nearest restorable \
             offsets are 100 and 250"
        );
        let beyond = plan(&catalog, Target::Offset(at(1, 301))).unwrap_err();
        assert!(
            beyond
                .to_string()
                .ends_with("the timeline is restorable up to offset 300")
        );
    }

    #[test]
    fn an_empty_archive_and_one_of_suspects_are_told_apart() {
        let empty = Sketch::default().catalog();
        assert_eq!(plan(&empty, Target::Latest), Err(PlanError::Empty));
        let suspects = Sketch::default()
            .timeline(1, 1, None, 0)
            .suspect("foreign")
            .snapshot(5)
            .catalog();
        assert_eq!(
            plan(&suspects, Target::Latest),
            Err(PlanError::OnlySuspects)
        );
        assert!(plan(&suspects, Target::Timeline(TimelineSeq::new(1))).is_ok());
    }

    #[test]
    fn a_continuation_begins_where_the_server_stands() {
        let catalog = Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(0)
            .segment(1, 100)
            .timeline(2, 2, Some((1, 80)), 80)
            .segment(81, 130)
            .snapshot(120)
            .catalog();
        let from_parent = continuation(&catalog, at(1, 60), Target::Latest).unwrap();
        assert_eq!(
            spans(&from_parent),
            [(1, 60, 80, vec![(1, 100)]), (2, 80, 130, vec![(81, 130)])],
            "the snapshot at 120 is of no use to it"
        );
        let at_the_head = continuation(&catalog, at(2, 130), Target::Latest).unwrap();
        assert!(at_the_head.legs.is_empty());
        assert!(
            continuation(&catalog, at(1, 90), Target::Latest).is_err(),
            "beyond the fork"
        );
    }

    #[test]
    fn what_may_be_rewritten_follows_from_the_server() {
        let of = |server: &str, version: &str, replica| {
            let rewriting = Rewriting::of(&Source {
                server: server.into(),
                version: version.into(),
                replica,
                ..Source::default()
            });
            (rewriting.relative_ttl, rewriting.field_persist)
        };
        assert_eq!(of("redis", "2.8.24", false), (true, false));
        assert_eq!(of("redis", "6.2.14", false), (true, false));
        assert_eq!(of("redis", "7.0.15", false), (false, false));
        assert_eq!(of("redis", "7.2.6", false), (false, false));
        assert_eq!(of("redis", "7.4.1", false), (false, true));
        assert_eq!(of("redis", "8.0.2", false), (false, true));
        assert_eq!(of("redis", "10.0.0", false), (false, true));
        assert_eq!(of("valkey", "8.1.1", false), (false, false));
        assert_eq!(of("valkey", "9.1.2", false), (false, false));
        assert_eq!(
            of("redis", "7.0.15", true),
            (true, false),
            "of an older master?"
        );
        assert_eq!(of("valkey", "8.1.1", true), (true, false));
        assert_eq!(of("redis", "?", false), (true, true));
        assert_eq!(of("", "", false), (true, true));
    }

    #[test]
    fn each_leg_knows_its_server() {
        let sketch = |version| {
            Sketch::default()
                .timeline(1, 1, None, 0)
                .version(version)
                .snapshot(0)
                .segment(1, 100)
                .timeline(2, 2, Some((1, 100)), 130)
                .mapped()
                .timeline(3, 3, Some((2, 130)), 130)
                .segment(131, 140)
                .catalog()
        };
        let plan = |version| plan(&sketch(version), Target::Latest).unwrap();
        let versions: Vec<String> = plan("6.2.14")
            .legs
            .iter()
            .map(|leg| leg.source.version.clone())
            .collect();
        assert_eq!(versions, ["6.2.14", "7.0.15"]);
        assert!(plan("6.2.14").may_be_rewritten());
        assert!(!plan("7.0.15").may_be_rewritten());
        assert!(!plan("7.0.15").offsets_continuous);
        let from_within = continuation(&sketch("6.2.14"), at(3, 135), Target::Latest).unwrap();
        assert!(from_within.offsets_continuous && !from_within.may_be_rewritten());
        let across = continuation(&sketch("6.2.14"), at(1, 60), Target::Latest).unwrap();
        assert!(!across.offsets_continuous && across.may_be_rewritten());
        let inside = continuation(&sketch("7.0.15"), at(2, 120), Target::Latest);
        assert!(inside.is_err(), "no bytes are stored there");
    }

    #[test]
    fn a_snapshot_alone_is_a_plan() {
        let catalog = Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(5)
            .catalog();
        let plan = plan(&catalog, Target::Latest).unwrap();
        assert!(plan.legs.is_empty());
        assert_eq!((plan.objects(), plan.stream_bytes()), (1, 0));
    }
}
