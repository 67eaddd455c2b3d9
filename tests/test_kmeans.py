"""The search for clusters against scikit-learn, and the exact solution on a line against all partitions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

from fairgrpo_jax import _kmeans, grouping
from tests.restated import inertia_of


def rewards(rng, prompts, rollouts=10):
    """Successes of prompts that are mostly easy or mostly hard."""
    return (rng.random((prompts, rollouts)) < rng.beta(0.6, 0.6, (prompts, 1))).astype(np.float32)


def blobs(rng, centres, n, d, spread):
    return (rng.random((centres, d)) * 4)[rng.integers(0, centres, n)] + rng.normal(0, spread, (n, d))


DRAWS = {
    "uniform": lambda g: g.random((60, 5)),
    "blobs": lambda g: blobs(g, 4, 60, 5, 0.5),
    "binary": lambda g: g.integers(0, 2, (60, 5)),
    "binary rewards": lambda g: rewards(g, 800),
    "fractional rewards": lambda g: rewards(g, 2000) * g.random((2000, 10)),
}


OFTEN = (("uniform", True), ("blobs", False), ("binary rewards", True), ("fractional rewards", False))
OTHERS = {(kind, weighted) for kind in DRAWS for weighted in (False, True)} - {*OFTEN}


@pytest.mark.parametrize(
    "kind, weighted", [*OFTEN, *(pytest.param(*case, marks=pytest.mark.slow) for case in sorted(OTHERS))]
)
def test_inertia_is_never_above_scikit_learn(kind, weighted):
    """Scikit-learn's own settings, with another start for each draw."""
    small = kind in ("uniform", "blobs", "binary")
    k_max = 4 if small else 3
    for seed in range(8 if small else 3):
        rng = np.random.default_rng(seed)
        x = DRAWS[kind](rng).astype(np.float32)
        w = rng.integers(0, 5, len(x)) if weighted else np.ones(len(x))
        _, _, ours = grouping.cluster(x, k_max=k_max, key=jax.random.key(seed), weights=w)
        for k in range(1, k_max + 1):
            theirs = KMeans(k, n_init="auto", random_state=seed).fit(x, sample_weight=w)
            assert inertia_of(x, theirs.labels_, w) * (1 + 1e-5) >= ours[k - 1], (seed, k)


def test_no_move_of_one_point_lowers_the_inertia():
    rng = np.random.default_rng(0)
    x, w = rng.random((24, 2)).astype(np.float32), rng.integers(1, 6, 24).astype(np.float32)
    labels, k, inertias = map(np.asarray, grouping.cluster(x, k_max=4, weights=w, threshold=0.0))
    assert k == 4
    for point, to in itertools.product(range(24), range(4)):
        moved = labels.copy()
        moved[point] = to
        assert inertia_of(x, moved, w) > inertias[3] * (1 - 1e-5)


def descend(x, w, starts, used):
    x = np.asarray(x, np.float32) - np.average(x, axis=0, weights=w)
    w = np.asarray(w, np.float32)
    mass = np.concatenate([w[:, None] * x, w[:, None]], axis=1).T
    start = jnp.asarray(starts, jnp.float32)
    labels, inertia = _kmeans._descend(jnp.asarray(x.T), jnp.asarray(mass), start, jnp.asarray(used))
    return np.asarray(labels), float(inertia)


def test_a_finalist_leaves_where_lloyds_steps_stand_still():
    """Of 0, 4 and 6, means 2 and 6 attract 4 as much; it pays to move it, for 6 has a smaller cluster."""
    labels, inertia = descend([[0.0], [4.0], [6.0]], [1, 1, 1], [[2 - 10 / 3], [6 - 10 / 3]], [True, True])
    assert labels.tolist() == [0, 1, 1]
    np.testing.assert_allclose(inertia, 2, rtol=1e-6)


def test_a_move_weighs_the_points():
    """The same, but the point at 6 is so heavy, and so much better served, that the move is to the right all the more;
    and with the weight on the left it is not made."""
    assert descend([[0.0], [4.0], [6.0]], [1, 1, 9], [[-1.0], [1.0]], [True, True])[0].tolist() == [0, 1, 1]
    assert descend([[0.0], [2.9], [6.0]], [9, 1, 9], [[-3.0], [3.0]], [True, True])[0].tolist() == [0, 0, 1]


