//! The listener that plays master. While nothing is decided it answers `-LOADING`; while a seed is under way
//! it serves one plan, byte for byte what was archived, and tells how far the replica has come.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use super::door::{Door, Turned};
use super::source::{self, SourceError, Spelling, Unusable};
use crate::archive::layout::ArchiveId;
use crate::archive::plan::Plan;
use crate::clock::Clock;
use crate::position::{Offset, Position, ReplicationId, Ticks};
use crate::proto::handshake::{Auth, PsyncRequest};
use crate::proto::master::{
    Master, MasterEvent, MasterOptions, MasterOutput, Misuse, PsyncOffer, Readiness,
};
use crate::server::net;
use crate::server::tls::TlsServer;
use crate::store::Store;

/// Connections answered at the same time; more wait.
const CONNECTIONS_MAX: usize = 16;
/// Replication ids that are remembered as served.
const GIVEN_MAX: usize = 64;
/// The longest from a connection to its PSYNC, milliseconds.
const HANDSHAKE_MILLIS: u64 = 60_000;
/// The longest silence of a replica behind its payload, milliseconds: loading a large payload from a file
/// sends a newline now and then.
const ACK_MILLIS: u64 = 300_000;

/// An RDB payload without keys that every version reads: magic, end, and a checksum of zeros, which says that
/// there is none.
const EMPTY_RDB: &[u8] = b"REDIS0006\xff\0\0\0\0\0\0\0\0";

/// What the listener serves.
#[derive(Clone, Debug, Default)]
pub enum Serving {
    /// Not decided: `-LOADING`.
    #[default]
    Undecided,
    /// This plan.
    Plan(Arc<Offering>),
    /// No data at all, to the server that a seed went wrong on.
    Nothing(TakeBack),
}

/// What a seed that went wrong left behind must not stay under an archived id and offset, in a dump for example,
/// where it would pass for the archive's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TakeBack {
    /// The id under which there is nothing.
    pub id: ReplicationId,
    /// The id that the seed gave it. Whoever asks to continue another history, or none, keeps what it has.
    pub seeded: ReplicationId,
    /// The port that the server names in its handshake.
    pub listening_port: Option<u16>,
}

impl TakeBack {
    fn is_for(&self, offer: &PsyncOffer) -> bool {
        is_of_port(offer, self.listening_port) && named(offer) == Some(self.seeded)
    }
}

/// A plan to serve.
#[derive(Debug)]
pub struct Offering {
    /// Where it lies.
    pub store: Arc<dyn Store>,
    /// The archive's id.
    pub archive: ArchiveId,
    /// What to send.
    pub plan: Plan,
    /// Sent behind the plan's replication stream; nothing under an archived id.
    pub epilogue: Bytes,
    /// Where a replica that already holds a position goes on; everything else gets a full resync. Only for
    /// a server whose data this archive contains.
    pub continue_at: Option<(Position, ReplicationId)>,
    /// The port that the server which is seeded names in its handshake: nobody else is served.
    pub listening_port: Option<u16>,
    /// Somebody is being served: one at a time.
    pub busy: AtomicBool,
    /// The number of the question that may be answered, as [`SeedProgress::question`] counts them, and how; nothing
    /// where another server asked it, which is told to wait. A server keeps its data until then and can still be given
    /// back; who asks again, on another connection, may be another one.
    pub approved: watch::Sender<Option<(u32, Option<Approved>)>>,
    /// How far it has come.
    pub progress: watch::Sender<SeedProgress>,
}

/// How a plan is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Approved {
    /// The replication id: an archived one only for archived bytes.
    pub id: ReplicationId,
    /// Which bytes.
    pub spelling: Spelling,
}

impl Offering {
    /// How a question is to be answered, once that is said.
    async fn approved(&self, question: u32) -> Result<Approved, Ended> {
        let mut said = self.approved.subscribe();
        let this = said
            .wait_for(|said| said.is_some_and(|(number, _)| number == question))
            .await;
        // Never without: the sender is in the offering.
        let (_, approved) = this.ok().and_then(|this| *this).ok_or(Ended::Replaced)?;
        approved.ok_or(Ended::Stranger)
    }
}

/// How far a replica has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeedProgress {
    /// The number of the last question for the plan, from whomever.
    pub question: u32,
    /// The history that was named in it.
    pub named: Option<ReplicationId>,
    /// How often the server asked for the plan and was let: once on each connection.
    pub asked: u32,
    /// The length of the payload, once a connection needed it.
    pub payload_bytes: u64,
    /// Payload bytes sent on the last connection.
    pub payload_sent: u64,
    /// Bytes of the replication stream sent on it.
    pub stream_sent: u64,
    /// Everything was handed to the connection.
    pub all_sent: bool,
    /// The replica's last acknowledgement.
    pub acknowledged: Option<Offset>,
    /// What of the archive cannot be used, whoever connects again.
    pub unusable: Option<Unusable>,
    /// Why the last connection ended before its time.
    pub failed: Option<String>,
    /// How many connections did.
    pub failures: u32,
}

