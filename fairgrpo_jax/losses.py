"""Policy losses over tokens: clipped surrogates, their aggregation, importance weights and KL estimators.

Token arrays are (..., T), for instance (P, G, T); per-rollout arrays are (...), for instance (P, G). Values at masked
positions, including infinities and NaN, affect neither value nor gradient.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from fairgrpo_jax._statistics import wide


Aggregation = Literal["token", "sequence", "constant"]
Kind = Literal["clip", "gspo", "cispo"]
MAX_LOG_RATIO = 20.0  # beyond it exp() overflows into a NaN gradient; e^20 is far beyond any clip


def policy_loss(
    logprobs: ArrayLike,
    old_logprobs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    kind: Kind = "clip",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    weights: ArrayLike | None = None,
    aggregation: Aggregation = "token",
    max_length: int | None = None,
    normalizer: ArrayLike | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clipped surrogate loss of a batch of rollouts, to be minimised.

    With d_t = logprobs - old_logprobs and c(ratio) = clip(ratio, 1 - clip_low, 1 + clip_high), per token
      ``"clip"``   l = -min(ratio A, c(ratio) A),  ratio = exp(d_t),  and where A < 0: l = min(l, -dual_clip A);
      ``"gspo"``   the same with ratio = exp(mean of d over the tokens of the rollout), one ratio for all of them;
      ``"cispo"``  l = -stop_gradient(c(exp(d_t))) A logprobs: a bounded weight that stops the gradient of no token.
    The loss is ``aggregate(weights * l, mask, ...)``.

    Args:
        logprobs: (..., T) natural log-probabilities of the sampled tokens under the policy being trained.
        old_logprobs: (..., T) the same under the policy in the denominator of the ratio; no gradient.
        advantages: (...) one advantage per rollout; no gradient.
        mask: (..., T) true or 1 for sampled tokens, the end token included; false or 0 for padding.
        kind: see above. ``"gspo"`` is intended for aggregation ``"sequence"`` and, because a mean moves less than a
            token, for bounds near clip_low=3e-4, clip_high=4e-4; all tokens of a rollout must be in one call.
        clip_low: in [0, 1]; how far the ratio may fall where A < 0 before the gradient stops. In ``"cispo"`` the lower
            bound applies for any A; 1 means no lower bound, as its authors run it.
        clip_high: >= 0; how far it may rise where A > 0, in ``"cispo"`` for any A.
        dual_clip: > 1, or None for no bound on the loss where A < 0. Not for ``"cispo"``, whose weight is bounded.
        weights: (..., T) or (...) constant factors >= 0, from ``importance_weights``; no gradient. They do not change
            N, so tokens of weight 0 still count.
        aggregation: see ``aggregate``, as for the two that follow.
        max_length: of ``"constant"``, in tokens.
        normalizer: N of the whole optimizer batch; None counts only this batch.

    Returns:
        The scalar loss, and metrics over the tokens of this batch: ``clip_low`` and ``clip_high``, the shares of tokens
        whose gradient (``"cispo"``: weight) that bound limits; ``dual_clip``, the share of tokens that it stops;
        ``ratio_mean``, ``ratio_max``; ``kl``, the k3 estimate of KL(old || new) per token; ``tokens``, their number
        (the weight for averaging over micro-batches). Without tokens all are 0.

    Raises:
        ValueError: if shapes disagree, or an option is out of range.

    Source: Schulman et al. 2017, PPO (arXiv 1707.06347), equation 7; asymmetric bounds: Yu et al. 2025, DAPO (arXiv
    2503.14476), equation 8; dual clip: Ye et al. 2019 (arXiv 1912.09729), equation 5; GSPO: Zheng et al. 2025 (arXiv
    2507.18071), equation 5; CISPO: MiniMax-M1 (arXiv 2506.13585), section 3.1. The FairGRPO paper writes ``"clip"``
    with ``"sequence"``; the authors' code runs ``"token"`` with dual_clip 3. Log-ratios (GSPO: their mean) are limited
    to +-20, as that code does. verl gives each token of GSPO its own gradient, which differs from the formula only
    under weights that vary within a rollout. TRL's CISPO bounds the ratio by ``epsilon_high`` itself: its 5.0 is
    clip_high=4.0 with clip_low=1.0 here.

    >>> loss, metrics = policy_loss(
    ...     jnp.log(jnp.array([[0.5, 0.9]])), jnp.log(jnp.array([[0.5, 0.6]])), jnp.array([1.0]), jnp.array([[1, 1]])
    ... )
    >>> round(float(loss), 4), float(metrics["clip_high"])
    (-1.1, 0.5)
    """
    logprobs, old_logprobs, advantages, mask = map(jnp.asarray, (logprobs, old_logprobs, advantages, mask))
    _check(logprobs, old_logprobs, advantages, mask)
    _check_options(kind, clip_low, clip_high, dual_clip)
    mask = mask.astype(bool)
    advantage = _constant(advantages, mask)
    logprobs = _masked(logprobs, mask)
    log_ratio = logprobs - _constant(old_logprobs, mask)
    ratio = jnp.exp(_limit(_rollout_mean(log_ratio, mask) if kind == "gspo" else log_ratio))
    bounded = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    low, high = ratio < 1 - clip_low, ratio > 1 + clip_high
    if kind == "cispo":
        surrogate = -jax.lax.stop_gradient(bounded) * advantage * logprobs
    else:
        surrogate = -jnp.minimum(ratio * advantage, bounded * advantage)
        low, high = low & (advantage < 0), high & (advantage > 0)
    loss = surrogate
    if dual_clip is not None:
        loss = jnp.where(advantage < 0, jnp.minimum(surrogate, -dual_clip * advantage), surrogate)

    metrics = _metrics(ratio, log_ratio, mask)
    metrics |= {
        "clip_low": _mean(low, mask),
        "clip_high": _mean(high, mask),
        "dual_clip": _mean(loss < surrogate, mask),
    }
    if weights is not None:
        loss = loss * _constant(jnp.asarray(weights), mask)
    return aggregate(loss, mask, aggregation=aggregation, max_length=max_length, normalizer=normalizer), metrics


