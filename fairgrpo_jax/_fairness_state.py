"""The state of FairGRPO between steps, an explicit pytree of fixed shape, and the clusters of its reward vectors.

Public as ``fairness.FairnessState`` and ``fairness.init``; the other functions serve ``fairness``.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpy.typing import ArrayLike

from fairgrpo_jax import grouping
from fairgrpo_jax._statistics import as_ids, wide


MAX_BINARY_ROLLOUTS = 16

Clustering = Literal["jax", "sklearn"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FairnessState:
    """Statistics of D domains, of Gr groups in each, and the reward vectors of G rollouts.

    Every visit of a prompt counts. Means are stored as means: a float32 sum would stop growing at 2^24. Rewards are
    stored as they are, except for the ``shift`` of ``fairness.temperatures``.
    """

    domain_count: jax.Array  # (D,) int32 prompts seen
    domain_mean: jax.Array  # (D,) float mean reward
    group_count: jax.Array  # (D, Gr + 1) int32; the last column is the unlabelled prompts
    group_mean: jax.Array  # (D, Gr + 1) float
    history: jax.Array | None  # ring: (D, capacity, G) float vectors; binary: (D, 2^G) int32 counts; or None
    cursor: jax.Array  # (D,) int32 vectors of unlabelled prompts ever seen; modulo capacity, the ring's next slot
    dro_log_weight: jax.Array  # (D, Gr + 1) float, of fairness.group_dro: the sum of step_size * loss


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Clusters:
    """Clusters of the remembered reward vectors of each domain."""

    sizes: jax.Array  # (D, k_max) vectors, 0 = no such cluster
    centroids: jax.Array  # (D, k_max, G)


def init(
    num_domains: int,
    num_groups: int,
    num_rollouts: int,
    *,
    history: Literal["ring", "binary"] | None = "ring",
    capacity: int = 8192,
) -> FairnessState:
    """An empty state; its means are float32, or float64 where JAX runs in 64 bit.

    Args:
        num_domains: D, number of datasets.
        num_groups: Gr, number of explicit groups (``len(vocabulary.cells)``); may be 0.
        num_rollouts: G, rollouts per prompt.
        history: how the reward vectors of unlabelled prompts are kept for clustering. ``"ring"``: the last ``capacity``
            of each domain. ``"binary"``: exact counts of all 2^G vectors of 0 and 1, however many prompts are seen.
            None: not at all; the unlabelled prompts of a domain then form one group.
        capacity: number of vectors a ring holds; at least the number of unlabelled prompts in a batch.

    Raises:
        ValueError: if a size is not positive, or G > 16 with ``"binary"``.

    >>> init(2, 4, 8, history="binary").history.shape
    (2, 256)
    """
    if min(num_domains, num_groups + 1, num_rollouts, capacity) < 1:
        raise ValueError(
            f"got {num_domains} domains, {num_groups} groups, {num_rollouts} rollouts, capacity {capacity}; wanted all "
            "positive (num_groups may be 0)"
        )
    if history == "binary" and num_rollouts > MAX_BINARY_ROLLOUTS:
        raise ValueError(
            f"got history='binary' with {num_rollouts} rollouts, 2^{num_rollouts} counts; wanted at most 16"
        )
    kept = {
        "ring": lambda: jnp.zeros((num_domains, capacity, num_rollouts)),
        "binary": lambda: jnp.zeros((num_domains, 2**num_rollouts), jnp.int32),
        None: lambda: None,
    }
    if history not in kept:
        raise ValueError(f"got history={history!r}; wanted 'ring', 'binary' or None")
    return FairnessState(
        domain_count=jnp.zeros(num_domains, jnp.int32),
        domain_mean=jnp.zeros(num_domains),
        group_count=jnp.zeros((num_domains, num_groups + 1), jnp.int32),
        group_mean=jnp.zeros((num_domains, num_groups + 1)),
        history=kept[history](),
        cursor=jnp.zeros(num_domains, jnp.int32),
        dro_log_weight=jnp.zeros((num_domains, num_groups + 1)),
    )


def read(
    rewards: ArrayLike,
    domains: ArrayLike,
    groups: ArrayLike,
    state: FairnessState,
    *,
    shift: float,
    highest: float,
    wanted: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Checks the arguments; returns rewards, float32 or wider, and int32 ids."""
    place = lambda x: jax.device_put(x) if isinstance(x, np.ndarray) else jnp.asarray(x)
    r, d, g = place(rewards), as_ids(domains, "domains"), as_ids(groups, "groups")
    if r.ndim != 2 or d.shape != r.shape[:1] or g.shape != r.shape[:1]:
        raise ValueError(f"got rewards {r.shape}, domains {d.shape}, groups {g.shape}; wanted (P, G), (P,) and (P,)")
    _check_rollouts(r, state, shift)
    if not any(isinstance(x, Tracer) for x in (r, d, g, shift)):
        values = np.asarray(r)
        if np.any((values < 0 - shift) | (values > highest) | np.isinf(values)):
            raise ValueError(f"got rewards from {np.nanmin(values)} to {np.nanmax(values)}; wanted {wanted}")
        _check_values(values, np.asarray(d), np.asarray(g), state)
    return wide(r), d, g


