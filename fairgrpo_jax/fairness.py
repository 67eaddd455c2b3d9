"""The FairGRPO family: advantages scaled by how large and how well served a prompt's domain and group are.

Beside it, Group DRO, and the hardness of demographic cells that fair sampling draws by (``hardness``).

    >>> state = init(num_domains=1, num_groups=2, num_rollouts=2, history=None)
    >>> rewards = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]  # three equally hard prompts, the third of a rarer group
    >>> advantages, state = fair_grpo(rewards, [0, 0, 0], [0, 0, 1], state)
    >>> print(advantages[:, 0].round(3))
    [0.791 0.791 1.118]

The history is an explicit ``FairnessState``: functions take and return it, and it belongs in the checkpoint. All
functions are pure and run under one ``jax.jit`` without host callbacks; values are checked only outside of jit. Rewards
are (P, G), NaN = not scored; domains (P,) and groups (P,) are integer ids, group -1 = unlabelled. Results are float32,
or float64 for float64 rewards. No gradient is stopped: gradients flow to the rewards, with cluster labels taken as
fixed (the counts of a binary history have no gradient).
"""

import dataclasses
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpy.typing import ArrayLike

from fairgrpo_jax import _fairness_state as memory, _temperatures as formula, advantages as adv
from fairgrpo_jax._fairness_state import Clustering, FairnessState, init
from fairgrpo_jax._hardness import HardnessState, Measure, hardness, init_hardness, observe_hardness, residual_weights
from fairgrpo_jax._statistics import or_one
from fairgrpo_jax._temperatures import Clamp, DomainMean, Levels


__all__ = [
    "FAMILY", "FairnessState", "HardnessState", "Measure", "Member", "Options", "dro_weights", "drpo", "fair_grpo",
    "fair_grpo_nd", "group_dro", "group_weights", "hardness", "init", "init_hardness", "labelled", "observe_hardness",
    "rescale", "residual_weights", "temperatures", "weigh",
]  # fmt: skip

Statistics = Literal["cumulative", "batch", "ema"]
_CHOICES = {
    "statistics": get_args(Statistics),
    "clamp": get_args(Clamp),
    "levels": get_args(Levels),
    "domain_mean": get_args(DomainMean),
    "clustering": get_args(Clustering),
}
_RANGES = {
    "decay": ("0 <= decay < 1", lambda x: 0 <= x < 1),
    "max_weight": ("max_weight >= 1, or None", lambda x: x is None or x >= 1),
    "epsilon": ("epsilon > 0", lambda x: 0 < x < np.inf),
    "size_exponent": ("size_exponent >= 0", lambda x: 0 <= x < np.inf),
    "mean_exponent": ("mean_exponent >= 0", lambda x: 0 <= x < np.inf),
    "shift": ("shift >= 0", lambda x: 0 <= x < np.inf),
    "step_size": ("step_size > 0", lambda x: 0 < x < np.inf),
}


class Options(TypedDict, total=False):
    """The options of ``temperatures`` that ``fair_grpo_nd`` and ``drpo`` leave open, with the same defaults."""

    statistics: Statistics
    decay: float
    max_weight: float | None
    epsilon: float
    k_max: int
    clustering: Clustering
    size_exponent: float
    mean_exponent: float
    levels: Levels
    sort_vectors: bool
    shift: float


class Member(NamedTuple):
    """The options that a member of the family fixes; the caller chooses all others."""

    hidden: bool = False  # every prompt is treated as unlabelled
    fixed: dict[str, Any] = {}  # options of ``temperatures`` that belong to the method
    defaults: dict[str, Any] = {}  # options of ``temperatures`` with a different default


FAMILY = {
    "fair_grpo": Member(),
    "fair_grpo_nd": Member(hidden=True, fixed={"clamp": "factor", "domain_mean": "inverse_size"}),
    "drpo": Member(hidden=True, fixed={"clamp": "code", "domain_mean": "inverse_size"}, defaults={"k_max": 10}),
}


