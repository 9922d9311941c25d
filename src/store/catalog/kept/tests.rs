use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::archive::block::{BlockContext, Compressor};
use crate::archive::layout::{
    AcceptedDocument, ArchiveDocument, ArchiveId, DOCUMENT_FORMAT, ObjectName, Source,
};
use crate::archive::segment::{Chunk, SegmentBuilder};
use crate::clock::SystemClock;
use crate::position::Position;
use crate::store::Operation;
use crate::store::catalog::{Loaded, load_kept};
use crate::store::measured::{Counts, MeasuredStore, Observer};
use crate::store::memory::MemoryStore;

const ARCHIVE: ArchiveId = ArchiveId::from_raw([7; 16]);
/// Bytes of each segment of the bulk.
const BULK_BYTES: u64 = 100;

/// An archive in memory, whose requests are counted.
struct Archived {
    memory: MemoryStore,
    store: MeasuredStore,
    counts: Arc<Counts>,
}

fn id(seq: u32) -> ReplicationId {
    ReplicationId::from_raw([u8::try_from(seq).unwrap(); 20])
}

fn span(first: u64, last: u64) -> Span {
    Span {
        first: Offset::new(first),
        last: Offset::new(last),
        first_at: UnixMillis(first),
        last_at: UnixMillis(first),
    }
}

fn segment(seq: u32, first: u64, last: u64, merged: bool) -> Object {
    Object::Segment {
        seq: TimelineSeq::new(seq),
        id: id(seq),
        span: span(first, last),
        merged,
    }
}

/// A segment as it would be stored.
fn encoded(seq: u32, first: u64, last: u64) -> Bytes {
    let after = Offset::new(first - 1);
    let mut builder = SegmentBuilder::new(after, Some(0));
    let length = usize::try_from(last + 1 - first).unwrap();
    builder.push(Chunk {
        bytes: vec![b'x'; length].into(),
        at: UnixMillis(first),
        boundary: Some((Offset::new(last), Some(0))),
        database_at_end: Some(0),
    });
    let context = BlockContext {
        archive: ARCHIVE,
        timeline: TimelineSeq::new(seq),
        id: id(seq),
    };
    let blocks = builder.finish().unwrap().blocks.into_iter();
    let mut compressor = Compressor::new();
    let blocks: Vec<Bytes> = blocks
        .map(|block| block.encode(&context, &mut compressor))
        .collect();
    blocks.concat().into()
}

impl Archived {
    async fn new() -> Self {
        let memory = MemoryStore::new();
        let counts = Arc::new(Counts::default());
        let store = MeasuredStore::new(
            Arc::new(memory.clone()),
            Arc::clone(&counts) as Arc<dyn Observer>,
            Arc::new(SystemClock::new()),
        );
        let archived = Self {
            memory,
            store,
            counts,
        };
        let document = ArchiveDocument {
            format: DOCUMENT_FORMAT,
            archive: ARCHIVE,
            name: None,
            created_at: UnixMillis(1),
        };
        archived
            .put(&Object::Archive.name(), document.encode())
            .await;
        archived
    }

    async fn put(&self, name: &ObjectName, body: Bytes) {
        self.memory.create(name, vec![body]).await.unwrap();
    }

