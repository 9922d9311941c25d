#!/usr/bin/env bash
# Runs each fuzz target for so many seconds: `fuzz.sh 20`. Longer runs: `fuzz/run.sh TARGET SECONDS`.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-20}
if [[ ! -x fuzz/run.sh ]]; then
	if [[ -n ${CI:-} ]]; then
		echo "fuzz/run.sh is missing" >&2
		exit 1
	fi
	echo "SKIPPED: fuzz/run.sh is missing" >&2
	exit 0
fi
for target in fuzz/fuzz_targets/*.rs; do
	name=$(basename "$target" .rs)
	echo "fuzz: $name for $seconds s"
	fuzz/run.sh "$name" "$seconds"
done
