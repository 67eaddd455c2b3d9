"""Tiny random models of the golden files, and batches of prompts of every kind that they read.

A row is its tokens and its media, in order; a medium is its kind, its grid and its pixels.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairgrpo_jax import models
from fairgrpo_jax.models import decoder, layers
from fairgrpo_jax.models.attention import stored
from fairgrpo_jax.models.checkpoints import names
from fairgrpo_jax.models.inputs import pack


GOLDEN = pathlib.Path(__file__).parent / "golden"
FILES = [(path.stem[:-2], int(path.stem[-1])) for path in sorted(GOLDEN.glob("*_[0-9].npz"))]
# One model of each family, two with tied and two with separate heads, for tests that take a while.
ONE_EACH = [
    pytest.param(family, seed, marks=[pytest.mark.slow] * (seed != int(family in ("qwen2_vl", "qwen3_vl"))))
    for family, seed in FILES
]
VOCABULARY = 96

prompt_pass = jax.jit(decoder.prompt_pass, static_argnums=1, static_argnames="remat")
completion_pass = jax.jit(decoder.completion_pass, static_argnums=1, static_argnames="remat")
decode_step = jax.jit(decoder.decode_step, static_argnums=1)
fresh = jax.jit(decoder.init, static_argnums=0)  # one program, kept on disk, instead of one an operation


def noisy(config, scale, seed=0):
    """Parameters of NumPy's noise, around 1 where they are the scale of a norm; nothing is compiled for them."""
    leaves, tree = jax.tree.flatten_with_path(jax.eval_shape(lambda: decoder.init(config, jax.random.key(0))))
    rng, params = np.random.default_rng(seed), []
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        scales = name.endswith("weight") and (name.startswith("vision") or not config.offset_norm)
        params.append((scales + scale * rng.normal(size=leaf.shape)).astype(np.float32))
    return jax.device_put(jax.tree.unflatten(tree, params))


def published(family, seed):
    """The config of a golden file as published, its weights under their published names, and its cases."""
    with np.load(GOLDEN / f"{family}_{seed}.npz") as file:
        arrays = dict(file)
    part = lambda prefix: {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
    names = dict.fromkeys(name.split("/")[0] for name in arrays if "/inputs/" in name)
    cases = {name: (part(f"{name}/inputs/"), part(f"{name}/expected/")) for name in names}
    return json.loads(str(arrays["config"])), part("weights/"), cases


@functools.cache
def golden(family, seed=0):
    """The model of a golden file, and its cases as {case: (inputs, expected)}."""
    config, tensors, cases = published(family, seed)
    config = models.read_config(config)
    params = jax.tree.map(jnp.asarray, names.from_hugging_face(tensors, config))
    return models.VLM(config, params), cases


def in_layout(values, mask):
    """Right-padded (P, T, ...) in the columns where ``mask`` is true; returns only those rows."""
    return np.concatenate([row[: own.sum()] for row, own in zip(np.asarray(values), mask, strict=True)])


def one_batch(config, cases):
    """The inputs of all cases, packed into one batch, and the rows of each case in it."""
    length = max(inputs["input_ids"].shape[1] for inputs in cases.values())
    visions = [pack(inputs, config).vision for inputs in cases.values()]
    num_patches = max(0 if vision is None else vision.patches.shape[1] for vision in visions)
    prompts = [pack(inputs, config, length=length, num_patches=num_patches) for inputs in cases.values()]
    ends = np.cumsum([len(prompt.tokens) for prompt in prompts])
    rows = {name: slice(end - len(part.tokens), end) for name, part, end in zip(cases, prompts, ends, strict=True)}
    return jax.tree.map(lambda *parts: np.concatenate(parts), *prompts), rows


def greedy(params, config, prompt, hidden, kv, steps):
    """The likeliest tokens (P, steps) after prompts, one by one."""
    params, kv = decoder.by_layer(params), layers.unstack(jax.vmap(stored)(*kv))
    caches = decoder.init_caches(config, len(prompt.tokens), 1, steps)
    hidden, tokens = decoder.last_hidden(prompt, hidden)[:, None], []
    for t in range(steps):
        tokens.append(decoder.head(params, config, hidden).argmax(-1))
        hidden, caches = decode_step(params, config, prompt, kv, caches, tokens[-1], np.int32(t))
    return np.concatenate(tokens, axis=1)


def assert_greedy(got, expected, sure):
    """Equal ids, up to the first step of a row whose two best logits are nearer than ``sure``."""
    certain = np.cumprod(expected["margin"] > sure, axis=1).astype(bool)
    np.testing.assert_array_equal(got[certain], expected["greedy"][certain])


def words(rng, count):
    return rng.integers(7, VOCABULARY, count).tolist()


def medium(rng, config, kind, grid):
    size = config.vision.image_size
    shape = (1, 3, size, size) if size else (int(np.prod(grid)), config.vision.patch_dim)
    return kind, grid, rng.normal(size=shape).astype(np.float32)


def tokens_of(config, kind, grid):
    """The placeholders of a medium between their start and end tokens."""
    if config.vision.image_size:
        grid = (1, *[config.vision.image_size // config.vision.patch_size] * 2)
    if config.vision.frames_apart and kind == "video":
        return [token for t in range(grid[0]) for token in [20 + t, *tokens_of(config, "frame", (1, *grid[1:]))]]
    token = config.image_id if kind == "image" else config.video_id
    return [
        config.vision_start_id,
        *[token] * (int(np.prod(grid)) // config.vision.spatial_merge_size**2),
        config.vision_end_id,
    ]


def rows_of_all_kinds(config):
    """Four ragged prompts: two images of different size, none, an image, a video after an image."""
    rng = np.random.default_rng(7)
    if config.vision is None:
        return [(words(rng, count), []) for count in (12, 6, 3, 9)]
    wide, small = medium(rng, config, "image", (1, 6, 10)), medium(rng, config, "image", (1, 4, 2))
    film = medium(rng, config, "video" if config.video_id else "image", (3, 4, 4))
    tokens = lambda one: tokens_of(config, *one[:2])
    return [
        (words(rng, 2) + tokens(wide) + tokens(small) + words(rng, 3), [wide, small]),
        (words(rng, 6), []),
        (words(rng, 1) + tokens(small) + words(rng, 4), [small]),
        (tokens(small) + tokens(film) + words(rng, 5), [small, film]),
    ]


def assemble(rows, config, side="right"):
    """Rows as the inputs of a Hugging Face processor."""
    size = max(len(tokens) for tokens, _ in rows)
    ids, mask = np.zeros((len(rows), size), np.int64), np.zeros((len(rows), size), np.int64)
    for row, (tokens, _) in enumerate(rows):
        own = slice(size - len(tokens), None) if side == "left" else slice(len(tokens))
        ids[row, own], mask[row, own] = tokens, 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        media = [one for _, media in rows for one in media if one[0] == kind]
        if media:
            inputs[pixels] = np.concatenate([values for _, _, values in media])
        if media and not config.vision.image_size:
            inputs[f"{kind}_grid_thw"] = np.array([grid for _, grid, _ in media])
    return inputs
