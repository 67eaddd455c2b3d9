"""FairGRPO against the authors' numbers, a restatement in NumPy, and its symmetries."""

import doctest
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairgrpo_jax import advantages, fairness, fairness_state


CASES = json.loads((Path(__file__).parent / "golden" / "advantages.json").read_text())["cases"]
NAN = float("nan")
D, GROUPS, G = 2, 3, 4


def batch(seed, prompts=10, binary=True, unlabelled=False):
    rng = np.random.default_rng(seed)
    rewards = rng.random((prompts, G))
    rewards = (rewards < rng.random((prompts, 1))).astype(np.float32) if binary else rewards.astype(np.float32)
    groups = rng.integers(-1 if unlabelled else 0, GROUPS, prompts)
    return rewards, rng.integers(0, D, prompts).astype(np.int32), groups.astype(np.int32)


def fresh(history=None, capacity=64):
    return fairness.init(D, GROUPS, G, history=history, capacity=capacity)


def restated(batches, clamp="code", max_weight=None):
    """The definition in plain NumPy on the concatenated batches; the advantages of the last one. Labelled only."""
    r, d, g = (np.concatenate(x) for x in zip(*batches, strict=True))
    size = len(batches[-1][0])
    weights = []
    for i in range(len(r) - size, len(r)):
        in_domain = d == d[i]
        in_group = in_domain & (g == g[i])
        t_d, t_g = (np.sqrt(m.sum()) * r[m].mean() for m in (in_domain, in_group))
        product = {
            "code": max(t_d, 1e-6) * t_g,
            "product": max(t_d * t_g, 1e-6),
            "factor": max(t_d, 1e-6) * max(t_g, 1e-6),
        }[clamp]
        weights.append(1 / product if product > 0 else 1)
    weights, r = np.array(weights), r[-size:]
    if max_weight is not None:
        median = np.median(weights[r.std(1) > 0])
        weights = np.clip(weights, median / max_weight, median * max_weight)
    scores = (r - r.mean(1, keepdims=True)) / (r.std(1, ddof=1, keepdims=True) + 1e-6) * weights[:, None]
    return scores / (scores.std(ddof=1) + 1e-6)


def run_case(case, history, clustering):
    domains = sorted({d for step in case["steps"] for d in step["domain"]})
    groups = sorted({g for step in case["steps"] for g in step["demo"]} - {"UNK"})
    state = fairness.init(len(domains), len(groups), 4, history=history, capacity=16)
    for step in case["steps"]:
        rewards = np.array(step["rewards"], np.float32)
        d = np.array([domains.index(x) for x in step["domain"]])
        if case["method"] == "fair_grpo":
            g = np.array([-1 if x == "UNK" else groups.index(x) for x in step["demo"]])
            got, state = fairness.fair_grpo(rewards, d, g, state, clustering=clustering)
        else:
            method = {"fair_grpo_nd": fairness.fair_grpo_nd, "drpo": fairness.drpo}[case["method"]]
            got, state = method(rewards, d, state, k_max=3, clustering=clustering)
        yield got, step["adv"]


def test_examples_in_docstrings():
    assert doctest.testmod(fairness).failed == 0
    assert doctest.testmod(fairness_state).failed == 0


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['name']}-{c['method']}")
def test_golden_with_scikit_learn(case):
    for got, wanted in run_case(case, "ring", "sklearn"):
        np.testing.assert_allclose(got, wanted, atol=2e-6)


@pytest.mark.parametrize("history", ["ring", "binary"])
@pytest.mark.parametrize("case", [c for c in CASES if c["method"] == "fair_grpo"], ids=lambda c: c["name"])
def test_golden_with_jax(case, history):
    """The other methods' cases cluster three equidistant vectors in two: any answer is as good."""
    for got, wanted in run_case(case, history, "jax"):
        np.testing.assert_allclose(got, wanted, atol=2e-6)


@pytest.mark.parametrize("clamp", ["code", "product", "factor"])
@pytest.mark.parametrize("max_weight", [None, 1.5])
@pytest.mark.parametrize("binary", [True, False])
def test_cumulative_is_the_concatenation(clamp, max_weight, binary):
    state, batches = fresh(), [batch(seed, binary=binary) for seed in range(3)]
    for i, one in enumerate(batches):
        got, state = fairness.fair_grpo(*one, state, clamp=clamp, max_weight=max_weight)
        np.testing.assert_allclose(got, restated(batches[: i + 1], clamp, max_weight), rtol=2e-4, atol=2e-5)
    r, d, _ = (np.concatenate(x) for x in zip(*batches, strict=True))
    np.testing.assert_array_equal(state.domain_count, np.bincount(d, minlength=D))
    np.testing.assert_allclose(state.domain_mean, [r[d == i].mean() for i in range(D)], rtol=1e-5)
    assert state.group_count.sum() == len(r)


