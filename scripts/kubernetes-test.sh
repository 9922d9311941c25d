#!/usr/bin/env bash
# The guest book on a real Kubernetes (scripts/kubernetes: one node, 1.20, so the classic sidecar). A writer and a reader
# never pause, while the pod is deleted, the redis container alone is killed with kill -9, Perennial alone, and the
# deployment rolled over; then a seed takes minutes. Every write that WAIT answered for must be there afterwards, no write
# may be taken before a seed, no list shown may lack the entry, and nothing may be restarted because a seed takes long.
#
# With SCREENSHOTS=folder and chromium it leaves pictures of the page there. KEEP=1 leaves the cluster running.
#
# As root, on Debian. Builds Kubernetes first, where KUBE_DIR (~/.cache/perennial-kube) does not hold it: six minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly patience=180 # seconds that any one step may take
readonly seed_keys=${SEED_KEYS:-150000}
readonly seed_rate=${SEED_RATE:-1mbit} # of the loopback that the slow seed goes over

export KUBE_DIR=${KUBE_DIR:-$HOME/.cache/perennial-kube}
network=perennial-kube
# shellcheck source=scripts/engine.sh
source scripts/engine.sh

what="the Kubernetes test"
folder=$(mktemp -d "${TMPDIR:-/tmp}/perennial-kubernetes.XXXXXX")
# shellcheck source=scripts/steps.sh
source scripts/steps.sh
reader_pid=
up=

inside() { nsenter --net=/run/netns/$network "$@"; }
kube() { inside kubectl --kubeconfig "$KUBE_DIR/kubeconfig" "$@"; }
engine() { docker -H "unix://$KUBE_DIR/docker.sock" "$@"; }

