"""K-means of weighted points in fixed shapes, for ``grouping.cluster`` and ``grouping.cluster_successes``.

``fit`` searches: for each k many starts race over a few cheap steps, half of them dropping out in each round, and the
finalists move points until no move helps. ``fit_successes`` needs no search, because its points lie on a line.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fairgrpo_jax._statistics import or_one


MIN_STARTS, MAX_STARTS = 32, 64  # number of k-means++ starts: as many as keep
STARTED_POINTS = 2**15  # starts x points below this
RACE_STEPS = 2, 4, 8  # Lloyd steps of each round; after each round the better half goes on
NUM_ITERATIONS = 100  # maximum number of steps of a finalist
ROUNDING = 8  # machine epsilons; a step of a finalist must explain more by a larger share


@functools.partial(jax.jit, static_argnames=("k_max",))
def fit(
    x: jax.Array, w: jax.Array, key: jax.Array, threshold: float, *, k_max: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Labels (n,), k and inertias (k_max,) as ``grouping.cluster``, of n >= 1 points (n, d) with weights (n,)."""
    x = jnp.where(w[:, None] > 0, x, 0)  # an absent point may hold any value
    mean = jnp.matmul(w, x, precision="highest") / or_one(jnp.sum(w))
    x -= jax.lax.stop_gradient(mean)[None, :]  # smaller numbers round less
    labels, num_distinct = _search(jax.lax.stop_gradient(x), jax.lax.stop_gradient(w), key, k_max)
    return _choose(labels, jax.vmap(lambda own: inertia(x, w, own, k_max))(labels), num_distinct, w, threshold)


