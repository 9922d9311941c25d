#!/usr/bin/env bash
# What can be known of docker/ and manifests/ without an engine and without a cluster: that they are valid, and that what
# is said twice is said alike. Fetches its tools into target/tools. A tool that cannot be had is a loud SKIPPED on a laptop
# and a failure where CI is set.
#
#   manifests-check.sh             looks
#   manifests-check.sh --write     makes prometheus-rule.yaml from alerts.yaml first
set -euo pipefail
cd "$(dirname "$0")/.."

readonly versions=(1.29 1.30 1.31 1.32 1.33 1.34 1.35 1.36 1.37)
rules=manifests/components/prometheus-rule

work=$(mktemp -d "${TMPDIR:-/tmp}/perennial-manifests.XXXXXX")
trap 'rm -rf "$work"' EXIT
failed=
skipped=

bad() {
	echo "FAILED: $*" >&2
	failed=yes
}

# tool NAME: its path in $tool; else a skip, or a failure in CI.
tool() {
	if tool=$(scripts/tools.sh "$1" 2>"$work/tool.log"); then
		return 0
	fi
	cat "$work/tool.log" >&2
	echo "SKIPPED: $1 cannot be had, nor what it checks" >&2
	skipped=yes
	[[ -z ${CI:-} ]] || failed=yes
	return 1
}

if tool hadolint; then
	"$tool" docker/Dockerfile docker/guestbook/Dockerfile docker/lab/Dockerfile || bad "hadolint"
	echo "hadolint: 3 Dockerfiles"
fi

if tool shellcheck; then
	"$tool" -x scripts/*.sh scripts/kubernetes/*.sh scripts/kubernetes/runc-wrap .ci/run || bad "shellcheck"
	echo "shellcheck: every script"
fi

if tool docker-compose; then
	"$tool" -f docker/compose.yaml config --quiet || bad "compose.yaml"
	"$tool" --env-file docker/s3.env -f docker/compose.yaml config --quiet || bad "compose.yaml with s3.env"
	echo "docker compose config: with and without s3.env"
fi

rendered=()
if tool kubectl; then
	kubectl=$tool
	# Every overlay; and what adopts the deployments of others, put together as manifests/README.md says.
	for overlay in manifests/overlays/*/ scripts/kubernetes/overlay/; do
		name=$(basename "$(dirname "$overlay/x")")
		"$kubectl" kustomize "$overlay" >"$work/$name.yaml" || bad "kustomize $overlay"
		rendered+=("$work/$name.yaml")
	done
	for adopted in gke-redis-leader examples-redis-master; do
		for sidecar in native classic; do
			name=$adopted-$sidecar
			mkdir "$work/$name.d"
			cp "scripts/lab/adopted/$adopted.yaml" "$work/$name.d/original.yaml"
			cat >"$work/$name.d/kustomization.yaml" <<-YAML
				resources: [original.yaml]
				components:
				  - components/$adopted
				  - components/sidecar-$sidecar
				  - components/verify
				  - components/archive-local
				  - components/network-policy
				  - components/dashboard
			YAML
			cp -r manifests/components "$work/$name.d/"
			"$kubectl" kustomize "$work/$name.d" >"$work/$name.yaml" || bad "kustomize $name"
			rendered+=("$work/$name.yaml")
		done
	done
	echo "kubectl kustomize: ${#rendered[@]} kustomizations"
	if tool kubernetes-validate; then
		count=0
		for version in "${versions[@]}"; do
			for file in "${rendered[@]}"; do
				"$tool" --strict --quiet -k "$version" "$file" || bad "$(basename "$file") on Kubernetes $version"
				count=$((count + $(grep -c '^kind:' "$file")))
			done
		done
		echo "kubernetes-validate --strict: $count objects, Kubernetes ${versions[0]} to ${versions[-1]}"
	fi
fi

if tool python-yaml; then
	"$tool" scripts/lab/consistent.py "$@" "${rendered[@]}" || bad "what is said twice differs"
	"$tool" scripts/lab/consistent.py --expressions >"$work/expressions.yaml" || bad "the dashboard"
fi

if tool promtool; then
	"$tool" check rules "$rules/alerts.yaml" >"$work/out" || { cat "$work/out" >&2 && bad "alerts.yaml"; }
	(cd "$rules" && "$tool" test rules alerts.test.yaml) >"$work/out" 2>&1 || { cat "$work/out" >&2 && bad "alerts.test.yaml"; }
	"$tool" check rules "$work/expressions.yaml" >"$work/out" 2>&1 || { cat "$work/out" >&2 && bad "an expression of the dashboard"; }
	sed "s|/etc/prometheus/alerts.yaml|$PWD/$rules/alerts.yaml|" docker/prometheus/prometheus.yml >"$work/prometheus.yml"
	"$tool" check config "$work/prometheus.yml" >"$work/out" 2>&1 || { cat "$work/out" >&2 && bad "prometheus.yml"; }
	echo "promtool: $(grep -c 'alert:' $rules/alerts.yaml) alerts, their tests, $(grep -c 'expr:' "$work/expressions.yaml") expressions of the dashboard, prometheus.yml"
fi

[[ -z $failed ]] || exit 1
[[ -z $skipped ]] || echo "some checks were SKIPPED: see above" >&2
