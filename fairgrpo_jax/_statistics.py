"""Moments of the numbers that count, safe to divide by and to differentiate where none does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpy.typing import ArrayLike


def or_one(x: jax.Array) -> jax.Array:
    """``x`` where it is positive, else 1: a safe denominator."""
    return jnp.where(x > 0, x, 1)


def wide(x: jax.Array) -> jax.Array:
    """``x`` as float32, or wider where it is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def bounds(r: jax.Array, counted: jax.Array, axis: int | None) -> tuple[jax.Array, jax.Array]:
    """Smallest and largest of the counted rewards; inf and -inf if none is counted."""
    low = jnp.min(jnp.where(counted, r, jnp.inf), axis=axis, keepdims=True, initial=jnp.inf)
    return low, jnp.max(jnp.where(counted, r, -jnp.inf), axis=axis, keepdims=True, initial=-jnp.inf)


def as_ids(x: ArrayLike, name: str) -> jax.Array:
    """Ids as int32, whatever integers they came as.

    Raises:
        ValueError: for other numbers; and, outside of jit, for integers that int32 does not hold.
    """
    given = x if isinstance(x, jax.Array) else np.asarray(x)
    if given.size and not jnp.issubdtype(given.dtype, jnp.integer):
        raise ValueError(f"got {name} of {given.dtype}; wanted integers")
    if given.size and not isinstance(given, Tracer) and not np.can_cast(given.dtype, np.int32):
        if min(low := int(given.min()), -1 - (high := int(given.max()))) < -(2**31):
            raise ValueError(f"got {name} from {low} to {high}; wanted ids that 32 bits hold")
    return jnp.asarray(given.astype(np.int32))


@functools.partial(jax.jit, static_argnames="axis")
def centre(r: jax.Array, weights: jax.Array, axis: int | None = 1) -> jax.Array:
    """Distance from the weighted mean; exactly 0, like its gradient, where the weight is 0 or all counted are equal."""
    low, high = bounds(r, weights > 0, axis)
    varied = (weights > 0) & (high > low)
    above = jnp.where(varied, r - jax.lax.stop_gradient(low), 0)  # a common offset must not round the mean
    mean = jnp.sum(weights * above, axis=axis, keepdims=True) / _total(weights, axis)
    return jnp.where(varied, above - mean, 0)


@functools.partial(jax.jit, static_argnames=("axis", "ddof"))
def variance(centred: jax.Array, weights: jax.Array, axis: int | None = 1, ddof: int = 1) -> jax.Array:
    """Weighted variance, or 1 where it would be 0, so that it is safe to divide by and to differentiate its root."""
    squares = jnp.sum(weights * centred**2, axis=axis, keepdims=True)
    return or_one(squares / jnp.maximum(_total(weights, axis) - ddof, 1))


def _total(weights: jax.Array, axis: int | None) -> jax.Array:
    return jnp.maximum(jnp.sum(weights, axis=axis, keepdims=True), 1)


@jax.jit
def whiten(values: jax.Array, tokens: jax.Array, epsilon: float) -> jax.Array:
    """Normalises to mean 0 and variance 1 over all tokens of the batch, each with the value of its rollout."""
    centred = centre(values, tokens, axis=None)
    return centred * jax.lax.rsqrt(variance(centred, tokens, axis=None) + epsilon)
