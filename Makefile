# Every target makes its own virtual environment from a lock file, once; no activated one is needed.
#   make run              a demo with no key and no server          (ARGS="..." goes to realtime-router demo)
#   make test             lint, then all tests                      (ARGS="tests/unit -k name" goes to pytest)
#   make test-conformance the Autobahn suite, random sequences      (SEQUENCES=10000 SEED=0, ARGS="-k name" goes to pytest)
#   make test-system      install the programs that tests drive: Node.js, Chromium
#   make lint             ruff, mypy, import-linter
#   make format           let ruff sort imports and apply its safe fixes
#   make bench            measure                                   (ARGS="..." goes to the benchmarks)
#   make lock             write the lock files anew                 (UPGRADE=1 takes newer versions)
#   make build            wheel and source distribution in dist/
#   make check-wheel      build, install the wheel in an empty environment, use it
#   make clean            remove all that make made
# PYTHON=/path/to/python3 names the interpreter (3.11 or newer).

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help run test test-conformance test-system lint format bench lock build check-wheel clean venv-run venv-test node-modules

ARGS ?=
UPGRADE ?=
SEQUENCES ?= 10000
SEED ?= 0
PYTHON ?=
export PYTHON

TEST_BIN := .venv-test/bin
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

test: lint node-modules
	$(TEST_BIN)/python -m pytest $(ARGS)

# -m "": with what pyproject.toml deselects.
test-conformance: venv-test
	CONFORMANCE_SEQUENCES=$(SEQUENCES) CONFORMANCE_SEED=$(SEED) $(TEST_BIN)/python -m pytest -m "" tests/conformance $(ARGS)

test-system:
	@.ci/system

bench: venv-test
	$(TEST_BIN)/python -m benchmarks $(ARGS)

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
	rm -rf .venv-run .venv-test .venv-lock dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis \
	    .coverage htmlcov tests/node/node_modules
	find router strategies tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
