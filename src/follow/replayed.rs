//! Snapshots from the archive: what is stored is replayed into a server of our own, which then gives its payload as a
//! replica's replica would. Here is when, and what becomes of the payload; the replay itself is somebody else's.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::budget::Budget;
use super::encode::Encoder;
use super::later::{LaterFailure, Outcome, length_of, until_stored};
use super::replicas::Version;
use super::snapshots::{Ask, Derived, Parting, SnapshotFailure, Taken, fetch};
use super::uploader::Uploader;
use crate::archive::block::BlockContext;
use crate::archive::timeline::SnapshotEntry;
use crate::clock::Clock;
use crate::position::{Offset, Position, ReplicationId, UnixMillis};
use crate::proto::replica::ReplicaOptions;
use crate::server::net::Address;
use crate::store::Store;

/// Replays the archive.
#[async_trait]
pub trait Replays: fmt::Debug + Send + Sync {
    /// Fills a server with what is wanted. Dropped before its end, nothing of it stays.
    ///
    /// # Errors
    /// [`ReplayError`].
    async fn replay(&self, wanted: Wanted) -> Result<Replayed, ReplayError>;
}

/// What is to be replayed.
#[derive(Debug)]
pub struct Wanted {
    /// Where it lies.
    pub store: Arc<dyn Store>,
    /// The archive and the timeline.
    pub context: BlockContext,
    /// Up to here on that timeline: a durable boundary.
    pub offset: Offset,
    /// The server that is followed: it must be able to read what comes of it.
    pub master: Option<Version>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// What comes of a replay.
#[derive(Debug)]
pub enum Replayed {
    /// Nothing was to be done: there is a snapshot at that very place.
    There(SnapshotEntry),
    /// A server is filled.
    Filled(Scratched),
}

/// A server that was filled from the archive, a replica that asks nobody for more.
#[derive(Debug)]
pub struct Scratched {
    /// Where it listens.
    pub address: Address,
    /// What to announce as our version to it, where it is a Valkey.
    pub version: Option<String>,
    /// The history that it was told it holds.
    pub id: ReplicationId,
    /// Its offset in that one.
    pub stands_at: Offset,
    /// When the last byte that it holds was received.
    pub at: UnixMillis,
    /// The snapshot with which it was filled.
    pub from: Position,
    /// The server and what it is a replica of. Dropped, nothing of either stays.
    pub held: Box<dyn Held>,
}

/// Something that only has to stay.
pub trait Held: fmt::Debug + Send {}

impl<T: fmt::Debug + Send> Held for T {}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct ReplayError {
    /// What is wrong, and what to do.
    pub why: String,
    /// The archive was read for it: not to be tried again at once.
    pub costly: bool,
}

/// One attempt.
pub(super) struct Replaying {
    pub(super) replays: Arc<dyn Replays>,
    pub(super) master: Option<Version>,
    pub(super) options: ReplicaOptions,
    pub(super) uploader: Arc<Uploader>,
    pub(super) encoder: Arc<Encoder>,
    pub(super) budget: Arc<Budget>,
    pub(super) parting: Arc<Parting>,
    pub(super) clock: Arc<dyn Clock>,
}

impl Replaying {
    /// Waits until everything up to `wanted` is stored, of which it tells, and goes from there to the snapshot in the
    /// store.
    pub(super) async fn run(
        self,
        wanted: Offset,
        told: oneshot::Sender<Offset>,
    ) -> Result<Outcome, LaterFailure> {
        let began = self.clock.ticks();
        let not_stored = SnapshotFailure::NotStored(wanted);
        if told.send(wanted).is_err() || !until_stored(&self.uploader, wanted).await {
            return Err(not_stored.into());
        }
        let durable = self.uploader.subscribe().borrow().durable;
        let is = durable.ok_or(not_stored)?;
        let wanted = Wanted {
            store: Arc::clone(self.uploader.store()),
            context: self.uploader.context(),
            offset: is.offset,
            master: self.master,
            clock: Arc::clone(&self.clock),
        };
        let scratched = match self.replays.replay(wanted).await? {
            Replayed::There(entry) => {
                let bytes = length_of(&**self.uploader.store(), &entry).await;
                return Ok(Outcome::Another(is.offset, entry.at, bytes));
            }
            Replayed::Filled(scratched) => scratched,
        };
        let ask = Ask {
            options: ReplicaOptions {
                auth: None,
                version: scratched.version,
                ..self.options
            },
            // All of it is stored.
            beside: None,
            floor: is.offset,
            derived: Some(Derived {
                id: scratched.id,
                stands_at: scratched.stands_at,
                is,
                at: scratched.at,
                from: scratched.from,
            }),
        };
        let clock = Arc::clone(&self.clock);
        let fetched = fetch(
            &scratched.address,
            ask,
            self.uploader,
            self.encoder,
            self.budget,
            self.parting,
            self.clock,
        )
        .await;
        // A server with much data takes its time to end.
        let held = scratched.held;
        let _ = tokio::task::spawn_blocking(move || drop(held)).await;
        Ok(Outcome::Taken(Taken {
            // Replaying took its time too.
            millis: clock.ticks().since(began),
            ..fetched?
        }))
    }
}
