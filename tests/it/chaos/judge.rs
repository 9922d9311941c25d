//! What must be true of every server that holds the data set: every confirmed write is there, and the sum holds.

use crate::harness::busy::{Confirmed, Ledger};
use crate::harness::{Client, Value};

use super::clients::TRANSFERRING;

/// Accounts, dealt out over four databases.
pub const ACCOUNTS: u64 = 40;
/// What is on each of them at first.
const BALANCE: i64 = 1000;
/// Of the confirmed writes, so many of the latest are looked for after every round.
const LATEST: usize = 4000;

/// The key of an account.
pub fn account(number: u64) -> String {
    format!("account:{number}")
}

/// The database of an account.
pub fn database_of(number: u64) -> u64 {
    number % 4
}

/// What must be there.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Every confirmed write, in the order of the answers.
    pub writes: Vec<Confirmed>,
    /// The number of the last confirmed transfer of each client.
    pub transfers: [u64; TRANSFERRING],
}

impl Expected {
    /// The transfers, and only the latest writes.
    pub fn latest(&self) -> Self {
        let first = self.writes.len().saturating_sub(LATEST);
        Self {
            writes: self.writes[first..].to_vec(),
            transfers: self.transfers,
        }
    }

    /// What of it a server has, and what it lacks, if it lacks anything.
    #[track_caller]
    pub fn divided_by(&self, address: &str) -> (Self, Option<Self>) {
        let (mut there, mut missing) = (Vec::new(), Vec::new());
        let mut client = Client::connect_loaded(address);
        for chunk in self.writes.chunks(500) {
            let commands: Vec<Vec<String>> = chunk.iter().flat_map(look_up).collect();
            let replies = client.pipeline(&commands).unwrap();
            for (write, reply) in chunk.iter().zip(replies.iter().skip(1).step_by(2)) {
                match *reply == Value::Bulk(write.value.clone().into_bytes()) {
                    true => there.push(write.clone()),
                    false => missing.push(write.clone()),
                }
            }
        }
        let found = Books::read(address).last;
        let fewer = (0..TRANSFERRING).any(|client| found[client] < self.transfers[client]);
        let lost = fewer || !missing.is_empty();
        let kept = Self {
            writes: there,
            transfers: std::array::from_fn(|client| self.transfers[client].min(found[client])),
        };
        let left = Self {
            writes: missing,
            transfers: self.transfers,
        };
        (kept, lost.then_some(left))
    }

    /// Fails unless all of it is in a server, and its books are right.
    #[track_caller]
    pub fn assert_in(&self, address: &str) {
        Ledger(self.writes.clone()).assert_all_in(address);
        let books = Books::read(address);
        books.assert_balanced();
        for (client, confirmed) in self.transfers.iter().enumerate() {
            let last = books.last[client];
            assert!(
                last >= *confirmed,
                "transfer {confirmed} of client {client} was confirmed, the last one is {last}"
            );
        }
    }
}

fn look_up(write: &Confirmed) -> [Vec<String>; 2] {
    [
        vec!["SELECT".to_owned(), write.database.to_string()],
        vec!["GET".to_owned(), write.key.clone()],
    ]
}

/// Opens the accounts, in one transaction.
#[track_caller]
pub fn open_accounts(address: &str) {
    let mut client = Client::connect_loaded(address);
    client.line("MULTI");
    for number in 0..ACCOUNTS {
        client.line(&format!("SELECT {}", database_of(number)));
        client.line(&format!("SET {} {BALANCE}", account(number)));
    }
    client.line("EXEC");
}

/// The accounts and counters of one moment.
#[derive(Debug)]
struct Books {
    balances: Vec<i64>,
    /// Transfers, as all of them counted together, and as each client counted.
    transfers: i64,
    done: Vec<i64>,
    /// The number of each client's last transfer.
    last: Vec<u64>,
}

impl Books {
    /// Reads everything in one transaction.
    #[track_caller]
    fn read(address: &str) -> Self {
        let mut client = Client::connect_loaded(address);
        client.line("MULTI");
        for number in 0..ACCOUNTS {
            client.line(&format!("SELECT {}", database_of(number)));
            client.line(&format!("GET {}", account(number)));
        }
        client.line("SELECT 0");
        client.line("GET transfers");
        for number in 0..TRANSFERRING {
            client.line(&format!("GET done:{number}"));
            client.line(&format!("GET last:{number}"));
        }
        let replies = client.line("EXEC").array();
        let of_accounts = usize::try_from(2 * ACCOUNTS).unwrap();
        let (accounts, counters) = replies.split_at(of_accounts);
        let counters: Vec<i64> = counters[1..].iter().map(number).collect();
        let last = |client: usize| u64::try_from(counters[2 + 2 * client]).unwrap();
        Self {
            balances: accounts.iter().skip(1).step_by(2).map(number).collect(),
            transfers: counters[0],
            done: (0..TRANSFERRING)
                .map(|client| counters[1 + 2 * client])
                .collect(),
            last: (0..TRANSFERRING).map(last).collect(),
        }
    }

    #[track_caller]
    fn assert_balanced(&self) {
        let sum: i64 = self.balances.iter().sum();
        let opened = BALANCE * i64::try_from(ACCOUNTS).unwrap();
        assert_eq!(sum, opened, "money was made or lost: {self:?}");
        let done: i64 = self.done.iter().sum();
        assert_eq!(self.transfers, done, "a part of a transaction: {self:?}");
    }
}

/// What is not there counts as 0.
fn number(reply: &Value) -> i64 {
    match reply {
        Value::Nil => 0,
        reply => reply.text().parse().unwrap(),
    }
}
