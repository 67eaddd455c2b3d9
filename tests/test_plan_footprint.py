"""What a device holds: exactly what the compiled programs take, and by hand what they add."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from fairgrpo_jax import chunking, config as options, mesh, models, policy, rollout
from fairgrpo_jax.models import attention, qwen2_5_vl, text
from fairgrpo_jax.plan import ahead, cost, footprint
from tests.test_plan_cost import FAMILIES, wide


CONFIG = options.Config(
    prompts=8,
    rollouts=4,
    data=options.Data(prompt_length=96, num_patches=128),
    sampling=options.Sampling(max_new_tokens=64),
)


def described(architecture, spec="4x1", *, sampling=CONFIG.sampling, update=CONFIG.update, **model):
    """Config, parameters as shapes, and layout, of a model on a mesh of devices with ample memory."""
    config = dataclasses.replace(CONFIG, mesh=spec, model=options.Model(**model), sampling=sampling, update=update)
    if architecture.model_type == "gemma3":
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, num_patches=64))
    tree = policy.shapes(config.model, architecture)
    return config, tree, chunking.layout(config, architecture)


@functools.cache
def compiled(config, architecture, program) -> Any:
    """Memory of a program compiled for simulated devices."""
    devices = mesh.make(config.mesh)
    with jax.set_mesh(devices):
        lowered = ahead.programs(config, architecture, devices)[program]()
        return lowered.compile().memory_analysis()


SHORT = options.Sampling(max_new_tokens=16)
HELD = options.Update(beta=0.1, mini_batches=2)
slow = lambda *case: pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "architecture,spec,model",
    [
        (wide(text.tiny("qwen2")), "4x1", {}),
        slow(qwen2_5_vl.tiny(), "2x2", {"lora_rank": 8}),
        slow(qwen2_5_vl.tiny(), "1x1", {"freeze": ("^vision/",)}),
        slow(qwen2_5_vl.tiny(), "4x1", {"dtype": "bfloat16"}),
    ],
    ids=lambda value: getattr(value, "model_type", str(value)),
)
def test_the_state_is_what_the_program_is_given(architecture, spec, model):
    """The optimizer's step: the state but for the reference policy, and gradients; an update: weights and a piece."""
    config, tree, layout = described(architecture, spec, sampling=SHORT, update=HELD, **model)
    held = footprint.state(tree, layout)
    assert (held.pop("reference policy") > 0) == (not config.model.lora_rank)
    state = sum(held.values())
    sizes = dict(length=config.data.prompt_length, num_patches=config.data.num_patches)
    prompt = models.prompt_shapes(architecture, prompts=4, dtype=jnp.dtype(config.media_dtype), **sizes)
    split = layout.mesh[0]
    piece = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(prompt)) // split
    piece += 4 * 4 * 4 // split  # advantages
    piece += 4 * 4 * 16 * (4 + 1 + 3 * 4) // split  # tokens, mask, log-probabilities of sampler, learner and reference
    gradients = held["optimizer moments"] // 2
    rest = 2**4 * 8 + 1000 * 4  # scalars, fairness statistics of one domain
    taken = compiled(config, architecture, "optimizer").argument_size_in_bytes
    assert state + gradients <= taken <= state + gradients + rest
    taken = compiled(config, architecture, "update").argument_size_in_bytes
    assert held["weights"] + piece <= taken <= held["weights"] + piece + 2**4 * 8


def test_sharding_leaf_by_leaf():
    """Eight of a matrix' rows divide over 4, six columns over 2; what does not divide stays whole."""
    tree = {
        "layers": {"mlp": {"up": {"kernel": jax.ShapeDtypeStruct((3, 8, 6), jnp.float32)}}},
        "embedding": jax.ShapeDtypeStruct((10, 8), jnp.float32),
        "norm": {"weight": jax.ShapeDtypeStruct((8,), jnp.float32)},
    }
    assert footprint.sharded(tree, (4, 2)) == 3 * 2 * 3 * 4 + 5 * 2 * 4 + 8 * 4
    assert footprint.sharded(tree, (4, 4)) == 3 * 2 * 6 * 4 + 10 * 2 * 4 + 8 * 4
    assert footprint.sharded(tree, (1, 1), 2) == 2 * (144 + 80 + 8)


