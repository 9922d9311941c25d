//! Upkeep of an archive: many small segments become few, and what nobody can ask for any more is deleted. What is to be
//! done `archive::retention` computes; this carries it out.
//!
//! Any number of processes may do this to one archive at the same time, and any of them may die at any point: an
//! object is deleted only while another that holds the same bytes is there and was read, or when it is older than the
//! window. Nothing is remembered but what saves work.

mod blocks;
mod clock;
mod join;
mod report;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::archive::layout::{ArchiveId, ObjectName};
use crate::archive::retention::{
    Covered, Merge, Policy, PruneError, PrunePlan, Stock, is_superfluous_later, merges, prune,
    superfluous,
};
use crate::archive::timeline::SegmentEntry;
use crate::clock::Clock;
use crate::position::{Ticks, UnixMillis};
use crate::store::catalog::{CatalogError, Kept, Survey, survey};
use crate::store::{Store, StoreError, StoreErrorKind};

pub use join::JoinError;
pub use report::{Report, Tally};

/// Objects that are deleted at the same time.
const DELETES_IN_FLIGHT_MAX: usize = 8;
/// After so many merges that failed a pass ends: the store is down, rather than an object unreadable.
const FAILED_MERGES_MAX: usize = 3;
/// After the store has refused to delete it is asked again so much later, milliseconds.
const DENIED_MILLIS: u64 = 24 * 60 * 60 * 1000;

/// How to keep an archive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// What is merged, and what is kept.
    pub policy: Policy,
    /// Whether anything may be deleted.
    pub may_delete: bool,
}

/// What is to be done to an archive: all that a pass does, and nothing else, unless something turns out to be damaged or
/// the store refuses.
#[derive(Debug)]
pub struct Plans {
    /// Segments to be made one.
    pub merges: Vec<Merge>,
    /// Segments that are superfluous beside others, and not too old anyhow. None where nothing may be deleted.
    pub superfluous: Vec<Covered>,
    /// Whether more of them come when they have been there longer.
    pub are_waited_for: bool,
    /// What is too old, or why that cannot be told. Nothing where nothing may be deleted.
    pub prune: Result<PrunePlan, PruneError>,
    /// Why nothing may be deleted, where that is so without anybody's having said it.
    pub refused: Option<String>,
}

/// What a pass has done.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Merged segments made.
    pub merges: usize,
    /// Segments that they were made of.
    pub inputs: usize,
    /// Objects deleted because a merged one covers them.
    pub deleted_merged: usize,
    /// Objects deleted because nobody can ask for them any more.
    pub deleted_pruned: usize,
    /// Stored bytes of both.
    pub deleted_bytes: u64,
    /// Why nothing, or not everything, was deleted.
    pub refused: Option<String>,
    /// What a person has to look at.
    pub alarms: Vec<String>,
    /// Whether more can be done in a while.
    pub goes_on: bool,
}

/// Keeps one archive.
#[derive(Debug)]
pub struct Upkeep {
    store: Arc<dyn Store>,
    archive: ArchiveId,
    options: Options,
    clock: Arc<dyn Clock>,
    report: Arc<Report>,
    kept: Kept,
    /// Of each segment, those that were read and found to hold nothing but a part of it.
    agreed: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    /// Segments that are damaged, or differ from others.
    barred: BTreeSet<ObjectName>,
    /// Merges that failed for want of an object when they were last tried.
    unreadable: BTreeSet<ObjectName>,
    denied_at: Option<Ticks>,
    /// The store's time when it was last believed.
    known: Option<clock::Known>,
}

