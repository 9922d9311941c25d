#!/usr/bin/env bash
# Builds the simulation and runs it with the given arguments: see tests/simulation/simulate.rs.
set -euo pipefail
cd "$(dirname "$0")/.."

# Of its own, so that its flags do not rebuild everything else: few crates, since no store's SDK is among them.
export RUSTFLAGS="--cfg tokio_unstable"
cargo build --quiet --profile simulation --no-default-features --features simulation --bin simulate \
	--target-dir target/simulation
exec target/simulation/simulation/simulate "$@"
