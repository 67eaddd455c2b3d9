"""Group-relative advantages: rewards (P, G) of P prompts with G rollouts each to advantages (P, G).

One estimator a function, arrays in, arrays out; all of them work under ``jax.jit`` and ``jax.vmap``.  They share these
conventions:

* a NaN reward means *not scored*: it enters no mean and no deviation, and its advantage is 0;
* a prompt whose scored rewards are all equal, or with fewer than two of them, carries no signal: its advantages are
  exactly 0 (decided by equality, because the rounded deviation of equal rewards need not be 0), and so is its gradient;
* rewards are centred first and squared after, so a constant added to all rewards of a prompt costs no precision;
* the result is float32, or float64 where float64 is given;
* nothing is stopped: gradients flow to the rewards.  A score-function loss treats advantages as constants.

The functions below the estimators measure how a batch of advantages is spread over prompts and groups.
"""

import math

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike


def grpo(rewards: ArrayLike, *, epsilon: float = 1e-6, ddof: int = 1, leave_one_out: bool = False) -> jax.Array:
    """Z-score of each reward among the rollouts of its prompt.

    A_i = (r_i - mean(r)) / (std(r) + epsilon).

    With ``leave_one_out``, mean and deviation are those of the *other* rollouts; where these are all equal the centred
    reward is not divided.

    Args:
      rewards: (P, G), any real unit; NaN = not scored.
      epsilon: added to the deviation, in units of reward, >= 0.
      ddof: 1 divides the squares by G - 1 (the convention of most libraries), 0 by G.
      leave_one_out: take the statistics of the other rollouts.

    Returns:
      (P, G) advantages.  Without ``leave_one_out`` each prompt's advantages sum to 0.

    Raises:
      ValueError: if rewards are not (P, G), or ddof is neither 0 nor 1.

    Source: Shao et al. 2024, DeepSeekMath (arXiv 2402.03300), section 4.1.2.  The paper states neither ddof nor
    epsilon; public trainers use ddof 1 and an epsilon between 1e-9 and 1e-4.  Some of them return the raw reward of a
    prompt with a single rollout; here it is 0.

    >>> [[f"{x:.3f}" for x in row] for row in grpo([[1.0, 0.0], [1.0, 1.0]])]
    [['0.707', '-0.707'], ['0.000', '0.000']]
    """
    if ddof not in (0, 1):
        raise ValueError(f"got ddof={ddof!r}; wanted 0 (divide by G) or 1 (divide by G - 1)")
    r, scored = _read(rewards)
    if leave_one_out:
        return _grpo_of_others(r, scored, epsilon, ddof)
    centred = _centre(r, scored)
    signal = has_signal(r)[:, None]
    freedom = jnp.maximum(_count(scored) - ddof, 1)
    variance = jnp.sum(centred**2, axis=1, keepdims=True) / freedom
    std = jnp.sqrt(jnp.where(signal, variance, 1))
    return jnp.where(signal, centred / (std + epsilon), 0)


def dr_grpo(rewards: ArrayLike) -> jax.Array:
    """Reward minus the mean of its prompt, not divided by the deviation.

    A_i = r_i - mean(r).

    Args:
      rewards: (P, G), any real unit; NaN = not scored.

    Returns:
      (P, G) advantages in units of reward; each prompt's sum to 0.

    Raises:
      ValueError: if rewards are not (P, G).

    Source: Liu et al. 2025, Understanding R1-Zero-like training (arXiv 2503.20783), section 3.2.  The other half of
    the proposal, a constant length in the loss, is ``losses.policy_loss(aggregation="constant")``.

    >>> dr_grpo([[1.0, 0.0, 0.5]]).tolist()
    [[0.5, -0.5, 0.0]]
    """
    r, scored = _read(rewards)
    return _centre(r, scored)


def rloo(rewards: ArrayLike) -> jax.Array:
    """Reward minus the mean of the other rollouts of its prompt.

    A_i = r_i - mean_{j != i}(r_j) = n / (n - 1) (r_i - mean(r)), with n the scored rollouts.

    Args:
      rewards: (P, G), any real unit; NaN = not scored.

    Returns:
      (P, G) advantages in units of reward; each prompt's sum to 0.  A single scored rollout has none to compare
      with: 0 (some trainers return its raw reward).

    Raises:
      ValueError: if rewards are not (P, G).

    Source: Ahmadian et al. 2024, Back to Basics (arXiv 2402.14740), section 3.3.

    >>> rloo([[1.0, 0.0, 0.5]]).tolist()
    [[0.75, -0.75, 0.0]]
    """
    r, scored = _read(rewards)
    n = _count(scored)
    return _centre(r, scored) * (n / jnp.maximum(n - 1, 1))


def has_signal(rewards: ArrayLike) -> jax.Array:
    """Whether a prompt's scored rewards differ at all: (P, G) rewards, NaN = not scored, to (P,) bool.

    Raises:
      ValueError: if rewards are not (P, G).

    >>> has_signal([[1.0, 0.0], [1.0, 1.0], [1.0, float("nan")]]).tolist()
    [True, False, False]
    """
    r, scored = _read(rewards)
    high = jnp.max(jnp.where(scored, r, -jnp.inf), axis=1)
    low = jnp.min(jnp.where(scored, r, jnp.inf), axis=1)
    return high > low


def zero_variance_share(rewards: ArrayLike) -> jax.Array:
    """Share of the P prompts that teach nothing, in [0, 1]: the mean of ``not has_signal(rewards)``.

    >>> float(zero_variance_share([[1.0, 0.0], [1.0, 1.0]]))
    0.5
    """
    return jnp.mean(~has_signal(rewards), dtype=jnp.float32)


