//! Every metric: its name, its meaning, where its value comes from. Whoever runs the parts fills in [`Values`]; nothing
//! here knows them. `docs/operations.md` has the same list, and a test compares both.

use std::sync::{Mutex, PoisonError};

use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder,
};

/// Upper bounds of the latency histogram, seconds: from a folder on a local disk to a store that times out.
const STORE_SECONDS: &[f64] = &[
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// What is shown, at one moment. What is not known is `None`, and its metric is absent then. Times are Unix time in
/// seconds.
#[derive(Clone, Debug, Default)]
pub struct Values {
    /// Whether clients may use the server.
    pub ready: bool,
    /// Whether the replication stream comes.
    pub link_up: bool,
    /// The last byte received.
    pub received_offset: Option<u64>,
    /// The last one that a restore from the store alone brings back.
    pub durable_offset: Option<u64>,
    /// Received and not durable, bytes.
    pub durable_lag_bytes: u64,
    /// The age of the oldest of them, seconds.
    pub durable_lag_seconds: f64,
    /// Suspect roots that nobody has dealt with.
    pub suspect_roots: Option<u64>,
    /// Gaps in the archive.
    pub archive_gaps: Option<u64>,
    /// When the last snapshot was taken.
    pub snapshot_timestamp: Option<f64>,
    /// When the next one is due.
    pub snapshot_due: Option<f64>,
    /// The length of its payload.
    pub snapshot_bytes: Option<u64>,
    /// How long it took.
    pub snapshot_duration: Option<f64>,
    /// The oldest moment that can be restored.
    pub restorable_from: Option<f64>,
    /// The newest.
    pub restorable_to: Option<f64>,
    /// Whether the store refuses.
    pub store_failing: bool,
    /// Memory on its way to the store, bytes.
    pub buffered_bytes: u64,
    /// How much that may be.
    pub buffer_limit_bytes: u64,
    /// Scratch files on their way to the store, bytes.
    pub spooled_bytes: Option<u64>,
    /// How much that may be.
    pub spool_limit_bytes: Option<u64>,
    /// Pieces being stored.
    pub uploads_in_flight: u64,
    /// Links that carried a replication stream.
    pub links: u64,
    /// Full resyncs.
    pub full_syncs: u64,
    /// Partial ones.
    pub partial_syncs: u64,
    /// Links closed because the buffers were full.
    pub links_closed_full: u64,
    /// Seeds that were done.
    pub seeds_done: u64,
    /// Seeds that failed.
    pub seeds_failed: u64,
    /// Gaps that came about.
    pub gaps: u64,
    /// Snapshots completed.
    pub snapshots_done: u64,
    /// Snapshots that failed.
    pub snapshots_failed: u64,
    /// Merged segments made.
    pub merges_done: u64,
    /// Merges that failed.
    pub merges_failed: u64,
    /// Objects deleted because a merged segment covers them.
    pub deleted_merged: u64,
    /// Objects deleted because they are too old.
    pub deleted_pruned: u64,
    /// Times that deleting was refused.
    pub deletions_refused: u64,
    /// Segments that are damaged, or differ from others.
    pub segments_barred: u64,
}

/// Offsets and sizes pass 2^53 in no lifetime of a server.
#[allow(
    clippy::cast_precision_loss,
    reason = "a metric is a double; offsets stay below 2^53"
)]
fn number(value: u64) -> f64 {
    value as f64
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

type Gauge = (&'static str, &'static str, fn(&Values) -> Option<f64>);

/// Gauges: name, meaning, value.
const GAUGES: &[Gauge] = &[
    (
        "perennial_ready",
        "1 while clients may use the server, as /readyz says.",
        |values| Some(flag(values.ready)),
    ),
    (
        "perennial_link_up",
        "1 while the replication stream comes from the master.",
        |values| Some(flag(values.link_up)),
    ),
    (
        "perennial_received_offset",
        "Replication offset of the last byte received.",
        |values| values.received_offset.map(number),
    ),
    (
        "perennial_durable_offset",
        "Replication offset up to which a restore from the store alone brings everything back.",
        |values| values.durable_offset.map(number),
    ),
    (
        "perennial_durable_lag_bytes",
        "Bytes received and not durable; 0 where only PINGs are missing.",
        |values| Some(number(values.durable_lag_bytes)),
    ),
    (
        "perennial_durable_lag_seconds",
        "Age of the oldest byte that is not durable, PINGs aside.",
        |values| Some(values.durable_lag_seconds),
    ),
    (
        "perennial_suspect_roots",
        "Timelines that began at a server that may be stale or foreign, newer than the head and not accepted.",
        |values| values.suspect_roots.map(number),
    ),
    (
        "perennial_archive_gaps",
        "Gaps in the archive: stretches whose moments cannot be restored.",
        |values| values.archive_gaps.map(number),
    ),
    (
        "perennial_snapshot_timestamp_seconds",
        "When the newest snapshot was taken.",
        |values| values.snapshot_timestamp,
    ),
    (
        "perennial_snapshot_due_timestamp_seconds",
        "When the next snapshot is due, if no more is written until then.",
        |values| values.snapshot_due,
    ),
    (
        "perennial_snapshot_bytes",
        "Length of the payload of the last snapshot that this process took.",
        |values| values.snapshot_bytes.map(number),
    ),
    (
        "perennial_snapshot_duration_seconds",
        "From the first byte of that payload until it was stored.",
        |values| values.snapshot_duration,
    ),
    (
        "perennial_restorable_from_timestamp_seconds",
        "Oldest moment of the head's history that can be restored.",
        |values| values.restorable_from,
    ),
    (
        "perennial_restorable_to_timestamp_seconds",
        "Moment up to which every write received is durable.",
        |values| values.restorable_to,
    ),
    (
        "perennial_store_failing",
        "1 while the store refuses or does not answer.",
        |values| Some(flag(values.store_failing)),
    ),
    (
        "perennial_buffered_bytes",
        "Memory held by what is on its way to the store.",
        |values| Some(number(values.buffered_bytes)),
    ),
    (
        "perennial_buffer_limit_bytes",
        "How much that may be: --buffer-bytes.",
        |values| Some(number(values.buffer_limit_bytes)),
    ),
    (
        "perennial_spooled_bytes",
        "Scratch files held by what is on its way to the store.",
        |values| values.spooled_bytes.map(number),
    ),
    (
        "perennial_spool_limit_bytes",
        "How much that may be: --spool-bytes.",
        |values| values.spool_limit_bytes.map(number),
    ),
    (
        "perennial_uploads_in_flight",
        "Pieces of the replication stream that are being stored or wait for it.",
        |values| Some(number(values.uploads_in_flight)),
    ),
    (
        "perennial_upkeep_alarms",
        "Segments found damaged or different from others that hold the same bytes: left as they are.",
        |values| Some(number(values.segments_barred)),
    ),
];

/// The values of a counter's one label, each with what it counts; one without a label where there is none.
type Counted = (&'static str, fn(&Values) -> u64);
type Counter = (
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static [Counted],
);

/// Counters: name, meaning, label, values.
const COUNTERS: &[Counter] = &[
    (
        "perennial_links_total",
        "Links that carried a replication stream.",
        &[],
        &[("", |values| values.links)],
    ),
    (
        "perennial_syncs_total",
        "Answers of the master to PSYNC: full resync, or continued where it was left.",
        &["kind"],
        &[
            ("full", |values| values.full_syncs),
            ("partial", |values| values.partial_syncs),
        ],
    ),
    (
        "perennial_links_closed_full_total",
        "Links closed because the store was slower than the master and the buffers were full.",
        &[],
        &[("", |values| values.links_closed_full)],
    ),
    (
        "perennial_seeds_total",
        "Seeds of a server from the archive.",
        &["result"],
        &[
            ("done", |values| values.seeds_done),
            ("failed", |values| values.seeds_failed),
        ],
    ),
    (
        "perennial_gaps_total",
        "Gaps that came about because the master's backlog was too short.",
        &[],
        &[("", |values| values.gaps)],
    ),
    (
        "perennial_snapshots_total",
        "Snapshots.",
        &["result"],
        &[
            ("done", |values| values.snapshots_done),
            ("failed", |values| values.snapshots_failed),
        ],
    ),
    (
        "perennial_merges_total",
        "Merged segments made of many.",
        &["result"],
        &[
            ("done", |values| values.merges_done),
            ("failed", |values| values.merges_failed),
        ],
    ),
    (
        "perennial_objects_deleted_total",
        "Objects deleted: merged into others, or older than the window.",
        &["why"],
        &[
            ("merged", |values| values.deleted_merged),
            ("old", |values| values.deleted_pruned),
        ],
    ),
    (
        "perennial_deletions_refused_total",
        "Times that nothing was deleted: the store does not allow it, or a clock is wrong.",
        &[],
        &[("", |values| values.deletions_refused)],
    ),
];

/// The metrics of one process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    gauges: Vec<GaugeVec>,
    counters: Vec<IntCounterVec>,
    operations: IntCounterVec,
    latency: HistogramVec,
    /// Two who ask at once must not both add what a counter lacks.
    asking: Mutex<()>,
}

/// Metrics that cannot be registered: a mistake of ours in this file.
pub type MetricsError = prometheus::Error;

impl Metrics {
    /// The metrics of `version`, none of them counted yet.
    ///
    /// # Errors
    /// Where two have the same name.
    pub fn new(version: &str) -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let mut gauges = Vec::new();
        for (name, help, _) in GAUGES {
            // Of no label, so that one whose value is not known can be left out.
            let gauge = GaugeVec::new(Opts::new(*name, *help), &[])?;
            registry.register(Box::new(gauge.clone()))?;
            gauges.push(gauge);
        }
        let mut counters = Vec::new();
        for (name, help, labels, _) in COUNTERS {
            let counter = IntCounterVec::new(Opts::new(*name, *help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            counters.push(counter);
        }
        let build = GaugeVec::new(
            Opts::new(
                "perennial_build_info",
                "Always 1; its label says the version.",
            ),
            &["version"],
        )?;
        build.with_label_values(&[version]).set(1.0);
        registry.register(Box::new(build))?;
        let operations = IntCounterVec::new(
            Opts::new(
                "perennial_store_operations_total",
                "Operations on the store. result is ok, or what kind of thing went wrong.",
            ),
            &["operation", "result"],
        )?;
        registry.register(Box::new(operations.clone()))?;
        let latency = HistogramVec::new(
            HistogramOpts::new(
                "perennial_store_operation_duration_seconds",
                "How long operations on the store took, failed ones included.",
            )
            .buckets(STORE_SECONDS.to_vec()),
            &["operation"],
        )?;
        registry.register(Box::new(latency.clone()))?;
        #[cfg(target_os = "linux")]
        registry.register(Box::new(
            prometheus::process_collector::ProcessCollector::for_self(),
        ))?;
        Ok(Self {
            registry,
            gauges,
            counters,
            operations,
            latency,
            asking: Mutex::new(()),
        })
    }

    /// An operation on the store came to its end. `result` is `ok`, or what kind of thing went wrong.
    pub fn store_operation(&self, operation: &str, result: &str, seconds: f64) {
        self.operations
            .with_label_values(&[operation, result])
            .inc();
        self.latency
            .with_label_values(&[operation])
            .observe(seconds);
    }

    /// All of it in the text format of Prometheus.
    ///
    /// # Errors
    /// None that is known.
    pub fn text(&self, values: &Values) -> Result<String, MetricsError> {
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        for ((_, _, value), gauge) in GAUGES.iter().zip(&self.gauges) {
            match value(values) {
                Some(value) => gauge.with_label_values::<&str>(&[]).set(value),
                None => gauge.reset(),
            }
        }
        for ((_, _, labels, counted), counter) in COUNTERS.iter().zip(&self.counters) {
            for (label, value) in *counted {
                let label = [*label];
                let counter = counter.with_label_values(&label[..labels.len()]);
                counter.inc_by(value(values).saturating_sub(counter.get()));
            }
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Values {
        Values {
            received_offset: Some(9),
            durable_offset: Some(7),
            suspect_roots: Some(0),
            archive_gaps: Some(0),
            snapshot_timestamp: Some(1.5),
            snapshot_due: Some(2.5),
            snapshot_bytes: Some(3),
            snapshot_duration: Some(0.25),
            restorable_from: Some(1.0),
            restorable_to: Some(2.0),
            spooled_bytes: Some(0),
            spool_limit_bytes: Some(1),
            ..Values::default()
        }
    }

    fn text(metrics: &Metrics, values: &Values) -> String {
        metrics.text(values).unwrap()
    }

    /// Name, kind and labels of everything that is shown.
    fn shown() -> Vec<(String, String)> {
        let metrics = Metrics::new("1.2.3").unwrap();
        metrics.store_operation("create", "ok", 0.1);
        let text = text(&metrics, &full());
        let typed = |line: &str| {
            let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
            Some((name.to_owned(), kind.to_owned()))
        };
        text.lines().filter_map(typed).collect()
    }

    #[test]
    fn the_documentation_lists_them_all_and_no_others() {
        let documented: Vec<(String, String)> = include_str!("../docs/operations.md")
            .lines()
            .filter_map(|line| {
                let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
                let name = cells.next()?.trim_end_matches('`');
                // Labels stand behind the name.
                let name = name.split('{').next()?;
                let is_ours = name.starts_with("perennial_") || name.starts_with("process_");
                let kind = cells.next()?;
                is_ours.then(|| (name.to_owned(), kind.to_owned()))
            })
            .collect();
        let sorted = |mut list: Vec<(String, String)>| {
            list.sort();
            list
        };
        // What the system says of a process is there on Linux alone.
        let there = |list: Vec<(String, String)>| {
            let everything = cfg!(target_os = "linux");
            let keep = |(name, _): &(String, String)| everything || !name.starts_with("process_");
            sorted(list.into_iter().filter(keep).collect())
        };
        assert_eq!(there(documented), there(shown()));
    }

    #[test]
    fn what_is_not_known_is_absent_and_counters_only_grow() {
        let metrics = Metrics::new("1.2.3").unwrap();
        let first = text(&metrics, &full());
        assert!(first.contains("\nperennial_durable_offset 7\n"), "{first}");
        assert!(first.contains("perennial_build_info{version=\"1.2.3\"} 1\n"));
        assert!(first.contains("perennial_syncs_total{kind=\"full\"} 0\n"));
        let values = Values {
            links: 2,
            seeds_failed: 1,
            ..Values::default()
        };
        for _ in 0..2 {
            let second = text(&metrics, &values);
            assert!(!second.contains("perennial_durable_offset"), "{second}");
            assert!(second.contains("\nperennial_links_total 2\n"), "{second}");
            assert!(second.contains("perennial_seeds_total{result=\"failed\"} 1\n"));
        }
        let text = text(&metrics, &Values::default());
        assert!(text.contains("\nperennial_links_total 2\n"), "{text}");
    }
}
