"""Explicit groups and balance by hand; clusters against exhaustive search and scikit-learn."""

import itertools
import json

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import assume, example, given
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from fairgrpo_jax import grouping
from tests.restated import inertia_of


def test_age_bins():
    ages = [0, 25, 25.5, 26, 50, 50.01, 75, 75.5, 76, 120, None, float("nan")]
    got = grouping.age_bins(ages)
    assert got.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3, -1, -1] and got.dtype == "int32"
    assert grouping.age_bins([50, 51], edges=(50,)).tolist() == [0, 1]


def test_age_bins_refuse_nonsense():
    with pytest.raises(ValueError, match="-99"):
        grouping.age_bins([40, -99])
    with pytest.raises(ValueError, match="edges"):
        grouping.age_bins([40], edges=(50, 25))


ROWS = [
    {"sex": "M", "age": "≤50"},
    {"sex": "F", "age": "≤50"},
    {"sex": "F", "age": None},
    {"age": ">50"},
    {"sex": None, "age": ""},
    {},
]


def test_vocabulary_and_lookup():
    vocabulary = grouping.vocabulary(ROWS)
    assert vocabulary == (("sex", "age"), ("?, >50", "F, ?", "F, ≤50", "M, ≤50"))
    groups = grouping.explicit_groups(ROWS, vocabulary)
    assert groups.tolist() == [3, 2, 1, 0, -1, -1] and groups.dtype == "int32"


def test_vocabulary_does_not_depend_on_the_order_of_rows():
    assert grouping.vocabulary(ROWS[:4]).cells == grouping.vocabulary(ROWS[:1] + ROWS[3:0:-1]).cells


def test_vocabulary_goes_through_json():
    vocabulary = grouping.vocabulary(ROWS)
    loaded = grouping.Vocabulary(**json.loads(json.dumps(vocabulary._asdict())))
    assert grouping.explicit_groups(ROWS, loaded).tolist() == grouping.explicit_groups(ROWS, vocabulary).tolist()


def test_chosen_attributes_only():
    vocabulary = grouping.vocabulary(ROWS, ["sex"])
    assert vocabulary.cells == ("F", "M")
    assert grouping.explicit_groups(ROWS, vocabulary).tolist() == [1, 0, 0, -1, -1, -1]


def test_bad_rows_are_refused():
    vocabulary = grouping.vocabulary(ROWS[:2])
    with pytest.raises(ValueError, match="M, >75"):
        grouping.explicit_groups([{"sex": "M", "age": ">75"}], vocabulary)
    with pytest.raises(ValueError, match="F, \\?"):
        grouping.explicit_groups([{"sex": "F"}], vocabulary)
    with pytest.raises(ValueError, match="race"):
        grouping.vocabulary(ROWS, ["race"])
    with pytest.raises(ValueError, match="White, non-Hispanic"):
        grouping.vocabulary([{"race": "White, non-Hispanic"}])
    with pytest.raises(ValueError, match="None where"):
        grouping.vocabulary([{"sex": "?"}])


def blobs(seed, centres=3, n=60, d=5, spread=0.05):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, centres, n)
    return (rng.random((centres, d)) * 4)[truth] + rng.normal(0, spread, (n, d)), truth


def test_inertia_is_that_of_the_labels_and_the_best_of_all_partitions():
    x = np.random.default_rng(3).random((7, 2)).astype(np.float32)
    w = np.array([1, 2, 1, 3, 1, 1, 2], np.float32)
    labels, k, inertias = grouping.cluster(x, k_max=3, weights=w, threshold=0.0)
    assert k == 3
    np.testing.assert_allclose(inertia_of(x, np.asarray(labels), w), inertias[2], rtol=1e-4)
    for clusters in (1, 2, 3):
        best = min(inertia_of(x, np.array(p), w) for p in itertools.product(range(clusters), repeat=7))
        np.testing.assert_allclose(inertias[clusters - 1], best, rtol=1e-4)


@pytest.mark.parametrize("method", ["jax", "sklearn"])
def test_clear_clusters_are_found(method):
    x, truth = blobs(0)
    labels, k, _ = grouping.cluster(x, k_max=6, method=method)
    assert k == 3 and adjusted_rand_score(truth, labels) == 1


