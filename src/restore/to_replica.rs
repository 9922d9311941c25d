//! Seeds a running server: takes it over, serves it the archive, waits until it has everything, makes it a
//! master again. A seed is all or nothing: a server that did not get everything is never promoted.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::watch;

use super::seeder::{Offering, SeedProgress, Seeder, Serving};
use crate::archive::layout::ArchiveId;
use crate::archive::plan::Plan;
use crate::clock::Clock;
use crate::position::{Offset, Position, ReplicationId};
use crate::server::control::{Control, ControlError};
use crate::server::info::Info;
use crate::store::Store;

/// Without any progress for this long, a seed has failed. A server of 60 s `repl-timeout` gives up earlier.
pub const SEED_SILENCE: Duration = Duration::from_secs(120);
/// A server that was taken over and does not ask within this long cannot reach us. They try each second.
const UNASKED: Duration = Duration::from_secs(20);
/// How long emptying a server may take that could not apply everything.
const TAKE_BACK: Duration = Duration::from_secs(60);
/// Connections that may break before a seed is given up: the server comes again by itself.
const ATTEMPTS_MAX: u32 = 2;
/// How often the server's own view is looked at while it applies the replication stream.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How the server comes to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Approach {
    /// It is a master: taken over in one transaction, if it is still what was decided on.
    TakeOver,
    /// It is our replica already and gets a full resync.
    Waits,
    /// It is our replica already, with data up to this position under this id, and goes on from there.
    Continues(Position, ReplicationId),
}

/// Why a seed did not come about.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The control connection failed.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// Between the decision and the takeover, the server changed: it was given back untouched.
    #[error("the server changed before it could be taken over ({what}); nothing was done to it")]
    Changed {
        /// What changed.
        what: &'static str,
    },
    /// The server cannot connect to us.
    #[error(
        "the server cannot reach our seed address: it was left, or given back, as it was; give --seed-listen an \
         address that the server can reach (and --seed-announce where it must use another), with \
         --seed-password-file"
    )]
    Unreachable,
    /// It takes writes while it is a replica.
    #[error(
        "the server has replica-read-only no: clients could write while it is seeded; set replica-read-only yes"
    )]
    Writable,
    /// The offsets of the archive begin anew on the way: such an archive cannot be seeded under its own id.
    #[error(
        "the archive's offsets are not continuous from the snapshot to the head: this version cannot seed it; restore to files"
    )]
    NotContinuous,
    /// The connection of the replica ended before it had everything.
    #[error("the server did not take the data: {reason}{}", hint(reason))]
    Rejected {
        /// What was seen.
        reason: String,
    },
    /// No progress.
    #[error("no progress for {} s: the server {state}; look at its log", SEED_SILENCE.as_secs())]
    Silent {
        /// How far it came.
        state: String,
    },
    /// The server could not apply everything it was sent.
    #[error(
        "the server answered {errors} commands of the archive with errors: it is older than the server that \
         wrote them, or lacks a module; it was not promoted"
    )]
    Errors {
        /// How many.
        errors: u64,
    },
}

fn hint(reason: &str) -> &'static str {
    if reason.contains("closed the connection") {
        " (its log tells why: a payload newer than the server, a missing module, out of memory?)"
    } else {
        ""
    }
}

/// What to seed with.
#[derive(Debug)]
pub struct Seed<'a> {
    /// Where the plan lies.
    pub store: Arc<dyn Store>,
    /// The archive's id.
    pub archive: ArchiveId,
    /// What to send.
    pub plan: Plan,
    /// The listener that serves it.
    pub seeder: &'a Seeder,
    /// How the server comes to us.
    pub approach: Approach,
    /// The time.
    pub clock: &'a dyn Clock,
}

