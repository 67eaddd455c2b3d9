"""The text decoder of all families, with its passes over prompts and completions.

``prompt_pass`` runs every prompt once, images included, and keeps the keys and values of its layers. The G completions
of a prompt attend to them: ``completion_pass`` runs whole completions (for the update), ``decode_step`` one more token
(for the sampler). All are pure functions of a nested dict of parameters, to be called under ``jax.jit``.

    hidden, kv = prompt_pass(params, config, prompt)
    first = policy_logits(params, config, last_hidden(prompt, hidden))      # of completion token 0
    rest = completion_pass(params, config, prompt, kv, completions)         # its row t predicts token t + 1
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairgrpo_jax.mesh import constrain, whole_rows
from fairgrpo_jax.models import layers, vision
from fairgrpo_jax.models.attention import MASKED, KeyValue, Masks, restored
from fairgrpo_jax.models.inputs import Prompt
from fairgrpo_jax.models.layers import DecoderLayer, bind, rms_norm
from fairgrpo_jax.models.remat import Remat, maybe_remat
from fairgrpo_jax.models.vision import VisionConfig


LOGITS = 512 << 20  # bytes of logits per device, above which fewer time steps are computed at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The static configuration of a decoder; hashable, so it can be a static argument of ``jax.jit``.

    The ``Config`` of each family is a subclass with its own defaults.
    """

    model_type: str  # as in the published ``config.json``
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    tie_word_embeddings: bool
    eos_ids: tuple[int, ...]
    pad_id: int
    banned_ids: tuple[int, ...] = ()  # never sampled; probability 0 in the policy
    num_tokens: int | None = None  # number of ids that the tokenizer has; those from here on are banned too; None: all
    vision: VisionConfig | None
    image_id: int | None = None
    video_id: int | None = None
    vision_start_id: int | None = None
    vision_end_id: int | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    offset_norm: bool = False  # norm weights are stored less 1 and multiplied in float32
    sandwich_norms: bool = False  # also norms after attention and MLP
    activation: str = "silu"
    attention_scale: float | None = None  # factor of the scores; None: 1 / sqrt(head_dim)
    embedding_scale: float = 1.0
    rope_theta: float = 10_000.0
    rope_factor: float = 1.0  # positions are divided by it
    mrope_section: tuple[int, ...] = ()  # numbers of rotary frequencies for time, row and column; (): one position
    mrope_interleaved: bool = False  # these frequencies alternate instead of forming three chunks
    window: int = 0  # keys that a token of a local layer sees, including itself
    local: tuple[bool, ...] = ()  # by layer: whether it attends inside the window; (): none does
    local_rope_theta: float | None = None  # of local layers, whose positions are never divided; None: as the others
    rms_eps: float = 1e-6
    initializer_range: float = 0.02
    lora_scale: float = 1.0  # alpha / rank of low-rank adapters, if the parameters have any

    gated = True  # whether the MLP has a gate

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads or self.head_dim % 2:
            raise ValueError(
                f"got num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, head_dim={self.head_dim}; "
                "wanted num_heads a multiple of num_kv_heads, and head_dim even"
            )
        chunks = not self.mrope_interleaved and sum(self.mrope_section) != self.head_dim // 2
        if self.mrope_section and (len(self.mrope_section) != 3 or chunks):
            raise ValueError(
                f"got mrope_section={self.mrope_section}; wanted three numbers that sum to {self.head_dim // 2}, "
                "half of head_dim"
            )
        if self.activation not in layers.ACTIVATIONS:
            raise ValueError(f"got activation={self.activation!r}; wanted one of {sorted(layers.ACTIVATIONS)}")
        if self.local and (len(self.local) != self.num_layers or (any(self.local) and self.window < 1)):
            raise ValueError(
                f"got window={self.window} and {len(self.local)} local flags for {self.num_layers} layers; "
                "wanted a flag for every layer, and a window of at least 1"
            )
        if self.vision is not None and self.vision.out_hidden_size != self.hidden_size:
            raise ValueError(f"vision features are {self.vision.out_hidden_size} wide, the text {self.hidden_size}")

    @property
    def local_layers(self) -> tuple[bool, ...]:
        """Whether each layer attends inside the window."""
        return self.local or (False,) * self.num_layers


