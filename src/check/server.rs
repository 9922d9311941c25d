//! What is found of a server: what it is, what we may do there, and how it is set.

use std::collections::BTreeMap;

use super::Finding;
use super::settings::of_settings;
use crate::server::info::Info;
use crate::shell::quoted;

/// Modules that come with Valkey and hold no data.
const MODULES_WITHOUT_DATA: &[&str] = &["lua"];

/// Whether a command may be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Allowed {
    /// It may.
    Yes,
    /// It may not; as the server said it.
    No(String),
    /// It could not be tried without doing harm.
    Untried,
}

/// A command that we need, and whether we may use it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Permission {
    /// The command as an ACL rule names it.
    pub command: &'static str,
    /// Whether it may be used.
    pub allowed: Allowed,
}

/// What was seen of a server.
#[derive(Clone, Debug)]
pub struct ServerFacts {
    /// How a person calls its command line: `redis-cli -h … -p …`.
    pub client: String,
    /// The user that we are.
    pub user: Option<String>,
    /// What INFO says.
    pub info: Info,
    /// How many of its replicas are Perennials.
    pub perennials: u64,
    /// What following needs.
    pub to_follow: Vec<Permission>,
    /// What seeding needs besides.
    pub to_seed: Vec<Permission>,
    /// Its settings, as far as it knows them; or why it does not tell.
    pub settings: Result<BTreeMap<String, String>, String>,
    /// Bytes written in a second, as the replication offset moved or as its input says.
    pub written_per_second: Option<u64>,
    /// `--seed-listen` is not loopback: its `masterauth` is checked.
    pub seeds_with_password: bool,
    /// We can be reached by TLS for a seed.
    pub seeds_with_tls: bool,
}

impl ServerFacts {
    /// The command that changes a setting.
    pub(super) fn set(&self, name: &str, value: &str) -> String {
        format!("{} CONFIG SET {name} {}", self.client, quoted(value))
    }

    pub(super) fn is_replica(&self) -> bool {
        self.info.text("role") != Some("master")
    }

    /// Replicas that are attached and are not Perennial.
    fn real_replicas(&self) -> u64 {
        let attached = self.info.number("connected_slaves").unwrap_or(0);
        attached.saturating_sub(self.perennials)
    }

    pub(super) fn setting(&self, name: &str) -> Option<&str> {
        self.settings.as_ref().ok()?.get(name).map(String::as_str)
    }
}

/// Findings about a server.
pub fn of_server(facts: &ServerFacts) -> Vec<Finding> {
    let info = &facts.info;
    let mut findings = vec![
        Finding::ok("server-reachable", "it answers, and lets us in"),
        version(facts),
        role(facts),
    ];
    if info.is_loading() {
        findings.push(Finding::warn(
            "server-loading",
            "it is loading its data: what it holds and where it stands cannot be seen yet",
            "wait until it has loaded, and look again",
        ));
    }
    if info.number("cluster_enabled") == Some(1) {
        findings.push(Finding::warn(
            "server-cluster",
            "it is a node of a cluster: it can be archived, but refuses REPLICAOF, so it is never filled by itself",
            "perennial restore --to DIR, and start the node on those files; --seed never",
        ));
    }
    let holds_data = |module: &&String| !MODULES_WITHOUT_DATA.contains(&module.as_str());
    let modules: Vec<&str> = info
        .modules()
        .iter()
        .filter(holds_data)
        .map(String::as_str)
        .collect();
    if !modules.is_empty() {
        findings.push(Finding::warn(
            "server-modules",
            format!("it has modules: {}", modules.join(", ")),
            "load the same modules wherever an archive of it is to be restored",
        ));
    }
    permissions(facts, &mut findings);
    replicas(facts, &mut findings);
    of_settings(facts, &mut findings);
    findings
}

fn version(facts: &ServerFacts) -> Finding {
    const ID: &str = "server-version";
    let info = &facts.info;
    let what = format!("{} {}", info.server_name(), info.version());
    match info.version_numbers() {
        (..4, _) => Finding::bad(
            ID,
            format!("{what}: its replication ids and offsets do not survive a change of master"),
            "Redis 4.0 or later, better 7.0 or later, or Valkey",
        ),
        (..7, _) => Finding::warn(
            ID,
            format!(
                "{what}: keys come on the link itself, an orderly stop does not wait for the archive, and a restart \
                 from a dump.rdb is suspect"
            ),
            "Redis 7.0 or later, or Valkey; else born a replica, or save \"\" with rdb-del-sync-files yes",
        ),
        _ => Finding::ok(
            ID,
            format!("{what}: snapshots come over a connection of their own"),
        ),
    }
}

