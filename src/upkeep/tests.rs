use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use bytes::Bytes;

use super::*;
use crate::archive::block::{BlockContext, Compressor};
use crate::archive::layout::{
    ArchiveDocument, DOCUMENT_FORMAT, Object, Source, Span, TimelineDocument,
};
use crate::archive::plan::{Plan, Target, plan};
use crate::archive::segment::{Chunk, SegmentBuilder, verify_segment};
use crate::archive::timeline::Catalog;
use crate::position::{Offset, Position, ReplicationId, TimelineSeq};
use crate::store::faulty::{Fault, Faults, FaultyStore};
use crate::store::memory::MemoryStore;
use crate::store::{Created, Listed, Upload};

mod simulated;

const ARCHIVE: ArchiveId = ArchiveId::from_raw([9; 16]);
/// When these archives begin.
const BEGIN: u64 = 1_800_000_000_000;
const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// Tells what it is told.
#[derive(Debug, Default)]
struct TestClock(Mutex<u64>);

impl TestClock {
    fn set(&self, now: u64) {
        *self.0.lock().unwrap() = now;
    }
}

impl Clock for TestClock {
    fn unix(&self) -> UnixMillis {
        UnixMillis(*self.0.lock().unwrap())
    }

    fn ticks(&self) -> Ticks {
        Ticks(*self.0.lock().unwrap())
    }
}

fn id(seq: u32) -> ReplicationId {
    ReplicationId::from_raw([u8::try_from(seq % 250 + 1).unwrap(); 20])
}

/// The byte of every history at this offset: parents and children agree.
fn byte(seq: u32, offset: u64) -> u8 {
    // Runs that differ from offset to offset and from timeline to timeline, and compress.
    let [low, ..] = (offset / 7).to_le_bytes();
    low ^ u8::try_from(seq % 251).unwrap()
}

fn bytes(seq: u32, first: u64, last: u64) -> Bytes {
    (first..=last).map(|offset| byte(seq, offset)).collect()
}

/// An archive in memory, whose clock is moved by hand.
struct World {
    memory: MemoryStore,
    now: u64,
}

impl World {
    async fn new() -> Self {
        let world = Self {
            memory: MemoryStore::new(),
            now: BEGIN,
        };
        world.memory.set_now(UnixMillis(BEGIN));
        let document = ArchiveDocument {
            format: DOCUMENT_FORMAT,
            archive: ARCHIVE,
            name: None,
            created_at: UnixMillis(BEGIN),
        };
        world.put(&Object::Archive, document.encode()).await;
        world
    }

    fn pass_time(&mut self, millis: u64) {
        self.now += millis;
        self.memory.set_now(UnixMillis(self.now));
    }

    async fn put(&self, object: &Object, body: Bytes) {
        self.memory
            .create(&object.name(), vec![body])
            .await
            .unwrap();
    }

    async fn timeline(&self, seq: u32, parent: Option<(u32, u64)>, suspect: bool) {
        let document = TimelineDocument {
            format: DOCUMENT_FORMAT,
            seq: TimelineSeq::new(seq),
            id: id(seq),
            parent: parent.map(|(timeline, offset)| Position {
                timeline: TimelineSeq::new(timeline),
                offset: Offset::new(offset),
            }),
            start: Offset::new(parent.map_or(0, |(_, offset)| offset)),
            mapped: false,
            suspect: suspect.then(|| "a test".into()),
            created_at: UnixMillis(self.now),
            created_by: "test".into(),
            source: Source {
                server: "redis".into(),
                version: "7.0.15".into(),
                run_id: "run".into(),
                address: "127.0.0.1:6379".into(),
                replica: false,
            },
        };
        let object = Object::Timeline {
            seq: document.seq,
            id: document.id,
        };
        self.put(&object, document.encode()).await;
    }

    async fn snapshot(&self, seq: u32, offset: u64, at: u64) {
        let object = Object::Snapshot {
            seq: TimelineSeq::new(seq),
            id: id(seq),
            offset: Offset::new(offset),
            at: UnixMillis(at),
            derived: false,
        };
        self.put(&object, Bytes::from_static(b"a payload")).await;
    }

    /// A segment as a streamer stores it, whose clock says `at`.
    async fn segment(&self, seq: u32, first: u64, last: u64, at: u64) {
        self.segment_of(seq, first, bytes(seq, first, last), at)
            .await;
    }

