//! `perennial prune`, and the same every few minutes beside `perennial run`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::flags::PruneArguments;
use super::observe::Observed;
use super::progress::Progress;
use super::status::time;
use super::{Exit, open_store, say, tell};
use crate::archive::retention::PrunePlan;
use crate::clock::Clock;
use crate::follow::jittered;
use crate::position::Ticks;
use crate::store::catalog;
use crate::upkeep::{Done, Plans, Upkeep};

/// So many new objects are worth a look at the archive, which costs requests of its own.
const CREATED_MIN: u64 = 60;
/// The longest wait before the first look.
const FIRST_AFTER: Duration = Duration::from_secs(60);
/// After so long there is a look whatever was created, milliseconds.
const LOOK_MILLIS_MAX: u64 = 24 * 60 * 60 * 1000;
/// An archive from which nothing may be deleted only grows, and with it each look: there is none sooner, milliseconds.
const LOOK_UNDELETED_MILLIS: u64 = 60 * 60 * 1000;

/// Merges and deletes once.
///
/// # Errors
/// Where the archive cannot be read or written, or something in it needs a person.
pub async fn run(arguments: PruneArguments, clock: Arc<dyn Clock>) -> anyhow::Result<()> {
    let json = arguments.archive.json;
    let retention = arguments.window()?;
    let store = open_store(&arguments.archive.archive)?;
    let options = arguments
        .upkeep
        .settings(retention)
        .check()
        .map_err(|error| Exit {
            message: error.to_string(),
            code: 2,
        })?;
    let archive = catalog::survey(&*store, &mut catalog::Kept::default(), clock.ticks()).await?;
    let archive = archive.catalog.archive().map(|document| document.archive);
    let archive = archive.context("archive.json is missing")?;
    let mut upkeep = Upkeep::new(store, archive, options, Arc::clone(&clock));
    if arguments.dry_run {
        let plans = upkeep.plans().await?;
        if json {
            say(&serde_json::to_string_pretty(&plans_json(&plans))?);
        } else {
            tell(&plans_text(&plans));
        }
        let alarms = alarms(&plans);
        return verdict(plans.refused, alarms);
    }
    let mut progress = Progress::lines("merging", clock, None);
    let done = upkeep
        .pass(|read, total| progress.stands_at(read, total))
        .await?;
    progress.end();
    if json {
        say(&done_json(&done).to_string());
    } else {
        tell(&done_text(&done));
    }
    verdict(done.refused, done.alarms)
}

/// An error where something needs a person: the same of what would be done and of what was done.
fn verdict(refused: Option<String>, alarms: Vec<String>) -> anyhow::Result<()> {
    if let Some(refused) = refused {
        anyhow::bail!("not everything is deleted: {refused}");
    }
    if !alarms.is_empty() {
        anyhow::bail!("{}", alarms.join("\n"));
    }
    Ok(())
}

fn alarms(plans: &Plans) -> Vec<String> {
    plans
        .prune
        .as_ref()
        .err()
        .map(ToString::to_string)
        .into_iter()
        .collect()
}

/// How many objects are to be deleted because others cover them, how many because they are too old, and their bytes.
fn deletions(plans: &Plans) -> (usize, usize, u64) {
    let merged = plans.superfluous.iter().flat_map(|covered| &covered.of);
    let merged_bytes: u64 = merged.clone().map(|segment| segment.bytes).sum();
    let old = plans.prune.as_ref().ok();
    (
        merged.count(),
        old.map_or(0, |plan| plan.deletions.len()),
        merged_bytes + old.map_or(0, PrunePlan::bytes),
    )
}

