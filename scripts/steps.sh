# shellcheck shell=bash
# To be sourced by the tests that run containers: what they say, how they wait, and the writer that never pauses.
# Whoever sources it sets these first:
#   what       what is tested, for messages
#   patience   seconds that any one step may take
#   folder     where files of this run go

writer_pid=

step() { printf '\n== %s\n' "$*"; }

fail() {
	printf '\n%s failed: %s\n' "${what:?}" "$*" >&2
	exit 1
}

# skipped REQUIRED WHY...: the end, loudly; a failure where REQUIRED is the word "required".
skipped() {
	local required=$1
	shift
	echo "SKIPPED: $what: $*" >&2
	[[ $required != required ]] || exit 1
	exit 0
}

# until_true WHAT COMMAND...: tries the command until it succeeds, for so long as patience lasts.
until_true() {
	local awaited=$1 end=$((SECONDS + ${patience:?}))
	shift
	until "$@" >/dev/null 2>&1; do
		((SECONDS < end)) || fail "waited $patience seconds in vain until $awaited"
		sleep 0.1
	done
}

# How many writes were waited for so far, and whether twenty more are than there were.
waited() { cat "${folder:?}/waited" 2>/dev/null || echo 0; }
writes_flow() { (($(waited) > $1 + 20)); }

# writes_begin COMMAND...: scripts/lab/writer.py, as COMMAND calls it, which must stay one process, by `exec` if need be.
writes_begin() {
	rm -f "$folder/waited"
	"$@" --status "$folder/waited" >"$folder/writer.log" &
	writer_pid=$!
	until_true "the writer writes" writes_flow 0
}

writes_end() {
	local status=0
	kill "$writer_pid"
	wait "$writer_pid" || status=$?
	writer_pid=
	echo "writer: $(tail -n 1 "$folder/writer.log")"
	((status == 0)) || fail "writes were lost, or taken before a seed"
}
