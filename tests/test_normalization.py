"""Logistic normalisation and its percentiles against NumPy, the formula by hand, and what they must not do."""

import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given, settings, strategies as st

from fairgrpo_jax import advantages, normalization as norm


NAN = float("nan")
KEYS = [("CoPESD", "STG", "iou"), ("EgoSurgery", "STG", "iou"), ("NurViD", "TAG", "iou")]
finite = st.floats(-50, 50, width=32)
SETTINGS = settings(derandomize=True)


def by_formula(reward, p25, p50, p75, k=3.0, min_iqr=0.01):
    return 1 / (1 + math.exp(-k * (reward - p50) / max(p75 - p25, min_iqr)))


def test_logistic_golden():
    """Numbers computed from the published formula, quartiles .4, .5, .6 and k = 3."""
    rewards = [0, 0.25, 0.4, 0.5, 0.6, 0.75, 1]
    wanted = [0.0006, 0.0230, 0.1824, 0.5, 0.8176, 0.9770, 0.9994]
    np.testing.assert_allclose(norm.logistic(rewards, 0.4, 0.5, 0.6), wanted, atol=6e-5)
    assert norm.logistic(np.arange(3), 0, 1, 2).dtype == jnp.float32


@SETTINGS
@given(st.lists(finite, min_size=3, max_size=3), st.lists(finite, min_size=4, max_size=4), st.floats(0.1, 10))
def test_logistic_by_formula(percentiles, rewards, k):
    percentiles = sorted(percentiles)
    with jax.enable_x64(True):
        got = norm.logistic(np.array(rewards), *percentiles, k=k, min_iqr=0.5)
    assert got.dtype == jnp.float64
    z = [-k * (r - percentiles[1]) / max(percentiles[2] - percentiles[0], 0.5) for r in rewards]
    np.testing.assert_allclose(got, [1 / (1 + math.exp(min(x, 700))) for x in z], rtol=1e-9, atol=1e-300)
    assert np.all((np.asarray(got) >= 0) & (np.asarray(got) <= 1))


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    @parameterized.parameters(1.0, 3.0)
    def test_percentiles_of_each_prompt(self, k):
        rewards = np.array([[0.1, NAN, 0.3], [0.5, 0.9, 0.7]], np.float32)
        p25, p50, p75 = (np.array([[x], [y]], np.float32) for x, y in ((0.1, 0.6), (0.15, 0.7), (0.2, 0.7)))
        got = self.variant(lambda *a: norm.logistic(*a, k=k))(rewards, p25, p50, p75)
        wanted = [
            [by_formula(r, *(float(p[i, 0]) for p in (p25, p50, p75)), k=k) for r in row]
            for i, row in enumerate(rewards)
        ]
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
        assert np.isnan(got[0, 1])

    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_quantiles(self):
        state = norm.observe(norm.init_quantiles(2, capacity=4), [3.0, 1.0, 2.0, 9.0], [0, 0, 0, 0])
        got = self.variant(norm.quantiles)(state)
        np.testing.assert_allclose(got, [[1.75, 0.25], [2.5, 0.5], [4.5, 0.75]], rtol=1e-6)


def test_logistic_gradients_numerically():
    with jax.enable_x64(True):
        args = (np.array([[0.1, 0.4], [0.9, 0.5]]), np.array([[0.2], [0.3]]), np.array([[0.4], [0.4]]))
        p75 = np.array([[0.5], [0.6]])
        chex.assert_numerical_grads(lambda *a: norm.logistic(*a, min_iqr=1e-3), (*args, p75), order=2)


def test_logistic_gradients_at_the_edges():
    """Unscored rewards, a range below the floor and rewards far out leave every gradient finite."""
    rewards, low, median, high = (
        np.array([NAN, 0.5, 1e30, -1e30]),
        np.full(4, 0.5),
        np.full(4, 0.5),
        np.full(4, 0.505),
    )
    gradients = jax.grad(lambda *a: jnp.nansum(norm.logistic(*a)), (0, 1, 2, 3))(
        *(jnp.asarray(x, jnp.float32) for x in (rewards, low, median, high))
    )
    by_reward, by_low, by_median, by_high = map(np.asarray, gradients)
    np.testing.assert_allclose(by_reward, [0, 75, 0, 0])  # k / (4 min_iqr)
    np.testing.assert_allclose(by_median, [0, -75, 0, 0])
    np.testing.assert_array_equal(by_low, 0)
    np.testing.assert_array_equal(by_high, 0)


