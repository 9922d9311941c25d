//! Replays the archive into a server of our own, which then gives a snapshot: what `--snapshot-from archive` does, so that
//! nobody else forks. Carries no bytes itself: `restore` fills the server, `follow` takes the snapshot from it.
//!
//! The server is a replica from its first byte of data to the last of its payload, so nothing expires in it by its own
//! clock, and it is of the version that is followed, so what it writes is what that one could have written (decision 46).

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::archive::plan::{Plan, Target, plan};
use crate::follow::{ReplayError, Replayed, Replays, Scratched, Wanted};
use crate::position::{Position, UnixMillis};
use crate::restore::fill::{Filled, fill};
use crate::restore::mapped::rewritten;
use crate::restore::seeder::Approved;
use crate::restore::source::Spelling;
use crate::server::scratch::{Scratch, ScratchPlace, Start};
use crate::store::catalog;

/// Replays into a server started from a program.
#[derive(Clone, Debug)]
pub struct Replayer {
    place: ScratchPlace,
}

impl Replayer {
    /// `program`: a redis-server or valkey-server of the version that is followed, as a path or a name in `PATH`.
    pub fn new(program: PathBuf) -> Self {
        Self {
            place: ScratchPlace::Program(program),
        }
    }
}

#[async_trait]
impl Replays for Replayer {
    async fn replay(&self, wanted: Wanted) -> Result<Replayed, ReplayError> {
        let now = wanted.clock.unix();
        // First, for it is the cheapest thing that can fail.
        let mut scratch = self.place.open(Start::Empty).await.map_err(early)?;
        let own = scratch.info();
        let own = (own.server_name().to_owned(), own.version_numbers());
        is_of_the_same_version(wanted.master.as_ref(), &own).map_err(early)?;
        let plan = planned(&wanted).await?;
        if plan.legs.is_empty() {
            return Ok(Replayed::There(plan.snapshot));
        }
        let approved = approved(&wanted, &plan).await?;
        let filled = filled(&mut scratch, &wanted, &plan, approved).await?;
        tracing::info!(
            "replayed {} and {} of replication stream into a {} {}.{}: taking its snapshot",
            bytesize::ByteSize(filled.payload_bytes),
            bytesize::ByteSize(filled.stream_bytes),
            own.0,
            own.1.0,
            own.1.1,
        );
        let version = (own.0 == "valkey").then(|| scratch.info().version().to_owned());
        Ok(Replayed::Filled(Scratched {
            address: scratch.address().clone(),
            version,
            id: filled.id,
            stands_at: filled.end,
            at: received_until(&plan, now),
            from: Position {
                timeline: plan.snapshot_timeline.0,
                offset: plan.snapshot.offset,
            },
            held: Box::new((scratch, filled)),
        }))
    }
}

/// Nothing was spent yet.
fn early(error: impl ToString) -> ReplayError {
    ReplayError {
        why: error.to_string(),
        costly: false,
    }
}

fn late(error: impl ToString) -> ReplayError {
    ReplayError {
        why: error.to_string(),
        costly: true,
    }
}

/// What a newer one writes the server could not read, and what an older one makes of a command need not be what the server
/// made of it.
fn is_of_the_same_version(
    master: Option<&(String, (u32, u32))>,
    scratch: &(String, (u32, u32)),
) -> Result<(), String> {
    let Some(master) = master else {
        return Err("the version of the server is not known yet".into());
    };
    if master == scratch {
        return Ok(());
    }
    let named = |(name, (major, minor)): &(String, (u32, u32))| format!("{name} {major}.{minor}");
    Err(format!(
        "--scratch is {}, the server {}: what another version makes of the archive need not be what the server holds, nor \
         could it always be filled with it; give --scratch the {}-server of a {}",
        named(scratch),
        named(master),
        master.0,
        named(master),
    ))
}

async fn planned(wanted: &Wanted) -> Result<Plan, ReplayError> {
    let loaded = catalog::load(&*wanted.store, &[wanted.context.id]).await;
    let loaded = loaded.map_err(|error| early(format!("the archive cannot be read: {error}")))?;
    let position = Position {
        timeline: wanted.context.timeline,
        offset: wanted.offset,
    };
    plan(&loaded.catalog, Target::Offset(position)).map_err(early)
}

/// How it is replayed: as it was archived under its own id, which the payload then names, so that a server that comes up
/// with it as its dump is recognised. Nothing where bytes have to be rewritten or offsets jump on the way.
///
/// An error that every restore makes must not become part of what the next ones begin with.
async fn approved(wanted: &Wanted, plan: &Plan) -> Result<Option<Approved>, ReplayError> {
    let tally = rewritten(&wanted.store, wanted.context.archive, plan).await;
    let tally = tally.map_err(late)?;
    if let Some(warning) = tally.warning() {
        return Err(late(format!(
            "what was written since the last snapshot cannot be replayed exactly ({warning}): take one from the server or a \
             replica of it, with `perennial snapshot`"
        )));
    }
    let as_archived = plan.offsets_continuous && !tally.is_changed();
    Ok(as_archived.then_some(Approved {
        id: plan.id,
        spelling: Spelling::Archived,
    }))
}

async fn filled(
    scratch: &mut Scratch,
    wanted: &Wanted,
    plan: &Plan,
    approved: Option<Approved>,
) -> Result<Filled, ReplayError> {
    // Its payload comes to us by the connection, at once, and not onto its disk.
    scratch
        .set("repl-diskless-sync", "yes")
        .await
        .map_err(early)?;
    scratch
        .set("repl-diskless-sync-delay", "0")
        .await
        .map_err(early)?;
    let archive = wanted.context.archive;
    let clock = Arc::clone(&wanted.clock);
    let told = &mut |_, _| {};
    fill(
        scratch,
        &wanted.store,
        archive,
        plan,
        approved,
        &clock,
        told,
    )
    .await
    .map_err(late)
}

/// When the last byte was received: the newest segment may reach further than the plan, but not into the future. Restores
/// count times of expiry that are spelled relative from here on, so it must not be later.
fn received_until(plan: &Plan, now: UnixMillis) -> UnixMillis {
    plan.until.min(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(master: Option<(&str, (u32, u32))>, scratch: (&str, (u32, u32))) -> Option<String> {
        let owned = |(name, version): (&str, _)| (name.to_owned(), version);
        let master = master.map(owned);
        is_of_the_same_version(master.as_ref(), &owned(scratch)).err()
    }

    #[test]
    fn only_a_server_of_the_same_version_is_good_enough() {
        let master = Some(("redis", (7, 0)));
        assert_eq!(said(master, ("redis", (7, 0))), None);
        assert_eq!(said(Some(("valkey", (9, 1))), ("valkey", (9, 1))), None);
        for other in [
            ("redis", (8, 0)),
            ("redis", (6, 2)),
            ("valkey", (7, 0)),
            ("valkey", (9, 1)),
        ] {
            let why = said(master, other).unwrap();
            assert!(
                why.contains("the server redis 7.0") && why.ends_with("of a redis 7.0"),
                "{why}"
            );
        }
        assert!(said(None, ("redis", (7, 0))).is_some());
    }
}
