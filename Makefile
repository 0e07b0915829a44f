.PHONY: help setup repro rank why labels groups shortcuts tune test lint format schemas ui docs bench sbom clean lock
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
UV_VERSION := 0.13.9
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DVC_NO_ANALYTICS := true
export MLFLOW_DISABLE_TELEMETRY := true
unexport VIRTUAL_ENV PYTHONPATH PYTHONDONTWRITEBYTECODE

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# A .venv that was moved or copied with its checkout names its old place in every script, and one whose Python is gone runs
# nothing: it is made again.
STALE := $(shell test ! -e .venv || { made="$$(sed -n 's/^command = .* -m venv [^/]*//p' .venv/pyvenv.cfg)"; \
	test -x .venv/bin/python && { test -z "$$made" || test "$$made" -ef .venv; }; } || echo .venv)
ifneq ($(STALE),)
.PHONY: .venv/ready
endif

# Measured; docs/install.md says of what.
RUNNING := 5.6 GB on Linux (3.1 GB to download; four fifths are torch and NVIDIA's libraries)
TESTING := 0.7 GB

setup: .venv/ready  ## the environment, from requirements.lock

# Of every lock: all that is needed stands in it, so nothing is resolved again. What takes long is told as it comes.
INSTALL := .venv/bin/uv pip install --no-deps --python .venv/bin/python --require-hashes
SHOWN := 2>&1 | grep -vE '^ ([-+~]|Downloaded) |^Checked'

.venv/ready: requirements.lock pyproject.toml ops/environment_first.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "headstart needs Python 3.11 or newer; run make PYTHON=/path/to/python3.11"; exit 1; }
	@test -z "$(STALE)" || { echo "making .venv again: it was moved here, or its Python is gone"; rm -rf .venv; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@echo "headstart: installing $$(grep -c == requirements.lock) packages into .venv, $(RUNNING)"
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(INSTALL) -r requirements.lock $(SHOWN)
	@.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
	@cd .venv/lib/python*/site-packages && cp "$(CURDIR)/ops/environment_first.py" . && echo import environment_first > environment_first.pth
	@touch $@

# What tests, linters and the documentation need besides, Ray among it. The pipeline needs none of it.
.venv/dev: .venv/ready requirements-dev.lock requirements-ray.lock
	@echo "headstart: installing $$(cat requirements-dev.lock requirements-ray.lock | grep -c ==) more packages for tests, $(TESTING)"
	@$(INSTALL) -r requirements-dev.lock -r requirements-ray.lock $(SHOWN)
	@touch $@

repro: setup  ## the whole pipeline: dvc repro
	dvc repro

rank: setup  ## which backbone? dvc repro studies/dvc.yaml:rank
	dvc repro studies/dvc.yaml:rank

why: setup  ## is pre-training worth it? dvc repro studies/dvc.yaml:why
	dvc repro studies/dvc.yaml:why

labels: setup  ## which labels look wrong? dvc repro studies/dvc.yaml:labels
	dvc repro studies/dvc.yaml:labels

groups: setup  ## which pictures belong together? dvc repro studies/dvc.yaml:groups
	dvc repro studies/dvc.yaml:groups

shortcuts: setup  ## told apart without a look at the subject? dvc repro studies/dvc.yaml:shortcuts
	dvc repro studies/dvc.yaml:shortcuts

tune: setup  ## better settings of fine-tuning? dvc repro studies/dvc.yaml:tune
	dvc repro studies/dvc.yaml:tune

test: .venv/dev  ## every test, the slow ones too
	OMP_WAIT_POLICY=passive pytest -q -n 2 --maxschedchunk 1 --durations 15 --cov --cov-report term  # two at a time share the cores: neither spins on them

lint: .venv/dev  ## ruff and mypy
	ruff check .
	ruff format --check .
	mypy

format: .venv/dev  ## put the code in shape
	ruff check --fix .
	ruff format .

schemas: setup  ## docs/schemas, of the JSON files that stages write
	python -m headstart.base.artifacts.schemas docs/schemas

ui: setup  ## MLflow's page with all results, on http://127.0.0.1:5000
	headstart ui --port $${PORT:-5000}

docs: .venv/dev  ## the documentation as a site: site/index.html
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

bench: .venv/dev  ## side-by-side measurements, as ratios
	@for script in $$(grep -l "from _sides" bench/[a-z]*.py); do echo "== $$script"; python $$script || exit 1; done
	@python bench/_sides.py

sbom: .venv/dev  ## sbom.cdx.json: what headstart is built on; fails if a licence is not allowed
	python ops/sbom.py sbom.cdx.json

COMPILE := env -u PIP_FIND_LINKS -u UV_FIND_LINKS .venv/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-annotate --no-header pyproject.toml
ADDED := | grep -vxFf requirements.lock >

lock: .venv/bin/uv  ## the locks again, from pyproject.toml: to run, and what tests and a cluster need besides
	$(COMPILE) -o requirements.lock
	$(COMPILE) --extra dev -c requirements.lock $(ADDED) requirements-dev.lock
	$(COMPILE) --extra ray -c requirements.lock -c requirements-dev.lock $(ADDED) requirements-ray.lock

.venv/bin/uv:
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

clean:  ## remove the environment and all outputs (the DVC cache and MLflow's runs stay)
	rm -rf .venv data/*/ site .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
