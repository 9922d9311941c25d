# `make` lists the targets. Continuous integration calls only these, so all that runs there runs at home.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

FUZZ_SECONDS ?= 20
OUTAGE_SECONDS ?= 60
BIG_MIB ?= 2000
UPKEEP_HOURS ?= 2000
TRAVEL_SECONDS ?= 300
MINUTES ?= 60
KILLS ?= 1000
CHAOS ?= .
HOURS ?= 1
SEEDS ?= 0..2000

.PHONY: help
help: ## This list.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: check
check: ## Formatting and lints.
	cargo fmt --check
	cargo clippy --all-targets --features simulation -- -D warnings
	cargo clippy -- -D warnings
	@if command -v shellcheck >/dev/null; then shellcheck -x scripts/*.sh scripts/kubernetes/*.sh .ci/run; \
	else echo "SKIPPED: shellcheck is not installed (apt-get install shellcheck)"; fi

.PHONY: unit
unit: ## Tests without servers.
	@scripts/test.sh unit

.PHONY: e2e
e2e: servers ## Tests of the real binary against real servers.
	@scripts/test.sh e2e

.PHONY: servers
servers: ## Finds the test servers, or unpacks them into target/servers.
	@scripts/servers.sh

.PHONY: simulation
simulation: ## Perennial in 2000 simulated worlds, SEEDS of them (0..2000): two minutes.
	@scripts/simulate.sh --seeds "$(SEEDS)"

.PHONY: simulate
simulate: ## The same with seeds nobody has seen, for HOURS (1).
	@scripts/simulate.sh --hours "$(HOURS)"

.PHONY: test
test: check unit simulation e2e fuzz ## All of the above, and each fuzz target for a moment.

.PHONY: outage
outage: servers ## Stores that are broken for OUTAGE_SECONDS (60) at a time under load, one after the other: half an hour.
	PERENNIAL_OUTAGE_SECONDS=$(OUTAGE_SECONDS) cargo nextest run --features faulty --test it --test-threads 1 \
		--no-fail-fast --success-output final -E 'test(/^outages/)'

.PHONY: big
big: servers ## A snapshot of BIG_MIB (2000) through each store, up and down, within 100 MiB of memory: ten minutes.
	PERENNIAL_SNAPSHOT_MIB=$(BIG_MIB) cargo nextest run --features faulty --test it --test-threads 1 --no-fail-fast \
		--success-output final -E 'test(/^large_snapshots::/)'

.PHONY: travel
travel: servers ## Restores random moments of a life of TRAVEL_SECONDS (300) on each server, to files and into servers.
	PERENNIAL_TRAVEL_SECONDS=$(TRAVEL_SECONDS) cargo nextest run --features faulty --test it --test-threads 1 \
		--no-fail-fast --success-output final -E 'test(/^travel::any_moment/)'

.PHONY: store-failures
store-failures: servers ## Each request to S3 and Google's store goes wrong in each way: half an hour.
	PERENNIAL_STORE_FAILURES=all cargo nextest run --features faulty --test it --no-fail-fast --success-output final \
		-E 'test(/^store_failures::/)'

.PHONY: upkeep
upkeep: ## Two that keep one archive for UPKEEP_HOURS (2000) simulated hours, and a week of a segment a second: minutes.
	PERENNIAL_UPKEEP_HOURS=$(UPKEEP_HOURS) cargo nextest run --features faulty --lib --no-fail-fast \
		--success-output final -E 'test(two_that_keep_one_archive)'
	PERENNIAL_UPKEEP_HOURS=168 cargo nextest run --features faulty --lib --no-fail-fast --success-output final \
		-E 'test(a_week_stays_small)'

.PHONY: manifests-check
manifests-check: ## What can be known of docker/ and manifests/ without running them.
	@scripts/manifests-check.sh

.PHONY: docker-test
docker-test: ## docker/compose.yaml for real, with kills; starts an engine where root may.
	@scripts/docker-test.sh

.PHONY: soak
soak: ## docker/compose.yaml under load and kills for MINUTES (60), Perennial within 128 MiB; then restored and compared.
	@scripts/soak.sh "$(MINUTES)"

.PHONY: chaos
chaos: servers ## Everything killed, stopped, cut off and failed over for MINUTES (60) on each server; CHAOS=valkey for some.
	PERENNIAL_CHAOS_SECONDS=$$(($(MINUTES) * 60)) cargo nextest run --features faulty --test it --test-threads 1 \
		--no-fail-fast --success-output final -E 'test(/^chaos::(redis|valkey)/) & test(/$(CHAOS)/)'

.PHONY: double-kills
double-kills: servers ## Master and Perennial killed together KILLS (1000) times on each server: half an hour each.
	PERENNIAL_KILLS=$(KILLS) cargo nextest run --features faulty --test it --test-threads 1 --no-fail-fast \
		--success-output final -E 'test(/^double_kill::nothing_confirmed/)'

.PHONY: mutants
mutants: ## Puts bugs into src/ and demands that a test notices each; MUTANTS="one another" for some.
	@MUTANTS="$(MUTANTS)" scripts/mutants.sh

.PHONY: timings
timings: ## Prints how long it takes from a start to following, and how long /metrics takes.
	@scripts/timings.sh

.PHONY: kubernetes-test
kubernetes-test: ## The guest book on a real Kubernetes, which it builds once; as root, on Debian.
	@scripts/kubernetes-test.sh

.PHONY: demo
demo: ## Kills a real Redis and watches it come back.
	@scripts/demo.sh

.PHONY: bench
bench: ## Speed of each step of the data's way.
	cargo bench

.PHONY: fuzz
fuzz: ## Each fuzz target for FUZZ_SECONDS (20).
	@scripts/fuzz.sh "$(FUZZ_SECONDS)"

.PHONY: fixtures
fixtures: ## Rewrites the expected results beside the fixtures; review the difference.
	UPDATE_FIXTURES=1 cargo test --lib --test proto --test it --features faulty -- golden fixtures cli::
	git diff --stat