def test_sklearn_is_the_authors_call():
    x, _ = blobs(1)
    labels, k, inertias = grouping.cluster(x, k_max=3, method="sklearn")
    fit = KMeans(n_clusters=int(k), n_init="auto", random_state=0).fit(x)
    np.testing.assert_array_equal(labels, np.asarray(fit.labels_))
    np.testing.assert_allclose(inertias[int(k) - 1], np.asarray(fit.inertia_), rtol=1e-6)


@pytest.mark.parametrize("method", ["jax", "sklearn"])
@pytest.mark.parametrize(
    "x, k",
    [
        ([[1.0, 0.0]] * 4, 1),  # all equal
        ([[0.5, 0.5]], 1),  # one point
        ([[0.0, 0.0], [1.0, 1.0]], 2),  # fewer points than k_max
        ([[0.0, 0.0]] * 3 + [[1.0, 1.0]] * 3, 2),  # two distinct
        (np.zeros((0, 2)), 0),
    ],
)
def test_degenerate_points(x, k, method):
    labels, got, inertias = grouping.cluster(x, k_max=3, method=method)
    assert got == k and inertias.shape == (3,) and np.all(np.asarray(inertias[max(k - 1, 0) :]) == 0)
    assert sorted(set(np.asarray(labels).tolist())) == list(range(k))


def test_weights_are_multiplicities_and_zero_is_absent():
    rng = np.random.default_rng(5)
    x, w = blobs(2, n=20)[0], rng.integers(0, 4, 20)
    garbage = np.where(w[:, None] > 0, x, np.nan)
    labels, k, inertias = grouping.cluster(garbage, k_max=4, weights=w)
    repeated = np.repeat(np.arange(20), w)
    wanted, wanted_k, wanted_inertias = grouping.cluster(x[repeated], k_max=4)
    assert k == wanted_k and np.all(np.asarray(labels)[w == 0] == -1)
    assert adjusted_rand_score(wanted, np.asarray(labels)[repeated]) == 1
    np.testing.assert_allclose(inertias, wanted_inertias, rtol=1e-3, atol=1e-5)


def test_no_point_present():
    labels, k, _ = grouping.cluster(np.ones((4, 2)), k_max=3, weights=np.zeros(4))
    assert k == 0 and np.all(np.asarray(labels) == -1)


def test_same_key_same_labels_also_under_jit():
    x = np.random.default_rng(0).random((40, 3))
    first = grouping.cluster(x, k_max=3, key=jax.random.key(7))
    again = jax.jit(lambda x: grouping.cluster(x, k_max=3, key=jax.random.key(7)))(x)
    assert np.array_equal(first[0], again[0]) and first[1] == again[1]
    np.testing.assert_allclose(first[2], again[2], rtol=1e-6)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="k_max=0"):
        grouping.cluster(np.zeros((3, 2)), k_max=0)
    with pytest.raises(ValueError, match="shape \\(3,\\)"):
        grouping.cluster(np.zeros(3), k_max=2)
    with pytest.raises(ValueError, match="one a point"):
        grouping.cluster(np.zeros((3, 2)), k_max=2, weights=[1.0])
    with pytest.raises(ValueError, match="method='torch'"):
        grouping.cluster(np.zeros((3, 2)), k_max=2, method="torch")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="from -2.0 to 1.0"):
        grouping.cluster(np.zeros((2, 2)), k_max=2, weights=[1.0, -2.0])
    with pytest.raises(ValueError, match="weight 0"):
        grouping.cluster([[0.0], [np.nan]], k_max=2)


def test_agreement_by_hand():
    """Contingency 2, 1 / 1, 2: of 15 pairs 2 agree, 2.4 by chance of at most 6."""
    got = grouping.agreement([0, 0, 0, 1, 1, 1, -1, 2, 2], ["a", "a", "b", "a", "b", "b", "a", None, ""])
    np.testing.assert_allclose(got["ari"], (2 - 2.4) / (6 - 2.4))
    shared = 2 * (2 / 6 * np.log((2 / 6) / (1 / 4)) + 1 / 6 * np.log((1 / 6) / (1 / 4)))
    np.testing.assert_allclose(got["nmi"], shared / np.log(2))
    assert (got["n"], got["left_out"]) == (6, 3)


