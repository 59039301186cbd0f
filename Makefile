# Every target does its own set-up: .venv is made at the first call and again when the dependencies change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEVICE ?= cuda
READY := $(VENV)/.ready

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	@touch $@

install: $(READY)  ## .venv with everything, from the known-good versions in constraints.txt

demo: $(READY)  ## what masked image modelling of people learns: drawn people, pictures (CPU, minutes)
	$(BIN)/python scripts/demo.py

demo-reid: $(READY)  ## re-identification of drawn people, from the shipped weights and from nothing (CPU, minutes)
	$(BIN)/python scripts/demo_reid.py

demo-attribute: $(READY)  ## attributes of drawn people, from the shipped weights and from nothing (CPU, minutes)
	$(BIN)/python scripts/demo_attribute.py

demo-pose2d: $(READY)  ## joints of drawn people, from the shipped weights and from nothing (CPU, minutes)
	$(BIN)/python scripts/demo_pose2d.py

demo-pose3d: $(READY)  ## bodies of drawn people by the features of the shipped weights, and of none (CPU, minutes)
	$(BIN)/python scripts/demo_pose3d.py

demo-text: $(READY)  ## people found by sentences, from the shipped weights, from nothing and by colours (CPU, minutes)
	$(BIN)/python scripts/demo_text.py

sweep: $(READY)  ## mask ratios side by side: drawn people, a table, a figure and a page (CPU, minutes)
	$(BIN)/python -m hap.train -m experiment=demo sweep=mask_ratio

test: $(READY)  ## the fast tests; ARGS="-m slow" for the others
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## measured speed of this machine, written to benchmarks/
	$(BIN)/python -m hap.bench pretrain
	$(BIN)/python -m hap.bench pretrain experiment=demo out=benchmarks/demo benchmark.batch_sizes=[8]
	$(BIN)/python -m hap.bench reid_eval
	$(BIN)/python -m hap.bench pose2d
	$(BIN)/python -m hap.bench pose3d
	$(BIN)/python -m hap.bench text_reid

gpu: $(READY)  ## all that a GPU has to show, written to benchmarks/; started again it goes on (DEVICE=cpu: a toy)
	$(BIN)/python -m hap.bench all benchmark.device=$(DEVICE) $(ARGS)

clean:  ## remove .venv and caches; runs/ and data/ stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build dist

.PHONY: help install demo demo-reid demo-attribute demo-pose2d demo-pose3d demo-text sweep test lint bench gpu clean
.DEFAULT_GOAL := help
