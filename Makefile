# Everything a developer or CI does, from a bare checkout: `make demo`, `make test`, `make check`.
# The virtual environment is made on first use and again when pyproject.toml or the constraints change.

VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints/ci.txt
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

# The first Python that runs, has venv, and that TensorFlow has wheels for. `make PYTHON=/path/to/python3.12` overrides.
PYTHON_OK := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do \
	$$python -c '$(PYTHON_OK)' >/dev/null 2>&1 && echo $$python && break; done)

.DEFAULT_GOAL := help
.PHONY: help demo test browser gpu-test format format-check lint types imports check clean

help: ## Say what each target does
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(VENV)/.installed ## Train the MNIST demo under the profiler, print its report and write it as a page
	$(BIN)/precscope demo --overwrite
	$(BIN)/precscope report runs/mnist-demo --html runs/mnist-demo.html --force

test: $(VENV)/.installed-dev ## Run the tests that need no GPU
	$(BIN)/pytest

browser: $(VENV)/.installed-dev ## Install Chromium, for the tests of the page, where there is none
	@for name in chromium chromium-browser google-chrome; do command -v $$name && exit; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get -qq update && apt-get -qq install --yes --no-install-recommends chromium >/dev/null; \
	else $(BIN)/playwright install chromium-headless-shell; fi

gpu-test: $(VENV)/.installed-dev ## Run the tests that need a GPU
	$(BIN)/pytest -m gpu

format: $(VENV)/.installed-dev ## Format the code and put imports in order
	$(BIN)/ruff check --select I --fix --quiet .
	$(BIN)/ruff format .

format-check: $(VENV)/.installed-dev ## Fail where `make format` would change something
	$(BIN)/ruff format --check .

lint: $(VENV)/.installed-dev ## Run ruff
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev ## Run mypy, strict
	$(BIN)/mypy

imports: $(VENV)/.installed-dev ## Hold the import contracts of .importlinter
	$(BIN)/lint-imports

check: ## Everything that CI runs
	.ci/run

clean: ## Remove the virtual environment, caches and builds
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# Each stamp says that the environment holds what pyproject.toml asks for.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/.created
	@echo "Installing PrecScope and TensorFlow into $(VENV) (once; 2 GB on disk) ..."
	PYTHONWARNINGS=ignore $(PIP) install --quiet --constraint $(CONSTRAINTS) --editable '.[tensorflow]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --group dev
	@touch $@

# Dependency groups need pip 25.1.
$(VENV)/.created:
	@$(or $(PYTHON),false) -c '$(PYTHON_OK)' || { echo "PrecScope needs Python 3.11, 3.12 or 3.13 with the venv module" \
	  "(on Debian and Ubuntu: apt install python3 python3-venv); found: $(or $(PYTHON),none)." \
	  "Name one with: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade 'pip>=25.1'
	@touch $@
