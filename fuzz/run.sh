#!/usr/bin/env bash
# Builds and runs a fuzz target on the stable toolchain, without cargo-fuzz.
#
#   fuzz/run.sh TARGET SECONDS [libFuzzer options]
#
# Starts from the tracked seeds in corpus/TARGET/seed-* and from what earlier runs found beside them. Exits
# non-zero when the target crashed; the input is then in artifacts/TARGET/ and is run again with
# `fuzz/run.sh TARGET 0 PATH`.
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
target=$1
seconds=$2
shift 2

cd "$(dirname "$0")"
host=$(rustc -vV | sed -n 's/^host: //p')
# The coverage that libFuzzer reads. With --target given, build scripts stay without it.
export RUSTFLAGS="\
 -Cpasses=sancov-module \
 -Cllvm-args=-sanitizer-coverage-level=4 \
 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
 -Cllvm-args=-sanitizer-coverage-pc-table \
 -Cllvm-args=-sanitizer-coverage-trace-compares \
 -Ccodegen-units=1 \
 --cfg fuzzing"
cargo build --release --target "$host" --bin "$target"
program=target/$host/release/$target

mkdir -p "corpus/$target" "artifacts/$target"
if [ "$seconds" = 0 ]; then
    exec "$program" -artifact_prefix="artifacts/$target/" "$@"
fi
exec "$program" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 \
    -artifact_prefix="artifacts/$target/" "$@" "corpus/$target"
