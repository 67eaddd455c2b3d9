"""The state of FairGRPO: its statistics, its history and clusters, Group DRO, and that it survives."""

import dataclasses

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fairgrpo_jax import advantages, fairness


NAN = float("nan")
D, GROUPS, G = 2, 3, 4


def batch(seed, prompts=10, binary=True):
    rng = np.random.default_rng(seed)
    rewards = rng.random((prompts, G))
    rewards = (rewards < rng.random((prompts, 1))) if binary else rewards
    return rewards.astype(np.float32), rng.integers(0, D, prompts), rng.integers(-1, GROUPS, prompts)


def fresh(history=None, capacity=64):
    return fairness.init(D, GROUPS, G, history=history, capacity=capacity)


@pytest.mark.parametrize("history", ["ring", "binary"])
def test_two_steps_are_one_of_both_batches(history):
    (r1, d1, g1), (r2, d2, g2) = batch(0), batch(1)
    r1[3, 1] = NAN
    _, _, state = fairness.temperatures(r1, d1, g1, fresh(history))
    weights, _, state = fairness.temperatures(r2, d2, g2, state)
    r, d, g = (np.concatenate(x) for x in ((r1, r2), (d1, d2), (g1, g2)))
    wanted, _, once = fairness.temperatures(r, d, g, fresh(history))
    chex.assert_trees_all_close(state, once, rtol=1e-6)
    np.testing.assert_allclose(weights, wanted[10:], rtol=1e-5)
    assert state.domain_count.sum() == 20 and state.group_count.sum() == 20


def test_batch_statistics_ignore_the_past():
    _, past = fairness.group_dro(*batch(0), fresh("ring"))
    weights, _, state = fairness.temperatures(*batch(1), past, statistics="batch")
    wanted, _, alone = fairness.temperatures(*batch(1), fresh("ring"))
    np.testing.assert_array_equal(weights, wanted)
    assert np.array_equal(state.group_mean, alone.group_mean) and np.array_equal(state.cursor, alone.cursor)
    np.testing.assert_array_equal(state.dro_log_weight, past.dro_log_weight)  # not a statistic


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


def test_means_do_not_freeze():
    """A float32 sum of 2^25 prompts would ignore the next one; the mean still moves."""
    state = fairness.init(1, 1, 2, history=None)
    state = fairness.FairnessState(**{**vars(state), "domain_count": jnp.array([2**25], jnp.int32)})
    for _ in range(50):
        _, state = fairness.fair_grpo(np.ones((64, 2)), [0] * 64, [0] * 64, state)
    assert state.domain_count[0] == 2**25 + 3200
    np.testing.assert_allclose(state.domain_mean[0], 3200 / (2**25 + 3200), rtol=1e-4)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="0 domains"):
        fairness.init(0, 1, 4)
    with pytest.raises(ValueError, match="20 rollouts"):
        fairness.init(1, 1, 20, history="binary")
    with pytest.raises(ValueError, match="history='list'"):
        fairness.init(1, 1, 4, history="list")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="capacity >= prompts"):
        fairness.fair_grpo([[1.0, 0.0]] * 3, [0] * 3, [0] * 3, fairness.init(1, 1, 2, capacity=2))


@pytest.mark.parametrize("history", ["ring", "binary"])
def test_sorted_vectors_do_not_know_the_order_of_rollouts(history):
    rewards, d, g = batch(11, prompts=24)
    shuffled = np.random.default_rng(0).permuted(rewards, axis=1)
    base, labels, _ = fairness.temperatures(rewards, d, 0 * g - 1, fresh(history), sort_vectors=True)
    got, same, state = fairness.temperatures(shuffled, d, 0 * g - 1, fresh(history), sort_vectors=True)
    np.testing.assert_allclose(got, base, rtol=1e-6)
    np.testing.assert_array_equal(labels, same)
    plain, _, raw = fairness.temperatures(rewards, d, 0 * g - 1, fresh(history))
    moved, _, raw_moved = fairness.temperatures(shuffled, d, 0 * g - 1, fresh(history))
    assert np.abs(np.asarray(plain) - np.asarray(moved)).max() > 0.01
    np.testing.assert_array_equal(state.history, raw_moved.history)  # kept as they came


