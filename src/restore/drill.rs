//! The drill: proves restores by restoring into a scratch server. The oracle is a later snapshot, which the master made
//! itself: an earlier one and the replication stream up to it must give the same data. Then what `latest` means is
//! restored as well, and every command of it must be taken. Where every later snapshot was derived, made by replaying
//! the archive, the latest of those is compared: it only shows that a replay gives the same twice.
//!
//! The scratch server stays a replica all the while, so nothing expires in it; but what has expired can no longer be
//! seen there. Both sides are read one after the other, and whatever may have lapsed in between is passed over.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::fill::{FillError, fill};
use crate::archive::layout::ArchiveId;
use crate::archive::plan::{Plan, PlanError, Rewriting, Target, plan};
use crate::archive::timeline::{Catalog, SnapshotEntry};
use crate::clock::Clock;
use crate::position::{Position, UnixMillis};
use crate::server::digest::{Difference, Differences, Digest, Scope, digest};
use crate::server::scratch::{Scratch, ScratchError};
use crate::store::Store;

/// How far times of expiry may lie apart where they are spelled relative to the moment of the write: the master's clock
/// and ours differ, and what is received late counts as written late. Milliseconds.
const RELATIVE_TOLERANCE_MILLIS: u64 = 60_000;
/// The same where the scratch server does not name them (before 7.0).
const COMPUTED_TOLERANCE_MILLIS: u64 = 2_000;

/// Why a drill could not be held. That a restore is wrong is no error, but what it finds.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// Nothing can be restored.
    #[error("{0}")]
    Plan(#[from] PlanError),
    /// The scratch server.
    #[error("{0}")]
    Fill(#[from] FillError),
    /// The scratch server.
    #[error("{0}")]
    Scratch(#[from] ScratchError),
    /// The scratch server cannot be read.
    #[error("read the scratch server: {0}")]
    Read(#[from] io::Error),
}

/// Snapshots that are compared: the later one's payload, and the earlier one with what came after it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Oracle {
    /// The earlier snapshot and the replication stream up to the later one.
    pub replayed: Plan,
    /// The later snapshot.
    pub snapshot: Plan,
}

impl Oracle {
    /// The latest snapshot on the head's way that an earlier one leads to: of those that a server made, or, where there
    /// is none, of the derived ones.
    pub fn of(catalog: &Catalog) -> Option<Self> {
        let made = Self::latest(catalog, |snapshot| !snapshot.derived);
        made.or_else(|| Self::latest(catalog, |_| true))
    }

    /// Whether the later snapshot was made by replaying the archive, so that equality proves less.
    pub const fn is_derived(&self) -> bool {
        self.snapshot.snapshot.derived
    }

    fn latest(catalog: &Catalog, is_meant: impl Fn(&SnapshotEntry) -> bool) -> Option<Self> {
        let head = catalog.head()?;
        catalog.lineage(head).into_iter().find_map(|at| {
            let timeline = catalog.timeline(at.timeline)?;
            let snapshots = timeline.snapshots.iter().rev();
            snapshots
                .filter(|snapshot| snapshot.offset <= at.offset && is_meant(snapshot))
                .find_map(|snapshot| Self::before(catalog, at.timeline, snapshot))
        })
    }

    fn before(
        catalog: &Catalog,
        timeline: crate::position::TimelineSeq,
        snapshot: &SnapshotEntry,
    ) -> Option<Self> {
        let target = Target::Offset(Position {
            timeline,
            offset: snapshot.offset,
        });
        let mut only = plan(catalog, target).ok()?;
        // Of several that were taken there, any is an oracle for what leads there from an earlier one.
        let mut without = catalog.clone();
        let here = catalog.timeline(timeline)?.snapshots.iter();
        for other in here.filter(|other| other.offset == snapshot.offset) {
            without = without.without_snapshot(&other.name);
        }
        only.snapshot = snapshot.clone();
        only.legs.clear();
        Some(Self {
            replayed: plan(&without, target).ok()?,
            snapshot: only,
        })
    }

    /// How exactly both can be compared.
    fn scope(&self) -> Scope {
        let mut sources = self.replayed.legs.iter().map(|leg| &leg.source);
        Scope {
            entries_read: sources.all(|source| {
                let since = if source.server == "valkey" {
                    (8, 0)
                } else {
                    (7, 4)
                };
                !source.replica && source.version_numbers().is_some_and(|it| it >= since)
            }),
        }
    }

    fn tolerance(&self, sides: [&Digest; 2]) -> u64 {
        let mut sources = self.replayed.legs.iter().map(|leg| &leg.source);
        if sources.any(|source| Rewriting::of(source).relative_ttl) {
            RELATIVE_TOLERANCE_MILLIS
        } else if sides.iter().any(|digest| !digest.exact_expiries) {
            COMPUTED_TOLERANCE_MILLIS
        } else {
            0
        }
    }
}

/// What came of a comparison.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compared {
    /// The earlier snapshot.
    pub from: Position,
    /// The later one.
    pub to: Position,
    /// When the later one was taken.
    pub at: UnixMillis,
    /// The later one was made by replaying the archive, not by a server that was followed.
    pub derived: bool,
    /// Bytes of replication stream in between.
    pub stream_bytes: u64,
    /// What differs.
    pub differences: Differences,
    /// `DEBUG DIGEST` of both differs although nothing else does: in keys that have expired meanwhile.
    pub debug_differs: bool,
}

impl Compared {
    /// Whether both are the same.
    pub const fn is_same(&self) -> bool {
        self.differences.count == 0 && !self.debug_differs
    }
}

/// What came of a drill.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Drilled {
    /// Where there are two snapshots of one history.
    pub compared: Option<Compared>,
    /// What `latest` means, which was restored.
    pub latest: Position,
    /// When its last byte was received.
    pub until: UnixMillis,
    /// Keys in it.
    pub keys: u64,
    /// Name and version of the scratch server.
    pub server: String,
}

