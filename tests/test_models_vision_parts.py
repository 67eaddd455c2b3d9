"""The vision towers part by part: the numbers of all patches at once, and less memory."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairgrpo_jax import config as options, policy
from fairgrpo_jax.models import decoder, vision as towers
from fairgrpo_jax.models.inputs import Vision, pack, prompt_shapes
from fairgrpo_jax.plan import cost, footprint
from tests.tiny_models import golden, in_layout, one_batch, prompt_pass


KINDS = [  # of towers and of what their backward pass recomputes
    ("qwen2_5_vl", True),
    pytest.param("qwen2_5_vl", "selective", marks=pytest.mark.slow),
    *(pytest.param(name, True, marks=pytest.mark.slow) for name in ("qwen3_vl", "gemma3")),
]


def packed(family: str) -> Vision:
    """The media of the golden files in rows whose frames or images have at most 32 or 64 patches."""
    model, cases = golden(family)
    found: Any = one_batch(model.config, {name: inputs for name, (inputs, _) in cases.items()})[0].vision
    most = np.array([max(np.unique_counts(row[row >= 0]).counts, default=0) for row in found.frame])
    return jax.tree.map(lambda x: x[most < 96], found)


def in_parts(family: str, part: int) -> tuple[Any, Any]:
    """The tower's config, as it is and with parts of so many frames."""
    plain = golden(family)[0].config.vision
    frame = 64 if plain.image_size else 32
    return plain, dataclasses.replace(plain, frame=frame, part=part * frame)


def values_and_gradients(config: Any, params: Any, vision: Vision, remat: Any) -> Any:
    """Features and those for the text layers, 0 at padding, and the gradients of a weighted sum."""
    inside = (vision.frame[:, :: config.spatial_merge_size**2] >= 0)[..., None]

    def loss(params):
        found = [jnp.where(inside, x, 0) for x in jax.tree.leaves(towers.encode(params, config, vision, remat=remat))]
        weights = np.random.default_rng(0).normal(size=found[0].shape).astype(np.float32)
        return sum((x * weights).sum() for x in found), found

    (_, found), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return found, slopes


@pytest.mark.parametrize("family, remat", KINDS)
def test_parts_change_nothing(family, remat):
    """Windows, deepstack and learned positions, images of fixed size; frames that cross parts, padding."""
    params = {name: tree for name, tree in golden(family)[0].params.items() if name in ("vision", "projector")}
    vision = packed(family)
    plain, parted = in_parts(family, 1)
    count, size, beyond = parted.parts(vision.patches.shape[1])
    assert count > 1
    starts = vision.frame[:, size - 1 : -1 : size] == vision.frame[:, size::size]
    assert (starts & (vision.frame[:, size::size] >= 0)).any() == (beyond > 0)  # frames cross parts
    wanted, slopes = values_and_gradients(plain, params, vision, False)
    found, own = values_and_gradients(parted, params, vision, remat)
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(slopes))
    for mine, theirs in zip(jax.tree.leaves(own), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5 * largest)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_films_in_parts_equal_transformers(family):
    model, cases = golden(family)
    _, told = in_parts(family, 1)
    config = dataclasses.replace(model.config, vision=told)
    inputs, expected = cases["video"]
    prompt = pack(inputs, config)
    assert prompt.vision is not None and told.parts(prompt.vision.patches.shape[1])[0] > 2
    hidden, _ = prompt_pass(model.params, config, prompt)
    mask = inputs["attention_mask"].astype(bool)
    got = in_layout(decoder.head(model.params, config, hidden), mask)
    np.testing.assert_allclose(got, expected["logits"][mask], atol=2e-4)


def test_memory_follows_the_part():
    """64 frames of 64 patches: forward and backward pass of a tower of four blocks."""
    config = golden("qwen2_5_vl")[0].config
    plain = dataclasses.replace(config.vision, depth=4)
    config = dataclasses.replace(config, vision=plain)
    vision = prompt_shapes(config, prompts=1, length=8, num_patches=4096).vision
    params = jax.eval_shape(lambda key: towers.init(plain, key), jax.random.key(0))

    def held(tower):
        loss = lambda params, vision: (towers.encode(params, tower, vision, remat=True)[0] ** 2).sum()
        found: Any = jax.jit(jax.grad(loss)).lower(params, vision).compile().memory_analysis()
        return found.temp_size_in_bytes

    assert held(dataclasses.replace(plain, frame=64, part=512)) < held(plain) / 3


