# Everything that the README and continuous integration do. `make setup` is run by what needs it.

CARGO ?= cargo
export CARGO_TERM_COLOR ?= auto
PROGRAM := $(or $(CARGO_TARGET_DIR),target)/release/casemate

.PHONY: setup setup-bench build demo test kill-test check bench clean

## Installs what building, testing and running need; says what it wants where it may not.
setup:
	@scripts/setup.sh

## One self-contained program: target/release/casemate.
build: setup
	$(CARGO) build --locked --release

## Installs, builds, and runs an npm MCP server in a microVM, each step timed.
demo: build
	@scripts/demo.sh $(PROGRAM)

## Every test; machine tests boot real guests. Tests that this host cannot run are counted at the end.
test: setup
	@scripts/test.sh $(CARGO)

## Kills commands, supervisors, VMMs, agents and servers 300 times, in every phase; `make test` does so less
## often. It prints its seed: CASEMATE_KILL_SEED has the same victims killed after the same delays.
kill-test: setup
	CASEMATE_KILL_POINTS=300 $(CARGO) test --locked --package casemate --test it -- kill:: --nocapture

## Formatting, lints, documentation, dependencies.
check: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --quiet
	$(CARGO) deny --locked check bans licenses sources

## What the benchmark measures beside casemate: other walls.
setup-bench:
	@scripts/setup.sh bench

## Measures; the raw data goes to bench-results/. BENCH_ARGS=--write-docs writes docs/benchmarks.md too,
## BENCH_ARGS=--help says what else there is.
bench: setup-bench build
	$(CARGO) run --locked --release --quiet --package casemate-bench -- --program $(PROGRAM) $(BENCH_ARGS)

clean:
	$(CARGO) clean
	rm -rf bench-results
