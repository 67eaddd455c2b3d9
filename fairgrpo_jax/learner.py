"""Updates: the supervised step and the policy step.

Both sum the gradients of pieces of a batch, which wait on the host and may differ in the length of their prompts, under
one denominator of the whole batch; then AdamW is applied to donated, sharded buffers. The gradient of a piece is taken
in stages (``fairgrpo_jax.staged``): a prompt runs once, its completions chunk by chunk against its keys and values.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from fairgrpo_jax import config as options, hosts, losses, mesh, models, staged
from fairgrpo_jax.estimators import Memory
from fairgrpo_jax.models import lora
from fairgrpo_jax.models.remat import Remat


# Leaves with weight decay: linear maps, convolutions, tables of tokens and positions, adapters.
DECAYED = ("kernel", "embedding", "position", "lora_a", "lora_b")


@struct.dataclass
class TrainState:
    """Everything that training changes; the only owner of the parameters."""

    params: Any
    moments: Any  # optimizer state
    step: jax.Array  # () int32, updates of the current stage
    memory: Memory  # statistics kept beside the weights


@struct.dataclass
class PolicyBatch:
    """A rollout batch with its advantages, on the host or the devices; the input of the policy step, in pieces."""

    prompt: models.Prompt  # P prompts
    tokens: Any  # (P, G, T) int32
    mask: Any  # (P, G, T) bool
    sampler_logprobs: Any  # (P, G, T) float32
    advantages: Any  # (P, G) float32
    old_logprobs: Any = None  # (P, G, T) of the learner; None with one update per rollout batch
    reference_logprobs: Any = None  # (P, G, T) of the reference; None without a KL term

    @property
    def rollouts(self) -> staged.Rollouts:
        """Every field but ``prompt`` that is not None."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: x for name, x in fields.items() if name != "prompt" and x is not None}


@struct.dataclass
class SupervisedBatch:
    """Prompts with their reference completions, the input of the supervised step."""

    prompt: models.Prompt  # P prompts
    tokens: Any  # (P, 1, T) int32
    mask: Any  # (P, 1, T) bool


def take(batch: Any, rows: Any) -> Any:
    """Selects rows of a batch, axis 0 of every array."""
    return jax.tree.map(lambda x: x[rows], batch)


def split(batch: Any, parts: int) -> list[Any]:
    """Splits a batch, axis 0 of every array, into equal parts: part j has the rows j, j + parts, ..."""
    return [take(batch, slice(part, None, parts)) for part in range(parts)]


def optimizer(optim: options.Optim, steps: int) -> optax.GradientTransformation:
    """AdamW with the schedule of ``optim`` over ``steps`` updates; gradient clipping is done in the step itself.

    Moments and updates are float32, whatever the dtype of the parameters, but for a first moment in bfloat16
    (``optim.first_moment``); the second would stop growing there far below the square of the gradient.
    """
    adam = optax.adamw(
        schedule(optim, steps),
        b1=optim.b1,
        b2=optim.b2,
        mu_dtype=optim.first_moment,
        weight_decay=optim.weight_decay,
        mask=_decayed,
    )

    update: Any = lambda grads, moments, params: adam.update(_full(grads), moments, _full(params))
    return optax.GradientTransformation(lambda params: adam.init(_full(params)), update)


def schedule(optim: options.Optim, steps: int) -> optax.Schedule:
    """The learning rate of each of ``steps`` updates; a warm-up that is not shorter ends with the last of them."""
    rise = min(optim.warmup_steps, max(steps - 1, 0))
    if optim.schedule == "cosine":
        after = optax.cosine_decay_schedule(optim.lr, max(steps - rise, 1))
    else:
        after = optax.constant_schedule(optim.lr)
    return optax.join_schedules([optax.linear_schedule(0.0, optim.lr, max(rise, 1)), after], [rise])


def _full(params: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), params)


