# Everything a newcomer types. `make demo` and `make test` set up what they need in .venv; a second run is quick.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where pip finds the torch build for this machine, for instance the CPU-only one; empty: pip's own settings.
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt
WORKERS ?= 2

.PHONY: help demo test test-all test-browser lint docs bench clean
.DEFAULT_GOAL := help

help: ## list these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

$(VENV)/.package: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (the first time takes some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) torch)
	@$(PIP) --editable .
	@touch $@

$(VENV)/.tools: $(VENV)/.package
	@$(PIP) --editable ".[dev]"
	@touch $@

demo: $(VENV)/.package ## clean the bundled pictures and show before and after
	@$(BIN)/efface clean examples --out out/demo --report --overwrite
	@echo "Cleaned pictures and the before/after sheet: $(CURDIR)/out/demo"

# Each test worker computes on its own share of the cores.
test test-all test-browser: export OMP_NUM_THREADS ?= $(shell n=$$(nproc || echo 2); echo $$((n > $(WORKERS) ? n / $(WORKERS) : 1)))

test: $(VENV)/.tools ## run the tests
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --ignore tests/browser -m "not slow"

test-all: $(VENV)/.tools ## run the tests, those that take minutes included
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --ignore tests/browser

test-browser: $(VENV)/.tools ## run the tests of the page in a real browser; needs a Chromium on the PATH
	@$(BIN)/python -m pytest tests/browser

lint: $(VENV)/.tools ## check format, style and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

docs: $(VENV)/.tools ## write the generated pages of docs/ and the table of the README
	@$(BIN)/python docs/build.py

bench: $(VENV)/.tools ## measure speed, memory and quality into benchmarks/results/
	@for script in benchmarks/[!_]*.py; do $(BIN)/python "$$script" || exit 1; done

clean: ## remove what these commands made, .venv included
	@rm -rf $(VENV) out build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
