"""Who belongs together: explicit groups from demographics, implicit groups from clusters of reward vectors.

Explicit groups are made on the host, once per run: ``vocabulary`` lists the joint cells that occur, ``explicit_groups``
looks rows up in it.  ``cluster`` runs on the device with fixed shapes, or in scikit-learn on the host.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike


UNKNOWN = "?"
SEPARATOR = ", "
MIN_STARTS, MAX_STARTS = 4, 32  # k-means++ starts, the best inertia wins: as many as keep
STARTED_POINTS = 2**10  # starts x points below this
NUM_ITERATIONS = 100  # steps of a start at most

Attributes = Mapping[str, str | None]


class Vocabulary(NamedTuple):
    """The joint demographic cells of a run; a cell's place in ``cells`` is its group id.

    Both fields are tuples of text, so ``vocabulary._asdict()`` goes through JSON and ``Vocabulary(**loaded)`` back.
    """

    attributes: Sequence[str]
    cells: Sequence[str]


def age_bins(age: ArrayLike | Sequence[float | None], edges: Sequence[float] = (25, 50, 75)) -> np.ndarray:
    """Index of the age bin, upper edge inclusive.

    Args:
      age: (N,) years, fractions allowed, >= 0; None or NaN = unknown.
      edges: increasing upper edges of all bins but the last.  The default gives <= 25, (25, 50], (50, 75], > 75.

    Returns:
      (N,) int32 in 0 .. len(edges), or -1 where the age is unknown.

    Raises:
      ValueError: if an age is negative, or the edges do not increase.

    Source: the bins of FairGRPO (arXiv 2510.19893).  The authors' code puts an age of NaN in the oldest bin; here it
    is unknown.

    >>> age_bins([25, 25.5, 80, None]).tolist()
    [0, 1, 3, -1]
    """
    years = np.asarray(age, np.float64)
    if np.any(years < 0):
        raise ValueError(f"got a negative age, {years[years < 0][0]}; wanted years >= 0, or None where unknown")
    if np.any(np.diff(edges) <= 0):
        raise ValueError(f"got edges={tuple(edges)}; wanted increasing ages")
    return np.where(np.isnan(years), -1, np.searchsorted(edges, years, side="left")).astype(np.int32)


def vocabulary(rows: Iterable[Attributes], attributes: Sequence[str] | None = None) -> Vocabulary:
    """The joint cells that occur in ``rows``, sorted, so that the order of the rows does not matter.

    A cell joins the values of all attributes, as ``"F, ≤50"``; an unknown part is ``"?"``, and such a cell is a group
    like any other.  A row that is wholly unknown belongs to no cell.

    Args:
      rows: one mapping attribute -> value a row; None, ``""`` or an absent key = unknown.
      attributes: which to join, in which order; by default all that occur, by name in order of first appearance.
        Attributes left out play no part in the groups.

    Returns:
      the vocabulary; its length in groups is ``len(vocabulary.cells)``.

    Raises:
      ValueError: if a chosen attribute occurs in no row, or a value holds the separator or is itself ``"?"``.

    Source: FairGRPO (arXiv 2510.19893) groups by sex x age inside each dataset.  The authors' code treats one missing
    attribute alike (a cell of its own), but lets ``nan`` and empty text pass as values.

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
      attributes: one mapping attribute -> value a row; None, ``""`` or an absent key = unknown.
      vocabulary: made once per run from all training rows, see ``grouping.vocabulary``.

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

    ``method="jax"`` is jitted, of fixed shape and deterministic in ``key``: 4 to 32 k-means++ starts (more where
    points are few), each followed by Lloyd's steps and moves of single points (100 in all at most), an empty cluster
    restarts at the worst served point, the lowest inertia wins.
    ``method="sklearn"`` runs on the host: ``KMeans(n_init="auto", random_state=0)``.

    Args:
      vectors: (n, d) points, finite where their weight is not 0.
      k_max: most clusters, >= 1.
      threshold: of the elbow, in [0, 1].
      key: a PRNG key; None is ``jax.random.key(0)``.  Not used by scikit-learn.
      method: see above.
      weights: (n,) multiplicities >= 0, 0 = absent; None = all 1.

    Returns:
      labels (n,) int32 in 0 .. k - 1, -1 for absent points; k, int32; inertias (k_max,), of which only the first K
      are fitted and the rest are 0.  All points equal: k = 1.  No point: k = 0.  With two or more distinct points the
      elbow never returns 1.

    Raises:
      ValueError: if the shapes do not fit, k_max < 1, or the method is unknown.

    Source: the elbow of QoQ-Med (arXiv 2506.00711) and FairGRPO (arXiv 2510.19893) as in the authors' code, which runs
    scikit-learn with one start; where the best clustering is ambiguous the two methods may label differently.

    >>> labels, k, _ = cluster([[0.0, 0.0], [0.0, 0.1], [1.0, 1.0], [1.0, 0.9]], k_max=3, threshold=0.2)
    >>> int(k), bool(labels[0] == labels[1] != labels[2])
    (2, True)
    """
    x = jnp.asarray(vectors, jnp.float32)
    if x.ndim != 2 or k_max < 1:
        raise ValueError(
            f"got vectors of shape {x.shape} and k_max={k_max}; wanted (points, dimensions) and k_max >= 1"
        )
    w = jnp.ones(x.shape[0]) if weights is None else jnp.asarray(weights, jnp.float32)
    if w.shape != x.shape[:1]:
        raise ValueError(f"got weights of shape {w.shape} for {x.shape[0]} points; wanted one a point")
    if method == "sklearn":
        return _cluster_sklearn(np.asarray(vectors, np.float64), np.asarray(w, np.float64), k_max, threshold)
    if method != "jax":
        raise ValueError(f"got method={method!r}; wanted 'jax' or 'sklearn'")
    return _cluster_jax(x, w, jax.random.key(0) if key is None else key, k_max, threshold)


@functools.partial(jax.jit, static_argnames=("k_max",))
def _cluster_jax(
    x: jax.Array, w: jax.Array, key: jax.Array, k_max: int, threshold: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    if x.shape[0] == 0:
        return jnp.zeros(0, jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros(k_max)
    x, w_merged, place = _merge(jnp.where(w[:, None] > 0, x, 0), w)  # an absent point may hold anything
    num_distinct = jnp.minimum(jnp.sum(w_merged > 0), k_max)
    num_starts = min(max(STARTED_POINTS // x.shape[0], MIN_STARTS), MAX_STARTS)
    seeds = jax.vmap(lambda one: _plus_plus(x, w_merged, k_max, one))(jax.random.split(key, num_starts))

    def fit(k: jax.Array) -> tuple[jax.Array, jax.Array]:
        labels, inertias = jax.vmap(lambda centres: _descend(x, w_merged, centres, k))(seeds)
        best = jnp.argmin(inertias)
        return labels[best], inertias[best]

    # One cluster needs no search: all points, around their mean.
    mean = jnp.matmul(w_merged, x, precision="highest") / jnp.maximum(jnp.sum(w_merged), 1e-30)
    alone = jnp.zeros((1, x.shape[0]), jnp.int32), jnp.sum(w_merged * _distances(x, mean[None])[:, 0])[None]
    labels, inertias = map(jnp.concatenate, zip(alone, jax.lax.map(fit, jnp.arange(2, k_max + 1)), strict=True))
    inertias = jnp.where(jnp.arange(k_max) < num_distinct, inertias, 0)
    k = _elbow(inertias, num_distinct, threshold)
    return jnp.where(w > 0, labels[jnp.maximum(k - 1, 0)][place], -1), k, inertias


def _merge(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Equal points made one of their joint weight, in as many rows, and the row where each point went.

    What moves between clusters is then the whole stack of a reward vector, which is what leaves a local optimum.
    """
    order = jnp.lexsort(x.T)
    ordered = x[order]
    row = jnp.cumsum(jnp.any(ordered != jnp.roll(ordered, 1, axis=0), axis=1).at[0].set(False))
    weights = jnp.zeros_like(w).at[row].add(w[order])
    return jnp.zeros_like(x).at[row].set(ordered), weights, jnp.zeros_like(row).at[order].set(row)


