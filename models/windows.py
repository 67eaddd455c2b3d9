"""Attention inside windows of consecutive patches, without scores between windows.

A window of at most L consecutive rows lies in at most two neighbouring blocks of L rows. A block of queries therefore
sees its own block and the two beside it, 3 L keys, of which a mask leaves those of the query's window.
"""

import functools

import jax
import jax.numpy as jnp

from fairgrpo_jax.models.attention import MASKED
from fairgrpo_jax.models.remat import product


SCORES = 256 << 20  # bytes of scores that a device holds at once; more blocks are computed one part after the other


def attend(q: jax.Array, k: jax.Array, v: jax.Array, window: jax.Array, length: int) -> jax.Array:
    """``softmax(q kᵀ / sqrt(H)) v`` inside windows.

    Args:
        q: (P, S, N, H).
        k: (P, S, N, H).
        v: (P, S, N, H).
        window: (P, S) int32, the same for the rows of a window, which are next to each other; -1 is padding.
        length: the most rows of a window, L.

    Returns:
        (P, S, N * H) in the dtype of ``q``; rows of padding are finite but meaningless.

    Example:
        >>> v = jnp.arange(4.0).reshape(1, 4, 1, 1)
        >>> attend(0 * v, v, v, jnp.array([[0, 0, 1, 1]]), 2).ravel().tolist()
        [0.5, 0.5, 2.5, 2.5]
    """
    P, S, N, H = q.shape
    count = -(-S // length)
    each = _per_part(P, N, length, count)
    parts = -(-count // each)
    rows = parts * each * length
    q, own = (_padded(x, 0, rows - S, fill).reshape(P, parts, each * length, *x.shape[2:]) for x, fill in
              ((q * H**-0.5, 0), (window, -1)))  # fmt: skip
    wide = [_padded(x, length, rows - S + length, fill) for x, fill in ((k, 0), (v, 0), (window, -2))]
    spans = [slice(part * each * length, (part + 1) * each * length + 2 * length) for part in range(parts)]
    keys = [jnp.stack([x[:, span] for span in spans], axis=1) for x in wide]
    run = jax.checkpoint(functools.partial(_part, length=length), prevent_cse=False)
    arrays = q, own, *keys
    if parts == 1:
        out = run(*(x[:, 0] for x in arrays))[:, None]
    else:
        out = jnp.moveaxis(jax.lax.map(lambda x: run(*x), tuple(jnp.moveaxis(x, 1, 0) for x in arrays)), 0, 1)
    return product(out.reshape(P, rows, N * H)[:, :S])


def _per_part(P: int, N: int, length: int, count: int) -> int:
    """Number of blocks whose scores a device may hold."""
    mesh = jax.sharding.get_abstract_mesh()
    split = 1 if mesh.empty else mesh.shape["fsdp"]
    return min(count, max(1, SCORES // (4 * -(-P // split) * N * 3 * length**2)))


def _padded(x: jax.Array, before: int, after: int, fill: int) -> jax.Array:
    """Adds rows to axis 1."""
    return jnp.pad(x, [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)], constant_values=fill)


def _part(q: jax.Array, own: jax.Array, k: jax.Array, v: jax.Array, window: jax.Array, *, length: int) -> jax.Array:
    """Attention of C blocks (P, C L, N, H), against the keys of these and of one block on either side."""
    P, rows, N, H = q.shape
    blocks = rows // length
    cut = lambda x: x.reshape(P, -1, length, *x.shape[2:])
    beside = lambda x: jnp.concatenate([cut(x)[:, shift : shift + blocks] for shift in range(3)], axis=2)
    wide = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = wide("pbqnh,pbknh->pbnqk", cut(q), beside(k))
    same = cut(own)[:, :, None, :, None] == beside(window)[:, :, None, None, :]
    weights = jax.nn.softmax(jnp.where(same, scores, MASKED), axis=-1).astype(q.dtype)
    return wide("pbnqk,pbknh->pbqnh", weights, beside(v)).astype(q.dtype).reshape(P, rows, N * H)
