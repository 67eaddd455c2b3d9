# Everything a new clone needs: `make train`, `make test`, `make lint`. Each creates .venv when it is missing.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: train test test-all lint clean

train: $(VENV)/installed            ## GRPO and FairGRPO on the embedded clinic, side by side; about five minutes
	$(RUN) -m fairgrpo_jax.study clinic --workdir outputs/clinic

test: $(VENV)/installed             ## all tests that need neither torch nor minutes of training
	$(RUN) -m pytest --numprocesses 2 --dist loadfile -m "not slow and not parity"

test-all: $(VENV)/installed         ## with the slow ones, and parity with torch (pip install .[parity])
	$(RUN) -m pytest --numprocesses 2 --dist loadfile

lint: $(VENV)/installed             ## formatting, lint, types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pyright --pythonpath $(RUN)

$(VENV)/installed: pyproject.toml setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable ".[dev]"
	touch $@

clean:                              ## forgets the environment; runs under outputs/ stay
	rm -rf $(VENV) build *.egg-info
