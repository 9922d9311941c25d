#!/usr/bin/env bash
# Starts the one-node Kubernetes of build.sh. To be run inside a network namespace of its own, so that neither ports nor
# rules of iptables meet the machine's:
#   ip netns add perennial-kube; nsenter --net=/run/netns/perennial-kube scripts/kubernetes/up.sh
# $KUBE_DIR/images.tar (docker save) holds the images of the pods, lab/pause:1 among them. Then:
#   nsenter --net=/run/netns/perennial-kube kubectl --kubeconfig $KUBE_DIR/kubeconfig get nodes
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
kube=$(realpath -m "${KUBE_DIR:-$HOME/.cache/perennial-kube}")
cd "$kube"
mkdir -p log pki run cni
: >pids

# start NAME PROGRAM ARGUMENTS...: in the background, its id noted for down.sh.
start() {
	local name=$1
	shift
	setsid nohup "$@" >"log/$name.log" 2>&1 &
	echo "$! $name" >>pids
}

wait_for() {
	local what=$1
	shift
	for _ in {1..300}; do
		"$@" >/dev/null 2>&1 && return
		sleep 0.2
	done
	echo "kubernetes: $what does not answer; see $kube/log" >&2
	exit 1
}

ip link set lo up
sysctl -qw net.ipv4.ip_forward=1
ip link add kubebr0 type bridge 2>/dev/null || true
ip addr add 10.100.0.1/24 dev kubebr0 2>/dev/null || true
ip link set kubebr0 up
# Nobody is there. But the addresses of services are reached only where there is some way to them.
ip route add default via 10.100.0.254 2>/dev/null || true

engine=unix://$kube/docker.sock
start dockerd dockerd --data-root "$kube/docker" --exec-root "$kube/run/exec" --pidfile "$kube/run/docker.pid" -H "$engine" \
	--bridge kubebr0 --ip-masq=false --add-runtime "wrap=$here/runc-wrap" --default-runtime wrap --log-level warn
wait_for dockerd docker -H "$engine" info
docker -H "$engine" load --quiet --input images.tar >/dev/null

start etcd bin/etcd --data-dir etcd-data --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls \
	http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
wait_for etcd bin/etcdctl --endpoints 127.0.0.1:2379 endpoint health

if [[ ! -f pki/sa.key ]]; then
	openssl genrsa -out pki/sa.key 2048 2>/dev/null
	openssl rsa -in pki/sa.key -pubout -out pki/sa.pub 2>/dev/null
fi
# A password of a cluster that lives for minutes, in a network nobody else reaches.
echo 'lab,admin,admin,system:masters' >pki/tokens.csv
cat >kubeconfig <<-YAML
	apiVersion: v1
	kind: Config
	clusters: [{name: lab, cluster: {server: "https://127.0.0.1:6443", insecure-skip-tls-verify: true}}]
	users: [{name: admin, user: {token: lab}}]
	contexts: [{name: lab, context: {cluster: lab, user: admin}}]
	current-context: lab
YAML
start apiserver bin/kube-apiserver --etcd-servers http://127.0.0.1:2379 --storage-backend etcd3 --bind-address 0.0.0.0 \
	--advertise-address 10.100.0.1 --secure-port 6443 --cert-dir pki --service-cluster-ip-range 10.101.0.0/24 \
	--service-account-key-file pki/sa.pub --service-account-signing-key-file pki/sa.key \
	--service-account-issuer https://kubernetes.default.svc --token-auth-file pki/tokens.csv --authorization-mode RBAC \
	--allow-privileged --kubelet-preferred-address-types=InternalIP
ready() { curl -sk https://127.0.0.1:6443/readyz -H 'Authorization: Bearer lab' | grep -q ok; }
wait_for apiserver ready

start controller-manager bin/kube-controller-manager --kubeconfig kubeconfig --leader-elect=false \
	--use-service-account-credentials=false --service-account-private-key-file pki/sa.key --root-ca-file pki/apiserver.crt \
	--enable-hostpath-provisioner --node-monitor-grace-period 20s --cert-dir pki --bind-address 127.0.0.1
start scheduler bin/kube-scheduler --kubeconfig kubeconfig --leader-elect=false --cert-dir pki --bind-address 127.0.0.1
start kubelet bin/kubelet --kubeconfig kubeconfig --hostname-override lab --node-ip 10.100.0.1 --address 0.0.0.0 \
	--root-dir "$kube/kubelet" --cert-dir pki --container-runtime docker --docker-endpoint "$engine" --docker "$engine" \
	--pod-infra-container-image lab/pause:1 --cgroup-driver cgroupfs --eviction-hard "" --fail-swap-on=false \
	--anonymous-auth --authorization-mode AlwaysAllow --volume-plugin-dir "$kube/volume-plugins" --cni-bin-dir /usr/lib/cni \
	--cni-conf-dir "$kube/cni" --resolv-conf "" --serialize-image-pulls=false --oom-score-adj 0
start proxy bin/kube-proxy --kubeconfig kubeconfig --proxy-mode iptables --hostname-override lab --cluster-cidr 10.100.0.0/24 \
	--conntrack-max-per-core 0 --conntrack-tcp-timeout-established 0 --conntrack-tcp-timeout-close-wait 0 \
	--bind-address 127.0.0.1 --oom-score-adj 0
