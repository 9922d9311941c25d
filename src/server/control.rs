//! The control connection: INFO, the takeover transaction, REPLICAOF, and CONFIG GET where allowed.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use redis_protocol::resp2::decode::decode_bytes;
use redis_protocol::resp2::types::BytesFrame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::info::Info;
use super::net::{Address, Connection};
use crate::proto::answer::is_too_deep;
use crate::proto::handshake::command;

/// How long one answer may take.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A control connection that says nothing for longer may be closed by a server with a `timeout` (1 s at least), or
/// by a proxy: its end would look like the end of the server.
const KEPT_ALIVE: Duration = Duration::from_millis(500);
/// The largest answer that is read, in bytes: INFO is a few KiB.
pub const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Characters of an unexpected answer that an error shows.
const SHOWN_CHARACTERS: usize = 200;

const INFO: &[u8] = b"INFO";

/// Why a command on the control connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The server cannot be reached.
    #[error("cannot connect to {address}: {error}{}", reach_hint(error))]
    Connect {
        /// The server's address.
        address: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The connection broke.
    #[error("lost the control connection to {address}: {error}")]
    Lost {
        /// The server's address.
        address: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The server hung up before it said anything.
    #[error(
        "{address} closed the connection without a word: {error}; if it speaks TLS on this port, write rediss:// in \
         --redis"
    )]
    HungUp {
        /// The server's address.
        address: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// TLS is spoken on this port.
    #[error("{address} speaks TLS on this port: write rediss:// in --redis")]
    WantsTls {
        /// The server's address.
        address: String,
    },
    /// No answer in time.
    #[error("no answer from {address} to {command} within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent {
        /// The server's address.
        address: String,
        /// The command.
        command: String,
    },
    /// The server answered with an error.
    #[error("{address} refused {command}: {answer}{}", hint(answer))]
    Refused {
        /// The server's address.
        address: String,
        /// The command.
        command: String,
        /// The error as the server spelled it.
        answer: String,
    },
    /// The answer is not Redis protocol.
    #[error(
        "{address} does not speak the Redis protocol: it answered {found:?}; is this the right port?"
    )]
    NotRedis {
        /// The server's address.
        address: String,
        /// The first bytes of the answer.
        found: String,
    },
    /// The answer has an unexpected shape.
    #[error("{address} gave an unexpected answer to {command}: {found}")]
    Unexpected {
        /// The server's address.
        address: String,
        /// The command.
        command: String,
        /// What came.
        found: String,
    },
}

/// TLS has hints of its own.
fn reach_hint(error: &std::io::Error) -> &'static str {
    match error.to_string().contains("TLS") {
        true => "",
        false => "; is the server running and the address right?",
    }
}

fn hint(answer: &str) -> &'static str {
    if answer.starts_with("NOAUTH") {
        "; give the password by --redis-password-file, or in --redis as redis://:password@host:port"
    } else if answer.contains("without any password configured") {
        "; the server has no password: take it out of --redis"
    } else if answer.starts_with("WRONGPASS") || answer.starts_with("ERR invalid password") {
        "; check the user and password in --redis and --redis-password-file"
    } else if answer.contains("NOPERM") {
        "; the ACL user needs +psync +replconf +info, for seeds +multi +exec +replicaof, and may have +config|get"
    } else if answer.starts_with("OOM") {
        "; it uses more memory than its maxmemory allows, and then takes no transaction, however empty it is: raise \
         its maxmemory"
    } else {
        ""
    }
}

/// A connection for commands and answers, one at a time.
#[derive(Debug)]
pub struct Control {
    address: String,
    connection: Connection,
    received: BytesMut,
    /// A command was sent before.
    used: bool,
    /// INFO was asked, and nobody has waited for its answer yet.
    asked: bool,
    /// REPLICAOF from 5.0 on, SLAVEOF before (`protocol-facts` 4.1): ACL rules name one of them.
    replicaof: &'static str,
}

