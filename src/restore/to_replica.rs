//! Seeds a running server: takes it over, serves it the archive, waits until it has everything, makes it a
//! master again. A seed is all or nothing: a server that did not get everything is never promoted.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::watch;

use super::mapped::{self, PrepareError, Prepared};
use super::refusal;
use super::rewrite::Tally;
use super::seeder::{Offering, SeedProgress, Seeder, Serving, TakeBack};
use super::source::{SourceError, Spelling, Unusable};
use super::ttl::{Ttl, TtlError};
use crate::archive::document::Source;
use crate::archive::layout::ArchiveId;
use crate::archive::plan::{Plan, PlanError, Target, plan};
use crate::archive::timeline::Catalog;
use crate::clock::Clock;
use crate::decide::UnreadablePayload;
use crate::position::{Offset, Position, ReplicationId, Ticks};
use crate::server::control::{Control, ControlError};
use crate::server::info::Info;
use crate::store::Store;
use crate::store::catalog::{self, CatalogError};

/// Without any progress for this long, a seed has failed. A server of 60 s `repl-timeout` gives up earlier.
pub const SEED_SILENCE: Duration = Duration::from_secs(120);
/// A server that was taken over and does not ask within this long cannot reach us. They try each second.
const UNASKED: Duration = Duration::from_secs(20);
/// A server that is turned away at the seed address this often, without one that is let in, will not come in.
/// They try each second; another server with the wrong password does not stand in the way of the right one.
const TURNED_AWAY_MAX: u32 = 3;
/// And not before this: the right one may come a second later than the others.
const TURNED_AWAY_AFTER: Duration = Duration::from_secs(2);
/// How long emptying a server may take that could not apply everything.
const TAKE_BACK: Duration = Duration::from_secs(60);
/// As much replication stream is looked through while the server already waits for our answer, bytes: about a
/// second. For more it is told to come again.
const LOOKED_THROUGH_AT_ONCE_BYTES: u64 = 128 * 1024 * 1024;
/// Connections that may break before a seed is given up: the server comes again by itself.
const ATTEMPTS_MAX: u32 = 2;
/// How often the server's own view is looked at while it applies the replication stream.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// And before: it may be loading, for however long, and servers with a `timeout` close connections on which nothing
/// is said.
const LOOK_INTERVAL_BEFORE: Duration = Duration::from_millis(500);

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

/// What the server is filled for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// To go on with the history: it gets the head, all of it, and is followed from there.
    Head,
    /// To be a copy of a moment, whatever the archive holds by then: under an id that nobody knows, so that it is never
    /// taken for the history. Nothing is written to the archive.
    Copy(Ttl),
}

impl Purpose {
    const fn ttl(self) -> Ttl {
        match self {
            Self::Head => Ttl::Keep,
            Self::Copy(ttl) => ttl,
        }
    }
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
    /// It comes to us and cannot be let in.
    #[error("{why}; the server's data were not touched")]
    TurnedAway {
        /// Who came, and why not.
        why: String,
    },
    /// It is too old for the payload, or of another kind.
    #[error(
        "{0}; the server was left as it is: where it is empty it takes writes, so stop it before clients find it"
    )]
    Unreadable(UnreadablePayload),
    /// It lacks the module of what the payload begins with, and would end itself over it.
    #[error(
        "the archive's payload begins with data of the module type {module_type}, and the server has no module \
         loaded: it would end itself; load the module; nothing was done to the server"
    )]
    NoModule {
        /// The type, as modules register it.
        module_type: String,
    },
    /// The archive's payload cannot be read.
    #[error("the archive's snapshot cannot be read: {0}")]
    Source(#[from] SourceError),
    /// The archive turned out to be damaged while the server was filled. What it has got is not all: it stays our
    /// replica, which takes no writes.
    #[error("the archive could not be read to the end while the server was filled: {0}")]
    Unusable(Unusable),
    /// It takes writes while it is a replica.
    #[error(
        "the server has replica-read-only no: clients could write while it is seeded; set replica-read-only yes"
    )]
    Writable,
    /// It could not be prepared: the server was left, or given back, as it was.
    #[error("{0}")]
    Prepare(#[from] PrepareError),
    /// There is nothing to seed with.
    #[error("{0}")]
    Plan(#[from] PlanError),
    /// Times of expiry cannot be changed as asked for.
    #[error("{0}")]
    Ttl(#[from] TtlError),
    /// The connection of the replica ended before it had everything.
    #[error("the server did not take the data: {reason}{}{likely}", if likely.is_empty() { "" } else { "; " })]
    Rejected {
        /// What was seen.
        reason: String,
        /// What may have caused it.
        likely: String,
    },
    /// The server went away in the middle.
    #[error("the server went away while it was filled, it has probably died: {error}; {likely}")]
    Died {
        /// What was seen.
        error: ControlError,
        /// What may have caused it.
        likely: String,
    },
    /// No progress.
    #[error("no progress for {} s: the server {state}; look at its log", SEED_SILENCE.as_secs())]
    Silent {
        /// How far it came.
        state: String,
    },
    /// It has everything that was planned, which is not everything any more. It stays our replica.
    #[error(
        "not promoted: the archive grew while the server was filled: another Perennial still stores what its own \
         server takes; going on until that one stops (if it does not, two masters of one history are alive: stop the \
         one that is to go)"
    )]
    Outgrown {
        /// Where the archive ends now.
        head: Position,
        /// It cannot be continued: the next attempt fills it anew.
        anew: bool,
    },
    /// It has everything that was planned; whether that is all there is cannot be told. It stays our replica.
    #[error(
        "not promoted: the server is filled, but the archive cannot be read to see whether it grew meanwhile: {0}"
    )]
    Unconfirmed(CatalogError),
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

