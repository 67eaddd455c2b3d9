"""Compiled programs are kept between starts, in real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


CODE = """
import jax, sys
from fairgrpo_jax import programs
print(programs.keep())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x * 3 + 1)(2.0)
"""
TOLD = ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "JAX_ENABLE_COMPILATION_CACHE")


def start(**environment):
    """Compiles a program in a new process; returns the folder that it was told."""
    kept = {name: value for name, value in os.environ.items() if name not in TOLD}
    given = kept | {name: str(value) for name, value in environment.items()} | {"JAX_PLATFORMS": "cpu"}
    ended = subprocess.run([sys.executable, "-c", CODE], env=given, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return Path(ended.stdout.split()[-1])


def files(folder):
    return {path: path.stat().st_ctime_ns for path in folder.glob("jit_*-cache")}


def test_a_second_start_finds_what_the_first_compiled(tmp_path):
    folder = start(XDG_CACHE_HOME=tmp_path)
    assert folder.parent == tmp_path / "fairgrpo_jax" / "programs"
    first = files(folder)
    assert first and start(XDG_CACHE_HOME=tmp_path) == folder and files(folder) == first


@pytest.mark.parametrize("more", [{}, {"JAX_ENABLE_COMPILATION_CACHE": 0}])
def test_the_user_says_where_and_whether(tmp_path, more):
    told = tmp_path / "mine"
    assert start(JAX_COMPILATION_CACHE_DIR=told, XDG_CACHE_HOME=tmp_path / "other", **more) == told
    assert bool(told.exists() and files(told)) == (not more) and not (tmp_path / "other").exists()
