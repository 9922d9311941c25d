//! `perennial run`: where follow and restore meet. Looks, asks `decide`, does what it says, and begins again
//! whenever something ends.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;

mod seeding;

use super::glance;
use super::observe::Observed;
use super::pace::{Pace, Said};
use super::prune::beside;
use super::replaced;
use crate::archive::layout::ArchiveDocument;
use crate::archive::timeline::Catalog;
use crate::clock::Clock;
use crate::config::RunOptions;
use crate::decide::{Action, Follow, Look, Refusal, Role, Server, before_sync, look};
use crate::follow::{FollowEnd, Follower, backoff, jittered};
use crate::http;
use crate::position::{Offset, ReplicationId, Ticks};
use crate::restore::around::Around;
use crate::restore::seeder::{Seeder, SeederOptions, Serving};
use crate::restore::to_replica::{Approach, SeedError};
use crate::server::control::Control;
use crate::server::sentinel::{Sentinels, Word};
use crate::store::Store;
use crate::store::catalog::{self, CatalogError, Kept, Listing, Loaded};
use crate::store::measured::{MeasuredStore, Observer};
use crate::upkeep::Upkeep;

/// A link that held this long begins the waits anew, milliseconds.
const FRESH_MILLIS: u64 = 10_000;
/// How long the archive is not read again while a server that cannot be followed stays as it is, milliseconds.
const RECENT_MILLIS: u64 = 30_000;
/// The first wait after a failed seed.
const SEED_RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest wait after a failed seed: each one costs the server a full load.
const SEED_RETRY_MAX: Duration = Duration::from_secs(60);

/// How long the last look at the archive may take.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// The first of the ports taken where --seed-listen gives none.
const OWN_PORT_FIRST: u16 = 11_000;
/// How many such ports there are.
const OWN_PORTS: u16 = 8_000;

