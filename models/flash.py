"""Attention as the merged results of a few calls of a flash kernel, each with a mask that such kernels take.

A kernel sees all keys, or earlier keys, or earlier keys inside a window, up to a length by row. The masks of a policy
are disjoint unions of such pieces: a rollout's own tokens and its prompt; the last tokens of a prompt, as far as a
window reaches; the tokens of one image, of which each sees the later ones too; the frames of a row of patches.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fairgrpo_jax.models.remat import product


KeyValue = tuple[jax.Array, jax.Array]
RUNS = (
    1,
    4,
    16,
)  # runs of equal ids are computed in slices of the whole row, a quarter or a sixteenth, as the longest fits


class Seen(NamedTuple):
    """The mask of one call of a kernel: which keys s a query t sees.

    Attributes:
        causal: only ``s <= t``.
        window: only ``t - s < window``; 0 for no window; requires ``causal``.
        queries: (B,) int32, >= 1, number of queries of each row; results after them are undefined; None: all.
        keys: (B,) int32, >= 1, only ``s < keys``; gradients after them are undefined; None: all.
    """

    causal: bool = False
    window: int = 0
    queries: jax.Array | None = None
    keys: jax.Array | None = None


class Flash(NamedTuple):
    """A flash kernel, with separate forward and backward passes.

    Attributes:
        forward: maps q (B, T, N, H), k and v (B, S, K, H), :class:`Seen` and the scale to the output (B, T, N, H) and
            the log of the softmax's denominator (B, N, T) in float32.
        backward: maps the same, the denominator, the output and its gradient to the gradients of q, k and v, where
            denominator and output may belong to a softmax over more keys than those of the call.
    """

    forward: Callable[..., tuple[jax.Array, jax.Array]]
    backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


class Known(NamedTuple):
    """The structure of the masks of :class:`attention.Masks`, whose fields of these names it holds.

    Attributes:
        lengths: (P,) int32, >= 1, number of tokens of the prompts. With None, all own keys are seen, or those of the
            same segment.
        local: bool (), whether the window holds; None without a window.
        block: (P, T) int32, ids of images, 0 elsewhere.
        segments: (P, T) int32; a query with a negative id sees nothing.
    """

    lengths: jax.Array | None = None
    local: Any = None
    block: jax.Array | None = None
    segments: jax.Array | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def merged(
    q: jax.Array, prompt_kv: KeyValue | None, own_kv: KeyValue, known: Known, scale: float, window: int, flash: Flash
) -> jax.Array:
    """Attention to all keys by a kernel for single pieces, (P, G, T, N, H).

    Forward, with outputs o and log denominators l of the pieces: ``l = log(exp(l1) + exp(l2))`` and
    ``o = o1 exp(l1 - l) + o2 exp(l2 - l)`` in float32. Backward, a kernel recomputes its piece's weights as
    ``p = exp(scale q kᵀ - l)`` and their gradient as ``p (do vᵀ - rowsum(do o))``. With l and o of the whole softmax,
    these are the piece's part of the whole gradient, which is the sum over the pieces, and no gradient of a denominator
    is needed. With a piece's own l and o they would be wrong. (Ring attention, arXiv:2310.01889, splits its backward
    pass in this way.)

    Args:
        q: (P, G, T, N, H).
        prompt_kv: (P, Tp, K, H) each, or None.
        own_kv: (P, G, T, K, H) each.
        known: which keys are seen.
        scale: factor of the scores.
        window: number of tokens that a query sees, itself included, where ``known.local``.
        flash: the kernel.
    """
    return _merged_forward(q, prompt_kv, own_kv, known, scale, window, flash)[0]


def _merged_forward(q, prompt_kv, own_kv, known, scale, window, flash):
    found = [
        piece.forward(q, prompt_kv if piece.of_prompt else own_kv)
        for piece in _pieces(q, prompt_kv, known, scale, window, flash)
    ]
    log_total = functools.reduce(jnp.logaddexp, [log for _, log in found])
    finite = jnp.where(jnp.isneginf(log_total), 0.0, log_total)  # a query that sees nothing gets 0
    shares = [out.astype(jnp.float32) * jnp.exp(log - finite) for out, log in found]
    out, finite = product(functools.reduce(jnp.add, shares).astype(q.dtype)), product(finite)
    return out, (q, prompt_kv, own_kv, known, out, finite)


def _merged_backward(scale, window, flash, kept, d_out):
    q, prompt_kv, own_kv, known, out, log_total = kept
    queries, sums = [], {True: [], False: []}
    for piece in _pieces(q, prompt_kv, known, scale, window, flash):
        dq, *d_kv = piece.backward(q, prompt_kv if piece.of_prompt else own_kv, log_total, out, d_out)
        queries.append(dq)
        sums[piece.of_prompt].append(d_kv)
    own = tuple(_sum(parts, q.dtype) for parts in zip(*sums[False], strict=True))
    shared = None if prompt_kv is None else tuple(_sum(parts, q.dtype) for parts in zip(*sums[True], strict=True))
    return _sum(queries, q.dtype), shared, own, None


merged.defvjp(_merged_forward, _merged_backward)


def _sum(parts: Sequence[jax.Array], dtype: Any) -> jax.Array:
    return functools.reduce(jnp.add, [part.astype(jnp.float32) for part in parts]).astype(dtype)


# ---- pieces ----------------------------------------------------------------------------------------------------------


class _Piece(NamedTuple):
    """A part of the keys.

    Attributes:
        forward: maps q (P, G, T, N, H) and the keys and values to an output like q and log denominators
            (P, G, T, N, 1), -inf where a query sees no key of the piece.
        backward: maps q, keys and values, the whole denominator, the whole output and its gradient to the piece's part
            of the gradients of q, k and v.
        of_prompt: whether the keys are the prompt's.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    of_prompt: bool = False


