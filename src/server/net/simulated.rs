//! Where a simulation's own network takes the place of the system's: for the thread that installs one.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::Endpoint;

thread_local! {
    static NETWORK: RefCell<Option<Rc<dyn Network>>> = const { RefCell::new(None) };
}

/// Bytes in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug> Duplex for T {}

/// One end of a connection.
#[derive(Debug)]
pub struct Wire {
    /// What is said.
    pub stream: Box<dyn Duplex>,
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
}

/// An address that others can connect to, as long as this lives.
#[derive(Debug)]
pub struct Listening {
    /// The address.
    pub local: SocketAddr,
    /// Who came.
    pub incoming: mpsc::UnboundedReceiver<Wire>,
}

impl Listening {
    /// Waits for ever where nobody can come any more. Cancel safe.
    pub(super) async fn accept(&mut self) -> Wire {
        match self.incoming.recv().await {
            Some(wire) => wire,
            None => std::future::pending().await,
        }
    }
}

/// How connecting ends.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Wire>> + Send>>;

/// A network.
pub trait Network {
    /// Connects; the host tells who calls as well.
    fn connect(&self, host: &str, port: u16) -> Connecting;

    /// Listens.
    ///
    /// # Errors
    /// Where the address is taken.
    fn bind(&self, address: SocketAddr) -> io::Result<Listening>;
}

/// From here on this thread speaks through `network`, or through the system's again.
pub fn install(network: Option<Rc<dyn Network>>) {
    NETWORK.with_borrow_mut(|installed| *installed = network);
}

/// Nothing where no network is installed, or the endpoint is not simulated.
pub(super) fn connect(endpoint: &Endpoint) -> Option<Connecting> {
    let Endpoint::Tcp { host, port } = endpoint else {
        return None;
    };
    NETWORK.with_borrow(|network| Some(network.as_ref()?.connect(host, *port)))
}

pub(super) fn bind(address: SocketAddr) -> Option<io::Result<Listening>> {
    NETWORK.with_borrow(|network| Some(network.as_ref()?.bind(address)))
}
