"""Qwen2.5-VL: two passes over one decoder.

``prompt_pass`` runs every prompt once, images included, and keeps the keys and values of its layers.  The G completions
of a prompt attend to them: ``completion_pass`` runs whole completions (the update), ``decode_step`` one more token (the
sampler).  All of them are pure functions of a plain nested dict of parameters, to be called under ``jax.jit``.

    hidden, kv = prompt_pass(params, config, prompt)
    first = policy_logits(params, config, last_hidden(prompt, hidden))      # of completion token 0
    rest = completion_pass(params, config, prompt, kv, completions)         # its row t predicts token t + 1
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairgrpo_jax.mesh import constrain
from fairgrpo_jax.models import layers, vision
from fairgrpo_jax.models.inputs import Prompt
from fairgrpo_jax.models.layers import MASKED, DecoderLayer, KeyValue, bind, rms_norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Sizes of the vision tower; see :class:`Config` for where they come from."""

    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    out_hidden_size: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    window_size: int  # pixels
    full_blocks: tuple[int, ...]  # blocks that attend over a whole frame; the others stay inside windows
    tokens_per_second: float  # rotary time steps in one second of video
    in_channels: int = 3
    rms_eps: float = 1e-6
    rope_theta: float = 10_000.0
    initializer_range: float = 0.02

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def window(self) -> int:
        """Side of an attention window in merged tokens."""
        return self.window_size // self.spatial_merge_size // self.patch_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Everything static about the model; hashable, so it may be a static argument of ``jax.jit``."""

    vision: VisionConfig
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mrope_section: tuple[int, int, int]  # rotary frequencies that turn with time, row and column
    tie_word_embeddings: bool
    image_id: int
    video_id: int
    vision_start_id: int
    vision_end_id: int
    eos_ids: tuple[int, ...]
    pad_id: int
    banned_ids: tuple[int, ...]  # never sampled, and of probability 0 in the policy
    rope_theta: float = 1_000_000.0
    rms_eps: float = 1e-6
    initializer_range: float = 0.02

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads or self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must divide hidden_size={self.hidden_size} "
                f"and be a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if 2 * sum(self.mrope_section) != self.head_dim:
            raise ValueError(f"mrope_section={self.mrope_section} must sum to half of head_dim={self.head_dim}")
        if self.vision.out_hidden_size != self.hidden_size:
            raise ValueError(f"vision features are {self.vision.out_hidden_size} wide, the text {self.hidden_size}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @classmethod
    def from_hugging_face(cls, config: Any) -> "Config":
        """The config of a checkpoint.

        Args:
            config: the dict of a ``config.json``, flat or nested, or a ``transformers.Qwen2_5_VLConfig``.

        Raises:
            ValueError: the checkpoint wants something this model does not compute.
        """
        from transformers import Qwen2_5_VLConfig

        if isinstance(config, Mapping):
            config = Qwen2_5_VLConfig.from_dict(dict(config))
        text, tower = config.text_config, config.vision_config
        rope = text.rope_parameters
        wanted = {"rope_type": "default", "hidden_act": "silu", "vision hidden_act": "silu", "sliding_window": None}
        got = {
            "rope_type": rope.get("rope_type", "default"),
            "hidden_act": text.hidden_act,
            "vision hidden_act": tower.hidden_act,
            "sliding_window": text.sliding_window,
        }
        if got != wanted:
            raise ValueError(f"this Qwen2.5-VL computes {wanted}; the checkpoint's config has {got}")
        eos = text.eos_token_id if text.eos_token_id is not None else ()
        eos_ids = tuple(eos) if isinstance(eos, list | tuple) else (eos,)
        special = [
            config.vision_start_token_id,
            config.vision_end_token_id,
            config.image_token_id,
            config.video_token_id,
        ]
        vision_pad = getattr(config, "vision_token_id", None)
        return cls(
            vision=_vision_config(tower),
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            num_kv_heads=text.num_key_value_heads,
            mrope_section=tuple(rope.get("mrope_section", (16, 24, 24))),
            tie_word_embeddings=config.tie_word_embeddings,
            image_id=config.image_token_id,
            video_id=config.video_token_id,
            vision_start_id=config.vision_start_token_id,
            vision_end_id=config.vision_end_token_id,
            eos_ids=eos_ids,
            pad_id=text.pad_token_id if text.pad_token_id is not None else (*eos_ids, 0)[0],
            banned_ids=tuple(sorted(special if vision_pad is None else [*special, vision_pad])),
            rope_theta=float(rope["rope_theta"]),
            rms_eps=text.rms_norm_eps,
            initializer_range=text.initializer_range,
        )


def _vision_config(tower: Any) -> VisionConfig:
    return VisionConfig(
        depth=tower.depth,
        hidden_size=tower.hidden_size,
        num_heads=tower.num_heads,
        intermediate_size=tower.intermediate_size,
        out_hidden_size=tower.out_hidden_size,
        patch_size=tower.patch_size,
        temporal_patch_size=tower.temporal_patch_size,
        spatial_merge_size=tower.spatial_merge_size,
        window_size=tower.window_size,
        full_blocks=tuple(tower.fullatt_block_indexes),
        tokens_per_second=tower.tokens_per_second,
        in_channels=tower.in_channels,
        rope_theta=float((tower.rope_parameters or {}).get("rope_theta", 10_000.0)),
        initializer_range=tower.initializer_range,
    )


def tiny(**changes: Any) -> Config:
    """A model of about 240,000 parameters with every mechanism of the large one, for the tiny tokenizer.

    Args:
        **changes: fields of :class:`Config` to replace.
    """
    tower = VisionConfig(
        depth=2,
        hidden_size=64,
        num_heads=4,
        intermediate_size=64,
        out_hidden_size=64,
        patch_size=4,
        temporal_patch_size=2,
        spatial_merge_size=2,
        window_size=16,
        full_blocks=(1,),
        tokens_per_second=2,
        initializer_range=0.08,
    )
    config = Config(
        vision=tower,
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        mrope_section=(2, 3, 3),
        tie_word_embeddings=True,
        image_id=5,
        video_id=6,
        vision_start_id=3,
        vision_end_id=4,
        eos_ids=(2, 0),
        pad_id=0,
        banned_ids=(3, 4, 5, 6),
        rope_theta=10_000.0,
        initializer_range=0.08,
    )
    return dataclasses.replace(config, **changes)


def init(config: Config, key: jax.Array, dtype: Any = jnp.float32) -> dict:
    """Fresh parameters: N(0, ``initializer_range``²) weights, norms 1, biases 0.

    The projections that write into the residual stream are divided by sqrt(2 * layers), as in GPT-2, so that a model
    trained from scratch starts near the identity.

    Args:
        config: the model.
        key: PRNG key.
        dtype: of all parameters; activations follow it.
    """
    embedding, decoder, tower, head = jax.random.split(key, 4)
    scale = config.initializer_range
    params = {
        "embedding": scale * jax.random.normal(embedding, (config.vocab_size, config.hidden_size)),
        "layers": layers.stack(DecoderLayer, config, decoder, config.num_layers),
        "norm": {"weight": jnp.ones(config.hidden_size)},
        "vision": vision.init(config.vision, tower),
    }
    if not config.tie_word_embeddings:
        params["head"] = {"kernel": scale * jax.random.normal(head, (config.hidden_size, config.vocab_size))}
    blocks = params["vision"]["blocks"]
    for writer, depth in (
        (params["layers"]["attention"]["o"], config.num_layers),
        (params["layers"]["mlp"]["down"], config.num_layers),
        (blocks["proj"], config.vision.depth),
        (blocks["mlp"]["down"], config.vision.depth),
    ):
        writer["kernel"] = writer["kernel"] / (2 * depth) ** 0.5
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def prompt_pass(params: dict, config: Config, prompt: Prompt, *, remat: bool = False) -> tuple[jax.Array, KeyValue]:
    """Runs every prompt once.

    Args:
        params: parameters as :func:`init` makes them.
        config: the model.
        prompt: P prompts padded to T tokens.
        remat: recompute the layers in the backward pass instead of keeping their activations.

    Returns:
        hidden (P, T, d) after the final norm, meaningless at padding; keys and values, each (L, P, T, K, H).
    """
    x = _embed(params, config, prompt, remat)[:, None]
    turn = _rotation(config, prompt.rope[:, None])
    mask = prompt.valid[:, None, :] & (prompt.order[:, None, :] <= prompt.order[:, :, None])

    def layer(x, weights):
        x, (k, v) = bind(DecoderLayer, config, weights)(x, turn, own_mask=mask)
        return x, (k[:, 0], v[:, 0])

    x, kv = jax.lax.scan(_maybe_remat(layer, remat), x, params["layers"])
    return _final_norm(params, config, x)[:, 0], kv


def completion_pass(
    params: dict, config: Config, prompt: Prompt, prompt_kv: KeyValue, tokens: jax.Array, *, remat: bool = False
) -> jax.Array:
    """Runs whole completions against the keys and values of their prompts.

    Token t of a completion stands at order n + t and rotary position next + t in all three rows, with n the length of
    its prompt and next one above the prompt's largest rotary position, whatever the padding.  It sees its whole prompt
    and tokens 0..t of its own rollout.

    Args:
        params: parameters.
        config: the model.
        prompt: the P prompts that ``prompt_kv`` comes from.
        prompt_kv: keys and values of :func:`prompt_pass`, each (L, P, Tp, K, H).
        tokens: (P, G, T) int32 completions, padded on the right with anything.
        remat: recompute the layers in the backward pass.

    Returns:
        hidden (P, G, T, d) after the final norm; row t predicts token t + 1.
    """
    steps = jnp.arange(tokens.shape[-1])
    x = constrain(params["embedding"][tokens])
    turn = _completion_rotation(config, prompt, steps)
    own_mask = steps[:, None] >= steps[None, :]

    def layer(x, weights_kv):
        weights, kv = weights_kv
        module = bind(DecoderLayer, config, weights)
        x, _ = module(x, turn, own_mask=own_mask, prompt_kv=kv, prompt_mask=prompt.valid[:, None])
        return x, None

    x, _ = jax.lax.scan(_maybe_remat(layer, remat), x, (params["layers"], prompt_kv))
    return _final_norm(params, config, x)


def unstack(params: dict, prompt_kv: KeyValue) -> tuple[dict, tuple[KeyValue, ...]]:
    """Splits weights and prompt keys and values by layer, as :func:`decode_step` wants them; once, before the loop."""
    return {**params, "layers": layers.unstack(params["layers"])}, layers.unstack(prompt_kv)


def init_caches(
    config: Config, num_prompts: int, num_rollouts: int, size: int, dtype: Any = jnp.float32
) -> tuple[KeyValue, ...]:
    """Empty own keys and values of every layer, each (P, G, S, K, H), for completions of up to ``size`` tokens."""
    shape = (num_prompts, num_rollouts, size, config.num_kv_heads, config.head_dim)
    return tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.num_layers))