def test_far_above_rewards_tie_as_documented():
    values = np.asarray(norm.logistic(np.array([5, 6, 600], np.float32), -0.5, 0.0, 0.5))
    assert values[0] < 1 and values[1] == values[2] == 1


def test_affine_rescaling_cancels_in_the_z_score_but_not_in_the_centred_reward():
    """What the docstring warns of: two datasets on scales 1 and 0.1 in the linear middle of the function."""
    rng = np.random.default_rng(0)
    easy = 0.5 + 0.02 * rng.normal(size=(1, 8))
    rewards = np.concatenate([easy, 0.1 * easy]).astype(np.float32)
    p25, p50, p75 = (np.array([[q], [0.1 * q]]) for q in (0.4, 0.5, 0.6))
    scores = norm.logistic(rewards, p25, p50, p75)
    np.testing.assert_allclose(advantages.grpo(scores), advantages.grpo(rewards), atol=0.05)
    raw_easy, raw_hard = np.abs(advantages.dr_grpo(rewards)).mean(1)
    easy, hard = np.abs(advantages.dr_grpo(scores)).mean(1)
    np.testing.assert_allclose(raw_easy / raw_hard, 10, rtol=1e-3)
    np.testing.assert_allclose(easy / hard, 1, rtol=1e-3)


@pytest.mark.parametrize(
    "rewards, percentiles, options, message",
    [
        ([0.5], (0.4, 0.5, 0.6), {"k": 0.0}, "k=0.0"),
        ([0.5], (0.4, 0.5, 0.6), {"k": NAN}, "k=nan"),
        ([0.5], (0.4, 0.5, 0.6), {"min_iqr": 0.0}, "min_iqr=0.0"),
        ([0.5], (0.5, 0.4, 0.6), {}, "p25 <= p50 <= p75"),
        ([0.5], (0.4, 0.6, 0.5), {}, "p25 <= p50 <= p75"),
        ([0.5], (0.4, NAN, 0.6), {}, "p25 <= p50 <= p75"),
        ([[0.5, 0.5]], ([0.4, 0.4], 0.5, 0.6), {}, "as many dimensions"),
        ([[0.5, 0.5]], ([[0.4]] * 3, 0.5, 0.6), {}, "[Ii]ncompatible"),
    ],
)
def test_logistic_refuses(rewards, percentiles, options, message):
    with pytest.raises(ValueError, match=message):
        norm.logistic(np.array(rewards), *map(np.array, percentiles), **options)


def table():
    rng = np.random.default_rng(0)
    scores = {key: rng.random((5, 7)) ** (i + 1) for i, key in enumerate(KEYS)}
    scores[KEYS[1]][2] = NAN
    return scores, norm.PercentileTable.fit(scores)


def test_table_holds_numpy_percentiles():
    scores, fitted = table()
    for key in KEYS:
        wanted = np.nanpercentile(scores[key], [25, 50, 75])
        np.testing.assert_allclose(fitted.stats[key][:3], wanted, rtol=1e-12)
    assert [fitted.stats[key][3] for key in KEYS] == [35, 28, 35]


