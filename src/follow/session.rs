//! The life of one link: bytes in, pieces out, acknowledgements back, until it ends.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::budget::Reservation;
use super::follower::{AckMode, FollowEnd, Follower, link_end};
use super::lane::SnapshotNeed;
use super::later::Turn;
use super::link::Link;
use super::pipeline::Pipeline;
use super::report::BEAT_MILLIS;
use super::snapshots::{Ask, Feed, SnapshotFailure, SnapshotPace, Taken, fetch};
use super::uploader::{EncodedBlock, Piece, Progress, Uploader};
use crate::archive::layout::accepted_prefix;
use crate::position::{Offset, Ticks};
use crate::proto::handshake::PsyncRequest;
use crate::proto::replica::Event;

/// How long reading may be held back in all, until the buffers are half empty again, before the link is
/// closed: a burst is waited out, a store that cannot keep up must not fill the master's output buffer.
pub(super) const STALL_MILLIS_MAX: u64 = 5_000;
/// A piece goes into the spool when it is smaller than `--flush-bytes` only where memory is full, and never when
/// it is smaller than this, bytes.
const SPOOL_BYTES_MIN: u64 = 256 * 1024;
/// What is kept of `--shutdown-timeout` for the last uploads, at most.
const LAST_UPLOAD_MILLIS: u64 = 5_000;
/// The first wait before it is looked whether a suspect timeline that is followed has been accepted.
const ACCEPTED_LOOK_FIRST: Duration = Duration::from_secs(5);
/// The longest such wait: each look is a list in the store, and some timelines are never accepted.
const ACCEPTED_LOOK_MAX: Duration = Duration::from_secs(60);
/// How often receipt is acknowledged under `--ack received` when nobody asks, milliseconds.
const RECEIVED_ACK_MILLIS: u64 = 100;

/// What one link holds that is not in the uploader yet.
pub(super) struct Session {
    pipeline: Pipeline,
    pub(super) uploader: Arc<Uploader>,
    blocks: Vec<EncodedBlock>,
    gathering: Reservation,
    /// The payload on the link itself, until its last byte.
    feed: Option<Feed>,
    stalled_millis: u64,
    stop_at: Option<Ticks>,
    received_acked: Ticks,
}

impl Session {
    /// The last byte received.
    pub(super) fn offset(&self) -> Offset {
        self.pipeline.offset()
    }

    /// The last command boundary received.
    pub(super) fn boundary(&self) -> Offset {
        self.pipeline.boundary().offset
    }

    /// What gathers goes to the store without waiting for more.
    pub(super) fn seal_at_once(&mut self) {
        self.pipeline.seal_at_once();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop_at.is_some()
    }

    /// The store refuses pieces at the moment.
    pub(super) fn is_store_failing(&self) -> bool {
        self.uploader.subscribe().borrow().failing.is_some()
    }
}

enum Wake {
    Event(Event),
    Progress,
    Deadline,
    Room,
    Snapshot(Result<Taken, SnapshotFailure>),
    Later(Turn),
    Accepted,
    Stop,
    Elsewhere,
}

impl Follower {
    /// Follows an open link until it ends. What was received goes on its way to the store whatever ended it.
    pub async fn stream(&mut self, link: &mut Link, stop: &mut watch::Receiver<bool>) -> FollowEnd {
        let seal = self.options.seal;
        let Some(lane) = &mut self.lane else {
            return FollowEnd::Link("nothing to follow".into());
        };
        let boundary = lane.pipeline.boundary();
        let mut session = Session {
            pipeline: std::mem::replace(&mut lane.pipeline, Pipeline::new(seal, boundary)),
            uploader: Arc::clone(&lane.uploader),
            blocks: Vec::new(),
            gathering: self.budget.reserve(0),
            feed: None,
            stalled_millis: 0,
            stop_at: None,
            received_acked: self.clock.ticks(),
        };
        self.report.link_opened();
        let end = self.run(&mut session, link, stop).await;
        self.turned(&session, self.clock.ticks());
        self.report.link_closed(matches!(end, FollowEnd::Stalled));
        self.seal(&mut session);
        if session.stop_at.is_some() {
            self.last_words(&session, link).await;
        }
        self.payload_broke_off(session.feed.is_some());
        if let Some(lane) = &mut self.lane {
            lane.pipeline = match end {
                // What follows the last whole command is not what the master's history holds.
                FollowEnd::Malformed(_) => Pipeline::new(seal, session.pipeline.boundary()),
                _ => session.pipeline,
            };
        }
        end
    }

