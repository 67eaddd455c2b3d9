"""Maps an algorithm's name to its function: one step's rewards to advantages, the next memory, and scalars to log.

>>> scored = Scored.of([[1.0, 0.0], [1.0, 1.0]], domains=[0, 0], groups=[0, 1])
>>> advantages, memory, watched = estimate("rloo", scored, Memory(fairness.init(1, 2, 2)))
>>> advantages.tolist(), float(watched["reward/zero_variance_share"])
([[1.0, -1.0], [0.0, 0.0]], 0.5)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fairgrpo_jax import advantages as adv, diagnostics, fairness
from fairgrpo_jax.fairness import FairnessState
from fairgrpo_jax.normalization import RunningQuantiles


PLAIN: dict[str, Callable[[ArrayLike], jax.Array]] = {
    "grpo": adv.grpo,
    "dr_grpo": adv.dr_grpo,
    "rloo": adv.rloo,
    "gpg": adv.gpg,
    "pass_at_k": adv.pass_at_k,
}
OF_TOKENS: dict[str, Callable[[ArrayLike, ArrayLike], jax.Array]] = {
    "opo": adv.opo,
    "reinforce_plus_plus": adv.reinforce_plus_plus,
    "reinforce_plus_plus_baseline": adv.reinforce_plus_plus_baseline,
}
NAMES = (*PLAIN, *OF_TOKENS, *fairness.FAMILY, "group_dro", "gdpo")


class Memory(NamedTuple):
    """Statistics kept beside the weights; part of the checkpoint."""

    fairness: FairnessState
    quantiles: RunningQuantiles | None = None  # of the reward's normalised components


class Scored(NamedTuple):
    """All N prompts sampled for a step, G completions each, and the P of them that the update learns from."""

    rewards: ArrayLike  # (N, G), NaN = not scored, or excluded from learning
    domains: ArrayLike  # (N,) int32
    groups: ArrayLike  # (N,) int32, -1 = unlabelled
    kept: ArrayLike  # (P,) int32, rows of the N
    lengths: ArrayLike  # (P, G) int32, tokens that the loss counts
    components: ArrayLike | None = None  # (P, G, K) what the rewards of the P prompts are a weighted sum of

    @classmethod
    def of(
        cls, rewards: ArrayLike, domains: ArrayLike, groups: ArrayLike, lengths: ArrayLike | None = None
    ) -> "Scored":
        """A step that learns from every prompt; without ``lengths``, every completion has one token."""
        r = np.asarray(rewards)
        ones = np.ones(r.shape, np.int32) if lengths is None else lengths
        return cls(r, np.asarray(domains), np.asarray(groups), np.arange(len(r)), ones)


def estimate(
    name: str,
    scored: Scored,
    memory: Memory,
    *,
    focus: float = 0.0,
    step_size: float = 0.01,
    weights: Sequence[float] = (1.0,),
    **options: Any,
) -> tuple[jax.Array, Memory, dict[str, jax.Array]]:
    """Advantages (P, G) of the prompts that the update learns from, the next memory, and scalars for the log.

    The memory and the weights of prompts use all N prompts: when dynamic sampling keeps only prompts with signal,
    counts and mean rewards are still those of the patients, and Group DRO's q / p uses the shares that were drawn.
    Baselines and deviations use the P prompts.

    Args:
        name: one of ``NAMES``, the name of a function in ``advantages`` or ``fairness``.
        scored: the step; see ``Scored``.
        memory: from the previous step.
        focus: exponent of each prompt's failure rate, for every estimator; see ``advantages.focused``.
        step_size: step size of ``fairness.group_dro``.
        weights: (K,) of the components, for ``advantages.gdpo``.
        **options: options of ``fairness.temperatures``, for the FairGRPO family; those that a member fixes are ignored.

    Returns:
        The advantages; the memory after the step; and what to watch: ``fairness/effective_sample_size`` of the weights
        over prompts with signal, ``advantage/max_abs``, ``advantage/top_prompt_share``, and
        ``reward/zero_variance_share`` of the P prompts, scalars; and, from an estimator that finds its groups itself,
        ``clusters``, the label (N,) of every prompt.

    Raises:
        ValueError: if the name is unknown, and from the named function.
    """
    if name not in NAMES:
        raise ValueError(f"got algorithm {name!r}; wanted one of {', '.join(NAMES)}")
    everyone, rows = (scored.rewards, scored.domains, scored.groups), jnp.asarray(scored.kept)
    rewards = jnp.asarray(scored.rewards)[rows]
    by_prompt, seen, found = jnp.ones(rewards.shape[0]), memory.fairness, {}
    if name in fairness.FAMILY:
        by_prompt, labels, seen = fairness.labelled(name, *everyone, seen, **options)
        found = {"clusters": labels} if fairness.FAMILY[name].hidden else {}
        by_prompt = by_prompt[rows]
        values = fairness.rescale(rewards, by_prompt, epsilon=options.get("epsilon", 1e-6))
    elif name == "group_dro":
        by_prompt, seen = fairness.dro_weights(*everyone, seen, step_size=step_size)
        by_prompt = by_prompt[rows]
        values = by_prompt[:, None] * adv.grpo(rewards)
    elif name == "gdpo":
        parts = rewards[..., None] if scored.components is None else jnp.asarray(scored.components)
        values = adv.gdpo(jnp.where(jnp.isnan(rewards)[..., None], jnp.nan, parts), jnp.asarray(weights))
    elif name in OF_TOKENS:
        values = OF_TOKENS[name](rewards, scored.lengths)
    else:
        values = PLAIN[name](rewards)
    values = adv.focused(values, rewards, focus)
    active = jnp.where(adv.has_signal(rewards), by_prompt, 0.0)
    watched = {
        "fairness/effective_sample_size": diagnostics.effective_sample_size(active),
        "advantage/max_abs": jnp.abs(values).max(),
        "advantage/top_prompt_share": diagnostics.top_prompt_share(values),
        "reward/zero_variance_share": diagnostics.zero_variance_share(rewards),
    }
    return values, memory._replace(fairness=seen), watched | found