def test_table_lookup():
    _, fitted = table()
    got = fitted.lookup([KEYS[2], KEYS[0], KEYS[2]])
    for i, column in enumerate(got):
        assert column.dtype == np.float32
        np.testing.assert_allclose(column, [fitted.stats[KEYS[j]][i] for j in (2, 0, 2)], rtol=1e-6)
    new = ("new", "TAG", "iou")
    with pytest.raises(ValueError, match=r"'a', 'b', 'c'.*'new', 'TAG'") as refused:
        fitted.lookup([new, KEYS[0], ("a", "b", "c"), new])
    assert str(refused.value).count("new") == 1 and "CoPESD" not in str(refused.value)
    got = fitted.lookup([new, KEYS[0]], fallback=(0.1, 0.2, 0.3))
    np.testing.assert_allclose([column[0] for column in got], [0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose([column[1] for column in got], fitted.stats[KEYS[0]][:3], rtol=1e-6)
    assert [column.shape for column in fitted.lookup([])] == [(0,)] * 3


def test_table_round_trip_is_exact():
    _, fitted = table()
    text = fitted.to_json()
    assert norm.PercentileTable.from_json(text) == fitted and norm.PercentileTable.from_json(text).to_json() == text
    content = json.loads(text)
    assert content["version"] == 1 and list(content["stats"]["CoPESD|STG|iou"]) == ["p25", "p50", "p75", "n"]
    assert content["stats"]["CoPESD|STG|iou"]["n"] == 35


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "nonsense",
        '{"version": 2, "stats": {}}',
        '{"version": 1, "stats": {"a|b|c": {"p25": 0.1}}}',
        '{"version": 1, "stats": {"a|b": {"p25": 0.1, "p50": 0.2, "p75": 0.3, "n": 4}}}',
        '{"version": 1, "stats": {"a|b|c": {"p25": 0.3, "p50": 0.2, "p75": 0.3, "n": 4}}}',
        '{"version": 1, "stats": {"a|b|c": {"p25": 0.1, "p50": 0.2, "p75": 0.3, "n": 0}}}',
    ],
)
def test_table_refuses_other_files(text):
    with pytest.raises(ValueError):
        norm.PercentileTable.from_json(text)


@pytest.mark.parametrize(
    "key, values, message",
    [
        (("a", "b|c", "d"), [0.5], r"b\|c"),
        (("a", "b"), [0.5], "dataset, task, component"),
        ("abc", [0.5], "dataset, task, component"),
        (("a", "b", "c"), [], "got 0 scores for .'a'"),
        (("a", "b", "c"), [NAN], "got 0 scores for .'a'"),
        (("a", "b", "c"), [0.5, np.inf], "1 infinite"),
    ],
)
def test_table_refuses_to_fit(key, values, message):
    with pytest.raises(ValueError, match=message):
        norm.PercentileTable.fit({key: values})


K, CAPACITY, N = 3, 5, 12
batches = st.lists(
    st.tuples(
        st.lists(finite | st.just(NAN), min_size=N, max_size=N),
        st.lists(st.integers(0, K - 1), min_size=N, max_size=N),
    ),
    min_size=1,
    max_size=4,
)


@SETTINGS
@given(batches)
def test_window_is_the_last_scores_of_each_key(steps):
    """Against lists in plain Python, with more scores of a key in a batch than its window holds."""
    state, seen = norm.init_quantiles(K, capacity=CAPACITY), [[] for _ in range(K)]
    for rewards, keys in steps:
        state = norm.observe(state, np.array(rewards, np.float32), np.array(keys))
        for reward, key in zip(rewards, keys, strict=True):
            if not math.isnan(reward):
                seen[key].append(np.float32(reward))
    for row, last in zip(np.asarray(state.window), [kept[-CAPACITY:] for kept in seen], strict=True):
        assert sorted(row[~np.isnan(row)]) == sorted(last)
    got = np.stack(norm.quantiles(state), axis=1)
    for row, kept in zip(got, seen, strict=True):
        wanted = np.nanpercentile(kept[-CAPACITY:], [25, 50, 75]) if kept else [0.25, 0.5, 0.75]
        np.testing.assert_allclose(row, wanted, rtol=1e-5, atol=1e-5)


def test_ring_overwrites_the_oldest():
    state = norm.init_quantiles(1, capacity=3)
    for value in range(5):
        state = norm.observe(state, [float(value)], [0])
    assert state.window.tolist() == [[3.0, 4.0, 2.0]] and state.cursor.tolist() == [2]