def _pieces(
    q: jax.Array, prompt_kv: KeyValue | None, known: Known, scale: float, window: int, flash: Flash
) -> list[_Piece]:
    if known.lengths is None:
        return [_rows(Seen(), scale, flash) if known.segments is None else _runs(known.segments, False, scale, flash)]
    pick = functools.partial(_either, known.local)
    own = lambda window: _rows(Seen(causal=True, window=window), scale, flash)
    found = [pick(lambda: own(window), lambda: own(0))]
    if known.block is not None:
        found.append(_runs(jnp.where(known.block > 0, known.block, -1), True, scale, flash))
    if prompt_kv is not None:
        whole, tail = (functools.partial(make, known.lengths, scale=scale, flash=flash) for make in (_prompt, _tail))
        found.append(pick(lambda: tail(window) if window > 1 else _unseen(), whole))
    return found


def _either(flag: Any, yes: Callable[[], _Piece], no: Callable[[], _Piece]) -> _Piece:
    """The one piece or the other, chosen while the program runs."""
    if flag is None:
        return no()
    one, other = yes(), no()
    return _Piece(
        lambda *args: jax.lax.cond(flag, one.forward, other.forward, *args),
        lambda *args: jax.lax.cond(flag, one.backward, other.backward, *args),
        other.of_prompt,
    )


def _piece(
    seen: Seen,
    scale: float,
    flash: Flash,
    *,
    rows: Callable[[jax.Array], jax.Array],
    back: Callable[[jax.Array, Any, float], jax.Array],
    keys: Callable[[jax.Array], jax.Array],
    keys_back: Callable[[jax.Array, Any], jax.Array],
    of_prompt: bool = False,
) -> _Piece:
    """One call of a kernel.

    ``rows`` brings an array (P, G, T, N, ...) of the queries to the kernel's rows, ``back`` returns it to a shape, with
    a value where the rows hold nothing; ``keys`` and ``keys_back`` do the same for keys, with gradient 0 there.
    """

    def forward(q, kv):
        out, log = flash.forward(rows(q), *map(keys, kv), seen, scale)
        return back(out, q.shape, 0.0), back(log.swapaxes(1, 2)[..., None], (*q.shape[:-1], 1), -jnp.inf)

    def backward(q, kv, log_total, out, d_out):
        given = rows(log_total)[..., 0].swapaxes(1, 2), rows(out), rows(d_out)
        dq, *d_kv = flash.backward(rows(q), *map(keys, kv), seen, scale, *given)
        return back(dq, q.shape, 0.0), *(keys_back(x, like.shape) for x, like in zip(d_kv, kv, strict=True))

    return _Piece(forward, backward, of_prompt)