def decode_step(
    params: dict,
    config: Config,
    prompt: Prompt,
    prompt_kv: tuple[KeyValue, ...],
    caches: tuple[KeyValue, ...],
    tokens: jax.Array,
    t: jax.Array | int,
) -> tuple[jax.Array, tuple[KeyValue, ...]]:
    """Runs token t of every completion: :func:`completion_pass` one token at a time.

    Args:
        params: parameters split by :func:`unstack`.
        config: the model.
        prompt: the P prompts.
        prompt_kv: the prompts' keys and values split by :func:`unstack`.
        caches: own keys and values of tokens 0..t-1, from :func:`init_caches` or the step before.
        tokens: (P, G) int32, token t of every completion.
        t: position in the completion, may be traced.

    Returns:
        hidden (P, G, d) after the final norm, which predicts token t + 1; the caches with token t.
    """
    x = constrain(params["embedding"][tokens])[:, :, None]
    turn = _completion_rotation(config, prompt, jnp.asarray(t)[None])
    own_mask = jnp.arange(caches[0][0].shape[2])[None, :] <= t
    updated = []
    for weights, kv, cache in zip(params["layers"], prompt_kv, caches, strict=True):
        module = bind(DecoderLayer, config, weights)
        x, cache = module(x, turn, own_mask=own_mask, prompt_kv=kv, prompt_mask=prompt.valid[:, None], cache=cache, t=t)
        updated.append(cache)
    return _final_norm(params, config, x)[:, :, 0], tuple(updated)


