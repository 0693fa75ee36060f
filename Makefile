# `make demo` and `make test` do all of their own set-up; Python 3.11 or newer with pip is all they need.
# Another Python: make test PYTHON=python3.12. Another place for the environment: make test VENV=../venv.

VENV ?= .venv
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(if $(call is_new,$(name)),$(name))) python3)
is_new = $(shell $(1) -c 'import sys; print("yes" if sys.version_info >= (3, 11) else "")' 2>/dev/null)

BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test fuzz lint format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/installed ## make storms, forecast them, print a table and draw a picture
	$(BIN)/squall demo

test: lint ## lint, types, and all tests with coverage; choose some with ARGS="-k dispatch"
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadgroup --cov --cov-report=term --durations=10 $(ARGS)

fuzz: $(VENV)/installed-dev ## property tests alone, with twenty times the examples, others each time
	SQUALL_EXAMPLES=2000 $(BIN)/python -m pytest -m hypothesis $(ARGS)

lint: $(VENV)/installed-dev ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev ## rewrite the code as lint wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what the other targets made, except the virtual environment
	rm -rf demo build dist *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find engines pipelines jobs tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing squall into $(VENV), a minute or two"
	$(PIP_INSTALL) .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing squall and the tools of its tests into $(VENV), a minute or two"
	$(PIP_INSTALL) '.[dev,rtx]'
	@touch $@

# Debian's Python comes without ensurepip; then the pip outside fills the environment.
$(BIN)/python:
	@found=$$($(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null || echo not there); \
	if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "squall needs Python 3.11 or newer, but $(PYTHON) is $$found; name another: make demo PYTHON=python3.12" >&2; \
		exit 1; \
	fi
	$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
		$(PYTHON) -m venv --clear --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check pip; }
