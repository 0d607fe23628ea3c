# Every target sets up what it needs; .venv is made once, and again only when what it is made from changes.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The tests run in WORKERS processes of one thread each: more threads than cores make small models slower, not faster.
WORKERS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help setup demo test check format bench docs clean

help:
	@echo "make demo    the whole story, offline: train, index, diagnose, evaluate, report, answers (4 minutes on 2 cores)"
	@echo "make test    the tests"
	@echo "make check   style, types, layers, docs in step"
	@echo "make bench   the benchmarks; results in benchmarks/results.json"
	@echo "make docs    reference from docstrings into site/, docs/cli.md, merge-methods.md, results.md and claims.md"
	@echo "make setup   only make .venv"

setup: $(READY)

# torch comes first and alone, so that the pinned build is the one that everything else finds installed.
$(READY): pyproject.toml setup.py $(wildcard src/asterism/core/*.c) constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/asterism demo --out runs/demo

test: setup
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(ONE_THREAD) $(BIN)/python docs/make_cli.py --check
	$(ONE_THREAD) $(BIN)/python docs/make_methods.py --check
	$(ONE_THREAD) $(BIN)/python docs/make_results.py --check
	$(ONE_THREAD) $(BIN)/python docs/make_claims.py --check
	$(BIN)/python docs/check_tree.py

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/everything.py

docs: setup
	$(ONE_THREAD) $(BIN)/python docs/make_cli.py
	$(ONE_THREAD) $(BIN)/python docs/make_methods.py
	$(ONE_THREAD) $(BIN)/python docs/make_results.py
	$(ONE_THREAD) $(BIN)/python docs/make_claims.py
	$(ONE_THREAD) $(BIN)/python -m pdoc --docformat google -o site asterism asterism.core asterism.models asterism.constellation asterism.report asterism.demo

clean:
	rm -rf site build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
