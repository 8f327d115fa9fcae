# Everything happens in .venv, with nothing but Python 3.11+ and the package registries.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := pyproject.toml tests/speech-packages.txt

.PHONY: demo test bench peers lint format clean

demo: .venv/installed-demo ## Transcribe a real recording that a package brings
	$(BIN)/python -m max_whisper.demo

test: .venv/installed-test ## Run all tests
	$(BIN)/python -m pytest

bench: .venv/installed-test ## Time every kernel against MAX's built-in ops
	$(BIN)/python -m pytest bench -q --benchmark-enable --benchmark-quiet

peers: .venv/installed-test .peers/installed ## Compare with openai-whisper, in turns: make peers FILES="a.flac b.wav"
	$(BIN)/python bench/peers/openai_whisper.py .peers/bin/python tiny.en $(FILES)
	$(BIN)/python bench/peers/openai_whisper.py .peers/bin/python base $(FILES)

lint: .venv/installed-dev ## Check formatting, style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/installed-dev ## Format Python and Mojo
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .
	$(BIN)/mojo format -l 120 kernels

clean: ## Remove the environment
	rm -rf .venv .peers

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed-%: .venv/bin/python $(PACKAGES)
	$(BIN)/pip install --quiet --editable '.[$*]'
	$(if $(filter demo,$*),,$(BIN)/pip install --quiet --no-deps --target .venv/speech --upgrade -r tests/speech-packages.txt)
	touch $@

.peers/installed: $(PACKAGES)
	$(PYTHON) -m venv .peers
	.peers/bin/pip install --quiet openai-whisper --editable '.[tiny-en,base]'
	touch $@
