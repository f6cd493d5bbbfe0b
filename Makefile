# Two commands to know: `make quickstart` (the four levers on a real model, under 20 minutes on two cores with bfloat16) and `make test`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
# A test process for each core, and one thread in each: two threads in each would wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

.PHONY: help quickstart test test-all lint format bench docs clean
help:  ## Say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(VENV)/.base: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "posttrain needs Python 3.11 or newer: install it, or run make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,docs]"
	@touch $@

$(VENV)/.parity: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[parity]"
	@touch $@

quickstart: $(VENV)/.base  ## Take a real model up the ladder of all four levers
	$(BIN)/posttrain run recipes/quickstart.yaml

test: $(VENV)/.dev  ## Lint, types, and the tests that take minutes at most
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) --maxprocesses 8 -m "not slow and not model and not parity"

test-all: $(VENV)/.parity docs  ## Everything: the real model, TRL parity, slow end-to-end runs
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) --maxprocesses 2  # some hold a real model: gigabytes each

lint: $(VENV)/.dev  ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## Rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.parity  ## Speed against transformers and TRL (long; DATA=file.jsonl: a local copy of GSM8K)
	$(BIN)/python benchmarks/generate_vs_transformers.py
	$(BIN)/python benchmarks/train_vs_trl.py $(if $(DATA),--data $(DATA))

docs: $(VENV)/.dev  ## Build the documentation, strictly
	$(BIN)/mkdocs build --strict --quiet

clean:  ## Remove the environment and what tools left behind (runs stay)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache site
