//! Snapshots of a timeline that has one: on schedule or because somebody asks, from the master, from one of its replicas
//! or from the archive, while the replication stream goes on. When one is due, `schedule` says; whatever fails here is said and
//! tried again slowly, and never disturbs what is followed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::follower::{FollowEnd, Follower, auth_of};
use super::lane::SnapshotNeed;
use super::replayed::{ReplayError, Replaying, Replays};
use super::replicas::{NoSource, usable};
use super::schedule::{Reason, Standing};
use super::session::Session;
use super::snapshots::{Ask, SnapshotFailure, Taken, fetch};
use super::uploader::Uploader;
use crate::archive::layout::{Object, snapshots_prefix};
use crate::archive::plan::{Target, plan};
use crate::archive::timeline::SnapshotEntry;
use crate::clock::Clock;
use crate::decide::Offer;
use crate::position::{Offset, Ticks, UnixMillis};
use crate::proto::handshake::PsyncRequest;
use crate::proto::replica::ReplicaOptions;
use crate::server::net::Address;
use crate::store::catalog::{self, Loaded};
use crate::store::{Store, StoreError};

/// How long a payload that is here waits until the replication stream up to its offset is in the store. Without that
/// the timeline would have a hole in front of the snapshot if we died.
const STORED_WAIT_MAX: Duration = Duration::from_secs(600);

/// How long the length of a payload may take to be read: its stored length will do.
const LENGTH_WAIT_MAX: Duration = Duration::from_secs(5);

/// Where snapshots behind the first one come from.
#[derive(Clone, Debug, Default)]
pub enum SnapshotSource {
    /// The server that is followed.
    #[default]
    Followed,
    /// A replica of it.
    Replica(Address),
    /// The archive, replayed into a server of our own: nobody else forks.
    Archive(Arc<dyn Replays>),
}

/// A snapshot on its way.
#[derive(Debug)]
pub(super) struct Later {
    task: JoinHandle<Result<Outcome, LaterFailure>>,
    /// Tells once where the snapshot stands.
    stands_at: Option<oneshot::Receiver<Offset>>,
    /// Everything up to here has to be sealed.
    wanted: Option<Offset>,
}

