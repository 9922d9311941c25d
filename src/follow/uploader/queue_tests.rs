//! The queue of pieces, over stores that hang, fail and are slow, with time moved by the runtime.

use std::ops::Range;

use async_trait::async_trait;

use super::*;
use crate::archive::layout::ArchiveId;
use crate::follow::spool::SpoolOptions;
use crate::position::{Offset, ReplicationId, TimelineSeq, UnixMillis};
use crate::store::memory::MemoryStore;
use crate::store::{Created, Listed, Upload};

const MIB: u64 = 1024 * 1024;
const CONTEXT: BlockContext = BlockContext {
    archive: ArchiveId::from_raw([1; 16]),
    timeline: TimelineSeq::FIRST,
    id: ReplicationId::from_raw([3; 20]),
};
/// Far more of the runtime's time than anything here takes.
const DEADLINE: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug)]
struct RuntimeClock(tokio::time::Instant);

impl Clock for RuntimeClock {
    fn unix(&self) -> UnixMillis {
        UnixMillis(0)
    }

    fn ticks(&self) -> Ticks {
        Ticks(u64::try_from(self.0.elapsed().as_millis()).unwrap())
    }
}

/// A store whose `create` takes time, and a permit where they are counted.
#[derive(Debug)]
struct SlowStore {
    inner: MemoryStore,
    permits: Option<Semaphore>,
    takes: Duration,
    /// How many may be on their way at once without running out of time, all of them.
    together_max: usize,
    /// Of a thousand, so many fail besides.
    fails_per_mille: u64,
    random: Mutex<u64>,
    on_their_way: Mutex<(usize, usize)>,
    failures: AtomicU64,
}

impl SlowStore {
    fn new() -> Self {
        Self {
            inner: MemoryStore::new(),
            permits: None,
            takes: Duration::from_millis(30),
            together_max: usize::MAX,
            fails_per_mille: 0,
            random: Mutex::new(1),
            on_their_way: Mutex::default(),
            failures: AtomicU64::new(0),
        }
    }

    fn fails(&self) -> bool {
        random(&mut lock(&self.random), 1000) < self.fails_per_mille
    }
}

fn random(state: &mut u64, below: u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % below
}

#[async_trait]
impl Store for SlowStore {
    async fn create(&self, name: &ObjectName, body: Vec<Bytes>) -> Result<Created, StoreError> {
        let before = {
            let mut on_their_way = lock(&self.on_their_way);
            on_their_way.0 += 1;
            on_their_way.1 += 1;
            (on_their_way.0 > 1, on_their_way.1)
        };
        if let Some(permits) = &self.permits {
            permits.acquire().await.unwrap().forget();
        }
        tokio::time::sleep(self.takes).await;
        let together = {
            let mut on_their_way = lock(&self.on_their_way);
            on_their_way.0 -= 1;
            // Somebody was there before, or came since.
            1 + usize::from(before.0 || on_their_way.1 > before.1)
        };
        if together > self.together_max || self.fails() {
            self.failures.fetch_add(1, Ordering::AcqRel);
            let kind = StoreErrorKind::Unavailable;
            let detail = "too slow".to_owned();
            return Err(StoreError::new(
                kind,
                "create",
                name,
                self.address(),
                detail,
            ));
        }
        self.inner.create(name, body).await
    }

    async fn begin_upload(&self, name: &ObjectName) -> Result<Box<dyn Upload>, StoreError> {
        self.inner.begin_upload(name).await
    }

