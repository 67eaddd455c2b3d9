"""Rewards of different datasets and tasks on one scale, by a logistic function of the percentiles of each.

    >>> easy, hard = ("CoPESD", "STG", "iou"), ("EgoSurgery", "STG", "iou")
    >>> table = PercentileTable.fit({easy: [0.4, 0.5, 0.6], hard: [0.0, 0.1, 0.2]})
    >>> p25, p50, p75 = table.lookup([easy, hard])
    >>> rewards = jnp.array([[0.5, 0.6], [0.1, 0.2]])  # (P, G): two prompts, the same ranks in their datasets
    >>> [[f"{x:.3f}" for x in row] for row in logistic(rewards, p25[:, None], p50[:, None], p75[:, None])]
    [['0.500', '0.953'], ['0.500', '0.953']]

The percentiles are either fixed before the run (``PercentileTable``) or follow it (``RunningQuantiles``). NaN rewards
are not scored: they enter no percentile and stay NaN. Once the percentiles follow the run, normalised rewards no longer
show progress, so log the raw rewards.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpy.typing import ArrayLike

from fairgrpo_jax._statistics import as_ids


Key = tuple[str, str, str]  # dataset, task, component
FIELDS = ("p25", "p50", "p75", "n")
QUARTILES = (0.25, 0.5, 0.75)  # also the quartiles of rewards spread evenly over [0, 1]


def logistic(
    rewards: ArrayLike, p25: ArrayLike, p50: ArrayLike, p75: ArrayLike, *, k: float = 3.0, min_iqr: float = 0.01
) -> jax.Array:
    """Logistic function of a reward's distance from the median, in interquartile ranges.

    f(r) = 1 / (1 + exp(-k (r - p50) / max(p75 - p25, min_iqr))).

    It is 0.5 at the median, where its slope k / (4 IQR) is largest; with quartiles symmetric around the median and
    k = 3 these map to 0.18 and 0.82. In float32 it is exactly 1 for rewards at least 6 IQR above the median, so such
    rewards tie.

    Its effect depends on the advantage. With the z-score (``advantages.grpo``) any affine rescaling of a prompt's
    rewards cancels, so only the curvature of this function has an effect: outliers saturate, and components are added
    on a common scale. If the advantage is not divided by the deviation (``advantages.dr_grpo``), or only by that of the
    batch, it balances the datasets. It moves every dataset's mean reward close to 0.5, so that ``fairness`` sees little
    difference in difficulty between domains. A reward of 0 becomes positive: multiply by gates afterwards.

    Args:
        rewards: any shape, any real unit; NaN = not scored, stays NaN.
        p25: lower quartile in the unit of the rewards: a scalar, or an array with as many dimensions as the rewards
            and broadcastable to them, (P, 1) for (P, G).
        p50: median, in the same form.
        p75: upper quartile, in the same form.
        k: steepness, > 0.
        min_iqr: smallest interquartile range, > 0, in the unit of the rewards. Below it the gradient with respect to
            p25 and p75 is 0.

    Returns:
        An array in [0, 1] with the shape of the rewards; differentiable in rewards and percentiles.

    Raises:
        ValueError: if a shape does not fit or an option is not positive; and, outside of jit, unless p25 <= p50 <= p75.

    Source: MedGRPO (arXiv 2512.06581), cross-dataset reward normalisation, k = 3 with the percentiles of the supervised
    model on each dataset and task. Their treatment of a zero range is not published; ``min_iqr`` is ours.

    >>> [f"{x:.4f}" for x in logistic([0.25, 0.5, 0.6, jnp.nan], 0.4, 0.5, 0.6)]
    ['0.0230', '0.5000', '0.8176', 'nan']
    """
    if not k > 0 or not min_iqr > 0:
        raise ValueError(f"got k={k}, min_iqr={min_iqr}; wanted both positive")
    r, percentiles = jnp.asarray(rewards), [jnp.asarray(p) for p in (p25, p50, p75)]
    for p in percentiles:
        if p.ndim not in (0, r.ndim):
            raise ValueError(f"got percentiles {p.shape} for rewards {r.shape}; wanted scalars or as many dimensions")
    if not any(isinstance(p, Tracer) for p in percentiles):
        _check_order(*map(np.asarray, percentiles))
    dtype = jnp.result_type(r, *percentiles, jnp.float32)
    low, median, high = (jnp.broadcast_to(p.astype(dtype), r.shape) for p in percentiles)
    scored = ~jnp.isnan(r)
    centred = jnp.where(scored, r.astype(dtype), median) - median
    return jnp.where(scored, jax.nn.sigmoid(k * centred / jnp.maximum(high - low, min_iqr)), jnp.nan)


@dataclasses.dataclass(frozen=True)
class PercentileTable:
    """Percentiles of the scores of each (dataset, task, component), fixed before the run.

    Args:
        stats: for each key p25, p50, p75, and n, the number of scores they come from.

    Raises:
        ValueError: if a key is not three strings free of "|", or percentiles are not finite and in order.

    Source: MedGRPO (arXiv 2512.06581) takes them from the supervised model's predictions and keeps them during RL.
    Its file format is not published; this one is ours.

    >>> table = PercentileTable.fit({("NurViD", "TAG", "iou"): [0.0, 0.2, 0.4, float("nan")]})
    >>> table.stats
    {('NurViD', 'TAG', 'iou'): (0.1, 0.2, 0.30000000000000004, 3)}
    >>> PercentileTable.from_json(table.to_json()) == table
    True
    """

    stats: Mapping[Key, tuple[float, float, float, int]]

    def __post_init__(self):
        for key, (p25, p50, p75, n) in self.stats.items():
            if not isinstance(key, tuple) or len(key) != 3 or any("|" in part for part in key):
                raise ValueError(f"got key {key!r}; wanted (dataset, task, component), strings without '|'")
            if not (np.isfinite((p25, p50, p75)).all() and p25 <= p50 <= p75 and n >= 1):
                raise ValueError(f"got {(p25, p50, p75, n)} for {key}; wanted finite p25 <= p50 <= p75 and n >= 1")

    @classmethod
    def fit(cls, scores: Mapping[Key, ArrayLike]) -> "PercentileTable":
        """Percentiles, with linear interpolation, of the scores of each key: arrays of any shape, NaN excluded.

        Raises:
            ValueError: if a key has no scores or an infinite one, and as for the table.
        """
        stats = {}
        for key, values in scores.items():
            x = np.asarray(values, np.float64)
            x = x[~np.isnan(x)]
            if x.size == 0 or np.isinf(x).any():
                raise ValueError(
                    f"got {x.size} scores for {key}, {np.isinf(x).sum()} infinite; wanted some, all finite"
                )
            p25, p50, p75 = np.quantile(x, QUARTILES).tolist()
            stats[key] = (p25, p50, p75, x.size)
        return cls(stats)

    def lookup(
        self, keys: Iterable[Key], *, fallback: tuple[float, float, float] | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The percentiles of each of N keys.

        Args:
            keys: N keys; they may repeat.
            fallback: p25, p50, p75 for keys that are not in the table.

        Returns:
            p25, p50, p75, each (N,) float32.

        Raises:
            ValueError: if keys are missing (all are named) and there is no fallback.
        """
        keys = list(keys)
        missing = sorted({key for key in keys if key not in self.stats}, key=str)
        if missing and fallback is None:
            raise ValueError(f"got no percentiles for {missing}; fit the table with their scores or give a fallback")
        rows = [self.stats[key][:3] if key in self.stats else fallback for key in keys]
        p25, p50, p75 = np.array(rows, np.float32).reshape(-1, 3).T
        return p25, p50, p75

    def to_json(self) -> str:
        """JSON text: ``{"version": 1, "stats": {"dataset|task|component": {"p25": ..., "n": ...}}}``."""
        stats = {"|".join(key): dict(zip(FIELDS, self.stats[key], strict=True)) for key in sorted(self.stats)}
        return json.dumps({"version": 1, "stats": stats}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "PercentileTable":
        """Reads the table that ``to_json`` wrote; all numbers are restored exactly.

        Raises:
            ValueError: if the text is not such a table.
        """
        try:
            content = json.loads(text)
            version, rows = content["version"], content["stats"].items()
            stats = {tuple(name.split("|")): tuple(float(row[field]) for field in FIELDS) for name, row in rows}
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"got {text[:60]!r}; wanted a table as PercentileTable.to_json writes it") from error
        if version != 1:
            raise ValueError(f"got a table of version {version!r}; wanted version 1")
        return cls({key: (p25, p50, p75, int(n)) for key, (p25, p50, p75, n) in stats.items()})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RunningQuantiles:
    """The last ``capacity`` scores of each of K keys: percentiles that follow the policy.

    Fixed percentiles become outdated: once the policy is better than the one they come from, most rewards saturate.
    """

    window: jax.Array  # (K, capacity) float32, NaN = empty slot
    cursor: jax.Array  # (K,) int32, the next slot to write