def _decayed(params: dict) -> dict:
    """Marks the leaves with weight decay; by name, because the layers' vectors are stacked into matrices."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key in DECAYED, params)


@functools.partial(jax.jit, static_argnames=("optim", "steps", "freeze"))
def fresh_moments(params: Any, *, optim: options.Optim, steps: int, freeze: tuple[str, ...] = ()) -> Any:
    """Initial optimizer state, sharded like the parameters; see ``lora.trainable``."""
    return mesh.keep_sharded(optimizer(optim, steps).init(lora.trainable(params, freeze)[0]))


def completion_logprobs(
    params: Any,
    architecture: Any,
    prompt: models.Prompt,
    tokens: jax.Array,
    *,
    temperature: float = 1.0,
    remat: Remat = False,
) -> jax.Array:
    """Log-probabilities (P, G, T) of the completions' tokens, each prompt run once for its G completions.

    The first token is predicted by the prompt's last valid position, token t by token t - 1.
    """
    plan = staged.Plan(architecture, temperature=temperature, remat=remat)
    return staged.completion_logprobs(params, prompt, staged.prompt_ends(params, prompt, plan), tokens, plan)


def with_logprobs(
    params: Any,
    piece: PolicyBatch,
    *,
    architecture: Any,
    temperature: float,
    remat: Remat = False,
    compute: str | None = None,
    chunks: int = 1,
    policy: Literal["old", "reference"] = "old",
    place: Callable[[Any], Any] = jnp.asarray,
) -> PolicyBatch:
    """Returns a piece of a batch with the log-probabilities of its tokens under ``params``, 0 where masked.

    Args:
        params: the learner's before its first update, or the ``reference`` made from them.
        piece: P prompts, G rollouts each.
        architecture: the model's architecture.
        temperature: temperature of the policy.
        remat: as in the update; no gradient is computed here.
        compute: see ``cast``.
        chunks: number of chunks of each prompt's rollouts, a divisor of G.
        policy: which field they become, ``old_logprobs`` or ``reference_logprobs``; on the host.
        place: moves arrays of the host to the devices.
    """
    plan = staged.Plan(architecture, chunks, temperature, remat)
    prompt, rollouts = jax.tree.map(place, (piece.prompt, {name: piece.rollouts[name] for name in ("tokens", "mask")}))
    logprobs = _logprobs(params, prompt, rollouts, plan, compute)
    return dataclasses.replace(piece, **{f"{policy}_logprobs": mesh.fetch(logprobs)})


@functools.partial(jax.jit, static_argnames=("plan", "compute"))
def _logprobs(params: Any, prompt: Any, rollouts: Any, plan: staged.Plan, compute: str | None) -> jax.Array:
    return staged.logprobs(cast(params, compute), prompt, rollouts, plan)


def reference(params: dict) -> dict:
    """The reference policy of the KL term: a copy of these parameters in bfloat16, with the same sharding.

    Parameters with low-rank adapters are returned without the adapters and without a copy: call it again after an
    update, which consumes its buffers. If the adapters were trained before reinforcement learning, this is the policy
    before that.

    Args:
        params: nested dict.

    Returns:
        A nested dict; without adapters, a copy that survives the updates.

    >>> copy = reference({"norm": jnp.ones(3)})
    >>> copy["norm"].dtype.name
    'bfloat16'
    """
    return lora.trainable(params)[1] if lora.has(params) else _half(params)


@jax.jit
def _half(params: dict) -> dict:
    return mesh.keep_sharded(jax.tree.map(lambda x: jnp.array(x, jnp.bfloat16, copy=True), params))


def cast(params: Any, compute: str | None) -> Any:
    """Casts the parameters to the dtype of a pass ("float32" or "bfloat16"), before they are gathered; None: unchanged.

    >>> cast({"norm": jnp.ones(3)}, "bfloat16")["norm"].dtype.name
    'bfloat16'
    """
    return params if compute is None else mesh.keep_sharded(jax.tree.map(lambda x: x.astype(compute), params))


def supervised_step(
    state: TrainState,
    pieces: Sequence[SupervisedBatch],
    *,
    architecture: Any,
    optim: options.Optim,
    steps: int,
    remat: Remat = False,
    freeze: tuple[str, ...] = (),
    compute: str | None = None,
    place: Callable[[Any], Any] = jnp.asarray,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update on the mean negative log-likelihood per token of the reference completions.

    Args:
        state: donated.
        pieces: parts of a batch; more of them save memory and change nothing else.
        architecture: the model's architecture.
        optim: options of the optimizer.
        steps: number of updates of the stage, for the schedule.
        remat: whether activations are recomputed.
        freeze: see ``lora.trainable``.
        compute: see ``cast``.
        place: moves arrays of the host to the devices.
    """
    total = np.float32(hosts.total(float(sum(np.sum(piece.mask) for piece in pieces))))
    gradient = functools.partial(
        supervised_gradient, plan=staged.Plan(architecture, remat=remat), freeze=freeze, compute=compute
    )
    return descend(state, _summed(state.params, pieces, gradient, total, freeze, place), optim, steps, freeze)


