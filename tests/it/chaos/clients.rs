//! Clients that never stop, and what is known of their writes: transfers between accounts whose sum must hold, writes
//! that were waited for, and noise on keys that meet.
//!
//! A write counts as confirmed only if Perennial was among those who acknowledged it. WAIT counts real replicas as
//! well, so it is asked for one more than there can be; and where that number changed meanwhile nothing counts.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::judge::{ACCOUNTS, Expected, account, database_of};
use crate::harness::busy::Confirmed;
use crate::harness::random::Random;
use crate::harness::{Client, DEADLINE, Value, until};

/// Clients of each sort.
pub const TRANSFERRING: usize = 2;
const COUNTING: usize = 3;

/// How soon a client connects again.
const RECONNECT: Duration = Duration::from_millis(5);
/// How long WAIT waits, milliseconds.
const WAIT_MS: &str = "1000";
/// A client that hears nothing for so long connects anew.
const REPLY_TIMEOUT: Duration = Duration::from_millis(2500);
/// Between two writes of a client: what an hour of them leaves must fit into servers and digests.
const PAUSE: Duration = Duration::from_millis(12);
/// Every so many transfers one is waited for.
const TRANSFERS_PER_WAIT: u64 = 4;

/// Where the clients go.
#[derive(Debug, Clone, Default)]
struct Place {
    generation: u64,
    address: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    paused: AtomicBool,
    /// Clients that have seen `paused` and have no command under way.
    resting: AtomicUsize,
    place: Mutex<Place>,
    /// The generation of the place that each client has come to, having left the ones before.
    seen: Vec<AtomicU64>,
    /// How many real replicas there can be, and how often that has changed.
    attached: Mutex<(u64, u64)>,
    acknowledged: AtomicU64,
    confirmed: AtomicU64,
    expected: Mutex<Expected>,
}

