# Makes the environment on first use and calls the `course` command in it. The work is done in course_utils/command/cli.py.

# Where PYTHON is given, test-gpu uses that interpreter as it is; all other targets make .venv with it.
GIVEN := $(filter environment command,$(firstword $(origin PYTHON)))
PYTHON ?= python3
# The exact versions that were tested; `make CONSTRAINTS= test` takes the newest releases instead.
CONSTRAINTS ?= constraints.txt
PINS := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

BIN := .venv/bin
BASE := .venv/.course-installed
DEV := .venv/.course-installed-dev
PIP := $(BIN)/python -m pip install --disable-pip-version-check
# Tests at once, with 3 GB and one thread each; what they train and write stays out of the user's folders.
# loadgroup hands out one test at a time: some take minutes.
JOBS ?= 2
PYTEST := own=$$(mktemp -d) && trap 'rm -rf "$$own"' EXIT && \
  COURSE_CACHE="$$own/cache" COURSE_STATE="$$own/state" OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive \
  $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help lectures test test-quick lab present refresh test-gpu bench lint browser

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

lectures: $(BASE)  ## run the whole course headless; notebooks and pages to read come to build/lectures
	@$(BIN)/course run

test: $(DEV) browser lint  ## everything that is checked: code, notebooks, widgets in a real browser
	@$(PYTEST)

test-quick: $(DEV) lint  ## minutes: code and the rules for notebooks, without what is marked slow
	@$(PYTEST) -m "not slow and not browser"

lab: $(BASE)  ## JupyterLab on your own copy of the lectures
	@$(BIN)/course lab

present: $(BASE)  ## make present LECTURE=03: a lecture as live slides
	@test -n "$(LECTURE)" || { echo "Say which lecture: make present LECTURE=03"; exit 2; }
	@$(BIN)/course present $(LECTURE)

refresh: $(BASE)  ## execute the committed notebooks in place
	@$(BIN)/course refresh

test-gpu: $(if $(GIVEN),,$(DEV))  ## nbval with CUDA, quick then full; PYTHON=... uses that interpreter and installs nothing
	@$(if $(GIVEN),$(PYTHON),$(BIN)/python) -m course_utils.command.cli test-gpu

bench: $(DEV)  ## speed and memory beside the peers
	@$(BIN)/python benchmarks/bench.py

lint: $(DEV)  ## ruff over code and notebooks
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

# ---- the environment ----

$(BASE): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "The course needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) -V 2>&1`."; \
	  echo "Install a newer one, then name it: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing the course into .venv: some gigabytes, a few minutes, the first time."
	@$(PIP) --quiet $(PINS) -e '.[cluster,photos]'
	@touch $@

$(DEV): $(BASE)
	@echo "Installing what the tests need."
	@$(PIP) --quiet $(PINS) -e '.[dev]'
	@$(PIP) --quiet $(PINS) --no-deps torchattacks
	@touch $@

browser:
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do command -v $$name >/dev/null && exit 0; done; \
	if command -v apt-get >/dev/null && [ "`id -u`" = 0 ]; then \
	  echo "Installing Chromium for the browser tests." && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; \
	else \
	  echo "No Chromium or Chrome here: the browser tests are skipped (in CI they fail). On Debian: sudo apt-get install chromium"; \
	fi