@functools.partial(jax.jit, static_argnames=("plan", "freeze", "compute"), donate_argnames="sums")
def supervised_gradient(
    params: Any,
    sums: Any,
    piece: SupervisedBatch,
    total: jax.Array,
    *,
    plan: staged.Plan,
    freeze: tuple[str, ...],
    compute: str | None,
) -> tuple[Any, dict[str, jax.Array]]:
    """Adds the gradient of a piece of a batch of ``total`` tokens to ``sums``; as ``policy_gradient``."""

    def loss(logprobs, part):
        return -jnp.where(part["mask"], logprobs, 0.0).sum() / total, {"tokens": part["mask"].sum()}

    trained, frozen = lora.trainable(cast(params, compute), freeze)
    return staged.gradients(
        loss, trained, frozen, piece.prompt, {"tokens": piece.tokens, "mask": piece.mask}, plan, sums
    )


def policy_step(
    state: TrainState,
    pieces: Sequence[PolicyBatch],
    *,
    architecture: Any,
    update: options.Update,
    optim: options.Optim,
    temperature: float,
    steps: int,
    freeze: tuple[str, ...] = (),
    compute: str | None = None,
    place: Callable[[Any], Any] = jnp.asarray,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One clipped update on a mini-batch; returns the state and scalar metrics.

    If the parameters have low-rank adapters, only these are trained; parameters that match ``freeze`` never are
    (``lora.trainable``). Frozen parameters get no gradient and have no moments. With ``update.beta`` the loss is policy
    loss + beta * (KL to the reference, aggregated in the same way). The passes run in the dtype ``compute`` (``cast``);
    gradients are summed in the dtype of the parameters, or wider, and AdamW runs in float32.

    The metrics are those of ``losses.policy_loss``, its ``kl`` named ``kl_old``; ``kl``, the mean KL of a token to the
    reference, with ``update.beta``; ``mismatch`` between the policy before its first update and the sampler, which
    ``update.importance`` corrects, and the mean and the capped share of its weights; ``padding_share``
    (``staged.combined``).

    Args:
        state: donated.
        pieces: the micro-batches of the mini-batch. A piece is moved to the devices when its turn comes, while the one
            before is computed.
        architecture: the model's architecture.
        update: of which ``chunks`` of 0 are 1; ``mini_batches``, ``passes`` and ``accumulation`` are the caller's.
        optim: options of the optimizer.
        temperature: temperature of the policy.
        steps: number of updates of the stage, for the schedule.
        freeze: see ``lora.trainable``.
        compute: see ``cast``.
        place: moves arrays of the host to the devices.

    Raises:
        ValueError: if ``update.chunks`` does not divide the rollouts, or ``update.beta`` has no reference.
    """
    if update.beta and any(piece.reference_logprobs is None for piece in pieces):
        raise ValueError(
            f"got update.beta={update.beta} without reference_logprobs; wanted them: learner.with_logprobs(...)"
        )
    rollouts = pieces[0].tokens.shape[1]
    if rollouts % max(update.chunks, 1):
        raise ValueError(f"got update.chunks={update.chunks} for {rollouts} rollouts; wanted a divisor of {rollouts}")
    total = np.float32(hosts.total(float(sum(losses.denominator(piece.mask, update.aggregation) for piece in pieces))))
    gradient = functools.partial(
        policy_gradient,
        plan=staged.Plan(architecture, max(update.chunks, 1), temperature, update.remat),
        update=update,
        freeze=freeze,
        compute=compute,
    )
    return descend(state, _summed(state.params, pieces, gradient, total, freeze, place), optim, steps, freeze)


@functools.partial(jax.jit, static_argnames=("plan", "update", "freeze", "compute"), donate_argnames="sums")
def policy_gradient(
    params: Any,
    sums: Any,
    piece: PolicyBatch,
    total: jax.Array,
    *,
    plan: staged.Plan,
    update: options.Update,
    freeze: tuple[str, ...] = (),
    compute: str | None = None,
) -> tuple[Any, dict[str, jax.Array]]:
    """Adds the gradient of a piece of a mini-batch to ``sums`` (donated); returns it and the metrics by chunk.

    Args:
        params: the parameters.
        sums: float32 gradients of other pieces; None for the first.
        piece: P prompts.
        total: () float32, the denominator of the whole mini-batch.
        plan: how the passes are run.
        update: options of the loss.
        freeze: see ``lora.trainable``.
        compute: see ``cast``.
    """
    length = piece.tokens.shape[-1] if update.aggregation == "constant" else None
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
            sampled = old if update.kl_ratio else None
            kl = losses.kl(
                logprobs, part["reference_logprobs"], estimator=update.kl_estimator, mask=mask, old_logprobs=sampled
            )
            value += update.beta * losses.aggregate(kl, mask, **aggregate)
            metrics["kl"] = kl.sum() / tokens
        apart = jnp.where(mask, jnp.abs(old - part["sampler_logprobs"]), 0.0)
        return value, metrics | {"mismatch": apart.sum() / tokens}

    trained, frozen = lora.trainable(cast(params, compute), freeze)
    return staged.gradients(loss, trained, frozen, piece.prompt, piece.rollouts, plan, sums)


def _summed(
    params: Any,
    pieces: Sequence[Any],
    gradient: Callable[..., tuple[Any, Any]],
    total: np.float32,
    freeze: tuple[str, ...],
    place: Callable[[Any], Any],
) -> tuple[Any, list[dict[str, jax.Array]]]:
    """The summed gradients of all pieces, and their metrics; at most two pieces are on the devices."""
    sums = None if len(pieces) == 1 else _zeros(params, freeze)
    found: list[dict[str, jax.Array]] = []
    for piece in pieces:
        jax.block_until_ready(found[-2:-1])
        sums, metrics = gradient(params, sums, jax.tree.map(place, piece), total)
        found.append(metrics)
    return sums, found


@functools.partial(jax.jit, static_argnames="freeze")
def _zeros(params: Any, freeze: tuple[str, ...]) -> Any:
    return mesh.keep_sharded(staged.zeros(lora.trainable(params, freeze)[0]))


@functools.partial(jax.jit, static_argnames=("optim", "steps", "freeze"), donate_argnums=0)
def descend(
    state: TrainState,
    gradient: tuple[Any, list[dict[str, jax.Array]]],
    optim: options.Optim,
    steps: int,
    freeze: tuple[str, ...],
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Applies one AdamW step to the trained parameters; also combines the metrics of the pieces."""
    grads, metrics = gradient
    trained, frozen = lora.trainable(state.params, freeze)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
    factor = jnp.minimum(1.0, optim.max_grad_norm / (norm + 1e-6))
    grads = jax.tree.map(lambda g: g * factor, grads)
    updates, moments = optimizer(optim, steps).update(grads, state.moments, trained)
    params = mesh.keep_sharded(lora.join(optax.apply_updates(trained, updates), frozen))
    state = dataclasses.replace(state, params=params, moments=mesh.keep_sharded(moments), step=state.step + 1)
    return state, staged.combined(metrics) | {"optim/grad_norm": norm}
