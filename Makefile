# Every target builds .venv first, from constraints.txt, if it is missing or older than what it depends on.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.selkit-installed
# Two workers with one thread each: most tests are small, and threads would only wait for each other.
# A file stays with one worker, so that what its tests share is made once.
WORKERS ?= 2

.PHONY: demo test fuzz lint docs bench clean

demo: $(STAMP)
	$(PY) examples/microscopy.py

test: $(STAMP)
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadscope

# Ten times as many wrong calls and damaged files as in `make test`; SELKIT_FUZZ=100 for more.
fuzz: $(STAMP)
	@SELKIT_FUZZ=$${SELKIT_FUZZ:-10} OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest tests/fuzz

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) docs/llms.py --check

# The examples of the docs and docstrings run in `make test`.
docs: $(STAMP)
	$(PY) docs/llms.py
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html

bench: $(STAMP)
	benchmarks/run

# torch goes first and alone, so that the other packages take the build that is there.
# stardist comes without its dependencies: the demo reads the image and the masks inside its wheel.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("selkit needs Python 3.11 or newer, and $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.12 ..." % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[report,faiss,dask,shap,demo,docs,dev]'
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps stardist
	@touch $@

clean:
	rm -rf build dist docs/_build docs/api/generated selkit-report .mypy_cache .ruff_cache .pytest_cache
