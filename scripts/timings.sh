#!/usr/bin/env bash
# How long Perennial takes to start and to answer /metrics on this machine, printed. With the binary that PERENNIAL names, or a
# release build.
set -euo pipefail
cd "$(dirname "$0")/.."

redis=$(command -v redis-server || scripts/servers.sh --print redis-7.0)
if [[ -z ${PERENNIAL:-} ]]; then
	cargo build --release --quiet --bin perennial
	PERENNIAL=${CARGO_TARGET_DIR:-target}/release/perennial
fi
"$redis" --version
"$PERENNIAL" --version
echo "machine: $(nproc) cores, load $(cut -d ' ' -f 1 /proc/loadavg)"
exec python3 scripts/lab/timings.py "$(realpath "$PERENNIAL")" "$redis"
