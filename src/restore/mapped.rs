//! Under which replication id a plan is served, and up to which offset. Bytes as they were archived go out under
//! their own id, so that surviving replicas continue. Rewritten bytes get an id that nobody knows, and a timeline
//! that says what it stands for: it is in the store before a server gets the first byte, so that whatever is found
//! afterwards is recognised.

use std::sync::Arc;

use super::rewrite::Tally;
use super::seeder::Approved;
use super::source::{self, SourceError, Spelling};
use crate::archive::document::{DOCUMENT_FORMAT, Source, TimelineDocument};
use crate::archive::layout::ArchiveId;
use crate::archive::plan::Plan;
use crate::archive::timeline::Catalog;
use crate::clock::Clock;
use crate::position::{Offset, ReplicationId};
use crate::store::{Store, StoreError, catalog};

/// Between two lines of progress, bytes of replication stream.
const PROGRESS_BYTES: u64 = 256 * 1024 * 1024;

/// Why a seed could not be prepared. Nothing was sent to the server.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The archive cannot be read.
    #[error("the archive cannot be read through: {0}")]
    Source(#[from] SourceError),
    /// The timeline cannot be written down.
    #[error("the timeline of the seed cannot be written: {0}")]
    Store(#[from] StoreError),
    /// Another streamer began a timeline at the same moment.
    #[error("another streamer began a timeline in this archive at the same moment")]
    NumberTaken,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes for a replication id: {0}")]
    Random(String),
}

/// How a plan will be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prepared {
    /// Under which id, and which bytes.
    pub approved: Approved,
    /// The offset at which the server has everything.
    pub end: Offset,
    /// What is rewritten.
    pub tally: Tally,
}

impl Prepared {
    /// The bytes as they are, under the id of the target.
    pub(super) fn archived(plan: &Plan, tally: Tally) -> Self {
        Self {
            approved: Approved {
                id: plan.id,
                spelling: Spelling::Archived,
            },
            end: plan.target.offset,
            tally,
        }
    }
}

/// Whether a plan can be served as it was archived: its offsets count through, and nothing has to be rewritten.
/// Reads the replication stream where that cannot be told otherwise, in bounded memory.
///
/// # Errors
/// [`SourceError`].
pub async fn as_archived(
    store: &Arc<dyn Store>,
    archive: ArchiveId,
    plan: &Plan,
) -> Result<bool, SourceError> {
    if !plan.offsets_continuous {
        return Ok(false);
    }
    Ok(!plan.may_be_rewritten() || !measure(store, archive, plan).await?.is_changed())
}

/// Finds out how a plan is served. Where it needs an id of its own, the timeline of that id is created, or the
/// one that an earlier attempt left is taken again. `seeded` is the server that will be filled.
///
/// # Errors
/// [`PrepareError`].
pub async fn prepare(
    store: &Arc<dyn Store>,
    archive: ArchiveId,
    catalog: &Catalog,
    plan: &Plan,
    seeded: Source,
    clock: &dyn Clock,
) -> Result<Prepared, PrepareError> {
    if plan.offsets_continuous && !plan.may_be_rewritten() {
        return Ok(Prepared::archived(plan, Tally::default()));
    }
    let tally = measure(store, archive, plan).await?;
    if plan.offsets_continuous && !tally.is_changed() {
        return Ok(Prepared::archived(plan, tally));
    }
    let end = plan.snapshot.offset.plus(tally.bytes);
    let id = match left_behind(catalog, plan, end) {
        Some(id) => id,
        None => create(store, catalog, plan, end, seeded, clock).await?,
    };
    Ok(Prepared {
        approved: Approved {
            id,
            spelling: Spelling::Rewritten,
        },
        end,
        tally,
    })
}

/// Prepares a copy: always under an id of its own, which is written down nowhere.
///
/// # Errors
/// [`PrepareError`].
pub async fn prepare_copy(
    store: &Arc<dyn Store>,
    archive: ArchiveId,
    plan: &Plan,
) -> Result<Prepared, PrepareError> {
    let tally = rewritten(store, archive, plan).await?;
    Ok(Prepared {
        approved: Approved {
            id: random_id()?,
            spelling: Spelling::Rewritten,
        },
        end: plan.snapshot.offset.plus(tally.bytes),
        tally,
    })
}

fn random_id() -> Result<ReplicationId, PrepareError> {
    let mut raw = [0; 20];
    crate::random::fill(&mut raw).map_err(|error| PrepareError::Random(error.to_string()))?;
    Ok(ReplicationId::from_raw(raw))
}

