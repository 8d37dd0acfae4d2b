# The project's commands. Each runs on a machine without a GPU unless its line says otherwise.
# The environment is the active one (virtual or conda), else .venv, which demo, test and test-deep make (.ci/install.py). Its
# programs come first.
# Variables: PYTHON=python3.12 makes .venv with that Python; JOBS=8 tests in 8 processes; ARGS are more options of the command;
#            INSTALL=no runs what is installed now.
export PATH := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV)/bin:)$(if $(CONDA_PREFIX),$(CONDA_PREFIX)/bin:)$(CURDIR)/.venv/bin:$(PATH)
PYTHON ?= python3
JOBS ?= 2
INSTALL ?= $(PYTHON) .ci/install.py
PYTEST := $(PYTHON) -m pytest -n $(JOBS) --dist loadfile
CSRC := $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 2>/dev/null)

.PHONY: help demo examples test test-deep test-ptx docs wheel lint format static-report gpu-check gpu-bench gpu-deep bench-cpu performance

help:  ## this list
	@grep -hE '^[a-z -]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

demo:  ## installs, trains a small language model and lets it write; STEPS=40 for a short look
	@$(if $(filter no,$(INSTALL)),,$(INSTALL) demo)
	$(PYTHON) -m xlstm_cuda train $(STEPS:%=--steps %) $(ARGS)

examples:  ## installs their data, runs the measured examples with all seeds (25 minutes) and writes docs/examples.md; ARGS=state_tracking for one
	@$(if $(filter no,$(INSTALL)),,$(INSTALL) examples)
	$(PYTHON) -m examples $(ARGS)

test:  ## installs with everything that tests need, then the default tests; ARGS="-k errors" for some of them
	@$(if $(filter no,$(INSTALL)),,$(INSTALL) test)
	$(PYTEST) $(ARGS)

PTX_TESTS := test_simt_primitives test_simt_tile test_mlstm_step_kernel test_mlstm_kernels test_slstm_step_kernel \
	test_slstm_kernel_ops test_slstm_kernels test_slstm_split_kernels
PTX_TESTS := $(PTX_TESTS:%=python_tests/%.py)
test-ptx:  ## the kernels' tests on what nvcc made of them, interpreted (5 minutes on 2 cores); needs nvcc
	@$(if $(filter no,$(INSTALL)),,$(INSTALL) test)
	$(PYTEST) -q --ptx=90a $(PTX_TESTS)
	$(PYTEST) -q --ptx=80 $(PTX_TESTS)

OF_KERNELS := ptx-races slstm-bugs mlstm-bugs ptx-bugs ptx-90a ptx-80 split-bugs executor
DEEP := $(OF_KERNELS) cpu-bugs wide random
wide = $(PYTEST) -m deep
random = $(PYTHON) python_tests/attack --cases 10000 --seed 1
executor = $(PYTHON) python_tests/simt_deep.py
mlstm-bugs = $(PYTHON) python_tests/mlstm_mutants.py
cpu-bugs = $(PYTHON) python_tests/mlstm_cpu_mutants.py
slstm-bugs = $(PYTHON) python_tests/slstm_mutants.py
split-bugs = $(PYTHON) python_tests/slstm_split_mutants.py
ptx-90a = $(PYTEST) -q --ptx=90a -m "deep or not deep" $(PTX_TESTS) python_tests/test_mlstm.py
ptx-80 = $(PYTEST) -q --ptx=80 -m "deep or not deep" $(PTX_TESTS) python_tests/test_mlstm.py
ptx-races = XLSTM_PTX_RACES=1 $(PYTEST) -q --ptx=90a $(PTX_TESTS)
ptx-bugs = $(PYTHON) python_tests/ptx_mutants.py
TESTED := $(shell find csrc xlstm_cuda python_tests cmake CMakeLists.txt -type f -not -name '*.so' -not -name '*.pyc')

test-deep:  ## the wide grid, races, address checks, planted bugs, random comparison, nvcc's PTX: two hours on 2 cores, resumable
	@$(if $(filter no,$(INSTALL)),,$(INSTALL) deep)
	@$(MAKE) --keep-going --no-print-directory --jobs=2 --output-sync=target INSTALL=no $(DEEP:%=build/deep/%)

# One part: it is run again when a source is newer than its last success, and the others are run whatever it says. Two parts run
# at once, and each prints what it has to say at its end. Those of the CUDA kernels do not depend on what is the CPU backend's alone.
OF_CPU := csrc/cpu/% xlstm_cuda/ops/%_cpu.py python_tests/test_%_cpu.py python_tests/test_bench% python_tests/mlstm_cpu_mutants.py \
	python_tests/planted/mlstm_cpu.txt python_tests/planted/cpu_layers.txt
$(OF_KERNELS:%=build/deep/%): $(filter-out $(OF_CPU),$(TESTED))
$(filter-out $(OF_KERNELS:%=build/deep/%),$(DEEP:%=build/deep/%)): $(TESTED)
build/deep/%:
	@echo "== $*: $$(date)"
	$(or $($*),$(error no part of test-deep is called $*))
	@mkdir -p $(@D) && date > $@

docs:  ## this documentation as a site, strictly, into build/site; installs its tools, needs neither torch nor a build of the package
	$(PYTHON) .ci/docs.py $(ARGS)

wheel:  ## the release wheel for Linux into dist/, tried in an environment without compilers; CUDAARCHS=90a-real for one GPU
	$(PYTHON) -u .ci/release_wheel.py $(ARGS)

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
