"""Eight simulated devices, quick compiles, no silent rank promotion: set once, before any backend starts."""

import gc
import importlib.metadata
import os
from pathlib import Path


# Tests compile much and compute little: code of lower quality, by emitters that jaxlib 0.11 has no more, compiles
# eight times as fast.
FLAGS = ["--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
# What has been compiled is kept, for other files, for processes that tests start, and for the next run of the tests;
# `pytest --cache-clear` forgets it.
CACHE = Path(__file__).parent.parent / ".pytest_cache" / "d" / "programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax  # noqa: E402
import pytest  # noqa: E402


jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

jax.devices()  # starts the backend: no test may change the number of devices afterwards


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Compiled programs of a file are freed after it: each maps memory, and a process may have 65,530 maps only."""
    yield
    jax.clear_caches()
    gc.collect()