impl SeedProgress {
    /// Whether anything happened since `before` but questions, which are no progress.
    pub fn moved_since(&self, before: &Self) -> bool {
        let asks_as_before = Self {
            question: before.question,
            named: before.named,
            ..self.clone()
        };
        asks_as_before != *before
    }
}

/// Where and how to listen.
#[derive(Clone, Debug)]
pub struct SeederOptions {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What the server is told to connect to, where that differs.
    pub announce: Option<(String, u16)>,
    /// What a replica must say. Required where `listen` is not loopback.
    pub auth: Option<Auth>,
    /// How to answer servers that connect by TLS.
    pub tls: Option<TlsServer>,
}

/// The listener.
#[derive(Debug)]
pub struct Seeder {
    local: SocketAddr,
    announce: Option<(String, u16)>,
    serving: watch::Sender<Serving>,
    turned: watch::Receiver<Turned>,
    /// The ids under which something was served, the latest ones.
    given: Mutex<VecDeque<ReplicationId>>,
    /// Said once that CONFIG GET is not allowed.
    without_config: AtomicBool,
    task: JoinHandle<()>,
}

impl Drop for Seeder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seeder {
    /// Listens.
    ///
    /// # Errors
    /// What the system says of the address.
    pub async fn open(options: SeederOptions, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let listener = net::Listener::bind(options.listen)?;
        let local = listener.local_addr()?;
        let serving = watch::Sender::new(Serving::Undecided);
        let door = Arc::new(Door::new(options.auth, options.tls));
        let turned = door.turned_away();
        let task = tokio::spawn(accept(listener, door, serving.subscribe(), clock));
        Ok(Self {
            local,
            announce: options.announce,
            serving,
            turned,
            given: Mutex::default(),
            without_config: AtomicBool::new(false),
            task,
        })
    }

    /// Something is about to be served under this id.
    pub(super) fn gives(&self, id: ReplicationId) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.retain(|before| *before != id);
        given.push_back(id);
        if given.len() > GIVEN_MAX {
            given.pop_front();
        }
    }

    /// Whether a server may bear this id because it was served under it: by an attempt that was cut short, perhaps, of
    /// which it still loads what it has got.
    pub(super) fn has_given(&self, id: ReplicationId) -> bool {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.contains(&id)
    }

    /// True the first time.
    pub(super) fn first_time_without_config(&self) -> bool {
        !self.without_config.swap(true, Ordering::Relaxed)
    }

    /// What kept servers from being let in so far.
    pub(super) fn turned_away(&self) -> Turned {
        self.turned.borrow().clone()
    }

    /// Changes what is served.
    pub fn serve(&self, serving: Serving) {
        self.serving.send_replace(serving);
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.local.port()
    }

    /// What a server should connect to: as announced, or the listening address, or our address on the
    /// connection to it.
    pub fn address_for(&self, local_ip: Option<IpAddr>) -> (String, u16) {
        if let Some(announce) = &self.announce {
            return announce.clone();
        }
        let ip = match (self.local.ip(), local_ip) {
            (ip, Some(local)) if ip.is_unspecified() => local,
            (ip, _) => ip,
        };
        (ip.to_string(), self.local.port())
    }

    /// Whether a server can reach us: not where we listen on loopback and it is on another machine.
    pub fn is_reachable_from(&self, same_machine: bool) -> bool {
        self.announce.is_some() || same_machine || !self.local.ip().is_loopback()
    }

    /// Whether a server whose master is `host:port` waits for us. Names of loopback are one.
    /// Loopback is ours only to a server on this machine.
    pub fn is_us(
        &self,
        host: &str,
        port: u16,
        local_ip: Option<IpAddr>,
        same_machine: bool,
    ) -> bool {
        if self
            .announce
            .as_ref()
            .is_some_and(|(name, at)| name == host && *at == port)
        {
            return true;
        }
        if port != self.local.port() {
            return false;
        }
        let ip = match host {
            "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
            _ => host.parse().ok(),
        };
        let own = self.local.ip();
        ip.is_some_and(|ip: IpAddr| {
            if ip.is_loopback() {
                return same_machine && (own.is_loopback() || own.is_unspecified());
            }
            ip == own || (own.is_unspecified() && Some(ip) == local_ip)
        })
    }
}

