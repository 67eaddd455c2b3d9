"""Attention of the text decoder and the vision tower: one function with four implementations.

All attention is computed by :func:`attend`: one softmax over the keys of a prompt, shared by all its rollouts, and a
rollout's own keys. It chooses the implementation from platform, shapes and dtype at trace time:

* ``plain``: matrix products and one softmax; runs everywhere and is the reference for testing the others;
* ``mapped``: plain, for one rollout (or block of queries) at a time, for large scores;
* ``cudnn``: two flash kernels on NVIDIA GPUs, merged;
* ``splash``: one block-sparse flash kernel on TPUs.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec


MASKED = -1e30  # finite, so that a row without allowed keys also stays finite

# Bytes of float32 scores a device above which they are not held at once. For its gradient plain attention holds about
# four arrays of the size of the scores, here 256 MB, as much as the activations of one layer at such shapes; below it a
# kernel or a loop saves no memory that matters and may cost time.
LARGE = 64 * 2**20
LEAST_QUERIES = 128  # least size of a block of queries: with fewer rows a matrix product is bound by reading the keys

KeyValue = tuple[jax.Array, jax.Array]

log = logging.getLogger(__name__)


def heads_first(x: jax.Array) -> jax.Array:
    """Keys or values (P, ..., K, H) as (P, K, ..., H), the order in which a matrix product of one token reads them."""
    return jnp.moveaxis(x, -2, 1)


def heads_last(x: jax.Array) -> jax.Array:
    """The inverse of :func:`heads_first`."""
    return jnp.moveaxis(x, 1, -2)


class Masks(NamedTuple):
    """The keys that a query sees: the masks, and their structure if they have one.

    Attributes:
        own: bool (T, S) or (P, T, S) for the own keys; None if all are seen.
        prompt: bool (P, T or 1, Tp) for the prompt's keys; None without a prompt.
        lengths: (P,) int32, tokens in every prompt, or None. If given, it guarantees that the masks mean exactly this:
            T = S, own keys are seen causally, and of the prompt the keys 0 to length - 1. A window that ends inside the
            sequence or an image read in both directions is not of this form. Nothing is guaranteed for queries at
            padding.
        segments: instead of ``own``, ids (P, T) of the queries and (P, S) of the own keys, which see each other where
            they are equal: a mask that is never held as a whole.
    """

    own: jax.Array | None = None
    prompt: jax.Array | None = None
    lengths: jax.Array | None = None
    segments: tuple[jax.Array, jax.Array] | None = None


def attend(
    q: jax.Array,
    prompt_kv: KeyValue | None,
    own_kv: KeyValue,
    masks: Masks,
    *,
    scale: float | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Attention of G rollouts to their shared prompt and to their own tokens: one softmax over two blocks of scores.

    ``softmax(scale [q k_promptᵀ, q k_ownᵀ]) [v_prompt, v_own]``, where the prompt's keys and values are never
    repeated G times. All implementations have this value and its gradient; they differ in rounding, and at padding.

    Args:
        q: (P, G, T, N, H) queries; N is a multiple of K (grouped-query attention).
        prompt_kv: keys and values (P, Tp, K, H) that all G rollouts share, or None.
        own_kv: keys and values (P, G, S, K, H).
        masks: which keys a query sees.
        scale: default ``1 / sqrt(H)``.
        implementation: "plain", "mapped", "cudnn" or "splash"; None chooses by platform and shapes.

    Returns:
        (P, G, T, N * H) in the dtype of ``q``. A query that sees no keys gets a finite mean of the values.

    Raises:
        ValueError: if ``implementation`` is unknown, or cannot compute these shapes, this dtype or these masks.

    Example:
        >>> q = jnp.ones((1, 2, 1, 2, 4))
        >>> prompt = jnp.ones((1, 3, 1, 4)), jnp.full((1, 3, 1, 4), 5.0)
        >>> own = jnp.ones((1, 2, 1, 1, 4)), jnp.full((1, 2, 1, 1, 4), 1.0)
        >>> masks = Masks(own=jnp.array([[True]]), prompt=jnp.array([[[True, True, True]]]))
        >>> float(attend(q, prompt, own, masks)[0, 0, 0, 0])
        4.0
    """
    scale = float(q.shape[-1] ** -0.5) if scale is None else scale
    chosen = implementation or choose(q, prompt_kv, own_kv, masks)
    if chosen in KERNELS:
        if reason := _refusal(chosen, q, own_kv, masks):
            raise ValueError(f"got implementation={chosen!r} with {reason}; or leave the choice to attend (None)")
        out = _per_device(functools.partial(KERNELS[chosen], scale=scale), q, prompt_kv, own_kv, masks.lengths)
    elif chosen in ("plain", "mapped"):
        out = (_plain if chosen == "plain" else _mapped)(q, prompt_kv, own_kv, masks, scale)
    else:
        raise ValueError(f"got implementation={chosen!r}; wanted plain, mapped, {', '.join(KERNELS)} or None")
    return out.reshape(*q.shape[:3], -1)


