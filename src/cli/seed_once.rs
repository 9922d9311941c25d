//! `perennial restore --to redis://…`: fills a server once, as of any moment, and leaves it a master with a history of
//! its own.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use serde_json::json;
use tokio::sync::watch;

use super::flags::{FormatFlag, RestoreArguments, tls};
use super::progress::Progress;
use super::restore::Archived;
use super::when::{Planned, ttl};
use super::{Exit, say, stopped, tell};
use crate::archive::plan::Plan;
use crate::clock::Clock;
use crate::config;
use crate::decide::{Role, Server};
use crate::restore::around::{self, Around};
use crate::restore::refusal;
use crate::restore::seeder::{Seeder, SeederOptions};
use crate::restore::source::Unusable;
use crate::restore::to_replica::{Approach, Purpose, Seed};
use crate::server::control::Control;
use crate::server::info::Info;
use crate::server::net::Address;

/// `--to`, read.
#[derive(Debug)]
pub enum Destination {
    /// Files in a folder.
    Folder(PathBuf),
    /// A running server.
    Server(Box<Target>),
    /// Commands on the standard output: `-`.
    Commands,
}

/// A server to fill, and how it gets at the data.
#[derive(Debug)]
pub struct Target {
    address: Address,
    seeder: SeederOptions,
}

impl Destination {
    /// Reads `--to` with the flags of a server, where it is one.
    ///
    /// # Errors
    /// A usage error.
    pub fn read(arguments: &RestoreArguments) -> Result<Self, Exit> {
        let to = &arguments.to;
        let is_server = ["redis://", "rediss://", "unix://"]
            .iter()
            .any(|scheme| to.starts_with(scheme));
        if !is_server && to != "-" {
            return folder(to).map(Self::Folder);
        }
        if arguments.format != FormatFlag::Auto {
            return Err(Exit {
                message: format!("--format: no files are written to {to}; leave it out"),
                code: 2,
            });
        }
        if !is_server {
            return Ok(Self::Commands);
        }
        let usage = |error: config::BadSetting| Exit {
            message: error.of_server("to").to_string(),
            code: 2,
        };
        let tls = tls(&arguments.server, &arguments.seeding);
        let address = config::server(to, arguments.server.password()?, &tls).map_err(usage)?;
        let seeder = config::seeder(
            &arguments.seeding.seed_listen,
            arguments.seeding.seed_announce.clone(),
            arguments.seeding.password()?,
            config::seed_tls(tls).map_err(usage)?,
        )
        .map_err(usage)?;
        Ok(Self::Server(Box::new(Target { address, seeder })))
    }
}

/// A mistyped address may hold a password in front of its host.
fn without_secret(to: &str) -> &str {
    to.rsplit_once('@').map_or(to, |(_, host)| host)
}

fn folder(to: &str) -> Result<PathBuf, Exit> {
    // Nobody means a folder of that name.
    let is_host = to
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.contains('/') && port.parse::<u16>().is_ok());
    if to.contains("://") || is_host {
        return Err(Exit {
            message: format!(
                "--to {}: write a folder, a server as redis://host:port, rediss://host:port or unix:///path, or - for commands",
                without_secret(to)
            ),
            code: 2,
        });
    }
    Ok(to.into())
}

/// Fills the server; from other objects where some turn out to be damaged.
///
/// # Errors
/// Why it was not filled, and how it was left.
pub async fn run(
    archived: Archived,
    mut planned: Planned,
    target: Target,
    arguments: &RestoreArguments,
    clock: Arc<dyn Clock>,
    stop: &mut watch::Receiver<bool>,
    around: &mut Around,
) -> anyhow::Result<()> {
    let address = target.address.to_string();
    let mut control = Control::connect(&target.address).await?;
    let listen = target.seeder.listen;
    let seeder = Seeder::open(target.seeder, Arc::clone(&clock))
        .await
        .with_context(|| format!("listen on --seed-listen {listen}"))?;
    let info = control.info().await?;
    let mut before = refuse(&address, &info, arguments.force)?;
    let mut approach = Approach::TakeOver;
    let error = loop {
        let unchanged = |info: &Info| still_the_same(info, &before, arguments.force);
        let seed = Seed {
            store: Arc::clone(&archived.store),
            archive: archived.archive,
            catalog: &archived.catalog,
            plan: planned.plan.clone(),
            address: address.clone(),
            held: before.id,
            seeder: &seeder,
            approach,
            purpose: Purpose::Copy(ttl(&planned, arguments, &*clock)),
            clock: &*clock,
        };
        let mut progress = Progress::lines("restoring", Arc::clone(&clock), None);
        let seeded = seed.run(&mut control, unchanged, |sent, total| {
            progress.stands_at(sent, total);
        });
        let error = tokio::select! {
            outcome = seeded => match outcome {
                Ok(_) => {
                    say_filled(&planned, &address, arguments.json);
                    return Ok(());
                }
                Err(error) => error,
            },
            () = stopped(stop) => {
                // A connection of its own: on this one an answer may be outstanding.
                control = Control::connect(&target.address).await?;
                break anyhow!("stopped by a signal");
            }
        };
        let Some(unusable) = error.unusable() else {
            break error.into();
        };
        let Some(plan) = other_plan(around, &unusable, &archived, &planned) else {
            break error.into();
        };
        tracing::warn!("{}", around::said(&unusable, &plan));
        planned.plan = plan;
        (before, approach) = left(&mut control, before, &seeder).await?;
    };
    Err(explain(error, &mut control, &info, &address).await)
}