/// How long the replication stream is as it will be sent, and what is rewritten in it. Reads it where that cannot be
/// told otherwise.
///
/// # Errors
/// [`SourceError`].
pub async fn rewritten(
    store: &Arc<dyn Store>,
    archive: ArchiveId,
    plan: &Plan,
) -> Result<Tally, SourceError> {
    if plan.may_be_rewritten() {
        return measure(store, archive, plan).await;
    }
    Ok(Tally {
        bytes: plan.stream_bytes(),
        ..Tally::default()
    })
}

async fn measure(
    store: &Arc<dyn Store>,
    archive: ArchiveId,
    plan: &Plan,
) -> Result<Tally, SourceError> {
    let mut stream = source::stream(Arc::clone(store), archive, plan, Spelling::Rewritten);
    let (mut bytes, mut said) = (0, 0);
    while let Some(piece) = stream.next().await? {
        bytes += piece.len() as u64;
        if bytes - said >= PROGRESS_BYTES {
            said = bytes;
            tracing::info!(
                "looking for what must be rewritten: {} of about {} of replication stream",
                bytesize::ByteSize(bytes),
                bytesize::ByteSize(plan.stream_bytes()),
            );
        }
    }
    Ok(Tally {
        bytes,
        ..stream.tally()
    })
}

/// The id of an earlier attempt at the same seed that came to nothing.
fn left_behind(catalog: &Catalog, plan: &Plan, end: Offset) -> Option<ReplicationId> {
    let head = catalog.timeline(plan.target.timeline)?;
    let same = head.document.mapped
        && !head.has_content()
        && head.document.start == end
        && plan.target.offset == end;
    same.then(|| head.id())
}

