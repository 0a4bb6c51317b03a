# make run | make test | make check | make test-slow | make test-gpu | make ui | make clean-venv
# Each target installs what it needs into .venv from the locked requirements first; clean-venv removes it, so that the
# next one installs anew: make clean-venv; make run TORCH_INDEX=...

PYTHON ?= python3
# Another torch than the locked one, such as torch==2.6.0, and the index address it comes from, which
# pytorch.org/get-started names for each CUDA version. Either is enough.
TORCH ?=
TORCH_INDEX ?=
# Of `make ui`.
PORT ?= 5000
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCKED_TORCH := $(shell grep '^torch==' requirements.txt)
OTHER_TORCH := $(strip $(TORCH)$(TORCH_INDEX))

.PHONY: install run test test-slow test-gpu check format ui clean-venv

install: $(VENV)/installed

run: $(VENV)/installed
	dvc repro
	@moe-distill result

test: $(VENV)/installed
	pytest -n 2 --dist loadfile

test-slow: $(VENV)/installed
	pytest -m slow

test-gpu: $(VENV)/installed
	pytest -m gpu -rs -o tmp_path_retention_policy=none
	python benchmarks/gpu_check.py --json gpu_check.json

check: $(VENV)/installed
	ruff check .
	ruff format --check .
	mypy
	lint-imports

format: $(VENV)/installed
	ruff check --fix .
	ruff format .

ui: $(VENV)/installed
	moe-distill ui --port $(PORT)

clean-venv:
	rm -rf $(VENV)

$(VENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "moe-distill needs Python 3.11 or newer; choose one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(if $(OTHER_TORCH),$(INSTALL) $(TORCH_INDEX:%=--index-url %) '$(or $(strip $(TORCH)),$(LOCKED_TORCH))')
	$(if $(OTHER_TORCH),grep -v '^torch==' requirements.txt | $(INSTALL) -r /dev/stdin,$(INSTALL) -r requirements.txt)
	$(INSTALL) --no-deps --editable .
	@touch $@
