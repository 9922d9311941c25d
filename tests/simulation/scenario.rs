//! One run: servers, Perennials and clients, and what befalls them, all by one seed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use perennial::archive::layout::{AcceptedDocument, DOCUMENT_FORMAT};
use perennial::position::UnixMillis;
use perennial::store::catalog;
use perennial::store::memory::MemoryStore;
use tokio::time::Instant;

use crate::server::{Dump, Server};
use crate::streamer::{self, Habits, Streamer};
use crate::{bucket, chance, clock, trace, truth, verdict, wire};

/// The name under which clients and Perennials know the master.
const SERVICE: &str = "db";
/// What befalls them goes on so long at most, seconds.
const TROUBLE_MAX: u64 = 50;
/// And so much time passes until everything is checked.
const CALM: Duration = Duration::from_secs(30);

thread_local! {
    static MASTER: RefCell<Option<Server>> = const { RefCell::new(None) };
    static WRITE_FROM: Cell<Option<Instant>> = const { Cell::new(None) };
    static STOPPED: Cell<bool> = const { Cell::new(false) };
}

/// What happens later.
enum Later {
    Revive(&'static str),
    Again(usize),
    Point,
    Rejoin(&'static str),
}

struct World {
    objects: MemoryStore,
    habits: Habits,
    servers: BTreeMap<&'static str, Server>,
    disks: BTreeMap<&'static str, Dump>,
    streamers: Vec<Streamer>,
    /// The machine that is the master now, and the other one.
    main: &'static str,
    other: &'static str,
    has_other: bool,
    later: Vec<(Instant, Later)>,
    /// Clients do not wait for anything.
    eager: bool,
    /// It comes up as a replica of the first Perennial.
    born_replica: bool,
    keeps_dumps: bool,
    operators_err: bool,
}

fn address(name: &str) -> SocketAddr {
    let machine = match name {
        "a" => 1,
        "b" => 2,
        _ => 3,
    };
    SocketAddr::new(wire::ip(0, machine), 6379)
}

/// Runs it. Everything that is found is in the trace.
pub async fn run() {
    let objects = MemoryStore::new();
    wire::begin(chance::one_of(&[1, 3, 20, 100]));
    clock::begin(chance::one_of(&[0, 0, 3_000, -3_000]));
    truth::begin();
    verdict::begin(&objects);
    bucket::weather(|weather| {
        *weather = bucket::Weather {
            latency_max: chance::one_of(&[2, 30, 300, 2000]),
            fails_percent: chance::one_of(&[0, 0, 2, 10]),
            ..Default::default()
        }
    });
    STOPPED.set(false);
    WRITE_FROM.set(None);
    let mut world = World::new(objects);
    world.begin();
    let writers: Vec<_> = (0..chance::between(1, 2))
        .map(|writer| tokio::spawn(write(writer, chance::one_of(&[80, 300, 1500]))))
        .collect();
    let trouble = chance::now() + Duration::from_secs(chance::between(10, TROUBLE_MAX));
    while chance::now() < trouble && !trace::is_violated() {
        world.sleep(chance::millis(20, 8000)).await;
        world.befall().await;
    }
    world.calm().await;
    STOPPED.set(true);
    for writer in writers {
        writer.abort();
    }
    for streamer in &world.streamers {
        streamer.kill(false);
    }
    if !trace::is_violated() {
        verdict::finally().await;
        world.see_whether_settled().await;
    }
    MASTER.set(None);
}

/// A client: values that never come twice.
async fn write(writer: u64, pause_max: u64) {
    let mut written = 0_u64;
    while !STOPPED.get() {
        tokio::time::sleep(chance::millis(1, pause_max)).await;
        if WRITE_FROM.get().is_some_and(|from| from > chance::now()) {
            continue;
        }
        let Some(server) = MASTER.with_borrow(Clone::clone) else {
            continue;
        };
        written += 1;
        let key = || format!("key:{}", chance::below(24)).into_bytes();
        let value = format!(
            "{writer}:{written}:{}",
            "x".repeat(usize::from(chance::one_of(&[0_u8, 9, 30, 60])))
        );
        let one = || match chance::below(6) {
            0 => vec![b"DEL".to_vec(), key()],
            1 => vec![b"APPEND".to_vec(), key(), value.clone().into_bytes()],
            _ => vec![b"SET".to_vec(), key(), value.clone().into_bytes()],
        };
        let commands: Vec<_> = (0..chance::one_of(&[1, 1, 1, 3])).map(|_| one()).collect();
        let database = chance::one_of(&[0, 0, 0, 1, 3]);
        if server.write(database, &commands) {
            trace::count("writes");
            if chance::percent(10) {
                server.wait();
            }
        }
    }
}

impl World {
    fn new(objects: MemoryStore) -> Self {
        Self {
            objects,
            habits: Habits::draw(),
            servers: BTreeMap::new(),
            disks: BTreeMap::new(),
            streamers: Vec::new(),
            main: "a",
            other: "b",
            has_other: chance::percent(50),
            later: Vec::new(),
            eager: chance::percent(20),
            born_replica: false,
            keeps_dumps: chance::percent(40),
            operators_err: chance::percent(25),
        }
    }

    fn begin(&mut self) {
        let master = Server::start("a", address("a"), None, None, None);
        for number in 0..chance::below(20) {
            let key = format!("before:{number}").into_bytes();
            master.write(0, &[vec![b"SET".to_vec(), key, b"value".to_vec()]]);
        }
        MASTER.set(Some(master.clone()));
        wire::name(SERVICE, address("a"));
        wire::name("b", address("b"));
        self.servers.insert("a", master);
        if self.has_other {
            let other = Server::start("b", address("b"), None, Some(address("a")), None);
            self.servers.insert("b", other);
        }
        if chance::percent(20) {
            clock::skew("p1", chance::one_of(&[-2_000, 2_000, -200_000, 200_000]));
        }
        let first = Streamer::start(1, SERVICE, &self.habits, &self.objects);
        self.streamers.push(first);
        if chance::percent(40) {
            let service = match self.has_other && chance::percent(40) {
                true => "b",
                false => SERVICE,
            };
            trace::step(&format!("two Perennials, the second one on {service}"));
            let second = Streamer::start(2, service, &self.habits, &self.objects);
            self.streamers.push(second);
        }
        self.born_replica = !self.habits.own_port && chance::percent(25);
        trace::step(&format!(
            "{:?} replica {} eager {} dumps {} born a replica {}",
            self.habits, self.has_other, self.eager, self.keeps_dumps, self.born_replica
        ));
    }

    fn after(&mut self, from: u64, to: u64, later: Later) {
        let at = chance::now() + chance::millis(from, to);
        self.later.push((at, later));
    }

    async fn sleep(&mut self, time: Duration) {
        let until = chance::now() + time;
        loop {
            let next = self.later.iter().map(|(at, _)| *at).min();
            let Some(next) = next.filter(|next| *next <= until) else {
                break;
            };
            tokio::time::sleep_until(next).await;
            let at = self.later.iter().position(|(at, _)| *at == next);
            if let Some(at) = at {
                let (_, later) = self.later.remove(at);
                self.come(later);
            }
        }
        tokio::time::sleep_until(until).await;
    }

    fn come(&mut self, later: Later) {
        match later {
            Later::Revive(name) => self.revive(name),
            Later::Again(at) => {
                trace::step(&format!("Perennial {at} is started"));
                self.streamers[at] = self.streamers[at].again(&self.habits, &self.objects);
            }
            Later::Point => {
                if let Some(foreign) = self.servers.get("foreign") {
                    wire::kill(foreign.process(), false);
                }
                self.point(self.main);
            }
            Later::Rejoin(name) => {
                if let Some(server) = self.servers.get(name).filter(|it| !it.is_dead())
                    && name != self.main
                {
                    trace::step(&format!("{name} becomes a replica of {}", self.main));
                    server.replicate(address(self.main));
                }
            }
        }
    }

    fn point(&self, name: &'static str) {
        trace::step(&format!("{SERVICE} is {name}"));
        wire::name(SERVICE, address(name));
        MASTER.set(self.servers.get(name).cloned());
    }

    fn revive(&mut self, name: &'static str) {
        if self.is_alive(name) {
            return;
        }
        let dump = self.disks.get(name).filter(|_| self.keeps_dumps).cloned();
        let main = name == self.main;
        let master = match main {
            true => {
                let seeder = SocketAddr::new(wire::ip(1, 1), streamer::SEED_PORT);
                self.born_replica.then_some(seeder)
            }
            false => Some(address(self.main)),
        };
        trace::step(&format!(
            "{name} is started, dump {} as a replica {}",
            dump.is_some(),
            master.is_some()
        ));
        let before = self.servers.get(name);
        let server = Server::start(name, address(name), dump, master, before);
        self.servers.insert(name, server.clone());
        if main {
            MASTER.set(Some(server));
            if !self.eager {
                WRITE_FROM.set(Some(chance::now() + chance::millis(3_000, 20_000)));
            }
        }
    }

    fn is_alive(&self, name: &str) -> bool {
        self.servers
            .get(name)
            .is_some_and(|server| !server.is_dead())
    }

    fn kill_server(&mut self, name: &'static str) {
        if !self.is_alive(name) {
            return;
        }
        let silently = chance::percent(10);
        trace::step(&format!(
            "{name} dies{}",
            if silently { " silently" } else { "" }
        ));
        trace::count("servers killed");
        wire::kill(self.servers[name].process(), silently);
        self.after(10, 6_000, Later::Revive(name));
    }

    async fn befall(&mut self) {
        match chance::below(if self.operators_err { 28 } else { 24 }) {
            0..=4 => self.kill_server(self.main),
            5 => self.kill_server(self.other),
            6..=9 => self.kill_streamer(),
            10 => self.stop_streamer(),
            11..=13 => {
                trace::step("connections break or stand still");
                wire::disturb(chance::one_of(&[20, 60, 100]), chance::millis(0, 70_000));
            }
            14..=16 => store_trouble(),
            17..=19 => self.fail_over(),
            20 => self.save(),
            21 => self.kill_all(),
            22 => {
                let machine = streamer::machine_name(1);
                let millis = chance::one_of(&[0, 3_000, -3_000, 120_000, -120_000]);
                trace::step(&format!("the clock of {machine} is off by {millis} ms"));
                clock::skew(&machine, millis);
            }
            23 => {
                if let Some(server) = self.servers.get(self.main) {
                    trace::step("FLUSHALL");
                    server.write(0, &[vec![b"FLUSHALL".to_vec()]]);
                }
            }
            24 => self.promote_by_mistake(),
            25 => self.point_elsewhere(),
            _ => self.accept().await,
        }
    }

    fn kill_streamer(&mut self) {
        let at = usize::try_from(chance::below(self.streamers.len() as u64)).unwrap_or(0);
        trace::step(&format!("Perennial {at} dies"));
        trace::count("Perennials killed");
        self.streamers[at].kill(chance::percent(10));
        self.after(1, 15_000, Later::Again(at));
    }

    fn stop_streamer(&mut self) {
        let at = usize::try_from(chance::below(self.streamers.len() as u64)).unwrap_or(0);
        trace::step(&format!("Perennial {at} is told to stop"));
        self.streamers[at].stop();
        self.after(1_000, 20_000, Later::Again(at));
    }

    /// Everything at once, as when a node goes down.
    fn kill_all(&mut self) {
        self.kill_server(self.main);
        for at in 0..self.streamers.len() {
            self.streamers[at].kill(false);
            self.after(1, 5_000, Later::Again(at));
        }
    }

    fn save(&mut self) {
        if let Some(server) = self.servers.get(self.main).filter(|it| !it.is_dead()) {
            trace::step("a dump is saved");
            let dump = server.save();
            self.disks.insert(self.main, dump);
        }
    }

    fn fail_over(&mut self) {
        if !self.is_alive(self.other) || !self.servers[self.other].may_take_over() {
            return;
        }
        let lives = chance::percent(50);
        trace::step(&format!(
            "{} takes over from {}, which {}",
            self.other,
            self.main,
            if lives { "lives" } else { "dies" }
        ));
        trace::count("failovers");
        if !lives {
            wire::kill(self.servers[self.main].process(), false);
        }
        self.servers[self.other].promote();
        (self.main, self.other) = (self.other, self.main);
        match lives {
            true => self.after(0, 10_000, Later::Rejoin(self.other)),
            false => self.after(10, 10_000, Later::Revive(self.other)),
        }
        self.after(0, 2_000, Later::Point);
    }

    /// REPLICAOF NO ONE, in the middle of whatever it is.
    fn promote_by_mistake(&mut self) {
        if let Some(server) = self.servers.get(self.main).filter(|it| !it.is_dead())
            && !server.is_master()
        {
            trace::step("somebody promotes the server by mistake");
            trace::count("promoted by mistake");
            server.promote_by_mistake();
        }
    }

    /// For a while the address leads to a server with other data.
    fn point_elsewhere(&mut self) {
        if self.servers.contains_key("foreign") {
            return;
        }
        let before = self.servers.get(self.main);
        let foreign = Server::start("foreign", address("foreign"), None, None, before);
        foreign.write(
            0,
            &[vec![b"SET".to_vec(), b"foreign".to_vec(), b"data".to_vec()]],
        );
        self.servers.insert("foreign", foreign);
        trace::count("wrong servers");
        self.point("foreign");
        wire::disturb(100, Duration::ZERO);
        self.after(3_000, 15_000, Later::Point);
    }

    /// What `perennial accept` does.
    async fn accept(&self) {
        let Some(catalog) = verdict::look().await else {
            return;
        };
        let suspects = catalog
            .timelines()
            .rev()
            .filter(|timeline| catalog.suspect(timeline.seq()).is_some());
        let newest = suspects
            .map(|timeline| (timeline.seq(), timeline.id()))
            .find(|(seq, _)| catalog.end(*seq).is_some());
        let Some((seq, id)) = newest else { return };
        trace::step(&format!("timeline {seq} is accepted"));
        trace::count("accepted");
        let document = AcceptedDocument {
            format: DOCUMENT_FORMAT,
            accepted_at: UnixMillis(clock::unix()),
            by: "somebody".into(),
            reason: "simulated".into(),
        };
        truth::accept(seq.as_u32());
        let _ = catalog::accept(&self.objects, &catalog, seq, id, document).await;
    }

    /// All troubles end.
    async fn calm(&mut self) {
        trace::step("calm");
        bucket::weather(|weather| {
            *weather = bucket::Weather {
                latency_max: 20,
                ..Default::default()
            }
        });
        self.sleep(Duration::from_secs(20)).await;
        if !self.is_alive(self.main) {
            self.revive(self.main);
        }
        self.point(self.main);
        for at in 0..self.streamers.len() {
            if self.streamers[at].is_over() {
                self.come(Later::Again(at));
            }
        }
        self.sleep(CALM / 2).await;
        STOPPED.set(true);
        self.sleep(CALM / 2).await;
    }

    /// Whether all came to rest with the server's data in the archive: not promised to each, counted.
    async fn see_whether_settled(&self) {
        let Some(catalog) = verdict::look().await else {
            return;
        };
        let held = self.servers.get(self.main).map(Server::id);
        let head = catalog.head().and_then(|head| {
            let timeline = catalog.timeline(head.timeline)?;
            Some(timeline.id())
        });
        let settled = held.is_some() && held == head;
        trace::count(if settled { "settled" } else { "not settled" });
    }
}

fn store_trouble() {
    let until = chance::now() + chance::millis(500, 30_000);
    let kind = chance::below(4);
    trace::step(&format!("the store has trouble of kind {kind}"));
    trace::count("store outages");
    bucket::weather(|weather| match kind {
        0 => weather.refuses_until = Some(until),
        1 => weather.hangs_until = Some(until),
        2 => weather.latency_max = chance::one_of(&[1, 500, 5_000]),
        _ => weather.fails_percent = chance::one_of(&[0, 5, 40]),
    });
}
