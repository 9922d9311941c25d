//! The port we announce to the master: alive, and nobody's master. `FAILOVER` without `TO` picks us, is refused
//! at PSYNC and aborts cleanly instead of leaving the master read-only. (Refused at PING already, redis 7.0
//! tries for ever: measured.) INFO is refused too, so Sentinel never promotes us.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::proto::master::{Master, MasterEvent, MasterOptions, MasterOutput, Readiness};
use crate::server::net::{AcceptError, Connection, Incoming, Listener};
use crate::server::tls::TlsServer;

/// Connections answered at the same time; more wait.
const CONNECTIONS_MAX: usize = 32;
/// The longest a connection may go on, milliseconds.
const CONNECTION_MILLIS_MAX: u64 = 30_000;

const REFUSAL: &str = "Perennial is a backup: it cannot be promoted or replicated from";

/// A listener on the link's own address.
#[derive(Debug)]
pub struct AnnouncedPort {
    ip: IpAddr,
    port: u16,
    task: JoinHandle<()>,
}

impl AnnouncedPort {
    /// Listens on a free port of `ip`. A master with `tls-replication yes` comes by TLS; without `tls` it finds
    /// nobody, and its `FAILOVER` goes on until somebody aborts it. No certificate is asked for: nothing is given
    /// here, and a master that is not answered takes no writes meanwhile.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(ip: IpAddr, tls: Option<TlsServer>, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let listener = Listener::bind(SocketAddr::new(ip, 0))?;
        let port = listener.local_addr()?.port();
        let tls = tls.map(|tls| TlsServer {
            client_ca_file: None,
            ..tls
        });
        let task = tokio::spawn(accept(listener, tls.map(Arc::new), clock));
        Ok(Self { ip, port, task })
    }

    /// The address it listens on.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// The port to announce.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for AnnouncedPort {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(mut listener: Listener, tls: Option<Arc<TlsServer>>, clock: Arc<dyn Clock>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (tls, clock) = (tls.clone(), Arc::clone(&clock));
                tokio::spawn(async move {
                    let limit = Duration::from_millis(CONNECTION_MILLIS_MAX);
                    let refused = refuse(stream, tls.as_deref(), &*clock);
                    if let Ok(Err(error)) = tokio::time::timeout(limit, refused).await {
                        tracing::debug!("announced port: {error}");
                    }
                    drop(slot);
                });
            }
            // Descriptors ran out, say: not a reason to spin.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn refuse(
    stream: Incoming,
    tls: Option<&TlsServer>,
    clock: &dyn Clock,
) -> Result<(), AcceptError> {
    let mut stream = Connection::accept(stream, tls).await?;
    let options = MasterOptions {
        auth: None,
        handshake_timeout_ms: CONNECTION_MILLIS_MAX,
        ack_timeout_ms: CONNECTION_MILLIS_MAX,
    };
    let mut core = Master::new(options, Readiness::Ready, clock.ticks());
    let mut received = BytesMut::with_capacity(1024);
    loop {
        loop {
            match core.poll_output() {
                MasterOutput::Send(bytes) => stream.write_all(&bytes).await?,
                MasterOutput::Event(MasterEvent::Psync(_)) => {
                    if core.refuse(REFUSAL).is_err() {
                        return Ok(());
                    }
                }
                MasterOutput::Event(_) => {}
                MasterOutput::Close => return Ok(stream.flush().await?),
                MasterOutput::Wait { .. } => break,
            }
        }
        stream.flush().await?;
        if stream.read_buf(&mut received).await? == 0 {
            return Ok(());
        }
        core.receive(clock.ticks(), received.split().freeze());
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;
    use crate::clock::SystemClock;
    use crate::server::tls::IdentityFiles;

    #[tokio::test]
    async fn whoever_asks_is_refused_also_where_the_seed_address_wants_certificates() {
        let tls = TlsServer {
            identity: IdentityFiles {
                certificate: "/nowhere.pem".into(),
                key: "/nowhere.key".into(),
            },
            client_ca_file: Some("/nowhere.pem".into()),
        };
        let ip = IpAddr::from([127, 0, 0, 1]);
        let port = AnnouncedPort::open(ip, Some(tls), Arc::new(SystemClock::new())).unwrap();
        let mut master = TcpStream::connect((ip, port.port())).await.unwrap();
        master.write_all(b"PING\r\nPSYNC ? -1\r\n").await.unwrap();
        let mut answer = String::new();
        while !answer.contains(REFUSAL) {
            let mut piece = [0; 200];
            let read = master.read(&mut piece).await.unwrap();
            assert!(read > 0, "closed behind {answer:?}");
            answer.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
        assert!(answer.starts_with("+PONG"), "{answer}");
    }
}
