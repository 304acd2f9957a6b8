# EMQ's tasks. Everything lives in .venv; nothing is installed system-wide but the Debian packages that tests need.
.DEFAULT_GOAL := help
.PHONY: help install demo test lint format bench audit lock packages clean chaos chaos-long soak

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What a broker needs is enough for the demo; the tools for development are eight times as much.
BROKER := $(VENV)/.broker
STAMP := $(VENV)/.installed
# What the tests use besides Python: a second Redis implementation, a proxy, a browser, a Lua linter, networks.
PACKAGES := redis-server nginx chromium lua-check prometheus iproute2
ARGS ?=

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv with the broker and the development tools

$(BROKER): pyproject.toml comfyui_emq_node/version.py .ci/constraints.txt
	@.ci/python $(PYTHON) $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable .
	@touch $@

$(STAMP): $(BROKER)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --group dev
	@touch $@

demo: $(BROKER) ## Broker, Valkey and a real ComfyUI make a picture (ARGS=--once ends after it; COMFYUI=/path uses yours)
	$(BIN)/python -m broker demo $(ARGS)

test: lint ## Lint, then every test (ARGS="tests/queue -k claim" runs pytest with these arguments instead)
	$(BIN)/python .ci/tests.py $(ARGS)

lint: $(STAMP) packages ## ruff, mypy --strict, luacheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 install.py comfyui_emq_node
	luacheck --quiet broker/queue/functions

format: $(STAMP) ## Format the code and apply safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

chaos: $(STAMP) packages ## Three minutes of faults under load; what became of every job
	$(BIN)/python -m tests.chaos.mix --seconds 180 $(ARGS)

chaos-long: $(STAMP) packages ## About an hour: a thousand killed workers and more; artifacts/chaos.json has the verdict, a second start goes on
	$(BIN)/python -m tests.chaos.long --keep artifacts/chaos.json $(ARGS)

soak: $(STAMP) packages ## An hour of ordinary work; artifacts/soak.json says what grew
	$(BIN)/python -m tests.chaos.soak --keep artifacts/soak.json $(ARGS)

bench: $(STAMP) ## Measure EMQ: all benchmarks, or one with its options (ARGS="main-job", "queue" …)
	$(BIN)/python -m bench $(ARGS)

audit: $(STAMP) ## Look for known faults in the code (bandit) and in the locked packages (pip-audit)
	@.ci/audit $(BIN)/python $(VENV)

lock: $(STAMP) audit ## Write the installed versions to .ci/constraints.txt, a broker's with their hashes to .ci/requirements.lock
	$(BIN)/python -m pip freeze --exclude-editable > .ci/constraints.txt
	$(VENV)/audit/bin/pip-compile --quiet --generate-hashes --strip-extras --no-header --no-annotate --no-emit-index-url \
		--no-emit-find-links --constraint .ci/constraints.txt --output-file .ci/requirements.lock pyproject.toml

packages: ## Install the Debian packages that tests need (as root), or name the missing ones
	@.ci/packages $(PACKAGES)

clean: ## Remove .venv, caches and the demo's pictures
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis demo
