"""The flash kernels of accelerators: cuDNN's, called piece by piece, and JAX's block-sparse kernel for TPUs."""

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairgrpo_jax.models.flash import Flash, KeyValue, Known, Seen, merged
from fairgrpo_jax.models.remat import PRODUCT


log = logging.getLogger(__name__)


@functools.cache
def cudnn() -> Any:
    """JAX's cuDNN attention, whose passes are private functions; None, with one warning, if they are not found."""
    try:
        from jax._src.cudnn import fused_attention_stablehlo as functions

        _ = functions._dot_product_attention_fwd_p_wrapper.bind, functions._dot_product_attention_bwd_p_wrapper.bind
        _ = functions.MaskType.PADDING_CAUSAL, functions.AttentionLayout.BTNH
        _ = functions.check_compute_capability, functions.check_cudnn_version
    except (ImportError, AttributeError) as error:
        log.warning("jax %s: no cuDNN attention (%s); attention is computed by matrix products", jax.__version__, error)
        return None
    return functions


def cudnn_runs(head_dim: int) -> bool:
    """Whether a GPU is an Ampere (heads up to 128) or newer (up to 256), and this machine's has cuDNN.

    The GPU is this machine's, or one that the mesh only describes, for its compiler.
    """
    described = jax.sharding.get_abstract_mesh().abstract_device
    if described is not None and jax.default_backend() == "cpu":
        return head_dim <= 128 or "A100" not in described.device_kind
    functions = cudnn()
    try:
        functions.check_cudnn_version()
    except RuntimeError:
        return False
    return functions.check_compute_capability("8.0" if head_dim <= 128 else "9.0")


def _cudnn_call(q: jax.Array, k: jax.Array, seen: Seen, scale: float) -> tuple[list[jax.Array], dict[str, Any]]:
    """What both passes are given beside q, k and v: bias, lengths, offsets and pages, as arrays; and the options."""
    functions, unused = cudnn(), jnp.zeros(0, q.dtype)
    full = lambda x, sizes: jnp.full(x.shape[0], x.shape[1], jnp.int32) if sizes is None else sizes.astype(jnp.int32)
    queries, keys, padded = unused, unused, seen.keys is not None or seen.queries is not None
    if padded:
        queries, keys = full(q, seen.queries), full(k, seen.keys)
    kind = ("PADDING_" if seen.causal else "PADDING") * padded + "CAUSAL" * seen.causal or "NO_MASK"
    return [unused, queries, keys, unused, unused, unused, unused], dict(
        scale=float(scale),
        seed=42,  # of dropout, which is not used
        dropout_rate=0.0,
        variadic_args=(False, False),  # no bias, no gradient of a bias
        mask_type=functions.MaskType[kind],
        layout=functions.AttentionLayout.BTNH.value,
        sliding_window_length=seen.window or None,
    )


def cudnn_forward(q: jax.Array, k: jax.Array, v: jax.Array, seen: Seen, scale: float) -> tuple[jax.Array, jax.Array]:
    """:class:`flash.Flash` by cuDNN."""
    arrays, options = _cudnn_call(q, k, seen, scale)
    return cudnn()._dot_product_attention_fwd_p_wrapper.bind(q, k, v, *arrays, is_training=True, **options)


def cudnn_backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: Seen,
    scale: float,
    log_total: jax.Array,
    out: jax.Array,
    d_out: jax.Array,
) -> Any:
    """:class:`flash.Flash` by cuDNN."""
    arrays, options = _cudnn_call(q, k, seen, scale)
    return cudnn()._dot_product_attention_bwd_p_wrapper.bind(q, k, v, *arrays, log_total, out, d_out, **options)


CUDNN = Flash(cudnn_forward, cudnn_backward)


def by_cudnn(
    q: jax.Array, prompt_kv: KeyValue | None, own_kv: KeyValue, known: Known, *, scale: float, window: int
) -> jax.Array:
    """:func:`flash.merged` by cuDNN."""
    return merged(q, prompt_kv, own_kv, known, scale, window, CUDNN)