def _check_rollouts(r: jax.Array, state: FairnessState, shift: float) -> None:
    """Checks, from their shape alone, that the history of a state can hold rewards (P, G)."""
    history = state.history
    if history is None:
        return
    made_for = history.shape[1].bit_length() - 1 if is_table(history) else history.shape[2]
    if made_for != r.shape[1]:
        raise ValueError(
            f"got {r.shape[1]} rollouts with a state for {made_for}; call init with num_rollouts={r.shape[1]}"
        )
    if is_table(history) and (isinstance(shift, Tracer) or shift != 0):
        raise ValueError(f"got shift={shift} with history='binary'; wanted 0, or init with history='ring'")
    if not is_table(history) and r.shape[0] > history.shape[1]:
        raise ValueError(f"got {r.shape[0]} prompts with a ring of {history.shape[1]}; wanted capacity >= prompts")


def _check_values(r: np.ndarray, d: np.ndarray, g: np.ndarray, state: FairnessState) -> None:
    """Checks that ids are in range, and that a binary history can hold the rewards."""
    check_ids(d, g, state.group_count.shape)
    binary = state.history is not None and is_table(state.history)
    if binary and not np.all(np.isnan(r) | (r == 0) | (r == 1)):
        raise ValueError("got rewards other than 0 and 1 with history='binary'; call init with history='ring'")


def check_ids(d: np.ndarray, g: np.ndarray, cells: tuple[int, ...]) -> None:
    """Checks that ids of domains and groups are those of a table of shape (D, Gr + 1)."""
    num_domains, num_groups = cells[0], cells[1] - 1
    if np.any((d < 0) | (d >= num_domains)):
        raise ValueError(f"got domains from {d.min()} to {d.max()}; wanted 0 .. {num_domains - 1}")
    if np.any((g < -1) | (g >= num_groups)):
        raise ValueError(f"got groups from {g.min()} to {g.max()}; wanted 0 .. {num_groups - 1}, or -1 = unlabelled")


@jax.jit
def observe(r: jax.Array, d: jax.Array, g: jax.Array, state: FairnessState, *, decay: float) -> FairnessState:
    """The state after this batch of rewards (P, G), domains (P,) and groups (P,); decay 1 never forgets."""
    mean, counted = prompt_means(r)
    cell = d, column(g, state)
    domain_count, domain_mean = _running(state.domain_count, state.domain_mean, (d,), mean, counted, decay)
    group_count, group_mean = _running(state.group_count, state.group_mean, cell, mean, counted, decay)
    history, cursor = _remember(r, d, (g < 0) & ~jnp.any(jnp.isnan(r), axis=1), state)
    return FairnessState(
        domain_count, domain_mean, group_count, group_mean, history, cursor, dro_log_weight=state.dro_log_weight
    )