impl Control {
    /// Connects and logs in.
    ///
    /// # Errors
    /// [`ControlError`] where the server cannot be reached or refuses the password.
    pub async fn connect(address: &Address) -> Result<Self, ControlError> {
        let connection =
            Connection::open(&address.endpoint)
                .await
                .map_err(|error| ControlError::Connect {
                    address: address.to_string(),
                    error,
                })?;
        let mut control = Self {
            address: address.to_string(),
            connection,
            received: BytesMut::with_capacity(16 * 1024),
            used: false,
            asked: false,
            replicaof: "REPLICAOF",
        };
        if let Some(credentials) = &address.credentials {
            let mut auth: Vec<&[u8]> = vec![b"AUTH"];
            auth.extend(credentials.user.as_ref().map(|user| user.as_bytes()));
            auth.push(credentials.password.as_bytes());
            control.command(&auth).await?;
        }
        Ok(control)
    }

    /// Our own address on this connection.
    pub fn local_ip(&self) -> Option<std::net::IpAddr> {
        self.connection.local_ip()
    }

    /// Sends one command and waits for its answer.
    ///
    /// # Errors
    /// [`ControlError`]; an error answer is [`ControlError::Refused`].
    pub async fn command(&mut self, arguments: &[&[u8]]) -> Result<BytesFrame, ControlError> {
        // Never the arguments of AUTH: they are secret.
        let name =
            String::from_utf8_lossy(arguments.first().copied().unwrap_or_default()).into_owned();
        let exchange = async {
            self.connection.write_all(&command(arguments)).await?;
            self.connection.flush().await?;
            if self.asked {
                self.answer().await?;
                self.asked = false;
            }
            self.answer().await
        };
        let outcome = timeout(ANSWER_TIMEOUT, exchange).await;
        let first = !std::mem::replace(&mut self.used, true);
        let address = || self.address.clone();
        match outcome {
            Err(_) => Err(ControlError::Silent {
                address: address(),
                command: name,
            }),
            Ok(Err(error)) if first && matches!(self.connection, Connection::Tcp(_)) => {
                Err(ControlError::HungUp {
                    address: address(),
                    error,
                })
            }
            Ok(Err(error)) => Err(ControlError::Lost {
                address: address(),
                error,
            }),
            Ok(Ok(Answer::TlsAlert)) => Err(ControlError::WantsTls { address: address() }),
            Ok(Ok(Answer::Garbage(found))) => Err(ControlError::NotRedis {
                address: address(),
                found,
            }),
            Ok(Ok(Answer::Frame(BytesFrame::Error(answer)))) => Err(ControlError::Refused {
                address: address(),
                command: name,
                answer: answer.to_string(),
            }),
            Ok(Ok(Answer::Frame(frame))) => Ok(frame),
        }
    }

