//! From the store to a server: a plan's bytes, checked on the way, into a running server or into files.

mod ahead;
pub mod around;
mod door;
pub mod drill;
pub mod fill;
pub mod mapped;
pub mod moment;
pub mod refusal;
pub mod rewrite;
pub mod seeder;
pub mod source;
pub mod to_commands;
pub mod to_dir;
pub mod to_dump;
pub mod to_replica;
pub mod ttl;
pub mod verify;

#[cfg(test)]
mod merged_meanwhile;
