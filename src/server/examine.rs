//! Looks at a server for `perennial check` without changing anything there: INFO, CONFIG GET, and whether our user
//! may use what following and seeding need.
//!
//! What would do something is only queued, and never executed: its connection is closed instead. Permissions are
//! looked at when a command is queued.

use std::collections::BTreeMap;
use std::time::Duration;

use redis_protocol::resp2::types::BytesFrame;

use super::attached::perennials;
use super::control::{Control, ControlError};
use super::info::Info;
use super::net::{Address, Endpoint};
use crate::check::settings::ASKED;
use crate::check::{Allowed, Permission, ServerFacts};
use crate::clock::Clock;
use crate::shell::quoted;

/// How long the replication offset is watched for the rate of writes.
const WATCHED: Duration = Duration::from_secs(1);

/// How the server will be seeded, as far as its own settings matter for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seeding {
    /// `--seed-password-file` is given.
    pub with_password: bool,
    /// `--seed-cert-file` is given.
    pub with_tls: bool,
}

/// Looks at a server.
///
/// # Errors
/// [`ControlError`] where it cannot be reached, does not let us in, or refuses INFO.
pub async fn examine(
    address: &Address,
    seeding: Seeding,
    clock: &dyn Clock,
) -> Result<ServerFacts, ControlError> {
    let mut control = Control::connect(address).await?;
    let before = control.info().await?;
    let settings = settings(&mut control).await?;
    let to_follow = may_follow(address, &before).await?;
    let to_seed = may_seed(address, &before).await?;
    let began = clock.ticks();
    let offset = |info: &Info| info.number("master_repl_offset");
    let first = offset(&control.info().await?);
    tokio::time::sleep(WATCHED).await;
    let info = control.info().await?;
    let millis = clock.ticks().0.saturating_sub(began.0).max(1);
    let moved = match (first, offset(&info)) {
        (Some(first), Some(last)) => last.saturating_sub(first).saturating_mul(1000) / millis,
        _ => 0,
    };
    // Without a replica, or in between, the offset stands still: what clients send is the next best.
    let input = info
        .text("instantaneous_input_kbps")
        .and_then(|kib| kib.split('.').next()?.parse::<u64>().ok())
        .unwrap_or(0);
    Ok(ServerFacts {
        client: client(address),
        user: address
            .credentials
            .as_ref()
            .and_then(|credentials| credentials.user.clone()),
        perennials: perennials(&info).await,
        info,
        to_follow,
        to_seed,
        settings,
        written_per_second: Some(moved.max(input.saturating_mul(1024))),
        seeds_with_password: seeding.with_password,
        seeds_with_tls: seeding.with_tls,
    })
}

/// How a person calls the server's command line.
fn client(address: &Address) -> String {
    match &address.endpoint {
        Endpoint::Tcp { host, port } => format!("redis-cli -h {} -p {port}", quoted(host)),
        Endpoint::Tls { host, port, .. } => {
            format!("redis-cli --tls -h {} -p {port}", quoted(host))
        }
        Endpoint::Unix(path) => format!("redis-cli -s {}", quoted(path)),
    }
}

/// The settings that matter, or why they are not told.
async fn settings(
    control: &mut Control,
) -> Result<Result<BTreeMap<String, String>, String>, ControlError> {
    let mut found = BTreeMap::new();
    for name in ASKED {
        match control.setting(name).await {
            // Not the password itself: nothing here should hold it.
            Ok(Some(value)) if *name == "masterauth" && !value.is_empty() => {
                found.insert((*name).to_owned(), "set".to_owned());
            }
            Ok(Some(value)) => {
                found.insert((*name).to_owned(), value);
            }
            Ok(None) => {}
            Err(ControlError::Refused { answer, .. }) => return Ok(Err(answer)),
            Err(error) => return Err(error),
        }
    }
    Ok(Ok(found))
}

/// Whether a command is let through (EXEC says why not behind an EXECABORT); whatever else it answers, that is no matter of permission.
async fn is_allowed(control: &mut Control, words: &[&[u8]]) -> Result<Allowed, ControlError> {
    match control.command(words).await {
        Ok(_) => Ok(Allowed::Yes),
        Err(ControlError::Refused { answer, .. })
            if answer.contains("NOPERM") || answer.contains("unknown command") =>
        {
            Ok(Allowed::No(answer))
        }
        Err(ControlError::Refused { .. }) => Ok(Allowed::Yes),
        Err(error) => Err(error),
    }
}

async fn may_follow(address: &Address, info: &Info) -> Result<Vec<Permission>, ControlError> {
    let mut control = Control::connect(address).await?;
    let replconf = is_allowed(&mut control, &[b"REPLCONF", b"capa", b"eof"]).await?;
    let psync = may_psync(&mut control, info).await?;
    Ok(vec![
        Permission {
            command: "psync",
            allowed: psync,
        },
        Permission {
            command: "replconf",
            allowed: replconf,
        },
    ])
}

/// From 7.0 on an offset that is no number is refused before anything is done for it, but not before the
/// permission is looked at. Older servers would begin a full sync; they queue the command in a transaction, which
/// newer ones do not.
async fn may_psync(control: &mut Control, info: &Info) -> Result<Allowed, ControlError> {
    let psync: &[&[u8]] = &[b"PSYNC", b"?", b"permitted"];
    if info.version_numbers() >= (7, 0) {
        return is_allowed(control, psync).await;
    }
    match begun(control).await? {
        true => is_allowed(control, psync).await,
        false => Ok(Allowed::Untried),
    }
}

/// Whether a transaction was begun. Where it was not, the next command would be executed.
async fn begun(control: &mut Control) -> Result<bool, ControlError> {
    match control.command(&[b"MULTI"]).await {
        Ok(BytesFrame::SimpleString(answer)) => Ok(answer == "OK"),
        Ok(_) | Err(ControlError::Refused { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn may_seed(address: &Address, info: &Info) -> Result<Vec<Permission>, ControlError> {
    let permission = |command, allowed| Permission { command, allowed };
    let mut control = Control::connect(address).await?;
    let multi = is_allowed(&mut control, &[b"MULTI"]).await?;
    let replicaof = if info.version_numbers() < (5, 0) {
        "slaveof"
    } else {
        "replicaof"
    };
    if multi != Allowed::Yes {
        return Ok(vec![
            permission("multi", multi),
            permission("exec", Allowed::Untried),
            permission(replicaof, Allowed::Untried),
        ]);
    }
    // What is executed is INFO alone. A server above its maxmemory does not even queue that; then EXEC is refused
    // for that reason, and not for want of a permission.
    is_allowed(&mut control, &[b"INFO"]).await?;
    let exec = is_allowed(&mut control, &[b"EXEC"]).await?;
    drop(control);
    // A connection of its own, and its end: nothing that was queued is executed.
    let mut control = Control::connect(address).await?;
    let queued = match begun(&mut control).await? {
        true => is_allowed(&mut control, &[replicaof.as_bytes(), b"NO", b"ONE"]).await?,
        false => Allowed::Untried,
    };
    Ok(vec![
        permission("multi", multi),
        permission("exec", exec),
        permission(replicaof, queued),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_one_that_can_be_pasted() {
        for (url, expected) in [
            ("redis://u:p@host:7", "redis-cli -h host -p 7"),
            ("rediss://host:7", "redis-cli --tls -h host -p 7"),
            ("unix:///a b", "redis-cli -s '/a b'"),
        ] {
            let address: Address = url.parse().unwrap();
            assert_eq!(client(&address), expected);
        }
    }
}