def aggregate(
    values: ArrayLike,
    mask: ArrayLike,
    *,
    aggregation: Aggregation = "token",
    max_length: int | None = None,
    normalizer: ArrayLike | None = None,
) -> jax.Array:
    """Reduces token values to a scalar: a mean over tokens, or over rollouts.

    With m the mask and N the ``normalizer``
      ``"token"``     sum of v m / N,                                            N = number of tokens;
      ``"sequence"``  sum over rollouts of (mean of v over its tokens) / N,      N = number of rollouts;
      ``"constant"``  sum of v m / (max_length N),                               N = number of rollouts.
    Rollouts without tokens (padding, ``mask_truncated``) are not counted.

    Args:
        values: (..., T); ignored where the mask is false.
        mask: (..., T) true or 1 for sampled tokens.
        aggregation: see above.
        max_length: the constant length of ``"constant"``, in tokens; not allowed with the others.
        normalizer: N of the whole optimizer batch, from ``denominator``. Results of micro-batches with the same N add
            up exactly to that of the whole batch. None counts only this batch.

    Returns:
        A scalar in the unit of the values; 0 without tokens.

    Raises:
        ValueError: if shapes disagree, or an option is out of range.

    Source: ``"token"`` is DAPO's (arXiv 2503.14476, equation 8), ``"sequence"`` GRPO's (arXiv 2402.03300, equation 3),
    ``"constant"`` Dr. GRPO's (arXiv 2503.20783). verl names them token-mean, seq-mean-token-mean and
    seq-mean-token-sum-norm; TRL dapo, grpo and dr_grpo, of which the last two count rollouts without tokens in N.

    A KL term uses the same denominators as the loss, so that both add up over micro-batches:

    >>> new, reference = jnp.log(jnp.array([[0.5, 0.5, 1.0]])), jnp.log(jnp.array([[0.5, 0.25, 1.0]]))
    >>> advantages, mask, options = jnp.array([1.0]), jnp.array([[1, 1, 0]]), {"aggregation": "sequence"}
    >>> loss, _ = policy_loss(new, new, advantages, mask, **options)
    >>> loss += 0.04 * aggregate(kl(new, reference, mask=mask), mask, **options)
    >>> round(float(loss), 4)
    -0.9961
    """
    values, mask = jnp.asarray(values), jnp.asarray(mask).astype(bool)
    if values.shape != mask.shape:
        raise ValueError(f"got values {values.shape}, mask {mask.shape}; wanted both (..., T)")
    _check_aggregation(aggregation)
    if (aggregation == "constant") != (max_length is not None):
        raise ValueError(
            f"got aggregation={aggregation!r} with max_length={max_length}; wanted max_length with 'constant' only"
        )
    values = _masked(values, mask)
    total = denominator(mask, aggregation) if normalizer is None else normalizer
    total = jnp.maximum(jnp.asarray(total, values.dtype), 1)
    sums = jnp.sum(values, axis=-1)
    if aggregation == "sequence":
        sums = sums / jnp.maximum(jnp.sum(mask, axis=-1), 1)
    if max_length is not None:
        total = total * max_length
    return jnp.sum(sums) / total


