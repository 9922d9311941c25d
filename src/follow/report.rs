//! What the rest of the process may know of following, at any moment and without waiting: values that the way of the
//! data leaves behind. How they are shown is left to others.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::budget::Budget;
use super::snapshots::Taken;
use super::spool::Spool;
use super::uploader::Progress;
use crate::clock::Clock;
use crate::position::{Offset, ReplicationId, Ticks, TimelineSeq, UnixMillis};

/// Sealed pieces that are remembered until they are durable. Beyond that the last one stands for those behind it, with
/// its own, earlier time: an age is never told too small.
const WAITING_MAX: usize = 1024;
/// A link that lives shows it at least this often, milliseconds.
pub(super) const BEAT_MILLIS: u64 = 60_000;

/// What following leaves behind for whoever looks.
#[derive(Debug)]
pub struct Report {
    clock: Arc<dyn Clock>,
    budget: Arc<Budget>,
    spool: Option<Arc<Spool>>,
    link_up: AtomicBool,
    /// [`Ticks`] of the last turn of the link's loop.
    beat: AtomicU64,
    received: AtomicU64,
    /// [`Ticks`] of the oldest write that is in no piece yet, plus one; 0 where there is none.
    gathering: AtomicU64,
    /// [`Ticks`] of when the next snapshot is due, plus one; 0 where none is.
    snapshot_due: AtomicU64,
    counts: Counts,
    lane: Mutex<Lane>,
}

/// What happened since the start of the process.
#[derive(Debug, Default)]
struct Counts {
    links: AtomicU64,
    full_syncs: AtomicU64,
    partial_syncs: AtomicU64,
    closed_full: AtomicU64,
    gaps: AtomicU64,
    snapshots_done: AtomicU64,
    snapshots_failed: AtomicU64,
    pieces: AtomicU64,
}

/// The timeline that is written to, and what is on its way.
#[derive(Debug, Default)]
struct Lane {
    /// The last timeline's is kept when it is given up: what was durable stays durable.
    progress: Option<watch::Receiver<Progress>>,
    began: Offset,
    live: bool,
    timeline: Option<(TimelineSeq, ReplicationId)>,
    suspect: Option<TimelineSeq>,
    /// Sealed pieces with writes in them: their last offset, and when their oldest write came.
    waiting: VecDeque<(Offset, Ticks)>,
    snapshot: Option<Taken>,
    found: Option<UnixMillis>,
}

impl Lane {
    fn durable(&self) -> Option<Offset> {
        let progress = self.progress.as_ref()?.borrow();
        progress.durable.map(|boundary| boundary.offset)
    }

    fn forget_durable(&mut self) {
        let durable = self.durable();
        while self
            .waiting
            .front()
            .is_some_and(|(last, _)| durable.is_some_and(|durable| *last <= durable))
        {
            self.waiting.pop_front();
        }
    }
}

