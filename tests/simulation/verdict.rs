//! What is promised, checked from the store alone beside what really happened.

use std::cell::RefCell;
use std::sync::Arc;

use perennial::archive::layout::ArchiveId;
use perennial::archive::plan::{Target, plan};
use perennial::archive::timeline::Catalog;
use perennial::position::{Offset, Position, TimelineSeq};
use perennial::restore::source::{self, Checked, Spelling};
use perennial::store::Store;
use perennial::store::catalog;
use perennial::store::memory::MemoryStore;

use crate::data::{Applier, Data, from_rdb};
use crate::truth::{self, Place};
use crate::{chance, trace};

/// What upkeep may delete was received so long ago, with a margin for clocks: as `streamer` tells it.
const KEPT: std::time::Duration = std::time::Duration::from_secs(60 - 15);
/// Of so many acknowledgements the catalogue is asked about one.
const LOOKED_AT_EACH: u64 = 5;
/// Of so many of these one is restored at once.
const RESTORED_EACH: u64 = 4;

thread_local! {
    static OBJECTS: RefCell<Option<MemoryStore>> = const { RefCell::new(None) };
}

/// Begins a run over this store.
pub fn begin(objects: &MemoryStore) {
    OBJECTS.set(Some(objects.clone()));
}

/// The catalogue of what the store holds at this moment.
pub async fn look() -> Option<Catalog> {
    let objects = OBJECTS.with_borrow(Clone::clone)?;
    match catalog::load(&objects, &[]).await {
        Ok(loaded) => Some(loaded.catalog),
        // Where the store never worked there is none.
        Err(_) if truth::acknowledged().is_empty() => None,
        Err(error) => {
            trace::violation(format!("the archive cannot be read: {error}"));
            None
        }
    }
}

/// Where a place lies in the archive, by each way that leads to it.
fn positions(catalog: &Catalog, (id, offset): Place) -> Vec<Position> {
    let offset = Offset::new(offset);
    let own = catalog.timelines().filter(|timeline| timeline.id() == id);
    let found = own.flat_map(|timeline| {
        let here = Position {
            timeline: timeline.seq(),
            offset,
        };
        let document = &timeline.document;
        let parent = document.parent.filter(|_| document.start == offset);
        [Some(here), parent]
    });
    found
        .flatten()
        .filter(|position| catalog.is_restorable(*position))
        .collect()
}

/// What stands at a position, really: of a timeline that stands for a seed, what was seeded.
fn place(catalog: &Catalog, position: Position) -> Option<Place> {
    let timeline = catalog.timeline(position.timeline)?;
    let document = &timeline.document;
    if document.mapped && position.offset == document.start {
        return place(catalog, document.parent?);
    }
    Some((timeline.id(), position.offset.as_u64()))
}

/// By the place alone: how much is checked does not change what happens.
fn is_one_in((_, offset): Place, each: u64) -> bool {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).is_multiple_of(each)
}

/// A server heard this from a Perennial: the store alone must give it back from now on.
pub async fn acknowledged(place: Place) {
    if !is_one_in(place, LOOKED_AT_EACH) {
        return;
    }
    let Some(catalog) = look().await else { return };
    let found = positions(&catalog, place);
    let Some(position) = found.first() else {
        trace::violation(format!(
            "{} was acknowledged up to {}, which cannot be restored: {}",
            place.0,
            place.1,
            told(&catalog)
        ));
        return;
    };
    // A seed would leave it out.
    let is_suspect = |position: &Position| catalog.suspect(position.timeline).is_some();
    if found.iter().all(is_suspect) {
        trace::violation(format!(
            "{} was acknowledged up to {}, which is suspect: {}",
            place.0,
            place.1,
            told(&catalog)
        ));
    }
    if is_one_in(place, LOOKED_AT_EACH * RESTORED_EACH) {
        check_restored(&catalog, *position, place).await;
    }
}

/// A Perennial has filled a server with this and made it a master.
pub async fn seeded(held: Place, data: &Data) {
    trace::count("servers filled");
    let Some(catalog) = look().await else { return };
    check_head(&catalog);
    let known = catalog
        .timelines()
        .find(|timeline| timeline.document.mapped && timeline.id() == held.0);
    let meant = match known.and_then(|timeline| timeline.document.parent) {
        Some(parent) => place(&catalog, parent),
        None => Some(held),
    };
    let truth = meant.and_then(truth::at);
    match (meant, truth) {
        (Some(meant), Some(truth)) => {
            if truth.data != *data {
                trace::violation(format!("a seed of {meant:?} holds something else"));
            }
            check_nothing_left_out(meant);
        }
        _ => trace::violation(format!("a seed of {held:?}, where nobody ever stood")),
    }
}

/// Whoever is filled gets all that was acknowledged of that history, and of those that go on from there.
fn check_nothing_left_out(seeded: Place) {
    for ((id, offset), _) in truth::acknowledged() {
        if truth::is_lossy(id) || offset <= seeded.1 {
            continue;
        }
        let goes_on = truth::lineage((id, offset))
            .into_iter()
            .any(|(held, upto)| held == seeded.0 && upto >= seeded.1);
        if goes_on {
            trace::violation(format!(
                "a server was filled up to {seeded:?}, but {id} was acknowledged up to {offset}"
            ));
            return;
        }
    }
}