@functools.partial(jax.jit, static_argnames=("k_max",))
def fit_successes(counts: jax.Array, threshold: float, *, k_max: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As ``fit`` for the points s = 0 .. G, s ones and then zeros, with weights (G + 1,); labels rise with s.

    The squared distance of s and t is |s - t|, so a cluster of joint weight W has the inertia
    sum_{s < t} w_s w_t (t - s) / W. Best clusters are runs of s, and the best k runs up to t are the best k - 1 up to
    some cut and one run from there.
    """
    places = jnp.arange(counts.shape[0])
    upwards = places[None, :] - places[:, None]
    pairs = counts[:, None] * counts[None, :] * jnp.maximum(upwards, 0)
    pairs = jnp.cumsum(jnp.cumsum(pairs[::-1], axis=0)[::-1], axis=1)  # [s, t]: summed over the run from s to t
    weight = jnp.cumsum(jnp.where(upwards >= 0, counts[None, :], 0), axis=1)
    run = jnp.where(weight > 0, pairs / or_one(weight), jnp.inf)

    def add_run(carry: tuple[jax.Array, jax.Array], k: jax.Array) -> tuple[tuple, tuple]:
        best, labels = carry  # [t]: of the points up to t
        before = jnp.concatenate([jnp.full(1, jnp.inf, best.dtype), best[:-1]])
        total = before[:, None] + run
        cut = jnp.argmin(total, axis=0)  # the lowest of equally good ones
        labels = jnp.where(places[None, :] < cut[:, None], labels[jnp.maximum(cut - 1, 0)], k)
        return (jnp.min(total, axis=0), labels), (jnp.min(total[:, -1]), labels[-1])

    alone = run[0], jnp.zeros(run.shape, jnp.int32)
    _, (inertias, labels) = jax.lax.scan(add_run, alone, jnp.arange(1, k_max, dtype=jnp.int32))
    inertias = jnp.concatenate([run[0, -1:], inertias])
    labels = jnp.concatenate([alone[1][-1:], labels])
    num_distinct = jnp.minimum(jnp.sum(counts > 0, dtype=jnp.int32), k_max)
    return _choose(labels, inertias, num_distinct, counts, threshold)


def elbow(inertias: jax.Array, num_distinct: jax.Array, threshold: float) -> jax.Array:
    """The smallest k in 2 .. K - 1 after which the inertia falls by less than a share of its last fall, else K."""
    falls = inertias[:-1] - inertias[1:]
    flat = falls[1:] < threshold * falls[:-1]
    candidates = jnp.arange(2, 2 + flat.shape[0], dtype=jnp.int32)
    passing = jnp.where(flat & (candidates < num_distinct), candidates, num_distinct)
    return jnp.min(passing, initial=num_distinct).astype(jnp.int32)


def inertia(x: jax.Array, w: jax.Array, own: jax.Array, k: int) -> jax.Array:
    """Weighted sum of the squared distances of points (n, d) to the means of their clusters (n,) in 0 .. k - 1."""
    member = jnp.where(own[None, :] == jnp.arange(k)[:, None], w[None, :], 0)
    means = jnp.matmul(member, x, precision="highest") / or_one(jnp.sum(member, axis=1))[:, None]
    return jnp.sum(w * jnp.sum((x - means[own]) ** 2, axis=1))


def _choose(
    labels: jax.Array, inertias: jax.Array, num_distinct: jax.Array, w: jax.Array, threshold: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Selects the labels at the elbow from (k_max, n)."""
    inertias = jnp.where(jnp.arange(inertias.shape[0]) < num_distinct, inertias, 0)
    k = elbow(inertias, num_distinct, threshold)
    return jnp.where(w > 0, labels[jnp.maximum(k - 1, 0)], -1), k, inertias


def _search(x: jax.Array, w: jax.Array, key: jax.Array, k_max: int) -> tuple[jax.Array, jax.Array]:
    """Labels (k_max, n) for each k, and the K of the elbow, for points around 0; the starts of a k run side by side.

    From here on points are columns, (d, n): long rows suit vector units.
    """
    x, w, place = _merge(x, w)
    num_distinct = jnp.minimum(jnp.sum(w > 0, dtype=jnp.int32), k_max)
    alone = jnp.zeros((1, w.shape[0]), jnp.int32)
    if k_max == 1:
        return alone, num_distinct
    mass = w[None, :] * jnp.concatenate([x, jnp.ones_like(w)[None]])  # (d + 1, n), the last row is w

    def compete(used: jax.Array) -> jax.Array:
        """Labels (n,) for one k, the number of centres used (k_max,)."""
        centres = starts
        for num_steps in RACE_STEPS:
            centres, explained = jax.vmap(_race, (None, None, 0, None, None))(x, mass, centres, used, num_steps)
            _, best = jax.lax.top_k(explained, centres.shape[0] // 2)
            centres = centres[best]
        labels, inertias = jax.vmap(_descend, (None, None, 0, None))(x, mass, centres, used)
        return labels[jnp.argmin(inertias)]

    num_starts = min(max(STARTED_POINTS // w.shape[0], MIN_STARTS), MAX_STARTS)
    uniform = jax.random.uniform(key, (num_starts, k_max), w.dtype)
    starts = jax.vmap(_plus_plus, (None, None, 0))(x, w, uniform)
    labels = jax.lax.map(compete, jnp.arange(k_max)[None, :] < jnp.arange(2, k_max + 1)[:, None])
    return jnp.concatenate([alone, labels])[:, place], num_distinct


def _merge(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Merges equal points into one of their joint weight, in as many columns; also returns each point's new column.

    All copies of a reward vector then move between clusters together, which helps to leave local optima. Equal points
    become neighbours when sorted along a generic direction; a different point with the same projection may split a
    stack, which only loses that advantage. Absent points come last.
    """
    direction = jnp.asarray(np.random.default_rng(0).random(x.shape[1]), x.dtype)
    order = jnp.argsort(jnp.where(w > 0, jnp.matmul(x, direction, precision="highest"), jnp.inf))
    ordered = x[order]
    stack = jnp.cumsum(jnp.any(ordered != jnp.roll(ordered, 1, axis=0), axis=1).at[0].set(False))
    weights = jnp.zeros_like(w).at[stack].add(w[order])
    return jnp.zeros_like(x).at[stack].set(ordered).T, weights, jnp.zeros_like(stack).at[order].set(stack)


def _plus_plus(x: jax.Array, w: jax.Array, uniform: jax.Array) -> jax.Array:
    """K-means++ (k_max, d): the next centre is a point drawn in proportion to w times squared distance.

    The first k centres are such a start for k clusters, whatever k is.
    """

    def draw(mass: jax.Array, u: jax.Array) -> jax.Array:
        below = jnp.cumsum(mass)  # by rounding it may also rise, or fall, where there is no mass
        # With fewer distinct points than clusters no mass is left: then the first point is drawn, which is present.
        return x[:, jnp.argmax((mass > 0) & (below > u * below[-1]))]

    def place(nearest: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        centre = draw(w * nearest, u)
        return jnp.minimum(nearest, _distances(x, centre[None])[0]), centre

    first = draw(w, uniform[0])
    _, centres = jax.lax.scan(place, _distances(x, first[None])[0], uniform[1:])
    return jnp.concatenate([first[None], centres])


def _race(x: jax.Array, mass: jax.Array, centres: jax.Array, used: jax.Array, num_steps: int) -> tuple:
    """Runs a few Lloyd steps; returns the centres and the inertia they explain. Distances use the expanded square."""

    def step(_: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        centres = carry[0]
        square = jnp.where(used, jnp.sum(centres**2, axis=1), jnp.inf)
        apart = square[:, None] - 2 * jnp.matmul(centres, x, precision="highest")
        totals = _tally(mass, jnp.argmin(apart, axis=0), used.shape[0])
        return jnp.where(totals[:, -1:] > 0, _means(totals), centres), _explained(totals)

    return jax.lax.fori_loop(0, num_steps, step, (centres, jnp.zeros((), x.dtype)))


def _descend(x: jax.Array, mass: jax.Array, centres: jax.Array, used: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Moves points between clusters until no move helps (Hartigan 1975); returns labels and inertia.

    Moving a point of weight w from a cluster of weight a to one of weight b costs w b / (b + w) times its squared
    distance to the new centre and saves w a / (a - w) times that to the old one. Each step makes all moves that pay off
    or, unless together they do clearly better, the best single move. An empty cluster thus gets the point that is
    farthest off.
    """
    w, clusters = mass[-1], jnp.arange(used.shape[0])
    rounding = ROUNDING * jnp.finfo(x.dtype).eps

    def step(carry: tuple) -> tuple:
        own, totals, _, i = carry
        sizes = totals[:, -1:]
        mine = own[None, :] == clusters[:, None]
        cost = _distances(x, _means(totals)) * sizes / or_one(sizes + jnp.where(mine, -w[None, :], w[None, :]))
        cost = jnp.where(used[:, None], cost, jnp.inf)
        to = jnp.argmin(cost, axis=0)
        saved = jnp.sum(jnp.where(mine, cost, 0), axis=0)
        gain = w * (saved - jnp.min(cost, axis=0))
        point = jnp.argmax(gain)
        move = (clusters == to[point]).astype(x.dtype) - (clusters == own[point]).astype(x.dtype)
        one = totals + move[:, None] * mass[None, :, point]
        many = _tally(mass, to, used.shape[0])
        together = _explained(many) > (1 + rounding) * _explained(one)
        better = together | (gain[point] > rounding * jnp.sum(w * saved))
        to = jnp.where(together, to, own.at[point].set(to[point]))
        return jnp.where(better, to, own), jnp.where(together, many, one), better, i + 1

    own = jnp.argmin(jnp.where(used[:, None], _distances(x, centres), jnp.inf), axis=0)
    start = own, _tally(mass, own, used.shape[0]), jnp.array(True), jnp.zeros((), jnp.int32)
    own, *_ = jax.lax.while_loop(lambda carry: carry[2] & (carry[3] < NUM_ITERATIONS), step, start)
    return own.astype(jnp.int32), inertia(x.T, w, own, used.shape[0])


def _distances(x: jax.Array, centres: jax.Array) -> jax.Array:
    """(k, n) squared distances, from differences because the expanded square would cancel."""
    return jnp.sum((x[None, :, :] - centres[:, :, None]) ** 2, axis=1)


def _tally(mass: jax.Array, own: jax.Array, k: int) -> jax.Array:
    """Totals (k, d + 1) of the clusters: weighted sums of their points and total weights."""
    return jnp.matmul((own[None, :] == jnp.arange(k)[:, None]).astype(mass.dtype), mass.T, precision="highest")


def _means(totals: jax.Array) -> jax.Array:
    return totals[:, :-1] / or_one(totals[:, -1:])


def _explained(totals: jax.Array) -> jax.Array:
    """Inertia of a single cluster minus that of these clusters, for points around 0."""
    return jnp.sum(jnp.sum(totals[:, :-1] ** 2, axis=1) / or_one(totals[:, -1]))
