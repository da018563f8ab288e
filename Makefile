# Short ways to the commands of the README; each line could be typed by hand.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
RUN := $(VENV)/bin/python
# Tests without clusters: two at a time. The others have processes enough of their own.
APART := tests/corpus tests/data tests/diffusion tests/evaluate tests/report tests/students

.PHONY: demo test test-all check clean

demo: $(VENV)/installed  ## the whole job on simulated scenes, with a report at the end
	$(RUN) jobs/pipeline.py --preset demo

test: check  ## style, types and the tests: about 40 minutes on two cores
	$(RUN) -m pytest -m "not slow and not gpu and not realdata" -n 2 --dist loadfile $(APART)
	$(RUN) -m pytest -m "not slow and not gpu and not realdata" $(APART:%=--ignore=%)

test-all: check  ## everything that can run here; DAKTER_SOS_ROOT and DAKTER_OSD_ROOT add the real-data tests
	$(RUN) -m pytest -m "not gpu" -n 2 --dist loadfile $(APART)
	$(RUN) -m pytest -m "not gpu" $(APART:%=--ignore=%)

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
