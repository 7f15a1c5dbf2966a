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

# What a long target does, how long it takes, and what it needs.
define about_demo
demo: the whole paper at the mini scale: data, 43 trainings, tables, pages in results/mini.
   14 to 22 min on two cores of an AMD EPYC (this machine has $(shell getconf _NPROCESSORS_ONLN)); the first page after 3 min.
   1.2 GiB of disk, 0.8 GiB of memory a core.
   Each finished job prints the time left. Ctrl-C is safe: the same command resumes.
endef
define about_test
test: all tests, the smoke run of the whole pipeline included, two at a time; their files go to /tmp.
   $(or $(shell cat $(ENV)/.test-minutes 2>/dev/null),Not timed on this machine yet.) `make check` is the quick part: style, types, unit tests.
endef
export about_demo about_test

.PHONY: about-demo about-test
about-demo about-test: about-%:
	@echo "$$about_$*"

demo: about-demo $(ENV)/.ready
	@$(BIN)/python -m pcb reproduce --scale mini --cores $(CORES)

test: about-test $(ENV)/.ready
	@start=$$(date +%s); $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder && \
	    echo "$$(( ($$(date +%s) - start) / 60 + 1 )) minutes when they last passed here." >$(ENV)/.test-minutes

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

# Of another environment only one that set-up made.
clean-env:
	@[ "$(ENV)" = .venv ] || [ ! -e "$(ENV)" ] || [ -f "$(ENV)/.lock" ] || \
	    { echo "error: set-up did not make $(ENV)" >&2; exit 2; }
	rm -rf "$(ENV)" "$(ENV:/=).setup-lock"
