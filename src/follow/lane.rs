//! One timeline that is written to: opened in answer to PSYNC, kept over broken links.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::follower::{FollowEnd, Follower};
use super::later::Later;
use super::pipeline::Pipeline;
use super::snapshots::{SnapshotFailure, Taken};
use super::uploader::Uploader;
use crate::archive::block::{BlockContext, Boundary};
use crate::archive::layout::{DOCUMENT_FORMAT, Source, TimelineDocument};
use crate::decide::{Again, Offer, Outcome, Suspicion};
use crate::position::{Offset, Position, ReplicationId, TimelineSeq};
use crate::server::info::Info;
use crate::shell::quoted;
use crate::store::catalog;
use crate::store::catalog::Loaded;

/// What is known of the timeline that is written to, kept over broken links.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) uploader: Arc<Uploader>,
    /// What was received and is not in a piece yet. The next link resumes at its very last byte, inside a
    /// command as well: else one that is longer than a link lasts would never arrive.
    pub(super) pipeline: Pipeline,
    /// Behind this its stream is received without a hole: a snapshot that it waits for must not stand before.
    pub(super) streams_after: Offset,
    pub(super) snapshot: SnapshotNeed,
    /// Another one, on its way.
    pub(super) later: Option<Later>,
    /// Where no seed would use it: what [`Catalog::to_be_accepted`](crate::archive::timeline::Catalog::to_be_accepted) names.
    /// Before one of them is accepted nothing on it is acknowledged.
    pub(super) suspects: Vec<(TimelineSeq, ReplicationId)>,
}

/// Whether the timeline still waits for a snapshot.
#[derive(Debug)]
pub(super) enum SnapshotNeed {
    /// Nothing is missing.
    None,
    /// To be fetched over a connection of its own, while a link is up: a server that comes up empty must not
    /// be asked for a payload before it has been looked at.
    Wanted,
    /// It comes on the link itself, at this offset, because the server cannot leave it out.
    OnLink(Offset),
    /// On its way.
    Running {
        /// The attempt.
        task: JoinHandle<Result<Taken, SnapshotFailure>>,
        /// All of it is here, whatever becomes of the server: only the store has to take it.
        received: bool,
    },
}

impl SnapshotNeed {
    /// After a full resync at `at`: its payload holds the keys, unless they could be left out.
    fn of_full_resync(filtered: bool, at: Offset) -> Self {
        if filtered {
            Self::Wanted
        } else {
            Self::OnLink(at)
        }
    }
}

impl Drop for SnapshotNeed {
    fn drop(&mut self) {
        if let Self::Running { task, .. } = self {
            task.abort();
        }
    }
}

impl Follower {
    /// Opens what was decided.
    pub(super) async fn open_lane(
        &self,
        outcome: Outcome,
        offer: Option<Offer>,
        loaded: &Loaded,
        info: &Info,
        filtered: bool,
    ) -> Result<Lane, FollowEnd> {
        let need = |at| SnapshotNeed::of_full_resync(filtered, at);
        let doubt = |seq| loaded.catalog.to_be_accepted(seq);
        match outcome {
            Outcome::Again(again) => Err(FollowEnd::Again(again)),
            Outcome::Resume(position) => {
                let known = loaded.boundary(position);
                let id = offer
                    .map(|offer| offer.id)
                    .expect("only an offered position is resumed");
                tracing::info!(%id, %position, "following: resumed from the archive");
                Ok(self.lane(
                    position.timeline,
                    id,
                    Some(known),
                    known,
                    SnapshotNeed::None,
                    doubt(position.timeline),
                ))
            }
            Outcome::Gap { timeline, from, to } => {
                let id = offer
                    .map(|offer| offer.id)
                    .expect("only an offered position has a gap behind it");
                let bytes = to.bytes_since(from);
                self.report.gap();
                tracing::warn!(
                    %id, timeline = timeline.as_u32(), from = from.as_u64(), to = to.as_u64(), bytes,
                    "gap: the master's backlog no longer held what was missed; moments inside the gap cannot \
                     be restored; taking a new snapshot (a larger repl-backlog-size avoids this)"
                );
                let known = loaded.boundary(Position {
                    timeline,
                    offset: from,
                });
                let streams = Boundary {
                    offset: to,
                    database: None,
                };
                Ok(self.lane(
                    timeline,
                    id,
                    Some(known),
                    streams,
                    need(to),
                    doubt(timeline),
                ))
            }
            Outcome::NewTimeline {
                id,
                parent,
                start,
                streams_after,
                snapshot,
                suspect,
            } => {
                let document =
                    self.document(loaded.catalog.next_seq(), id, parent, start, suspect, info);
                let seq = self.number(document, streams_after, loaded).await?;
                say_new_timeline(seq, id, parent, start, suspect, &self.store.address());
                let known = parent.map(|parent| Boundary {
                    offset: start,
                    database: loaded.boundary(parent).database,
                });
                let streams = match known {
                    Some(known) if !snapshot => known,
                    _ => Boundary {
                        offset: streams_after,
                        database: None,
                    },
                };
                let need = if snapshot {
                    need(streams_after)
                } else {
                    SnapshotNeed::None
                };
                // A suspicion of its own is not cured where the parent's would be.
                let mut doubtful = match parent {
                    Some(parent) if suspect.is_none() => doubt(parent.timeline),
                    _ => Vec::new(),
                };
                if suspect.is_some() || !doubtful.is_empty() {
                    doubtful.push((seq, id));
                }
                Ok(self.lane(seq, id, known, streams, need, doubtful))
            }
        }
    }