def init(config: TextConfig, key: jax.Array, dtype: Any = jnp.float32) -> dict:
    """Initial parameters: N(0, ``initializer_range``²) weights, norms as the identity, biases 0.

    The projections that write into the residual stream are divided by sqrt(2 * layers), as in GPT-2, so that a model
    trained from scratch starts near the identity.

    Args:
        config: the model.
        key: PRNG key.
        dtype: dtype of all parameters; activations follow it.
    """
    embedding, decoder, tower, head = jax.random.split(key, 4)
    scale, size = config.initializer_range, config.hidden_size
    params = {
        "embedding": scale * jax.random.normal(embedding, (config.vocab_size, size)),
        "layers": layers.stack(DecoderLayer, config, decoder, config.num_layers),
        "norm": {"weight": jnp.zeros(size) if config.offset_norm else jnp.ones(size)},
    }
    for writer in (params["layers"]["attention"]["o"], params["layers"]["mlp"]["down"]):
        writer["kernel"] = writer["kernel"] / (2 * config.num_layers) ** 0.5
    if not config.tie_word_embeddings:
        params["head"] = {"kernel": scale * jax.random.normal(head, (size, config.vocab_size))}
    if config.vision is not None:
        params |= vision.init(config.vision, tower)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def prompt_pass(params: dict, config: TextConfig, prompt: Prompt, *, remat: Remat = False) -> tuple[jax.Array, Any]:
    """Runs every prompt once.

    Args:
        params: parameters as :func:`init` makes them, or split by :func:`by_layer`.
        config: the model.
        prompt: P prompts padded to T tokens.
        remat: recompute the layers in the backward pass instead of keeping their activations; see
            :func:`remat.maybe_remat`.

    Returns:
        hidden (P, T, d) after the final norm, meaningless at padding; keys and values, each (L, P, T, K, H), or for
        parameters split by layer a tuple of L, each (P, T, K, H).
    """
    if isinstance(params["layers"], tuple):
        return _prompt_pass_by_layer(params, config, prompt)
    x, deep = _embed_prompt(params, config, prompt, remat)
    views = _prompt_views(config, prompt)

    def run(x, weights, local):
        view = _choose(views, local)
        return bind(DecoderLayer, config, weights)(x, view.rotation, view.masks)

    def layer(x, index_local_weights):
        index, local, weights = index_local_weights
        x, (k, v) = maybe_remat(run, remat)(x, weights, local)
        for number, features in enumerate(deep):
            x += jnp.where(index == number, features, 0)
        return x, (k[:, 0], v[:, 0])

    xs = np.arange(config.num_layers), np.array(config.local_layers), params["layers"]
    x, kv = layers.scan(layer, x[:, None], xs, remat=remat)
    return _final_norm(params, config, x)[:, 0], kv


def _prompt_pass_by_layer(params: dict, config: TextConfig, prompt: Prompt) -> tuple[jax.Array, tuple[KeyValue, ...]]:
    """:func:`prompt_pass` one layer after the other, whose weights, keys and values are never in one array."""
    x, deep = _embed_prompt(params, config, prompt, remat=False)
    views, x, kept = _prompt_views(config, prompt), x[:, None], []
    for index, (local, weights) in enumerate(zip(config.local_layers, params["layers"], strict=True)):
        x, (k, v) = bind(DecoderLayer, config, weights)(x, *views[local])
        x = x + deep[index] if index < len(deep) else x
        kept.append((k[:, 0], v[:, 0]))
    return _final_norm(params, config, x)[:, 0], tuple(kept)


