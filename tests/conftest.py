"""Eight simulated devices, quick compiles, no silent rank promotion: set once, before any backend starts."""

import gc
import os


# Tests compile much and compute little: code of lower quality compiles twice as fast.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

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
