# Every target sets up what it needs in .venv; nothing is installed outside of it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup lock demo test check bench docs up

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setdocs: $(READY) ## The reference pages from the code, then the site in site/
	@$(BIN)/python tests/support/reference.py
	@$(BIN)/zensical build --clean --strict

up: $(READY) ## Make .venv with everything, pinned by hash

$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Gullak needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		echo "Python comes without ensurepip; install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "setting up $(VENV) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

lock: $(READY) ## Resolve the dependencies anew into requirements/
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--upgrade pyproject.toml -o requirements/runtime.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--upgrade --all-extras -c requirements/runtime.txt pyproject.toml -o requirements/dev.txt

demo: $(READY) ## Real traffic through the whole path, with a killed worker and a reconciliation
	@$(BIN)/gullak demo $(ARGS)

test: check ## Checks, then all tests but benchmarks
	@$(BIN)/pytest -q -n $(WORKERS) tests/unit tests/integration tests/acceptance tests/faults $(ARGS)

check: $(READY) ## Format, lint, types, import contracts
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@PYTHONPATH= $(BIN)/lint-imports --no-logo 2>/dev/null || PYTHONPATH= $(BIN)/lint-imports

bench: $(READY) ## The budgets of the design, as ratios taken in one run
	@$(BIN)/python tests/benchmarks/run.py $(ARGS)

docs: $(READY) ## The reference pages from the code, then the site in site/
	@$(BIN)/python tests/support/reference.py
	@$(BIN)/zensical build --clean --strict

up: $(READY) ## Postgres, Redis, workers, beat and API, until Ctrl-C
	@$(BIN)/gullak up $(ARGS)
