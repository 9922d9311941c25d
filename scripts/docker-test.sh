#!/usr/bin/env bash
# docker/compose.yaml for real: up, a writer that never pauses, Redis and Perennial killed with kill -9, everything stopped
# and started; every write that WAIT answered for is there afterwards, and Prometheus has seen it. Where no container
# engine runs and none can be started this is SKIPPED, loudly; with CI set too, unless DOCKER_TEST=required.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly patience=120 # seconds that any one step may take
what="the container test"
folder=$(mktemp -d "${TMPDIR:-/tmp}/perennial-docker.XXXXXX")
# shellcheck source=scripts/engine.sh
source scripts/engine.sh
# shellcheck source=scripts/steps.sh
source scripts/steps.sh
# shellcheck source=scripts/compose.sh
source scripts/compose.sh

clean_up() {
	local status=$?
	trap - EXIT INT TERM
	[[ -z $writer_pid ]] || kill -9 "$writer_pid" 2>/dev/null || true
	compose_end "$status"
	engine_stop
	rm -rf "$folder"
	exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# query EXPRESSION: the values that Prometheus has for it, one per line.
query() {
	curl -sS --max-time 5 --get --data-urlencode "query=$1" "http://127.0.0.1:$PROMETHEUS_PORT/api/v1/query" |
		python3 -c 'import json, sys; [print(r["value"][1]) for r in json.load(sys.stdin)["data"]["result"]]'
}
# holds EXPRESSION: whether it gives at least one value.
holds() { [[ -n $(query "$1") ]]; }

# Every panel of the dashboard asks for something that is there, but for what is not built yet.
dashboard_has_values() {
	local expression empty=0 asked=0
	# shellcheck disable=SC2016 # $instance is Grafana's.
	while read -r expression; do
		asked=$((asked + 1))
		holds "$expression" || {
			echo "no value: $expression" >&2
			empty=$((empty + 1))
		}
	done < <(python3 -c '
import json
for panel in json.load(open("manifests/components/dashboard/perennial.json"))["panels"]:
    for target in panel.get("targets", []):
        expression = target["expr"].replace("$instance", ".*")
        if "spool" not in expression and "verified" not in expression:
            print(expression)')
	((empty == 0)) || fail "$empty of $asked expressions of the dashboard have no value"
	echo "the dashboard: $asked expressions, each with a value"
}

page() { curl -sS --max-time 10 "http://127.0.0.1:$GUESTBOOK_PORT$1"; }
sign() { curl -sS --max-time 20 --location --data-urlencode "entry=$1" "http://127.0.0.1:$GUESTBOOK_PORT/entries"; }
page_shows() { page /entries | grep -qF "$1"; }

hammer() { writes_begin python3 scripts/lab/writer.py 127.0.0.1 "$REDIS_PORT" --acks 2 --pause 2; }

engine_start || skipped "${DOCKER_TEST:-}" "no container engine runs, and none can be started (root, and apt-get install docker.io)"

step "Images"
compose_images

services=(pod perennial redis redis-replica guestbook prometheus)
# Grafana's image cannot be built from Debian: scripts/manifests-check.sh looks at its files.
run_scenario() {
	step "$1: up"
	shift
	local began=$SECONDS
	if (($# > 0)); then
		compose "$@" up --detach --wait s3 2>"$folder/up.log" || fail "compose up: the test server for S3"
	fi
	compose "$@" up --detach --wait --quiet-pull "${services[@]}" 2>"$folder/up.log" || {
		cat "$folder/up.log" >&2
		fail "compose up"
	}
	compose "$@" exec -T perennial /usr/local/bin/perennial status | sed -n 1,2p
	echo "all healthy after $((SECONDS - began)) s"

	step "The guest book is signed; Prometheus scrapes"
	sign "Ada was here" | grep -q "in the archive" || fail "the entry was not acknowledged by the archive"
	until_true "the page shows the entry" page_shows "Ada was here"
	until_true "Prometheus scrapes" holds 'up{job="perennial"} == 1'
	until_true "Prometheus knows that it is ready" holds 'perennial_ready == 1'

	step "Writes without a pause; redis is killed with kill -9, twice; then Perennial"
	hammer
	until_true "the durable offset moves" holds 'delta(perennial_durable_offset[30s]) > 0'
	kill_process redis
	page_shows "Ada was here" || fail "the entry is gone"
	kill_process redis
	until_true "Prometheus has counted both seeds" holds 'perennial_seeds_total{result="done"} >= 2'
	# Now: what Perennial has not done itself since its start, it gives no number for.
	dashboard_has_values
	kill_process perennial
	until_true "the durable lag was seen to move" holds 'changes(perennial_durable_lag_bytes[5m]) > 0'
	writes_end
	page_shows "Ada was here" || fail "the entry is gone"
	echo "perennial: $(docker stats --no-stream --format '{{.MemUsage}}' "$(compose ps --quiet perennial)")"

	step "Everything is stopped, in order, and started again"
	hammer
	compose "$@" stop "${services[@]}" >/dev/null 2>&1
	compose "$@" up --detach --wait "${services[@]}" >/dev/null 2>&1 || fail "compose up, the second time"
	writes_end
	until_true "the page shows the entry" page_shows "Ada was here"
	compose logs perennial | grep -o 'stopped: everything received is in the archive' | head -n 1
}

run_scenario "The archive in a volume"
compose --profile s3 down --volumes --timeout 5 >/dev/null 2>&1
run_scenario "The archive in a bucket of a test server" --env-file docker/s3.env
echo
echo "Done after $SECONDS s."
