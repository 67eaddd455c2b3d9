"""What is still wrong in each demographic cell, remembered between steps: the statistics behind fair sampling.

Public as ``fairness.HardnessState``, ``fairness.init_hardness``, ``fairness.observe_hardness``, ``fairness.hardness``
and ``fairness.residual_weights``.
"""

import dataclasses
import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpy.typing import ArrayLike

from fairgrpo_jax import _fairness_state as memory
from fairgrpo_jax._statistics import as_ids


Measure = Literal["error", "flip"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HardnessState:
    """Decayed number and hardness of the prompts of D domains and Gr groups; the last column is the unlabelled."""

    mass: jax.Array  # (D, Gr + 1) float, prompts seen, those of a step ago counted decay times
    total: jax.Array  # (D, Gr + 1) float, the sum of their hardness


def init_hardness(num_domains: int, num_groups: int) -> HardnessState:
    """A state that has seen nothing: every cell is equally hard.

    >>> hardness(init_hardness(1, 2)).tolist()
    [[1.0, 1.0, 1.0]]
    """
    if num_domains < 1 or num_groups < 0:
        raise ValueError(f"got {num_domains} domains and {num_groups} groups; wanted at least one domain")
    return HardnessState(*(jnp.zeros((num_domains, num_groups + 1)) for _ in range(2)))


def observe_hardness(
    rewards: ArrayLike,
    domains: ArrayLike,
    groups: ArrayLike,
    state: HardnessState,
    *,
    decay: float = 0.95,
    measure: Measure = "error",
) -> HardnessState:
    """The state after a step: M <- decay M + number of prompts, S <- decay S + sum of their hardness, in each cell.

    Give all prompts that were sampled, also those that dynamic sampling threw away: the hardness is the patients', not
    that of the prompts learned from. How often a cell was drawn does not bias it.

    Args:
        rewards: (P, G) <= 1, where 1 is a full success; NaN = not scored. A prompt without any score is not counted.
        domains: (P,) int in 0 .. D - 1.
        groups: (P,) int in 0 .. Gr - 1, or -1 = unlabelled.
        state: from ``init_hardness`` or the step before.
        decay: per step, in [0, 1); 0.95 forgets in some 20 steps.
        measure: hardness of a prompt with mean reward p: ``"error"``, 1 - p; or ``"flip"``, 1 where 0 < p <= 1/2, that
            is, where the right answer is among the sampled ones but does not prevail, else 0. The latter does not count
            what the policy never gets right.

    Raises:
        ValueError: if the shapes do not fit, for an unknown measure or another decay; and, outside of jit, for an id
            out of range or a reward above 1.

    Source: ours.

    >>> state = observe_hardness([[1.0, 0.0], [0.0, 0.0]], [0, 0], [0, 1], init_hardness(1, 2))
    >>> state.mass.tolist(), state.total.tolist()
    ([[1.0, 1.0, 0.0]], [[0.5, 1.0, 0.0]])
    """
    r, d, g = jnp.asarray(rewards), as_ids(domains, "domains"), as_ids(groups, "groups")
    if r.ndim != 2 or d.shape != r.shape[:1] or g.shape != r.shape[:1]:
        raise ValueError(f"got rewards {r.shape}, domains {d.shape}, groups {g.shape}; wanted (P, G), (P,) and (P,)")
    if measure not in get_args(Measure):
        raise ValueError(f"got measure={measure!r}; wanted one of {get_args(Measure)}")
    if not isinstance(decay, Tracer) and not 0 <= decay < 1:
        raise ValueError(f"got decay={decay}; wanted 0 <= decay < 1")
    if not any(isinstance(x, Tracer) for x in (r, d, g)):
        memory.check_ids(np.asarray(d), np.asarray(g), state.mass.shape)
        if np.any(np.asarray(r) > 1) or np.any(np.isinf(r)):
            raise ValueError(f"got rewards up to {np.nanmax(r)}; wanted at most 1, a full success; scale them")
    return _observe(r, d, g, state, decay, flip=measure == "flip")


def hardness(state: HardnessState, *, prior: float = 4.0) -> jax.Array:
    """Mean hardness of each cell, drawn towards that of its domain, and the domain's towards that of all prompts.

    h_d = (S_d + prior h) / (M_d + prior),  h_dg = (S_dg + prior h_d) / (M_dg + prior),  with h the mean over all.

    A cell never seen is as hard as its domain, and a domain never seen as hard as the rest.

    Args:
        state: from ``observe_hardness``.
        prior: weight of the larger unit, in prompts, > 0.

    Returns:
        (D, Gr + 1) float; in [0, 1] for rewards in [0, 1].

    Raises:
        ValueError: if the prior is not positive.

    Source: ours; a Beta prior of that many prompts, centred on the domain.

    >>> state = HardnessState(jnp.array([[4.0, 0.0]]), jnp.array([[1.0, 0.0]]))
    >>> hardness(state, prior=4.0).tolist()
    [[0.25, 0.25]]
    """
    if not isinstance(prior, Tracer) and not 0 < prior < np.inf:
        raise ValueError(f"got prior={prior}; wanted a number of prompts > 0")
    return _shrunk(state, prior)


def residual_weights(wanted: ArrayLike, drawn: ArrayLike, cap: float = 2.0) -> np.ndarray:
    """Weights that make up for prompts drawn with probabilities that have changed since: min(wanted / drawn, cap).

    For draws that lag behind (prefetch, rollouts made asynchronously, an order fixed by somebody else): the expected
    gradient is then that of the wanted probabilities, but where the cap holds.

    Args:
        wanted: probabilities as they should be now, any shape, >= 0.
        drawn: those with which the prompts were drawn, of the same shape.
        cap: largest weight, >= 1.

    Returns:
        float64 of the same shape; 0 where ``drawn`` is 0, since no prompt can have come from there.

    Raises:
        ValueError: if the shapes differ, a probability is negative or not finite, or the cap is below 1.

    Source: importance weights, truncated as in Ionides 2008.

    >>> residual_weights([0.5, 0.5], [0.8, 0.2]).tolist()
    [0.625, 2.0]
    """
    now, then = np.asarray(wanted, np.float64), np.asarray(drawn, np.float64)
    if now.shape != then.shape or not cap >= 1:
        raise ValueError(
            f"got probabilities {now.shape} and {then.shape}, cap={cap}; wanted the same shape twice, a cap >= 1"
        )
    if not np.all(np.isfinite(now) & np.isfinite(then) & (now >= 0) & (then >= 0)):
        raise ValueError("got a probability that is negative or not finite; wanted probabilities >= 0")
    return np.where(then > 0, np.minimum(now / np.where(then > 0, then, 1.0), cap), 0.0)


@jax.jit
def _shrunk(state: HardnessState, prior: float) -> jax.Array:
    mass, total = state.mass, state.total
    everywhere = jnp.where(jnp.sum(mass) > 0, jnp.sum(total) / jnp.where(jnp.sum(mass) > 0, jnp.sum(mass), 1), 1.0)
    domain = (jnp.sum(total, axis=1, keepdims=True) + prior * everywhere) / (jnp.sum(mass, 1, keepdims=True) + prior)
    return (total + prior * domain) / (mass + prior)


@functools.partial(jax.jit, static_argnames="flip")
def _observe(
    r: jax.Array, d: jax.Array, g: jax.Array, state: HardnessState, decay: float, *, flip: bool
) -> HardnessState:
    mean, counted = memory.prompt_means(r)
    hard = ((mean > 0) & (mean <= 0.5)) if flip else 1 - mean
    cell = d, jnp.where(g < 0, state.mass.shape[1] - 1, g)
    mass = jnp.zeros_like(state.mass).at[cell].add(counted.astype(state.mass.dtype))
    total = jnp.zeros_like(state.total).at[cell].add(jnp.where(counted, hard, 0).astype(state.total.dtype))
    return HardnessState(decay * state.mass + mass, decay * state.total + total)
