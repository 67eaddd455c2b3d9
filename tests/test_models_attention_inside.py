"""Attention inside decoder and tower: which masks the passes promise, and that its implementation changes nothing."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairgrpo_jax.models import attention, decoder, gemma3, qwen2_5_vl, text, vision
from fairgrpo_jax.models.attention import Masks, attend
from fairgrpo_jax.models.inputs import Prompt, pack
from tests.tiny_models import assemble, fresh, rows_of_all_kinds


P = 3
LENGTHS = np.array([15, 2, 9])  # ragged prompts


def prompts(config, block=None, length=12):
    """Three ragged prompts of text."""
    order = np.minimum(np.arange(length), LENGTHS[:, None] - 1).clip(max=length - 1)
    valid = np.arange(length) < LENGTHS[:, None]
    tokens = np.where(valid, np.random.default_rng(0).integers(7, config.vocab_size, (P, length)), config.pad_id)
    rope = np.repeat((order * valid)[..., None], 3, axis=-1)
    return Prompt(tokens, valid, order, rope, valid.sum(1), np.full((P, length), -1), block)


LOCAL = dict(num_layers=2, local=(True, False), local_rope_theta=100.0)


@pytest.mark.parametrize(
    "options, block, in_prompts, in_completions",
    [
        ({}, False, False, False),
        (LOCAL | dict(window=17), False, False, False),  # 12 and 5 tokens: no window ends inside
        (LOCAL | dict(window=16), False, False, True),
        (LOCAL | dict(window=12), False, False, True),
        (LOCAL | dict(window=11), True, True, True),
        ({}, True, False, False),
    ],
)
def test_views_have_a_window_only_where_it_ends_inside(options, block, in_prompts, in_completions):
    """What the structure means is tested in test_models_flash.py."""
    config = text.tiny("qwen3", vocab_size=96, hidden_size=32, **options)
    prompt = prompts(config, np.ones((P, 12), np.int32) if block else None)
    held = dict.fromkeys(config.local_layers, jnp.arange(5))
    views = decoder._prompt_views(config, prompt), decoder._completion_views(config, prompt, jnp.arange(5), held)
    for kinds, ends in zip(views, (in_prompts, in_completions), strict=True):
        assert {local: view.masks.window is not None for local, view in kinds.items()} == {
            local: local and ends for local in kinds
        }
        for view in kinds.values():
            np.testing.assert_array_equal(view.masks.lengths, [12, 2, 9])
            assert (view.masks.block is not None) == (block and kinds is views[0])  # completions see images as text
    decoding = decoder._completion_views(config, prompt, jnp.arange(1), held)
    assert all(view.masks.lengths is None for view in decoding.values())


def assert_near(got, expected):
    """To 1e-5 of the largest number of every array."""
    tolerance = jax.tree.map(lambda x: 1e-5 * (1 + np.abs(x).max()), expected)
    jax.tree.map(lambda a, b, atol: np.testing.assert_allclose(a, b, atol=atol), got, expected, tolerance)


@functools.cache
def passes(name):
    """Hidden states of prompts and completions, and the gradient of every parameter, with layers recomputed."""
    config = text.tiny("qwen3", vocab_size=96, hidden_size=32, head_dim=64, num_layers=2)
    params, prompt, asked = fresh(config, jax.random.key(0)), prompts(config), []
    tokens = jnp.asarray(np.random.default_rng(1).integers(7, 90, (P, 2, 6)))
    weight = np.random.default_rng(2).normal(size=(P, 12, 32)).astype(np.float32) * prompt.valid[..., None]

    def run(params):
        hidden, kv = decoder.prompt_pass(params, config, prompt, remat=True)
        rest = decoder.completion_pass(params, config, prompt, kv, tokens, remat=True)
        return (hidden * weight).sum() + (rest * weight[:, None, :6]).sum(), (hidden * prompt.valid[..., None], rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "choose", lambda *args: asked.append(args) or name)
        result = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    assert {args[1] is None for args in asked} == {True, False}  # prompts and completions
    return result


@pytest.mark.parametrize("name", ["mapped", pytest.param("splash", marks=pytest.mark.slow)])
def test_the_passes_of_a_decoder_are_the_same_however_attention_is_computed(name):
    assert_near(passes(name), passes("plain"))


@pytest.mark.parametrize("family", [qwen2_5_vl, pytest.param(gemma3, marks=pytest.mark.slow)])
def test_a_tower_in_blocks_of_patches_has_the_same_features_and_gradients(family, monkeypatch):
    """Windows, whole frames and padding in one family, images of one size in the other."""
    monkeypatch.setattr(attention, "LARGE", 1)
    monkeypatch.setattr(attention, "LEAST_QUERIES", 8)
    config = family.tiny()
    params = fresh(config, jax.random.key(0))
    patches: Any = pack(assemble(rows_of_all_kinds(config), config), config).vision

    def run(params):
        features, _ = vision.encode(params, config.vision, patches, remat=True)
        return (features * jnp.cos(jnp.arange(features.size)).reshape(features.shape)).sum(), features

    got = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    monkeypatch.setattr(attention, "choose", lambda *args: "plain")
    expected = jax.jit(jax.value_and_grad(lambda params: run(params), has_aux=True))(params)
    assert_near(got, expected)


def test_a_long_row_of_patches_never_holds_the_scores_of_all_heads(monkeypatch):
    """1024 patches and 4 heads, whose scores are 16 MiB, in blocks of 1 MiB."""
    published: Any = jax.ShapeDtypeStruct((1, 1, 4096, 16, 80), jnp.bfloat16)
    assert attention.choose(published, None, (published, published), Masks()) == "mapped"
    monkeypatch.setattr(attention, "LARGE", 2**20)
    monkeypatch.setattr(attention, "LEAST_QUERIES", 64)
    q = jax.ShapeDtypeStruct((1, 1, 1024, 4, 64), jnp.float32)
    frames = jnp.asarray(np.arange(1024) // 400)
    masks = Masks(frames[None, :, None] == frames[None, None, :])

    def temporary(name):
        loss = lambda q, k, v: attend(q, None, (k, v), masks, implementation=name).sum()
        compiled: Any = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, q, q).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(None) < 16 * 2**20 < temporary("plain")
