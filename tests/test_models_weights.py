"""Weights in and out: both spellings of the names, exact round trips, and one error that names every fault."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from fairgrpo_jax.models import qwen2_5_vl, weights


@functools.cache
def published(seed):
    with np.load(pathlib.Path(__file__).parent / "golden" / f"qwen2_5_vl_{seed}.npz") as file:
        config = qwen2_5_vl.Config.from_hugging_face(json.loads(str(file["config"])))
        return config, {name.removeprefix("weights/"): file[name] for name in file.files if name.startswith("weights/")}


@pytest.mark.parametrize("seed", [0, 1])
def test_out_and_in_again_is_exact(seed):
    config, tensors = published(seed)
    out = weights.to_hugging_face(weights.from_hugging_face(tensors, config), config)
    assert out.keys() == tensors.keys() and ("lm_head.weight" in out) == (seed == 1)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(out[name], tensor, err_msg=name)


def test_the_tree_is_that_of_init():
    config, tensors = published(1)
    params = weights.from_hugging_face(tensors, config)
    fresh = jax.eval_shape(lambda: qwen2_5_vl.init(config, jax.random.key(0)))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, fresh)


def test_names_held_in_memory_and_a_repeated_tied_head_are_read():
    config, tensors = published(0)
    renamed = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    for name, tensor in tensors.items():
        name = f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1)
        renamed[name] = tensor
    got, expected = (weights.from_hugging_face(these, config) for these in (renamed, tensors))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_one_error_names_every_fault():
    config, tensors = published(0)
    broken = dict(tensors)
    del broken["model.norm.weight"]
    broken["model.layers.7.mlp.up_proj.weight"] = np.zeros((2, 2))
    broken["visual.merger.ln_q.weight"] = np.zeros(5)
    broken["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    with pytest.raises(ValueError, match="4 faults") as error:
        weights.from_hugging_face(broken, config)
    for fault in (
        "missing model.norm.weight (32,)",
        "unexpected model.layers.7.mlp.up_proj.weight (2, 2)",
        "visual.merger.ln_q.weight is (5,), wanted (32,)",
        "unexpected lm_head.weight (96, 32)",
    ):
        assert fault in str(error.value)
