#!/usr/bin/env bash
# The whole of Perennial in a minute: a Redis without any persistence is killed, comes up empty, and has its guest book
# back. Everything lives in one temporary folder and is gone at the end, also after Ctrl-C.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly patience=30 # seconds that any one step may take

folder=$(mktemp -d "${TMPDIR:-/tmp}/perennial-demo.XXXXXX")
redis_pid=
perennial_pid=

clean_up() {
	trap - EXIT INT TERM
	local pid
	for pid in $perennial_pid $redis_pid; do
		kill -9 "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
	done
	rm -rf "$folder"
}
trap clean_up EXIT
trap 'clean_up; exit 130' INT
trap 'clean_up; exit 143' TERM

step() { printf '\n== %s\n' "$*"; }

fail() {
	printf '\nThe demo failed: %s\n' "$*" >&2
	printf '\nThe last lines of perennial:\n' >&2
	tail -n 30 "$folder/perennial.log" >&2 2>/dev/null || true
	exit 1
}

# until_true WHAT COMMAND...: tries the command until it succeeds, for so long as patience lasts.
until_true() {
	local what=$1 end=$((SECONDS + patience))
	shift
	until "$@" >/dev/null 2>&1; do
		((SECONDS < end)) || fail "waited $patience seconds in vain until $what"
		if [[ -n $perennial_pid ]] && ! kill -0 "$perennial_pid" 2>/dev/null; then
			fail "perennial has ended"
		fi
		sleep 0.05
	done
}

now_ms() { date +%s%3N; }

step "Getting ready"
if command -v redis-server >/dev/null && command -v redis-cli >/dev/null; then
	redis_server=$(command -v redis-server)
	redis_cli=$(command -v redis-cli)
else
	echo "redis-server is not installed: fetching your distribution's package with apt-get and unpacking it into"
	echo "target/servers. Nothing is installed on the system, and no root is needed."
	redis_server=$(scripts/servers.sh --print redis-7.0)
	redis_cli=$(dirname "$redis_server")/redis-cli
fi
"$redis_server" --version
if [[ -z ${PERENNIAL:-} ]]; then
	command -v cargo >/dev/null || fail "cargo is missing: install Rust first"
	echo "building perennial (the first time takes a few minutes)"
	cargo build --release --quiet --no-default-features --bin perennial
	perennial=${CARGO_TARGET_DIR:-target}/release/perennial
else
	perennial=$PERENNIAL
fi

archive=file://$folder/archive
seed_started=

redis() { "$redis_cli" -p "$port" "$@"; }

port_is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start_redis() {
	"$redis_server" --port "$port" --bind 127.0.0.1 --dir "$folder" --save '' --appendonly no \
		>>"$folder/redis.log" 2>&1 &
	redis_pid=$!
}

answers() { [[ $(redis ping 2>/dev/null) == PONG ]]; }

# A free port below those that the system gives out by itself.
pick_port() {
	local attempt
	for attempt in {1..50}; do
		port=$((20000 + RANDOM % 10000 + attempt))
		if port_is_free "$port"; then
			return
		fi
	done
	fail "no free port"
}

step "A Redis without any persistence: no dump, no append-only file, no volume"
pick_port
start_redis
until_true "redis answers" answers
echo "redis-server (pid $redis_pid) listens on port $port; save is \"$(redis config get save | tail -1)\", appendonly is \"$(redis config get appendonly | tail -1)\""

step "Perennial follows it into $archive"
echo "\$ perennial run --redis redis://127.0.0.1:$port --archive $archive"
"$perennial" run --redis "redis://127.0.0.1:$port" --archive "$archive" >"$folder/perennial.log" 2>&1 &
perennial_pid=$!
# A WAIT is only answered with 1 when the write before it is in the archive.
stored() { [[ $(printf 'INCR visits\nWAIT 1 1000\n' | redis | tail -1) -ge 1 ]]; }
until_true "the first write is in the archive" stored

step "Guests sign the book"
guests=("Hello from Ada" "Hello from Grace" "Hello from Linus" "Hello from Salvatore" "Hello from Frances")
for guest in "${guests[@]}"; do
	redis rpush guestbook "$guest" >/dev/null
	echo "  $guest"
done
until_true "the guest book is in the archive" stored
entries_before=$(redis lrange guestbook 0 -1)
echo "WAIT 1 says: all of this is in the archive."

step "What lies in the archive"
echo "\$ perennial ls --archive $archive"
"$perennial" ls --archive "$archive"

step "Killing redis with kill -9, and starting it empty"
disown "$redis_pid" 2>/dev/null || true
seed_started=$(now_ms)
kill -9 "$redis_pid"
while kill -0 "$redis_pid" 2>/dev/null; do sleep 0.01; done
start_redis
until_true "redis answers" answers
echo "redis-server runs again (pid $redis_pid); nobody copies a file, nobody types a command."

entries_are_back() {
	[[ $(redis lrange guestbook 0 -1 2>/dev/null) == "$entries_before" ]] &&
		redis info replication | grep -q '^role:master'
}
until_true "the entries are back" entries_are_back
elapsed=$(($(now_ms) - seed_started))
step "The guest book is back, $elapsed ms after the kill"
redis lrange guestbook 0 -1 | sed 's/^/  /'

step "And life goes on, in a new timeline that continues the old one"
redis rpush guestbook "Hello again" >/dev/null
until_true "the new entry is in the archive" stored
echo "\$ perennial status --archive $archive"
"$perennial" status --archive "$archive"

step "Done after $SECONDS s. Everything the demo started is stopped and removed."
