# `make` alone says what there is: what stands behind `##` beside each target. Each target installs what it needs into
# .venv from the locked requirements first; clean-venv removes it, so that the next one installs anew:
# make clean-venv; make run TORCH_INDEX=...

PYTHON ?= python3
# Another torch than the locked one, such as torch==2.6.0, and the index address it comes from, which
# pytorch.org/get-started names for each CUDA version. Either is enough.
TORCH ?=
TORCH_INDEX ?=
# Of `make ui`.
PORT ?= 5000
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

INSTALL := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
LOCKED_TORCH := $(shell grep '^torch==' requirements.txt)
OTHER_TORCH := $(strip $(TORCH)$(TORCH_INDEX))

.DEFAULT_GOAL := help
.PHONY: install help run test test-slow test-gpu bench bench-full check format ui clean-venv

install: $(VENV)/installed ## .venv with the locked requirements

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s%s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "Settings, as in \`make run PYTHON=python3.12\`: PYTHON, TORCH, TORCH_INDEX (README.md); PORT of \`make ui\`"

run: $(VENV)/installed ## everything: install, then dvc repro of the profile in params.yaml; then say what came out
	dvc repro
	@moe-distill result

test: $(VENV)/installed ## install, then the tests that take seconds each
	pytest -n 2 --dist loadfile

test-slow: $(VENV)/installed ## the tests that take minutes each
	pytest -m slow

test-gpu: $(VENV)/installed ## tests and ratios at the real pair's sizes, on the GPU that is here
	pytest -m gpu -rs -o tmp_path_retention_policy=none
	python benchmarks/gpu_check.py --json gpu_check.json

bench: $(VENV)/installed ## figures beside others', into docs/benchmarks.md: meant for 10 minutes on 2 idle cores
	python benchmarks/bench.py

bench-full: $(VENV)/installed ## the same at full sizes, which takes an hour or more
	python benchmarks/bench.py --full

check: $(VENV)/installed ## linter, format, types and import contracts
	ruff check .
	ruff format --check .
	mypy
	lint-imports

format: $(VENV)/installed ## put the code into ruff's format
	ruff check --fix .
	ruff format .

ui: $(VENV)/installed ## MLflow's pages on 127.0.0.1
	moe-distill ui --port $(PORT)

clean-venv: ## remove .venv; the next target installs anew
	rm -rf $(VENV)

$(VENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "moe-distill needs Python 3.11 or newer; choose one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(if $(OTHER_TORCH),$(INSTALL) $(TORCH_INDEX:%=--index-url %) '$(or $(strip $(TORCH)),$(LOCKED_TORCH))')
	$(if $(OTHER_TORCH),grep -v '^torch==' requirements.txt | $(INSTALL) -r /dev/stdin,$(INSTALL) -r requirements.txt)
	$(INSTALL) --no-deps --editable .
	@touch $@
