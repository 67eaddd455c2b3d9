"""A flash kernel written out in JAX, NaN wherever a kernel promises nothing, and attention by its calls."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairgrpo_jax.models import attention
from fairgrpo_jax.models.flash import Flash, merged


def seen_by(q, k, seen):
    """The mask (B, 1, T, S) of one call of a kernel."""
    t, s = np.arange(q.shape[1])[:, None], np.arange(k.shape[1])
    mask = jnp.asarray(((s <= t) | (not seen.causal)) & ((t - s < seen.window) | (not seen.window)))[None]
    if seen.keys is not None:
        mask = mask & (s[None, None] < seen.keys[:, None, None])
    return mask[:, None]


def undefined_after(x, sizes):
    """NaN, along axis 1, where a kernel promises nothing."""
    if sizes is None:
        return x
    return jnp.where((jnp.arange(x.shape[1])[None] < sizes[:, None])[..., None, None], x, jnp.nan)


def flash_forward(q, k, v, seen, scale):
    """A flash kernel's forward pass written out: output, and log of the denominator (B, N, T)."""
    n = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(part, n, axis=2) for part in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.float32) * scale
    scores = jnp.where(seen_by(q, k, seen), scores, -jnp.inf)
    out = jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores).astype(q.dtype), v)
    log_total = jax.nn.logsumexp(scores, axis=-1).swapaxes(1, 2)[..., None]
    return undefined_after(out, seen.queries), undefined_after(log_total, seen.queries)[..., 0].swapaxes(1, 2)


def flash_backward(q, k, v, seen, scale, log_total, out, d_out):
    """Its backward pass by the equations of FlashAttention-2 (arXiv:2307.08691, algorithm 2)."""
    n = q.shape[2] // k.shape[2]
    repeated = [jnp.repeat(part, n, axis=2) for part in (k, v)]
    wide = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores, mask = wide("btnh,bsnh->bnts", q, repeated[0]) * scale, seen_by(q, k, seen)
    if seen.queries is not None:
        mask = mask & (jnp.arange(q.shape[1])[None] < seen.queries[:, None])[:, None, :, None]
    p = jnp.where(mask, jnp.exp(scores - log_total[..., None]), 0)
    inner = (d_out.astype(jnp.float32) * out).sum(-1).swapaxes(1, 2)[..., None]
    d_scores = (p * (wide("btnh,bsnh->bnts", d_out, repeated[1]) - inner) * scale).astype(q.dtype)
    dk, dv = wide("bnts,btnh->bsnh", d_scores, q), wide("bnts,btnh->bsnh", p.astype(q.dtype), d_out)
    dk, dv = (part.reshape(*k.shape[:3], n, -1).sum(3).astype(k.dtype) for part in (dk, dv))
    dq = wide("bnts,bsnh->btnh", d_scores, repeated[0]).astype(q.dtype)
    return undefined_after(dq, seen.queries), undefined_after(dk, seen.keys), undefined_after(dv, seen.keys)


WRITTEN_OUT = Flash(flash_forward, flash_backward)


def written_out(q, prompt_kv, own_kv, masks, scale=None, flash=WRITTEN_OUT):
    window = 0 if masks.window is None else masks.window[1]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out: Any = merged(q, prompt_kv, own_kv, attention._known(masks), scale, window, flash)
    return out.reshape(*q.shape[:3], -1)
