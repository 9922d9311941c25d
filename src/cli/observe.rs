//! What a running Perennial shows of itself: composes the values that its parts leave behind into metrics, readiness and
//! health. Waits for nothing and holds nothing up.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde_json::json;

use crate::archive::timeline::Catalog;
use crate::clock::Clock;
use crate::follow::{Report, Seen};
use crate::http::{Page, Pages};
use crate::metrics::{Metrics, Values};
use crate::position::{Offset, ReplicationId, TimelineSeq, UnixMillis};
use crate::store::StoreErrorKind;
use crate::store::measured::{Observation, Observer, Operation};
use crate::upkeep;

/// A link whose loop has not turned for so long will not turn again, milliseconds: it does once a minute at the least.
const STILL_MILLIS_MAX: u64 = 300_000;

/// Whether the server may serve, as far as `cli::run` has decided.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Standing {
    /// No, or not yet, and why.
    NotReady(String),
    /// It is followed, or about to be.
    Followed,
}

/// What the last look at the archive found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Archived {
    suspects: u64,
    gaps: u64,
    /// Gaps that had come about in this process by then.
    gaps_before: u64,
    /// The head, and when its last byte was received.
    head: Option<(Offset, UnixMillis)>,
    oldest_snapshot: Option<UnixMillis>,
    newest_snapshot: Option<UnixMillis>,
}

impl Archived {
    fn of(catalog: &Catalog, gaps_before: u64) -> Self {
        let head = catalog.head();
        // Where the head went on later, somebody has dealt with it.
        let pending = |timeline: &crate::archive::timeline::Timeline| {
            timeline.document.parent.is_none()
                && catalog.suspect(timeline.seq()).is_some()
                && head.is_none_or(|head| head.timeline < timeline.seq())
        };
        let history = head.map_or_else(Vec::new, |head| catalog.lineage(head));
        let snapshots = history.iter().flat_map(|step| {
            let timeline = catalog.timeline(step.timeline).into_iter();
            timeline
                .flat_map(|timeline| &timeline.snapshots)
                .filter(|snapshot| snapshot.offset <= step.offset)
                .map(|snapshot| snapshot.at)
        });
        let snapshots: Vec<UnixMillis> = snapshots.collect();
        Self {
            suspects: catalog.timelines().filter(|one| pending(one)).count() as u64,
            gaps: catalog
                .timelines()
                .map(|timeline| catalog.gaps(timeline.seq()).len() as u64)
                .sum(),
            gaps_before,
            head: head.map(|head| (head.offset, catalog.received_at(head.timeline))),
            oldest_snapshot: snapshots.iter().min().copied(),
            newest_snapshot: snapshots.iter().max().copied(),
        }
    }
}

/// A timeline, as far as it belongs to a history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Its number.
    pub timeline: TimelineSeq,
    /// Its replication id.
    pub id: ReplicationId,
    /// The last of its offsets that counts.
    pub upto: Offset,
}

/// The timelines that hold snapshots of the head's history. An ancestor without any gets none any more.
fn snapshots_of_head(catalog: &Catalog) -> Vec<Step> {
    let history = catalog.head().map(|head| catalog.lineage(head));
    let steps = history.unwrap_or_default().into_iter().map(|step| {
        let timeline = catalog.timeline(step.timeline)?;
        (!timeline.snapshots.is_empty()).then(|| Step {
            timeline: step.timeline,
            id: timeline.id(),
            upto: step.offset,
        })
    });
    steps.flatten().collect()
}

/// A running Perennial, for whoever looks.
#[derive(Debug)]
pub struct Observed {
    metrics: Metrics,
    clock: Arc<dyn Clock>,
    report: OnceLock<Arc<Report>>,
    standing: Mutex<Standing>,
    archived: Mutex<Option<Archived>>,
    /// Where the snapshots of the head's history lay at the last look at the archive.
    way: Mutex<Vec<Step>>,
    /// Somebody has read the metrics.
    read: AtomicBool,
    seeds_done: AtomicU64,
    seeds_failed: AtomicU64,
    /// Objects created.
    created: AtomicU64,
    upkeep: OnceLock<Arc<upkeep::Report>>,
    /// The last operation that writes, and the last that reads, failed.
    writing_fails: AtomicBool,
    reading_fails: AtomicBool,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[allow(
    clippy::cast_precision_loss,
    reason = "milliseconds since 1970 stay below 2^53"
)]
fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

impl Observed {
    /// Nothing has been looked at yet.
    ///
    /// # Errors
    /// Where two metrics have the same name.
    pub fn new(clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        Ok(Self {
            metrics: Metrics::new(env!("CARGO_PKG_VERSION"))?,
            clock,
            report: OnceLock::new(),
            standing: Mutex::new(Standing::NotReady("starting".into())),
            archived: Mutex::new(None),
            way: Mutex::default(),
            read: AtomicBool::new(false),
            seeds_done: AtomicU64::new(0),
            seeds_failed: AtomicU64::new(0),
            created: AtomicU64::new(0),
            upkeep: OnceLock::new(),
            writing_fails: AtomicBool::new(false),
            reading_fails: AtomicBool::new(false),
        })
    }

