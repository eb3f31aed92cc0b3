# `make help` lists what there is. Everything runs in .venv, which the first target that needs it makes.
SHELL := /bin/bash -eu -o pipefail
.DEFAULT_GOAL := help
.PHONY: help install lint types test docs random-nets cross-check demo coverage-table clean

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
WORKERS ?= 2

# With several test workers, one thread each is fastest and keeps results the same everywhere.
export OMP_NUM_THREADS ?= 1

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

install: $(STAMP) ## make .venv with densify and its development tools

# One command installs everything: a torchvision built for another torch does not import.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "densify needs python 3.11 or newer: make PYTHON=...")'
	if command -v uv >/dev/null; then \
	    uv venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" .venv; \
	    uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
	    $(PYTHON) -m venv .venv; \
	    $(BIN)/python -m pip install -c constraints.txt -e '.[dev]'; \
	fi
	touch $@

lint: $(STAMP) ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy over code, tests and models
	$(BIN)/mypy

test: lint types ## lint, types, then the tests
	$(BIN)/pytest -q -n $(WORKERS)

docs: $(STAMP) ## the pages and the reference as a site in build/site, which opens from disk
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d build/docs docs build/site
	@echo "open build/site/index.html"

NETS ?= 12000

random-nets: $(STAMP) ## all laws on NETS random networks, far more than `make test` tries (hours)
	PYTHONPATH=tests $(BIN)/python -m laws.run $(NETS)
	PYTHONPATH=tests $(BIN)/python -m laws.run $(NETS) 0 decoders

cross-check: $(STAMP) ## the tests once more; every model that they convert is also made dense behind its export (an hour)
	PYTHONPATH=tests $(BIN)/pytest -q -n 0 -p laws.cross_check

DEMO := build/demo
DIGITS := models/digits.py:digit_net
SAMPLES := --sample models/samples/scene1.png --sample models/samples/scene2.png

demo: $(STAMP) ## convert, verify and give back a small trained model
	mkdir -p $(DEMO)
	$(BIN)/densify convert $(DIGITS) --weights models/digits.safetensors --start pool2 $(SAMPLES) -o $(DEMO)/dense.safetensors -o $(DEMO)/dense.onnx --overwrite
	$(BIN)/densify verify $(DEMO)/dense.safetensors $(SAMPLES) --trust-code
	$(BIN)/densify inverse $(DEMO)/dense.safetensors --trust-code -o $(DEMO)/dpoa.safetensors -o $(DEMO)/dpoa.onnx --overwrite
	$(BIN)/densify verify $(DEMO)/dpoa.safetensors $(DEMO)/dense.safetensors $(SAMPLES) --trust-code

coverage-table: $(STAMP) ## docs/coverage.md: torchvision's networks and what peers make of them (half an hour, resumes)
	if command -v uv >/dev/null; then \
	    uv pip install --python $(BIN)/python -c constraints.txt -e '.[peers]'; \
	else \
	    $(BIN)/python -m pip install -c constraints.txt -e '.[peers]'; \
	fi
	$(BIN)/python benchmarks/coverage.py

clean: ## remove what the other targets made, .venv included
	rm -rf build dist .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
