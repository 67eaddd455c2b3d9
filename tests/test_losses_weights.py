"""Aggregation, importance weights and masks of rollouts, by hand and against plain NumPy."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from fairgrpo_jax import losses


RNG = np.random.default_rng(0)
P, G, T = 2, 3, 5
MASK = np.arange(T) < np.array([[5, 2, 0], [1, 3, 4]])[..., None]
VALUES = RNG.normal(size=(P, G, T)).astype(np.float32)
SAMPLER = np.log(RNG.uniform(0.2, 0.9, (P, G, T))).astype(np.float32)
OLD = (SAMPLER + RNG.normal(0, 0.7, (P, G, T))).astype(np.float32)
SETTINGS = settings(derandomize=True)
CHOICES: Any = [(level, mode) for level in ("token", "sequence") for mode in ("truncate", "mask")]


def weigh(old, sampler, mask, cap, level, mode):
    """The definition in float64: weights and metrics."""
    d = np.where(mask, np.float64(old) - np.float64(sampler), 0)
    whole = d if level == "token" else np.repeat(d.sum(-1, keepdims=True), d.shape[-1], axis=-1)
    raw = np.where(mask, np.exp(np.clip(whole, -20, 20)), 0)
    weights = np.minimum(raw, cap) if mode == "truncate" else raw * (raw <= cap)
    d, inside = d[mask], np.clip(d[mask], -20, 20)
    return weights, {
        "weight_mean": weights[mask].mean(),
        "weight_max": raw.max(),
        "weight_capped": (raw[mask] > cap).mean(),
        "mismatch": np.abs(d).mean(),
        "mismatch_kl": np.mean(np.exp(inside) - 1 - inside),
    }


class Weights(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    @parameterized.parameters(*CHOICES)
    def test_by_numpy(self, level, mode):
        function = self.variant(lambda *a: losses.importance_weights(*a, cap=1.5, level=level, mode=mode))
        got = function(OLD, SAMPLER, MASK)
        wanted = weigh(OLD, SAMPLER, MASK, 1.5, level, mode)
        chex.assert_trees_all_close(jax.tree.map(np.asarray, got), wanted, rtol=1e-5)
        assert 0 < wanted[1]["weight_capped"] < 1


@SETTINGS
@given(
    arrays(np.float32, (P, G, T), elements=st.floats(-60, 0, width=32)),
    arrays(np.float32, (P, G, T), elements=st.floats(-60, 0, width=32)),
    st.sampled_from([1.0, 2.0, 3.0]),
    st.sampled_from(CHOICES),
)
def test_weights_of_any_values(old, sampler, cap, choice):
    with jax.enable_x64(True):
        args = np.float64(old), np.float64(sampler), MASK
        got = losses.importance_weights(*args, cap=cap, level=choice[0], mode=choice[1])
        got = jax.tree.map(np.asarray, got)
    chex.assert_trees_all_close(got, weigh(*args, cap, *choice), rtol=1e-9)
    assert np.all(got[0] <= cap) and np.all(got[0][~MASK] == 0)


@pytest.mark.parametrize(
    "level, mode, wanted",
    [
        ("token", "truncate", [[1.0, 3.0, 0.5, 0.0], [2.0, 0.25, 0.0, 0.0]]),
        ("token", "mask", [[1.0, 0.0, 0.5, 0.0], [2.0, 0.25, 0.0, 0.0]]),
        ("sequence", "truncate", [[2.0, 2.0, 2.0, 0.0], [0.5, 0.5, 0.0, 0.0]]),
        ("sequence", "mask", [[2.0, 2.0, 2.0, 0.0], [0.5, 0.5, 0.0, 0.0]]),
    ],
)
def test_weights_by_hand(level, mode, wanted):
    """Ratios 1, 4, 1/2 and 2, 1/4 with cap 3; whole rollouts 2 and 1/2."""
    old = np.log([[0.5, 0.8, 0.2, 0.5], [0.6, 0.1, 0.5, 0.5]])
    sampler = np.log([[0.5, 0.2, 0.4, 0.1], [0.3, 0.4, 0.1, 0.1]])
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    weights, metrics = losses.importance_weights(old, sampler, mask, cap=3.0, level=level, mode=mode)
    np.testing.assert_allclose(weights, wanted, rtol=1e-5)
    assert float(metrics["weight_max"]) == pytest.approx(4.0 if level == "token" else 2.0, rel=1e-5)
    assert float(metrics["weight_capped"]) == pytest.approx(0.2 if level == "token" else 0.0)
    assert float(metrics["weight_mean"]) == pytest.approx(np.sum(wanted) / 5, rel=1e-5)
    assert float(metrics["mismatch"]) == pytest.approx(6 * np.log(2) / 5, rel=1e-5)
    assert float(metrics["mismatch_kl"]) == pytest.approx((7.75 - 5) / 5, rel=1e-5)  # the ratios' product is 1


def test_the_same_program_gives_weight_one():
    for level, mode in CHOICES:
        weights, metrics = losses.importance_weights(OLD, OLD, MASK, cap=1.0, level=level, mode=mode)
        np.testing.assert_array_equal(weights, MASK)
        assert metrics["weight_mean"] == 1 and metrics["mismatch"] == metrics["mismatch_kl"] == 0


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_garbage_and_gradients_do_not_pass(level):
    old, sampler = np.where(MASK, OLD, np.nan), np.where(MASK, SAMPLER, np.inf)
    dirty = losses.importance_weights(old, sampler, MASK, level=level)
    chex.assert_trees_all_equal(dirty, losses.importance_weights(OLD, SAMPLER, MASK, level=level))
    function = lambda o, s: jnp.sum(losses.importance_weights(o, s, MASK, level=level)[0])
    assert all(np.all(np.asarray(g) == 0) for g in jax.grad(function, (0, 1))(OLD, SAMPLER))
    missing = np.where(np.arange(T) == 0, np.nan, SAMPLER)
    assert np.isnan(losses.importance_weights(OLD, missing, MASK, level=level)[0]).any()  # shows, not hidden
    _, metrics = losses.importance_weights(OLD, SAMPLER, 0 * MASK, level=level)
    assert all(value == 0 for value in metrics.values())


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_weights_of_rows_are_independent(level):
    """Micro-batches and vmap: rows, then means weighed by tokens, give the whole."""
    whole, metrics = losses.importance_weights(OLD, SAMPLER, MASK, level=level)
    rows, parts = jax.vmap(lambda *a: losses.importance_weights(*a, level=level))(OLD, SAMPLER, MASK)
    np.testing.assert_allclose(rows, whole, rtol=1e-6)
    tokens = MASK.sum((1, 2))
    for name in set(metrics) - {"weight_max"}:
        np.testing.assert_allclose(np.average(parts[name], weights=tokens), metrics[name], rtol=1e-5)
    assert parts["weight_max"].max() == metrics["weight_max"]


def test_aggregate_by_hand():
    values = np.array([[1.0, 2.0, 4.0], [8.0, np.nan, np.inf], [np.nan] * 3])
    mask = np.array([[1, 0, 1], [1, 0, 0], [0] * 3])
    cases: Any = (
        ({"aggregation": "token"}, 13 / 3),
        ({"aggregation": "sequence"}, (2.5 + 8) / 2),
        ({"aggregation": "constant", "max_length": 10}, 13 / 20),
        ({"aggregation": "token", "normalizer": 26.0}, 0.5),
        ({"aggregation": "sequence", "normalizer": 5}, 2.1),
    )
    for options, wanted in cases:
        assert float(losses.aggregate(values, mask, **options)) == pytest.approx(wanted)


@SETTINGS
@given(
    arrays(np.float32, (P, G, T), elements=st.floats(-100, 100, width=32)),
    arrays(np.bool_, (P, G, T)),
    st.sampled_from(["token", "sequence", "constant"]),
)
def test_aggregate_by_numpy_and_in_parts(values, mask, aggregation):
    length = {"max_length": 7} if aggregation == "constant" else {}
    counted = mask.any(-1).sum()
    wanted = {
        "token": np.sum(values * mask) / max(mask.sum(), 1),
        "sequence": np.sum(np.sum(values * mask, -1) / np.maximum(mask.sum(-1), 1)) / max(counted, 1),
        "constant": np.sum(values * mask) / max(counted, 1) / 7,
    }[aggregation]
    np.testing.assert_allclose(losses.aggregate(values, mask, aggregation=aggregation, **length), wanted, atol=1e-4)
    total = sum(losses.denominator(mask[p], aggregation) for p in range(P))
    options = {"aggregation": aggregation, "normalizer": total, **length}
    parts = [losses.aggregate(values[p], mask[p], **options) for p in range(P)]
    np.testing.assert_allclose(sum(parts), wanted, atol=1e-4)


def test_aggregate_gradient_is_the_share_of_each_token():
    gradient = jax.grad(lambda v: losses.aggregate(v, MASK, aggregation="sequence"))(jnp.asarray(VALUES))
    np.testing.assert_allclose(gradient, MASK / np.maximum(MASK.sum(-1, keepdims=True), 1) / 5, rtol=1e-6)


def test_kl_term_adds_up_over_micro_batches():
    def loss(p, total):
        options = {"aggregation": "token", "normalizer": total}
        value, _ = losses.policy_loss(OLD[p], SAMPLER[p], np.ones(SAMPLER[p].shape[:-1]), MASK[p], **options)
        return value + 0.04 * losses.aggregate(losses.kl(OLD[p], SAMPLER[p], mask=MASK[p]), MASK[p], **options)

    whole = loss(slice(None), None)
    np.testing.assert_allclose(loss(0, MASK.sum()) + loss(1, MASK.sum()), whole, rtol=1e-5)


def test_mask_truncated():
    finished = np.array([[1, 0, 1], [1, 1, 0]])
    got = losses.mask_truncated(MASK.astype(np.int32), finished)
    assert got.dtype == bool
    np.testing.assert_array_equal(got, MASK * finished[..., None])
    np.testing.assert_array_equal(jax.jit(jax.vmap(losses.mask_truncated))(MASK, finished), got)
    assert losses.denominator(got) == 5 + 1 + 3 and losses.denominator(got, "sequence") == 3


def test_overlong_penalty():
    lengths = np.array([[0, 80, 81], [90, 100, 101]])
    got = losses.overlong_penalty(lengths, max_length=100, buffer=20)
    np.testing.assert_allclose(got, [[0, 0, -0.05], [-0.5, -1, -1]], rtol=1e-6)
    assert got.dtype == jnp.float32
    whole = losses.overlong_penalty(lengths, max_length=90, buffer=90)
    np.testing.assert_allclose(whole, [[0, -80 / 90, -0.9], [-1, -1, -1]], rtol=1e-6)
    jitted = jax.jit(lambda x: losses.overlong_penalty(x, max_length=100, buffer=20))
    np.testing.assert_allclose(jax.vmap(jitted)(lengths), got, rtol=1e-6)


@pytest.mark.parametrize(
    "function, arguments, options, message",
    [
        (losses.importance_weights, (OLD, SAMPLER[:1], MASK), {}, "sampler_logprobs"),
        (losses.importance_weights, (OLD, SAMPLER, MASK[:1]), {}, "sampler_logprobs"),
        (losses.importance_weights, (OLD, SAMPLER, MASK), {"cap": 0.5}, "cap=0.5"),
        (losses.importance_weights, (OLD, SAMPLER, MASK), {"level": "batch"}, "level='batch'"),
        (losses.importance_weights, (OLD, SAMPLER, MASK), {"mode": "clip"}, "mode='clip'"),
        (losses.aggregate, (VALUES, MASK[:1]), {}, "got values"),
        (losses.aggregate, (VALUES, MASK), {"aggregation": "mean", "normalizer": 1.0}, "aggregation='mean'"),
        (losses.aggregate, (VALUES, MASK), {"max_length": 5}, "max_length=5"),
        (losses.denominator, (MASK, "mean"), {}, "aggregation='mean'"),
        (losses.mask_truncated, (MASK, np.ones(P)), {}, "finished"),
        (losses.overlong_penalty, ([1],), {"max_length": 10, "buffer": 0}, "buffer=0"),
        (losses.overlong_penalty, ([1],), {"max_length": 10, "buffer": 11}, "buffer=11"),
    ],
)
def test_bad_arguments_are_refused(function, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments, **options)
