#!/usr/bin/env bash
# Runs one of the two test suites: `test.sh unit` or `test.sh e2e`, with cargo-nextest where there is one.
set -euo pipefail
cd "$(dirname "$0")/.."

suite=${1:?unit or e2e}

run() {
	if cargo nextest --version >/dev/null 2>&1; then
		cargo nextest run ${CI:+--profile ci} --features faulty "$@"
	else
		echo "cargo-nextest is not installed (cargo install --locked cargo-nextest): using cargo test" >&2
		cargo test --features faulty "$@"
	fi
}

case $suite in
unit)
	run --lib --bins --test proto
	cargo test --quiet --doc --features faulty
	;;
e2e)
	scripts/tools.sh promtool >/dev/null || true # where there is none, its test says so
	skips=$PWD/target/skipped-tests.txt
	mkdir -p target
	rm -f "$skips"
	PERENNIAL_SKIPS=$skips run --test it
	if [[ -s $skips ]]; then
		echo "$(wc -l <"$skips") tests were SKIPPED:" >&2
		sort "$skips" >&2
	fi
	;;
*)
	echo "unknown suite $suite: unit or e2e" >&2
	exit 2
	;;
esac
