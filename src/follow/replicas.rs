//! Whether a replica may give a snapshot of its master's history: what it holds must be what the master held at that
//! offset, and what the master can read.

use crate::position::{Offset, ReplicationId};
use crate::server::control::{Control, ControlError};
use crate::server::info::Info;
use crate::server::net::Address;

/// Which server it is, and its version's first two numbers.
pub(super) type Version = (String, (u32, u32));

/// Why it may not.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoSource {
    /// It cannot be asked.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// It is not fit for it now, or never.
    #[error("--snapshot-from {address}: {why}")]
    Unfit {
        /// The replica.
        address: String,
        /// What is wrong, and what to do.
        why: String,
    },
}

/// Asks the replica whether it follows history `id`, has `floor`, and holds nothing of its own. What to announce as our
/// version to it, where it is a Valkey.
pub(super) async fn usable(
    address: &Address,
    id: ReplicationId,
    floor: Offset,
    master: Option<&Version>,
) -> Result<Option<String>, NoSource> {
    let mut control = Control::connect(address).await?;
    let info = control.info().await?;
    // A user who may not read settings is asked for nothing more.
    let evicts = control.setting("replica-ignore-maxmemory").await;
    let evicts = evicts.is_ok_and(|value| value.as_deref() == Some("no"));
    match unfit(&info, id, floor, master, evicts) {
        Some(why) => Err(NoSource::Unfit {
            address: address.to_string(),
            why,
        }),
        None => Ok((info.server_name() == "valkey").then(|| info.version().to_owned())),
    }
}

/// What is wrong with it, in the order in which a person would look.
fn unfit(
    info: &Info,
    id: ReplicationId,
    floor: Offset,
    master: Option<&Version>,
    evicts: bool,
) -> Option<String> {
    if info.is_loading() {
        return Some("it is loading its data".into());
    }
    let is_replica = info.text("role") == Some("slave");
    if is_replica && info.text("master_link_status") != Some("up") {
        return Some("its own link to its master is down".into());
    }
    if info.text("master_replid") != Some(&id.to_string()) {
        return Some(
            "it holds another history than the server that is followed: name a replica of that one"
                .into(),
        );
    }
    let offset = info.number("master_repl_offset").map(Offset::new);
    if offset.is_none_or(|offset| offset < floor) {
        return Some(format!(
            "it lags behind: it has nothing newer than offset {floor}"
        ));
    }
    if info.number("slave_read_only") == Some(0) {
        return Some(
            "it takes writes of its own, so what it holds need not be what its master holds: set replica-read-only yes"
                .into(),
        );
    }
    if is_replica && evicts && info.number("maxmemory").is_some_and(|bytes| bytes > 0) {
        return Some(
            "it evicts keys on its own, so it may lack what its master holds: set replica-ignore-maxmemory yes".into(),
        );
    }
    let own = (info.server_name().to_owned(), info.version_numbers());
    match master {
        Some((name, version)) if *name != own.0 || *version < own.1 => Some(format!(
            "it is {} {}.{} and its master {name} {}.{}, which could not read its snapshot: take a replica of the same \
             version",
            own.0, own.1.0, own.1.1, version.0, version.1
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789012345678901234567890123456789";

    fn told(changes: &[(&str, &str)], evicts: bool) -> Option<String> {
        let mut fields = vec![
            ("redis_version", "7.0.15"),
            ("loading", "0"),
            ("role", "slave"),
            ("master_link_status", "up"),
            ("master_replid", ID),
            ("master_repl_offset", "500"),
            ("slave_read_only", "1"),
            ("maxmemory", "1000"),
        ];
        for (name, value) in changes {
            fields.retain(|(field, _)| field != name);
            fields.push((name, value));
        }
        let lines: Vec<String> = fields
            .iter()
            .map(|(name, value)| format!("{name}:{value}"))
            .collect();
        let info = Info::parse(&lines.join("\r\n"));
        let master = ("redis".to_owned(), (7, 0));
        unfit(
            &info,
            ID.parse().unwrap(),
            Offset::new(400),
            Some(&master),
            evicts,
        )
    }

    #[test]
    fn only_what_its_master_holds_and_can_read_is_taken() {
        assert_eq!(told(&[], false), None);
        let other = ID.replace('0', "a");
        let wrong: [(&[(&str, &str)], &str); 8] = [
            (&[("loading", "1")], "loading"),
            (&[("master_link_status", "down")], "link"),
            (&[("master_replid", &other)], "another history"),
            (&[("master_repl_offset", "399")], "lags behind"),
            (&[("slave_read_only", "0")], "replica-read-only yes"),
            (&[("redis_version", "7.2.1")], "same version"),
            (
                &[
                    ("redis_version", "7.2.4"),
                    ("valkey_version", "8.1.0"),
                    ("server_name", "valkey"),
                ],
                "valkey 8.1",
            ),
            (
                &[("role", "master"), ("master_replid", &other)],
                "another history",
            ),
        ];
        for (changes, said) in wrong {
            let why = told(changes, false);
            assert!(
                why.as_ref().is_some_and(|why| why.contains(said)),
                "{why:?}"
            );
        }
        let evicting = told(&[], true).unwrap();
        assert!(evicting.contains("replica-ignore-maxmemory"), "{evicting}");
        assert_eq!(told(&[("maxmemory", "0")], true), None);
        assert_eq!(told(&[("redis_version", "6.2.14")], false), None);
    }
}
