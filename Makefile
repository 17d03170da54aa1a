# Everything here runs on a fresh machine with Linux (x86-64 or arm64), Python 3.11 to 3.13 with venv, g++ and make: each
# target sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Tests and commands start hundreds of processes: what Python has compiled is kept, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE

# A stamp's name carries a checksum of what it stands for, so a changed file is noticed whatever its date says.
sum_of = $(shell cat $(1) 2>/dev/null | cksum | tr -d ' ')
PACKAGES := $(VENV)/.packages-$(call sum_of,constraints.txt)
PROJECT := $(VENV)/.project-$(call sum_of,pyproject.toml)-$(shell printf %s '$(CURDIR)' | cksum | tr -d ' ')
CXX_FILES := $(sort $(shell find kernels/csrc -type f))
KERNELS := kernels/build/.sources-$(call sum_of,kernels/build.py $(CXX_FILES))
SETUP := $(PACKAGES) $(PROJECT) $(KERNELS)

.DEFAULT_GOAL := help
# A GPU machine may have its own Python with torch and Triton, and no .venv.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
GPU_WORKERS ?= $(shell $(GPU_PYTHON) -c 'import os, xdist; print("-n", min(16, len(os.sched_getaffinity(0))), "--dist worksteal")' 2>/dev/null)
# A machine with a GPU may be at hand for minutes: tests that take longer are interrupted, and say so.
GPU_TEST_S ?= 165
# Tests wait for brokers and processes a third of their time: one more at a time than there are processors.
WORKERS ?= -n $(shell "$(PYTHON)" -c 'import os; print(min(4, 1 + (os.cpu_count() or 1)))') --dist worksteal
RESULTS ?= bench/results
# `make test-gpu bench-gpu`: a test that fails costs the status, not the measurements.
MAKEFLAGS += $(if $(filter bench-gpu,$(MAKECMDGOALS)),--keep-going)
.PHONY: help setup lint format test test-quick test-sanitized test-gpu test-gpu-sanitized soak demo bench bench-gpu lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(SETUP) ## only what the others do first: .venv with exact versions and hashes, and the compiled kernels

IS_SUPPORTED := 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
# What a machine may lack, each in one line and before anything is downloaded. The lock file has packages for these.
define CHECK_MACHINE
@refuse() { echo "headrace: $$1" >&2; exit 2; }; \
machine="$$(uname -s) $$(uname -m)"; \
case "$$machine" in "Linux x86_64" | "Linux aarch64") ;; \
	*) refuse "expected Linux on x86-64 or arm64, got $$machine; use Docker there (README.md, \"Run it\")" ;; \
esac; \
command -v "$(PYTHON)" >/dev/null || \
	refuse "expected Python 3.11 to 3.13, found no $(PYTHON); install it, or set PYTHON=/path/to/python3.11"; \
"$(PYTHON)" -c $(IS_SUPPORTED) || \
	refuse "expected Python 3.11 to 3.13, got $$("$(PYTHON)" --version 2>&1); set PYTHON=/path/to/python3.11"; \
test ! -x $(BIN)/python || $(BIN)/python -c $(IS_SUPPORTED) || \
	refuse "expected Python 3.11 to 3.13 in $(VENV), got $$($(BIN)/python --version 2>&1); remove $(VENV), or set VENV"; \
test -x $(BIN)/pip || "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
	refuse "expected Python with venv, got $(PYTHON) without; install python3-venv, or set PYTHON=/path/to/python3.11"; \
if test -n "$$CXX"; then \
	command -v $${CXX%% *} >/dev/null || refuse "CXX: expected a C++ compiler, found no $${CXX%% *}; unset it, or set it to a command"; \
else \
	command -v g++ >/dev/null || command -v clang++ >/dev/null || \
		refuse "expected a C++ compiler, found neither g++ nor clang++; install g++, or set CXX"; \
fi
endef

$(PACKAGES):
	$(CHECK_MACHINE)
	@echo "headrace: setting up $(VENV): torch alone is a few GB the first time, and pip says nothing for some minutes"
	test -x $(BIN)/pip || "$(PYTHON)" -m venv $(VENV)
	@$(PIP) install --quiet --require-hashes -r constraints.txt || { echo "headrace: pip could not install the packages of" \
		"constraints.txt, for the reason above; it needs a package index and 10 GB on the disk" >&2; exit 2; }
	@rm -f $(VENV)/.packages-* && touch $@

# The environment may be shared by several checkouts (VENV=…): it belongs to the one that installed itself last.
$(PROJECT): $(PACKAGES)
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.project-* && touch $@

