# Needs make and Python 3.11 or newer; the rest is installed into .venv when it is first asked for.
# Every path is relative, so that the folder above may have a space in its name.

VENV := .venv
PY := $(VENV)/bin/python
BANK := $(PY) -m flask --app sample.bank
PYTEST := $(PY) -m pytest
# Some tests take a thousand times as long as others: who has none left takes over another's.
IN_PARALLEL = --numprocesses $(JOBS) --dist worksteal

PYTHON ?=
PORT ?= 5000
CUSTOMERS ?= 20
PROGRAMS ?= 10000
FUZZ ?= 3000
# Tests wait as long as they compute.
JOBS ?= 4
READS ?= 1000000
SEEDS ?= 1 2 3
DRIVER ?= psycopg2
REQUESTS ?= 50000
PYTHONS ?= 3.12 3.13

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# A virtual environment whose interpreter is gone is as good as none.
ifneq ($(wildcard $(VENV)/*.stamp),)
ifneq ($(shell $(PY) -c 'print("runs")' 2>/dev/null),runs)
$(shell rm -f $(VENV)/*.stamp)
endif
endif

.PHONY: help
help: ## Print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name what; do printf '  make %-16s %s\n' "$$name" "$$what"; done

## The sample

.PHONY: sample
sample: $(VENV)/sample.stamp ## Run the bank on 127.0.0.1:5000 with a SQLite file (PORT=, DATABASE_URL=postgresql://..., CUSTOMERS=)
	@$(BANK) bank init
	@if $(BANK) bank check | grep -q '^customers 0,'; then $(BANK) bank seed --customers $(CUSTOMERS); fi
	@$(BANK) run --port $(PORT)

.PHONY: sample-postgres
sample-postgres: $(VENV)/test.stamp ## Run the bank with gunicorn on a PostgreSQL that lives as long (PORT=, CUSTOMERS=)
	@$(PY) -m sample.on_postgres --port $(PORT) --customers $(CUSTOMERS)

## Checks

.PHONY: test
# Behind a pooler as well, where Debian's package pgbouncer is installed: apt-get install pgbouncer. With
# UOW_TEST_PGBOUNCER=required a missing one fails.
test: lint types ## Run lint, types and all tests, on SQLite, PostgreSQL, PgBouncer (JOBS=, UOW_TEST_POSTGRES_URL= names a server)
	@$(PYTEST) $(IN_PARALLEL)

.PHONY: lint
lint: $(VENV)/dev.stamp ## Run ruff
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check

.PHONY: types
types: $(VENV)/dev.stamp ## Run mypy
	@$(PY) -m mypy

.PHONY: coverage
coverage: $(VENV)/dev.stamp ## Run all tests, and show the lines that none of them reaches
	@$(PYTEST) $(IN_PARALLEL) --cov --cov-report=term-missing:skip-covered

.PHONY: test-plain
test-plain: $(VENV)/dev.stamp ## Run what speaks to PostgreSQL once more, without statements that ride
	@UOW_TEST_RIDE=off $(PYTEST) $(IN_PARALLEL) tests/database tests/faults -k "psycopg"

.PHONY: test-threads
test-threads: $(VENV)/dev.stamp ## Run all tests while the interpreter changes from one thread to another after nearly every step
	@UOW_TEST_THREADS=alternate $(PYTEST) $(IN_PARALLEL)

.PHONY: test-browser
test-browser: $(VENV)/dev.stamp ## Run the sample's tests in a headless Chromium (CHROMIUM=)
	@CHROMIUM="$${CHROMIUM:-$$(command -v chromium || command -v chromium-browser || command -v google-chrome)}"; \
	if [ -z "$$CHROMIUM" ]; then echo "No Chromium was found. Name one: make test-browser CHROMIUM=/path/to/chromium" >&2; exit 1; fi; \
	CHROMIUM="$$CHROMIUM" $(PYTEST) -m browser

.PHONY: test-isolated
test-isolated: $(VENV)/test.stamp ## Run the sample's tests with tables made anew and isolated, and compare results and times
	@$(PYTEST) -m benchmark tests/benchmarks/test_isolation.py -k same_results -s -o faulthandler_timeout=0

.PHONY: test-programs
test-programs: $(VENV)/dev.stamp ## Run 10,000 random programs of units against the model, other ones each time (PROGRAMS=)
	@UOW_TEST_PROGRAMS=$$(( ($(PROGRAMS) + 2) / 3 )) $(PYTEST) tests/database/test_programs.py -o timeout=3600 -o faulthandler_timeout=0

.PHONY: fuzz
fuzz: $(VENV)/dev.stamp ## Try 3,000 odd configurations, options, arguments and boards each, other ones each time (FUZZ=, JOBS=)
	@UOW_TEST_FUZZ=$(FUZZ) $(PYTEST) $(IN_PARALLEL) tests/fuzz -o timeout=3600 -o faulthandler_timeout=0

.PHONY: audit
audit: ## Ask the index for known vulnerabilities in what a user installs, newest and oldest (PYTHON=)
	@$(find_python); .ci/audit "$$python"

.PHONY: test-boards
test-boards: $(VENV)/test.stamp ## Read the boards of busy workers a million times, and compare (READS=)
	@$(PY) -m tests.benchmarks.hammer_boards --reads $(READS)

.PHONY: faults
faults: $(VENV)/test.stamp ## Break the bank under load, and compare the books with what its clients were told (SEEDS=, DRIVER=)
	@$(PY) -m tests.faults.bank --seeds $(SEEDS) --driver $(DRIVER)

.PHONY: soak
soak: $(VENV)/test.stamp ## Ask one process 50,000 times, in every way, and look at what it holds then (REQUESTS=)
	@$(PY) -m tests.faults.soak --requests $(REQUESTS)

.PHONY: test-oldest
test-oldest: ## Run the tests with the oldest Flask, SQLAlchemy and drivers that are supported
	@$(MAKE) --no-print-directory VENV=.venv-oldest PINS=tests/oldest.txt .venv-oldest/test.stamp
	@.venv-oldest/bin/python -m pytest $(IN_PARALLEL)

.PHONY: test-pythons
test-pythons: ## Run the tests with other Pythons than the one that has made .venv (PYTHONS=)
	@for version in $(PYTHONS); do \
	    for python in python$$version $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$version.*/bin/python; do \
	        "$$python" -c 'import ensurepip' >/dev/null 2>&1 && break; python=; \
	    done; \
	    [ -n "$$python" ] || { echo "No Python $$version was found." >&2; exit 1; }; \
	    $(MAKE) --no-print-directory VENV=.venv-$$version PYTHON="$$python" .venv-$$version/test.stamp || exit 1; \
	    .venv-$$version/bin/python -m pytest $(IN_PARALLEL) || exit 1; \
	done

.PHONY: bench
bench: $(VENV)/bench.stamp ## Measure the overhead of a unit, the bank under 10,000 requests, and peers beside ours
	@$(PYTEST) -m benchmark -s
	@$(PY) -m tests.benchmarks.load_bank --requests 10000
	@$(PY) -m tests.benchmarks.peers --chart docs/peers.svg

## Pages and releases

.PHONY: docs
docs: $(VENV)/dev.stamp ## Build the pages of docs/ into build/docs
	@$(PY) -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "Open build/docs/index.html"

.PHONY: build
build: $(VENV)/dev.stamp ## Build the wheel and the source archive into dist/ and check them
	@rm -rf build dist
	@$(PY) -m build --quiet
	@$(PY) -m twine check --strict dist/*

.PHONY: release-check
release-check: build ## Install what was built into empty environments, and follow the quick start there (TAG=)
	@$(PY) -m tests.release_check dist --tag "$$TAG"

.PHONY: pictures
pictures: $(VENV)/dev.stamp ## Draw the README's pictures again, from a server's real sessions and a request at the bank
	@$(PY) -m tests.pictures.db_session_stats docs
	@$(PY) -m tests.pictures.debugtoolbar_panel docs/debugtoolbar-panel.svg

.PHONY: clean
clean: ## Remove everything that make has made, the sample's SQLite file too
	@rm -rf .venv .venv-* build dist instance *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov
	@find flask_uow sample tests -name __pycache__ -type d -prune -exec rm -rf {} +

## The virtual environment
#
# A stamp says which extras are installed. An installation that did not finish leaves its mark, and the next call starts anew.

$(VENV)/sample.stamp: EXTRAS := postgres
$(VENV)/sample.stamp: COVERED := sample
$(VENV)/test.stamp: EXTRAS := test
$(VENV)/test.stamp: COVERED := sample test
$(VENV)/dev.stamp: EXTRAS := dev
$(VENV)/dev.stamp: COVERED := sample test dev
$(VENV)/bench.stamp: EXTRAS := dev,bench
$(VENV)/bench.stamp: COVERED := sample test dev bench

$(VENV)/%.stamp: setup.cfg pyproject.toml $(PINS)
	@if [ -e $(VENV)/unfinished ] || ! $(PY) -m pip --version >/dev/null 2>&1; then \
	    $(find_python); echo "Making $(VENV)"; rm -rf $(VENV); "$$python" -m venv $(VENV) || exit 1; fi
	@echo "Installing flask_uow[$(EXTRAS)] into $(VENV)"
	@touch $(VENV)/unfinished
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@$(if $(PINS),$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --requirement $(PINS))
	@rm $(VENV)/unfinished
	@touch $(COVERED:%=$(VENV)/%.stamp)

# The newest that runs and can make a virtual environment: the mere name may be a wrapper that refuses.
define find_python
for python in $(if $(PYTHON),"$(PYTHON)",python3.13 python3.12 python3.11 python3); do \
	    "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && break; python=; \
	done; \
	[ -n "$$python" ] || { echo "No Python 3.11 or newer with venv was found. Name one: make PYTHON=/path/to/python3" >&2; exit 1; }
endef
