# Tollkeeper. `make help` lists what there is.
# Needs Python >= 3.11 (with venv), Rust >= 1.85 with cargo, a C linker, make; tests of form ask git for the files.
# Everything else comes by lock file.

PYTHON ?= python3
UV_VERSION := 0.13.8
UV := .uv/bin/uv
RUN := .venv/bin
ARGS ?=
PY_CODE := ledger sidecar/python sidecar/tests clients examples tests tools bench proto/generate.py
MYPY_CODE := ledger/src sidecar/python clients/python/src clients/cli/src tools bench proto/generate.py
RUST_CODE := sidecar ledger/native
export MATURIN_NO_INSTALL_RUST = 1
export UV_PYTHON_DOWNLOADS = never
# Else each process that tests and demo start compiles all that it imports: two thirds of its start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

## ---- use it -------------------------------------------------------------------------------------------------------

.PHONY: run
run: install ## Start everything, replay the real trace, print what was metered and invoiced (ARGS="--once --json FILE")
	@$(RUN)/tollkeeper demo $(ARGS)

.PHONY: test
test: install ## Run everything that must pass
	@$(MAKE) --no-print-directory test-rust test-python
	@echo "make test: Rust and Python tests passed"

CI_PARTS := install gen-check lint types test sim-replay sim

.PHONY: ci
ci: ## What continuous integration runs: generated code, lint, types, all tests, simulation; prints each part's time
	@ran=; for part in $(CI_PARTS); do \
	  echo "== make $$part"; begun=$$(date +%s); \
	  $(MAKE) --no-print-directory $$part SEEDS=200000 || { echo "make ci: $$part failed$$ran"; exit 1; }; \
	  ran="$$ran, $$part $$(( $$(date +%s) - begun )) s"; \
	done; echo "make ci: passed$$ran"

## ---- set up -------------------------------------------------------------------------------------------------------

.PHONY: tools
tools:
	@sh tools/check_machine.sh $(PYTHON)

$(UV): Makefile
	@$(PYTHON) -m venv .uv && .uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION) && touch $@

.PHONY: install
install: tools $(UV) ## Install and build into .venv (again after a change: only what changed)
	@$(UV) sync --frozen --quiet --all-packages --python $(PYTHON)
	@$(RUN)/python -m compileall -q sidecar/python

.PHONY: dev
dev: $(UV) ## Rebuild the Rust part in the dev profile, in seconds
	@cd sidecar && cargo build --quiet --package sidecar-py --features pyo3/extension-module
	@cp sidecar/target/debug/lib_native.so sidecar/python/tollkeeper_sidecar/_native.abi3.so
	@cd ledger/native && cargo build --quiet --features pyo3/extension-module
	@cp ledger/native/target/debug/lib_columns.so ledger/src/tollkeeper_ledger/domain/_columns.abi3.so

.PHONY: clean
clean: ## Remove what was built and what runs left behind
	rm -rf .venv .uv .run sidecar/target ledger/native/target .mypy_cache .ruff_cache .pytest_cache .hypothesis

## ---- work on it ---------------------------------------------------------------------------------------------------

.PHONY: gen
gen: install ## Generate the committed code and tables from the proto files and settings
	@PATH="$(CURDIR)/$(RUN):$$PATH" $(RUN)/python tools/generated.py write
	@$(RUN)/python tools/doc_tables.py write

.PHONY: gen-check
gen-check: install ## Check that the committed generated code and tables are fresh
	@PATH="$(CURDIR)/$(RUN):$$PATH" $(RUN)/python tools/generated.py check
	@$(RUN)/python tools/doc_tables.py check

.PHONY: fmt
fmt: install ## Format everything
	@$(RUN)/ruff format $(PY_CODE) && $(RUN)/ruff check --fix --quiet $(PY_CODE); for part in $(RUST_CODE); do (cd $$part && cargo fmt); done

.PHONY: lint
lint: install ## Check form: ruff, rustfmt, clippy, import contracts
	@$(RUN)/ruff check $(PY_CODE) && $(RUN)/ruff format --check --quiet $(PY_CODE)
	@$(RUN)/lint-imports
	@set -e; for part in $(RUST_CODE); do \
	  (cd $$part && cargo fmt --check && cargo clippy --quiet --locked --workspace --all-targets -- -D warnings); done

.PHONY: types
types: install ## Check types strictly
	@$(RUN)/mypy $(MYPY_CODE)

SIM := sidecar/target/sim/quota-sim
SIM_FINDS := tests/sim/mutants.json
SEEDS ?= 10000

.PHONY: sim-build
sim-build:
	@cd sidecar && cargo build --quiet --locked --profile sim --package quota-sim --features mutants

