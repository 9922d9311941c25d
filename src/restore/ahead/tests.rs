use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use async_trait::async_trait;

use super::*;
use crate::archive::block::{BlockContext, Compressor};
use crate::archive::layout::{ArchiveId, DOCUMENT_FORMAT, Object, Source, TimelineDocument};
use crate::archive::plan::{Plan, Target, plan};
use crate::archive::segment::{Chunk, SegmentBuilder};
use crate::archive::timeline::Catalog;
use crate::position::{Offset, ReplicationId, TimelineSeq, UnixMillis};
use crate::restore::source::{self, SourceError, Spelling};
use crate::store::memory::MemoryStore;
use crate::store::{Created, Listed, StoreErrorKind, Upload};

const LATE: Duration = Duration::from_millis(50);
const ARCHIVE: ArchiveId = ArchiveId::from_raw([1; 16]);
const ID: ReplicationId = ReplicationId::from_raw([3; 20]);

/// A store that answers each read late, counts how many it is asked at once, and fails where it is told to.
#[derive(Clone, Debug, Default)]
struct LateStore {
    inner: MemoryStore,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    reads: AtomicU64,
    now: AtomicUsize,
    now_bytes: AtomicU64,
    at_once: AtomicUsize,
    at_once_bytes: AtomicU64,
    /// The names whose reads fail, how often, and how.
    failures: std::sync::Mutex<BTreeMap<String, (u32, StoreErrorKind)>>,
}

impl LateStore {
    async fn put(&self, name: &ObjectName, bytes: Bytes) {
        self.inner.create(name, vec![bytes]).await.unwrap();
    }

    fn fail(&self, name: &ObjectName, times: u32, kind: StoreErrorKind) {
        let mut failures = self.state.failures.lock().unwrap();
        failures.insert(name.to_string(), (times, kind));
    }

    fn failure(&self, name: &ObjectName) -> Option<StoreErrorKind> {
        let mut failures = self.state.failures.lock().unwrap();
        let (times, kind) = failures.get_mut(name.as_str())?;
        *times = times.checked_sub(1)?;
        Some(*kind)
    }

    fn at_once(&self) -> (usize, u64) {
        let state = &self.state;
        (
            state.at_once.load(Ordering::SeqCst),
            state.at_once_bytes.load(Ordering::SeqCst),
        )
    }
}

#[async_trait]
impl Store for LateStore {
    async fn create(&self, name: &ObjectName, body: Vec<Bytes>) -> Result<Created, StoreError> {
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
        let state = &self.state;
        let bytes = range.as_ref().map_or(0, |range| range.end - range.start);
        state.reads.fetch_add(1, Ordering::SeqCst);
        let now = state.now.fetch_add(1, Ordering::SeqCst) + 1;
        let now_bytes = state.now_bytes.fetch_add(bytes, Ordering::SeqCst) + bytes;
        state.at_once.fetch_max(now, Ordering::SeqCst);
        state.at_once_bytes.fetch_max(now_bytes, Ordering::SeqCst);
        tokio::time::sleep(LATE).await;
        state.now.fetch_sub(1, Ordering::SeqCst);
        state.now_bytes.fetch_sub(bytes, Ordering::SeqCst);
        if let Some(kind) = self.failure(name) {
            let detail = "as the test wants it".to_owned();
            return Err(StoreError::new(kind, "read", name, self.address(), detail));
        }
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
        Ok(())
    }

    fn address(&self) -> String {
        "late".to_owned()
    }
}

/// Bytes of which no two stretches look alike.
fn distinct(bytes: u64) -> Bytes {
    (0..bytes.div_ceil(8))
        .flat_map(u64::to_le_bytes)
        .take(usize::try_from(bytes).unwrap())
        .collect()
}

async fn objects(store: &LateStore, lengths: &[u64]) -> Vec<(ObjectName, u64)> {
    let mut objects = Vec::new();
    for (number, length) in lengths.iter().enumerate() {
        let name = ObjectName::new(&format!("object-{number:05}")).unwrap();
        store.put(&name, distinct(*length)).await;
        objects.push((name, *length));
    }
    objects
}