    async fn segment_of(&self, seq: u32, first: u64, payload: Bytes, at: u64) {
        let last = first + payload.len() as u64 - 1;
        let mut builder = SegmentBuilder::new(Offset::new(first - 1), Some(0));
        builder.push(Chunk {
            bytes: payload,
            at: UnixMillis(at),
            boundary: Some((Offset::new(last), Some(0))),
            database_at_end: Some(0),
        });
        let context = BlockContext {
            archive: ARCHIVE,
            timeline: TimelineSeq::new(seq),
            id: id(seq),
        };
        let mut compressor = Compressor::new();
        let blocks = builder.finish().unwrap().blocks.into_iter();
        let blocks: Vec<Bytes> = blocks
            .map(|block| block.encode(&context, &mut compressor))
            .collect();
        let object = Object::Segment {
            seq: TimelineSeq::new(seq),
            id: id(seq),
            span: Span {
                first: Offset::new(first),
                last: Offset::new(last),
                first_at: UnixMillis(at),
                last_at: UnixMillis(at),
            },
            merged: false,
        };
        self.put(&object, blocks.concat().into()).await;
    }

    async fn catalog(&self) -> Catalog {
        let kept = &mut Kept::default();
        survey(&self.memory, kept, Ticks(0)).await.unwrap().catalog
    }

    async fn names(&self) -> Vec<String> {
        let listed = self.memory.list("timelines/", None).await.unwrap();
        listed.into_iter().map(|it| it.name.to_string()).collect()
    }

    /// Reads the replication stream of a plan, and compares it with what it should be.
    async fn assert_reads(&self, plan: &Plan) {
        for leg in &plan.legs {
            let mut reached = leg.after;
            for segment in &leg.segments {
                let stored = self.memory.read(&segment.name, None).await.unwrap();
                let object = Object::parse(segment.name.as_str()).unwrap();
                for block in verify_segment(&object, stored).unwrap() {
                    let crate::archive::block::Content::Commands { first, last } =
                        block.header.content
                    else {
                        panic!("{} holds something else", segment.name)
                    };
                    let expected = bytes(leg.timeline.as_u32(), first.as_u64(), last.as_u64());
                    assert_eq!(block.payload, expected, "{}", segment.name);
                    assert!(first <= reached.next());
                    reached = reached.max(last);
                }
            }
            assert!(reached >= leg.to, "{leg:?} ends at {reached}");
        }
    }

    fn upkeep(&self, store: Arc<dyn Store>, policy: Policy) -> (Upkeep, Arc<TestClock>) {
        let clock = Arc::new(TestClock::default());
        clock.set(self.now);
        let options = Options {
            policy,
            may_delete: true,
        };
        let upkeep = Upkeep::new(
            store,
            ARCHIVE,
            options,
            Arc::clone(&clock) as Arc<dyn Clock>,
        );
        (upkeep, clock)
    }

    fn own_upkeep(&self, policy: Policy) -> (Upkeep, Arc<TestClock>) {
        self.upkeep(Arc::new(self.memory.clone()), policy)
    }
}

fn at(timeline: u32, offset: u64) -> Target {
    Target::Offset(Position {
        timeline: TimelineSeq::new(timeline),
        offset: Offset::new(offset),
    })
}

/// Two streamers' pieces, cut in different places, for two minutes.
async fn two_streamers() -> World {
    let mut world = World::new().await;
    world.timeline(1, None, false).await;
    world.snapshot(1, 0, BEGIN).await;
    for second in 0..120_u64 {
        world.pass_time(SECOND);
        world
            .segment(1, second * 100 + 1, second * 100 + 100, world.now)
            .await;
        if second > 0 {
            let first = second * 100 - 30;
            world
                .segment(1, first, first + 99, world.now - 3 * HOUR)
                .await;
        }
    }
    world
}