def prompt_means(r: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(P,) mean of the scored rewards of each prompt, 0 if there is none; and whether there is any."""
    scored = ~jnp.isnan(r)
    return jnp.sum(jnp.where(scored, r, 0), axis=1) / jnp.maximum(jnp.sum(scored, axis=1), 1), jnp.any(scored, axis=1)


def column(g: jax.Array, state: FairnessState) -> jax.Array:
    """The column of each prompt's group; the unlabelled have the last one."""
    return jnp.where(g < 0, state.group_count.shape[1] - 1, g)


def tally(
    count: jax.Array, mean: jax.Array, cell: tuple[jax.Array, ...], x: jax.Array, counted: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Counts this batch's prompts in each cell and averages their x; with the given shapes and dtypes."""
    new = jnp.zeros_like(count).at[cell].add(counted)
    total = jnp.zeros_like(mean).at[cell].add(jnp.where(counted, x, 0).astype(mean.dtype))
    return new, total / jnp.maximum(new, 1)


def _running(
    count: jax.Array, mean: jax.Array, cell: tuple[jax.Array, ...], x: jax.Array, counted: jax.Array, decay: float
) -> tuple[jax.Array, jax.Array]:
    """Adds the batch to counts and means; a mean moves towards the batch's by its share of the count, or 1 - decay."""
    new, mean_of_batch = tally(count, mean, cell, x, counted)
    share = new.astype(mean.dtype) / jnp.maximum(count + new, 1)
    pace = jnp.maximum(share, jnp.asarray(1 - decay, mean.dtype))
    return count + new, jnp.where(new > 0, mean + pace * (mean_of_batch - mean), mean)


def _remember(r: jax.Array, d: jax.Array, kept: jax.Array, state: FairnessState) -> tuple[jax.Array | None, jax.Array]:
    """Adds the kept reward vectors to the history of their domains."""
    arrivals = kept[:, None] & (d[:, None] == jnp.arange(state.cursor.shape[0])[None, :])
    cursor = state.cursor + jnp.sum(arrivals, axis=0, dtype=jnp.int32)
    if state.history is None:
        return None, cursor
    if is_table(state.history):
        pattern = jnp.sum(jnp.where(r > 0.5, 2 ** jnp.arange(r.shape[1])[None, :], 0), axis=1)
        return state.history.at[d, pattern].add(kept.astype(jnp.int32)), cursor
    capacity = state.history.shape[1]
    turn = jnp.take_along_axis(jnp.cumsum(arrivals, axis=0), d[:, None], axis=1)[:, 0] - 1
    slot = jnp.where(kept, (state.cursor[d] + turn) % capacity, capacity)  # one past the end: dropped
    return state.history.at[d, slot].set(r.astype(state.history.dtype), mode="drop"), cursor


def find_clusters(
    needed: jax.Array, state: FairnessState, *, k_max: int, clustering: Clustering, sort_vectors: bool
) -> Clusters | None:
    """Clusters of each domain that is needed (D,), empty ones for the others; None without a history.

    Gradients treat the labels as fixed.
    """
    if state.history is None:
        return None
    return (_fit_on_host if clustering == "sklearn" else _fit)(needed, state, k_max, sort_vectors)


@jax.jit
def unlabelled(d: jax.Array, g: jax.Array, state: FairnessState) -> jax.Array:
    """Which domains (D,) have unlabelled prompts in this batch."""
    return jnp.zeros(state.cursor.shape, bool).at[d].max(g < 0)


def nearest(r: jax.Array, d: jax.Array, clusters: Clusters, *, sort_vectors: bool) -> jax.Array:
    """(P,) cluster of each prompt's domain whose centroid is nearest in the scored rollouts.

    If vectors are sorted, a rollout that was not scored counts as the mean of the others.
    """
    if sort_vectors:
        mean, _ = prompt_means(r)
        r = jnp.sort(jnp.where(jnp.isnan(r), mean[:, None], r), axis=1, descending=True)
    difference = r[:, None, :] - clusters.centroids[d]
    distance = jnp.sum(jnp.where(jnp.isnan(difference), 0, difference) ** 2, axis=2)
    return jnp.argmin(jnp.where(clusters.sizes[d] > 0, distance, jnp.inf), axis=1)


def is_table(history: jax.Array) -> bool:
    """Whether a history is a table of counts and not a ring of vectors."""
    return history.ndim == 2


@functools.partial(jax.jit, static_argnames=("k_max", "sort_vectors"))
def _fit(needed: jax.Array, state: FairnessState, k_max: int, sort_vectors: bool) -> Clusters:
    """Clusters each domain under ``lax.cond``, so that domains that are not needed cost nothing."""
    history = state.history
    assert history is not None

    def fit(domain: jax.Array) -> Clusters:
        points, multiplicities = _remembered(state, domain, sort_vectors)
        if sort_vectors and is_table(history):
            labels, _, _ = grouping.cluster_successes(multiplicities, k_max=k_max)
        else:
            labels, _, _ = grouping.cluster(points, k_max=k_max, weights=multiplicities)
        return _summarise(points, multiplicities, labels, k_max)

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fit, jnp.zeros((), jnp.int32)))
    return jax.lax.map(
        lambda domain: jax.lax.cond(needed[domain], fit, lambda _: nothing, domain), jnp.arange(needed.shape[0])
    )


