"""Policy losses over tokens: the clipped surrogate, its aggregation, and KL estimators.

Token arrays are (..., T), for instance (P, G, T); per-rollout arrays are (...), for instance (P, G).  Whatever stands
at masked positions, infinities and NaN included, touches neither value nor gradient.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike


Aggregation = Literal["token", "sequence", "constant"]
MAX_LOG_RATIO = 20.0  # beyond it exp() overflows into a NaN gradient; a ratio of e^20 is long clipped


def policy_loss(
    logprobs: ArrayLike,
    old_logprobs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    kind: Literal["clip"] = "clip",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    aggregation: Aggregation = "token",
    max_length: int | None = None,
    normalizer: ArrayLike | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clipped surrogate loss of a batch of rollouts, to be minimised.

    With ratio = exp(logprobs - old_logprobs), per token
      l = -min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A),  and where A < 0: l = min(l, -dual_clip A).

    Aggregation, with m the mask and N the ``normalizer``:
      ``"token"``     sum of l m / N,                              N = number of tokens;
      ``"sequence"``  sum over rollouts of (mean of l over its tokens) / N,      N = number of rollouts;
      ``"constant"``  sum of l m / (max_length N),                 N = number of rollouts.
    Rollouts without a token (padding) are not counted.

    Args:
      logprobs: (..., T) natural log-probabilities of the sampled tokens under the policy being trained.
      old_logprobs: (..., T) the same under the policy that the ratio starts from; no gradient.
      advantages: (...) one advantage a rollout; no gradient.
      mask: (..., T) true or 1 for sampled tokens, the end token included; false or 0 for padding.
      kind: ``"clip"``, the ratio of single tokens.
      clip_low: in [0, 1]; how far the ratio may fall where A < 0 before the gradient stops.
      clip_high: >= 0; how far it may rise where A > 0.
      dual_clip: > 1, or None for no bound on the loss of A < 0.
      aggregation: see above.
      max_length: tokens; the constant length of ``"constant"``.
      normalizer: N of the whole optimizer batch, from ``denominator``.  The losses of micro-batches that were given
        the same N add up exactly to the loss of the whole.  None counts this batch alone.

    Returns:
      the scalar loss, and metrics over the tokens of this batch: ``clip_low``, ``clip_high`` and ``dual_clip``, the
      shares of tokens whose gradient each bound stops; ``ratio_mean``, ``ratio_max``; ``kl``, the k3 estimate of
      KL(old || new); ``tokens``, their number (weigh by it when averaging micro-batches).  Without tokens all are 0.

    Raises:
      ValueError: if shapes disagree, or an option is out of range.

    Source: Schulman et al. 2017, PPO (arXiv 1707.06347), equation 7; asymmetric bounds: Yu et al. 2025, DAPO (arXiv
    2503.14476), equation 8; dual clip: Ye et al. 2019 (arXiv 1912.09729), equation 5; constant length: Liu et al. 2025
    (arXiv 2503.20783).  The FairGRPO paper writes ``"sequence"``; the authors' code runs ``"token"`` with dual_clip 3.
    The log-ratio is limited to +-20, as that code does.

    >>> loss, metrics = policy_loss(
    ...     jnp.log(jnp.array([[0.5, 0.9]])), jnp.log(jnp.array([[0.5, 0.6]])), jnp.array([1.0]), jnp.array([[1, 1]])
    ... )
    >>> round(float(loss), 4), float(metrics["clip_high"])
    (-1.1, 0.5)
    """
    logprobs, old_logprobs, advantages, mask = map(jnp.asarray, (logprobs, old_logprobs, advantages, mask))
    _check(logprobs, old_logprobs, advantages, mask)
    _check_options(kind, clip_low, clip_high, dual_clip, aggregation, max_length)
    mask = mask.astype(bool)
    advantage = jax.lax.stop_gradient(_wide(advantages))[..., None]
    log_ratio = _masked(logprobs, mask) - jax.lax.stop_gradient(_masked(old_logprobs, mask))
    log_ratio = jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    surrogate = -jnp.minimum(ratio * advantage, clipped * advantage)
    loss = surrogate
    if dual_clip is not None:
        loss = jnp.where(advantage < 0, jnp.minimum(surrogate, -dual_clip * advantage), surrogate)

    metrics = _metrics(ratio, log_ratio, mask)
    metrics |= {
        "clip_low": _mean((advantage < 0) & (ratio < 1 - clip_low), mask),
        "clip_high": _mean((advantage > 0) & (ratio > 1 + clip_high), mask),
        "dual_clip": _mean(loss < surrogate, mask),
    }
    return _aggregate(loss, mask, aggregation, max_length, normalizer), metrics


def denominator(mask: ArrayLike, aggregation: Aggregation = "token") -> jax.Array:
    """What a batch adds to the ``normalizer`` of ``policy_loss``: its tokens, or its rollouts that have any.

    Sum it over all micro-batches (and processes) of an optimizer step.  (..., T) mask to a float32 scalar.

    >>> mask = jnp.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    >>> float(denominator(mask)), float(denominator(mask, "sequence"))
    (3.0, 2.0)
    """
    mask = jnp.asarray(mask).astype(bool)
    counted = mask if aggregation == "token" else jnp.any(mask, axis=-1)
    return jnp.sum(counted, dtype=jnp.float32)


