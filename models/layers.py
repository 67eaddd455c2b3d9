"""The blocks of the text decoders, shared by prompt pass, update and sampler.

A module describes ONE block. The weights of all blocks of a kind are stacked along a leading axis in a plain nested
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
from fairgrpo_jax.models.attention import KeyValue, Masks, attend, restored, stored
from fairgrpo_jax.models.remat import Remat, product


# Activations by the names in published configs.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


@functools.cache
def _graph(block: Callable[..., nnx.Module], config: Any, adapters: tuple[tuple[str, ...], ...]) -> nnx.GraphDef:
    def build():
        module = block(config, rngs=nnx.Rngs(0))
        for path in adapters:
            linear: Any = functools.reduce(getattr, path, module)
            linear.adapt()
        return module

    return nnx.split(nnx.eval_shape(build))[0]


def _adapters(weights: dict, path: tuple[str, ...] = ()) -> tuple[tuple[str, ...], ...]:
    """Paths of the linear maps that have a low-rank adapter."""
    inner = [_adapters(node, (*path, name)) for name, node in weights.items() if isinstance(node, dict)]
    return sum(inner, (path,) if "lora_a" in weights else ())


def bind(block: Callable[..., nnx.Module], config: Any, weights: dict) -> Any:
    """The module ``block(config)`` with ``weights``, a nested dict of arrays that may include low-rank adapters."""
    return nnx.merge(_graph(block, config, _adapters(weights)), weights)


def create(block: Callable[..., nnx.Module], config: Any, key: jax.Array) -> dict:
    """Initial weights of ``block(config)`` as a nested dict."""
    return nnx.to_pure_dict(nnx.state(block(config, rngs=nnx.Rngs(key))))


def stack(block: Callable[..., nnx.Module], config: Any, key: jax.Array, depth: int) -> dict:
    """Initial weights of ``depth`` blocks, each leaf with a leading layer axis."""
    return jax.vmap(functools.partial(create, block, config))(jax.random.split(key, depth))


def unstack(tree: Any) -> tuple:
    """Splits the leading layer axis of every leaf: a tree of (L, ...) becomes a tuple of L trees."""
    depth = jax.tree.leaves(tree)[0].shape[0]
    return tuple(jax.tree.map(operator.itemgetter(layer), tree) for layer in range(depth))


def scan(layer: Callable, x: Any, of_layers: Any, *, remat: Remat = False) -> tuple[Any, Any]:
    """``jax.lax.scan`` over layers; a few are compiled one after the other, to faster code than a loop.

    Two always, three and four where nothing is recomputed: without a loop, compilers merge what would be computed again
    with what was computed before.
    """
    short = len(jax.tree.leaves(of_layers)[0]) <= (2 if remat else 4)
    return jax.lax.scan(layer, x, of_layers, unroll=True) if short else jax.lax.scan(layer, x, of_layers)


class Linear(nnx.Linear):
    """``x kernel + bias``, plus ``lora_scale * (x lora_a) lora_b`` if the weights hold a low-rank adapter.

    The kernel (in, out) starts as N(0, ``config.initializer_range``²), the bias, if there is one, as 0.
    """

    def __init__(self, inputs: int, outputs: int, config: Any, *, bias: bool, rngs: nnx.Rngs):
        init = nnx.initializers.normal(config.initializer_range)
        super().__init__(inputs, outputs, use_bias=bias, kernel_init=init, rngs=rngs)
        self.lora_a = self.lora_b = nnx.data(None)
        self.lora_scale = config.lora_scale

    def adapt(self) -> None:
        """Adds the variables of an adapter; its weights determine the rank."""
        self.lora_a, self.lora_b = nnx.Param(jnp.zeros(())), nnx.Param(jnp.zeros(()))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = super().__call__(x)
        if self.lora_a is not None and self.lora_b is not None:
            a, b = (part[...].astype(x.dtype) for part in (self.lora_a, self.lora_b))
            y = y + self.lora_scale * (x @ a) @ b
        return product(y)


def along_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    """Reshapes a vector to broadcast along the last axis of ``x``."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


class RMSNorm(nnx.Module):
    """:func:`rms_norm` with a weight that is initially the identity."""

    def __init__(self, size: int, eps: float, *, offset: bool = False):
        self.weight = nnx.Param(jnp.zeros(size) if offset else jnp.ones(size))
        self.eps, self.offset = eps, offset

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.weight[...], self.eps, offset=self.offset)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float, *, offset: bool = False) -> jax.Array:
    """``weight * x / sqrt(mean(x²) + eps)`` over the last axis, with statistics in float32.

    The quotient is rounded to the dtype of ``x`` before the weight; with ``offset`` the weight is stored less 1 and
    multiplied in float32 (Gemma).
    """
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    weight = along_last(weight, x)
    return (wide * (1 + weight.astype(jnp.float32))).astype(x.dtype) if offset else wide.astype(x.dtype) * weight