def _rows(seen: Seen, scale: float, flash: Flash) -> _Piece:
    """Own keys: every rollout is a row."""
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    shaped = lambda x, shape, *_: x.reshape(shape)
    return _piece(seen, scale, flash, rows=flat, back=shaped, keys=flat, keys_back=shaped)


def _prompt(lengths: jax.Array, *, scale: float, flash: Flash) -> _Piece:
    """All of a prompt: its rollouts are one row of queries."""
    return _piece(
        Seen(keys=lengths),
        scale,
        flash,
        rows=lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]),
        back=lambda x, shape, _: x.reshape(shape),
        keys=lambda x: x,
        keys_back=lambda x, _: jnp.where(_inside(x.shape[1], lengths)[..., None, None], x, 0),
        of_prompt=True,
    )


def _tail(lengths: jax.Array, window: int, *, scale: float, flash: Flash) -> _Piece:
    """The end of a prompt of n tokens, as far as a window reaches back from the first tokens of its rollouts.

    Token t sees the prompt's tokens from n + t - window + 1 on. With the last prompt token as key 0, and the last token
    that sees any (t = window - 2) as query 0, that is causality. Rollouts are heads, so that they share the keys.
    """
    reach = window - 1

    def rows(x):
        P, G, T, N = x.shape[:4]
        x = jnp.pad(x[:, :, :reach], [(0, 0), (0, 0), (0, max(reach - T, 0)), (0, 0), (0, 0)])[:, :, ::-1]
        return x.transpose(0, 2, 3, 1, 4).reshape(P, reach, N * G, -1)

    def back(x, shape, fill):
        P, G, T, N, H = shape
        x = x.reshape(P, reach, N, G, H).transpose(0, 3, 1, 2, 4)[:, :, ::-1][:, :, :T]
        return jnp.pad(x, [(0, 0), (0, 0), (0, max(T - reach, 0)), (0, 0), (0, 0)], constant_values=fill)

    def keys(x):
        at = lengths[:, None] - 1 - jnp.arange(min(reach, x.shape[1]))[None]
        return _take(x, jnp.maximum(at, 0))

    def keys_back(x, shape):
        at = lengths[:, None] - 1 - jnp.arange(shape[1])[None]
        held = (at >= 0) & (at < x.shape[1])
        return jnp.where(held[..., None, None], _take(x, jnp.clip(at, 0, x.shape[1] - 1)), 0)

    # Heads (N, G) of the queries are (K, R, G), so that the N G / K that share a key head stand together.
    whole = jnp.full_like(lengths, reach)
    seen = Seen(causal=True, queries=whole, keys=jnp.minimum(lengths, reach))
    return _piece(seen, scale, flash, rows=rows, back=back, keys=keys, keys_back=keys_back, of_prompt=True)


def _unseen() -> _Piece:
    """A prompt of which nothing is seen: in a window of one token, a token sees itself alone."""
    forward = lambda q, _: (jnp.zeros_like(q), jnp.full((*q.shape[:-1], 1), -jnp.inf))
    return _Piece(forward, lambda q, kv, *_: (jnp.zeros_like(q), *map(jnp.zeros_like, kv)), of_prompt=True)


