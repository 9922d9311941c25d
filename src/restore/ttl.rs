//! What a restore of a past moment does about times of expiry. A server that gets the archive, from its master or from an
//! append-only file, holds keys that are overdue until it has everything: whatever has to be done about them is said to it
//! in one script behind the archived bytes.

use bytes::Bytes;

use crate::archive::plan::{Plan, Rewriting};
use crate::proto::handshake::command;
use crate::server::info::Info;

/// Which version brought PEXPIRETIME.
const FIRST_VERSION: (u32, u32) = (7, 0);

/// Moves every time of expiry by ARGV[1] milliseconds, or takes it away where that is not given. A key that SCAN names twice
/// is moved once.
const SCRIPT: &str = "for database = 0, 1e9 do \
    if type(redis.pcall('SELECT', database)) == 'table' and redis.pcall('SELECT', database).err then break end \
    local cursor, seen = '0', {} \
    repeat \
    local page = redis.call('SCAN', cursor, 'COUNT', 1000) \
    cursor = page[1] \
    for _, key in ipairs(page[2]) do \
    local at = redis.call('PEXPIRETIME', key) \
    if at > 0 and not seen[key] then \
    seen[key] = true \
    if ARGV[1] then redis.call('PEXPIREAT', key, string.format('%.0f', at + ARGV[1])) \
    else redis.call('PERSIST', key) end \
    end end \
    until cursor == '0' end";

/// `--ttl`: what becomes of times of expiry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Ttl {
    /// They stay: what has expired since the moment is gone.
    #[default]
    Keep,
    /// Each is moved by this many milliseconds, so that as much is left as there was then.
    Shift(u64),
    /// They are taken away.
    Drop,
}

/// Why times of expiry cannot be changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TtlError {
    /// The server cannot name them.
    #[error(
        "--ttl shift and --ttl none need a server of 7.0 or later, and this is {0}; use --ttl keep"
    )]
    TooOld(String),
    /// Hash fields have some of their own.
    #[error(
        "--ttl shift and --ttl none: fields of hashes expire by themselves here ({0}), and a restore cannot change \
         that: use --ttl keep"
    )]
    Fields(String),
    /// They may have, which nobody sees before a server has loaded them.
    #[error(
        "--ttl shift and --ttl none into files: written by {0}, where fields of hashes may expire by themselves; \
         restore into a server, which tells whether any do, or use --ttl keep"
    )]
    MayHaveFields(String),
}

impl Ttl {
    /// What is sent, or written, behind the archived bytes.
    pub(super) fn epilogue(self) -> Bytes {
        let script = SCRIPT.as_bytes();
        match self {
            Self::Keep => Bytes::new(),
            Self::Shift(millis) => command(&[b"EVAL", script, b"0", millis.to_string().as_bytes()]),
            Self::Drop => command(&[b"EVAL", script, b"0"]),
        }
    }

    /// Whether a server that is to be filled can do it.
    pub(super) fn check_server(self, server: &Info) -> Result<(), TtlError> {
        if self != Self::Keep && server.version_numbers() < FIRST_VERSION {
            return Err(TtlError::TooOld(named(
                server.server_name(),
                server.version(),
            )));
        }
        Ok(())
    }

    /// Whether a server that has been filled, and is not yet promoted, did it for everything.
    pub(super) fn check_filled(self, server: &Info) -> Result<(), TtlError> {
        let fields = |counter| {
            server.databases().into_iter().find(|database| {
                let keyspace = server.text(&format!("db{database}")).unwrap_or_default();
                let count = keyspace
                    .split(',')
                    .find_map(|part| part.strip_prefix(counter));
                count.is_some_and(|count| count != "0")
            })
        };
        // Of redis 7.4 and later, and of valkey 9 and later.
        let found = fields("subexpiry=").or_else(|| fields("keys_with_volatile_items="));
        match found {
            Some(database) if self != Self::Keep => {
                Err(TtlError::Fields(format!("in database {database}")))
            }
            _ => Ok(()),
        }
    }

    /// Whether it can be said in files which the servers of a plan, and `writer` of its payload, start from.
    pub(super) fn check_files(self, plan: &Plan, writer: &Writer) -> Result<(), TtlError> {
        if self == Self::Keep {
            return Ok(());
        }
        if !writer.is_append_only_folder {
            return Err(TtlError::TooOld(writer.server.clone()));
        }
        let with_fields = plan.legs.iter().map(|leg| &leg.source).find(|source| {
            let valkey =
                source.server == "valkey" && source.version_numbers().is_none_or(|it| it >= (9, 0));
            valkey || Rewriting::of(source).field_persist
        });
        let may_have = with_fields
            .map(|source| named(&source.server, &source.version))
            .or_else(|| writer.fields_may_expire.then(|| writer.server.clone()));
        may_have.map_or(Ok(()), |server| Err(TtlError::MayHaveFields(server)))
    }
}

/// What wrote a payload, and the files that come of it.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    /// Name and version.
    pub(super) server: String,
    /// The files are an `appendonlydir/`, of 7.0 and later.
    pub(super) is_append_only_folder: bool,
    /// Its payload can hold fields that expire.
    pub(super) fields_may_expire: bool,
}

fn named(server: &str, version: &str) -> String {
    format!("{server} {version}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_needs_no_word() {
        assert!(Ttl::Keep.epilogue().is_empty());
        let shifted = Ttl::Shift(17).epilogue();
        assert!(shifted.starts_with(b"*4\r\n$4\r\nEVAL\r\n") && shifted.ends_with(b"$2\r\n17\r\n"));
        assert!(Ttl::Drop.epilogue().starts_with(b"*3\r\n$4\r\nEVAL\r\n"));
    }

    #[test]
    fn servers_that_cannot_are_refused_by_name() {
        let old = Info::parse("redis_version:6.2.14\r\n");
        assert!(Ttl::Keep.check_server(&old).is_ok());
        let error = Ttl::Drop.check_server(&old).unwrap_err();
        assert!(error.to_string().contains("redis 6.2.14"), "{error}");
        let new = Info::parse("redis_version:7.0.15\r\n");
        assert!(Ttl::Shift(1).check_server(&new).is_ok());
    }

    #[test]
    fn fields_that_expire_are_seen_in_the_filled_server() {
        for (keyspace, is_fine) in [
            ("db0:keys=1,expires=1,avg_ttl=0", true),
            ("db0:keys=1,expires=1,avg_ttl=0,subexpiry=0", true),
            ("db3:keys=1,expires=0,avg_ttl=0,subexpiry=2", false),
            (
                "db0:keys=1,expires=0,avg_ttl=0,keys_with_volatile_items=1",
                false,
            ),
        ] {
            let info = Info::parse(keyspace);
            assert_eq!(Ttl::Drop.check_filled(&info).is_ok(), is_fine, "{keyspace}");
            assert!(Ttl::Keep.check_filled(&info).is_ok());
        }
    }
}