def test_batch_statistics_ignore_the_past():
    _, state = fairness.fair_grpo(*batch(0), fresh())
    got, after = fairness.fair_grpo(*batch(1), state, statistics="batch")
    np.testing.assert_allclose(got, restated([batch(1)]), rtol=2e-4, atol=2e-5)
    assert after.domain_count.sum() == len(batch(1)[0])


def test_ema_by_hand():
    state = fairness.init(1, 1, 2, history=None)
    zero, one = np.zeros(1, np.int32), np.zeros(1, np.int32)
    means = []
    for rewards in ([[1.0, 1.0]], [[0.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]):
        _, state = fairness.fair_grpo(rewards, zero, one, state, statistics="ema", decay=0.6)
        means.append(float(state.domain_mean[0]))
    # paces 1, max(1/2, 0.4), max(1/3, 0.4), max(1/4, 0.4)
    np.testing.assert_allclose(means, [1, 0.5, 0.3, 0.18], rtol=1e-6)
    assert state.domain_count[0] == 4


def test_absent_groups_keep_their_statistics():
    _, state = fairness.fair_grpo([[1.0, 0.0]], [0], [1], fairness.init(2, 2, 2, history=None))
    _, after = fairness.fair_grpo([[1.0, 1.0]], [1], [0], state, statistics="ema", decay=0.1)
    assert after.domain_mean.tolist() == [0.5, 1.0] and after.group_mean[0, 1] == 0.5


@pytest.mark.parametrize("method", ["fair_grpo", "fair_grpo_nd", "drpo"])
def test_rows_sum_to_zero_and_the_batch_has_deviation_one(method):
    rewards, d, g = batch(4, unlabelled=True)
    args = (rewards, d, g) if method == "fair_grpo" else (rewards, d)
    got, _ = getattr(fairness, method)(*args, fresh("binary"))
    got = np.asarray(got)
    np.testing.assert_allclose(got.sum(1), 0, atol=1e-5)
    np.testing.assert_allclose(got.std(ddof=1), 1, rtol=1e-4)
    assert np.array_equal(np.sign(got), np.sign(np.round(np.asarray(advantages.grpo(rewards)), 6)))
    assert np.abs(got).max() <= advantages.ceiling(*rewards.shape) * (1 + 1e-5)


def test_one_domain_and_one_group_is_grpo_over_its_deviation():
    rewards, d, g = batch(0)
    got, _ = fairness.fair_grpo(rewards, 0 * d, 0 * g, fresh())
    scores = np.asarray(advantages.grpo(rewards))
    np.testing.assert_allclose(got, scores / scores.std(ddof=1), rtol=1e-4)


def test_permuting_prompts_and_rollouts_permutes():
    rewards, d, g = batch(0)
    rows, columns = np.random.default_rng(0).permutation(len(d)), [2, 0, 3, 1]
    base, _ = fairness.fair_grpo(rewards, d, g, fresh())
    got, _ = fairness.fair_grpo(rewards[rows][:, columns], d[rows], g[rows], fresh())
    np.testing.assert_allclose(got, np.asarray(base)[rows][:, columns], rtol=1e-4)


def test_names_of_domains_and_groups_do_not_matter():
    rewards, d, g = batch(0)
    base, _ = fairness.fair_grpo(rewards, d, g, fresh())
    got, _ = fairness.fair_grpo(rewards, 1 - d, np.array([2, 0, 1])[g], fresh())
    np.testing.assert_allclose(got, base, rtol=1e-4)


def test_scale_of_rewards_cancels_but_their_shift_does_not():
    rewards, d, g = batch(0, binary=False)
    base, _ = fairness.fair_grpo(rewards, d, g, fresh())
    scaled, _ = fairness.fair_grpo(3 * rewards, d, g, fresh())
    shifted, _ = fairness.fair_grpo(rewards + 0.5, d, g, fresh())
    np.testing.assert_allclose(scaled, base, rtol=1e-4)
    assert np.abs(np.asarray(shifted) - np.asarray(base)).max() > 0.05


@pytest.mark.parametrize("value", [0.0, 1.0, 0.35])
def test_equal_rewards_give_zero(value):
    got, state = fairness.fair_grpo(np.full((4, G), value), [0, 0, 1, 1], [0, 1, 2, 2], fresh())
    assert np.all(np.asarray(got) == 0) and state.domain_count.tolist() == [2, 2]


def test_rarer_and_harder_groups_weigh_more():
    easy, hard = [1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]
    weights, _, _ = fairness.temperatures([easy] * 4 + [hard] * 2, [0] * 6, [0, 0, 0, 1, 2, 2], fresh())
    # groups: 0 is 3 easy, 1 is 1 easy, 2 is 2 hard
    np.testing.assert_allclose(weights[3] / weights[0], np.sqrt(3), rtol=1e-5)
    np.testing.assert_allclose(weights[4] / weights[0], np.sqrt(3 / 2) * 3, rtol=1e-5)


def test_max_weight_bounds_the_weights_of_active_prompts():
    rewards, d, g = batch(7, prompts=40)
    free, _, _ = fairness.temperatures(rewards, d, g, fresh())
    held, _, _ = fairness.temperatures(rewards, d, g, fresh(), max_weight=1.5)
    active = rewards.std(1) > 0
    median = np.median(np.asarray(free)[active])
    assert np.asarray(free)[active].max() > 1.5 * median
    np.testing.assert_allclose(held, np.clip(free, median / 1.5, median * 1.5), rtol=1e-5)
    assert advantages.effective_sample_size(held[active]) > advantages.effective_sample_size(free[active])


def test_nan_is_excluded():
    rewards, d, g = batch(3, prompts=6, binary=False)
    rewards[0, 1], rewards[2] = NAN, NAN
    got, state = fairness.fair_grpo(rewards, d, g, fresh())
    got = np.asarray(got)
    assert np.all(np.isfinite(got)) and got[0, 1] == 0 and np.all(got[2] == 0)
    assert state.domain_count.sum() == 5
    for domain in range(D):
        rows = [i for i in range(6) if d[i] == domain and i != 2]
        np.testing.assert_allclose(
            state.domain_mean[domain], np.mean([np.nanmean(rewards[i]) for i in rows]), rtol=1e-5
        )
    np.testing.assert_allclose(got[~np.isnan(rewards)].std(ddof=1), 1, rtol=1e-4)


def test_nan_vector_is_not_kept_but_joins_the_nearest_cluster():
    low, high = [0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]
    rewards = [low, low, high, high, [NAN, 1.0, 1.0, 0.0]]
    weights, labels, state = fairness.temperatures(rewards, [0] * 5, [-1] * 5, fresh("ring"))
    assert state.cursor[0] == 4 and state.group_count[0, -1] == 5
    assert labels[4] == labels[2] != labels[0] and weights[4] == weights[2]


def test_labels_name_groups_and_clusters():
    low, high = [0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]
    for history in ("ring", "binary"):
        _, labels, state = fairness.temperatures([low, high, low, high], [0, 0, 0, 0], [-1, -1, -1, 1], fresh(history))
        labels = labels.tolist()
        assert labels[3] == 1 and labels[0] == labels[2] != labels[1] and min(labels[:3]) >= GROUPS
        assert state.history is not None and state.history.sum() == (
            3 if history == "binary" else 1 + 3 + 1
        )  # the labelled one is not kept


def test_clusters_give_count_and_mean():
    low, high = [0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]
    rewards = [low, low, low, high]
    weights, _, _ = fairness.temperatures(rewards, [0] * 4, [-1] * 4, fresh("ring"))
    t_d = np.sqrt(4) * 6 / 16
    np.testing.assert_allclose(weights, 1 / (t_d * np.array([np.sqrt(3) / 4] * 3 + [0.75])), rtol=1e-5)
    inverse, _, _ = fairness.temperatures(rewards, [0] * 4, [-1] * 4, fresh("ring"), domain_mean="inverse_size")
    t_inverse = np.sqrt(4) * (0.25 / 3 + 0.75 / 1) / (1 / 3 + 1)
    np.testing.assert_allclose(inverse, np.asarray(weights) * t_d / t_inverse, rtol=1e-5)


def test_without_history_the_unlabelled_are_one_group():
    rewards, d, g = batch(5, unlabelled=True)
    got, _ = fairness.fair_grpo(rewards, d, g, fresh(None))
    np.testing.assert_allclose(got, restated([(rewards, d, g)]), rtol=2e-4, atol=2e-5)


def test_table_and_ring_agree():
    """Vectors near two opposite corners: the clusters are unambiguous whatever the starts."""
    rng = np.random.default_rng(0)
    rewards = np.array([[0, 0, 0, 1], [0, 1, 1, 1]], np.float32)[rng.integers(0, 2, 20)]
    d, g = rng.integers(0, D, 20), np.where(rng.random(20) < 0.7, -1, 0)
    ring, table = fresh("ring"), fresh("binary")
    for half in (slice(0, 10), slice(10, 20)):
        a, ring = fairness.fair_grpo(rewards[half], d[half], g[half], ring)
        b, table = fairness.fair_grpo(rewards[half], d[half], g[half], table)
        np.testing.assert_allclose(a, b, rtol=1e-4)
    assert table.history is not None and table.history.sum() == ring.cursor.sum() == np.sum(g < 0)


def test_ring_forgets_the_oldest_and_counts_all():
    state = fairness.init(1, 0, 2, history="ring", capacity=3)
    for i in range(5):
        _, _, state = fairness.temperatures([[float(i), 0.0], [float(i), 9.0]], [0, 0], [-1, -1], state)
    assert state.history is not None
    kept = {tuple(v) for v in np.asarray(state.history[0]).tolist()}
    assert kept == {(3.0, 9.0), (4.0, 0.0), (4.0, 9.0)} and state.cursor[0] == 10


def test_overflowed_ring_scales_its_clusters_to_all_seen():
    state = fairness.init(1, 0, 2, history="ring", capacity=4)
    same = [[1.0, 0.0]] * 4
    for _ in range(3):
        weights, _, state = fairness.temperatures(same, [0] * 4, [-1] * 4, state)
    np.testing.assert_allclose(weights, 1 / (np.sqrt(12) * 0.5) ** 2, rtol=1e-5)


@pytest.mark.parametrize("history", ["ring", "binary"])
def test_one_trace_serves_every_make_up(history):
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(lambda *a: fairness.fair_grpo(*a, max_weight=4.0), 1))
    state, eager = fresh(history), fresh(history)
    for seed in range(3):
        one = batch(seed, unlabelled=seed > 0)
        got, state = step(*map(jnp.asarray, one), state)
        wanted, eager = fairness.fair_grpo(*one, eager, max_weight=4.0)
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_close(state, eager, rtol=1e-5)