def init_quantiles(num_keys: int, *, capacity: int = 1024) -> RunningQuantiles:
    """An empty state for ``num_keys`` keys that keeps the last ``capacity`` scores of each.

    Raises:
        ValueError: if a size is not positive.

    >>> init_quantiles(3, capacity=8).window.shape
    (3, 8)
    """
    if min(num_keys, capacity) < 1:
        raise ValueError(f"got {num_keys} keys, capacity {capacity}; wanted both positive")
    window = jnp.full((num_keys, capacity), jnp.nan, jnp.float32)
    return RunningQuantiles(window, jnp.zeros(num_keys, jnp.int32))


def observe(state: RunningQuantiles, rewards: ArrayLike, keys: ArrayLike) -> RunningQuantiles:
    """The state after N more scores, in the given order.

    Args:
        state: from ``init_quantiles`` or the previous step.
        rewards: (N,) in any real unit; NaN = not scored, not kept.
        keys: (N,) int in 0 .. K - 1; under jit an id out of range is not kept.

    Returns:
        The next state. If a key has more than ``capacity`` scores in this batch, the last ones are kept.

    Raises:
        ValueError: if shapes or types do not fit; and, outside of jit, for an id out of range or an infinite reward.

    >>> state = observe(init_quantiles(2, capacity=2), jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([0, 0, 1, 0]))
    >>> state.window.tolist()
    [[4.0, 2.0], [3.0, nan]]
    """
    r, ids = jnp.asarray(rewards), as_ids(keys, "keys")
    if r.ndim != 1 or r.shape != ids.shape:
        raise ValueError(f"got rewards {r.shape} and keys {ids.shape}; wanted (N,) twice")
    if not any(isinstance(x, Tracer) for x in (r, ids)):
        num_keys = state.cursor.shape[0]
        if np.any((ids < 0) | (ids >= num_keys)) or np.any(jnp.isinf(r)):
            raise ValueError(
                f"got keys from {ids.min()} to {ids.max()}, {jnp.isinf(r).sum()} infinite rewards; wanted keys in "
                f"0 .. {num_keys - 1}, rewards finite or NaN"
            )
    return _observe(state, r.astype(jnp.float32), ids)