#[tokio::test]
async fn overlapping_pieces_become_one_and_go_after_the_grace_period() {
    let mut world = two_streamers().await;
    world.pass_time(6 * MINUTE);
    let (mut upkeep, clock) = world.own_upkeep(Policy::default());
    let done = upkeep.pass(|_, _| {}).await.unwrap();
    assert_eq!((done.merges, done.inputs), (2, 239), "{done:?}");
    assert_eq!(done.deleted_merged, 0);
    let merged: Vec<String> = world.names().await;
    let merged = merged
        .iter()
        .filter(|name| name.contains("/merged/"))
        .count();
    assert_eq!(merged, 2);
    let whole = plan(&world.catalog().await, Target::Latest).unwrap();
    assert_eq!(whole.segments(), 2, "merged ones are read");
    world.assert_reads(&whole).await;

    world.pass_time(11 * MINUTE);
    clock.set(world.now);
    let done = upkeep.pass(|_, _| {}).await.unwrap();
    assert_eq!(done.deleted_merged, 239, "{done:?}");
    assert_eq!(world.names().await.len(), 2 + 2);
    let whole = plan(&world.catalog().await, Target::Latest).unwrap();
    world.assert_reads(&whole).await;
    for offset in [1, 75, 5999, 6001, 12_000] {
        let plan = plan(&world.catalog().await, at(1, offset)).unwrap();
        world.assert_reads(&plan).await;
    }
}

/// Whoever finds a merged segment of somebody else reads all of it before he deletes.
#[tokio::test]
async fn another_process_reads_before_it_deletes() {
    let mut world = two_streamers().await;
    world.pass_time(6 * MINUTE);
    let (mut first, _) = world.own_upkeep(Policy::default());
    first.pass(|_, _| {}).await.unwrap();
    world.pass_time(11 * MINUTE);
    // One of the merged ones is damaged in its middle.
    let catalog = world.catalog().await;
    let merged = plan(&catalog, Target::Latest).unwrap().legs[0].segments[1].clone();
    let mut stored = world
        .memory
        .read(&merged.name, None)
        .await
        .unwrap()
        .to_vec();
    let middle = stored.len() / 2;
    stored[middle] ^= 1;
    world.memory.overwrite(&merged.name, stored.into());
    world.pass_time(11 * MINUTE);
    let (mut second, _) = world.own_upkeep(Policy::default());
    let done = second.pass(|_, _| {}).await.unwrap();
    assert_eq!(done.alarms.len(), 1, "{done:?}");
    assert!(done.alarms[0].contains("is damaged"), "{done:?}");
    let left = world.names().await;
    let raw = left
        .iter()
        .filter(|name| name.contains("/segments/"))
        .count();
    assert!(
        raw >= 100,
        "what only the damaged one covers stays: {raw} of 239"
    );
    assert_eq!(second.report().tally().barred, 1);
}

#[tokio::test]
async fn bytes_that_differ_stop_merging_and_are_said() {
    let mut world = World::new().await;
    world.timeline(1, None, false).await;
    world.snapshot(1, 0, BEGIN).await;
    for piece in 0..20_u64 {
        world.pass_time(SECOND);
        world
            .segment(1, piece * 100 + 1, piece * 100 + 100, world.now)
            .await;
    }
    // A piece of another history, across two others.
    let mut wrong = bytes(1, 951, 1050).to_vec();
    wrong[70] ^= 1;
    world.segment_of(1, 951, wrong.into(), world.now).await;
    world.pass_time(6 * MINUTE);
    let (mut upkeep, clock) = world.own_upkeep(Policy::default());
    let done = upkeep.pass(|_, _| {}).await.unwrap();
    assert_eq!(done.merges, 0);
    assert!(done.alarms[0].contains("differ"), "{done:?}");
    for _ in 0..5 {
        world.pass_time(15 * MINUTE);
        clock.set(world.now);
        upkeep.pass(|_, _| {}).await.unwrap();
    }
    let left = world.names().await;
    assert!(
        left.iter()
            .any(|name| name.contains("00000000000000000951-")),
        "{left:?}"
    );
    assert!(
        left.iter().any(|name| name.contains("/merged/")),
        "the rest is merged: {left:?}"
    );
    assert_eq!(upkeep.report().tally().barred, 2);
}

#[tokio::test]
async fn a_wrong_clock_deletes_nothing() {
    let mut world = two_streamers().await;
    let (mut upkeep, clock) = world.own_upkeep(Policy::default());
    world.pass_time(6 * MINUTE);
    clock.set(world.now);
    upkeep.pass(|_, _| {}).await.unwrap();
    world.pass_time(20 * MINUTE);
    for wrong in [
        world.now - 6 * MINUTE,
        world.now + 6 * MINUTE,
        world.now + 900 * HOUR,
    ] {
        clock.set(wrong);
        let done = upkeep.pass(|_, _| {}).await.unwrap();
        assert_eq!(done.deleted_merged, 0);
        assert!(done.refused.unwrap().contains("clock"));
    }
    clock.set(world.now);
    let done = upkeep.pass(|_, _| {}).await.unwrap();
    assert_eq!(done.deleted_merged, 239);
    let probes = world.memory.list("", None).await.unwrap();
    assert_eq!(probes.len(), 5, "nothing of the probe is left: {probes:?}");
}