    fn turned(&self, session: &Session, now: Ticks) {
        let pipeline = &session.pipeline;
        self.report
            .turned(now, pipeline.offset(), pipeline.oldest_write());
        self.report
            .snapshot_due(self.schedule.due_at(pipeline.offset()));
    }

    async fn run(
        &mut self,
        session: &mut Session,
        link: &mut Link,
        stop: &mut watch::Receiver<bool>,
    ) -> FollowEnd {
        let mut progress = session.uploader.subscribe();
        let mut accepted = std::pin::pin!(self.until_accepted());
        let mut elsewhere = std::pin::pin!(self.elsewhere());
        loop {
            self.acknowledge(session, link, &progress);
            self.start_snapshot(&session.uploader);
            self.start_later(session, self.clock.ticks());
            self.seal_for_later(session);
            let before = self.clock.ticks();
            let read = self.budget.has_room();
            if !read && session.feed.is_none() && self.is_spool_full() {
                return FollowEnd::Stalled;
            }
            let wake = tokio::select! {
                () = &mut elsewhere => Wake::Elsewhere,
                wake = self.wait(session, link, read, &mut progress, accepted.as_mut(), stop) => wake,
            };
            let now = self.clock.ticks();
            let handled = match wake {
                Wake::Event(event) => self.handle(session, event).await,
                Wake::Snapshot(result) => {
                    session.feed = session.feed.take().filter(|_| result.is_ok());
                    self.snapshot_ended(result)
                }
                Wake::Later(turn) => self.later_turned(turn),
                Wake::Accepted => {
                    self.accepted();
                    accepted.set(self.until_accepted());
                    Ok(())
                }
                Wake::Elsewhere => Err(FollowEnd::Elsewhere),
                Wake::Stop => {
                    self.begin_to_stop(session, now);
                    Ok(())
                }
                Wake::Progress | Wake::Deadline | Wake::Room => match session.uploader.lost() {
                    Some(reason) => Err(FollowEnd::Lost(reason)),
                    None => Ok(()),
                },
            };
            if let Err(end) = handled {
                return if session.stop_at.is_some() {
                    FollowEnd::Stopped
                } else {
                    end
                };
            }
            self.turned(session, now);
            if let Some(end) = self.stalled(session, read, now.since(before)) {
                return end;
            }
            if session.stop_at.is_some_and(|at| now >= at) {
                return FollowEnd::Stopped;
            }
            let ready = session.uploader.ready_at(now);
            let due = session.pipeline.due(now).is_some();
            if (due && ready.is_some_and(|at| at <= now)) || self.should_spool(session) {
                self.seal(session);
            }
        }
    }

    /// Where there is a spool, nothing is waited out: the link is closed when it is full too.
    fn is_spool_full(&self) -> bool {
        let spool = self.shared.spool.as_ref();
        spool.is_some_and(|spool| spool.is_full())
    }

    /// Whether the piece that gathers goes into the spool, because no upload would begin and memory is short.
    fn should_spool(&self, session: &Session) -> bool {
        let gathered = session.pipeline.raw_bytes();
        let enough = gathered >= self.options.seal.bytes_max
            || (gathered >= SPOOL_BYTES_MIN && !self.budget.has_room());
        let spool = self.shared.spool.as_ref();
        enough && self.budget.is_over_half() && spool.is_some_and(|spool| spool.may_take())
    }

