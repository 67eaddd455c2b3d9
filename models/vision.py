"""The vision tower of the Qwen family: patches in, one feature per merged token out.

Windows are segment ids in a mask, not a permutation of the patches: attention does not care in which order its keys
stand, so the patches keep the order in which the merger wants them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fairgrpo_jax.mesh import constrain
from fairgrpo_jax.models.inputs import Vision
from fairgrpo_jax.models.layers import GatedMLP, RMSNorm, attend, bind, create, linear, rotate, stack


class VisionBlock(nnx.Module):
    """``x + attention(norm(x))`` inside a segment, then ``x + mlp(norm(x))``."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        size = config.hidden_size
        self.norm1 = RMSNorm(size, config.rms_eps)
        self.qkv = linear(size, 3 * size, config, bias=True, rngs=rngs)
        self.proj = linear(size, size, config, bias=True, rngs=rngs)
        self.norm2 = RMSNorm(size, config.rms_eps)
        self.mlp = GatedMLP(config, bias=True, rngs=rngs)
        self.num_heads = config.num_heads

    def __call__(self, x: jax.Array, rotation: tuple[jax.Array, jax.Array], segment: jax.Array) -> jax.Array:
        """Runs one block on x (P, S, E) with cosine and sine (P, S, H/2) and segment ids (P, S)."""
        x = constrain(x)
        q, k, v = jnp.split(self.qkv(self.norm1(x)), 3, axis=-1)
        q, k, v = (part.reshape(*x.shape[:-1], self.num_heads, -1) for part in (q, k, v))
        q, k = (rotate(part.astype(jnp.float32), rotation).astype(x.dtype) for part in (q, k))
        mask = segment[:, :, None] == segment[:, None, :]
        x = x + self.proj(attend(q[:, None], None, (k[:, None], v[:, None]), None, mask)[:, 0])
        return constrain(x + self.mlp(self.norm2(x)))


class Merger(nnx.Module):
    """Normalises patches, joins merge² neighbours and maps them to the width of the text model."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        self.width = config.hidden_size * config.spatial_merge_size**2
        self.norm = RMSNorm(config.hidden_size, config.rms_eps)
        self.up = linear(self.width, self.width, config, bias=True, rngs=rngs)
        self.out = linear(self.width, config.out_hidden_size, config, bias=True, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(x).reshape(x.shape[0], -1, self.width)
        return self.out(jax.nn.gelu(self.up(x), approximate=False))


def init(config: Any, key: jax.Array) -> dict:
    """Fresh weights of the tower described by a vision config."""
    patch, blocks, merger = jax.random.split(key, 3)
    kernel = config.initializer_range * jax.random.normal(patch, (config.patch_dim, config.hidden_size))
    return {
        "patch": {"kernel": kernel},
        "blocks": stack(VisionBlock, config, blocks, config.depth),
        "merger": create(Merger, config, merger),
    }


def rotation(config: Any, position: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine (P, S, H/2): the first half of the angles turns with the row, the second with the column."""
    quarter = config.hidden_size // config.num_heads // 4
    inverse = jnp.asarray(1.0 / config.rope_theta ** (np.arange(quarter) / quarter), jnp.float32)
    angles = position[..., None].astype(jnp.float32) * inverse.reshape(1, 1, 1, -1)
    angles = angles.reshape(*position.shape[:-1], -1)
    return jnp.cos(angles), jnp.sin(angles)


def encode(params: dict, config: Any, vision: Vision, *, remat: bool = False) -> jax.Array:
    """Features of all media of every prompt.

    Args:
        params: weights as :func:`init` makes them.
        config: a vision config.
        vision: patches with their positions and segments.
        remat: recompute the blocks in the backward pass.

    Returns:
        (P, S / merge², out_hidden_size); rows of padding are finite and meaningless.
    """
    x = constrain(vision.patches.astype(params["patch"]["kernel"].dtype) @ params["patch"]["kernel"])
    turn = rotation(config, vision.position)
    is_full = np.isin(np.arange(config.depth), config.full_blocks)

    def block(x, layer):
        weights, full = layer
        segment = jnp.where(full, vision.frame, vision.window)
        return bind(VisionBlock, config, weights)(x, turn, segment), None

    if remat:
        block = jax.checkpoint(block, prevent_cse=False)
    x, _ = jax.lax.scan(block, x, (params["blocks"], is_full))
    return constrain(bind(Merger, config, params["merger"])(x))
