"""The programs of published models at their true size, compiled for TPUs and GPUs that are not there.

Run by ``make test-plan``, in an environment of its own with the two compilers: close to two hours on two cores, once;
what has been compiled before is taken from the cache.
"""

import dataclasses
import importlib.metadata
import json

import jax
import pytest

from fairgrpo_jax import chunking, config as options, configs, policy
from fairgrpo_jax.plan import ahead, cost, devices, plan
from tests import real_sizes


pytestmark = pytest.mark.plan

MODELS = (
    "Qwen/Qwen2-VL-2B-Instruct",
    "Qwen/Qwen3-VL-4B-Instruct",
    "google/gemma-3-4b-it",
    "Qwen/Qwen2.5-VL-7B-Instruct",
)
# One prompt a device on 256 chips, four on 16, eight on a host of GPUs.
TARGETS = {"h200:8": ("8x1", 64), "v5p:2x2x4": ("16x1", 64), "v5e:16x16": ("256x1", 256)}


@pytest.fixture(autouse=True)
def as_a_run_compiles(monkeypatch):
    """Without the flags of the other tests, some of which libtpu does not know."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def config_of(root, name, mesh, prompts):
    (root / "config.json").write_text(json.dumps(real_sizes.CONFIGS[name]))
    return options.Config(
        mesh=mesh,
        prompts=prompts,
        data=options.Data(prompt_length=640, num_patches=4096 if "gemma" in name else 1024),
        model=options.Model(path=root, dtype="bfloat16"),
        warmup=options.Warmup(steps=0),
        sampling=options.Sampling(max_new_tokens=256),
    )


def beside(config, made):
    """Bytes on the device that a program is not given."""
    architecture = ahead.describe(config.model)
    tree = policy.shapes(config.model, architecture)
    return plan.beside(chunking.fit(config, architecture, tree, made.limit), made)


@pytest.mark.parametrize("program", ["copy", "prompt", "decode", "update"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("device", TARGETS)
def test_true_sizes(tmp_path, device, name, program):
    """Compiles, or does not fit where the formulas say so too; gathers nothing that it should not."""
    mesh, prompts = TARGETS[device]
    config = config_of(tmp_path, name, mesh, prompts)
    made = plan.plan(config, device)
    ahead.versions(made.target.kind.platform)  # else the compiler is not installed: `make test-plan` does it
    outcome = ahead.compile_apart(config, made.target, program, timeout=3600, cache=plan.Arguments.cache)
    phases = dict(zip(("prompt", "decode", "update"), made.phases, strict=True))
    formula = phases[program].peak if program in phases else 0
    if program == "copy":  # with buffers of the three largest parameters, which are gathered together
        leaves = jax.tree.leaves(policy.shapes(config.model, ahead.describe(config.model)))
        formula = made.state["weights"] + made.phases[0].held["weights that sample"]
        formula += sum(sorted(x.size * x.dtype.itemsize for x in leaves)[-3:])
    else:
        formula -= beside(config, made)[program]
    print(f"\n{name} on {device}: {outcome.words}; by formula {formula / devices.GIB:.2f} GiB; {outcome.seconds:.0f} s")
    assert outcome.status in ("fits", "out of memory") and outcome.findings == ()
    if outcome.arguments is None:
        assert formula > 0.8 * made.limit
    else:
        assert outcome.needed is not None and 0.7 < formula / outcome.needed < 1.5


def test_decoding_on_a_gpu_holds_every_weight_once(tmp_path):
    """Its arguments are the decoder's weights and the caches, and what it allocates is less than a tenth of them."""
    config = config_of(tmp_path, "Qwen/Qwen2-VL-2B-Instruct", "1x1", 16)
    made = plan.plan(config, "h200")
    ahead.versions("gpu")  # else the compiler is not installed: `make test-plan` does it
    outcome = ahead.compile_apart(config, made.target, "decode", timeout=3600, cache=plan.Arguments.cache)
    counts, held = cost.parameters(ahead.describe(config.model)), made.phases[1].held
    weights = 2 * sum(counts[part] for part in ("embedding", "layers", "norm"))
    given = weights + held["prompt keys and values"] + held["rollout keys and values"]
    assert outcome.arguments == pytest.approx(given, rel=0.01)
    assert outcome.temporary is not None and outcome.temporary < 0.1 * weights


PAPERS = {
    "fair_qwen2_5_vl_7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "fairmedgemma_4b": "google/gemma-3-4b-it",  # MedGemma's shapes
}


@pytest.mark.parametrize("program", ["prompt", "decode", "update"])
@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_runs_on_their_hardware(tmp_path, name, program):
    """512 prompts with completions of 4,096 tokens on 4 H200, the step whole: as compiled, and near the formula."""
    (tmp_path / "config.json").write_text(json.dumps(real_sizes.CONFIGS[PAPERS[name]]))
    config = configs.get(name)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=tmp_path))
    made = plan.plan(config, "h200:4")
    ahead.versions("gpu")  # else the compiler is not installed: `make test-plan` does it
    outcome = ahead.compile_apart(config, made.target, program, timeout=3600, cache=plan.Arguments.cache)
    taken = beside(config, made)[program]
    formula = dict(zip(("prompt", "decode", "update"), made.phases, strict=True))[program].peak
    peak = (outcome.needed or 0) + taken
    print(f"\n{name}, {program}: {outcome.words}; peak {peak / 2**30:.2f}, by formula {formula / 2**30:.2f} GiB")
    assert made.fits and outcome.needed is not None and peak <= made.limit and not outcome.findings
    assert 0.88 < formula / peak < 1.12


@pytest.mark.parametrize("device,mesh", [("v5e:1x1", "1x1"), ("v6e:2x4", "4x2"), ("v5p:4x4x4", "64x1")])
def test_slices_of_tpus(device, mesh):
    """The compiler knows the slices of the table, that of a single chip included."""
    ahead.versions("tpu")
    small = options.Config(mesh=mesh, warmup=options.Warmup(steps=0))
    fsdp, tensor = map(int, mesh.split("x"))
    outcome = ahead.compile_apart(small, devices.parse(device, fsdp * tensor), "decode", timeout=900, cache=None)
    assert outcome.status == "fits" and outcome.available == devices.KINDS[device[:3]].usable


@pytest.mark.parametrize("device", ["h100:16", "a100:2"])
def test_other_gpus(device):
    ahead.versions("gpu")
    count = int(device.split(":")[1])
    small = options.Config(mesh=f"{count}x1", warmup=options.Warmup(steps=0))
    outcome = ahead.compile_apart(small, devices.parse(device, count), "update", timeout=900, cache=None)
    assert outcome.status == "fits" and importlib.metadata.version("jax-cuda13-plugin") in outcome.versions


@pytest.mark.parametrize("device,mesh", [("v5e:2x2", "4x1"), ("h200:1", "1x1")])
def test_what_is_too_large(tmp_path, device, mesh):
    """TPUs: the compiler stops, with both figures. GPUs: it goes on, and its figure is compared here."""
    config = config_of(tmp_path, "Qwen/Qwen2.5-VL-7B-Instruct", mesh, 64)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="float32"))
    made = plan.plan(config, device)
    ahead.versions(made.target.kind.platform)  # else the compiler is not installed: `make test-plan` does it
    outcome = ahead.compile_apart(config, made.target, "update", timeout=900, cache=None)
    assert outcome.status == "out of memory" and not made.fits
    assert outcome.needed is not None and outcome.available == made.limit < outcome.needed
