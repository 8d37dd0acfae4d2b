# The project's commands. Each runs on a machine without a GPU unless its line says otherwise.
PYTHON ?= python
CSRC := $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 2>/dev/null)

.PHONY: help test test-deep test-ptx wheel lint format static-report gpu-check gpu-bench gpu-deep bench-cpu performance

help:  ## this list
	@grep -hE '^[a-z -]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

test:  ## the default tests (10 minutes on 2 cores)
	$(PYTHON) -m pytest -n 2 --dist loadfile

PTX_TESTS := test_simt_primitives test_simt_tile test_mlstm_step_kernel test_mlstm_kernels test_slstm_step_kernel \
	test_slstm_kernel_ops test_slstm_kernels test_slstm_split_kernels
PTX_TESTS := $(PTX_TESTS:%=python_tests/%.py)
test-ptx:  ## the kernels' tests on what nvcc made of them, interpreted (5 minutes on 2 cores); install with XLSTM_PTX=ON first
	$(PYTHON) -m pytest -q -n 2 --dist loadfile --ptx=90a $(PTX_TESTS)
	$(PYTHON) -m pytest -q -n 2 --dist loadfile --ptx=80 $(PTX_TESTS)

test-deep:  ## the wide grid, races, address checks, planted bugs; install with XLSTM_SIMT=ON XLSTM_SIMT_ASAN=ON first
	$(PYTHON) -m pytest -n 2 --dist loadfile -m deep
	$(PYTHON) python_tests/simt_deep.py
	$(PYTHON) python_tests/mlstm_mutants.py
	$(PYTHON) python_tests/slstm_mutants.py
	$(PYTHON) python_tests/slstm_split_mutants.py
	$(PYTHON) -m pytest -q -n 2 --dist loadfile --ptx=90a -m "deep or not deep" $(PTX_TESTS) python_tests/test_mlstm.py
	XLSTM_PTX_RACES=1 $(PYTHON) -m pytest -q -n 2 --dist loadfile --ptx=90a $(PTX_TESTS)
	$(PYTHON) python_tests/ptx_mutants.py

wheel:  ## the release wheel into dist/, tried in an environment without compilers; CUDAARCHS=90a-real for one architecture
	$(PYTHON) -u .ci/release_wheel.py

static-report:  ## every kernel through nvcc and the host executor, into bench/results/static; only what changed is done again; ARCH=90a
	$(PYTHON) -m bench.static $(ARCH:%=--arch %)

gpu-check gpu-bench gpu-deep:  ## on a machine with a GPU, at most 9 minutes each, resumable; DRY=1 rehearses without one
	$(PYTHON) -m bench.gpu $(@:gpu-%=%) $(if $(DRY),--dry-run)

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