def completion_pass(
    params: dict, config: TextConfig, prompt: Prompt, prompt_kv: KeyValue, tokens: jax.Array, *, remat: Remat = False
) -> jax.Array:
    """Runs whole completions against the keys and values of their prompts.

    Token t of a completion has order n + t, where n is the length of its prompt, and rotary position
    ``prompt.following + t`` in all three rows, independent of padding. It sees its whole prompt and tokens 0..t of its
    own rollout; in a local layer, only those inside the window.

    Args:
        params: parameters.
        config: the model.
        prompt: the P prompts that ``prompt_kv`` comes from.
        prompt_kv: keys and values of :func:`prompt_pass`, each (L, P, Tp, K, H).
        tokens: (P, G, T) int32 completions, padded on the right with any values.
        remat: recompute the layers in the backward pass.

    Returns:
        hidden (P, G, T, d) after the final norm; row t predicts token t + 1.
    """
    steps = jnp.arange(tokens.shape[-1])
    views = _completion_views(config, prompt, steps, dict.fromkeys(config.local_layers, steps))

    def run(x, weights, kv, local):
        view = _choose(views, local)
        module = bind(DecoderLayer, config, weights)
        return module(x, view.rotation, view.masks, prompt_kv=kv)[0]

    def layer(x, local_weights_kv):
        local, weights, kv = local_weights_kv
        return maybe_remat(run, remat)(x, weights, kv, local), None

    xs = np.array(config.local_layers), params["layers"], prompt_kv
    x, _ = layers.scan(layer, _embed(params, config, tokens), xs, remat=remat)
    return _final_norm(params, config, x)


def by_layer(params: dict) -> dict:
    """Splits the stacked weights of the decoder by layer, as the sampler takes them."""
    return {**params, "layers": layers.unstack(params["layers"])}


def cache_sizes(config: TextConfig, size: int) -> tuple[int, ...]:
    """Number of tokens that the cache of each layer holds, of completions of ``size``: local layers keep the window."""
    return tuple(min(size, config.window) if local else size for local in config.local_layers)


def init_caches(
    config: TextConfig, num_prompts: int, num_rollouts: int, size: int, dtype: Any = jnp.float32
) -> tuple[KeyValue, ...]:
    """Empty keys (P, K, G, H, S) and values (P, K, G, S, H) by layer, for completions of up to ``size`` tokens."""
    empty = lambda *last: jnp.zeros((num_prompts, config.num_kv_heads, num_rollouts, *last), dtype)
    sizes, width = cache_sizes(config, size), config.head_dim
    return tuple((empty(width, places), empty(places, width)) for places in sizes)


def decode_step(
    params: dict,
    config: TextConfig,
    prompt: Prompt,
    prompt_kv: tuple[KeyValue, ...],
    caches: tuple[KeyValue, ...],
    tokens: jax.Array,
    t: jax.Array | int,
    turns: dict[bool, KeyValue] | None = None,
) -> tuple[jax.Array, tuple[KeyValue, ...]]:
    """Runs token t of every completion: :func:`completion_pass` one token at a time.

    Args:
        params: parameters split by :func:`by_layer`.
        config: the model.
        prompt: the P prompts.
        prompt_kv: the prompts' keys and values by layer, from :func:`prompt_pass`, each as
            :func:`attention.stored` orders them.
        caches: own keys and values of tokens 0..t-1, from :func:`init_caches` or the previous step; token t is written
            at t, in a cache shorter than the completion (that of a local layer) in place of the token that left.
        tokens: (P, G) int32, token t of every completion.
        t: position in the completion; may be traced.
        turns: :func:`rotations` of t; default: computed here.

    Returns:
        hidden (P, G, d) after the final norm, which predicts token t + 1; the caches with token t.
    """
    x = _embed(params, config, tokens)[:, :, None]
    sizes = {local: cache[1].shape[3] for local, cache in zip(config.local_layers, caches, strict=True)}
    held = {local: t - (t - jnp.arange(size)) % size for local, size in sizes.items()}
    views = _completion_views(config, prompt, jnp.asarray(t)[None], held)
    updated = []
    for local, weights, kv, cache in zip(config.local_layers, params["layers"], prompt_kv, caches, strict=True):
        view, module = views[local], bind(DecoderLayer, config, weights)
        turn = view.rotation if turns is None else turns[local]
        x, cache = module(x, turn, view.masks, prompt_kv=restored(kv), cache=cache, t=t % sizes[local])
        updated.append(cache)
    return _final_norm(params, config, x)[:, :, 0], tuple(updated)