def fair_grpo(
    rewards: ArrayLike,
    domains: ArrayLike,
    groups: ArrayLike,
    state: FairnessState,
    *,
    statistics: Statistics = "cumulative",
    decay: float = 0.99,
    clamp: Clamp = "code",
    max_weight: float | None = None,
    epsilon: float = 1e-6,
    k_max: int = 3,
    clustering: Clustering = "jax",
    size_exponent: float = 0.5,
    mean_exponent: float = 1.0,
    levels: Levels = "both",
    sort_vectors: bool = False,
    shift: float = 0.0,
) -> tuple[jax.Array, FairnessState]:
    """FairGRPO: ``rescale(rewards, weights)`` with the weights of ``temperatures``.

    A_i = w s_i / (std of all w s + epsilon),  s_i = (r_i - mean(r)) / (std(r) + epsilon),  w = 1 / (T_d T_g).

    With all groups -1 this is FairGRPO-ND as in the paper's runs: no demographics, the plain domain mean.

    Args:
        rewards: (P, G) >= -shift, NaN = not scored; the whole batch of the step, over all processes.
        domains: (P,) int in 0 .. D - 1.
        groups: (P,) int in 0 .. Gr - 1, or -1 = unlabelled.
        state: from ``init`` or the step before.
        statistics: how statistics are kept; ``temperatures`` says more of this and all that follow.
        decay: per step, of ``"ema"``.
        clamp: how small temperatures are kept away from 0.
        max_weight: limits w to [1/m, m] times its median; None sets no limit.
        epsilon: bound of the clamps; also added to both deviations.
        k_max: maximum number of clusters per domain.
        clustering: ``"jax"``, or the authors' ``"sklearn"``.
        size_exponent: of the number of prompts.
        mean_exponent: of the mean reward.
        levels: domain and group, or one of them.
        sort_vectors: sort the reward vectors before clustering.
        shift: added to all rewards before means and vectors.

    Returns:
        (P, G) advantages, each prompt's sum to 0, with standard deviation 1 over the batch; and the next state.

    Raises:
        ValueError: see ``temperatures``.

    Source: FairGRPO (arXiv 2510.19893; v2 "EQPO"), stages 1 to 3, as read by the authors' code. The paper also
    subtracts the batch mean, which is already 0.
    """
    return _fair(
        "fair_grpo", rewards, domains, groups, state,
        statistics=statistics, decay=decay, clamp=clamp, max_weight=max_weight, epsilon=epsilon, k_max=k_max,
        clustering=clustering, size_exponent=size_exponent, mean_exponent=mean_exponent, levels=levels,
        sort_vectors=sort_vectors, shift=shift,
    )  # fmt: skip


def fair_grpo_nd(
    rewards: ArrayLike, domains: ArrayLike, state: FairnessState, **options: Unpack[Options]
) -> tuple[jax.Array, FairnessState]:
    """FairGRPO without demographics, a separate estimator in the authors' later code.

    As ``fair_grpo`` with every prompt unlabelled, but the domain's mean reward weighs each cluster's mean mu_c by the
    inverse of its size, sum_c(mu_c / n_c) / sum_c(1 / n_c), and T_d and T_g are each kept >= epsilon.

    Args, returns and errors are those of ``fair_grpo``, without groups and clamp.

    Source: FairGRPO_ND of the authors' code (the other form, with the plain mean, is ``fair_grpo`` with groups -1).
    Their code also caps T_d T_g at 1e6, which is reached only after some 10^6 prompts of a domain and would then undo
    the weighting, and falls back to raw rewards for a prompt of one rollout; neither is done here.

    >>> a, _ = fair_grpo_nd([[1.0, 0.0], [0.0, 1.0]], [0, 0], init(1, 0, 2, history="binary"))
    >>> [[f"{x:.3f}" for x in row] for row in a]
    [['0.866', '-0.866'], ['-0.866', '0.866']]
    """
    return _fair("fair_grpo_nd", rewards, domains, jnp.full(np.shape(domains), -1), state, **options)


