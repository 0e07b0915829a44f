.PHONY: help setup repro rank why labels groups shortcuts tune test lint format schemas ui docs bench sbom clean lock
.DEFAULT_GOAL := help
SHELL := /bin/bash
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

setup: .venv/ready  ## the environment, from requirements.lock

.venv/ready: requirements.lock pyproject.toml ops/environment_first.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "headstart needs Python 3.11 or newer; run make PYTHON=/path/to/python3.11"; exit 1; }
	@test -z "$(STALE)" || { echo "making .venv again: it was moved here, or its Python is gone"; rm -rf .venv; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python --require-hashes -r requirements.lock
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
	@cd .venv/lib/python*/site-packages && cp "$(CURDIR)/ops/environment_first.py" . && echo import environment_first > environment_first.pth
	@touch $@

# Ray, for the tests of a cluster. Neither the pipeline nor anything else needs it.
.venv/ray: .venv/ready requirements-ray.lock
	.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python --require-hashes -r requirements.lock -r requirements-ray.lock
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

test: .venv/ray  ## every test, the slow ones too
	OMP_WAIT_POLICY=passive pytest -q -n 2 --maxschedchunk 1 --durations 15 --cov --cov-report term  # two at a time share the cores: neither spins on them

lint: setup  ## ruff and mypy
	ruff check .
	ruff format --check .
	mypy

format: setup  ## put the code in shape
	ruff check --fix .
	ruff format .

schemas: setup  ## docs/schemas, of the JSON files that stages write
	python -m headstart.base.artifacts.schemas docs/schemas

ui: setup  ## MLflow's page with all results, on http://127.0.0.1:5000
	headstart ui --port $${PORT:-5000}

docs: setup  ## the documentation as a site: site/index.html
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

bench: .venv/ray  ## side-by-side measurements, as ratios
	@for script in $$(grep -l "from _sides" bench/[a-z]*.py); do echo "== $$script"; python $$script || exit 1; done
	@python bench/_sides.py

sbom: setup  ## sbom.cdx.json: what headstart is built on; fails if a licence is not allowed
	python ops/sbom.py sbom.cdx.json

COMPILE := env -u PIP_FIND_LINKS -u UV_FIND_LINKS .venv/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-annotate --no-header pyproject.toml

lock: .venv/bin/uv  ## requirements.lock and requirements-ray.lock again, from pyproject.toml
	$(COMPILE) --extra dev -o requirements.lock
	$(COMPILE) --extra dev --extra ray -c requirements.lock | grep -vxFf requirements.lock > requirements-ray.lock  # what is added

.venv/bin/uv:
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

clean:  ## remove the environment and all outputs (the DVC cache and MLflow's runs stay)
	rm -rf .venv data/*/ site .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
