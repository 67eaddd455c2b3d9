"""Eight simulated devices, quick compiles, no silent rank promotion: set once, before any backend starts."""

import functools
import gc
import importlib.metadata
import os
from pathlib import Path

import hypothesis


# Tests compile much and compute little: code of lower quality, by emitters that jaxlib 0.11 has no more, compiles
# eight times as fast; a program that is not split for parallel compilers takes a third less of one processor.
FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
# What has been compiled is kept, for other files, for processes that tests start, and for the next run of the tests;
# `pytest --cache-clear` forgets it.
CACHE = Path(__file__).parent.parent / ".pytest_cache" / "d" / "programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ["XDG_CACHE_HOME"] = str(CACHE.parent)  # what is kept of files and of plans stays out of the home folder

import jax  # noqa: E402
import pytest  # noqa: E402
from jax._src.interpreters import mlir  # noqa: E402


jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

jax.config.update("jax_traceback_in_locations_limit", 0)  # programs do not say which lines they come from
# JAX makes a new MLIR context for every program that it lowers, a tenth of the time of tests with small programs.
mlir.make_ir_context = functools.cache(mlir.make_ir_context)

jax.devices()  # starts the backend: no test may change the number of devices afterwards


# Examples of tests that do not say how many; `HYPOTHESIS_PROFILE=many`, as `make test-all` has it, for more.
# No example has a deadline: a busy machine is no fault of the code.
hypothesis.settings.register_profile("quick", max_examples=20, deadline=None)
hypothesis.settings.register_profile("many", max_examples=150, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# Files that take longest come first: the last to begin would keep one process busy while the other has nothing to do.
LONGEST = (
    "train learner_policy learner train_step staged fairness train_rewards train_checkpoint "
    "report models_store losses rollout advantages models_decoder examples commandline "
    "models_attention kmeans models_lora fairness_state plan_ahead data_synthetic configs_paper mine "
    "models_attention_inside generate models_golden normalization plan peers"
).split()
MOST_MAPS = 30_000  # of the 65,530 that Linux allows a process
MOST_SECONDS = float(os.environ.get("TEST_CPU_SECONDS", "15"))  # of processor time; 0 names no test


def pytest_collection_modifyitems(items):
    """Sorts the files, the longest first; the tests of a file stay in their order."""
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_collection_finish():
    """Leaves what the imports made out of garbage collection, a tenth of the processor time otherwise."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_sessionfinish():
    """Leaves out once more what there is by now: pytest collects five times before it ends."""
    gc.freeze()


def cpu_seconds() -> float:
    """Seconds of processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Notes what a test takes, in its report."""
    began = cpu_seconds()
    try:
        return (yield)
    finally:
        if not any(item.get_closest_marker(name) for name in ("slow", "parity", "plan")):
            item.user_properties.append(("cpu_seconds", cpu_seconds() - began))


def pytest_terminal_summary(terminalreporter):
    """Names tests that take long without being marked slow."""
    reports = [report for name in ("passed", "failed") for report in terminalreporter.getreports(name)]
    taken = {report.nodeid: dict(report.user_properties).get("cpu_seconds", 0) for report in reports}
    long = sorted((name for name in taken if taken[name] > MOST_SECONDS > 0), key=lambda name: -taken[name])
    for name in long:
        terminalreporter.write_line(f"{taken[name]:.0f} s of processor time; make it quicker or mark it slow: {name}")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Frees compiled programs when they are many: each maps memory, and Linux limits the maps of a process."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()
