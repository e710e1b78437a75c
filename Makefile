# Two commands are all that a newcomer needs: `make demo` and `make test`.
# Each sets up .venv by itself and does nothing twice.

PYTHON ?= $(shell for p in python3.12 python3.13 python3.14 python3 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 12))' \
	>/dev/null 2>&1 && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO ?= demo

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-backends gpu gpu-pack bench bench-models lint type imports check format clean

help:  ## show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard kernels/rsmamba_kernels/csrc/*)
	@test -n "$(PYTHON)" || { echo "rsmamba needs Python >= 3.12, which was not found on the PATH."; \
	echo "Install it (apt install python3.12 python3.12-venv, pyenv install 3.12, or uv python install 3.12)"; \
	echo "or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo "$(PYTHON) lacks the venv module: install it (apt install python3-venv)."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing rsmamba and its dependencies into $(VENV) (once, a few minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(STAMP)  ## set up .venv

demo: $(STAMP)  ## pretrain, probe, fine-tune and map on the shipped imagery (about 6 minutes)
	$(BIN)/rsmamba demo --out $(DEMO) --overwrite

test: $(STAMP)  ## the fast tests (CPU, offline)
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-all: $(STAMP)  ## every test, slow ones too
	$(BIN)/python -m pytest

# Triton's interpreter is slow: the tests of the operators only, less those that start it themselves,
# those of other backends, and one that takes minutes there.
INTERPRETED := tests/kernels --ignore-glob="*/test_triton_*" --ignore-glob="*/test_cpu_*" \
	--ignore=tests/kernels/test_bench.py --ignore=tests/kernels/test_build.py --deselect \
	"tests/kernels/test_torch_integration.py::test_autocast_changes_nothing_of_the_arithmetic[selective_scan_multi]"
test-backends: $(STAMP)  ## the fast tests on each backend of the operators in turn (about 30 minutes)
	RSMAMBA_KERNELS=reference $(BIN)/python -m pytest -m "not slow and not gpu"
	RSMAMBA_KERNELS=cpu $(BIN)/python -m pytest -m "not slow and not gpu"
	RSMAMBA_KERNELS=triton TRITON_INTERPRET=1 $(BIN)/python -m pytest -m "not slow and not gpu" $(INTERPRETED)

# On a machine without a package index: make gpu bench GPU_PYTHON=python3 (tools/gpu_pack.py says how)
GPU_PYTHON ?= $(BIN)/python
GPU_STAMP := $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(STAMP))
GPU_RUN := PYTHONPATH=$(PYTHONPATH):.:kernels $(GPU_PYTHON)
gpu: $(GPU_STAMP)  ## the tests that need a CUDA device
	$(GPU_RUN) -m pytest -m gpu

gpu-pack: $(STAMP)  ## collect the wheels that a GPU machine without a package index lacks
	$(BIN)/python tools/gpu_pack.py --out gpu-pack

bench: $(GPU_STAMP)  ## time the operators on every backend; writes kernels/BENCHMARKS.md
	MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 \
	$(GPU_RUN) -m rsmamba_kernels.bench --baselines tests/benchmarks/torch_loops.py \
	--markdown kernels/BENCHMARKS.md --json kernels/benchmarks.json $(BENCH)

bench-models: $(STAMP)  ## time the backbones on this CPU (about 10 minutes); writes docs/models.md
	MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 \
	$(BIN)/python tests/benchmarks/backbones.py --markdown docs/models.md --json docs/models.json $(BENCH)

lint: $(STAMP)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(STAMP)  ## mypy
	$(BIN)/mypy

imports: $(STAMP)  ## who may import whom
	$(BIN)/lint-imports

check: lint type imports  ## everything that reads the code without running it

format: $(STAMP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and caches
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
