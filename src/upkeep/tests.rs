use std::pin::pin;
use std::sync::Mutex;
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