def denominator(mask: ArrayLike, aggregation: Aggregation = "token") -> jax.Array:
    """The contribution of a batch to the ``normalizer`` of ``aggregate``: its tokens, or its rollouts with tokens.

    Sum it over all micro-batches (and processes) of an optimizer step. (..., T) mask to a float32 scalar.

    Raises:
        ValueError: if the aggregation is unknown.

    >>> mask = jnp.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    >>> float(denominator(mask)), float(denominator(mask, "sequence"))
    (3.0, 2.0)
    """
    _check_aggregation(aggregation)
    mask = jnp.asarray(mask).astype(bool)
    counted = mask if aggregation == "token" else jnp.any(mask, axis=-1)
    return jnp.sum(counted, dtype=jnp.float32)


def importance_weights(
    old_logprobs: ArrayLike,
    sampler_logprobs: ArrayLike,
    mask: ArrayLike,
    *,
    cap: float = 2.0,
    level: Literal["token", "sequence"] = "token",
    mode: Literal["truncate", "mask"] = "truncate",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Importance weights that correct for tokens sampled by a different program than the learner's.

    With d = old_logprobs - sampler_logprobs, w = exp(d) of each token, or at level ``"sequence"`` w = exp(sum of d over
    the rollout) for all of its tokens (unbiased, but its variance grows with length). Then
      ``"truncate"``  min(w, cap);        ``"mask"``  w where w <= cap, 0 beyond.

    ==========  ================================================  ===========  ============  ======
    peer        option                                            level        mode          cap
    ==========  ================================================  ===========  ============  ======
    verl        rollout_is: token (off by default)                token        truncate      2.0
    verl        rollout_is: sequence                              sequence     truncate      2.0
    verl        rollout_is_threshold: "low_high" (IcePop)         either       mask          high
    TRL         vllm_importance_sampling_mode: sequence_mask      sequence     mask          3.0
    TRL         ... token_truncate, token_mask                    token        the same      3.0
    ==========  ================================================  ===========  ============  ======

    Both also have a lower bound (IcePop's, TRL's ``clip_min``, None by default), which is not supported here.

    Args:
        old_logprobs: (..., T) natural log-probabilities of the sampled tokens as the learner computes them before its
            first update, at the temperature of the sampler.
        sampler_logprobs: (..., T) the same as reported by the sampler.
        mask: (..., T) true or 1 for sampled tokens.
        cap: >= 1, largest weight.
        level: see above.
        mode: see above. Masked tokens give no gradient but stay in the ``normalizer``; to exclude them from it as well,
            use ``mask & (weights > 0)`` as the mask.

    Returns:
        (..., T) weights >= 0 without gradient, 0 where masked; and metrics, means over tokens: ``weight_mean``;
        ``weight_max``, the largest before the cap; ``weight_capped``, the share of tokens it truncated or masked;
        ``mismatch``, the mean of |d|; ``mismatch_kl``, the k3 estimate of KL(sampler || learner).

    Raises:
        ValueError: if shapes disagree, or an option is out of range.

    Source: Ionides 2008, Truncated Importance Sampling; for this mismatch: Yao et al. 2025, Your Efficient RL Framework
    Secretly Brings You Off-Policy RL Training, fengyao.notion.site/off-policy-rl. Log-ratios and their sums are limited
    to +-20, as in verl but not TRL. TRL gives a token without a sampler value (NaN) the weight 1; here it stays NaN.

    >>> old, sampler = jnp.log(jnp.array([[0.5, 0.6, 1.0]])), jnp.log(jnp.array([[0.5, 0.2, 1.0]]))
    >>> weights, metrics = importance_weights(old, sampler, jnp.array([[1, 1, 0]]))
    >>> print(weights.round(4), metrics["weight_capped"])
    [[1. 2. 0.]] 0.5
    """
    old, sampler, mask = jnp.asarray(old_logprobs), jnp.asarray(sampler_logprobs), jnp.asarray(mask).astype(bool)
    if not old.shape == sampler.shape == mask.shape:
        raise ValueError(
            f"got old_logprobs {old.shape}, sampler_logprobs {sampler.shape}, mask {mask.shape}; wanted all (..., T)"
        )
    if level not in ("token", "sequence") or mode not in ("truncate", "mask") or cap < 1:
        raise ValueError(
            f"got level={level!r}, mode={mode!r}, cap={cap}; wanted level 'token' or 'sequence', mode 'truncate' or "
            "'mask', cap >= 1"
        )
    d = _constant(old, mask) - _constant(sampler, mask)
    whole = d if level == "token" else jnp.broadcast_to(jnp.sum(d, axis=-1, keepdims=True), d.shape)
    raw = _masked(jnp.exp(_limit(whole)), mask)
    weights = jnp.where(raw > cap, cap if mode == "truncate" else 0, raw)
    return weights, {
        "weight_mean": _mean(weights, mask),
        "weight_max": jnp.max(raw, initial=0),
        "weight_capped": _mean(raw > cap, mask),
        "mismatch": _mean(jnp.abs(d), mask),
        "mismatch_kl": _mean(_k3(-_limit(d)), mask),
    }


def mask_truncated(mask: ArrayLike, finished: ArrayLike) -> jax.Array:
    """The mask without the rollouts that were cut off before their end token.

    Such a rollout gives no gradient and is not counted in the ``normalizer``. Its reward still enters the statistics of
    its prompt unless it is set to NaN (not scored). The share of rollouts removed is ``mean(~finished)``.

    Args:
        mask: (..., T) true or 1 for sampled tokens.
        finished: (...) whether the rollout ended by itself.

    Returns:
        (..., T) bool.

    Raises:
        ValueError: if shapes disagree.

    Source: Yu et al. 2025, DAPO (arXiv 2503.14476), section 3.4, overlong filtering; TRL's
    ``mask_truncated_completions``.

    >>> mask_truncated([[1, 1, 0], [1, 1, 1]], [True, False]).astype(int).tolist()
    [[1, 1, 0], [0, 0, 0]]
    """
    mask, finished = jnp.asarray(mask).astype(bool), jnp.asarray(finished).astype(bool)
    if finished.shape != mask.shape[:-1]:
        raise ValueError(f"got mask {mask.shape}, finished {finished.shape}; wanted (..., T) and (...)")
    return mask & finished[..., None]


def overlong_penalty(lengths: ArrayLike, *, max_length: int, buffer: int) -> jax.Array:
    """Soft penalty for completions close to the length limit, to be added to their reward.

    clip((max_length - buffer - L) / buffer, -1, 0):  0 up to max_length - buffer, then down to -1 at max_length.

    Args:
        lengths: L, any shape, tokens.
        max_length: the limit, in tokens.
        buffer: number of tokens over which the penalty grows, in 1 .. max_length.

    Returns:
        An array in [-1, 0] with the shape of the lengths. Rewards with this penalty can be negative: the functions of
        ``fairness`` then need their ``shift``.

    Raises:
        ValueError: if the buffer is not in 1 .. max_length.

    Source: Yu et al. 2025, DAPO (arXiv 2503.14476), equation 13; there max_length 20480, buffer 4096.

    >>> overlong_penalty(jnp.array([70, 90, 100, 120]), max_length=100, buffer=20).tolist()
    [0.0, -0.5, -1.0, -1.0]
    """
    if not 1 <= buffer <= max_length:
        raise ValueError(f"got buffer={buffer}, max_length={max_length}; wanted 1 <= buffer <= max_length")
    return jnp.clip((max_length - buffer - wide(jnp.asarray(lengths))) / buffer, -1, 0)


def kl(
    logprobs: ArrayLike,
    reference: ArrayLike,
    *,
    estimator: Literal["k1", "k2", "k3"] = "k3",
    mask: ArrayLike | None = None,
    old_logprobs: ArrayLike | None = None,
) -> jax.Array:
    """Per-token estimate of KL(policy || reference) from tokens sampled by the policy.

    With d = logprobs - reference:  k1 = d,  k2 = d^2 / 2,  k3 = exp(-d) - 1 + d.

    k1 and k3 are unbiased as values, k2 is not; k2 and k3 are never negative. As a loss on the policy's own samples,
    only k2 has the gradient of KL(policy || reference): the gradient of k1 has mean 0, and that of k3 is the gradient
    of KL(reference || policy). With the log-probabilities of the policy that sampled, the estimate is multiplied by
    exp(logprobs - old_logprobs), gradient included: its value is then unbiased also after an update, and the gradient
    of k1 and k3 that of KL(policy || reference).

    Args:
        logprobs: (..., T) natural log-probabilities under the policy.
        reference: (..., T) the same tokens under the reference; no gradient.
        estimator: one of the three.
        mask: (..., T); where it is false the result is 0 without gradient, whatever the inputs are there.
        old_logprobs: (..., T) under the policy that sampled the tokens, for the factor; no gradient.

    Returns:
        (..., T) in nats.

    Raises:
        ValueError: if shapes disagree or the estimator is unknown.

    Source: Schulman 2020, Approximating KL Divergence, joschu.net/blog/kl-approx.html. d is limited to +-20; verl also
    limits k3 to 10. The factor is TRL's ``use_bias_correction_kl``, its default since 1.16, after DeepSeek-V3.2 (arXiv
    2512.02556). For a KL term in the loss, see ``aggregate``.

    >>> print(kl(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25])), estimator="k1").round(4))
    [0.6931]
    """
    logprobs, reference = jnp.asarray(logprobs), jnp.asarray(reference)
    everywhere = jnp.ones(logprobs.shape, bool) if mask is None else jnp.asarray(mask).astype(bool)
    old = None if old_logprobs is None else jnp.asarray(old_logprobs)
    if any(x is not None and x.shape != logprobs.shape for x in (reference, everywhere, old)):
        raise ValueError(
            f"got logprobs {logprobs.shape}, reference {reference.shape}, mask {everywhere.shape}, old_logprobs "
            f"{None if old is None else old.shape}; wanted equal shapes (..., T)"
        )
    known = _masked(logprobs, everywhere)
    d = _limit(known - _constant(reference, everywhere))
    match estimator:
        case "k1":
            value = d
        case "k2":
            value = d**2 / 2
        case "k3":
            value = _k3(d)
        case _:
            raise ValueError(f"got estimator={estimator!r}; wanted 'k1', 'k2' or 'k3'")
    if old is None:
        return value
    return value * jnp.exp(_limit(known - _constant(old, everywhere)))


def _metrics(ratio: jax.Array, log_ratio: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    ratio, log_ratio = jax.lax.stop_gradient((ratio, log_ratio))
    return {
        "ratio_mean": _mean(ratio, mask),
        "ratio_max": jnp.max(jnp.where(mask, ratio, 0), initial=0),
        "kl": _mean(_k3(-_limit(log_ratio)), mask),
        "tokens": denominator(mask),
    }


def _k3(d: jax.Array) -> jax.Array:
    return jnp.expm1(-d) + d


def _limit(log_ratio: jax.Array) -> jax.Array:
    return jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def _mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(mask, x, 0)) / jnp.maximum(jnp.sum(mask), 1)


def _rollout_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over each rollout's tokens, repeated for each of them; x is 0 where masked."""
    mean = jnp.sum(x, axis=-1, keepdims=True) / jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
    return jnp.broadcast_to(mean, x.shape)


