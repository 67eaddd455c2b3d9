"""The jitted updates: the supervised step and the policy step.

Both take their gradients in stages (``fairgrpo_jax.staged``): a prompt runs once, its completions chunk by chunk
against its keys and values, under one global denominator. AdamW is applied to donated, sharded buffers.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct

from fairgrpo_jax import chunking, config as options, losses, mesh, models, staged
from fairgrpo_jax.estimators import Memory
from fairgrpo_jax.models import lora


# Leaves that weight decay reaches: linear maps, convolutions, tables of tokens and positions, adapters.
DECAYED = ("kernel", "embedding", "position", "lora_a", "lora_b")


@struct.dataclass
class TrainState:
    """All that training changes; the only owner of the parameters."""

    params: Any
    moments: Any  # optimizer state
    step: jax.Array  # () int32, updates of the present stage
    memory: Memory  # what is learned beside the weights


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
        """Every field but ``prompt`` that is not None."""
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

    update: Any = lambda grads, moments, params: adam.update(_full(grads), moments, _full(params))
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
    params: Any,
    architecture: Any,
    prompt: models.Prompt,
    tokens: jax.Array,
    *,
    temperature: float = 1.0,
    remat: bool = False,
) -> jax.Array:
    """Log-probabilities (P, G, T) of the completions' tokens, each prompt run once for its G completions.

    The first token is predicted by the prompt's last valid position, token t by token t - 1.
    """
    plan = staged.Plan(architecture, temperature=temperature, remat=remat)
    return staged.completion_logprobs(params, prompt, staged.prompt_ends(params, prompt, plan), tokens, plan)


@functools.partial(
    jax.jit, static_argnames=("architecture", "temperature", "remat", "compute", "parts", "chunks", "policy")
)
def with_logprobs(
    params: Any,
    batch: PolicyBatch,
    *,
    architecture: Any,
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
        architecture: the model.
        temperature: of the policy.
        remat: as in the update; nothing is differentiated here.
        compute: see ``cast``.
        parts: micro-batches of the prompts, a divisor of P.
        chunks: of the rollouts of each prompt, a divisor of G.
        policy: whose they are: they become ``old_logprobs`` or ``reference_logprobs``.
    """
    plan = staged.Plan(architecture, parts, chunks, temperature, remat)
    logprobs = staged.logprobs(cast(params, compute), batch.prompt, batch.rollouts, plan)
    return dataclasses.replace(batch, **{f"{policy}_logprobs": logprobs})


def reference(params: dict) -> dict:
    """The policy that a KL term holds the trained one to: these parameters in bfloat16, sharded alike.

    Parameters with low-rank adapters are returned without them, and nothing is copied: ask again after an update, which
    consumes its buffers. If the adapters were trained before reinforcement learning, this is the policy before that.

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


@functools.partial(
    jax.jit, static_argnames=("architecture", "optim", "steps", "remat", "freeze", "compute", "parts"), donate_argnums=0
)
def supervised_step(
    state: TrainState,
    prompt: models.Prompt,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    architecture: Any,
    optim: options.Optim,
    steps: int,
    remat: bool = False,
    freeze: tuple[str, ...] = (),
    compute: str | None = None,
    parts: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update towards the reference completions ``tokens`` (P, 1, T): mean negative log-likelihood of a token.

    ``parts`` micro-batches, a divisor of P, need less memory and change nothing else.
    """
    total = mask.sum()

    def loss(logprobs, part):
        return -jnp.where(part["mask"], logprobs, 0.0).sum() / total, {"tokens": part["mask"].sum()}

    trained, frozen = lora.trainable(cast(state.params, compute), freeze)
    plan = staged.Plan(architecture, parts, remat=remat)
    grads, metrics = staged.gradients(loss, trained, frozen, prompt, {"tokens": tokens, "mask": mask}, plan)
    return _descend(state, grads, metrics, optim, steps, freeze)


@functools.partial(
    jax.jit,
    static_argnames=("architecture", "update", "optim", "temperature", "steps", "freeze", "compute"),
    donate_argnums=0,
)
def policy_step(
    state: TrainState,
    batch: PolicyBatch,
    index: jax.Array,
    *,
    architecture: Any,
    update: options.Update,
    optim: options.Optim,
    temperature: float,
    steps: int,
    freeze: tuple[str, ...] = (),
    compute: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One clipped update on mini-batch ``index`` of the rollout batch; returns the state and scalar metrics.

    Low-rank adapters are trained alone where the parameters have any; parameters that match ``freeze`` never are
    (``lora.trainable``). What is not trained gets no gradient and has no moments. With ``update.beta`` the loss is
    policy loss + beta * (KL to the reference, aggregated alike). The passes run in the dtype ``compute`` (``cast``);
    gradients are summed in the dtype of the parameters, or wider, and AdamW runs in float32.

    The metrics are those of ``losses.policy_loss``, its ``kl`` named ``kl_old``; ``kl``, the mean KL of a token to the
    reference, with ``update.beta``; ``mismatch`` of the policy before its first update to the sampler, which
    ``update.importance`` corrects, and the mean and
    the capped share of its weights; ``padding_share`` (``staged.gradients``).

    Raises:
        ValueError: if ``update.chunks`` does not divide the rollouts, or ``update.beta`` has no reference.
    """
    if update.beta and batch.reference_logprobs is None:
        raise ValueError(
            f"got update.beta={update.beta} without reference_logprobs; wanted them: learner.with_logprobs(...)"
        )
    count = chunking.chunks(state.params, batch, architecture, update, compute=compute, freeze=freeze)
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
    plan = staged.Plan(architecture, update.accumulation, count, temperature, update.remat)
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
