//! Reads snapshots and segments, several at a time, and checks every byte.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::twice::{Stretch, Stretches};
use super::{COPY, Report};
use crate::archive::layout::{ArchiveId, Object, ObjectName};
use crate::archive::segment::SegmentReader;
use crate::archive::snapshot::SnapshotReader;
use crate::archive::timeline::SegmentEntry;
use crate::restore::ahead::{READ_BYTES, ReadAhead};
use crate::store::{Store, StoreError, StoreErrorKind};

/// Objects of one read each that are read at the same time: a store answers late.
const SMALL_MAX: usize = 16;
/// Larger objects that are read at the same time: as many as there are cores to be used.
const LARGE_MAX: usize = 2;
/// Messages about bytes that were read, waiting to be told.
const TOLD_MAX: usize = 64;

/// Something to be read alone.
#[derive(Debug)]
pub(super) enum Job {
    /// The objects of a snapshot, in order.
    Snapshot(Vec<(ObjectName, u64)>),
    /// A segment, and where others hold the same bytes.
    Segment(SegmentEntry, Box<Stretches>),
}

impl Job {
    /// Stored bytes.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Snapshot(objects) => objects.iter().map(|(_, bytes)| bytes).sum(),
            Self::Segment(segment, _) => segment.bytes,
        }
    }

    fn objects(&self) -> Vec<(ObjectName, u64)> {
        match self {
            Self::Snapshot(objects) => objects.clone(),
            Self::Segment(segment, _) => vec![(segment.name.clone(), segment.bytes)],
        }
    }
}

/// What came of a job.
#[derive(Debug, Default)]
struct Outcome {
    is_snapshot: bool,
    raw_bytes: u64,
    stored_bytes: u64,
    /// What is wrong with it.
    wrong: Option<String>,
    /// It is not there any more.
    gone: Option<ObjectName>,
    differing: Vec<(Stretch, ObjectName, ObjectName)>,
}

/// Reads everything. Gives what was not there any more.
pub(super) async fn read_all(
    store: &Arc<dyn Store>,
    archive: Option<ArchiveId>,
    jobs: Vec<Job>,
    report: &mut Report,
    told: &mut impl FnMut(u64, u64),
) -> Result<Vec<ObjectName>, StoreError> {
    let total: u64 = jobs.iter().map(Job::bytes).sum();
    let (sender, mut passed) = mpsc::channel(TOLD_MAX);
    let (mut done, mut gone) = (0, Vec::new());
    let mut under_way = JoinSet::new();
    let mut jobs = jobs.into_iter().peekable();
    loop {
        while let Some(next) = jobs.peek() {
            let most = match next.bytes() > READ_BYTES {
                true => LARGE_MAX,
                false => SMALL_MAX,
            };
            if under_way.len() >= most {
                break;
            }
            let Some(job) = jobs.next() else { break };
            let (store, sender) = (Arc::clone(store), sender.clone());
            under_way.spawn(async move { read(store, archive, job, sender).await });
        }
        tokio::select! {
            Some(bytes) = passed.recv() => {
                done += bytes;
                told(done, total);
            }
            ended = under_way.join_next() => {
                let Some(ended) = ended else { return Ok(gone) };
                let outcome = ended.expect("reading neither panics nor is cancelled")?;
                gone.extend(note(outcome, report));
            }
        }
    }
}

fn note(outcome: Outcome, report: &mut Report) -> Option<ObjectName> {
    let tally = &mut report.tally;
    tally.stored_bytes += outcome.stored_bytes;
    tally.raw_bytes += outcome.raw_bytes;
    match outcome.is_snapshot {
        true => tally.snapshots += 1,
        false => tally.segments += 1,
    }
    let id = match outcome.is_snapshot {
        true => "snapshot",
        false => "segment",
    };
    if let Some(wrong) = outcome.wrong {
        report.bad(id, wrong, COPY);
    }
    for ((first, last), name, other) in outcome.differing {
        report.bad(
            "overlap",
            format!("bytes {first} to {last} are different ones in {name} and {other}"),
            "find out who wrote either; take the wrong one away, and a restore uses the other",
        );
    }
    outcome.gone
}