def choose(q: jax.Array, prompt_kv: KeyValue | None, own_kv: KeyValue, masks: Masks) -> str:
    """The implementation that :func:`attend` chooses: plain while the scores are small, otherwise a kernel or the loop.

    One token at a time (decoding) is always plain: its scores are small against the keys and values that it reads.
    """
    if q.shape[2] == 1 or _score_bytes(q, prompt_kv, own_kv) <= LARGE:
        return "plain"
    kernel = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}.get(_platform())
    if kernel is None or _refusal(kernel, q, own_kv, masks):
        return "mapped"
    return "mapped" if kernel == "cudnn" and not _cudnn_runs(q.shape[-1]) else kernel


def _platform() -> str:
    """The platform that a program is traced for: that of the mesh, which this machine need not have, or the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def _score_bytes(q: jax.Array, prompt_kv: KeyValue | None, own_kv: KeyValue) -> int:
    """Bytes of float32 scores per device, for a mesh that splits them evenly."""
    P, G, T, N, _ = q.shape
    keys = own_kv[0].shape[2] + (0 if prompt_kv is None else prompt_kv[0].shape[1])
    mesh = jax.sharding.get_abstract_mesh()
    return 4 * P * G * T * N * keys // (1 if mesh.empty else mesh.size)


def _refusal(kernel: str, q: jax.Array, own_kv: KeyValue, masks: Masks) -> str:
    """The reason why the kernel cannot compute this, as "x; wanted y"; empty if it can."""
    mesh, (P, _, _, _, H) = jax.sharding.get_abstract_mesh(), q.shape
    if masks.lengths is None:
        return "masks without lengths; wanted masks that are no more than causality and the lengths of prompts"
    if not mesh.empty and P % mesh.shape["fsdp"]:
        return f"{P} prompts; wanted a multiple of the mesh's fsdp={mesh.shape['fsdp']}"
    dtypes = {str(x.dtype) for x in (q, *own_kv)}
    if kernel == "cudnn" and dtypes not in ({"bfloat16"}, {"float16"}):
        return f"dtypes {sorted(dtypes)}; wanted bfloat16 or float16"
    if kernel == "cudnn" and (H % 8 or H > 256):
        return f"head_dim={H}; wanted a multiple of 8 up to 256"
    if kernel == "splash" and H % 64:
        return f"head_dim={H}; wanted a multiple of 64"
    if kernel == "cudnn" and _cudnn() is None:
        return f"jax {jax.__version__}, whose cuDNN functions are not where they were; wanted jax 0.10.2"
    return ""


# Plain, and plain in parts.


def _plain(q: jax.Array, prompt_kv: KeyValue | None, own_kv: KeyValue, masks: Masks, scale: float) -> jax.Array:
    """One softmax over two score blocks, (P, G, T, N, H).

    The G·T queries of a prompt are the rows of one matrix product. The two blocks share maximum and normaliser, so the
    result and its gradient are those of one softmax, without merging by log-sum-exp.
    """
    P, G, T, N, H = q.shape
    K = own_kv[0].shape[-2]
    R = N // K
    q = (q * scale).reshape(P, G, T, K, R, H).transpose(0, 3, 1, 4, 2, 5)
    wide = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    own = wide("pkgrth,pgskh->pkgrts", q, own_kv[0])
    seen = masks.own
    if masks.segments is not None:
        seen = masks.segments[0][:, :, None] == masks.segments[1][:, None, :]
    if seen is not None:
        own = jnp.where(seen.reshape((-1, 1, 1, 1) + seen.shape[-2:]), own, MASKED)
    top = own.max(axis=-1, keepdims=True)
    if prompt_kv is None or masks.prompt is None:
        weights = jnp.exp(own - jax.lax.stop_gradient(top))
        total = weights.sum(axis=-1, keepdims=True)
        out = wide("pkgrts,pgskh->pkgrth", weights.astype(q.dtype), own_kv[1])
    else:
        shared = wide("pkmh,pskh->pkms", q.reshape(P, K, G * R * T, H), prompt_kv[0]).reshape(P, K, G, R, T, -1)
        shared = jnp.where(masks.prompt[:, None, None, None], shared, MASKED)
        top = jax.lax.stop_gradient(jnp.maximum(top, shared.max(axis=-1, keepdims=True)))
        weights, shared = jnp.exp(own - top), jnp.exp(shared - top)
        total = weights.sum(axis=-1, keepdims=True) + shared.sum(axis=-1, keepdims=True)
        out = wide("pkgrts,pgskh->pkgrth", weights.astype(q.dtype), own_kv[1])
        shared = shared.astype(q.dtype).reshape(P, K, G * R * T, -1)
        out += wide("pkms,pskh->pkmh", shared, prompt_kv[1]).reshape(out.shape)
    return (out / total).astype(q.dtype).transpose(0, 2, 4, 1, 3, 5).reshape(P, G, T, N, H)


def _mapped(q: jax.Array, prompt_kv: KeyValue | None, own_kv: KeyValue, masks: Masks, scale: float) -> jax.Array:
    """:func:`_plain` for one rollout at a time, and within a rollout for blocks of queries, each recomputed.

    It never holds the scores of more than one rollout or block, at the cost of one more forward pass in the backward
    pass.
    """
    if q.shape[1] == 1:
        return _in_blocks(q, prompt_kv, own_kv, masks, scale)
    wide = _widen(prompt_kv)

    def rollout(parts):
        q, k, v = (part[:, None] for part in parts)
        return _in_blocks(q, _narrow(wide, q.dtype), (k, v), masks, scale)[:, 0]

    parts = tuple(jnp.moveaxis(part, 1, 0) for part in (q, *own_kv))
    return jnp.moveaxis(jax.lax.map(rollout, parts), 0, 1)


def _in_blocks(q: jax.Array, prompt_kv: KeyValue | None, own_kv: KeyValue, masks: Masks, scale: float) -> jax.Array:
    """:func:`_plain`, recomputed in the backward pass, in blocks of queries whose scores are not large."""
    T = q.shape[2]
    count = -(-_score_bytes(q, prompt_kv, own_kv) // LARGE)
    size = min(T, max(LEAST_QUERIES, -(-T // count)))
    if size == T:
        plain = jax.checkpoint(functools.partial(_plain, scale=scale), prevent_cse=False)
        return plain(q, prompt_kv, own_kv, masks)
    wide, cut = _widen((prompt_kv, own_kv)), functools.partial(_cut, size=size)
    own = None if masks.own is None else cut(masks.own, axis=masks.own.ndim - 2)
    by_query = None if masks.prompt is None or masks.prompt.shape[1] == 1 else cut(masks.prompt, axis=1)
    ids = None if masks.segments is None else cut(masks.segments[0], axis=1)
    parts = cut(q, axis=2), own, by_query, ids

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def block(parts):
        q, own, prompt, ids = parts
        prompt_kv, own_kv = _narrow(wide, q.dtype)
        segments = None if masks.segments is None else (ids, masks.segments[1])
        seen = Masks(own, masks.prompt if prompt is None else prompt, segments=segments)
        return _plain(q, prompt_kv, own_kv, seen, scale)

    blocks = jnp.moveaxis(jax.lax.map(block, parts), 0, 2)
    return blocks.reshape(*q.shape[:2], -1, *q.shape[3:])[:, :, :T]


def _cut(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Splits an axis into blocks of ``size``, stacked in front; the last block is padded with zeros."""
    count = -(-x.shape[axis] // size)
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, count * size - x.shape[axis])
    return jnp.moveaxis(jnp.pad(x, widths).reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :]), axis, 0)


