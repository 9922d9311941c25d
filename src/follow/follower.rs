//! One server followed over many links: asks PSYNC, opens timelines, keeps what a broken link leaves behind.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::announce::AnnouncedPort;
use super::budget::Budget;
use super::encode::Encoder;
use super::known::Known;
use super::lane::{Lane, SnapshotNeed};
use super::later::SnapshotSource;
use super::link::Link;
use super::pipeline::SealOptions;
use super::rate::Rate;
use super::replicas;
use super::report::Report;
use super::schedule::{Schedule, ScheduleOptions};
use super::snapshots::{Parting, SnapshotFailure, SnapshotPace, Taken};
use super::spool::{Spool, SpoolOptions};
use super::uploader::{Progress, Shared};
use crate::archive::block::BlockContext;
use crate::archive::layout::{AcceptedDocument, ArchiveId, DOCUMENT_FORMAT};
use crate::clock::Clock;
use crate::decide::{Again, Follow, Reply, Role, Server, after_sync};
use crate::position::{Offset, TimelineSeq};
use crate::proto::handshake::{Auth, PsyncRequest};
use crate::proto::replica::{Event, Refusal, ReplicaOptions};
use crate::proto::resp::Malformed;
use crate::server::control::{Control, ControlError};
use crate::server::info::{Info, MissingField};
use crate::server::net::Address;
use crate::server::sentinel::{Named, Word};
use crate::server::tls::TlsServer;
use crate::store::catalog::Loaded;
use crate::store::{Store, StoreError, catalog};

/// The longest silence of the master in the handshake, milliseconds: a fork of a large data set takes its
/// time, and a diskless one is silent (`protocol-facts` 1.5).
const HANDSHAKE_MILLIS: u64 = 180_000;
/// The longest silence on the link, milliseconds: the servers' own `repl-timeout`; they ping every 10 s.
const IDLE_MILLIS: u64 = 60_000;
/// So long a link that was closed for want of room waits for it before a snapshot on schedule is given up.
const ROOM_WAIT: Duration = Duration::from_secs(1);

/// What is told to the master.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AckMode {
    /// What the store can rebuild: WAIT means durable.
    #[default]
    Durable,
    /// What was received; WAITAOF still means durable.
    Received,
}

/// How to follow.
#[derive(Clone, Debug)]
pub struct FollowOptions {
    /// When pieces are sealed.
    pub seal: SealOptions,
    /// The memory budget of everything in flight, bytes.
    pub buffer_bytes: u64,
    /// What one object of a snapshot may hold, bytes as stored.
    pub snapshot_part_bytes: u64,
    /// Scratch files for what exceeds it.
    pub spool: Option<SpoolOptions>,
    /// How many uploads of segments may begin per second, sustained; `None` for no limit.
    pub uploads_per_second: Option<u64>,
    /// When a timeline gets another snapshot.
    pub schedule: ScheduleOptions,
    /// Where it comes from.
    pub snapshot_source: SnapshotSource,
    /// What is acknowledged.
    pub ack: AckMode,
    /// How long to go on after being told to stop, milliseconds, the last uploads included.
    pub shutdown_millis: u64,
    /// How the announced port answers a master that comes by TLS.
    pub tls: Option<TlsServer>,
}

/// Why following ended. Each but the last three is tried again.
#[derive(Debug)]
pub enum FollowEnd {
    /// The link could not be made or broke.
    Link(String),
    /// The server refuses.
    Refused(Refusal),
    /// The answer did not fit the decision.
    Again(Again),
    /// The control connection failed.
    Control(ControlError),
    /// INFO is not usable.
    Info(MissingField),
    /// A timeline could not be opened.
    Store(StoreError),
    /// The replication stream is none.
    Malformed(Malformed),
    /// The store is slower than the master and the buffers are full.
    Stalled,
    /// A piece could not be read back from a scratch file: all behind it has to come again.
    Lost(String),
    /// The snapshot belongs to another history.
    Snapshot(SnapshotFailure),
    /// The last snapshot failed, and this server sends one with every full resync: not asked yet.
    NotYet,
    /// The snapshot that was [asked for](Follower::ask_for_snapshot) was taken, or could not be.
    Asked(Result<Taken, String>),
    /// Another server is the master now.
    Elsewhere,
    /// Told to stop.
    Stopped,
}

