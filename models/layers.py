"""The blocks of the text decoders, and the one attention that the prompt, the update and the sampler share.

A module describes ONE block.  The weights of all blocks of a kind are stacked along a leading axis in a plain nested
dict (:func:`stack`); a pass binds a slice of that dict to the block (:func:`bind`) inside ``lax.scan`` or a loop.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fairgrpo_jax.mesh import constrain


MASKED = -1e30  # finite, so that a row with no allowed key stays finite too

KeyValue = tuple[jax.Array, jax.Array]


@functools.cache
def _graph(block: Callable[..., nnx.Module], config: Any) -> nnx.GraphDef:
    return nnx.split(nnx.eval_shape(lambda: block(config, rngs=nnx.Rngs(0))))[0]


def bind(block: Callable[..., nnx.Module], config: Any, weights: dict) -> Any:
    """The module ``block(config)`` holding ``weights``, a nested dict of arrays."""
    return nnx.merge(_graph(block, config), weights)


def create(block: Callable[..., nnx.Module], config: Any, key: jax.Array) -> dict:
    """Freshly initialised weights of ``block(config)`` as a nested dict."""
    return nnx.to_pure_dict(nnx.state(block(config, rngs=nnx.Rngs(key))))


def stack(block: Callable[..., nnx.Module], config: Any, key: jax.Array, depth: int) -> dict:
    """Weights of ``depth`` blocks, every leaf with a leading layer axis."""
    return jax.vmap(functools.partial(create, block, config))(jax.random.split(key, depth))


def unstack(tree: Any) -> tuple:
    """Splits the leading layer axis of every leaf: a tree of (L, ...) becomes a tuple of L trees."""
    depth = jax.tree.leaves(tree)[0].shape[0]
    return tuple(jax.tree.map(operator.itemgetter(layer), tree) for layer in range(depth))


def linear(inputs: int, outputs: int, config: Any, *, bias: bool, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear map whose weights start as N(0, ``config.initializer_range``²), its bias as 0."""
    init = nnx.initializers.normal(config.initializer_range)
    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=init, rngs=rngs)


