# Every target makes its own virtual environment from a lock file, once; no activated one is needed.
#   make run              a demo with no key and no server          (ARGS="..." goes to realtime-router demo)
#   make accel            build the relay's fast path in C into the environments that are there; needs a C compiler
#   make test             lint, all tests, JOBS=3 at a time, then those of the relay with its fast path in C
#                         (ARGS="tests/unit -k name": only those)
#   make test-accel       with the fast path in C: the relay's tests (ARGS="tests/unit -k name": those)
#   make test-conformance the Autobahn suite, random sequences      (SEQUENCES=10000 SEED=0, ARGS="-k name" goes to pytest)
#   make soak             what takes minutes of real time           (ARGS="-k name" goes to pytest)
#   make test-system      install what tests need: Node.js, Chromium, Redis, Prometheus, systemd, a C compiler
#   make lint             ruff, mypy, import-linter
#   make format           let ruff sort imports and apply its safe fixes
#   make bench            measure                                   (ARGS="..." goes to the benchmarks)
#   make dashboards       write grafana/dashboards anew from grafana/source
#   make lock             write the lock files anew                 (UPGRADE=1 takes newer versions)
#   make build            wheel and source distribution in dist/
#   make check-wheel      build, install the wheel in an empty environment, use it
#   make clean            remove all that make made
# PYTHON=/path/to/python3 names the interpreter (3.11 or newer).

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help run accel test test-accel test-conformance soak test-system lint format bench dashboards lock build check-wheel clean \
	venv-run venv-test node-modules accel-folder

ARGS ?=
UPGRADE ?=
# Tests at a time, when all of them run: much of a test is waiting.
JOBS ?= 3
SEQUENCES ?= 10000
SEED ?= 0
PYTHON ?=
export PYTHON

TEST_BIN := .venv-test/bin
ACCEL_PATH := $(CURDIR)/.accel
# Every test that comes near the fast path.
ACCEL_TESTS := $(patsubst %,tests/properties/test_%.py,fastpath frames accounting) tests/unit/relay \
	$(patsubst %,tests/integration/test_%.py,accelerator relay takeover hostile leaks accounting)
# The resolver is a tool of the one who edits the dependencies; nobody else needs it.
UV_VERSION := 0.13.9
LOCK_FLAGS := --universal --python-version 3.11 --generate-hashes --no-config --no-emit-index-url --no-emit-find-links \
	--custom-compile-command "make lock" --quiet $(if $(UPGRADE),--upgrade)

help:
	@sed -n 's/^#   //p' Makefile

venv-run:
	@.ci/venv run requirements.lock

venv-test:
	@.ci/venv test requirements-dev.lock

# exec: no shell stands between make and the process, so that a signal reaches it.
run: venv-run
	@exec .venv-run/bin/realtime-router demo $(ARGS)

# Those that are there are brought up to date first; where there is none, the one for the demo is made.
accel:
	@if [ -e .venv-test ]; then .ci/venv test requirements-dev.lock; fi
	@if [ -e .venv-run ] || [ ! -e .venv-test ]; then .ci/venv run requirements.lock; fi
	@.ci/accel install .venv-run .venv-test

lint: venv-test
	$(TEST_BIN)/ruff check .
	$(TEST_BIN)/mypy
	$(TEST_BIN)/lint-imports

format: venv-test
	$(TEST_BIN)/ruff check --fix .

# Without npm the tests that need Node.js say that they are skipped, or fail where REALTIME_ROUTER_REQUIRE demands them.
node-modules:
	@if npm --version >/dev/null 2>&1; then \
	    if ! cmp -s tests/node/package-lock.json tests/node/node_modules/.stamp; then \
	        cd tests/node && npm ci --no-audit --no-fund --silent && cp package-lock.json node_modules/.stamp; \
	    fi; \
	else \
	    echo "npm not found: the tests with Node.js clients cannot run" >&2; \
	fi

# Built beside the environment, which stays as it is. Without a compiler it is said that the tests of it cannot run, as above.
accel-folder: venv-test
	@.ci/accel folder .venv-test || [ $$? -eq 3 ]

# All tests run on the fast path in Python, also where the one in C is installed; where that is built, they hold the two against
# each other, and those of the relay run on it once more.
test: lint node-modules accel-folder
	REALTIME_ROUTER_ACCEL=0 PYTHONPATH="$(ACCEL_PATH)" $(TEST_BIN)/python -m pytest $(or $(ARGS),-n $(JOBS))
	$(if $(ARGS),,@if [ -d .accel ]; then $(MAKE) test-accel; fi)

test-accel: venv-test
	@.ci/accel folder .venv-test
	REALTIME_ROUTER_ACCEL=1 PYTHONPATH="$(ACCEL_PATH)" $(TEST_BIN)/python -m pytest $(or $(ARGS),-n $(JOBS) $(ACCEL_TESTS))

# -m "": with what pyproject.toml deselects.
test-conformance: venv-test
	CONFORMANCE_SEQUENCES=$(SEQUENCES) CONFORMANCE_SEED=$(SEED) $(TEST_BIN)/python -m pytest -m "" tests/conformance $(ARGS)

# A test may take as long as a call: the guard against one that hangs is later than usual.
soak: venv-test node-modules accel-folder
	REALTIME_ROUTER_ACCEL=0 PYTHONPATH="$(ACCEL_PATH)" $(TEST_BIN)/python -m pytest -m soak -o faulthandler_timeout=900 \
	    tests/soak $(ARGS)

test-system:
	@.ci/system

bench: venv-test accel-folder
	$(TEST_BIN)/python -m benchmarks $(ARGS)

dashboards: venv-test
	$(TEST_BIN)/python -m grafana.build

lock:
	@[ -x .venv-lock/bin/uv ] && .venv-lock/bin/uv --version | grep -qF "uv $(UV_VERSION) " || { \
	    rm -rf .venv-lock && "$$(.ci/venv --python)" -m venv .venv-lock && \
	    .venv-lock/bin/python -m pip install --quiet --disable-pip-version-check --no-input uv==$(UV_VERSION); }
	.venv-lock/bin/uv pip compile pyproject.toml --group build $(LOCK_FLAGS) -o requirements.lock >/dev/null
	.venv-lock/bin/uv pip compile pyproject.toml --group build --group dev -c requirements.lock $(LOCK_FLAGS) \
	    -o requirements-dev.lock >/dev/null

build: venv-test
	rm -rf dist
	$(TEST_BIN)/python -m build --no-isolation --outdir dist .

check-wheel: build
	@.ci/check-wheel

clean:
	rm -rf .venv-run .venv-test .venv-lock dist build .accel accel/build accel/dist accel/*.egg-info \
	    .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage htmlcov tests/node/node_modules
	find router strategies tests benchmarks grafana -name __pycache__ -type d -prune -exec rm -rf {} +