    async fn timeline(&self, seq: u32, parent: Option<Position>, start: u64, suspect: bool) {
        let document = TimelineDocument {
            format: DOCUMENT_FORMAT,
            seq: TimelineSeq::new(seq),
            id: id(seq),
            parent,
            start: Offset::new(start),
            mapped: false,
            suspect: suspect.then(|| "a test".into()),
            created_at: UnixMillis(u64::from(seq)),
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
        self.put(&object.name(), document.encode()).await;
    }

    async fn snapshot(&self, seq: u32, offset: u64) {
        let object = Object::Snapshot {
            seq: TimelineSeq::new(seq),
            id: id(seq),
            offset: Offset::new(offset),
            at: UnixMillis(offset),
            derived: false,
        };
        self.put(&object.name(), Bytes::from_static(b"never read"))
            .await;
    }

    async fn segment(&self, seq: u32, first: u64, last: u64) {
        let object = segment(seq, first, last, false);
        self.put(&object.name(), encoded(seq, first, last)).await;
    }

    /// A timeline with a snapshot at 0 and so many segments, of which only the last has anything in it. Returns its
    /// end.
    async fn bulk(&self, seq: u32, segments: u64) -> u64 {
        self.snapshot(seq, 0).await;
        for number in 1..segments {
            let object = segment(
                seq,
                (number - 1) * BULK_BYTES + 1,
                number * BULK_BYTES,
                false,
            );
            self.put(&object.name(), Bytes::new()).await;
        }
        let last = segments * BULK_BYTES;
        self.segment(seq, last + 1 - BULK_BYTES, last).await;
        last
    }

    async fn look(&self, kept: &mut Kept, listing: Listing, now: u64) -> Loaded {
        load_kept(&self.store, &[], kept, listing, Ticks(now))
            .await
            .unwrap()
    }
}

/// What it costs to look at an archive of a hundred thousand segments: a request for each thousand at the start and
/// once an hour, four in between.
#[tokio::test]
async fn a_hundred_thousand_segments_are_listed_once_an_hour() {
    let archived = Archived::new().await;
    archived.timeline(1, None, 0, false).await;
    let end = archived.bulk(1, 100_000).await;
    let mut kept = Kept::default();
    let counts = &archived.counts;

    let loaded = archived.look(&mut kept, Listing::Later, 0).await;
    assert_eq!(loaded.listing(), Listing::Whole, "nothing is known yet");
    assert_eq!(loaded.catalog.head().unwrap().offset, Offset::new(end));
    // The segments, the snapshot and the document.
    assert_eq!(counts.list_pages(), 100_002_u64.div_ceil(LIST_PAGE_OBJECTS));
    // archive.json, timeline.json, and the last segment up to its end.
    assert_eq!(counts.of(Operation::Read), 4);

    let (pages, reads) = (counts.list_pages(), counts.of(Operation::Read));
    // A server that is away for an hour and looked at every two seconds.
    let looks = RELIST_MILLIS / 2_000;
    for number in 1..looks.min(4) {
        let loaded = archived
            .look(&mut kept, Listing::Later, number * 2_000)
            .await;
        assert_eq!(loaded.listing(), Listing::Later);
        assert_eq!(loaded.catalog.head().unwrap().offset, Offset::new(end));
        assert_eq!(counts.list_pages(), pages + 4 * number);
        assert_eq!(counts.of(Operation::Read), reads + 3 * number);
    }
    let pages = counts.list_pages();
    let loaded = archived
        .look(&mut kept, Listing::Later, RELIST_MILLIS)
        .await;
    assert_eq!(loaded.listing(), Listing::Whole);
    assert_eq!(counts.list_pages(), pages + 101);
}

#[tokio::test]
async fn a_small_archive_is_one_request() {
    let archived = Archived::new().await;
    archived.timeline(1, None, 0, false).await;
    archived.bulk(1, 900).await;
    let mut kept = Kept::default();
    for number in 1..=5 {
        archived.look(&mut kept, Listing::Later, number).await;
        assert_eq!(archived.counts.list_pages(), number);
    }
}

#[tokio::test]
async fn what_is_too_much_is_not_kept() {
    let mut kept = Kept::default();
    for number in 0..=KEPT_OBJECTS_MAX as u64 {
        kept.objects.insert(
            segment(1, number + 1, number + 1, false),
            (1, UnixMillis(0)),
        );
    }
    kept.whole_at = Some(Ticks(0));
    assert!(kept.later_is_cheaper(Ticks(1)));
    kept.trim();
    assert!(!kept.later_is_cheaper(Ticks(1)) && kept.objects.is_empty());
}

/// Something listed earlier was merged and is gone when it is read: everything is listed again.
#[tokio::test]
async fn an_object_that_went_away_is_looked_for_in_the_whole_archive() {
    let archived = Archived::new().await;
    archived.timeline(1, None, 0, false).await;
    let end = archived.bulk(1, 6_000).await;
    let mut kept = Kept::default();
    archived.look(&mut kept, Listing::Later, 0).await;
    let last = segment(1, end + 1 - BULK_BYTES, end, false).name();
    archived.memory.delete(&last).await.unwrap();
    archived
        .segment(1, end + 1 - 2 * BULK_BYTES, end - BULK_BYTES / 2)
        .await;
    let loaded = archived.look(&mut kept, Listing::Later, 1).await;
    assert_eq!(loaded.listing(), Listing::Whole);
    let head = loaded.catalog.head().unwrap();
    assert_eq!(head.offset, Offset::new(end - BULK_BYTES / 2));
}

/// Draws numbers from a seed that a failure prints.
struct Drawn(u64);

impl Drawn {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Whatever other streamers, people and upkeep do between two looks: what is listed later leads to the same head and
/// the same ends as everything.
#[tokio::test]
async fn what_came_later_leads_to_the_same_heads_as_everything() {
    let seed = getrandom::u64().unwrap();
    eprintln!("seed {seed}");
    let mut drawn = Drawn(seed);
    let archived = Archived::new().await;
    archived.timeline(1, None, 0, false).await;
    archived.timeline(2, None, 0, true).await;
    let mut ends = vec![
        archived.bulk(1, 12_000).await,
        archived.bulk(2, 12_000).await,
    ];
    // What upkeep may merge: pieces that were added here, by timeline.
    let mut pieces: Vec<Vec<(u64, u64)>> = vec![Vec::new(), Vec::new()];
    let mut kept = Kept::default();
    archived.look(&mut kept, Listing::Whole, 0).await;
    let mut later = 0;
    for step in 0..15_u64 {
        for _ in 0..=drawn.below(4) {
            let at = usize::try_from(drawn.below(ends.len() as u64)).unwrap();
            let seq = u32::try_from(at + 1).unwrap();
            match drawn.below(10) {
                // The next piece of this timeline.
                0..=3 => {
                    let last = ends[at] + 1 + drawn.below(300);
                    archived.segment(seq, ends[at] + 1, last).await;
                    pieces[at].push((ends[at] + 1, last));
                    ends[at] = last;
                }
                // Another streamer's, cut elsewhere.
                4 | 5 => {
                    let first = ends[at] - drawn.below(2_000).min(ends[at] - 1);
                    let last = ends[at] + 1 + drawn.below(300);
                    archived.segment(seq, first, last).await;
                    ends[at] = last;
                }
                6 => archived.snapshot(seq, ends[at] - drawn.below(500)).await,
                // Upkeep: one object in place of several.
                7 if pieces[at].len() > 2 => {
                    let merged: Vec<(u64, u64)> = pieces[at].drain(..).collect();
                    merge(&archived, seq, &merged).await;
                }
                8 if ends.len() < 5 => {
                    let parent = Position {
                        timeline: TimelineSeq::new(seq),
                        offset: Offset::new(ends[at]),
                    };
                    let child = u32::try_from(ends.len() + 1).unwrap();
                    archived
                        .timeline(child, Some(parent), ends[at], drawn.below(3) == 0)
                        .await;
                    ends.push(ends[at]);
                    pieces.push(Vec::new());
                }
                9 if drawn.below(5) == 0 => {
                    let document = AcceptedDocument {
                        format: DOCUMENT_FORMAT,
                        accepted_at: UnixMillis(step),
                        by: "test".into(),
                        reason: "because".into(),
                    };
                    let object = Object::Accepted {
                        seq: TimelineSeq::new(seq),
                        id: id(seq),
                        rank: TimelineSeq::new(u32::try_from(ends.len()).unwrap()),
                        order: u32::try_from(step).unwrap() + 1,
                    };
                    archived.put(&object.name(), document.encode()).await;
                }
                _ => {}
            }
        }
        let found = archived.look(&mut kept, Listing::Later, step).await;
        later += u64::from(found.listing() == Listing::Later);
        let whole = archived
            .look(&mut Kept::default(), Listing::Whole, step)
            .await;
        let (found, whole) = (&found.catalog, &whole.catalog);
        assert_eq!(found.head(), whole.head(), "seed {seed}, step {step}");
        assert_eq!(found.next_seq(), whole.next_seq());
        assert_eq!(found.timelines().count(), whole.timelines().count());
        for timeline in whole.timelines() {
            let seq = timeline.seq();
            assert_eq!(found.end(seq), whole.end(seq), "seed {seed}, step {step}");
            assert_eq!(found.windows(seq), whole.windows(seq), "seed {seed}");
            assert_eq!(found.suspect(seq), whole.suspect(seq), "seed {seed}");
        }
    }
    assert!(later > 12, "only {later} of 15 looks were cheap");
}

async fn merge(archived: &Archived, seq: u32, pieces: &[(u64, u64)]) {
    // Only what is contiguous: another streamer's pieces may lie between.
    let contiguous = pieces
        .windows(2)
        .take_while(|pair| pair[0].1 + 1 == pair[1].0);
    let count = contiguous.count() + 1;
    let merged = &pieces[..count];
    let mut bodies = Vec::new();
    for (first, last) in merged {
        let name = segment(seq, *first, *last, false).name();
        bodies.push(archived.memory.read(&name, None).await.unwrap());
    }
    let last_at = UnixMillis(merged[count - 1].0);
    let object = Object::Segment {
        seq: TimelineSeq::new(seq),
        id: id(seq),
        span: Span {
            last_at,
            ..span(merged[0].0, merged[count - 1].1)
        },
        merged: true,
    };
    archived.put(&object.name(), bodies.concat().into()).await;
    for (first, last) in merged {
        let name = segment(seq, *first, *last, false).name();
        archived.memory.delete(&name).await.unwrap();
    }
}
