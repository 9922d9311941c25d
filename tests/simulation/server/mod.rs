//! A server of the 7.0 kind: strings in a few databases, replication as `protocol-facts` describes it, no persistence but a
//! dump that somebody saved at some moment.

mod info;
mod replica;
mod serving;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use perennial::position::ReplicationId;
use tokio::sync::mpsc;

use crate::data::{Applier, Data, command};
use crate::truth::{self, Place};
use crate::wire::{self, Process};
use crate::{chance, trace};

/// How often a master pings its replicas.
const PING_EVERY: Duration = Duration::from_secs(10);

/// What lies on a machine's disk.
#[derive(Clone, Debug)]
pub struct Dump {
    data: Data,
    /// What it was saved at, really.
    place: Option<Place>,
    /// The dump itself tells that: there was a backlog.
    told: bool,
    selected: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Role {
    Master,
    Replica(SocketAddr),
}

/// A replica on a connection of its own.
struct Sub {
    sender: mpsc::UnboundedSender<Vec<u8>>,
    ip: String,
    port: u16,
    acknowledged: u64,
}

struct Backlog {
    first: u64,
    bytes: Vec<u8>,
}

/// What a process knows.
pub struct State {
    process: Process,
    address: SocketAddr,
    run_id: String,
    role: Role,
    /// Changes with the role: what was begun for another one ends.
    epoch: u64,
    link_up: bool,
    loading: bool,
    id: ReplicationId,
    previous: Option<(ReplicationId, u64)>,
    offset: u64,
    backlog: Option<Backlog>,
    backlog_max: usize,
    applier: Applier,
    /// The database that the stream goes on in; nothing where SELECT comes first.
    selected: Option<u32>,
    subs: BTreeMap<u64, Sub>,
    last_sub: u64,
    saves: u64,
    saved_at: Duration,
    started: Duration,
    errors: u64,
    /// Bytes that it got from masters.
    replicated: u64,
    /// It got data, or more of them, from a Perennial since it became a replica.
    filled: bool,
    /// It lacks what was acknowledged of what it was before.
    lossy: bool,
    /// Where the machine's history stood last that lacked nothing.
    last: Option<Place>,
    /// The payload comes with a mark.
    marks: bool,
    /// A payload takes up to so many milliseconds to come.
    forks_max: u64,
}

/// A process. Clones share it.
#[derive(Clone)]
pub struct Server {
    pub name: &'static str,
    state: Arc<Mutex<State>>,
}

fn fresh_id() -> ReplicationId {
    chance::id().parse().expect("forty digits")
}

impl Server {
    /// Starts a process at an address, from a dump perhaps, as a replica perhaps. `before` is the last process that
    /// was known under that name.
    pub fn start(
        name: &'static str,
        address: SocketAddr,
        dump: Option<Dump>,
        master: Option<SocketAddr>,
        before: Option<&Self>,
    ) -> Self {
        let process = wire::process(address.ip());
        let now_at = dump.as_ref().and_then(|dump| dump.place);
        let last = before.and_then(Self::last);
        let lossy = last.is_some_and(|last| truth::is_lost(last, now_at))
            || now_at.is_some_and(|place| truth::is_lossy(place.0));
        let mut state = State {
            process,
            address,
            run_id: chance::id(),
            role: Role::Master,
            epoch: 0,
            link_up: false,
            loading: false,
            id: fresh_id(),
            previous: None,
            offset: 0,
            backlog: None,
            backlog_max: chance::one_of(&[600, 4_000, 1 << 20]),
            applier: Applier::default(),
            selected: None,
            subs: BTreeMap::new(),
            last_sub: 0,
            saves: 0,
            saved_at: chance::elapsed(),
            started: chance::elapsed(),
            errors: 0,
            replicated: 0,
            filled: false,
            lossy,
            last,
            marks: chance::percent(50),
            forks_max: chance::one_of(&[5, 300, 3000]),
        };
        if let Some(dump) = dump {
            state.load_dump(dump, master.is_some());
        }
        let server = Self {
            name,
            state: Arc::new(Mutex::new(state)),
        };
        server.listen(address);
        if let Some(master) = master {
            server.lock().become_replica(master);
            tokio::spawn(replica::replicate(server.clone(), master, 1));
        }
        server
    }