impl SeedError {
    /// What is wrong with the archive, where it was read before the server was sent anything.
    pub const fn source(&self) -> Option<&SourceError> {
        match self {
            Self::Source(error) | Self::Prepare(PrepareError::Source(error)) => Some(error),
            _ => None,
        }
    }

    /// The object over which it failed, where that is its fault alone.
    pub fn unusable(&self) -> Option<Unusable> {
        match self {
            Self::Unusable(unusable) => Some(unusable.clone()),
            other => other.source().and_then(SourceError::unusable),
        }
    }
}

/// What to seed with.
#[derive(Debug)]
pub struct Seed<'a> {
    /// Where the plan lies.
    pub store: Arc<dyn Store>,
    /// The archive's id.
    pub archive: ArchiveId,
    /// What the archive holds, as far as it can be used.
    pub catalog: &'a Catalog,
    /// What to send.
    pub plan: Plan,
    /// The server's address, without secrets.
    pub address: String,
    /// The replication id that it bore when it was decided on: as long as it bears it, it was no master since.
    pub held: ReplicationId,
    /// The listener that serves it.
    pub seeder: &'a Seeder,
    /// How the server comes to us.
    pub approach: Approach,
    /// What for.
    pub purpose: Purpose,
    /// The time.
    pub clock: &'a dyn Clock,
}

/// What a server was before it was taken over.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Former {
    Master,
    /// A replica of this host and port.
    Replica(String, String),
}

impl Former {
    /// Of the INFO of the takeover.
    fn read(info: &Info) -> Self {
        match (
            info.text("role"),
            info.text("master_host"),
            info.text("master_port"),
        ) {
            (Some("slave"), Some(host), Some(port)) => Self::Replica(host.into(), port.into()),
            _ => Self::Master,
        }
    }

    /// Gives the server back as it was.
    async fn restore(&self, control: &mut Control) -> Result<(), ControlError> {
        match self {
            Self::Master => control.promote().await,
            Self::Replica(host, port) => control.replicate(host, port).await,
        }
    }
}

/// A server that waits for its data.
struct Ready {
    prepared: Prepared,
    /// Where it was taken over.
    former: Option<Former>,
}