def test_prior_until_there_are_enough_scores():
    prior = (np.array([0.1, 0.2]), np.array([0.3, 0.4]), np.array([0.5, 0.6]))
    state = norm.observe(norm.init_quantiles(2, capacity=4), [1.0, 2.0, NAN, 3.0, 4.0], [0, 0, 1, 1, 0])
    got = np.stack(norm.quantiles(state, prior=prior, min_count=3))
    np.testing.assert_allclose(got, [[1.5, 0.2], [2.0, 0.4], [3.0, 0.6]], rtol=1e-6)
    few = np.stack(norm.quantiles(state, prior=prior, min_count=4))
    np.testing.assert_allclose(few, prior, rtol=1e-6)
    np.testing.assert_allclose(np.stack(norm.quantiles(state, min_count=4))[:, 1], 3.0)  # no prior: what there is
    assert np.all(np.isfinite(norm.logistic(np.ones((2, 1)), *(q[:, None] for q in norm.quantiles(state)))))


def test_ids_out_of_range_are_dropped_under_jit():
    state = norm.init_quantiles(2, capacity=3)
    after = jax.jit(norm.observe)(state, np.ones(4, np.float32), np.array([-1, 2, 1, 7]))
    assert after.cursor.tolist() == [0, 1] and np.nansum(after.window) == 1
    with pytest.raises(ValueError, match="got keys from -1 to 1"):
        norm.observe(state, [1.0, 1.0], np.array([-1, 1]))
    with pytest.raises(ValueError, match="got keys from 0 to 2"):
        norm.observe(state, [1.0, 1.0], np.array([0, 2]))


def test_one_trace_for_all_steps_and_resume():
    rng = np.random.default_rng(0)
    steps = [(rng.random(6).astype(np.float32), rng.integers(0, 2, 6)) for _ in range(4)]
    once = jax.jit(chex.assert_max_traces(norm.observe, n=1))
    state = resumed = norm.init_quantiles(2, capacity=8)
    for rewards, keys in steps:
        state = once(state, rewards, keys)
        leaves, tree = jax.tree.flatten(resumed)
        resumed = once(jax.tree.unflatten(tree, [np.array(leaf) for leaf in leaves]), rewards, keys)
    chex.assert_trees_all_equal(state, resumed)


def test_vmap_is_a_loop():
    rng = np.random.default_rng(0)
    rewards, keys = rng.random((3, 6)).astype(np.float32), rng.integers(0, 2, (3, 6))
    states = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (3, *x.shape)), norm.init_quantiles(2, capacity=4))
    got = jax.vmap(lambda *a: jnp.stack(norm.quantiles(norm.observe(*a))))(states, rewards, keys)
    wanted = [
        norm.quantiles(norm.observe(norm.init_quantiles(2, capacity=4), *one))
        for one in zip(rewards, keys, strict=True)
    ]
    np.testing.assert_allclose(got, np.array(wanted), rtol=1e-6)


def test_keys_of_eight_bits_among_more_keys_than_they_hold():
    state = norm.observe(norm.init_quantiles(300, capacity=2), jnp.arange(3.0), np.array([0, 100, 0], np.int8))
    np.testing.assert_array_equal(state.window[np.array([0, 100])], [[0.0, 2.0], [1.0, np.nan]])


def test_window_refuses():
    state = norm.init_quantiles(2, capacity=40)
    for bad in ([[1.0]], [[0]]), ([1.0], [0, 1]), ([1.0], [0.0]):
        with pytest.raises(ValueError, match="wanted"):
            norm.observe(state, *map(np.array, bad))
    with pytest.raises(ValueError, match="1 infinite"):
        norm.observe(state, [np.inf, 1.0], [0, 1])
    with pytest.raises(ValueError, match="capacity 0"):
        norm.init_quantiles(2, capacity=0)
    prior = [np.ones(2)] * 3
    for given_prior, min_count, message in (
        (prior, 0, "min_count=0"),
        (prior, 41, "min_count=41"),
        ([np.ones(3)] * 3, 32, "prior of shapes"),
        (prior[:2], 32, "prior of shapes"),
    ):
        with pytest.raises(ValueError, match=message):
            norm.quantiles(state, prior=given_prior, min_count=min_count)
