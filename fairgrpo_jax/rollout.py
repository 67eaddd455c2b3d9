"""Sampling: a prompt runs once, images included, and its rollouts are decoded against its shared keys and values.

``sample`` is one jitted program: prompt pass, then a loop that decodes one token of every rollout until all have ended.
Weights are gathered once before the loop, or once for several batches by ``sampler_params``. The randomness of a token
depends only on (key, row, position), so neither the mesh nor the other rows of a batch change what a row samples. Rows
that have ended stay in the batch until all have ended; whether removing them pays off has not been measured on a GPU.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from fairgrpo_jax import mesh, models
from fairgrpo_jax.models import decoder


@struct.dataclass
class RolloutBatch:
    """G sampled completions for each of P prompts, of at most T tokens."""

    tokens: jax.Array  # (P, G, T) int32; the padding token after the end
    mask: jax.Array  # (P, G, T) bool; True up to and including the end token
    logprobs: jax.Array  # (P, G, T) float32 of the sampler; 0 where masked


def generate(
    vlm: models.VLM,
    inputs: dict[str, np.ndarray],
    *,
    num_rollouts: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    key: jax.Array | None = None,
) -> RolloutBatch:
    """Samples ``num_rollouts`` completions for every prompt of a processor's ``inputs``.

    Args:
        vlm: the policy, a vision-language model.
        inputs: arrays as a Hugging Face processor returns them, padded on the left or the right.
        num_rollouts: number of completions per prompt, G.
        max_new_tokens: maximum length T of a completion, including its end token.
        temperature: divides the logits; 0 is greedy.
        top_p: samples only from the likeliest tokens whose probabilities add up to this value; log-probabilities remain
            those of the untruncated distribution, as the learner computes them.
        key: random key; may be ``None`` only when greedy.

    Returns:
        A ``RolloutBatch`` with leaves of shape (P, G, T).

    Raises:
        ValueError: if the key is missing and sampling is not greedy, or a value is out of range.
    """
    if temperature < 0 or not 0 < top_p <= 1 or num_rollouts < 1 or max_new_tokens < 1:
        raise ValueError(
            f"got temperature={temperature}, top_p={top_p}, num_rollouts={num_rollouts}, "
            f"max_new_tokens={max_new_tokens}; wanted temperature >= 0, 0 < top_p <= 1, at least one rollout and token"
        )
    if key is None:
        if temperature > 0:
            raise ValueError(f"got key=None with temperature={temperature}; wanted a jax.random key, or temperature=0")
        key = jax.random.key(0)
    prompt = jax.tree.map(jnp.asarray, models.pack(inputs, vlm.config))
    return sample(
        vlm.params,
        prompt,
        key,
        architecture=vlm.config,
        num_rollouts=num_rollouts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
    )


def sampler_params(params: Any, *, dtype: str | None = None, tensor: bool = False) -> Any:
    """Copies the parameters for sampling: gathered along ``fsdp``, once for all batches of a rollout phase.

    Args:
        params: the learner's parameters.
        dtype: of the copy, adapters included; default: that of the parameters.
        tensor: whether to keep them split along ``tensor``; otherwise every device holds a full copy.

    Returns:
        The copy; ``params`` themselves if nothing would change.
    """
    mesh_ = jax.sharding.get_abstract_mesh()
    split = not mesh_.empty and (mesh_.shape["fsdp"] > 1 or (mesh_.shape["tensor"] > 1 and not tensor))
    if not split and all(dtype in (None, leaf.dtype.name) for leaf in jax.tree.leaves(params)):
        return params
    return copy(params, dtype=dtype, tensor=tensor)


@functools.partial(jax.jit, static_argnames=("dtype", "tensor"))
def copy(params: Any, *, dtype: str | None, tensor: bool) -> Any:
    """Jitted body of ``sampler_params``: casts and gathers the parameters."""
    cast = jax.tree.map(lambda leaf: leaf if dtype is None else leaf.astype(dtype), params)
    return mesh.gather(cast, tensor=tensor)


@functools.partial(
    jax.jit, static_argnames=("architecture", "num_rollouts", "max_new_tokens", "temperature", "top_p", "tensor")
)
def sample(
    params: Any,
    prompt: models.Prompt,
    key: jax.Array,
    *,
    architecture: Any,
    num_rollouts: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    tensor: bool = False,
) -> RolloutBatch:
    """Like ``generate`` for packed prompts; the loop ends as soon as every row has ended.

    ``key`` is a single key, or (P,) keys, with which a prompt's samples do not depend on its row. For ``tensor`` see
    ``sampler_params``.
    """
    params = mesh.gather(params, tensor=tensor)
    hidden, prompt_kv = decoder.prompt_pass(params, architecture, prompt)
    P, G, T = prompt.tokens.shape[0], num_rollouts, max_new_tokens
    layers, layer_kv = decoder.unstack(params, prompt_kv)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    row_keys = jax.vmap(fold, (0, None))(key, jnp.arange(G)) if key.ndim else fold(key, jnp.arange(P * G))
    row_keys = row_keys.reshape(P, G)
    end_ids = jnp.asarray(architecture.eos_ids, jnp.int32)

    def choose(hidden, t, done):
        """Maps hidden states (P, G, d) to the tokens at position t, their log-probabilities and which rows ended."""
        logits = decoder.policy_logits(params, architecture, hidden, temperature or 1.0)
        if temperature:
            keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(row_keys, t)
            token = jax.vmap(jax.vmap(jax.random.categorical))(keys, _nucleus(logits, top_p))
        else:
            token = logits.argmax(-1)
        logprob = jnp.take_along_axis(jax.nn.log_softmax(logits), token[..., None], -1)[..., 0]
        token = jnp.where(done, architecture.pad_id, token).astype(jnp.int32)
        return token, jnp.where(done, 0.0, logprob), done | jnp.isin(token, end_ids)

    def write(buffers, t, *columns):
        return tuple(jax.lax.dynamic_update_index_in_dim(b, c, t, 2) for b, c in zip(buffers, columns, strict=True))

    def alive(carry):
        t, done = carry[:2]
        return (t < T) & ~done.all()

    def step(carry):
        t, done, token, caches, buffers = carry
        hidden, caches = decoder.decode_step(layers, architecture, prompt, layer_kv, caches, token, t - 1)
        running = ~done
        token, logprob, done = choose(hidden, t, done)
        return t + 1, done, token, caches, write(buffers, t, token, running, logprob)

    hidden = decoder.last_hidden(prompt, hidden)[:, None]
    hidden = jnp.broadcast_to(hidden, (P, G, hidden.shape[-1]))
    running = jnp.ones((P, G), bool)
    token, logprob, done = choose(hidden, 0, ~running)
    buffers = (jnp.full((P, G, T), architecture.pad_id, jnp.int32), jnp.zeros((P, G, T), bool), jnp.zeros((P, G, T)))
    buffers = write(buffers, 0, token, running, logprob)
    caches = decoder.init_caches(architecture, P, G, max(T - 1, 1), hidden.dtype)
    carry = jax.lax.while_loop(alive, step, (jnp.int32(1), done, token, caches, buffers))
    return RolloutBatch(*carry[-1])


def _nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """Masks all but the likeliest tokens whose probabilities add up to ``top_p``; the likeliest always stays."""
    if top_p == 1.0:
        return logits
    ordered = jnp.sort(jax.nn.softmax(logits), axis=-1, descending=True)
    kept = jnp.cumsum(ordered, -1) - ordered < top_p
    least = jnp.where(kept, ordered, jnp.inf).min(-1, keepdims=True)
    return jnp.where(jax.nn.softmax(logits) >= least, logits, -1e30)


def texts(batch: RolloutBatch, tokenizer: Any) -> list[list[str]]:
    """The completions as text (P, G), without end tokens; tokens after the end are dropped."""
    tokens, mask = jax.device_get((batch.tokens, batch.mask))
    P, G, _ = tokens.shape
    rows: Sequence[np.ndarray] = [
        ids[kept] for ids, kept in zip(tokens.reshape(P * G, -1), mask.reshape(P * G, -1), strict=True)
    ]
    flat = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [flat[i * G : (i + 1) * G] for i in range(P)]