def _widen(tree: Any) -> Any:
    """Casts the inputs shared by all iterations of a loop to float32, so that their gradients are summed in float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _narrow(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


# Kernels.


def _per_device(
    run: Callable[..., jax.Array], q: jax.Array, prompt_kv: KeyValue | None, own_kv: KeyValue, lengths: jax.Array | None
) -> jax.Array:
    """Runs a kernel, which XLA's partitioner cannot split, on each device's own prompts and heads."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return run(q, prompt_kv, own_kv, lengths)
    heads = "tensor" if own_kv[0].shape[3] % mesh.shape["tensor"] == 0 else None
    own, shared = PartitionSpec("fsdp", None, None, heads), PartitionSpec("fsdp", None, heads)
    specs = own, None if prompt_kv is None else shared, own, PartitionSpec("fsdp")
    return jax.shard_map(run, in_specs=specs, out_specs=own, check_vma=False)(q, prompt_kv, own_kv, lengths)


class Flash(NamedTuple):
    """A flash kernel for one block of keys, with separate forward and backward passes.

    Attributes:
        forward: maps q (B, T, N, H), k and v (B, S, K, H), lengths and scale to the output (B, T, N, H) and the log of
            the softmax's denominator (B, N, T) in float32. ``lengths`` (B,) int32 is the number of keys, all of which
            are seen; None: S = T, and keys are seen causally.
        backward: maps the same, the denominator, the output and its gradient to the gradients of q, k and v, where
            denominator and output may belong to a softmax over more keys than this block's.
    """

    forward: Callable[..., tuple[jax.Array, jax.Array]]
    backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def merged(
    q: jax.Array, prompt_kv: KeyValue | None, own_kv: KeyValue, lengths: jax.Array | None, scale: float, flash: Flash
) -> jax.Array:
    """Attention to both blocks by a kernel for single blocks, (P, G, T, N, H).

    Forward, with outputs o and log denominators l of the blocks: ``l = log(exp(l1) + exp(l2))`` and
    ``o = o1 exp(l1 - l) + o2 exp(l2 - l)`` in float32. Backward, a kernel recomputes its block's weights as
    ``p = exp(scale q kᵀ - l)`` and their gradient as ``p (do vᵀ - rowsum(do o))``. With l and o of the whole softmax,
    these are the block's part of the whole gradient: the gradients of k and v are complete, that of q is the sum over
    both blocks, and no gradient of a denominator is needed. With a block's own l and o they would be wrong. (Ring
    attention, arXiv:2310.01889, splits its backward pass in this way.)

    Args:
        q: (P, G, T, N, H).
        prompt_kv: (P, Tp, K, H) each, or None.
        own_kv: (P, G, T, K, H) each, seen causally.
        lengths: (P,) int32, >= 1, number of visible keys of the prompt.
        scale: factor of the scores.
        flash: the kernel.
    """
    return _merged_forward(q, prompt_kv, own_kv, lengths, scale, flash)[0]


