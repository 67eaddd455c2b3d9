"""Groups of prompts: explicit ones from demographics, implicit ones from clusters of reward vectors.

Explicit groups are made on the host, once per run: ``vocabulary`` lists the joint cells that occur, and
``explicit_groups`` looks rows up in it. ``cluster`` runs on the device with fixed shapes, or in scikit-learn on the
host; ``cluster_successes`` is exact. On the host as well: which cell to draw prompts from (``sampling_probabilities``,
``systematic_counts``), and balancing and agreement for studies.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpy.typing import ArrayLike

from fairgrpo_jax import _kmeans, demographics
from fairgrpo_jax._statistics import wide
from fairgrpo_jax.demographics import MISSING, SEPARATOR, age_bins as age_bins


Attributes = Mapping[str, str | None]


class Vocabulary(NamedTuple):
    """The joint demographic cells of a run; a cell's index in ``cells`` is its group id.

    Both fields are tuples of strings: ``vocabulary._asdict()`` can be written as JSON, ``Vocabulary(**loaded)`` reads
    it.
    """

    attributes: Sequence[str]
    cells: Sequence[str]


def vocabulary(rows: Iterable[Attributes], attributes: Sequence[str] | None = None) -> Vocabulary:
    """The joint cells that occur in ``rows``, sorted, so that the order of the rows does not matter.

    A cell joins the values of all attributes, as ``"F, ≤50"``; an unknown part is ``"?"``, and such a cell is a group
    like any other. A row with no known attribute belongs to no cell.

    Args:
        rows: one mapping attribute -> value per row; None, ``""`` or an absent key = unknown.
        attributes: the attributes to join, in this order; default: all that occur, in order of first appearance. Other
            attributes do not affect the groups.

    Returns:
        The vocabulary; the number of groups is ``len(vocabulary.cells)``.

    Raises:
        ValueError: if a chosen attribute occurs in no row, or a value holds the separator or is itself ``"?"``.

    Source: FairGRPO (arXiv 2510.19893) groups by sex x age inside each dataset. The authors' code treats a missing
    attribute in the same way (a cell of its own), but accepts ``nan`` and empty text as values.

    >>> vocabulary([{"sex": "M", "age": None}, {"sex": "F", "age": ">75"}, {"sex": None}]).cells
    ('F, >75', 'M, ?')
    """
    rows = list(rows)
    occurring = list(dict.fromkeys(name for row in rows for name in row))
    names = occurring if attributes is None else list(attributes)
    if absent := [name for name in names if name not in occurring]:
        raise ValueError(f"got attributes {absent}, which no row has; wanted some of {occurring}")
    cells = {_cell(row, names) for row in rows} - {None}
    return Vocabulary(tuple(names), tuple(sorted(cell for cell in cells if cell is not None)))


def explicit_groups(attributes: Iterable[Attributes], vocabulary: Vocabulary) -> np.ndarray:
    """Group id of each row, for ``fairness.fair_grpo``.

    Args:
        attributes: one mapping attribute -> value per row; None, ``""`` or an absent key = unknown.
        vocabulary: from ``grouping.vocabulary``, made once per run from all training rows.

    Returns:
        (N,) int32 in 0 .. len(vocabulary.cells) - 1, or -1 where every attribute is unknown.

    Raises:
        ValueError: if a row's cell is not in the vocabulary.

    >>> rows = [{"sex": "F", "age": "≤50"}, {"sex": "M", "age": "≤50"}, {}]
    >>> explicit_groups(rows, vocabulary(rows)).tolist()
    [0, 1, -1]
    """
    ids: dict[str | None, int] = {cell: i for i, cell in enumerate(vocabulary.cells)}
    ids[None] = -1
    cells = [_cell(row, vocabulary.attributes) for row in attributes]
    if unknown := sorted({str(cell) for cell in cells if cell not in ids}):
        raise ValueError(
            f"got the cells {unknown}, which are not in the vocabulary {list(vocabulary.cells)}; "
            "make the vocabulary from every row that will be looked up"
        )
    return np.asarray([ids[cell] for cell in cells], np.int32)


def cluster(
    vectors: ArrayLike,
    *,
    k_max: int,
    threshold: float = 0.1,
    key: jax.Array | None = None,
    method: Literal["jax", "sklearn"] = "jax",
    weights: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """K-means with the number of clusters chosen by an elbow.

    With I_k the inertia (weighted sum of squared distances to the nearest of k centres) and K = min(k_max, number of
    distinct points), k is the smallest 2 <= k < K with I_k - I_{k+1} < threshold (I_{k-1} - I_k), else K.

    ``method="jax"`` is jitted, of fixed shape and deterministic in ``key``. Equal points are merged into one with their
    joint weight. For each k, 32 k-means++ starts (up to 64 where points are few) run 2, 4 and 8 Lloyd steps, the worse
    half dropping out after each round; the rest move points between clusters until no move lowers the inertia, for at
    most 100 steps; the lowest inertia wins.
    ``method="sklearn"`` runs on the host: ``KMeans(n_init="auto", random_state=0)``.

    Args:
        vectors: (n, d) points, finite where their weight is not 0.
        k_max: maximum number of clusters, >= 1.
        threshold: threshold of the elbow, in [0, 1].
        key: a PRNG key; None is ``jax.random.key(0)``. Not used by scikit-learn.
        method: see above.
        weights: (n,) multiplicities >= 0, 0 = absent; None = all 1.

    Returns:
        Labels (n,) int32 in 0 .. k - 1, -1 for absent points; k, int32; inertias (k_max,), of which only the first K
        are fitted and the rest are 0, with gradients for fixed labels. If all points are equal, k = 1; without points,
        k = 0; with two or more distinct points, k >= 2.

    Raises:
        ValueError: if the shapes do not fit, k_max < 1, or the method is unknown; and, outside of jit, for a negative
            weight, or a present point that is not finite.

    Source: the elbow of QoQ-Med (arXiv 2506.00711) and FairGRPO (arXiv 2510.19893) as in the authors' code, which runs
    scikit-learn with one start; if the best clustering is ambiguous, the two methods may label differently.

    >>> labels, k, _ = cluster([[0.0, 0.0], [0.0, 0.1], [1.0, 1.0], [1.0, 0.9]], k_max=3, threshold=0.2)
    >>> int(k), bool(labels[0] == labels[1] != labels[2])
    (2, True)
    """
    x, w = _read_points(vectors, weights, k_max)
    if method == "sklearn":
        return _cluster_sklearn(np.asarray(vectors, np.float64), np.asarray(w, np.float64), k_max, threshold, x.dtype)
    if method != "jax":
        raise ValueError(f"got method={method!r}; wanted 'jax' or 'sklearn'")
    if x.shape[0] == 0:
        return jnp.zeros(0, jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros(k_max, x.dtype)
    return _kmeans.fit(x, w, jax.random.key(0) if key is None else key, threshold, k_max=k_max)


def cluster_successes(
    counts: ArrayLike, *, k_max: int, threshold: float = 0.1
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Exact best clusters of binary reward vectors when only the number of ones matters; needs no random starts.

    The vectors of G rollouts are taken as sorted, s ones and then G - s zeros. Two of them are |s - t| apart, squared,
    so the inertia of a cluster is sum_{i < j} w_i w_j |s_i - s_j| / sum_i w_i, the best clusters are runs of s, and a
    dynamic programme over where to cut finds them in O(k_max G^2).

    Args:
        counts: (G + 1,) number of vectors with 0, 1, .., G ones, >= 0.
        k_max: maximum number of clusters, >= 1.
        threshold: threshold of the elbow, in [0, 1], see ``cluster``.

    Returns:
        Labels (G + 1,) int32, increasing with s from 0 to k - 1, -1 where the count is 0; k, int32; inertias (k_max,),
        as from ``cluster``, but each the minimum. Among equally good partitions, the last cut is the lowest possible,
        then the one before it, and so on.

    Raises:
        ValueError: if counts are not (G + 1,), or k_max < 1; and, outside of jit, if a count is negative or not finite.

    Source: the clusters of QoQ-Med and FairGRPO, whose authors' code does not sort: there [1, 0] and [0, 1] are
    different points, although the order of rollouts is arbitrary.

    >>> labels, k, inertias = cluster_successes([4, 1, 0, 0, 3], k_max=3, threshold=0.2)
    >>> labels.tolist(), int(k), [round(float(x), 3) for x in inertias]
    ([0, 0, -1, -1, 1], 2, [7.625, 0.8, 0.0])
    """
    w = jnp.asarray(counts)
    if w.ndim != 1 or w.shape[0] == 0 or k_max < 1:
        raise ValueError(f"got counts of shape {w.shape} and k_max={k_max}; wanted (rollouts + 1,) and k_max >= 1")
    _check_weights(w, "counts")
    return _kmeans.fit_successes(wide(w), threshold, k_max=k_max)