impl Seed<'_> {
    /// Carries the seed out. `unchanged` tells whether the server, as it says of itself inside the takeover
    /// transaction, is still what was decided on; else what changed.
    ///
    /// # Errors
    /// [`SeedError`]. Before the first byte of payload the server is given back as it was; afterwards it stays
    /// our replica, which takes no writes, and the next attempt fills it again.
    pub async fn run(
        self,
        control: &mut Control,
        unchanged: impl Fn(&Info) -> Result<(), &'static str>,
    ) -> Result<Offset, SeedError> {
        if !self.plan.offsets_continuous {
            return Err(SeedError::NotContinuous);
        }
        let end = self.plan.target.offset;
        let before = control.info().await?;
        let continue_at = match self.approach {
            Approach::Continues(position, id) => Some((position, id)),
            Approach::TakeOver | Approach::Waits => None,
        };
        let (progress, mut seen) = watch::channel(SeedProgress::default());
        let offering = Arc::new(Offering {
            store: Arc::clone(&self.store),
            archive: self.archive,
            plan: self.plan.clone(),
            continue_at,
            approved: watch::Sender::new(0),
            listening_port: listening_port(control, &before).await,
            busy: AtomicBool::new(false),
            progress,
        });
        if self.approach != Approach::TakeOver && takes_writes(&before) {
            return Err(SeedError::Writable);
        }
        let errors_before = before.number("unexpected_error_replies").unwrap_or(0);
        self.seeder.serve(Serving::Plan(Arc::clone(&offering)));
        if self.approach == Approach::TakeOver
            && let Err(error) = self.take_over(control, unchanged).await
        {
            self.seeder.serve(Serving::Undecided);
            return Err(error);
        }
        let approved = &offering.approved;
        let outcome = self
            .wait(control, &mut seen, approved, end, errors_before)
            .await;
        if let Err(error) = outcome {
            if matches!(error, SeedError::Errors { .. }) {
                self.take_back(control, offering.listening_port).await;
            }
            self.seeder.serve(Serving::Undecided);
            return Err(error);
        }
        let promoted = control.promote().await;
        self.seeder.serve(Serving::Undecided);
        promoted?;
        Ok(end)
    }

    /// Empties a server that holds less than its id and offset say, under an id that nobody knows: kept in a
    /// dump, it would later pass for the archive's own data. The archive has all of it.
    async fn take_back(&self, control: &mut Control, port: Option<u16>) {
        let mut raw = [0; 20];
        if getrandom::fill(&mut raw).is_err() {
            return;
        }
        self.seeder
            .serve(Serving::Nothing(ReplicationId::from_raw(raw), port));
        let began = self.clock.ticks();
        while Duration::from_millis(self.clock.ticks().since(began)) < TAKE_BACK {
            match control.info().await {
                Ok(info) if info.keys() == 0 && applied(&info, Offset::ZERO) => return,
                Ok(_) => tokio::time::sleep(LOOK_INTERVAL).await,
                Err(_) => return,
            }
        }
        tracing::error!(
            "the server could not be emptied again: it holds less than its replication id and offset say; do not \
             promote it by hand, and remove its dump before it is started again"
        );
    }

    async fn take_over(
        &self,
        control: &mut Control,
        unchanged: impl Fn(&Info) -> Result<(), &'static str>,
    ) -> Result<(), SeedError> {
        if !self.seeder.is_reachable_from(control.is_local()) {
            return Err(SeedError::Unreachable);
        }
        let (host, port) = self.seeder.address_for(control.local_ip());
        let info = control.take_over(&host, port).await?;
        if let Err(what) = unchanged(&info) {
            // Whoever made it a replica in between meant it.
            match (
                info.text("role"),
                info.text("master_host"),
                info.text("master_port"),
            ) {
                (Some("slave"), Some(host), Some(port)) => control.replicate(host, port).await?,
                _ => control.promote().await?,
            }
            return Err(SeedError::Changed { what });
        }
        let after = control.info().await?;
        if takes_writes(&after) {
            control.promote().await?;
            return Err(SeedError::Writable);
        }
        Ok(())
    }

    /// Waits until the replica acknowledged the end and the server itself says that it stands there.
    async fn wait(
        &self,
        control: &mut Control,
        seen: &mut watch::Receiver<SeedProgress>,
        approved: &watch::Sender<u32>,
        end: Offset,
        errors_before: u64,
    ) -> Result<(), SeedError> {
        let began = self.clock.ticks();
        let mut last_moved = began;
        loop {
            let progress = seen.borrow_and_update().clone();
            if progress.asked != *approved.borrow() {
                still_the_same(control).await?;
                approved.send_replace(progress.asked);
            }
            if let Some(reason) = &progress.failed
                && progress.failures >= ATTEMPTS_MAX
            {
                return Err(SeedError::Rejected {
                    reason: reason.clone(),
                });
            }
            if progress.all_sent && progress.acknowledged == Some(end) {
                return self.check(control, end, errors_before).await;
            }
            tokio::select! {
                changed = seen.changed() => {
                    if changed.is_ok() {
                        last_moved = self.clock.ticks();
                    }
                }
                // Whoever comes up in its place has not been looked at.
                error = control.lost() => return Err(error.into()),
                () = tokio::time::sleep(LOOK_INTERVAL) => {
                    // A replica acknowledges once a second by itself: its own view tells sooner.
                    let info = if progress.all_sent { control.info().await? } else { Info::default() };
                    if applied(&info, end) {
                        return self.check(control, end, errors_before).await;
                    }
                    // A large payload takes its time to load.
                    if info.number("loading") == Some(1) {
                        last_moved = self.clock.ticks();
                    }
                }
            }
            let now = self.clock.ticks();
            if progress.asked == 0
                && self.approach == Approach::TakeOver
                && Duration::from_millis(now.since(began)) > UNASKED
            {
                // Whoever asks from here on is told to wait. If nothing was sent, it is given back as it was.
                self.seeder.serve(Serving::Undecided);
                if seen.borrow().asked == 0 {
                    control.promote().await?;
                    return Err(SeedError::Unreachable);
                }
                return Err(SeedError::Silent {
                    state: describe(&progress),
                });
            }
            if Duration::from_millis(now.since(last_moved)) > SEED_SILENCE {
                return Err(SeedError::Silent {
                    state: describe(&progress),
                });
            }
        }
    }

    async fn check(
        &self,
        control: &mut Control,
        end: Offset,
        errors_before: u64,
    ) -> Result<(), SeedError> {
        let info = control.info().await?;
        if takes_writes(&info) {
            return Err(SeedError::Writable);
        }
        if !applied(&info, end) {
            return Err(SeedError::Rejected {
                reason: "it acknowledged the end but does not stand there".into(),
            });
        }
        let errors = info
            .number("unexpected_error_replies")
            .unwrap_or(0)
            .saturating_sub(errors_before);
        if errors > 0 {
            Err(SeedError::Errors { errors })
        } else {
            Ok(())
        }
    }
}

