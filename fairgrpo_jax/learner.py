"""The jitted updates: the supervised step and the policy step.

Both take their gradients in stages (``fairgrpo_jax.staged``): a prompt runs once, its completions chunk by chunk
against its keys and values, under one global denominator.  AdamW is applied to donated, sharded buffers.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct

from fairgrpo_jax import config as options, losses, mesh, models, staged
from fairgrpo_jax.fairness import FairnessState
from fairgrpo_jax.models import attention, decoder, lora


MEMORY = 16 << 30  # bytes of a device that does not say how many it has
# Leaves that weight decay reaches: linear maps, convolutions, tables of tokens and positions, adapters.
DECAYED = ("kernel", "embedding", "position", "lora_a", "lora_b")


@struct.dataclass
class TrainState:
    """All that training changes; the only owner of the parameters."""

    params: Any
    moments: Any  # optimizer state
    step: jax.Array  # () int32, updates of the present stage
    fairness: FairnessState


@struct.dataclass
class PolicyBatch:
    """One rollout batch with its advantages, as the policy step wants it."""

    prompt: models.Prompt  # P prompts
    tokens: jax.Array  # (P, G, T) int32
    mask: jax.Array  # (P, G, T) bool
    sampler_logprobs: jax.Array  # (P, G, T) float32
    advantages: jax.Array  # (P, G) float32
    old_logprobs: jax.Array | None = None  # (P, G, T) of the learner; None where there is one update per rollout batch
    reference_logprobs: jax.Array | None = None  # (P, G, T) of the reference; None without a KL term

    @property
    def rollouts(self) -> staged.Rollouts:
        """All but the prompts, as far as it is there."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: x for name, x in fields.items() if name != "prompt" and x is not None}


def optimizer(optim: options.Optim, steps: int) -> optax.GradientTransformation:
    """AdamW with the schedule of ``optim`` over ``steps`` updates; gradient clipping is done in the step itself.

    Moments and updates are float32, whatever the dtype of the parameters: in bfloat16 the second moment would stand
    still far below the square of the gradient.
    """
    rise = min(optim.warmup_steps, max(steps - 1, 0))
    if optim.schedule == "cosine":
        after = optax.cosine_decay_schedule(optim.lr, max(steps - rise, 1))
    else:
        after = optax.constant_schedule(optim.lr)
    schedule = optax.join_schedules([optax.linear_schedule(0.0, optim.lr, max(rise, 1)), after], [rise])
    adam = optax.adamw(schedule, b1=optim.b1, b2=optim.b2, weight_decay=optim.weight_decay, mask=_decayed)

    def update(grads, moments, params):
        return adam.update(_full(grads), moments, _full(params))

    return optax.GradientTransformation(lambda params: adam.init(_full(params)), update)


def _full(params: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), params)


def _decayed(params: dict) -> dict:
    """Which leaves weight decay reaches; by name, because the layers' vectors are stacked into matrices."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key in DECAYED, params)


@functools.partial(jax.jit, static_argnames=("optim", "steps", "freeze"))
def fresh_moments(params: Any, *, optim: options.Optim, steps: int, freeze: tuple[str, ...] = ()) -> Any:
    """The optimizer's state before its first update, sharded as the parameters are; see ``lora.trainable``."""
    return mesh.keep_sharded(optimizer(optim, steps).init(lora.trainable(params, freeze)[0]))


def completion_logprobs(
    params: Any, config: Any, prompt: models.Prompt, tokens: jax.Array, *, temperature: float = 1.0, remat: bool = False
) -> jax.Array:
    """Log-probabilities (P, G, T) of the completions' tokens, each prompt run once for its G completions.

    The first token is predicted by the prompt's last valid position, token t by token t - 1.
    """
    plan = staged.Plan(config, temperature=temperature, remat=remat)
    return staged.completion_logprobs(params, prompt, staged.prompt_ends(params, prompt, plan), tokens, plan)


