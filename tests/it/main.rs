//! End-to-end tests: the real binary against real servers.
//!
//! One binary, so that it links once. Each scenario is a file; its tests' names say what is promised. A server that
//! this machine lacks is a loud, counted skip, and a failure where `$CI` is set. `scripts/servers.sh` gets them.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails by panicking says where; clippy's setting for tests does not reach helper functions"
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
