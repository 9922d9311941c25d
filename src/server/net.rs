//! Addresses of servers and connections with them: TCP, TLS and unix sockets behind one type.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::tls::{self, TlsClient, TlsServer};

#[cfg(feature = "simulation")]
pub mod simulated;

/// How long a connection attempt may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The port a Redis URL without one means.
pub const DEFAULT_PORT: u16 = 6379;
/// How long whoever connects to us may take until a TLS handshake is through, or the first byte there without TLS.
pub const ACCEPT_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// The first byte of a TLS ClientHello; no command of a replica begins so (`protocol-facts` 4.2).
const TLS_HANDSHAKE: u8 = 0x16;

/// A user name and a password. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// ACL user (6.0+); `None` for the default user.
    pub user: Option<String>,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// A host name or address, and a port.
    Tcp {
        /// Host name, IPv4 or IPv6 address without brackets.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// The same, spoken to by TLS.
    Tls {
        /// Host name, IPv4 or IPv6 address without brackets.
        host: String,
        /// TCP port.
        port: u16,
        /// Whom to trust and what to show.
        tls: TlsClient,
    },
    /// A socket file.
    Unix(String),
}

/// A server's address as given on the command line. Printed without secrets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// How to log in.
    pub credentials: Option<Credentials>,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host, port) = match &self.endpoint {
            Endpoint::Tcp { host, port } => ("redis", host, port),
            Endpoint::Tls { host, port, .. } => ("rediss", host, port),
            Endpoint::Unix(path) => return write!(f, "unix://{path}"),
        };
        match host.contains(':') {
            true => write!(f, "{scheme}://[{host}]:{port}"),
            false => write!(f, "{scheme}://{host}:{port}"),
        }
    }
}

/// The text is not an address of a server.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "not the address of a Redis server: {reason}; write redis://[user:password@]host:port, rediss://… for TLS, or unix:///path"
)]
pub struct BadAddress {
    reason: String,
}

impl BadAddress {
    fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
        }
    }
}

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        // Without one, "localhost:6379" is read as an address of the scheme localhost.
        if !text.contains("://") && !text.starts_with("unix:/") {
            return Err(BadAddress::new("redis:// in front is missing"));
        }
        let url = url::Url::parse(text).map_err(|error| BadAddress::new(error.to_string()))?;
        let decode = |part: &str| {
            percent_decoded(part)
                .ok_or_else(|| BadAddress::new("user or password is not valid UTF-8"))
        };
        let credentials = match (url.username(), url.password()) {
            ("", None) => None,
            // The password comes from a file.
            (user, None) => Some(Credentials {
                user: Some(decode(user)?),
                password: String::new(),
            }),
            ("", Some(password)) => Some(Credentials {
                user: None,
                password: decode(password)?,
            }),
            (user, Some(password)) => Some(Credentials {
                user: Some(decode(user)?),
                password: decode(password)?,
            }),
        };
        let endpoint = match url.scheme() {
            scheme @ ("redis" | "rediss") => {
                let host = url.host_str().filter(|host| !host.is_empty());
                let host = host.ok_or_else(|| BadAddress::new("the host is missing"))?;
                let host = host
                    .trim_start_matches('[')
                    .trim_end_matches(']')
                    .to_owned();
                let port = url.port().unwrap_or(DEFAULT_PORT);
                match scheme {
                    "redis" => Endpoint::Tcp { host, port },
                    _ => Endpoint::Tls {
                        host,
                        port,
                        tls: TlsClient::default(),
                    },
                }
            }
            // unix://run/redis.sock would be the file /redis.sock on the host "run".
            "unix"
                if url
                    .host_str()
                    .is_some_and(|host| !matches!(host, "" | "localhost")) =>
            {
                return Err(BadAddress::new("a socket file has no host: three slashes"));
            }
            "unix" => Endpoint::Unix(
                percent_decoded(url.path())
                    .ok_or_else(|| BadAddress::new("the path is not valid UTF-8"))?,
            ),
            other => return Err(BadAddress::new(format!("unknown scheme {other}://"))),
        };
        Ok(Self {
            endpoint,
            credentials,
        })
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let high = char::from(rest.next()?).to_digit(16)?;
        let low = char::from(rest.next()?).to_digit(16)?;
        bytes.push(u8::try_from(high << 4 | low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// An open connection. What is written may wait inside until it is flushed.
#[derive(Debug)]
pub enum Connection {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over TLS.
    Tls(Box<Encrypted>),
    /// Over a socket file.
    Unix(UnixStream),
    /// In a simulation.
    #[cfg(feature = "simulation")]
    Simulated(simulated::Wire),
}

/// A connection that somebody opened to us, of which nothing is known yet.
#[derive(Debug)]
pub enum Incoming {
    /// Over TCP.
    Tcp(TcpStream),
    /// In a simulation.
    #[cfg(feature = "simulation")]
    Simulated(simulated::Wire),
}

/// Where others connect to us.
#[derive(Debug)]
pub enum Listener {
    /// Over TCP.
    Tcp(TcpListener),
    /// In a simulation.
    #[cfg(feature = "simulation")]
    Simulated(simulated::Listening),
}

impl Listener {
    /// Listens at once; port 0 takes a free one.
    ///
    /// # Errors
    /// What the system says of the address.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        #[cfg(feature = "simulation")]
        if let Some(listening) = simulated::bind(address) {
            return listening.map(Self::Simulated);
        }
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // As a listener that was bound by name: a restart takes the port while old connections linger.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self::Tcp(socket.listen(BACKLOG)?))
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            #[cfg(feature = "simulation")]
            Self::Simulated(listening) => Ok(listening.local),
        }
    }

    /// The next connection, and who opened it. Cancel safe.
    ///
    /// # Errors
    /// What the system says.
    pub async fn accept(&mut self) -> io::Result<(Incoming, SocketAddr)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Incoming::Tcp(stream), peer))
            }
            #[cfg(feature = "simulation")]
            Self::Simulated(listening) => {
                let wire = listening.accept().await;
                let peer = wire.peer;
                Ok((Incoming::Simulated(wire), peer))
            }
        }
    }
}