def _key_blocks(q: jax.Array, prompt_kv: KeyValue | None, own_kv: KeyValue, lengths: jax.Array | None) -> list:
    """The kernel's view of each block: batch size, keys and values, lengths; all rollouts query a prompt as one row."""
    rows = q.shape[0] * q.shape[1]
    k, v = (part.reshape(rows, *part.shape[2:]) for part in own_kv)
    own = rows, (k, v), None
    return [own] if prompt_kv is None else [own, (q.shape[0], prompt_kv, lengths)]


def _merged_forward(q, prompt_kv, own_kv, lengths, scale, flash):
    outs, logs = [], []
    for batch, kv, keys in _key_blocks(q, prompt_kv, own_kv, lengths):
        out, log_total = flash.forward(q.reshape(batch, -1, *q.shape[3:]), *kv, keys, scale)
        outs.append(out.reshape(q.shape).astype(jnp.float32))
        logs.append(log_total.swapaxes(1, 2).reshape(*q.shape[:4], 1))
    log_total = functools.reduce(jnp.logaddexp, logs)
    shares = [out * jnp.exp(part - log_total) for out, part in zip(outs, logs, strict=True)]
    out = functools.reduce(jnp.add, shares).astype(q.dtype)
    return out, (q, prompt_kv, own_kv, lengths, out, log_total)


