#!/usr/bin/env bash
# Makes the servers available that the tests drive. One that the system has in the right version is used as it is;
# others are unpacked from the distribution's own packages into target/servers: nothing is installed, no service is
# started, no root is needed.
#
#   servers.sh                 all servers; prints where each one is
#   servers.sh --print NAME    only the path of that server's program, on stdout
set -euo pipefail
cd "$(dirname "$0")/.."

root=$PWD/target/servers
names=(redis-7.0)

say() { echo "servers: $*" >&2; }

# is_version PROGRAM PREFIX: whether the program says that it is of that version.
is_version() {
	[[ -n $1 && -x $1 ]] && [[ $("$1" --version 2>/dev/null) == "$2"* ]]
}

# apt_private ARGUMENTS...: apt with package lists of our own, for machines whose lists are empty (fresh containers)
# or out of date. The sources and keys are the system's.
apt_private() {
	local program=$1 state=$root/.apt
	shift
	mkdir -p "$state/lists/partial" "$state/archives/partial"
	"$program" -q -o Dir::State::lists="$state/lists" -o Dir::Cache="$state" -o Dir::Cache::archives="$state/archives" \
		-o APT::Sandbox::User="$(id -un)" -o APT::Update::Post-Invoke::= "$@"
}

# apt_any ARGUMENTS...: the system's lists where they are enough, otherwise our own.
apt_any() {
	if [[ -e $root/.apt/lists/lock ]]; then
		apt_private "$@"
	else
		"$@"
	fi
}

# candidate PACKAGE: the version that apt would install.
candidate() {
	apt_any apt-cache policy "$1" | sed -n 's/^  Candidate: //p'
}

# libraries_of PACKAGE...: what these packages need beyond libc, recursively, without the ones that run a system.
libraries_of() {
	apt_any apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
		--no-enhances "$@" | sed -n 's/^\([a-z0-9][^ :]*\).*$/\1/p' | sort -u |
		grep -E '^(lib(jemalloc|lua|lzf|hiredis|ssl|atomic|systemd|cap|gcrypt|gpg-error|lz4|lzma|zstd|stdc|gcc-s)|lua-)' |
		grep -vE -- '-(dev|dbg|doc)$' || true
}

# download PACKAGE VERSION FOLDER: the package, redis-tools and their libraries into the folder, if apt knows the package
# in a version that contains VERSION.
download() {
	local package=$1 version=$2 folder=$3 found packages
	found=$(candidate "$package")
	if [[ $found != *"$version"* ]]; then
		say "this distribution's $package is ${found:-not known}, not $version"
		return 1
	fi
	say "downloading $package $found"
	mapfile -t packages < <(
		printf '%s\n' "$package" redis-tools
		libraries_of "$package" redis-tools
	)
	(cd "$folder" && apt_any apt-get download "${packages[@]}" >&2)
}

# start_line FOLDER PROGRAM: a script that starts an unpacked program with the libraries that lie beside it.
start_line() {
	cat >"$1/$2" <<-EOF
		#!/bin/sh
		here=\$(dirname "\$(readlink -f "\$0")")
		libraries=\$(ls -d "\$here"/files/usr/lib/*-linux-* "\$here"/files/lib/*-linux-* 2>/dev/null | tr '\n' ':')
		LD_LIBRARY_PATH=\$libraries\${LD_LIBRARY_PATH-} exec "\$here/files/usr/bin/$2" "\$@"
	EOF
	chmod +x "$1/$2"
}

# unpack_debian NAME PACKAGE VERSION PROGRAM: target/servers/NAME/PROGRAM from the distribution's package.
unpack_debian() {
	local name=$1 package=$2 version=$3 program=$4 folder=$root/$1 work=$root/$1.tmp deb
	if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
		say "$name: no apt-get here"
		return 1
	fi
	rm -rf "$work" "$folder"
	mkdir -p "$work/packages" "$work/files"
	if ! download "$package" "$version" "$work/packages"; then
		say "$name: trying again with fresh package lists of our own (the system's are left alone)"
		apt_private apt-get update >&2 || true
		download "$package" "$version" "$work/packages" || return 1
	fi
	for deb in "$work"/packages/*.deb; do
		dpkg -x "$deb" "$work/files"
	done
	rm -rf "$work/packages"
	start_line "$work" "$program"
	start_line "$work" redis-cli
	start_line "$work" redis-benchmark
	mv "$work" "$folder"
	rm -rf "$root/.apt"
	say "$name: unpacked into target/servers/$name"
}

# server NAME VARIABLE PACKAGE VERSION PROGRAM SAYS: prints the path of the server's program.
server() {
	local name=$1 variable=$2 package=$3 version=$4 program=$5 says=$6 given installed
	given=${!variable-}
	if [[ -n $given ]]; then
		is_version "$given" "$says" || {
			say "$variable=$given is not a \"$says…\""
			return 1
		}
		echo "$given"
		return
	fi
	if is_version "$root/$name/$program" "$says"; then
		echo "$root/$name/$program"
		return
	fi
	installed=$(command -v "$program" || true)
	if is_version "$installed" "$says"; then
		echo "$installed"
		return
	fi
	unpack_debian "$name" "$package" "$version" "$program" || {
		say "$name: not available; set $variable to the path of such a server"
		return 1
	}
	is_version "$root/$name/$program" "$says" || {
		say "$name: what was unpacked does not run:"
		"$root/$name/$program" --version >&2 || true
		return 1
	}
	echo "$root/$name/$program"
}

by_name() {
	case $1 in
	redis-7.0) server redis-7.0 PERENNIAL_REDIS_7_0 redis-server :7.0. redis-server "Redis server v=7.0." ;;
	*)
		say "unknown server $1"
		return 2
		;;
	esac
}

if [[ ${1-} == --print ]]; then
	by_name "${2:?name of a server}"
	exit
fi
missing=0
for name in "${names[@]}"; do
	if path=$(by_name "$name"); then
		echo "$name: $path"
	else
		missing=$((missing + 1))
	fi
done
if ((missing > 0)); then
	say "$missing servers are missing; their tests are skipped, and fail where CI is set"
	[[ -z ${CI:-} ]]
fi