def test_no_host_callback_in_the_compiled_step():
    text = jax.jit(fairness.fair_grpo).lower(*map(jnp.asarray, batch(0)), fresh("ring")).as_text()
    assert "callback" not in text and "stablehlo.case" in text


def test_means_do_not_freeze():
    """A float32 sum of 2^25 prompts would ignore the next one; the mean still moves."""
    state = fairness.init(1, 1, 2, history=None)
    state = fairness.FairnessState(**{**vars(state), "domain_count": jnp.array([2**25], jnp.int32)})
    for _ in range(50):
        _, state = fairness.fair_grpo(np.ones((64, 2)), [0] * 64, [0] * 64, state)
    assert state.domain_count[0] == 2**25 + 3200
    np.testing.assert_allclose(state.domain_mean[0], 3200 / (2**25 + 3200), rtol=1e-4)


def test_gradients_are_finite():
    rewards, d, g = batch(0, binary=False)
    rewards[0] = 0.5
    gradient = jax.grad(lambda r: jnp.sum(fairness.fair_grpo(r, d, g, fresh())[0] ** 3))(jnp.asarray(rewards))
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rewards": [[-0.5, 1.0]]}, "rewards from -0.5"),
        ({"rewards": [[np.inf, 1.0]]}, "finite"),
        ({"domains": [2]}, "domains from 2 to 2"),
        ({"domains": [-1]}, "domains from -1"),
        ({"groups": [3]}, "wanted 0 .. 2"),
        ({"groups": [-2]}, "groups from -2"),
        ({"groups": [0, 0]}, "wanted \\(P, G\\)"),
        ({"groups": [0.0]}, "wanted integers"),
        ({"rewards": [[1.0, 0.0, 1.0]]}, "num_rollouts=3"),
        ({"rewards": [[0.5, 1.0]]}, "other than 0 and 1"),
        ({"statistics": "mean"}, "statistics='mean'"),
        ({"clamp": "none"}, "clamp='none'"),
        ({"clustering": "torch"}, "clustering='torch'"),
        ({"decay": 1.0}, "decay=1.0"),
        ({"max_weight": 0.5}, "max_weight=0.5"),
        ({"epsilon": 0.0}, "epsilon=0.0"),
    ],
)
def test_bad_input_is_refused(change, message):
    good = {"rewards": [[1.0, 0.0]], "domains": [0], "groups": [0], "state": fairness.init(2, 3, 2, history="binary")}
    with pytest.raises(ValueError, match=message):
        fairness.fair_grpo(**{**good, **change})


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="0 domains"):
        fairness.init(0, 1, 4)
    with pytest.raises(ValueError, match="20 rollouts"):
        fairness.init(1, 1, 20, history="binary")
    with pytest.raises(ValueError, match="history='list'"):
        fairness.init(1, 1, 4, history="list")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="capacity >= prompts"):
        fairness.fair_grpo([[1.0, 0.0]] * 3, [0] * 3, [0] * 3, fairness.init(1, 1, 2, capacity=2))
