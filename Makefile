# Everything runs in .venv, which the first command makes. PYTHON=python3.12 make lab picks another Python (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
PARALLEL := OMP_NUM_THREADS=1 $(PYTEST) -n auto --maxprocesses=4
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=900
LAB_SETTINGS := .venv/share/jupyter/lab/settings
ifdef BNLIB_DATA  # the lessons run in notebooks/
export BNLIB_DATA := $(abspath $(BNLIB_DATA))
endif
ROOT_FLAG := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: help lab test stress validate notebooks site gallery bench lint
help:  ## list the commands
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "make %-10s %s\n", $$1, $$2}'

lab: .venv/.lab  ## open the lessons in JupyterLab
	@echo "If no browser opens, open the address below. If a port is taken, the next one is tried; make lab LAB=--port=9000 picks one."
	$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(ROOT_FLAG) $(LAB)

test: .venv/.dev  ## run every test: unit, property, notebooks, browser; images without a network unless BNLIB_DATA is set
	BNLIB_OFFLINE=1 $(PARALLEL) --dist loadfile --no-loadscope-reorder $(NBVAL) notebooks tests

stress: .venv/.dev .venv/.site  ## run lessons, explorers and layers under what no reader should have to suffer
	BNLIB_STRESS=1 $(PARALLEL) --ignore tests/stress/test_site.py tests/stress tests/test_properties.py
	BNLIB_STRESS=1 $(PYTEST) tests/stress/test_site.py
	$(BIN)/python tests/mutants.py --every 12

validate: .venv/.lab  ## compare every stored output of the lessons, as you have them, with a fresh run
	$(PYTEST) $(NBVAL) notebooks

notebooks: .venv/.lab  ## run every lesson from top to bottom and save it
	$(BIN)/python -m web.notebooks notebooks/*.ipynb

site: .venv/.site  ## build the lessons as static pages, with every slider alive, in build/site
	$(BIN)/python -m web.build

gallery: .venv/.dev  ## draw the README's pictures of the explorers anew
	$(BIN)/python benchmarks/gallery.py

bench: .venv/.dev  ## measure everything the README and RESULTS.md claim, as ratios
	$(BIN)/python -m benchmarks

lint: .venv/.dev  ## check style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

.venv/.lab: requirements.txt pyproject.toml web/jupyter_server_config.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}; try PYTHON=python3.12 make lab")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@mkdir -p .venv/etc/jupyter && cp web/jupyter_server_config.py .venv/etc/jupyter
	@mkdir -p $(LAB_SETTINGS)  # no question about news, and no request for them
	@echo '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}' > $(LAB_SETTINGS)/overrides.json
	@touch $@

.venv/.site: .venv/.lab web/requirements-site.txt
	$(BIN)/python -m pip install --quiet -r web/requirements-site.txt
	@touch $@

.venv/.dev: .venv/.lab requirements-dev.txt
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	@touch $@
