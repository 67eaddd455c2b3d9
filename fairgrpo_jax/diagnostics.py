"""How a batch of advantages is spread over prompts and groups: what to log beside the reward.

A method that balances groups can end up learning from three prompts; these functions reveal it. They work under
``jax.jit`` and ``jax.vmap``, except ``ceiling``, which is arithmetic on two numbers.
"""

import math

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from fairgrpo_jax._statistics import or_one, wide
from fairgrpo_jax.advantages import has_signal


def zero_variance_share(rewards: ArrayLike) -> jax.Array:
    """Share of the P prompts without signal, in [0, 1]: the mean of ``not advantages.has_signal(rewards)``.

    Args:
        rewards: (P, G), NaN = not scored.

    Raises:
        ValueError: if rewards are not (P, G).

    >>> float(zero_variance_share([[1.0, 0.0], [1.0, 1.0]]))
    0.5
    """
    return jnp.mean(~has_signal(rewards), dtype=jnp.float32)


def effective_sample_size(weights: ArrayLike) -> jax.Array:
    """Effective number of equally weighted prompts: (sum w)^2 / sum w^2 (Kish), in [1, P].

    Args:
        weights: any shape, >= 0; a weight of 0 is an absent prompt. All zero gives 0.

    >>> float(effective_sample_size([2.0, 2.0, 0.0]))
    2.0
    """
    w = wide(jnp.asarray(weights))
    w = w / or_one(jnp.max(jnp.abs(w), initial=0))
    return jnp.sum(w) ** 2 / or_one(jnp.sum(w**2))


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
    mass = _mass(advantages)
    g = jnp.asarray(groups)
    if g.shape != mass.shape:
        raise ValueError(f"got groups of shape {g.shape} for {mass.shape[0]} prompts; wanted one id a prompt")
    member = g[:, None] == jnp.arange(num_groups)[None, :]
    return jnp.sum(jnp.where(member, mass[:, None], 0), axis=0) / or_one(jnp.sum(mass))


def top_prompt_share(advantages: ArrayLike) -> jax.Array:
    """Largest share of the batch's absolute advantage held by one prompt, in [0, 1]; (P, G) to a scalar.

    Raises:
        ValueError: if advantages are not (P, G).

    >>> float(top_prompt_share([[1.0, -1.0], [3.0, -3.0]]))
    0.75
    """
    mass = _mass(advantages)
    return jnp.max(mass, initial=0) / or_one(jnp.sum(mass))


def ceiling(num_prompts: int, num_rollouts: int) -> float:
    """The largest |A| possible in a whitened batch: sqrt((P G - 1)(G - 1) / G).

    It is reached when one rollout of one prompt differs and no other prompt has any advantage, so a batch whose largest
    |A| is near this value is dominated by one prompt. It applies to advantages that sum to 0 in every prompt and are
    divided by the deviation (ddof 1) of the whole batch, as in ``fairness.fair_grpo``.

    Raises:
        ValueError: if there are no prompts, or fewer than two rollouts.

    >>> round(ceiling(64, 8), 2)
    21.15
    """
    if num_prompts < 1 or num_rollouts < 2:
        raise ValueError(
            f"got {num_prompts} prompts x {num_rollouts} rollouts; wanted at least one prompt and two rollouts"
        )
    return math.sqrt((num_prompts * num_rollouts - 1) * (num_rollouts - 1) / num_rollouts)


def _mass(advantages: ArrayLike) -> jax.Array:
    """Sum of |A| per prompt, in float32 or wider."""
    a = jnp.asarray(advantages)
    if a.ndim != 2:
        raise ValueError(f"got an array of shape {a.shape}; wanted (prompts, rollouts)")
    return jnp.sum(jnp.abs(wide(a)), axis=1)