def drpo(
    rewards: ArrayLike, domains: ArrayLike, state: FairnessState, **options: Unpack[Options]
) -> tuple[jax.Array, FairnessState]:
    """DRPO, the predecessor: domains and clusters of reward vectors, no demographics.

    As ``fair_grpo_nd`` with more clusters (``k_max`` is 10 unless given), and only T_d kept >= epsilon.

    Args, returns and errors are those of ``fair_grpo``, without groups and clamp.

    Source: QoQ-Med (arXiv 2506.00711), equations 1 to 3. The paper's damping by the KL to the reference is not applied
    here, nor in the authors' code.

    >>> a, _ = drpo([[1.0, 0.0], [0.0, 1.0]], [0, 0], init(1, 0, 2, history="binary"))
    >>> [[f"{x:.3f}" for x in row] for row in a]
    [['0.866', '-0.866'], ['-0.866', '0.866']]
    """
    return _fair("drpo", rewards, domains, jnp.full(np.shape(domains), -1), state, **options)


def weigh(
    name: str, rewards: ArrayLike, domains: ArrayLike, groups: ArrayLike, state: FairnessState, **options: Any
) -> tuple[jax.Array, FairnessState]:
    """Weights (P,) of a member of the family, and the next state; ``rescale`` turns them into advantages.

    Args:
        name: a key of ``FAMILY``.
        rewards: (P, G), as for ``temperatures``.
        domains: (P,) int.
        groups: (P,) int; ignored by members without demographics.
        state: from ``init`` or the step before.
        **options: options of ``temperatures``; those that the member fixes are ignored.

    Raises:
        ValueError: if the name is unknown, and see ``temperatures``.

    >>> weights, _ = weigh("fair_grpo", [[1.0, 0.0]] * 3, [0] * 3, [0, 0, 1], init(1, 2, 2, history=None))
    >>> (weights / weights[0]).round(3).tolist()
    [1.0, 1.0, 1.4140000343322754]
    """
    weights, _, state = labelled(name, rewards, domains, groups, state, **options)
    return weights, state


def labelled(
    name: str, rewards: ArrayLike, domains: ArrayLike, groups: ArrayLike, state: FairnessState, **options: Any
) -> tuple[jax.Array, jax.Array, FairnessState]:
    """As ``weigh``, with the label (P,) of each prompt as the second result: its group, or Gr + its cluster.

    >>> _, labels, _ = labelled("fair_grpo", [[1.0, 0.0]] * 2, [0] * 2, [0, -1], init(1, 2, 2, history="binary"))
    >>> labels.tolist()
    [0, 2]
    """
    if name not in FAMILY:
        raise ValueError(f"got {name!r}; wanted one of {', '.join(FAMILY)}")
    member = FAMILY[name]
    groups = jnp.full(np.shape(domains), -1) if member.hidden else groups
    return temperatures(rewards, domains, groups, state, **(member.defaults | options | member.fixed))


