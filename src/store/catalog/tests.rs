use bytes::Bytes;

use super::*;
use crate::archive::block::{BlockContext, Compressor};
use crate::archive::layout::{Source, Span};
use crate::archive::segment::{Chunk, SegmentBuilder};
use crate::position::Offset;
use crate::store::memory::MemoryStore;

fn root(seq: u32) -> TimelineDocument {
    TimelineDocument {
        format: DOCUMENT_FORMAT,
        seq: TimelineSeq::new(seq),
        id: ReplicationId::from_raw([7; 20]),
        parent: None,
        start: Offset::ZERO,
        mapped: false,
        suspect: None,
        created_at: UnixMillis(1),
        created_by: "test".into(),
        source: Source {
            server: "redis".into(),
            version: "7.0.15".into(),
            run_id: "run".into(),
            address: "127.0.0.1:6379".into(),
            replica: false,
        },
    }
}

/// With another id than their blocks bear, what is there could no longer be restored, nor what is written behind it.
#[tokio::test]
async fn no_second_archive_is_begun_over_timelines_that_lost_their_document() {
    let store = MemoryStore::new();
    let first = open_archive(&store, None, UnixMillis(1)).await.unwrap();
    assert!(create_timeline(&store, &root(1)).await.unwrap());
    store.delete(&Object::Archive.name()).await.unwrap();
    let error = open_archive(&store, None, UnixMillis(2)).await.unwrap_err();
    assert!(!error.is_retryable());
    let said = error.to_string();
    assert!(said.contains("archive.json"), "{said}");
    assert!(read_archive(&store).await.unwrap().is_none());
    let loaded = load(&store, &[]).await;
    assert!(matches!(loaded, Err(CatalogError::Beheaded { .. })));

    store
        .create(&Object::Archive.name(), vec![first.encode()])
        .await
        .unwrap();
    let again = open_archive(&store, None, UnixMillis(3)).await.unwrap();
    assert_eq!(again.archive, first.archive);
}

async fn put_segment(
    store: &MemoryStore,
    archive: ArchiveId,
    first: u64,
    last: u64,
    is_whole: bool,
) {
    let mut builder = SegmentBuilder::new(Offset::new(first - 1), Some(0));
    builder.push(Chunk {
        bytes: (first..=last).map(|_| b'x').collect(),
        at: UnixMillis(first),
        boundary: Some((Offset::new(last), Some(0))),
        database_at_end: Some(0),
    });
    let (timeline, id) = (TimelineSeq::FIRST, root(1).id);
    let context = BlockContext {
        archive,
        timeline,
        id,
    };
    let mut compressor = Compressor::new();
    let blocks = builder.finish().unwrap().blocks.into_iter();
    let encoded = blocks.map(|block| block.encode(&context, &mut compressor));
    let mut body = encoded.collect::<Vec<Bytes>>().concat();
    if !is_whole {
        let middle = body.len() / 2;
        body[middle] ^= 1;
    }
    let object = Object::Segment {
        seq: timeline,
        id,
        span: Span {
            first: Offset::new(first),
            last: Offset::new(last),
            first_at: UnixMillis(first),
            last_at: UnixMillis(first),
        },
        merged: false,
    };
    let created = store.create(&object.name(), vec![body.into()]).await;
    created.unwrap();
}

/// What went on behind a seed is damaged: without it, the timeline that stood for that seed would be the head, and nothing would
/// show that there was more.
#[tokio::test]
async fn whoever_is_the_head_only_because_another_is_damaged_is_damaged_as_well() {
    for is_whole in [true, false] {
        let store = MemoryStore::new();
        let opened = open_archive(&store, None, UnixMillis(1)).await.unwrap();
        assert!(create_timeline(&store, &root(1)).await.unwrap());
        let snapshot = Object::Snapshot {
            seq: TimelineSeq::FIRST,
            id: root(1).id,
            offset: Offset::ZERO,
            at: UnixMillis(1),
            derived: false,
        };
        let payload = vec![Bytes::from_static(b"a payload")];
        store.create(&snapshot.name(), payload).await.unwrap();
        put_segment(&store, opened.archive, 1, 10, true).await;
        put_segment(&store, opened.archive, 11, 20, is_whole).await;
        let stands_for_a_seed = TimelineDocument {
            id: ReplicationId::from_raw([8; 20]),
            parent: Some(Position {
                timeline: TimelineSeq::FIRST,
                offset: Offset::new(10),
            }),
            start: Offset::new(500),
            mapped: true,
            ..root(2)
        };
        assert!(create_timeline(&store, &stands_for_a_seed).await.unwrap());
        let loaded = load(&store, &[]).await.unwrap();
        let head = loaded.catalog.head().unwrap();
        let expected = if is_whole { 1 } else { 2 };
        assert_eq!(head.timeline, TimelineSeq::new(expected));
        assert_eq!(loaded.damaged(head.timeline).is_none(), is_whole);
    }
}
