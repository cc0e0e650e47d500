# Everything runs in .venv, which the first target that needs it creates. PYTHON may name another interpreter.
PYTHON ?= python3
BIN = .venv/bin
DEMO = runs/demo
THREADS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: install demo test lint quality clean

install: .venv/installed

.venv/installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable ".[dev]"
	touch $@

# Navier–Stokes at ν = 1e-3: generate, train both models alike, one table, four pictures
demo: .venv/installed
	$(BIN)/monarch-sciml pde generate --out data/demo_ns_V1e-3.h5 --samples 140 --end-time 21
	for model in fno fno-monarch; do \
	  $(BIN)/monarch-sciml pde train --resume --data data/demo_ns_V1e-3.h5 --out $(DEMO)/$$model --model $$model \
	    --first-frame 1 --every 2 --residual --threads $(THREADS) || exit 1; \
	done
	$(BIN)/monarch-sciml pde evaluate --runs $(DEMO)/fno $(DEMO)/fno-monarch --out $(DEMO)/evaluation --threads $(THREADS)

# the claim: three seeds, two budgets, three learning rates; about an hour on two cores
quality: .venv/installed
	$(BIN)/python benchmarks/navier_stokes_quality.py --workers $(THREADS)

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	# one thread each: two processes with two threads each spend their time waiting for one another
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

clean:
	rm -rf .venv runs data/demo_*