fn plans_json(plans: &Plans) -> Value {
    let merges = plans.merges.iter().map(|merge| {
        json!({
            "name": merge.object().name().as_str(),
            "bytes": merge.bytes(),
            "inputs": merge.inputs.iter().map(|input| input.name.as_str()).collect::<Vec<_>>(),
        })
    });
    let superfluous = plans.superfluous.iter().flat_map(|covered| {
        covered.of.iter().map(|segment| {
            json!({
                "name": segment.name.as_str(), "bytes": segment.bytes, "covered_by": covered.by.name.as_str(),
            })
        })
    });
    let old = plans.prune.as_ref().map(|plan| {
        plan.deletions
            .iter()
            .map(|(name, bytes)| json!({ "name": name.as_str(), "bytes": bytes }))
            .collect::<Vec<_>>()
    });
    json!({
        "merge": merges.collect::<Vec<_>>(),
        "delete_merged": superfluous.collect::<Vec<_>>(),
        "delete_old": old.as_ref().ok(),
        "deleted_bytes": deletions(plans).2,
        "window_start_ms": plans.prune.as_ref().ok().map(|plan| plan.window_start.0),
        "held_since_ms": plans.prune.as_ref().ok().and_then(|plan| plan.held_since).map(|at| at.0),
        "refused": plans.refused.clone().or_else(|| alarms(plans).pop()),
    })
}

fn plans_text(plans: &Plans) -> String {
    let mut lines = Vec::new();
    for merge in &plans.merges {
        lines.push(format!(
            "would merge {} segments into {}",
            merge.inputs.len(),
            merge.object().name()
        ));
    }
    for covered in &plans.superfluous {
        for segment in &covered.of {
            lines.push(format!(
                "would delete {}, which {} covers",
                segment.name, covered.by.name
            ));
        }
    }
    if let Ok(plan) = &plans.prune {
        for (name, _) in &plan.deletions {
            lines.push(format!("would delete {name}, which is too old"));
        }
        lines.push(format!(
            "every moment since {} stays",
            time(plan.window_start)
        ));
        if let Some(since) = plan.held_since {
            lines.push(format!(
                "so does everything since {}, from which later snapshots were derived: one from the server or a replica \
                 (perennial snapshot) lets it go",
                time(since)
            ));
        }
    }
    let (merged, old, bytes) = deletions(plans);
    let inputs: usize = plans.merges.iter().map(|merge| merge.inputs.len()).sum();
    lines.push(match plans.merges.len() + merged + old {
        0 => "would do nothing".to_owned(),
        _ => format!(
            "would merge {inputs} segments into {}; would delete {merged} that were merged and {old} that are too old, {}",
            plans.merges.len(),
            bytesize::ByteSize(bytes)
        ),
    });
    lines.join("\n")
}

fn done_json(done: &Done) -> Value {
    json!({
        "merges": done.merges,
        "merged_segments": done.inputs,
        "deleted_merged": done.deleted_merged,
        "deleted_old": done.deleted_pruned,
        "deleted_bytes": done.deleted_bytes,
        "refused": done.refused,
        "alarms": done.alarms,
    })
}

fn done_text(done: &Done) -> String {
    match done.merges + done.deleted_merged + done.deleted_pruned {
        0 => "nothing was to be done".to_owned(),
        _ => format!(
            "merged {} segments into {}; deleted {} that were merged and {} that were too old, {}",
            done.inputs,
            done.merges,
            done.deleted_merged,
            done.deleted_pruned,
            bytesize::ByteSize(done.deleted_bytes)
        ),
    }
}

/// Upkeep beside `run`, until this is dropped: it may be cut short anywhere.
pub(super) struct Beside(JoinHandle<()>);

impl Drop for Beside {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Looks after the archive now and then, where there is something to do.
pub(super) fn beside(
    upkeep: Upkeep,
    every: Duration,
    observed: Arc<Observed>,
    clock: Arc<dyn Clock>,
) -> Beside {
    observed.keeps(upkeep.report());
    let rounds = Rounds::new(upkeep, observed, clock);
    Beside(tokio::spawn(rounds.go_on(every)))
}

struct Rounds {
    upkeep: Upkeep,
    clock: Arc<dyn Clock>,
    observed: Arc<Observed>,
    looked_at: Option<Ticks>,
    /// Objects that this process had created by then.
    created: u64,
    goes_on: bool,
    /// What was said last: each thing once until it changes.
    said: Vec<String>,
}

impl Rounds {
    fn new(upkeep: Upkeep, observed: Arc<Observed>, clock: Arc<dyn Clock>) -> Self {
        Self {
            upkeep,
            clock,
            observed,
            looked_at: None,
            created: 0,
            // What was left to do before this process began is not known: it may begin anew every day.
            goes_on: true,
            said: Vec::new(),
        }
    }