impl Seed<'_> {
    /// Carries the seed out. `unchanged` tells whether the server, as it says of itself inside the takeover
    /// transaction, is still what was decided on; else what changed. `told` hears now and then how many bytes were sent,
    /// and of how many.
    ///
    /// # Errors
    /// [`SeedError`]. Before it is served the server is given back as it was; afterwards it stays our replica, which
    /// takes no writes, and the next attempt fills it again.
    pub async fn run(
        mut self,
        control: &mut Control,
        unchanged: impl Fn(&Info) -> Result<(), &'static str>,
        told: impl FnMut(u64, u64) + Send,
    ) -> Result<Offset, SeedError> {
        let before = control.info().await?;
        if self.approach != Approach::TakeOver && takes_writes(&before) {
            return Err(SeedError::Writable);
        }
        self.purpose.ttl().check_server(&before)?;
        control.kept_alive(self.continue_or_fill()).await??;
        let known = match self.approach {
            Approach::Continues(..) => refusal::Known::default(),
            Approach::TakeOver | Approach::Waits => {
                let store = Arc::clone(&self.store);
                refusal::beforehand(store, self.archive, &self.plan, control, &before).await?
            }
        };
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
            epilogue: self.purpose.ttl().epilogue(),
            approved: watch::Sender::new(None),
            listening_port: listening_port(control, &before, self.seeder).await,
            busy: AtomicBool::new(false),
            progress,
        });
        let errors_before = before.number("unexpected_error_replies").unwrap_or(0);
        let prepared = self
            .make_ready(control, unchanged, &before, &offering)
            .await;
        let ready = match prepared {
            Ok(ready) => ready,
            Err(error) => {
                self.seeder.serve(Serving::Undecided);
                return Err(error);
            }
        };
        let prepared = &ready.prepared;
        say(&self.address, &self.plan, prepared);
        let outcome = self
            .wait(control, &mut seen, &offering, &ready, errors_before, told)
            .await;
        if let Err(error) = outcome {
            if matches!(error, SeedError::Errors { .. } | SeedError::Ttl(_)) {
                let (seeded, port) = (prepared.approved.id, offering.listening_port);
                self.take_back(control, seeded, port).await;
            }
            self.seeder.serve(Serving::Undecided);
            let asked = offering.progress.borrow().asked > 0;
            return Err(known.explain(error, asked));
        }
        let promoted = match control.kept_alive(self.confirm(prepared)).await {
            Ok(Ok(())) => control.promote().await.map_err(Into::into),
            Ok(Err(not_all)) => Err(not_all),
            Err(error) => Err(error.into()),
        };
        self.seeder.serve(Serving::Undecided);
        promoted.map(|()| prepared.end)
    }

    /// Reads the archive once more: another streamer may have stored, and acknowledged, what the plan does not know.
    async fn confirm(&self, prepared: &Prepared) -> Result<(), SeedError> {
        if self.purpose != Purpose::Head {
            return Ok(());
        }
        let loaded = catalog::load(&*self.store, &[])
            .await
            .map_err(SeedError::Unconfirmed)?;
        let beyond = loaded
            .catalog
            .head_beyond(prepared.approved.id, prepared.end);
        beyond.map_or(Ok(()), |head| {
            Err(SeedError::Outgrown {
                head,
                anew: prepared.approved.spelling == Spelling::Rewritten,
            })
        })
    }

    /// A replica of ours goes on where it stands only with archived bytes under their own id. Else it is filled
    /// anew: what it has is an older state of what it gets.
    async fn continue_or_fill(&mut self) -> Result<(), SeedError> {
        if !matches!(self.approach, Approach::Continues(..)) {
            return Ok(());
        }
        let archived = mapped::as_archived(&self.store, self.archive, &self.plan).await;
        if !archived.map_err(PrepareError::Source)? {
            tracing::info!(
                "the replica cannot go on where it stands: what it misses must be rewritten"
            );
            self.plan = plan(self.catalog, Target::Offset(self.plan.target))?;
            self.approach = Approach::Waits;
        }
        Ok(())
    }

    /// Takes the server over, if it is to be, and finds out how the plan is served. The takeover comes first: in
    /// the meantime clients would write.
    async fn make_ready(
        &self,
        control: &mut Control,
        unchanged: impl Fn(&Info) -> Result<(), &'static str>,
        before: &Info,
        offering: &Arc<Offering>,
    ) -> Result<Ready, SeedError> {
        let at_once = !self.plan.may_be_rewritten()
            || self.plan.stream_bytes() <= LOOKED_THROUGH_AT_ONCE_BYTES;
        if at_once {
            self.seeder.serve(Serving::Plan(Arc::clone(offering)));
        }
        let former = match self.approach {
            Approach::TakeOver => Some(self.take_over(control, unchanged).await?),
            Approach::Waits | Approach::Continues(..) => None,
        };
        let prepared = match control.kept_alive(self.prepare(before)).await? {
            Ok(prepared) => prepared,
            Err(error) => {
                if let Some(former) = &former {
                    former.restore(control).await?;
                }
                return Err(error.into());
            }
        };
        self.seeder.gives(prepared.approved.id);
        if !at_once {
            let now = control.info().await?;
            if now.text("run_id") != before.text("run_id") || now.text("role") != Some("slave") {
                return Err(SeedError::Changed {
                    what: "it was restarted or promoted",
                });
            }
            self.seeder.serve(Serving::Plan(Arc::clone(offering)));
        }
        Ok(Ready { prepared, former })
    }

    async fn prepare(&self, server: &Info) -> Result<Prepared, PrepareError> {
        if matches!(self.approach, Approach::Continues(..)) {
            return Ok(Prepared::archived(&self.plan, Tally::default()));
        }
        if let Purpose::Copy(ttl) = self.purpose {
            let epilogue = ttl.epilogue().len() as u64;
            let copy = mapped::prepare_copy(&self.store, self.archive, &self.plan).await?;
            return Ok(Prepared {
                end: copy.end.plus(epilogue),
                ..copy
            });
        }
        let seeded = Source {
            server: server.server_name().to_owned(),
            version: server.version().to_owned(),
            address: self.address.clone(),
            ..Source::default()
        };
        mapped::prepare(
            &self.store,
            self.archive,
            self.catalog,
            &self.plan,
            seeded,
            self.clock,
        )
        .await
    }

    /// Empties a server that holds less than its id and offset say, under an id that nobody knows: kept in a
    /// dump, it would later pass for the archive's own data. The archive has all of it.
    async fn take_back(&self, control: &mut Control, seeded: ReplicationId, port: Option<u16>) {
        let mut raw = [0; 20];
        if crate::random::fill(&mut raw).is_err() {
            return;
        }
        self.seeder.serve(Serving::Nothing(TakeBack {
            id: ReplicationId::from_raw(raw),
            seeded,
            listening_port: port,
        }));
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
    ) -> Result<Former, SeedError> {
        if !self.seeder.is_reachable_from(control.is_local()) {
            return Err(SeedError::Unreachable);
        }
        let (host, port) = self.seeder.address_for(control.local_ip());
        let info = control.take_over(&host, port).await?;
        let former = Former::read(&info);
        if let Err(what) = unchanged(&info) {
            // Whoever made it a replica in between meant it.
            former.restore(control).await?;
            return Err(SeedError::Changed { what });
        }
        let after = control.info().await?;
        if takes_writes(&after) {
            former.restore(control).await?;
            return Err(SeedError::Writable);
        }
        Ok(former)
    }

    /// Waits until the replica acknowledged the end and the server itself says that it stands there.
    async fn wait(
        &self,
        control: &mut Control,
        seen: &mut watch::Receiver<SeedProgress>,
        offering: &Offering,
        ready: &Ready,
        errors_before: u64,
        mut told: impl FnMut(u64, u64) + Send,
    ) -> Result<(), SeedError> {
        let Ready { prepared, former } = ready;
        let end = prepared.end;
        let mut answered = 0;
        let mut approved = false;
        let began = self.clock.ticks();
        let turned_before = self.seeder.turned_away().times;
        let (mut last_moved, mut asked_at) = (began, began);
        loop {
            let progress = seen.borrow_and_update().clone();
            if progress.asked > 0 {
                told(
                    progress.payload_sent + progress.stream_sent,
                    progress.payload_bytes + self.plan.stream_bytes(),
                );
            }
            if progress.question != answered {
                let bears = self.still_the_same(control).await?;
                answered = progress.question;
                let is_it = progress.named.is_none_or(|named| named == bears);
                approved |= is_it;
                let answer = is_it.then_some(prepared.approved);
                offering.approved.send_replace(Some((answered, answer)));
            }
            if let Some(unusable) = &progress.unusable {
                return Err(SeedError::Unusable(unusable.clone()));
            }
            if let Some(reason) = &progress.failed
                && progress.failures >= ATTEMPTS_MAX
            {
                return Err(SeedError::Rejected {
                    reason: reason.clone(),
                    likely: String::new(),
                });
            }
            if progress.all_sent && progress.acknowledged == Some(end) {
                return self.check(control, end, errors_before).await;
            }
            // A replica acknowledges once a second by itself: its own view tells sooner. One that broke off may be gone.
            let look = progress.all_sent || progress.failed.is_some();
            let interval = if look {
                LOOK_INTERVAL
            } else {
                LOOK_INTERVAL_BEFORE
            };
            let since_last = Duration::from_millis(self.clock.ticks().since(asked_at));
            tokio::select! {
                changed = seen.changed() => {
                    if changed.is_ok() && seen.borrow().moved_since(&progress) {
                        last_moved = self.clock.ticks();
                    }
                }
                // Whoever comes up in its place has not been looked at: the end of the connection ends the seed. A
                // server that empties itself answers nothing for a while.
                info = control.heard() => {
                    let info = info?;
                    if look && applied(&info, end) {
                        return self.check(control, end, errors_before).await;
                    }
                    // A large payload takes its time to load.
                    if info.number("loading") == Some(1) {
                        last_moved = self.clock.ticks();
                    }
                }
                () = tokio::time::sleep(interval.saturating_sub(since_last)) => {
                    control.ask().await?;
                    asked_at = self.clock.ticks();
                }
            }
            let now = self.clock.ticks();
            if !approved && let Some(error) = self.cannot_come(began, now, turned_before) {
                // Whoever asks from here on is told to wait. Nothing was sent: it is given back as it was.
                self.seeder.serve(Serving::Undecided);
                if let Some(former) = former {
                    former.restore(control).await?;
                }
                return Err(error);
            }
            if Duration::from_millis(now.since(last_moved)) > SEED_SILENCE {
                return Err(SeedError::Silent {
                    state: describe(&progress),
                });
            }
        }
    }

    /// An answer on the control connection, after somebody asked for data, comes from the process that was decided on:
    /// it lives, so whoever asked under its port is not another one in its place. Tells the replication id it bears:
    /// who asks to continue another one's history is somebody else, on another machine for example.
    async fn still_the_same(&self, control: &mut Control) -> Result<ReplicationId, SeedError> {
        let info = control.info().await?;
        if takes_writes(&info) {
            return Err(SeedError::Writable);
        }
        let rejected = |reason: &str| SeedError::Rejected {
            reason: reason.into(),
            likely: String::new(),
        };
        if info.text("role") != Some("slave") {
            return Err(rejected("it was made a master while it was seeded"));
        }
        let bears = info.text("master_replid").and_then(|id| id.parse().ok());
        // Whoever becomes a master takes a new id.
        bears
            .filter(|id| *id == self.held || self.seeder.has_given(*id))
            .ok_or_else(|| rejected("it was made a master, and a replica again, in between"))
    }

    /// Why a server that has not asked yet will not do so.
    fn cannot_come(&self, began: Ticks, now: Ticks, turned_before: u32) -> Option<SeedError> {
        let turned = self.seeder.turned_away();
        let times = turned.times.saturating_sub(turned_before);
        let waited = Duration::from_millis(now.since(began));
        if times >= TURNED_AWAY_MAX && waited > TURNED_AWAY_AFTER {
            return Some(SeedError::TurnedAway { why: turned.last });
        }
        (self.approach == Approach::TakeOver && waited > UNASKED).then_some(SeedError::Unreachable)
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
                likely: String::new(),
            });
        }
        let errors = info
            .number("unexpected_error_replies")
            .unwrap_or(0)
            .saturating_sub(errors_before);
        if errors > 0 {
            return Err(SeedError::Errors { errors });
        }
        Ok(self.purpose.ttl().check_filled(&info)?)
    }
}

