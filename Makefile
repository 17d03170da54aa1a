# Everything here runs on a fresh machine with Python 3.11 or newer, g++ and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.headrace

.DEFAULT_GOAL := help
# A GPU machine may have its own Python with torch and Triton, and no .venv.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
GPU_WORKERS ?= $(shell $(GPU_PYTHON) -c 'import xdist; print("-n 8")' 2>/dev/null)
RESULTS ?= bench/results
.PHONY: help setup lint format test test-gpu demo bench bench-gpu lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP) ## a virtual environment in .venv, with exact versions and hashes, and the compiled kernels
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m kernels.build

$(STAMP): constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "headrace: expected Python 3.11 or newer, got $$($(PYTHON) --version); set PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --require-hashes -r constraints.txt
	touch $@

$(BIN)/python:
	@test -x $@ || { echo "headrace: expected an environment in $(VENV), found none; run 'make setup' first" >&2; exit 2; }

lint: $(BIN)/python ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(BIN)/python ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(BIN)/python ## every test; real Apache Kafka where java and mvn are present, else the embedded broker
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# What the packages of a GPU machine warn of is no reason to lose the run. Compiling takes most of it: so side by side.
test-gpu: ## the kernels and the trainer on a GPU, against their references
	-$(GPU_PYTHON) -m kernels.build
	OMP_NUM_THREADS=2 $(GPU_PYTHON) -m pytest tests/gpu -W default $(GPU_WORKERS) $(PYTEST_ARGS)

bench: $(BIN)/python ## side-by-side measurements on this machine (BENCH=kernels, stream; BENCH_ARGS=--quick)
	$(BIN)/python -m bench $(or $(BENCH),kernels) $(BENCH_ARGS)

bench-gpu: ## every GPU measurement in one run of five minutes; writes $(RESULTS)/gpu.json as it goes
	$(GPU_PYTHON) -m bench.gpu --out $(RESULTS)

demo: $(BIN)/python ## the whole loop on MovieLens-100K, in one screen (DEMO_ARGS="--json", "--dataset PATH", …)
	$(BIN)/python -m headrace demo $(DEMO_ARGS)

lock: ## resolve constraints.txt anew, within what pyproject.toml allows
	$(BIN)/uv pip compile pyproject.toml --extra demo --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet \
		--custom-compile-command "make lock" --output-file constraints.txt

clean: ## remove what setup and the tests made
	rm -rf $(VENV) build kernels/build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