async fn accept(
    mut listener: net::Listener,
    door: Arc<Door>,
    serving: watch::Receiver<Serving>,
    clock: Arc<dyn Clock>,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (door, serving) = (Arc::clone(&door), serving.clone());
                let clock = Arc::clone(&clock);
                tokio::spawn(async move {
                    if let Some(stream) = door.open(stream, peer.ip()).await {
                        let connection = Connection::new(stream, peer.ip(), door, clock);
                        connection.run(serving).await;
                    }
                    tracing::debug!(%peer, "seed connection ended");
                    drop(slot);
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

struct Connection {
    stream: net::Connection,
    peer: IpAddr,
    door: Arc<Door>,
    core: Master,
    clock: Arc<dyn Clock>,
    received: BytesMut,
    wait_until: Ticks,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Source(#[from] SourceError),
    #[error("{0}")]
    Misuse(#[from] Misuse),
    #[error("the replica closed the connection")]
    Closed,
    #[error("{0}")]
    Peer(String),
    #[error("another plan is served now")]
    Replaced,
    #[error("another server than the one that is to be seeded")]
    Stranger,
}

impl Connection {
    fn new(stream: net::Connection, peer: IpAddr, door: Arc<Door>, clock: Arc<dyn Clock>) -> Self {
        let options = MasterOptions {
            auth: door.auth.clone(),
            handshake_timeout_ms: HANDSHAKE_MILLIS,
            ack_timeout_ms: ACK_MILLIS,
        };
        Self {
            stream,
            peer,
            door,
            core: Master::new(options, Readiness::Undecided, clock.ticks()),
            wait_until: clock.ticks(),
            clock,
            received: BytesMut::with_capacity(4096),
        }
    }

    async fn run(mut self, mut serving: watch::Receiver<Serving>) {
        loop {
            let offer = match self.handshake(&mut serving).await {
                Ok(offer) => offer,
                Err(ended) => {
                    tracing::debug!("seed connection: {ended}");
                    return;
                }
            };
            let now_served = serving.borrow().clone();
            let offering = match now_served {
                Serving::Plan(offering) => offering,
                Serving::Nothing(back) if back.is_for(&offer) => {
                    let ended = tokio::select! {
                        ended = self.serve_nothing(back.id) => ended,
                        () = replaced(&mut serving) => Err(Ended::Replaced),
                    };
                    if let Err(ended) = ended {
                        tracing::debug!("seed connection: {ended}");
                    }
                    return;
                }
                Serving::Nothing(..) | Serving::Undecided => {
                    if self.core.postpone().is_err() {
                        return;
                    }
                    continue;
                }
            };
            // Another server with the same `replicaof` would lose what it holds.
            let stranger = !is_of_port(&offer, offering.listening_port);
            if stranger || offering.busy.swap(true, Ordering::AcqRel) {
                self.door.told_to_wait(self.peer, offer.listening_port);
                if self.core.postpone().is_err() {
                    return;
                }
                continue;
            }
            let _free = FreeOnDrop(&offering.busy);
            let mut question = 0;
            offering.progress.send_modify(|progress| {
                progress.question += 1;
                progress.named = named(&offer);
                question = progress.question;
            });
            let outcome = tokio::select! {
                outcome = self.serve(&offering, &offer, question) => outcome,
                () = replaced(&mut serving) => Err(Ended::Replaced),
            };
            if matches!(outcome, Err(Ended::Stranger)) {
                tracing::warn!(
                    port = offer.listening_port,
                    "another server asks to be seeded: told to wait"
                );
                if self.core.postpone().is_err() {
                    return;
                }
                continue;
            }
            if let Err(ended) = outcome {
                let unusable = match &ended {
                    Ended::Source(error) => error.unusable(),
                    _ => None,
                };
                offering.progress.send_modify(|progress| {
                    progress.unusable = unusable;
                    progress.failed = Some(ended.to_string());
                    progress.failures += 1;
                });
            }
            return;
        }
    }

    async fn handshake(
        &mut self,
        serving: &mut watch::Receiver<Serving>,
    ) -> Result<PsyncOffer, Ended> {
        loop {
            let readiness = match &*serving.borrow_and_update() {
                Serving::Undecided => Readiness::Undecided,
                Serving::Plan(_) | Serving::Nothing(..) => Readiness::Ready,
            };
            self.core.set_readiness(readiness);
            match self.drain().await? {
                Some(MasterEvent::Psync(offer)) => return Ok(offer),
                Some(MasterEvent::Refused(refused)) => {
                    self.door.refused(self.peer, &refused);
                    continue;
                }
                Some(event) => {
                    self.fail_on(&event)?;
                    continue;
                }
                None => {}
            }
            tokio::select! {
                input = self.input() => input?,
                changed = serving.changed() => if changed.is_err() { return Err(Ended::Closed) },
            }
        }
    }

    fn fail_on(&self, event: &MasterEvent) -> Result<(), Ended> {
        match event {
            MasterEvent::ProtocolError { stage, found } => {
                Err(Ended::Peer(format!("in {stage} the replica said {found}")))
            }
            MasterEvent::TimedOut { stage } => {
                Err(Ended::Peer(format!("the replica was silent in {stage}")))
            }
            MasterEvent::Psync(_) | MasterEvent::Acked { .. } | MasterEvent::Refused(_) => Ok(()),
        }
    }

    /// Sends what the core has to send, up to its next event. Not cancel safe.
    async fn drain(&mut self) -> Result<Option<MasterEvent>, Ended> {
        loop {
            match self.core.poll_output() {
                MasterOutput::Send(bytes) => self.stream.write_all(&bytes).await?,
                MasterOutput::Event(event) => return Ok(Some(event)),
                MasterOutput::Close => {
                    self.stream.flush().await?;
                    return Err(Ended::Closed);
                }
                MasterOutput::Wait { until } => {
                    self.stream.flush().await?;
                    self.wait_until = until;
                    return Ok(None);
                }
            }
        }
    }

    /// Waits for bytes of the replica, or for the time the core asked for. Cancel safe. What it said while we could
    /// only write counts before the time that has passed.
    async fn input(&mut self) -> Result<(), Ended> {
        let wait = Duration::from_millis(self.wait_until.since(self.clock.ticks()));
        tokio::select! {
            biased;
            read = self.stream.read_buf(&mut self.received) => {
                if read? == 0 {
                    return Err(Ended::Closed);
                }
                self.core.receive(self.clock.ticks(), self.received.split().freeze());
            }
            () = tokio::time::sleep(wait) => self.core.time_passed(self.clock.ticks()),
        }
        Ok(())
    }

    /// Sends everything the core has to send and notes what the replica said.
    async fn flush(&mut self, offering: &Offering) -> Result<(), Ended> {
        while let Some(event) = self.drain().await? {
            self.note(&event, offering)?;
        }
        Ok(())
    }

    fn note(&self, event: &MasterEvent, offering: &Offering) -> Result<(), Ended> {
        if let MasterEvent::Acked { ack, .. } = event {
            let ack = *ack;
            offering.progress.send_if_modified(|progress| {
                let moved = progress.acknowledged != Some(ack);
                progress.acknowledged = Some(ack);
                moved
            });
        }
        self.fail_on(event)
    }

    async fn serve(
        &mut self,
        offering: &Offering,
        offer: &PsyncOffer,
        question: u32,
    ) -> Result<(), Ended> {
        let approved = offering.approved(question).await?;
        offering.progress.send_modify(|progress| {
            progress.asked += 1;
            (progress.payload_sent, progress.stream_sent) = (0, 0);
            progress.all_sent = false;
            progress.acknowledged = None;
        });
        match offering.continue_at {
            Some((position, id)) if asks_for(offer, position.offset, id) => {
                self.core.continue_with(self.clock.ticks(), approved.id)?;
            }
            // A replica that should be continued asks for something else: never overwrite what it holds.
            Some(_) => {
                self.core
                    .refuse("this replica's position is not the one that was decided on")?;
                self.flush(offering).await?;
                return Err(Ended::Peer(
                    "the replica asked for another position than it stands at".into(),
                ));
            }
            None => self.send_payload(offering, approved.id).await?,
        }
        self.send_stream(offering, approved.spelling).await?;
        if !offering.epilogue.is_empty() {
            self.core.stream(offering.epilogue.clone())?;
            self.flush(offering).await?;
        }
        offering
            .progress
            .send_modify(|progress| progress.all_sent = true);
        loop {
            self.flush(offering).await?;
            self.input().await?;
        }
    }

    async fn serve_nothing(&mut self, id: ReplicationId) -> Result<(), Ended> {
        let payload = Bytes::from_static(EMPTY_RDB);
        self.core.full_resync(
            self.clock.ticks(),
            id,
            Offset::ZERO,
            Some(payload.len() as u64),
        )?;
        self.core.payload(self.clock.ticks(), payload)?;
        loop {
            while self.drain().await?.is_some() {}
            self.input().await?;
        }
    }

    async fn send_payload(&mut self, offering: &Offering, id: ReplicationId) -> Result<(), Ended> {
        let plan = &offering.plan;
        let total = source::payload_bytes(&*offering.store, plan).await?;
        offering
            .progress
            .send_modify(|progress| progress.payload_bytes = total);
        self.core
            .full_resync(self.clock.ticks(), id, plan.snapshot.offset, Some(total))?;
        self.flush(offering).await?;
        let mut payload = source::payload(Arc::clone(&offering.store), offering.archive, plan);
        loop {
            self.flush(offering).await?;
            let next = tokio::select! {
                next = payload.next() => next?,
                // Newlines while the store is slow.
                input = self.input() => {
                    input?;
                    continue;
                }
            };
            let Some(bytes) = next else { return Ok(()) };
            let sent = bytes.len() as u64;
            self.core.payload(self.clock.ticks(), bytes)?;
            self.flush(offering).await?;
            offering
                .progress
                .send_modify(|progress| progress.payload_sent += sent);
        }
    }

    async fn send_stream(&mut self, offering: &Offering, spelling: Spelling) -> Result<(), Ended> {
        let mut stream = source::stream(
            Arc::clone(&offering.store),
            offering.archive,
            &offering.plan,
            spelling,
        );
        loop {
            self.flush(offering).await?;
            let next = tokio::select! {
                next = stream.next() => next?,
                input = self.input() => {
                    input?;
                    continue;
                }
            };
            let Some(bytes) = next else { return Ok(()) };
            let sent = bytes.len() as u64;
            self.core.stream(bytes)?;
            self.flush(offering).await?;
            offering
                .progress
                .send_modify(|progress| progress.stream_sent += sent);
        }
    }
}

struct FreeOnDrop<'a>(&'a AtomicBool);

impl Drop for FreeOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn is_of_port(offer: &PsyncOffer, port: Option<u16>) -> bool {
    port.is_none_or(|port| offer.listening_port == Some(port))
}

/// The history that a replica wants to go on with: of whoever was a master, or has a dump, its own.
fn named(offer: &PsyncOffer) -> Option<ReplicationId> {
    match offer.request {
        PsyncRequest::Full => None,
        PsyncRequest::Continue { id, .. } => Some(id),
    }
}

fn asks_for(offer: &PsyncOffer, offset: Offset, id: ReplicationId) -> bool {
    offer.request == PsyncRequest::Continue { id, after: offset }
}

/// Waits until something else is served than now.
async fn replaced(serving: &mut watch::Receiver<Serving>) {
    if serving.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    async fn seeder(announce: Option<(&str, u16)>) -> Seeder {
        let options = SeederOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            announce: announce.map(|(host, port)| (host.to_owned(), port)),
            auth: None,
            tls: None,
        };
        Seeder::open(options, Arc::new(SystemClock::new()))
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_replica_of_loopback_is_ours_only_on_this_machine() {
        let seeder = seeder(None).await;
        let port = seeder.port();
        for host in ["127.0.0.1", "localhost", "127.0.0.2", "::1"] {
            assert!(seeder.is_us(host, port, None, true), "{host}");
            assert!(
                !seeder.is_us(host, port, None, false),
                "{host} of another machine"
            );
        }
        assert!(!seeder.is_us("127.0.0.1", port.wrapping_add(1), None, true));
        assert!(!seeder.is_us("10.0.0.1", port, None, true));
        assert!(!seeder.is_us("redis.example", port, None, true));
    }

    #[tokio::test]
    async fn an_announced_name_is_ours_from_everywhere() {
        let seeder = seeder(Some(("perennial", 6390))).await;
        assert!(seeder.is_us("perennial", 6390, None, false));
        assert_eq!(seeder.address_for(None), ("perennial".into(), 6390));
        assert!(seeder.is_reachable_from(false));
    }

    #[tokio::test]
    async fn the_latest_ids_that_were_served_are_remembered() {
        let seeder = seeder(None).await;
        let id = |byte| ReplicationId::from_raw([byte; 20]);
        seeder.gives(id(255));
        assert!(seeder.has_given(id(255)) && !seeder.has_given(id(0)));
        for byte in 0..u8::try_from(GIVEN_MAX).unwrap() {
            seeder.gives(id(byte));
            seeder.gives(id(byte));
        }
        assert!(seeder.has_given(id(0)) && !seeder.has_given(id(255)));
    }

    #[tokio::test]
    async fn loopback_is_reachable_only_from_this_machine() {
        let seeder = seeder(None).await;
        assert!(seeder.is_reachable_from(true));
        assert!(!seeder.is_reachable_from(false));
    }
}