#[tokio::test(start_paused = true)]
async fn many_small_objects_are_read_at_once_and_given_in_order() {
    let store = LateStore::default();
    let lengths: Vec<u64> = (0..1000).map(|number| number % 7 * 1000).collect();
    let objects = objects(&store, &lengths).await;
    let mut ahead = ReadAhead::new(Arc::new(store.clone()), objects);
    for length in lengths {
        let piece = ahead.next().await.unwrap().unwrap();
        assert!(piece.last);
        assert_eq!(piece.bytes, distinct(length));
    }
    assert!(ahead.next().await.unwrap().is_none());
    assert_eq!(store.state.reads.load(Ordering::SeqCst), 1000, "one each");
    assert_eq!(store.at_once().0, READS_AHEAD_MAX);
}

#[tokio::test(start_paused = true)]
async fn large_objects_are_read_in_ranges_within_the_bytes_allowed() {
    let store = LateStore::default();
    let lengths = [
        9 * READ_BYTES + 5,
        0,
        READ_BYTES,
        READ_BYTES - 1,
        10 * READ_BYTES,
    ];
    let objects = objects(&store, &lengths).await;
    let mut ahead = ReadAhead::new(Arc::new(store.clone()), objects);
    for length in lengths {
        let mut whole = Vec::new();
        loop {
            let piece = ahead.next().await.unwrap().unwrap();
            whole.extend_from_slice(&piece.bytes);
            // What is held and not yet taken counts as well.
            assert!(ahead.bytes <= READ_AHEAD_BYTES_MAX);
            if piece.last {
                break;
            }
        }
        assert_eq!(whole, distinct(length));
    }
    let (reads, bytes) = store.at_once();
    assert!(
        bytes > READ_AHEAD_BYTES_MAX - READ_BYTES && bytes <= READ_AHEAD_BYTES_MAX,
        "{bytes}"
    );
    // As many as fit at full length, and not the bound on small ones.
    let full = usize::try_from(READ_AHEAD_BYTES_MAX / READ_BYTES).unwrap();
    assert!((full..READS_AHEAD_MAX).contains(&reads), "{reads}");
}

#[tokio::test(start_paused = true)]
async fn whoever_looks_at_the_first_bytes_makes_few_reads() {
    let store = LateStore::default();
    let mut objects = objects(&store, &[3 * READ_BYTES]).await;
    objects[0].1 = 100 * READ_BYTES;
    let mut ahead = ReadAhead::new(Arc::new(store.clone()), objects);
    ahead.next().await.unwrap().unwrap();
    drop(ahead);
    tokio::time::sleep(LATE * 10).await;
    assert!(store.state.reads.load(Ordering::SeqCst) <= 3);
}

