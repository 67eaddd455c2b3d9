"""What FairGRPO remembers between steps: an explicit pytree of fixed shape.

Public as ``fairness.FairnessState`` and ``fairness.init``; ``observe`` and ``remembered`` serve ``fairness``.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp


MAX_BINARY_ROLLOUTS = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FairnessState:
    """What FairGRPO remembers of D domains, Gr groups in each, and the reward vectors of G rollouts.

    Every visit of a prompt counts.  Means are kept as means: a float32 sum would stop growing at 2^24.
    """

    domain_count: jax.Array  # (D,) int32 prompts seen
    domain_mean: jax.Array  # (D,) float32 mean reward
    group_count: jax.Array  # (D, Gr + 1) int32; the last column is the unlabelled prompts
    group_mean: jax.Array  # (D, Gr + 1) float32
    history: jax.Array | None  # ring: (D, capacity, G) float32 vectors; binary: (D, 2^G) int32 counts; or None
    cursor: jax.Array  # (D,) int32 vectors of unlabelled prompts ever seen; modulo capacity, the ring's next slot


def init(
    num_domains: int,
    num_groups: int,
    num_rollouts: int,
    *,
    history: Literal["ring", "binary"] | None = "ring",
    capacity: int = 8192,
) -> FairnessState:
    """An empty state.

    Args:
      num_domains: D, number of datasets.
      num_groups: Gr, number of explicit groups (``len(vocabulary.cells)``); may be 0.
      num_rollouts: G, rollouts a prompt.
      history: how the reward vectors of unlabelled prompts are kept for clustering.  ``"ring"``: the last ``capacity``
        of each domain.  ``"binary"``: exact counts of all 2^G vectors of 0 and 1, however many prompts are seen.
        None: not at all; the unlabelled prompts of a domain then form one group.
      capacity: vectors a ring holds; at least the unlabelled prompts of one batch.

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
        "ring": lambda: jnp.zeros((num_domains, capacity, num_rollouts), jnp.float32),
        "binary": lambda: jnp.zeros((num_domains, 2**num_rollouts), jnp.int32),
        None: lambda: None,
    }
    if history not in kept:
        raise ValueError(f"got history={history!r}; wanted 'ring', 'binary' or None")
    return FairnessState(
        domain_count=jnp.zeros(num_domains, jnp.int32),
        domain_mean=jnp.zeros(num_domains, jnp.float32),
        group_count=jnp.zeros((num_domains, num_groups + 1), jnp.int32),
        group_mean=jnp.zeros((num_domains, num_groups + 1), jnp.float32),
        history=kept[history](),
        cursor=jnp.zeros(num_domains, jnp.int32),
    )


@jax.jit
def observe(r: jax.Array, d: jax.Array, g: jax.Array, state: FairnessState, *, decay: float) -> FairnessState:
    """The state after this batch of rewards (P, G), domains (P,) and groups (P,); decay 1 never forgets."""
    scored = ~jnp.isnan(r)
    counted = jnp.any(scored, axis=1)
    mean = jnp.sum(jnp.where(scored, r, 0), axis=1) / jnp.maximum(jnp.sum(scored, axis=1), 1)
    column = jnp.where(g < 0, state.group_count.shape[1] - 1, g)
    domain_count, domain_mean = _running(state.domain_count, state.domain_mean, (d,), mean, counted, decay)
    group_count, group_mean = _running(state.group_count, state.group_mean, (d, column), mean, counted, decay)
    history, cursor = _remember(r, d, (g < 0) & jnp.all(scored, axis=1), state)
    return FairnessState(domain_count, domain_mean, group_count, group_mean, history, cursor)


def _running(
    count: jax.Array, mean: jax.Array, cell: tuple[jax.Array, ...], x: jax.Array, counted: jax.Array, decay: float
) -> tuple[jax.Array, jax.Array]:
    """Adds the batch to counts and means; a mean moves towards the batch's by its share of the count, or 1 - decay."""
    new = jnp.zeros_like(count).at[cell].add(counted)
    total = jnp.zeros_like(mean).at[cell].add(jnp.where(counted, x, 0))
    pace = jnp.maximum(new / jnp.maximum(count + new, 1), 1 - decay)
    moved = mean + pace * (total / jnp.maximum(new, 1) - mean)
    return count + new, jnp.where(new > 0, moved, mean)


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
    return state.history.at[d, slot].set(r.astype(jnp.float32), mode="drop"), cursor


def remembered(state: FairnessState, domain: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """The remembered vectors (n, G) of a domain and their multiplicities (n,), 0 = empty slot."""
    history = state.history
    assert history is not None
    if is_table(history):
        num_rollouts = history.shape[1].bit_length() - 1
        bits = jnp.arange(history.shape[1])[:, None] >> jnp.arange(num_rollouts)[None, :]
        return (bits & 1).astype(jnp.float32), history[domain].astype(jnp.float32)
    return history[domain], (jnp.arange(history.shape[1]) < state.cursor[domain]).astype(jnp.float32)


def is_table(history: jax.Array) -> bool:
    """Whether a history is a table of counts and not a ring of vectors."""
    return history.ndim == 2