$(KERNELS): | $(PACKAGES)
	$(BIN)/python -m kernels.build
	@rm -f kernels/build/.sources-* && touch $@

lint: $(SETUP) ## ruff, mypy, the import contracts and the layout table against them, and clang-format on the C++
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/python -m pytest -q tests/test_layout.py -k layout_table

format: $(SETUP) ## let ruff and clang-format put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

test: $(SETUP) ## every test; real Apache Kafka where java and mvn are present, else the embedded broker
	$(BIN)/python -m pytest $(WORKERS) $(PYTEST_ARGS)

test-quick: $(SETUP) ## the tests that need neither a broker nor more than a few seconds each: eight minutes of processor time
	$(BIN)/python -m pytest -m "not slow and not kafka" $(WORKERS) $(PYTEST_ARGS)

# Python is not built with AddressSanitizer, so its library is loaded first; g++'s own, since clang's would be another.
SANITIZED = build/sanitized
test-sanitized: $(SETUP) ## the C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in a copy: ten minutes on two slow cores
	mkdir -p $(SANITIZED) && git ls-files -z '*.py' '*.cpp' '*.h' pyproject.toml | xargs -0 cp --parents -t $(SANITIZED)
	printf '#!/bin/sh\nexec g++ -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -g1 "$$@" -O1\n' > $(SANITIZED)/c++
	chmod +x $(SANITIZED)/c++ && cd $(SANITIZED) && CXX=$$PWD/c++ XDG_CACHE_HOME=$$PWD/cache $(abspath $(BIN))/python -m kernels.build
	cd $(SANITIZED) && PYTHONPATH=. PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0:log_path=report UBSAN_OPTIONS=log_path=report \
		LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so.6)" $(abspath $(BIN))/python -m pytest \
		$(WORKERS) tests/kernels --ignore tests/kernels/triton --ignore tests/kernels/test_build.py || { cat report.*; exit 1; }

# Warnings from a GPU machine's packages must not fail the run. Compiling takes most of the time, so tests run in parallel.
test-gpu: ## the kernels and the trainer on a GPU, against their references
	-$(GPU_PYTHON) -m kernels.build
	OMP_NUM_THREADS=2 timeout -s INT -k 15 $(GPU_TEST_S) $(GPU_PYTHON) -m pytest tests/gpu -W default -v \
		-o faulthandler_timeout=90 $(GPU_WORKERS) $(PYTEST_ARGS)

# Each tensor gets memory of its own, so that what lies beyond it is nobody's; graphs and counts of memory need PyTorch's allocator.
GPU_TOOL ?= memcheck
test-gpu-sanitized: ## the kernels on a GPU under the CUDA toolkit's compute-sanitizer (GPU_TOOL=racecheck, initcheck): slow, not run yet
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $(GPU_TOOL) --target-processes all --error-exitcode 9 \
		$(GPU_PYTHON) -m pytest tests/gpu -W default -v -p no:xdist -k "not graph and not never_holds and not 32_bits and not 4096" \
		$(PYTEST_ARGS)

soak: $(SETUP) ## 50 kills over the whole loop on real Kafka, audited after each (KILLS=15, SEEDS="1 2"): a few minutes
	$(BIN)/python -m tests.system.soak --seeds $(or $(SEEDS),1) --kills $(or $(KILLS),50)

bench: $(SETUP) ## side-by-side measurements on this machine (BENCH=NAME; BENCH_ARGS=--quick)
	$(BIN)/python -m bench $(or $(BENCH),kernels) $(BENCH_ARGS)

bench-gpu: ## every GPU measurement in less than five minutes (BENCH_ARGS='--only "live step"'); writes $(RESULTS)/gpu.json as it goes
	-$(GPU_PYTHON) -m kernels.build
	$(GPU_PYTHON) -m bench.gpu --out $(RESULTS) $(BENCH_ARGS)

demo: $(SETUP) ## the whole loop on MovieLens-100K, in one screen (DEMO_ARGS="--json", "--dataset PATH", …)
	$(BIN)/python -m headrace demo $(DEMO_ARGS)

lock: $(PACKAGES) ## resolve constraints.txt (everything) and constraints-run.txt (the image's) anew, within what pyproject.toml allows
	$(BIN)/uv pip compile pyproject.toml --extra demo --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet \
		--custom-compile-command "make lock" --output-file constraints.txt
	$(BIN)/uv pip compile pyproject.toml --constraint constraints.txt --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet \
		--custom-compile-command "make lock" --output-file constraints-run.txt

clean: ## remove what setup and the tests made
	rm -rf $(VENV) build kernels/build .cache/triton .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
