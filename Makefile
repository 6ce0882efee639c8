# Two commands do everything: `make run` and `make test`. README.md says which PyTorch build is chosen how.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup setup-test run test constraints clean

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= 2.13.0
RECIPE ?= meadow
CODE   := herd tests benchmarks
BIN    := $(VENV)/bin

# What `herd raise` needs beyond the core, and on a machine with an NVIDIA driver the reader of its power counter.
EXTRAS ?= data,report$(if $(shell command -v nvidia-smi),$(comma)energy)
comma  := ,

# uv reads none of pip's settings, so a folder of wheels that pip was told of is passed on when it holds this PyTorch.
# Otherwise, on Linux, uv matches the PyTorch build to the GPU driver and takes the CPU build where there is none.
TAG    := $(shell $(PYTHON) -c 'import sys; print("cp%d%d" % sys.version_info[:2])' 2>/dev/null)
LINKS  := $(subst $(comma), ,$(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)))
WHEELS := $(foreach folder,$(LINKS),$(if $(wildcard $(folder)/torch-$(TORCH)*-$(TAG)-*.whl),$(folder)))
ifneq ($(WHEELS),)
BACKEND := $(addprefix --find-links=,$(WHEELS))
else ifeq ($(shell uname),Linux)
BACKEND := --torch-backend=auto
endif
# a mirror of the package index that pip was told of is uv's too; exported, so that no password in it is echoed
INDEX  := $(or $(UV_DEFAULT_INDEX),$(UV_INDEX_URL),$(PIP_INDEX_URL),$(shell $(PYTHON) -m pip config get global.index-url 2>/dev/null))
ifneq ($(INDEX),)
export UV_DEFAULT_INDEX := $(INDEX)
endif
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python $(BACKEND) -c constraints.txt torch==$(TORCH)

# One thread a worker: the workers already fill the cores, and torch's own threads would fight over them.
WORKERS ?= auto
PYTEST  := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --maxprocesses=4 --dist=loadfile

help:
	@echo 'make run         set up, raise a herd from the embedded corpus, show its scores (RECIPE=... for another)'
	@echo 'make test        set up, then lint, formatting, types and all tests (TESTS=... for some of them)'
	@echo 'make setup       only set up: herd, and what raising one needs, in $(VENV)'
	@echo 'make setup-test  set up for tests as well'
	@echo 'make constraints pin anew what CI tests (constraints.txt)'
	@echo 'make clean       remove $(VENV); the runs stay'

setup: $(VENV)/.ready

setup-test: $(VENV)/.ready-test

run: $(VENV)/.ready
	$(BIN)/herd raise $(RECIPE)

test: $(VENV)/.ready-test
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ty check
	$(PYTEST) $(TESTS)

# PyTorch and its CUDA libraries stay out: which build is right is the machine's matter. Compiled for Python 3.11.
constraints: $(VENV)/.uv
	$(BIN)/uv pip compile --quiet $(or $(addprefix --find-links=,$(WHEELS)),--torch-backend=cpu) \
	  -c <(echo torch==$(TORCH)) --python-version 3.11 --all-extras --upgrade --no-emit-package torch \
	  --no-header --no-annotate pyproject.toml -o constraints.txt

clean:
	rm -rf $(VENV)

$(VENV)/.uv:
	@$(PYTHON) -c 'import sys; sys.exit("herd needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	@touch $@

$(VENV)/.ready: $(VENV)/.uv pyproject.toml constraints.txt
	$(INSTALL) -e '.[$(EXTRAS)]'
	@touch $@

$(VENV)/.ready-test: $(VENV)/.uv pyproject.toml constraints.txt
	$(INSTALL) -e '.[$(EXTRAS),gguf,serve,grammar,slurm,test,reference]'
	@touch $@ $(VENV)/.ready