    /// Where following leaves its values.
    pub fn follows(&self, report: Arc<Report>) {
        let _ = self.report.set(report);
    }

    /// Where upkeep leaves its values.
    pub fn keeps(&self, report: Arc<upkeep::Report>) {
        let _ = self.upkeep.set(report);
    }

    /// How many objects this process has created.
    pub fn created(&self) -> u64 {
        self.created.load(Ordering::Relaxed)
    }

    /// The server may not serve, or nobody knows yet.
    pub fn not_ready(&self, why: impl Into<String>) {
        *held(&self.standing) = Standing::NotReady(why.into());
    }

    /// Why it is still not ready, where it is not.
    pub fn because(&self, why: &str) {
        if let Standing::NotReady(before) = &mut *held(&self.standing) {
            why.clone_into(before);
        }
    }

    /// It was decided to follow the server: ready from the moment that it has agreed, and it stays so over broken links
    /// until something else is said.
    pub fn followed(&self) {
        *held(&self.standing) = Standing::Followed;
    }

    /// A seed came to its end.
    pub fn seeded(&self, done: bool) {
        let counter = if done {
            &self.seeds_done
        } else {
            &self.seeds_failed
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The archive was read.
    pub fn archive_read(&self, catalog: &Catalog) {
        *held(&self.archived) = Some(Archived::of(catalog, self.seen().gaps));
        *held(&self.way) = snapshots_of_head(catalog);
    }

    /// Where the snapshots of the head's history lie; in the timeline that is written to there may be new ones.
    pub fn way(&self) -> Vec<Step> {
        let seen = self.seen();
        let mut way = held(&self.way).clone();
        if let Some((timeline, id)) = seen.timeline.filter(|_| seen.suspect.is_none()) {
            way.retain(|step| step.timeline != timeline);
            way.push(Step {
                timeline,
                id,
                upto: Offset::new(u64::MAX),
            });
        }
        way
    }

    /// When the snapshots were taken that are there now.
    pub fn snapshots_listed(&self, times: &[UnixMillis]) {
        if let Some(archived) = &mut *held(&self.archived) {
            archived.oldest_snapshot = times.iter().min().copied();
            archived.newest_snapshot = times.iter().max().copied();
        }
    }

    fn seen(&self) -> Seen {
        self.report
            .get()
            .map(|report| report.seen())
            .unwrap_or_default()
    }

    fn readiness(&self, seen: &Seen) -> (bool, String) {
        match &*held(&self.standing) {
            Standing::NotReady(why) => (false, why.clone()),
            Standing::Followed if !seen.live => {
                (false, "asking the server for its replication stream".into())
            }
            Standing::Followed => match seen.suspect {
                Some(timeline) => (
                    false,
                    format!(
                        "suspect: the server's data are archived as timeline {timeline}, but no seed would use them; \
                         `perennial accept {timeline}` if they are right"
                    ),
                ),
                None => (true, "the server holds the head, and is followed".into()),
            },
        }
    }

    fn store_failing(&self, seen: &Seen) -> bool {
        seen.failing.is_some()
            || self.writing_fails.load(Ordering::Relaxed)
            || self.reading_fails.load(Ordering::Relaxed)
    }

    fn values(&self) -> Values {
        let seen = self.seen();
        let archived = *held(&self.archived);
        let now = self.clock.unix();
        let taken = seen.snapshot;
        let snapshot_at = taken
            .map(|taken| taken.at)
            .max(seen.snapshot_found)
            .max(archived.and_then(|archived| archived.newest_snapshot));
        let head = archived.and_then(|archived| archived.head);
        // Before anything is followed, and beside a suspect timeline, the archive says how far it reaches.
        let restorable_to = match (seen.durable, seen.suspect) {
            (Some(_), None) => {
                // Nothing was missed before the link's last sign of life.
                let silent = seen.still_millis.filter(|_| !seen.link_up).unwrap_or(0);
                let missing = seen.lag_millis.max(silent);
                Some(UnixMillis(now.0.saturating_sub(missing)))
            }
            _ => head.map(|(_, at)| at),
        };
        let archive_gaps =
            archived.map(|archived| archived.gaps + seen.gaps.saturating_sub(archived.gaps_before));
        let kept = self.upkeep.get().map(|report| report.tally());
        let kept = kept.unwrap_or_default();
        let suspect_now = u64::from(seen.suspect.is_some());
        Values {
            ready: self.readiness(&seen).0,
            link_up: seen.link_up,
            received_offset: seen.received.map(Offset::as_u64),
            durable_offset: seen
                .durable
                .or(head
                    .map(|(offset, _)| offset)
                    .filter(|_| seen.received.is_none()))
                .map(Offset::as_u64),
            durable_lag_bytes: seen.lag_bytes,
            durable_lag_seconds: seconds(seen.lag_millis),
            suspect_roots: archived.map(|archived| archived.suspects.max(suspect_now)),
            archive_gaps,
            snapshot_timestamp: snapshot_at.map(|at| seconds(at.0)),
            snapshot_due: seen
                .snapshot_due_millis
                .map(|millis| seconds(now.0.saturating_add(millis))),
            snapshot_bytes: taken.map(|taken| taken.bytes),
            snapshot_duration: taken.map(|taken| seconds(taken.millis)),
            restorable_from: archived
                .and_then(|archived| archived.oldest_snapshot)
                .or(taken.map(|taken| taken.at))
                .map(|at| seconds(at.0)),
            restorable_to: restorable_to.map(|at| seconds(at.0)),
            store_failing: self.store_failing(&seen),
            buffered_bytes: seen.buffered_bytes,
            buffer_limit_bytes: seen.buffer_bytes_max,
            spooled_bytes: seen.spooled.map(|(bytes, _)| bytes),
            spool_limit_bytes: seen.spooled.map(|(_, limit)| limit),
            uploads_in_flight: seen.uploads_in_flight as u64,
            links: seen.links,
            full_syncs: seen.full_syncs,
            partial_syncs: seen.partial_syncs,
            links_closed_full: seen.closed_full,
            seeds_done: self.seeds_done.load(Ordering::Relaxed),
            seeds_failed: self.seeds_failed.load(Ordering::Relaxed),
            gaps: seen.gaps,
            snapshots_done: seen.snapshots_done,
            snapshots_failed: seen.snapshots_failed,
            merges_done: kept.merges,
            merges_failed: kept.merges_failed,
            deleted_merged: kept.deleted_merged,
            deleted_pruned: kept.deleted_pruned,
            deletions_refused: kept.deletions_refused,
            segments_barred: kept.barred,
        }
    }

    /// Whether somebody has read the metrics since this was asked last.
    pub fn was_read(&self) -> bool {
        self.read.swap(false, Ordering::Relaxed)
    }

    fn metrics_page(&self) -> Page {
        self.read.store(true, Ordering::Relaxed);
        let (ok, body) = match self.metrics.text(&self.values()) {
            Ok(text) => (true, text),
            Err(error) => (false, format!("{error}\n")),
        };
        Page {
            ok,
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            body,
        }
    }

    fn ready_page(&self) -> Page {
        let seen = self.seen();
        let (ready, reason) = self.readiness(&seen);
        json_page(
            ready,
            &json!({
                "ready": ready,
                "reason": reason,
                "link_up": seen.link_up,
                "received_offset": seen.received.map(Offset::as_u64),
                "durable_offset": seen.durable.map(Offset::as_u64),
                "durable_lag_bytes": seen.lag_bytes,
                "durable_lag_seconds": seconds(seen.lag_millis),
                "store_failing": self.store_failing(&seen),
            }),
        )
    }

    /// Whether a restart would help: nothing but a link that is open and stands still. A server that is down, a store
    /// that refuses or a seed that takes long are not cured by it, and what is in memory would be lost.
    fn health_page(seen: &Seen) -> Page {
        let still = seen.still_millis.filter(|_| seen.link_up).unwrap_or(0);
        let healthy = still < STILL_MILLIS_MAX;
        let reason = if healthy {
            "running".to_owned()
        } else {
            format!(
                "the link is open, and nothing has moved for {} s",
                still / 1000
            )
        };
        json_page(healthy, &json!({ "healthy": healthy, "reason": reason }))
    }
}

fn json_page(ok: bool, value: &serde_json::Value) -> Page {
    Page {
        ok,
        content_type: "application/json",
        body: format!("{value}\n"),
    }
}

impl Pages for Observed {
    const PATHS: &'static [&'static str] = &["/metrics", "/healthz", "/readyz"];

    fn page(&self, path: &str) -> Option<Page> {
        match path {
            "/metrics" => Some(self.metrics_page()),
            "/healthz" => Some(Self::health_page(&self.seen())),
            "/readyz" => Some(self.ready_page()),
            _ => None,
        }
    }
}

impl Observer for Observed {
    fn observe(&self, observation: &Observation) {
        let operation = observation.operation;
        if operation == Operation::Create && observation.result.is_ok() {
            self.created.fetch_add(1, Ordering::Relaxed);
        }
        let result = match observation.result {
            Ok(()) => "ok",
            Err(StoreErrorKind::NotFound) => "not_found",
            Err(StoreErrorKind::Denied) => "denied",
            Err(StoreErrorKind::Unavailable) => "unavailable",
            Err(StoreErrorKind::Full) => "full",
            Err(StoreErrorKind::Conflict) => "conflict",
            Err(StoreErrorKind::Invalid) => "invalid",
        };
        let reads = matches!(operation, Operation::Read | Operation::List);
        // That one object is not there, or is there already, is an answer.
        let answered = matches!(
            (operation, observation.result),
            (
                Operation::Read | Operation::Delete,
                Err(StoreErrorKind::NotFound)
            ) | (_, Err(StoreErrorKind::Conflict))
        );
        let fails = if reads {
            &self.reading_fails
        } else {
            &self.writing_fails
        };
        fails.store(observation.result.is_err() && !answered, Ordering::Relaxed);
        self.metrics
            .store_operation(operation.label(), result, seconds(observation.millis));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    fn observed() -> Observed {
        Observed::new(Arc::new(SystemClock::new())).unwrap()
    }

    fn observation(operation: Operation, result: Result<(), StoreErrorKind>) -> Observation {
        Observation {
            operation,
            result,
            millis: 20,
            bytes: 0,
            objects: 0,
        }
    }

    fn body(observed: &Observed, path: &str) -> (bool, String) {
        let page = observed.page(path).unwrap();
        (page.ok, page.body)
    }

    #[test]
    fn it_is_healthy_and_not_ready_from_the_start() {
        let observed = observed();
        assert!(body(&observed, "/healthz").0);
        let (ready, text) = body(&observed, "/readyz");
        assert!(!ready && text.contains(r#""reason":"starting""#), "{text}");
        assert!(
            body(&observed, "/metrics")
                .1
                .contains("\nperennial_ready 0\n")
        );
        observed.followed();
        let (ready, text) = body(&observed, "/readyz");
        assert!(!ready && text.contains("asking the server"), "{text}");
        assert_eq!(observed.page("/"), None);
    }

    #[test]
    fn following_is_ready_whatever_the_store_does_unless_it_is_suspect() {
        let observed = observed();
        observed.followed();
        let mut seen = Seen {
            live: true,
            lag_bytes: 1 << 40,
            failing: Some("no".into()),
            ..Seen::default()
        };
        assert!(
            observed.readiness(&seen).0,
            "the link may be broken and the store away"
        );
        seen.suspect = Some(TimelineSeq::new(3));
        let (ready, why) = observed.readiness(&seen);
        assert!(!ready && why.contains("perennial accept 3"), "{why}");
    }

    #[test]
    fn only_an_open_link_that_stands_still_is_ill() {
        let page = |link_up, still| {
            let seen = Seen {
                link_up,
                still_millis: Some(still),
                ..Seen::default()
            };
            Observed::health_page(&seen).ok
        };
        assert!(page(true, STILL_MILLIS_MAX - 1));
        assert!(!page(true, STILL_MILLIS_MAX));
        assert!(page(false, 10 * STILL_MILLIS_MAX), "the server is down");
    }

    #[test]
    fn writing_and_reading_fail_apart_and_an_answer_is_no_failure() {
        let observed = observed();
        let told = |operation, result| {
            observed.observe(&observation(operation, result));
            observed.store_failing(&Seen::default())
        };
        assert!(told(Operation::Create, Err(StoreErrorKind::Full)));
        assert!(
            told(Operation::List, Ok(())),
            "what reads says nothing of writing"
        );
        assert!(!told(Operation::Create, Ok(())));
        assert!(!told(Operation::Read, Err(StoreErrorKind::NotFound)));
        assert!(
            told(Operation::List, Err(StoreErrorKind::NotFound)),
            "the place is gone"
        );
        let (_, text) = body(&observed, "/metrics");
        let line = r#"perennial_store_operations_total{operation="create",result="full"} 1"#;
        assert!(text.contains(line), "{text}");
        assert!(text.contains("perennial_store_failing 1"), "{text}");
    }
}
