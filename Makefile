# The project's commands. Each runs on a machine without a GPU unless its line says otherwise.
PYTHON ?= python
CSRC := $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 2>/dev/null)

.PHONY: help test test-deep lint format static-report gpu-check bench-cpu

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

test:  ## the default tests (10 minutes on 2 cores)
	$(PYTHON) -m pytest -n 2 --dist loadfile

test-deep:  ## the wide grid, races, address checks, planted bugs; install with XLSTM_SIMT=ON XLSTM_SIMT_ASAN=ON first
	$(PYTHON) -m pytest -n 2 --dist loadfile -m deep
	$(PYTHON) python_tests/simt_deep.py
	$(PYTHON) python_tests/mlstm_mutants.py
	$(PYTHON) python_tests/slstm_mutants.py
	$(PYTHON) python_tests/slstm_split_mutants.py

static-report:  ## every kernel through nvcc: registers, spills, shared memory, warnings; ARCH=90a for one architecture
	$(PYTHON) -m bench.static_report $(ARCH:%=--arch %)

gpu-check:  ## on a machine with a GPU: install, device layer, kernels, in resumable stages
	$(PYTHON) bench/gpu_check.py

lint:  ## ruff, mypy, clang-format; pip install ".[lint]" first
	ruff check --output-format concise .
	ruff format --check .
	mypy
	clang-format --dry-run --Werror $(CSRC)

format:  ## format Python and C++
	ruff check --fix .
	ruff format .
	clang-format -i $(CSRC)

bench-cpu:  ## the CPU backend against the official package and torch.nn.LSTM
	$(PYTHON) bench/mlstm_cpu.py
	$(PYTHON) bench/slstm_cpu.py
