# shellcheck shell=bash
# To be sourced: sees to it that `docker`, `docker build` and `docker compose` work, with a container engine of our own
# where none runs, we are root, and dockerd is there (apt-get install docker.io). What it starts it ends: engine_stop.
#
# engine_start    0 where there is an engine, 3 where there is none

engine_root=$PWD/target/engine
engine_pid=

engine_start() {
	local program plugin
	command -v docker >/dev/null || return 3
	if ! docker info >/dev/null 2>&1; then
		export DOCKER_HOST=unix://$engine_root/docker.sock
		# Another test's may run already: then it is that one's to end.
		docker info >/dev/null 2>&1 || engine_run || return 3
	fi
	for plugin in compose buildx; do
		docker "$plugin" version >/dev/null 2>&1 && continue
		program=$(scripts/tools.sh "docker-$plugin") || return 3
		export DOCKER_CONFIG=$engine_root/config
		mkdir -p "$DOCKER_CONFIG/cli-plugins"
		ln -sf "$program" "$DOCKER_CONFIG/cli-plugins/docker-$plugin"
	done
}

engine_run() {
	local options=()
	[[ $(id -u) == 0 ]] && command -v dockerd >/dev/null || return 3
	mkdir -p "$engine_root"
	if ! engine_may_raise_limits; then
		# Containers ask for limits that this machine's root may not give: asked for less.
		options=(--add-runtime "wrap=$PWD/scripts/kubernetes/runc-wrap" --default-runtime wrap)
	fi
	dockerd --data-root "$engine_root/data" --exec-root "$engine_root/exec" --pidfile "$engine_root/docker.pid" \
		-H "$DOCKER_HOST" --log-level warn "${options[@]}" >"$engine_root/dockerd.log" 2>&1 &
	engine_pid=$!
	for _ in {1..150}; do
		docker info >/dev/null 2>&1 && return
		if ! kill -0 "$engine_pid" 2>/dev/null; then
			tail -n 5 "$engine_root/dockerd.log" >&2
			return 3
		fi
		sleep 0.2
	done
	echo "engine: dockerd does not answer; see $engine_root/dockerd.log" >&2
	return 3
}

# Whether CAP_SYS_RESOURCE (bit 24) is ours.
engine_may_raise_limits() {
	local capabilities
	capabilities=$(awk '/^CapEff:/ { print $2 }' /proc/self/status)
	(((16#$capabilities >> 24) & 1))
}

engine_stop() {
	[[ -z $engine_pid ]] || {
		kill "$engine_pid" 2>/dev/null
		wait "$engine_pid" 2>/dev/null
		engine_pid=
	} || true
}
