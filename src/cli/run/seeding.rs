//! What `perennial run` does with a server that is to be filled.

use std::sync::Arc;

use super::super::progress::Progress;
use super::{Round, Runner, Said};
use crate::archive::plan::{Plan, PlanError, Target, plan};
use crate::archive::timeline::Catalog;
use crate::decide::{Action, Look, Policy, Server, before_sync, look};
use crate::position::Position;
use crate::restore::around::{self, Around};
use crate::restore::mapped::PrepareError;
use crate::restore::to_replica::{Approach, Purpose, Seed, SeedError};
use crate::server::control::Control;
use crate::server::info::Info;
use crate::store::catalog::Loaded;

impl Runner {
    /// Fills the server with the head.
    pub(super) async fn seed(
        &mut self,
        loaded: &Loaded,
        server: &Server,
        control: &mut Control,
        approach: Approach,
    ) -> anyhow::Result<Round> {
        let (planned, approach) = match self.plan_head(&loaded.catalog, approach) {
            Ok(planned) => planned,
            Err(error) => {
                return Ok(Round::Later(Said::slow(format!(
                    "not ready: cannot seed: {error}"
                ))));
            }
        };
        if let Some(damaged) = loaded.damaged(planned.target.timeline) {
            return Ok(Round::Later(Said::slow(format!(
                "not ready: not seeding from a shorter history: {damaged}"
            ))));
        }
        match loaded.catalog.left_out(planned.target.timeline) {
            Some(lost) if lost.continued.is_some() => {
                tracing::error!("seeding what there is: {lost}")
            }
            Some(rest) => tracing::warn!("{rest} (a crash leaves such pieces, not acknowledged)"),
            None => {}
        }
        let (seeder, local_ip, same_machine) =
            (&self.seeder, control.local_ip(), control.is_local());
        let (policy, now) = (self.options.seed, self.clock.unix());
        let before = self.unfinished;
        let unchanged = |info: &Info| {
            let again = info
                .server(|host, port| seeder.is_us(host, port, local_ip, same_machine))
                .map_err(|_| "INFO became unusable")?;
            still_to_be_seeded(
                &again,
                server,
                &look(&again, &loaded.catalog, now).beside(before, &again),
                policy,
                info,
            )
        };
        let target = planned.target;
        self.unfinished = Some((planned.id, target.offset));
        let usable = self.around.rest(&loaded.catalog);
        let seed = Seed {
            store: Arc::clone(&self.store),
            archive: self.archive.archive,
            catalog: &usable,
            plan: planned,
            address: self.options.redis.to_string(),
            held: server.id,
            seeder,
            approach,
            purpose: Purpose::Head,
            clock: &*self.clock,
        };
        let mut progress = Progress::lines("seeding", Arc::clone(&self.clock), None);
        let told = |sent, total| progress.stands_at(sent, total);
        match seed.run(control, unchanged, told).await {
            Ok(end) => {
                self.unfinished = None;
                self.seeds_failed = 0;
                self.observed.seeded(true);
                self.observed.not_ready("seeded; about to be followed");
                tracing::info!(
                    offset = end.as_u64(),
                    "seeded: {} is a master again",
                    self.options.redis
                );
                Ok(Round::Again)
            }
            Err(
                error @ (SeedError::Changed { .. } | SeedError::Prepare(PrepareError::NumberTaken)),
            ) => Ok(Round::Later(Said::new(format!("not seeded: {error}")))),
            // No failure: the next look goes on from there.
            Err(SeedError::Outgrown { head, anew }) => {
                tracing::debug!(%head, anew, "the archive grew");
                let said = format!("not ready: {}", SeedError::Outgrown { head, anew });
                Ok(Round::Later(if anew {
                    Said::slow(said)
                } else {
                    Said::new(said)
                }))
            }
            Err(error @ SeedError::Unconfirmed(_)) => {
                Ok(Round::Later(Said::slow(format!("not ready: {error}"))))
            }
            Err(error) => {
                self.seeds_failed += 1;
                self.observed.seeded(false);
                self.observed.not_ready(format!("seed failed: {error}"));
                if self.goes_around(&error, &loaded.catalog, target, approach) {
                    return Ok(Round::Again);
                }
                Ok(Round::AfterSeed(error))
            }
        }
    }

    /// Plans a seed of the head, around what is known to be damaged. Where nothing else leads there, that is tried once
    /// more: somebody may have put it right.
    fn plan_head(
        &mut self,
        catalog: &Catalog,
        approach: Approach,
    ) -> Result<(Plan, Approach), PlanError> {
        let target = plan(catalog, Target::Latest)?.target;
        if let Ok(planned) = plan_around(&self.around, catalog, target, approach) {
            return Ok(planned);
        }
        self.around = Around::default();
        plan_around(&self.around, catalog, target, approach)
    }

    /// Whether a seed that failed over a damaged object is begun anew at once, from others that lead to the same
    /// position. The server is looked at again first.
    fn goes_around(
        &mut self,
        error: &SeedError,
        catalog: &Catalog,
        target: Position,
        approach: Approach,
    ) -> bool {
        let Some(unusable) = error.unusable() else {
            return false;
        };
        if !self.around.pass_over(&unusable.name) {
            return false;
        }
        let Ok((planned, _)) = plan_around(&self.around, catalog, target, approach) else {
            return false;
        };
        tracing::warn!("{}", around::said(&unusable, &planned));
        true
    }
}

/// Plans a seed, and how the server comes to it: a replica that lacks what cannot be read is filled anew, where a later
/// snapshot leads on. What it holds is an older state of that.
fn plan_around(
    around: &Around,
    catalog: &Catalog,
    target: Position,
    approach: Approach,
) -> Result<(Plan, Approach), PlanError> {
    let Approach::Continues(from, _) = approach else {
        return Ok((around.plan(catalog, target, None)?, approach));
    };
    match around.plan(catalog, target, Some(from)) {
        Err(_) if !around.is_empty() => Ok((around.plan(catalog, target, None)?, Approach::Waits)),
        continued => Ok((continued?, approach)),
    }
}

/// Whether a server, as it says of itself inside the takeover transaction, is still what was decided on.
fn still_to_be_seeded(
    now: &Server,
    before: &Server,
    looked: &Look,
    policy: Policy,
    info: &Info,
) -> Result<(), &'static str> {
    if now.run_id != before.run_id {
        return Err("it was restarted");
    }
    if now.id != before.id {
        return Err("its history changed");
    }
    if info.is_loading() {
        return Err("it began to load data");
    }
    if before_sync(looked, policy) != Action::Seed {
        return Err("it was written to");
    }
    Ok(())
}
