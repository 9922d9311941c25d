# shellcheck shell=bash
# To be sourced, after steps.sh and engine.sh, by the tests of docker/compose.yaml: a project of its own on free ports, out of
# images that are made here, and kills that the engine is not asked for.

project=perennial-test-$$

compose() { docker compose --project-name "$project" --file docker/compose.yaml "$@"; }

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

compose_images() {
	scripts/lab-images.sh
	export PERENNIAL_IMAGE=lab/perennial:1 GUESTBOOK_IMAGE=lab/guestbook:1 REDIS_IMAGE=lab/redis:1 PROMETHEUS_IMAGE=lab/prometheus:1 S3_IMAGE=lab/moto:1
	REDIS_PORT=$(free_port) GUESTBOOK_PORT=$(free_port) PROMETHEUS_PORT=$(free_port)
	export REDIS_PORT GUESTBOOK_PORT PROMETHEUS_PORT
	docker run --rm "$PERENNIAL_IMAGE" --version
	echo "perennial's image, compressed: $(($(docker save "$PERENNIAL_IMAGE" | gzip -6 | wc -c) / 1000000)) MB (with this base)"
}

# compose_end STATUS: takes everything down; before, where STATUS is not 0, shows what the containers said last.
compose_end() {
	if (($1 != 0)); then
		echo "The last lines of every container:" >&2
		compose logs --tail 15 >&2 2>/dev/null || true
	fi
	compose --profile s3 down --volumes --timeout 5 >/dev/null 2>&1 || true
}

container_of() { compose ps --quiet "$1"; }
process_of() { docker inspect --format '{{.State.Pid}}' "$(container_of "$1")"; }
restarts_of() { docker inspect --format '{{.RestartCount}}' "$(container_of "$1")"; }
restarted() { (($(restarts_of "$1") > $2)); }
healthy() { [[ $(docker inspect --format '{{.State.Health.Status}}' "$(container_of "$1")") == healthy ]]; }

# As the kernel ends a process for want of memory: the engine is not asked, and its restart policy acts.
kill_process() {
	local before
	before=$(restarts_of "$1")
	kill -9 "$(process_of "$1")"
	until_true "$1 is started again" restarted "$1" "$before"
	until_true "$1 is healthy" healthy "$1"
}