    async fn answer(&mut self) -> std::io::Result<Answer> {
        loop {
            if !self.received.is_empty() {
                // The record of a TLS alert, the answer to a request in the clear.
                if self.received.starts_with(&[0x15, 0x03]) {
                    return Ok(Answer::TlsAlert);
                }
                if !matches!(self.received[0], b'+' | b'-' | b':' | b'$' | b'*') {
                    return Ok(Answer::Garbage(head_of(&self.received)));
                }
                if is_too_deep(&self.received) {
                    return Ok(Answer::Garbage(head_of(&self.received)));
                }
                let snapshot = Bytes::copy_from_slice(&self.received);
                match decode_bytes(&snapshot) {
                    Ok(Some((frame, used))) => {
                        let _ = self.received.split_to(used);
                        return Ok(Answer::Frame(frame));
                    }
                    Ok(None) if self.received.len() < ANSWER_BYTES_MAX => {}
                    Ok(None) | Err(_) => return Ok(Answer::Garbage(head_of(&self.received))),
                }
            }
            if self.connection.read_buf(&mut self.received).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Asks INFO, all the default sections.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn info(&mut self) -> Result<Info, ControlError> {
        let frame = self.command(&[INFO]).await?;
        let info = self.info_of(&frame, "INFO")?;
        self.replicaof = if info.version_numbers() < (5, 0) {
            "SLAVEOF"
        } else {
            "REPLICAOF"
        };
        Ok(info)
    }

    fn info_of(&self, frame: &BytesFrame, command: &str) -> Result<Info, ControlError> {
        match frame {
            BytesFrame::BulkString(text) | BytesFrame::SimpleString(text) => {
                Ok(Info::parse(&String::from_utf8_lossy(text)))
            }
            other => Err(self.unexpected(command, other)),
        }
    }

    fn unexpected(&self, command: &str, frame: &BytesFrame) -> ControlError {
        ControlError::Unexpected {
            address: self.address.clone(),
            command: command.into(),
            found: shown(frame),
        }
    }

    /// Makes the server our replica and tells what it was at that very moment: `MULTI; INFO; REPLICAOF; EXEC`.
    /// Its data stay as they are until a payload is sent (`protocol-facts` 8), so a caller that does not like
    /// the INFO gives it back by [`Self::promote`].
    ///
    /// # Errors
    /// [`ControlError`]; a cluster node refuses REPLICAOF.
    pub async fn take_over(&mut self, host: &str, port: u16) -> Result<Info, ControlError> {
        self.command(&[b"MULTI"]).await?;
        self.command(&[b"INFO"]).await?;
        self.command(&[
            self.replicaof.as_bytes(),
            host.as_bytes(),
            port.to_string().as_bytes(),
        ])
        .await?;
        let frame = self.command(&[b"EXEC"]).await?;
        let BytesFrame::Array(answers) = &frame else {
            return Err(self.unexpected("EXEC", &frame));
        };
        if let Some(BytesFrame::Error(answer)) = answers.get(1) {
            return Err(ControlError::Refused {
                address: self.address.clone(),
                command: "REPLICAOF".into(),
                answer: answer.to_string(),
            });
        }
        match answers.first() {
            Some(info) => self.info_of(info, "INFO"),
            None => Err(self.unexpected("EXEC", &frame)),
        }
    }

    /// Makes the server a replica of another one, as it was before a takeover that should not have been.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn replicate(&mut self, host: &str, port: &str) -> Result<(), ControlError> {
        self.command(&[self.replicaof.as_bytes(), host.as_bytes(), port.as_bytes()])
            .await
            .map(drop)
    }

    /// One setting; nothing where the server does not know it.
    ///
    /// # Errors
    /// [`ControlError`], where CONFIG GET is not allowed among others.
    pub async fn setting(&mut self, name: &str) -> Result<Option<String>, ControlError> {
        match self.command(&[b"CONFIG", b"GET", name.as_bytes()]).await? {
            BytesFrame::Array(pair) => Ok(match pair.get(1) {
                Some(BytesFrame::BulkString(value)) => {
                    Some(String::from_utf8_lossy(value).into_owned())
                }
                _ => None,
            }),
            other => Err(self.unexpected("CONFIG", &other)),
        }
    }

    /// Whether the server is on this machine, as far as the connection tells.
    pub fn is_local(&self) -> bool {
        self.connection.is_local()
    }

    /// Asks INFO without waiting for the answer, which [`Self::heard`] brings, however long the server takes. Does
    /// nothing while an answer is outstanding.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn ask(&mut self) -> Result<(), ControlError> {
        if self.asked {
            return Ok(());
        }
        self.asked = true;
        let sending = async {
            self.connection.write_all(&command(&[INFO])).await?;
            self.connection.flush().await
        };
        match timeout(ANSWER_TIMEOUT, sending).await {
            Ok(sent) => sent.map_err(|error| self.lost(error)),
            Err(_) => Err(self.lost(std::io::ErrorKind::TimedOut.into())),
        }
    }

