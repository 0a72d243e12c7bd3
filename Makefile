# `make help` lists the targets. Each makes .venv by itself when it is missing or out of date.
# Pass further arguments with ARGS: make test ARGS="-k retry"

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

ARGS ?=
PORT ?= 8000
BIN := .venv/bin
PYTHON := $(BIN)/python
READY := .venv/.ready

.PHONY: help
help:
	@awk 'BEGIN {FS = ":.*## "; print "make TARGET [ARGS=\"...\"]"} \
		/^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The stamp holds the folder it was made for: a moved tree, a lost interpreter or another one asked for sets up again.
ifneq ($(CURDIR)|$(wildcard $(PYTHON))|,$(shell cat $(READY) 2>/dev/null)|$(PYTHON)|$(PYTHON_BIN))
.PHONY: $(READY)
endif
$(READY): pyproject.toml uv.lock scripts/bootstrap.sh
	@PYTHON="$(PYTHON_BIN)" scripts/bootstrap.sh

##@ Start

.PHONY: setup demo
setup: $(READY) ## Make the virtual environment in .venv (PYTHON_BIN=/path/to/python chooses one)
	@echo "Ready: $$($(PYTHON) --version) in .venv. Next: make demo"

demo: $(READY) ## Run everything once: broker, mail, API and worker; ends by itself
	@$(PYTHON) -m app.demo $(ARGS)

##@ Develop

.PHONY: dev dev-api dev-worker
dev: $(READY) ## API and worker together, reloading on change; one Ctrl-C ends both
	@$(PYTHON) -m app.dev $(ARGS)

dev-api: $(READY) ## The API alone on http://127.0.0.1:8000 (PORT=8001 for another), reloading on change
	@$(PYTHON) -c 'import sys; from app.processes import is_free; \
		sys.exit(0 if is_free($(PORT)) else "port $(PORT) is taken; choose another: make dev-api PORT=8001")'
	@LITESTAR_DEBUG=1 exec $(BIN)/litestar --app app.main:app run --port $(PORT) --reload --reload-dir backend $(ARGS)

dev-worker: $(READY) ## A worker alone, reloading on change
	@exec $(BIN)/knapsaq -A app.queue.config worker --reload $(ARGS)

##@ Check

.PHONY: check static test format format-check lint types floors
check: static test ## All that CI runs: format, lint, types, floors, tests

static: format-check lint types floors ## All of check but the tests

test: $(READY) ## Run the tests, e.g. make test ARGS="-k retry"
ifeq ($(ARGS),)
	@$(PYTHON) -m pytest -n auto --dist loadfile --ignore tests/chaos
	@$(PYTHON) -m pytest -n 2 tests/chaos  # two at a time, as they start many processes and measure how soon they act
else
	@$(PYTHON) -m pytest $(ARGS)
endif

format: $(READY) ## Format the code and fix what can be fixed
	@$(BIN)/ruff check --fix-only --quiet
	@$(BIN)/ruff format

format-check: $(READY) ## Check the format
	@$(BIN)/ruff format --check

lint: $(READY) ## Lint with ruff
	@$(BIN)/ruff check

types: $(READY) ## Check the types with mypy, strict
	@$(PYTHON) -m mypy

floors: $(READY) ## Check that imports point down the floors
	@PYTHONPATH=backend $(BIN)/lint-imports --no-logo

##@ Measure

.PHONY: bench chaos
bench: $(READY) ## Measure Knapsaq beside SAQ; with PEERS=1 beside six more systems too (ARGS=--help lists the options)
	@PEERS="$(PEERS)" $(PYTHON) -m benchmarks $(ARGS)

chaos: $(READY) ## Run the long form of the fault tests: killed workers, lost servers, a soak; some 10 minutes
	@KNAPSAQ_CHAOS=long $(PYTHON) -m pytest -n 2 tests/chaos $(ARGS)

##@ Tidy

.PHONY: clean
clean: ## Remove the environment, caches and build output; keeps .knapsaq, where the development data is
	@rm -rf .venv .venv-bench .uv build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find backend tests -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
	@echo "Clean. Development data, if any, is in .knapsaq"
