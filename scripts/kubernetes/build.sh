#!/usr/bin/env bash
# A small real Kubernetes without a registry: 1.20.2 out of Debian bookworm's own source package, with Debian's Go. About
# six minutes on two cores and 2 GB, once; KUBE_DIR keeps it. As root; installs what it needs with apt-get.
set -euo pipefail

kube=$(realpath -m "${KUBE_DIR:-$HOME/.cache/perennial-kube}")
mkdir -p "$kube/bin" "$kube/src"
if [[ -x $kube/bin/kubelet && -x $kube/bin/etcd && -x $kube/src/pause ]]; then
	exit 0
fi
[[ $(id -u) == 0 ]] || {
	echo "kubernetes: building it wants root" >&2
	exit 3
}

if ! grep -rqs '^deb-src .*bookworm' /etc/apt/sources.list /etc/apt/sources.list.d; then
	mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -oE 'https?://[^ ]*/debian/?( |$)' | head -n 1 | tr -d ' ') || true
	echo "deb-src ${mirror:-http://deb.debian.org/debian} bookworm main" >/etc/apt/sources.list.d/bookworm-src.list
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends dpkg-dev golang-go git rsync jq make gcc libc6-dev conntrack socat \
	iproute2 iptables openssl curl docker.io

cd "$kube/src"
apt-get source -qq --only-source kubernetes
cd kubernetes-1.20*/
# Built as the package builds it, without its packaging: the sources seen as a GOPATH.
mkdir -p .go/src/k8s.io
[[ -L .go/src/k8s.io/kubernetes ]] || ln -s ../../.. .go/src/k8s.io/kubernetes
GOPATH=$PWD/.go CGO_ENABLED=0 KUBE_GIT_VERSION=v1.20.2 KUBE_GIT_COMMIT=debian KUBE_GIT_TREE_STATE=clean KUBE_GIT_MAJOR=1 \
	KUBE_GIT_MINOR=20 make GOLDFLAGS="-w -s" \
	WHAT="cmd/kube-apiserver cmd/kube-controller-manager cmd/kube-scheduler cmd/kubelet cmd/kube-proxy"
cp _output/local/go/bin/kube* "$kube/bin/"

# Unpacked, not installed: no service shall start.
cd "$kube/src"
apt-get download -qq etcd-server etcd-client
for package in etcd-*.deb; do
	dpkg -x "$package" etcd
done
cp etcd/usr/bin/etcd etcd/usr/bin/etcdctl "$kube/bin/"

# The container that holds a pod's namespaces.
printf '#include <unistd.h>\nint main(void) { for (;;) pause(); }\n' >pause.c
gcc -static -Os -s -o pause pause.c