/// A TLS connection, in either direction.
#[derive(Debug)]
pub struct Encrypted {
    stream: TlsStream<TcpStream>,
    /// Says what a person can change about an error, by who began the connection.
    explain: fn(io::Error) -> io::Error,
    /// The peer has said something. Until then a failure is its answer to our handshake: with TLS 1.3 a server
    /// refuses a client's certificate only after the client is through.
    heard: bool,
}

/// Why a connection that somebody opened to us cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The connection broke before anything was said.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// TLS without a certificate of ours.
    #[error(
        "it connects by TLS (tls-replication yes) and there is no certificate to answer with: give --seed-cert-file \
         and --seed-key-file, or set tls-replication no"
    )]
    TlsUnexpected,
    /// No TLS where a client certificate is asked for.
    #[error(
        "it connects without TLS, but --seed-client-ca-file asks for a certificate: set tls-replication yes"
    )]
    TlsMissing,
    /// The TLS handshake failed.
    #[error("{0}")]
    Handshake(io::Error),
    /// Our own files cannot be used.
    #[error("{0}")]
    Files(#[from] tls::TlsFileError),
}

impl Connection {
    /// Opens a connection within [`CONNECT_TIMEOUT`], the TLS handshake included.
    ///
    /// # Errors
    /// Whatever the system or the handshake says, or a timeout.
    pub async fn open(endpoint: &Endpoint) -> io::Result<Self> {
        #[cfg(feature = "simulation")]
        if let Some(connecting) = simulated::connect(endpoint) {
            let attempt = timeout(CONNECT_TIMEOUT, connecting).await;
            let attempt = attempt.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            return attempt.map(Self::Simulated);
        }
        let mut silent = "no answer to the connection attempt within 10 s";
        let attempt = async {
            match endpoint {
                Endpoint::Tcp { host, port } => Ok(Self::Tcp(connect(host, *port).await?)),
                Endpoint::Tls { host, port, tls } => {
                    let stream = connect(host, *port).await?;
                    silent = "connected, but no answer to the TLS handshake within 10 s: a port without TLS is silent \
                              like this; give the server's tls-port, or write redis:// instead of rediss://";
                    Self::encrypt(stream, host, tls).await
                }
                Endpoint::Unix(path) => Ok(Self::Unix(UnixStream::connect(path).await?)),
            }
        };
        let outcome = timeout(CONNECT_TIMEOUT, attempt).await;
        outcome.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, silent)))
    }

    async fn encrypt(stream: TcpStream, host: &str, tls: &TlsClient) -> io::Result<Self> {
        let name = tls.name_for(host).map_err(io::Error::other)?;
        let connector = TlsConnector::from(tls.load().map_err(io::Error::other)?);
        let stream = connector
            .connect(name, stream)
            .await
            .map_err(tls::explain_as_client)?;
        Ok(Self::Tls(Box::new(Encrypted {
            stream: stream.into(),
            explain: tls::explain_as_client,
            heard: false,
        })))
    }

    /// Takes a connection that somebody opened to us: its first byte tells whether it is TLS.
    ///
    /// # Errors
    /// [`AcceptError`].
    pub async fn accept(incoming: Incoming, tls: Option<&TlsServer>) -> Result<Self, AcceptError> {
        #[cfg_attr(
            not(feature = "simulation"),
            expect(clippy::infallible_destructuring_match, reason = "one of two")
        )]
        let stream = match incoming {
            Incoming::Tcp(stream) => stream,
            #[cfg(feature = "simulation")]
            Incoming::Simulated(wire) => return Ok(Self::Simulated(wire)),
        };
        let attempt = async {
            stream.set_nodelay(true)?;
            let mut first = [0];
            if stream.peek(&mut first).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            match (first[0] == TLS_HANDSHAKE, tls) {
                (false, Some(tls)) if tls.client_ca_file.is_some() => Err(AcceptError::TlsMissing),
                (false, _) => Ok(Self::Tcp(stream)),
                (true, None) => Err(AcceptError::TlsUnexpected),
                (true, Some(tls)) => {
                    let accepted = TlsAcceptor::from(tls.load()?).accept(stream).await;
                    let stream = accepted
                        .map_err(|error| AcceptError::Handshake(tls::explain_as_server(error)))?;
                    Ok(Self::Tls(Box::new(Encrypted {
                        stream: stream.into(),
                        explain: tls::explain_as_server,
                        heard: true,
                    })))
                }
            }
        };
        timeout(ACCEPT_TIMEOUT, attempt)
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }

    /// Our own end and the other one, where both are addresses.
    fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let stream = match self {
            Self::Tcp(stream) => stream,
            Self::Tls(encrypted) => encrypted.stream.get_ref().0,
            Self::Unix(_) => return None,
            #[cfg(feature = "simulation")]
            Self::Simulated(wire) => return Some((wire.local, wire.peer)),
        };
        stream.local_addr().ok().zip(stream.peer_addr().ok())
    }

    /// Whether the peer is on this machine: a socket file, loopback, or the same address on both ends.
    pub fn is_local(&self) -> bool {
        if matches!(self, Self::Unix(_)) {
            return true;
        }
        self.ends()
            .is_some_and(|(local, peer)| peer.ip().is_loopback() || local.ip() == peer.ip())
    }

    /// Our own address on this connection: where the server can reach us. Nothing for a socket file.
    pub fn local_ip(&self) -> Option<IpAddr> {
        self.ends().map(|(local, _)| local.ip())
    }
}