def test_no_finalist_is_left_with_a_move_that_helps():
    """From 200 random starts, most of which need many moves, some of which would spoil each other if all were made."""
    rng = np.random.default_rng(8)
    x, w = rng.random((12, 1)).astype(np.float32), rng.integers(1, 6, 12).astype(np.float32)
    x -= np.average(x, axis=0, weights=w).astype(np.float32)
    mass = jnp.asarray(np.concatenate([w[:, None] * x, w[:, None]], axis=1).T)
    starts = jnp.asarray(rng.normal(0, 0.3, (200, 3, 1)), jnp.float32)
    descend_all = jax.jit(jax.vmap(_kmeans._descend, (None, None, 0, None)))
    labels, inertias = map(np.asarray, descend_all(jnp.asarray(x.T), mass, starts, jnp.ones(3, bool)))
    for own, inertia in {tuple(own): inertia for own, inertia in zip(labels, inertias, strict=True)}.items():
        np.testing.assert_allclose(inertia, inertia_of(x, np.array(own), w), rtol=1e-4)
        for point, to in itertools.product(range(12), range(3)):
            moved = np.array(own)
            moved[point] = to
            assert inertia_of(x, moved, w) > inertia * (1 - 1e-4)


def test_an_empty_cluster_is_given_the_worst_served_point():
    x = [[0.0], [0.1], [0.2], [9.0]]
    labels, _ = descend(x, [1, 1, 1, 1], [[0.0], [50.0]], [True, True])
    assert labels[:3].tolist() == [labels[0]] * 3 and labels[3] != labels[0]
    labels, _ = descend(x, [1, 1, 1, 1], [[0.0], [50.0]], [True, False])
    assert labels.tolist() == [0, 0, 0, 0]


def test_the_first_single_move_is_the_one_that_pays_most(monkeypatch):
    """Worst served counts the weight: 4 points at -8 before one at 9."""
    monkeypatch.setattr(_kmeans, "NUM_ITERATIONS", 1)
    labels, _ = descend([[0.0], [0.1], [9.0], [-8.0]], [5, 5, 1, 4], [[0.0], [50.0]], [True, True])
    assert labels.tolist() == [0, 0, 0, 1]


def test_the_race_is_lloyds_steps():
    """Six of them by hand."""
    rng = np.random.default_rng(1)
    x, w = rng.random((50, 3)).astype(np.float32), rng.integers(1, 4, 50).astype(np.float32)
    x -= np.average(x, axis=0, weights=w).astype(np.float32)
    start = np.concatenate([x[:3], np.zeros((1, 3), np.float32)])  # the fourth would attract, but is not used
    mass = np.concatenate([w[:, None] * x, w[:, None]], axis=1).T
    used = jnp.array([True, True, True, False])
    centres, explained = _kmeans._race(jnp.asarray(x.T), jnp.asarray(mass), jnp.asarray(start), used, 6)
    for _ in range(6):
        own = np.argmin(((x[:, None] - start[None, :3]) ** 2).sum(2), axis=1)
        start = np.stack([np.average(x[own == c], axis=0, weights=w[own == c]) for c in range(3)])
    np.testing.assert_allclose(centres[:3], start, atol=1e-5)
    np.testing.assert_allclose(explained, np.sum(w[:, None] * x**2) - inertia_of(x, own, w), rtol=1e-4)


draw = jax.jit(jax.vmap(_kmeans._plus_plus, (None, None, 0)))


def test_starts_are_drawn_by_weight_times_squared_distance():
    x, w = np.array([[0.0], [1.0], [3.0], [7.0]]), np.array([2.0, 1.0, 1.0, 0.0])
    x, w = jnp.asarray(x.T, jnp.float32), jnp.asarray(w, jnp.float32)
    drawn = draw(x, w, jax.random.uniform(jax.random.key(0), (20_000, 3)))
    first, second = drawn[:, 0, 0], drawn[:, 1, 0]
    np.testing.assert_allclose([np.mean(first == place) for place in (0, 1, 3, 7)], [0.5, 0.25, 0.25, 0], atol=0.015)
    after_0 = second[first == 0]  # masses 1 x 1 and 1 x 9
    np.testing.assert_allclose([np.mean(after_0 == place) for place in (0, 1, 3)], [0, 0.1, 0.9], atol=0.015)
    after_3 = second[first == 3]  # 2 x 9 and 1 x 4
    np.testing.assert_allclose([np.mean(after_3 == place) for place in (0, 1, 3)], [18 / 22, 4 / 22, 0], atol=0.02)
    assert np.all(np.sort(drawn[:, :, 0], axis=1) == np.array([[0, 1, 3]]))  # none is left for a second time