def test_moments_of_what_is_trained_alone():
    _, tree, layout = described(qwen2_5_vl.tiny(), "1x1", lora_rank=4)
    adapters = 4 * 2 * sum(a + b for a, b in ((64, 64), (64, 32), (64, 32), (64, 64), (64, 96), (64, 96), (96, 64)))
    state = footprint.state(tree, dataclasses.replace(layout, reference=True))
    assert state["optimizer moments"] == 2 * 4 * adapters
    assert state["reference policy"] == 0  # it is the policy without adapters
    _, tree, layout = described(qwen2_5_vl.tiny(), "1x1")
    state = footprint.state(tree, dataclasses.replace(layout, reference=True))
    assert state["optimizer moments"] == 2 * state["weights"] == 4 * state["reference policy"]
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), tree)
    assert footprint.state(half, layout)["optimizer moments"] == state["optimizer moments"]  # float32
    narrow = footprint.state(half, dataclasses.replace(layout, moment="bfloat16"))["optimizer moments"]
    assert narrow == state["optimizer moments"] * 3 // 4


def test_a_rollout_by_hand():
    """Plain Qwen2 of two layers, 2 key heads of 16, width 64: 8 prompts on 4 devices, 4 rollouts of up to 64 tokens."""
    architecture = text.tiny("qwen2")
    _, tree, layout = described(architecture, "4x1", dtype="bfloat16")
    prompt, decode = footprint.rollout(architecture, tree, layout)
    parameters = sum(cost.parameters(architecture).values())
    assert prompt["weights that sample"] == decode["weights that sample"] == 2 * parameters
    assert prompt["prompts"] == decode["prompts"] == 2 * (96 * (4 + 1 + 4 + 3 * 4 + 4) + 4)
    assert prompt["prompt keys and values"] == 2 * 96 * (2 * 2 * 2 * 16) * 2
    assert decode["rollout keys and values"] == 2 * 4 * 63 * (2 * 2 * 2 * 16) * 2
    assert prompt["working"] == 2 * 96 * (4 * 64 + 2 * 6 * 16 + 3 * 96) * 2 + (4 + 2) * 4 * 2 * 96 * 96
    assert decode["working"] > 2 * 4 * 512 * 3 * 4


SPLIT = options.Sampling(max_new_tokens=64, weights="tensor")
HALF = options.Sampling(max_new_tokens=64, dtype="bfloat16")


@pytest.mark.parametrize(
    "spec,sampling,numbers",
    [
        ("1x1", CONFIG.sampling, 1),
        ("1x1", HALF, 1 / 2),
        ("1x2", CONFIG.sampling, 1),
        ("1x2", SPLIT, 1 / 2),
        ("2x2", CONFIG.sampling, 1),
        ("2x2", HALF, 1 / 2),
        ("2x2", SPLIT, 1 / 2),
        ("2x2", dataclasses.replace(SPLIT, dtype="bfloat16"), 1 / 4),
    ],
)
def test_the_weights_that_sample(spec, sampling, numbers):
    """As many bytes as the program's; norms and biases are never split."""
    architecture, devices = qwen2_5_vl.tiny(), mesh.make(spec)
    config, tree, layout = described(architecture, spec, sampling=sampling)
    held = footprint.rollout(architecture, tree, layout)
    params = mesh_zeros(tree, devices)
    with jax.set_mesh(devices):
        made = rollout.sampler_params(params, dtype=sampling.dtype, tensor=sampling.weights == "tensor")
    taken = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(made))
    assert held[0]["weights that sample"] == held[1]["weights that sample"] == footprint.copy(tree, layout) == taken
    assert taken == pytest.approx(numbers * 4 * sum(cost.parameters(architecture).values()), rel=0.03)


def mesh_zeros(tree, devices):
    return jax.tree.map(
        lambda x, where: jax.device_put(jnp.zeros(x.shape, x.dtype), where), tree, mesh.shardings(tree, devices)
    )


def test_what_is_split_along_tensor():
    """Two key heads over two devices; over four they are split in two only."""
    architecture = qwen2_5_vl.tiny()
    both = lambda spec: footprint.rollout(architecture, *described(architecture, spec, sampling=SPLIT)[1:])
    (_, one), (first, two), (_, four) = both("2x1"), both("2x2"), both("2x4")
    for name in ("rollout keys and values", "prompt keys and values", "working"):
        assert two[name] == one[name] // 2
    assert four["rollout keys and values"] == two["rollout keys and values"] and four["working"] == one["working"] // 4
    assert two["weights that sample"] < 0.6 * one["weights that sample"]
    whole = footprint.rollout(architecture, *described(architecture, "2x2")[1:])
    assert first["working"] == whole[0]["working"] // 2 and whole[1] == one