fn role(facts: &ServerFacts) -> Finding {
    const ID: &str = "server-role";
    let info = &facts.info;
    if !facts.is_replica() {
        return Finding::ok(ID, "a master");
    }
    let master = format!(
        "{}:{}",
        info.text("master_host").unwrap_or("?"),
        info.text("master_port").unwrap_or("?")
    );
    if info.text("master_link_status") != Some("up") {
        return Finding::warn(
            ID,
            format!(
                "a replica of {master}, and its link is down: it answers no PSYNC until the link is up"
            ),
            "nothing, if that is where `perennial run` will listen (--seed-listen); else look at its master",
        );
    }
    Finding::warn(
        ID,
        format!(
            "a replica of {master}: it is archived, but never filled, and WAIT and min-replicas-to-write on its \
             master never mean the archive"
        ),
        "give --redis the address of the master, if WAIT or the seed is what you want",
    )
}

fn permissions(facts: &ServerFacts, findings: &mut Vec<Finding>) {
    for (id, needed, what) in [
        ("server-permissions-follow", &facts.to_follow, "follow it"),
        ("server-permissions-seed", &facts.to_seed, "fill it"),
    ] {
        let refused: Vec<(&str, &str)> = needed
            .iter()
            .filter_map(|permission| match &permission.allowed {
                Allowed::No(answer) => Some((permission.command, answer.as_str())),
                _ => None,
            })
            .collect();
        let untried: Vec<&str> = needed
            .iter()
            .filter(|permission| permission.allowed == Allowed::Untried)
            .map(|permission| permission.command)
            .collect();
        if let Some((_, answer)) = refused.first() {
            let commands: Vec<&str> = refused.iter().map(|(command, _)| *command).collect();
            let found = format!(
                "we may not {what}: it refuses {} ({answer})",
                commands.join(", ")
            );
            findings.push(if answer.contains("NOPERM") {
                let rules: Vec<String> = commands.iter().map(|it| format!("+{it}")).collect();
                let user = facts.user.as_deref().unwrap_or("default");
                let change = format!(
                    "{} ACL SETUSER {} {}",
                    facts.client,
                    quoted(user),
                    rules.join(" ")
                );
                Finding::bad(id, found, change)
            } else {
                Finding::bad(
                    id,
                    found,
                    "take rename-command out of the server's configuration for these",
                )
            });
        } else if untried.is_empty() {
            findings.push(Finding::ok(id, format!("we may {what}")));
        } else {
            findings.push(Finding::unknown(
                id,
                format!(
                    "whether we may {what} was not tried: {}",
                    untried.join(", ")
                ),
            ));
        }
    }
}

fn replicas(facts: &ServerFacts, findings: &mut Vec<Finding>) {
    if facts.is_replica() {
        return;
    }
    findings.push(match (facts.real_replicas(), facts.perennials) {
        (0, 0) => Finding::ok(
            "server-wait",
            "no replica is attached: once `perennial run` is, WAIT 1 means in the archive",
        ),
        (0, 1) => Finding::ok(
            "server-wait",
            "Perennial is the only replica that is attached: WAIT 1 means in the archive",
        ),
        (0, perennials) => Finding::warn(
            "server-wait",
            format!(
                "{perennials} Perennials are attached, and no other replica: whichever acknowledges first answers a WAIT 1"
            ),
            format!(
                "one `perennial run` for each archive of this server; where each has an archive of its own, WAIT \
                 {perennials} means in all of them"
            ),
        ),
        (replicas, perennials) => Finding::warn(
            "server-wait",
            format!(
                "replicas that are attached: {replicas} besides {perennials} of Perennial; whichever acknowledges first \
                 answers a WAIT 1"
            ),
            format!(
                "WAIT {}, one more than the real replicas alone, for a write that must be in the archive",
                replicas + 1
            ),
        ),
    });
}

#[cfg(test)]
mod tests;