def _runs(ids: jax.Array, ahead: bool, scale: float, flash: Flash) -> _Piece:
    """Runs of equal ids, one after the other: each sees itself, or, if ``ahead``, of itself what comes later.

    Later keys are causality from right to left: with the last token of a run as key 0 and the one before it as query 0.
    The number of runs and their lengths are known only while the program runs.
    """
    P, T = ids.shape
    starts, sizes = runs(ids)
    longest, count = sizes.max(), (sizes > 0).sum(axis=1).max()
    slices = [-(-T // part) for part in RUNS]
    level = sum((longest <= size).astype(jnp.int32) for size in slices[1:])
    row = jnp.arange(P)[:, None]

    def one(number, size):
        start, length = starts[:, number, None], sizes[:, number, None]
        at = jnp.arange(size)[None]
        held = length - ahead
        queries = start + held - 1 - at if ahead else start + at
        keys = queries + ahead
        inside = at < held
        seen = Seen(causal=ahead, queries=jnp.maximum(held[:, 0], 1), keys=jnp.maximum(held[:, 0], 1))
        read = lambda x, places: _take(x, jnp.clip(places, 0, T - 1))
        outside = T + at  # where nothing is written
        write = lambda x, new, places: x.at[row, jnp.where(inside, places, outside)].set(
            new, mode="drop", unique_indices=True
        )
        return seen, read, write, queries, keys

    def forward(q, kv):
        q, k, v = q[:, 0], kv[0][:, 0], kv[1][:, 0]

        def run(size):
            def step(number, found):
                seen, read, write, queries, keys = one(number, size)
                out, log = flash.forward(read(q, queries), read(k, keys), read(v, keys), seen, scale)
                return write(found[0], out, queries), write(found[1], log.swapaxes(1, 2)[..., None], queries)

            empty = jnp.zeros_like(q), jnp.full((*q.shape[:-1], 1), -jnp.inf)
            return jax.lax.fori_loop(0, count, step, empty)

        out, log = jax.lax.switch(level, [functools.partial(run, size) for size in slices])
        return out[:, None], log[:, None]

    def backward(q, kv, log_total, out, d_out):
        q, k, v, log_total, out, d_out = (x[:, 0] for x in (q, *kv, log_total, out, d_out))

        def run(size):
            def step(number, found):
                seen, read, write, queries, keys = one(number, size)
                given = read(log_total, queries)[..., 0].swapaxes(1, 2), read(out, queries), read(d_out, queries)
                new = flash.backward(read(q, queries), read(k, keys), read(v, keys), seen, scale, *given)
                places = queries, keys, keys
                return tuple(write(x, part, at) for x, part, at in zip(found, new, places, strict=True))

            return jax.lax.fori_loop(0, count, step, tuple(map(jnp.zeros_like, (q, k, v))))

        return tuple(x[:, None] for x in jax.lax.switch(level, [functools.partial(run, size) for size in slices]))

    return _Piece(forward, backward)


def runs(ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Starts and lengths (P, T) of the runs of equal ids >= 0 in rows (P, T), in their order; 0 after the last.

    Example:
        >>> starts, lengths = runs(jnp.array([[-1, 4, 4, 7, -1, 7]]))
        >>> starts[0].tolist(), lengths[0].tolist()
        ([1, 3, 5, 0, 0, 0], [2, 1, 1, 0, 0, 0])
    """
    before = jnp.pad(ids, [(0, 0), (1, 0)], constant_values=-1)[:, :-1]
    member, first = ids >= 0, (ids >= 0) & (ids != before)
    row, number = jnp.arange(len(ids))[:, None], jnp.cumsum(first, axis=1) - 1
    beyond = ids.shape[1]
    empty, places = jnp.zeros(ids.shape, jnp.int32), jnp.arange(beyond, dtype=jnp.int32)
    starts = empty.at[row, jnp.where(first, number, beyond)].set(places[None], mode="drop")
    return starts, empty.at[row, jnp.where(member, number, beyond)].add(1, mode="drop")


def _take(x: jax.Array, at: jax.Array) -> jax.Array:
    """Rows ``at`` (P, S) of axis 1 of an array (P, T, N, H)."""
    return jnp.take_along_axis(x, at[..., None, None], axis=1, mode="promise_in_bounds")


def _inside(size: int, lengths: jax.Array) -> jax.Array:
    return jnp.arange(size)[None] < lengths[:, None]