impl Upkeep {
    /// Of the archive with this id, in this store.
    pub fn new(
        store: Arc<dyn Store>,
        archive: ArchiveId,
        options: Options,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            store,
            archive,
            options,
            clock,
            report: Arc::default(),
            kept: Kept::default(),
            agreed: BTreeMap::new(),
            barred: BTreeSet::new(),
            unreadable: BTreeSet::new(),
            denied_at: None,
            known: None,
        }
    }

    /// Whether something may be deleted now: not where that was refused, and not for a day where the store does.
    pub fn may_delete(&self) -> bool {
        let ticks = self.clock.ticks();
        let is_denied = |at| ticks.since(at) < DENIED_MILLIS;
        self.options.may_delete && !self.denied_at.is_some_and(is_denied)
    }

    /// Where it leaves its counts.
    pub fn report(&self) -> Arc<Report> {
        Arc::clone(&self.report)
    }

    /// What a pass would do now; nothing is written, so where no object is of about now the store's clock is believed to
    /// be ours.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub async fn plans(&mut self) -> Result<Plans, CatalogError> {
        let survey = self.survey().await?;
        let told = match self.may_delete() {
            true => Some(clock::guessed(&*self.clock, survey.newest_object())),
            false => None,
        };
        let now = told.as_ref().and_then(|told| told.as_ref().ok().copied());
        Ok(Plans {
            refused: told.and_then(Result::err),
            ..self.plans_of(&survey, now)
        })
    }

    /// Does what there is to do. `told` gets the stored bytes that were read for merges, and how many there are.
    ///
    /// # Errors
    /// [`CatalogError`]; what was done until then stays done, and the next pass goes on.
    pub async fn pass(&mut self, mut told: impl FnMut(u64, u64)) -> Result<Done, CatalogError> {
        let survey = self.survey().await?;
        let mut done = Done::default();
        // What fails here fails the pass, after what it has nothing to do with.
        let (now, mut failed) = match self.time_to_delete(&survey, &mut done).await {
            Ok(now) => (now, None),
            Err(error) => (None, Some(CatalogError::from(error))),
        };
        let plans = self.plans_of(&survey, now);
        if let Err(error) = &plans.prune {
            done.alarms.push(error.to_string());
        }
        if now.is_some() {
            failed = self.delete(&survey, &plans, &mut done).await.err();
        }
        done.goes_on |= now.is_some() && done.refused.is_none() && plans.are_waited_for;
        let total = plans.merges.iter().map(Merge::bytes).sum();
        let mut read = 0;
        // What failed before comes last: an object that cannot be read must not keep all the others from being merged.
        let (again, first): (Vec<&Merge>, Vec<&Merge>) = plans
            .merges
            .iter()
            .partition(|merge| self.unreadable.contains(&merge.object().name()));
        self.unreadable.clear();
        self.unreadable
            .extend(again.iter().map(|merge| merge.object().name()));
        let mut failures = 0;
        for merge in first.into_iter().chain(again) {
            let name = merge.object().name();
            if let Err(error) = self.merge(merge, &mut done).await {
                self.unreadable.insert(name);
                failed.get_or_insert(error.into());
                failures += 1;
                if failures >= FAILED_MERGES_MAX {
                    break;
                }
            } else {
                self.unreadable.remove(&name);
            }
            read += merge.bytes();
            told(read, total);
        }
        done.goes_on |= done.merges > 0;
        self.report.barred(self.barred.len());
        failed.map_or(Ok(done), Err)
    }

    async fn delete(
        &mut self,
        survey: &Survey,
        plans: &Plans,
        done: &mut Done,
    ) -> Result<(), CatalogError> {
        if let Ok(plan) = &plans.prune {
            self.delete_old(plan, done).await?;
        }
        if done.refused.is_some() {
            return Ok(());
        }
        self.delete_superfluous(survey, &plans.superfluous, done)
            .await
    }

    /// The archive as it is now.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub async fn survey(&mut self) -> Result<Survey, CatalogError> {
        let survey = survey(&*self.store, &mut self.kept, self.clock.ticks()).await?;
        let archive = survey.catalog.archive().map(|document| document.archive);
        if archive.is_some_and(|archive| archive != self.archive) {
            return Err(CatalogError::Another {
                address: self.store.address(),
            });
        }
        let is_there = |name: &ObjectName| survey.dates.contains_key(name);
        self.barred.retain(is_there);
        self.agreed.retain(|name, _| is_there(name));
        for of in self.agreed.values_mut() {
            of.retain(is_there);
        }
        Ok(survey)
    }

    /// `now` is the store's time where something may be deleted.
    fn plans_of(&self, survey: &Survey, now: Option<UnixMillis>) -> Plans {
        let stock = Stock {
            catalog: &survey.catalog,
            dates: &survey.dates,
            now: now.unwrap_or_else(|| survey.newest()),
        };
        let policy = &self.options.policy;
        let mut prune = prune(&stock, policy, &survey.filled);
        // It takes memory for each segment: nobody asks where nothing is deleted.
        let mut covered = Vec::new();
        let mut merges = merges(&stock, policy, &self.barred);
        match (now, &mut prune) {
            (Some(_), Ok(plan)) => {
                covered = superfluous(&stock, policy, &self.barred);
                without_old(&mut covered, &mut merges, plan);
            }
            (Some(_), Err(_)) => covered = superfluous(&stock, policy, &self.barred),
            (None, Ok(plan)) => plan.deletions.clear(),
            (None, Err(_)) => {}
        }
        Plans {
            merges,
            superfluous: covered,
            are_waited_for: is_superfluous_later(&stock, policy, &self.barred),
            prune,
            refused: None,
        }
    }

    /// The store's time, where something may be deleted.
    async fn time_to_delete(
        &mut self,
        survey: &Survey,
        done: &mut Done,
    ) -> Result<Option<UnixMillis>, StoreError> {
        if !self.may_delete() {
            return Ok(None);
        }
        let newest = survey.newest_object();
        let told = clock::of_store(&*self.store, &*self.clock, newest).await;
        let told = match told {
            Err(error) if error.is_retryable() => return Err(error),
            Err(error) => {
                self.denied(done, &error);
                return Ok(None);
            }
            Ok(told) => told,
        };
        let ticks = self.clock.ticks();
        let told = told.and_then(|now| {
            self.known = Some(clock::Known::advance(self.known, now, ticks)?);
            Ok(now)
        });
        match told {
            Ok(now) => Ok(Some(now)),
            Err(why) => {
                self.refuse(done, why);
                Ok(None)
            }
        }
    }

    fn refuse(&self, done: &mut Done, why: String) {
        self.report.refused();
        done.refused = Some(why);
    }

    fn denied(&mut self, done: &mut Done, error: &StoreError) {
        self.denied_at = Some(self.clock.ticks());
        self.refuse(
            done,
            format!(
                "the store does not delete, so the archive only grows; allow it, or give --no-delete: {error}"
            ),
        );
    }

    async fn delete_old(&mut self, plan: &PrunePlan, done: &mut Done) -> Result<(), StoreError> {
        // In this order, one by one: what is left when this is cut short does not look like a gap.
        for (name, bytes) in &plan.deletions {
            match self.store.delete(name).await {
                Ok(()) => {}
                Err(error) if error.is_retryable() => return Err(error),
                Err(error) => {
                    self.denied(done, &error);
                    return Ok(());
                }
            }
            tracing::debug!(%name, "deleted: older than the window");
            self.report.deleted(true);
            done.deleted_pruned += 1;
            done.deleted_bytes += bytes;
        }
        Ok(())
    }

    async fn delete_superfluous(
        &mut self,
        survey: &Survey,
        superfluous: &[Covered],
        done: &mut Done,
    ) -> Result<(), CatalogError> {
        let (mut names, mut failed) = (Vec::new(), Vec::new());
        for covered in superfluous {
            match self.agree(&covered.by, &covered.of, done).await {
                Ok(true) => {
                    let of = covered.of.iter();
                    names.extend(of.map(|segment| (segment.name.clone(), segment.bytes)));
                }
                Ok(false) => {}
                // It stays; the others go.
                Err(error) if failed.len() < FAILED_MERGES_MAX => failed.push(error),
                Err(error) => return Err(error.into()),
            }
        }
        let gone: HashSet<ObjectName> = names.iter().map(|(name, _)| name.clone()).collect();
        if !is_covered_without(survey, &gone) {
            self.refuse(
                done,
                "merging would change what can be restored: nothing is deleted; please report this"
                    .into(),
            );
            return Ok(());
        }
        for chunk in names.chunks(DELETES_IN_FLIGHT_MAX) {
            let mut deletes = JoinSet::new();
            for (name, bytes) in chunk.iter().cloned() {
                let store = Arc::clone(&self.store);
                deletes.spawn(async move { store.delete(&name).await.map(|()| bytes) });
            }
            while let Some(deleted) = deletes.join_next().await {
                match deleted.expect("deleting neither panics nor is cancelled") {
                    Ok(bytes) => {
                        self.report.deleted(false);
                        done.deleted_merged += 1;
                        done.deleted_bytes += bytes;
                    }
                    Err(error) if error.is_retryable() => return Err(error.into()),
                    Err(error) => {
                        self.denied(done, &error);
                        return Ok(());
                    }
                }
            }
        }
        failed
            .into_iter()
            .next()
            .map_or(Ok(()), |error| Err(error.into()))
    }

    /// Whether a segment, read as a whole, holds everything that these hold.
    async fn agree(
        &mut self,
        by: &SegmentEntry,
        of: &[SegmentEntry],
        done: &mut Done,
    ) -> Result<bool, StoreError> {
        let agreed = self.agreed.get(&by.name);
        let is_known =
            |segment: &SegmentEntry| agreed.is_some_and(|agreed| agreed.contains(&segment.name));
        let unknown: Vec<SegmentEntry> = of.iter().filter(|it| !is_known(it)).cloned().collect();
        if unknown.is_empty() {
            return Ok(true);
        }
        match join::compare(&self.store, self.archive, by, &unknown).await {
            Ok(_) => {
                let names = unknown.into_iter().map(|segment| segment.name);
                self.agreed
                    .entry(by.name.clone())
                    .or_default()
                    .extend(names);
                Ok(true)
            }
            Err(error) => self.stopped(error, done).map(|()| false),
        }
    }

    async fn merge(&mut self, merge: &Merge, done: &mut Done) -> Result<(), StoreError> {
        match join::merge(&self.store, self.archive, merge).await {
            Ok(()) => {
                let mut agreed = BTreeSet::new();
                for input in &merge.inputs {
                    agreed.insert(input.name.clone());
                    agreed.extend(self.agreed.get(&input.name).into_iter().flatten().cloned());
                }
                self.agreed.insert(merge.object().name(), agreed);
                self.report.merged(true);
                done.merges += 1;
                done.inputs += merge.inputs.len();
                Ok(())
            }
            Err(error) => {
                self.report.merged(false);
                self.stopped(error, done)
            }
        }
    }

    /// Segments that cannot be worked with are left alone from here on, and said.
    fn stopped(&mut self, error: JoinError, done: &mut Done) -> Result<(), StoreError> {
        let suspects = error.suspects();
        match error {
            // Somebody else was quicker.
            JoinError::Store(error) if error.kind == StoreErrorKind::NotFound => {}
            JoinError::Store(error) => return Err(error),
            error => done.alarms.push(format!(
                "{error}; it is neither merged nor deleted, look at who else writes to this archive"
            )),
        }
        done.goes_on = true;
        self.barred.extend(suspects);
        Ok(())
    }
}

/// Leaves out what goes because it is too old, what such a segment covers (it covers nothing then), and merges of what
/// would be gone by then.
fn without_old(superfluous: &mut Vec<Covered>, merges: &mut Vec<Merge>, plan: &PrunePlan) {
    let old: HashSet<&ObjectName> = plan.deletions.iter().map(|(name, _)| name).collect();
    merges.retain(|merge| !merge.inputs.iter().any(|input| old.contains(&input.name)));
    superfluous.retain(|covered| !old.contains(&covered.by.name));
    for covered in superfluous.iter_mut() {
        covered.of.retain(|segment| !old.contains(&segment.name));
    }
    superfluous.retain(|covered| !covered.of.is_empty());
}

/// Whether just as much can be restored without these.
fn is_covered_without(survey: &Survey, gone: &HashSet<ObjectName>) -> bool {
    let before = &survey.catalog;
    let after = before.without(gone);
    before
        .timelines()
        .zip(after.timelines())
        .all(|(before, after)| before.runs() == after.runs())
}