def temperatures(
    rewards: ArrayLike,
    domains: ArrayLike,
    groups: ArrayLike,
    state: FairnessState,
    *,
    statistics: Statistics = "cumulative",
    decay: float = 0.99,
    clamp: Clamp = "code",
    max_weight: float | None = None,
    epsilon: float = 1e-6,
    k_max: int = 3,
    clustering: Clustering = "jax",
    size_exponent: float = 0.5,
    mean_exponent: float = 1.0,
    levels: Levels = "both",
    sort_vectors: bool = False,
    shift: float = 0.0,
    domain_mean: DomainMean = "plain",
) -> tuple[jax.Array, jax.Array, FairnessState]:
    """Weight of each prompt, w = 1 / (T_d T_g) with T = N^a mean(r)^b, of its domain and of its group in the domain.

    N counts prompts, mean(r) averages their mean rewards; both include this batch. Unlabelled prompts get, as their
    group, a cluster of the reward vectors of the domain's unlabelled prompts (``grouping.cluster``).

    Statistics: ``"cumulative"``, since the state was empty (the authors' code); ``"batch"``, of this batch alone (the
    paper's text; the state passed in is ignored and the one returned holds this batch); ``"ema"``, lifetime counts with
    means that move by at least 1 - decay each time a group occurs. A ring that has overflowed keeps the clusters of
    its window and scales their counts up to all unlabelled prompts seen; with ``"ema"`` clusters are not decayed.

    Clamps: ``"code"``, max(T_d, epsilon) T_g, and w = 1 if that is 0; ``"product"``, max(T_d T_g, epsilon) (the paper);
    ``"factor"``, max(T_d, epsilon) max(T_g, epsilon) (DRPO's paper). They differ only where no reward was ever
    positive.

    Args:
        rewards: (P, G) >= -shift, NaN = not scored. A prompt without any score is not counted. A vector with a NaN is
            not kept for clustering; its prompt gets the nearest cluster by the scored rollouts.
        domains: (P,) int in 0 .. D - 1.
        groups: (P,) int in 0 .. Gr - 1, or -1 = unlabelled.
        state: from ``init`` or the step before.
        statistics: see above.
        decay: decay per step of ``"ema"``, in [0, 1).
        clamp: see above.
        max_weight: m >= 1 limits w to [1/m, m] times the median w of the prompts with signal; None sets no limit.
            Without one, a hard group with a single success can hold nearly the whole batch.
        epsilon: bound of the clamps, > 0.
        k_max: maximum number of clusters per domain, >= 1.
        clustering: ``"jax"``, or ``"sklearn"`` to repeat the authors' clusters (on the host, not under jit).
        size_exponent: a >= 0; 0 ignores the number of prompts.
        mean_exponent: b >= 0; 0 ignores the mean reward.
        levels: ``"both"``; ``"group"`` sets T_d = 1, ``"domain"`` sets T_g = 1.
        sort_vectors: sort the vectors before clustering, so that the order of the rollouts, which is arbitrary, has no
            effect. A binary history is then clustered exactly, without random starts (``grouping.cluster_successes``).
        shift: >= 0, in units of reward; added to all rewards before means and vectors, for rewards that are bounded
            below by -shift, such as those with a length penalty. It must be the same in every step, and 0 with a binary
            history.
        domain_mean: ``"plain"``, over prompts; ``"inverse_size"``, see ``fair_grpo_nd``, where the domain has clusters.

    Returns:
        weights (P,); that of a prompt without signal has no effect (``advantages.has_signal``); labels (P,)
        int32, the group id, or Gr + cluster for the unlabelled; and the next state.

    Raises:
        ValueError: if shapes or options do not fit; and, outside of jit, for a reward below -shift, an id out of range,
            or a reward other than 0 and 1 with a binary history. Under jit a mean below 0 counts as 0, so that no
            advantage changes its sign.

    Source: FairGRPO (arXiv 2510.19893), stages 2 and 3; a = 1/2, b = 1, both levels, unsorted and unshifted, there and
    in the authors' code.

    >>> weights, labels, _ = temperatures([[1.0, 0.0]] * 3, [0, 0, 0], [0, 0, 1], init(1, 2, 2, history=None))
    >>> print((weights / weights[0]).round(3), labels)
    [1.    1.    1.414] [0 0 1]
    """
    _check_choices(statistics=statistics, clamp=clamp, clustering=clustering, levels=levels, domain_mean=domain_mean)
    _check_ranges(
        decay=decay, max_weight=max_weight, epsilon=epsilon, size_exponent=size_exponent, mean_exponent=mean_exponent,
        shift=shift,
    )  # fmt: skip
    wanted = f"finite rewards >= -shift = {0.0 - shift}; raise shift, or clip them"
    r, d, g = memory.read(rewards, domains, groups, state, shift=shift, highest=np.inf, wanted=wanted)
    if clustering == "sklearn" and isinstance(r, Tracer):
        raise ValueError("got clustering='sklearn' under jit, vmap or grad; wanted 'jax' there")
    if statistics == "batch":
        state = dataclasses.replace(jax.tree.map(jnp.zeros_like, state), dro_log_weight=state.dro_log_weight)
    lifted = r if isinstance(shift, (int, float)) and shift == 0 else r + shift
    state = memory.observe(lifted, d, g, state, decay=decay if statistics == "ema" else 1.0)
    clusters = memory.find_clusters(
        memory.unlabelled(d, g, state), state, k_max=k_max, clustering=clustering, sort_vectors=sort_vectors
    )
    of_domain, of_group, labels = formula.look_up(
        lifted, d, g, state, clusters, domain_mean=domain_mean, sort_vectors=sort_vectors
    )
    weights = formula.weigh(
        of_domain, of_group, adv.has_signal(r), epsilon, max_weight, size_exponent, mean_exponent,
        clamp=clamp, levels=levels,
    )  # fmt: skip
    return weights.astype(r.dtype), labels, state


