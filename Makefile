# make demo     edit the bundled image three times, results in demo/
# make test     run the tests
# make test-fast      the tests without the slow ones
# make test-comfyui   run the tests on a real ComfyUI: COMFYUI_PATH its folder, COMFYUI_PYTHON its interpreter
# make check-comfyui  the same host in a browser (CHROMIUM), and ComfyUI's linters
# make lint     check the style
# make format   format the code
# make types    check the types; those of nodes/ as well where COMFYUI_PATH and COMFYUI_PYTHON name a host
# make workflows      write workflows/ from the nodes of that host, with images
# make locales        write the English texts and the tables of the help pages from the nodes of that host
# make clean    remove .venv and everything else that these targets made
#
# Everything is installed into .venv, once; again only when pyproject.toml has changed.
#
#   PYTHON   the interpreter that .venv is made with
#   TORCH    what pip installs as torch, e.g. on a machine without a GPU
#            make test TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
#
# Both are read when .venv is made. A torch that is already in .venv stays; to change it: make clean.

PYTHON ?= $(shell for p in python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
TORCH ?= torch==2.13.0

DEMO_EXTRAS = standalone
TEST_EXTRAS = standalone,train,benchmark,dev
CHECK_EXTRAS = $(TEST_EXTRAS),comfyui
LINT_EXTRAS = dev

DEMO_IMAGE = anchoredit_model/assets/sample.png
DEMO_EDITS = -i "change the background to blue" -i "write OK on the sign" -i "make it black and white"
PYTEST_ARGS = -q

RUN = .venv/bin/python
PIP = $(RUN) -m pip --disable-pip-version-check install --quiet

# What imports ComfyUI.
HOST_FACING = __init__.py nodes $(wildcard benchmark/patch.py benchmark/*/patch.py)

.PHONY: help demo test test-fast test-comfyui check-comfyui lint format types workflows locales clean
.DELETE_ON_ERROR:
# One environment, so one install at a time, also under make -j.
.NOTPARALLEL:

help:
	@sed -n '/^# make/s/^# //p' Makefile

demo: .venv/.demo
	@rm -rf demo
	$(RUN) -m anchoredit_model edit $(DEMO_IMAGE) $(DEMO_EDITS) --out demo
	@echo "The images are in demo/"

test: .venv/.test
	$(RUN) -m pytest $(PYTEST_ARGS)

# One thread each: these tensors are small, and a second thread only waits where the machine is busy.
test-fast: .venv/.test
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(PYTEST_ARGS) -m "not slow"

test-comfyui: .venv/.test
	$(RUN) -m pytest $(PYTEST_ARGS) tests/comfyui

check-comfyui: .venv/.check
	$(RUN) -m pytest $(PYTEST_ARGS) tests/browser/check_pages.py tests/comfyui/check_linters.py

lint: .venv/.lint
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: .venv/.lint
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# pyright searches where the interpreter does, and PYTHONPATH is part of that.
types: .venv/.test
	$(RUN) -m pyright --pythonpath $(RUN)
	$(if $(COMFYUI_PATH),PYTHONPATH="$(COMFYUI_PATH)" $(RUN) -m pyright \
	    --pythonpath "$(or $(COMFYUI_PYTHON),$(RUN))" $(HOST_FACING))

workflows: .venv/.test
	$(RUN) scripts/write_workflows.py

locales: .venv/.test
	$(RUN) scripts/write_locales.py

clean:
	rm -rf .venv demo build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo 'Python 3.10 or newer is needed, "$(PYTHON)" is not: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	@touch $@

# torch first and alone, so that nothing else gets to choose it. The stamp is also a pip constraint with the
# version found: a package that wants another torch is an error, never a download of several gigabytes.
.venv/.torch: .venv/.python
	@$(RUN) -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null || \
	    { echo "Installing $(TORCH) ..."; $(PIP) $(TORCH); }
	@$(RUN) -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' > $@

.venv/.demo .venv/.test .venv/.check: pyproject.toml .venv/.torch
.venv/.lint: pyproject.toml .venv/.python

.venv/.demo: EXTRAS = $(DEMO_EXTRAS)
.venv/.test: EXTRAS = $(TEST_EXTRAS)
.venv/.check: EXTRAS = $(CHECK_EXTRAS)
.venv/.lint: EXTRAS = $(LINT_EXTRAS)
.venv/.demo .venv/.test .venv/.check .venv/.lint:
	@echo "Installing what is needed ($(EXTRAS)) ..."
	@$(PIP) $(if $(filter .venv/.torch,$^),--constraint .venv/.torch) --editable '.[$(EXTRAS)]'
	@touch $@
