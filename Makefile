# Everything happens in .venv, with nothing but Python 3.11+ and the package registries.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := pyproject.toml tests/speech-packages.txt
PIP := $(BIN)/pip install --quiet --no-compile
export PYTHONDONTWRITEBYTECODE := # what is imported is compiled once, instead of all that is installed

.PHONY: demo test test-cpu test-gpu bench bench-gpu peers lint format clean

demo: .venv/installed-demo ## Transcribe a real recording that a package brings
	$(BIN)/python -m max_whisper.demo

test: .venv/installed-test ## Run all tests: both halves side by side, each prints when it is done
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target test-cpu test-gpu

test-cpu: .venv/installed-test
	$(BIN)/python -m pytest

test-gpu: .venv/installed-test ## On the phantom GPU where there is no real one
	$(BIN)/python -m pytest -m gpu

bench: .venv/installed-test ## Time every kernel against MAX's built-in ops
	$(BIN)/python -m pytest bench -q --benchmark-enable --benchmark-quiet --report docs/benchmarks.md

bench-gpu: .venv/installed-test ## Count every GPU kernel and MAX's built-in ops on the phantom GPU, or time them on a real one
	$(BIN)/python -m bench.gpu

peers: .venv/installed-dev .peers/installed ## Compare with other engines, in turns: half an hour
	$(BIN)/python -m bench.peers .peers

lint: .venv/installed-dev ## Check formatting, style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/installed-dev ## Format Python and Mojo
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .
	$(BIN)/mojo format -l 120 kernels bench

clean: ## Remove the environment
	rm -rf .venv .peers

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed-%: .venv/bin/python $(PACKAGES)
	$(PIP) --editable '.[$*]'
	$(if $(filter demo,$*),,$(PIP) --no-deps --target .venv/speech --upgrade -r tests/speech-packages.txt)
	touch $@

.peers/installed: bench/peers/requirements.txt
	$(PYTHON) -m venv .peers
	.peers/bin/pip install --quiet -r bench/peers/requirements.txt
	.peers/bin/pip uninstall --quiet --yes torchvision # optimum-intel asks for it; nothing here does, and it may not fit torch
	touch $@