def test_agreement_takes_ids_and_reports_nothing_for_nothing():
    got = grouping.agreement(np.array([1, 0, 1]), np.array([5, -1, 5]))
    assert got == {"ari": 1.0, "nmi": 1.0, "n": 2, "left_out": 1}
    nothing = grouping.agreement([0, -1], [float("nan"), "F"])
    assert np.isnan(nothing["ari"]) and np.isnan(nothing["nmi"]) and (nothing["n"], nothing["left_out"]) == (0, 2)
    with pytest.raises(ValueError, match="1 attributes"):
        grouping.agreement([0, 1], ["F"])


def test_balanced_weights_by_hand():
    groups = np.array([0, 0, 0, 1, -1, -1, 0, 1])
    domains = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    weights = grouping.balanced_weights(groups, domains)
    assert weights.tolist() == [1, 1, 1, 3, 1.5, 1.5, 1, 1] and weights.dtype == "float64"
    assert grouping.balanced_weights(groups).tolist() == [1, 1, 1, 2, 2, 2, 1, 2]
    assert grouping.balanced_weights(["F", "UNK", "F"]).tolist() == [1, 2, 1]


def test_balanced_rows_are_as_many_of_every_group():
    rng = np.random.default_rng(0)
    groups, domains = rng.choice([-1, 0, 1, 2], 200, p=[0.5, 0.3, 0.15, 0.05]), rng.integers(0, 2, 200)
    rows = grouping.balanced_rows(groups, domains, seed=3)
    weights = grouping.balanced_weights(groups, domains)
    copies = np.bincount(rows, minlength=200)
    assert rows.dtype == "int64" and np.all((copies == np.floor(weights)) | (copies == np.ceil(weights)))
    for domain in (0, 1):
        largest = max(np.sum((groups == g) & (domains == domain)) for g in (-1, 0, 1, 2))
        for g in (-1, 0, 1, 2):
            assert np.sum((groups[rows] == g) & (domains[rows] == domain)) == largest
    assert np.array_equal(rows, grouping.balanced_rows(groups, domains, seed=3))
    assert not np.array_equal(rows, grouping.balanced_rows(groups, domains, seed=4))
    assert not np.array_equal(rows, np.sort(rows)) and abs(np.mean(np.diff(rows) >= 0) - 0.5) < 0.1


def test_balanced_rows_draw_each_row_of_a_group_alike():
    """Three rows brought up to five: two of them occur twice, any with probability 2/3."""
    groups = [0] * 5 + [1] * 3
    copies = np.mean([np.bincount(grouping.balanced_rows(groups, seed=s), minlength=8) for s in range(300)], axis=0)
    np.testing.assert_allclose(copies, [1] * 5 + [5 / 3] * 3, atol=0.08)
    assert grouping.balanced_rows([], seed=0).shape == (0,)
    with pytest.raises(ValueError, match="domains of shape \\(1,\\)"):
        grouping.balanced_rows([0, 1], [0], seed=0)


# ---- drawing prompts by cell -----------------------------------------------------------------------------------------


NATURAL: dict = dict(size_exponent=0.0, hardness_exponent=0.0, domain_exponent=1.0)
FREE: dict = dict(max_ratio=np.inf, floor=0.0)


def test_probabilities_by_hand():
    """Two domains of 100 and 400 rows: 1/3 and 2/3 by the root; in the first 0.2 to 0.6, in the second equal parts."""
    sizes, hardness = [[90, 10, 0], [200, 100, 100]], [[0.2, 0.6, 0.9], [0.5, 0.5, 0.5]]
    q = grouping.sampling_probabilities(sizes, hardness, **FREE)
    np.testing.assert_allclose(q, [[1 / 12, 1 / 4, 0], [2 / 9, 2 / 9, 2 / 9]])
    q = grouping.sampling_probabilities(sizes, hardness, max_ratio=np.inf, floor=0.1)
    np.testing.assert_allclose(q[0, 1], 0.9 / 4 + 0.1 * 10 / 500)
    q = grouping.sampling_probabilities(sizes, hardness, max_ratio=5, floor=0.0)  # 10 of 500 rows: at most 1/10
    np.testing.assert_allclose(
        q, np.array([[1 / 12, 0, 0], [2 / 9, 2 / 9, 2 / 9]]) * 0.9 / 0.75 + [[0, 0.1, 0], [0] * 3]
    )


