//! A moment as commands for `redis-cli --pipe`: a scratch server is filled with it, and each of its keys becomes a RESTORE.

use std::io::Write;

use redis_protocol::resp2::types::BytesFrame;

use super::to_dump::{Dump, ToDumpError};
use crate::clock::Clock;
use crate::proto::handshake::command;
use crate::server::control::{Control, ControlError};
use crate::server::info::Info;
use crate::server::scratch::{Scratch, Start};

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
    /// Whoever reads them has gone.
    #[error("write commands: {0}")]
    Write(#[from] std::io::Error),
    /// The scratch server answered something else.
    #[error("the scratch server answered {command} with {found}")]
    Unexpected {
        /// What it was asked.
        command: &'static str,
        /// The beginning of its answer.
        found: String,
    },
}

impl From<ControlError> for ToCommandsError {
    fn from(error: ControlError) -> Self {
        Self::Dump(ToDumpError::Scratch(error.into()))
    }
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
    /// answers an error.
    ///
    /// # Errors
    /// [`ToCommandsError`]: then what was written so far is not everything.
    pub async fn write_commands(
        &self,
        out: &mut impl Write,
        replace: bool,
        told: impl FnMut(u64, u64) + Send,
    ) -> Result<Written, ToCommandsError> {
        let mut scratch = self
            .scratch
            .open(Start::Empty)
            .await
            .map_err(ToDumpError::from)?;
        self.fill(&mut scratch, told).await?;
        let info = scratch.control().info().await?;
        let mut writer = Commands {
            out,
            replace,
            written: Written::default(),
        };
        writer.libraries(&info, scratch.control()).await?;
        for database in info.databases() {
            writer
                .database(database, &info, &mut scratch, &*self.clock)
                .await?;
        }
        writer.out.flush()?;
        let written = writer.written;
        scratch.close().await.map_err(ToDumpError::from)?;
        Ok(written)
    }
}

struct Commands<'a, W> {
    out: &'a mut W,
    replace: bool,
    written: Written,
}

impl<W: Write> Commands<'_, W> {
    fn put(&mut self, arguments: &[&[u8]]) -> std::io::Result<()> {
        let bytes = command(arguments);
        self.written.bytes += bytes.len() as u64;
        self.out.write_all(&bytes)
    }

    async fn libraries(
        &mut self,
        info: &Info,
        control: &mut Control,
    ) -> Result<(), ToCommandsError> {
        if info.number("number_of_libraries").unwrap_or(0) == 0 {
            return Ok(());
        }
        let payload = match control.command(&[b"FUNCTION", b"DUMP"]).await? {
            BytesFrame::BulkString(payload) => payload,
            other => return Err(unexpected("FUNCTION DUMP", &other)),
        };
        let mut arguments: Vec<&[u8]> = vec![b"FUNCTION", b"RESTORE", &payload];
        if self.replace {
            arguments.push(b"REPLACE");
        }
        Ok(self.put(&arguments)?)
    }

    async fn database(
        &mut self,
        database: u32,
        info: &Info,
        scratch: &mut Scratch,
        clock: &dyn Clock,
    ) -> Result<(), ToCommandsError> {
        let control = scratch.control();
        let number = database.to_string();
        control.command(&[b"SELECT", number.as_bytes()]).await?;
        self.put(&[b"SELECT", number.as_bytes()])?;
        let names_times = info.version_numbers() >= FIRST_VERSION_WITH_TIMES;
        let mut cursor = bytes::Bytes::from_static(b"0");
        loop {
            let (next, keys) = page(control, &cursor).await?;
            for key in keys {
                let expires_at = expires_at(control, &key, names_times, clock).await?;
                self.key(control, &key, expires_at).await?;
            }
            if next == "0" {
                return Ok(());
            }
            cursor = next;
        }
    }

    async fn key(
        &mut self,
        control: &mut Control,
        key: &[u8],
        expires_at: u64,
    ) -> Result<(), ToCommandsError> {
        let payload = match control.command(&[b"DUMP", key]).await? {
            BytesFrame::BulkString(payload) => payload,
            // It expired since it was named.
            BytesFrame::Null => return Ok(()),
            other => return Err(unexpected("DUMP", &other)),
        };
        let time = expires_at.to_string();
        let mut arguments: Vec<&[u8]> = vec![b"RESTORE", key, time.as_bytes(), &payload];
        if expires_at > 0 {
            arguments.push(b"ABSTTL");
        }
        if self.replace {
            arguments.push(b"REPLACE");
        }
        self.put(&arguments)?;
        self.written.keys += 1;
        Ok(())
    }
}

/// The next cursor, and keys.
async fn page(
    control: &mut Control,
    cursor: &[u8],
) -> Result<(bytes::Bytes, Vec<bytes::Bytes>), ToCommandsError> {
    let answer = control
        .command(&[b"SCAN", cursor, b"COUNT", KEYS_PER_PAGE])
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

/// When a key expires, Unix milliseconds; 0 where it does not.
async fn expires_at(
    control: &mut Control,
    key: &[u8],
    names_times: bool,
    clock: &dyn Clock,
) -> Result<u64, ToCommandsError> {
    let question: &[u8] = if names_times { b"PEXPIRETIME" } else { b"PTTL" };
    match control.command(&[question, key]).await? {
        BytesFrame::Integer(time) => {
            let time = u64::try_from(time).unwrap_or(0);
            let since = if names_times || time == 0 {
                0
            } else {
                clock.unix().0
            };
            Ok(time + since)
        }
        other => Err(unexpected("PEXPIRETIME", &other)),
    }
}

fn unexpected(command: &'static str, found: &BytesFrame) -> ToCommandsError {
    let found = format!("{found:?}").chars().take(200).collect();
    ToCommandsError::Unexpected { command, found }
}
