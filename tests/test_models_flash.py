"""Masks of the decoder and the tower as calls of a flash kernel, against the masks themselves.

The kernel is written out in JAX and gives NaN wherever a kernel promises nothing.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fairgrpo_jax.models import decoder, text
from fairgrpo_jax.models.attention import Masks, attend
from fairgrpo_jax.models.inputs import Prompt
from tests.flash_kernel import written_out


P, G, T, TC, N, K, H = 3, 2, 20, 11, 6, 2, 8  # three query heads for every key head
cases = settings(derandomize=True)
lengths = st.lists(st.integers(1, T), min_size=P, max_size=P)


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def both(args, masks, weight):
    """Value and gradients by pieces, and by the whole mask."""
    found = []
    for way in (written_out, functools.partial(attend, implementation="plain")):
        out, back = jax.vjp(functools.partial(lambda way, *args: way(*args, masks), way), *args)
        found.append((jnp.where(weight == 0, 0, out), back(weight)))
    return found


def assert_equal(found):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *found)


# ---- the decoder's ---------------------------------------------------------------------------------------------------


def prompts(lengths, runs=None):
    """Ragged prompts; ``runs`` are the images of each, as numbers of tokens before and in them."""
    sizes = np.array(lengths)
    valid = np.arange(T) < sizes[:, None]
    order = (np.cumsum(valid, axis=1) - 1).astype(np.int32)
    block = np.zeros((P, T), np.int32)
    for row, images in enumerate(runs or ()):
        at = 0
        for number, (before, size) in enumerate(images):
            block[row, at + before : at + before + size] = number + 1
            at += before + size
        block[row, lengths[row] :] = 0
    blank = np.zeros((P, T), np.int32)
    return Prompt(
        blank,
        valid,
        order,
        np.zeros((P, T, 3), np.int32),
        sizes.astype(np.int32),
        blank - 1,
        None if runs is None else block,
    )


def layers_of(window):
    options = dict(num_layers=2, local=(True, False), window=window, local_rope_theta=100.0) if window else {}
    return text.tiny("qwen3", vocab_size=96, hidden_size=32, **options)


@functools.partial(jax.jit, static_argnums=0)
def prompt_pass(window, prompt, local):
    masks = decoder._choose(decoder._prompt_views(layers_of(window), prompt), local).masks
    weight = draw(4, P, 1, T, N * H) * prompt.valid[:, None, :, None]
    way = lambda q, *own_kv: (q, None, own_kv)
    return both(way(draw(1, P, 1, T, N, H), draw(2, P, 1, T, K, H), draw(3, P, 1, T, K, H)), masks, weight)


@functools.partial(jax.jit, static_argnums=0)
def completion_pass(window, prompt, local):
    config, steps = layers_of(window), jnp.arange(TC)
    held = dict.fromkeys(config.local_layers, steps)
    masks = decoder._choose(decoder._completion_views(config, prompt, steps, held), local).masks
    shared, own = ([draw(seed, *lead, K, H) for seed in (2, 3)] for lead in ((P, T), (P, G, TC)))
    return both((draw(1, P, G, TC, N, H), tuple(shared), tuple(own)), masks, draw(4, P, G, TC, N * H))


images = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), max_size=4)


@cases
@given(lengths, st.lists(images, min_size=P, max_size=P), st.sampled_from([0, 5]), st.booleans())
def test_prompts_with_images_in_global_and_local_layers(lengths, runs, window, local):
    """Images that touch, are cut off by the end of their prompt, or fill it; windows that end inside one."""
    assert_equal(prompt_pass(window, prompts(lengths, runs), local))


@cases
@given(lengths, st.sampled_from([1, 5, 14, 25]), st.booleans())
def test_completions_in_global_and_local_layers(lengths, window, local):
    """Windows that end in the completion, in the prompt, and at its beginning."""
    assert_equal(completion_pass(window, prompts(lengths), local))


def test_a_window_of_one_token_sees_nothing_of_the_prompt():
    assert_equal(completion_pass(1, prompts([1, 20, 7]), True))


def test_a_window_of_all_layers():
    """Known before the program runs."""
    config, prompt = layers_of(5), prompts([20, 3, 9])
    views = decoder._completion_views(config, prompt, jnp.arange(TC), {True: jnp.arange(TC)})
    args = draw(1, P, G, TC, N, H), (draw(2, P, T, K, H),) * 2, (draw(3, P, G, TC, K, H),) * 2
    assert_equal(both(args, views[True].masks, draw(4, P, G, TC, N * H)))


# ---- the tower's -----------------------------------------------------------------------------------------------------


@jax.jit
def segments(ids):
    masks = Masks(segments=(ids, ids))
    weight = draw(4, P, 1, ids.shape[1], N * H) * (ids >= 0)[:, None, :, None]
    own = draw(2, P, 1, ids.shape[1], K, H), draw(3, P, 1, ids.shape[1], K, H)
    return both((draw(1, P, 1, ids.shape[1], N, H), None, own), masks, weight)


frames = st.lists(st.sampled_from([1, 2, 3, 4, 10, 11, 25, 40]), max_size=12)


@cases
@given(st.lists(frames, min_size=P, max_size=P))
def test_frames_of_many_sizes_and_padding(sizes):
    """Of 40 patches, read in slices of 40, 10 or 3; rows may be all padding."""
    ids = np.full((P, 40), -1, np.int32)
    for row, own in zip(ids, sizes, strict=True):
        found = np.repeat(np.arange(len(own)), own)[:40]
        row[: len(found)] = found
    assert_equal(segments(ids))


@pytest.mark.slow  # frames with a mask are above
def test_all_patches_see_each_other_without_a_mask():
    """The images of a tower with one size of image."""
    args = draw(1, P, 1, T, N, H), None, (draw(2, P, 1, T, K, H), draw(3, P, 1, T, K, H))
    assert_equal(both(args, Masks(), draw(4, P, 1, T, N * H)))


@pytest.mark.parametrize("kind", ["frames", "images", "prompts", "completions"])
def test_no_program_for_cuda_holds_the_scores(kind):
    """Forward and backward, of rows of 2,048 and a window of 512."""
    T, window = 2048, 512
    shape = lambda *sizes: jax.ShapeDtypeStruct((1, *sizes, H), jnp.bfloat16)
    q, own, shared = shape(1, T, 2), shape(1, T, 1), shape(T, 1)
    ids = jnp.arange(T)[None] // 300
    known = Masks(lengths=jnp.array([T]), window=(jnp.array(True), window))
    masks = {
        "frames": Masks(segments=(ids, ids)),
        "images": Masks(),
        "prompts": known._replace(block=ids),
        "completions": known,
    }[kind]

    def loss(q, shared, own):
        return attend(q, shared, (own, own), masks, implementation="cudnn").sum(dtype=jnp.float32)

    args = q, (shared, shared) if kind == "completions" else None, own
    program = jax.jit(jax.grad(loss, argnums=(0, 2))).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    sizes = [np.prod([int(n) for n in shape.split("x")[:-1]]) for shape in re.findall(r"tensor<((?:\d+x)+)", program)]
    assert "fmhaSoftmaxBackward" in program and max(sizes) < T * T / 4


@pytest.mark.parametrize("sizes", [(1, 1), (300, 100)])
def test_the_tpu_kernel_takes_frames_and_heads_of_any_size(sizes):
    ids = np.full((1, 500), -1, np.int32)
    ids[0, : sum(sizes)] = np.repeat([0, 1], sizes)
    args = draw(1, 1, 1, 500, 2, H), None, (draw(2, 1, 1, 500, 2, H), draw(3, 1, 1, 500, 2, H))
    everywhere = draw(4, 1, 1, 500, 2 * H)
    inside, ids = everywhere * (ids >= 0)[:, None, :, None], jnp.asarray(ids)
    for masks, weight in ((Masks(segments=(ids, ids)), inside), (Masks(), everywhere)):
        found = []
        for name in ("splash", "plain"):
            way = functools.partial(attend, masks=masks, implementation=name)
            out, back = jax.vjp(functools.partial(lambda way, *args: way(*args), way), *args)
            found.append((jnp.where(weight == 0, 0, out), back(weight)))
        assert_equal(found)
