"""Sampling: a prompt runs once, images included, and its rollouts are decoded against its shared keys and values.

Three jitted programs: ``prefill`` runs prompts, ``begin`` draws the first tokens, ``decode`` further ones in a loop.
Where completions may be long, the loop stops now and then for the host to change the shapes, as a row costs as much as
its cache is long, whether it has ended or not:

    caches    hold 256 tokens at first and double when they are full;
    prompts   leave when all their completions have ended, as soon as half of those of every device have: the batch
              halves.

The randomness of a token depends only on (key, row, position), so neither the mesh, nor the other rows of a batch, nor
the shapes change what a row samples.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from fairgrpo_jax import hosts, mesh, models
from fairgrpo_jax.models import decoder, next_token
from fairgrpo_jax.models.attention import stored
from fairgrpo_jax.models.inputs import widen


@struct.dataclass
class RolloutBatch:
    """G sampled completions for each of P prompts, of at most T tokens."""

    tokens: jax.Array  # (P, G, T) int32; the padding token after the end
    mask: jax.Array  # (P, G, T) bool; True up to and including the end token
    logprobs: jax.Array  # (P, G, T) float32 of the sampler; 0 where masked
    steps: jax.Array  # (P,) int32, tokens for which the rows of a prompt were computed, whether they had ended or not


FIRST = 256  # tokens for which there are caches at first; completions that cannot be longer never move


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
        sampler_params(vlm.params),
        prompt,
        key,
        architecture=vlm.config,
        num_rollouts=num_rollouts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
    )


@functools.partial(jax.jit, static_argnames=("dtype", "tensor"))
def sampler_params(params: Any, *, dtype: str | None = None, tensor: bool = False) -> Any:
    """A copy of the parameters for sampling: by layer and gathered along ``fsdp``, once for all batches of a phase.

    Args:
        params: the learner's parameters.
        dtype: of the copy, adapters included; default: that of the parameters.
        tensor: whether to keep them split along ``tensor``; otherwise every device holds a full copy.
    """
    cast = jax.tree.map(lambda leaf: leaf if dtype is None else leaf.astype(dtype), params)
    return mesh.gather(decoder.by_layer(cast), tensor=tensor)


@functools.partial(jax.jit, static_argnums=(1, 2))
def row_keys(key: jax.Array, num_prompts: int, num_rollouts: int) -> jax.Array:
    """The keys (P, G) of a batch's rows, from one key or from (P,), one a prompt.

    With (P,) keys a prompt's samples do not depend on its place in the batch.
    """
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    if key.ndim:
        return jax.vmap(fold, (0, None))(key, jnp.arange(num_rollouts))
    return fold(key, jnp.arange(num_prompts * num_rollouts)).reshape(num_prompts, num_rollouts)


@struct.dataclass
class Rows:
    """What stays the same while the rows of a batch are decoded."""

    prompt: models.Prompt  # without its patches
    keys: jax.Array  # (P, G)
    place: Any  # (P,) int32, index of each prompt in the batch that was begun


@struct.dataclass
class Decoding:
    """What every token changes, beside the caches."""

    t: jax.Array  # () int32, tokens drawn so far
    token: jax.Array  # (P, G) int32, the latest
    done: jax.Array  # (P, G) bool
    drawn: RolloutBatch


Layers = Sequence[decoder.KeyValue]  # keys and values by layer


def sample(
    params: Any,
    prompt: models.Prompt | Iterable[models.Prompt],
    key: jax.Array,
    *,
    architecture: Any,
    num_rollouts: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    tensor: bool = False,
    cache: str | None = None,
    first: int = FIRST,
    places: int | None = None,
) -> RolloutBatch:
    """Like ``generate`` for packed prompts; ends as soon as every row has ended.

    Args:
        params: from ``sampler_params``.
        prompt: P prompts, on the devices; or groups of them, all of one number, each with its own length and number of
            patches, which run one after the other and are then decoded together.
        key: a single key, or (P,) or (P, G) keys; see ``row_keys``.
        architecture: the model's architecture.
        num_rollouts: G.
        max_new_tokens: T.
        temperature: as in ``generate``.
        top_p: as in ``generate``.
        tensor: as in ``sampler_params``.
        cache: dtype of keys and values; default: that of the parameters.
        first: tokens for which there are caches at first.
        places: length at which the prompts are decoded; default: that of the first.

    Returns:
        Arrays of the host, the rows in the order of the groups, on every process all of them.

    Raises:
        FloatingPointError: if a log-probability is not finite; with the number of rows and their first token.
    """
    groups = [prompt] if isinstance(prompt, models.Prompt) else prompt
    prompts, place, hidden, prompt_kv = prefill_all(
        params, groups, places, architecture=architecture, tensor=tensor, cache=cache
    )
    P, G, T = len(hidden), num_rollouts, max_new_tokens
    keys = key if key.ndim == 2 else row_keys(key, P, G)
    rows = Rows(prompts, keys[place], place)
    how: Any = dict(architecture=architecture, temperature=temperature, top_p=top_p, tensor=tensor)
    size = min(first, max(T - 1, 1))
    dtype = prompt_kv[0][0].dtype.name
    rows, now, caches = begin(params, rows, hidden, length=T, size=size, cache=dtype, **how)
    caches = list(caches)  # changed in place, as prompt_kv is, so that no layer is held twice
    found = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), now.drawn)
    while True:
        count = len(rows.place) // _fsdp()  # prompts a device
        few = enough(count, T, first)
        now, caches[:], alive = decode(params, rows, prompt_kv, now, caches, np.int32(few), **how)
        alive, t = int(alive), int(now.t)
        if alive <= few or t == T:
            _collect(found, rows, now)
        if alive == 0 or t == T:
            return _require_finite(found)
        if alive <= few:
            kept = _kept(now.done, halved(count, alive))
            rows, now = _take((rows, now), kept)
            for layers in (prompt_kv, caches):
                for index in range(len(layers)):
                    layers[index] = _take(layers[index], kept)
        if t > size:
            size = min(2 * size, T - 1)
            for index, places in enumerate(decoder.cache_sizes(architecture, size)):
                caches[index] = _longer(caches[index], places)


def prefill_all(
    params: Any,
    groups: Iterable[models.Prompt],
    places: int | None = None,
    *,
    architecture: Any,
    tensor: bool = False,
    cache: str | None = None,
) -> tuple[models.Prompt, np.ndarray, jax.Array, list[decoder.KeyValue]]:
    """Runs groups of prompts one after the other, at most two of which are on the devices; see ``prefill``.

    Returns:
        The prompts of all groups together, their indices in the order of the groups, their last hidden states, and
        their keys and values by layer. They are ordered by device: each holds its part of the first group, then of the
        second, and so on.
    """
    parts: list[tuple[models.Prompt, jax.Array, list[decoder.KeyValue]]] = []
    for group in groups:
        jax.block_until_ready([part[1] for part in parts[-1:]])
        places = group.tokens.shape[1] if places is None else places
        prompt, hidden, kv = prefill(
            params, group, places=places, architecture=architecture, tensor=tensor, cache=cache
        )
        parts.append((prompt, hidden, list(kv)))
    count = sum(len(part[1]) for part in parts)
    place = np.arange(count, dtype=np.int32).reshape(len(parts), _fsdp(), -1).swapaxes(0, 1).reshape(-1)
    if len(parts) == 1:
        prompt, hidden, kv = parts[0]
        return prompt, place, hidden, kv
    prompt, hidden = _join([part[:2] for part in parts])
    layers = [part[2] for part in parts]
    kv = [_join([own.pop(0) for own in layers]) for _ in range(len(layers[0]))]  # frees the parts of a layer each time
    return prompt, place, hidden, kv


@functools.partial(jax.jit, static_argnames=("places", "architecture", "tensor", "cache"))
def prefill(
    params: Any,
    prompt: models.Prompt,
    *,
    places: int,
    architecture: Any,
    tensor: bool = False,
    cache: str | None = None,
) -> tuple[models.Prompt, jax.Array, Layers]:
    """Runs P prompts, images included, for completions to be decoded against them.

    Args:
        params: from ``sampler_params``.
        prompt: P prompts.
        places: length to which their keys and values are padded.
        architecture: the model's architecture.
        tensor: as in ``sampler_params``.
        cache: dtype of keys and values; default: that of the parameters.

    Returns:
        The prompts at that length without their patches, the hidden states (P, d) that predict the first tokens, and
        keys and values by layer.
    """
    params = mesh.gather(params, tensor=tensor)
    hidden, kv = decoder.prompt_pass(params, architecture, prompt)
    dtype = hidden.dtype if cache is None else cache
    spare = [(0, 0), (0, places - prompt.tokens.shape[1]), (0, 0), (0, 0)]
    kv = tuple(stored(*(jnp.pad(x.astype(dtype), spare) for x in layer)) for layer in kv)
    kept = jax.tree.map(mesh.constrain, (widen(prompt, places), decoder.last_hidden(prompt, hidden)))
    return *kept, mesh.constrain_heads(kv, tensor=tensor)


@functools.partial(
    jax.jit, static_argnames=("architecture", "length", "size", "temperature", "top_p", "tensor", "cache")
)
def begin(
    params: Any,
    rows: Rows,
    hidden: jax.Array,
    *,
    architecture: Any,
    length: int,
    size: int,
    temperature: float,
    top_p: float,
    tensor: bool = False,
    cache: str,
) -> tuple[Rows, Decoding, Layers]:
    """Draws the first token of each row (P, G), for completions of up to ``length`` tokens.

    ``hidden`` is from ``prefill``; ``size`` is the number of tokens for which there are caches, of the dtype ``cache``;
    for the others see ``sample``. Returns the rows, each on the device of its prompt, the state and the caches.
    """
    params, keys = mesh.gather(params, tensor=tensor), rows.keys
    P, G = keys.shape
    hidden = jnp.broadcast_to(hidden[:, None], (P, G, hidden.shape[-1]))
    token, logprob, done = next_token.choose(
        params, architecture, hidden, keys, jnp.int32(0), jnp.zeros((P, G), bool), temperature, top_p
    )
    empty = jnp.full((P, G, length), architecture.pad_id, jnp.int32)
    drawn = RolloutBatch(empty, jnp.zeros(empty.shape, bool), jnp.zeros(empty.shape), jnp.ones(P, jnp.int32))
    drawn = _write(drawn, jnp.int32(0), token, jnp.ones((P, G), bool), logprob)
    caches = mesh.constrain_heads(decoder.init_caches(architecture, P, G, size, cache), tensor=tensor)
    rows, token, done, drawn = jax.tree.map(mesh.constrain, (rows, token, done, drawn))
    return rows, Decoding(jnp.int32(1), token, done, drawn), caches


@functools.partial(
    jax.jit, static_argnames=("architecture", "temperature", "top_p", "tensor"), donate_argnames=("now", "caches")
)
def decode(
    params: Any,
    rows: Rows,
    prompt_kv: Layers,
    now: Decoding,
    caches: Layers,
    enough: jax.Array,
    *,
    architecture: Any,
    temperature: float,
    top_p: float,
    tensor: bool = False,
) -> tuple[Decoding, Layers, jax.Array]:
    """Draws tokens until the caches are full, or every device has at most ``enough`` prompts that have not ended.

    Args:
        params: from ``sampler_params``.
        rows: from ``begin``.
        prompt_kv: keys and values of the prompts, from ``prefill``.
        now: from ``begin``; donated.
        caches: from ``begin``; donated.
        enough: () int32, >= 0.
        architecture: the model's architecture.
        temperature: as in ``generate``.
        top_p: as in ``generate``.
        tensor: as in ``sampler_params``.

    Returns:
        The state, the caches, and () int32, the largest number of prompts of a device that have not ended.
    """
    params = mesh.gather(params, tensor=tensor)
    end = min(now.drawn.tokens.shape[2], max(v.shape[3] for _, v in caches) + 1)

    def more(carry):
        now = carry[0]
        return (now.t < end) & (_alive(now.done) > enough)

    def step(carry):
        now, caches, turns = carry
        hidden, caches = decoder.decode_step(
            params, architecture, rows.prompt, tuple(prompt_kv), caches, now.token, now.t - 1, turns
        )
        token, logprob, done = next_token.choose(
            params, architecture, hidden, rows.keys, now.t, now.done, temperature, top_p
        )
        drawn = _write(now.drawn, now.t, token, ~now.done, logprob)
        return Decoding(now.t + 1, token, done, drawn), caches, turned(now.t)

    # Carried by the loop, cosine and sine are computed once; inside it, compilers let every head compute them again.
    turned = functools.partial(decoder.rotations, architecture, rows.prompt)
    now, caches, _ = jax.lax.while_loop(more, step, (now, tuple(caches), turned(now.t - 1)))
    return now, caches, _alive(now.done)


def _write(drawn: RolloutBatch, t: jax.Array, *columns: jax.Array) -> RolloutBatch:
    """Writes tokens, mask and log-probabilities (P, G) of position t."""
    buffers = drawn.tokens, drawn.mask, drawn.logprobs
    written = (jax.lax.dynamic_update_index_in_dim(b, c, t, 2) for b, c in zip(buffers, columns, strict=True))
    return RolloutBatch(*written, steps=jnp.full(drawn.tokens.shape[0], t + 1))


def enough(count: int, length: int, first: int = FIRST) -> int:
    """With how few of ``count`` prompts a device that have not ended the others leave; 0 where none ever do."""
    return count // 2 if length > first else 0


def shapes(count: int, length: int, first: int = FIRST) -> tuple[int, int]:
    """How many numbers of prompts, from ``count`` a device, and how many lengths of caches a batch may pass through.

    >>> shapes(25, 4096), shapes(8, 12)
    ((5, 5), (1, 1))
    """
    caches, size = 1, min(first, max(length - 1, 1))
    while size < length - 1:
        caches, size = caches + 1, min(2 * size, length - 1)
    return count.bit_length() if enough(count, length, first) else 1, caches


def halved(count: int, alive: int) -> int:
    """Number of prompts that a device keeps, halved as often as ``alive`` allows.

    >>> halved(25, 12), halved(25, 2), halved(1, 1)
    (12, 3, 1)
    """
    while count // 2 >= alive:
        count //= 2
    return count


def _fsdp() -> int:
    """Number of devices that share the prompts."""
    mesh_ = jax.sharding.get_abstract_mesh()
    return 1 if mesh_.empty else mesh_.shape["fsdp"]


def _alive(done: jax.Array) -> jax.Array:
    """The largest number of prompts of a device with a completion that has not ended."""
    return (~done).any(1).reshape(_fsdp(), -1).sum(1, dtype=jnp.int32).max()


def _collect(found: RolloutBatch, rows: Rows, now: Decoding) -> None:
    """Fetches what has been drawn, to the places of the prompts."""
    place, drawn = hosts.gathered(mesh.fetch((rows.place, now.drawn)))
    for whole, part in zip(jax.tree.leaves(found), jax.tree.leaves(drawn), strict=True):
        whole[place] = part


def _require_finite(found: RolloutBatch) -> RolloutBatch:
    """Refuses what was drawn from logits that are NaN or infinite."""
    spoiled = ~np.isfinite(found.logprobs)
    if not spoiled.any():
        return found
    rows = spoiled.any(-1)
    raise FloatingPointError(
        f"the logits of {rows.sum()} of {rows.size} completions are not finite, from token "
        f"{spoiled.any((0, 1)).argmax()} on; the weights are spoiled or too large for their dtype: go on from an older "
        "checkpoint with a lower optim.lr, or sample in float32 (sampling.dtype)"
    )


@functools.partial(jax.jit, static_argnums=1)
def _kept(done: jax.Array, count: int) -> jax.Array:
    """Indices (devices * count,) of the kept prompts among those of their device."""
    order = jnp.argsort((done.all(1)).reshape(_fsdp(), -1), axis=1, stable=True)
    return mesh.constrain(order[:, :count].reshape(-1))


@jax.jit
def _take(tree: Any, kept: jax.Array) -> Any:
    """Rows of every array with rows, on each device among its own."""
    take: Any = lambda tree, kept: jax.tree.map(lambda x: x[kept] if x.ndim else x, tree)
    mesh_ = jax.sharding.get_abstract_mesh()
    if mesh_.empty:
        return take(tree, kept)
    specs, each = jax.tree.map(mesh.of_rows, (tree, kept))
    return jax.shard_map(take, in_specs=(specs, each), out_specs=specs, axis_names={"fsdp"}, check_vma=False)(
        tree, kept
    )


@jax.jit
def _join(parts: list[Any]) -> Any:
    """Concatenates the rows of trees of arrays, on each device its own."""
    join: Any = lambda parts: jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    if jax.sharding.get_abstract_mesh().empty:
        return join(parts)
    specs = jax.tree.map(mesh.of_rows, parts)
    return jax.shard_map(join, in_specs=(specs,), out_specs=specs[0], axis_names={"fsdp"}, check_vma=False)(parts)


@functools.partial(jax.jit, static_argnums=1)
def _longer(cache: decoder.KeyValue, size: int) -> decoder.KeyValue:
    keys, values = cache
    same, more = [(0, 0)], [(0, size - values.shape[3])]
    return jnp.pad(keys, 4 * same + more), jnp.pad(values, 3 * same + more + same)


def texts(batch: RolloutBatch, tokenizer: Any) -> list[list[str]]:
    """The completions as text (P, G), without end tokens; tokens after the end are dropped."""
    tokens, mask = jax.device_get((batch.tokens, batch.mask))
    P, G, _ = tokens.shape
    rows: Sequence[np.ndarray] = [
        ids[kept] for ids, kept in zip(tokens.reshape(P * G, -1), mask.reshape(P * G, -1), strict=True)
    ]
    flat = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [flat[i * G : (i + 1) * G] for i in range(P)]
