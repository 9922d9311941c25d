//! End-to-end tests: the real binary against real servers.
//!
//! One binary, so that it links once. Each scenario is a file; its tests' names say what is promised. A server that
//! this machine lacks is a loud, counted skip, and a failure where `$CI` is set. `scripts/servers.sh` gets them.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails by panicking says where; the setting of clippy.toml does not reach functions that are no tests"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "deadlines of tests are measured in real time; only the library takes the time as an argument"
)]
#![allow(
    unreachable_pub,
    reason = "nothing of a test binary is reachable; `pub` marks what the scenarios use of the harness"
)]

// What everything else stands on: servers, clients, digest, workload, proxy, the binary itself.
mod harness;
// The harness proven on real servers, without Perennial: the digest sees what differs, the writers do not lie.
mod harness_proof;
// The layer table of the design, read from the sources.
mod layers;

// The promise: a master that comes up empty has everything back that was stored, and history goes on.
mod loop_closes;
// A server that starts from an older dump gets the writes that came after it.
mod stale_dump;
// A data set that its users emptied stays empty.
mod emptied_on_purpose;
// WAIT means that the write is in the store, also while the store refuses.
mod wait_means_stored;
// Values and transactions larger than every buffer.
mod big_values;
// Perennial dies under load and goes on, or says what is missing.
mod killed_under_load;
// Links that are cut at any byte, stall, or are slow.
mod bad_link;
// FAILOVER with nobody but us attached leaves the master writable.
mod failover_without_to;
// Wrong passwords, web servers, unwritable stores, damaged objects, wrong flags.
mod bad_input;
// What status and ls say.
mod status;
// Both killed at any moment, again and again.
mod double_kill;
// Seeds that must not come about, and stopping while something hangs.
mod seeds_refused;
// Google Cloud Storage, played by a fake in this process: the loop, what goes wrong, memory.
#[cfg(feature = "gcs")]
mod on_gcs;
// The help, word for word; every flag has its variable.
mod cli;