    /// Creates the timeline, or finds the one that an attempt without a snapshot left behind.
    async fn number(
        &self,
        document: TimelineDocument,
        streams_after: Offset,
        loaded: &Loaded,
    ) -> Result<TimelineSeq, FollowEnd> {
        if document.parent.is_none()
            && let Some(root) = loaded.catalog.unfinished_root(document.id, streams_after)
            && root.document.suspect.is_some() == document.suspect.is_some()
        {
            return Ok(root.seq());
        }
        match catalog::create_timeline(&*self.store, &document).await {
            Ok(true) => Ok(document.seq),
            Ok(false) => Err(FollowEnd::Again(Again::NumberTaken)),
            Err(error) => Err(FollowEnd::Store(error)),
        }
    }

    fn lane(
        &self,
        timeline: TimelineSeq,
        id: ReplicationId,
        known: Option<Boundary>,
        received: Boundary,
        snapshot: SnapshotNeed,
        suspects: Vec<(TimelineSeq, ReplicationId)>,
    ) -> Lane {
        let context = BlockContext {
            archive: self.archive,
            timeline,
            id,
        };
        let shared = self.shared.clone();
        let uploader = Uploader::new(Arc::clone(&self.store), context, known, shared);
        let pipeline = Pipeline::new(self.options.seal, received);
        Lane {
            uploader,
            pipeline,
            streams_after: received.offset,
            snapshot,
            later: None,
            suspects,
        }
    }

    fn document(
        &self,
        seq: TimelineSeq,
        id: ReplicationId,
        parent: Option<Position>,
        start: Offset,
        suspect: Option<Suspicion>,
        info: &Info,
    ) -> TimelineDocument {
        TimelineDocument {
            format: DOCUMENT_FORMAT,
            seq,
            id,
            parent,
            start,
            mapped: false,
            suspect: suspect.map(|suspicion| suspicion.to_string()),
            created_at: self.clock.unix(),
            created_by: concat!("perennial ", env!("CARGO_PKG_VERSION")).to_owned(),
            source: Source {
                server: info.server_name().to_owned(),
                version: info.version().to_owned(),
                run_id: info.text("run_id").unwrap_or("?").to_owned(),
                address: self.redis.to_string(),
                replica: passes_on(info, start),
            },
        }
    }
}

/// Whether some of the bytes behind `after` were spelled by another server than the one that sends them: it is a
/// replica, or was one until later than that and then took over, from an older version perhaps.
fn passes_on(info: &Info, after: Offset) -> bool {
    let own_from = info.number("second_repl_offset");
    info.text("role") == Some("slave")
        || own_from.is_some_and(|own_from| own_from > after.next().as_u64())
}

fn say_new_timeline(
    seq: TimelineSeq,
    id: ReplicationId,
    parent: Option<Position>,
    start: Offset,
    suspect: Option<Suspicion>,
    address: &str,
) {
    match (suspect, parent) {
        (Some(why), _) => tracing::error!(
            timeline = seq.as_u32(), %id, start = start.as_u64(),
            "suspect timeline: {why}. It is archived but no seed will use it; if this server is right, run \
             `perennial accept {seq} --archive {}`; if not, stop it, remove its dump and append-only files, and \
             start it empty: it is then filled from the head",
            quoted(address)
        ),
        (None, Some(parent)) => {
            tracing::info!(timeline = seq.as_u32(), %id, %parent, "following: a child timeline begins");
        }
        (None, None) => {
            tracing::info!(timeline = seq.as_u32(), %id, start = start.as_u64(), "following: a new timeline begins")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_promoted_replica_had_from_its_master_is_not_its_own() {
        let passed_on = |info: &str| passes_on(&Info::parse(info), Offset::new(100));
        assert!(passed_on("role:slave\r\nsecond_repl_offset:-1"));
        assert!(!passed_on("role:master\r\nsecond_repl_offset:-1"));
        assert!(!passed_on("role:master\r\nsecond_repl_offset:101"));
        assert!(passed_on("role:master\r\nsecond_repl_offset:102"));
    }
}