def by_splash(
    q: jax.Array,
    prompt_kv: KeyValue | None,
    own_kv: KeyValue,
    known: Known,
    *,
    scale: float,
    window: int = 0,
    interpret: bool = False,
) -> jax.Array:
    """JAX's block-sparse TPU kernel on the tree of a prompt and its rollouts, (P, G, T, N, H).

    The G·T queries of a prompt attend to ``[prompt, own keys of all rollouts]`` under one static mask: all of the
    prompt, and earlier tokens of the same rollout; without ``known.lengths``, all tokens of the same rollout. Blocks
    without visible keys are never computed. Padding of prompts and ``known.segments`` differ by row and are masked by
    segment ids; both parts are padded to whole tiles of 128, and heads to a multiple of 64.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

    if window or known.block is not None:
        raise ValueError("got a window or images that are read in both directions; this kernel's masks have neither")
    P, G, T, N, H = q.shape
    front = 0 if prompt_kv is None else _up(prompt_kv[0].shape[1])
    rows = _up(G * T)
    q = (q * scale).reshape(P, G * T, N, H)
    k, v = (_fill(part.reshape(P, G * T, -1, H), rows) for part in own_kv)
    own = jnp.ones((P, G * T), jnp.int32) if known.segments is None else known.segments
    own = jnp.pad(own, [(0, 0), (0, rows - G * T)], constant_values=1 if known.segments is None else -1)
    segments = own
    if prompt_kv is not None and known.lengths is not None:
        k, v = (jnp.concatenate([_fill(a, front), b], 1) for a, b in zip(prompt_kv, (k, v), strict=True))
        valid = (jnp.arange(front)[None, :] < known.lengths[:, None]).astype(jnp.int32)
        segments = jnp.concatenate([valid, segments], axis=1)
    wide, tall = _tile(front + rows), _tile(rows)
    sizes = kernels.BlockSizes(
        block_q=tall, block_kv=wide, block_q_dkv=tall, block_kv_dkv=wide, block_q_dq=tall, block_kv_dq=wide
    )
    tree = _tree_mask(front, rows, T, heads=N, causal=known.lengths is not None)
    kernel = kernels.make_splash_mha_single_device(
        tree, block_sizes=sizes, interpret=interpret, residual_checkpoint_name=PRODUCT
    )
    heads = [(0, 0)] * 3 + [(0, 0 if H % 64 == 0 else _up(H) - H)]
    parts = (jnp.pad(x, heads).swapaxes(1, 2) for x in (_fill(q, rows), k, v))
    out: Any = jax.vmap(kernel)(*parts, kernels.SegmentIds(own, segments))
    return out.swapaxes(1, 2)[:, : G * T, :, :H].reshape(P, G, T, N, H)


def _tree_mask(front: int, rows: int, steps: int, heads: int, *, causal: bool) -> Any:
    """Splash's mask (heads, rows, front + rows): all of the prompt, and all or earlier tokens of the same rollout.

    Each rollout has ``steps`` rows; rows that only pad a tile are treated as another rollout.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    class Tree(masks.NumpyMask):
        """Hashed by identity, because hashing 75 MB for every head took half a minute."""

        def __eq__(self, other):
            return self is other

        def __hash__(self):
            return id(self)

    row = np.arange(rows)
    own = ((row[:, None] >= row) | (not causal)) & (row[:, None] // steps == row // steps)
    tree = Tree(np.concatenate([np.ones((rows, front), bool), own], axis=1))
    return masks.MultiHeadMask([tree] * heads)


def _up(size: int) -> int:
    """The next multiple of 128, the width of a TPU's tile."""
    return -(-size // 128) * 128


def _tile(size: int) -> int:
    """The largest block size of the kernel, up to 512, that divides ``size``, a multiple of 128."""
    return next(tile for tile in (512, 256, 128) if size % tile == 0)


def _fill(x: jax.Array, size: int) -> jax.Array:
    """Pads axis 1 with zeros to ``size``."""
    return jnp.pad(x, [(0, 0), (0, size - x.shape[1]), (0, 0), (0, 0)])
