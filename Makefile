# Everything a new clone needs: `make train`, `make test`, `make lint`. Each creates .venv when it is missing.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: train test test-all test-plan lint clean

train: $(VENV)/installed            ## GRPO and FairGRPO on the embedded clinic, side by side; about five minutes
	$(RUN) -m fairgrpo_jax.study clinic --workdir outputs/clinic

test: $(VENV)/installed             ## all tests that need neither torch nor minutes of training
	$(RUN) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not slow and not parity and not plan"

test-all: $(VENV)/installed         ## with the slow ones, and parity with torch (pip install .[parity])
	$(RUN) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not plan"

test-plan: .venv-plan/installed     ## true sizes compiled for TPUs and GPUs that are not there; an hour and a half, once
	.venv-plan/bin/python -m pytest -p no:xdist -s -m plan tests/test_plan_sizes.py

lint: $(VENV)/installed             ## formatting, lint, types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pyright --pythonpath $(RUN)

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

clean:                              ## forgets the environment; runs under outputs/ stay
	rm -rf $(VENV) .venv-plan build *.egg-info
