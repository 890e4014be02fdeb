# Everything runs from a fresh clone: the environment is made on first use, in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo check test parts test-gpu test-arm64 test-containers lint docs dist release fuzz bench bench-peers bench-curves clean

help:                         ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.ready          ## synthetic photos -> export -> fit -> run -> eval -> bench
	$(BIN)/padim-edge demo --folder demo

check: lint                   ## while you work: ruff, mypy and the fast tests, within a minute
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not fuzz"

test: lint parts              ## ruff, mypy, and all tests but those of make fuzz and of GPUs; CI runs demo, docs and dist, too
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not fuzz"

# Playwright's own Chromium cannot be had from a registry of packages; the others are no Python's.
PARTS := chromium mosquitto postgresql ffmpeg gstreamer1.0-tools gstreamer1.0-plugins-base \
  gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly python3-gi \
  gir1.2-gst-rtsp-server-1.0 aravis-tools g++ cmake libturbojpeg0-dev libpng-dev

parts:                        ## programs that tests need, by apt-get where that may be; without, they skip
	@command -v dpkg-query >/dev/null || { echo "no Debian here: get yourself $(PARTS)"; exit 0; }; \
	absent() { for name in $(PARTS); do \
	  dpkg-query -W -f '$${db:Status-Status}' $$name 2>/dev/null | grep -qx installed || \
	  { [ $$name = chromium ] && command -v google-chrome >/dev/null; } || echo $$name; done; }; \
	lack=$$(absent); [ "$$lack" ] || exit 0; \
	if [ "$$(id -u)" = 0 ]; then echo "installing by apt-get, for tests:" $$lack; apt-get update -qq; \
	  for name in $$lack; do DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
	    --no-install-recommends $$name >/dev/null || true; done; lack=$$(absent); fi; \
	[ -z "$$lack" ] || echo "not here, so that tests will skip:" $$lack

# In an environment with the device's own packages: make test-gpu BIN=/path/to/bin
test-gpu: $(if $(filter $(VENV)/bin,$(BIN)),$(VENV)/.ready)  ## on an NVIDIA GPU: parity, leaks, bandwidth
	$(BIN)/python -m pytest -m gpu --require-gpu

# Roots of Debian go to .cache/debian (2 GB). Both need root, debootstrap and what they ask for.
test-arm64: $(VENV)/.ready    ## the device install on an emulated AArch64, against this machine (an hour)
	$(BIN)/python tests/support/arm64.py $(ARM64)

test-containers: $(VENV)/.ready  ## the images of examples/, built by podman and run (minutes)
	$(BIN)/python tests/support/containers.py $(CONTAINERS)

lint: $(VENV)/.ready          ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.ready          ## the documentation site, strictly, into site/
	$(BIN)/zensical build --strict --clean

dist: $(VENV)/.ready          ## sdist and wheel, into dist/
	$(BIN)/python -m build

release: $(VENV)/.ready       ## make release VERSION=0.2.0: checked, built twice, described, not uploaded
	$(BIN)/python release/release.py "$(VERSION)"

bench: $(VENV)/.ready         ## the figures of benchmarks/README.md
	$(BIN)/python benchmarks/frame.py
	$(BIN)/python benchmarks/fit.py

# Environments of the peers go to .peers (20 GB). More: make bench-peers PEERS="--datasets ..."
bench-peers: $(VENV)/.ready   ## anomalib, AnomaVision, plain runtimes and us, in one run
	$(BIN)/python benchmarks/peers/compare.py $(PEERS)

fuzz: $(VENV)/.ready          ## 10,000 damaged files are read; 200 times kill -9 while files are written; tests that repeat
	$(BIN)/python tests/support/hostile.py
	$(BIN)/python tests/support/killed.py
	$(BIN)/python -m pytest -n 2 --dist load -m fuzz

bench-curves: $(VENV)/.ready  ## latency, size, time and memory over everything that sets them
	$(BIN)/python benchmarks/curves.py

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[cpu,openvino,export,demo,eval,live,plc,postgres,ray,serve,stores,dev,docs]"
	touch $@

clean:                        ## remove what the targets above have made
	rm -rf $(VENV) demo build dist site .cache *.egg-info
