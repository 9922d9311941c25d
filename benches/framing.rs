//! How fast command ends are found in the replication stream, beside what a whole-frame decoder needs.
//!
//! Expectation: the cursor touches only headers, so small values are bound by instructions per command
//! (some 20 ns each) and 10 KB values by the cache misses between bodies. The bars are 1.5 GB/s on 100-byte
//! values and 20 GB/s on 10 KB values. The rewriter looks for TTLs or HPERSIST on the way out of an archive and
//! should keep up with reading it.

use std::hint::black_box;

use bytes::{Buf, Bytes, BytesMut};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use perennial::archive::plan::Rewriting;
use perennial::position::{Offset, UnixMillis};
use perennial::proto::handshake::command;
use perennial::proto::resp::CommandCursor;
use perennial::restore::rewrite::Rewriter;
use redis_protocol::resp2::decode::decode_bytes_mut;

/// As much as a link reads at once, bytes.
const PIECE_BYTES: usize = 64 * 1024;

/// Enough that the caches do not hold it all, bytes.
const STREAM_BYTES: usize = 64 * 1024 * 1024;

fn sets(value_bytes: usize) -> Vec<u8> {
    let value = vec![b'v'; value_bytes];
    let mut stream = Vec::with_capacity(STREAM_BYTES + value_bytes + 64);
    for number in 0.. {
        if stream.len() >= STREAM_BYTES {
            break;
        }
        let key = format!("key:{:010}", number % 1_000_000);
        stream.extend_from_slice(&command(&[b"SET", key.as_bytes(), &value]));
    }
    stream
}

fn with_cursor(stream: &[u8]) -> u64 {
    let mut cursor = CommandCursor::new(Offset::ZERO, Some(0));
    let mut commands = 0;
    for piece in stream.chunks(PIECE_BYTES) {
        let fed = cursor.feed(black_box(piece)).expect("well-formed");
        commands += fed.others;
    }
    commands
}

fn with_decoder(stream: &[u8]) -> u64 {
    let mut buffer = BytesMut::new();
    let mut commands = 0;
    for piece in stream.chunks(PIECE_BYTES) {
        buffer.extend_from_slice(black_box(piece));
        while let Some((frame, _, _)) = decode_bytes_mut(&mut buffer).expect("well-formed") {
            black_box(frame);
            commands += 1;
        }
    }
    assert!(!buffer.has_remaining());
    commands
}

fn with_rewriter(stream: &Bytes, rewriting: Rewriting) -> u64 {
    let mut rewriter = Rewriter::new(rewriting);
    let mut rest = stream.clone();
    let mut out = Vec::new();
    while rest.has_remaining() {
        let piece = rest.split_to(rest.len().min(PIECE_BYTES));
        rewriter.push(black_box(&piece), UnixMillis(1), &mut out);
        out.clear();
    }
    rewriter.tally().bytes
}

fn framing(criterion: &mut Criterion) {
    for value_bytes in [3, 100, 10_000] {
        let stream = sets(value_bytes);
        assert_eq!(with_cursor(&stream), with_decoder(&stream));
        let mut group = criterion.benchmark_group("framing");
        group.sample_size(10);
        group.throughput(Throughput::Bytes(stream.len() as u64));
        let name = |who| BenchmarkId::new(who, format!("{value_bytes} B values"));
        group.bench_function(name("cursor"), |bencher| {
            bencher.iter(|| with_cursor(&stream));
        });
        group.bench_function(name("redis-protocol"), |bencher| {
            bencher.iter(|| with_decoder(&stream));
        });
        let stream = Bytes::from(stream);
        for (who, relative_ttl) in [("rewriter, TTLs", true), ("rewriter, HPERSIST", false)] {
            let rewriting = Rewriting {
                relative_ttl,
                field_persist: !relative_ttl,
            };
            group.bench_function(name(who), |bencher| {
                bencher.iter(|| with_rewriter(&stream, rewriting));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, framing);
criterion_main!(benches);