class LayerNorm(nnx.Module):
    """:func:`layer_norm` with a weight and a bias that are initially the identity."""

    def __init__(self, size: int, eps: float):
        self.weight = nnx.Param(jnp.ones(size))
        self.bias = nnx.Param(jnp.zeros(size))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x, self.weight[...], self.bias[...], self.eps)


def layer_norm(x: jax.Array, weight: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """``weight * (x - mean(x)) / sqrt(var(x) + eps) + bias`` over the last axis, in float32."""
    wide = x.astype(jnp.float32)
    wide -= wide.mean(axis=-1, keepdims=True)
    wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * along_last(weight, x) + along_last(bias, x)).astype(x.dtype)


class MLP(nnx.Module):
    """``down(act(up(x)))``, or ``down(act(gate(x)) * up(x))`` if ``config.gated``."""

    def __init__(self, config: Any, *, bias: bool, rngs: nnx.Rngs):
        size, inner = config.hidden_size, config.intermediate_size
        self.gate = Linear(size, inner, config, bias=bias, rngs=rngs) if config.gated else None
        self.up = Linear(size, inner, config, bias=bias, rngs=rngs)
        self.down = Linear(inner, size, config, bias=bias, rngs=rngs)
        self.activation = config.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        act = ACTIVATIONS[self.activation]
        return self.down(act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x))


def rotate(x: jax.Array, rotation: KeyValue) -> jax.Array:
    """Rotates feature i against feature i + H/2.

    Args:
        x: (..., T, N, H).
        rotation: cosine and sine, each (..., T, H/2), with the leading axes of ``x`` or 1.
    """
    cos, sin = (part[..., None, :].astype(x.dtype) for part in rotation)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions; the output map has no bias."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        size, inner = config.hidden_size, config.num_heads * config.head_dim
        outer, bias = config.num_kv_heads * config.head_dim, config.qkv_bias
        self.q = Linear(size, inner, config, bias=bias, rngs=rngs)
        self.k = Linear(size, outer, config, bias=bias, rngs=rngs)
        self.v = Linear(size, outer, config, bias=bias, rngs=rngs)
        self.o = Linear(inner, size, config, bias=False, rngs=rngs)
        norm = functools.partial(RMSNorm, config.head_dim, config.rms_eps, offset=config.offset_norm)
        self.q_norm = norm() if config.qk_norm else None
        self.k_norm = norm() if config.qk_norm else None
        self.head_dim, self.scale = config.head_dim, config.attention_scale

    def __call__(
        self,
        x: jax.Array,
        rotation: KeyValue,
        masks: Masks,
        prompt_kv: KeyValue | None,
        cache: KeyValue | None,
        t: jax.Array | int,
    ) -> tuple[jax.Array, KeyValue]:
        q, k, v = (part(x).reshape(*x.shape[:-1], -1, self.head_dim) for part in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, rotation), rotate(k, rotation)
        kept: Any = k, v
        if cache is not None:
            kept = tuple(
                jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), t, axis)
                for old, new, axis in zip(cache, stored(k, v), (4, 3), strict=True)
            )
            k, v = restored(kept)
        out = attend(q.astype(k.dtype), prompt_kv, (k, v), masks, scale=self.scale)
        return self.o(out.astype(x.dtype)), kept


class DecoderLayer(nnx.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``; ``sandwich_norms`` also normalises both summands."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        norm = functools.partial(RMSNorm, config.hidden_size, config.rms_eps, offset=config.offset_norm)
        self.input_norm = norm()
        self.attention = Attention(config, rngs=rngs)
        self.attention_out_norm = norm() if config.sandwich_norms else None
        self.post_norm = norm()
        self.mlp = MLP(config, bias=False, rngs=rngs)
        self.mlp_out_norm = norm() if config.sandwich_norms else None

    def __call__(
        self,
        x: jax.Array,
        rotation: KeyValue,
        masks: Masks,
        *,
        prompt_kv: KeyValue | None = None,
        cache: KeyValue | None = None,
        t: jax.Array | int = 0,
    ) -> tuple[jax.Array, KeyValue]:
        """Runs one layer.

        Args:
            x: (P, G, T, d).
            rotation: cosine and sine (P, 1, T, H/2).
            masks: which own keys and which prompt keys a query sees.
            prompt_kv: keys and values (P, Tp, K, H) of the shared prompt, or None while the prompt itself runs.
            cache: own keys and values so far, as :func:`attention.stored`; the new ones are written at position ``t``.
                Attention is computed in its dtype.
            t: position of the first of the T tokens in the cache.

        Returns:
            (P, G, T, d), and the own keys and values: the updated cache, or those of the T tokens.
        """
        x = constrain(x)
        out, kv = self.attention(self.input_norm(x), rotation, masks, prompt_kv, cache, t)
        x = x + (out if self.attention_out_norm is None else self.attention_out_norm(out))
        out = self.mlp(self.post_norm(x))
        return constrain(x + (out if self.mlp_out_norm is None else self.mlp_out_norm(out))), kv