def quantiles(
    state: RunningQuantiles, *, prior: Sequence[ArrayLike] | None = None, min_count: int = 32
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Percentiles of each key's window, with linear interpolation as in NumPy.

    Args:
        state: the state with the windows.
        prior: p25, p50, p75, each (K,), for keys with fewer than ``min_count`` scores, e.g. those of the supervised
            model, ``table.lookup(keys)``. None uses the few scores of such keys, and 0.25, 0.5, 0.75 for a key without
            scores.
        min_count: number of scores, in 1 .. capacity; unused without a prior.

    Returns:
        p25, p50, p75, each (K,) float32, never NaN.

    Raises:
        ValueError: if the prior is not three arrays (K,), or ``min_count`` is not in 1 .. capacity.

    >>> state = observe(init_quantiles(2), jnp.array([0.0, 0.1, 0.2]), jnp.array([0, 0, 0]))
    >>> print(*quantiles(state))
    [0.05 0.25] [0.1 0.5] [0.15 0.75]
    """
    num_keys = state.cursor.shape[0]
    if prior is None:
        prior, min_count = [jnp.full(num_keys, q) for q in QUARTILES], 1
    if not 1 <= min_count <= state.window.shape[1]:
        raise ValueError(f"got min_count={min_count}; wanted 1 .. {state.window.shape[1]}, what the window holds")
    shapes = [np.shape(p) for p in prior]
    if shapes != [(num_keys,)] * 3:
        raise ValueError(f"got a prior of shapes {shapes}; wanted p25, p50, p75, each ({num_keys},)")
    enough = jnp.sum(~jnp.isnan(state.window), axis=1) >= min_count
    seen = jnp.nanquantile(state.window, jnp.array(QUARTILES), axis=1)
    p25, p50, p75 = (jnp.where(enough, q, jnp.asarray(p, q.dtype)) for q, p in zip(seen, prior, strict=True))
    return p25, p50, p75


@jax.jit
def _observe(state: RunningQuantiles, r: jax.Array, ids: jax.Array) -> RunningQuantiles:
    num_keys, capacity = state.window.shape
    arrivals = (ids[:, None] == jnp.arange(num_keys)[None, :]) & ~jnp.isnan(r)[:, None]
    total = jnp.sum(arrivals, axis=0)
    turn = jnp.sum(jnp.where(arrivals, jnp.cumsum(arrivals, axis=0), 0), axis=1) - 1  # index within its key, from 0
    kept = (turn >= 0) & (turn >= total[ids] - capacity)  # so that no slot is written twice in undefined order
    slot = jnp.where(kept, (state.cursor[ids] + turn) % capacity, capacity)  # one past the end: dropped
    window = state.window.at[ids, slot].set(r, mode="drop")
    return RunningQuantiles(window, ((state.cursor + total) % capacity).astype(jnp.int32))


def _check_order(p25: np.ndarray, p50: np.ndarray, p75: np.ndarray) -> None:
    if not (np.all(p25 <= p50) and np.all(p50 <= p75)):
        raise ValueError(f"got p25={p25}, p50={p50}, p75={p75}; wanted p25 <= p50 <= p75")
