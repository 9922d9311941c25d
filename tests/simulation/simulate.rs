//! Runs Perennial in simulated worlds, a seed each: see `make simulation` and decision 53.
//!
//! `simulate --seeds 0..2000` runs these, `--seed N --trace` one with everything that happens, `--hours H` random ones for so
//! long. A violation of what is promised ends it with 1, at once unless `--all` is given.

#![allow(unreachable_pub, reason = "its modules are a program's own")]
#![allow(clippy::print_stdout, reason = "a tool for the terminal")]

mod bucket;
mod chance;
mod clock;
mod data;
mod report;
mod scenario;
mod server;
mod streamer;
mod trace;
mod truth;
mod verdict;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    report::main(std::env::args().skip(1))
}
