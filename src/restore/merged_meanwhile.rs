//! Upkeep merges and deletes under a restore: it goes on with what is there now.

use std::sync::Arc;

use bytes::Bytes;

use super::source::{self, SourceError, Spelling};
use crate::archive::block::{BlockContext, Compressor};
use crate::archive::layout::{
    ArchiveDocument, ArchiveId, DOCUMENT_FORMAT, Object, Source, Span, TimelineDocument,
};
use crate::archive::plan::{Target, plan};
use crate::archive::segment::{Chunk, SegmentBuilder};
use crate::position::{Offset, ReplicationId, TimelineSeq, UnixMillis};
use crate::store::Store;
use crate::store::catalog;
use crate::store::memory::MemoryStore;

const ARCHIVE: ArchiveId = ArchiveId::from_raw([3; 16]);
const SEQ: TimelineSeq = TimelineSeq::FIRST;
const SEGMENTS: u64 = 300;
const COMMAND: &[u8] = b"*2\r\n$4\r\nECHO\r\n$4\r\nonce\r\n";

fn id() -> ReplicationId {
    ReplicationId::from_raw([5; 20])
}

fn length() -> u64 {
    COMMAND.len() as u64
}

fn segment(first: u64, last: u64, merged: bool) -> Object {
    Object::Segment {
        seq: SEQ,
        id: id(),
        span: Span {
            first: Offset::new(first),
            last: Offset::new(last),
            first_at: UnixMillis(first),
            last_at: UnixMillis(last + 1 - length()),
        },
        merged,
    }
}

/// The `number`th segment: one command.
fn nth(number: u64) -> Object {
    segment(number * length() + 1, (number + 1) * length(), false)
}

fn encoded(number: u64) -> Bytes {
    let after = Offset::new(number * length());
    let mut builder = SegmentBuilder::new(after, Some(0));
    builder.push(Chunk {
        bytes: Bytes::from_static(COMMAND),
        at: UnixMillis(number * length() + 1),
        boundary: Some((after.plus(length()), Some(0))),
        database_at_end: Some(0),
    });
    let context = BlockContext {
        archive: ARCHIVE,
        timeline: SEQ,
        id: id(),
    };
    let mut compressor = Compressor::new();
    let blocks = builder.finish().unwrap().blocks.into_iter();
    let blocks: Vec<Bytes> = blocks
        .map(|block| block.encode(&context, &mut compressor))
        .collect();
    blocks.concat().into()
}

async fn put(store: &MemoryStore, object: &Object, body: Bytes) {
    store.create(&object.name(), vec![body]).await.unwrap();
}

async fn archive() -> MemoryStore {
    let store = MemoryStore::new();
    let document = ArchiveDocument {
        format: DOCUMENT_FORMAT,
        archive: ARCHIVE,
        name: None,
        created_at: UnixMillis(1),
    };
    put(&store, &Object::Archive, document.encode()).await;
    let document = TimelineDocument {
        format: DOCUMENT_FORMAT,
        seq: SEQ,
        id: id(),
        parent: None,
        start: Offset::ZERO,
        mapped: false,
        suspect: None,
        created_at: UnixMillis(1),
        created_by: "test".into(),
        source: Source::default(),
    };
    let timeline = Object::Timeline { seq: SEQ, id: id() };
    put(&store, &timeline, document.encode()).await;
    let snapshot = Object::Snapshot {
        seq: SEQ,
        id: id(),
        offset: Offset::ZERO,
        at: UnixMillis(1),
        derived: false,
    };
    put(&store, &snapshot, Bytes::from_static(b"a payload")).await;
    for number in 0..SEGMENTS {
        put(&store, &nth(number), encoded(number)).await;
    }
    store
}

/// Makes these one, and deletes them.
async fn merge(store: &MemoryStore, from: u64, to: u64) {
    let bodies: Vec<Bytes> = (from..to).map(encoded).collect();
    let merged = segment(from * length() + 1, to * length(), true);
    put(store, &merged, bodies.concat().into()).await;
    for number in from..to {
        store.delete(&nth(number).name()).await.unwrap();
    }
}

#[tokio::test]
async fn a_restore_goes_on_with_what_was_merged_meanwhile() {
    let store = archive().await;
    let loaded = catalog::load(&store, &[]).await.unwrap();
    let planned = plan(&loaded.catalog, Target::Latest).unwrap();
    for spelling in [Spelling::Archived, Spelling::Rewritten] {
        let store = archive().await;
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        let mut stream = source::stream(shared, ARCHIVE, &planned, spelling);
        let mut read = stream.next().await.unwrap().unwrap().to_vec();
        merge(&store, 0, 150).await;
        merge(&store, 150, SEGMENTS - 1).await;
        while let Some(bytes) = stream.next().await.unwrap() {
            read.extend_from_slice(&bytes);
        }
        assert!(
            read == COMMAND.repeat(usize::try_from(SEGMENTS).unwrap()),
            "{spelling:?}"
        );
    }
}

/// As they do where a link was resumed, and where the hour's segment lies beside the minutes'.
#[tokio::test]
async fn where_segments_overlap_bytes_come_once() {
    let store = archive().await;
    let bodies = |range: std::ops::Range<u64>| range.map(encoded).collect::<Vec<Bytes>>().concat();
    for (from, to) in [(50, 120), (100, 130), (128, 129)] {
        let merged = segment(from * length() + 1, to * length(), true);
        put(&store, &merged, bodies(from..to).into()).await;
    }
    for number in (60..115).chain(120..127) {
        store.delete(&nth(number).name()).await.unwrap();
    }
    let loaded = catalog::load(&store, &[]).await.unwrap();
    let planned = plan(&loaded.catalog, Target::Latest).unwrap();
    let shared: Arc<dyn Store> = Arc::new(store);
    let mut stream = source::stream(shared, ARCHIVE, &planned, Spelling::Archived);
    let mut read = Vec::new();
    while let Some(bytes) = stream.next().await.unwrap() {
        read.extend_from_slice(&bytes);
    }
    assert!(read == COMMAND.repeat(usize::try_from(SEGMENTS).unwrap()));
}

#[tokio::test]
async fn what_is_nowhere_any_more_is_an_error() {
    let store = archive().await;
    let loaded = catalog::load(&store, &[]).await.unwrap();
    let planned = plan(&loaded.catalog, Target::Latest).unwrap();
    store.delete(&nth(200).name()).await.unwrap();
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let mut stream = source::stream(shared, ARCHIVE, &planned, Spelling::Archived);
    let error: SourceError = loop {
        match stream.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a shorter restore"),
            Err(error) => break error,
        }
    };
    assert!(error.is_gone(), "{error}");
}