def _elbow(inertias: jax.Array, num_distinct: jax.Array, threshold: float) -> jax.Array:
    """The smallest k in 2 .. K - 1 after which the inertia falls by less than a share of its last fall, else K."""
    falls = inertias[:-1] - inertias[1:]
    flat = falls[1:] < threshold * falls[:-1]
    candidates = jnp.arange(2, 2 + flat.shape[0], dtype=jnp.int32)
    passing = jnp.where(flat & (candidates < num_distinct), candidates, num_distinct)
    return jnp.min(passing, initial=num_distinct).astype(jnp.int32)


def _plus_plus(x: jax.Array, w: jax.Array, k_max: int, key: jax.Array) -> jax.Array:
    """K-means++: each next centre is a point drawn with probability proportional to w times squared distance.

    The first k rows are such a start for k clusters, whatever k is.
    """
    keys = jax.random.split(key, k_max)
    first = x[jax.random.categorical(keys[0], jnp.log(w))]

    def place(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        centres, nearest = carry
        # With fewer distinct points than clusters nothing is left to draw from: any present point will do.
        mass = jnp.where(jnp.any(w * nearest > 0), w * nearest, w)
        centre = x[jax.random.categorical(keys[i], jnp.log(mass))]
        return centres.at[i].set(centre), jnp.minimum(nearest, _distances(x, centre[None])[:, 0])

    centres = jnp.tile(first[None], (k_max, 1))
    return jax.lax.fori_loop(1, k_max, place, (centres, _distances(x, first[None])[:, 0]))[0]


def _descend(x: jax.Array, w: jax.Array, seeds: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lloyd's steps on the first k centres until they stand still, then the best move of one point; until none helps.

    The moves (Hartigan and Wong 1979) leave most of the local optima that Lloyd's steps are stuck in.
    """
    used = jnp.arange(seeds.shape[0]) < k

    def distances(centres: jax.Array) -> jax.Array:
        return jnp.where(used[None, :], _distances(x, centres), jnp.inf)

    def step(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        centres, _, i = carry
        apart = distances(centres)
        own = jnp.argmin(apart, axis=1)
        member = w[:, None] * jax.nn.one_hot(own, used.shape[0])
        size = jnp.sum(member, axis=0)[:, None]
        means = jnp.matmul(member.T, x, precision="highest") / jnp.where(size > 0, size, 1)
        worst_served = x[jnp.argmax(w * jnp.min(apart, axis=1))]
        means = jnp.where(size > 0, means, worst_served[None])
        settled = jnp.all(~used[:, None] | (means == centres))
        return jnp.where(settled, _best_move(x, w, means, size[:, 0], apart, own), means), centres, i + 1

    def moving(carry: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        centres, previous, i = carry
        return (i < NUM_ITERATIONS) & jnp.any(used[:, None] & (centres != previous))

    start = (seeds, jnp.full_like(seeds, jnp.nan), jnp.zeros((), jnp.int32))
    centres, _, _ = jax.lax.while_loop(moving, step, start)
    apart = distances(centres)
    return jnp.argmin(apart, axis=1).astype(jnp.int32), jnp.sum(w * jnp.min(apart, axis=1))


def _best_move(
    x: jax.Array, w: jax.Array, centres: jax.Array, size: jax.Array, apart: jax.Array, own: jax.Array
) -> jax.Array:
    """The centres after the move of one point that lowers the inertia most; the same centres if none lowers it."""
    rest = size[own] - w
    saved = jnp.where(rest > 0, w * size[own] / jnp.where(rest > 0, rest, 1), 0) * jnp.min(apart, axis=1)
    grown = size[None, :] + w[:, None]
    elsewhere = jnp.isfinite(apart) & (jnp.arange(size.shape[0])[None, :] != own[:, None])
    paid = w[:, None] * size[None, :] / jnp.where(grown > 0, grown, 1) * apart
    change = jnp.where(elsewhere, paid, jnp.inf) - saved[:, None]
    point, to = jnp.unravel_index(jnp.argmin(change), change.shape)
    source = own[point]
    left = (size[source] * centres[source] - w[point] * x[point]) / jnp.where(rest[point] > 0, rest[point], 1)
    joined = (size[to] * centres[to] + w[point] * x[point]) / jnp.where(grown[point, to] > 0, grown[point, to], 1)
    helps = change[point, to] < -1e-5 * saved[point]  # more than rounding
    return jnp.where(helps, centres.at[source].set(left).at[to].set(joined), centres)


def _distances(x: jax.Array, centres: jax.Array) -> jax.Array:
    """(n, k) squared distances; differences first, for the expanded square would cancel."""
    return jnp.sum((x[:, None, :] - centres[None, :, :]) ** 2, axis=2)


def _cluster_sklearn(
    x: np.ndarray, w: np.ndarray, k_max: int, threshold: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    from sklearn.cluster import KMeans

    present = w > 0
    labels, inertias = np.full(len(x), -1), np.zeros(k_max)
    num_distinct = min(k_max, len(np.unique(x[present], axis=0)))
    # Equal weights are not passed on: scikit-learn draws other starts when they are.
    sample_weight = None if np.all(w[present] == 1) else w[present]
    fits = [
        KMeans(n_clusters=k, n_init="auto", random_state=0).fit(x[present], sample_weight=sample_weight)
        for k in range(1, num_distinct + 1)
    ]
    inertias[:num_distinct] = [fit.inertia_ for fit in fits]
    k = int(_elbow(jnp.asarray(inertias), jnp.asarray(num_distinct), threshold))
    if fits:
        labels[present] = fits[k - 1].labels_
    return jnp.asarray(labels, jnp.int32), jnp.asarray(k, jnp.int32), jnp.asarray(inertias)


def _cell(row: Attributes, names: Sequence[str]) -> str | None:
    """``"F, ≤50"``; None where nothing is known."""
    values: list[Any] = [row.get(name) or UNKNOWN for name in names]
    for name, value in zip(names, values, strict=True):
        if SEPARATOR in value or row.get(name) == UNKNOWN:
            raise ValueError(
                f"got {name}={value!r}; wanted a value without {SEPARATOR!r}, and None where it is unknown"
            )
    return None if all(value == UNKNOWN for value in values) else SEPARATOR.join(values)
