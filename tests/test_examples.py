"""The examples in docstrings, of every module that has any."""

import doctest
import importlib
import importlib.util
import pkgutil
import tempfile
from pathlib import Path

import pytest

import fairgrpo_jax


def modules_with_examples():
    for module in pkgutil.walk_packages(fairgrpo_jax.__path__, "fairgrpo_jax."):
        spec = importlib.util.find_spec(module.name)
        if spec and spec.origin and ">>> " in Path(spec.origin).read_text():
            yield module.name


@pytest.mark.parametrize("name", [*modules_with_examples()])
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # what examples leave there is removed
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0 and result.failed == 0
