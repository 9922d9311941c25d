//! A moment as commands for `redis-cli --pipe`: a scratch server is filled with it, and each of its keys becomes a RESTORE.

use std::io::Write;

use redis_protocol::resp2::types::BytesFrame;

use super::to_dump::{Dump, ToDumpError};
use crate::clock::Clock;
use crate::proto::handshake::command;
use crate::server::info::Info;
use crate::server::pipeline::Pipeline;

/// Keys asked for at once.
const KEYS_PER_PAGE: &[u8] = b"500";
/// The first version that names times of expiry.
const FIRST_VERSION_WITH_TIMES: (u32, u32) = (7, 0);

/// Why not all commands were written.
#[derive(Debug, thiserror::Error)]
pub enum ToCommandsError {
    /// The scratch server, or the archive.
    #[error(transparent)]
    Dump(#[from] ToDumpError),
    /// The scratch server, once it was filled.
    #[error("read the scratch server: {0}")]
    Read(std::io::Error),
    /// Whoever reads them has gone.
    #[error("write commands: {0}")]
    Write(std::io::Error),
    /// The scratch server answered something else.
    #[error("the scratch server answered {command} with {found}")]
    Unexpected {
        /// What it was asked.
        command: &'static str,
        /// The beginning of its answer.
        found: String,
    },
}

/// How many keys were written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Written {
    /// Keys.
    pub keys: u64,
    /// Bytes of commands.
    pub bytes: u64,
}

impl Dump<'_> {
    /// Writes the commands. With `replace` they overwrite what is there; else a key that is there stays, and its command
    /// answers an error. Ends when `stopped` does.
    ///
    /// # Errors
    /// [`ToCommandsError`]: then what was written so far is not everything.
    pub async fn write_commands(
        &self,
        out: &mut impl Write,
        replace: bool,
        stopped: impl Future<Output = ()>,
        told: impl FnMut(u64, u64) + Send,
    ) -> Result<Written, ToCommandsError> {
        self.with_scratch(stopped, async |scratch| {
            self.fill(scratch, told).await?;
            let info = scratch
                .control()
                .info()
                .await
                .map_err(|error| ToDumpError::Scratch(scratch.explained(error)))?;
            // Values may be larger than what a control connection reads.
            let pipeline = Pipeline::connect(scratch.address()).await;
            let mut writer = Commands {
                pipeline: pipeline.map_err(ToCommandsError::Read)?,
                names_times: info.version_numbers() >= FIRST_VERSION_WITH_TIMES,
                clock: &*self.clock,
                out,
                replace,
                written: Written::default(),
            };
            writer.everything(&info).await?;
            Ok(writer.written)
        })
        .await
    }
}

struct Commands<'a, W> {
    pipeline: Pipeline,
    /// The server names times of expiry.
    names_times: bool,
    clock: &'a dyn Clock,
    out: &'a mut W,
    replace: bool,
    written: Written,
}