#[tokio::test(start_paused = true)]
async fn more_than_the_list_promised_is_seen_and_less_is_no_error_here() {
    let store = LateStore::default();
    let longer = objects(&store, &[100, 100]).await;
    store.inner.overwrite(&longer[0].0, distinct(500));
    store.inner.overwrite(&longer[1].0, distinct(50));
    let mut ahead = ReadAhead::new(Arc::new(store), longer);
    assert_eq!(ahead.next().await.unwrap().unwrap().bytes.len(), 101);
    assert_eq!(ahead.next().await.unwrap().unwrap().bytes.len(), 50);
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_tried_again_within_bounds_and_what_cannot_is_not() {
    let store = LateStore::default();
    let objects = objects(&store, &[10]).await;
    let name = objects[0].0.clone();
    let read = |times, kind| {
        store.fail(&name, times, kind);
        store.state.reads.store(0, Ordering::SeqCst);
        let mut ahead = ReadAhead::new(Arc::new(store.clone()), objects.clone());
        let reads = &store.state.reads;
        async move {
            let outcome = ahead.next().await.map(|piece| piece.unwrap().bytes.len());
            (
                outcome.map_err(|error| error.kind),
                reads.load(Ordering::SeqCst),
            )
        }
    };
    assert_eq!(read(4, StoreErrorKind::Unavailable).await, (Ok(10), 5));
    let gone = Err(StoreErrorKind::Unavailable);
    assert_eq!(read(5, StoreErrorKind::Unavailable).await, (gone, 5));
    for kind in [StoreErrorKind::NotFound, StoreErrorKind::Denied] {
        assert_eq!(read(1, kind).await, (Err(kind), 1));
    }
}

/// Fifty segments of one command each behind offset 0, and the plan of all of them.
async fn segments(store: &LateStore) -> Plan {
    let context = BlockContext {
        archive: ARCHIVE,
        timeline: TimelineSeq::FIRST,
        id: ID,
    };
    let snapshot = Object::Snapshot {
        seq: context.timeline,
        id: ID,
        offset: Offset::ZERO,
        at: UnixMillis(5),
        derived: false,
    };
    let mut objects = vec![(snapshot.name(), snapshot, 0)];
    for number in 0..50 {
        let after = Offset::new(number * 14);
        let end = after.plus(14);
        let mut builder = SegmentBuilder::new(after, Some(0));
        builder.push(Chunk {
            bytes: Bytes::from_static(b"*1\r\n$4\r\nPING\r\n"),
            at: UnixMillis(10 + number),
            boundary: Some((end, Some(0))),
            database_at_end: Some(0),
        });
        let sealed = builder.finish().unwrap();
        let name = sealed.name(context.timeline, context.id);
        let mut compressor = Compressor::new();
        let blocks = sealed.blocks.into_iter();
        let body: Vec<Bytes> = blocks
            .map(|block| block.encode(&context, &mut compressor))
            .collect();
        let body: Bytes = body.concat().into();
        store.put(&name, body.clone()).await;
        objects.push((
            name.clone(),
            Object::parse(name.as_str()).unwrap(),
            body.len() as u64,
        ));
    }
    let document = TimelineDocument {
        format: DOCUMENT_FORMAT,
        seq: context.timeline,
        id: ID,
        parent: None,
        start: Offset::ZERO,
        mapped: false,
        suspect: None,
        created_at: UnixMillis(1),
        created_by: "test".into(),
        source: Source::default(),
    };
    let catalog = Catalog::new(None, vec![document], objects);
    plan(&catalog, Target::Latest).unwrap()
}

/// How many bytes came before the end, and how it ended.
async fn read_all(store: &LateStore, plan: &Plan) -> (usize, Result<(), SourceError>) {
    let store = Arc::new(store.clone());
    let mut stream = source::stream(store, ARCHIVE, plan, Spelling::Archived);
    let mut bytes = 0;
    loop {
        match stream.next().await {
            Ok(Some(piece)) => bytes += piece.len(),
            Ok(None) => return (bytes, Ok(())),
            Err(error) => return (bytes, Err(error)),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_in_any_of_the_reads_is_met_at_its_place() {
    let store = LateStore::default();
    let plan = segments(&store).await;
    let (bytes, outcome) = read_all(&store, &plan).await;
    outcome.unwrap();
    assert_eq!(bytes, 50 * 14);
    for (number, segment) in plan.legs[0].segments.iter().enumerate() {
        store.fail(&segment.name, 1, StoreErrorKind::Invalid);
        // A later failure that comes sooner changes nothing.
        if let Some(later) = plan.legs[0].segments.get(number + 1) {
            store.fail(&later.name, 1, StoreErrorKind::Denied);
        }
        let (bytes, outcome) = read_all(&store, &plan).await;
        assert_eq!(bytes, number * 14, "everything before it, nothing behind");
        let Err(SourceError::Store(error)) = outcome else {
            panic!("{number}: {outcome:?}");
        };
        assert_eq!(error.kind, StoreErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(segment.name.as_str()), "{error}");
        store.state.failures.lock().unwrap().clear();
    }
    let damaged = &plan.legs[0].segments[20].name;
    store
        .inner
        .overwrite(damaged, Bytes::from_static(b"no block"));
    let (bytes, outcome) = read_all(&store, &plan).await;
    assert_eq!(bytes, 20 * 14);
    assert!(
        matches!(outcome, Err(SourceError::Segment { .. })),
        "{outcome:?}"
    );
}
