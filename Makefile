# Every target does its own set-up: a fresh machine needs Python 3.11 or newer, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
.DEFAULT_GOAL := help

.PHONY: help run test check bench reliability docs lock brokers clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv is missing; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: $(VENV)/installed  ## the order desk of routes.yaml, no outside service needed
	@$(BIN)/gateway run routes.yaml

test: $(VENV)/installed brokers check  ## all checks and tests, with real brokers
	$(BIN)/pytest

check: $(VENV)/installed  ## style, types and floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed  ## throughput beside bare loops of the same libraries
	$(BIN)/python -m benchmarks

reliability: $(VENV)/installed brokers  ## kill points, full disks, power cuts: the long form, about 20 minutes
	$(BIN)/python -m tests.reliability

docs: $(VENV)/installed  ## the generated pages of docs/
	$(BIN)/gateway doc --all > docs/reference.md

brokers:  ## RabbitMQ, Mosquitto and strace from Debian, where they are missing
	@bash tests/brokers/install.sh

lock: $(VENV)/installed  ## pin every dependency by version and hash
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --group dev --generate-hashes --universal --no-header --no-emit-index-url --no-emit-find-links --quiet -o requirements.lock

clean:  ## removes what was installed and built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