/// Each operation of the store goes wrong in turn, in each way; afterwards everything is there, and is kept.
#[tokio::test]
async fn whatever_fails_nothing_is_lost_and_the_next_pass_goes_on() {
    let policy = Policy {
        grace_millis: MINUTE,
        ..Policy::default()
    };
    for fault in [Fault::Refuse, Fault::CutShort, Fault::DoneButReportedFailed] {
        for nth in 1.. {
            let mut world = World::new().await;
            world.timeline(1, None, false).await;
            world.snapshot(1, 0, BEGIN).await;
            world.segment(1, 1, 50, BEGIN).await;
            world.pass_time(2 * HOUR);
            world.snapshot(1, 50, world.now).await;
            for piece in 0..4_u64 {
                world
                    .segment(1, 51 + piece * 60, 120 + piece * 60, world.now)
                    .await;
            }
            world.pass_time(3 * HOUR);
            let faults = Faults::new();
            let store = FaultyStore::new(Arc::new(world.memory.clone()), faults.clone());
            let policy = Policy {
                retention_millis: 2 * HOUR,
                ..policy
            };
            let (mut upkeep, clock) = world.upkeep(Arc::new(store), policy);
            faults.at(nth, fault);
            for _ in 0..4 {
                // What fails is told, or done again.
                let _ = upkeep.pass(|_, _| {}).await;
                let whole = plan(&world.catalog().await, Target::Latest).unwrap();
                world.assert_reads(&whole).await;
                world.pass_time(5 * MINUTE);
                clock.set(world.now);
            }
            let operations = faults.operations();
            faults.clear();
            let done = upkeep.pass(|_, _| {}).await.unwrap();
            assert!(
                !done.goes_on && done.alarms.is_empty(),
                "{fault:?} at {nth}: {done:?}"
            );
            let left = world.names().await;
            assert_eq!(left.len(), 3, "{fault:?} at {nth}: {left:?}");
            if operations < nth {
                assert!(nth > 20, "it is never that quick");
                break;
            }
        }
    }
}

/// A store that refuses to delete is asked once a day, and merging goes on.
#[tokio::test]
async fn no_delete_deletes_nothing() {
    let mut world = two_streamers().await;
    world.pass_time(6 * MINUTE);
    let (mut upkeep, clock) = world.own_upkeep(Policy::default());
    upkeep.options.may_delete = false;
    for _ in 0..3 {
        upkeep.pass(|_, _| {}).await.unwrap();
        world.pass_time(100 * 24 * HOUR);
        clock.set(world.now);
    }
    let left = world.names().await;
    let raw = left
        .iter()
        .filter(|name| name.contains("/segments/"))
        .count();
    assert_eq!(raw, 239);
    assert!(left.iter().any(|name| name.contains("/merged/")));
}

/// Where the store's clock is our own both jump together, and only the ticks tell.
#[test]
fn a_clock_that_jumps_ahead_is_not_believed() {
    let known = |known, now, ticks| clock::Known::advance(known, UnixMillis(now), Ticks(ticks));
    let first = known(None, BEGIN, 0).unwrap();
    let later = known(Some(first), BEGIN + 7 * HOUR, 7 * HOUR - 4 * MINUTE).unwrap();
    let refused = known(Some(later), BEGIN + 9 * HOUR, 8 * HOUR).unwrap_err();
    assert!(refused.contains("went"), "{refused}");
    // Put back and right again.
    let back = known(Some(later), BEGIN, 8 * HOUR).unwrap();
    assert!(known(Some(back), BEGIN + 8 * HOUR, 8 * HOUR).is_ok());
    assert!(known(Some(back), BEGIN + 9 * HOUR, 8 * HOUR).is_err());
}

/// A clock whose ticks go on while the time jumps.
#[derive(Debug)]
struct Jumping(TestClock, u64);

impl Clock for Jumping {
    fn unix(&self) -> UnixMillis {
        UnixMillis(self.0.unix().0 + self.1)
    }

    fn ticks(&self) -> Ticks {
        self.0.ticks()
    }
}