async fn read(
    store: Arc<dyn Store>,
    archive: Option<ArchiveId>,
    mut job: Job,
    told: mpsc::Sender<u64>,
) -> Result<Outcome, StoreError> {
    let objects = job.objects();
    let mut outcome = Outcome {
        is_snapshot: matches!(job, Job::Snapshot(_)),
        ..Outcome::default()
    };
    let mut pieces = Pieces {
        ahead: ReadAhead::new(store, objects.clone()),
        objects: objects.clone(),
        told,
        stored_bytes: 0,
    };
    let checked = match &mut job {
        Job::Snapshot(objects) => snapshot(&mut pieces, archive, objects, &mut outcome).await,
        Job::Segment(entry, stretches) => {
            segment(&mut pieces, archive, entry, stretches, &mut outcome).await
        }
    };
    outcome.stored_bytes = pieces.stored_bytes;
    match checked {
        Ok(()) => {}
        Err(Wrong::Damaged(why)) => outcome.wrong = Some(why),
        Err(Wrong::Store(error)) if error.kind == StoreErrorKind::NotFound => {
            outcome.gone = pieces.objects.first().map(|(name, _)| name.clone());
        }
        Err(Wrong::Store(error)) => return Err(error),
    }
    Ok(outcome)
}

enum Wrong {
    Store(StoreError),
    Damaged(String),
}

fn damaged(error: impl std::fmt::Display) -> Wrong {
    Wrong::Damaged(error.to_string())
}

/// The pieces of a job's objects.
struct Pieces {
    ahead: ReadAhead,
    /// Those that are not done.
    objects: Vec<(ObjectName, u64)>,
    told: mpsc::Sender<u64>,
    stored_bytes: u64,
}

impl Pieces {
    /// The next bytes, and whether the object ends with them.
    async fn next(&mut self) -> Result<Option<(bytes::Bytes, bool)>, Wrong> {
        let Some(piece) = self.ahead.next().await.map_err(Wrong::Store)? else {
            return Ok(None);
        };
        let bytes = piece.bytes.len() as u64;
        self.stored_bytes += bytes;
        if piece.last {
            self.objects.remove(0);
        }
        // Whoever is told nothing any more does not wait for an end either.
        let _ = self.told.send(bytes).await;
        Ok(Some((piece.bytes, piece.last)))
    }
}

async fn snapshot(
    pieces: &mut Pieces,
    archive: Option<ArchiveId>,
    objects: &[(ObjectName, u64)],
    outcome: &mut Outcome,
) -> Result<(), Wrong> {
    let object = objects
        .first()
        .and_then(|(name, _)| Object::parse(name.as_str()))
        .ok_or_else(|| damaged("a snapshot without objects"))?;
    let mut reader = SnapshotReader::new(&object).map_err(damaged)?;
    if let Some(archive) = archive {
        reader = reader.in_archive(archive);
    }
    let mut parts = objects.iter().map(|(name, _)| name.clone()).skip(1);
    while let Some((bytes, last)) = pieces.next().await? {
        reader.push(bytes);
        while let Some(payload) = reader.next().map_err(damaged)? {
            outcome.raw_bytes += payload.len() as u64;
        }
        if last && let Some(part) = parts.next() {
            reader.begin_part(part).map_err(damaged)?;
        }
    }
    reader.finish().map(drop).map_err(damaged)
}

async fn segment(
    pieces: &mut Pieces,
    archive: Option<ArchiveId>,
    entry: &SegmentEntry,
    stretches: &mut Stretches,
    outcome: &mut Outcome,
) -> Result<(), Wrong> {
    let object = Object::parse(entry.name.as_str()).ok_or_else(|| damaged("no segment"))?;
    let mut reader = SegmentReader::new(&object).map_err(damaged)?;
    if let Some(archive) = archive {
        reader = reader.in_archive(archive);
    }
    while let Some((bytes, _)) = pieces.next().await? {
        reader.push(bytes);
        while let Some(block) = reader.next().map_err(damaged)? {
            outcome.raw_bytes += block.payload.len() as u64;
            let differing = stretches.push(&block, &entry.name);
            let named = differing
                .into_iter()
                .map(|(stretch, other)| (stretch, entry.name.clone(), other));
            outcome.differing.extend(named);
        }
    }
    reader.finish().map_err(damaged)
}