/// The running clients. Dropped, they stop.
#[derive(Debug)]
pub struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts them at a server on which the accounts are open. Before 7.0 keys that expire do so a little later on
    /// whoever was away: `with_ttls` is for later servers.
    pub fn start(address: &str, with_ttls: bool, random: &mut Random) -> Self {
        let count = TRANSFERRING + COUNTING + 1;
        let shared = Arc::new(Shared {
            seen: (0..count).map(|_| AtomicU64::new(0)).collect(),
            place: Mutex::new(Place {
                generation: 0,
                address: Some(address.to_owned()),
            }),
            ..Shared::default()
        });
        let threads = (0..count)
            .map(|number| {
                let job = match number {
                    0..TRANSFERRING => Job::Transfer,
                    _ if number < TRANSFERRING + COUNTING => Job::Count,
                    _ => Job::Noise,
                };
                let one = One {
                    number,
                    job,
                    next: 1,
                    with_ttls,
                    random: Random::fixed(random.bits()),
                    has_backlog: false,
                    shared: Arc::clone(&shared),
                };
                thread::spawn(move || one.run())
            })
            .collect();
        Self { shared, threads }
    }

    /// Lets them go to another server, or nowhere for now, and waits until all of them have left the one before: what
    /// it has told them is known then.
    #[track_caller]
    pub fn go_to(&self, address: Option<String>) {
        let generation = {
            let mut place = self.shared.place.lock().unwrap();
            place.generation += 1;
            place.address = address;
            place.generation
        };
        until("the clients have left the server", DEADLINE, || {
            let left = |seen: &AtomicU64| seen.load(Ordering::SeqCst) == generation;
            self.shared.seen.iter().all(left)
        });
    }

    /// Tells how many real replicas can acknowledge writes from here on. Before one is let in, and after one is gone.
    pub fn expect_replicas(&self, count: u64) {
        let mut attached = self.shared.attached.lock().unwrap();
        *attached = (count, attached.1 + 1);
    }

    /// What must be there: everything that was confirmed.
    pub fn expected(&self) -> Expected {
        self.shared.expected.lock().unwrap().clone()
    }

    /// Forgets what has been left behind on another branch.
    pub fn replace_expected(&self, expected: Expected) {
        *self.shared.expected.lock().unwrap() = expected;
    }

    /// Writes and transfers answered with OK so far, and those that were confirmed.
    pub fn counts(&self) -> (u64, u64) {
        (
            self.shared.acknowledged.load(Ordering::SeqCst),
            self.shared.confirmed.load(Ordering::SeqCst),
        )
    }

    /// Lets every client finish its command and rest from then on.
    #[track_caller]
    pub fn pause(&self) {
        self.shared.paused.store(true, Ordering::SeqCst);
        until("the clients rest", DEADLINE, || {
            self.shared.resting.load(Ordering::SeqCst) == self.threads.len()
        });
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            if !thread::panicking() {
                ended.expect("a client panicked");
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Job {
    Transfer,
    Count,
    Noise,
}

struct One {
    number: usize,
    job: Job,
    /// The number of the next write; one whose fate is unknown is not used again.
    next: u64,
    with_ttls: bool,
    random: Random,
    /// A WAIT of this connection was satisfied: the server counts offsets. Before it had any replica it did not, and
    /// whoever comes then satisfies the WAIT for a write that it may never have seen.
    has_backlog: bool,
    shared: Arc<Shared>,
}

impl One {
    fn run(mut self) {
        while !self.stopped() {
            let place = self.shared.place.lock().unwrap().clone();
            self.shared.seen[self.number].store(place.generation, Ordering::SeqCst);
            if let Some(address) = &place.address
                && let Ok(mut client) = Client::connect(address)
            {
                client.set_reply_timeout(REPLY_TIMEOUT);
                self.has_backlog = false;
                while !self.stopped() && self.is_here(place.generation) {
                    self.rest_while_paused();
                    if self.work(&mut client).is_err() {
                        break;
                    }
                    thread::sleep(PAUSE);
                }
            }
            self.rest_while_paused();
            thread::sleep(RECONNECT);
        }
    }

    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::SeqCst)
    }

    fn is_here(&self, generation: u64) -> bool {
        self.shared.place.lock().unwrap().generation == generation
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

    fn work(&mut self, client: &mut Client) -> io::Result<()> {
        match self.job {
            Job::Transfer => self.transfer(client),
            Job::Count => self.count(client),
            Job::Noise => self.noise(client),
        }
    }

    /// Moves money between accounts of two databases, in one transaction that also counts itself.
    fn transfer(&mut self, client: &mut Client) -> io::Result<()> {
        let (from, to) = (self.random.below(ACCOUNTS), self.random.below(ACCOUNTS));
        let amount = (1 + self.random.below(100)).to_string();
        let (from_database, to_database) =
            (database_of(from).to_string(), database_of(to).to_string());
        let (from, to) = (account(from), account(to));
        let (last, done) = (
            format!("last:{}", self.number),
            format!("done:{}", self.number),
        );
        let number = self.next.to_string();
        let commands = [
            vec!["MULTI"],
            vec!["SELECT", &from_database],
            vec!["DECRBY", &from, &amount],
            vec!["SELECT", &to_database],
            vec!["INCRBY", &to, &amount],
            vec!["SELECT", "0"],
            vec!["SET", &last, &number],
            vec!["INCR", &done],
            vec!["INCR", "transfers"],
            vec!["EXEC"],
        ];
        let waits = self.next.is_multiple_of(TRANSFERS_PER_WAIT);
        let confirmed = self.send_and_wait(client, &commands, waits, |answer| {
            matches!(answer, Value::Array(_))
        })?;
        if confirmed {
            let mut expected = self.shared.expected.lock().unwrap();
            let last = &mut expected.transfers[self.number];
            *last = (self.next - 1).max(*last);
        }
        Ok(())
    }

    /// A key of its own in a database of its own, waited for.
    fn count(&mut self, client: &mut Client) -> io::Result<()> {
        let write = Confirmed {
            database: u32::try_from(self.number).unwrap() % 4,
            key: format!("w:{}:{}", self.number, self.next),
            value: format!("{:0>16}", self.next),
        };
        let database = write.database.to_string();
        let commands = [
            vec!["SELECT", &database],
            vec!["SET", &write.key, &write.value],
        ];
        let confirmed = self.send_and_wait(client, &commands, true, |answer| {
            matches!(answer, Value::Simple(_))
        })?;
        if confirmed {
            self.shared.expected.lock().unwrap().writes.push(write);
        }
        Ok(())
    }

    /// Sends commands of which the last one's answer tells whether they were carried out, and WAIT if wanted. Whether
    /// Perennial has confirmed them. If they were refused the number is used again; if nothing is known, never.
    fn send_and_wait(
        &mut self,
        client: &mut Client,
        commands: &[Vec<&str>],
        waits: bool,
        done: impl Fn(&Value) -> bool,
    ) -> io::Result<bool> {
        let attached = *self.shared.attached.lock().unwrap();
        let needed = attached.0 + 1;
        let needed_text = needed.to_string();
        let number = self.next;
        self.next += 1;
        let mut all = commands.to_vec();
        if waits {
            all.push(vec!["WAIT", &needed_text, WAIT_MS]);
        }
        client.send(&all)?;
        let mut last = Value::Nil;
        for _ in commands {
            last = client.reply()?;
        }
        let is_done = done(&last);
        if is_done {
            self.shared.acknowledged.fetch_add(1, Ordering::SeqCst);
        } else {
            self.next = number;
        }
        if !waits {
            return Ok(false);
        }
        let answer = client.reply()?;
        let enough =
            matches!(answer, Value::Integer(count) if count >= i64::try_from(needed).unwrap());
        let counts = self.has_backlog;
        self.has_backlog |= enough;
        let unchanged = *self.shared.attached.lock().unwrap() == attached;
        let confirmed = is_done && enough && counts && unchanged;
        if confirmed {
            self.shared.confirmed.fetch_add(1, Ordering::SeqCst);
        }
        Ok(confirmed)
    }

    /// Few keys of many types, so that order matters; replies may be errors, which write nothing.
    fn noise(&mut self, client: &mut Client) -> io::Result<()> {
        let random = &mut self.random;
        let name = format!("noise:{}", random.below(30));
        let other = format!("noise:{}", random.below(30));
        let value = random.below(1000).to_string();
        let database = random.below(4).to_string();
        let large = match random.below(40) {
            0 => "x".repeat(100_000),
            _ => value.clone(),
        };
        let command: Vec<&str> = match random.below(14) {
            0 | 1 => vec!["SELECT", &database],
            2 => vec!["SET", &name, &large],
            3 => vec!["APPEND", &name, &value],
            4 => vec!["INCRBY", &name, &value],
            5 => vec!["RPUSH", &name, &value, &other],
            6 => vec!["SADD", &name, &value, &other],
            7 => vec!["SPOP", &name],
            8 => vec!["XADD", &name, "MAXLEN", "~", "50", "*", &value, &other],
            9 => vec!["DEL", &name],
            10 => vec!["RENAME", &name, &other],
            11 if self.with_ttls => vec!["EXPIRE", &name, "86400"],
            12 => vec!["MOVE", &name, &database],
            _ => vec!["ZADD", &name, &value, &other],
        };
        client.command(&command).map(|_| ())
    }
}
