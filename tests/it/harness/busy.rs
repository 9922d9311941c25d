//! Clients that never stop: they come back within milliseconds and write on, as real clients do.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::workload::DATABASES;
use super::{Client, DEADLINE, Value, until};

/// How soon a client connects again.
const RECONNECT: Duration = Duration::from_millis(5);
/// How long a confirming client lets WAIT wait unless told otherwise, in milliseconds.
const WAIT_MS: &str = "1000";

/// How many clients there are and what they do.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Clients that only write.
    pub plain: usize,
    /// Clients that follow each write by `WAIT 1` and record it when it was confirmed.
    pub confirming: usize,
    /// Bytes of each value.
    pub value_bytes: usize,
    /// Pause of a client between two writes.
    pub pause: Duration,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            plain: 4,
            confirming: 2,
            value_bytes: 16,
            pause: Duration::from_millis(1),
        }
    }
}

/// A write that a replica has confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmed {
    pub database: u32,
    pub key: String,
    pub value: String,
}

/// What was confirmed, or answered, in the order of the answers.
#[derive(Debug, Clone, Default)]
pub struct Ledger(pub Vec<Confirmed>);

impl Ledger {
    /// Fails when a write of the ledger is not there.
    #[track_caller]
    pub fn assert_all_in(&self, address: &str) {
        let mut client = Client::connect_loaded(address);
        let mut missing = Vec::new();
        for database in 0..DATABASES {
            client.ok(&["SELECT", &database.to_string()]);
            let writes: Vec<&Confirmed> = self
                .0
                .iter()
                .filter(|write| write.database == database)
                .collect();
            for writes in writes.chunks(500) {
                let commands: Vec<Vec<&str>> =
                    writes.iter().map(|write| vec!["GET", &write.key]).collect();
                let replies = client.pipeline(&commands).unwrap();
                for (write, reply) in writes.iter().zip(replies) {
                    if reply != Value::Bulk(write.value.clone().into_bytes()) {
                        missing.push(format!("db{database} {}: {reply:?}", write.key));
                    }
                }
            }
        }
        assert!(
            missing.is_empty(),
            "{} of {} confirmed writes are lost, the first: {:#?}",
            missing.len(),
            self.0.len(),
            &missing[..missing.len().min(10)]
        );
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    paused: AtomicBool,
    /// Clients that have seen `paused` and have no command under way.
    resting: AtomicUsize,
    acknowledged: AtomicU64,
    ledger: Mutex<Ledger>,
    answered: Mutex<Ledger>,
}

/// What the clients do beyond their load.
#[derive(Debug, Clone, Copy)]
struct Manner {
    /// How long WAIT waits, in milliseconds; "0" is for ever.
    wait_ms: &'static str,
    /// Every write that is answered with OK is recorded.
    recording: bool,
}

/// The running clients. Dropped, they stop.
#[derive(Debug)]
pub struct Writers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    /// Starts the clients. Client `c` writes keys `w:<c>:<n>`, n = 0, 1, 2 …, to database c modulo 4.
    pub fn start(address: &str, load: Load) -> Self {
        Self::in_manner(
            address,
            load,
            Manner {
                wait_ms: WAIT_MS,
                recording: false,
            },
        )
    }

    /// The same, and every write that is answered with OK is recorded: [`Writers::answered`]. Of a write whose
    /// answer was lost nothing is known, and nothing is recorded.
    pub fn start_recording(address: &str, load: Load) -> Self {
        Self::in_manner(
            address,
            load,
            Manner {
                wait_ms: WAIT_MS,
                recording: true,
            },
        )
    }

    /// The same as [`Writers::start`], with a WAIT that waits until it is confirmed or the connection breaks.
    pub fn start_waiting_for_ever(address: &str, load: Load) -> Self {
        Self::in_manner(
            address,
            load,
            Manner {
                wait_ms: "0",
                recording: false,
            },
        )
    }

    fn in_manner(address: &str, load: Load, manner: Manner) -> Self {
        let shared = Arc::new(Shared::default());
        let threads = (0..load.plain + load.confirming)
            .map(|number| {
                let writer = Writer {
                    address: address.to_owned(),
                    number,
                    database: u32::try_from(number).unwrap() % DATABASES,
                    confirming: number >= load.plain,
                    load,
                    manner,
                    shared: Arc::clone(&shared),
                };
                thread::spawn(move || writer.run())
            })
            .collect();
        Self { shared, threads }
    }