def rotations(config: TextConfig, prompt: Prompt, t: jax.Array | int) -> dict[bool, KeyValue]:
    """Cosine and sine (P, 1, 1, H/2) of the rotary positions of token t in local (True) and in global layers."""
    views = _completion_views(config, prompt, jnp.asarray(t)[None], dict.fromkeys(config.local_layers, jnp.zeros(1)))
    return {local: view.rotation for local, view in views.items()}


def last_hidden(prompt: Prompt, hidden: jax.Array) -> jax.Array:
    """The hidden state (P, d) of each prompt's last token, which predicts the first token of its completions."""
    last = jnp.argmax(prompt.order, axis=1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def head(params: dict, config: TextConfig, hidden: jax.Array) -> jax.Array:
    """Logits (..., V) in float32 of hidden states (..., d), as defined by the checkpoint."""
    kernel = params["embedding"].T if config.tie_word_embeddings else params["head"]["kernel"]
    return jnp.matmul(constrain(hidden), kernel, preferred_element_type=jnp.float32)


def policy_logits(
    params: dict, config: TextConfig, hidden: jax.Array, temperature: float | jax.Array = 1.0
) -> jax.Array:
    """Logits (..., V) in float32 of the policy's distribution, in sampling and training.

    ``head(hidden) / temperature``, with -1e30 for the ids in ``config.banned_ids`` and those from ``config.num_tokens``
    on: image tokens and rows without a token are never sampled, and have probability 0 in the update as well.
    """
    logits = head(params, config, hidden) / temperature
    ids = np.arange(config.vocab_size)
    banned = np.isin(ids, config.banned_ids)
    if config.num_tokens is not None:
        banned |= ids >= config.num_tokens
    return jnp.where(banned.reshape((1,) * (logits.ndim - 1) + (-1,)), MASKED, logits)


def logit_steps(rows: int, vocab_size: int) -> int:
    """Number of time steps whose logits a device holds at once, for this number of completion rows.

    The largest power of two c from 8 to 128 with 4 rows c V <= 512 MiB; 8 if none fits.

    Example:
        >>> [logit_steps(rows, 152_064) for rows in (4, 16, 32, 512)], logit_steps(512, 512)
        ([128, 32, 16, 8], 128)
    """
    return next((steps for steps in (128, 64, 32, 16) if 4 * rows * steps * vocab_size <= LOGITS), 8)


def log_probs(
    params: dict,
    config: TextConfig,
    hidden: jax.Array,
    targets: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    chunk: int | None = None,
) -> jax.Array:
    """Log-probabilities of targets under :func:`policy_logits`, holding the logits of at most ``chunk`` steps.

    Args:
        params: parameters.
        config: the model.
        hidden: (..., T, d); row t predicts ``targets[..., t]``.
        targets: (..., T) int32.
        temperature: temperature of the policy, > 0.
        chunk: number of time steps whose logits (..., chunk, V) exist at once; they are recomputed in the backward
            pass. Default: :func:`logit_steps` of the rows per device, with (...) split along ``fsdp``.

    Returns:
        (..., T) float32.
    """

    def logprobs_of(hidden, targets):
        logits = policy_logits(params, config, hidden, temperature)
        # A comparison instead of take_along_axis, whose gradient is a scatter into all logits.
        picked = jnp.where(jax.nn.one_hot(targets, logits.shape[-1], dtype=bool), logits, 0.0).sum(-1)
        return picked - jax.nn.logsumexp(logits, axis=-1)

    if chunk is None:
        mesh = jax.sharding.get_abstract_mesh()
        split = 1 if mesh.empty else mesh.shape["fsdp"]
        chunk = logit_steps(-(-math.prod(targets.shape[:-1]) // split), config.vocab_size)
    steps = targets.shape[-1]
    if steps <= chunk:
        return jax.checkpoint(logprobs_of)(hidden, targets)
    count = -(-steps // chunk)
    spare = count * chunk - steps
    lead = [(0, 0)] * (targets.ndim - 1)
    hidden = jnp.pad(hidden, [*lead, (0, spare), (0, 0)]).reshape(*targets.shape[:-1], count, chunk, -1)
    targets = jnp.pad(targets, [*lead, (0, spare)]).reshape(*targets.shape[:-1], count, chunk)
    parts = jnp.moveaxis(hidden, -3, 0), jnp.moveaxis(targets, -2, 0)
    found = jax.lax.map(lambda part: jax.checkpoint(logprobs_of)(*part), parts)
    return jnp.moveaxis(found, 0, -2).reshape(*targets.shape[:-2], -1)[..., :steps]


def _embed(params: dict, config: TextConfig, tokens: jax.Array) -> jax.Array:
    """Token embeddings (..., d), times ``embedding_scale`` in their own dtype."""
    x = constrain(whole_rows(params["embedding"])[tokens])  # otherwise the columns of every token are exchanged
    return x * jnp.asarray(config.embedding_scale, x.dtype) if config.embedding_scale != 1 else x


def _embed_prompt(params: dict, config: TextConfig, prompt: Prompt, remat: Remat) -> tuple[jax.Array, list[jax.Array]]:
    """Embeddings (P, T, d) with vision features in place of their placeholders, and DeepStack's features likewise."""
    is_image = prompt.feature >= 0
    x = _embed(params, config, jnp.where(is_image, 0, prompt.tokens))  # an image token may be outside the vocabulary
    if prompt.vision is None or config.vision is None:
        return x, []
    features, deep = vision.encode(params, config.vision, prompt.vision, remat=remat)
    rows = jnp.maximum(prompt.feature, 0)[..., None]

    def place(features, others):
        placed = jnp.take_along_axis(features, rows, axis=1).astype(x.dtype)
        return constrain(jnp.where(is_image[..., None], placed, others))

    return place(features, x), [place(part, 0)[:, None] for part in deep]


class _View(NamedTuple):
    """The rotation and the visible keys of a layer."""

    rotation: KeyValue
    masks: Masks


def _choose(views: dict[bool, _View], local: jax.Array) -> _View:
    """The view of local layers if the flag is set, otherwise that of global layers."""
    if len(views) == 1:
        return next(iter(views.values()))
    (turn, near), (other, far) = views[True], views[False]
    pick = lambda a, b: a if a is b else jax.tree.map(lambda a, b: jnp.where(local, a, b), a, b)
    window = None if near.window is None else (local, near.window[1])
    masks = far._replace(own=pick(near.own, far.own), prompt=pick(near.prompt, far.prompt), window=window)
    return _View(pick(turn, other), masks)


def _windows_end(config: TextConfig, size: int) -> bool:
    """Whether a window ends inside a sequence of ``size`` tokens in any layer."""
    return any(config.local_layers) and size > config.window


def _prompt_views(config: TextConfig, prompt: Prompt) -> dict[bool, _View]:
    """The views of prompts on themselves in global and local layers, as far as the model has such layers.

    A window limits the view backward; an image block extends it forward, but not beyond the window.
    """
    distance = prompt.order[:, :, None] - prompt.order[:, None, :]
    seen = distance >= 0
    if prompt.block is not None:
        seen |= (prompt.block[:, :, None] == prompt.block[:, None, :]) & (prompt.block[:, :, None] > 0)
    seen &= prompt.valid[:, None]
    masks = {False: Masks(seen, lengths=_lengths(prompt), block=prompt.block)}
    masks[True] = masks[False]
    if _windows_end(config, prompt.tokens.shape[1]):
        masks[True] = masks[True]._replace(own=seen & (distance < config.window), window=(True, config.window))
    return {
        local: _View(_rotation(config, prompt.rope[:, None], local), masks[local]) for local in set(config.local_layers)
    }


def _completion_views(
    config: TextConfig, prompt: Prompt, steps: jax.Array, keys: dict[bool, jax.Array]
) -> dict[bool, _View]:
    """The views of completion tokens ``steps`` (T,) on their prompts and on their own tokens.

    ``keys`` are the tokens (S,) that the caches of local and of global layers hold, < 0 where they are empty.
    """
    positions = (prompt.following[:, None] + steps[None, :])[:, None, :, None]
    positions = jnp.broadcast_to(positions, (*positions.shape[:-1], 3))
    shared, total = prompt.valid[:, None], prompt.tokens.shape[1] + max(map(len, keys.values()))
    windows_end = _windows_end(config, total)
    since = None
    if windows_end:
        since = prompt.order.max(axis=1)[:, None] + 1 + steps[None, :]
        since = since[:, :, None] - prompt.order[:, None, :]

    def view(local: bool, held: jax.Array) -> _View:
        distance = steps[:, None] - held[None, :]
        own = (distance >= 0) & (held[None, :] >= 0)
        masks = Masks(own, shared)
        if since is not None and local:
            near = own & (distance < config.window), shared & (since < config.window)
            masks = Masks(*near, window=(True, config.window))
        elif since is not None and len(keys) > 1:
            masks = Masks(own, jnp.broadcast_to(shared, since.shape))
        if len(steps) == len(held):  # whole completions, whose own keys are causal
            masks = masks._replace(lengths=_lengths(prompt))
        return _View(_rotation(config, positions, local), masks)

    return {local: view(local, held) for local, held in keys.items()}


def _lengths(prompt: Prompt) -> jax.Array:
    """Number of tokens (P,) of each prompt, which are at the start of their rows."""
    return prompt.valid.sum(axis=1, dtype=jnp.int32)


def _rotation(config: TextConfig, positions: jax.Array, local: bool) -> KeyValue:
    """Cosine and sine (..., H/2) of rotary positions (..., 3): each frequency uses one of the three axes."""
    half = config.head_dim // 2
    theta, factor = config.rope_theta, config.rope_factor
    if local and config.local_rope_theta is not None:
        theta, factor = config.local_rope_theta, 1.0
    inverse = jnp.asarray(1.0 / theta ** (np.arange(half) / half) / factor, jnp.float32)
    angles = positions[..., _rope_axes(config)].astype(jnp.float32) * layers.along_last(inverse, positions)
    return jnp.cos(angles), jnp.sin(angles)


def _rope_axes(config: TextConfig) -> np.ndarray:
    """The axis (time, row or column) of each of the H/2 frequencies."""
    if not config.mrope_interleaved:
        return np.repeat(np.arange(3), config.mrope_section or (config.head_dim // 2, 0, 0))
    axes = np.zeros(config.head_dim // 2, np.int64)
    for axis in (1, 2):
        axes[axis : 3 * config.mrope_section[axis] : 3] = axis
    return axes


def _final_norm(params: dict, config: TextConfig, x: jax.Array) -> jax.Array:
    return constrain(rms_norm(x, params["norm"]["weight"], config.rms_eps, offset=config.offset_norm))