def test_no_absent_point_is_drawn_where_cumulative_sums_round():
    rng = np.random.default_rng(9)
    w = jnp.asarray(rng.random(2048) * (rng.random(2048) < 0.5), jnp.float32).at[0].set(1)
    x = jnp.arange(2048, dtype=jnp.float32)[None]
    below = np.asarray(jnp.cumsum(w))
    drawn = draw(x, w, jnp.asarray(below / below[-1])[:, None])
    assert np.all(np.asarray(w)[np.asarray(drawn).astype(int)] > 0)


def test_equal_points_are_one_of_their_joint_weight():
    rng = np.random.default_rng(2)
    x, w = rewards(rng, 200, 4), rng.integers(0, 3, 200).astype(np.float32)
    columns, weights, place = map(np.asarray, jax.jit(_kmeans._merge)(jnp.asarray(x), jnp.asarray(w)))
    np.testing.assert_array_equal(columns.T[place][w > 0], x[w > 0])
    got = {tuple(point): weight for point, weight in zip(columns.T, weights, strict=True) if weight > 0}
    wanted = {tuple(point): w[np.all(x == point, axis=1)].sum() for point in x[w > 0]}
    assert got == wanted and len(got) == np.sum(weights > 0)


@pytest.mark.parametrize(
    "inertias, distinct, k",
    [
        ([10, 1, 0.5], 3, 2),  # falls 9, 0.5
        ([10, 5, 1], 3, 3),  # falls 5, 4
        ([10, 5, 4.6, 0], 4, 2),  # falls 5, 0.4
        ([10, 5, 1, 0.9], 4, 3),  # falls 5, 4, 0.1
        ([10, 5, 4.5], 3, 3),  # the fall is exactly a tenth: not below it
        ([10, 0, 0], 2, 2),
        ([0, 0, 0], 1, 1),
        ([0, 0, 0], 0, 0),
        ([10], 1, 1),
        ([10, 9], 2, 2),
    ],
)
def test_elbow_by_hand(inertias, distinct, k):
    assert _kmeans.elbow(jnp.array(inertias, jnp.float32), jnp.array(distinct), 0.1) == k


def test_points_far_from_0_and_clusters_far_apart():
    """Where squares of the points themselves would keep no digit of the distances inside of a cluster."""
    rng = np.random.default_rng(3)
    x = (np.repeat([0.0, 64.0], 20)[:, None] + rng.integers(0, 8, (40, 3)) / 8 + 4096).astype(np.float32)
    _, _, ours = grouping.cluster(x, k_max=4)
    fits = [KMeans(k, init="k-means++", random_state=0).fit(x.astype(np.float64)) for k in (1, 2, 3, 4)]
    theirs = np.array([fit.inertia_ for fit in fits], float)
    np.testing.assert_array_less(ours, theirs * (1 + 1e-5))
    np.testing.assert_allclose(ours[:2], theirs[:2], rtol=1e-5)


def test_a_batch_of_histories_is_as_each_of_them():
    rng = np.random.default_rng(4)
    x, w = rng.random((3, 30, 2)).astype(np.float32), rng.integers(0, 3, (3, 30)).astype(np.float32)
    together = jax.vmap(lambda x, w: grouping.cluster(x, k_max=3, weights=w))(x, w)
    for i in range(3):
        labels, k, inertias = grouping.cluster(x[i], k_max=3, weights=w[i])
        np.testing.assert_array_equal(together[0][i], labels)
        assert together[1][i] == k
        np.testing.assert_allclose(together[2][i], inertias, rtol=1e-5)


def test_double_precision_and_the_gradient_of_fixed_labels():
    rng = np.random.default_rng(5)
    x, w = rng.random((20, 2)), rng.integers(0, 3, 20).astype(float)
    x[w == 0] = np.nan

    def second_inertia(x):
        labels, _, inertias = grouping.cluster(x, k_max=2, weights=w)
        return inertias[1], labels

    with jax.enable_x64(True):
        (inertia, labels), gradient = jax.value_and_grad(second_inertia, has_aux=True)(jnp.asarray(x))
        inertia, labels, gradient = map(np.asarray, (inertia, labels, gradient))
    assert inertia.dtype == "float64" and labels.dtype == "int32"
    np.testing.assert_allclose(inertia, inertia_of(x, labels, w), rtol=1e-12)
    for label in (0, 1):
        inside = labels == label
        mean = np.average(x[inside], axis=0, weights=w[inside])
        np.testing.assert_allclose(gradient[inside], 2 * w[inside, None] * (x[inside] - mean), atol=1e-12)
    assert np.all(gradient[labels == -1] == 0)


