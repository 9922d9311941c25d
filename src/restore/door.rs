//! Who is let in at the seed address: by password and by TLS. Whoever is not is named, for the log and for the seed
//! that waits for it.

use std::net::IpAddr;

use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::proto::handshake::Auth;
use crate::proto::master::RefusedRequest;
use crate::server::net::{self, AcceptError};
use crate::server::tls::TlsServer;

const WRONG_PASSWORD: &str =
    "its masterauth is not what --seed-password-file holds: set it to the same password";
const NO_PASSWORD: &str = "it says no password, and --seed-password-file asks for one: set its masterauth to the same password";

/// What kept servers from being let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Turned {
    /// How often, over all servers.
    pub(super) times: u32,
    /// How often in a row for the same reason.
    same: u32,
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
}

impl Door {
    pub(super) fn new(auth: Option<Auth>, tls: Option<TlsServer>) -> Self {
        Self {
            auth,
            tls,
            turned_away: watch::Sender::new(Turned::default()),
        }
    }

    /// Who was turned away so far.
    pub(super) fn turned_away(&self) -> watch::Receiver<Turned> {
        self.turned_away.subscribe()
    }

    /// Answers whoever knocks; nothing where it cannot be let in.
    pub(super) async fn open(&self, stream: TcpStream, peer: IpAddr) -> Option<net::Connection> {
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

    /// Servers come again each second: said the 1st, 2nd, 4th time.
    fn turn_away(&self, peer: IpAddr, why: &str) {
        self.turned_away.send_modify(|turned| {
            let last = format!("a server at {peer} came, but {why}");
            turned.same = if turned.last == last {
                turned.same + 1
            } else {
                1
            };
            turned.times += 1;
            turned.last = last;
            if turned.same.is_power_of_two() {
                tracing::warn!(
                    attempt = turned.same,
                    "seed address: {}: turned away",
                    turned.last
                );
            }
        });
    }
}
