//! What planning costs over a hundred thousand segments: under 200 ms is expected, with lists that take ten seconds; and
//! some 350 bytes of memory a segment beyond the catalogue, because plans share the names.

#![allow(clippy::print_stdout, reason = "a bench prints what it measured")]

#[path = "common/cpu.rs"]
mod cpu;

use std::collections::BTreeSet;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use perennial::archive::layout::{DOCUMENT_FORMAT, Object, Source, Span, TimelineDocument};
use perennial::archive::retention::{Dates, Policy, Stock, merges, prune, superfluous};
use perennial::archive::timeline::Catalog;
use perennial::position::{Offset, ReplicationId, TimelineSeq, UnixMillis};

use cpu::cpu_seconds;

const SEGMENTS: u64 = 100_000;
const BEGIN: u64 = 1_800_000_000_000;

fn archive() -> (Catalog, Dates) {
    let (seq, id) = (TimelineSeq::FIRST, ReplicationId::from_raw([1; 20]));
    let document = TimelineDocument {
        format: DOCUMENT_FORMAT,
        seq,
        id,
        parent: None,
        start: Offset::ZERO,
        mapped: false,
        suspect: None,
        created_at: UnixMillis(BEGIN),
        created_by: "bench".into(),
        source: Source::default(),
    };
    let segments = (0..SEGMENTS).map(|number| {
        let at = UnixMillis(BEGIN + number * 1000);
        let span = Span {
            first: Offset::new(number * 100 + 1),
            last: Offset::new(number * 100 + 100),
            first_at: at,
            last_at: at,
        };
        let merged = false;
        let object = Object::Segment {
            seq,
            id,
            span,
            merged,
        };
        (object, at)
    });
    let snapshots = (0..SEGMENTS).step_by(20_000).map(|number| {
        let at = UnixMillis(BEGIN + number * 1000);
        let offset = Offset::new(number * 100);
        let object = Object::Snapshot {
            seq,
            id,
            offset,
            at,
            derived: false,
        };
        (object, at)
    });
    let objects: Vec<(Object, UnixMillis)> = segments.chain(snapshots).collect();
    let dates = objects.iter().map(|(object, at)| (object.name(), *at));
    let dates = dates.collect();
    let listed = objects.iter().map(|(it, _)| (it.name(), *it, 5000));
    (Catalog::new(None, vec![document], listed), dates)
}

/// The most memory that this process has had so far, in bytes.
fn memory_max() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}

fn planning(criterion: &mut Criterion) {
    let (catalog, dates) = archive();
    let held = memory_max();
    let stock = Stock {
        catalog: &catalog,
        dates: &dates,
        now: UnixMillis(BEGIN + SEGMENTS * 1000),
    };
    let policy = Policy {
        retention_millis: 3_600_000,
        ..Policy::default()
    };
    let timelines = catalog.timelines();
    let filled = timelines.map(|it| (it.seq(), it.id())).collect();
    let barred = BTreeSet::new();
    let plans = (
        merges(&stock, &policy, &barred),
        superfluous(&stock, &policy, &barred),
        prune(&stock, &policy, &filled).is_ok(),
    );
    let more = memory_max().saturating_sub(held);
    drop(black_box(plans));
    println!(
        "memory a segment: {} bytes with the list of the store, and {} more for the first plans",
        held / SEGMENTS,
        more / SEGMENTS
    );
    // On a machine that does other work as well, the time that passes says little.
    let mut spent: Vec<f64> = (0..11)
        .map(|_| {
            let began = cpu_seconds();
            black_box(merges(&stock, &policy, &barred));
            black_box(superfluous(&stock, &policy, &barred));
            black_box(prune(&stock, &policy, &filled)).ok();
            cpu_seconds() - began
        })
        .collect();
    spent.sort_by(f64::total_cmp);
    println!(
        "CPU milliseconds for all three plans, median of 11: {:.0}",
        spent[5] * 1000.0
    );
    let mut group = criterion.benchmark_group("upkeep");
    group.sample_size(10);
    group.bench_function("plan 100,000 segments", |bencher| {
        bencher.iter(|| {
            black_box(merges(&stock, &policy, &barred));
            black_box(superfluous(&stock, &policy, &barred));
            black_box(prune(&stock, &policy, &filled)).is_ok()
        });
    });
    group.finish();
}

criterion_group!(benches, planning);
criterion_main!(benches);