async fn create(
    store: &Arc<dyn Store>,
    catalog: &Catalog,
    plan: &Plan,
    end: Offset,
    seeded: Source,
    clock: &dyn Clock,
) -> Result<ReplicationId, PrepareError> {
    let id = random_id()?;
    let document = TimelineDocument {
        format: DOCUMENT_FORMAT,
        seq: catalog.next_seq(),
        id,
        parent: Some(plan.target),
        start: end,
        mapped: true,
        suspect: None,
        created_at: clock.unix(),
        created_by: concat!("perennial ", env!("CARGO_PKG_VERSION")).to_owned(),
        source: Source {
            // Nothing was received from this process: its run id must not connect it with the head.
            run_id: "?".to_owned(),
            ..seeded
        },
    };
    if !catalog::create_timeline(&**store, &document).await? {
        return Err(PrepareError::NumberTaken);
    }
    tracing::info!(
        timeline = document.seq.as_u32(), %id, parent = %plan.target, start = end.as_u64(),
        "a timeline for a seed with rewritten bytes"
    );
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::block::{BlockContext, Compressor};
    use crate::archive::layout::{ArchiveDocument, Object};
    use crate::archive::plan::{Target, continuation, plan};
    use crate::archive::segment::{Chunk, SegmentBuilder};
    use crate::clock::SystemClock;
    use crate::position::{Position, TimelineSeq, UnixMillis};
    use crate::proto::handshake::command;
    use crate::store::catalog::Loaded;
    use crate::store::memory::MemoryStore;

    const ARCHIVE: ArchiveId = ArchiveId::from_raw([7; 16]);

    fn id(byte: u8) -> ReplicationId {
        ReplicationId::from_raw([byte; 20])
    }

    fn source(server: &str, version: &str) -> Source {
        Source {
            server: server.into(),
            version: version.into(),
            run_id: format!("run of {version}"),
            ..Source::default()
        }
    }

    fn spell(lines: &[&str]) -> Vec<u8> {
        lines
            .iter()
            .flat_map(|line| {
                let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
                command(&words)
            })
            .collect()
    }

    /// An archive in memory, timeline by timeline.
    struct Written {
        store: Arc<dyn Store>,
    }

    impl Written {
        async fn new() -> Self {
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
            let document = ArchiveDocument {
                format: DOCUMENT_FORMAT,
                archive: ARCHIVE,
                name: None,
                created_at: UnixMillis(1),
            };
            let name = Object::Archive.name();
            store.create(&name, vec![document.encode()]).await.unwrap();
            Self { store }
        }

        async fn timeline(&self, seq: u32, parent: Option<Position>, start: u64, source: Source) {
            let document = TimelineDocument {
                format: DOCUMENT_FORMAT,
                seq: TimelineSeq::new(seq),
                id: id(u8::try_from(seq).unwrap()),
                parent,
                start: Offset::new(start),
                mapped: false,
                suspect: None,
                created_at: UnixMillis(500),
                created_by: "test".into(),
                source,
            };
            let created = catalog::create_timeline(&*self.store, &document).await;
            assert!(created.unwrap());
        }

        /// Only its name: plans look at no more.
        async fn snapshot(&self, seq: u32, offset: u64) {
            let object = Object::Snapshot {
                seq: TimelineSeq::new(seq),
                id: id(u8::try_from(seq).unwrap()),
                offset: Offset::new(offset),
                at: UnixMillis(1000),
                derived: false,
            };
            let body = vec![bytes::Bytes::from_static(b"never read")];
            self.store.create(&object.name(), body).await.unwrap();
        }

        /// A segment behind `after`, its commands received one second after each other from 1000 s on. Returns
        /// its last offset.
        async fn segment(&self, seq: u32, after: u64, lines: &[&str]) -> u64 {
            let mut builder = SegmentBuilder::new(Offset::new(after), Some(0));
            for (number, line) in (0..).zip(lines) {
                let bytes: bytes::Bytes = spell(&[line]).into();
                let end = builder.last().plus(bytes.len() as u64);
                builder.push(Chunk {
                    bytes,
                    at: UnixMillis(1_000_000 + number * 1000),
                    boundary: Some((end, Some(0))),
                    database_at_end: Some(0),
                });
            }
            let sealed = builder.finish().unwrap();
            let context = BlockContext {
                archive: ARCHIVE,
                timeline: TimelineSeq::new(seq),
                id: id(u8::try_from(seq).unwrap()),
            };
            let name = sealed.name(context.timeline, context.id);
            let last = sealed.span.last.as_u64();
            let mut compressor = Compressor::new();
            let blocks = sealed.blocks.into_iter();
            let body = blocks.map(|block| block.encode(&context, &mut compressor));
            self.store.create(&name, body.collect()).await.unwrap();
            last
        }

        async fn load(&self) -> Loaded {
            catalog::load(&*self.store, &[]).await.unwrap()
        }

        async fn prepare(&self) -> (Prepared, Plan) {
            let loaded = self.load().await;
            let plan = plan(&loaded.catalog, Target::Latest).unwrap();
            let seeded = source("redis", "7.0.15");
            let clock = SystemClock::new();
            let prepared = prepare(&self.store, ARCHIVE, &loaded.catalog, &plan, seeded, &clock);
            (prepared.await.unwrap(), plan)
        }

        async fn read(&self, plan: &Plan, spelling: Spelling) -> Vec<u8> {
            let mut stream = source::stream(Arc::clone(&self.store), ARCHIVE, plan, spelling);
            let mut read = Vec::new();
            while let Some(piece) = stream.next().await.unwrap() {
                read.extend_from_slice(&piece);
            }
            read
        }
    }

    /// One timeline of this server, with these commands behind a snapshot at offset 10.
    async fn of(source: Source, lines: &[&str]) -> Written {
        let written = Written::new().await;
        written.timeline(1, None, 10, source).await;
        written.snapshot(1, 10).await;
        written.segment(1, 10, lines).await;
        written
    }

    const TTLS: &[&str] = &[
        "SET a b EX 10",
        "PING",
        "EXPIRE c 5",
        "HPERSIST h FIELDS 1 f",
    ];

    #[tokio::test]
    async fn what_needs_no_rewriting_goes_out_byte_for_byte_under_the_archived_id() {
        let persistless = &TTLS[..3];
        for (source, lines) in [
            (source("redis", "7.0.15"), TTLS),
            (source("redis", "7.2.6"), TTLS),
            (source("valkey", "8.1.1"), TTLS),
            (source("valkey", "9.1.2"), TTLS),
            (source("redis", "8.0.2"), persistless),
            (source("redis", "6.2.14"), &["SET a b", "PEXPIREAT a 77"]),
        ] {
            let written = of(source.clone(), lines).await;
            let (prepared, plan) = written.prepare().await;
            assert_eq!(prepared.approved.id, id(1), "{source}");
            assert_eq!(prepared.approved.spelling, Spelling::Archived, "{source}");
            assert_eq!(prepared.end, plan.target.offset, "{source}");
            for spelling in [Spelling::Archived, Spelling::Rewritten] {
                assert_eq!(
                    written.read(&plan, spelling).await,
                    spell(lines),
                    "{source}"
                );
            }
            assert_eq!(written.load().await.catalog.timelines().count(), 1);
            assert!(as_archived(&written.store, ARCHIVE, &plan).await.unwrap());
        }
    }

    #[tokio::test]
    async fn rewritten_bytes_get_an_id_whose_timeline_says_where_it_ends() {
        let written = of(source("redis", "6.2.14"), TTLS).await;
        let (prepared, plan) = written.prepare().await;
        let sent = written.read(&plan, Spelling::Rewritten).await;
        let expected = spell(&[
            "SET a b EX 10",
            "PEXPIREAT a 1010000",
            "PING",
            "EXPIRE c 5",
            "PEXPIREAT c 1007000",
            "HPERSIST h FIELDS 1 f",
        ]);
        assert_eq!(sent, expected);
        assert_eq!(written.read(&plan, Spelling::Archived).await, spell(TTLS));
        assert_eq!(prepared.end, Offset::new(10 + sent.len() as u64));
        let catalog = written.load().await.catalog;
        let made = catalog.newest().unwrap();
        assert_eq!(made.id(), prepared.approved.id);
        assert!(made.document.mapped);
        assert_eq!(
            (made.document.parent, made.document.start),
            (Some(plan.target), prepared.end)
        );
        assert_eq!(made.document.source.run_id, "?");
        let head = catalog.head().unwrap();
        assert_eq!((head.timeline, head.offset), (made.seq(), prepared.end));
        assert!(!as_archived(&written.store, ARCHIVE, &plan).await.unwrap());
    }

    #[tokio::test]
    async fn another_attempt_takes_the_same_id_until_there_is_more_to_seed() {
        let written = of(source("redis", "8.0.2"), TTLS).await;
        let (first, _) = written.prepare().await;
        for _ in 0..3 {
            let (again, _) = written.prepare().await;
            assert_eq!(again, first);
        }
        let catalog = written.load().await.catalog;
        assert_eq!(catalog.timelines().count(), 2);
        // Promoted and followed, with and without bytes of its own.
        let parent = catalog.head().unwrap();
        let start = first.end.as_u64();
        written
            .timeline(3, Some(parent), start, source("redis", "8.0.2"))
            .await;
        let (next, _) = written.prepare().await;
        assert_ne!(next.approved.id, first.approved.id);
        assert_eq!(next.end, first.end);
    }

    /// Three generations: 6.2, upgraded to 7.0 by a seed, and again behind that.
    #[tokio::test]
    async fn generations_restore_through_the_jumps() {
        let written = of(source("redis", "6.2.14"), TTLS).await;
        let mut expected = spell(&[
            "SET a b EX 10",
            "PEXPIREAT a 1010000",
            "PING",
            "EXPIRE c 5",
            "PEXPIREAT c 1007000",
            "HPERSIST h FIELDS 1 f",
        ]);
        for seq in [3, 5, 7] {
            let (prepared, _) = written.prepare().await;
            assert_eq!(prepared.approved.spelling, Spelling::Rewritten);
            assert_eq!(prepared.end.as_u64(), 10 + expected.len() as u64);
            let parent = written.load().await.catalog.head().unwrap();
            let start = parent.offset.as_u64();
            // Absolute, and what looks relative stays, because 7.0 does not mean it so.
            written
                .timeline(seq, Some(parent), start, source("redis", "7.0.15"))
                .await;
            let lines = ["SELECT 0", "SET d e", "EXPIRE d 5"];
            let last = written.segment(seq, start, &lines).await;
            expected.extend(spell(&lines));
            let loaded = written.load().await;
            let whole = plan(&loaded.catalog, Target::Latest).unwrap();
            assert_eq!(whole.target.offset.as_u64(), last);
            assert!(!whole.offsets_continuous);
            assert_eq!(written.read(&whole, Spelling::Rewritten).await, expected);

            // A replica of ours behind the last jump goes on; one before it must not.
            let at = |timeline, offset| Position {
                timeline: TimelineSeq::new(timeline),
                offset: Offset::new(offset),
            };
            let behind = start + spell(&lines[..1]).len() as u64;
            let rest = continuation(&loaded.catalog, at(seq, behind), Target::Latest).unwrap();
            assert!(as_archived(&written.store, ARCHIVE, &rest).await.unwrap());
            assert_eq!(
                written.read(&rest, Spelling::Archived).await,
                spell(&lines[1..])
            );
            let across = continuation(&loaded.catalog, at(1, 10), Target::Latest).unwrap();
            assert!(!as_archived(&written.store, ARCHIVE, &across).await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_replica_is_looked_through_whatever_its_version() {
        let replica = Source {
            replica: true,
            ..source("redis", "7.0.15")
        };
        let written = of(replica.clone(), &["SET a b EX 10"]).await;
        let (prepared, _) = written.prepare().await;
        assert_eq!(prepared.tally.ttls, 1);
        let written = of(replica, &["SET a b PXAT 1010000"]).await;
        let (prepared, _) = written.prepare().await;
        assert_eq!(prepared.approved.spelling, Spelling::Archived);
    }
}
