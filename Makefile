# `make demo` and `make test` set up a new machine; the first downloads PyTorch into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest

.PHONY: demo test browser cluster lint wheel lowest clean

demo: $(VENV)/.demo
	$(BIN)/python examples/portraits.py demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

# The tests of the web pages; they need Chromium and Node.js.
browser: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[onnxruntime]" playwright
	$(BIN)/python -m pytest -m browser tests/export tests/serving

# The tests on Ray clusters of this machine, and against a stand-in for S3.
cluster: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[cluster]" s3fs "moto[server]"
	$(BIN)/python -m pytest -m "cluster or not cluster" tests/cluster

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Builds the wheel and the sdist, and tries the wheel in an empty environment.
wheel: $(VENV)/.dev
	$(BIN)/python .ci/check_wheel.py

# Runs the tests with the oldest supported version of each dependency. Old packages warn about
# newer ones, so warnings are no errors here.
lowest: $(LOWEST)/.dev
	$(LOWEST)/bin/python -m pytest -W default -p no:cacheprovider $(LOWEST_TESTS)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo]"
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[train,demo,tensorboard,keras,serve,geo,video,export,parquet]" --group dev
	touch $@ $(VENV)/.demo

$(LOWEST)/.dev: pyproject.toml constraints.txt .ci/lowest.py
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(LOWEST)/bin/python .ci/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet -c $(LOWEST)/constraints.txt \
		-e ".[train,demo,tensorboard]" --group dev
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) demo build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
