#!/usr/bin/env bash
# Puts bugs into src/ on purpose, one after the other, and demands that a test notices each: by its name, not by any failure.
#
# tests/mutants/NAME.patch: what is wrong in words; lines `caught-by: lib TEST`, `caught-by: it TEST` or
# `caught-by: simulate SEEDS` (500 of them: `0..500`); then the patch. All that is named has to fail.
# `MUTANTS="one another"` runs only those. Works on a copy in target/mutants/tree, with a target folder of its own: no program
# with a bug in it ever lies where anybody would start it. What is built of the dependencies is taken along.
set -euo pipefail
cd "$(dirname "$0")/.."

place=$PWD/target/mutants
tree=$place/tree
jobs=${MUTANTS_JOBS:-$(nproc)}
export CARGO_TARGET_DIR=$place/target CARGO_INCREMENTAL=1
features=(--features faulty)

cargo nextest --version >/dev/null 2>&1 || {
	echo "make mutants needs cargo-nextest (cargo install --locked cargo-nextest)" >&2
	exit 2
}

copy_the_tree() {
	mkdir -p "$tree"
	rm -rf "${tree:?}/src" "$tree/tests"
	# With the times of the files: what has not changed is not built again.
	git ls-files -z --cached --others --exclude-standard |
		while IFS= read -r -d '' file; do [[ -e $file ]] && printf '%s\0' "$file"; done |
		tar --null --files-from - --create | tar --extract --directory "$tree"
	# What was built last may be a mutant, and newer than the file that it was made of.
	touch "$tree/src/lib.rs"
	# The servers, for tests that need them.
	mkdir -p "$tree/target"
	ln -sfn "$PWD/target/servers" "$tree/target/servers"
}

# Links, not copies: what cargo finds to be of no use it builds anew.
take_dependencies_along() {
	[[ -d target/debug/deps && ! -e $place/target/debug ]] || return 0
	mkdir -p "$place/target/debug"
	cp --archive --link target/debug/{deps,build,.fingerprint} "$place/target/debug/"
	# Our own are built of another folder.
	rm -rf "$place"/target/debug/.fingerprint/perennial-* "$place"/target/debug/deps/*perennial-*
}

# Everything that is named after `caught-by:` with this kind, a line each.
named() {
	sed -n "s/^caught-by: $1 *//p" "$2"
}

# Runs tests of a kind (lib or it) by their names: 0 passed, 100 failed, anything else neither.
run_tests() {
	local kind=$1 filter=
	shift
	for test in "$@"; do filter+="${filter:+ | }test(=$test)"; done
	local which=(--lib)
	[[ $kind == it ]] && which=(--test it)
	(cd "$tree" && cargo nextest run --build-jobs "$jobs" "${features[@]}" "${which[@]}" --no-fail-fast --retries 0 \
		--failure-output never --color never -E "$filter" </dev/null)
}

# The simulation has no test runner: its exit code tells.
run_simulation() {
	(cd "$tree" && RUSTFLAGS="--cfg tokio_unstable" cargo build --profile simulation --no-default-features \
		--features simulation --bin simulate && "$CARGO_TARGET_DIR/simulation/simulate" --seeds "$1" </dev/null)
}

# Whether all that is named fails. Says who did not.
is_caught() {
	local patch=$1 log=$2 code
	for kind in lib it; do
		while read -r test; do
			code=0
			run_tests "$kind" "$test" >>"$log" 2>&1 || code=$?
			case $code in
			100) ;;
			0) echo "$test passes" && return 1 ;;
			4) echo "there is no test $test" && return 1 ;;
			*) echo "it cannot be built or run: $log" && return 1 ;;
			esac
		done < <(named "$kind" "$patch")
	done
	while read -r seeds; do
		code=0
		run_simulation "$seeds" >>"$log" 2>&1 || code=$?
		case $code in
		1) ;;
		0) echo "simulate $seeds passes" && return 1 ;;
		*) echo "the simulation cannot be built or run: $log" && return 1 ;;
		esac
	done < <(named simulate "$patch")
}

mkdir -p "$place/logs" "$place/target"
take_dependencies_along
copy_the_tree
if [[ -n ${MUTANTS:-} ]]; then
	read -ra names <<<"$MUTANTS"
	patches=()
	for name in "${names[@]}"; do patches+=("tests/mutants/$name.patch"); done
else
	patches=(tests/mutants/*.patch)
fi

echo "without any of them, everything that is named passes:"
for kind in lib it; do
	mapfile -t tests < <(for patch in "${patches[@]}"; do named "$kind" "$patch"; done | sort -u)
	((${#tests[@]})) || continue
	run_tests "$kind" "${tests[@]}" >"$place/logs/none-$kind.log" 2>&1 || {
		tail -n 40 "$place/logs/none-$kind.log" >&2
		echo "they do not" >&2
		exit 1
	}
	grep -a "tests run" "$place/logs/none-$kind.log" || true
done
while read -r seeds; do
	run_simulation "$seeds" >"$place/logs/none-simulate.log" 2>&1 || {
		tail -n 40 "$place/logs/none-simulate.log" >&2
		exit 1
	}
done < <(for patch in "${patches[@]}"; do named simulate "$patch"; done | sort -u)

survivors=0
for patch in "${patches[@]}"; do
	name=$(basename "$patch" .patch)
	log=$place/logs/$name.log
	: >"$log"
	began=$SECONDS
	why=
	if [[ -z $(named '[a-z]*' "$patch") ]]; then
		why="no line says caught-by:"
	elif ! patch --directory "$tree" --strip 1 --fuzz 0 --forward --batch --dry-run <"$patch" >>"$log" 2>&1; then
		why="the patch does not apply: mend it"
	else
		patch --directory "$tree" --strip 1 --fuzz 0 --batch --quiet <"$patch"
		why=$(is_caught "$patch" "$log") || why=${why:-?}
		patch --directory "$tree" --strip 1 --fuzz 0 --batch --quiet --reverse <"$patch"
	fi
	if [[ -n $why ]]; then
		survivors=$((survivors + 1))
		printf 'SURVIVES %-40s %s\n' "$name" "$why"
	else
		printf 'caught   %-40s %4d s  %s\n' "$name" $((SECONDS - began)) \
			"$(sed -n 's/^caught-by: //p' "$patch" | paste -sd, | sed 's/,/, /g')"
	fi
done
if ((survivors)); then
	echo "$survivors of ${#patches[@]} survive; what they did is in $place/logs" >&2
	exit 1
fi
echo "all ${#patches[@]} are caught"
