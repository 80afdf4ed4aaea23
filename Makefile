# Everything runs in .venv, created on first use from requirements.lock (names, versions, hashes).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Marker of a finished install: nothing is installed again until the lock or the metadata change.
INSTALLED := .venv/installed
# One worker per core, with one thread and about 1.5 GB. Slow files start first (tests/lanes.py).
PYTEST := $(BIN)/python -m pytest --durations=10 --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

.PHONY: quickstart test test-all test-fast test-wheel test-oldest test-newest test-vllm test-verl test-docs verl-cpu lanes lint format families bench lock clean

quickstart: $(INSTALLED)
	$(BIN)/vgpo quickstart

test: SELECTION := not slow
test-all: SELECTION :=
test: RECORD := true
test-all: RECORD := $(BIN)/python .ci/test_environment.py all --report .venv/test-all.xml
# mypy takes a minute on one core: ruff and mypy run in parallel to the tests, and failures are printed last.
test test-all: $(INSTALLED)
	@$(MAKE) --no-print-directory lint >.venv/lint.log 2>&1 & lint=$$!; \
	$(PYTEST) -m "$(SELECTION)" --junitxml=.venv/$@.xml; status=$$?; \
	wait $$lint || { cat .venv/lint.log; status=1; }; \
	[ $$status -eq 0 ] && $(RECORD)

test-fast: $(INSTALLED)
	$(PYTEST) -m fast

# How many cases each lane has.
lanes: $(INSTALLED)
	@$(BIN)/python -m pytest --collect-only -qq | grep "cases by lane"

# In separate environments with the wheel; docs/tested_versions.md has the results.
test-wheel test-oldest test-newest test-vllm test-verl:
	$(PYTHON) .ci/test_environment.py $(patsubst test-%,%,$@)

# The site, without a warning, and the notebooks. The extra `docs` is not in requirements.lock: the rest is as locked.
test-docs: .venv-docs/installed
	$(PYTHON) .ci/test_environment.py docs

.venv-docs/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	.venv-docs/bin/python -m pip install --quiet --editable '.[docs]'
	touch $@

# verl trains the toy model on this machine's CPU, with these sources.
verl-cpu: .venv-verl/installed
	PYTHONPATH=src .venv-verl/bin/python -m tests.verl.train_cpu

.venv-verl/installed:
	$(PYTHON) .ci/test_environment.py verl --install-only

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

families: .venv/installed  # writes docs/families.md from the test results
	HF_HUB_OFFLINE=1 .venv/bin/python -m tests.families.table

bench: test
	$(BIN)/python benchmarks/reweighting.py
	$(BIN)/python benchmarks/step.py

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("requirements.lock needs Python 3.11 or newer, found %s: run make PYTHON=/path/to/python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	touch $@

# Only needed after a change of dependencies: asks the registry for the newest versions that fit.
lock: $(INSTALLED)
	$(BIN)/python -m pip install --quiet 'uv>=0.9'
	$(BIN)/uv pip compile pyproject.toml --extra dev --group build --universal --python-version 3.11 \
	    --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate --upgrade \
	    --quiet --output-file requirements.lock

clean:
	rm -rf .venv .venv-wheel .venv-oldest .venv-newest .venv-vllm .venv-verl .venv-docs build dist site .mypy_cache .pytest_cache .ruff_cache
