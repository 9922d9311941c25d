//! How fast command ends are found in the replication stream, beside what a whole-frame decoder needs.
//!
//! Expectation: the cursor touches only headers, so small values are bound by instructions per command
//! (some 20 ns each) and 10 KB values by the cache misses between bodies. The bars are 1.5 GB/s on 100-byte
//! values and 20 GB/s on 10 KB values.

use std::hint::black_box;

use bytes::{Buf, BytesMut};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use perennial::position::Offset;
use perennial::proto::handshake::command;
use perennial::proto::resp::CommandCursor;
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
        group.finish();
    }
}

criterion_group!(benches, framing);
criterion_main!(benches);
