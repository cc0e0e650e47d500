# Everything runs in .venv, which the first target that needs it creates. PYTHON may name another interpreter.
PYTHON ?= python3
BIN = .venv/bin
DEMO = runs/demo
DEMO_MRI = runs/demo_mri
MASK = --mask poisson --accelerations 4 --center-fractions 0.12
THREADS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: install demo demo-mri test faults quality paper-pde ablation paper-mri bench transformers gpu-suite docs wheel clean

install: .venv/installed

.venv/installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable ".[dev]"
	touch $@

# Navier–Stokes at ν = 1e-3: generate, train both models alike, one table, pictures, an animation
demo: .venv/installed
	$(BIN)/monarch-sciml pde generate --out data/demo_ns_V1e-3.h5 --samples 140 --end-time 21
	for model in fno fno-monarch; do \
	  $(BIN)/monarch-sciml pde train --resume --data data/demo_ns_V1e-3.h5 --out $(DEMO)/$$model --model $$model \
	    --first-frame 1 --every 2 --residual --threads $(THREADS) || exit 1; \
	done
	$(BIN)/monarch-sciml pde evaluate --runs $(DEMO)/fno $(DEMO)/fno-monarch --out $(DEMO)/evaluation --threads $(THREADS)

# MRI: simulate fastMRI files, train three networks, reconstruct volumes they never saw, one table, pictures
demo-mri: .venv/installed
	$(BIN)/monarch-sciml mri simulate --out data/demo_mri/train --volumes 20
	$(BIN)/monarch-sciml mri simulate --out data/demo_mri/test --volumes 4 --seed 1
	for model in msense varnet varnet-monarch; do \
	  $(BIN)/monarch-sciml mri train --resume --data data/demo_mri/train --held-out data/demo_mri/test \
	    --out $(DEMO_MRI)/$$model --model $$model $(MASK) --epochs 5 --threads $(THREADS) || exit 1; \
	done
	for method in zero-filled cg-sense l1-wavelet; do \
	  $(BIN)/monarch-sciml mri reconstruct --files data/demo_mri/test/*.h5 --out $(DEMO_MRI)/images/$$method \
	    --method $$method $(MASK) --threads $(THREADS) > $(DEMO_MRI)/$$method.log || exit 1; \
	done
	for model in msense varnet varnet-monarch; do \
	  $(BIN)/monarch-sciml mri reconstruct --files data/demo_mri/test/*.h5 --out $(DEMO_MRI)/images/$$model \
	    --run $(DEMO_MRI)/$$model --png $(MASK) --threads $(THREADS) > $(DEMO_MRI)/$$model.log || exit 1; \
	done
	$(BIN)/monarch-sciml mri evaluate --target data/demo_mri/test --out $(DEMO_MRI)/evaluation --prediction \
	  $(foreach m,zero-filled msense cg-sense l1-wavelet varnet varnet-monarch,$(DEMO_MRI)/images/$m)

# the claim: three seeds, two budgets, three learning rates; about an hour on two cores
quality: .venv/installed
	$(BIN)/python benchmarks/navier_stokes_quality.py --workers $(THREADS)

# the paper's Navier–Stokes table: five models, three viscosities, two protocols; begins no training after three hours, and
# goes on where it stopped
paper-pde: .venv/installed
	$(BIN)/python benchmarks/paper_pde/table.py --workers $(THREADS) --hours 3

# which transforms learn, on which problems it helps, and when; INPUTS adds neuraloperator's mini files; hours,
# goes on where it stopped
ablation: .venv/installed
	$(BIN)/python benchmarks/transforms/ablation.py --workers $(THREADS) $(if $(INPUTS),--inputs $(INPUTS))

# the paper's MRI tables: 2× to 8×, few-shot, robustness; KSPACE adds fully sampled scans; about an hour, resumable
paper-mri: .venv/installed
	$(BIN)/python benchmarks/paper_mri/table.py --workers $(THREADS) $(if $(KSPACE),--kspace $(KSPACE))

# timings beside the peers', each with the error of its output
bench: .venv/installed
	$(BIN)/monarch-sciml bench --threads $(THREADS)

# the paper's transformers: parameters, a training step, three small trainings in three ways; about two hours
transformers: .venv/installed-dev
	$(BIN)/python benchmarks/transformers/parameters.py
	$(BIN)/python benchmarks/transformers/step_time.py
	$(BIN)/python benchmarks/transformers/three_ways.py --workers $(THREADS)

# tests and timings of a CUDA device; at most eight minutes
gpu-suite: .venv/installed-dev
	$(BIN)/python benchmarks/gpu_suite.py

# kill generate, train and reconstruct at random moments, 35 times, and compare with what was not killed
faults: .venv/installed
	$(BIN)/python benchmarks/faults.py

# the documentation site in site/; its warnings are errors
docs: .venv/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# dist/: the wheel and the source archive; the wheel is installed into an empty environment and run there
wheel: .venv/installed-dev
	rm -rf dist runs/wheel
	$(BIN)/python -m build
	$(PYTHON) -m venv runs/wheel
	runs/wheel/bin/pip install --quiet --constraint .ci/constraints.txt dist/*.whl
	cd runs/wheel && bin/monarch-sciml info
	cd runs/wheel && bin/monarch-sciml pde generate --out ns.h5 --samples 4 --resolution 16 --end-time 3
	cd runs/wheel && bin/monarch-sciml pde train --data ns.h5 --out run --n-train 3 --n-test 1 --epochs 1 --modes 8

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	# one thread each: two processes with two threads each spend their time waiting for one another
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

clean:
	rm -rf .venv runs build dist site data/demo_*