@functools.partial(jax.jit, static_argnames=("config", "temperature", "remat", "compute", "parts", "chunks", "policy"))
def score(
    params: Any,
    batch: PolicyBatch,
    *,
    config: Any,
    temperature: float,
    remat: bool = False,
    compute: str | None = None,
    parts: int = 1,
    chunks: int = 1,
    policy: Literal["old", "reference"] = "old",
) -> PolicyBatch:
    """The batch with the log-probabilities of its tokens under ``params``, 0 where masked.

    Args:
      params: the learner before its first update, or ``reference`` of it.
      batch: P prompts, G rollouts each.
      config: the model.
      temperature: of the policy.
      remat: as in the update; nothing is differentiated here.
      compute: see ``cast``.
      parts: micro-batches of the prompts, a divisor of P.
      chunks: of the rollouts of each prompt, a divisor of G.
      policy: whose they are: they become ``old_logprobs`` or ``reference_logprobs``.
    """
    plan = staged.Plan(config, parts, chunks, temperature, remat)
    logprobs = staged.logprobs(cast(params, compute), batch.prompt, batch.rollouts, plan)
    return dataclasses.replace(batch, **{f"{policy}_logprobs": logprobs})


def reference(params: dict) -> dict:
    """The policy that a KL term holds the trained one to: these parameters in bfloat16, sharded alike.

    Parameters with low-rank adapters are returned without them, and nothing is copied: ask again after an update, which
    consumes its buffers.  If the adapters were trained before reinforcement learning, this is the policy before that.

    Args:
      params: nested dict.

    Returns:
      a nested dict; without adapters a copy that survives the updates.

    >>> copy = reference({"norm": jnp.ones(3)})
    >>> copy["norm"].dtype.name
    'bfloat16'
    """
    return lora.trainable(params)[1] if lora.has(params) else _half(params)


@jax.jit
def _half(params: dict) -> dict:
    return mesh.keep_sharded(jax.tree.map(lambda x: jnp.array(x, jnp.bfloat16, copy=True), params))


def cast(params: Any, compute: str | None) -> Any:
    """Parameters in the dtype of a pass ("float32" or "bfloat16"), before any of them is gathered; None: as they are.

    >>> cast({"norm": jnp.ones(3)}, "bfloat16")["norm"].dtype.name
    'bfloat16'
    """
    return params if compute is None else mesh.keep_sharded(jax.tree.map(lambda x: x.astype(compute), params))


def chunk_count(
    config: Any,
    *,
    prompts: int,
    rollouts: int,
    prompt_length: int,
    length: int,
    free: int,
    itemsize: int = 4,
    remat: bool = True,
) -> int:
    """Into how many chunks the rollouts of each prompt have to be cut for their update to fit into memory.

    The smallest divisor m of G with  (P G / m) (T c + 12 V min(T, t)) + b <= free - P Tp e,  or G if there is none;
    logits of t steps (``decoder.logit_steps`` of P G / m rows) in three float32 copies, and in bytes of a token
      c = s L d + s a               a completion: kept between layers, of one layer and their gradients;
      c = L s a                     without recomputation: all of every layer is kept;
      e = L (s d + 2 K H (s + 4))   a prompt: kept, its keys and values and their gradient,
    with a = 2 (6 d + 2 (N + K) H + 3 F) activations of one layer and their gradients.  Scores of attention, N (Tp + T)
    numbers a token, are b: 16 bytes each in one layer, without recomputation 8 in every layer; where they are more than
    ``attention.LARGE``, those of a block.

    Args:
      config: the decoder: L layers, width d, N heads and K key-value heads of size H, MLP width F, vocabulary V.
      prompts: P of one micro-batch on one device.
      rollouts: G of a prompt.
      prompt_length: Tp, tokens, padding included.
      length: T, tokens of the longest completion.
      free: bytes of a device that parameters, optimizer and gradients leave.
      itemsize: s, bytes of an activation.
      remat: whether layers are recomputed in the backward pass.

    Returns:
      m in 1 .. G.  An estimate: the compiler may need more or less, and ``update.chunks`` overrides it.

    >>> from fairgrpo_jax.models import qwen2_5_vl
    >>> sizes = dict(prompts=4, rollouts=8, prompt_length=256, length=256)
    >>> [chunk_count(qwen2_5_vl.tiny(), free=mib << 20, **sizes) for mib in (512, 192, 100, 16)]
    [1, 2, 4, 8]
    """
    L, d, N, H = config.num_layers, config.hidden_size, config.num_heads, config.head_dim
    layer = 6 * d + 2 * (N + config.num_kv_heads) * H + 3 * config.intermediate_size
    completion = itemsize * (L * d + 2 * layer) if remat else L * 2 * itemsize * layer
    prompt = L * (itemsize * d + 2 * config.num_kv_heads * H * (itemsize + 4))
    left = free - prompts * prompt_length * prompt

    def need(m: int) -> int:
        rows = prompts * rollouts // m
        steps = min(length, decoder.logit_steps(rows, config.vocab_size))
        scores = 4 * N * (prompt_length + length) * rows * length
        if scores > attention.LARGE:
            block = scores // length // rows * prompts * min(length, attention.LEAST_QUERIES)
            scores = 4 * max(block, attention.LARGE)
        else:
            scores *= 4 if remat else 2 * L
        return rows * (length * completion + 12 * config.vocab_size * steps) + scores

    return next((m for m in range(1, rollouts) if rollouts % m == 0 and need(m) <= left), rollouts)


