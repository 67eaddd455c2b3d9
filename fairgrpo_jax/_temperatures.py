"""The arithmetic behind ``fairness``: from the statistics of domains and groups to the weights of prompts."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from fairgrpo_jax import _fairness_state as memory
from fairgrpo_jax._fairness_state import FairnessState
from fairgrpo_jax._statistics import or_one


Clamp = Literal["code", "product", "factor"]
Levels = Literal["both", "group", "domain"]
DomainMean = Literal["plain", "inverse_size"]


@functools.partial(jax.jit, static_argnames=("domain_mean", "sort_vectors"))
def look_up(
    r: jax.Array,
    d: jax.Array,
    g: jax.Array,
    state: FairnessState,
    clusters: memory.Clusters | None,
    *,
    domain_mean: DomainMean,
    sort_vectors: bool,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array], jax.Array]:
    """Looks up count and mean of each prompt's domain and of its group or cluster, and the label."""
    label = memory.column(g, state)
    mean_of_domain, mean = state.domain_mean, state.group_mean[d, label]
    count = state.group_count[d, label].astype(mean.dtype)
    if clusters is not None:
        cluster = memory.nearest(r, d, clusters, sort_vectors=sort_vectors)
        cluster_mean = jnp.mean(clusters.centroids, axis=2)
        known = jnp.sum(clusters.sizes, axis=1)
        clustered = (g < 0) & (known[d] > 0)
        count = jnp.where(clustered, clusters.sizes[d, cluster] / or_one(known[d]) * count, count)
        mean = jnp.where(clustered, cluster_mean[d, cluster], mean)
        label = jnp.where(clustered, label + cluster, label)
        if domain_mean == "inverse_size":
            inverse = jnp.where(clusters.sizes > 0, 1 / or_one(clusters.sizes), 0)
            rare = jnp.sum(inverse * cluster_mean, axis=1) / or_one(jnp.sum(inverse, axis=1))
            mean_of_domain = jnp.where(known > 0, rare, mean_of_domain)
    of_domain = state.domain_count[d].astype(mean.dtype), mean_of_domain[d]
    return of_domain, (count, mean), label.astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("clamp", "levels"))
def weigh(
    of_domain: tuple[jax.Array, jax.Array],
    of_group: tuple[jax.Array, jax.Array],
    signal: jax.Array,
    epsilon: float,
    max_weight: float | None,
    size_exponent: float,
    mean_exponent: float,
    *,
    clamp: Clamp,
    levels: Levels,
) -> jax.Array:
    """Computes weights from counts and means."""
    t_domain, t_group = (_power(n, size_exponent) * _power(mean, mean_exponent) for n, mean in (of_domain, of_group))
    t_domain = jnp.ones_like(t_domain) if levels == "group" else t_domain
    t_group = jnp.ones_like(t_group) if levels == "domain" else t_group
    weights = _invert(t_domain, t_group, epsilon, clamp=clamp)
    if max_weight is None:
        return weights
    median = jnp.where(jnp.any(signal), jnp.nanmedian(jnp.where(signal, weights, jnp.nan)), 1)
    return jnp.clip(weights, median / max_weight, median * max_weight)


def _power(x: jax.Array, exponent: float) -> jax.Array:
    """x^exponent, with 0 for a negative x, 0^0 = 1, and finite gradients at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.where(positive, x, 1) ** exponent, jnp.where(jnp.asarray(exponent) == 0, 1.0, 0.0))


def _invert(t_domain: jax.Array, t_group: jax.Array, epsilon: float, *, clamp: Clamp) -> jax.Array:
    if clamp == "product":
        return 1 / jnp.maximum(t_domain * t_group, epsilon)
    if clamp == "factor":
        return 1 / (jnp.maximum(t_domain, epsilon) * jnp.maximum(t_group, epsilon))
    product = jnp.maximum(t_domain, epsilon) * t_group
    return jnp.where(product > 0, 1 / or_one(product), 1)
