# Public targets: demo, weights, test, check, bench, docs, gpu-check, mutants. They run in .venv, which all but gpu-check make on
# first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SEED ?= 1
# Tests that run at a time.
JOBS ?= 2
DATA ?=
# Rules for the recordings in DATA: a cohort's name, a YAML file, or a folder of them.
COHORT ?=
# Any word; another one lets other people come into each split.
SALT ?=
# Folder of the demo; FRESH=1 sets an earlier one aside and starts over.
OUT ?= runs/demo
FRESH ?=
# A checkout of the released code, for bench and gpu-check.
REFERENCE ?=
# A package index to take torch from, where the default one has only CUDA builds (see README).
TORCH_INDEX ?=

export DS_ACCELERATOR ?= $(if $(wildcard /dev/nvidia0),cuda,cpu)

.PHONY: demo weights test test-slow check bench docs gpu-check mutants install clean
install: $(STAMP)

$(STAMP): setup.cfg constraints.txt scripts/preflight.sh
	@sh scripts/preflight.sh "$(PYTHON)"
	$(PYTHON) -m venv $(VENV)
	@echo "installing PyTorch into $(VENV): about 1 GB on the disk for the CPU build, several GB for a CUDA build"
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch==2.13.0
	@echo "installing SleepFM and its other packages into $(VENV): about 2 GB on the disk; this takes minutes"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python scripts/prebuild.py
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m sleepfm.demo --seed $(SEED) --out "$(OUT)" $(if $(DATA),--data "$(DATA)") $(if $(COHORT),--cohort "$(COHORT)") $(if $(SALT),--salt "$(SALT)") $(if $(FRESH),--fresh)

# The built-in scorer, trained on synthetic nights; hours, and goes on where it was. docs/synthetic.md.
weights: $(STAMP)
	$(BIN)/python -m sleepfm.demo.weights --seed $(SEED)

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadscope --no-loadscope-reorder -m "not slow and not gpu"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not gpu"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# All benchmarks in one table, in some 15 minutes on two cores; its file goes to benchmarks/results. REFERENCE is a checkout of
# the released code (github.com/dlcjfgmlnasa/SynthSleepNet), whose figures then stand beside ours.
bench: $(STAMP)
	$(BIN)/python benchmarks/run.py $(if $(REFERENCE),--reference "$(REFERENCE)")

# The documentation site, in build/docs; a warning is an error.
docs: $(STAMP)
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs build/docs
	@echo "build/docs/index.html"

# All that needs a CUDA device, in ten minutes; docs/gpu.md. By the PyTorch of PYTHON if that is given, else of .venv if it is
# there. WHEELS is a folder that scripts/wheels.sh has filled, REFERENCE a checkout of the released code.
WHEELS ?=
GPU_PYTHON = $(if $(filter file,$(origin PYTHON)),$(if $(wildcard $(STAMP)),$(BIN)/python,$(PYTHON)),$(PYTHON))
gpu-check:
	$(GPU_PYTHON) benchmarks/gpu.py --json gpu-check.json $(if $(WHEELS),--wheels "$(WHEELS)") $(if $(REFERENCE),--reference "$(REFERENCE)")

# Do the tests notice? N places of each module, drawn by SEED; about half an hour for N=1 on two cores.
N ?= 1
mutants: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[mutants]'
	$(BIN)/python scripts/mutants --seed $(SEED) --per-module $(N) --jobs $(JOBS)

clean:
	rm -rf $(VENV) build *.egg-info
