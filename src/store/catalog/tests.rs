use super::*;
use crate::archive::layout::Source;
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
