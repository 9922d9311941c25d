//! Sealing and reading segments and snapshots, in bytes of payload per second on one core; verifying a whole archive, on
//! two.
//!
//! Expectation before measuring: zstd level 1 decides (about 400 MB/s in, 1 GB/s out on the replication
//! stream); checksums run at ten times that, gathering without compression at memory speed.

#![allow(clippy::print_stdout, reason = "a bench prints what it measured")]
#![allow(clippy::cast_precision_loss, reason = "bytes, far below 2^53")]

#[path = "common/cpu.rs"]
mod cpu;

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use perennial::archive::block::{BlockContext, Compressor, RawBlock};
use perennial::archive::layout::{
    ArchiveDocument, ArchiveId, DOCUMENT_FORMAT, Object, Source, TimelineDocument,
};
use perennial::archive::segment::{Chunk, SegmentBuilder, verify_segment};
use perennial::archive::snapshot::{SnapshotBuilder, SnapshotReader};
use perennial::position::{Offset, ReplicationId, TimelineSeq, UnixMillis};
use perennial::restore::verify::verify;
use perennial::store::Store;
use perennial::store::memory::MemoryStore;

use cpu::cpu_seconds;

/// What one read of a socket yields, in bytes.
const PIECE_BYTES: usize = 64 * 1024;

/// One segment, or a small snapshot.
const PAYLOAD_BYTES: usize = 16 * 1024 * 1024;

const AT: UnixMillis = UnixMillis(1_700_000_000_000);

fn context() -> BlockContext {
    BlockContext {
        archive: ArchiveId::from_raw([1; 16]),
        timeline: TimelineSeq::FIRST,
        id: ReplicationId::from_raw([2; 20]),
    }
}

/// A replication stream of SETs with 100-byte values, half of which repeats.
fn commands() -> Bytes {
    let mut state = 1_u64;
    let mut payload = Vec::with_capacity(PAYLOAD_BYTES + 200);
    while payload.len() < PAYLOAD_BYTES {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let key = state >> 40;
        let value = format!(
            "{state:016x}{:016x}{:-<68}",
            state.rotate_left(32),
            "value of "
        );
        payload.extend_from_slice(
            format!("*3\r\n$3\r\nSET\r\n$12\r\nkey:{key:08}\r\n$100\r\n{value}\r\n").as_bytes(),
        );
    }
    payload.truncate(PAYLOAD_BYTES);
    payload.into()
}

/// The same as the value of a payload without a checksum.
fn rdb() -> Bytes {
    [b"REDIS0011", &commands()[..], b"\xff", &[0; 8]]
        .concat()
        .into()
}

fn gathered(payload: &Bytes) -> SegmentBuilder {
    gathered_after(Offset::ZERO, payload)
}

fn gathered_after(after: Offset, payload: &Bytes) -> SegmentBuilder {
    let mut builder = SegmentBuilder::new(after, Some(0));
    let mut rest = payload.clone();
    while !rest.is_empty() {
        builder.push(Chunk {
            bytes: rest.split_to(rest.len().min(PIECE_BYTES)),
            at: AT,
            boundary: None,
            database_at_end: Some(0),
        });
    }
    builder
}

fn encoded(blocks: Vec<RawBlock>, compressor: &mut Compressor) -> Vec<Bytes> {
    blocks
        .into_iter()
        .map(|block| block.encode(&context(), compressor))
        .collect()
}

fn snapshot_blocks(payload: &Bytes) -> Vec<RawBlock> {
    let mut builder = SnapshotBuilder::new(Offset::new(7), AT);
    let mut rest = payload.clone();
    while !rest.is_empty() {
        builder.push(rest.split_to(rest.len().min(PIECE_BYTES)));
    }
    builder.finish().expect("a payload with its end").blocks
}

fn segments(criterion: &mut Criterion) {
    let payload = commands();
    let mut compressor = Compressor::new();
    let mut group = criterion.benchmark_group("segment");
    group.throughput(Throughput::Bytes(payload.len() as u64));
    group.bench_function("gather", |bench| {
        bench.iter(|| black_box(gathered(&payload).finish()));
    });
    group.bench_function("seal", |bench| {
        bench.iter_batched(
            || gathered(&payload).finish().expect("not empty").blocks,
            |blocks| black_box(encoded(blocks, &mut compressor)),
            BatchSize::LargeInput,
        );
    });
    let sealed = gathered(&payload).finish().expect("not empty");
    let name = sealed.name(context().timeline, context().id);
    let object = Object::parse(name.as_str()).expect("a name made by layout");
    let stored = Bytes::from(encoded(sealed.blocks, &mut compressor).concat());
    group.bench_function("read", |bench| {
        bench.iter(|| black_box(verify_segment(&object, stored.clone())));
    });
    group.finish();
}

