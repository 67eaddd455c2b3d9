"""Several components to one reward: each on its scale, weighed, summed and gated; a pure function."""

# pyright: reportUnknownMemberType=false
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from fairgrpo_jax import normalization
from fairgrpo_jax.config import Component


Percentiles = Sequence[ArrayLike]  # p25, p50, p75


def normalise(
    scores: ArrayLike,
    components: Sequence[Component],
    percentiles: Percentiles | None,
    *,
    k: float = 3.0,
    min_iqr: float = 0.01,
) -> jax.Array:
    """Passes the components that are ``normalised`` through the logistic function of their percentiles.

    Args:
        scores: (P, G, K), each component in its own unit; NaN = not scored.
        components: K of them.
        percentiles: p25, p50, p75, each (P, K), of the dataset and task of each prompt; those of other components are
            not looked at. None if no component is normalised.
        k: steepness, of ``normalization.logistic``.
        min_iqr: smallest interquartile range, of the same.

    Returns:
        (P, G, K) float.

    Raises:
        ValueError: if shapes do not fit, or a component is normalised and there are no percentiles.
    """
    s = jnp.asarray(scores)
    if s.ndim != 3 or s.shape[2] != len(components):
        raise ValueError(f"got scores {s.shape} of {len(components)} components; wanted (P, G, {len(components)})")
    s = s.astype(jnp.result_type(s, jnp.float32))
    chosen = jnp.array([[[component.normalised for component in components]]])
    if not any(component.normalised for component in components):
        return s
    if percentiles is None:
        raise ValueError(f"got no percentiles for {', '.join(map(str, components))}; wanted p25, p50 and p75 (P, K)")
    wide = [jnp.where(chosen, jnp.asarray(p)[:, None, :], q) for p, q in zip(percentiles, (0.0, 0.5, 1.0), strict=True)]
    return jnp.where(chosen, normalization.logistic(s, *wide, k=k, min_iqr=min_iqr), s)


def compose(
    scores: ArrayLike,
    components: Sequence[Component],
    percentiles: Percentiles | None = None,
    *,
    applies: ArrayLike | None = None,
    k: float = 3.0,
    min_iqr: float = 0.01,
) -> jax.Array:
    """The reward: r = prod_gates s_g * sum_k w_k f_k(s_k), over the components that apply to the prompt.

    f is the logistic function of ``normalization`` for components that are ``normalised``, and nothing otherwise. A
    gate multiplies behind it, so that an answer that cannot be parsed is worth 0, not the value of f at 0.

    Args:
        scores: (P, G, K), NaN = not scored.
        components: K components.
        percentiles: as for ``normalise``.
        applies: (P, K) bool, whether a component applies to a prompt; default: all do.
        k: steepness, of ``normalization.logistic``.
        min_iqr: smallest interquartile range, of the same.

    Returns:
        (P, G). NaN where a component that applies is not scored, or where none but gates applies: a sum without one of
        its parts would be on another scale. TRL instead leaves out what a function returned None for.

    Raises:
        ValueError: as ``normalise``.

    Source: the sum of weighted rewards is that of every GRPO trainer. Logistic normalisation is MedGRPO's (arXiv
    2512.06581); its factor for the format of grounding answers is not published: the gate is ours.

    >>> parts = [Component("iou", weight=0.5), Component("judge", weight=0.5), Component("parsed", gate=True)]
    >>> compose([[[0.4, 0.8, 1.0], [0.4, 0.8, 0.0], [0.4, jnp.nan, 1.0]]], parts).round(3).tolist()
    [[0.6000000238418579, 0.0, nan]]
    """
    values = normalise(scores, components, percentiles, k=k, min_iqr=min_iqr)
    used = jnp.ones(values.shape[::2], bool) if applies is None else jnp.asarray(applies, bool)
    if used.shape != values.shape[::2]:
        raise ValueError(f"got applies {used.shape} for scores {values.shape}; wanted {values.shape[::2]}")
    gate = jnp.array([[[component.gate for component in components]]])
    weight = jnp.array([[[component.weight for component in components]]], values.dtype)
    used = used[:, None, :]
    total = jnp.sum(jnp.where(used & ~gate, values, 0) * weight, axis=2)
    passed = jnp.prod(jnp.where(used & gate, values, 1), axis=2)
    return jnp.where(jnp.any(used & ~gate, axis=2), total * passed, jnp.nan)