def automatic_chunks(
    config: Any,
    update: options.Update,
    params: Any,
    moments: Any,
    *,
    prompts: int,
    rollouts: int,
    prompt_length: int,
    length: int,
    devices: tuple[int, int],
    memory: int,
    compute: str | None = None,
) -> int:
    """``chunk_count`` for what nine tenths of a device's memory leave.

    Args:
      config: the model.
      update: its ``accumulation`` and ``remat``.
      params: arrays or shapes; with their gradients, one more of them, and their copy in ``compute``.
      moments: of the optimizer, alike.
      prompts: P of a mini-batch, of all devices.
      rollouts: G of a prompt.
      prompt_length: Tp, tokens.
      length: T, tokens.
      devices: of the mesh, along ``fsdp`` and ``tensor``, over which all of it is taken to be split.
      memory: bytes of a device.
      compute: dtype of the passes; by default that of the parameters.
    """
    leaves, (fsdp, tensor) = jax.tree.leaves(params), devices
    dtype = jnp.dtype(compute) if compute else leaves[0].dtype
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((params, moments)))
    held += sum(x.size * (4 + 2 * dtype.itemsize) for x in leaves)
    return chunk_count(
        config,
        prompts=max(prompts // update.accumulation // fsdp, 1),
        rollouts=rollouts,
        prompt_length=prompt_length,
        length=length,
        free=int(0.9 * memory - held / (fsdp * tensor)),
        itemsize=dtype.itemsize,
        remat=update.remat,
    )


def chunks(state: TrainState, batch: PolicyBatch, config: Any, update: options.Update, compute: str | None) -> int:
    """``update.chunks``, or as many as the memory of the device asks for in an update of ``batch``.

    Raises:
      ValueError: if the rollouts of a prompt cannot be cut into ``update.chunks``.
    """
    P, G, T = batch.tokens.shape
    if update.chunks:
        if G % update.chunks:
            raise ValueError(f"got update.chunks={update.chunks} for {G} rollouts; wanted a divisor of {G}")
        return update.chunks
    mesh = jax.sharding.get_abstract_mesh()
    stats = jax.local_devices()[0].memory_stats() or {}
    return automatic_chunks(
        config,
        update,
        state.params,
        state.moments,
        prompts=P // update.mini_batches,
        rollouts=G,
        prompt_length=batch.prompt.tokens.shape[1],
        length=T,
        devices=(1, 1) if mesh.empty else (mesh.shape["fsdp"], mesh.shape["tensor"]),
        memory=stats.get("bytes_limit", MEMORY),
        compute=compute,
    )


@functools.partial(
    jax.jit, static_argnames=("config", "optim", "steps", "remat", "freeze", "compute"), donate_argnums=0
)
def supervised_step(
    state: TrainState,
    prompt: models.Prompt,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    config: Any,
    optim: options.Optim,
    steps: int,
    remat: bool = False,
    freeze: tuple[str, ...] = (),
    compute: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update towards the reference completions ``tokens`` (P, 1, T): mean negative log-likelihood of a token."""
    total = mask.sum()

    def loss(logprobs, part):
        return -jnp.where(part["mask"], logprobs, 0.0).sum() / total, {"tokens": part["mask"].sum()}

    trained, frozen = lora.trainable(cast(state.params, compute), freeze)
    plan = staged.Plan(config, remat=remat)
    grads, metrics = staged.gradients(loss, trained, frozen, prompt, {"tokens": tokens, "mask": mask}, plan)
    return _descend(state, grads, metrics, optim, steps, freeze)


@functools.partial(
    jax.jit,
    static_argnames=("config", "update", "optim", "temperature", "steps", "freeze", "compute"),
    donate_argnums=0,
)
def policy_step(
    state: TrainState,
    batch: PolicyBatch,
    index: jax.Array,
    *,
    config: Any,
    update: options.Update,
    optim: options.Optim,
    temperature: float,
    steps: int,
    freeze: tuple[str, ...] = (),
    compute: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One clipped update on mini-batch ``index`` of the rollout batch; returns the state and scalar metrics.

    Low-rank adapters are trained alone where the parameters have any; parameters that match ``freeze`` never are
    (``lora.trainable``).  What is not trained gets no gradient and has no moments.  With ``update.beta`` the loss is
    policy loss + beta * (KL to the reference, aggregated alike).  The passes run in the dtype ``compute`` (``cast``);
    gradients are summed in the dtype of the parameters, or wider, and AdamW runs in float32.

    The metrics are those of ``losses.policy_loss``, its ``kl`` named ``kl_old``; ``kl``, the mean KL of a token to the
    reference, with ``update.beta``; ``mismatch`` of the policy before its first update to the sampler, which
    ``update.importance`` corrects, and the mean and
    the capped share of its weights; ``padding_share`` (``staged.gradients``).

    Raises:
      ValueError: if ``update.chunks`` does not divide the rollouts, or ``update.beta`` has no reference.
    """
    if update.beta and batch.reference_logprobs is None:
        raise ValueError(f"got update.beta={update.beta} without reference_logprobs; wanted them: learner.score(...)")
    count = chunks(state, batch, config, update, compute)
    batch = jax.tree.map(lambda x: staged.strided(x, update.mini_batches)[index], batch)
    total = losses.denominator(batch.mask, update.aggregation)
    length = batch.tokens.shape[-1] if update.aggregation == "constant" else None
    aggregate: dict = dict(aggregation=update.aggregation, max_length=length, normalizer=total)

    def loss(logprobs, part):
        old, mask = part.get("old_logprobs", jax.lax.stop_gradient(logprobs)), part["mask"]
        clip = dict(clip_low=update.clip_low, clip_high=update.clip_high, dual_clip=update.dual_clip)
        weights, corrected = None, {}
        if update.importance != "none":
            weights, corrected = losses.importance_weights(
                old, part["sampler_logprobs"], mask, level=update.importance, cap=update.importance_cap
            )
        value, metrics = losses.policy_loss(
            logprobs, old, part["advantages"], mask, weights=weights, kind=update.kind, **clip, **aggregate
        )
        metrics |= {name: corrected[name] for name in ("weight_mean", "weight_capped") if corrected}
        metrics["kl_old"] = metrics.pop("kl")
        tokens = jnp.maximum(metrics["tokens"], 1)
        if update.beta:
            kl = losses.kl(logprobs, part["reference_logprobs"], estimator=update.kl_estimator, mask=mask)
            value += update.beta * losses.aggregate(kl, mask, **aggregate)
            metrics["kl"] = kl.sum() / tokens
        apart = jnp.where(mask, jnp.abs(old - part["sampler_logprobs"]), 0.0)
        return value, metrics | {"mismatch": apart.sum() / tokens}

    trained, frozen = lora.trainable(cast(state.params, compute), freeze)
    plan = staged.Plan(config, update.accumulation, count, temperature, update.remat)
    grads, metrics = staged.gradients(loss, trained, frozen, batch.prompt, batch.rollouts, plan)
    return _descend(state, grads, metrics, optim, steps, freeze)


def _descend(
    state: TrainState, grads: dict, metrics: dict, optim: options.Optim, steps: int, freeze: tuple[str, ...]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of AdamW on what is trained."""
    trained, frozen = lora.trainable(state.params, freeze)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
    factor = jnp.minimum(1.0, optim.max_grad_norm / (norm + 1e-6))
    grads = jax.tree.map(lambda g: g * factor, grads)
    updates, moments = optimizer(optim, steps).update(grads, state.moments, trained)
    params = mesh.keep_sharded(lora.join(optax.apply_updates(trained, updates), frozen))
    state = dataclasses.replace(state, params=params, moments=mesh.keep_sharded(moments), step=state.step + 1)
    return state, metrics | {"optim/grad_norm": norm}
