# Short ways to the commands of the README; each line could be typed by hand.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
RUN := $(VENV)/bin/python
# Two files at a time, since tests with a cluster wait more than they compute; in order, so that short ones come last.
TESTS := $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all check clean

demo: $(VENV)/installed  ## the whole job on simulated scenes, with a report at the end
	$(RUN) jobs/pipeline.py --preset demo

test: check  ## style, types and the tests: about 40 minutes on two cores
	$(TESTS) -m "not slow and not gpu and not realdata"

test-all: check  ## everything that can run here; DAKTER_SOS_ROOT and DAKTER_OSD_ROOT add the real-data tests
	$(TESTS) -m "not gpu"

check: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info[:2] == (3, 11), f"Python 3.11 is needed, found {sys.version}; set PYTHON=..."'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -e ".[dev]"
	touch $@

clean:  ## the environment and caches; runs/ is yours to remove
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
