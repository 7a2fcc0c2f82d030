# Every target sets up what it needs: a virtual environment with the pinned packages, made once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
ONLY ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo browser test check format format-check lint types schema openapi bench links clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.runtime: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[serve]'
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(VENV)/.dev  ## virtual environment with pinned packages and the tools of development

demo: $(VENV)/.runtime  ## make a world, train on it, and look at the report
	$(BIN)/worldloom run examples/shapes.yaml

browser:  # what the studio's tests need besides Python, where it can be had: Chromium, TypeScript and axe-core
	@(command -v chromium || command -v chromium-browser || command -v google-chrome) >/dev/null || ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ] \
		|| (apt-get update -qq && apt-get install -qq -y chromium) || echo "chromium could not be installed; its tests are skipped"
	@! command -v npm >/dev/null || npm ci --no-audit --no-fund --ignore-scripts --silent || echo "npm could not install; its tests are skipped"

test: $(VENV)/.dev  ## every test, on two cores in under ten minutes
	$(BIN)/python -m pytest

check: format-check lint types test  ## what CI runs: format, lint, types, tests

format: $(VENV)/.dev  ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

format-check: $(VENV)/.dev
	$(BIN)/ruff format --check .

lint: $(VENV)/.dev
	$(BIN)/ruff check .

links:  # the namespace as one tree, for tools that only read files
	@mkdir -p build/links/worldloom
	@for f in pipeline stages tokenizers world_model; do ln -sfn ../../../$$f build/links/worldloom/$$f; done

types: $(VENV)/.dev links  ## mypy --strict, and the studio's types where TypeScript is installed
	$(BIN)/mypy
	@[ ! -x node_modules/.bin/tsc ] || node_modules/.bin/tsc -p jsconfig.json

schema: $(VENV)/.runtime  ## write the JSON Schema of pipeline files for editors
	$(BIN)/worldloom schema > docs/pipeline.schema.json

openapi: $(VENV)/.dev  ## write what the service's routes take and give
	$(BIN)/python -m worldloom.pipeline.service.openapi > docs/openapi.json

bench: $(VENV)/.dev  ## measure against plain ways and peers; ONLY=NAME for one area
	$(BIN)/python -m bench.run $(ONLY)

clean:  ## remove what make built; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