    /// Writes that the server has answered with OK so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// A copy of what has been confirmed so far.
    pub fn ledger(&self) -> Ledger {
        self.shared.ledger.lock().unwrap().clone()
    }

    /// A copy of every write that was answered with OK so far, if they record.
    pub fn answered(&self) -> Ledger {
        self.shared.answered.lock().unwrap().clone()
    }

    /// Waits until `count` more writes have been acknowledged.
    #[track_caller]
    pub fn until_acknowledged_more(&self, count: u64) {
        let target = self.acknowledged() + count;
        until(&format!("{count} more writes succeed"), DEADLINE, || {
            self.acknowledged() >= target
        });
    }

    /// Waits until `count` more writes have been confirmed by WAIT.
    #[track_caller]
    pub fn until_confirmed_more(&self, count: usize) {
        let confirmed = || self.shared.ledger.lock().unwrap().0.len();
        let target = confirmed() + count;
        until(
            &format!("{count} more writes are confirmed"),
            DEADLINE,
            || confirmed() >= target,
        );
    }

    /// Lets every client finish its command and rest.
    #[track_caller]
    pub fn pause(&self) {
        self.shared.paused.store(true, Ordering::SeqCst);
        until("the writers rest", DEADLINE, || {
            self.shared.resting.load(Ordering::SeqCst) == self.threads.len()
        });
    }

    /// Lets them write on.
    pub fn resume(&self) {
        self.shared.paused.store(false, Ordering::SeqCst);
    }

    /// Stops them and returns what was confirmed.
    pub fn stop(mut self) -> Ledger {
        self.join();
        std::mem::take(&mut *self.shared.ledger.lock().unwrap())
    }

    fn join(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            if !thread::panicking() {
                ended.expect("a writer panicked");
            }
        }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.join();
    }
}

struct Writer {
    address: String,
    number: usize,
    database: u32,
    confirming: bool,
    load: Load,
    manner: Manner,
    shared: Arc<Shared>,
}

impl Writer {
    fn run(self) {
        let mut next = 0_u64;
        while !self.stopped() {
            if let Ok(mut client) = self.connect() {
                while !self.stopped() {
                    self.rest_while_paused();
                    if self.write(&mut client, &mut next).is_err() {
                        break;
                    }
                    thread::sleep(self.load.pause);
                }
            }
            self.rest_while_paused();
            thread::sleep(RECONNECT);
        }
    }

    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::SeqCst)
    }

    fn rest_while_paused(&self) {
        if !self.shared.paused.load(Ordering::SeqCst) {
            return;
        }
        self.shared.resting.fetch_add(1, Ordering::SeqCst);
        while self.shared.paused.load(Ordering::SeqCst) && !self.stopped() {
            thread::sleep(Duration::from_millis(1));
        }
        self.shared.resting.fetch_sub(1, Ordering::SeqCst);
    }

    fn connect(&self) -> std::io::Result<Client> {
        let mut client = Client::connect(&self.address)?;
        // A server that loads or waits for its seed may refuse even this; then the connection is not usable.
        match client.command(&["SELECT", &self.database.to_string()])? {
            Value::Simple(_) => Ok(client),
            other => Err(std::io::Error::other(format!("{other:?}"))),
        }
    }

    /// One write. A refusal (-READONLY, -LOADING, -MASTERDOWN) is tried again later under the same number; a number
    /// whose fate is unknown, because the connection broke, is not used again.
    fn write(&self, client: &mut Client, next: &mut u64) -> std::io::Result<()> {
        let key = format!("w:{}:{next}", self.number);
        let value = format!("{next:0>width$}", width = self.load.value_bytes);
        let number = *next;
        *next += 1;
        let mut commands = vec![vec!["SET", &key, &value]];
        if self.confirming {
            commands.push(vec!["WAIT", "1", self.manner.wait_ms]);
        }
        client.send(&commands)?;
        if !matches!(client.reply()?, Value::Simple(_)) {
            *next = number;
            if self.confirming {
                client.reply()?;
            }
            return Ok(());
        }
        self.shared.acknowledged.fetch_add(1, Ordering::SeqCst);
        let write = Confirmed {
            database: self.database,
            key,
            value,
        };
        if self.manner.recording {
            let mut answered = self.shared.answered.lock().unwrap();
            answered.0.push(write.clone());
        }
        if self.confirming && matches!(client.reply()?, Value::Integer(count) if count >= 1) {
            self.shared.ledger.lock().unwrap().0.push(write);
        }
        Ok(())
    }
}
