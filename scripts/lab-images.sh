#!/usr/bin/env bash
# The images that the container tests run, for machines that reach no registry: Debian's base with debootstrap, stand-ins
# for Redis, Prometheus, Python and moto out of Debian's packages and PyPI, and Perennial and its guest book from here.
# Wants an engine (scripts/engine.sh). Perennial's binary is built here, unless PERENNIAL names one.
#
#   lab-images.sh            all; tags lab/redis:1, lab/prometheus:1, lab/moto:1, lab/perennial:1, lab/guestbook:1
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "lab-images: $*" >&2; }
has() { docker image inspect "$1" >/dev/null 2>&1; }

build() {
	local tag=$1
	shift
	say "$tag"
	docker buildx build --quiet --load --network host --tag "$tag" "$@" >/dev/null
}

if ! has debian:bookworm-slim && ! docker pull --quiet debian:bookworm-slim >/dev/null 2>&1; then
	command -v debootstrap >/dev/null || {
		say "debian:bookworm-slim can neither be pulled nor made (apt-get install debootstrap)"
		exit 3
	}
	say "debian:bookworm-slim, with debootstrap"
	rootfs=$(mktemp -d "$PWD/target/rootfs.XXXXXX")
	trap 'rm -rf --one-file-system "$rootfs"' EXIT
	debootstrap --variant=minbase bookworm "$rootfs" >"$rootfs.log" 2>&1 || {
		tail "$rootfs.log" >&2
		exit 1
	}
	rm -rf "$rootfs.log" "$rootfs"/usr/share/{doc,man,info,locale} "$rootfs"/var/cache/apt/* "$rootfs"/var/lib/apt/lists/*
	# As the public image: no cache of packages stays in a layer.
	echo 'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache ""; DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };' \
		>"$rootfs/etc/apt/apt.conf.d/docker-clean"
	tar -C "$rootfs" --numeric-owner -c . | docker import --change 'CMD ["bash"]' - debian:bookworm-slim >/dev/null
	rm -rf "$rootfs"
	trap - EXIT
fi

for name in redis prometheus python; do
	has "lab/$name:1" || build "lab/$name:1" -f docker/lab/Dockerfile --target "$name" docker/lab
done
if ! has lab/moto:1; then
	moto=$(scripts/servers.sh --print moto)
	build lab/moto:1 -f docker/lab/Dockerfile --target moto "$(dirname "$moto")"
fi

if [[ -n ${PERENNIAL:-} ]]; then
	install -D --strip "$PERENNIAL" dist/perennial
elif [[ ! -x dist/perennial || -n $(find src Cargo.toml Cargo.lock -newer dist/perennial -print -quit) ]]; then
	say "building perennial (dist/perennial keeps it)"
	cargo build --release --locked --bin perennial
	install -D --strip "${CARGO_TARGET_DIR:-target}/release/perennial" dist/perennial
fi
build lab/perennial:1 -f docker/Dockerfile --build-arg BIN=prebuilt --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)" .
build lab/guestbook:1 --build-arg PYTHON=lab/python:1 docker/guestbook