def _merged_backward(scale, flash, kept, d_out):
    q, prompt_kv, own_kv, lengths, out, log_total = kept
    grads = []
    for batch, kv, keys in _key_blocks(q, prompt_kv, own_kv, lengths):
        whole_q, whole_out, whole_d_out = (x.reshape(batch, -1, *q.shape[3:]) for x in (q, out, d_out))
        whole_log = log_total.reshape(batch, -1, q.shape[3]).swapaxes(1, 2)
        grads.append(flash.backward(whole_q, *kv, keys, scale, whole_log, whole_out, whole_d_out))
    dq = functools.reduce(jnp.add, [grad[0].reshape(q.shape).astype(jnp.float32) for grad in grads]).astype(q.dtype)
    own = tuple(grad.reshape(part.shape) for grad, part in zip(grads[0][1:], own_kv, strict=True))
    return dq, None if prompt_kv is None else tuple(grads[1][1:]), own, None


merged.defvjp(_merged_forward, _merged_backward)


@functools.cache
def _cudnn() -> Any:
    """JAX's cuDNN attention, whose passes are private functions; None, with one warning, if they are not found."""
    try:
        from jax._src.cudnn import fused_attention_stablehlo as functions

        _ = functions.dot_product_attention, functions._dot_product_attention_bwd_p_wrapper.bind
        _ = functions.MaskType.PADDING, functions.MaskType.CAUSAL, functions.AttentionLayout.BTNH
        _ = functions.check_compute_capability, functions.check_cudnn_version
    except (ImportError, AttributeError) as error:
        log.warning("jax %s: no cuDNN attention (%s); attention is computed by matrix products", jax.__version__, error)
        return None
    return functions


def _cudnn_runs(head_dim: int) -> bool:
    """Whether this machine's GPU has cuDNN and is an Ampere (heads up to 128) or newer (up to 256)."""
    functions = _cudnn()
    try:
        functions.check_cudnn_version()
    except RuntimeError:
        return False
    return functions.check_compute_capability("8.0" if head_dim <= 128 else "9.0")


def _cudnn_mask(q: jax.Array, lengths: jax.Array | None) -> dict[str, Any]:
    mask = _cudnn().MaskType
    if lengths is None:
        return dict(mask_type=mask.CAUSAL)
    queries = jnp.full(q.shape[0], q.shape[1], jnp.int32)
    return dict(mask_type=mask.PADDING, q_seqlen=queries, kv_seqlen=lengths.astype(jnp.int32))