async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Encrypted {
    /// Replicas and masters end a connection without TLS's own farewell: an end like any other. What they say
    /// is delimited by itself.
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match ready!(Pin::new(&mut self.stream).poll_read(cx, buf)) {
            Ok(()) if buf.filled().len() > before => {
                self.heard = true;
                Poll::Ready(Ok(()))
            }
            Ok(()) => Poll::Ready(self.ended(None)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Poll::Ready(self.ended(None))
            }
            Err(error) => Poll::Ready(self.ended(Some(error))),
        }
    }

    fn ended(&self, error: Option<io::Error>) -> io::Result<()> {
        let Some(error) = error else {
            return match self.heard {
                true => Ok(()),
                false => Err(refused_us("closed")),
            };
        };
        match error.kind() {
            // Its alert may be lost when it closes before it has read everything.
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe if !self.heard => {
                Err(refused_us("reset"))
            }
            _ => Err((self.explain)(error)),
        }
    }
}

fn refused_us(how: &str) -> io::Error {
    let hint = tls::CLIENT_CERTIFICATE_WANTED;
    io::Error::new(
        io::ErrorKind::ConnectionReset,
        format!("{how} right after the TLS handshake; perhaps {hint}"),
    )
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(encrypted) => encrypted.poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            #[cfg(feature = "simulation")]
            Self::Simulated(wire) => Pin::new(&mut wire.stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(encrypted) => Pin::new(&mut encrypted.stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            #[cfg(feature = "simulation")]
            Self::Simulated(wire) => Pin::new(&mut wire.stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(encrypted) => Pin::new(&mut encrypted.stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            #[cfg(feature = "simulation")]
            Self::Simulated(wire) => Pin::new(&mut wire.stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(encrypted) => Pin::new(&mut encrypted.stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            #[cfg(feature = "simulation")]
            Self::Simulated(wire) => Pin::new(&mut wire.stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_printed_without_secrets() {
        let address: Address = "redis://backup:s%3Aecret@10.0.0.7:7000".parse().unwrap();
        assert_eq!(address.to_string(), "redis://10.0.0.7:7000");
        let credentials = address.credentials.clone().unwrap();
        assert_eq!(
            (credentials.user.as_deref(), credentials.password.as_str()),
            (Some("backup"), "s:ecret")
        );
        assert!(!format!("{address:?}").contains("ecret"));
        let default: Address = "redis://:pw@[::1]".parse().unwrap();
        assert_eq!(default.to_string(), "redis://[::1]:6379");
        assert_eq!(default.credentials.unwrap().user, None);
        let tls: Address = "rediss://backup:pw@redis.example:7000".parse().unwrap();
        assert_eq!(tls.to_string(), "rediss://redis.example:7000");
        let tls: Address = "rediss://[::1]".parse().unwrap();
        assert_eq!(tls.to_string(), "rediss://[::1]:6379");
        let unix: Address = "unix:///run/redis.sock".parse().unwrap();
        assert_eq!(unix.endpoint, Endpoint::Unix("/run/redis.sock".into()));
        let unix: Address = "unix://backup:pw@localhost/run/redis.sock".parse().unwrap();
        assert_eq!(unix.to_string(), "unix:///run/redis.sock");
        assert_eq!(unix.credentials.unwrap().user.as_deref(), Some("backup"));
    }

    #[test]
    fn what_is_no_address_says_how_to_write_one() {
        for text in [
            "127.0.0.1:6379",
            "http://host",
            "redis://",
            "rediss://",
            "unix://run/redis.sock",
            "nonsense",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(
                error.contains("redis://[user:password@]host:port"),
                "{text}: {error}"
            );
        }
    }
}
