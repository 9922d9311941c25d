#!/usr/bin/env bash
# Stops what up.sh started, newest first, by the ids that it noted, and clears away what the kubelet leaves.
set -uo pipefail

kube=$(realpath -m "${KUBE_DIR:-$HOME/.cache/perennial-kube}")
cd "$kube" 2>/dev/null || exit 0
[[ -f pids ]] || exit 0

# The containers first: nobody else ends them.
docker -H "unix://$kube/docker.sock" ps --quiet 2>/dev/null | xargs -r docker -H "unix://$kube/docker.sock" rm --force >/dev/null 2>&1
tac pids | while read -r pid _; do
	kill "$pid" 2>/dev/null
done
for _ in {1..50}; do
	left=
	while read -r pid _; do
		! kill -0 "$pid" 2>/dev/null || left=yes
	done <pids
	[[ -n $left ]] || break
	sleep 0.2
done
while read -r pid _; do
	kill -9 "$pid" 2>/dev/null
done <pids
umount -R "$kube/kubelet" 2>/dev/null
awk -v under="$kube/" 'index($2, under) == 1 { print $2 }' /proc/mounts | sort -r | while read -r mounted; do
	umount "$mounted" 2>/dev/null
done
find /sys/fs/cgroup/*/kubepods -depth -type d -exec rmdir {} + 2>/dev/null
# The kubelet sets these for the whole machine.
sysctl -qw vm.overcommit_memory=0 vm.panic_on_oom=0 2>/dev/null
rm -rf pids etcd-data kubelet run docker
exit 0
