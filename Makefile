# Two commands for a newcomer. Each creates .venv if it is missing, then runs one plain command.
#   make demo    the whole paper at the mini scale on two CPU cores, no data needed
#   make test    all tests, the smoke run of the whole pipeline included
# For those who change the code (CONTRIBUTING.md):
#   make check   style, types, import contract and unit tests
.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint bench clean-env

PYTHON ?= python3
CORES ?= all
ENV ?= .venv
LOCK ?=
BIN := $(ENV)/bin

help:
	@sed -n '2,5s/^# //p' Makefile
	@echo "  make setup   only the set-up; again after a change of GPU, driver or CUDA"
	@echo "  make bench   benchmarks, each against a reference of the same run (QUICK=1: rough)"

# Always runs: a GPU, another torch or another lock since the last time is noticed.
setup:
	@PYTHON="$(PYTHON)" ENV="$(ENV)" LOCK="$(LOCK)" sh tools/setup.sh

$(ENV)/.ready: requirements.lock requirements-cuda12.lock pyproject.toml tools/setup.sh
	@PYTHON="$(PYTHON)" ENV="$(ENV)" LOCK="$(LOCK)" sh tools/setup.sh

demo: $(ENV)/.ready
	@$(BIN)/python -m pcb reproduce --scale mini --cores $(CORES)

test: $(ENV)/.ready
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: lint
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" tests/unit

lint: $(ENV)/.ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/snakefmt --check Snakefile workflow/rules
	@$(BIN)/ty check --python $(ENV)
	@$(BIN)/lint-imports
	@$(BIN)/codespell

bench: $(ENV)/.ready
	@$(BIN)/python benchmarks/run.py $(if $(QUICK),--quick) $(if $(WRITE),--write) $(NAME)

clean-env:
	rm -rf .venv