def rescale(rewards: ArrayLike, weights: ArrayLike, *, epsilon: float = 1e-6) -> jax.Array:
    """Z-score within each prompt, times the prompt's weight, divided by the deviation (ddof 1) of the whole batch.

    Args:
        rewards: (P, G), NaN = not scored: excluded from the deviation, advantage 0.
        weights: (P,) > 0; only their ratios matter.
        epsilon: added to both deviations.

    Returns:
        (P, G). Rewards that are all equal give 0.

    Raises:
        ValueError: if the shapes do not fit.

    >>> [[f"{x:.3f}" for x in row] for row in rescale([[1.0, 0.0], [1.0, 0.0]], [1.0, 3.0])]
    [['0.387', '-0.387'], ['1.162', '-1.162']]
    """
    scores = adv.grpo(rewards, epsilon=epsilon)
    w = jnp.asarray(weights, scores.dtype)
    if w.shape != scores.shape[:1]:
        raise ValueError(f"got weights {w.shape} for rewards {scores.shape}; wanted one a prompt")
    return _to_unit_deviation(scores, w, jnp.asarray(rewards), epsilon)


@jax.jit
def _to_unit_deviation(scores: jax.Array, w: jax.Array, rewards: jax.Array, epsilon: float) -> jax.Array:
    scaled = scores * w[:, None]
    freedom = jnp.maximum(jnp.sum(~jnp.isnan(rewards)) - 1, 1)
    variance = jnp.sum(scaled**2) / freedom  # the mean is 0: every prompt's scores sum to 0
    positive = variance > 0
    return scaled / (jnp.sqrt(jnp.where(positive, variance, 1)) + epsilon)


def group_dro(
    rewards: ArrayLike,
    domains: ArrayLike,
    groups: ArrayLike,
    state: FairnessState,
    *,
    step_size: float = 0.01,
    epsilon: float = 1e-6,
) -> tuple[jax.Array, FairnessState]:
    """Group DRO: the cells with the highest losses get the most weight, by exponentiated gradient ascent.

    A_i = (q_c / p_c) s_i,  q_c <- q_c exp(step_size l_c) / Z,  l_c = 1 - mean reward of cell c in this batch.

    A cell is a group in a domain; the unlabelled prompts of a domain are one cell. s is the z-score of
    ``advantages.grpo`` and p_c the cell's share of the scored prompts, so that the mean over the batch is the gradient
    of -sum_c q_c l_c, except for the division by each prompt's deviation. q is updated before it is used. A cell that
    is absent from the batch has l_c = 0: it loses share as the others grow.

    The state keeps the sum of step_size l_c of each cell, and q = softmax of the sums over the cells that have ever
    occurred. That is the update above from a uniform start q = 1/C: the factors exp(step_size l_c) multiply to the
    exponential of their sum, and 1/C and every Z are the same for all cells and cancel.

    Keep step_size <= 0.01. The weight of a cell whose errors cannot be reduced grows without bound: in our study with
    step_size 0.05, single cells reached 6 to 7 times their even share, |A| reached 46, and the worst group got worse.

    Args:
        rewards: (P, G) in [0, 1], NaN = not scored; a prompt without any score is not counted.
        domains: (P,) int in 0 .. D - 1.
        groups: (P,) int in 0 .. Gr - 1, or -1 = unlabelled.
        state: from ``init`` (``history=None`` suffices) or the previous step.
        step_size: step size of the ascent, per unit of reward, > 0.
        epsilon: added to the deviation of each prompt, > 0.

    Returns:
        (P, G) advantages, each prompt's sum to 0; they are not divided by the deviation of the batch, so their scale
        follows q / p. Also the next state, whose counts and means include this batch.

    Raises:
        ValueError: if shapes or options do not fit; and, outside of jit, for an id or a reward out of range.

    Source: Sagawa et al. 2020, Distributionally robust neural networks (arXiv 1911.08731), algorithm 1, in the form of
    the authors' code (all cells of a batch at once, step_size 0.01), without its adjustment for small groups. The loss
    1 - reward is ours. Their cells are known beforehand and share q from the start; here a cell has no weight until it
    occurs. A cell that first occurs late starts behind, as in their code.

    >>> rewards = [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    >>> advantages, state = group_dro(rewards, [0] * 4, [0, 0, 1, 1], init(1, 2, 2, history=None), step_size=1.0)
    >>> [f"{x:.3f}" for x in advantages[:, 0]], [f"{q:.3f}" for q in group_weights(state)[0]]
    (['0.534', '0.000', '0.000', '0.880'], ['0.378', '0.622', '0.000'])
    """
    _check_ranges(epsilon=epsilon)
    weights, state = dro_weights(rewards, domains, groups, state, step_size=step_size)
    return weights[:, None] * adv.grpo(rewards, epsilon=epsilon), state


