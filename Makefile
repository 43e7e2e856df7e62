# Two commands do all the set-up: `make run` and `make test`. Both make the environment (.venv) from uv.lock first.
# uv itself is taken from the PATH, or installed into .uv when it is missing.

PYTHON ?= python3
UV_VERSION = 0.13.8
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
SYNC = env -u UV_INDEX -u UV_DEFAULT_INDEX $(UV) sync --locked --quiet --all-extras --compile-bytecode

.PHONY: run test check bench audit fmt build clean help
.DEFAULT_GOAL := help

help: ## This list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

.venv/.synced: pyproject.toml uv.lock | uv
	@echo "Making the environment from uv.lock ..."
	@$(SYNC)
	@touch $@

.PHONY: uv
uv:
	@command -v $(UV) >/dev/null 2>&1 || { echo "Installing uv $(UV_VERSION) into .uv ..."; \
	  $(PYTHON) -m venv .uv && .uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); }

run: .venv/.synced ## Start the router and print address, login and a call to paste
	@.venv/bin/routeur serve

test: .venv/.synced ## Every test, on every core
	@.venv/bin/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

check: .venv/.synced ## Format, lint, types, import contracts (under 3 minutes)
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/lint-imports
	@.venv/bin/mypy

bench: .venv/.synced ## CPU per request and per chunk, as ratios to a byte relay
	@.venv/bin/python -m benchmarks.run

audit: .venv/.synced ## Known vulnerabilities of what the lock names (asks the advisory database)
	@$(UV) export --locked --quiet --no-emit-project --all-extras --no-dev --format requirements-txt > .venv/requirements.txt
	@.venv/bin/pip-audit --disable-pip --require-hashes -r .venv/requirements.txt

fmt: .venv/.synced ## Format and mend what can be mended
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

build: ## The container image
	docker build -t routeur-ia-api .

clean: ## Remove what was made
	rm -rf .venv .uv .mypy_cache .ruff_cache .pytest_cache .hypothesis
