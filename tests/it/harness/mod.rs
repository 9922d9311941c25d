//! What the end-to-end tests stand on: real servers, clients that never stop, a comparison that sees everything.

pub mod archive;
pub mod busy;
pub mod certificates;
#[cfg_attr(
    not(all(feature = "s3", feature = "gcs")),
    allow(dead_code, reason = "for outages of those stores")
)]
pub mod churn;
pub mod client;
pub mod confined;
pub mod digest;
#[allow(dead_code, reason = "shared with the unit tests, which use the rest")]
#[cfg(feature = "gcs")]
pub mod gcs;
pub mod in_process;
pub mod perennial;
pub mod port;
pub mod process;
pub mod proxy;
pub mod random;
#[cfg(feature = "s3")]
pub mod s3;
pub mod servers;
pub mod trap;
pub mod until;
pub mod workload;

pub use archive::{Archive, Snapshot, Status};
pub use busy::{Load, Writers};
pub use churn::{Churn, ClientLink, Mix};
pub use client::{Client, Value, Version};
pub use digest::{Digest, assert_same};
pub use in_process::{FastClock, InProcess};
pub use perennial::{
    BornAsReplica, Perennial, RESIDENT_BYTES_MAX, run_cli, run_cli_when_it_can, run_cli_with,
};
pub use port::Port;
pub use proxy::Proxy;
#[cfg(feature = "s3")]
pub use s3::S3Server;
pub use servers::{Kind, REDIS_7_0, Server};
pub use trap::{Trap, Way};
pub use until::{DEADLINE, holds_for, until};