def kl(
    logprobs: ArrayLike,
    reference: ArrayLike,
    *,
    estimator: Literal["k1", "k2", "k3"] = "k3",
    mask: ArrayLike | None = None,
) -> jax.Array:
    """Per-token estimate of KL(policy || reference) from tokens sampled by the policy.

    With d = logprobs - reference:  k1 = d,  k2 = d^2 / 2,  k3 = exp(-d) - 1 + d.

    k1 and k3 are unbiased as values, k2 is not; k2 and k3 are never negative.  As a loss on the policy's own samples
    only the gradient of k2 is that of KL(policy || reference): the gradient of k1 has mean 0, and that of k3 is the
    gradient of KL(reference || policy).

    Args:
      logprobs: (..., T) natural log-probabilities under the policy.
      reference: (..., T) the same tokens under the reference; no gradient.
      estimator: which of the three.
      mask: (..., T); where it is false the result is 0 and has no gradient, whatever the inputs hold there.

    Returns:
      (..., T) in nats.

    Raises:
      ValueError: if shapes disagree or the estimator is unknown.

    Source: Schulman 2020, Approximating KL Divergence, joschu.net/blog/kl-approx.html.  d is limited to +-20.

    >>> print(kl(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25])), estimator="k1").round(4))
    [0.6931]
    """
    logprobs, reference = jnp.asarray(logprobs), jnp.asarray(reference)
    everywhere = jnp.ones(logprobs.shape, bool) if mask is None else jnp.asarray(mask).astype(bool)
    if not logprobs.shape == reference.shape == everywhere.shape:
        raise ValueError(f"got logprobs {logprobs.shape}, reference {reference.shape}; wanted equal shapes, mask too")
    d = _masked(logprobs, everywhere) - jax.lax.stop_gradient(_masked(reference, everywhere))
    d = jnp.clip(d, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    match estimator:
        case "k1":
            return d
        case "k2":
            return d**2 / 2
        case "k3":
            return jnp.expm1(-d) + d
        case _:
            raise ValueError(f"got estimator={estimator!r}; wanted 'k1', 'k2' or 'k3'")


def _aggregate(
    loss: jax.Array,
    mask: jax.Array,
    aggregation: Aggregation,
    max_length: int | None,
    normalizer: ArrayLike | None,
) -> jax.Array:
    total = denominator(mask, aggregation) if normalizer is None else normalizer
    total = jnp.maximum(jnp.asarray(total, loss.dtype), 1)
    sums = jnp.sum(jnp.where(mask, loss, 0), axis=-1)
    if aggregation == "sequence":
        sums = sums / jnp.maximum(jnp.sum(mask, axis=-1), 1)
    if max_length is not None:
        total = total * max_length
    return jnp.sum(sums) / total


def _metrics(ratio: jax.Array, log_ratio: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    ratio, log_ratio = jax.lax.stop_gradient((ratio, log_ratio))
    return {
        "ratio_mean": _mean(ratio, mask),
        "ratio_max": jnp.max(jnp.where(mask, ratio, 0), initial=0),
        "kl": _mean(ratio - 1 - log_ratio, mask),
        "tokens": denominator(mask),
    }


def _mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(mask, x, 0)) / jnp.maximum(jnp.sum(mask), 1)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _masked(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Zero before any arithmetic: 0 * inf is NaN, in the gradient too."""
    return jnp.where(mask, _wide(x), 0)


def _check(logprobs: jax.Array, old_logprobs: jax.Array, advantages: jax.Array, mask: jax.Array) -> None:
    if not logprobs.shape == old_logprobs.shape == mask.shape or advantages.shape != logprobs.shape[:-1]:
        raise ValueError(
            f"got logprobs {logprobs.shape}, old_logprobs {old_logprobs.shape}, mask {mask.shape}, advantages "
            f"{advantages.shape}; wanted (..., T) for the first three and (...) for the advantages"
        )


def _check_options(
    kind: str, clip_low: float, clip_high: float, dual_clip: float | None, aggregation: str, max_length: int | None
) -> None:
    if kind != "clip":
        raise ValueError(f"got kind={kind!r}; wanted 'clip'")
    if not 0 <= clip_low <= 1 or clip_high < 0:
        raise ValueError(f"got clip_low={clip_low}, clip_high={clip_high}; wanted 0 <= clip_low <= 1, clip_high >= 0")
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"got dual_clip={dual_clip}; wanted more than 1, or None")
    if aggregation not in ("token", "sequence", "constant"):
        raise ValueError(f"got aggregation={aggregation!r}; wanted 'token', 'sequence' or 'constant'")
    if (aggregation == "constant") != (max_length is not None):
        raise ValueError(
            f"got aggregation={aggregation!r} with max_length={max_length}; wanted max_length with 'constant' only"
        )