def agreement(labels: ArrayLike, attributes: Sequence[Any] | np.ndarray) -> dict[str, float]:
    """How well implicit groups agree with hidden attributes: adjusted Rand index and normalised mutual information.

    Args:
        labels: (N,) int cluster ids; -1 = none. Clusters of different domains need different ids.
        attributes: (N,) text or ids, e.g. from ``explicit_groups``; None, ``""``, NaN or -1 = unknown.

    Returns:
        A dict of ``ari`` in [-0.5, 1], 0 = no better than chance; ``nmi`` in [0, 1], by the arithmetic mean of the
        entropies; both NaN if no row is left; ``n``, the rows compared, and ``left_out``, those without a label or an
        attribute.

    Raises:
        ValueError: if there is not one attribute per label.

    Source: scikit-learn's ``adjusted_rand_score`` and ``normalized_mutual_info_score``, as in the authors' ND code.

    >>> agreement([0, 0, 1, 1, -1], ["F", "F", "M", "M", "M"])
    {'ari': 1.0, 'nmi': 1.0, 'n': 4, 'left_out': 1}
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    ids = np.asarray(labels)
    if ids.ndim != 1 or len(attributes) != len(ids):
        raise ValueError(f"got labels of shape {ids.shape} and {len(attributes)} attributes; wanted one a label")
    known = np.asarray([a is not None and a == a and a not in ("", -1) for a in attributes], bool)
    kept = (ids >= 0) & known
    names = [str(a) for a, keep in zip(attributes, kept, strict=True) if keep]
    ari, nmi = (
        float(score(names, ids[kept])) if names else math.nan
        for score in (adjusted_rand_score, normalized_mutual_info_score)
    )
    return {"ari": ari, "nmi": nmi, "n": len(names), "left_out": len(ids) - len(names)}


def balanced_weights(groups: ArrayLike, domains: ArrayLike | None = None) -> np.ndarray:
    """Expected copies of each row when every group is resampled to the size of the largest group of its domain.

    w = max_g(n_{d, g}) / n_{d, g}, with n the rows of domain d and group g.

    Args:
        groups: (N,) ids or text; the unlabelled, -1, are a group like any other.
        domains: (N,) ids or text; None = all rows are in one.

    Returns:
        (N,) float64, >= 1.

    Raises:
        ValueError: if the shapes do not fit.

    Source: the resampling baseline, GRPO+RS, of FairGRPO (arXiv 2510.19893); the authors' ``balance_demographics``
    also takes any text, "UNK" included, for a group. ``balanced_rows`` draws such a sample.

    >>> balanced_weights([0, 0, 1, 0], domains=[0, 0, 0, 1]).tolist()
    [1.0, 1.0, 2.0, 1.0]
    """
    cell, size, target = _cells(groups, domains)
    return (target / size)[cell]


def balanced_rows(groups: ArrayLike, domains: ArrayLike | None = None, *, seed: int) -> np.ndarray:
    """Shuffled rows in which all groups of a domain have the same size, each row at least once.

    Each row occurs floor(w) times, w = ``balanced_weights``; which rows of a group occur once more is drawn at random.

    Args:
        groups: (N,) ids or text; the unlabelled, -1, are a group like any other.
        domains: (N,) ids or text; None = all rows are in one.
        seed: random seed of the draw and of the order, for NumPy's ``default_rng``.

    Returns:
        (M,) int64 in 0 .. N - 1, M = sum over domains of groups times the rows of the largest group.

    Raises:
        ValueError: if the shapes do not fit.

    Source: as ``balanced_weights``.

    >>> sorted(balanced_rows([0, 0, 1], seed=0).tolist())
    [0, 1, 2, 2]
    """
    cell, size, target = _cells(groups, domains)
    rng = np.random.default_rng(seed)
    rows = [
        np.concatenate([np.tile(members, target[c] // size[c]), rng.permutation(members)[: target[c] % size[c]]])
        for c, members in ((c, np.flatnonzero(cell == c)) for c in range(len(size)))
    ]
    return rng.permutation(np.concatenate([np.zeros(0, np.int64), *rows]))


def sampling_probabilities(
    sizes: ArrayLike,
    hardness: ArrayLike,
    *,
    size_exponent: float = 1.0,
    hardness_exponent: float = 1.0,
    domain_exponent: float = 0.5,
    max_ratio: float = 10.0,
    floor: float = 0.05,
) -> np.ndarray:
    """Probability of drawing the next prompt from each cell: more from where more is still wrong.

    A domain gets ∝ (its rows) ** domain_exponent, and a cell within it ∝ n ** (1 - size_exponent) * h **
    hardness_exponent. No cell gets more than ``max_ratio`` times its natural share n / N, which bounds how often a
    patient is repeated; what is cut off goes to the other cells in proportion. A share ``floor`` is drawn naturally.

    Drawing by q has the same expected gradient as weighting naturally drawn prompts by q N / n, with a variance that is
    smaller by 1 / (effective sample size) where the gradients of all cells are equally large.

    Limits: size_exponent 0, hardness_exponent 0 and domain_exponent 1 draw naturally; size_exponent 1 and
    hardness_exponent 0 balance the groups of a domain, as ``balanced_rows``; with a hardness of (mean reward) ** -1 and
    size_exponent 0.5 the cells of a domain stand to each other as in FairGRPO's weights.

    Args:
        sizes: (D, Gr + 1) rows of each domain and group in the data, the unlabelled in the last column; >= 0. Counts of
            what has been drawn would be circular.
        hardness: (D, Gr + 1) >= 0, such as 1 - mean reward.
        size_exponent: 1 = all groups of a domain alike, 0 = by their size.
        hardness_exponent: power of the hardness; 0 ignores it.
        domain_exponent: 1 = domains by their size, 0 = all alike.
        max_ratio: >= 1, also infinite.
        floor: 0 to 1.

    Returns:
        (D, Gr + 1) float64 that sums to 1; 0 for cells without rows. A domain whose hardness is 0 everywhere is drawn
        from as if it were equal.

    Raises:
        ValueError: if the shapes differ, a number is negative or not finite, or there are no rows.

    Source: ours; measured on the clinic only.

    >>> sampling_probabilities([[90, 10]], [[0.2, 0.8]], max_ratio=5, floor=0.0).tolist()
    [[0.5, 0.5]]
    >>> sampling_probabilities([[90, 10]], [[0.2, 0.8]], floor=0.0).tolist()
    [[0.2, 0.8]]
    """
    n, h = np.asarray(sizes, np.float64), np.asarray(hardness, np.float64)
    if n.ndim != 2 or n.shape != h.shape:
        raise ValueError(
            f"got sizes of shape {n.shape} and hardness of shape {h.shape}; wanted (domains, groups) twice"
        )
    for name, values in (("sizes", n), ("hardness", h)):
        if not np.all(np.isfinite(values) & (values >= 0)):
            raise ValueError(f"got {name} from {values.min()} to {values.max()}; wanted finite numbers >= 0")
    if not n.sum() > 0:
        raise ValueError("got cells without any row; wanted at least one row")
    if not (max_ratio >= 1 and 0 <= floor <= 1):
        raise ValueError(f"got max_ratio={max_ratio}, floor={floor}; wanted a ratio >= 1 and a share")
    if not (np.isfinite([size_exponent, hardness_exponent, domain_exponent]).all() and hardness_exponent >= 0):
        raise ValueError(
            f"got size_exponent={size_exponent}, hardness_exponent={hardness_exponent}, "
            f"domain_exponent={domain_exponent}; wanted finite numbers, that of the hardness >= 0"
        )
    here = n > 0
    natural = n / n.sum()
    bulk = np.where(here, n, 1.0) ** (1 - size_exponent) * here
    mass = bulk * h**hardness_exponent
    mass = np.where(mass.sum(1, keepdims=True) > 0, mass, bulk)
    domain = np.where(here.any(1), n.sum(1), 1.0) ** domain_exponent * here.any(1)
    wanted = domain[:, None] / domain.sum() * mass / np.maximum(mass.sum(1, keepdims=True), np.finfo(float).tiny)
    limits = np.where(here, max_ratio * np.where(here, natural, 1.0), 0.0)
    return (1 - floor) * _at_most(wanted, limits, natural) + floor * natural


def systematic_counts(probabilities: ArrayLike, count: int, start: float) -> np.ndarray:
    """Numbers of prompts to draw from each cell: systematic sampling, floor or ceil of count * probability each.

    The cells lie side by side on a line of length ``count``; those at start, start + 1, ... are drawn. With ``start``
    uniform the expectation is exact, and the variance between the cells is gone.

    Args:
        probabilities: any shape, >= 0, with sum 1.
        count: number of prompts, >= 0.
        start: in [0, 1), uniform for an unbiased draw.

    Returns:
        int64 of the same shape, with sum ``count``.

    Raises:
        ValueError: if ``start`` or the sum of the probabilities is something else.

    Source: Madow 1949, systematic sampling with unequal probabilities.

    >>> systematic_counts([0.5, 0.3, 0.2], 4, 0.1).tolist()
    [2, 2, 0]
    """
    q = np.asarray(probabilities, np.float64)
    if not 0 <= start < 1 or count < 0 or not np.all(q >= 0) or abs(q.sum() - 1) > 1e-6:
        raise ValueError(
            f"got start={start}, count={count}, probabilities with sum {q.sum()}; wanted 0 <= start < 1, count >= 0, "
            "probabilities >= 0 with sum 1"
        )
    ends = np.cumsum(q.ravel()) * (count / q.sum())
    passed = np.minimum(np.ceil(ends - start).astype(np.int64), count)
    passed[np.flatnonzero(q.ravel())[-1] :] = count  # whatever was rounded, all are drawn
    return np.diff(passed, prepend=0).reshape(q.shape)


def _at_most(shares: np.ndarray, limits: np.ndarray, natural: np.ndarray) -> np.ndarray:
    """Shares that sum to 1, none above its limit; what is cut off goes to the others in proportion.

    Where the others have none, it goes to them by their natural shares. The limits sum to at least 1.
    """
    full = np.zeros(shares.shape, bool)
    while True:
        room = 1 - limits[full].sum()
        part = np.where(full, 0.0, shares if shares[~full].sum() > 0 else natural)
        found = np.where(full, limits, part * (room / part.sum() if part.sum() else 0.0))
        over = ~full & (found > limits)
        if not over.any():
            return found
        full |= over


def _read_points(vectors: ArrayLike, weights: ArrayLike | None, k_max: int) -> tuple[jax.Array, jax.Array]:
    """Checks points and weights; returns them as float32 or float64."""
    x = jax.device_put(vectors) if isinstance(vectors, np.ndarray) else jnp.asarray(vectors)
    x = wide(x)
    if x.ndim != 2 or k_max < 1:
        raise ValueError(
            f"got vectors of shape {x.shape} and k_max={k_max}; wanted (points, dimensions) and k_max >= 1"
        )
    w = jax.device_put(np.ones(x.shape[0], x.dtype)) if weights is None else jnp.asarray(weights, x.dtype)
    if w.shape != x.shape[:1]:
        raise ValueError(f"got weights of shape {w.shape} for {x.shape[0]} points; wanted one a point")
    _check_weights(w, "weights")
    if any(isinstance(each, Tracer) for each in (x, w)):
        return x, w
    if not np.all(np.isfinite(np.asarray(x)) | (np.asarray(w) == 0)[:, None]):
        raise ValueError("got a point that is not finite; wanted finite vectors; give absent points the weight 0")
    return x, w


def _check_weights(w: jax.Array, name: str) -> None:
    if isinstance(w, Tracer):
        return
    values = np.asarray(w)
    if not np.all((values >= 0) & np.isfinite(values)):
        raise ValueError(f"got {name} from {values.min()} to {values.max()}; wanted finite multiplicities >= 0")


def _cluster_sklearn(
    x: np.ndarray, w: np.ndarray, k_max: int, threshold: float, dtype: np.dtype
) -> tuple[jax.Array, jax.Array, jax.Array]:
    from sklearn.cluster import KMeans

    present = w > 0
    labels, inertias = np.full(len(x), -1), np.zeros(k_max)
    num_distinct = min(k_max, len(np.unique(x[present], axis=0)))
    # Equal weights are not passed on, because scikit-learn draws other starts with them.
    sample_weight = None if np.all(w[present] == 1) else w[present]
    fits = [
        KMeans(n_clusters=k, n_init="auto", random_state=0).fit(x[present], sample_weight=sample_weight)
        for k in range(1, num_distinct + 1)
    ]
    inertias[:num_distinct] = [fit.inertia_ for fit in fits]
    k = int(_kmeans.elbow(jnp.asarray(inertias), jnp.asarray(num_distinct), threshold))
    if fits:
        labels[present] = fits[k - 1].labels_
    return jnp.asarray(labels, jnp.int32), jnp.asarray(k, jnp.int32), jnp.asarray(inertias, dtype)


def _cells(groups: ArrayLike, domains: ArrayLike | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cell of each row (N,), and the row counts of each cell and of the largest cell in its domain (cells,)."""
    g = np.asarray(groups)
    d = np.zeros(g.shape, np.int64) if domains is None else np.asarray(domains)
    if g.ndim != 1 or d.shape != g.shape:
        raise ValueError(f"got groups of shape {g.shape} and domains of shape {d.shape}; wanted (N,) and (N,)")
    d, g = np.unique(d, return_inverse=True)[1], np.unique(g, return_inverse=True)[1]
    pairs, cell, size = np.unique(np.stack([d, g], axis=1), axis=0, return_inverse=True, return_counts=True)
    largest = np.zeros(len(pairs), np.int64)
    np.maximum.at(largest, pairs[:, 0], size)
    return cell, size, largest[pairs[:, 0]]


def _cell(row: Attributes, names: Sequence[str]) -> str | None:
    """The cell of a row, such as ``"F, ≤50"``; None if all attributes are unknown."""
    values = [row.get(name) or None for name in names]
    for name, value in zip(names, values, strict=True):
        if value is not None and (SEPARATOR in value or value == MISSING):
            raise ValueError(
                f"got {name}={value!r}; wanted a value without {SEPARATOR!r}, and None where it is unknown"
            )
    return demographics.cell(values)