def _cudnn_forward(q, k, v, lengths, scale):
    mask = _cudnn_mask(q, lengths)
    return _cudnn().dot_product_attention(q, k, v, scale=float(scale), return_residual=True, **mask)


def _cudnn_backward(q, k, v, lengths, scale, log_total, out, d_out):
    functions, unused, mask = _cudnn(), jnp.zeros(0, q.dtype), _cudnn_mask(q, lengths)
    queries, keys = mask.pop("q_seqlen", unused), mask.pop("kv_seqlen", unused)
    dq, dk, dv = functions._dot_product_attention_bwd_p_wrapper.bind(
        *(q, k, v, unused, queries, keys, unused, unused, unused, unused, log_total, out, d_out),
        **mask,
        scale=float(scale),
        seed=42,  # of dropout, which is not used
        dropout_rate=0.0,
        variadic_args=(False, False),  # no bias, no gradient of a bias
        layout=functions.AttentionLayout.BTNH.value,
        sliding_window_length=None,
    )
    if lengths is not None:  # the kernel's values after a prompt's end are undefined
        inside = (jnp.arange(k.shape[1])[None, :] < lengths[:, None])[..., None, None]
        dk, dv = jnp.where(inside, dk, 0), jnp.where(inside, dv, 0)
    return dq, dk, dv


def _splash(
    q: jax.Array, prompt_kv: KeyValue | None, own_kv: KeyValue, lengths: jax.Array | None, *, scale: float
) -> jax.Array:
    """JAX's block-sparse TPU kernel on the tree of a prompt and its rollouts, (P, G, T, N, H).

    The G·T queries of a prompt attend to ``[prompt, own keys of all rollouts]`` under one static mask: all of the
    prompt, and earlier tokens of the same rollout. Blocks without visible keys are never computed. Padding of prompts
    differs by row and is masked by segment ids; both parts are padded to whole tiles of 128.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

    P, G, T, N, H = q.shape
    front = 0 if prompt_kv is None else _up(prompt_kv[0].shape[1])
    rows = _up(G * T)
    q = (q * scale).reshape(P, G * T, N, H)
    parts = [part.reshape(P, G * T, -1, H) for part in own_kv]
    k, v = (_fill(part, rows) for part in parts)
    segments = jnp.ones((P, rows), jnp.int32)
    if prompt_kv is not None and lengths is not None:
        k, v = (jnp.concatenate([_fill(a, front), b], 1) for a, b in zip(prompt_kv, (k, v), strict=True))
        valid = (jnp.arange(front)[None, :] < lengths[:, None]).astype(jnp.int32)
        segments = jnp.concatenate([valid, segments], axis=1)
    wide, tall = _tile(front + rows), _tile(rows)
    sizes = kernels.BlockSizes(
        block_q=tall, block_kv=wide, block_q_dkv=tall, block_kv_dkv=wide, block_q_dq=tall, block_kv_dq=wide
    )
    tree = _tree_mask(front, rows, T, heads=N)
    kernel = kernels.make_splash_mha_single_device(tree, block_sizes=sizes, interpret=_platform() != "tpu")
    ids = kernels.SegmentIds(jnp.ones((P, rows), jnp.int32), segments)
    out: Any = jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in (_fill(q, rows), k, v)), ids)
    return out.swapaxes(1, 2)[:, : G * T].reshape(P, G, T, N, H)


def _tree_mask(front: int, rows: int, steps: int, heads: int) -> Any:
    """Splash's mask (heads, rows, front + rows): all of the prompt, and earlier tokens of the same rollout.

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
    own = (row[:, None] >= row) & (row[:, None] // steps == row // steps)
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


KERNELS = {
    "cudnn": functools.partial(merged, flash=Flash(_cudnn_forward, _cudnn_backward)),
    "splash": _splash,
}
