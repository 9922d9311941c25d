//! A payload that comes faster than the store takes it.

use super::parts_tests::{CONTEXT, MIB, payload, whole_ones};
use super::*;
use crate::clock::SystemClock;
use crate::follow::spool::{Spool, SpoolOptions};
use crate::follow::uploader::Shared;
use crate::store::faulty::{Faults, FaultyStore};
use crate::store::memory::MemoryStore;

/// For what will be.
const LONG: Duration = Duration::from_secs(60);
/// For what never will.
const SHORT: Duration = Duration::from_secs(2);

/// A payload half way into a store that holds what it is asked.
struct Scene {
    store: MemoryStore,
    faults: Faults,
    budget: Arc<Budget>,
    spool: Option<Arc<Spool>>,
    sink: SnapshotSink,
    clock: SystemClock,
    _folder: tempfile::TempDir,
}

impl Scene {
    async fn begin(spool_bytes: Option<u64>) -> Self {
        let (store, faults) = (MemoryStore::new(), Faults::new());
        let faulty = FaultyStore::new(Arc::new(store.clone()), faults.clone());
        let folder = tempfile::tempdir().unwrap();
        let spool = spool_bytes.map(|bytes_max| {
            let dir = folder.path().to_owned();
            Spool::new(SpoolOptions { dir, bytes_max })
        });
        let budget = Budget::new(32 * MIB);
        let shared = Shared {
            budget: Arc::clone(&budget),
            spool: spool.clone(),
            rate: None,
            clock: Arc::new(SystemClock::new()),
        };
        let uploader = Uploader::new(Arc::new(faulty), CONTEXT, None, shared);
        let (parting, clock) = (Parting::new(PART_BYTES_MAX), SystemClock::new());
        let sink = SnapshotSink::begin(
            uploader,
            Encoder::new(),
            Arc::clone(&budget),
            parting,
            SnapshotBuilder::new(Offset::new(40), clock.unix()),
            &clock,
        );
        let sink = sink.await.unwrap();
        faults.hold_all(true);
        Self {
            store,
            faults,
            budget,
            spool,
            sink,
            clock,
            _folder: folder,
        }
    }

    async fn write(&mut self, payload: &Bytes) -> Result<(), WriteError> {
        for piece in payload.chunks(1 << 20) {
            self.sink.write(payload.slice_ref(piece)).await?;
        }
        Ok(())
    }

    /// Whether the whole payload is taken although the store takes nothing.
    async fn takes_all(&mut self, payload: &Bytes, patience: Duration) -> bool {
        let written = tokio::time::timeout(patience, self.write(payload));
        written.await.is_ok_and(|written| written.is_ok())
    }

    fn spooled(&self) -> u64 {
        self.spool.as_ref().unwrap().used()
    }
}

#[tokio::test]
async fn a_payload_is_taken_while_the_store_holds() {
    let payload = payload(40 * MIB);
    let mut scene = Scene::begin(Some(1 << 30)).await;
    assert!(scene.takes_all(&payload, LONG).await);
    assert!(scene.spooled() > 20 * MIB, "{}", scene.spooled());
    assert!(scene.budget.used() <= 16 * MIB, "{}", scene.budget.used());
    scene.faults.hold_all(false);
    let taken = scene.sink.finish("the test", &scene.clock).await.unwrap();
    assert_eq!(taken.bytes, payload.len() as u64);
    assert_eq!(scene.spool.unwrap().used(), 0);
    assert_eq!(scene.budget.used(), 0);
    assert_eq!(whole_ones(&scene.store, &payload).await, 1);
}

#[tokio::test]
async fn without_room_the_payload_waits() {
    let payload = payload(40 * MIB);
    for spool_bytes in [None, Some(16 * MIB)] {
        let mut scene = Scene::begin(spool_bytes).await;
        assert!(!scene.takes_all(&payload, SHORT).await, "{spool_bytes:?}");
        // The stream has the other half of the spool for itself.
        let spooled = scene.spool.as_ref().map_or(0, |spool| spool.used());
        assert!(spooled <= 8 * MIB, "{spooled}");
        drop(scene.sink);
        let empty = async {
            while scene.budget.used() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), empty)
            .await
            .expect("everything is given back");
    }
}

/// Whoever waits goes on when the store does.
#[tokio::test]
async fn with_a_full_spool_it_goes_on_when_the_store_does() {
    let payload = payload(40 * MIB);
    let mut scene = Scene::begin(Some(16 * MIB)).await;
    let faults = scene.faults.clone();
    let healed = async {
        while scene.spool.as_ref().unwrap().used() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        faults.hold_all(false);
    };
    let writing = async {
        for piece in payload.chunks(1 << 20) {
            scene.sink.write(payload.slice_ref(piece)).await?;
        }
        Ok::<(), WriteError>(())
    };
    let (written, ()) = tokio::join!(writing, healed);
    written.unwrap();
    scene.sink.finish("the test", &scene.clock).await.unwrap();
    assert_eq!(whole_ones(&scene.store, &payload).await, 1);
}

#[tokio::test]
async fn a_block_that_cannot_be_read_back_ends_the_snapshot() {
    let payload = payload(40 * MIB);
    let mut scene = Scene::begin(Some(1 << 30)).await;
    assert!(scene.takes_all(&payload, LONG).await);
    scene.spool.as_ref().unwrap().spoil();
    scene.faults.hold_all(false);
    let failed = scene.sink.finish("the test", &scene.clock).await;
    assert!(
        matches!(failed, Err(SnapshotFailure::Spool(_))),
        "{failed:?}"
    );
    assert_eq!(whole_ones(&scene.store, &payload).await, 0);
}

#[tokio::test]
async fn a_store_that_refuses_is_heard_of_while_waiting() {
    let payload = payload(40 * MIB);
    let mut scene = Scene::begin(None).await;
    scene.faults.refuse_all(true);
    scene.faults.hold_all(false);
    let failed = scene.write(&payload).await;
    assert!(matches!(failed, Err(WriteError::Store(_))), "{failed:?}");
}