#[tokio::test]
async fn a_jump_since_the_last_pass_refuses_for_good() {
    let mut world = two_streamers().await;
    let (mut upkeep, clock) = world.own_upkeep(Policy::default());
    world.pass_time(6 * MINUTE);
    clock.set(world.now);
    upkeep.pass(|_, _| {}).await.unwrap();
    let ticks = TestClock::default();
    ticks.set(world.now);
    world.pass_time(100 * 24 * HOUR);
    upkeep.clock = Arc::new(Jumping(ticks, 100 * 24 * HOUR));
    for _ in 0..2 {
        let done = upkeep.pass(|_, _| {}).await.unwrap();
        assert_eq!(done.deleted_merged + done.deleted_pruned, 0);
        let refused = done.refused.unwrap();
        assert!(refused.contains("went"), "{refused}");
    }
}

#[tokio::test]
async fn an_object_from_the_future_is_named() {
    let mut world = two_streamers().await;
    world.pass_time(6 * MINUTE);
    let right = world.now;
    world.pass_time(400 * 24 * HOUR);
    world.snapshot(1, 12_000, right).await;
    world.now = right;
    world.pass_time(0);
    let (mut upkeep, _) = world.own_upkeep(Policy::default());
    let refused = upkeep.pass(|_, _| {}).await.unwrap().refused.unwrap();
    assert!(refused.contains("/snapshots/"), "{refused}");
}

#[tokio::test]
async fn what_is_gone_is_forgotten() {
    let mut world = two_streamers().await;
    world.pass_time(6 * MINUTE);
    let (mut upkeep, clock) = world.own_upkeep(Policy::default());
    upkeep.pass(|_, _| {}).await.unwrap();
    let known = |upkeep: &Upkeep| upkeep.agreed.values().map(BTreeSet::len).sum::<usize>();
    assert_eq!(known(&upkeep), 239);
    world.pass_time(11 * MINUTE);
    clock.set(world.now);
    upkeep.pass(|_, _| {}).await.unwrap();
    upkeep.survey().await.unwrap();
    assert_eq!(known(&upkeep), 0);
}

/// Dates that copies bear which kept none: nothing is older than the program.
#[tokio::test]
async fn objects_that_lost_their_dates_are_new() {
    for lost in [0, 1000, 315_532_800_000] {
        let mut world = World::new().await;
        world.memory.set_now(UnixMillis(lost));
        world.timeline(1, None, false).await;
        world.snapshot(1, 0, BEGIN).await;
        world.segment(1, 1, 50, BEGIN).await;
        world.snapshot(1, 50, BEGIN + HOUR).await;
        world.segment(1, 51, 90, BEGIN + HOUR).await;
        world.pass_time(30 * 24 * HOUR);
        world.segment(1, 91, 95, world.now).await;
        let before = world.names().await;
        let (mut upkeep, _) = world.own_upkeep(Policy::default());
        let done = upkeep.pass(|_, _| {}).await.unwrap();
        assert_eq!((done.deleted_pruned, &done.refused), (0, &None), "{done:?}");
        assert_eq!(world.names().await, before);
    }
}

/// A store that keeps what was written for years refuses in words of its own, and reads one object to nobody; how many read at once
/// is counted.
#[derive(Debug)]
struct Undeletable {
    memory: MemoryStore,
    kind: StoreErrorKind,
    unreadable: Mutex<Option<ObjectName>>,
    reads: AtomicUsize,
    most_reads: AtomicUsize,
}

impl Undeletable {
    fn new(world: &World, kind: StoreErrorKind) -> Arc<Self> {
        Arc::new(Self {
            memory: world.memory.clone(),
            kind,
            unreadable: Mutex::default(),
            reads: AtomicUsize::new(0),
            most_reads: AtomicUsize::new(0),
        })
    }
}

#[async_trait::async_trait]
impl Store for Undeletable {
    async fn create(&self, name: &ObjectName, body: Vec<Bytes>) -> Result<Created, StoreError> {
        self.memory.create(name, body).await
    }

    async fn begin_upload(&self, name: &ObjectName) -> Result<Box<dyn Upload>, StoreError> {
        self.memory.begin_upload(name).await
    }