class RMSNorm(nnx.Module):
    """``weight * x / sqrt(mean(x²) + eps)``, the statistics in float32."""

    def __init__(self, size: int, eps: float):
        self.weight = nnx.Param(jnp.ones(size))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.weight[...], self.eps)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """``weight * x / sqrt(mean(x²) + eps)`` over the last axis, rounded to the dtype of ``x`` before the weight."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype) * weight.reshape((1,) * (x.ndim - 1) + (-1,))


class GatedMLP(nnx.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, config: Any, *, bias: bool, rngs: nnx.Rngs):
        size, inner = config.hidden_size, config.intermediate_size
        self.gate = linear(size, inner, config, bias=bias, rngs=rngs)
        self.up = linear(size, inner, config, bias=bias, rngs=rngs)
        self.down = linear(inner, size, config, bias=bias, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


def rotate(x: jax.Array, rotation: KeyValue) -> jax.Array:
    """Rotates feature i against feature i + H/2.

    Args:
        x: (..., T, N, H).
        rotation: cosine and sine, each (..., T, H/2), with the leading axes of ``x`` or 1.
    """
    cos, sin = (part[..., None, :].astype(x.dtype) for part in rotation)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(
    q: jax.Array,
    prompt_kv: KeyValue | None,
    own_kv: KeyValue,
    prompt_mask: jax.Array | None,
    own_mask: jax.Array,
) -> jax.Array:
    """Attention of G rollouts to the prompt they share and to their own tokens: one softmax over two score blocks.

    ``softmax([q k_promptᵀ, q k_ownᵀ] / sqrt(H)) [v_prompt, v_own]``, where the prompt's keys and values are never
    repeated G times: the G·T queries of a prompt are the rows of one matrix product.  The two blocks share maximum and
    normaliser, so that the result and its gradient are those of one softmax; nothing is merged by log-sum-exp.

    Args:
        q: (P, G, T, N, H) queries; N is a multiple of K (grouped-query attention).
        prompt_kv: keys and values (P, Tp, K, H) that all G rollouts share, or None.
        own_kv: keys and values (P, G, S, K, H).
        prompt_mask: bool (P, T or 1, Tp), true where a query may look; None without ``prompt_kv``.
        own_mask: bool (T, S), or (P, T, S).

    Returns:
        (P, G, T, N * H) in the dtype of ``q``.  A query that may look nowhere gets a finite mean of the values.

    Example:
        >>> q = jnp.ones((1, 2, 1, 2, 4))
        >>> prompt = jnp.ones((1, 3, 1, 4)), jnp.full((1, 3, 1, 4), 5.0)
        >>> own = jnp.ones((1, 2, 1, 1, 4)), jnp.full((1, 2, 1, 1, 4), 1.0)
        >>> float(attend(q, prompt, own, jnp.array([[[True, True, True]]]), jnp.array([[True]]))[0, 0, 0, 0])
        4.0
    """
    P, G, T, N, H = q.shape
    K = own_kv[0].shape[-2]
    R = N // K
    q = (q * H**-0.5).reshape(P, G, T, K, R, H).transpose(0, 3, 1, 4, 2, 5)
    wide = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    own_mask = own_mask.reshape((-1, 1, 1, 1) + own_mask.shape[-2:])
    own = jnp.where(own_mask, wide("pkgrth,pgskh->pkgrts", q, own_kv[0]), MASKED)
    top = own.max(axis=-1, keepdims=True)
    if prompt_kv is None or prompt_mask is None:
        weights = jnp.exp(own - jax.lax.stop_gradient(top))
        total = weights.sum(axis=-1, keepdims=True)
        out = wide("pkgrts,pgskh->pkgrth", weights.astype(q.dtype), own_kv[1])
    else:
        shared = wide("pkmh,pskh->pkms", q.reshape(P, K, G * R * T, H), prompt_kv[0]).reshape(P, K, G, R, T, -1)
        shared = jnp.where(prompt_mask[:, None, None, None], shared, MASKED)
        top = jax.lax.stop_gradient(jnp.maximum(top, shared.max(axis=-1, keepdims=True)))
        weights, shared = jnp.exp(own - top), jnp.exp(shared - top)
        total = weights.sum(axis=-1, keepdims=True) + shared.sum(axis=-1, keepdims=True)
        out = wide("pkgrts,pgskh->pkgrth", weights.astype(q.dtype), own_kv[1])
        shared = shared.astype(q.dtype).reshape(P, K, G * R * T, -1)
        out += wide("pkms,pskh->pkmh", shared, prompt_kv[1]).reshape(out.shape)
    return (out / total).astype(q.dtype).transpose(0, 2, 4, 1, 3, 5).reshape(P, G, T, N * H)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions; queries, keys and values have a bias, the output has none."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        size, inner = config.hidden_size, config.num_heads * config.head_dim
        outer = config.num_kv_heads * config.head_dim
        self.q = linear(size, inner, config, bias=True, rngs=rngs)
        self.k = linear(size, outer, config, bias=True, rngs=rngs)
        self.v = linear(size, outer, config, bias=True, rngs=rngs)
        self.o = linear(inner, size, config, bias=False, rngs=rngs)
        self.head_dim = config.head_dim

    def __call__(
        self,
        x: jax.Array,
        rotation: KeyValue,
        prompt_kv: KeyValue | None,
        prompt_mask: jax.Array | None,
        own_mask: jax.Array,
        cache: KeyValue | None,
        t: jax.Array | int,
    ) -> tuple[jax.Array, KeyValue]:
        q, k, v = (part(x).reshape(*x.shape[:-1], -1, self.head_dim) for part in (self.q, self.k, self.v))
        q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k = jax.lax.dynamic_update_slice_in_dim(cache[0], k, t, axis=2)
            v = jax.lax.dynamic_update_slice_in_dim(cache[1], v, t, axis=2)
        return self.o(attend(q, prompt_kv, (k, v), prompt_mask, own_mask)), (k, v)


class DecoderLayer(nnx.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        self.input_norm = RMSNorm(config.hidden_size, config.rms_eps)
        self.attention = Attention(config, rngs=rngs)
        self.post_norm = RMSNorm(config.hidden_size, config.rms_eps)
        self.mlp = GatedMLP(config, bias=False, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        rotation: KeyValue,
        *,
        own_mask: jax.Array,
        prompt_kv: KeyValue | None = None,
        prompt_mask: jax.Array | None = None,
        cache: KeyValue | None = None,
        t: jax.Array | int = 0,
    ) -> tuple[jax.Array, KeyValue]:
        """Runs one layer.

        Args:
            x: (P, G, T, d).
            rotation: cosine and sine (P, 1, T, H/2).
            own_mask: which of the own keys a query sees, (T, S) or (P, T, S).
            prompt_kv: keys and values (P, Tp, K, H) of the shared prompt, or None while the prompt itself runs.
            prompt_mask: which of the prompt's keys a query sees, (P, 1, Tp).
            cache: own keys and values (P, G, S, K, H) so far; the new ones are written at position ``t``.
            t: position of the first of the T tokens in the cache.

        Returns:
            (P, G, T, d), and the own keys and values: the updated cache, or those of the T tokens.
        """
        x = constrain(x)
        out, kv = self.attention(self.input_norm(x), rotation, prompt_kv, prompt_mask, own_mask, cache, t)
        x = x + out
        return constrain(x + self.mlp(self.post_norm(x))), kv
