# Two commands for a newcomer; each creates .venv when it is missing, then is one plain command.
#   make demo    the whole paper at the mini scale, two CPU cores, no data needed; prints where to look
#   make test    the tests, the smoke run of the whole pipeline included
.DEFAULT_GOAL := help
.PHONY: help setup demo test bench clean-env

PYTHON ?= python3
CORES ?= all
ENV ?= .venv
BIN := $(ENV)/bin

help:
	@sed -n '2,3s/^# //p' Makefile
	@echo "  make setup   only the set-up"
	@echo "  make bench   how fast: ratios, each against a reference of the same run (QUICK=1 for a rough look)"

setup: $(ENV)/.ready

$(ENV)/.ready: requirements.lock pyproject.toml tools/setup.sh
	@PYTHON="$(PYTHON)" ENV="$(ENV)" sh tools/setup.sh

demo: $(ENV)/.ready
	@$(BIN)/python -m pcb reproduce --scale mini --cores $(CORES)

test: $(ENV)/.ready
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: $(ENV)/.ready
	@$(BIN)/python benchmarks/run.py $(if $(QUICK),--quick) $(if $(WRITE),--write) $(NAME)

clean-env:
	rm -rf .venv
