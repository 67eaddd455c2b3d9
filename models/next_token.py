"""The next token of every row: drawn from the policy's distribution or from its nucleus, or the likeliest."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairgrpo_jax.models import decoder


def choose(
    params: dict,
    architecture: Any,
    hidden: jax.Array,
    keys: jax.Array,
    t: jax.Array,
    done: jax.Array,
    temperature: float,
    top_p: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Chooses the tokens at position ``t``.

    Args:
        params: the model's, or as the sampler has them.
        architecture: the model's architecture.
        hidden: (P, G, d) states that predict the token.
        keys: (P, G) random keys of the rows.
        t: () int32, the position.
        done: (P, G) bool, rows that have ended.
        temperature: 0 takes the likeliest token.
        top_p: in (0, 1].

    Returns:
        Tokens (P, G) int32, the padding where done; their log-probabilities under the whole distribution, 0 where done;
        which rows have ended now.
    """
    logits = decoder.policy_logits(params, architecture, hidden, temperature or 1.0)
    if temperature:
        noise = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(keys, t)
        token = largest(nucleus(logits, top_p) + gumbel(noise, logits.shape[-1]))  # as jax.random.categorical draws
    else:
        token = largest(logits)
    logprob = jnp.take_along_axis(jax.nn.log_softmax(logits), token[..., None], -1)[..., 0]
    token = jnp.where(done, architecture.pad_id, token).astype(jnp.int32)
    return token, jnp.where(done, 0.0, logprob), done | jnp.isin(token, jnp.asarray(architecture.eos_ids, jnp.int32))


def gumbel(keys: jax.Array, size: int) -> jax.Array:
    """Gumbel noise (P, G, size): for each of the keys (P, G), to the last bit, what ``jax.random.gumbel`` draws.

    Threefry (Salmon et al. 2011, doi 10.1145/2063384.2063405: 2 words, 20 rounds), written out so that all rows are one
    computation by element. JAX runs its rounds as a loop on CPUs, which many keys make slow. Keys of another kind are
    left to JAX.
    """
    if str(jax.random.key_impl(keys)) != "threefry2x32" or not jax.threefry_partitionable.value:
        return jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (size,))))(keys)
    first, second = jnp.split(jax.random.key_data(keys), 2, axis=-1)
    words = first, second, first ^ second ^ np.uint32(0x1BD11BDA)
    x, y = first, jnp.arange(size, dtype=np.uint32)[None, None] + second
    for group in range(5):
        for turn in (13, 15, 26, 6) if group % 2 == 0 else (17, 29, 16, 24):
            x = x + y
            y = x ^ (y << np.uint32(turn) | y >> np.uint32(32 - turn))
        x, y = x + words[(group + 1) % 3], y + words[(group + 2) % 3] + np.uint32(group + 1)
    mantissa = (x ^ y) >> np.uint32(9) | np.uint32(0x3F800000)
    least = np.finfo(np.float32).tiny
    uniform = jnp.maximum(jax.lax.bitcast_convert_type(mantissa, jnp.float32) - 1 + least, least)
    return -jnp.log(-jnp.log(uniform))


def largest(x: jax.Array) -> jax.Array:
    """The first index of the largest number of the last axis; its size where a number is NaN.

    Two reductions of one array each, which CPUs compute by vectors; ``argmax`` reduces numbers and indices together,
    one at a time.
    """
    at = jnp.arange(x.shape[-1]).reshape((1,) * (x.ndim - 1) + (-1,))
    return jnp.where(x == x.max(-1, keepdims=True), at, x.shape[-1]).min(-1)


def nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """Masks all but the likeliest tokens whose probabilities add up to ``top_p``; the likeliest always stays.

    A token stays if the likelier ones add up to less than ``top_p``. The least probability of which this is true is
    found bit by bit, since floats >= 0 are ordered as their bits are, in 31 sums over the vocabulary instead of a sort.
    """
    if top_p == 1.0:
        return logits
    chances = jax.nn.softmax(logits)

    def halve(_, ends):
        low, high = ends  # of the bits: the likelier add up to too much above low, and not above high
        middle = jnp.maximum(low + (high - low) // 2, 0)
        above = chances > jax.lax.bitcast_convert_type(middle, jnp.float32)
        enough = jnp.where(above, chances, 0.0).sum(-1, keepdims=True) < top_p
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    top = jax.lax.bitcast_convert_type(chances.max(-1, keepdims=True), jnp.int32)
    _, least = jax.lax.fori_loop(0, 31, halve, (jnp.full_like(top, -1), top))
    return jnp.where(chances >= jax.lax.bitcast_convert_type(least, jnp.float32), logits, -1e30)