def dro_weights(
    rewards: ArrayLike, domains: ArrayLike, groups: ArrayLike, state: FairnessState, *, step_size: float = 0.01
) -> tuple[jax.Array, FairnessState]:
    """Weights (P,) of ``group_dro``, q_c / p_c of each prompt's cell, and the next state.

    Args, errors and source are those of ``group_dro``.

    >>> rewards = [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    >>> weights, _ = dro_weights(rewards, [0] * 4, [0, 0, 1, 1], init(1, 2, 2, history=None), step_size=1.0)
    >>> [f"{x:.3f}" for x in weights]
    ['0.755', '0.755', '1.245', '1.245']
    """
    _check_ranges(step_size=step_size)
    r, d, g = memory.read(
        rewards, domains, groups, state, shift=0.0, highest=1.0, wanted="0 <= rewards <= 1; scale them"
    )
    return _ascend(r, d, g, memory.observe(r, d, g, state, decay=1.0), step_size)


def group_weights(state: FairnessState) -> jax.Array:
    """The weights q of ``group_dro``: (D, Gr + 1), the last column for the unlabelled; they sum to 1.

    Softmax of the accumulated losses over the cells that have ever occurred; 0 for the others.

    >>> group_weights(init(1, 1, 2)).tolist()
    [[0.0, 0.0]]
    """
    return _softmax_of_occurring(state)


@jax.jit
def _softmax_of_occurring(state: FairnessState) -> jax.Array:
    grown = jnp.exp(state.dro_log_weight - jnp.max(state.dro_log_weight))
    grown = jnp.where(state.group_count > 0, grown, 0)
    return grown / or_one(jnp.sum(grown))


def _fair(
    name: str,
    rewards: ArrayLike,
    domains: ArrayLike,
    groups: ArrayLike,
    state: FairnessState,
    *,
    epsilon: float = 1e-6,
    **options: Any,
) -> tuple[jax.Array, FairnessState]:
    weights, state = weigh(name, rewards, domains, groups, state, epsilon=epsilon, **options)
    return rescale(rewards, weights, epsilon=epsilon), state


@jax.jit
def _ascend(
    r: jax.Array, d: jax.Array, g: jax.Array, state: FairnessState, step_size: float
) -> tuple[jax.Array, FairnessState]:
    """Each prompt's weight, and the state after a step of ascent on the cells' losses."""
    mean, counted = memory.prompt_means(r)
    cell = d, memory.column(g, state)
    count, reward = memory.tally(state.group_count, state.group_mean, cell, mean, counted)
    risen = state.dro_log_weight + jnp.where(count > 0, step_size * (1 - reward), 0).astype(reward.dtype)
    share = count.astype(reward.dtype) / jnp.maximum(jnp.sum(count), 1)
    state = dataclasses.replace(state, dro_log_weight=risen)
    return (group_weights(state) / or_one(share))[cell].astype(r.dtype), state


def _check_choices(**options: str) -> None:
    for name, got in options.items():
        if got not in _CHOICES[name]:
            raise ValueError(f"got {name}={got!r}; wanted one of {_CHOICES[name]}")


def _check_ranges(**options: float | None) -> None:
    for name, got in options.items():
        wanted, holds = _RANGES[name]
        if not isinstance(got, Tracer) and not holds(got):
            raise ValueError(f"got {name}={got}; wanted {wanted}")