impl fmt::Display for FollowEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(reason) => write!(f, "the link ended: {reason}"),
            Self::Refused(refusal) => write!(f, "refused: {refusal}"),
            Self::Again(again) => again.fmt(f),
            Self::Control(error) => error.fmt(f),
            Self::Info(error) => error.fmt(f),
            Self::Store(error) => error.fmt(f),
            Self::Malformed(error) => write!(f, "the replication stream is malformed: {error}"),
            Self::Stalled => f.write_str(
                "the store is slower than the master and the buffers are full: link closed, so that the \
                 master's own memory does not fill; resuming when there is room",
            ),
            Self::Lost(reason) => write!(
                f,
                "{reason}: link closed; asking the master again for what is not in the archive"
            ),
            Self::Snapshot(error) => error.fmt(f),
            Self::NotYet => f.write_str(
                "the last snapshot failed, and each full resync makes this server write another one: waiting before \
                 the next",
            ),
            Self::Asked(Ok(_)) => f.write_str("the snapshot that was asked for is stored"),
            Self::Asked(Err(why)) => f.write_str(why),
            Self::Elsewhere => f.write_str("Sentinel names another server as the master"),
            Self::Stopped => f.write_str("told to stop"),
        }
    }
}

/// Follows one server into one archive.
#[derive(Debug)]
pub struct Follower {
    pub(super) redis: Address,
    pub(super) options: FollowOptions,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) encoder: Arc<Encoder>,
    pub(super) budget: Arc<Budget>,
    pub(super) parting: Arc<Parting>,
    pub(super) shared: Shared,
    pub(super) lane: Option<Lane>,
    /// Kept over links and timelines: each attempt at a snapshot makes the master fork.
    pub(super) snapshot_pace: SnapshotPace,
    pub(super) schedule: Schedule,
    /// Somebody waits for one snapshot and nothing else.
    pub(super) asked: bool,
    /// What the server had when somebody asked is to be in it.
    pub(super) asked_at: Offset,
    pub(super) report: Arc<Report>,
    pub(super) store: Arc<dyn Store>,
    pub(super) archive: ArchiveId,
    announced: Option<AnnouncedPort>,
    known: Known,
    /// Where Sentinels say which server is the master, and the one that is followed.
    named: Option<(watch::Receiver<Word>, Named)>,
}

impl Follower {
    /// A follower that has not connected yet.
    pub fn new(
        redis: Address,
        store: Arc<dyn Store>,
        archive: ArchiveId,
        options: FollowOptions,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let budget = Budget::new(options.buffer_bytes);
        let encoder = Encoder::new();
        let spool = options.spool.clone().map(Spool::new);
        let rate = options
            .uploads_per_second
            .map(|per_second| Arc::new(Mutex::new(Rate::new(per_second, clock.ticks()))));
        let shared = Shared {
            budget: Arc::clone(&budget),
            spool: spool.clone(),
            rate,
            clock: Arc::clone(&clock),
        };
        let report = Report::new(Arc::clone(&clock), Arc::clone(&budget), spool);
        let parting = Parting::new(options.snapshot_part_bytes);
        let schedule = Schedule::new(options.schedule, clock.ticks());
        Self {
            parting,
            redis,
            options,
            clock,
            encoder,
            budget,
            shared,
            lane: None,
            snapshot_pace: SnapshotPace::default(),
            schedule,
            asked: false,
            asked_at: Offset::ZERO,
            report,
            store,
            archive,
            announced: None,
            known: Known::default(),
            named: None,
        }
    }