def effective_sample_size(weights: ArrayLike) -> jax.Array:
    """How many equally weighted prompts these weights are worth: (sum w)^2 / sum w^2 (Kish), a count in [1, P].

    Args:
      weights: any shape, >= 0; a weight of 0 is an absent prompt.  All zero gives 0.

    >>> float(effective_sample_size([2.0, 2.0, 0.0]))
    2.0
    """
    w = jnp.asarray(weights)
    w = w / _or_one(jnp.max(jnp.abs(w), initial=0))
    return jnp.sum(w) ** 2 / _or_one(jnp.sum(w**2))


def group_share(advantages: ArrayLike, groups: ArrayLike, num_groups: int) -> jax.Array:
    """Each group's share of the batch's absolute advantage: sum of |A| in the group over sum of |A|.

    Args:
      advantages: (P, G).
      groups: (P,) int ids; an id outside 0 .. num_groups - 1 belongs to no group but counts in the total.
      num_groups: number of groups.

    Returns:
      (num_groups,) shares in [0, 1]; all 0 if every advantage is 0.

    Raises:
      ValueError: if the shapes do not fit.

    >>> group_share([[1.0, -1.0], [3.0, -3.0]], [1, 0], 2).tolist()
    [0.75, 0.25]
    """
    a, _ = _read(advantages)
    g = jnp.asarray(groups)
    if g.shape != a.shape[:1]:
        raise ValueError(f"got groups of shape {g.shape} for advantages of shape {a.shape}; wanted one id a prompt")
    mass = jnp.sum(jnp.abs(a), axis=1)
    member = g[:, None] == jnp.arange(num_groups)[None, :]
    return jnp.sum(jnp.where(member, mass[:, None], 0), axis=0) / _or_one(jnp.sum(mass))


def top_prompt_share(advantages: ArrayLike) -> jax.Array:
    """Share of the batch's absolute advantage that one prompt holds at most, in [0, 1]; (P, G) to a scalar.

    >>> float(top_prompt_share([[1.0, -1.0], [3.0, -3.0]]))
    0.75
    """
    a, _ = _read(advantages)
    mass = jnp.sum(jnp.abs(a), axis=1)
    return jnp.max(mass, initial=0) / _or_one(jnp.sum(mass))


def ceiling(num_prompts: int, num_rollouts: int) -> float:
    """The largest |A| a whitened batch can hold: sqrt((P G - 1)(G - 1) / G).

    It is reached when one rollout of one prompt stands out and no other prompt has any advantage, so a batch whose
    largest |A| is near it is governed by one prompt.  It holds for advantages that sum to 0 in every prompt and are
    divided by the deviation (ddof 1) of the whole batch, as in ``fairness.fair_grpo``.

    Raises:
      ValueError: if there is no prompt, or fewer than two rollouts.

    >>> round(ceiling(64, 8), 2)
    21.15
    """
    if num_prompts < 1 or num_rollouts < 2:
        raise ValueError(
            f"got {num_prompts} prompts x {num_rollouts} rollouts; wanted at least one prompt and two rollouts"
        )
    return math.sqrt((num_prompts * num_rollouts - 1) * (num_rollouts - 1) / num_rollouts)


def _read(rewards: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Rewards as float32 or wider with 0 for the unscored, kept NaN; and which are scored."""
    r = jnp.asarray(rewards)
    if r.ndim != 2:
        raise ValueError(f"got an array of shape {r.shape}; wanted (prompts, rollouts)")
    r = r.astype(jnp.promote_types(r.dtype, jnp.float32))
    return r, ~jnp.isnan(r)


def _count(scored: jax.Array) -> jax.Array:
    return jnp.sum(scored, axis=1, keepdims=True)


def _centre(r: jax.Array, scored: jax.Array) -> jax.Array:
    """Reward minus its prompt's mean; exactly 0 for the unscored and where there is no signal."""
    r0 = jnp.where(scored, r, 0)
    mean = jnp.sum(r0, axis=1, keepdims=True) / jnp.maximum(_count(scored), 1)
    return jnp.where(scored & has_signal(r)[:, None], r0 - mean, 0)


def _grpo_of_others(r: jax.Array, scored: jax.Array, epsilon: float, ddof: int) -> jax.Array:
    """Leave-one-out z-score from the (P, G, G) table of others: no difference of squares, so nothing cancels."""
    others = scored[:, None, :] & ~jnp.eye(r.shape[1], dtype=bool)[None]
    centred = _centre(r, scored)
    n = jnp.sum(others, axis=2)
    table = jnp.broadcast_to(centred[:, None, :], others.shape)
    mean = jnp.sum(jnp.where(others, table, 0), axis=2) / jnp.maximum(n, 1)
    deviations = jnp.where(others, table - mean[:, :, None], 0)
    high = jnp.max(jnp.where(others, table, -jnp.inf), axis=2)
    low = jnp.min(jnp.where(others, table, jnp.inf), axis=2)
    varied = high > low
    std = jnp.sqrt(jnp.where(varied, jnp.sum(deviations**2, axis=2) / jnp.maximum(n - ddof, 1), 1))
    against_others = jnp.where(scored, centred - mean, 0)
    return jnp.where(varied, against_others / (std + epsilon), against_others)


def _or_one(x: jax.Array) -> jax.Array:
    """A denominator that is safe when it is 0."""
    return jnp.where(x > 0, x, 1)