/// What a drill is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Restoring the earlier snapshot and what came after it.
    Replaying,
    /// Restoring the later snapshot.
    Loading,
    /// Reading the scratch server: keys, not bytes.
    Reading,
    /// Restoring what `latest` means.
    RestoringLatest,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replaying => "restoring an earlier snapshot and what came after it",
            Self::Loading => "restoring the later snapshot",
            Self::Reading => "reading the scratch server",
            Self::RestoringLatest => "restoring latest",
        })
    }
}

/// A drill to be held.
#[derive(Debug)]
pub struct Drill<'a> {
    /// Where the archive lies.
    pub store: Arc<dyn Store>,
    /// The archive's id.
    pub archive: ArchiveId,
    /// What it holds.
    pub catalog: &'a Catalog,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl Drill<'_> {
    /// Holds it. `told` hears what is done, and how far: bytes and of how many, or keys.
    ///
    /// # Errors
    /// [`DrillError`].
    pub async fn hold(
        &self,
        scratch: &mut Scratch,
        mut told: impl FnMut(Step, u64, u64) + Send,
    ) -> Result<Drilled, DrillError> {
        let latest = plan(self.catalog, Target::Latest)?;
        let compared = match Oracle::of(self.catalog) {
            Some(oracle) => Some(self.compare(scratch, &oracle, &mut told).await?),
            None => None,
        };
        let mut restoring = |bytes, total| told(Step::RestoringLatest, bytes, total);
        self.fill(scratch, &latest, &mut restoring).await?;
        let info = scratch.control().info().await;
        let info = info.map_err(|error| scratch.explained(error))?;
        Ok(Drilled {
            compared,
            latest: latest.target,
            until: latest.until,
            keys: info.keys(),
            server: format!("{} {}", info.server_name(), info.version()),
        })
    }

    async fn compare(
        &self,
        scratch: &mut Scratch,
        oracle: &Oracle,
        told: &mut (impl FnMut(Step, u64, u64) + Send),
    ) -> Result<Compared, DrillError> {
        let scope = oracle.scope();
        let mut side = async |step, plan| -> Result<Digest, DrillError> {
            let mut filling = |bytes, total| told(step, bytes, total);
            self.fill(scratch, plan, &mut filling).await?;
            let mut keys = 0;
            let read = digest(scratch.address(), scope, |more| {
                keys += more;
                told(Step::Reading, keys, 0);
            });
            Ok(read.await?)
        };
        let replayed = side(Step::Replaying, &oracle.replayed).await?;
        let later = side(Step::Loading, &oracle.snapshot).await?;
        let tolerance = oracle.tolerance([&replayed, &later]);
        let read_at = replayed.read_at.max(later.read_at);
        let differences = replayed
            .records
            .compare(&later.records, read_at, tolerance)?;
        let debug_differs = match (&replayed.debug, &later.debug) {
            (Some(one), Some(other)) => one != other,
            _ => false,
        };
        let snapshot = &oracle.replayed.snapshot;
        Ok(Compared {
            from: Position {
                timeline: oracle.replayed.snapshot_timeline.0,
                offset: snapshot.offset,
            },
            to: oracle.snapshot.target,
            at: oracle.snapshot.snapshot.at,
            derived: oracle.is_derived(),
            stream_bytes: oracle.replayed.stream_bytes(),
            debug_differs: debug_differs && differences.count == 0,
            differences,
        })
    }

    async fn fill(
        &self,
        scratch: &mut Scratch,
        plan: &Plan,
        told: &mut (impl FnMut(u64, u64) + Send),
    ) -> Result<(), FillError> {
        let clock = &self.clock;
        fill(scratch, &self.store, self.archive, plan, None, clock, told).await?;
        Ok(())
    }
}

