"""The FairGRPO family: advantages scaled by how large and how well served a prompt's domain and group are.

    >>> state = init(num_domains=1, num_groups=2, num_rollouts=2, history="binary")
    >>> rewards = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]  # three equally hard prompts, the third of a rarer group
    >>> advantages, state = fair_grpo(rewards, [0, 0, 0], [0, 0, 1], state)
    >>> print(advantages[:, 0].round(3))
    [0.791 0.791 1.118]

What has been seen so far is an explicit ``FairnessState``: it goes in, comes out, and belongs in the checkpoint.  All
functions are pure and run under one ``jax.jit``, without host callbacks; ids and signs are checked only outside of jit.
Rewards are (P, G), NaN = not scored; domains (P,) and groups (P,) are integer ids, group -1 = unlabelled.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpy.typing import ArrayLike

from fairgrpo_jax import advantages as adv, grouping
from fairgrpo_jax.fairness_state import FairnessState, init, is_table, observe, remembered


__all__ = ["FairnessState", "drpo", "fair_grpo", "fair_grpo_nd", "init", "rescale", "temperatures"]

Statistics = Literal["cumulative", "batch", "ema"]
Clamp = Literal["code", "product", "factor"]
Clustering = Literal["jax", "sklearn"]
DomainMean = Literal["plain", "inverse_size"]


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
) -> tuple[jax.Array, FairnessState]:
    """FairGRPO: ``rescale(rewards, weights)`` with the weights of ``temperatures``.

    A_i = w s_i / (std of all w s + epsilon),  s_i = (r_i - mean(r)) / (std(r) + epsilon),  w = 1 / (T_d T_g).

    Groups of -1 throughout give FairGRPO-ND as the paper's runs had it: no demographics, the plain domain mean.

    Args:
      rewards: (P, G) >= 0, NaN = not scored; the whole batch of the step, over all processes.
      domains: (P,) int in 0 .. D - 1.
      groups: (P,) int in 0 .. Gr - 1, or -1 = unlabelled.
      state: from ``init`` or the step before.
      statistics, decay, clamp, max_weight, epsilon, k_max, clustering: see ``temperatures``.

    Returns:
      (P, G) advantages, each prompt's sum to 0, with standard deviation 1 over the batch; and the next state.

    Raises:
      ValueError: see ``temperatures``.

    Source: FairGRPO (arXiv 2510.19893; v2 "EQPO"), stages 1 to 3, in the reading of the authors' code.  The paper also
    subtracts the batch mean, which is already 0.
    """
    weights, _, state = temperatures(
        rewards, domains, groups, state,
        statistics=statistics, decay=decay, clamp=clamp, max_weight=max_weight, epsilon=epsilon, k_max=k_max,
        clustering=clustering,
    )  # fmt: skip
    return rescale(rewards, weights, epsilon=epsilon), state


def fair_grpo_nd(
    rewards: ArrayLike,
    domains: ArrayLike,
    state: FairnessState,
    *,
    statistics: Statistics = "cumulative",
    decay: float = 0.99,
    max_weight: float | None = None,
    epsilon: float = 1e-6,
    k_max: int = 3,
    clustering: Clustering = "jax",
) -> tuple[jax.Array, FairnessState]:
    """FairGRPO without demographics, the dedicated estimator of the authors' later code.

    As ``fair_grpo`` with every prompt unlabelled, but the domain's mean reward weighs each cluster's mean mu_c by the
    inverse of its size, sum_c(mu_c / n_c) / sum_c(1 / n_c), and T_d and T_g are each kept >= epsilon.

    Args and returns are those of ``fair_grpo``.

    Source: FairGRPO_ND of the authors' code (the other form, with the plain mean, is ``fair_grpo`` with groups -1).
    Their code also caps T_d T_g at 1e6, which is reached only after some 10^6 prompts of a domain and would then undo
    the weighting, and falls back to raw rewards for a prompt of one rollout; neither is done here.

    >>> a, _ = fair_grpo_nd([[1.0, 0.0], [0.0, 1.0]], [0, 0], init(1, 0, 2, history="binary"))
    >>> [[f"{x:.3f}" for x in row] for row in a]
    [['0.866', '-0.866'], ['-0.866', '0.866']]
    """
    weights, _, state = temperatures(
        rewards, domains, jnp.full(np.shape(domains), -1), state,
        statistics=statistics, decay=decay, clamp="factor", max_weight=max_weight, epsilon=epsilon, k_max=k_max,
        clustering=clustering, domain_mean="inverse_size",
    )  # fmt: skip
    return rescale(rewards, weights, epsilon=epsilon), state


def drpo(
    rewards: ArrayLike,
    domains: ArrayLike,
    state: FairnessState,
    *,
    statistics: Statistics = "cumulative",
    decay: float = 0.99,
    max_weight: float | None = None,
    epsilon: float = 1e-6,
    k_max: int = 10,
    clustering: Clustering = "jax",
) -> tuple[jax.Array, FairnessState]:
    """DRPO, the predecessor: domains and clusters of reward vectors, no demographics.

    As ``fair_grpo_nd`` with more clusters, and only T_d kept >= epsilon.

    Args and returns are those of ``fair_grpo``.

    Source: QoQ-Med (arXiv 2506.00711), equations 1 to 3.  The paper's damping by the KL to the reference is not
    applied, as it is not in the authors' code.

    >>> a, _ = drpo([[1.0, 0.0], [0.0, 1.0]], [0, 0], init(1, 0, 2, history="binary"))
    >>> [[f"{x:.3f}" for x in row] for row in a]
    [['0.866', '-0.866'], ['-0.866', '0.866']]
    """
    weights, _, state = temperatures(
        rewards, domains, jnp.full(np.shape(domains), -1), state,
        statistics=statistics, decay=decay, clamp="code", max_weight=max_weight, epsilon=epsilon, k_max=k_max,
        clustering=clustering, domain_mean="inverse_size",
    )  # fmt: skip
    return rescale(rewards, weights, epsilon=epsilon), state


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
    domain_mean: DomainMean = "plain",
) -> tuple[jax.Array, jax.Array, FairnessState]:
    """Weight of each prompt, w = 1 / (T_d T_g) with T = sqrt(N) mean(r), of its domain and of its group in the domain.

    N counts prompts, mean(r) averages their mean rewards; both include this batch.  Unlabelled prompts get, as their
    group, a cluster of the reward vectors of the domain's unlabelled prompts (``grouping.cluster``).

    Statistics: ``"cumulative"``, since the state was empty (the authors' code); ``"batch"``, of this batch alone (the
    paper's text; the state passed in is ignored and the one returned holds this batch); ``"ema"``, lifetime counts with
    means that move by at least 1 - decay each time a group occurs.  A ring that has overflowed keeps the clusters of
    its window and scales their counts up to all unlabelled prompts seen; under ``"ema"`` clusters are not decayed.

    Clamps: ``"code"``, max(T_d, epsilon) T_g, and w = 1 if that is 0; ``"product"``, max(T_d T_g, epsilon) (the paper);
    ``"factor"``, max(T_d, epsilon) max(T_g, epsilon) (DRPO's paper).  They differ only where nothing was ever rewarded.

    Args:
      rewards: (P, G) >= 0, NaN = not scored.  A prompt without any score is not counted.  A vector with a NaN is not
        kept for clustering; its prompt takes the cluster that is nearest in the scored rollouts.
      domains: (P,) int in 0 .. D - 1.
      groups: (P,) int in 0 .. Gr - 1, or -1 = unlabelled.
      state: from ``init`` or the step before.
      statistics: see above.
      decay: of ``"ema"``, in [0, 1).
      clamp: see above.
      max_weight: m >= 1 limits w to [1/m, m] times the median w of the prompts with signal; None does not.  A hard
        group with one lucky prompt can otherwise hold nearly the whole batch.
      epsilon: of the clamps, > 0.
      k_max: most clusters a domain, >= 1.
      clustering: ``"jax"``, or ``"sklearn"`` to repeat the authors' clusters (on the host, not under jit).
      domain_mean: ``"plain"``, over prompts; ``"inverse_size"``, see ``fair_grpo_nd``, where the domain has clusters.

    Returns:
      weights (P,) float32, of which those of prompts without signal matter to nobody (``advantages.has_signal``);
      labels (P,) int32, the group id, or Gr + cluster for the unlabelled; and the next state.

    Raises:
      ValueError: if shapes or options do not fit; and, outside of jit, for a negative reward (it would turn the sign of
        the gradient), an id out of range, or a reward other than 0 and 1 with a binary history.

    >>> weights, labels, _ = temperatures([[1.0, 0.0]] * 3, [0, 0, 0], [0, 0, 1], init(1, 2, 2, history="binary"))
    >>> print((weights / weights[0]).round(3), labels)
    [1.    1.    1.414] [0 0 1]
    """
    _check_options(statistics, decay, clamp, max_weight, epsilon, clustering, domain_mean)
    r, d, g = _read(rewards, domains, groups, state)
    if statistics == "batch":
        state = jax.tree.map(jnp.zeros_like, state)
    state = observe(r, d, g, state, decay=decay if statistics == "ema" else 1.0)
    needed = jnp.zeros(state.cursor.shape, bool).at[d].max(g < 0)
    if clustering == "sklearn":
        clusters = _clusters_on_host(needed, state, k_max)
    else:
        clusters = _clusters(needed, state, k_max)
    weights, labels = _weigh(r, d, g, state, clusters, epsilon, max_weight, clamp=clamp, domain_mean=domain_mean)
    return weights, labels, state


def rescale(rewards: ArrayLike, weights: ArrayLike, *, epsilon: float = 1e-6) -> jax.Array:
    """Z-score within each prompt, times the prompt's weight, divided by the deviation (ddof 1) of the whole batch.

    Args:
      rewards: (P, G), NaN = not scored: left out of the deviation, advantage 0.
      weights: (P,) > 0; only their ratios matter.
      epsilon: added to both deviations.

    Returns:
      (P, G).  Rewards that are all alike give 0.

    >>> [[f"{x:.3f}" for x in row] for row in rescale([[1.0, 0.0], [1.0, 0.0]], [1.0, 3.0])]
    [['0.387', '-0.387'], ['1.162', '-1.162']]
    """
    scores = adv.grpo(rewards, epsilon=epsilon)
    scaled = scores * jnp.asarray(weights, scores.dtype)[:, None]
    freedom = jnp.maximum(jnp.sum(~jnp.isnan(jnp.asarray(rewards))) - 1, 1)
    variance = jnp.sum(scaled**2) / freedom  # the mean is 0: every prompt's scores sum to 0
    positive = variance > 0
    return scaled / (jnp.sqrt(jnp.where(positive, variance, 1)) + epsilon)


@dataclasses.dataclass(frozen=True)
class _Clusters:
    sizes: jax.Array  # (D, k_max), 0 = no such cluster
    centroids: jax.Array  # (D, k_max, G)


jax.tree_util.register_dataclass(_Clusters)


@functools.partial(jax.jit, static_argnames=("k_max",))
def _clusters(needed: jax.Array, state: FairnessState, k_max: int) -> _Clusters | None:
    """Clusters of each domain that has unlabelled prompts in this batch; the others cost nothing."""
    if state.history is None:
        return None

    def fit(domain: jax.Array) -> _Clusters:
        points, multiplicities = remembered(state, domain)
        labels, _, _ = grouping.cluster(points, k_max=k_max, weights=multiplicities)
        return _summarise(points, multiplicities, labels, k_max)

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fit, jnp.zeros((), jnp.int32)))
    return jax.lax.map(
        lambda domain: jax.lax.cond(needed[domain], fit, lambda _: nothing, domain), jnp.arange(needed.shape[0])
    )


def _clusters_on_host(needed: jax.Array, state: FairnessState, k_max: int) -> _Clusters | None:
    """The same by scikit-learn, in order of arrival, as the authors run it."""
    if state.history is None:
        return None
    fits = []
    for domain in range(needed.shape[0]):
        points, multiplicities = remembered(state, domain)
        weights = multiplicities * needed[domain]
        labels, _, _ = grouping.cluster(points, k_max=k_max, weights=weights, method="sklearn")
        fits.append(_summarise(points, multiplicities, labels, k_max))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *fits)


def _summarise(points: jax.Array, multiplicities: jax.Array, labels: jax.Array, k_max: int) -> _Clusters:
    member = multiplicities[:, None] * jax.nn.one_hot(labels, k_max)  # label -1 is a row of zeros
    sizes = jnp.sum(member, axis=0)
    return _Clusters(sizes, (member.T @ points) / jnp.maximum(sizes, 1)[:, None])


@functools.partial(jax.jit, static_argnames=("clamp", "domain_mean"))
def _weigh(
    r: jax.Array,
    d: jax.Array,
    g: jax.Array,
    state: FairnessState,
    clusters: _Clusters | None,
    epsilon: float,
    max_weight: float | None,
    *,
    clamp: Clamp,
    domain_mean: DomainMean,
) -> tuple[jax.Array, jax.Array]:
    """Weights and labels of this batch from what is known of its domains, groups and clusters."""
    num_groups = state.group_count.shape[1] - 1
    column = jnp.where(g < 0, num_groups, g)
    count, mean, label = state.group_count[d, column], state.group_mean[d, column], column
    of_domain = state.domain_mean
    if clusters is not None:
        cluster = _nearest(r, clusters.centroids[d], clusters.sizes[d] > 0)
        cluster_mean = jnp.mean(clusters.centroids, axis=2)
        known = jnp.sum(clusters.sizes, axis=1)
        clustered = (g < 0) & (known[d] > 0)
        share = clusters.sizes[d, cluster] / jnp.maximum(known[d], 1)
        count = jnp.where(clustered, share * count, count)
        mean = jnp.where(clustered, cluster_mean[d, cluster], mean)
        label = jnp.where(clustered, num_groups + cluster, label)
        if domain_mean == "inverse_size":
            inverse = jnp.where(clusters.sizes > 0, 1 / jnp.maximum(clusters.sizes, 1), 0)
            rare = jnp.sum(inverse * cluster_mean, axis=1) / jnp.maximum(jnp.sum(inverse, axis=1), 1e-30)
            of_domain = jnp.where(known > 0, rare, of_domain)
    t_domain = jnp.sqrt(state.domain_count[d].astype(jnp.float32)) * of_domain[d]
    t_group = jnp.sqrt(count.astype(jnp.float32)) * mean
    weights = _invert(t_domain, t_group, clamp, epsilon)
    if max_weight is not None:
        signal = adv.has_signal(r)
        median = jnp.where(jnp.any(signal), jnp.nanmedian(jnp.where(signal, weights, jnp.nan)), 1)
        weights = jnp.clip(weights, median / max_weight, median * max_weight)
    return weights, label.astype(jnp.int32)


def _nearest(r: jax.Array, centroids: jax.Array, present: jax.Array) -> jax.Array:
    """(P,) index of the nearest of (P, k, G) centroids over the scored rollouts of each prompt."""
    difference = r[:, None, :] - centroids
    distance = jnp.sum(jnp.where(jnp.isnan(difference), 0, difference) ** 2, axis=2)
    return jnp.argmin(jnp.where(present, distance, jnp.inf), axis=1)


def _invert(t_domain: jax.Array, t_group: jax.Array, clamp: Clamp, epsilon: float) -> jax.Array:
    if clamp == "product":
        return 1 / jnp.maximum(t_domain * t_group, epsilon)
    if clamp == "factor":
        return 1 / (jnp.maximum(t_domain, epsilon) * jnp.maximum(t_group, epsilon))
    product = jnp.maximum(t_domain, epsilon) * t_group
    return jnp.where(product > 0, 1 / jnp.where(product > 0, product, 1), 1)


def _read(
    rewards: ArrayLike, domains: ArrayLike, groups: ArrayLike, state: FairnessState
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Checked float32 rewards and int32 ids."""
    r, d, g = jnp.asarray(rewards), jnp.asarray(domains), jnp.asarray(groups)
    if r.ndim != 2 or d.shape != r.shape[:1] or g.shape != r.shape[:1]:
        raise ValueError(f"got rewards {r.shape}, domains {d.shape}, groups {g.shape}; wanted (P, G), (P,) and (P,)")
    if not (jnp.issubdtype(d.dtype, jnp.integer) and jnp.issubdtype(g.dtype, jnp.integer)):
        raise ValueError(f"got domains of {d.dtype} and groups of {g.dtype}; wanted integers")
    history = state.history
    if history is not None:
        made_for = history.shape[1].bit_length() - 1 if is_table(history) else history.shape[2]
        if made_for != r.shape[1]:
            raise ValueError(
                f"got {r.shape[1]} rollouts with a state for {made_for}; call init with num_rollouts={r.shape[1]}"
            )
        if not is_table(history) and r.shape[0] > history.shape[1]:
            raise ValueError(f"got {r.shape[0]} prompts with a ring of {history.shape[1]}; wanted capacity >= prompts")
    if not any(isinstance(x, Tracer) for x in (r, d, g)):
        _check_values(np.asarray(r), np.asarray(d), np.asarray(g), state)
    return r.astype(jnp.float32), d.astype(jnp.int32), g.astype(jnp.int32)


def _check_values(r: np.ndarray, d: np.ndarray, g: np.ndarray, state: FairnessState) -> None:
    num_domains, num_groups = state.group_count.shape[0], state.group_count.shape[1] - 1
    if np.any(r < 0) or np.any(np.isinf(r)):
        raise ValueError(
            f"got rewards from {np.nanmin(r)} to {np.nanmax(r)}; wanted finite rewards >= 0: shift or clip them"
        )
    if np.any((d < 0) | (d >= num_domains)):
        raise ValueError(f"got domains from {d.min()} to {d.max()}; wanted 0 .. {num_domains - 1}")
    if np.any((g < -1) | (g >= num_groups)):
        raise ValueError(f"got groups from {g.min()} to {g.max()}; wanted 0 .. {num_groups - 1}, or -1 = unlabelled")
    binary = state.history is not None and is_table(state.history)
    if binary and not np.all(np.isnan(r) | (r == 0) | (r == 1)):
        raise ValueError("got rewards other than 0 and 1 with history='binary'; call init with history='ring'")


def _check_options(
    statistics: str,
    decay: float,
    clamp: str,
    max_weight: float | None,
    epsilon: float,
    clustering: str,
    domain_mean: str,
) -> None:
    for name, got, wanted in (
        ("statistics", statistics, ("cumulative", "batch", "ema")),
        ("clamp", clamp, ("code", "product", "factor")),
        ("clustering", clustering, ("jax", "sklearn")),
        ("domain_mean", domain_mean, ("plain", "inverse_size")),
    ):
        if got not in wanted:
            raise ValueError(f"got {name}={got!r}; wanted one of {wanted}")
    if not 0 <= decay < 1 or epsilon <= 0 or (max_weight is not None and max_weight < 1):
        raise ValueError(
            f"got decay={decay}, epsilon={epsilon}, max_weight={max_weight}; wanted 0 <= decay < 1, epsilon > 0, "
            "max_weight >= 1 or None"
        )