/// Everything at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// A link is open and the replication stream comes over it.
    pub link_up: bool,
    /// The server holds the history that is followed: since PSYNC said so, until something else is decided.
    pub live: bool,
    /// The timeline that is written to, or was last.
    pub timeline: Option<(TimelineSeq, ReplicationId)>,
    /// The timeline that is followed, where it is suspect.
    pub suspect: Option<TimelineSeq>,
    /// Milliseconds since a link's loop last turned. `None` before the first link.
    pub still_millis: Option<u64>,
    /// The last byte received. `None` before the first link.
    pub received: Option<Offset>,
    /// The last command boundary up to which the store alone can rebuild everything.
    pub durable: Option<Offset>,
    /// Bytes received and not durable; 0 where nothing but PINGs is missing.
    pub lag_bytes: u64,
    /// The age of the oldest write that is not durable, milliseconds; of the timeline, before its snapshot is complete.
    pub lag_millis: u64,
    /// Links that carried a replication stream.
    pub links: u64,
    /// Answers to PSYNC: full resyncs.
    pub full_syncs: u64,
    /// Answers to PSYNC: continued.
    pub partial_syncs: u64,
    /// Links closed because the buffers were full.
    pub closed_full: u64,
    /// Gaps that came about.
    pub gaps: u64,
    /// Snapshots completed.
    pub snapshots_done: u64,
    /// Snapshots that failed.
    pub snapshots_failed: u64,
    /// The last snapshot.
    pub snapshot: Option<Taken>,
    /// When another process took one that was found in the archive.
    pub snapshot_found: Option<UnixMillis>,
    /// In how many milliseconds the next one is due if nothing more comes. `None` where none is.
    pub snapshot_due_millis: Option<u64>,
    /// Bytes in memory on their way.
    pub buffered_bytes: u64,
    /// How many may be.
    pub buffer_bytes_max: u64,
    /// Bytes of scratch files, and how many may be. `None` without a spool.
    pub spooled: Option<(u64, u64)>,
    /// Pieces with writes in them that were sent on their way.
    pub pieces: u64,
    /// Pieces on their way.
    pub uploads_in_flight: usize,
    /// The store refuses pieces at the moment, in its words.
    pub failing: Option<String>,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Report {
    /// Nothing has happened yet.
    pub(super) fn new(
        clock: Arc<dyn Clock>,
        budget: Arc<Budget>,
        spool: Option<Arc<Spool>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            clock,
            budget,
            spool,
            link_up: AtomicBool::new(false),
            beat: AtomicU64::new(0),
            received: AtomicU64::new(0),
            gathering: AtomicU64::new(0),
            snapshot_due: AtomicU64::new(0),
            counts: Counts::default(),
            lane: Mutex::default(),
        })
    }

    fn lane(&self) -> MutexGuard<'_, Lane> {
        self.lane.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// PSYNC was answered.
    pub(super) fn synced(&self, full: bool) {
        count(if full {
            &self.counts.full_syncs
        } else {
            &self.counts.partial_syncs
        });
    }

    /// Another timeline is written to from `received` on. `waits_for_snapshot`: nothing behind it is durable before one
    /// is complete.
    pub(super) fn lane_opened(
        &self,
        progress: watch::Receiver<Progress>,
        received: Offset,
        waits_for_snapshot: bool,
        timeline: (TimelineSeq, ReplicationId),
        is_suspect: bool,
    ) {
        let waiting = waits_for_snapshot.then(|| (received, self.clock.ticks()));
        let mut lane = self.lane();
        *lane = Lane {
            progress: Some(progress),
            began: received,
            live: true,
            timeline: Some(timeline),
            suspect: is_suspect.then_some(timeline.0),
            waiting: waiting.into_iter().collect(),
            snapshot: lane.snapshot,
            found: lane.found,
        };
        self.received.store(received.as_u64(), Ordering::Relaxed);
        self.gathering.store(0, Ordering::Relaxed);
    }

    /// Nothing is followed now; what was received is durable.
    pub(super) fn lane_closed(&self) {
        let mut lane = self.lane();
        lane.live = false;
        lane.suspect = None;
    }

    /// The suspect timeline was accepted.
    pub(super) fn accepted(&self) {
        self.lane().suspect = None;
    }

    /// A gap came about.
    pub(super) fn gap(&self) {
        count(&self.counts.gaps);
    }

    /// The replication stream comes now.
    pub(super) fn link_opened(&self) {
        count(&self.counts.links);
        self.beat.store(self.clock.ticks().0, Ordering::Relaxed);
        self.link_up.store(true, Ordering::Release);
    }

    /// It comes no more.
    pub(super) fn link_closed(&self, full: bool) {
        self.link_up.store(false, Ordering::Release);
        if full {
            count(&self.counts.closed_full);
        }
    }

    /// A turn of the link's loop: what was received, and since when the oldest write waits to be sealed.
    pub(super) fn turned(&self, now: Ticks, received: Offset, oldest: Option<Ticks>) {
        self.beat.store(now.0, Ordering::Relaxed);
        self.received.store(received.as_u64(), Ordering::Relaxed);
        let oldest = oldest.map_or(0, |oldest| oldest.0 + 1);
        self.gathering.store(oldest, Ordering::Relaxed);
    }

    /// A piece with writes is on its way.
    pub(super) fn sealed(&self, last: Offset, oldest: Ticks) {
        count(&self.counts.pieces);
        let mut lane = self.lane();
        lane.forget_durable();
        if lane.waiting.len() >= WAITING_MAX
            && let Some((reaches, _)) = lane.waiting.back_mut()
        {
            *reaches = last;
        } else {
            lane.waiting.push_back((last, oldest));
        }
        self.gathering.store(0, Ordering::Relaxed);
    }

    /// A snapshot came to its end.
    pub(super) fn snapshot_ended(&self, taken: Option<Taken>) {
        match taken {
            Some(taken) => {
                count(&self.counts.snapshots_done);
                self.lane().snapshot = Some(taken);
            }
            None => count(&self.counts.snapshots_failed),
        }
    }

    /// Another process took a snapshot.
    pub(super) fn snapshot_found(&self, at: UnixMillis) {
        self.lane().found = Some(at);
    }

    /// When the next one is due.
    pub(super) fn snapshot_due(&self, due: Option<Ticks>) {
        let due = due.map_or(0, |due| due.0.saturating_add(1));
        self.snapshot_due.store(due, Ordering::Relaxed);
    }

    /// Everything, now.
    pub fn seen(&self) -> Seen {
        let now = self.clock.ticks();
        let link_up = self.link_up.load(Ordering::Acquire);
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (received, gathering) = (of(&self.received), of(&self.gathering));
        let mut lane = self.lane();
        lane.forget_durable();
        let gathering = gathering.checked_sub(1).map(Ticks);
        let sealed = lane.waiting.front().map(|(_, oldest)| *oldest);
        let oldest = [sealed, gathering].into_iter().flatten().min();
        let durable = lane.durable();
        let received = lane.progress.is_some().then(|| Offset::new(received));
        let lag_bytes = match (oldest, received) {
            (Some(_), Some(received)) => received
                .as_u64()
                .saturating_sub(durable.unwrap_or(lane.began).as_u64()),
            _ => 0,
        };
        let progress = lane
            .progress
            .as_ref()
            .map(|progress| progress.borrow().clone());
        let progress = progress.unwrap_or_default();
        Seen {
            link_up,
            live: lane.live,
            timeline: lane.timeline,
            suspect: lane.suspect,
            still_millis: (of(&self.counts.links) > 0).then(|| now.since(Ticks(of(&self.beat)))),
            received,
            durable,
            lag_bytes,
            lag_millis: oldest.map_or(0, |oldest| now.since(oldest)),
            links: of(&self.counts.links),
            full_syncs: of(&self.counts.full_syncs),
            partial_syncs: of(&self.counts.partial_syncs),
            closed_full: of(&self.counts.closed_full),
            gaps: of(&self.counts.gaps),
            snapshots_done: of(&self.counts.snapshots_done),
            snapshots_failed: of(&self.counts.snapshots_failed),
            pieces: of(&self.counts.pieces),
            snapshot: lane.snapshot,
            snapshot_found: lane.found,
            snapshot_due_millis: of(&self.snapshot_due)
                .checked_sub(1)
                .map(|due| Ticks(due).since(now)),
            buffered_bytes: self.budget.used(),
            buffer_bytes_max: self.budget.bytes_max(),
            spooled: self
                .spool
                .as_ref()
                .map(|spool| (spool.used(), spool.bytes_max())),
            uploads_in_flight: progress.in_flight,
            failing: progress.failing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::block::Boundary;
    use crate::position::UnixMillis;

    #[derive(Debug, Default)]
    struct ByHand(AtomicU64);

    impl Clock for ByHand {
        fn unix(&self) -> UnixMillis {
            UnixMillis(0)
        }
        fn ticks(&self) -> Ticks {
            Ticks(self.0.load(Ordering::Relaxed))
        }
    }

    struct Scene {
        clock: Arc<ByHand>,
        report: Arc<Report>,
        progress: watch::Sender<Progress>,
    }

    impl Scene {
        fn at(ticks: u64) -> Self {
            let clock = Arc::new(ByHand(ticks.into()));
            Self {
                report: Report::new(Arc::clone(&clock) as Arc<dyn Clock>, Budget::new(100), None),
                progress: watch::Sender::new(Progress::default()),
                clock,
            }
        }

        fn open(&self, received: u64, waits_for_snapshot: bool) {
            let progress = self.progress.subscribe();
            let received = Offset::new(received);
            let timeline = (TimelineSeq::FIRST, ReplicationId::from_raw([1; 20]));
            self.report
                .lane_opened(progress, received, waits_for_snapshot, timeline, false);
        }

        fn time(&self, ticks: u64) {
            self.clock.0.store(ticks, Ordering::Relaxed);
        }

        fn durable(&self, offset: u64) {
            self.progress.send_modify(|progress| {
                progress.durable = Some(Boundary {
                    offset: Offset::new(offset),
                    database: None,
                });
            });
        }

        fn lag(&self) -> (u64, u64) {
            let seen = self.report.seen();
            (seen.lag_bytes, seen.lag_millis)
        }
    }

    #[test]
    fn the_lag_is_that_of_the_oldest_write_that_is_not_durable() {
        let scene = Scene::at(1000);
        assert_eq!(scene.report.seen().received, None);
        scene.durable(100);
        scene.open(100, false);
        assert_eq!(scene.lag(), (0, 0));
        // Nothing but PINGs.
        scene.report.turned(Ticks(1000), Offset::new(114), None);
        scene.time(5000);
        assert_eq!(scene.lag(), (0, 0));
        scene
            .report
            .turned(Ticks(5000), Offset::new(200), Some(Ticks(5000)));
        scene.report.sealed(Offset::new(200), Ticks(5000));
        scene
            .report
            .turned(Ticks(6000), Offset::new(300), Some(Ticks(6000)));
        scene.time(7000);
        assert_eq!(scene.lag(), (200, 2000));
        // A boundary inside the piece is not all of it.
        scene.durable(150);
        assert_eq!(scene.lag(), (150, 2000));
        scene.durable(200);
        assert_eq!(scene.lag(), (100, 1000));
        scene.report.sealed(Offset::new(300), Ticks(6000));
        assert_eq!(scene.lag(), (100, 1000));
        scene.durable(300);
        assert_eq!(scene.lag(), (0, 0));
    }

    #[test]
    fn a_timeline_without_its_snapshot_lags_since_it_began() {
        let scene = Scene::at(1000);
        scene.open(50, true);
        scene.time(4000);
        scene.report.turned(Ticks(4000), Offset::new(80), None);
        assert_eq!(scene.lag(), (30, 3000));
        scene.durable(50);
        assert_eq!(scene.lag(), (0, 0));
    }

    #[test]
    fn what_waits_is_bounded_and_its_age_never_too_small() {
        let scene = Scene::at(0);
        scene.open(0, true);
        let pieces = 3 * WAITING_MAX as u64;
        for piece in 1..=pieces {
            scene.report.sealed(Offset::new(piece * 10), Ticks(piece));
        }
        assert_eq!(scene.report.lane().waiting.len(), WAITING_MAX);
        scene.time(pieces);
        scene.durable(pieces * 10 - 1);
        let bound = WAITING_MAX as u64 - 1;
        assert_eq!(
            scene.lag().1,
            pieces - bound,
            "the last one that was remembered"
        );
        scene.durable(pieces * 10);
        assert_eq!(scene.lag(), (0, 0));
    }

    #[test]
    fn the_next_snapshot_is_so_far_away() {
        let scene = Scene::at(1000);
        assert_eq!(scene.report.seen().snapshot_due_millis, None);
        scene.report.snapshot_due(Some(Ticks(5000)));
        assert_eq!(scene.report.seen().snapshot_due_millis, Some(4000));
        scene.time(6000);
        assert_eq!(scene.report.seen().snapshot_due_millis, Some(0));
        scene.report.snapshot_due(None);
        assert_eq!(scene.report.seen().snapshot_due_millis, None);
    }

    #[test]
    fn a_link_that_turns_is_not_still() {
        let scene = Scene::at(1000);
        assert_eq!(scene.report.seen().still_millis, None);
        scene.report.link_opened();
        scene.time(9000);
        assert_eq!(scene.report.seen().still_millis, Some(8000));
        scene.report.turned(Ticks(9000), Offset::ZERO, None);
        assert_eq!(scene.report.seen().still_millis, Some(0));
        scene.report.link_closed(true);
        let seen = scene.report.seen();
        assert_eq!((seen.link_up, seen.closed_full, seen.links), (false, 1, 1));
    }
}
