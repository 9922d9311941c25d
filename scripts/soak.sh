#!/usr/bin/env bash
# docker/compose.yaml under load for MINUTES: soak.sh [MINUTES], 60 unless given. Redis and Perennial, whose container may use
# 128 MiB, are killed with kill -9 by turns, every KILL_SECONDS (60). At the end every write that WAIT answered for must be
# there, the archive is restored by files, and what a server makes of them is compared with the one that lived. Prints what
# memory was used; fails where the container ran out of it. Wants what docker-test.sh wants.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly minutes=${1:-60}
readonly kill_seconds=${KILL_SECONDS:-60}
readonly load_bytes=${LOAD_BYTES:-300000} # a second
readonly limit_mib=128                   # of perennial's container, as compose.yaml says
readonly patience=300                    # seconds that any one step may take
what="the soak"
folder=$(mktemp -d "${TMPDIR:-/tmp}/perennial-soak.XXXXXX")
# shellcheck source=scripts/engine.sh
source scripts/engine.sh
# shellcheck source=scripts/steps.sh
source scripts/steps.sh
# shellcheck source=scripts/compose.sh
source scripts/compose.sh
load_pid=
restored=

clean_up() {
	local status=$?
	trap - EXIT INT TERM
	for pid in $writer_pid $load_pid; do
		kill -9 "$pid" 2>/dev/null || true
	done
	[[ -z $restored ]] || docker rm --force "$restored" >/dev/null 2>&1 || true
	compose_end "$status"
	engine_stop
	rm -rf "$folder"
	exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Of the process, and of its container: what the page cache holds of the archive's files counts there and is given back on
# demand, so the anonymous memory is what the limit is about.
resident_peak=0
anonymous_peak=0
container_peak=0
out_of_memory=0
higher() { (($1 > $2)) && echo "$1" || echo "$2"; }
of_status() { awk -v field="$1:" '$1 == field { print $2 * 1024 }' "/proc/$process/status" 2>/dev/null || true; }
in_group() { cat "$group/$1" 2>/dev/null || true; }
measure() {
	local process group path values
	process=$(process_of perennial 2>/dev/null) && ((process > 0)) || return 0
	values=$(of_status VmHWM)
	resident_peak=$(higher "${values:-0}" "$resident_peak")
	path=$(awk -F: '$2 == "memory" { print $3 }' "/proc/$process/cgroup" 2>/dev/null) || return 0
	if [[ -n $path ]]; then
		group=/sys/fs/cgroup/memory$path
		container_peak=$(higher "$(in_group memory.max_usage_in_bytes | grep . || echo 0)" "$container_peak")
		anonymous_peak=$(higher "$(in_group memory.stat | awk '$1 == "total_rss" { print $2 }' | grep . || echo 0)" "$anonymous_peak")
		out_of_memory=$(higher "$(in_group memory.oom_control | awk '$1 == "oom_kill" { print $2 }' | grep . || echo 0)" "$out_of_memory")
	else
		path=$(awk -F: '$1 == "0" { print $3 }' "/proc/$process/cgroup" 2>/dev/null) || return 0
		group=/sys/fs/cgroup$path
		container_peak=$(higher "$(in_group memory.peak | grep . || echo 0)" "$container_peak")
		anonymous_peak=$(higher "$(in_group memory.stat | awk '$1 == "anon" { print $2 }' | grep . || echo 0)" "$anonymous_peak")
		out_of_memory=$(higher "$(in_group memory.events | awk '$1 == "oom_kill" { print $2 }' | grep . || echo 0)" "$out_of_memory")
	fi
}
mib() { echo "$(($1 >> 20)) MiB"; }
memory() { echo "resident $(mib "$resident_peak"), container without page cache $(mib "$anonymous_peak"), with it $(mib "$container_peak") of $limit_mib MiB, out of memory $out_of_memory times"; }

# The engine counts only the restarts since its own last start of the container; so do we.
declare -A kills=([redis]=0 [perennial]=0)
kill_and_count() {
	local before
	measure
	before=$(waited)
	kill_process "$1"
	until_true "waited writes flow again" writes_flow "$before"
	kills[$1]=$((kills[$1] + 1))
}

until_second() {
	while ((SECONDS < $1)); do
		measure
		sleep 1
	done
}

engine_start || skipped "${SOAK:-}" "no container engine runs, and none can be started (root, and apt-get install docker.io)"

step "Images"
compose_images

step "Up"
services=(pod perennial redis redis-replica)
compose up --detach --wait --quiet-pull "${services[@]}" 2>"$folder/up.log" || {
	cat "$folder/up.log" >&2
	fail "compose up"
}

step "$minutes minutes of load, a kill every $kill_seconds s"
began=$SECONDS
python3 scripts/lab/load.py 127.0.0.1 "$REDIS_PORT" --bytes-per-second "$load_bytes" &
load_pid=$!
writes_begin python3 scripts/lab/writer.py 127.0.0.1 "$REDIS_PORT" --acks 2 --writers 2 --pause 100 --wait-millis 10000
end=$((began + minutes * 60))
next=$((began + kill_seconds))
victims=(redis perennial)
turn=0
while ((next < end)); do
	until_second "$next"
	kill_and_count "${victims[turn % 2]}"
	turn=$((turn + 1))
	if ((turn % 10 == 0)); then
		echo "after $(((SECONDS - began) / 60)) min: $(waited) writes waited for, killed: redis ${kills[redis]} times, perennial ${kills[perennial]} times; $(memory)"
	fi
	next=$((next + kill_seconds > SECONDS + 5 ? next + kill_seconds : SECONDS + 5))
done
until_second "$end"
kill "$load_pid"
wait "$load_pid" || fail "the load failed"
load_pid=
writes_end
measure
echo "perennial: $(memory)"
((out_of_memory == 0)) || fail "the container ran out of memory"

step "Restored by files, and compared"
python3 scripts/lab/writer.py 127.0.0.1 "$REDIS_PORT" --acks 2 --once
compose run --rm --no-deps --quiet-pull perennial restore --archive file:///var/lib/perennial/archive --to /var/lib/perennial/restored
restored=$(docker run --detach --user 65532:65532 --volumes-from "$(container_of perennial)" --entrypoint redis-server "$REDIS_IMAGE" \
	--dir /var/lib/perennial/restored --appendonly yes --save "" --protected-mode no)
address=$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$restored")
loaded() { [[ $(docker exec "$restored" redis-cli ping) == PONG ]]; }
until_true "the restored server has loaded" loaded
python3 scripts/lab/same.py "127.0.0.1:$REDIS_PORT" "$address:6379" || fail "what was restored is not what the server has"
docker exec "$(container_of perennial)" /usr/local/bin/perennial status --archive file:///var/lib/perennial/archive | tail -n 4

echo
echo "Done after $(((SECONDS - began) / 60)) min: killed redis ${kills[redis]} times, perennial ${kills[perennial]} times."
