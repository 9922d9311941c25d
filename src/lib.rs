//! Perennial: Redis that comes back.

pub mod archive;
pub mod clock;
pub mod position;
pub mod proto;
pub mod store;