@pytest.mark.parametrize("clustering", ["jax", "sklearn"])
def test_sorted_clusters_by_hand(clustering):
    """One success against two, each in several places: means 1/4 and 1/2, sizes 3 and 3."""
    rewards = [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0]]
    rewards = np.array([*rewards, [NAN, 1, NAN, NAN]], np.float32)  # filled up with its mean 1: the upper cluster
    for history in ("ring", "binary"):
        weights, labels, _ = fairness.temperatures(
            rewards, [0] * 7, [-1] * 7, fresh(history), sort_vectors=True, k_max=2, clustering=clustering
        )
        t_domain = np.sqrt(7) * (0.75 + 1.5 + 1) / 7
        t_group = np.sqrt(3 / 6 * 7) * np.array([1 / 4] * 3 + [1 / 2] * 4)
        np.testing.assert_allclose(weights, 1 / (t_domain * t_group), rtol=1e-5)
        assert len(set(labels[:3].tolist())) == len(set(labels[3:].tolist())) == 1


def test_sorted_domain_mean_by_inverse_size():
    rewards = [[1, 0, 0, 0]] * 2 + [[0, 0, 0, 1]] + [[1, 1, 0, 1]]
    plain, _, _ = fairness.temperatures(rewards, [0] * 4, [-1] * 4, fresh("binary"), sort_vectors=True)
    inverse, _, _ = fairness.temperatures(
        rewards, [0] * 4, [-1] * 4, fresh("binary"), sort_vectors=True, domain_mean="inverse_size"
    )
    wanted = (0.25 / 3 + 0.75 / 1) / (1 / 3 + 1)
    np.testing.assert_allclose(np.asarray(plain) / inverse, wanted / (6 / 16), rtol=1e-5)


def test_group_dro_by_hand():
    """Losses 1/2 and 1 of one and two prompts; the cell of the unscored prompt does not occur."""
    rewards = np.array([[1.0, 0.0], [0.0, 0.0], [NAN, 0.0], [NAN, NAN]], np.float32)
    got, state = fairness.group_dro(rewards, [0, 1, 1, 1], [0, -1, -1, 2], fairness.init(2, 3, 2), step_size=0.2)
    q = np.exp([0.1, 0.2]) / np.exp([0.1, 0.2]).sum()
    np.testing.assert_allclose(got, [[3 * q[0] / np.sqrt(2), -3 * q[0] / np.sqrt(2)]] + [[0, 0]] * 3, rtol=1e-5)
    np.testing.assert_allclose(fairness.group_weights(state), [[q[0], 0, 0, 0], [0, 0, 0, q[1]]], rtol=1e-6)
    assert state.domain_count.tolist() == [1, 2] and state.group_mean[0, 0] == 0.5


