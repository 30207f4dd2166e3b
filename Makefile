# Two commands on a fresh machine do everything: `make quickstart` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
RUN := .venv/bin/python
RUNS ?= runs/quickstart
# What .venv was made for stays so, until `make setup` names another one.
REQUIREMENTS ?= $(or $(shell cat .venv/ready 2>/dev/null),requirements.txt)
METHODS := supervised cutmix css_mix supervised_all

# Compiled programs are kept between runs and shared with every process that the tests start.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.2

.PHONY: help setup quickstart test soak lint bench clean

help:
	@echo 'make setup       make .venv; for GPU, TPU: make setup REQUIREMENTS=requirements-gpu.txt'
	@echo 'make quickstart  set up; train and evaluate on the embedded dataset; compare and draw'
	@echo 'make test        set up; run the tests'
	@echo 'make soak        the long tests'
	@echo 'make lint        ruff check and format'
	@echo 'make bench       measure everything; writes to benchmarks/results/; make bench BENCH=--quick'
	@echo 'make clean       remove the environment, caches and runs'

setup:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else \
	  "css_jax needs Python 3.11 or 3.12, this is %d.%d: make PYTHON=/path/to/python3.11" % v)'
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -r $(REQUIREMENTS)
	@echo $(REQUIREMENTS) > .venv/ready

.venv/ready: requirements.txt requirements-dev.txt
	@$(MAKE) --no-print-directory setup

quickstart: .venv/ready
	@set -e; for method in $(METHODS); do \
	  echo "== $$method"; \
	  $(RUN) -m css_jax.main --config configs/quickstart.py:$$method --workdir $(RUNS)/$$method; \
	done
	@$(RUN) -m css_jax.main --mode report --workdir $(RUNS)

test: .venv/ready
	$(RUN) -m pytest -m 'not soak'

soak: .venv/ready
	$(RUN) -m pytest -m soak
	$(RUN) -m pytest --hypothesis-profile=soak tests/ops -k properties

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

bench: .venv/ready
	$(RUN) -m benchmarks.run $(BENCH)

clean:
	rm -rf .venv .cache $(RUNS)
