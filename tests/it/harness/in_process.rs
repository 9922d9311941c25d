//! The loop in this process, over a store whose faults a test switches.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use perennial::cli::run::run;
use perennial::clock::{Clock, SystemClock};
use perennial::config::{RunSettings, SnapshotSettings, TlsSettings, UpkeepSettings};
use perennial::decide::Policy;
use perennial::follow::AckMode;
use perennial::position::{Ticks, UnixMillis};
use perennial::store::Store;
use perennial::store::faulty::{Faults, FaultyStore};
use perennial::store::fs::FsStore;
use tokio::sync::watch;

use super::{Archive, DEADLINE, Server};

/// The system's clock, which a test can move ahead.
#[derive(Debug)]
pub struct MovableClock {
    clock: SystemClock,
    ahead_ms: AtomicU64,
}

impl MovableClock {
    /// The system's time for now.
    pub fn new() -> Self {
        Self {
            clock: SystemClock::new(),
            ahead_ms: AtomicU64::new(0),
        }
    }

    /// So much time passes at once.
    pub fn forward(&self, time: Duration) {
        let milliseconds = u64::try_from(time.as_millis()).unwrap();
        self.ahead_ms.fetch_add(milliseconds, Ordering::SeqCst);
    }
}

impl Clock for MovableClock {
    fn ticks(&self) -> Ticks {
        self.clock
            .ticks()
            .plus(self.ahead_ms.load(Ordering::SeqCst))
    }

    fn unix(&self) -> UnixMillis {
        self.clock.unix()
    }
}

/// Ticks so many times faster than the machine's clock. Sleeps take as long as they say.
#[derive(Debug)]
pub struct FastClock {
    clock: SystemClock,
    times: u64,
}

impl FastClock {
    /// Begins now.
    pub fn new(times: u64) -> Self {
        let clock = SystemClock::new();
        Self { clock, times }
    }
}

impl Clock for FastClock {
    fn unix(&self) -> UnixMillis {
        self.clock.unix()
    }

    fn ticks(&self) -> Ticks {
        Ticks(self.clock.ticks().0 * self.times)
    }
}

/// What `run` is told: to follow `url` into `archive`, with pieces so old at most.
pub fn settings(url: &str, archive: &str, flush_interval: &str) -> RunSettings {
    RunSettings {
        redis: url.to_owned(),
        sentinel: Default::default(),
        archive: archive.to_owned(),
        name: None,
        seed: Policy::Auto,
        seed_listen: "127.0.0.1:0".into(),
        seed_announce: None,
        seed_password: None,
        redis_password: None,
        ack: AckMode::Durable,
        flush_interval: flush_interval.into(),
        flush_bytes: "1MiB".into(),
        buffer_bytes: "32MiB".into(),
        snapshot_part_bytes: "300GB".into(),
        snapshots: SnapshotSettings::default(),
        spool_dir: None,
        spool_bytes: "1GiB".into(),
        uploads_per_second: None,
        // The server lives on: nothing ends the link earlier.
        shutdown_timeout: "2s".into(),
        // What these tests count and hold up is following alone.
        upkeep: UpkeepSettings::default(),
        upkeep_interval: "0s".into(),
        http: None,
        tls: TlsSettings::default(),
    }
}

/// `perennial run` on a thread of its own.
pub struct InProcess {
    stop: watch::Sender<bool>,
    kill: watch::Sender<bool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl InProcess {
    /// Follows `server` into `archive`, through a store that obeys `faults`.
    pub fn follow(server: &Server, archive: &Archive, faults: &Faults) -> Self {
        Self::follow_by(&server.url(), archive, faults, Arc::new(SystemClock::new()))
    }

    /// The same by another clock, for limits that are too long to wait for.
    pub fn follow_by(url: &str, archive: &Archive, faults: &Faults, clock: Arc<dyn Clock>) -> Self {
        Self::follow_with(url, archive, faults, clock, |_| {})
    }

    /// The same with other settings.
    pub fn follow_with(
        url: &str,
        archive: &Archive,
        faults: &Faults,
        clock: Arc<dyn Clock>,
        change: impl FnOnce(&mut RunSettings),
    ) -> Self {
        let mut options = settings(url, &archive.url(), "200ms");
        change(&mut options);
        let inner: Arc<dyn Store> = Arc::new(FsStore::new(archive.path()));
        let store = Arc::new(FaultyStore::new(inner, faults.clone()));
        Self::follow_as_told(options, store, clock)
    }

    /// Follows `url` into a store that lies at `archive`.
    pub fn follow_into(
        url: &str,
        archive: &str,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self::follow_as_told(settings(url, archive, "200ms"), store, clock)
    }

    fn follow_as_told(options: RunSettings, store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        let options = options.check().unwrap();
        let (stop, stopped) = watch::channel(false);
        let (kill, mut killed) = watch::channel(false);
        // As much stack as the main thread has, which is where `run` runs in the program.
        let thread = std::thread::Builder::new()
            .stack_size(8 << 20)
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()
                    .unwrap();
                let outcome = runtime.block_on(async {
                    tokio::select! {
                        outcome = run(options, store, clock, stopped) => outcome,
                        _ = killed.wait_for(|killed| *killed) => Ok(()),
                    }
                });
                runtime.shutdown_timeout(Duration::from_secs(1));
                outcome
            });
        let thread = thread.unwrap();
        Self {
            stop,
            kill,
            thread: Some(thread),
        }
    }

    /// Tells it to stop; what it says at the end.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.stop.send_replace(true);
        self.join().unwrap()
    }

    /// Drops everything that it does where it stands, as near to `kill -9` as one's own process allows: sockets are
    /// closed, and what waits for the store waits no longer.
    pub fn kill(mut self) {
        self.kill.send_replace(true);
        self.join().unwrap().unwrap();
    }

    fn join(&mut self) -> Option<anyhow::Result<()>> {
        let thread = self.thread.take()?;
        let deadline = Instant::now() + DEADLINE;
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(thread.is_finished(), "it does not stop");
        Some(thread.join().unwrap())
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if !std::thread::panicking() {
            let _ = self.join();
        }
    }
}
