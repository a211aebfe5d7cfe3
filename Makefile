# Works with GNU make 3.81 and bash 3.2, as macOS has them.
PYTHON ?= python3
BIN := .venv/bin
BACKEND ?= $(SLIPWAY_BACKEND)
CODE := app.py chalicelib infra tests

.PHONY: help demo up test check format clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile

demo: .venv/ready ## build one image for real and show everything; BACKEND=eks: on a fake Kubernetes API
	@SLIPWAY_BACKEND=$(BACKEND) $(BIN)/python -m infra.local demo

up: .venv/ready ## serve the API on this machine until interrupted; PORT and SLIPWAY_ROOT_TOKEN are heeded
	@SLIPWAY_BACKEND=$(BACKEND) $(BIN)/python -m infra.local up

test: check ## format, lint, types and all tests, with every container engine found
	@$(BIN)/python -m pytest -m "engine or slow"

check: .venv/ready ## the quick part of it
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -m "not engine and not slow"

format: .venv/ready ## format, and mend what lint can
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

clean: ## remove what was installed and cached here
	rm -rf .venv .slipway .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/ready: requirements.txt tests/requirements.txt
	@PYTHON="$(PYTHON)" sh infra/local/install.sh
