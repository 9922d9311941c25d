//! From the master to the store: follow the replication stream, keep it, acknowledge what is kept.
//!
//! ```text
//! link ------> pipeline ------> encode ------> uploader ------> store
//! (socket)     (boundaries,     (compressed    (a few at a      |
//!   ^           sealed pieces)   blocks)        time; the rest  |
//!   |                                           in the spool)   |
//!   '-- acknowledge <----------- durable <----------------------'
//!                                   ^
//! snapshots (second connection) ----'
//! ```
//!
//! Later snapshots come when `schedule` says so, and `later` takes them beside the same link.
//!
//! What to follow, and under which timeline, is decided in `decide` and carried out by [`Follower`].

pub mod announce;
pub mod budget;
pub mod durable;
pub mod encode;
pub mod follower;
mod known;
mod lane;
mod later;
pub mod link;
pub mod pipeline;
pub mod rate;
mod replayed;
mod replicas;
pub mod report;
pub mod schedule;
mod session;
pub mod snapshots;
pub mod spool;
pub mod uploader;

pub use durable::Durable;
pub use follower::{AckMode, FollowEnd, FollowOptions, Follower};
pub use later::SnapshotSource;
pub use link::Link;
pub use pipeline::{Due, PINGS_SEAL_MILLIS, PINGS_WAIT_MILLIS, Pipeline, SealOptions};
pub use replayed::{ReplayError, Replayed, Replays, Scratched, Wanted};
pub use report::{Report, Seen};
pub use schedule::ScheduleOptions;
pub use spool::SpoolOptions;
pub use uploader::{Progress, UPLOADS_IN_FLIGHT_MAX, backoff, jittered};
