"""Division where a sum may be empty."""

import jax
import jax.numpy as jnp


def or_one(x: jax.Array) -> jax.Array:
    """``x`` where it is positive, else 1: a safe denominator."""
    return jnp.where(x > 0, x, 1)