/// Follows until told to stop.
///
/// # Errors
/// What trying again cannot heal: an archive of another name or a newer version, an address that cannot be
/// listened on; and, at the end, what could not be stored in time.
pub async fn run(
    options: RunOptions,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let observed = Arc::new(Observed::new(Arc::clone(&clock))?);
    let store: Arc<dyn Store> = Arc::new(MeasuredStore::new(
        store,
        Arc::clone(&observed) as Arc<dyn Observer>,
        Arc::clone(&clock),
    ));
    let _pages = match options.http {
        Some(address) => Some(serve_pages(address, &observed).await?),
        None => None,
    };
    // A port that was given is listened on from the start: a server that was born a replica of it is told to
    // wait, whatever the store does.
    let given = options.seeder.listen.port() != 0;
    let early = if given {
        Some(open_seeder(&options.seeder, &clock).await?)
    } else {
        None
    };
    tracing::info!(
        redis = %options.redis, archive = %store.address(), seed_listen = %options.seeder.listen,
        "perennial {}", env!("CARGO_PKG_VERSION")
    );
    let Some(archive) = open_archive(&options, &*store, &*clock, &observed, &mut stop).await?
    else {
        tracing::info!("stopped before the archive could be opened: nothing was followed");
        return Ok(());
    };
    let seeder = match early {
        Some(seeder) => seeder,
        None => open_own_port(&options.seeder, &archive, &clock).await?,
    };
    let follower = Follower::new(
        options.redis.clone(),
        Arc::clone(&store),
        archive.archive,
        options.follow.clone(),
        Arc::clone(&clock),
    );
    observed.follows(follower.report());
    let _upkeep = options.upkeep_interval.map(|every| {
        let upkeep = Upkeep::new(
            Arc::clone(&store),
            archive.archive,
            options.upkeep,
            Arc::clone(&clock),
        );
        beside(upkeep, every, Arc::clone(&observed), Arc::clone(&clock))
    });
    let _glances = glance::beside(Arc::clone(&store), Arc::clone(&observed));
    let shutdown_timeout = options.shutdown_timeout;
    let sentinels = options.sentinel.clone();
    let mut runner = Runner {
        sentinels: sentinels.map(|asked| Sentinels::ask(asked.addresses, asked.master)),
        options,
        store,
        clock,
        archive,
        seeder,
        follower,
        observed,
        seeds_failed: 0,
        damaged: Default::default(),
        around: Around::default(),
        unfinished: None,
        kept: Kept::default(),
        recent: None,
    };
    let mut overdue = std::pin::pin!(overdue(stop.clone(), shutdown_timeout));
    let mut replaced = std::pin::pin!(replaced::replaced(
        Arc::clone(&runner.store),
        runner.archive.archive,
        runner.follower.report(),
        Arc::clone(&runner.clock),
    ));
    let mut pace = Pace::default();
    while !*stop.borrow() {
        let round = tokio::select! {
            round = runner.round(&mut stop) => round?,
            error = &mut replaced => return Err(error),
            // Whatever hangs then is given up.
            () = &mut overdue => {
                anyhow::bail!("stopping took longer than --shutdown-timeout: what was not stored is lost with the master");
            }
        };
        let wait = match round {
            Round::Again => {
                pace = Pace::default();
                continue;
            }
            Round::Later(said) => {
                runner.observed.because(said.reason());
                pace.next(&said)
            }
            Round::AfterSeed(error) => {
                tracing::error!(
                    attempt = runner.seeds_failed,
                    "not ready: seed failed: {error}; trying again"
                );
                jittered(backoff(
                    SEED_RETRY_FIRST,
                    SEED_RETRY_MAX,
                    runner.seeds_failed,
                ))
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
    runner.finish(overdue).await
}

/// The pages of `--http`, until this is dropped.
struct ServedPages(tokio::task::JoinHandle<()>);

impl Drop for ServedPages {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn serve_pages(address: SocketAddr, observed: &Arc<Observed>) -> anyhow::Result<ServedPages> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on --http {address}"))?;
    // Port 0 took one that was free.
    let address = listener.local_addr().unwrap_or(address);
    tracing::info!("metrics and health at http://{address}/metrics, /readyz, /healthz");
    let observed = Arc::clone(observed);
    Ok(ServedPages(tokio::spawn(async move {
        let _ = http::serve(listener, observed).await;
    })))
}

/// Ends when stopping should have come to an end by itself.
async fn overdue(mut stop: watch::Receiver<bool>, shutdown_timeout: Duration) {
    let _ = stop.wait_for(|stop| *stop).await;
    tokio::time::sleep(shutdown_timeout + Duration::from_secs(1)).await;
}

async fn open_seeder(options: &SeederOptions, clock: &Arc<dyn Clock>) -> anyhow::Result<Seeder> {
    Seeder::open(options.clone(), Arc::clone(clock))
        .await
        .with_context(|| format!("listen on --seed-listen {}", options.listen))
}

/// Where no port was given: one that follows from the archive's id, so that a server that was left in the
/// middle of a seed is still a replica of ours after a restart of ours; any free one where it is taken.
async fn open_own_port(
    options: &SeederOptions,
    archive: &ArchiveDocument,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Seeder> {
    let [high, low, ..] = *archive.archive.raw();
    let mut own = options.clone();
    own.listen
        .set_port(OWN_PORT_FIRST + u16::from_be_bytes([high, low]) % OWN_PORTS);
    match open_seeder(&own, clock).await {
        Ok(seeder) => Ok(seeder),
        Err(error) => {
            tracing::warn!(
                "{error:#}; taking another port. If perennial is restarted in the middle of a seed, give it \
                 --seed-listen with the port that the server's INFO names as master_port; never REPLICAOF NO ONE, \
                 which makes a half-filled server a master (give --seed-listen a port to avoid this)"
            );
            open_seeder(options, clock).await
        }
    }
}

/// Opens or creates the archive, however long the store takes.
async fn open_archive(
    options: &RunOptions,
    store: &dyn Store,
    clock: &dyn Clock,
    observed: &Observed,
    stop: &mut watch::Receiver<bool>,
) -> anyhow::Result<Option<ArchiveDocument>> {
    let mut pace = Pace::default();
    loop {
        let opened = async {
            store.prepare().await?;
            catalog::open_archive(store, options.name.as_deref(), clock.unix()).await
        };
        let error = tokio::select! {
            opened = opened => match opened {
                Ok(document) => return Ok(Some(document)),
                Err(error) => error,
            },
            _ = stop.wait_for(|stop| *stop) => return Ok(None),
        };
        if !matches!(error, CatalogError::Store(_)) {
            return Err(error.into());
        }
        observed.not_ready(format!("the archive cannot be opened: {error}"));
        let wait = pace.next(&Said::of_archive(format!("not ready: {error}"), &error));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = stop.wait_for(|stop| *stop) => return Ok(None),
        }
    }
}

/// What a round came to.
enum Round {
    /// Something was done: look again at once.
    Again,
    /// Nothing could be done, or a link ended.
    Later(Said),
    /// A seed failed.
    AfterSeed(SeedError),
}

/// What a look came to.
enum Looked {
    /// The server or the archive cannot be looked at.
    Nothing(Said),
    /// The link that broke can be resumed.
    Resume,
    /// This.
    Decided(Box<Decided>),
}

struct Decided {
    action: Action,
    loaded: Loaded,
    server: Server,
    control: Control,
    /// When the archive was read for it.
    read_at: Ticks,
}

struct Runner {
    /// With Sentinels, `redis` is the server that they named last.
    options: RunOptions,
    sentinels: Option<Sentinels>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    archive: ArchiveDocument,
    seeder: Seeder,
    follower: Follower,
    observed: Arc<Observed>,
    seeds_failed: u32,
    /// What is damaged in the archive, and how many looks in a row have found just this.
    damaged: (Vec<String>, u32),
    /// Objects that no seed uses.
    around: Around,
    /// The id and the end of a seed that has not come to its end.
    unfinished: Option<(ReplicationId, Offset)>,
    /// What was listed of the archive.
    kept: Kept,
    /// What was decided of a server that cannot be followed at the moment.
    recent: Option<Recent>,
}

/// A decision that came to nothing because of the server, from an archive that was not written since. While the
/// server stays as it was, it is looked at again without reading the archive.
struct Recent {
    at: Ticks,
    action: Action,
    loaded: Loaded,
    server: Server,
}

impl Recent {
    fn holds_for(&self, server: &Server, now: Ticks) -> bool {
        let offset_counts = server.role == Role::ReplicaOfUs;
        let before = Server {
            uptime_millis: server.uptime_millis,
            offset: if offset_counts {
                self.server.offset
            } else {
                server.offset
            },
            ..self.server.clone()
        };
        before == *server && now.since(self.at) < RECENT_MILLIS
    }
}

impl Runner {
    /// One look and what follows from it. Looking ends at once when told to stop; following ends in its own
    /// way; a seed that is cut short leaves a replica that takes no writes, and is done again next time.
    async fn round(&mut self, stop: &mut watch::Receiver<bool>) -> anyhow::Result<Round> {
        let mut stopped = stop.clone();
        let looked = tokio::select! {
            looked = self.look() => looked?,
            _ = stopped.wait_for(|stop| *stop) => return Ok(Round::Again),
        };
        match looked {
            Looked::Nothing(said) => {
                self.observed.not_ready(said.reason());
                Ok(Round::Later(said))
            }
            Looked::Resume => {
                self.observed.followed();
                let began = self.clock.ticks();
                let end = self.follower.resume(stop).await;
                Ok(self.after_follow(&end, began))
            }
            Looked::Decided(decided) => self.act(*decided, stop).await,
        }
    }

    async fn look(&mut self) -> anyhow::Result<Looked> {
        let nothing = |text: String| Ok(Looked::Nothing(Said::new(text)));
        if let Err(said) = self.find_master() {
            return Ok(Looked::Nothing(said));
        }
        let mut control = match Control::connect(&self.options.redis).await {
            Ok(control) => control,
            Err(error) => return nothing(error.to_string()),
        };
        let mut server = match self.ask_server(&mut control).await {
            Ok(server) => server,
            Err(said) => return Ok(Looked::Nothing(said)),
        };
        if self.follower.can_resume(&server) {
            return Ok(Looked::Resume);
        }
        let now = self.clock.ticks();
        if let Some(recent) = self.recent.take()
            && recent.holds_for(&server, now)
        {
            return Ok(Looked::Decided(Box::new(Decided {
                action: recent.action,
                loaded: recent.loaded,
                server,
                control,
                read_at: recent.at,
            })));
        }
        // A store that hangs here must not take a server out of service that holds the head.
        if !self.follower.is_still_held_by(&server) {
            self.observed.not_ready(
                "looking at what the server holds, after what was received from it is stored",
            );
        }
        if self.follower.progress().is_some() {
            self.follower.settle().await;
            // That takes as long as the store does. Meanwhile it may have been promoted by hand, and written to.
            server = match self.ask_server(&mut control).await {
                Ok(server) => server,
                Err(said) => return Ok(Looked::Nothing(said)),
            };
        }
        let mut listing = Listing::Later;
        let decided = loop {
            let (looked, loaded) = match self.read_archive(&server, &mut control, listing).await? {
                Ok(read) => read,
                Err(said) => return Ok(Looked::Nothing(said)),
            };
            let action = before_sync(&looked, self.options.seed);
            tracing::debug!(?looked, ?action, listing = ?loaded.listing(), "decided");
            if loaded.listing() == Listing::Whole || is_ordinary(&action, &loaded.catalog) {
                break (action, loaded);
            }
            listing = Listing::Whole;
        };
        let (action, loaded) = decided;
        self.say_damaged(&loaded);
        Ok(Looked::Decided(Box::new(Decided {
            action,
            loaded,
            server,
            control,
            read_at: now,
        })))
    }

    /// Turns to the server that Sentinels name, where they do that.
    fn find_master(&mut self) -> Result<(), Said> {
        let Some(sentinels) = &self.sentinels else {
            return Ok(());
        };
        let word = sentinels.word();
        let named = match &*word.borrow() {
            Word::Named(named) => named.clone(),
            Word::Nothing(why) => {
                return Err(Said::new(format!(
                    "not ready: no Sentinel names the master: {why}"
                )));
            }
        };
        if self.follower.turn_to(named.clone(), word) {
            tracing::info!(epoch = named.epoch, "Sentinel names {named} as the master");
            self.options.redis = named.address(&self.options.redis);
            self.recent = None;
        }
        Ok(())
    }

    /// What the server says of itself; what is said where nothing can be decided about it at the moment.
    async fn ask_server(&mut self, control: &mut Control) -> Result<Server, Said> {
        let info = control.info().await;
        let info = info.map_err(|error| Said::new(error.to_string()))?;
        if info.is_loading() {
            let said = format!("{} is loading its data", self.options.redis);
            return Err(Said::new(said));
        }
        let (local_ip, same_machine) = (control.local_ip(), control.is_local());
        let server = info
            .server(|host, port| self.seeder.is_us(host, port, local_ip, same_machine))
            .map_err(|error| Said::slow(error.to_string()))?;
        self.follower.know_server(&info);
        Ok(server)
    }

    /// Reads the archive and looks at it beside the server; what is said where neither works at the moment.
    async fn read_archive(
        &mut self,
        server: &Server,
        control: &mut Control,
        listing: Listing,
    ) -> anyhow::Result<Result<(Look, Loaded), Said>> {
        let ids: Vec<_> = server
            .previous
            .iter()
            .map(|(id, _)| *id)
            .chain([server.id])
            .collect();
        let now = self.clock.ticks();
        let load = catalog::load_kept(&*self.store, &ids, &mut self.kept, listing, now);
        let loaded = match control.kept_alive(load).await {
            Err(error) => return Ok(Err(Said::new(error.to_string()))),
            Ok(loaded) => loaded,
        };
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error @ CatalogError::Store(_)) => {
                let said = format!(
                    "not ready: the archive cannot be read, so nothing is followed or seeded: {error}"
                );
                return Ok(Err(Said::of_archive(said, &error)));
            }
            Err(error) => return Err(error.into()),
        };
        let found = loaded.catalog.archive().map(|document| document.archive);
        if found != Some(self.archive.archive) {
            return Err(replaced::is_another(&*self.store));
        }
        self.observed.archive_read(&loaded.catalog);
        let looked = look(server, &loaded.catalog, self.clock.unix());
        let looked = looked.beside(self.unfinished, server);
        Ok(Ok((looked, loaded)))
    }

    /// Each look finds it again, as long as it is there.
    fn say_damaged(&mut self, loaded: &Loaded) {
        let damaged: Vec<String> = loaded
            .all_damaged()
            .iter()
            .map(ToString::to_string)
            .collect();
        let (said, times) = &mut self.damaged;
        *times = if *said == damaged { *times + 1 } else { 1 };
        if times.is_power_of_two() {
            for damaged in loaded.all_damaged() {
                if damaged.is_covered {
                    tracing::warn!("{damaged}");
                } else {
                    tracing::error!("{damaged}; asking the server for what it held");
                }
            }
        }
        *said = damaged;
    }

    async fn act(
        &mut self,
        decided: Decided,
        stop: &mut watch::Receiver<bool>,
    ) -> anyhow::Result<Round> {
        let Decided {
            action,
            loaded,
            server,
            mut control,
            read_at,
        } = decided;
        match action {
            Action::Follow(follow) => {
                let (seeder, local_ip, same_machine) =
                    (&self.seeder, control.local_ip(), control.is_local());
                let is_us =
                    |host: &str, port: u16| seeder.is_us(host, port, local_ip, same_machine);
                self.observed.followed();
                let opened = self
                    .follower
                    .open(&follow, &loaded, &server, &mut control, is_us, stop)
                    .await;
                let began = self.clock.ticks();
                let end = match opened {
                    Ok(mut link) => {
                        drop(loaded);
                        self.follower.stream(&mut link, stop).await
                    }
                    Err(end) => {
                        if self.follower.progress().is_none() && is_the_servers(&end) {
                            self.recent = Some(Recent {
                                at: read_at,
                                action,
                                loaded,
                                server,
                            });
                        }
                        end
                    }
                };
                Ok(self.after_follow(&end, began))
            }
            Action::Refuse(refusal) => {
                self.observed.not_ready(refusal.to_string());
                // Whatever the archive holds: it is not looked at each time.
                if matches!(refusal, Refusal::ReplicaWaits | Refusal::LeftBehind) {
                    self.recent = Some(Recent {
                        at: read_at,
                        action,
                        loaded,
                        server,
                    });
                }
                Ok(Round::Later(match refusal {
                    Refusal::ReplicaWaits | Refusal::LeftBehind => {
                        Said::new(format!("not ready: {refusal}"))
                    }
                    Refusal::SeedForbidden | Refusal::Contested(_) => {
                        Said::slow(format!("not ready: {refusal}"))
                    }
                }))
            }
            Action::Promote => {
                let head = loaded.catalog.head().map(|head| head.timeline);
                if let Some(damaged) = head.and_then(|head| loaded.damaged(head)) {
                    return Ok(Round::Later(Said::slow(format!(
                        "not ready: not promoted with a shorter history: {damaged}"
                    ))));
                }
                tracing::info!(
                    "promoting the replica as it is: the archive has nothing that it lacks"
                );
                Ok(match control.promote().await {
                    Ok(()) => Round::Again,
                    Err(error) => Round::Later(Said::slow(error.to_string())),
                })
            }
            Action::Seed | Action::SeedReplica | Action::ContinueReplica(_) => {
                let approach = match action {
                    Action::ContinueReplica(offer) => Approach::Continues(offer.position, offer.id),
                    Action::Seed => Approach::TakeOver,
                    _ => Approach::Waits,
                };
                self.observed
                    .not_ready("the server is being filled from the archive");
                let elsewhere = self.follower.elsewhere();
                tokio::select! {
                    // A replica that takes no writes is left behind; Sentinel gives it its new master.
                    () = elsewhere => {
                        self.seeder.serve(Serving::Undecided);
                        Ok(Round::Again)
                    }
                    round = self.seed(&loaded, &server, &mut control, approach) => round,
                    _ = stop.wait_for(|stop| *stop) => Ok(Round::Again),
                }
            }
        }
    }

    fn after_follow(&self, end: &FollowEnd, began: Ticks) -> Round {
        // A link that we closed for want of room says nothing of the server; any other end may be its restart.
        if !matches!(end, FollowEnd::Stalled | FollowEnd::Stopped) {
            self.observed
                .not_ready(format!("looking at the server again: {end}"));
        }
        let fresh = self.clock.ticks().since(began) >= FRESH_MILLIS;
        match end {
            FollowEnd::Stopped | FollowEnd::Elsewhere => Round::Again,
            FollowEnd::Refused(refusal) if !refusal.is_temporary() => {
                Round::Later(Said::slow(format!("{}: {end}", self.options.redis)))
            }
            FollowEnd::Link(_) => Round::Later(Said {
                text: format!("{}: {end}", self.options.redis),
                slow: false,
                fresh,
                error: false,
            }),
            FollowEnd::Malformed(_) => {
                Round::Later(Said::slow(format!("{}: {end}", self.options.redis)))
            }
            end => Round::Later(Said::new(format!("{}: {end}", self.options.redis))),
        }
    }

    /// What was stored at last is worth nothing in an archive that was exchanged meanwhile.
    async fn refuse_another(&self) -> anyhow::Result<()> {
        let look = catalog::archive_of(&*self.store);
        match tokio::time::timeout(LAST_LOOK, look).await {
            Ok(Ok(found)) if found != Some(self.archive.archive) => {
                Err(replaced::is_another(&*self.store))
            }
            _ => Ok(()),
        }
    }

    /// After being told to stop: waits for what is on its way.
    async fn finish(mut self, overdue: Pin<&mut impl Future<Output = ()>>) -> anyhow::Result<()> {
        let followed = self.follower.progress();
        let drained = tokio::select! {
            whole = self.follower.settle() => Some(whole),
            () = overdue => None,
        };
        if drained == Some(false) {
            anyhow::bail!(
                "stopped, but not everything that was received is in the archive: the rest is lost with the master"
            );
        }
        if drained.is_some() {
            if followed.is_some() {
                self.refuse_another().await?;
            }
            if followed.is_none() {
                tracing::info!("stopped: nothing was on its way to the archive");
            } else if followed.is_some_and(|progress| progress.durable.is_none()) {
                tracing::warn!(
                    "stopped before the first snapshot was complete: nothing of this timeline can be restored"
                );
            } else {
                tracing::info!("stopped: everything received is in the archive");
            }
            return Ok(());
        }
        let progress = self.follower.progress().unwrap_or_default();
        anyhow::bail!(
            "stopped with {} pieces not stored: the archive reaches up to offset {}{}",
            progress.in_flight,
            progress
                .durable
                .map_or_else(|| "none".into(), |boundary| boundary.offset.to_string()),
            progress
                .failing
                .map(|why| format!("; {why}"))
                .unwrap_or_default()
        )
    }
}

/// Whether a decision may rest on what was listed earlier: to go on at the very end of what a timeline holds, or to
/// wait. Everything else is decided from the whole archive.
fn is_ordinary(action: &Action, catalog: &Catalog) -> bool {
    match action {
        Action::Refuse(Refusal::ReplicaWaits | Refusal::Contested(_)) => true,
        Action::Follow(Follow {
            offer: Some(offer),
            suspect: None,
            accept: false,
        }) => offer.tip && !catalog.holds_beyond(offer.position),
        _ => false,
    }
}

/// Whether following failed for the server's sake, before anything was written to the archive.
fn is_the_servers(end: &FollowEnd) -> bool {
    matches!(
        end,
        FollowEnd::Link(_)
            | FollowEnd::Refused(_)
            | FollowEnd::Control(_)
            | FollowEnd::Info(_)
            | FollowEnd::NotYet
    )
}
