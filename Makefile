# Every target sets up what it needs in .venv; nothing is installed outside of it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
ARGS ?=
# Without bytecode each process compiles everything anew: 2 s of CPU for each start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup lock demo test test-all coverage lint types check bench docs up

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv with everything, pinned by hash

$(READY): requirements/dev.txt pyproject.toml server/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Gullak needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		echo "Python comes without ensurepip; install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "setting up $(VENV) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e ./server
	@touch $@

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--upgrade --no-emit-package gullak --no-emit-package gullak-server

lock: $(READY) ## Resolve the dependencies anew into requirements/
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@printf '.\n./server\n' | $(LOCK) - -o requirements/runtime.txt
	@printf '.[dev,docs]\n./server[embedded]\n' | $(LOCK) -c requirements/runtime.txt - -o requirements/dev.txt

demo: $(READY) ## Real traffic through the whole path, with a killed worker and a reconciliation
	@$(BIN)/gullak demo $(ARGS)

# A module's tests stay in one process, because they share servers. The slowest tiers come first.
PYTEST := $(BIN)/pytest -q -n $(WORKERS) --dist=loadscope --no-loadscope-reorder
# The types are checked beside the tests: the first tests mostly wait for processes.
define with_types
	@$(BIN)/mypy --no-error-summary > $(VENV)/types.log 2>&1 & types=$$!; \
	$(1); tests=$$?; \
	wait $$types || { cat $(VENV)/types.log; exit 1; }; \
	exit $$tests
endef

test: lint ## Checks, then all tests but the slow ones and the benchmarks
	$(call with_types,$(PYTEST) $(ARGS))

test-all: lint ## Checks, then all tests but the benchmarks
	$(call with_types,$(PYTEST) --slow $(ARGS))

coverage: $(READY) ## The product lines and branches that the tests of `make test` run
	@rm -rf .coverage
	@$(BIN)/coverage run -m $(notdir $(PYTEST)) $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

check: lint types ## Format, lint, import contracts, types

lint: $(READY)
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@PYTHONPATH= $(BIN)/lint-imports --no-logo 2>/dev/null || PYTHONPATH= $(BIN)/lint-imports

types: $(READY)
	@$(BIN)/mypy --no-error-summary

bench: $(READY) ## The budgets of the design, as ratios taken in one run
	@$(BIN)/python tests/benchmarks/run.py $(ARGS)

docs: $(READY) ## The reference pages from the code, then the site in site/
	@$(BIN)/python tests/support/reference.py
	@$(BIN)/zensical build --clean --strict

up: $(READY) ## Postgres, Redis, workers, beat and API, until Ctrl-C
	@$(BIN)/gullak up $(ARGS)