def best_partition(w, k):
    """Least inertia of the points with weight over all partitions into exactly k parts."""
    s = np.flatnonzero(w)
    w = w[s]
    best = np.inf
    for labels in itertools.product(range(k), repeat=len(s)):
        parts = [[i for i, label in enumerate(labels) if label == part] for part in range(k)]
        if all(parts):
            total = sum(
                sum(w[i] * w[j] * abs(int(s[i]) - int(s[j])) for i, j in itertools.combinations(part, 2))
                / w[part].sum()
                for part in parts
            )
            best = min(best, total)
    return best


@pytest.fixture(scope="module")
def successes_of_six():
    """One compiled fit for seven counts."""
    return jax.jit(lambda counts: grouping.cluster_successes(counts, k_max=3, threshold=0.0))


def test_successes_are_the_best_of_all_partitions(successes_of_six):
    rng = np.random.default_rng(6)
    for _ in range(25):
        w = np.round(np.exp(rng.normal(0, rng.choice([0.3, 1, 3]), 7)) * 5) * (rng.random(7) < 0.8)
        distinct = int(np.sum(w > 0))
        labels, k, inertias = successes_of_six(w)
        wanted = [best_partition(w, parts) if parts <= distinct else 0 for parts in (1, 2, 3)]
        np.testing.assert_allclose(inertias, wanted, rtol=1e-5, atol=1e-5)
        assert k == min(distinct, 3)
        labels = np.asarray(labels)
        assert np.all((labels == -1) == (w == 0))
        present = labels[w > 0].tolist()
        assert present == sorted(present) and set(present) == set(range(int(k)))
        x = np.tril(np.ones((7, 7)), -1)[:, :6]
        np.testing.assert_allclose(inertia_of(x, labels, w), inertias[int(k) - 1], rtol=1e-5, atol=1e-5)


def test_successes_agree_with_the_search():
    counts = np.bincount(rewards(np.random.default_rng(7), 300, 8).sum(1).astype(int), minlength=9)
    vectors = np.repeat(np.tril(np.ones((9, 9)), -1)[:, :8], counts, axis=0)
    labels, k, inertias = grouping.cluster_successes(counts, k_max=4)
    found, found_k, found_inertias = grouping.cluster(vectors, k_max=4)
    np.testing.assert_allclose(inertias, found_inertias, rtol=1e-5)
    assert k == found_k
    renamed = dict(zip(np.repeat(np.asarray(labels), counts).tolist(), np.asarray(found).tolist(), strict=True))
    np.testing.assert_array_equal([renamed[label] for label in np.repeat(np.asarray(labels), counts).tolist()], found)


def test_the_lowest_of_equally_good_cuts():
    """0 | 1 2 is as good as 0 1 | 2."""
    labels, k, inertias = grouping.cluster_successes([1, 1, 1], k_max=2)
    assert (labels.tolist(), int(k)) == ([0, 1, 1], 2)
    np.testing.assert_allclose(inertias, [4 / 3, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    "counts, labels, k",
    [([0, 0, 0], [-1, -1, -1], 0), ([0, 5, 0], [-1, 0, -1], 1), ([2, 0, 1], [0, -1, 1], 2), ([3], [0], 1)],
)
def test_few_successes(counts, labels, k):
    got, got_k, inertias = grouping.cluster_successes(counts, k_max=4)
    assert got.tolist() == labels and got_k == k and got.dtype == "int32" and inertias.shape == (4,)
    assert np.all(np.isfinite(inertias)) and np.all(np.asarray(inertias[max(k - 1, 0) :]) == 0)


def test_many_successes_in_double_precision():
    """A single vector beside millions is still a cluster of its own."""
    with jax.enable_x64(True):
        counts = np.array([5e6, 4e6, 0, 1.0, 0])
        labels, k, inertias = map(np.asarray, grouping.cluster_successes(counts, k_max=3, threshold=0.0))
    assert inertias.dtype == "float64" and labels.tolist() == [0, 1, -1, 2, -1] and k == 3
    np.testing.assert_allclose(inertias[0], (5e6 * 4e6 + 5e6 * 3 + 4e6 * 2) / (9e6 + 1), rtol=1e-12)
    assert inertias[2] == 0


def test_bad_counts_are_refused():
    with pytest.raises(ValueError, match="shape \\(1, 3\\)"):
        grouping.cluster_successes([[1, 2, 3]], k_max=2)
    with pytest.raises(ValueError, match="k_max=0"):
        grouping.cluster_successes([1, 2, 3], k_max=0)
    with pytest.raises(ValueError, match="from -1.0 to 3.0"):
        grouping.cluster_successes([1.0, -1.0, 3.0], k_max=2)
