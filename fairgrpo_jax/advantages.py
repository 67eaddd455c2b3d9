"""Group-relative advantages: rewards (P, G) of P prompts with G rollouts each to advantages (P, G).

One function per estimator, arrays in, arrays out; all work under ``jax.jit`` and ``jax.vmap`` and share these
conventions:

* a NaN reward means *not scored*: it enters no mean and no deviation, and its advantage is 0. For functions that take
lengths, a rollout without tokens counts as not scored;
* a prompt without signal, whose scored rewards are all equal or fewer than two, gets exactly 0 from every estimator
  that compares a prompt with itself: ``grpo``, ``dr_grpo``, ``rloo``, ``gpg``, ``opo``, ``pass_at_k``, and ``gdpo``
  without lengths if it is so in every component. This is decided by equality, because the rounded deviation of equal
  rewards need not be 0, and these zeros have no gradient either;
* ``reinforce_plus_plus``, ``reinforce_plus_plus_baseline`` and ``gdpo`` with lengths subtract a mean over the tokens of
the batch, so a prompt without signal gets its distance from the others. A batch whose scored rewards are all equal
gives exactly 0 from every estimator except ``remax``, which compares only with the greedy answer;
* rewards are centred before they are squared, so a constant added to all rewards costs no precision;
* statistics are those of the given arrays: pass the whole batch of the step, not a micro-batch;
* the result is float32, or float64 for float64 rewards;
* no gradient is stopped: gradients flow to the rewards. A score-function loss treats advantages as constants.

``diagnostics`` measures how a batch of advantages is spread over prompts and groups.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpy.typing import ArrayLike

from fairgrpo_jax._statistics import bounds, centre, variance, whiten, wide


def grpo(
    rewards: ArrayLike,
    *,
    epsilon: float = 1e-6,
    ddof: int = 1,
    leave_one_out: bool = False,
    scale: Literal["prompt", "batch"] = "prompt",
    focus: float = 0.0,
) -> jax.Array:
    """Z-score of each reward among the rollouts of its prompt.

    A_i = (r_i - mean(r)) / (std(r) + epsilon).

    Args:
        rewards: (P, G), any real unit; NaN = not scored.
        epsilon: added to the deviation, in units of reward, >= 0.
        ddof: 1 divides the squares by G - 1 (the convention of most libraries), 0 by G.
        leave_one_out: mean and deviation are those of the *other* rollouts of the prompt; if these are all equal, the
            centred reward is not divided.
        scale: ``"batch"`` keeps the mean of the prompt but divides by the deviation of all scored rewards of the batch
            around *their* mean, which does not inflate prompts whose rewards hardly differ.
        focus: exponent of each prompt's failure rate, see ``focused``; 0 = GRPO, and then rewards may have any unit.

    Returns:
        (P, G) advantages. Without ``leave_one_out`` each prompt's advantages sum to 0.

    Raises:
        ValueError: if rewards are not (P, G), ddof is neither 0 nor 1, or an option is unknown or combined with
            another.

    Source: Shao et al. 2024, DeepSeekMath (arXiv 2402.03300), section 4.1.2, which states neither ddof nor epsilon; for
    the batch deviation Liu et al. 2025, Lite PPO (arXiv 2508.08221). What trainers do, all with ddof 1:

      ==============================  ================================  ======================================
      trainer                         options                           what is different there
      ==============================  ================================  ======================================
      TRL, scale_rewards="group"      epsilon=1e-4                      -
      TRL, scale_rewards="batch"      epsilon=1e-4, scale="batch"       -
      ms-swift, VLM-R1                epsilon=1e-4                      -
      OpenRLHF, "group_norm"          epsilon=1e-9                      -
      verl                            (as here)                         a single rollout: r / (1 + epsilon)
      EasyR1                          (as here)                         needs two rollouts
      NeMo-RL                         leave_one_out=True                E[x^2] - E[x]^2 in float32, which cancels
      ==============================  ================================  ======================================

    They always divide by the rounded deviation (NeMo-RL only where it is above 0), so rewards that are all equal can
    give them an advantage other than 0.

    >>> [[f"{x:.3f}" for x in row] for row in grpo([[1.0, 0.0], [1.0, 1.0]])]
    [['0.707', '-0.707'], ['0.000', '0.000']]
    """
    if ddof not in (0, 1):
        raise ValueError(f"got ddof={ddof!r}; wanted 0 (divide by G) or 1 (divide by G - 1)")
    if scale not in ("prompt", "batch"):
        raise ValueError(f"got scale={scale!r}; wanted 'prompt' or 'batch'")
    if leave_one_out and scale == "batch":
        raise ValueError("got scale='batch' with leave_one_out=True; wanted one of the two")
    r, scored = _read(rewards)
    if leave_one_out:
        return focused(_grpo_of_others(r, scored, epsilon, ddof=ddof), r, focus)
    return focused(_z_scores(r, scored, epsilon, ddof=ddof, axis=1 if scale == "prompt" else None), r, focus)


def dr_grpo(rewards: ArrayLike) -> jax.Array:
    """Reward minus the mean of its prompt, not divided by the deviation.

    A_i = r_i - mean(r).

    Args:
        rewards: (P, G), any real unit; NaN = not scored.

    Returns:
        (P, G) advantages in units of reward; each prompt's sum to 0.

    Raises:
        ValueError: if rewards are not (P, G).

    Source: Liu et al. 2025, Understanding R1-Zero-like training (arXiv 2503.20783), section 3.2. The other half of
    the proposal, a constant length in the loss, is ``losses.policy_loss(aggregation="constant")``. The same as TRL's
    scale_rewards="none" and verl's norm_adv_by_std_in_grpo=False, except that verl returns the raw reward of a prompt
    with a single rollout.

    >>> dr_grpo([[1.0, 0.0, 0.5]]).tolist()
    [[0.5, -0.5, 0.0]]
    """
    return centre(*_read(rewards))


def rloo(rewards: ArrayLike) -> jax.Array:
    """Reward minus the mean of the other rollouts of its prompt.

    A_i = r_i - mean_{j != i}(r_j) = n / (n - 1) (r_i - mean(r)), with n the scored rollouts.

    Args:
        rewards: (P, G), any real unit; NaN = not scored.

    Returns:
        (P, G) advantages in units of reward; each prompt's sum to 0. A single scored rollout has no others to compare
        with and gets 0 (verl's ``rloo`` returns its raw reward, its ``rloo_vectorized`` 0).

    Raises:
        ValueError: if rewards are not (P, G).

    Source: Ahmadian et al. 2024, Back to Basics (arXiv 2402.14740), section 3.3.

    >>> rloo([[1.0, 0.0, 0.5]]).tolist()
    [[0.75, -0.75, 0.0]]
    """
    return _against_others(*_read(rewards))


def gpg(rewards: ArrayLike, *, correction: Literal["rewards", "signal"] = "rewards") -> jax.Array:
    """Reward minus the mean of its prompt, scaled up to compensate for rollouts without signal.

    A_i = alpha (r_i - mean(r)),  alpha = n / max(m, 1), with n the scored rollouts of the batch.

    Args:
        rewards: (P, G), any real unit; NaN = not scored.
        correction: what m counts. ``"signal"``: scored rollouts of prompts with signal, so that alpha undoes the
            dilution of the batch mean by prompts without. ``"rewards"``: rollouts whose reward is not 0, whatever their
            prompt; with rewards of 0 and 1 alpha is then one over the accuracy, and a batch of hard prompts is scaled
            up.

    Returns:
        (P, G) advantages in units of reward; each prompt's sum to 0.

    Raises:
        ValueError: if rewards are not (P, G), or for an unknown correction.

    Source: Chu et al. 2025, GPG (arXiv 2504.02546). ``"signal"`` is the paper's alpha = B / (B - M) with M of the B
    samples in groups without gradient; the authors also resample until a share of the batch has signal (beta_th), which
    is left to the sampler. ``"rewards"`` is what verl's ``gpg`` computes instead; it ignores the alpha passed in, and
    returns the raw reward times alpha for a prompt with a single rollout.

    >>> gpg([[1.0, 0.0], [1.0, 1.0]], correction="signal")[0].tolist()
    [1.0, -1.0]
    >>> gpg([[1.0, 0.0], [0.0, 0.0]])[0].tolist()
    [2.0, -2.0]
    """
    if correction not in ("rewards", "signal"):
        raise ValueError(f"got correction={correction!r}; wanted 'rewards' or 'signal'")
    r, scored = _read(rewards)
    counted = scored & (has_signal(r)[:, None] if correction == "signal" else r != 0)
    part = jnp.sum(scored, dtype=r.dtype) / jnp.maximum(jnp.sum(counted, dtype=r.dtype), 1)
    return centre(r, scored) * part


def reinforce_plus_plus(rewards: ArrayLike, lengths: ArrayLike, *, epsilon: float = 1e-8) -> jax.Array:
    """Reward whitened over the tokens of the batch, without a comparison within the prompt.

    A_i = (r_i - m) / sqrt(v + epsilon),  m = sum(L r) / sum(L),  v = sum(L (r - m)^2) / (sum(L) - 1),

    that is, with discount 1 every token carries the reward of its rollout, and m and v are their mean and variance.

    Args:
        rewards: (P, G), any real unit; NaN = not scored.
        lengths: (P, G) int, L, the tokens of each rollout that the loss counts, >= 0; 0 = as if not scored.
        epsilon: added to the variance, in units of reward squared, >= 0.

    Returns:
        (P, G) advantages with mean 0 and, except for epsilon, variance 1 over tokens. A prompt without signal gets the
        distance of its reward from the batch mean.

    Raises:
        ValueError: if shapes do not fit, or lengths are not integers; and, outside of jit, for a negative length.

    Source: Hu 2025, REINFORCE++ (arXiv 2501.03262), without its KL term in the reward; subtract that from the rewards
    beforehand. The whitening is verl's ``masked_whiten``. OpenRLHF's variance divides by sum(L).

    >>> [[f"{x:.3f}" for x in row] for row in reinforce_plus_plus([[1.0], [0.0]], [[1], [3]])]
    [['1.500'], ['-0.500']]
    """
    return whiten(*_read_tokens(rewards, lengths), epsilon)


def reinforce_plus_plus_baseline(rewards: ArrayLike, lengths: ArrayLike, *, epsilon: float = 1e-8) -> jax.Array:
    """Reward minus the mean of its prompt, whitened over the tokens of the batch.

    A_i = (c_i - m) / sqrt(v + epsilon),  c_i = r_i - mean(r),  with the m and v of ``reinforce_plus_plus``, of c.

    Args:
        rewards: (P, G), any real unit; NaN = not scored.
        lengths: (P, G) int, >= 0, as for ``reinforce_plus_plus``.
        epsilon: added to the variance, in units of reward squared, >= 0.

    Returns:
        (P, G) advantages. c sums to 0 over the rollouts of a prompt, but not over its tokens: where long rollouts score
        less, m < 0. A prompt without signal gets -m / sqrt(v + epsilon), in verl as here, and not 0.

    Raises:
        ValueError: as ``reinforce_plus_plus``.

    Source: Hu 2025, REINFORCE++ (arXiv 2501.03262), the variant with a baseline, as in verl; there a prompt with a
    single rollout keeps its raw reward as c (here c = 0), and a rollout without tokens counts in the prompt's mean.

    >>> [[f"{x:.3f}" for x in row] for row in reinforce_plus_plus_baseline([[1.0, 0.0], [1.0, 1.0]], [[1, 3], [2, 2]])]
    [['1.768', '-1.061'], ['0.354', '0.354']]
    """
    r, tokens = _read_tokens(rewards, lengths)
    return whiten(centre(r, tokens > 0), tokens, epsilon)


def opo(rewards: ArrayLike, lengths: ArrayLike) -> jax.Array:
    """Reward minus the length-weighted mean of its prompt.

    A_i = r_i - sum(L r) / sum(L).

    Args:
        rewards: (P, G), any real unit; NaN = not scored.
        lengths: (P, G) int, L, the tokens of each rollout that the loss counts, >= 0; 0 = as if not scored.

    Returns:
        (P, G) advantages in units of reward; over the tokens of a prompt they sum to 0.

    Raises:
        ValueError: if shapes do not fit, or lengths are not integers; and, outside of jit, for a negative length.

    Source: Hao et al. 2025, On-policy RL with optimal reward baseline (arXiv 2505.23585). The baseline of least
    variance weights rewards by the squared norm of their score; the length stands in for it if the gradients of tokens
    are independent and of equal norm. verl's ``opo`` is the same, except that a prompt with a single rollout gets its
    raw reward.

    >>> opo([[1.0, 0.0]], [[1, 3]]).tolist()
    [[0.75, -0.25]]
    """
    return centre(*_read_tokens(rewards, lengths))


def remax(rewards: ArrayLike, greedy_rewards: ArrayLike) -> jax.Array:
    """Reward minus that of the greedy answer to the same prompt.

    A_i = r_i - b.

    Args:
        rewards: (P, G), any real unit; NaN = not scored.
        greedy_rewards: (P,), b, in the same unit; NaN = not scored, and the whole prompt gets 0.

    Returns:
        (P, G) advantages in units of reward. Equal rewards that differ from b are a signal here.

    Raises:
        ValueError: if rewards are not (P, G), or there is not one greedy reward per prompt.

    Source: Li et al. 2023, ReMax (arXiv 2310.10505). The same as verl's ``remax`` with discount 1 and the reward
    at the last token.

    >>> remax([[1.0, 0.0], [1.0, 1.0]], [0.0, 0.75]).tolist()
    [[1.0, 0.0], [0.25, 0.25]]
    """
    r, scored = _read(rewards)
    b = wide(jnp.asarray(greedy_rewards))
    if b.shape != r.shape[:1]:
        raise ValueError(f"got greedy rewards of shape {b.shape} for rewards {r.shape}; wanted one a prompt")
    return jnp.where(scored & ~jnp.isnan(b)[:, None], r - b[:, None], 0)


def pass_at_k(rewards: ArrayLike, *, epsilon: float = 1e-6, normalize: bool = True) -> jax.Array:
    """Margin of the best rollout of a prompt over the second best; 0 for all others.

    A_best = (r_best - r_second) / (std(r) + epsilon).

    Args:
        rewards: (P, G), any real unit; NaN = not scored.
        epsilon: added to the deviation (ddof 1), in units of reward, >= 0.
        normalize: whether to divide by the deviation; otherwise A_best = r_best - r_second.

    Returns:
        (P, G) advantages >= 0, at most one per prompt above 0; all are 0 if the best rollouts tie.

    Raises:
        ValueError: if rewards are not (P, G).

    Source: Tang et al. 2025 (arXiv 2503.19595): the gradient of the expected best of k rollouts credits only the best
    one, by what would be lost without it. The deviation is verl's (``grpo_passk``, which refuses single rollouts).

    >>> pass_at_k([[1.0, 0.5, 0.0], [1.0, 1.0, 0.0]], normalize=False).tolist()
    [[0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    r, scored = _read(rewards)
    _, high = bounds(r, scored, axis=1)
    best = scored & (r == high)
    single = best & (jnp.sum(best, axis=1, keepdims=True) == 1) & has_signal(r)[:, None]
    _, second = bounds(r, scored & ~best, axis=1)
    lead = jnp.where(single, r - second, 0)
    if not normalize:
        return lead
    return lead / (jnp.sqrt(variance(centre(r, scored), scored)) + epsilon)


def gdpo(
    component_rewards: ArrayLike, weights: ArrayLike, *, epsilon: float = 1e-4, lengths: ArrayLike | None = None
) -> jax.Array:
    """Weighted sum of the z-scores of each reward component within its prompt, normalised over the batch.

    A_i = s_i / (std of all s + epsilon),  s_i = sum_k w_k (r_ik - mean_k) / (std_k + epsilon),  every deviation ddof 1,

    or, with lengths, s whitened over the tokens of the batch as in ``reinforce_plus_plus``.

    Args:
        component_rewards: (P, G, K), each component in its own unit; NaN = this component is not scored for this
            rollout and is excluded from its sum. A rollout without any scored component is not scored.
        weights: (K,), w, relative importance; only their ratios matter, up to epsilon.
        epsilon: added to the deviations, in units of reward for the components, without unit for the sum; >= 0.
        lengths: (P, G) int, >= 0, as for ``reinforce_plus_plus``, whose 1e-8 then takes the place of the last epsilon.

    Returns:
        (P, G) advantages. A component that is constant within a prompt contributes 0 to it.

    Raises:
        ValueError: if shapes do not fit, or lengths are not integers; and, outside of jit, for a negative length.

    Source: GDPO (arXiv 2601.05242). Without lengths this is TRL's "normalize_then_sum", NaN included; TRL also
    subtracts the batch mean of s, which is 0 up to rounding because every component sums to 0 in its prompt. With
    lengths and epsilon 1e-6 it is verl's ``gdpo``, which does not support NaN and uses the raw components of a single
    rollout.

    >>> both = [[[1.0, 10.0], [0.0, 10.0]], [[1.0, 30.0], [1.0, 10.0]]]  # each prompt differs in one component
    >>> [[f"{x:.3f}" for x in row] for row in gdpo(both, [1.0, 1.0])]
    [['0.866', '-0.866'], ['0.866', '-0.866']]
    """
    c, scored = _read(component_rewards, ("prompts", "rollouts", "components"))
    w = jnp.asarray(weights)
    if w.shape != c.shape[2:]:
        raise ValueError(f"got weights of shape {w.shape} for rewards {c.shape}; wanted one a component")
    if lengths is not None:
        tokens = _tokens(lengths, jnp.any(scored, axis=2), c.dtype)
        c = jnp.where((tokens > 0)[:, :, None], c, jnp.nan)
    scores = jax.vmap(lambda r: grpo(r, epsilon=epsilon), in_axes=2, out_axes=2)(c)
    summed = jnp.sum(scores * w.astype(scores.dtype)[None, None, :], axis=2)
    if lengths is not None:
        return whiten(summed, tokens, 1e-8)
    return summed / (jnp.sqrt(variance(summed, jnp.any(scored, axis=2), axis=None)) + epsilon)


def focused(advantages: ArrayLike, rewards: ArrayLike, focus: float) -> jax.Array:
    """Advantages of any estimator, each prompt weighted by its failure rate, rescaled to the same mean square.

    A_i <- c f A_i,  f = (1 - mean(r)) ** focus,  c so that the sum of A^2 over the batch stays what it was.

    A z-score spends as much on a prompt that is answered right 7 times of 8 as on one that is right once: for binary
    rewards and many rollouts, GRPO's expected gradient is that of 2 arcsin sqrt(p), symmetric in p and 1 - p. With
    focus 1 it is that of arcsin sqrt(p) + sqrt(p (1 - p)), which is concave and flat at p = 1: learning moves to the
    prompts whose answers are mostly wrong. Without the deviation (``dr_grpo``) focus k maximises -(1 - p)^(k + 1). With
    few rollouts mean(r) is an estimate, and the weight of a prompt correlates with its rewards; the factor c depends on
    the batch. Estimators that compare with other prompts (``reinforce_plus_plus``) have no such objective.

    Args:
        advantages: (P, G), or (P, G, ...).
        rewards: (P, G), NaN = not scored, where 1 is a full success; a mean outside [0, 1] counts as 0 or 1.
        focus: exponent >= 0; 0 leaves the advantages as they are.

    Returns:
        The advantages, of the same shape. Where all prompts of a batch with signal get the weight 0, they are 0.

    Raises:
        ValueError: if the shapes do not fit, or focus is negative.

    Source: ours, after the focal loss (Lin et al. 2017, arXiv 1708.02002), which weights by (1 - p)^gamma.

    >>> rewards = [[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]  # solved three times of four, and once
    >>> [[f"{x:.2f}" for x in row] for row in focused(grpo(rewards), rewards, 1.0)]
    [['0.22', '0.22', '0.22', '-0.67'], ['2.01', '-0.67', '-0.67', '-0.67']]
    """
    r, scored = _read(rewards)
    a = jnp.asarray(advantages)
    if a.shape[:2] != r.shape:
        raise ValueError(f"got advantages {a.shape} for rewards {r.shape}; wanted one a rollout")
    if not isinstance(focus, Tracer):
        if not 0 <= focus < np.inf:
            raise ValueError(f"got focus={focus}; wanted an exponent >= 0")
        if focus == 0:
            return a
    return _weigh_by_failure(a, r, scored, focus)


@jax.jit
def _weigh_by_failure(a: jax.Array, r: jax.Array, scored: jax.Array, focus: float) -> jax.Array:
    mean = jnp.sum(jnp.where(scored, r, 0), axis=1) / jnp.maximum(jnp.sum(scored, axis=1), 1)
    failure = jnp.clip(1 - mean, 0, 1)
    fails = failure > 0
    weight = jnp.where(fails, jnp.where(fails, failure, 1) ** focus, jnp.where(jnp.asarray(focus) == 0, 1.0, 0.0))
    weighted = a * weight.reshape(-1, *[1] * (a.ndim - 1))
    before, after = jnp.sum(a**2), jnp.sum(weighted**2)
    lasting = (before > 0) & (after > 0)
    return weighted * jnp.sqrt(jnp.where(lasting, before, 1) / jnp.where(lasting, after, 1))


def has_signal(rewards: ArrayLike) -> jax.Array:
    """Whether each prompt's scored rewards differ: (P, G) rewards, NaN = not scored, to (P,) bool.

    Raises:
        ValueError: if rewards are not (P, G).

    >>> has_signal([[1.0, 0.0], [1.0, 1.0], [1.0, float("nan")]]).tolist()
    [True, False, False]
    """
    return _differ(*_read(rewards))


@jax.jit
def _differ(r: jax.Array, scored: jax.Array) -> jax.Array:
    low, high = bounds(r, scored, axis=1)
    return (high > low)[:, 0]


def _read(rewards: ArrayLike, axes: tuple[str, ...] = ("prompts", "rollouts")) -> tuple[jax.Array, jax.Array]:
    """Rewards as float32 or wider, NaN kept, and a mask of the scored ones."""
    r = jax.device_put(rewards) if isinstance(rewards, np.ndarray) else jnp.asarray(rewards)
    if r.ndim != len(axes):
        raise ValueError(f"got an array of shape {r.shape}; wanted ({', '.join(axes)})")
    return _with_scored(r)


@jax.jit
def _with_scored(r: jax.Array) -> tuple[jax.Array, jax.Array]:
    r = wide(r)
    return r, ~jnp.isnan(r)


def _read_tokens(rewards: ArrayLike, lengths: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Rewards, and the tokens by which each is weighted: 0 for the unscored."""
    r, scored = _read(rewards)
    return r, _tokens(lengths, scored, r.dtype)


def _tokens(lengths: ArrayLike, scored: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Token counts as floats, because a batch can have more tokens than int32 can count."""
    n = jnp.asarray(lengths)
    if n.shape != scored.shape or not jnp.issubdtype(n.dtype, jnp.integer):
        raise ValueError(
            f"got lengths {n.shape} of {n.dtype} for rollouts {scored.shape}; wanted one integer a rollout"
        )
    if not isinstance(n, Tracer) and np.any(np.asarray(n) < 0):
        raise ValueError(f"got lengths from {n.min()}; wanted counts of tokens, >= 0")
    return jnp.where(scored, n, 0).astype(dtype)


@functools.partial(jax.jit, static_argnames=("ddof", "axis"))
def _z_scores(r: jax.Array, scored: jax.Array, epsilon: float, *, ddof: int, axis: int | None) -> jax.Array:
    """Rewards around the mean of their prompt, divided by the deviation of the prompt, or of the batch (None)."""
    centred = centre(r, scored)
    spread = centred if axis == 1 else centre(r, scored, axis)
    return centred / (jnp.sqrt(variance(spread, scored, axis, ddof)) + epsilon)


@jax.jit
def _against_others(r: jax.Array, scored: jax.Array) -> jax.Array:
    n = jnp.sum(scored, axis=1, keepdims=True, dtype=r.dtype)
    return centre(r, scored) * (n / jnp.maximum(n - 1, 1))


@functools.partial(jax.jit, static_argnames="ddof")
def _grpo_of_others(r: jax.Array, scored: jax.Array, epsilon: float, *, ddof: int) -> jax.Array:
    """Leave-one-out z-score from the (P, G, G) table of others, without a difference of squares that could cancel."""
    others = scored[:, None, :] & ~jnp.eye(r.shape[1], dtype=bool)[None]
    table = jnp.broadcast_to(r[:, None, :], others.shape)
    low, high = bounds(table, others, axis=2)
    spread = variance(centre(table, others, axis=2), others, axis=2, ddof=ddof)
    against_others = _against_others(r, scored)
    return jnp.where((high > low)[:, :, 0], against_others / (jnp.sqrt(spread)[:, :, 0] + epsilon), against_others)
