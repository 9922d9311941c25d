# `make` lists the targets. Continuous integration calls only these, so all that runs there runs at home.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

FUZZ_SECONDS ?= 20

.PHONY: help
help: ## This list.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: check
check: ## Formatting and lints.
	cargo fmt --check
	cargo clippy --all-targets --features faulty -- -D warnings
	cargo clippy -- -D warnings
	@if command -v shellcheck >/dev/null; then shellcheck scripts/*.sh .ci/run; \
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

.PHONY: test
test: check unit e2e fuzz ## All of the above, and each fuzz target for a moment.

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