    fn listen(&self, address: SocketAddr) {
        let process = self.process();
        let Ok(mut listening) = wire::listen(process, address) else {
            trace::violation(format!("the simulation itself: {address} is taken"));
            return;
        };
        let server = self.clone();
        tokio::spawn(async move {
            while let Some(wire) = listening.incoming.recv().await {
                tokio::spawn(serving::serve(server.clone(), wire));
            }
        });
        let server = self.clone();
        tokio::spawn(async move {
            while !wire::is_dead(process) {
                tokio::time::sleep(PING_EVERY).await;
                let mut state = server.lock();
                if state.role == Role::Master && !state.subs.is_empty() {
                    state.feed(&command(&[b"ping"]));
                }
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn process(&self) -> Process {
        self.lock().process
    }

    pub fn address(&self) -> SocketAddr {
        self.lock().address
    }

    pub fn id(&self) -> ReplicationId {
        self.lock().id
    }

    pub fn is_dead(&self) -> bool {
        wire::is_dead(self.process())
    }

    pub fn is_master(&self) -> bool {
        let state = self.lock();
        state.role == Role::Master && !state.loading
    }

    /// A client's commands, in one transaction where there are several. Whether they were taken.
    pub fn write(&self, database: u32, commands: &[Vec<Vec<u8>>]) -> bool {
        let mut state = self.lock();
        if state.role != Role::Master || state.loading || wire::is_dead(state.process) {
            return false;
        }
        state.write(database, commands);
        true
    }

    /// A client waits for its replicas.
    pub fn wait(&self) {
        let mut state = self.lock();
        if state.role == Role::Master && !state.subs.is_empty() {
            state.feed(&command(&[b"REPLCONF", b"GETACK", b"*"]));
        }
    }

    /// Saves a dump.
    pub fn save(&self) -> Dump {
        let mut state = self.lock();
        state.saves += 1;
        state.saved_at = chance::elapsed();
        state.applier.changes = 0;
        Dump {
            data: state.applier.data.clone(),
            place: truth::knows(state.id).then_some((state.id, state.offset)),
            told: state.backlog.is_some(),
            selected: state.selected.unwrap_or(state.applier.selected),
        }
    }

    /// Where it stands, or stood last, without lacking anything.
    fn last(&self) -> Option<Place> {
        let state = self.lock();
        let here = (state.id, state.offset);
        let whole = !state.lossy && truth::knows(here.0) && !truth::is_lossy(here.0);
        whole.then_some(here).or(state.last)
    }

    /// Whether it is a replica that got its data.
    pub fn may_take_over(&self) -> bool {
        let state = self.lock();
        state.role != Role::Master && !state.loading && truth::knows(state.id)
    }

    /// Somebody makes it a master.
    pub fn promote(&self) {
        self.lock().promote();
    }

    /// Somebody makes it a master who should not have done so, if it can be made one.
    pub fn promote_by_mistake(&self) {
        let mut state = self.lock();
        if state.loading {
            return;
        }
        state.promote();
    }

    /// Somebody makes it a replica.
    pub fn replicate(&self, master: SocketAddr) {
        let mut state = self.lock();
        state.become_replica(master);
        let epoch = state.epoch;
        drop(state);
        tokio::spawn(replica::replicate(self.clone(), master, epoch));
    }
}

impl State {
    fn load_dump(&mut self, dump: Dump, as_replica: bool) {
        self.applier.data = dump.data;
        let Some((id, offset)) = dump.place.filter(|_| dump.told) else {
            return;
        };
        if as_replica {
            // It asks its master to go on from there.
            (self.id, self.offset) = (id, offset);
            self.applier.selected = dump.selected;
            return;
        }
        self.previous = Some((id, offset));
        self.offset = offset;
        self.open_backlog();
        truth::branch(self.id, Some((id, offset)), offset, None, self.lossy);
    }

    fn open_backlog(&mut self) {
        self.backlog = Some(Backlog {
            first: self.offset + 1,
            bytes: Vec::new(),
        });
    }

    fn write(&mut self, database: u32, commands: &[Vec<Vec<u8>>]) {
        self.applier.selected = database;
        let mut stream = Vec::new();
        if self.selected.replace(database) != Some(database) {
            stream.extend(command(&[b"SELECT", database.to_string().as_bytes()]));
        }
        if commands.len() > 1 {
            stream.extend(command(&[b"MULTI"]));
        }
        for arguments in commands {
            if let Err(error) = self.applier.apply(arguments) {
                trace::violation(format!("the simulation itself: {error}"));
            }
            let words: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
            stream.extend(command(&words));
        }
        if commands.len() > 1 {
            stream.extend(command(&[b"EXEC"]));
        }
        self.feed(&stream);
    }

    /// Into the stream, where anybody ever asked for it.
    fn feed(&mut self, bytes: &[u8]) {
        if self.backlog.is_none() || wire::is_dead(self.process) {
            return;
        }
        truth::fed(self.id, bytes);
        self.pass_on(bytes);
    }

    fn pass_on(&mut self, bytes: &[u8]) {
        let Some(backlog) = &mut self.backlog else {
            return;
        };
        self.offset += bytes.len() as u64;
        backlog.bytes.extend_from_slice(bytes);
        let over = backlog.bytes.len().saturating_sub(self.backlog_max);
        backlog.bytes.drain(..over);
        backlog.first += over as u64;
        self.subs
            .retain(|_, sub| sub.sender.send(bytes.to_vec()).is_ok());
    }

    fn become_replica(&mut self, master: SocketAddr) {
        self.role = Role::Replica(master);
        self.epoch += 1;
        self.link_up = false;
        self.filled = false;
        self.subs.clear();
    }

    fn promote(&mut self) {
        if self.role == Role::Master {
            return;
        }
        self.role = Role::Master;
        self.epoch += 1;
        self.link_up = false;
        self.subs.clear();
        self.forget_unfinished();
        let before = (self.id, self.offset);
        self.previous = Some(before);
        self.id = fresh_id();
        self.selected = None;
        let known = truth::knows(before.0).then_some(before);
        let base = known.is_none().then(|| self.applier.data.clone());
        if let Some(here) = known {
            // It may have been given since what it lacked when it started.
            let lost = self.last.is_some_and(|last| truth::is_lost(last, known));
            self.lossy = lost || truth::is_lossy(here.0);
        }
        truth::branch(self.id, known, self.offset, base, self.lossy);
    }

    /// A command or transaction of which the rest will not come.
    fn forget_unfinished(&mut self) {
        let before = std::mem::take(&mut self.applier);
        self.applier = Applier::new(before.data, before.selected);
        self.applier.changes = before.changes;
    }

    /// Whether a replica may go on behind `after` under `id`.
    fn continues(&self, id: &str, after: u64) -> bool {
        let Some(backlog) = &self.backlog else {
            return false;
        };
        let id = id.parse::<ReplicationId>().ok();
        let is_ours = id == Some(self.id)
            || self
                .previous
                .is_some_and(|(previous, last)| id == Some(previous) && after <= last);
        is_ours && after + 1 >= backlog.first && after <= self.offset
    }

    fn backlog_behind(&self, after: u64) -> Vec<u8> {
        let held = self.backlog.as_ref().and_then(|backlog| {
            let from = usize::try_from((after + 1).checked_sub(backlog.first)?).ok()?;
            backlog.bytes.get(from..)
        });
        held.map(<[u8]>::to_vec).unwrap_or_default()
    }

    /// Before a full resync: the first one makes a backlog, and a new history.
    fn begin_to_count(&mut self) {
        if self.backlog.is_some() {
            return;
        }
        let parent = truth::knows(self.id).then_some((self.id, self.offset));
        self.id = fresh_id();
        self.previous = None;
        self.open_backlog();
        let data = self.applier.data.clone();
        truth::branch(self.id, parent, self.offset, Some(data), self.lossy);
    }
}
