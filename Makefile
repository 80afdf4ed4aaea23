# Everything runs in .venv, made from requirements.lock (names, versions, hashes) the first time it is needed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Left by a finished install: until the lock or the metadata change, nothing is installed again.
INSTALLED := .venv/installed

.PHONY: quickstart test test-wheel test-oldest test-newest lint format bench lock clean

quickstart: $(INSTALLED)
	$(BIN)/vgpo quickstart

test: lint
	$(BIN)/python -m pytest

# In environments of their own, made from the wheel; docs/tested_versions.md has the results.
test-wheel test-oldest test-newest:
	$(PYTHON) .ci/test_environment.py $(patsubst test-%,%,$@)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: test
	$(BIN)/python benchmarks/reweighting.py
	$(BIN)/python benchmarks/step.py

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("requirements.lock needs Python 3.11 or newer, found %s: run make PYTHON=/path/to/python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	touch $@

# Only who changes a dependency needs this: it asks the registry for the newest versions that fit.
lock: $(INSTALLED)
	$(BIN)/python -m pip install --quiet 'uv>=0.9'
	$(BIN)/uv pip compile pyproject.toml --extra toy --extra dev --group build --universal --python-version 3.11 \
	    --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate --upgrade \
	    --quiet --output-file requirements.lock

clean:
	rm -rf .venv .venv-wheel .venv-oldest .venv-newest build dist .mypy_cache .pytest_cache .ruff_cache