def _masked(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Sets masked values to zero before any arithmetic: 0 * inf is NaN, in the gradient too."""
    return jnp.where(mask, wide(x), 0)


def _constant(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Broadcasts (..., T) or (...) to masked (..., T) without gradient."""
    if x.shape == mask.shape[:-1]:
        x = jnp.broadcast_to(x[..., None], mask.shape)
    if x.shape != mask.shape:
        raise ValueError(f"got weights {x.shape} for mask {mask.shape}; wanted (..., T) or (...)")
    return jax.lax.stop_gradient(_masked(x, mask))


def _check(logprobs: jax.Array, old_logprobs: jax.Array, advantages: jax.Array, mask: jax.Array) -> None:
    if not logprobs.shape == old_logprobs.shape == mask.shape or advantages.shape != logprobs.shape[:-1]:
        raise ValueError(
            f"got logprobs {logprobs.shape}, old_logprobs {old_logprobs.shape}, mask {mask.shape}, advantages "
            f"{advantages.shape}; wanted (..., T) for the first three and (...) for the advantages"
        )


def _check_options(kind: str, clip_low: float, clip_high: float, dual_clip: float | None) -> None:
    if kind not in ("clip", "gspo", "cispo"):
        raise ValueError(f"got kind={kind!r}; wanted 'clip', 'gspo' or 'cispo'")
    if not 0 <= clip_low <= 1 or clip_high < 0:
        raise ValueError(f"got clip_low={clip_low}, clip_high={clip_high}; wanted 0 <= clip_low <= 1, clip_high >= 0")
    if dual_clip is not None and (dual_clip <= 1 or kind == "cispo"):
        raise ValueError(
            f"got dual_clip={dual_clip} with kind={kind!r}; wanted more than 1, or None; None with 'cispo'"
        )


def _check_aggregation(aggregation: str) -> None:
    if aggregation not in ("token", "sequence", "constant"):
        raise ValueError(f"got aggregation={aggregation!r}; wanted 'token', 'sequence' or 'constant'")