impl<W: Write> Commands<'_, W> {
    async fn everything(&mut self, info: &Info) -> Result<(), ToCommandsError> {
        self.libraries(info).await?;
        for database in info.databases() {
            self.database(database).await?;
        }
        self.out.flush().map_err(ToCommandsError::Write)
    }

    fn put(&mut self, arguments: &[&[u8]]) -> Result<(), ToCommandsError> {
        let bytes = command(arguments);
        self.written.bytes += bytes.len() as u64;
        self.out.write_all(&bytes).map_err(ToCommandsError::Write)
    }

    async fn ask(&mut self, arguments: &[&[u8]]) -> Result<BytesFrame, ToCommandsError> {
        let answer = self.pipeline.one(arguments).await;
        answer.map_err(ToCommandsError::Read)
    }

    async fn libraries(&mut self, info: &Info) -> Result<(), ToCommandsError> {
        if info.number("number_of_libraries").unwrap_or(0) == 0 {
            return Ok(());
        }
        let payload = match self.ask(&[b"FUNCTION", b"DUMP"]).await? {
            BytesFrame::BulkString(payload) => payload,
            other => return Err(unexpected("FUNCTION DUMP", &other)),
        };
        let mut arguments: Vec<&[u8]> = vec![b"FUNCTION", b"RESTORE", &payload];
        if self.replace {
            arguments.push(b"REPLACE");
        }
        self.put(&arguments)
    }

    async fn database(&mut self, database: u32) -> Result<(), ToCommandsError> {
        let number = database.to_string();
        self.ask(&[b"SELECT", number.as_bytes()]).await?;
        self.put(&[b"SELECT", number.as_bytes()])?;
        let mut cursor = bytes::Bytes::from_static(b"0");
        loop {
            let (next, keys) = self.page(&cursor).await?;
            for key in keys {
                self.key(&key).await?;
            }
            if next == "0" {
                return Ok(());
            }
            cursor = next;
        }
    }

    /// The next cursor, and keys.
    async fn page(
        &mut self,
        cursor: &[u8],
    ) -> Result<(bytes::Bytes, Vec<bytes::Bytes>), ToCommandsError> {
        let answer = self
            .ask(&[b"SCAN", cursor, b"COUNT", KEYS_PER_PAGE])
            .await?;
        match answer {
            BytesFrame::Array(parts) => match parts.as_slice() {
                [BytesFrame::BulkString(next), BytesFrame::Array(keys)] => {
                    let keys = keys.iter().filter_map(|key| match key {
                        BytesFrame::BulkString(key) => Some(key.clone()),
                        _ => None,
                    });
                    Ok((next.clone(), keys.collect()))
                }
                _ => Err(unexpected("SCAN", &BytesFrame::Array(parts))),
            },
            other => Err(unexpected("SCAN", &other)),
        }
    }

    async fn key(&mut self, key: &[u8]) -> Result<(), ToCommandsError> {
        let Some(expiry) = self.expiry(key).await? else {
            return Ok(());
        };
        let payload = match self.ask(&[b"DUMP", key]).await? {
            BytesFrame::BulkString(payload) => payload,
            // It expired since it was named.
            BytesFrame::Null => return Ok(()),
            other => return Err(unexpected("DUMP", &other)),
        };
        let time = match expiry {
            Expiry::At(at) => at.to_string(),
            Expiry::Never => "0".into(),
        };
        let mut arguments: Vec<&[u8]> = vec![b"RESTORE", key, time.as_bytes(), &payload];
        if expiry != Expiry::Never {
            arguments.push(b"ABSTTL");
        }
        if self.replace {
            arguments.push(b"REPLACE");
        }
        self.put(&arguments)?;
        self.written.keys += 1;
        Ok(())
    }

    /// Nothing for a key that is gone, or just about to go.
    async fn expiry(&mut self, key: &[u8]) -> Result<Option<Expiry>, ToCommandsError> {
        let (question, since) = match self.names_times {
            true => ("PEXPIRETIME", 0),
            false => ("PTTL", self.clock.unix().0),
        };
        match self.ask(&[question.as_bytes(), key]).await? {
            BytesFrame::Integer(time) => Ok(Expiry::read(time, since)),
            other => Err(unexpected(question, &other)),
        }
    }
}

/// When a key expires.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expiry {
    Never,
    /// Unix milliseconds.
    At(u64),
}

impl Expiry {
    /// Of an answer to PEXPIRETIME, or to PTTL asked at `since`.
    fn read(time: i64, since: u64) -> Option<Self> {
        match time {
            -1 => Some(Self::Never),
            1.. => Some(Self::At(time.unsigned_abs() + since)),
            // A time of 0 would mean none at all to RESTORE.
            _ => None,
        }
    }
}

fn unexpected(command: &'static str, found: &BytesFrame) -> ToCommandsError {
    let found = format!("{found:?}").chars().take(200).collect();
    ToCommandsError::Unexpected { command, found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_expires_now_is_left_out() {
        assert_eq!(Expiry::read(-2, 1000), None, "gone");
        assert_eq!(Expiry::read(0, 1000), None, "going");
        assert_eq!(Expiry::read(-1, 1000), Some(Expiry::Never));
        assert_eq!(Expiry::read(7, 1000), Some(Expiry::At(1007)));
        assert_eq!(Expiry::read(7, 0), Some(Expiry::At(7)));
    }
}