    /// Waits for the answer to [`Self::ask`], or for the end of the connection, which a server's death brings about.
    /// Where nothing was asked, the server says nothing. Cancel safe.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn heard(&mut self) -> Result<Info, ControlError> {
        let answer = self.answer().await.map_err(|error| self.lost(error))?;
        match answer {
            Answer::Frame(frame) if std::mem::take(&mut self.asked) => match &frame {
                // In a long script, which may be ours: as little can be said as while it loads.
                BytesFrame::Error(text) if text.starts_with("BUSY") => Ok(Info::parse("loading:1")),
                _ => self.info_of(&frame, "INFO"),
            },
            _ => Err(self.lost(std::io::Error::other(
                "it said something that was not asked",
            ))),
        }
    }

    fn lost(&self, error: std::io::Error) -> ControlError {
        ControlError::Lost {
            address: self.address.clone(),
            error,
        }
    }

    /// Waits for something that may take long and does not speak with the server, so that it keeps the connection.
    ///
    /// # Errors
    /// [`ControlError`] where the connection ends all the same; then `work` is dropped.
    pub async fn kept_alive<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, ControlError> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                () = tokio::time::sleep(KEPT_ALIVE) => {}
            }
            self.info().await?;
        }
    }

    /// Makes the server a master: `REPLICAOF NO ONE`.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn promote(&mut self) -> Result<(), ControlError> {
        self.command(&[self.replicaof.as_bytes(), b"NO", b"ONE"])
            .await
            .map(drop)
    }
}

#[derive(Debug)]
enum Answer {
    Frame(BytesFrame),
    TlsAlert,
    Garbage(String),
}

/// The beginning of an answer, for a message.
fn shown(frame: &BytesFrame) -> String {
    format!("{frame:?}")
        .chars()
        .take(SHOWN_CHARACTERS)
        .collect()
}

fn head_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// What a server of this version is sent when it is taken over and given back.
    async fn spelled_for(version: &str) -> Vec<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("redis://{}", listener.local_addr().unwrap());
        let info = format!("redis_version:{version}\r\n");
        let info = format!("${}\r\n{info}\r\n", info.len());
        let server = tokio::spawn(async move {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut seen = Vec::new();
            let mut buffer = vec![0; 4096];
            // One request at a time, as the control connection sends them.
            while let Ok(read @ 1..) = peer.read(&mut buffer).await {
                let request = String::from_utf8_lossy(&buffer[..read]).into_owned();
                let words: Vec<&str> = request.lines().skip(2).step_by(2).collect();
                let answer = match (words[0], seen.iter().any(|it| it == "MULTI")) {
                    ("INFO", false) => info.clone(),
                    ("EXEC", _) => format!("*2\r\n{info}+OK\r\n"),
                    ("MULTI", _) => "+OK\r\n".into(),
                    _ => "+QUEUED\r\n".into(),
                };
                seen.push(words.join(" "));
                peer.write_all(answer.as_bytes()).await.unwrap();
            }
            seen
        });
        let mut control = Control::connect(&address.parse().unwrap()).await.unwrap();
        control.info().await.unwrap();
        control.take_over("127.0.0.1", 7).await.unwrap();
        control.promote().await.unwrap();
        drop(control);
        server.await.unwrap()
    }

    #[test]
    fn an_answer_is_cut_between_characters() {
        for before in 0..4 {
            let text = "a".repeat(before) + &"\u{20ac}".repeat(300);
            let frame = BytesFrame::SimpleString(text.into());
            assert_eq!(shown(&frame).chars().count(), SHOWN_CHARACTERS);
        }
    }

    #[tokio::test]
    async fn an_answer_without_a_bottom_ends_the_connection_and_not_the_process() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("redis://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut peer, _) = listener.accept().await.unwrap();
            let _ = peer.write_all("*1\r\n".repeat(500_000).as_bytes()).await;
        });
        let mut control = Control::connect(&address.parse().unwrap()).await.unwrap();
        let error = control.info().await.unwrap_err();
        assert!(matches!(error, ControlError::NotRedis { .. }), "{error}");
    }

    #[tokio::test]
    async fn before_5_0_replicaof_is_called_slaveof() {
        for (version, name) in [
            ("2.8.24", "SLAVEOF"),
            ("4.0.14", "SLAVEOF"),
            ("5.0.14", "REPLICAOF"),
            ("6.2.14", "REPLICAOF"),
        ] {
            let replica = format!("{name} 127.0.0.1 7");
            let master = format!("{name} NO ONE");
            let expected = ["INFO", "MULTI", "INFO", &replica, "EXEC", &master];
            assert_eq!(spelled_for(version).await, expected, "{version}");
        }
    }
}
