# Everything a checkout needs: `make demo` shows it, `make test` proves it. `make help` lists the targets.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
GL_PACKAGES := libegl1 libgl1 libgles2 libgl1-mesa-dri
CHECK_GL := $(PY) -c "from worldmodel.doctor import find_gl_backend; find_gl_backend()"
TEST_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help venv gl demo test test-fast check tree type docs format build clean

help:
	@echo "make venv       create $(VENV) and install worldmodel with its development tools"
	@echo "make demo       plan with the shipped checkpoint, write a video and a figure"
	@echo "make test       the whole test suite     (make test-fast: without the slow ones)"
	@echo "make check      ruff format, ruff, mypy  (make format: apply what ruff can fix)"
	@echo "make docs       the site in build/docs, every warning an error"
	@echo "make build      wheel and source archive in dist/"

venv: $(STAMP) gl

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "worldmodel needs Python >= 3.11; found $$($(PYTHON) --version 2>&1). Try: make venv PYTHON=python3.12"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "could not create $(VENV); on Debian or Ubuntu install venv first: apt-get install python3-venv"; exit 1; }
	@echo "installing worldmodel and its dependencies into $(VENV) (minutes the first time)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# The simulator draws without a screen through EGL or OSMesa, which are system libraries that pip cannot install.
gl: $(STAMP)
	@$(CHECK_GL) >/dev/null 2>&1 || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	    echo "no OpenGL backend found; installing $(GL_PACKAGES)"; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	      apt-get install -y -qq --no-install-recommends $(GL_PACKAGES); } >/dev/null || true; \
	    $(CHECK_GL) >/dev/null 2>&1 || \
	      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libosmesa6 >/dev/null || true; \
	  fi; \
	  $(CHECK_GL) >/dev/null 2>&1 || { \
	    echo "no OpenGL backend for rendering; install one, then run make again:"; \
	    echo "  sudo apt-get install -y $(GL_PACKAGES)"; exit 1; }; }

demo: venv
	@$(PY) -m worldmodel plan

test: venv
	$(PY) -m pytest -q -n $(TEST_WORKERS)

test-fast: venv
	$(PY) -m pytest -q -n $(TEST_WORKERS) -m "not slow"

check: $(STAMP)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(MAKE) --no-print-directory type

# A link tree gives mypy and editors (stubPath) the import name: worldmodel.envs is envs/ (docs/decisions/0001).
tree:
	@rm -rf .typecheck && mkdir -p .typecheck/worldmodel
	@cd .typecheck/worldmodel && ln -s ../../worldmodel/* ../../envs ../../planners ../../configs .

type: $(STAMP) tree
	$(PY) -m mypy -p worldmodel

docs: $(STAMP) tree
	@$(PY) -c 'import mkdocstrings' 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(PY) -m mkdocs build --strict --quiet

format: $(STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

build: $(STAMP)
	$(PY) -m build --outdir dist .

clean:
	rm -rf build dist .typecheck .mypy_cache .ruff_cache .pytest_cache *.egg-info
