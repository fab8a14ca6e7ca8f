# Everything a user or a developer does here. Needs Linux and Python 3.11 or newer; installs the rest into .venv.

PYTHON ?= python3
BIN := .venv/bin
RUNTIME := .venv/.runtime
DEVELOPMENT := .venv/.development

.DEFAULT_GOAL := help
.PHONY: help demo up test faults lint format bench lock clean

help:  ## Show what there is.
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

demo: $(RUNTIME)  ## Start a stack, upload sample PDFs, watch and search them, stop again.
	@$(BIN)/paperlane demo

up: $(RUNTIME)  ## Start the whole stack at http://localhost:8000, until Ctrl-C.
	@$(BIN)/paperlane up

test: $(DEVELOPMENT)  ## Run all tests, on a real Kafka and PostgreSQL.
	$(BIN)/python -m pytest $(PYTEST)

faults: $(DEVELOPMENT)  ## Break a stack in every way for half an hour; writes docs/reliability.md.
	$(BIN)/python -m bench.faults

lint: $(DEVELOPMENT)  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEVELOPMENT)  ## Put the code into shape.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEVELOPMENT)  ## Measure latency, freshness and throughput.
	$(BIN)/python -m bench

lock: $(DEVELOPMENT)  ## Renew the lock files, with hashes and without the name of any registry.
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-header --python-version 3.11 \
		--extra local pyproject.toml --output-file requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-header --python-version 3.11 \
		--extra local --extra dev pyproject.toml --output-file requirements-dev.lock

clean:  ## Remove what the build made; data in .paperlane/ stays.
	rm -rf .venv *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Paperlane needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	@$(PYTHON) -m venv .venv \
		|| { rm -rf .venv; echo "This Python has no venv module: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }

$(RUNTIME): requirements.lock pyproject.toml | .venv
	@echo "Installing into .venv …"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(DEVELOPMENT): requirements-dev.lock $(RUNTIME)
	@echo "Installing what development needs …"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.lock
	@touch $@