def _fit_on_host(needed: jax.Array, state: FairnessState, k_max: int, sort_vectors: bool) -> Clusters:
    """Clusters with scikit-learn, vectors in order of arrival, as the authors run it."""
    fits = []
    for domain in range(needed.shape[0]):
        points, multiplicities = _remembered(state, domain, sort_vectors)
        weights = multiplicities * needed[domain]
        labels, _, _ = grouping.cluster(points, k_max=k_max, weights=weights, method="sklearn")
        fits.append(_summarise(points, multiplicities, labels, k_max))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *fits)


@functools.partial(jax.jit, static_argnames="sort_vectors")
def _remembered(state: FairnessState, domain: jax.Array | int, sort_vectors: bool) -> tuple[jax.Array, jax.Array]:
    """The remembered vectors (n, G) of a domain and their multiplicities (n,), 0 = empty slot.

    Sorted, the 2^G vectors of a table become G + 1: s ones, then zeros.
    """
    history, dtype = state.history, state.domain_mean.dtype
    assert history is not None
    if not is_table(history):
        points = jnp.sort(history[domain], axis=1, descending=True) if sort_vectors else history[domain]
        return points, (jnp.arange(history.shape[1]) < state.cursor[domain]).astype(dtype)
    rollouts = jnp.arange(history.shape[1].bit_length() - 1)
    bits = (jnp.arange(history.shape[1])[:, None] >> rollouts[None, :]) & 1
    if not sort_vectors:
        return bits.astype(dtype), history[domain].astype(dtype)
    successes = jnp.arange(rollouts.shape[0] + 1)
    counts = jnp.zeros_like(successes, jnp.int32).at[jnp.sum(bits, axis=1)].add(history[domain])
    return (rollouts[None, :] < successes[:, None]).astype(dtype), counts.astype(dtype)


@functools.partial(jax.jit, static_argnames="k_max")
def _summarise(points: jax.Array, multiplicities: jax.Array, labels: jax.Array, k_max: int) -> Clusters:
    """Sizes and centroids of labelled points; points with label -1 are not counted."""
    member = multiplicities[:, None] * jax.nn.one_hot(labels, k_max, dtype=points.dtype)
    sizes = jnp.sum(member, axis=0)
    total = jnp.matmul(member.T, points, precision="highest")
    return Clusters(sizes, total / jnp.maximum(sizes, 1)[:, None])
