//! `perennial snapshot`: one snapshot of a followed server, now. It follows the server itself for as long as that takes,
//! from where the archive ends, so it neither needs nor disturbs a `perennial run` beside it (decision 44).

use std::sync::Arc;

use anyhow::{Context, bail};
use serde_json::json;
use tokio::sync::watch;

use super::flags::OneSnapshotArguments;
use super::{open_store, say, tell};
use crate::clock::Clock;
use crate::config::RunOptions;
use crate::decide::{Action, Follow, Policy, Role, Server, before_sync, look};
use crate::follow::snapshots::Taken;
use crate::follow::{FollowEnd, Follower};
use crate::position::Position;
use crate::server::control::Control;
use crate::shell::quoted;
use crate::store::Store;
use crate::store::catalog::{self, Loaded};

/// Takes one.
///
/// # Errors
/// Where the server does not continue what the archive holds, or the snapshot could not be taken or stored.
pub async fn run(
    arguments: OneSnapshotArguments,
    clock: Arc<dyn Clock>,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let json = arguments.json;
    let usage = |message: String| super::Exit { message, code: 2 };
    let settings = arguments.settings()?;
    let store = open_store(&settings.archive)?;
    let options = settings.check().map_err(|error| usage(error.to_string()))?;
    let (position, taken) = take(options, Arc::clone(&store), Arc::clone(&clock), stop).await?;
    if json {
        say(&json!({
            "timeline": position.timeline.as_u32(),
            "offset": position.offset.as_u64(),
            "at": taken.at.0,
            "payload_bytes": taken.bytes,
            "millis": taken.millis,
        })
        .to_string());
    } else {
        tell(&format!(
            "snapshot of {position} is stored: {} in {}",
            bytesize::ByteSize(taken.bytes),
            humantime::format_duration(std::time::Duration::from_millis(taken.millis)),
        ));
    }
    Ok(())
}

/// The snapshot, and what the replication stream up to it lacked in the archive.
async fn take(
    options: RunOptions,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<(Position, Taken)> {
    let redis = options.redis.clone();
    let mut control = Control::connect(&redis).await?;
    let info = control.info().await?;
    if info.is_loading() {
        bail!("{redis} is loading its data: try again when it has");
    }
    // Whether it is a replica of a Perennial does not matter: none is followed whose link is down.
    let server = info.server(|_, _| false)?;
    let loaded = catalog::load(&*store, &[server.id]).await?;
    let archive = loaded
        .catalog
        .archive()
        .map(|document| document.archive)
        .context("archive.json is missing")?;
    let mut follower = Follower::new(
        redis,
        Arc::clone(&store),
        archive,
        options.follow,
        Arc::clone(&clock),
    );
    follower.know_server(&info);
    let follow = continued(&server, &loaded, &follower, &*clock)
        .with_context(|| format!("no snapshot is taken into {}", quoted(&store.address())))?;
    let opened = follower
        .open(
            &follow,
            &loaded,
            &server,
            &mut control,
            |_, _| false,
            &mut stop,
        )
        .await;
    let mut link = match opened {
        Ok(link) => link,
        Err(end) => bail!("{end}"),
    };
    drop(loaded);
    follower.ask_for_snapshot(server.offset);
    let end = follower.stream(&mut link, &mut stop).await;
    let timeline = follower.timeline();
    drop(link);
    let whole = follower.settle().await;
    match end {
        FollowEnd::Asked(Ok(taken)) => {
            if !whole {
                tracing::warn!(
                    "the snapshot is stored; what was received behind it is not all in the archive"
                );
            }
            let timeline = timeline.context("nothing was followed")?;
            let offset = taken.offset;
            Ok((Position { timeline, offset }, taken))
        }
        FollowEnd::Stopped => {
            bail!("stopped before the snapshot was complete: nothing of it is kept")
        }
        end => bail!("{end}"),
    }
}

/// How to go on where the archive ends. Everything else is for `perennial run` to decide.
fn continued(
    server: &Server,
    loaded: &Loaded,
    follower: &Follower,
    clock: &dyn Clock,
) -> anyhow::Result<Follow> {
    if server.role == (Role::Replica { link_up: false }) {
        bail!("the server is a replica whose link to its master is down");
    }
    let looked = look(server, &loaded.catalog, clock.unix());
    let Action::Follow(follow) = before_sync(&looked, Policy::Never) else {
        bail!("the server does not hold what the archive holds; `perennial run` fills it");
    };
    match follow.offer {
        Some(offer) if offer.tip && offer.id == server.id && follow.suspect.is_none() => {}
        _ => bail!(
            "the archive does not hold this server's history up to now: let `perennial run` follow it first"
        ),
    }
    if !follower.would_continue(&follow, server) {
        bail!(
            "the server's backlog no longer holds what the archive lacks, and a snapshot would leave a gap: is \
             `perennial run` running?"
        );
    }
    Ok(follow)
}
