//! What to do: pure functions of what the server says, what the archive holds and the policy. Nothing here
//! connects, reads or waits; nothing elsewhere decides about data.
//!
//! Two questions are asked, in this order:
//!
//! 1. [`before_sync`]: given a [`Look`] at server and archive, what to ask of the server: follow it (offering
//!    which position), seed it, promote it, or leave it alone.
//! 2. [`after_sync`]: given the answer to PSYNC, where the bytes that follow belong.
//!
//! Before a seed there is a third, [`readable`]: whether the server can read the archive's payload at all.

mod answer;
mod payload;
mod relation;
mod table;

pub use answer::{Again, Outcome, Reply, after_sync};
pub use payload::{UnreadablePayload, readable};
pub use relation::{Look, Offer, Relation, Role, Server, look};
pub use table::{Action, Follow, Policy, Refusal, Suspicion, before_sync};
