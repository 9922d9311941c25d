//! The Redis or Valkey server beside us: how to reach it, what it says of itself, and the few commands that
//! change its role. The replication protocol itself is `proto`'s.

mod attached;
pub mod control;
pub mod digest;
pub mod examine;
pub mod info;
pub mod net;
pub mod pipeline;
pub mod scratch;
pub mod sentinel;
pub mod tls;
