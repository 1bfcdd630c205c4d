# `make demo` and `make test` set up all that they need on a fresh machine; what is done already is not done again.
SHELL  := /bin/bash
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    ?= runs/demo

.PHONY: help
help:
	@echo 'make demo       set up, then prepare, train, consolidate, export, and let the C program answer (about 10 minutes)'
	@echo 'make test       set up, then every suite'
	@echo 'make test-full  the slow and exhaustive runs too'
	@echo 'make lint       ruff, mypy, clang-format, compiler warnings as errors'
	@echo 'make bench      side-by-side measurements (docs/performance.md)'
	@echo 'make setup      the virtual environment $(VENV) and the C program'
	@echo 'make clean      remove what was built; runs/ and $(VENV) stay (make distclean removes $(VENV))'

.PHONY: setup
setup: .setup/core runtime_c/build/nano-infer

.setup/core: requirements.txt pyproject.toml tools/setup.sh
	@PYTHON=$(PYTHON) VENV=$(VENV) tools/setup.sh core
	@mkdir -p $(@D) && touch $@

.setup/dev: .setup/core
	@PYTHON=$(PYTHON) VENV=$(VENV) tools/setup.sh dev
	@mkdir -p $(@D) && touch $@

.setup/peers: .setup/dev
	@PYTHON=$(PYTHON) VENV=$(VENV) tools/setup.sh peers
	@mkdir -p $(@D) && touch $@

# What cannot be had is said, and its tests are skipped.
.setup/data: .setup/dev .setup/system tools/test_data.py
	-@$(BIN)/python tools/test_data.py data/test
	@mkdir -p $(@D) && touch $@

.setup/system: tools/setup.sh
	@tools/setup.sh system
	@mkdir -p $(@D) && touch $@

.PHONY: runtime_c/build/nano-infer
runtime_c/build/nano-infer:
	@$(MAKE) --no-print-directory -s -C runtime_c

.PHONY: demo
demo: setup
	@RUN=$(RUN) BIN=$(BIN) tools/demo.sh

.PHONY: test test-full
test: setup .setup/dev .setup/system .setup/data
	@BIN=$(BIN) tools/test.sh quick

test-full: setup .setup/peers .setup/system .setup/data
	@BIN=$(BIN) tools/test.sh full

.PHONY: lint
lint: .setup/dev .setup/system
	@BIN=$(BIN) tools/lint.sh

.PHONY: bench
bench: setup .setup/dev
	@BIN=$(BIN) tools/bench.sh

.PHONY: clean distclean
clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find nano_ds launch inference tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
	$(MAKE) -s -C runtime_c clean
	rm -rf browser/build browser/types browser/*.tgz

distclean: clean
	rm -rf $(VENV) .setup browser/node_modules
