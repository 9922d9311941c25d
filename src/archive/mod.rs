//! What lies in the bucket, as values and bytes: names, documents, blocks, segments and snapshots.
//!
//! Nothing here reads or writes a store, speaks to a server or tells the time; `docs/format.md` gives every
//! byte that these modules write.

pub mod block;
pub mod cut;
pub mod document;
pub mod layout;
pub mod moment;
pub mod plan;
pub mod retention;
pub mod segment;
pub mod snapshot;
pub mod timeline;
pub mod times;

#[cfg(test)]
mod golden;
mod pieces;
#[cfg(test)]
mod properties;
