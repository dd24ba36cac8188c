# Everything runs in .venv, which each target makes by itself when it is missing or out of date.
#   make book   build the site            make test    run all tests
#   make serve  show it in a browser      make lab     work in JupyterLab
#   make student  write the chapters without solutions
#   make bench  time deqlib beside its peers, which go into .venv-bench
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SITE   := _build/html
PORT   ?= 8000
PEERS  := .venv-bench
# the tests that need a browser; JupyterLab has a call of its own, since two browsers' drivers clash
BROWSER_TESTS := $(addprefix tests/site/test_,browser.py slides.py equilibria.py explorables.py)

# the kernels of the notebooks come from .venv, whatever is installed elsewhere
export JUPYTER_PREFER_ENV_PATH = 1
export PYDEVD_DISABLE_FILE_VALIDATION = 1
# small tensors gain nothing from a second thread and lose much when processes share the cores
book test refresh bench: export OMP_NUM_THREADS ?= 1

.PHONY: help setup book test test-site test-browser lab serve refresh student bench lint clean

help:
	@sed -n 's/^# *\(make .*\)/\1/p' Makefile

$(READY): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v < (3, 14) else "the book needs Python 3.10 to 3.13, and $(PYTHON) is %d.%d; say make PYTHON=..." % v)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

setup: $(READY)

# a half-removed older build can hide a failure, so only the notebooks' stored runs are kept
book: $(READY)
	rm -rf $(SITE) _build/.doctrees
	$(BIN)/jupyter-book build . -W -n --keep-going
	@echo "open $(SITE)/index.html, or run make serve"

# the notebooks' kernels see only the packages that a reader is promised, see the file in that folder
test: export PYTHONPATH := $(CURDIR)/tests/declared$(if $(PYTHONPATH),:$(PYTHONPATH))
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --nbval --nbval-current-env \
		$(addprefix --ignore=,$(BROWSER_TESTS)) --ignore=tests/lab tests notebooks

# the built site: its files, links and anchors; every page in a browser with other hosts blocked, in
# both widths and colour schemes, under axe-core (screenshots go to _build/screenshots); JupyterLab
test-site test-browser: export BOOK_SITE = required
test-site: $(READY)
	$(BIN)/python -m pytest -n 2 tests/site/test_site.py

test-browser: $(READY)
	$(BIN)/python -m pytest -n 2 $(BROWSER_TESTS)
	$(BIN)/python -m pytest tests/lab

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir=.

serve: $(READY)
	@test -f $(SITE)/index.html || $(MAKE) book
	@echo "The book is at http://127.0.0.1:$(PORT)/ (stop with Ctrl-C)"
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory $(SITE)

# run the notebooks and store their outputs; NOTEBOOKS="notebooks/02_solving.ipynb" for some of them
refresh: $(READY)
	$(BIN)/python book/_tools/refresh.py $(NOTEBOOKS)

# the chapters without their solutions, into _build/student
student: $(READY)
	$(BIN)/python book/_tools/student.py

# an environment of their own: nothing of the book needs the peers. BENCH="--only flows" for a part,
# BENCH=--book to renew the tables and the plot of the book's appendix
$(PEERS)/.ready: benchmarks/requirements.txt constraints.txt pyproject.toml
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check \
		-r benchmarks/requirements.txt -e . -c constraints.txt
	@touch $@

bench: $(PEERS)/.ready
	$(PEERS)/bin/python -m benchmarks $(BENCH)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf _build .venv .venv-bench benchmarks/results .pytest_cache .ruff_cache .mypy_cache .hypothesis deqlib.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -type d -prune -exec rm -rf {} +