    /// Follows the server of this name from now on, until `word` names another. What was received of the one before
    /// stays. Tells whether it is another one.
    pub fn turn_to(&mut self, named: Named, word: watch::Receiver<Word>) -> bool {
        let before = self.named.as_ref();
        if before.is_some_and(|(_, before)| before.is_at(&named)) {
            return false;
        }
        self.redis = named.address(&self.redis);
        self.named = Some((word, named));
        true
    }

    /// Waits until another server is the master.
    pub fn elsewhere(&self) -> impl Future<Output = ()> + use<> {
        let named = self.named.clone();
        async move {
            let Some((mut word, followed)) = named else {
                return std::future::pending().await;
            };
            let other = |word: &Word| matches!(word, Word::Named(named) if !named.is_at(&followed));
            if word.wait_for(other).await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// What whoever looks may know.
    pub fn report(&self) -> Arc<Report> {
        Arc::clone(&self.report)
    }

    /// Whether the server still speaks of the history that the last link broke off in: then that is resumed
    /// from memory, whatever is still on its way to the store.
    pub fn can_resume(&self, server: &Server) -> bool {
        // A replica of ours refuses PSYNC until it was seeded.
        server.role != Role::ReplicaOfUs
            && self.lane.as_ref().is_some_and(|lane| {
                // Where the backlog is too short, asking would only cost the server a full resync for nothing.
                lane.uploader.context().id == server.id
                    && lane.uploader.lost().is_none()
                    && server.offset >= lane.pipeline.offset()
                    && self.known.continues_after(lane.pipeline.offset())
            })
    }

    /// Whether the server still holds what was received from it last, and so what the archive will hold of it, though
    /// perhaps too little is in its backlog to go on from there.
    pub fn is_still_held_by(&self, server: &Server) -> bool {
        server.role != Role::ReplicaOfUs
            && self.lane.as_ref().is_some_and(|lane| {
                lane.uploader.context().id == server.id && server.offset >= lane.pipeline.offset()
            })
    }

    /// The timeline that is written to.
    pub fn timeline(&self) -> Option<TimelineSeq> {
        self.lane
            .as_ref()
            .map(|lane| lane.uploader.context().timeline)
    }

    /// What is durable and on its way, where something is being followed.
    pub fn progress(&self) -> Option<Progress> {
        self.lane
            .as_ref()
            .map(|lane| lane.uploader.subscribe().borrow().clone())
    }

    /// Waits until everything received is in the store, then forgets the timeline: what comes next is decided
    /// from the archive. Returns whether all of it is there.
    pub async fn settle(&mut self) -> bool {
        let mut whole = true;
        if let Some(lane) = &mut self.lane {
            // It may be the only copy of what the server had.
            if let SnapshotNeed::Running {
                task,
                received: true,
            } = &mut lane.snapshot
            {
                let outcome = task.await;
                // Whoever waits may be told to stop before the rest is done, and come again.
                lane.snapshot = SnapshotNeed::None;
                if let Ok(outcome) = outcome {
                    self.report.snapshot_ended(outcome.as_ref().ok().copied());
                    if let Err(error) = outcome {
                        tracing::error!("the snapshot that was received is lost: {error}");
                        whole = false;
                    }
                }
            }
            lane.uploader.drained().await;
            whole &= lane.uploader.lost().is_none();
        }
        self.lane = None;
        self.report.lane_closed();
        whole
    }

    /// Asks for what was decided and opens what the answer belongs to. The link is then [followed](Self::stream);
    /// the catalogue is not needed for that, and may be large.
    ///
    /// # Errors
    /// Why there is nothing to follow.
    pub async fn open(
        &mut self,
        decided: &Follow,
        loaded: &Loaded,
        before: &Server,
        control: &mut Control,
        is_us: impl Fn(&str, u16) -> bool,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Link, FollowEnd> {
        if let Some(end) = self.too_early(decided, before) {
            return Err(end);
        }
        let psync = decided
            .offer
            .map_or(PsyncRequest::Full, |offer| PsyncRequest::Continue {
                id: offer.id,
                after: offer.position.offset,
            });
        // Before the server is asked: nothing keeps what it answers waiting.
        let last_snapshot = self.last_snapshot(loaded, decided.offer).await;
        let (link, reply, filtered) = self.ask(psync, stop).await?;
        let opened = self
            .answered(decided, loaded, before, control, is_us, (reply, filtered))
            .await;
        match opened {
            Ok(lane) => {
                self.begin(lane);
                self.begin_schedule(last_snapshot);
            }
            Err(end) => {
                if !filtered && matches!(reply, Reply::Full { .. }) {
                    self.snapshot_pace.failed(self.clock.ticks());
                }
                return Err(end);
            }
        }
        if decided.accept
            && let Err(error) = self.accept(loaded).await
        {
            return Err(FollowEnd::Store(error));
        }
        Ok(link)
    }

    fn begin(&mut self, lane: Lane) {
        let context = lane.uploader.context();
        self.report.lane_opened(
            lane.uploader.subscribe(),
            lane.pipeline.offset(),
            !matches!(lane.snapshot, SnapshotNeed::None),
            (context.timeline, context.id),
            !lane.suspects.is_empty(),
        );
        self.lane = Some(lane);
    }

    /// Opens what the answer to PSYNC belongs to.
    async fn answered(
        &self,
        decided: &Follow,
        loaded: &Loaded,
        before: &Server,
        control: &mut Control,
        is_us: impl Fn(&str, u16) -> bool,
        (reply, filtered): (Reply, bool),
    ) -> Result<Lane, FollowEnd> {
        let info = control.info().await.map_err(FollowEnd::Control)?;
        let after = info.server(is_us).map_err(FollowEnd::Info)?;
        let outcome = after_sync(decided, reply, before, &after);
        let mut lane = self
            .open_lane(outcome, decided.offer, loaded, &info, filtered)
            .await?;
        if matches!(lane.snapshot, SnapshotNeed::OnLink(_)) {
            warn_of_dumps(control, &info).await;
        }
        // A timeline that lives shows it, so that one that has ended does not outlive it by its last PINGs.
        let seq = lane.uploader.context().timeline;
        if loaded.catalog.timeline(seq).is_none() {
            lane.pipeline.seal_pings_from(self.clock.ticks());
        }
        Ok(lane)
    }

    /// Whether the server would go on from what is offered, as far as its INFO tells.
    pub fn would_continue(&self, decided: &Follow, before: &Server) -> bool {
        decided.offer.is_some_and(|offer| {
            let after = offer.position.offset;
            let current = before.id == offer.id && before.offset >= after;
            let previous = before
                .previous
                .is_some_and(|(id, last)| id == offer.id && last >= after);
            (current || previous) && self.known.continues_after(after)
        })
    }

    /// Why not to ask now: an answer that is known beforehand and of no use costs an old server a fork.
    fn too_early(&self, decided: &Follow, before: &Server) -> Option<FollowEnd> {
        if self.would_continue(decided, before) || !self.known.always_with_keys {
            return None;
        }
        let lags = matches!(before.role, Role::Replica { .. })
            && decided.offer.is_some_and(|offer| {
                before.id == offer.id && before.offset < offer.position.offset
            });
        if lags {
            return Some(FollowEnd::Again(Again::ReplicaLags));
        }
        (self.clock.ticks() < self.snapshot_pace.not_before).then_some(FollowEnd::NotYet)
    }

    /// Makes the timeline that is followed the head, unless it is already.
    async fn accept(&mut self, loaded: &Loaded) -> Result<(), StoreError> {
        let Some(lane) = &mut self.lane else {
            return Ok(());
        };
        let BlockContext { timeline, id, .. } = lane.uploader.context();
        let catalog = &loaded.catalog;
        let is_head = catalog.head().is_some_and(|head| head.timeline == timeline);
        let is_new = catalog.timeline(timeline).is_none();
        if lane.suspects.is_empty() && (is_head || is_new) {
            return Ok(());
        }
        tracing::warn!(timeline = timeline.as_u32(), %id, "--seed start-over: this server is the head from now on");
        let document = AcceptedDocument {
            format: DOCUMENT_FORMAT,
            accepted_at: self.clock.unix(),
            by: "perennial run --seed start-over".into(),
            reason: "whatever this server holds is the head".into(),
        };
        // Not noted, it is not the head: the whole attempt is made again.
        if let Err(error) = catalog::accept(&*self.store, catalog, timeline, id, document).await {
            self.lane = None;
            self.report.lane_closed();
            return Err(error);
        }
        lane.suspects.clear();
        self.report.accepted();
        Ok(())
    }

    /// Goes on where the last link broke off. Anything but the same history ends it.
    pub async fn resume(&mut self, stop: &mut watch::Receiver<bool>) -> FollowEnd {
        let Some(lane) = &self.lane else {
            return FollowEnd::Again(Again::ServerChanged);
        };
        let (id, after) = (lane.uploader.context().id, lane.pipeline.offset());
        if let Err(end) = self.room(stop).await {
            return end;
        }
        let lane = self.lane.as_ref();
        if let Some(reason) = lane.and_then(|lane| lane.uploader.lost()) {
            return FollowEnd::Lost(reason);
        }
        let request = PsyncRequest::Continue { id, after };
        let (mut link, reply, filtered) = match self.ask(request, stop).await {
            Ok(asked) => asked,
            Err(end) => return end,
        };
        match reply {
            Reply::Continued { id: new } if new.unwrap_or(id) == id => {
                tracing::info!(%id, offset = after.as_u64(), "resumed where the link broke off");
                self.stream(&mut link, stop).await
            }
            // A new id or a full resync: decided anew, from an archive that holds everything received.
            Reply::Continued { .. } | Reply::Full { .. } => {
                if !filtered && matches!(reply, Reply::Full { .. }) {
                    self.snapshot_pace.failed(self.clock.ticks());
                }
                drop(link);
                self.settle().await;
                FollowEnd::Again(Again::ServerChanged)
            }
        }
    }

    /// Waits until half of memory and spool are free; a snapshot on schedule that is in the way is given up.
    async fn room(&mut self, stop: &mut watch::Receiver<bool>) -> Result<(), FollowEnd> {
        let (budget, spool) = (Arc::clone(&self.budget), self.shared.spool.clone());
        let room = async move {
            budget.half_free().await;
            if let Some(spool) = spool {
                spool.half_free().await;
            }
        };
        tokio::pin!(room);
        tokio::select! {
            () = &mut room => return Ok(()),
            _ = stop.wait_for(|stop| *stop) => return Err(FollowEnd::Stopped),
            () = tokio::time::sleep(ROOM_WAIT) => {}
        }
        self.give_up_later()?;
        tokio::select! {
            () = room => Ok(()),
            () = self.elsewhere() => Err(FollowEnd::Elsewhere),
            _ = stop.wait_for(|stop| *stop) => Err(FollowEnd::Stopped),
        }
    }

    pub(super) fn replica_options(&self, psync: PsyncRequest) -> ReplicaOptions {
        ReplicaOptions {
            auth: auth_of(&self.redis),
            listening_port: None,
            announce_ip: None,
            version: self.known.version.clone(),
            rdb_only: false,
            rdb_filter_only: Some(""),
            psync,
            handshake_timeout_ms: HANDSHAKE_MILLIS,
            idle_timeout_ms: IDLE_MILLIS,
        }
    }

    /// Which server is followed, as its INFO said.
    pub(super) fn known_server(&self) -> Option<replicas::Version> {
        self.known.server.clone()
    }

    /// Remembers how to ask, from the server's own INFO.
    pub fn know_server(&mut self, info: &Info) {
        self.known.learn(info);
        self.parting
            .set_data_bytes(info.number("used_memory").unwrap_or(0));
    }

    /// Opens a link and waits for the answer to PSYNC. Tells whether a full resync comes without keys.
    async fn ask(
        &mut self,
        psync: PsyncRequest,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(Link, Reply, bool), FollowEnd> {
        let options = self.replica_options(psync);
        let mut elsewhere = std::pin::pin!(self.elsewhere());
        let (announced, clock) = (&mut self.announced, Arc::clone(&self.clock));
        let tls = self.options.tls.clone();
        let listening_port = |connection: &crate::server::net::Connection| {
            let ip = connection.local_ip()?;
            if announced.as_ref().is_none_or(|port| port.ip() != ip) {
                *announced = AnnouncedPort::open(ip, tls, clock)
                    .inspect_err(|error| {
                        tracing::warn!("cannot listen on {ip} for the announced port: {error}")
                    })
                    .ok();
            }
            announced.as_ref().map(AnnouncedPort::port)
        };
        let endpoint = &self.redis.endpoint;
        let mut link = Link::open(endpoint, listening_port, options, Arc::clone(&self.clock))
            .await
            .map_err(|error| {
                FollowEnd::Link(format!("cannot connect to {}: {error}", self.redis))
            })?;
        if psync == PsyncRequest::Full {
            tracing::info!(
                "asking {} for everything; it may wait for its repl-diskless-sync-delay first (5 s by default)",
                self.redis
            );
        }
        let mut filtered = true;
        loop {
            let event = tokio::select! {
                event = link.next(true) => event,
                _ = stop.wait_for(|stop| *stop) => return Err(FollowEnd::Stopped),
                () = &mut elsewhere => return Err(FollowEnd::Elsewhere),
            };
            match event {
                Event::OptionRefused { option, reply } => {
                    filtered &= option != "rdb-filter-only";
                    tracing::debug!(option, reply, "the server does not know an option");
                }
                Event::FullResync { id, offset } => {
                    self.report.synced(true);
                    return Ok((link, Reply::Full { id, offset }, filtered));
                }
                Event::Continued { id } => {
                    self.report.synced(false);
                    return Ok((link, Reply::Continued { id }, filtered));
                }
                Event::Refused(refusal) => return Err(FollowEnd::Refused(refusal)),
                other => return Err(link_end(&other)),
            }
        }
    }
}

/// A server before 7.0 that loads its own dump takes a new id and keeps no trace of the old one: nothing shows
/// that it is stale (decision 11).
async fn warn_of_dumps(control: &mut Control, info: &Info) {
    let mut is = async |name, wanted: &str| {
        let value = control.setting(name).await.ok().flatten();
        value.is_some_and(|value| value == wanted)
    };
    let no_dumps = is("rdb-del-sync-files", "yes").await && is("save", "").await;
    if no_dumps || info.number("aof_enabled") == Some(1) {
        return;
    }
    tracing::warn!(
        "redis {} keeps dumps of full syncs, and after a restart from a dump nothing tells how old it is: such a \
         server would not be seeded but become a suspect timeline; start it with `rdb-del-sync-files yes` and \
         `save \"\"` (6.0 and later) and without the dump.rdb that is there, or as a replica of --seed-listen",
        info.version()
    );
}

pub(super) fn auth_of(address: &Address) -> Option<Auth> {
    address.credentials.as_ref().map(|credentials| Auth {
        user: credentials.user.clone(),
        password: credentials.password.clone(),
    })
}

pub(super) fn link_end(event: &Event) -> FollowEnd {
    FollowEnd::Link(match event {
        Event::TimedOut { stage, silent_ms } => format!("{silent_ms} ms of silence while {stage}"),
        Event::ProtocolError {
            stage,
            expected,
            found,
        } => {
            format!("while {stage}: expected {expected}, found {found}")
        }
        Event::Closed { stage } => format!("closed by the server while {stage}"),
        Event::Refused(refusal) => format!("refused: {refusal}"),
        Event::OptionRefused { .. }
        | Event::FullResync { .. }
        | Event::Continued { .. }
        | Event::PayloadBegins { .. }
        | Event::Payload(_)
        | Event::PayloadEnds { .. }
        | Event::Stream(_) => "the server sent something out of order".into(),
    })
}
