"""What the backward pass of a layer computes again instead of keeping it."""

from collections.abc import Callable
from typing import Literal

import jax
from jax.ad_checkpoint import checkpoint_name


Remat = bool | Literal["selective"]
PRODUCT = "product"  # name of what selective recomputation keeps


def product(x: jax.Array) -> jax.Array:
    """Marks the output of a linear map or of attention, which selective recomputation keeps."""
    return checkpoint_name(x, PRODUCT)


def maybe_remat(layer: Callable, remat: Remat) -> Callable:
    """Makes the layer recompute in the backward pass if ``remat`` is set: all of it, or all but each ``product``.

    What "selective" computes again costs little: norms, activations and rotations, and the weights of attention where
    no kernel does that anyway.
    """
    if not remat:
        return layer
    policy = jax.checkpoint_policies.save_only_these_names(PRODUCT) if remat == "selective" else None
    return jax.checkpoint(layer, prevent_cse=False, policy=policy)
