# Everything rests on `make setup`; a second run does nothing.
PYTHON ?= python3.11
# The build of torch: another version, or another index, e.g. TORCH="torch==2.13.0 --index-url URL".
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
TORCH_STAMP := $(VENV)/.torch
SETUP := $(VENV)/.setup
DATA := movielens_100k adult blood_cells leaves_and_soils scans head_and_heart brain minilm smollm2

.PHONY: setup demo test test-all lint docs catalog expected clean

setup: $(SETUP)

$(TORCH_STAMP):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	touch $@

$(SETUP): $(TORCH_STAMP) pyproject.toml constraints.txt $(wildcard src/hadamard/kernels/*.cpp src/hadamard/kernels/*.hpp)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/hadamard data fetch $(DATA)
	touch $@

demo: $(SETUP)
	$(BIN)/hadamard claims --size quick --out evidence

test: $(SETUP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow"

test-all: $(SETUP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

lint: $(SETUP)
	$(BIN)/ruff check src tests docs
	$(BIN)/ruff format --check src tests docs
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(SETUP)
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

catalog: $(SETUP)
	$(BIN)/python docs/readme.py

expected: $(SETUP)
	$(BIN)/hadamard claims --size quick --out evidence
	$(BIN)/hadamard report evidence --write-expected evidence/expected.json

clean:
	rm -rf $(VENV) build docs/_build docs/generated docs/gallery docs/methods evidence/*.json.* evidence/index.html
