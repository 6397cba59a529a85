PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint docs baselines runtimes venv

# Train on embedded data, validate, predict held-out images, and list the files written.
demo: venv
	$(BIN)/python -m experiments.demo

# One process for each core, with one thread each: more threads would wait for each other. tests/conftest.py sorts the
# test files, the longest first.
test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# As above. Idle processes take tests from busy ones, since some tests take ten minutes.
test-slow: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n auto --dist worksteal

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Build the documentation into site/. Warnings are errors.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Install timm for the tests, and torchvision if the installed torch has none that works. The folder is not on the path
# of other programs: libraries that find this torchvision would import it and fail. tests/conftest.py adds the folder.
baselines: $(VENV)/timm/installed

$(VENV)/timm/installed: $(VENV)/installed
	$(BIN)/python -m pip install -q --no-deps --upgrade --target $(VENV)/timm timm==1.0.31 \
	    $$($(BIN)/python -c 'import torchvision' 2>/dev/null || echo torchvision==0.28.0)
	touch $@

# Install runtimes for the tests of exported files, without their dependencies. tests/conftest.py adds the folder.
runtimes: $(VENV)/runtimes/installed

$(VENV)/runtimes/installed: $(VENV)/installed
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps --upgrade --target $(VENV)/runtimes \
	    openvino ncnn pnnx coremltools cattrs pyaml tract
	$(BIN)/python -m pip install -q --no-deps --upgrade --target $(VENV)/opencv4 opencv-python-headless==4.14.0.94
	touch $@

venv: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@