@hypothesis.settings(derandomize=True, database=None)
@hypothesis.given(
    eighths=arrays(np.int8, (3, 6, 4), elements=st.integers(-1, 8)),  # -1 = not scored
    domains=arrays(np.int32, (3, 6), elements=st.integers(0, 1)),
    groups=arrays(np.int32, (3, 6), elements=st.integers(-1, 1)),
    step_size=st.sampled_from([1e-3, 0.01, 1.0, 300.0]),
)
def test_group_dro_is_the_multiplicative_update(eighths, domains, groups, step_size):
    """Sagawa's loop over all cells, normalised at every step, from a uniform start; cells that never came have none."""
    rewards = np.where(eighths < 0, np.nan, eighths / 8)
    q = {(d, g): 1.0 for d in range(2) for g in (-1, 0, 1)}
    came = set()
    with jax.enable_x64(True):
        state = fairness.init(2, 2, 4, history=None)
        for r, ds, gs in zip(rewards, domains, groups, strict=True):
            got, state = fairness.group_dro(r, ds, gs, state, step_size=step_size)
            means = {}
            for row, cell in zip(r, zip(ds.tolist(), gs.tolist(), strict=True), strict=True):
                if not np.isnan(row).all():
                    means.setdefault(cell, []).append(np.nanmean(row))
            came |= set(means)
            largest = max(1 - np.mean(m) for m in means.values()) if means else 0  # cancels; exp(300) would not fit
            for cell in q:
                loss = 1 - np.mean(means[cell]) if cell in means else 0
                q[cell] *= np.exp(step_size * (loss - largest))
            total = sum(q[cell] for cell in came)
            q = {cell: value / total if total else value for cell, value in q.items()}
            weights = fairness.group_weights(state)
            for (d, g), value in q.items():
                np.testing.assert_allclose(weights[d, g], value * ((d, g) in came), rtol=1e-9, atol=1e-200)
            prompts = sum(map(len, means.values()))
            ratio = [
                q[cell] * prompts / len(means[cell]) if cell in means else 1
                for cell in zip(ds.tolist(), gs.tolist(), strict=True)
            ]
            wanted = np.array(ratio)[:, None] * np.asarray(advantages.grpo(r))
            np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-200)


def test_group_weights_do_not_overflow():
    _, state = fairness.group_dro(*batch(0), fresh())
    later = dataclasses.replace(state, dro_log_weight=state.dro_log_weight + 1000)
    np.testing.assert_allclose(fairness.group_weights(later), fairness.group_weights(state), rtol=1e-3)
    np.testing.assert_allclose(fairness.group_weights(later).sum(), 1, rtol=1e-6)


def test_fair_grpo_passes_the_weights_of_group_dro_on():
    _, state = fairness.group_dro(*batch(0), fresh())
    assert np.any(state.dro_log_weight != 0)
    for statistics in ("cumulative", "batch", "ema"):
        _, after = fairness.fair_grpo(*batch(1), state, statistics=statistics)
        np.testing.assert_array_equal(after.dro_log_weight, state.dro_log_weight)


@pytest.mark.parametrize("history", [None, "ring", "binary"])
def test_state_survives(history, tmp_path):
    """Flattened, saved and loaded, the next step is the same to the bit."""
    _, state = fairness.group_dro(*batch(0), fresh(history))
    leaves, structure = jax.tree.flatten(state)
    np.savez(tmp_path / "state.npz", *leaves)
    with np.load(tmp_path / "state.npz") as saved:
        loaded = jax.tree.unflatten(structure, [saved[f"arr_{i}"] for i in range(len(leaves))])
    chex.assert_trees_all_equal(loaded, state)
    for method in (fairness.fair_grpo, fairness.group_dro):
        chex.assert_trees_all_equal(method(*batch(1), loaded), method(*batch(1), state))


def test_types_of_the_state_stay():
    """Float32 states carry 64-bit rewards and the other way round; results have the type of the rewards."""
    r, d, g = batch(0, binary=False)
    narrow = fresh()
    with jax.enable_x64(True):
        wide, ring = fresh(), fresh("ring")
        for state, dtype in ((narrow, np.float32), (narrow, np.float64), (wide, np.float32), (ring, np.float64)):
            got, after = fairness.fair_grpo(jnp.asarray(r, dtype), d, g, state, statistics="ema", shift=0.1)
            other, later = fairness.group_dro(jnp.asarray(r, dtype), d, g, state)
            assert got.dtype == other.dtype == dtype
            chex.assert_trees_all_equal_shapes_and_dtypes(state, after, later)
        assert wide.domain_mean.dtype == wide.dro_log_weight.dtype == np.float64 and ring.history is not None
        assert ring.history.dtype == np.float64 and narrow.domain_mean.dtype == np.float32
