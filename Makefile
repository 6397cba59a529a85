PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint docs venv

# Trains on embedded data, validates, predicts held-out images, and says where everything lies.
demo: venv
	$(BIN)/python -m experiments.demo

# One process a core, with a thread each: torch's threads of several processes would wait for each other. Files go to
# the processes in the order of tests/conftest.py, the longest first.
test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# As above; a process that has nothing left takes tests from another, as some take ten minutes.
test-slow: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n auto --dist worksteal

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The documentation's site, in site/; a warning is an error.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

venv: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@
