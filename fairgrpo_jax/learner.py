"""The jitted updates: the supervised step and the policy step.

Both run a prompt once and its completions against its keys and values (``completion_logprobs``), sum gradients over
strided micro-batches under one global denominator, and apply AdamW to donated, sharded buffers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from fairgrpo_jax import config as options, losses, mesh, models
from fairgrpo_jax.fairness import FairnessState
from fairgrpo_jax.models import decoder, lora


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


def optimizer(optim: options.Optim, steps: int) -> optax.GradientTransformation:
    """AdamW with the schedule of ``optim`` over ``steps`` updates; gradient clipping is done in the step itself."""
    rise = min(optim.warmup_steps, max(steps - 1, 0))
    if optim.schedule == "cosine":
        after = optax.cosine_decay_schedule(optim.lr, max(steps - rise, 1))
    else:
        after = optax.constant_schedule(optim.lr)
    schedule = optax.join_schedules([optax.linear_schedule(0.0, optim.lr, max(rise, 1)), after], [rise])
    matrices = functools.partial(jax.tree.map, lambda p: p.ndim >= 2)
    return optax.adamw(schedule, b1=optim.b1, b2=optim.b2, weight_decay=optim.weight_decay, mask=matrices)


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
    hidden, prompt_kv = decoder.prompt_pass(params, config, prompt, remat=remat)
    P, G, T = tokens.shape
    first = decoder.last_hidden(prompt, hidden)[:, None, None]
    states = jnp.broadcast_to(first, (P, G, 1, first.shape[-1]))
    if T > 1:
        rest = decoder.completion_pass(params, config, prompt, prompt_kv, tokens[..., :-1], remat=remat)
        states = jnp.concatenate([states, rest], axis=2)
    return decoder.log_probs(params, config, states, tokens, temperature=temperature)


@functools.partial(jax.jit, static_argnames=("config", "temperature", "remat"))
def score(params: Any, batch: PolicyBatch, *, config: Any, temperature: float, remat: bool = False) -> PolicyBatch:
    """The batch with the learner's own log-probabilities before its first update as ``old_logprobs``."""
    logprobs = completion_logprobs(params, config, batch.prompt, batch.tokens, temperature=temperature, remat=remat)
    return dataclasses.replace(batch, old_logprobs=logprobs)


@functools.partial(jax.jit, static_argnames=("config", "optim", "steps", "remat", "freeze"), donate_argnums=0)
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
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update towards the reference completions ``tokens`` (P, 1, T): mean negative log-likelihood of a token."""
    total = mask.sum()

    def loss(params, part):
        prompt, tokens, mask = part
        logprobs = completion_logprobs(params, config, prompt, tokens, remat=remat)
        return -jnp.where(mask, logprobs, 0.0).sum() / total, {"tokens": mask.sum()}

    return _update(state, loss, (prompt, tokens, mask), 1, optim, steps, freeze)


@functools.partial(
    jax.jit, static_argnames=("config", "update", "optim", "temperature", "steps", "freeze"), donate_argnums=0
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
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One clipped update on mini-batch ``index`` of the rollout batch; returns the state and scalar metrics.

    Low-rank adapters are trained alone where the parameters have any; parameters that match ``freeze`` never are
    (``lora.trainable``).  What is not trained gets no gradient and has no moments.
    """
    batch = jax.tree.map(lambda x: _strided(x, update.mini_batches)[index], batch)
    total = losses.denominator(batch.mask, update.aggregation)

    def loss(params, part):
        logprobs = completion_logprobs(
            params, config, part.prompt, part.tokens, temperature=temperature, remat=update.remat
        )
        old = jax.lax.stop_gradient(logprobs) if part.old_logprobs is None else part.old_logprobs
        value, metrics = losses.policy_loss(
            logprobs,
            old,
            part.advantages,
            part.mask,
            kind=update.kind,
            clip_low=update.clip_low,
            clip_high=update.clip_high,
            dual_clip=update.dual_clip,
            aggregation=update.aggregation,
            max_length=part.tokens.shape[-1] if update.aggregation == "constant" else None,
            normalizer=total,
        )
        apart = jnp.where(part.mask, jnp.abs(logprobs - part.sampler_logprobs), 0.0)
        return value, metrics | {"mismatch": apart.sum() / jnp.maximum(metrics["tokens"], 1)}

    return _update(state, loss, batch, update.accumulation, optim, steps, freeze)


def _strided(x: jax.Array, parts: int) -> jax.Array:
    """(P, ...) to (parts, P / parts, ...), part j holding rows j, j + parts, ...: every prompt stays on its device."""
    split = jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)
    if jax.sharding.get_abstract_mesh().empty:
        return split
    return jax.lax.with_sharding_constraint(split, jax.sharding.PartitionSpec(None, "fsdp"))


def _gradients(loss: Callable, params: Any, batch: Any, parts: int) -> tuple[Any, dict[str, jax.Array]]:
    """Gradient and metrics of ``loss`` over ``parts`` micro-batches; the loss itself divides by global totals."""
    gradient = jax.value_and_grad(loss, has_aux=True)

    def one(part):
        (value, metrics), grads = gradient(params, part)
        return grads, {"loss": value} | metrics

    if parts == 1:
        return one(batch)

    def add(sums, part):
        grads, metrics = one(part)
        return jax.tree.map(jnp.add, sums, grads), metrics

    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, metrics = jax.lax.scan(add, zeros, jax.tree.map(lambda x: _strided(x, parts), batch))
    share = metrics["tokens"] / jnp.maximum(metrics["tokens"].sum(), 1)
    combined = {name: (values * share).sum() for name, values in metrics.items()}
    combined |= {name: metrics[name].sum() for name in ("loss", "tokens")}
    if "ratio_max" in metrics:
        combined["ratio_max"] = metrics["ratio_max"].max()
    return grads, combined


def _update(
    state: TrainState, loss: Callable, batch: Any, parts: int, optim: options.Optim, steps: int, freeze: tuple[str, ...]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of AdamW on what is trained."""
    trained, frozen = lora.trainable(state.params, freeze)
    grads, metrics = _gradients(lambda part, *rest: loss(lora.join(part, frozen), *rest), trained, batch, parts)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
    grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, optim.max_grad_norm / (norm + 1e-6)), grads)
    updates, moments = optimizer(optim, steps).update(grads, state.moments, trained)
    params = mesh.keep_sharded(lora.join(optax.apply_updates(trained, updates), frozen))
    state = dataclasses.replace(state, params=params, moments=mesh.keep_sharded(moments), step=state.step + 1)
    return state, metrics | {"optim/grad_norm": norm}
