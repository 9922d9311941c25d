//! Snapshots in parts, over a store that fails at every step.

use super::*;
use crate::archive::block::BlockContext;
use crate::archive::layout::{ArchiveId, DOCUMENT_FORMAT, Object, Source, TimelineDocument};
use crate::archive::snapshot::SnapshotReader;
use crate::archive::timeline::Catalog;
use crate::clock::SystemClock;
use crate::follow::uploader::Shared;
use crate::position::{TimelineSeq, UnixMillis};
use crate::store::Store;
use crate::store::faulty::{Fault, Faults, FaultyStore};
use crate::store::memory::MemoryStore;

pub(super) const MIB: u64 = 1024 * 1024;
const THREE_BLOCKS: u64 = 10 * MIB;
pub(super) const CONTEXT: BlockContext = BlockContext {
    archive: ArchiveId::from_raw([1; 16]),
    timeline: TimelineSeq::FIRST,
    id: ReplicationId::from_raw([3; 20]),
};

/// A payload that nothing makes shorter. Of a version without a checksum.
pub(super) fn payload(bytes_min: u64) -> Bytes {
    let mut bytes = b"REDIS0004".to_vec();
    let mut state = 7_u64;
    while (bytes.len() as u64) < bytes_min {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state >> 16).to_le_bytes()[..6]);
    }
    bytes.push(0xff);
    bytes.into()
}

/// Stores the payload as a master would send it.
async fn take(
    store: Arc<dyn Store>,
    parting: &Arc<Parting>,
    payload: &Bytes,
) -> Result<u64, SnapshotFailure> {
    let (encoder, budget) = (Encoder::new(), Budget::new(32 * MIB));
    let clock = SystemClock::new();
    let shared = Shared {
        budget: Arc::clone(&budget),
        spool: None,
        rate: None,
        clock: Arc::new(SystemClock::new()),
    };
    let uploader = Uploader::new(store, CONTEXT, None, shared);
    let parting = Arc::clone(parting);
    let builder = SnapshotBuilder::new(Offset::new(40), clock.unix());
    let mut sink = SnapshotSink::begin(uploader, encoder, budget, parting, builder, &clock).await?;
    for piece in payload.chunks(1 << 20) {
        sink.write(payload.slice_ref(piece)).await?;
    }
    let taken = sink.finish("the test", &clock).await?;
    Ok(taken.bytes)
}

fn in_parts() -> Arc<Parting> {
    let parting = Parting::new(MIB);
    parting.set_data_bytes(MIB + 1);
    parting
}

async fn catalog(store: &MemoryStore) -> Catalog {
    let listed = store.list("", None).await.unwrap();
    let objects = listed.into_iter().map(|entry| {
        let object = Object::parse(entry.name.as_str()).unwrap();
        (entry.name, object, entry.bytes)
    });
    let document = TimelineDocument {
        format: DOCUMENT_FORMAT,
        seq: CONTEXT.timeline,
        id: CONTEXT.id,
        parent: None,
        start: Offset::ZERO,
        mapped: false,
        suspect: None,
        created_at: UnixMillis(1),
        created_by: "test".into(),
        source: Source::default(),
    };
    Catalog::new(None, vec![document], objects)
}

/// How many snapshots there are; each is read, and must be the payload.
pub(super) async fn whole_ones(store: &MemoryStore, payload: &Bytes) -> usize {
    let catalog = catalog(store).await;
    let snapshots = &catalog.newest().unwrap().snapshots;
    for entry in snapshots {
        let mut reader: Option<SnapshotReader> = None;
        let mut read = Vec::new();
        for (name, bytes) in entry.objects() {
            let object = Object::parse(name.as_str()).unwrap();
            let reader = match &mut reader {
                Some(reader) => {
                    reader.begin_part(name.clone()).unwrap();
                    reader
                }
                none => none.insert(SnapshotReader::new(&object).unwrap()),
            };
            let stored = store.read(&name, None).await.unwrap();
            assert_eq!(stored.len() as u64, bytes);
            reader.push(stored);
            while let Some(bytes) = reader.next().unwrap() {
                read.extend_from_slice(&bytes);
            }
        }
        reader.unwrap().finish().unwrap();
        assert!(read == *payload, "another payload");
    }
    snapshots.len()
}

#[tokio::test]
async fn a_large_snapshot_is_stored_in_parts_and_the_last_one_ends_it() {
    let (store, payload) = (MemoryStore::new(), payload(THREE_BLOCKS));
    let bytes = take(Arc::new(store.clone()), &in_parts(), &payload)
        .await
        .unwrap();
    assert_eq!(bytes, payload.len() as u64);
    let names: Vec<String> = store
        .list("", None)
        .await
        .unwrap()
        .iter()
        .map(|entry| {
            let name = entry.name.as_str();
            name.rsplit_once("-0").unwrap().1.to_owned()
        })
        .collect();
    assert_eq!(
        names,
        [
            "001.rdb.blocks",
            "002.rdb.blocks",
            "003.rdb.blocks",
            "004-end.rdb.blocks"
        ]
    );
    assert_eq!(whole_ones(&store, &payload).await, 1);
    let missing = store.list("", None).await.unwrap()[1].name.clone();
    store.delete(&missing).await.unwrap();
    assert_eq!(whole_ones(&store, &payload).await, 0);
    assert!(catalog(&store).await.problems[0].contains("part 2 is missing"));
}

#[tokio::test]
async fn what_was_expected_to_fit_and_does_not_is_in_parts_the_next_time() {
    let (store, payload) = (MemoryStore::new(), payload(THREE_BLOCKS));
    let parting = Parting::new(5 * MIB);
    let failed = take(Arc::new(store.clone()), &parting, &payload)
        .await
        .unwrap_err();
    assert!(matches!(failed, SnapshotFailure::TooLarge(_)), "{failed}");
    assert!(store.list("", None).await.unwrap().is_empty());
    take(Arc::new(store.clone()), &parting, &payload)
        .await
        .unwrap();
    assert_eq!(whole_ones(&store, &payload).await, 1);
}

#[tokio::test]
async fn whatever_fails_only_whole_snapshots_are_snapshots() {
    let payload = payload(THREE_BLOCKS);
    let counted = FaultyStore::new(Arc::new(MemoryStore::new()), Faults::new());
    take(Arc::new(counted.clone()), &in_parts(), &payload)
        .await
        .unwrap();
    let operations = counted.faults().operations();
    assert!(operations > 9, "{operations}");
    for fault in [Fault::Refuse, Fault::CutShort, Fault::DoneButReportedFailed] {
        for n in 1..=operations {
            let (store, faults) = (MemoryStore::new(), Faults::new());
            faults.at(n, fault);
            let faulty = FaultyStore::new(Arc::new(store.clone()), faults);
            let taken = take(Arc::new(faulty), &in_parts(), &payload).await;
            assert!(taken.is_err(), "{fault:?} at {n}");
            let expected = usize::from(fault == Fault::DoneButReportedFailed && n == operations);
            assert_eq!(
                whole_ones(&store, &payload).await,
                expected,
                "{fault:?} at {n}"
            );
        }
    }
}
