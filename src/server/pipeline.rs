//! Many commands at once on one connection: for whoever reads a whole server. Errors of single commands are answers.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use redis_protocol::resp2::decode::decode_bytes_mut;
use redis_protocol::resp2::types::BytesFrame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::net::{Address, Connection};
use crate::proto::answer::is_too_deep;
use crate::proto::handshake::command;

/// How long the server may be silent. A digest of a large data set is one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
/// Bytes read at once.
const READ_BYTES: usize = 256 * 1024;

/// A connection that was logged in.
#[derive(Debug)]
pub struct Pipeline {
    connection: Connection,
    received: BytesMut,
}

impl Pipeline {
    /// Connects and logs in.
    ///
    /// # Errors
    /// What the system says, or the server of the password.
    pub async fn connect(address: &Address) -> io::Result<Self> {
        let mut pipeline = Self {
            connection: Connection::open(&address.endpoint).await?,
            received: BytesMut::with_capacity(READ_BYTES),
        };
        if let Some(credentials) = &address.credentials {
            let mut auth: Vec<&[u8]> = vec![b"AUTH"];
            auth.extend(credentials.user.as_ref().map(|user| user.as_bytes()));
            auth.push(credentials.password.as_bytes());
            pipeline.one(&auth).await?;
        }
        Ok(pipeline)
    }

    /// The answers to `commands`, in their order.
    ///
    /// # Errors
    /// What the system says; what is no answer; silence.
    pub async fn all(&mut self, commands: &[Vec<&[u8]>]) -> io::Result<Vec<BytesFrame>> {
        let mut request = BytesMut::new();
        for arguments in commands {
            request.extend_from_slice(&command(arguments));
        }
        self.connection.write_all(&request).await?;
        self.connection.flush().await?;
        let mut answers = Vec::with_capacity(commands.len());
        for _ in commands {
            answers.push(self.answer().await?);
        }
        Ok(answers)
    }

    /// The answer to one command.
    ///
    /// # Errors
    /// As [`Self::all`]; an error answer too.
    pub async fn one(&mut self, arguments: &[&[u8]]) -> io::Result<BytesFrame> {
        let mut answers = self.all(&[arguments.to_vec()]).await?;
        match answers.pop() {
            Some(BytesFrame::Error(error)) => {
                let name = String::from_utf8_lossy(arguments.first().copied().unwrap_or_default());
                Err(io::Error::other(format!("{name}: {error}")))
            }
            Some(answer) => Ok(answer),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    async fn answer(&mut self) -> io::Result<BytesFrame> {
        loop {
            if is_too_deep(&self.received) {
                return Err(io::Error::other("an answer is nested too deeply"));
            }
            if !self.received.is_empty()
                && let Some((frame, _, _)) =
                    decode_bytes_mut(&mut self.received).map_err(io::Error::other)?
            {
                return Ok(frame);
            }
            self.received.reserve(READ_BYTES);
            let read = timeout(ANSWER_TIMEOUT, self.connection.read_buf(&mut self.received));
            match read.await {
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => drop(read?),
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }
}