    async fn go_on(mut self, every: Duration) {
        // Where the process is started again and again, an archive must not go without for ever.
        let mut wait = every.min(FIRST_AFTER);
        loop {
            // Two of them on one archive should not always meet.
            tokio::time::sleep(jittered(std::mem::replace(&mut wait, every))).await;
            if self.is_due() {
                self.look().await;
            }
        }
    }

    fn is_due(&self) -> bool {
        let Some(looked_at) = self.looked_at else {
            return true;
        };
        let since = self.clock.ticks().since(looked_at);
        if !self.upkeep.may_delete() && since < LOOK_UNDELETED_MILLIS {
            return false;
        }
        let created = self.observed.created().saturating_sub(self.created);
        self.goes_on || created >= CREATED_MIN || since >= LOOK_MILLIS_MAX
    }

    async fn look(&mut self) {
        let passed = self.upkeep.pass(|_, _| {}).await;
        self.looked_at = Some(self.clock.ticks());
        self.created = self.observed.created();
        let done = match passed {
            Ok(done) => done,
            Err(error) => {
                self.goes_on = true;
                self.say(
                    vec![format!("upkeep was cut short: {error}; it goes on later")],
                    false,
                );
                return;
            }
        };
        self.goes_on = done.goes_on;
        if done.merges + done.deleted_merged + done.deleted_pruned > 0 {
            tracing::info!("upkeep: {}", done_text(&done));
        }
        if done.deleted_pruned > 0
            && let Ok(survey) = self.upkeep.survey().await
        {
            self.observed.archive_read(&survey.catalog);
        }
        let refused = done.refused.map(|why| format!("upkeep: {why}"));
        let is_alarm = !done.alarms.is_empty();
        self.say(done.alarms.into_iter().chain(refused).collect(), is_alarm);
    }

    fn say(&mut self, lines: Vec<String>, is_alarm: bool) {
        for line in lines.iter().filter(|line| !self.said.contains(line)) {
            if is_alarm {
                tracing::error!("{line}");
            } else {
                tracing::warn!("{line}");
            }
        }
        // What is refused for a day, or barred, is not found again by the next pass.
        self.said.extend(lines);
        self.said.dedup();
        let excess = self.said.len().saturating_sub(SAID_MAX);
        self.said.drain(..excess);
    }
}

/// So many lines are remembered as said.
const SAID_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::flags::{Cli, Command};
    use super::*;
    use crate::archive::layout::ArchiveId;
    use crate::clock::SystemClock;
    use crate::config::UpkeepSettings;
    use crate::store::memory::MemoryStore;

    fn arguments(more: &[&str]) -> PruneArguments {
        let given = ["perennial", "prune", "--archive", "file:///nowhere"];
        let cli = Cli::parse_from(given.iter().chain(more));
        match cli.command {
            Command::Prune(arguments) => arguments,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_window_is_chosen_only_where_nothing_is_deleted() {
        let refused = arguments(&[]).window().unwrap_err();
        assert_eq!(refused.code, 2);
        assert!(refused.message.contains("--retention"), "{refused}");
        let window = |more: &[&str]| arguments(more).window().unwrap();
        assert_eq!(window(&["--dry-run"]), "7d");
        assert_eq!(window(&["--retention", "30d"]), "30d");
    }

    fn rounds(no_delete: bool) -> Rounds {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let settings = UpkeepSettings {
            no_delete,
            ..UpkeepSettings::default()
        };
        let upkeep = Upkeep::new(
            Arc::new(MemoryStore::new()),
            ArchiveId::from_raw([9; 16]),
            settings.check().unwrap(),
            Arc::clone(&clock),
        );
        let observed = Arc::new(Observed::new(Arc::clone(&clock)).unwrap());
        Rounds::new(upkeep, observed, clock)
    }

    /// A run that is started again every day looks once a day at least.
    #[tokio::test]
    async fn the_first_round_is_due_at_once_and_the_next_is_later_where_nothing_is_deleted() {
        for no_delete in [false, true] {
            let mut rounds = rounds(no_delete);
            assert!(rounds.is_due());
            // There is no archive: it goes on later.
            rounds.look().await;
            assert!(rounds.goes_on);
            assert_eq!(rounds.is_due(), !no_delete);
        }
    }
}