    async fn wait(
        &mut self,
        session: &Session,
        link: &mut Link,
        read: bool,
        progress: &mut watch::Receiver<Progress>,
        accepted: Pin<&mut impl Future<Output = ()>>,
        stop: &mut watch::Receiver<bool>,
    ) -> Wake {
        let now = self.clock.ticks();
        // With every slot taken a due piece goes on gathering; progress wakes us.
        let seal_at = session
            .pipeline
            .due_at()
            .zip(session.uploader.ready_at(now))
            .map(|(due, ready)| due.max(ready));
        let stall_at = (!read && session.feed.is_none())
            .then(|| now.plus(STALL_MILLIS_MAX.saturating_sub(session.stalled_millis)));
        let deadline = [
            seal_at,
            stall_at,
            session.stop_at,
            self.snapshot_due(),
            self.later_due(session),
        ]
        .into_iter()
        .flatten()
        .min();
        let sleep = Duration::from_millis(
            deadline.map_or(BEAT_MILLIS, |at| at.since(now).min(BEAT_MILLIS)),
        );
        let stopping = session.stop_at.is_some();
        let budget = Arc::clone(&self.budget);
        let (snapshot, later) = match &mut self.lane {
            Some(lane) => (Some(&mut lane.snapshot), lane.later.as_mut()),
            None => (None, None),
        };
        let later = async {
            match later {
                Some(later) => later.turn().await,
                None => std::future::pending().await,
            }
        };
        let snapshot = async {
            match snapshot {
                Some(SnapshotNeed::Running { task, .. }) => task.await.expect(
                    "the snapshot task neither panics nor is cancelled while it is awaited",
                ),
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            () = accepted => Wake::Accepted,
            event = link.next(read) => Wake::Event(event),
            _ = progress.changed() => Wake::Progress,
            () = tokio::time::sleep(sleep) => Wake::Deadline,
            () = budget.room(), if !read => Wake::Room,
            result = snapshot => Wake::Snapshot(result),
            turn = later => Wake::Later(turn),
            _ = stop.wait_for(|stop| *stop), if !stopping => Wake::Stop,
        }
    }

    async fn handle(&mut self, session: &mut Session, event: Event) -> Result<(), FollowEnd> {
        match event {
            Event::Stream(bytes) => self.receive(session, bytes),
            Event::PayloadBegins { .. } => {
                session.feed = self.begin_payload(&session.uploader);
                Ok(())
            }
            Event::Payload(bytes) => {
                if let Some(feed) = &session.feed {
                    feed.push(bytes);
                }
                Ok(())
            }
            Event::PayloadEnds { .. } => {
                if let Some(feed) = session.feed.take() {
                    feed.end();
                    self.payload_received();
                }
                Ok(())
            }
            other => Err(link_end(&other)),
        }
    }

    /// Where the payload on the link is the snapshot.
    fn begin_payload(&mut self, uploader: &Arc<Uploader>) -> Option<Feed> {
        let lane = self.lane.as_mut()?;
        let SnapshotNeed::OnLink(at) = lane.snapshot else {
            return None;
        };
        let (feed, task) = Feed::begin(
            self.redis.to_string(),
            Arc::clone(uploader),
            Arc::clone(&self.encoder),
            Arc::clone(&self.budget),
            Arc::clone(&self.parting),
            at,
            Arc::clone(&self.clock),
        );
        lane.snapshot = SnapshotNeed::Running {
            task,
            received: false,
        };
        Some(feed)
    }

    fn payload_received(&mut self) {
        if let Some(lane) = &mut self.lane
            && let SnapshotNeed::Running { received, .. } = &mut lane.snapshot
        {
            *received = true;
        }
    }

    /// What did not come whole does not come again with `+CONTINUE`: it is fetched beside the next link.
    fn payload_broke_off(&mut self, midway: bool) {
        let now = self.clock.ticks();
        if let Some(lane) = &mut self.lane
            && (midway || matches!(lane.snapshot, SnapshotNeed::OnLink(_)))
        {
            lane.snapshot = SnapshotNeed::Wanted;
            self.report.snapshot_ended(None);
            self.snapshot_pace.failed(now);
            self.schedule.forked(now);
        }
    }

    fn receive(&mut self, session: &mut Session, bytes: Bytes) -> Result<(), FollowEnd> {
        let now = self.clock.ticks();
        let waited = session
            .pipeline
            .receive(now, self.clock.unix(), bytes)
            .map_err(FollowEnd::Malformed)?;
        if let Some(written) = session.pipeline.last_write() {
            self.schedule.wrote(written);
        }
        self.take_ready(session);
        if waited {
            session.received_acked = Ticks(0);
        }
        Ok(())
    }

    /// Hands full blocks to the encoder, so that what waits in memory is compressed.
    fn take_ready(&self, session: &mut Session) {
        while let Some(block) = session.pipeline.take_ready() {
            self.encode(session, block);
        }
        session.gathering.resize(session.pipeline.unsealed_bytes());
    }

    fn encode(&self, session: &mut Session, block: crate::archive::block::RawBlock) {
        let held = self.budget.reserve(block.raw_bytes() as u64);
        let (encoder, context) = (Arc::clone(&self.encoder), session.uploader.context());
        session.blocks.push(tokio::spawn(async move {
            encoder.encode(block, context, held).await
        }));
    }

    fn seal(&self, session: &mut Session) {
        self.take_ready(session);
        let oldest = session.pipeline.oldest_write();
        let Some(sealed) = session.pipeline.seal() else {
            return;
        };
        if let Some(oldest) = oldest {
            self.report.sealed(sealed.span.last, oldest);
        }
        for block in sealed.blocks {
            self.encode(session, block);
        }
        let blocks = std::mem::take(&mut session.blocks);
        session.uploader.submit(Piece {
            span: sealed.span,
            boundary: sealed.boundary,
            blocks,
        });
        session.gathering.resize(session.pipeline.unsealed_bytes());
    }

    /// No seed would bring back what is on a suspect timeline: WAIT must not say that it is safe.
    fn is_suspect(&self) -> bool {
        self.lane
            .as_ref()
            .is_some_and(|lane| !lane.suspects.is_empty())
    }

    /// Ends when the suspect timeline that is followed has been accepted; never for any other.
    fn until_accepted(&self) -> impl Future<Output = ()> + use<> {
        let suspect = self.lane.as_ref().filter(|lane| !lane.suspects.is_empty());
        let look = suspect.map(|lane| (Arc::clone(lane.uploader.store()), lane.suspects.clone()));
        async move {
            let Some((store, suspects)) = look else {
                return std::future::pending().await;
            };
            let mut wait = ACCEPTED_LOOK_FIRST;
            loop {
                tokio::time::sleep(wait).await;
                wait = wait.mul_f64(1.1).min(ACCEPTED_LOOK_MAX);
                for (seq, id) in &suspects {
                    // A store that cannot be read tells nothing; the uploads say so.
                    let notes = store.list(&accepted_prefix(*seq, id), None).await;
                    if notes.is_ok_and(|notes| !notes.is_empty()) {
                        return;
                    }
                }
            }
        }
    }

    fn accepted(&mut self) {
        if let Some(lane) = &mut self.lane {
            tracing::info!(
                timeline = lane.uploader.context().timeline.as_u32(),
                "accepted: acknowledging from now on"
            );
            lane.suspects.clear();
            self.report.accepted();
        }
    }

    fn acknowledge(
        &self,
        session: &mut Session,
        link: &mut Link,
        progress: &watch::Receiver<Progress>,
    ) {
        let durable = progress
            .borrow()
            .durable
            .map_or(Offset::ZERO, |boundary| boundary.offset);
        if self.is_suspect() {
            return;
        }
        match self.options.ack {
            AckMode::Durable => link.acknowledge(durable, durable),
            AckMode::Received => {
                let now = self.clock.ticks();
                if now.since(session.received_acked) >= RECEIVED_ACK_MILLIS {
                    session.received_acked = now;
                    link.acknowledge(session.pipeline.boundary().offset, durable);
                }
            }
        }
    }

    fn stalled(
        &mut self,
        session: &mut Session,
        read: bool,
        waited_millis: u64,
    ) -> Option<FollowEnd> {
        if session.feed.is_some() {
            // Closed in the middle of its payload, an old server would only have to send it again.
            session.stalled_millis = 0;
        } else if !read {
            session.stalled_millis += waited_millis;
        } else if self.budget.used() <= self.options.buffer_bytes / 2 {
            session.stalled_millis = 0;
        }
        if session.stalled_millis < STALL_MILLIS_MAX {
            return None;
        }
        match self.give_up_later() {
            Ok(true) => {
                session.stalled_millis = 0;
                None
            }
            Ok(false) => Some(FollowEnd::Stalled),
            Err(asked) => Some(asked),
        }
    }

    fn start_snapshot(&mut self, uploader: &Arc<Uploader>) {
        let options = self.replica_options(PsyncRequest::Full);
        let now = self.clock.ticks();
        let Some(lane) = &mut self.lane else { return };
        if !matches!(lane.snapshot, SnapshotNeed::Wanted) || now < self.snapshot_pace.not_before {
            return;
        }
        let (redis, uploader) = (self.redis.clone(), Arc::clone(uploader));
        let (encoder, budget, parting, clock) = (
            Arc::clone(&self.encoder),
            Arc::clone(&self.budget),
            Arc::clone(&self.parting),
            Arc::clone(&self.clock),
        );
        let ask = Ask {
            options,
            beside: None,
            // Behind a name there may be several servers, of which another one lags.
            floor: lane.streams_after,
            derived: None,
        };
        let task = tokio::spawn(async move {
            let fetched = fetch(&redis, ask, uploader, encoder, budget, parting, clock);
            let taken = fetched.await?;
            tracing::info!(
                offset = taken.offset.as_u64(),
                bytes = taken.bytes,
                "snapshot complete"
            );
            Ok(taken)
        });
        lane.snapshot = SnapshotNeed::Running {
            task,
            received: false,
        };
    }

    /// Another history ends the link; whatever else failed is tried again after a while.
    fn snapshot_ended(&mut self, result: Result<Taken, SnapshotFailure>) -> Result<(), FollowEnd> {
        let now = self.clock.ticks();
        self.report.snapshot_ended(result.as_ref().ok().copied());
        self.schedule.forked(now);
        let Some(lane) = &mut self.lane else {
            return Ok(());
        };
        let error = match result {
            Ok(taken) => {
                lane.snapshot = SnapshotNeed::None;
                self.snapshot_pace = SnapshotPace::default();
                self.snapshot_stands(now, taken);
                return self.answer(Ok(taken));
            }
            Err(error) => error,
        };
        lane.snapshot = SnapshotNeed::Wanted;
        let (attempts, wait_ms) = self.snapshot_pace.failed(now);
        if matches!(error, SnapshotFailure::OtherHistory { .. }) {
            return Err(FollowEnd::Snapshot(error));
        }
        tracing::warn!(attempts, wait_ms, "{error}; trying again");
        Ok(())
    }

    fn snapshot_due(&self) -> Option<Ticks> {
        match self.lane.as_ref()?.snapshot {
            SnapshotNeed::Wanted => Some(self.snapshot_pace.not_before),
            SnapshotNeed::None | SnapshotNeed::OnLink(_) | SnapshotNeed::Running { .. } => None,
        }
    }

    fn begin_to_stop(&self, session: &mut Session, now: Ticks) {
        let margin = LAST_UPLOAD_MILLIS.min(self.options.shutdown_millis / 4);
        session.stop_at = Some(now.plus(self.options.shutdown_millis - margin));
        tracing::info!(
            seconds = (self.options.shutdown_millis - margin) / 1000,
            "stopping: following until the master closes the link, this long at most"
        );
    }

    /// After being told to stop: what was received goes into the store and is acknowledged, so that a master
    /// that waits for us in its own shutdown sees it.
    async fn last_words(&self, session: &Session, link: &mut Link) {
        let margin = LAST_UPLOAD_MILLIS.min(self.options.shutdown_millis / 4);
        let drained = session.uploader.drained();
        if tokio::time::timeout(Duration::from_millis(margin), drained)
            .await
            .is_ok()
            && let Some(durable) = session.uploader.durable()
            && !self.is_suspect()
        {
            link.acknowledge(durable.offset, durable.offset);
            link.flush().await;
        }
    }
}
