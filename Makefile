# Everything below works on a fresh machine with Python >= 3.11, make and git.
PYTHON ?= python3
SUITE  ?= digits
ARGS   ?=
BIN    := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help bench test lint perf screenshots leaderboard clean

help: ## this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20

bench: .venv/.installed ## run a suite and print its leaderboard (SUITE=digits, ARGS=… to `ownbench run`)
	@$(BIN)/ownbench run $(SUITE) $(ARGS)

test: .venv/.tested ## the tests (ARGS=… to pytest)
	@$(BIN)/python -m pytest -n 2 --no-loadscope-reorder $(ARGS)

lint: .venv/.tested ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

perf: .venv/.tested ## the benchmarks of the harness itself
	@$(BIN)/python -m pytest tests/perf --benchmark-only $(ARGS)

screenshots: .venv/.tested ## the page as pictures, where Chromium is installed (TO=folder)
	@OWNBENCH_SCREENSHOTS=$(or $(TO),.) $(BIN)/python -m pytest tests/test_page.py -rs -k photographed

leaderboard: .venv/.installed ## print the leaderboard of the last run of SUITE
	@$(BIN)/ownbench leaderboard results/runs/$(SUITE) $(ARGS)

clean: ## remove the environment and caches; runs and results stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed; name it: make PYTHON=…")'
	@echo "setting up .venv (once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/uv
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --compile-bytecode --constraint constraints.txt --editable .
	@touch $@

.venv/.tested: .venv/.installed
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --compile-bytecode --constraint constraints.txt --editable '.[test]'
	@touch $@
