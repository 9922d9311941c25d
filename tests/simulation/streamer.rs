//! Processes of Perennial: each is the function that `perennial run` calls, with a clock, a store and a network that die
//! with it.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use perennial::cli::run::run;
use perennial::config::{RunSettings, SnapshotSettings, TlsSettings, UpkeepSettings};
use perennial::decide::Policy;
use perennial::follow::AckMode;
use perennial::store::memory::MemoryStore;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::bucket::Bucket;
use crate::clock::Simulated;
use crate::wire::{self, Process};
use crate::{chance, trace};

/// Where they listen for servers that are to be filled.
pub const SEED_PORT: u16 = 7001;
/// The network in which they live.
const NETWORK: u8 = 1;

thread_local! {
    static FACK: Cell<bool> = const { Cell::new(false) };
}

/// What all of a run's Perennials are told.
#[derive(Clone, Debug)]
pub struct Habits {
    pub ack: AckMode,
    pub seed: Policy,
    pub flush_interval: &'static str,
    pub own_port: bool,
    pub upkeep: bool,
    pub snapshots: bool,
}

impl Habits {
    /// By chance.
    pub fn draw() -> Self {
        let ack = match chance::percent(15) {
            true => AckMode::Received,
            false => AckMode::Durable,
        };
        FACK.set(ack == AckMode::Received);
        Self {
            ack,
            seed: match chance::below(10) {
                0 => Policy::IfEmpty,
                _ => Policy::Auto,
            },
            flush_interval: chance::one_of(&["50ms", "200ms", "1s", "5s"]),
            own_port: chance::percent(30),
            upkeep: chance::percent(60),
            snapshots: chance::percent(60),
        }
    }
}

/// Whether what is acknowledged as stored is FACK.
pub fn trusts_fack() -> bool {
    FACK.get()
}

/// Whether a Perennial lives there.
pub fn is_at(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.octets()[2] == NETWORK)
}

/// One process.
pub struct Streamer {
    pub machine: u8,
    pub process: Process,
    service: &'static str,
    stop: watch::Sender<bool>,
    expected: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Streamer {
    /// Starts one that follows whatever `service` means.
    pub fn start(
        machine: u8,
        service: &'static str,
        habits: &Habits,
        objects: &MemoryStore,
    ) -> Self {
        let ip = wire::ip(NETWORK, machine);
        let process = wire::process(ip);
        let mut options = settings(service, process, habits)
            .check()
            .expect("these settings can be used");
        let port = if habits.own_port { 0 } else { SEED_PORT };
        options.seeder.listen = SocketAddr::new(ip, port);
        let store = Arc::new(Bucket::new(objects.clone(), process));
        let clock = Arc::new(Simulated::of(&machine_name(machine)));
        let (stop, stopped) = watch::channel(false);
        let expected = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&expected);
        let task = tokio::spawn(async move {
            let ended = run(options, store, clock, stopped).await;
            trace::line(&format!("process {process} ended: {ended:?}"));
            // Its work may be lost where it is told to stop, never otherwise.
            if !ends.load(Ordering::Relaxed) {
                trace::violation(format!("process {process} ended by itself: {ended:?}"));
            }
        });
        Self {
            machine,
            process,
            service,
            stop,
            expected,
            task,
        }
    }

    /// It dies at whatever it awaits.
    pub fn kill(&self, silently: bool) {
        self.expected.store(true, Ordering::Relaxed);
        wire::kill(self.process, silently);
        self.task.abort();
    }

    /// It is told to stop.
    pub fn stop(&self) {
        self.expected.store(true, Ordering::Relaxed);
        let _ = self.stop.send(true);
    }

    /// Whether it came to its end.
    pub fn is_over(&self) -> bool {
        self.task.is_finished() || wire::is_dead(self.process)
    }

    /// Another process in its place; what is left of this one is dead.
    pub fn again(&self, habits: &Habits, objects: &MemoryStore) -> Self {
        self.kill(false);
        Self::start(self.machine, self.service, habits, objects)
    }
}

/// As its clock is called.
pub fn machine_name(machine: u8) -> String {
    format!("p{machine}")
}

fn settings(service: &str, process: Process, habits: &Habits) -> RunSettings {
    let snapshots = match habits.snapshots {
        true => SnapshotSettings {
            interval: "20s".into(),
            min_interval: "5s".into(),
            log_bytes: "2KB".into(),
            ..SnapshotSettings::default()
        },
        false => SnapshotSettings::default(),
    };
    RunSettings {
        redis: format!("redis://{service}.o{process}:6379"),
        sentinel: Default::default(),
        archive: "file:///simulated".into(),
        name: None,
        seed: habits.seed,
        seed_listen: "127.0.0.1:0".into(),
        seed_announce: None,
        seed_password: None,
        redis_password: None,
        ack: habits.ack,
        flush_interval: habits.flush_interval.into(),
        flush_bytes: "1MiB".into(),
        buffer_bytes: "32MiB".into(),
        snapshot_part_bytes: "300GB".into(),
        snapshots,
        spool_dir: None,
        spool_bytes: "1GiB".into(),
        uploads_per_second: None,
        shutdown_timeout: "10s".into(),
        upkeep: UpkeepSettings {
            retention: "60s".into(),
            no_delete: false,
            merge_minute: "5s".into(),
            merge_hour: "20s".into(),
            merge_grace: "5s".into(),
        },
        upkeep_interval: if habits.upkeep { "7s" } else { "0s" }.into(),
        http: None,
        tls: TlsSettings::default(),
    }
}
