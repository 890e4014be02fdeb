# Everything runs from a fresh clone: the environment is made on first use, in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-gpu lint bench bench-peers bench-curves clean

demo: $(VENV)/.ready          ## synthetic photos -> export -> fit -> run -> eval -> bench
	$(BIN)/padim-edge demo --folder demo

test: lint                    ## everything that CI runs
	$(BIN)/python -m pytest

# In an environment with the device's own packages: make test-gpu BIN=/path/to/bin
test-gpu: $(if $(filter $(VENV)/bin,$(BIN)),$(VENV)/.ready)  ## on an NVIDIA GPU: parity, leaks, bandwidth
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.ready         ## the figures of benchmarks/README.md
	$(BIN)/python benchmarks/frame.py
	$(BIN)/python benchmarks/fit.py

# Environments of the peers go to .peers (20 GB). More: make bench-peers PEERS="--datasets ..."
bench-peers: $(VENV)/.ready   ## anomalib, AnomaVision, plain runtimes and us, in one run
	$(BIN)/python benchmarks/peers/compare.py $(PEERS)

bench-curves: $(VENV)/.ready  ## latency, size, time and memory over everything that sets them
	$(BIN)/python benchmarks/curves.py

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[cpu,openvino,export,eval,dev]"
	touch $@

clean:
	rm -rf $(VENV) demo build *.egg-info