def test_an_update_by_hand():
    architecture = text.tiny("qwen2")
    _, tree, layout = described(architecture, "4x1", dtype="bfloat16")
    held = footprint.update(architecture, tree, layout)
    tokens = 2 * 96, 2 * 4 * 63
    assert held["kept"] == 2 * 64 * sum(tokens) * 2
    assert held["prompt keys and values"] == 2 * (2 * 96 * (2 * 2 * 2 * 16) * 2)
    assert held["working"] == max(
        2 * 4 * 64 * 512 * (4 + 4 + 2),
        *(
            n * ((4 * 64 + 2 * 6 * 16) * 2 + (3 + 1) * 96) * 2 + (4 + 4 + 2) * 4 * n * seen
            for n, seen in zip(tokens, (96, 96 + 63), strict=True)
        ),
    )
    layer = cost.parameters(architecture)["layers"] // 2
    assert held["weights gathered"] == (64 * 512 + 2 * layer) * 2
    assert held["gradients"] == 2 * footprint.state(tree, layout)["weights"]  # in float32
    assert held["weights in the compute dtype"] == 0


def test_a_batch_without_media_needs_nothing_of_the_tower():
    architecture = qwen2_5_vl.tiny()
    _, tree, layout = described(architecture, "1x1")
    bare = dataclasses.replace(layout, sizes=dataclasses.replace(layout.sizes, patches=0))
    blind = dataclasses.replace(architecture, vision=None)
    assert footprint.update(architecture, tree, bare)["working"] == footprint.update(blind, tree, bare)["working"]


def test_patches_are_there_for_two_groups_and_two_micro_batches():
    """Eight prompts of 128 patches of 96 numbers: four groups of two, or four micro-batches of two."""
    architecture = qwen2_5_vl.tiny()
    _, tree, layout = described(architecture, "1x1")
    patches = 128 * 96 * 4
    whole, grouped = (
        footprint.rollout(architecture, tree, dataclasses.replace(layout, groups=groups))[0] for groups in (1, 4)
    )
    assert layout.media > layout.text + patches
    assert whole["prompts"] == 8 * layout.media and grouped["prompts"] == 4 * layout.media + 4 * layout.text
    assert (
        grouped["working"] < whole["working"] and grouped["prompt keys and values"] == whole["prompt keys and values"]
    )
    assert footprint.rollout(architecture, tree, layout)[1]["prompts"] == 8 * layout.text
    whole, cut = (
        footprint.update(architecture, tree, dataclasses.replace(layout, parts=parts))["prompts"] for parts in (1, 4)
    )
    assert (whole, cut) == (8 * layout.media, 4 * layout.media)


def test_parts_and_chunks_divide_what_is_kept():
    architecture = wide(qwen2_5_vl.tiny())
    _, tree, layout = described(architecture, "1x1")
    whole = footprint.update(architecture, tree, layout)
    halves = footprint.update(architecture, tree, dataclasses.replace(layout, parts=2, accumulation=2))
    assert halves["kept"] == whole["kept"] // 2 and halves["gradients"] == 2 * whole["gradients"]
    chunked = footprint.update(architecture, tree, dataclasses.replace(layout, chunks=4))
    assert whole["kept"] - chunked["kept"] == 3 * 2 * 1024 * 8 * 63 * 4  # three of four rollouts
    assert chunked["working"] < whole["working"]
    mixed = footprint.update(architecture, tree, dataclasses.replace(layout, compute="bfloat16"))
    assert mixed["weights in the compute dtype"] == footprint.state(tree, layout)["weights"] // 2
    frozen = cost.Training(lora_rank=8, lora_targets="^layers/.*/q$")
    adapted = footprint.update(architecture, tree, dataclasses.replace(layout, training=frozen))
    assert whole["kept"] - adapted["kept"] == 2 * 512 * 8 * 128 * 4  # the tower has no backward pass
    without = footprint.update(
        architecture, tree, dataclasses.replace(layout, training=dataclasses.replace(frozen, remat=False))
    )
    assert without["kept"] > 4 * adapted["kept"]
    chosen = dataclasses.replace(layout, training=cost.Training(remat="selective"))
    layer = 3 * 1024 + 2 * 256 + 2 * 1536  # q, attention, o; k, v; gate, up
    block = 3 * 512 + 2 * 512 + 2 * 768  # qkv; attention, proj; gate, up
    more = 2 * (8 * 96 + 8 * 4 * 63) * layer + 2 * 8 * 128 * block
    assert footprint.update(architecture, tree, chosen)["kept"] - whole["kept"] == 4 * more


