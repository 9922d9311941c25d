//! Who is let in at the seed address: by password and by TLS. Whoever is not is named, for the log and for the seed
//! that waits for it.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::proto::handshake::Auth;
use crate::proto::master::RefusedRequest;
use crate::server::net::{self, AcceptError, Incoming};
use crate::server::tls::TlsServer;

const WRONG_PASSWORD: &str =
    "its masterauth is not what --seed-password-file holds: set it to the same password";
const NO_PASSWORD: &str = "it says no password, and --seed-password-file asks for one: set its masterauth to the same password";

/// What kept servers from being let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Turned {
    /// How often, over all servers.
    pub(super) times: u32,
    /// Who came last, and why it could not be let in.
    pub(super) last: String,
}

/// Who is let in.
#[derive(Debug)]
pub(super) struct Door {
    /// What a replica must say.
    pub(super) auth: Option<Auth>,
    tls: Option<TlsServer>,
    turned_away: watch::Sender<Turned>,
    /// How often each of these came to pass.
    said: Mutex<HashMap<String, u32>>,
    /// Whose last visit ended here: their next one waits. A server that gets an error comes again at once.
    unwelcome: Mutex<HashSet<IpAddr>>,
}

/// How long a server waits that was turned away the last time.
const UNWELCOME_WAITS: Duration = Duration::from_secs(1);
/// As many different things are counted apart; then counting begins anew.
const SAID_MAX: usize = 256;

impl Door {
    pub(super) fn new(auth: Option<Auth>, tls: Option<TlsServer>) -> Self {
        Self {
            auth,
            tls,
            turned_away: watch::Sender::new(Turned::default()),
            said: Mutex::default(),
            unwelcome: Mutex::default(),
        }
    }

    /// Who was turned away so far.
    pub(super) fn turned_away(&self) -> watch::Receiver<Turned> {
        self.turned_away.subscribe()
    }

    /// Answers whoever knocks; nothing where it cannot be let in.
    pub(super) async fn open(&self, stream: Incoming, peer: IpAddr) -> Option<net::Connection> {
        let unwelcome = self.lock_unwelcome().remove(&peer);
        if unwelcome {
            tokio::time::sleep(UNWELCOME_WAITS).await;
        }
        match net::Connection::accept(stream, self.tls.as_ref()).await {
            Ok(connection) => return Some(connection),
            // A probe, or a server that went away.
            Err(AcceptError::Io(error)) => tracing::debug!(%peer, "seed connection: {error}"),
            Err(error) => self.turn_away(peer, &error.to_string()),
        }
        None
    }

    /// Notes a request that was refused.
    pub(super) fn refused(&self, peer: IpAddr, refused: &RefusedRequest) {
        match refused {
            RefusedRequest::WrongPassword => self.turn_away(peer, WRONG_PASSWORD),
            RefusedRequest::NoPassword => self.turn_away(peer, NO_PASSWORD),
            refused => tracing::debug!(%peer, "seed connection refused: {refused:?}"),
        }
    }

    /// Notes a server that is not the one to be served.
    pub(super) fn told_to_wait(&self, peer: IpAddr, port: Option<u16>) {
        if let Some(attempt) = self.to_be_said(format!("wait {peer} {port:?}")) {
            tracing::warn!(attempt, %peer, port, "another server asks to be seeded: told to wait");
        }
    }

    fn lock_unwelcome(&self) -> std::sync::MutexGuard<'_, HashSet<IpAddr>> {
        self.unwelcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn turn_away(&self, peer: IpAddr, why: &str) {
        let mut unwelcome = self.lock_unwelcome();
        if unwelcome.len() >= SAID_MAX {
            unwelcome.clear();
        }
        unwelcome.insert(peer);
        drop(unwelcome);
        let last = format!("a server at {peer} came, but {why}");
        if let Some(attempt) = self.to_be_said(last.clone()) {
            tracing::warn!(attempt, "seed address: {last}: turned away");
        }
        self.turned_away.send_modify(|turned| {
            turned.times += 1;
            turned.last = last;
        });
    }

    /// Servers come again each second, several of them by turns: each is named the 1st, 2nd, 4th time.
    fn to_be_said(&self, what: String) -> Option<u32> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() >= SAID_MAX && !said.contains_key(&what) {
            said.clear();
        }
        let times = said.entry(what).or_insert(0);
        *times = times.saturating_add(1);
        times.is_power_of_two().then_some(*times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_come_by_turns_do_not_fill_the_log() {
        let door = Door::new(None, None);
        let mut said = 0;
        for attempt in 0..2000 {
            let what = format!("server {}", attempt % 2);
            said += usize::from(door.to_be_said(what).is_some());
        }
        assert_eq!(said, 2 * 10, "1 to 512");
        for server in 0..10 * SAID_MAX {
            door.to_be_said(format!("another {server}"));
        }
        assert!(door.said.lock().unwrap().len() <= SAID_MAX);
    }
}
