use proptest::prelude::*;

use super::*;
use crate::archive::block::{BlockContext, Compressor};
use crate::archive::document::{DOCUMENT_FORMAT, Source, TimelineDocument};
use crate::archive::layout::ArchiveDocument;
use crate::archive::plan::{Target, plan};
use crate::archive::segment::{Chunk, SegmentBuilder};
use crate::position::{ReplicationId, TimelineSeq};
use crate::proto::handshake::command;
use crate::restore::source::{Spelling, stream};
use crate::store::catalog;
use crate::store::memory::MemoryStore;

const ARCHIVE: ArchiveId = ArchiveId::from_raw([7; 16]);
const SEQ: TimelineSeq = TimelineSeq::FIRST;
const ID: ReplicationId = ReplicationId::from_raw([1; 20]);
const NOW: UnixMillis = UnixMillis(10_000_000);
/// Of the snapshot.
const START: u64 = 10;
const BEGAN: UnixMillis = UnixMillis(1000);

/// Bytes that came together.
#[derive(Clone, Debug)]
struct Came {
    bytes: Vec<u8>,
    at: u64,
    /// A segment ends with them.
    sealed: bool,
}

async fn archived(came: &[Came]) -> Arc<dyn Store> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let document = ArchiveDocument {
        format: DOCUMENT_FORMAT,
        archive: ARCHIVE,
        name: None,
        created_at: UnixMillis(1),
    };
    let name = Object::Archive.name();
    store.create(&name, vec![document.encode()]).await.unwrap();
    let timeline = TimelineDocument {
        format: DOCUMENT_FORMAT,
        seq: SEQ,
        id: ID,
        parent: None,
        start: Offset::new(START),
        mapped: false,
        suspect: None,
        created_at: UnixMillis(500),
        created_by: "test".into(),
        source: Source {
            server: "redis".into(),
            version: "7.0.15".into(),
            ..Source::default()
        },
    };
    assert!(catalog::create_timeline(&*store, &timeline).await.unwrap());
    let snapshot = Object::Snapshot {
        seq: SEQ,
        id: ID,
        offset: Offset::new(START),
        at: BEGAN,
        derived: false,
    };
    let body = vec![bytes::Bytes::from_static(b"never read")];
    store.create(&snapshot.name(), body).await.unwrap();

    let mut cursor = CommandCursor::new(Offset::new(START), Some(0));
    let mut builder = SegmentBuilder::new(Offset::new(START), Some(0));
    for (index, piece) in came.iter().enumerate() {
        let before = cursor.boundary().offset;
        cursor.feed(&piece.bytes).unwrap();
        let boundary = cursor.boundary();
        builder.push(Chunk {
            bytes: piece.bytes.clone().into(),
            at: UnixMillis(piece.at),
            boundary: (boundary.offset > before).then_some((boundary.offset, boundary.database)),
            database_at_end: cursor.database(),
        });
        if piece.sealed || index + 1 == came.len() {
            let next = SegmentBuilder::new(builder.last(), cursor.database());
            let sealed = std::mem::replace(&mut builder, next).finish().unwrap();
            let context = BlockContext {
                archive: ARCHIVE,
                timeline: SEQ,
                id: ID,
            };
            let name = sealed.name(SEQ, ID);
            let mut compressor = Compressor::new();
            let blocks = sealed.blocks.into_iter();
            let body = blocks.map(|block| block.encode(&context, &mut compressor));
            store.create(&name, body.collect()).await.unwrap();
        }
    }
    store
}

/// The boundaries of the whole stream, the start among them.
fn boundaries(came: &[Came]) -> Vec<Offset> {
    let whole: Vec<u8> = came.iter().flat_map(|piece| piece.bytes.clone()).collect();
    let mut cursor = CommandCursor::new(Offset::new(START), Some(0));
    let mut found = vec![Offset::new(START)];
    for byte in whole {
        cursor.feed(&[byte]).unwrap();
        if cursor.at_boundary() {
            found.push(cursor.offset());
        }
    }
    found
}