def test_limits_of_the_probabilities():
    rng = np.random.default_rng(0)
    domains, groups = rng.integers(0, 3, 500), np.minimum(rng.geometric(0.5, 500), 4) - 1
    sizes = np.zeros((3, 5))
    np.add.at(sizes, (domains, groups), 1)
    hardness = rng.uniform(0.1, 1, sizes.shape)
    np.testing.assert_allclose(grouping.sampling_probabilities(sizes, hardness, **NATURAL, **FREE), sizes / 500)
    balanced = grouping.sampling_probabilities(sizes, hardness, hardness_exponent=0.0, **FREE)
    rows = grouping.balanced_rows(groups, domains, seed=0)
    drawn = np.zeros_like(sizes)
    np.add.at(drawn, (domains[rows], groups[rows]), 1)
    shares = lambda x: x / x.sum(1, keepdims=True)
    np.testing.assert_allclose(shares(balanced), shares(drawn))


def test_hardness_as_in_the_weights_of_fairgrpo():
    """A weight n ** -1/2 / r on n rows is a mass of n ** 1/2 / r: the same with 1 / r as hardness."""
    q = grouping.sampling_probabilities([[40, 10, 0]], [[1 / 0.8, 1 / 0.2, 1.0]], size_exponent=0.5, **FREE)
    np.testing.assert_allclose(q[0, 0] / q[0, 1], (40 * 40**-0.5 / 0.8) / (10 * 10**-0.5 / 0.2))


@given(
    hnp.arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 5)), elements=st.integers(0, 50)),
    st.floats(1, 20),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_probabilities_of_any_cells(sizes, max_ratio, floor, seed):
    assume(sizes.sum() > 0)
    hardness = np.random.default_rng(seed).choice([0.0, 0.1, 0.5, 1.0], sizes.shape)
    q = grouping.sampling_probabilities(sizes, hardness, max_ratio=max_ratio, floor=floor)
    assert q.sum() == pytest.approx(1) and (q[sizes == 0] == 0).all() and (q >= 0).all()
    natural = sizes / sizes.sum()
    assert (q <= max_ratio * natural + 1e-12).all() and (q >= floor * natural - 1e-12).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(0, 200), st.floats(0, 1, exclude_max=True))
@example([1.0], 2, 0.9999999999999999)
def test_systematic_counts_are_never_off_by_more_than_one(weights, count, start):
    assume(sum(weights) > 1e-6)
    q = np.array(weights) / sum(weights)
    counts = grouping.systematic_counts(q, count, start)
    assert counts.sum() == count and (counts >= 0).all() and (counts[q == 0] == 0).all()
    assert (np.abs(counts - count * q) < 1 + 1e-9).all()


def test_no_more_are_drawn_than_asked_for_from_the_very_start():
    """The sum of 25 times 0.04 is a little above 1, so that a cell of almost no probability would give one back."""
    counts = grouping.systematic_counts(np.r_[np.full(25, 0.04), 1e-18], 552, 0.0)
    assert counts.sum() == 552 and set(counts[:25]) <= {22, 23} and counts[25] in (0, 1)


def test_systematic_counts_have_the_expectation_of_the_probabilities():
    q = np.array([[0.5, 0.013], [0.287, 0.2]])
    starts = (np.arange(10_000) + 0.5) / 10_000
    mean = np.mean([grouping.systematic_counts(q, 64, start) for start in starts], axis=0)
    np.testing.assert_allclose(mean, 64 * q, atol=1e-3)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: grouping.sampling_probabilities([[1, 2]], [[1.0]]), "wanted .domains, groups. twice"),
        (lambda: grouping.sampling_probabilities([[1, 2]], [[1.0, -1.0]]), "hardness from -1.0 to 1.0"),
        (lambda: grouping.sampling_probabilities([[0, 0]], [[1.0, 1.0]]), "without any row"),
        (lambda: grouping.sampling_probabilities([[1, 1]], [[1.0, 1.0]], max_ratio=0.5), "max_ratio=0.5"),
        (lambda: grouping.sampling_probabilities([[1]], [[1.0]], domain_exponent=np.nan), "domain_exponent=nan"),
        (lambda: grouping.sampling_probabilities([[1]], [[1.0]], size_exponent=np.inf), "size_exponent=inf"),
        (lambda: grouping.sampling_probabilities([[1, 1]], [[0.0, 1]], hardness_exponent=-1), "hardness_exponent=-1"),
        (lambda: grouping.systematic_counts([0.5, 0.4], 4, 0.1), "with sum 0.9; wanted .* with sum 1"),
        (lambda: grouping.systematic_counts([0.5, 0.5], 4, 1.0), "start=1.0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
