//! What really happened: every byte that a master ever fed, as a tree of histories by replication id, and what was
//! acknowledged of them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use perennial::position::ReplicationId;

use crate::chance;
use crate::data::{Applier, Data};

thread_local! {
    static TRUTH: RefCell<Truth> = RefCell::new(Truth::default());
}

/// A place in a history.
pub type Place = (ReplicationId, u64);

#[derive(Default)]
struct Truth {
    branches: BTreeMap<ReplicationId, Branch>,
    acknowledged: BTreeMap<ReplicationId, BTreeMap<u64, Duration>>,
    accepted: BTreeSet<u32>,
}

struct Branch {
    parent: Option<Place>,
    start: u64,
    /// Where it does not follow from the parent.
    base: Option<Data>,
    bytes: Vec<u8>,
    lossy: bool,
    reached: Option<(u64, Applier)>,
}

/// Forgets everything.
pub fn begin() {
    TRUTH.set(Truth::default());
}

/// A master begins to count under a new id. `lossy` where it lacks what was acknowledged of what it was before.
pub fn branch(
    id: ReplicationId,
    parent: Option<Place>,
    start: u64,
    base: Option<Data>,
    lossy: bool,
) {
    TRUTH.with_borrow_mut(|truth| {
        truth.branches.insert(
            id,
            Branch {
                parent,
                start,
                base,
                bytes: Vec::new(),
                lossy,
                reached: None,
            },
        );
    });
}

/// Whether a master ever counted under it.
pub fn knows(id: ReplicationId) -> bool {
    TRUTH.with_borrow(|truth| truth.branches.contains_key(&id))
}

/// Whether it is a history that lacks what was acknowledged of what its server was before.
pub fn is_lossy(id: ReplicationId) -> bool {
    TRUTH.with_borrow(|truth| truth.branches.get(&id).is_some_and(|branch| branch.lossy))
}

/// A master fed these bytes.
pub fn fed(id: ReplicationId, bytes: &[u8]) {
    TRUTH.with_borrow_mut(|truth| {
        if let Some(branch) = truth.branches.get_mut(&id) {
            branch.bytes.extend_from_slice(bytes);
        }
    });
}

/// The chain of a place to its root, each with the last offset that counts.
pub fn lineage(place: Place) -> Vec<Place> {
    TRUTH.with_borrow(|truth| {
        let mut chain = vec![place];
        let mut current = place;
        while let Some(branch) = truth.branches.get(&current.0) {
            let Some(parent) = branch.parent else { break };
            current = (parent.0, parent.1.min(current.1));
            chain.push(current);
        }
        chain
    })
}

/// The bytes of a history behind `after` up to `upto`, where it has them all itself.
pub fn bytes(id: ReplicationId, after: u64, upto: u64) -> Option<Vec<u8>> {
    TRUTH.with_borrow(|truth| bytes_of(truth, id, after, upto))
}

fn bytes_of(truth: &Truth, id: ReplicationId, after: u64, upto: u64) -> Option<Vec<u8>> {
    let branch = truth.branches.get(&id)?;
    let at = |offset: u64| usize::try_from(offset.checked_sub(branch.start)?).ok();
    if let (Some(from), Some(to)) = (at(after), at(upto)) {
        return branch.bytes.get(from..to).map(<[u8]>::to_vec);
    }
    let (parent, leaves) = branch.parent.filter(|_| branch.base.is_none())?;
    let mut before = bytes_of(truth, parent, after, upto.min(leaves))?;
    if upto > branch.start {
        before.extend(bytes_of(truth, id, branch.start, upto)?);
    }
    Some(before)
}

/// The data set at a place, and the database that is selected there; nothing where nobody ever stood there.
pub fn at((id, offset): Place) -> Option<Applier> {
    TRUTH.with_borrow_mut(|truth| truth.at(id, offset))
}

impl Truth {
    fn at(&mut self, id: ReplicationId, offset: u64) -> Option<Applier> {
        let branch = self.branches.get(&id)?;
        let (start, parent) = (branch.start, branch.parent);
        // Below its beginning a place is its parent's, whatever it began with itself.
        if offset < start {
            return self.at(parent.filter(|(_, upto)| offset <= *upto)?.0, offset);
        }
        let reached = branch.reached.as_ref().filter(|(upto, _)| *upto <= offset);
        let (from, mut applier) = match (reached, &branch.base, parent) {
            (Some((upto, applier)), _, _) => (*upto, applier.clone()),
            (None, Some(data), _) => (start, Applier::new(data.clone(), 0)),
            (None, None, Some(parent)) => (start, self.at(parent.0, parent.1)?),
            (None, None, None) => (start, Applier::default()),
        };
        let branch = self.branches.get_mut(&id)?;
        let range = usize::try_from(from - start).ok()?..usize::try_from(offset - start).ok()?;
        applier.feed(branch.bytes.get(range)?).ok()?;
        branch.reached = Some((offset, applier.clone()));
        Some(applier)
    }
}

/// A Perennial acknowledged this. Whether that is new.
pub fn acknowledge((id, offset): Place) -> bool {
    let at = chance::elapsed();
    TRUTH.with_borrow_mut(|truth| {
        let of = truth.acknowledged.entry(id).or_default();
        let new = !of.contains_key(&offset);
        of.insert(offset, at);
        new
    })
}

/// Everything that was acknowledged, with the time at which it was last.
pub fn acknowledged() -> Vec<(Place, Duration)> {
    TRUTH.with_borrow(|truth| {
        let all = truth.acknowledged.iter();
        all.flat_map(|(id, of)| of.iter().map(|(offset, at)| ((*id, *offset), *at)))
            .collect()
    })
}

/// Whether something acknowledged on the way to `before` is not on the way to `now`.
pub fn is_lost(before: Place, now: Option<Place>) -> bool {
    let held = now.map(lineage).unwrap_or_default();
    lineage(before).into_iter().any(|(id, upto)| {
        let last = TRUTH.with_borrow(|truth| {
            let of = truth.acknowledged.get(&id)?;
            of.range(..=upto).next_back().map(|(offset, _)| *offset)
        });
        last.is_some_and(|last| {
            !held
                .iter()
                .any(|(held, offset)| *held == id && *offset >= last)
        })
    })
}

/// A person accepted this timeline.
pub fn accept(timeline: u32) {
    TRUTH.with_borrow_mut(|truth| truth.accepted.insert(timeline));
}

/// Whether a person did.
pub fn is_accepted(timeline: u32) -> bool {
    TRUTH.with_borrow(|truth| truth.accepted.contains(&timeline))
}