impl Compared {
    /// What differs, a line each.
    pub fn described(&self) -> Vec<String> {
        let line = |(name, difference): &(String, Difference)| format!("{name} {difference}");
        let mut lines: Vec<String> = self.differences.first.iter().map(line).collect();
        let more = self.differences.count.saturating_sub(lines.len() as u64);
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        if self.debug_differs {
            lines.push("values of keys that have expired meanwhile differ (DEBUG DIGEST)".into());
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::timeline::sketch::Sketch;

    fn oracle(sketch: Sketch) -> Option<(u64, u64)> {
        let oracle = Oracle::of(&sketch.catalog())?;
        assert!(oracle.snapshot.legs.is_empty());
        let from = oracle.replayed.snapshot.offset;
        Some((from.as_u64(), oracle.snapshot.target.offset.as_u64()))
    }

    fn root() -> Sketch {
        Sketch::default().timeline(1, 1, None, 0).snapshot(0)
    }

    #[test]
    fn the_oracle_is_the_latest_snapshot_that_an_earlier_one_leads_to() {
        assert_eq!(oracle(root().segment(1, 100)), None, "one snapshot alone");
        let three = root().segment(1, 100).snapshot(40).snapshot(80);
        assert_eq!(oracle(three), Some((40, 80)));
        let gap = root()
            .segment(1, 50)
            .snapshot(40)
            .snapshot(80)
            .segment(81, 90);
        assert_eq!(oracle(gap), Some((0, 40)), "nothing leads over a gap");
        let child = root()
            .segment(1, 100)
            .timeline(2, 2, Some((1, 100)), 100)
            .segment(101, 150)
            .snapshot(120);
        assert_eq!(oracle(child), Some((0, 120)), "from the parent");
        let forked = root()
            .segment(1, 100)
            .snapshot(90)
            .timeline(2, 2, Some((1, 60)), 60)
            .segment(61, 70);
        assert_eq!(oracle(forked), None, "behind the fork is another history");
        let derived = root().segment(1, 100).snapshot(40).derived(60);
        assert_eq!(oracle(derived), Some((0, 40)), "made by the server itself");
        let made_later = root().segment(1, 100).derived(40).snapshot(60);
        assert_eq!(
            oracle(made_later),
            Some((40, 60)),
            "which the derived one must lead to"
        );
        let only_derived = root().segment(1, 100).derived(40).derived(60);
        assert!(Oracle::of(&only_derived.catalog()).unwrap().is_derived());
    }
}