def last_hidden(prompt: Prompt, hidden: jax.Array) -> jax.Array:
    """The hidden state (P, d) of every prompt's last token, which predicts the first token of its completions."""
    last = jnp.argmax(prompt.order, axis=1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def head(params: dict, config: Config, hidden: jax.Array) -> jax.Array:
    """Logits (..., V) in float32 of hidden states (..., d), as the checkpoint defines them."""
    kernel = params["embedding"].T if config.tie_word_embeddings else params["head"]["kernel"]
    return jnp.matmul(constrain(hidden), kernel, preferred_element_type=jnp.float32)


def policy_logits(params: dict, config: Config, hidden: jax.Array, temperature: float | jax.Array = 1.0) -> jax.Array:
    """Logits (..., V) in float32 of the distribution that is sampled from and trained.

    ``head(hidden) / temperature``, with the ids of ``config.banned_ids`` at -1e30: images are never sampled, and what
    is never sampled has probability 0 in the update as well.
    """
    logits = head(params, config, hidden) / temperature
    banned = np.isin(np.arange(config.vocab_size), config.banned_ids)
    return jnp.where(banned.reshape((1,) * (logits.ndim - 1) + (-1,)), MASKED, logits)


def log_probs(
    params: dict,
    config: Config,
    hidden: jax.Array,
    targets: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    chunk: int = 128,
) -> jax.Array:
    """Log-probabilities of targets under :func:`policy_logits`, never holding the logits of more than ``chunk`` steps.

    Args:
        params: parameters.
        config: the model.
        hidden: (..., T, d); row t predicts ``targets[..., t]``.
        targets: (..., T) int32.
        temperature: of the policy, above 0.
        chunk: time steps whose logits (..., chunk, V) exist at once; they are recomputed in the backward pass.

    Returns:
        (..., T) float32.
    """

    def score(hidden, targets):
        logits = policy_logits(params, config, hidden, temperature)
        picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return picked - jax.nn.logsumexp(logits, axis=-1)

    steps = targets.shape[-1]
    if steps <= chunk:
        return jax.checkpoint(score)(hidden, targets)
    count = -(-steps // chunk)
    spare = count * chunk - steps
    lead = [(0, 0)] * (targets.ndim - 1)
    hidden = jnp.pad(hidden, [*lead, (0, spare), (0, 0)]).reshape(*targets.shape[:-1], count, chunk, -1)
    targets = jnp.pad(targets, [*lead, (0, spare)]).reshape(*targets.shape[:-1], count, chunk)
    parts = jnp.moveaxis(hidden, -3, 0), jnp.moveaxis(targets, -2, 0)
    scores = jax.lax.map(lambda part: jax.checkpoint(score)(*part), parts)
    return jnp.moveaxis(scores, 0, -2).reshape(*targets.shape[:-2], -1)[..., :steps]


def _embed(params: dict, config: Config, prompt: Prompt, remat: bool) -> jax.Array:
    """Token embeddings (P, T, d) with vision features in the places of their placeholders."""
    x = constrain(params["embedding"][prompt.tokens])
    if prompt.vision is None:
        return x
    features = vision.encode(params["vision"], config.vision, prompt.vision, remat=remat)
    rows = jnp.maximum(prompt.feature, 0)[..., None]
    placed = jnp.take_along_axis(features, rows, axis=1).astype(x.dtype)
    return constrain(jnp.where(prompt.feature[..., None] >= 0, placed, x))


def _rotation(config: Config, positions: jax.Array) -> KeyValue:
    """Cosine and sine (..., H/2) of rotary positions (..., 3): each frequency turns with one of the three axes."""
    half = config.head_dim // 2
    inverse = jnp.asarray(1.0 / config.rope_theta ** (np.arange(half) / half), jnp.float32)
    axis = np.repeat(np.arange(3), config.mrope_section)
    angles = positions[..., axis].astype(jnp.float32) * inverse.reshape((1,) * (positions.ndim - 1) + (-1,))
    return jnp.cos(angles), jnp.sin(angles)


def _completion_rotation(config: Config, prompt: Prompt, steps: jax.Array) -> KeyValue:
    """Cosine and sine (P, 1, T, H/2) of completion tokens ``steps`` (T,): they turn alike in time, row and column."""
    following = prompt.rope.max(axis=(1, 2)) + 1
    positions = following[:, None] + steps[None, :]
    return _rotation(config, jnp.broadcast_to(positions[:, None, :, None], (len(positions), 1, len(steps), 3)))


def _final_norm(params: dict, config: Config, x: jax.Array) -> jax.Array:
    return constrain(rms_norm(x, params["norm"]["weight"], config.rms_eps))


def _maybe_remat(layer: Any, remat: bool) -> Any:
    return jax.checkpoint(layer, prevent_cse=False) if remat else layer
