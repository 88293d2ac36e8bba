# make run, make test, make bench, make lint: each sets up what it needs in .venv and touches nothing outside it,
# except that, as root on Debian, missing system packages are installed (scripts/prepare.sh says which).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTENSIONS := $(shell find fastpush -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi')
# The compiled modules, whose typed faces mypy's stubtest compares with what was built.
STUBBED := $(subst /,.,$(basename $(shell find fastpush -name '*.pyi')))
# More arguments for the command that the target runs, such as: make test ARGS='-k hpack -x'
ARGS ?=
# Where `make bench` keeps its JSON and its plots.
OUTPUT ?= build/bench
# How many random cases a campaign tries.
CASES ?= 1000000
CAMPAIGNS := frames hpack
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build run test night bench publish guard lint format campaigns clean

help:
	@echo 'make run        show the gateway at work on this machine (fastpush demo), until Ctrl-C'
	@echo 'make test       all tests; ARGS= goes to pytest'
	@echo 'make lint       ruff, mypy, and the compiled modules against their types'
	@echo 'make format     lay the sources out as `make lint` wants them'
	@echo 'make bench      the benchmarks of benchmarks/; ARGS= goes to them'
	@echo 'make publish    the benchmarks three times, their figures into README.md and benchmarks/README.md'
	@echo 'make guard      fail where a push costs 5 % more instructions than before and no commit says why'
	@echo 'make campaigns  the long random tests, each with a seed that it prints'
	@echo 'make night      the long lanes of kills, power cuts and killed migrations; ARGS= goes to pytest'
	@echo 'make build      .venv with fastpush in it, the compiled modules made anew where needed'
	@echo 'make clean      remove all that these made'

$(VENV)/bin/python:
	@PYTHON='$(PYTHON)' scripts/prepare.sh venv $(VENV)

# Dependencies, and fastpush itself as an editable install. Without build isolation, so that the compiler of the
# extensions is the one in .venv and the next rule can use it too.
$(VENV)/installed: $(VENV)/bin/python pyproject.toml setup.py
	@echo 'installing fastpush and what it needs into $(VENV)'
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
		>$(VENV)/build-requirements.txt
	@$(PIP) install --upgrade -r $(VENV)/build-requirements.txt
	@$(PIP) install --no-build-isolation --editable '.[test]'
	@touch $@ $(VENV)/built

# An editable install sees a changed .py at once, but a changed .pyx or .pxi only after this.
$(VENV)/built: $(VENV)/installed $(EXTENSIONS)
	@echo 'building the compiled modules'
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/tools: | $(VENV)/bin/python
	@scripts/prepare.sh tools
	@touch $@

build: $(VENV)/built

run: build
	@exec $(BIN)/python -m fastpush demo $(ARGS)

test: build $(VENV)/tools
	@$(BIN)/python -m pytest $(ARGS)

# What only the benchmarks use: without it they lack their plots, and some senders to compare with.
$(VENV)/bench: $(VENV)/installed
	@echo 'installing what the benchmarks draw with and compare with'
	@scripts/prepare.sh peers $(VENV)
	@touch $@

bench: build $(VENV)/tools $(VENV)/bench
	@$(BIN)/python -m benchmarks --output $(OUTPUT) $(ARGS)

# All of it, three times what has to hold on each run; half an hour on a machine with nothing else to do.
publish: build $(VENV)/tools $(VENV)/bench
	@$(BIN)/python -m benchmarks publish --runs 3 $(OUTPUT)

# Counts instructions here and in the commit before; benchmarks/guard.py says what it wants.
guard: build $(VENV)/tools
	@$(BIN)/python -m benchmarks.guard

lint: build
	@$(BIN)/python -m ruff check
	@$(BIN)/python -m ruff format --check
	@$(BIN)/python -m mypy
	@$(BIN)/python -m mypy.stubtest --concise --allowlist tests/stubtest-allowlist.txt $(STUBBED)

format: build
	@$(BIN)/python -m ruff check --fix-only
	@$(BIN)/python -m ruff format

night: build $(VENV)/tools
	@$(BIN)/python -m pytest -m night $(ARGS)

campaigns: build
	@for name in $(CAMPAIGNS); do \
		echo "tests.campaigns.$$name"; $(BIN)/python -m tests.campaigns.$$name --cases $(CASES) $(ARGS) || exit 1; \
	done

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find fastpush \( -name '*.c' -o -name '*.so' -o -name '*.html' \) ! -path '*/console/*' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