fn last_boundary(came: &[Came], upto: u64) -> Offset {
    let upto = Offset::new(upto);
    *boundaries(came).iter().rfind(|it| **it <= upto).unwrap()
}

/// When the last byte up to an offset had come, by a clock that never goes back.
fn received_at(came: &[Came], offset: u64) -> UnixMillis {
    let (mut reached, mut at) = (START, BEGAN);
    for piece in came {
        if reached >= offset {
            break;
        }
        reached += piece.bytes.len() as u64;
        at = at.max(UnixMillis(piece.at));
    }
    at
}

async fn with_moments<T>(store: &Arc<dyn Store>, look: impl AsyncFnOnce(Moments<'_>) -> T) -> T {
    let loaded = catalog::load(&**store, &[]).await.unwrap();
    let way = Way::new(&loaded.catalog, loaded.catalog.head().unwrap());
    let moments = Moments {
        store,
        archive: ARCHIVE,
        way: &way,
    };
    look(moments).await
}

async fn found_at(store: &Arc<dyn Store>, moment: u64) -> Result<Found, MomentError> {
    with_moments(store, async |moments| {
        moments.at_time(UnixMillis(moment), NOW).await
    })
    .await
}

async fn found_before(store: &Arc<dyn Store>, offset: u64) -> Result<Found, MomentError> {
    let position = Position {
        timeline: SEQ,
        offset: Offset::new(offset),
    };
    with_moments(store, async |moments| moments.at_offset(position).await).await
}

fn set(key: &str) -> Vec<u8> {
    command(&[b"SET", key.as_bytes(), b"value"]).to_vec()
}

#[tokio::test]
async fn the_last_whole_command_that_came_by_then() {
    let one = set("a");
    let length = one.len() as u64;
    let came = [
        Came {
            bytes: set("a"),
            at: 2000,
            sealed: false,
        },
        Came {
            bytes: set("b"),
            at: 2100,
            sealed: true,
        },
        Came {
            bytes: set("c"),
            at: 3000,
            sealed: true,
        },
    ];
    let store = archived(&came).await;
    let nth = |count: u64| Offset::new(START + count * length);
    for (moment, offset, received_until, next_by) in [
        (1000, nth(0), 1000, Some(2000)),
        (1999, nth(0), 1000, Some(2000)),
        (2000, nth(1), 2000, Some(2100)),
        (2099, nth(1), 2000, Some(2100)),
        (2100, nth(2), 2100, Some(3000)),
        (2999, nth(2), 2100, Some(3000)),
        (3000, nth(3), 3000, None),
        (9999, nth(3), 3000, None),
    ] {
        let found = found_at(&store, moment).await.unwrap();
        assert_eq!(found.position.offset, offset, "at {moment}");
        assert_eq!(
            found.received_until,
            UnixMillis(received_until),
            "at {moment}"
        );
        assert_eq!(found.next_by(), next_by.map(UnixMillis), "at {moment}");
    }
    assert!(matches!(
        found_at(&store, 999).await,
        Err(MomentError::Outside(OutsideWindow::Before { .. }))
    ));
}

/// Inside a segment, as after a merge, an offset stands for the same times as where a segment ends with it.
#[tokio::test]
async fn an_offset_at_a_mark_has_the_time_of_that_mark() {
    let length = set("a").len() as u64;
    for sealed in [true, false] {
        let came = ["a", "b", "c"].map(set).into_iter().zip([2000, 2100, 3000]);
        let came = came.map(|(bytes, at)| Came { bytes, at, sealed });
        let store = archived(&came.collect::<Vec<_>>()).await;
        for (count, received_until, next) in [
            (0, 1000, Next::By(UnixMillis(2000))),
            (1, 2000, Next::By(UnixMillis(2100))),
            (2, 2100, Next::By(UnixMillis(3000))),
            (3, 3000, Next::Nothing),
        ] {
            let found = found_before(&store, START + count * length).await.unwrap();
            let at = found.received_until;
            assert_eq!(at, UnixMillis(received_until), "{count}, sealed: {sealed}");
            assert_eq!(found.next, next, "{count}, sealed: {sealed}");
        }
        let inside = found_before(&store, START + length + 1).await.unwrap();
        assert_eq!(inside.position.offset, Offset::new(START + length));
        assert_eq!(inside.next, Next::By(UnixMillis(2100)));
    }
}

/// Nobody knows when what is missing came: the last moment before it stands for itself alone.
#[tokio::test]
async fn nothing_stands_for_the_moments_of_a_gap() {
    let length = set("a").len() as u64;
    let came = ["a", "b", "c"].map(set).into_iter().zip([2000, 3000, 4000]);
    let came = came.map(|(bytes, at)| Came {
        bytes,
        at,
        sealed: true,
    });
    let store = archived(&came.collect::<Vec<_>>()).await;
    let listed = store.list("", None).await.unwrap();
    let middle = listed
        .iter()
        .find(|it| it.name.as_str().contains("-0000000003000-"));
    store.delete(&middle.unwrap().name).await.unwrap();
    let broken_off = found_before(&store, START + length).await.unwrap();
    assert_eq!(broken_off.next, Next::Missing);
    assert_eq!(broken_off.next_by(), None);
    let behind = Object::Snapshot {
        seq: SEQ,
        id: ID,
        offset: Offset::new(START + 2 * length),
        at: UnixMillis(3000),
        derived: false,
    };
    let body = vec![bytes::Bytes::from_static(b"never read")];
    store.create(&behind.name(), body).await.unwrap();
    for found in [
        found_before(&store, START + length).await.unwrap(),
        found_at(&store, 2000).await.unwrap(),
    ] {
        assert_eq!(found.position.offset, Offset::new(START + length));
        assert_eq!(found.next, Next::Missing, "before the gap");
    }
    assert!(found_at(&store, 2001).await.is_err());
    let later = found_at(&store, 3000).await.unwrap();
    assert_eq!(later.next, Next::By(UnixMillis(4000)));
}

#[tokio::test]
async fn an_offset_inside_a_transaction_is_cut_before_it() {
    let transaction: Vec<u8> = ["MULTI", "SET a 1", "SET b 2", "EXEC"]
        .iter()
        .flat_map(|line| {
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            command(&words).to_vec()
        })
        .collect();
    let first = set("a").len() as u64;
    let end = START + first + transaction.len() as u64;
    let came = [
        Came {
            bytes: set("a"),
            at: 2000,
            sealed: true,
        },
        Came {
            bytes: transaction[..20].to_vec(),
            at: 2100,
            sealed: true,
        },
        Came {
            bytes: transaction[20..].to_vec(),
            at: 2200,
            sealed: true,
        },
    ];
    let store = archived(&came).await;
    for offset in START + first..end {
        let found = found_before(&store, offset).await.unwrap();
        assert_eq!(
            found.position.offset,
            Offset::new(START + first),
            "before {offset}"
        );
    }
    assert_eq!(
        found_before(&store, end).await.unwrap().position.offset,
        Offset::new(end)
    );
    assert!(found_before(&store, end + 1).await.is_err());
    let half = found_at(&store, 2150).await.unwrap();
    assert_eq!(half.position.offset, Offset::new(START + first));
}

#[tokio::test]
async fn a_damaged_segment_is_said_and_nothing_is_guessed() {
    let came = [
        Came {
            bytes: set("a"),
            at: 2000,
            sealed: true,
        },
        Came {
            bytes: set("b"),
            at: 3000,
            sealed: true,
        },
        Came {
            bytes: set("c"),
            at: 4000,
            sealed: true,
        },
    ];
    let store = archived(&came).await;
    let listed = store.list("", None).await.unwrap();
    let middle = listed
        .iter()
        .find(|it| it.name.as_str().contains("-0000000003000-"))
        .unwrap();
    let mut bytes = store.read(&middle.name, None).await.unwrap().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    store.delete(&middle.name).await.unwrap();
    store
        .create(&middle.name, vec![bytes.into()])
        .await
        .unwrap();
    let error = found_at(&store, 3500).await.unwrap_err().to_string();
    assert!(error.contains(middle.name.as_str()), "{error}");
    assert!(found_at(&store, 2500).await.is_ok());
}

/// Commands in pieces as they may come: cut anywhere, in transactions, clocks set back.
fn arrivals() -> impl Strategy<Value = Vec<Came>> {
    let commands = prop::collection::vec((0..6_u8, 0..40_usize), 1..30);
    (commands, any::<u64>()).prop_map(|(commands, seed)| {
        let mut bytes = Vec::new();
        for (kind, length) in commands {
            let value = vec![b'v'; length];
            match kind {
                0 => bytes.extend_from_slice(&command(&[b"PING"])),
                1 => {
                    bytes.extend_from_slice(&command(&[b"MULTI"]));
                    bytes.extend_from_slice(&command(&[b"SET", b"k", &value]));
                    bytes.extend_from_slice(&command(&[b"SELECT", b"3"]));
                    bytes.extend_from_slice(&command(&[b"EXEC"]));
                }
                _ => bytes.extend_from_slice(&command(&[b"SET", b"k", &value])),
            }
        }
        let mut random = seed;
        let mut below = |bound: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % bound
        };
        let mut came = Vec::new();
        let (mut at, mut is_sealed) = (2000, false);
        while !bytes.is_empty() {
            let length = usize::try_from(1 + below(60)).unwrap().min(bytes.len());
            let rest = bytes.split_off(length);
            // Marks closer than their resolution are joined. A clock that goes back inside a segment does not show in the
            // names: there the later of two equal times may be found.
            let is_set_back = is_sealed && below(3) == 0;
            at = if is_set_back {
                u64::saturating_sub(at, below(500))
            } else {
                at + 10 + below(300)
            };
            is_sealed = below(4) == 0;
            came.push(Came {
                bytes,
                at,
                sealed: is_sealed,
            });
            bytes = rest;
        }
        came
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Against the plain definition: the last boundary not after the last byte whose time, never going back, has come.
    #[test]
    fn every_moment_and_offset_is_found_as_defined(came in arrivals(), picks in prop::collection::vec(any::<u64>(), 12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = archived(&came).await;
            let total: u64 = came.iter().map(|piece| piece.bytes.len() as u64).sum();
            let whole_end = last_boundary(&came, START + total);
            for pick in &picks {
                let moment = 1000 + pick % 12_000;
                let mut reached = (START, BEGAN.0);
                for piece in &came {
                    let at = piece.at.max(reached.1);
                    if at > moment {
                        break;
                    }
                    reached = (reached.0 + piece.bytes.len() as u64, at);
                }
                let expected = last_boundary(&came, reached.0);
                let found = found_at(&store, moment).await.unwrap();
                assert_eq!(found.position.offset, expected, "at {moment}");
                assert!(found.received_until <= UnixMillis(moment));
                assert!(found.next_by().is_none_or(|next| next > UnixMillis(moment)));

                let offset = START + pick % (whole_end.as_u64() - START + 1);
                let found = found_before(&store, offset).await.unwrap();
                assert_eq!(found.position.offset, last_boundary(&came, offset), "before {offset}");
                if found.position.offset == Offset::new(offset) {
                    assert_eq!(found.received_until, received_at(&came, offset), "of {offset}");
                }

                // What was found is what a restore takes.
                let loaded = catalog::load(&*store, &[]).await.unwrap();
                let plan = plan(&loaded.catalog, Target::Offset(found.position)).unwrap();
                let mut bytes = stream(Arc::clone(&store), ARCHIVE, &plan, Spelling::Archived);
                let mut length = 0;
                while let Some(piece) = bytes.next().await.unwrap() {
                    length += piece.len() as u64;
                }
                assert_eq!(START + length, found.position.offset.as_u64());
            }
        });
    }
}
