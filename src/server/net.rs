//! Addresses of servers and connections to them: TCP and unix sockets behind one type.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// How long a connection attempt may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The port a Redis URL without one means.
pub const DEFAULT_PORT: u16 = 6379;

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
        match &self.endpoint {
            Endpoint::Tcp { host, port } if host.contains(':') => {
                write!(f, "redis://[{host}]:{port}")
            }
            Endpoint::Tcp { host, port } => write!(f, "redis://{host}:{port}"),
            Endpoint::Unix(path) => write!(f, "unix://{path}"),
        }
    }
}

/// The text is not an address of a server.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "not the address of a Redis server: {reason}; write redis://[user:password@]host:port or unix:///path"
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
            "redis" => {
                let host = url.host_str().filter(|host| !host.is_empty());
                let host = host.ok_or_else(|| BadAddress::new("the host is missing"))?;
                let host = host
                    .trim_start_matches('[')
                    .trim_end_matches(']')
                    .to_owned();
                Endpoint::Tcp {
                    host,
                    port: url.port().unwrap_or(DEFAULT_PORT),
                }
            }
            "unix" => Endpoint::Unix(
                percent_decoded(url.path())
                    .ok_or_else(|| BadAddress::new("the path is not valid UTF-8"))?,
            ),
            "rediss" => {
                return Err(BadAddress::new(
                    "TLS (rediss://) is not built into this version",
                ));
            }
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

/// An open connection.
#[derive(Debug)]
pub enum Connection {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a socket file.
    Unix(UnixStream),
}

impl Connection {
    /// Opens a connection within [`CONNECT_TIMEOUT`].
    ///
    /// # Errors
    /// Whatever the system says, or a timeout.
    pub async fn open(endpoint: &Endpoint) -> io::Result<Self> {
        let attempt = async {
            match endpoint {
                Endpoint::Tcp { host, port } => {
                    let stream = TcpStream::connect((host.as_str(), *port)).await?;
                    stream.set_nodelay(true)?;
                    Ok(Self::Tcp(stream))
                }
                Endpoint::Unix(path) => Ok(Self::Unix(UnixStream::connect(path).await?)),
            }
        };
        timeout(CONNECT_TIMEOUT, attempt).await.unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "no answer to the connection attempt within 10 s",
            ))
        })
    }

    /// Whether the peer is on this machine: a socket file, loopback, or the same address on both ends.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(stream) => match (stream.local_addr(), stream.peer_addr()) {
                (Ok(local), Ok(peer)) => peer.ip().is_loopback() || local.ip() == peer.ip(),
                _ => false,
            },
            Self::Unix(_) => true,
        }
    }

    /// Our own address on this connection: where the server can reach us. Loopback for a socket file.
    pub fn local_ip(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(stream) => stream
                .local_addr()
                .ok()
                .map(|address: SocketAddr| address.ip()),
            Self::Unix(_) => None,
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
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
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
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
        let unix: Address = "unix:///run/redis.sock".parse().unwrap();
        assert_eq!(unix.endpoint, Endpoint::Unix("/run/redis.sock".into()));
    }

    #[test]
    fn what_is_no_address_says_how_to_write_one() {
        for text in [
            "127.0.0.1:6379",
            "http://host",
            "redis://",
            "rediss://host",
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
