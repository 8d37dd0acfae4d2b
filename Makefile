# The project's commands. Each runs on a machine without a GPU unless its line says otherwise.
PYTHON ?= python
CSRC := $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 2>/dev/null)

.PHONY: help test test-deep wheel lint format static-report gpu-check gpu-bench gpu-deep bench-cpu performance

help:  ## this list
	@grep -hE '^[a-z -]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

test:  ## the default tests (10 minutes on 2 cores)
	$(PYTHON) -m pytest -n 2 --dist loadfile

test-deep:  ## the wide grid, races, address checks, planted bugs; install with XLSTM_SIMT=ON XLSTM_SIMT_ASAN=ON first
	$(PYTHON) -m pytest -n 2 --dist loadfile -m deep
	$(PYTHON) python_tests/simt_deep.py
	$(PYTHON) python_tests/mlstm_mutants.py
	$(PYTHON) python_tests/slstm_mutants.py
	$(PYTHON) python_tests/slstm_split_mutants.py

wheel:  ## the release wheel into dist/, tried in an environment without compilers; CUDAARCHS=90a-real for one architecture
	$(PYTHON) -u .ci/release_wheel.py

static-report:  ## every kernel through nvcc and the host executor, into bench/results/static; only what changed is done again; ARCH=90a
	$(PYTHON) -m bench.static $(ARCH:%=--arch %)

gpu-check gpu-bench gpu-deep:  ## on a machine with a GPU, at most 9 minutes each, resumable; DRY=1 rehearses without one
	$(or $(shell command -v $(PYTHON)),python3) -m bench.gpu $(@:gpu-%=%) $(if $(DRY),--dry-run)

lint:  ## ruff, mypy, clang-format; pip install ".[lint]" first
	ruff check --output-format concise .
	ruff format --check .
	mypy
	clang-format --dry-run --Werror $(CSRC)

format:  ## format Python and C++
	ruff check --fix .
	ruff format .
	clang-format -i $(CSRC)

bench-cpu:  ## ours, the reference and every installed peer on this CPU, in 3 minutes
	$(PYTHON) -m bench --quick --device cpu

performance:  ## docs/performance.md from the results in bench/results
	$(PYTHON) -m bench.report
