"""Attention of the text decoder and the vision tower: one function with four implementations.

All attention is computed by :func:`attend`: one softmax over the keys of a prompt, shared by all its rollouts, and a
rollout's own keys. It chooses the implementation from platform, shapes and dtype at trace time:

* ``plain``: matrix products and one softmax; runs everywhere and is the reference for testing the others;
* ``mapped``: plain, for one rollout (or block of queries) at a time, for large scores;
* ``cudnn``: a few calls of a flash kernel on NVIDIA GPUs, merged (:mod:`flash`);
* ``splash``: one block-sparse flash kernel on TPUs (:mod:`kernels`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fairgrpo_jax.models import kernels
from fairgrpo_jax.models.flash import KeyValue, Known
from fairgrpo_jax.models.remat import product


MASKED = -1e30  # finite, so that a row without allowed keys also stays finite

# Bytes of float32 scores a device above which they are not held at once. For its gradient plain attention holds about
# four arrays of the size of the scores, here 256 MB, as much as the activations of one layer at such shapes; below it a
# kernel or a loop saves no memory that matters and may cost time.
LARGE = 64 * 2**20
LEAST_QUERIES = 128  # least size of a block of queries: with fewer rows a matrix product is bound by reading the keys


def stored(keys: jax.Array, values: jax.Array) -> KeyValue:
    """Keys and values (P, ..., S, K, H) as caches hold them: keys (P, K, ..., H, S), values (P, K, ..., S, H).

    In this order the matrix products of one token read them as they are, without transposing them first.
    """
    return jnp.moveaxis(keys, (-2, -1, -3), (1, -2, -1)), jnp.moveaxis(values, -2, 1)


def restored(kv: KeyValue) -> KeyValue:
    """The inverse of :func:`stored`."""
    return jnp.moveaxis(kv[0], (1, -2, -1), (-2, -1, -3)), jnp.moveaxis(kv[1], 1, -2)


def bias(seen: jax.Array) -> jax.Array:
    """What is added to finite scores, 0 where a key is seen and otherwise :data:`MASKED`, which swallows the score.

    A sum of the small mask, not a choice between large arrays: its gradient needs no mask, so none is kept by score.
    """
    return jnp.where(seen, 0.0, MASKED)


class Masks(NamedTuple):
    """The keys that a query sees: the masks, and their structure if they have one.

    ``lengths``, ``window`` and ``block`` say once more what ``own`` and ``prompt`` say, in the form that kernels take;
    nothing is guaranteed for queries at padding. Without any mask, all own keys are seen.

    Attributes:
        own: bool (T, S) or (P, T, S) for the own keys; None if all are seen.
        prompt: bool (P, T or 1, Tp) for the prompt's keys; None without a prompt.
        lengths: (P,) int32, tokens in every prompt, or None. If given, T = S, own keys are seen causally, and of the
            prompt the keys 0 to length - 1, but for ``window`` and ``block``.
        window: a bool (), which may be traced, and a number of tokens: if true, a query sees no tokens but the last so
            many, itself included, where token t of a completion follows the last token of its prompt.
        block: ids (P, T) of images, 0 elsewhere: a token also sees the later ones of its image, which are adjacent.
        segments: instead of ``own``, ids (P, T) of the queries and (P, S) of the own keys, which see each other where
            they are equal: a mask that is never held as a whole. Queries and keys are the same rows, equal ids are
            adjacent, and negative ids are padding.
    """

    own: jax.Array | None = None
    prompt: jax.Array | None = None
    lengths: jax.Array | None = None
    window: tuple[Any, int] | None = None
    block: jax.Array | None = None
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
        window = 0 if masks.window is None else masks.window[1]
        run = functools.partial(KERNELS[chosen], scale=scale, window=window)
        if chosen == "splash":
            run = functools.partial(run, interpret=_platform() != "tpu")
        out = _per_device(run, q, prompt_kv, own_kv, _known(masks))
    elif chosen in ("plain", "mapped"):
        out = product((_plain if chosen == "plain" else _mapped)(q, prompt_kv, own_kv, masks, scale))
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
    return "mapped" if kernel == "cudnn" and not kernels.cudnn_runs(q.shape[-1]) else kernel


def _known(masks: Masks) -> Known:
    """The structure of masks without the masks."""
    local = None if masks.window is None else jnp.asarray(masks.window[0])
    return Known(masks.lengths, local, masks.block, None if masks.segments is None else masks.segments[0])


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
    if masks.lengths is None and (masks.own is not None or masks.prompt is not None):
        return "masks of no known structure; wanted lengths of prompts, segments, or no masks"
    if kernel == "splash" and (masks.window is not None or masks.block is not None):
        return "a window or images that are read in both directions; wanted causality and the lengths of prompts"
    if not mesh.empty and P % mesh.shape["fsdp"]:
        return f"{P} prompts; wanted a multiple of the mesh's fsdp={mesh.shape['fsdp']}"
    dtypes = {str(x.dtype) for x in (q, *own_kv)}
    if kernel == "cudnn" and dtypes not in ({"bfloat16"}, {"float16"}):
        return f"dtypes {sorted(dtypes)}; wanted bfloat16 or float16"
    if kernel == "cudnn" and (H % 8 or H > 256):
        return f"head_dim={H}; wanted a multiple of 8 up to 256"
    if kernel == "cudnn" and kernels.cudnn() is None:
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
        own += bias(seen).reshape((-1, 1, 1, 1) + seen.shape[-2:])
    top = own.max(axis=-1, keepdims=True)
    if prompt_kv is None or masks.prompt is None:
        weights = jnp.exp(own - jax.lax.stop_gradient(top))
        total = weights.sum(axis=-1, keepdims=True)
        out = wide("pkgrts,pgskh->pkgrth", weights.astype(q.dtype), own_kv[1])
    else:
        shared = wide("pkmh,pskh->pkms", q.reshape(P, K, G * R * T, H), prompt_kv[0]).reshape(P, K, G, R, T, -1)
        shared += bias(masks.prompt)[:, None, None, None]
        top = jax.lax.stop_gradient(jnp.maximum(top, shared.max(axis=-1, keepdims=True)))
        weights, shared = jnp.exp(own - top), jnp.exp(shared - top)
        total = weights.sum(axis=-1, keepdims=True) + shared.sum(axis=-1, keepdims=True)
        out = wide("pkgrts,pgskh->pkgrth", weights.astype(q.dtype), own_kv[1])
        shared = shared.astype(q.dtype).reshape(P, K, G * R * T, -1)
        out += wide("pkms,pskh->pkmh", shared, prompt_kv[1]).reshape(out.shape)
    return (out / total).astype(q.dtype).transpose(0, 2, 4, 1, 3, 5).reshape(P, G, T, N, H)


def _mapped(q: jax.Array, prompt_kv: KeyValue | None, own_kv: KeyValue, masks: Masks, scale: float) -> jax.Array:
    """:func:`_plain` for one rollout at a time, of those for a few prompts, and of these for blocks of queries.

    Each part is recomputed in the backward pass, at the cost of one more forward pass, so that a device never holds the
    scores of more than one part: 64 MiB, or those of 128 queries of one prompt.
    """
    masks = masks._replace(lengths=None, window=None, block=None)
    if q.shape[1] == 1:
        return _in_groups(q, prompt_kv, own_kv, masks, scale)
    wide = _widen(prompt_kv)

    def rollout(parts):
        q, k, v = (part[:, None] for part in parts)
        return _in_groups(q, _narrow(wide, q.dtype), (k, v), masks, scale)[:, 0]

    parts = tuple(jnp.moveaxis(part, 1, 0) for part in (q, *own_kv))
    return jnp.moveaxis(jax.lax.map(rollout, parts), 0, 1)


def _in_groups(q: jax.Array, prompt_kv: KeyValue | None, own_kv: KeyValue, masks: Masks, scale: float) -> jax.Array:
    """:func:`_in_blocks` for so many prompts of every device at a time that the least block of queries is not large."""
    P, T = q.shape[0], q.shape[2]
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty or P % mesh.shape["fsdp"] else mesh.shape["fsdp"]
    least = _score_bytes(q, prompt_kv, own_kv) * min(T, LEAST_QUERIES) / T
    groups = next(
        n for n in range(1, P // devices + 1) if P // devices % n == 0 and (n * LARGE >= least or n == P // devices)
    )
    if groups == 1:
        return _in_blocks(q, prompt_kv, own_kv, masks, scale)

    def part(x):  # every device keeps its own prompts
        return jnp.moveaxis(x.reshape(devices, groups, -1, *x.shape[1:]), 1, 0).reshape(groups, -1, *x.shape[1:])

    shared = masks.own if masks.own is not None and masks.own.ndim == 2 else None
    parts = jax.tree.map(part, (q, prompt_kv, own_kv, masks if shared is None else masks._replace(own=None)))

    def group(parts):
        q, prompt_kv, own_kv, masks = parts
        return _in_blocks(q, prompt_kv, own_kv, masks if shared is None else masks._replace(own=shared), scale)

    out = jax.lax.map(group, parts)
    return jnp.moveaxis(out.reshape(groups, devices, -1, *out.shape[2:]), 0, 1).reshape(P, *out.shape[2:])


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
    run: Callable[..., jax.Array], q: jax.Array, prompt_kv: KeyValue | None, own_kv: KeyValue, known: Known
) -> jax.Array:
    """Runs a kernel, which XLA's partitioner cannot split, on each device's own prompts and heads."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return run(q, prompt_kv, own_kv, known)
    heads = "tensor" if own_kv[0].shape[3] % mesh.shape["tensor"] == 0 else None
    own, shared = PartitionSpec("fsdp", None, None, heads), PartitionSpec("fsdp", None, heads)
    split = jax.tree.map(lambda x: PartitionSpec("fsdp") if x.ndim else PartitionSpec(), known)
    specs = own, None if prompt_kv is None else shared, own, split
    return jax.shard_map(run, in_specs=specs, out_specs=own, check_vma=False)(q, prompt_kv, own_kv, known)


KERNELS = {"cudnn": kernels.by_cudnn, "splash": kernels.by_splash}