impl Drop for Later {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What becomes of an attempt.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It was taken.
    Taken(Taken),
    /// Somebody else took one meanwhile: its offset, when, and its length.
    Another(Offset, UnixMillis, u64),
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaterFailure {
    /// The store could not be asked whether there is one already.
    #[error("the archive cannot be read: {0}")]
    Look(#[source] StoreError),
    /// The replica is not fit for it.
    #[error(transparent)]
    Source(#[from] NoSource),
    /// The archive could not be replayed.
    #[error("--snapshot-from archive: {0}")]
    Replay(#[from] ReplayError),
    /// It was begun, or refused.
    #[error(transparent)]
    Fetch(#[from] SnapshotFailure),
}

impl LaterFailure {
    /// Whether a server may have forked for it, or as much was spent.
    fn forked(&self) -> bool {
        match self {
            Self::Look(_) | Self::Source(_) => false,
            Self::Replay(error) => error.costly,
            Self::Fetch(error) => !matches!(error, SnapshotFailure::Refused { .. }),
        }
    }
}

/// What happened to a snapshot on its way.
#[derive(Debug)]
pub(super) enum Turn {
    /// It stands there; the payload follows.
    StandsAt(Offset),
    /// It came to its end.
    Ended(Result<Outcome, LaterFailure>),
}

impl Later {
    /// Waits for whatever comes next. Cancel safe; not to be asked again after the end.
    pub(super) async fn turn(&mut self) -> Turn {
        if let Some(stands_at) = &mut self.stands_at {
            let told = stands_at.await;
            self.stands_at = None;
            if let Ok(offset) = told {
                return Turn::StandsAt(offset);
            }
        }
        let ended = (&mut self.task).await;
        Turn::Ended(
            ended.expect("the snapshot task neither panics nor is cancelled while it is awaited"),
        )
    }
}

impl Follower {
    /// The next link takes a snapshot at once, and [`stream`](Self::stream) ends with it:
    /// [`FollowEnd::Asked`]. It stands at `offset` or behind it: where the server is now.
    pub fn ask_for_snapshot(&mut self, offset: Offset) {
        self.asked = true;
        self.asked_at = offset;
        self.schedule.ask();
    }

    /// The snapshot that a restore of what is offered would begin with.
    pub(super) async fn last_snapshot(
        &self,
        loaded: &Loaded,
        offer: Option<Offer>,
    ) -> Option<Standing> {
        let position = offer?.position;
        let planned = plan(&loaded.catalog, Target::Offset(position)).ok()?;
        Some(Standing {
            age_millis: age(&*self.clock, planned.snapshot.at),
            payload_bytes: length_of(&*self.store, &planned.snapshot).await,
            stream_bytes: planned.stream_bytes(),
            offset: position.offset,
        })
    }

    /// A timeline was opened. Where it goes on from what was offered, snapshots are due by the one before; else its
    /// first one is no matter of schedule.
    pub(super) fn begin_schedule(&mut self, last: Option<Standing>) {
        let Some(lane) = &self.lane else { return };
        let goes_on = matches!(lane.snapshot, SnapshotNeed::None);
        let last = last.filter(|_| goes_on).map(|last| Standing {
            // The offsets of a child may begin anew.
            offset: lane.pipeline.offset(),
            ..last
        });
        tracing::debug!(?last, "the last snapshot");
        self.schedule.begin(self.clock.ticks(), last);
    }

    /// Begins one where it is due and nothing speaks against it.
    pub(super) fn start_later(&mut self, session: &Session, now: Ticks) {
        if !self.may_start_later(session) {
            return;
        }
        let Some(reason) = self.schedule.due(now, session.offset()) else {
            return;
        };
        let from = match &self.options.snapshot_source {
            SnapshotSource::Followed => String::new(),
            SnapshotSource::Replica(address) => format!(" from {address}"),
            SnapshotSource::Archive(_) => " from the archive".to_owned(),
        };
        tracing::info!("taking a snapshot{from}: {reason}");
        self.schedule.forked(now);
        let (told, stands_at) = oneshot::channel();
        let wanted = match reason {
            Reason::Asked => self.asked_at.max(session.boundary()),
            Reason::Log(_) | Reason::Age(_) => session.boundary(),
        };
        let task = tokio::spawn(self.attempt(&session.uploader, wanted, told));
        if let Some(lane) = &mut self.lane {
            lane.later = Some(Later {
                task,
                stands_at: Some(stands_at),
                wanted: None,
            });
        }
    }

    /// When one is to begin, if nothing more comes.
    pub(super) fn later_due(&self, session: &Session) -> Option<Ticks> {
        let due = self.schedule.due_at(session.offset());
        due.filter(|_| self.may_start_later(session))
    }

    fn may_start_later(&self, session: &Session) -> bool {
        let is_free = self.lane.as_ref().is_some_and(|lane| {
            lane.later.is_none() && matches!(lane.snapshot, SnapshotNeed::None)
        });
        is_free && !session.is_stopping() && !session.is_store_failing()
    }

    /// One attempt, from the look whether it is still needed to the object in the store. `wanted` is to be in it.
    fn attempt(
        &self,
        uploader: &Arc<Uploader>,
        wanted: Offset,
        told: oneshot::Sender<Offset>,
    ) -> impl Future<Output = Result<Outcome, LaterFailure>> + Send + use<> {
        let floor = self.schedule.floor();
        let source = self.options.snapshot_source.clone();
        let (followed, master) = (self.redis.clone(), self.known_server());
        let options = self.replica_options(PsyncRequest::Full);
        let uploader = Arc::clone(uploader);
        let (encoder, budget) = (Arc::clone(&self.encoder), Arc::clone(&self.budget));
        let (parting, clock) = (Arc::clone(&self.parting), Arc::clone(&self.clock));
        async move {
            let looked = newer_than(floor, &uploader).await;
            if let Some(another) = looked.map_err(LaterFailure::Look)? {
                return Ok(another);
            }
            let (address, options) = match source {
                SnapshotSource::Followed => (followed, options),
                SnapshotSource::Replica(address) => {
                    let version =
                        usable(&address, uploader.context().id, floor, master.as_ref()).await?;
                    let options = ReplicaOptions {
                        auth: auth_of(&address).or(options.auth),
                        version,
                        ..options
                    };
                    (address, options)
                }
                SnapshotSource::Archive(replays) => {
                    let replaying = Replaying {
                        replays,
                        master,
                        options,
                        uploader,
                        encoder,
                        budget,
                        parting,
                        clock,
                    };
                    return replaying.run(wanted, told).await;
                }
            };
            let ask = Ask {
                options,
                beside: Some(told),
                floor,
                derived: None,
            };
            let fetched = fetch(&address, ask, uploader, encoder, budget, parting, clock).await?;
            Ok(Outcome::Taken(fetched))
        }
    }

    /// What a turn of the snapshot on its way means for what is followed: that nothing is wrong with it, unless
    /// somebody only asked for the snapshot.
    pub(super) fn later_turned(&mut self, turn: Turn) -> Result<(), FollowEnd> {
        let ended = match turn {
            Turn::StandsAt(offset) => {
                if let Some(later) = self.later() {
                    later.wanted = Some(offset);
                }
                return Ok(());
            }
            Turn::Ended(ended) => ended,
        };
        if let Some(lane) = &mut self.lane {
            lane.later = None;
        }
        let now = self.clock.ticks();
        match ended {
            Ok(Outcome::Taken(taken)) => {
                tracing::info!(
                    offset = %taken.offset, bytes = taken.bytes, seconds = taken.millis / 1000,
                    "snapshot complete"
                );
                self.report.snapshot_ended(Some(taken));
                self.snapshot_stands(now, taken);
                self.answer(Ok(taken))
            }
            Ok(Outcome::Another(offset, at, bytes)) => {
                tracing::info!(%offset, "a newer snapshot is in the archive already: none is taken");
                self.report.snapshot_found(at);
                let millis = age(&*self.clock, at);
                let taken = Taken {
                    offset,
                    bytes,
                    at,
                    millis,
                };
                self.snapshot_stands(now, taken);
                self.answer(Ok(taken))
            }
            Err(error) => {
                self.report.snapshot_ended(None);
                let wait_ms = self.schedule.failed(now, error.forked());
                if !self.asked {
                    tracing::warn!(wait_ms, "no snapshot: {error}; trying again");
                }
                self.answer(Err(error.to_string()))
            }
        }
    }

    /// The replication stream goes first: a snapshot that takes the room that it needs is given up. Whether one was.
    pub(super) fn give_up_later(&mut self) -> Result<bool, FollowEnd> {
        let taken = self.lane.as_mut().and_then(|lane| lane.later.take());
        if taken.is_none() {
            return Ok(false);
        }
        drop(taken);
        self.report.snapshot_ended(None);
        let wait_ms = self.schedule.failed(self.clock.ticks(), true);
        let why = "the store is too slow for a snapshot beside the replication stream";
        tracing::warn!(wait_ms, "no snapshot: {why}; trying again");
        self.answer(Err(why.into()))?;
        Ok(true)
    }

    /// Whoever only wanted the snapshot is told.
    pub(super) fn answer(&mut self, ended: Result<Taken, String>) -> Result<(), FollowEnd> {
        if std::mem::take(&mut self.asked) {
            return Err(FollowEnd::Asked(ended));
        }
        Ok(())
    }

    /// The next one is counted from this one.
    pub(super) fn snapshot_stands(&mut self, now: Ticks, taken: Taken) {
        self.schedule.stands(
            now,
            Standing {
                age_millis: taken.millis,
                payload_bytes: taken.bytes,
                stream_bytes: 0,
                offset: taken.offset,
            },
        );
    }

    /// What is before the snapshot must be in the store before the snapshot is: nothing of it waits for company.
    pub(super) fn seal_for_later(&mut self, session: &mut Session) {
        let boundary = session.boundary();
        let Some(later) = self.later() else { return };
        if later.wanted.is_some_and(|wanted| wanted <= boundary) {
            later.wanted = None;
            session.seal_at_once();
        }
    }

    fn later(&mut self) -> Option<&mut Later> {
        self.lane.as_mut()?.later.as_mut()
    }
}

/// Waits until everything up to `offset` is in the store; `false` where that takes too long.
pub(super) async fn until_stored(uploader: &Uploader, offset: Offset) -> bool {
    let mut progress = uploader.subscribe();
    let stored = progress.wait_for(|progress| {
        progress
            .durable
            .is_some_and(|boundary| boundary.offset >= offset)
    });
    matches!(
        tokio::time::timeout(STORED_WAIT_MAX, stored).await,
        Ok(Ok(_))
    )
}

/// How long ago something happened, by the wall clock; nothing where that says that it is still to come.
pub(super) fn age(clock: &dyn Clock, at: UnixMillis) -> u64 {
    clock.unix().0.saturating_sub(at.0)
}

/// The length of a snapshot's payload; of what is stored, where that cannot be read.
pub(super) async fn length_of(store: &dyn Store, entry: &SnapshotEntry) -> u64 {
    let read = catalog::payload_bytes(store, entry);
    match tokio::time::timeout(LENGTH_WAIT_MAX, read).await {
        Ok(Ok(Some(bytes))) => bytes,
        outcome => {
            tracing::debug!(?outcome, "taking the stored length of {}", entry.name);
            entry.bytes
        }
    }
}

/// A snapshot of the timeline behind `floor` that somebody else stored.
async fn newer_than(floor: Offset, uploader: &Uploader) -> Result<Option<Outcome>, StoreError> {
    let context = uploader.context();
    let prefix = snapshots_prefix(context.timeline, &context.id);
    let store = &**uploader.store();
    let listed = store.list(&prefix, None).await?;
    let newest = listed
        .into_iter()
        .filter_map(|found| {
            // Of one in parts, the part that makes a snapshot of the others.
            let (Object::Snapshot {
                offset,
                at,
                derived,
                ..
            }
            | Object::SnapshotPart {
                offset,
                at,
                derived,
                last: true,
                ..
            }) = Object::parse(found.name.as_str())?
            else {
                return None;
            };
            Some(SnapshotEntry {
                name: found.name,
                parts: Vec::new(),
                offset,
                at,
                derived,
                bytes: found.bytes,
            })
        })
        .max_by_key(|entry| (entry.offset, entry.at));
    match newest.filter(|entry| entry.offset > floor) {
        None => Ok(None),
        Some(entry) => {
            let bytes = length_of(store, &entry).await;
            Ok(Some(Outcome::Another(entry.offset, entry.at, bytes)))
        }
    }
}
