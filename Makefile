# make run | make test | make check | make test-slow | make ui
# Each target installs what it needs into .venv from the locked requirements first.

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)

.PHONY: run test test-slow check format ui clean-venv

run: $(VENV)/installed
	dvc repro

test: $(VENV)/installed
	pytest

test-slow: $(VENV)/installed
	pytest -m slow

check: $(VENV)/installed
	ruff check .
	ruff format --check .
	mypy
	lint-imports

format: $(VENV)/installed
	ruff check --fix .
	ruff format .

ui: $(VENV)/installed
	moe-distill ui

$(VENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "moe-distill needs Python 3.11 or newer; choose one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@