/// The port that the server names in its handshake as a replica; nothing where that cannot be told, because
/// CONFIG GET is not allowed.
async fn listening_port(control: &mut Control, info: &Info, seeder: &Seeder) -> Option<u16> {
    let mut setting = async |name| match control.setting(name).await {
        Ok(value) => Some(value.unwrap_or_default()),
        Err(error) => {
            if seeder.first_time_without_config() {
                tracing::warn!(
                    "{error}; seeding without: whichever server comes to the seed address first is filled (allow \
                     +config|get to have it checked)"
                );
            }
            None
        }
    };
    for name in ["replica-announce-port", "slave-announce-port"] {
        let port: u16 = setting(name).await?.parse().unwrap_or(0);
        if port != 0 {
            return Some(port);
        }
    }
    // As `syncWithMaster` chooses.
    if setting("tls-replication").await? == "yes" {
        let port: u16 = setting("tls-port").await?.parse().ok()?;
        return (port != 0).then_some(port);
    }
    let port: u16 = setting("port").await?.parse().ok()?;
    (port != 0 && info.number("tcp_port") == Some(port.into())).then_some(port)
}

fn takes_writes(replica: &Info) -> bool {
    replica.number("slave_read_only") == Some(0)
}

pub(super) fn applied(info: &Info, end: Offset) -> bool {
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

/// What is seeded, as the log says it.
fn say(address: &str, plan: &Plan, prepared: &Prepared) {
    tracing::info!(
        "seeding {address}: timeline {} offset {} under {}: snapshot at {} and {} bytes of replication stream from \
         {} objects",
        plan.target.timeline,
        plan.target.offset,
        prepared.approved.id,
        plan.snapshot.offset,
        plan.stream_bytes(),
        plan.objects(),
    );
    let tally = prepared.tally;
    if tally.is_changed() {
        tracing::info!(
            end = prepared.end.as_u64(),
            "{}; so the seed has a replication id of its own, and replicas of the old server get a full resync",
            tally.said(),
        );
    }
    if let Some(warning) = tally.warning() {
        tracing::warn!("{warning}");
    }
}