/// No suspect is chosen, nor any history that lacks what was acknowledged of what its server was before.
fn check_head(catalog: &Catalog) {
    let Some(head) = catalog.head() else { return };
    let chain = catalog.lineage(head);
    let timelines = || chain.iter().filter_map(|at| catalog.timeline(at.timeline));
    if timelines().any(|timeline| truth::is_accepted(timeline.seq().as_u32())) {
        return;
    }
    for timeline in timelines() {
        let seq = timeline.seq();
        if let Some(why) = &timeline.document.suspect {
            trace::violation(format!(
                "the head {head} rests on suspect timeline {seq}: {why}"
            ));
        }
        if truth::is_lossy(timeline.id()) {
            trace::violation(format!(
                "the head {head} rests on timeline {seq}, which lacks what was acknowledged before: {}",
                told(catalog)
            ));
        }
    }
}

/// At the end: all that was ever acknowledged.
pub async fn finally() {
    let Some(catalog) = look().await else { return };
    check_head(&catalog);
    let head = catalog.head();
    let head_place = head.and_then(|head| place(&catalog, head));
    if let (Some(head), Some(at)) = (head, head_place) {
        check_restored(&catalog, head, at).await;
    }
    let way = head_place.map(truth::lineage).unwrap_or_default();
    let all = truth::acknowledged();
    for (at, (place, when)) in all.iter().enumerate() {
        let is_last = all.get(at + 1).is_none_or(|(next, _)| next.0 != place.0);
        let found = positions(&catalog, *place);
        if let Some(position) = found.last() {
            if is_last || chance::percent(5) {
                check_restored(&catalog, *position, *place).await;
            }
            continue;
        }
        let in_head = way
            .iter()
            .any(|(id, upto)| *id == place.0 && *upto >= place.1);
        let is_old = chance::elapsed() - *when > KEPT;
        if is_last && !in_head && !is_old {
            trace::violation(format!(
                "{place:?} was acknowledged and cannot be restored: {}",
                told(&catalog)
            ));
        }
    }
}

/// A restore gives what really was there, from bytes that are those that were fed.
async fn check_restored(catalog: &Catalog, position: Position, place: Place) {
    trace::count("restores");
    let Err(error) = compared(catalog, position, place).await else {
        return;
    };
    // Upkeep may have deleted what the plan names.
    let Some(now) = look().await else { return };
    if let Err(again) = compared(&now, position, place).await {
        trace::violation(format!(
            "{position} is not {place:?}: {error}, and then {again}: {}",
            told(&now)
        ));
    }
}

async fn compared(catalog: &Catalog, position: Position, place: Place) -> Result<(), String> {
    let data = restored(catalog, position).await?;
    match truth::at(place) {
        Some(truth) if truth.data == data => Ok(()),
        Some(_) => Err("the data set is another".into()),
        None => Err("nobody ever stood there".into()),
    }
}

async fn restored(catalog: &Catalog, position: Position) -> Result<Data, String> {
    let plan = plan(catalog, Target::Offset(position)).map_err(|error| error.to_string())?;
    let objects = OBJECTS.with_borrow(Clone::clone).ok_or("no store")?;
    let store: Arc<dyn Store> = Arc::new(objects);
    let archive: ArchiveId = catalog.archive().ok_or("no archive")?.archive;
    let payload = source::payload(Arc::clone(&store), archive, &plan);
    let mut applier: Applier = from_rdb(&gathered(payload).await?)?;
    let stream = source::stream(store, archive, &plan, Spelling::Archived);
    let stream = gathered(stream).await?;
    let mut fed = Vec::new();
    for leg in &plan.legs {
        let bytes = truth::bytes(leg.id, leg.after.as_u64(), leg.to.as_u64());
        fed.extend(bytes.ok_or("bytes that nobody fed")?);
    }
    if fed != stream {
        return Err("its bytes are not those that were fed".into());
    }
    applier.feed(&stream)?;
    if !applier.is_at_boundary() {
        return Err("it ends inside a command".into());
    }
    Ok(applier.data)
}

async fn gathered(mut checked: Checked) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    loop {
        match checked.next().await {
            Ok(Some(piece)) => bytes.extend_from_slice(&piece),
            Ok(None) => return Ok(bytes),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// The archive in a line.
fn told(catalog: &Catalog) -> String {
    let one = |seq: TimelineSeq| {
        let timeline = catalog.timeline(seq)?;
        let document = &timeline.document;
        Some(format!(
            "{seq} {} from {} parent {:?} end {:?} stored {:?} snapshots {:?}{}{}",
            &timeline.id().to_string()[..6],
            document.start,
            document.parent,
            catalog.end(seq),
            catalog.stored_end(seq),
            timeline
                .snapshots
                .iter()
                .map(|it| it.offset)
                .collect::<Vec<_>>(),
            if document.mapped { " mapped" } else { "" },
            if document.suspect.is_some() {
                " suspect"
            } else {
                ""
            },
        ))
    };
    let all: Vec<String> = catalog.timelines().filter_map(|it| one(it.seq())).collect();
    format!("head {:?}; {}", catalog.head(), all.join("; "))
}