fn snapshots(criterion: &mut Criterion) {
    let payload = rdb();
    let mut compressor = Compressor::new();
    let mut group = criterion.benchmark_group("snapshot");
    group.throughput(Throughput::Bytes(payload.len() as u64));
    group.bench_function("gather and check", |bench| {
        bench.iter(|| black_box(snapshot_blocks(&payload)));
    });
    group.bench_function("seal", |bench| {
        bench.iter_batched(
            || snapshot_blocks(&payload),
            |blocks| black_box(encoded(blocks, &mut compressor)),
            BatchSize::LargeInput,
        );
    });
    let object = Object::Snapshot {
        seq: context().timeline,
        id: context().id,
        offset: Offset::new(7),
        at: AT,
        derived: false,
    };
    let stored = Bytes::from(encoded(snapshot_blocks(&payload), &mut compressor).concat());
    group.bench_function("read", |bench| {
        bench.iter(|| {
            let mut reader = SnapshotReader::new(&object).expect("a snapshot");
            reader.push(stored.clone());
            while let Some(bytes) = reader.next().expect("whole blocks") {
                black_box(bytes);
            }
            black_box(reader.finish()).expect("a whole snapshot")
        });
    });
    group.finish();
}

/// A snapshot and behind it eight segments, in memory. Returns how many raw bytes they hold.
async fn whole_archive(store: &dyn Store) -> u64 {
    let BlockContext {
        archive,
        timeline: seq,
        id,
    } = context();
    let mut objects = vec![
        (
            Object::Archive.name(),
            ArchiveDocument {
                format: DOCUMENT_FORMAT,
                archive,
                name: None,
                created_at: AT,
            }
            .encode(),
        ),
        (
            Object::Timeline { seq, id }.name(),
            TimelineDocument {
                format: DOCUMENT_FORMAT,
                seq,
                id,
                parent: None,
                start: Offset::new(7),
                mapped: false,
                suspect: None,
                created_at: AT,
                created_by: "bench".into(),
                source: Source::default(),
            }
            .encode(),
        ),
    ];
    let mut compressor = Compressor::new();
    let (payload, stream) = (rdb(), commands());
    let snapshot = Object::Snapshot {
        seq,
        id,
        offset: Offset::new(7),
        at: AT,
        derived: false,
    };
    let blocks = encoded(snapshot_blocks(&payload), &mut compressor).concat();
    objects.push((snapshot.name(), blocks.into()));
    let mut raw_bytes = payload.len() as u64;
    for number in 0..8 {
        let after = Offset::new(7).plus(number * stream.len() as u64);
        let sealed = gathered_after(after, &stream).finish().expect("not empty");
        let name = sealed.name(seq, id);
        let blocks = encoded(sealed.blocks, &mut compressor).concat();
        objects.push((name, blocks.into()));
        raw_bytes += stream.len() as u64;
    }
    for (name, bytes) in objects {
        store.create(&name, vec![bytes]).await.expect("memory");
    }
    raw_bytes
}

/// The bar is 600 MB a second on one core, so twice that here where both are free.
fn verifying(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .expect("threads");
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let raw_bytes = runtime.block_on(whole_archive(&*store));
    let verified = || {
        let work = verify(Arc::clone(&store), None, UnixMillis(0), |_, _| ());
        let report = runtime.block_on(work).expect("memory");
        assert!(report.findings.is_empty(), "{:?}", report.findings);
    };
    // On a machine that does other work as well, only the processor's time says something.
    let mut rates: Vec<f64> = (0..11)
        .map(|_| {
            let began = cpu_seconds();
            verified();
            raw_bytes as f64 / (cpu_seconds() - began) / 1e6
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    println!(
        "archive/verify: {:.0} MB of raw bytes a CPU second, median of 11 (>= 600)",
        rates[5]
    );
    let mut group = criterion.benchmark_group("archive");
    group.throughput(Throughput::Bytes(raw_bytes));
    group.bench_function("verify", |bench| {
        bench.iter(verified);
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = segments, snapshots, verifying
}
criterion_main!(benches);