def looped(architecture):
    """With so many layers and blocks that they run in a loop, which holds the weights of one of them at a time."""
    vision = architecture.vision and dataclasses.replace(architecture.vision, depth=5)
    return dataclasses.replace(architecture, num_layers=5, local=(architecture.local * 5)[:5], vision=vision)


def temporary(name, program, spec="4x1", sampling=CONFIG.sampling):
    architecture = looped(wide(next(config for config in FAMILIES if config.model_type == name)))
    config, tree, layout = described(architecture, spec, sampling=sampling, update=HELD)
    taken = compiled(config, architecture, program).temp_size_in_bytes
    if program == "update":
        return taken, sum(footprint.update(architecture, tree, layout).values())
    first, decode = footprint.rollout(architecture, tree, layout)
    if program == "prompt":
        return taken, first["working"]
    # On a CPU, where weights are split, the loop changes copies of the caches that are given.
    return taken, decode["working"] + (decode["rollout keys and values"] if sampling == SPLIT else 0)


@pytest.mark.parametrize(
    "name,program,spec,sampling",
    [
        ("qwen2", "update", "4x1", SHORT),
        ("qwen2_5_vl", "prompt", "2x2", SPLIT),
        ("qwen2_5_vl", "decode", "2x2", SPLIT),
        *(slow(name, "update", "4x1", CONFIG.sampling) for name in ("qwen2", "qwen2_5_vl", "gemma3")),
        *(slow(name, "prompt", "4x1", CONFIG.sampling) for name in ("qwen2_5_vl", "gemma3")),
        *(slow(name, "decode", "4x1", CONFIG.sampling) for name in ("qwen2", "qwen2_5_vl", "gemma3")),
    ],
)
def test_what_the_programs_add(name, program, spec, sampling):
    """Compiled for simulated devices, where nothing is fused that an accelerator would fuse: within a factor of two."""
    taken, formula = temporary(name, program, spec, sampling)
    assert 0.5 < formula / taken < 2


@pytest.mark.slow
def test_what_selective_recomputation_keeps_is_what_the_program_adds():
    """Never more than planned; a little less, since what is not recomputed is not held meanwhile."""
    architecture = dataclasses.replace(wide(text.tiny("qwen2")), num_layers=4)
    added = []
    for remat in (True, "selective"):
        config, tree, layout = described(architecture, update=dataclasses.replace(HELD, remat=remat))
        kept = footprint.update(architecture, tree, layout)["kept"]
        added.append((compiled(config, architecture, "update").temp_size_in_bytes, kept))
    (before, kept), (after, more) = added
    assert 0.95 < (after - before) / (more - kept) <= 1


def test_scores_are_whole_where_they_are_few_and_else_a_block(monkeypatch):
    """Two heads, 100 keys, 3 prompts, 4 rollouts, 50 queries: 120,000 float32 scores, or a block of one rollout."""
    sizes = 2, 2, footprint.Pass(rows=3, rollouts=4, queries=50, keys=100)
    assert footprint._scores(*sizes) == (4 + 2) * 120_000
    assert footprint._scores(*sizes, backward=True) == (8 + 2) * 120_000
    monkeypatch.setattr(attention, "LARGE", 4 * 20_000)
    monkeypatch.setattr(attention, "LEAST_QUERIES", 10)
    assert footprint._scores(*sizes, backward=True) == (8 + 2) * 20_000
    monkeypatch.setattr(attention, "LEAST_QUERIES", 40)
    monkeypatch.setattr(attention, "LARGE", 4 * 5_000)
    assert footprint._scores(*sizes) == (4 + 2) * 2 * 100 * 40
    assert footprint._scores(*sizes, kept=True) == 0
    assert (
        footprint._scores(2, 2, footprint.Pass(1200, 1, 1, 100)) == (4 + 2) * 240_000
    )  # a token at a time is never cut