    async fn read(
        &self,
        name: &ObjectName,
        range: Option<Range<u64>>,
    ) -> Result<Bytes, StoreError> {
        self.inner.read(name, range).await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> Result<Vec<Listed>, StoreError> {
        self.inner.list(prefix, start_after).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.inner.delete(name).await
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        self.inner.prepare().await
    }

    fn address(&self) -> String {
        "slow".into()
    }
}

/// An uploader over a store, and pieces for it.
struct Bench {
    store: Arc<SlowStore>,
    uploader: Arc<Uploader>,
    budget: Arc<Budget>,
    spool: Option<Arc<Spool>>,
    _folder: tempfile::TempDir,
    end: u64,
    sent: Vec<(Span, Bytes)>,
}

impl Bench {
    #[allow(
        clippy::disallowed_methods,
        reason = "the runtime's time, which the test moves"
    )]
    fn new(store: SlowStore, memory: u64, spool: Option<u64>, per_second: Option<u64>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().to_owned();
        let spool = spool.map(|bytes_max| Spool::new(SpoolOptions { dir, bytes_max }));
        let (budget, store) = (Budget::new(memory), Arc::new(store));
        let clock: Arc<dyn Clock> = Arc::new(RuntimeClock(tokio::time::Instant::now()));
        let rate = per_second.map(|rate| Arc::new(Mutex::new(Rate::new(rate, clock.ticks()))));
        let shared = Shared {
            budget: Arc::clone(&budget),
            spool: spool.clone(),
            rate,
            clock,
        };
        let known = Some(Boundary {
            offset: Offset::ZERO,
            database: None,
        });
        Self {
            uploader: Uploader::new(Arc::clone(&store) as _, CONTEXT, known, shared),
            store,
            budget,
            spool,
            _folder: folder,
            end: 0,
            sent: Vec::new(),
        }
    }

    /// Submits a piece of so many bytes, which ends at a command.
    fn submit(&mut self, bytes: u64) {
        let first = Offset::new(self.end + 1);
        self.end += bytes;
        let fill = u8::try_from(self.sent.len() % 251).unwrap();
        let body = Bytes::from(vec![fill; usize::try_from(bytes).unwrap()]);
        let held = self.budget.reserve(bytes);
        let span = Span {
            first,
            last: Offset::new(self.end),
            first_at: UnixMillis(0),
            last_at: UnixMillis(0),
        };
        self.sent.push((span, body.clone()));
        self.uploader.submit(Piece {
            span,
            boundary: Some(Boundary {
                offset: span.last,
                database: None,
            }),
            blocks: vec![tokio::spawn(async move { (body, held) })],
        });
    }

    async fn until(&self, what: &str, wish: impl Fn(&Self) -> bool) {
        let wished = async {
            while !wish(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(DEADLINE, wished).await;
        assert!(waited.is_ok(), "in vain until {what}: {:?}", self.uploader);
    }

    async fn drained(&self) {
        self.until("all is stored", |it| it.uploader.in_flight() == 0)
            .await;
    }

    fn spooled(&self) -> u64 {
        self.spool.as_ref().map_or(0, |spool| spool.used())
    }

    fn durable(&self) -> u64 {
        self.uploader.durable().unwrap().offset.as_u64()
    }

    /// Everything is there as it was sent, and nothing is held any more.
    async fn assert_all_stored(&self) {
        assert_eq!(self.durable(), self.end);
        assert_eq!(self.uploader.lost(), None);
        for (span, body) in &self.sent {
            let object = Object::Segment {
                seq: CONTEXT.timeline,
                id: CONTEXT.id,
                span: *span,
                merged: false,
            };
            assert_eq!(self.store.read(&object.name(), None).await.unwrap(), body);
        }
        self.until("nothing is held", |it| {
            it.spooled() == 0 && it.budget.used() == 0
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn on_a_line_that_is_too_slow_for_two_they_go_one_at_a_time() {
    let store = SlowStore {
        takes: Duration::from_secs(100),
        together_max: 1,
        ..SlowStore::new()
    };
    let mut bench = Bench::new(store, 64 * MIB, None, None);
    for _ in 0..64 {
        bench.submit(1000);
    }
    bench.drained().await;
    bench.assert_all_stored().await;
    let failures = bench.store.failures.load(Ordering::Acquire);
    eprintln!("{failures} failures");
    assert!(failures >= 4, "{failures}: they went together");
    // Four tries that run out of time, then sixteen pieces one at a time, and so on.
    assert!(failures <= 24, "{failures}");
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_they_go_together_again() {
    let mut bench = Bench::new(SlowStore::new(), 64 * MIB, None, None);
    bench.uploader.line.failed();
    for _ in 0..ALONE_AFTER_FAILURE {
        bench.submit(10);
    }
    bench.drained().await;
    let permits = Some(Semaphore::new(0));
    let mut together = Bench::new(
        SlowStore {
            permits,
            ..SlowStore::new()
        },
        MIB,
        None,
        None,
    );
    for _ in 0..8 {
        together.submit(10);
    }
    assert!(matches!(
        bench.uploader.line.enter().await,
        OnLine::Together { .. }
    ));
    let all = UPLOADS_IN_FLIGHT_MAX;
    let on_their_way = |it: &Bench| lock(&it.store.on_their_way).0 == all;
    together.until("four are on their way", on_their_way).await;
    together.store.permits.as_ref().unwrap().add_permits(8);
    together.drained().await;
    together.assert_all_stored().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_spool_refused_is_offered_again_when_it_has_room() {
    let permits = Some(Semaphore::new(0));
    let store = SlowStore {
        permits,
        ..SlowStore::new()
    };
    let mut bench = Bench::new(store, 8 * MIB, Some(2 * MIB), None);
    let coming_in = bench.budget.reserve(2 * MIB);
    for _ in 0..4 {
        bench.submit(MIB);
    }
    bench
        .until("four are on their way", |it| {
            lock(&it.store.on_their_way).0 == 4
        })
        .await;
    for _ in 0..4 {
        bench.submit(MIB);
    }
    bench
        .until("the spool is full", |it| {
            it.spooled() == 2 * MIB && it.spool.as_ref().unwrap().is_full()
        })
        .await;
    // Four that are uploaded, two that were refused, and what comes in.
    assert_eq!(bench.budget.used(), 8 * MIB);
    bench.store.permits.as_ref().unwrap().add_permits(2);
    bench
        .until("two others are in the spool", |it| {
            it.uploader.in_flight() == 6 && it.spooled() == 2 * MIB && it.budget.used() == 6 * MIB
        })
        .await;
    bench.store.permits.as_ref().unwrap().add_permits(6);
    drop(coming_in);
    bench.drained().await;
    bench.assert_all_stored().await;
    assert!(!bench.spool.as_ref().unwrap().is_full());
}

#[tokio::test(start_paused = true)]
async fn nothing_behind_a_lost_piece_is_durable() {
    let permits = Some(Semaphore::new(0));
    let store = SlowStore {
        permits,
        ..SlowStore::new()
    };
    let mut bench = Bench::new(store, 2 * MIB, Some(64 * MIB), None);
    let _coming_in = bench.budget.reserve(MIB);
    for _ in 0..8 {
        bench.submit(MIB / 2);
    }
    bench
        .until("five are in the spool", |it| it.spooled() >= 5 * MIB / 2)
        .await;
    bench.spool.as_ref().unwrap().spoil();
    bench.submit(10);
    bench.store.permits.as_ref().unwrap().add_permits(9);
    bench.drained().await;
    assert!(bench.uploader.lost().is_some());
    let durable = bench.durable();
    assert!(
        durable < 8 * MIB / 2 && durable.is_multiple_of(MIB / 2),
        "{durable}"
    );
    // What was lost is not there.
    let stored = bench.store.list("", None).await.unwrap().len();
    assert!(stored < 9, "{stored}");
    assert_eq!(bench.spooled(), 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_durable_before_the_store_has_it() {
    let store = SlowStore {
        permits: Some(Semaphore::new(0)),
        ..SlowStore::new()
    };
    let mut bench = Bench::new(store, MIB, None, None);
    for _ in 0..3 {
        bench.submit(100);
    }
    tokio::time::sleep(DEADLINE).await;
    assert_eq!(bench.durable(), 0);
    for stored in 1..=3 {
        bench.store.permits.as_ref().unwrap().add_permits(1);
        bench
            .until("the next one is stored", |it| {
                it.uploader.in_flight() == 3 - stored
            })
            .await;
        assert_eq!(bench.durable(), 100 * stored as u64);
    }
    bench.assert_all_stored().await;
}

#[tokio::test(start_paused = true)]
async fn other_bytes_under_the_same_name_are_never_durable() {
    let mut bench = Bench::new(SlowStore::new(), MIB, None, None);
    bench.submit(100);
    bench.drained().await;
    let span = Span {
        first: Offset::new(101),
        last: Offset::new(200),
        first_at: UnixMillis(0),
        last_at: UnixMillis(0),
    };
    let taken = Object::Segment {
        seq: CONTEXT.timeline,
        id: CONTEXT.id,
        span,
        merged: false,
    };
    let other = vec![Bytes::from_static(b"of another history")];
    bench.store.create(&taken.name(), other).await.unwrap();
    bench.submit(100);
    bench.submit(100);
    tokio::time::sleep(DEADLINE).await;
    assert_eq!(bench.durable(), 100);
    assert!(bench.uploader.subscribe().borrow().failing.is_some());
}

/// Pieces of any size at any time, a store that fails now and then, little memory and a small spool, a rate or none:
/// everything is stored in the end, and nothing is held.
#[tokio::test(start_paused = true)]
async fn whatever_comes_is_stored_and_nothing_gets_stuck() {
    let seed = u64::from(getrandom::u32().unwrap());
    eprintln!("seed {seed}");
    let mut state = seed;
    for round in 0..40 {
        let store = SlowStore {
            takes: Duration::from_millis(random(&mut state, 2000)),
            fails_per_mille: random(&mut state, 400),
            random: Mutex::new(state),
            ..SlowStore::new()
        };
        let memory = 64 * 1024 + random(&mut state, 256 * 1024);
        let spool = (random(&mut state, 4) > 0).then(|| 16 * 1024 + random(&mut state, MIB / 2));
        let rate = (random(&mut state, 2) > 0).then(|| 1 + random(&mut state, 50));
        let mut bench = Bench::new(store, memory, spool, rate);
        for _ in 0..60 {
            let largest = if random(&mut state, 10) == 0 {
                memory
            } else {
                memory / 8
            };
            bench.submit(1 + random(&mut state, largest));
            let pause = random(&mut state, 300);
            if pause < 200 {
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            assert!(bench.durable() <= bench.end);
        }
        eprintln!(
            "round {round}: {memory} {spool:?} {rate:?} {:?}",
            bench.spool
        );
        bench.drained().await;
        bench.assert_all_stored().await;
    }
}
