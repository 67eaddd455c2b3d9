"""Attention inside windows, against the whole scores under a mask."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairgrpo_jax.models import attention, windows


LENGTH = 8


@pytest.fixture(scope="module")
def arrays():
    """Three rows of 61 patches: windows of 1 to 8 patches, and padding at the end of two rows."""
    rng = np.random.default_rng(0)
    window = np.full((3, 61), -1, np.int32)
    for row, total in zip(window, (61, 40, 9), strict=True):
        sizes = rng.integers(1, LENGTH + 1, 61)
        row[:total] = np.repeat(np.arange(61), sizes)[:total]
    q, k, v = rng.normal(size=(3, 3, 61, 2, 4)).astype(np.float32)
    assert (np.unique_counts(window[0]).counts.max(), len(np.unique(window[0]))) == (LENGTH, 15)
    return q, k, v, window


def masked(q: Any, k: Any, v: Any, window: Any) -> Any:
    """The whole scores, of which those of other windows are masked."""
    masks = attention.Masks(window[:, :, None] == window[:, None, :])
    return attention.attend(q[:, None], None, (k[:, None], v[:, None]), masks, implementation="plain")[:, 0]


@pytest.mark.parametrize(
    "scores", [pytest.param(windows.SCORES, marks=pytest.mark.slow), 3 * 4 * 3 * 2 * 3 * LENGTH**2, 1]
)
def test_values_and_gradients_are_those_of_the_mask(monkeypatch, arrays, scores):
    """All blocks at once, three of them, or one."""
    monkeypatch.setattr(windows, "SCORES", scores)
    *qkv, window = arrays
    inside = (window >= 0)[..., None]
    weights = np.random.default_rng(1).normal(size=(3, 61, 8))

    def loss(function):
        return lambda *qkv: (jnp.where(inside, function(*qkv), 0) * weights).sum()

    of = jax.value_and_grad(
        loss(lambda q, k, v: windows.attend(q, k, v, jnp.asarray(window), LENGTH)), argnums=(0, 1, 2)
    )
    wanted = jax.value_and_grad(loss(lambda q, k, v: masked(q, k, v, jnp.asarray(window))), argnums=(0, 1, 2))
    got, expected = jax.jit(of)(*qkv), jax.jit(wanted)(*qkv)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    for mine, theirs in zip(got[1], expected[1], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    out = windows.attend(qkv[0], qkv[1], qkv[2], jnp.asarray(window), LENGTH)
    assert np.isfinite(out).all()  # at padding as well


def largest(function, *given):
    """Numbers in the largest array of a program."""

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (out.aval.size for out in equation.outvars if hasattr(out.aval, "size"))
            for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")):
                if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                    yield from sizes(getattr(inner, "jaxpr", inner))

    return max(sizes(jax.make_jaxpr(function)(*given).jaxpr))


def test_nothing_is_as_large_as_all_pairs():
    """10,752 patches in windows of 64: neither scores nor mask, forward or backward."""
    q = jnp.zeros((1, 10752, 2, 4))
    window = jnp.zeros((1, 10752), jnp.int32)
    step = jax.grad(lambda q: windows.attend(q, q, q, window, 64).sum())
    assert 1 < largest(step, q) < 10752**2 / 25
    assert largest(lambda q: masked(q, q, q, window), q) >= 10752**2


def test_segments_are_a_mask_that_is_never_whole(monkeypatch, arrays):
    *qkv, window = arrays
    masks = attention.Masks(segments=(jnp.asarray(window), jnp.asarray(window)))
    parts = [jnp.asarray(x[:, None]) for x in qkv]
    whole = masked(qkv[0], qkv[1], qkv[2], jnp.asarray(window))
    for name in ("plain", "mapped"):
        monkeypatch.setattr(attention, "LARGE", 4 * 3 * 61 * 2 * 61 // 5)
        monkeypatch.setattr(attention, "LEAST_QUERIES", 8)
        got = attention.attend(parts[0], None, (parts[1], parts[2]), masks, implementation=name)[:, 0]
        np.testing.assert_allclose(got, whole, atol=1e-6)
    step = lambda q: attention.attend(q, None, (parts[1], parts[2]), masks, implementation="mapped")
    assert largest(step, parts[0]) < 3 * 61 * 61 * 2
