# Everything runs inside .venv, which is made on first use with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FRONTENDS_VENV := .venv-frontends
JOBS ?= auto
# each of the JOBS test processes computes on one core
ONE_THREAD := OMP_NUM_THREADS=1 TVM_NUM_THREADS=1

.PHONY: install demo test test-slow test-frontends lint types format clean

demo: install
	$(BIN)/spikec demo

test: install lint types
	$(ONE_THREAD) $(BIN)/pytest -n $(JOBS) -q

test-slow: install
	$(BIN)/pytest -q -m slow

test-frontends: $(FRONTENDS_VENV)/.installed
	$(ONE_THREAD) $(FRONTENDS_VENV)/bin/pytest -q tests/frontends/adapters tests/frontends/test_framework_networks.py tests/frontends/test_from_nir_sinabs.py

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "spikec needs Python 3.11 or newer; name one with: make PYTHON=python3.11")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

# sinabs stands in an environment of its own and without its dependencies: it asks for an older nir than the others, and
# for samna, which installs itself from another index when it is imported; its layers need neither
$(FRONTENDS_VENV)/.installed: pyproject.toml constraints.txt constraints-frontends.txt
	$(PYTHON) -m venv --clear $(FRONTENDS_VENV)
	$(FRONTENDS_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[frameworks]' pytest hypothesis
	$(FRONTENDS_VENV)/bin/python -m pip install --quiet --no-deps --requirement constraints-frontends.txt
	@touch $@

clean:
	rm -rf $(VENV) $(FRONTENDS_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