/// An answer on the control connection, after somebody asked for data, comes from the process that was decided on: it
/// lives, so whoever asked under its port is not another one in its place.
async fn still_the_same(control: &mut Control) -> Result<(), SeedError> {
    let info = control.info().await?;
    if takes_writes(&info) {
        return Err(SeedError::Writable);
    }
    if info.text("role") != Some("slave") {
        return Err(SeedError::Rejected {
            reason: "it was made a master while it was seeded".into(),
        });
    }
    Ok(())
}

/// The port that the server names in its handshake as a replica; nothing where that cannot be told, because
/// CONFIG GET is not allowed or the server listens on TLS only.
async fn listening_port(control: &mut Control, info: &Info) -> Option<u16> {
    for name in ["replica-announce-port", "slave-announce-port"] {
        let port: u16 = control
            .setting(name)
            .await
            .ok()?
            .and_then(|port| port.parse().ok())
            .unwrap_or(0);
        if port != 0 {
            return Some(port);
        }
    }
    let port: u16 = control.setting("port").await.ok()??.parse().ok()?;
    (port != 0 && info.number("tcp_port") == Some(port.into())).then_some(port)
}

fn takes_writes(replica: &Info) -> bool {
    replica.number("slave_read_only") == Some(0)
}

fn applied(info: &Info, end: Offset) -> bool {
    info.text("role") == Some("slave")
        && info.text("master_link_status") == Some("up")
        && !info.is_loading()
        && info.number("slave_repl_offset") == Some(end.as_u64())
}

fn describe(progress: &SeedProgress) -> String {
    match (progress.asked, progress.all_sent, progress.acknowledged) {
        (0, _, _) => "did not connect to our seed address; can it reach it?".into(),
        (_, false, _) => format!("has taken {} bytes of the payload", progress.payload_sent),
        (_, true, None) => "has everything but acknowledged nothing".into(),
        (_, true, Some(offset)) => {
            format!("has everything but acknowledged only offset {offset}")
        }
    }
}

/// A seed under `id` up to `end`, as the log says it.
pub fn summary(plan: &Plan) -> String {
    format!(
        "timeline {} offset {} under {}: snapshot at {} and {} bytes of replication stream from {} objects",
        plan.target.timeline,
        plan.target.offset,
        plan.id,
        plan.snapshot.offset,
        plan.stream_bytes(),
        plan.objects(),
    )
}
