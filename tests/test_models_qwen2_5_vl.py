"""Qwen2.5-VL against golden files made by transformers in torch, and against itself laid out in other ways."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fairgrpo_jax import models
from fairgrpo_jax.models import VLM, qwen2_5_vl, weights
from fairgrpo_jax.models.inputs import pack


GOLDEN = pathlib.Path(__file__).parent / "golden"
CASES = ("text", "images", "video", "video_only")

prompt_pass = jax.jit(qwen2_5_vl.prompt_pass, static_argnums=1, static_argnames="remat")
completion_pass = jax.jit(qwen2_5_vl.completion_pass, static_argnums=1, static_argnames="remat")
decode_step = jax.jit(qwen2_5_vl.decode_step, static_argnums=1)


@functools.cache
def golden(seed):
    """The model of a golden file, and its cases as {case: (inputs, expected)}."""
    with np.load(GOLDEN / f"qwen2_5_vl_{seed}.npz") as file:
        arrays = dict(file)
    config = qwen2_5_vl.Config.from_hugging_face(json.loads(str(arrays["config"])))
    part = lambda prefix: {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
    vlm = VLM(config, jax.tree.map(jnp.asarray, weights.from_hugging_face(part("weights/"), config)))
    return vlm, {case: (part(f"{case}/inputs/"), part(f"{case}/expected/")) for case in CASES}


def in_layout(values, mask):
    """Right-padded (P, T, ...) in the columns where ``mask`` is true; returns only those rows."""
    return np.concatenate([row[: own.sum()] for row, own in zip(np.asarray(values), mask)])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_logits_equal_transformers(seed, case):
    vlm, cases = golden(seed)
    inputs, expected = cases[case]
    mask = inputs["attention_mask"].astype(bool)
    logits = vlm.logits(inputs)
    assert logits.shape == expected["logits"].shape
    np.testing.assert_allclose(logits[mask], expected["logits"][mask], atol=2e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_rotary_positions_equal_transformers(seed, case):
    vlm, cases = golden(seed)
    inputs, expected = cases[case]
    mask = inputs["attention_mask"].astype(bool)
    prompt = pack(inputs, vlm.config)
    np.testing.assert_array_equal(in_layout(prompt.rope, mask), expected["rope"][mask])
    np.testing.assert_array_equal(prompt.rope.max(axis=(1, 2)) + 1, expected["next"])


@pytest.mark.parametrize("case", ["text", "images", "video_only"])
@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_decoding_equals_transformers_up_to_near_ties(seed, case):
    vlm, cases = golden(seed)
    inputs, expected = cases[case]
    prompt = pack(inputs, vlm.config)
    hidden, kv = prompt_pass(vlm.params, vlm.config, prompt)
    params, kv = qwen2_5_vl.unstack(vlm.params, kv)
    steps = expected["greedy"].shape[1]
    caches = qwen2_5_vl.init_caches(vlm.config, len(prompt.tokens), 1, steps)
    hidden, tokens = qwen2_5_vl.last_hidden(prompt, hidden)[:, None], []
    for t in range(steps):
        tokens.append(qwen2_5_vl.head(params, vlm.config, hidden).argmax(-1))
        hidden, caches = decode_step(params, vlm.config, prompt, kv, caches, tokens[-1], t)
    sure = np.cumprod(expected["margin"] > 2e-2, axis=1).astype(bool)
    assert sure.mean() > 0.5
    np.testing.assert_array_equal(np.concatenate(tokens, axis=1)[sure], expected["greedy"][sure])