@pytest.mark.parametrize(
    ("patches", "part", "frame", "wanted"),
    [
        (4096, 4096, 192, (1, 4096, 0)),
        (4288, 4096, 192, (1, 4288, 0)),  # as much as a part sees
        (4292, 4096, 192, (2, 2148, 192)),
        (73728, 4096, 192, (18, 4096, 192)),
        (13 * 4, 24, 24, (3, 24, 24)),  # never smaller than a frame
    ],
)
def test_parts_are_even(patches, part, frame, wanted):
    plain = golden("qwen2_5_vl")[0].config.vision
    assert dataclasses.replace(plain, part=part, frame=frame).parts(patches) == wanted
    assert plain.parts(patches) == (1, patches, 0)


def test_a_frame_longer_than_the_tower_was_told_is_refused():
    model, cases = golden("qwen2_5_vl")
    told = dataclasses.replace(model.config.vision, frame=16, part=16)
    config = dataclasses.replace(model.config, vision=told)
    inputs = next(inputs for inputs, _ in cases.values() if "image_grid_thw" in inputs)
    with pytest.raises(ValueError, match=r"prompt \d has a frame or image of \d+ patches .* at most 16"):
        pack(inputs, config, num_patches=160)


def test_who_knows_the_frames():
    """Parts of at least eight frames, only where a prompt has several; images of fixed size are their own frames."""
    config = golden("qwen2_5_vl")[0].config
    with_parts = lambda patches, frame: policy.in_parts(config, patches, frame).vision
    assert with_parts(8192, 0) == config.vision == with_parts(4096, 64)
    assert (with_parts(8192, 62).part, with_parts(8192, 62).frame) == (4096, 64)
    assert with_parts(16384, 1024).part == 8192
    fixed = golden("gemma3")[0].config
    assert policy.in_parts(fixed, 8192, 0).vision.parts(8192) == (2, 4096, 0)
    assert policy.in_parts(golden("mistral")[0].config, 8192, 64).vision is None
    budget = options.Data(max_pixels=37632)
    fourteen = dataclasses.replace(config, vision=dataclasses.replace(config.vision, patch_size=14))
    assert policy.largest_frame(fourteen, budget) == 192 and policy.largest_frame(fourteen, options.Data()) == 0
    assert policy.largest_frame(golden("qwen3_vl")[0].config, budget) == 0  # the budget is that of a film


def test_the_plan_counts_parts():
    sizes = cost.Sizes(prompts=2, rollouts=2, prompt=8, completion=4, patches=8192)
    plain = golden("qwen2_5_vl")[0].config
    parted = policy.in_parts(plain, 8192, 64)
    assert parted.vision.rows(8192) == 2 * (4096 + 64)
    whole, own = (cost.update_flops(config, sizes, cost.Training()) for config in (plain, parted))
    useful = [cost.update_flops(config, sizes, cost.Training(), recomputed=False) for config in (plain, parted)]
    assert own.vision < whole.vision and own.decoder == whole.decoder and useful[1].vision < useful[0].vision
    layout = footprint.Layout(sizes=sizes, mesh=(1, 1), compute="float32", sampler="float32", cache="float32")
    tree = jax.eval_shape(lambda key: decoder.init(plain, key), jax.random.key(0))
    before, after = (footprint.update(config, tree, layout) for config in (plain, parted))
    ratio = (4096 + 64) / 8192
    tower = plain.vision.depth * plain.vision.hidden_size * 2 * 8192 * 4
    assert before["kept"] - after["kept"] == pytest.approx(tower * (1 - ratio))
    bare = dataclasses.replace(layout, compute="bfloat16")
    numbers = sum(x.size for x in jax.tree.leaves(tree["vision"]))
    both = [footprint.update(config, tree, bare)["kept"] for config in (plain, parted)]
    assert both[0] - both[1] == pytest.approx(tower / 2 * (1 - ratio) - 4 * numbers, abs=2)
