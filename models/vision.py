"""The vision towers: patches in, one feature per merged token out.

One tower with switches serves all families; each family's file sets them. Where it has windows, ``inputs.pack`` has put
the patches of a window next to each other; the merge² patches of a merged token stay adjacent.

Attention never leaves a frame. A tower with many frames a prompt therefore runs part by part (``VisionConfig.part``):
a part has the frames that begin among its patches, and sees as many patches more as the longest frame has.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fairgrpo_jax.mesh import constrain
from fairgrpo_jax.models import layers, windows
from fairgrpo_jax.models.attention import KeyValue, Masks, attend
from fairgrpo_jax.models.inputs import Vision
from fairgrpo_jax.models.layers import MLP, LayerNorm, Linear, RMSNorm, bind, create, rotate, stack
from fairgrpo_jax.models.remat import Remat, maybe_remat


LEAST_PART = 4096  # patches of a prompt: a part keeps a device busy, and its activations are small
FRAMES = 8  # of the longest in a part, at least


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The static configuration of a tower; hashable."""

    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    out_hidden_size: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    activation: str
    norm: str  # "rms" or "layer"
    gated: bool  # the MLP has a gate
    patch_bias: bool
    fused_qkv: bool = True
    pooled: bool = False  # the mean over merged patches, normalised and projected, instead of a merger with an MLP
    rope_theta: float | None = 10_000.0  # None: no rotary positions
    num_positions: int = 0  # number of learned positions, a square resampled to the grid of each image; 0: none
    image_size: int = 0  # side in pixels of every image, a square; 0: any size
    window_size: int = 0  # side in pixels of the attention windows; 0: none
    full_blocks: tuple[int, ...] = ()  # blocks that attend over a whole frame instead of inside windows
    deepstack: tuple[int, ...] = ()  # blocks whose output is added in the first layers of the text model
    tokens_per_second: float | None = None  # rotary time steps per second of video; None: one step per frame
    frames_apart: bool = False  # every frame of a video is a separate medium, preceded by its time as text
    block_attention: bool = False  # in the text model an image's tokens see all tokens of that image
    in_channels: int = 3
    part: int = 0  # patches of a prompt in a part; the parts run one after the other; 0: all patches at once
    frame: int = 0  # the most patches of a frame or image where there are parts
    eps: float = 1e-6
    initializer_range: float = 0.02
    lora_scale: float = 1.0

    def __post_init__(self):
        if self.norm not in ("rms", "layer") or self.activation not in layers.ACTIVATIONS:
            raise ValueError(
                f"got norm={self.norm!r} and activation={self.activation!r} in the vision tower; "
                f"wanted rms or layer, and one of {sorted(layers.ACTIVATIONS)}"
            )
        if self.hidden_size % self.num_heads or (self.rope_theta and self.hidden_size // self.num_heads % 4):
            raise ValueError(f"vision: num_heads={self.num_heads} does not divide hidden_size={self.hidden_size} well")
        if self.part and not (0 < self.frame <= self.part and self.part % self.unit == self.frame % self.unit == 0):
            raise ValueError(
                f"got frames of {self.frame} patches in parts of {self.part}; wanted multiples of {self.unit}, "
                "0 < frame <= part"
            )
        if list(self.deepstack) != sorted(set(self.deepstack)) or max(self.deepstack, default=0) >= self.depth:
            raise ValueError(f"got deepstack blocks {self.deepstack}; wanted rising numbers below depth={self.depth}")

    @property
    def patch_dim(self) -> int:
        """Number of values in a patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def window(self) -> int:
        """Side of an attention window in merged tokens; 0 without windows."""
        return self.window_size // self.spatial_merge_size // self.patch_size

    @property
    def unit(self) -> int:
        """Number of patches in a unit: those of an image of fixed size, otherwise those of a merged token."""
        return (self.image_size // self.patch_size) ** 2 if self.image_size else self.spatial_merge_size**2

    def parts(self, patches: int) -> tuple[int, int, int]:
        """How a tower runs with this number of patches a prompt.

        Returns:
            The number of parts, the patches in each, and those after them that it sees too, 0 for images of fixed size.
        """
        beyond = 0 if self.image_size else self.frame
        if not self.part or patches <= self.part + beyond:
            return 1, patches, 0
        count = -(-patches // self.part)
        size = max(-(-patches // (count * self.unit)) * self.unit, beyond)
        return -(-patches // size), size, beyond

    def rows(self, patches: int) -> int:
        """Patches a prompt that run through the blocks, those that parts see twice included."""
        count, size, beyond = self.parts(patches)
        return count * (size + beyond)


def in_parts(config: VisionConfig, frame: int) -> VisionConfig:
    """The tower in parts of ``LEAST_PART`` patches, or of ``FRAMES`` frames if these have more.

    What a part sees beyond its patches is computed in vain; with so many frames it is little.

    Args:
        config: the tower's config.
        frame: the most patches of a frame or image; 0, unknown: all patches run at once.
    """
    unit = config.unit
    whole = -(-(unit if config.image_size else frame) // unit) * unit
    part = max(-(-LEAST_PART // unit) * unit, FRAMES * whole)
    return dataclasses.replace(config, part=part, frame=whole) if whole else config


def _norm(config: VisionConfig, size: int) -> nnx.Module:
    return (RMSNorm if config.norm == "rms" else LayerNorm)(size, config.eps)


class VisionBlock(nnx.Module):
    """``x + attention(norm(x))`` inside a segment, then ``x + mlp(norm(x))``."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        size = config.hidden_size
        self.norm1: Any = _norm(config, size)
        if config.fused_qkv:
            self.qkv = Linear(size, 3 * size, config, bias=True, rngs=rngs)
        else:
            self.q = Linear(size, size, config, bias=True, rngs=rngs)
            self.k = Linear(size, size, config, bias=True, rngs=rngs)
            self.v = Linear(size, size, config, bias=True, rngs=rngs)
        self.proj = Linear(size, size, config, bias=True, rngs=rngs)
        self.norm2: Any = _norm(config, size)
        self.mlp = MLP(config, bias=True, rngs=rngs)
        self.num_heads, self.fused = config.num_heads, config.fused_qkv

    def __call__(self, x: jax.Array, rotation: KeyValue | None, attention: Callable[..., jax.Array]) -> jax.Array:
        """Runs one block on x (P, S, E) with cosine and sine (P, S, H/2), and attention of q, k and v (P, S, N, H)."""
        x = constrain(x)
        y = self.norm1(x)
        parts = jnp.split(self.qkv(y), 3, axis=-1) if self.fused else (self.q(y), self.k(y), self.v(y))
        q, k, v = (part.reshape(*x.shape[:-1], self.num_heads, -1) for part in parts)
        if rotation is not None:
            q, k = (rotate(part.astype(jnp.float32), rotation).astype(x.dtype) for part in (q, k))
        x = x + self.proj(attention(q, k, v))
        return constrain(x + self.mlp(self.norm2(x)))


class Merger(nnx.Module):
    """Normalises patches, concatenates merge² neighbours and maps them to the width of the text model."""

    join_first = False

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.width = config.hidden_size * config.spatial_merge_size**2
        self.norm: Any = _norm(config, self.width if self.join_first else config.hidden_size)
        self.up = Linear(self.width, self.width, config, bias=True, rngs=rngs)
        self.out = Linear(self.width, config.out_hidden_size, config, bias=True, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        joined = (x.shape[0], -1, self.width)
        x = self.norm(x.reshape(joined)) if self.join_first else self.norm(x).reshape(joined)
        return self.out(jax.nn.gelu(self.up(x), approximate=False))


class DeepStackMerger(Merger):
    """A merger that concatenates the neighbours before it normalises them."""

    join_first = True


def init(config: VisionConfig, key: jax.Array) -> dict:
    """Initial weights of a tower: ``vision``, and ``projector`` if it is pooled."""
    patch, blocks, merger, position, deepstack = jax.random.split(key, 5)
    size, scale = config.hidden_size, config.initializer_range
    tower: dict[str, Any] = {"patch": {"kernel": scale * jax.random.normal(patch, (config.patch_dim, size))}}
    if config.patch_bias:
        tower["patch"]["bias"] = jnp.zeros(size)
    if config.num_positions:
        tower["position"] = scale * jax.random.normal(position, (config.num_positions, size))
    tower["blocks"] = stack(VisionBlock, config, blocks, config.depth)
    for writer in (tower["blocks"]["proj"], tower["blocks"]["mlp"]["down"]):
        writer["kernel"] = writer["kernel"] / (2 * config.depth) ** 0.5
    if config.deepstack:
        tower["deepstack"] = stack(DeepStackMerger, config, deepstack, len(config.deepstack))
    if not config.pooled:
        return {"vision": tower | {"merger": create(Merger, config, merger)}}
    kernel = scale * jax.random.normal(merger, (size, config.out_hidden_size))
    tower["norm"] = {"weight": jnp.ones(size), "bias": jnp.zeros(size)}
    return {"vision": tower, "projector": {"kernel": kernel, "norm": {"weight": jnp.zeros(size)}}}


def rotation(config: VisionConfig, position: jax.Array) -> KeyValue | None:
    """Cosine and sine (P, S, H/2): the first half of the angles depends on the row, the second on the column."""
    if config.rope_theta is None:
        return None
    quarter = config.hidden_size // config.num_heads // 4
    inverse = jnp.asarray(1.0 / config.rope_theta ** (np.arange(quarter) / quarter), jnp.float32)
    angles = position[..., None].astype(jnp.float32) * inverse.reshape(1, 1, 1, -1)
    angles = angles.reshape(*position.shape[:-1], -1)
    return jnp.cos(angles), jnp.sin(angles)


def encode(
    params: dict, config: VisionConfig, vision: Vision, *, remat: Remat = False
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Features of all media of every prompt.

    Args:
        params: weights as returned by :func:`init`.
        config: the tower's config.
        vision: patches with their positions and segments.
        remat: recompute the blocks in the backward pass.

    Returns:
        (P, S / merge², out_hidden_size), and for each block of ``config.deepstack`` features of that shape for the
        first text layers; rows of padding are finite but meaningless.
    """
    count, size, beyond = config.parts(vision.patches.shape[1])
    if count == 1:
        return _tower(params, config, vision, remat)
    merge, total = config.spatial_merge_size**2, vision.patches.shape[1]
    lacking = count * size + beyond - total
    long = jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, lacking), *[(0, 0)] * (x.ndim - 2)]), vision)
    frame = jnp.pad(vision.frame, [(0, 0), (0, lacking)], constant_values=-1)
    long = dataclasses.replace(long, frame=frame)
    params = {name: params[name] for name in ("vision", "projector") if name in params}
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)  # so that gradients of parts are summed in float32

    def run(start):
        own = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size + beyond, axis=1), long)
        narrow = jax.tree.map(lambda x, like: x.astype(like.dtype), wide, params)
        return _tower(narrow, config, own, remat)

    starts = size * np.arange(count)
    found = jax.lax.map(layers.maybe_remat(run, remat), starts)  # (count, P, ...)
    # The first rows of a part may belong to a frame that begins in the part before, which alone sees the whole of it.
    first = frame[:, starts[1:, None] + np.arange(0, beyond, merge)]
    crossing = (first == frame[:, starts[1:] - 1][..., None]) & (first >= 0)

    def joined(x):
        x = jnp.moveaxis(x, 0, 1)
        own, after = x[:, :, : size // merge], x[:, :-1, size // merge :]
        head = jnp.where(crossing[..., None], after, own[:, 1:, : beyond // merge])
        own = own.at[:, 1:, : beyond // merge].set(head)
        return constrain(own.reshape(len(own), -1, own.shape[-1])[:, : total // merge])

    return jax.tree.map(joined, found)


def _tower(params: dict, config: VisionConfig, vision: Vision, remat: bool) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """:func:`encode` for all patches at once."""
    tower = params["vision"]
    x, shape = _embed(tower, config, vision), vision.patches.shape[:2]
    turn = rotation(config, vision.position)
    if config.image_size:  # every image is a separate row, whose patches all see each other
        x = x.reshape(-1, config.unit, x.shape[-1])
    is_full = np.isin(np.arange(config.depth), config.full_blocks)

    def block(x, weights, full):
        return bind(VisionBlock, config, weights)(x, turn, functools.partial(_attention, config, vision, full))

    def step(carry, layer):
        (x, kept), (index, full, weights) = carry, layer
        x = maybe_remat(block, remat)(x, weights, full)
        return (x, [jnp.where(index == at, x, old) for at, old in zip(config.deepstack, kept, strict=True)]), None

    carry = x, [jnp.zeros_like(x) for _ in config.deepstack]
    (x, kept), _ = layers.scan(step, carry, (np.arange(config.depth), is_full, tower["blocks"]), remat=remat)
    if config.pooled:
        return _pool(params, config, x.reshape(*shape, -1)), ()
    mergers = layers.unstack(tower["deepstack"]) if kept else ()
    deep = tuple(constrain(bind(DeepStackMerger, config, w)(x)) for w, x in zip(mergers, kept, strict=True))
    return constrain(bind(Merger, config, tower["merger"])(x)), deep


def _attention(
    config: VisionConfig, vision: Vision, full: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array
) -> jax.Array:
    """Attention (P, S, E) of a block: inside images of fixed size, inside frames, or, unless ``full``, windows."""
    segments = None if config.image_size else (vision.frame, vision.frame)
    whole = lambda q, k, v: attend(q[:, None], None, (k[:, None], v[:, None]), Masks(segments=segments))[:, 0]
    if vision.window is None:
        return whole(q, k, v)
    inside = lambda q, k, v: windows.attend(q, k, v, vision.window, (config.window * config.spatial_merge_size) ** 2)
    return jax.lax.cond(full, whole, inside, q, k, v)


def _embed(tower: dict, config: VisionConfig, vision: Vision) -> jax.Array:
    """Embeds patches (P, S, patch_dim) as vectors (P, S, E) and adds their learned positions."""
    kernel = tower["patch"]["kernel"]
    x = vision.patches.astype(kernel.dtype) @ kernel
    if config.patch_bias:
        x += layers.along_last(tower["patch"]["bias"], x)
    if config.num_positions:
        taps, weights = jnp.asarray(vision.taps), jnp.asarray(vision.weights)
        corners = [tower["position"][taps[..., i]] * weights[..., i, None] for i in range(taps.shape[-1])]
        x += functools.reduce(jnp.add, corners).astype(x.dtype)
    return constrain(x)


def _pool(params: dict, config: VisionConfig, x: jax.Array) -> jax.Array:
    """The mean of merge² neighbours, normalised and mapped to the width of the text model."""
    norm, projector = params["vision"]["norm"], params["projector"]
    x = layers.layer_norm(x, norm["weight"], norm["bias"], config.eps)
    x = x.reshape(x.shape[0], -1, config.spatial_merge_size**2, x.shape[-1]).mean(axis=2)
    return constrain(layers.rms_norm(x, projector["norm"]["weight"], config.eps, offset=True) @ projector["kernel"])