.PHONY: sim
sim: sim-build ## Simulate: SEEDS=n schedules, or one step by step (SEED=n TRACE=1)
	@$(SIM) run --seeds $(SEEDS) $(if $(SEED),--seed $(SEED)) $(if $(TRACE),--trace 1)
	@$(if $(SEED),true,$(SIM) waste)

.PHONY: mutants
mutants: sim-build ## Search a seed for every rule broken on purpose, 60 s each at most (MUTANT=name for one)
	@mkdir -p $(dir $(SIM_FINDS)) && $(SIM) mutants $(if $(MUTANT),--mutant $(MUTANT),--out $(SIM_FINDS))
	@$(if $(MUTANT),true,$(RUN)/python tests/sim/search_mutants.py)

.PHONY: sim-replay
sim-replay: sim-build ## Replay the recorded seeds: each breaks a rule with its mutant, none without; mutants found by tests
	@$(SIM) replay --finds $(SIM_FINDS)
	@cd sidecar && cargo test --quiet --locked --package quota-sim --features mutants --test '*' -- mutants_of >/dev/null
	@echo "mutants of buckets, values, returns and heirs found by their tests"

.PHONY: test-rust
test-rust: install ## Run the Rust tests
	@cd sidecar && cargo test --quiet --locked

# Whole platforms under load and faults: nothing runs beside them. All others run on every core, file by file.
ALONE := tests/bench tests/conformance tests/e2e tests/faults tests/kafka

.PHONY: test-python
test-python: install ## Run the Python tests, those with real servers and kill -9 included
	@$(RUN)/pytest -q -n logical --dist loadfile --no-loadscope-reorder $(addprefix --ignore=,$(ALONE))
	@$(RUN)/pytest -q $(ALONE)

.PHONY: stripe-faults
stripe-faults: install ## Collect 10,000 invoices from a provider that fails 30 % of all requests: each once, cents equal
	@STRIPE_INVOICES=10000 $(RUN)/pytest -q -p no:cacheprovider tests/integration/billing/test_stripe.py -k exactly_once

.PHONY: faults
faults: install ## Run every fault on real processes with large loads, at most 20 minutes (LONG=1 goes on until stopped)
	@while FAULTS=long $(RUN)/pytest -q -p no:cacheprovider tests/faults; do test -n "$(LONG)" || exit 0; done; exit 1

SECONDS ?= 60

.PHONY: fuzz
fuzz: tools ## Feed the usage log's reader whatever a disk can hold for SECONDS=60; what fails is kept and replayed by tests
	@cd sidecar && FUZZ_SECONDS=$(SECONDS) cargo test --quiet --locked --profile sim --package usage-log --lib -- fuzz:: --nocapture

FLIPS_SECONDS ?= 1800
FLIPS_FROM ?= 0

.PHONY: flips
flips: tools ## Flip every bit of 64 KiB of log, 100,000 of 1 MiB, drop 10,000 subsets of pages (ONLY=, FLIPS_SECONDS=1800 each, FLIPS_FROM=)
	@cd sidecar && LONG=1 FLIPS_SECONDS=$(FLIPS_SECONDS) FLIPS_FROM=$(FLIPS_FROM) cargo test --quiet --locked --profile sim --package usage-log --lib -- larger::$(ONLY) --nocapture

KILLS ?= 2000

.PHONY: kills
kills: install ## Kill sidecar, ledger and Postgres KILLS=2000 times while records flow: acknowledged = stored = billable
	@KILLS=$(KILLS) $(RUN)/pytest -q -p no:cacheprovider tests/faults/test_kills.py

.PHONY: kafka
kafka: install ## Take usage in from a real Kafka broker, with readers killed (needs Java 17 and Maven)
	@mvn -q -f tests/kafka/pom.xml dependency:copy-dependencies -DoutputDirectory=$(CURDIR)/.kafka/lib
	@KAFKA_LIB=$(CURDIR)/.kafka/lib $(RUN)/pytest -q -p no:cacheprovider tests/kafka

.PHONY: tamper
tamper: install ## Change single stored fields of usage at random, 10,000 times: the audit finds and names each
	@TAMPERINGS=10000 $(RUN)/pytest -q -p no:cacheprovider tests/integration/usage/test_audit.py tests/integration/usage/test_archive.py tests/integration/billing/test_tampered_bytes.py tests/integration/billing/test_books.py

ONLY ?=

.PHONY: bench
bench: install ## Measure beside floors: bench/report.json and a table (ONLY="name ..." for some, ARGS=--quick to try)
	@$(RUN)/python -m bench $(ONLY) $(ARGS)
