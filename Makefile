# One command for each job. The first run makes .venv and installs; later runs start at once.
PYTHON ?= python3
BIN := .venv/bin
export UV_PYTHON_DOWNLOADS = never
INSTALL = $(BIN)/python -m pip install -q --disable-pip-version-check

.PHONY: lab demo test docs sync wheel types bench clean

lab: .venv/.installed ## open the course in JupyterLab
	$(BIN)/deepswap lab

demo: .venv/.installed ## open the face swap page
	$(BIN)/deepswap demo

test: .venv/.installed-dev ## everything: style, sync, notebooks, tests
	$(BIN)/ruff check .
	$(BIN)/python tools/sync.py --check
	OMP_NUM_THREADS=1 DEEPSWAP_FAST=1 $(BIN)/nbdev_test --n_workers 2 --timing
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

docs: .venv/.installed-dev ## the site, in _docs/
	$(BIN)/python tools/site.py _docs

sync: .venv/.installed-dev ## export the library, clean the notebooks, write README.md
	$(BIN)/python tools/sync.py

wheel: .venv/.installed-dev ## dist/: the library, its weights and the course in one file
	$(BIN)/python -m build -o dist .

types: .venv/.installed-dev ## are the type hints right?
	$(BIN)/python tools/typecheck.py

bench: .venv/.installed-dev ## measure speed and memory anew, and write benchmarks/README.md
	$(BIN)/python benchmarks/all.py

clean:
	rm -rf .venv _docs _proc *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("deepswap needs Python 3.10 or newer, this is %d.%d: say make PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "This Python can't make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv

# uv is four times faster than pip; where it can't be had, pip does it.
.venv/.installed: settings.ini setup.py | .venv/bin/python
	$(INSTALL) uv && $(BIN)/uv pip install -q --python $(BIN)/python --compile-bytecode -e . || $(INSTALL) -e .
	touch $@

.venv/.installed-dev: settings.ini setup.py | .venv/bin/python
	$(INSTALL) uv && $(BIN)/uv pip install -q --python $(BIN)/python --compile-bytecode -e '.[dev]' || $(INSTALL) -e '.[dev]'
	touch .venv/.installed $@
