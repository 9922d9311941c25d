//! Clients that read and write the same keys over and over as fast as they are answered, and what the master holds for
//! its replicas meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::random::Random;
use super::{Client, Server};

/// Keys of one client: what is written stays small however long it takes.
const KEYS: u64 = 500;
/// Where values are cut from, in bytes: longer than what the compressor looks back.
const POOL_BYTES: usize = 8 * 1024 * 1024;

/// What each client does.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// Clients.
    pub clients: u64,
    /// Reads before each write.
    pub reads: usize,
    /// Bytes of each value, which do not compress.
    pub value_bytes: usize,
    /// Pause after each write.
    pub pause: Duration,
}

impl Mix {
    /// What most caches see: a write of some bytes, and many reads.
    pub const MOSTLY_READS: Self = Self {
        clients: 2,
        reads: 19,
        value_bytes: 100,
        pause: Duration::ZERO,
    };

    /// Some ten megabytes a second.
    pub const RANDOM_WRITES: Self = Self {
        clients: 2,
        reads: 0,
        value_bytes: 16 * 1024,
        pause: Duration::from_millis(2),
    };
}

/// The running clients. Dropped, they stop.
#[derive(Debug)]
pub struct Churn {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Churn {
    /// Starts them. A connection that breaks ends its client: the server lives as long as they do.
    pub fn start(address: &str, mix: Mix) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let threads = (0..mix.clients)
            .map(|number| {
                let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
                let address = address.to_owned();
                thread::spawn(move || work(&address, number, mix, &stop, &done))
            })
            .collect();
        Self {
            stop,
            done,
            threads,
        }
    }

    /// Commands answered so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    /// Ends them; a client that broke is a failure.
    pub fn stop(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().expect("a client failed");
        }
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work(address: &str, number: u64, mix: Mix, stop: &AtomicBool, done: &AtomicU64) {
    let mut random = Random::fixed(number);
    let pool = random.bytes(POOL_BYTES);
    let mut client = Client::connect(address).unwrap();
    let mut count = 0;
    while !stop.load(Ordering::SeqCst) {
        count += 1;
        let key = |count: u64| format!("churn:{number}:{}", count % KEYS);
        let last = u64::try_from(POOL_BYTES - mix.value_bytes).unwrap();
        let at = usize::try_from(random.below(last)).unwrap();
        let value = &pool[at..at + mix.value_bytes];
        client.ok(&[b"SET".as_slice(), key(count).as_bytes(), value]);
        for _ in 0..mix.reads {
            let read = key(random.bits());
            client.ok(&["GET", &read]);
        }
        done.fetch_add(1 + mix.reads as u64, Ordering::SeqCst);
        if !mix.pause.is_zero() {
            thread::sleep(mix.pause);
        }
    }
}

/// A replica's connection as the master sees it.
#[derive(Debug, Clone, Copy)]
pub struct ClientLink {
    /// Bytes that the master holds because this replica has not read them.
    pub output_bytes: u64,
}

impl ClientLink {
    /// Those of all replicas, from `CLIENT LIST`.
    #[track_caller]
    pub fn of_replicas(server: &Server) -> Vec<Self> {
        let list = server.client().line("CLIENT LIST TYPE replica").text();
        list.lines()
            .filter(|line| !line.is_empty())
            .map(|line| {
                let field = |name: &str| {
                    let value = line.split(' ').find_map(|word| word.strip_prefix(name));
                    value.and_then(|value| value.parse::<u64>().ok())
                };
                Self {
                    output_bytes: field("omem=").expect("CLIENT LIST says omem"),
                }
            })
            .collect()
    }
}
