//! The requests of the handshake: their order and their spelling (`protocol-facts` 1.1, 1.2).

use std::fmt;

use bytes::Bytes;

use super::super::handshake::{PsyncRequest, command};
use super::ReplicaOptions;

/// A request of the handshake, in the order in which they are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// `PING`.
    Ping,
    /// `AUTH`.
    Auth,
    /// `REPLCONF listening-port`.
    ListeningPort,
    /// `REPLCONF ip-address`.
    IpAddress,
    /// `REPLCONF capa eof capa psync2`.
    Capa,
    /// `REPLCONF version`.
    Version,
    /// `REPLCONF rdb-filter-only`.
    RdbFilterOnly,
    /// `REPLCONF rdb-only`.
    RdbOnly,
    /// `PSYNC`.
    Psync,
}

impl Request {
    /// The command's name.
    pub fn command(self) -> &'static str {
        match self {
            Self::Ping => "PING",
            Self::Auth => "AUTH",
            Self::Psync => "PSYNC",
            _ => "REPLCONF",
        }
    }

    /// The option's name, or the command's.
    pub fn option(self) -> &'static str {
        match self {
            Self::ListeningPort => "listening-port",
            Self::IpAddress => "ip-address",
            Self::Capa => "capa",
            Self::Version => "version",
            Self::RdbFilterOnly => "rdb-filter-only",
            Self::RdbOnly => "rdb-only",
            Self::Ping | Self::Auth | Self::Psync => self.command(),
        }
    }

    /// The request after this one.
    pub(super) fn next(self) -> Self {
        match self {
            Self::Ping => Self::Auth,
            Self::Auth => Self::ListeningPort,
            Self::ListeningPort => Self::IpAddress,
            Self::IpAddress => Self::Capa,
            Self::Capa => Self::Version,
            Self::Version => Self::RdbFilterOnly,
            Self::RdbFilterOnly => Self::RdbOnly,
            Self::RdbOnly | Self::Psync => Self::Psync,
        }
    }

    /// How it is spelled, or nothing where the options do not call for it.
    pub(super) fn spelled(self, options: &ReplicaOptions) -> Option<Bytes> {
        let replconf =
            |value: &str| command(&[b"REPLCONF", self.option().as_bytes(), value.as_bytes()]);
        match self {
            Self::Ping => Some(command(&[b"PING"])),
            Self::Auth => options.auth.as_ref().map(|auth| match &auth.user {
                Some(user) => command(&[b"AUTH", user.as_bytes(), auth.password.as_bytes()]),
                None => command(&[b"AUTH", auth.password.as_bytes()]),
            }),
            Self::ListeningPort => options
                .listening_port
                .map(|port| replconf(&port.to_string())),
            Self::IpAddress => options.announce_ip.as_deref().map(replconf),
            Self::Capa => Some(command(&[b"REPLCONF", b"capa", b"eof", b"capa", b"psync2"])),
            Self::Version => options.version.as_deref().map(replconf),
            Self::RdbFilterOnly => options.rdb_filter_only.map(replconf),
            Self::RdbOnly => options.rdb_only.then(|| replconf("1")),
            Self::Psync => Some(match options.psync {
                PsyncRequest::Full => command(&[b"PSYNC", b"?", b"-1"]),
                PsyncRequest::Continue { id, after } => command(&[
                    b"PSYNC",
                    id.to_string().as_bytes(),
                    after.next().to_string().as_bytes(),
                ]),
            }),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.command())?;
        if self.command() == "REPLCONF" {
            write!(f, " {}", self.option())?;
        }
        Ok(())
    }
}