/// A plan of the same moment that passes an object over.
fn other_plan(
    around: &mut Around,
    unusable: &Unusable,
    archived: &Archived,
    planned: &Planned,
) -> Option<Plan> {
    let is_new = around.pass_over(&unusable.name);
    let plan = around.plan(&archived.catalog, planned.plan.target, None);
    plan.ok().filter(|_| is_new)
}

/// What has become of a server that was not filled to the end, and how it comes to us from here: one that was taken over
/// waits, and holds nothing that it had before.
async fn left(
    control: &mut Control,
    before: Server,
    seeder: &Seeder,
) -> anyhow::Result<(Server, Approach)> {
    let info = control.info().await?;
    let (local_ip, same_machine) = (control.local_ip(), control.is_local());
    let now = info.server(|host, port| seeder.is_us(host, port, local_ip, same_machine))?;
    if now.run_id != before.run_id {
        bail!(
            "an object of the archive is damaged, and before others were used the server was restarted"
        );
    }
    Ok(match now.role {
        Role::ReplicaOfUs => (now, Approach::Waits),
        // It was given back as it was.
        Role::Master | Role::Replica { .. } => (before, Approach::TakeOver),
    })
}

impl Target {
    /// Tells why it would not be filled, as far as that can be seen without doing anything to it.
    ///
    /// # Errors
    /// That, or that it cannot be looked at.
    pub(super) async fn examine(
        &self,
        archived: &Archived,
        planned: &Planned,
        force: bool,
    ) -> anyhow::Result<()> {
        let address = self.address.to_string();
        let mut control = Control::connect(&self.address).await?;
        let info = control.info().await?;
        refuse(&address, &info, force)?;
        let (store, archive) = (Arc::clone(&archived.store), archived.archive);
        refusal::examine(store, archive, &planned.plan, &mut control, &info).await?;
        Ok(())
    }
}

/// What is known of a server that may be filled.
fn refuse(address: &str, info: &Info, force: bool) -> anyhow::Result<Server> {
    let server = facts(info)?;
    if info.is_loading() {
        bail!("{address} is loading its data: wait until it has");
    }
    if !force {
        refuse_data(address, &server)?;
    }
    Ok(server)
}

fn facts(info: &Info) -> anyhow::Result<Server> {
    // Whoever listens at our address is of no concern: a server that waits for it is a replica like any other.
    Ok(info.server(|_, _| false)?)
}

fn refuse_data(address: &str, server: &Server) -> anyhow::Result<()> {
    if server.role != Role::Master {
        bail!(
            "{address} is a replica: nothing was done to it; restore into a master, or make it one with REPLICAOF NO \
             ONE (--force fills it as it is)"
        );
    }
    if !server.empty {
        bail!(
            "{address} already holds data: nothing was done to it; choose an empty server, or --force to replace what \
             it holds"
        );
    }
    Ok(())
}

/// Whether the server, as it says of itself inside the takeover transaction, is still the one that was looked at.
fn still_the_same(info: &Info, before: &Server, force: bool) -> Result<(), &'static str> {
    let now = facts(info).map_err(|_| "INFO became unusable")?;
    if now.run_id != before.run_id {
        return Err("it was restarted");
    }
    if now.id != before.id {
        return Err("its history changed");
    }
    if info.is_loading() {
        return Err("it began to load data");
    }
    if !force && !now.empty {
        return Err("it was written to");
    }
    Ok(())
}

/// The error, with how the server was left where that is not as it was.
async fn explain(
    error: anyhow::Error,
    control: &mut Control,
    before: &Info,
    address: &str,
) -> anyhow::Error {
    let master = |info: &Info| {
        ["role", "master_host", "master_port"].map(|name| info.text(name).map(str::to_owned))
    };
    let left_replica = match control.info().await {
        Ok(info) => info.text("role") == Some("slave") && master(&info) != master(before),
        Err(_) => false,
    };
    if left_replica {
        return error.context(format!(
            "{address} was not filled: it was left a replica, so that nobody takes what it holds for everything; try \
             again with --force, or give it back with REPLICAOF NO ONE and FLUSHALL"
        ));
    }
    error.context(format!("{address} was not filled"))
}

fn say_filled(planned: &Planned, address: &str, json: bool) {
    let plan = &planned.plan;
    if json {
        say(&json!({
            "server": address,
            "timeline": plan.target.timeline.as_u32(),
            "offset": plan.target.offset.as_u64(),
            "until_ms": plan.until.0,
            "received_until_ms": planned.received_until().map(|at| at.0),
            "next_by_ms": planned.next_by().map(|at| at.0),
            "stream_bytes": plan.stream_bytes(),
        })
        .to_string());
        return;
    }
    tell(&format!(
        "restored {} into {address}: {} of replication stream behind the snapshot at offset {}",
        plan.target,
        bytesize::ByteSize(plan.stream_bytes()),
        plan.snapshot.offset,
    ));
    tell(
        "it is a master with a history of its own: to go on from here, start `perennial run` beside it once with --seed \
         start-over",
    );
}