clean_up() {
	local status=$?
	trap - EXIT INT TERM
	if ((status != 0)) && [[ -n $up ]]; then
		{
			kube get pods -o wide
			kube get events --sort-by=.lastTimestamp | tail -n 25
			kube logs deployment/redis-master -c perennial --tail 30
			kube logs deployment/redis-master -c master --tail 15
		} >&2 2>/dev/null || true
	fi
	for pid in $writer_pid $reader_pid; do
		kill -9 "$pid" 2>/dev/null || true
	done
	if [[ -n $up && -z ${KEEP:-} ]]; then
		scripts/kubernetes/down.sh
		ip netns del $network 2>/dev/null || true
	fi
	engine_stop
	rm -rf "$folder"
	exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

skip() { skipped "${KUBERNETES_TEST:-}" "$@"; }

[[ $(id -u) == 0 ]] || skip "it wants root"
for program in docker dockerd ip nsenter jq kubectl apt-get; do
	command -v "$program" >/dev/null || [[ $program == apt-get ]] || [[ -x $KUBE_DIR/bin/kubelet && $program != kubectl ]] ||
		skip "$program is missing"
done
scripts/kubernetes/build.sh || skip "Kubernetes could not be built"

step "Images"
engine_start || skip "no container engine can be started"
scripts/lab-images.sh
printf 'FROM scratch\nCOPY pause /pause\nENTRYPOINT ["/pause"]\n' |
	docker buildx build --quiet --load --tag lab/pause:1 --file - "$KUBE_DIR/src" >/dev/null
docker save --output "$KUBE_DIR/images.tar" lab/pause:1 lab/redis:1 lab/perennial:1 lab/guestbook:1
docker run --rm lab/perennial:1 --version
engine_stop

step "A node"
ip netns add $network
up=yes
inside scripts/kubernetes/up.sh
node_is_ready() { [[ $(kube get nodes -o jsonpath='{.items[*].status.conditions[?(@.type=="Ready")].status}') == True ]]; }
until_true "the node is ready" node_is_ready
kube version 2>/dev/null | grep Server || kube version --short 2>/dev/null | grep Server || true

step "The guest book"
kube apply --kustomize scripts/kubernetes/overlay >/dev/null
volume_is_bound() { [[ $(kube get pvc perennial-archive -o jsonpath='{.status.phase}') == Bound ]]; }
until_true "the volume is bound" volume_is_bound
# Volumes of this provisioner know no fsGroup.
chmod 0777 "$(kube get pv -o jsonpath='{.items[0].spec.hostPath.path}')"
for deployment in redis-master redis-replica frontend; do
	kube rollout status "deployment/$deployment" --timeout "${patience}s" >/dev/null || fail "$deployment does not come up"
done
kube get pods

address() { kube get service "$1" -o jsonpath='{.spec.clusterIP}'; }
redis=$(address redis-master)
page=http://$(address frontend)
sign() { inside curl -sS --max-time 20 --location --data-urlencode "entry=$1" "$page/entries"; }
lists() { inside curl -sS --max-time 10 "$page/entries" | grep -qF "$1"; }
sign "Ada was here" | grep -q "in the archive" || fail "the entry was not acknowledged by two replicas and the archive"
until_true "the list shows the entry" lists "Ada was here"

# screenshot NAME: of the page, into the folder that SCREENSHOTS names, for a person to look at.
screenshot() {
	[[ -n ${SCREENSHOTS:-} ]] || return 0
	mkdir -p "$SCREENSHOTS"
	inside chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=800,700 \
		--user-data-dir="$folder/chromium" --screenshot="$(realpath "$SCREENSHOTS")/$1.png" "$page/" >/dev/null 2>&1 ||
		fail "no screenshot of the page"
	echo "screenshot: $SCREENSHOTS/$1.png"
}
screenshot before

# The pod of the leader, once there is one that is not on its way out.
pod() {
	local name
	for _ in {1..600}; do
		name=$(kube get pods -l app=redis,role=master -o json |
			jq -r '[.items[] | select(.metadata.deletionTimestamp == null and .status.phase == "Running")][0].metadata.name // empty')
		[[ -z $name ]] || {
			echo "$name"
			return
		}
		sleep 0.2
	done
	return 1
}
# process CONTAINER: the id of its process on this machine.
process() {
	engine inspect --format '{{.State.Pid}}' "$(engine ps --quiet --filter "label=io.kubernetes.container.name=$1" \
		--filter "label=io.kubernetes.pod.name=$(pod)")"
}
restarts() { kube get pod "$(pod)" -o jsonpath='{range .status.containerStatuses[*]}{.name}={.restartCount} {end}'; }
restarts_of() { kube get pod "$(pod)" -o jsonpath="{.status.containerStatuses[?(@.name==\"$1\")].restartCount}"; }
ready() { [[ $(kube get pod "$(pod)" -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}') == True ]]; }
# Not by the function `inside`: its process would be another one than the writer's.
hammer() { writes_begin nsenter --net=/run/netns/$network python3 scripts/lab/writer.py "$redis" 6379 --acks 3 --pause 1; }

# after WHAT COMMAND...: does it, which must not return before it has had its effect, and waits until waited writes flow
# again.
after() {
	local what=$1 before began
	shift
	began=$(date +%s%3N)
	"$@"
	before=$(waited)
	until_true "writes flow again after: $what" writes_flow "$before"
	until_true "the pod is ready" ready
	echo "$what: waited writes flow again, and the pod is ready, after $(($(date +%s%3N) - began)) ms; restarts: $(restarts)"
}

another_pod() { [[ $(pod) != "$1" ]]; }
restarted() { (($(restarts_of "$1") > $2)); }
delete_pod() {
	local before
	before=$(pod)
	kube delete pod "$before" --wait=false >/dev/null
	until_true "there is another pod" another_pod "$before"
}
kill_container() {
	local before
	before=$(restarts_of "$1")
	kill -9 "$(process "$1")"
	until_true "$1 is started again" restarted "$1" "$before"
}
roll_over() { kube rollout restart deployment/redis-master >/dev/null && kube rollout status deployment/redis-master --timeout "${patience}s" >/dev/null; }

step "A writer and a reader that never pause"
nsenter --net=/run/netns/$network python3 scripts/lab/reader.py "$page/entries" "Ada was here" >"$folder/reader.log" &
reader_pid=$!
hammer
after "the pod deleted" delete_pod
screenshot after-the-pod-was-deleted
after "redis alone killed with kill -9" kill_container master
after "perennial alone killed with kill -9" kill_container perennial
after "rolled over" roll_over
after "redis alone killed with kill -9, again" kill_container master
writes_end

step "A seed that takes minutes: loopback at $seed_rate"
inside python3 - "$redis" "$seed_keys" <<-'PYTHON'
	import os, socket, sys
	connection = socket.create_connection((sys.argv[1], 6379))
	file, keys = connection.makefile("rb"), int(sys.argv[2])
	for start in range(0, keys, 1000):
	    connection.sendall(b"".join(b"SET bulk:%d %s\r\n" % (n, os.urandom(40).hex().encode()) for n in range(start, start + 1000)))
	    assert all(file.readline() == b"+OK\r\n" for _ in range(1000))
	connection.sendall(b"WAIT 3 60000\r\n")
	assert int(file.readline()[1:]) >= 3
PYTHON
hammer
perennial_before=$(restarts_of perennial)
master_before=$(restarts_of master)
neighbour=$(process perennial)
# Packets as of an ordinary network: loopback's own are larger than what the shaper lets through at once.
nsenter --target "$neighbour" --net ip link set lo mtu 1500
nsenter --target "$neighbour" --net tc qdisc add dev lo root tbf rate "$seed_rate" burst 32k latency 400ms
began=$SECONDS
kill_container master
not_ready() { ! ready; }
until_true "the pod is not ready" not_ready
until ready; do
	((SECONDS - began < 900)) || fail "the slow seed took more than 15 minutes"
	sleep 1
done
echo "seeded after $((SECONDS - began)) s; restarts before: master=$master_before perennial=$perennial_before, after: $(restarts) (one of master's is the kill)"
nsenter --target "$neighbour" --net tc qdisc del dev lo root
nsenter --target "$neighbour" --net ip link set lo mtu 65536
(($(restarts_of perennial) == perennial_before)) || fail "perennial was restarted because a seed took long"
(($(restarts_of master) == master_before + 1)) || fail "redis was restarted because a seed took long"
flowing=$(waited)
until_true "writes flow again" writes_flow "$flowing"
[[ $(inside python3 -c 'import socket, sys; s = socket.create_connection((sys.argv[1], 6379)); s.sendall(b"EXISTS bulk:0 bulk:" + sys.argv[2].encode() + b"\r\n"); print(s.recv(100).decode().strip())' "$redis" "$((seed_keys - 1))") == :2 ]] ||
	fail "what was seeded is not complete"
screenshot after-everything
writes_end

status=0
kill "$reader_pid"
wait "$reader_pid" || status=$?
reader_pid=
echo "reader: $(tail -n 1 "$folder/reader.log")"
((status == 0)) || fail "a list was shown without the entry"
echo "perennial: $(engine stats --no-stream --format '{{.MemUsage}}' "$(engine ps --quiet --filter label=io.kubernetes.container.name=perennial)")"
echo
echo "Done after $SECONDS s, on Kubernetes 1.20 with the classic sidecar."
