# make demo | demo-all | test | check | toy-weights | clean. Each sets up what it needs, once.
#
# Set-up: .venv with requirements.txt and, where `import dassl` fails, ./dassl-lite.
# An active virtual or conda environment is used instead of .venv, and so is PYTHON=/path/to/python.

SHELL := /bin/bash
ifeq ($(origin PYTHON), undefined)
  ifneq ($(VIRTUAL_ENV)$(CONDA_PREFIX),)
    PYTHON := $(shell command -v python)
  else
    PYTHON := .venv/bin/python
  endif
endif
READY := .setup/$(subst /,_,$(PYTHON)).ready
ifeq ($(PYTHON),.venv/bin/python)
  READY := .venv/.ready
endif
JOBS ?= 2  # tests at a time, each file as a whole in one of them
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1  # two threads on two busy cores are slower than one

.PHONY: demo demo-all test check toy-weights setup clean

demo: $(READY)  ## dump, train, evaluate and compare on the toy world: about two minutes
	$(THREADS) $(PYTHON) scripts/demo.py

demo-all: $(READY)  ## the same for every method and host: about ten times as long
	$(THREADS) $(PYTHON) scripts/demo.py --all

test: $(READY)  ## all tests, on the CPU, without a network
	$(THREADS) $(PYTHON) -m pytest -n $(JOBS) --dist loadfile

check: $(READY)  ## tests and ruff
	$(PYTHON) -m ruff --version >/dev/null 2>&1 || $(PYTHON) -m pip install -q "ruff>=0.6"
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(THREADS) $(PYTHON) -m pytest -n $(JOBS) --dist loadfile

toy-weights: $(READY)  ## train models/toy/*.safetensors anew: under 20 minutes of one core
	$(THREADS) $(PYTHON) scripts/train_toy_clip.py

setup: $(READY)

$(READY): requirements.txt dassl-lite/pyproject.toml
	bash scripts/setup.sh "$(PYTHON)"
	@mkdir -p $(dir $@) && touch $@

clean:  ## remove the environment and what runs wrote here
	rm -rf .venv .setup output demo data stores
