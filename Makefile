# Everything a new clone needs; `make` lists it. Each command creates its environment when it is missing.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: help train test test-all test-plan lint docs release-check clean

help:                               ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
	  printf '%-14s %s\n' "$$name" "$$text"; done

train: $(VENV)/installed            ## GRPO, FairGRPO and fair sampling on the embedded clinic, side by side; seven minutes
	$(RUN) -m fairgrpo_jax.study clinic --steps 100 --workdir outputs/clinic

test: $(VENV)/installed             ## all tests that need neither torch nor minutes of training
	$(RUN) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not slow and not parity and not plan"

test-all: $(VENV)/installed         ## with the slow ones, and parity with torch (pip install .[parity])
	HYPOTHESIS_PROFILE=many $(RUN) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not plan"

test-plan: .venv-plan/installed     ## true sizes compiled for TPUs and GPUs that are not there; close to two hours, once
	.venv-plan/bin/python -m pytest -p no:xdist -s -m plan tests/test_plan_sizes.py

lint: $(VENV)/installed             ## formatting, lint, types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pyright --pythonpath $(RUN)

docs: .venv-docs/installed          ## the documentation site, into site/; broken links are errors
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict

release-check:                      ## wheel and source archive; the wheel imported in an environment of its own
	rm -rf build dist .venv-release
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/python -m pip install --quiet --upgrade pip build
	.venv-release/bin/python -m build --outdir dist .
	.venv-release/bin/python -m pip install --quiet dist/*.whl
	cd .venv-release && bin/python -I ../tests/check_installed.py
	cd .venv-release && bin/python -I -m fairgrpo_jax.train --help > /dev/null

$(VENV)/installed: pyproject.toml setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable ".[dev]"
	touch $@

.venv-plan/installed: pyproject.toml setup.cfg
	$(PYTHON) -m venv .venv-plan
	.venv-plan/bin/python -m pip install --quiet --upgrade pip
	.venv-plan/bin/python -m pip install --quiet --editable ".[dev,plan-tpu,plan-gpu]"
	touch $@

.venv-docs/installed: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --upgrade pip
	.venv-docs/bin/python -m pip install --quiet $$(.venv-docs/bin/python -c "import tomllib; \
	  print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])")
	touch $@

clean:                              ## forgets the environments; runs under outputs/ stay
	rm -rf $(VENV) .venv-plan .venv-docs .venv-release build dist site *.egg-info