    async fn read(
        &self,
        name: &ObjectName,
        range: Option<std::ops::Range<u64>>,
    ) -> Result<Bytes, StoreError> {
        let reads = self.reads.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_reads.fetch_max(reads, Ordering::SeqCst);
        // Whoever else is about to read does it now.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        self.reads.fetch_sub(1, Ordering::SeqCst);
        if self.unreadable.lock().unwrap().as_ref() == Some(name) {
            let address = self.address();
            return Err(StoreError::new(
                self.kind,
                "read",
                name,
                address,
                "no".into(),
            ));
        }
        self.memory.read(name, range).await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> Result<Vec<Listed>, StoreError> {
        self.memory.list(prefix, start_after).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let (kind, address) = (self.kind, self.address());
        Err(StoreError::new(kind, "delete", name, address, "no".into()))
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        self.memory.prepare().await
    }

    fn address(&self) -> String {
        self.memory.address()
    }
}

#[tokio::test]
async fn whatever_deleting_fails_with_merging_goes_on() {
    for kind in [
        StoreErrorKind::Denied,
        StoreErrorKind::Invalid,
        StoreErrorKind::Conflict,
        StoreErrorKind::Unavailable,
    ] {
        let mut world = two_streamers().await;
        world.pass_time(6 * MINUTE);
        let store = Undeletable::new(&world, kind);
        let (mut upkeep, clock) = world.upkeep(store, Policy::default());
        // The store's time is asked for, and what it is learnt from is not deleted.
        let done = upkeep.pass(|_, _| {}).await;
        assert_eq!(done.is_err(), kind == StoreErrorKind::Unavailable);
        let merges = upkeep.report().tally().merges;
        assert!(merges > 0, "{kind:?}");
        world.pass_time(11 * MINUTE);
        clock.set(world.now);
        world.segment(1, 12_001, 12_100, world.now).await;
        world.segment(1, 12_101, 12_200, world.now).await;
        world.pass_time(3 * MINUTE);
        clock.set(world.now);
        let done = upkeep.pass(|_, _| {}).await;
        assert!(
            upkeep.report().tally().merges > merges,
            "{kind:?}: {done:?}"
        );
        let is_retried = kind == StoreErrorKind::Unavailable;
        assert_eq!(done.is_err(), is_retried);
        assert_eq!(upkeep.may_delete(), is_retried);
        let refused = upkeep.report().tally().deletions_refused;
        assert_eq!(refused, u64::from(!is_retried), "said once a day");
    }
}

/// A bad sector under one segment: nothing else waits for it.
#[tokio::test]
async fn what_cannot_be_read_keeps_only_itself_from_being_merged() {
    for kind in [StoreErrorKind::Denied, StoreErrorKind::Unavailable] {
        let mut world = World::new().await;
        world.timeline(1, None, false).await;
        world.snapshot(1, 0, BEGIN).await;
        for minute in 0..6_u64 {
            for half in 0..2_u64 {
                let first = (minute * 2 + half) * 10 + 1;
                world.segment(1, first, first + 9, world.now).await;
            }
            world.pass_time(MINUTE);
        }
        world.pass_time(10 * MINUTE);
        let store = Undeletable::new(&world, kind);
        let first = world.catalog().await.timelines().next().unwrap().segments[0]
            .name
            .clone();
        *store.unreadable.lock().unwrap() = Some(first);
        let (mut upkeep, _) = world.upkeep(Arc::clone(&store) as Arc<dyn Store>, Policy::default());
        assert!(upkeep.pass(|_, _| {}).await.is_err(), "{kind:?}");
        let merges = upkeep.report().tally().merges;
        assert!(merges >= 4, "{kind:?}: {merges}");

        *store.unreadable.lock().unwrap() = None;
        let _ = upkeep.pass(|_, _| {}).await;
        assert!(upkeep.report().tally().merges > merges, "{kind:?}");
    }
}

#[tokio::test]
async fn a_few_are_read_ahead_and_not_all() {
    let world = World::new().await;
    world.timeline(1, None, false).await;
    world.segment(1, 1, 5000, BEGIN).await;
    for piece in 0..50 {
        world
            .segment(1, piece * 100 + 1, piece * 100 + 100, BEGIN)
            .await;
    }
    let catalog = world.catalog().await;
    let segments = &catalog.timeline(TimelineSeq::new(1)).unwrap().segments;
    let counted = Undeletable::new(&world, StoreErrorKind::Denied);
    let store: Arc<dyn Store> = Arc::clone(&counted) as Arc<dyn Store>;
    join::compare(&store, ARCHIVE, &segments[0], &segments[1..])
        .await
        .unwrap();
    let most = counted.most_reads.load(Ordering::SeqCst);
    assert!((2..=8).contains(&most), "{most} at once");
}
