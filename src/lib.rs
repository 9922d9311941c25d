//! Perennial: Redis that comes back.
//!
//! ```text
//! follow    master -> link -> proto::replica -> proto::resp -> archive::segment -> store
//!                   (socket)     (events)      (command ends)   (sealed blocks)   (bucket)
//!             <------------ acknowledge what the store has confirmed <----------------'
//!
//! restore   store -> archive::plan -> restore::source -+-> to_dir      files a server can start from
//!                    (which objects)  (checked bytes)  +-> to_replica  proto::master: seed, serve
//! ```
//!
//! The library is public only so that the binary, the tests and the benches can reach it: nothing in it is a
//! stable interface. `ARCHITECTURE.md` has a paragraph on each module and the invariants they keep.

pub mod advice;
pub mod clock;
pub mod position;
pub mod random;
pub mod shell;

pub mod proto;

pub mod archive;
pub mod decide;
pub mod store;

pub mod server;

pub mod check;

pub mod follow;
pub mod restore;
pub mod upkeep;

pub mod replay;

pub mod http;
pub mod metrics;

pub mod cli;
pub mod config;
