"""What the log says about the components of a step's rewards."""

from collections.abc import Sequence

import numpy as np

from fairgrpo_jax.rewards.scorer import Scorer, Scores


def figures(
    scorer: Scorer, scores: Scores, domains: np.ndarray, groups: np.ndarray, names: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Means of every component, overall and by dataset and group, and the share of the signal that each one causes.

    A component's share is that of the sum of |w_k (s_k - mean of s_k in the prompt)|: what it adds to the differences
    that advantages are made of, before any division.

    Args:
        scorer: of the run.
        scores: of P prompts.
        domains: (P,) of each prompt.
        groups: (P,), -1 = unlabelled.
        names: printed names of domains, and of groups with that of -1 at the end.

    Returns:
        ``reward/component/<name>``, also ``/<dataset>/<group>``, of the raw scores; ``reward/normalised/<name>``;
        ``reward/component_unscored/<name>`` where some are; ``reward/judge/<name>/<dimension>`` of what a judge told;
        ``advantage/component/<name>``. Nothing for a reward of one
        plain component, of which ``reward/mean`` and ``reward/group`` say the same.
    """
    parts = scorer.components
    if len(parts) == 1 and not parts[0].normalised:
        return {}
    found: dict[str, float] = {}
    for k, part in enumerate(parts):
        its = scores.applies[:, k]
        raw = scores.raw[its, :, k]
        found[f"reward/component/{part.name}"] = _mean(raw)
        if part.normalised:
            found[f"reward/normalised/{part.name}"] = _mean(scores.values[its, :, k])
        if np.isnan(raw).any():
            found[f"reward/component_unscored/{part.name}"] = float(np.isnan(raw).mean())
        for domain, group in sorted({*zip(domains[its].tolist(), groups[its].tolist(), strict=True)}):
            rows = (domains[its] == domain) & (groups[its] == group)
            cell = f"{names[0][domain]}/{names[1][group]}"
            found[f"reward/component/{part.name}/{cell}"] = _mean(raw[rows])
    found |= {f"reward/judge/{name}": _mean(values) for name, values in scores.parts.items()}
    summands = scorer.summands(scores)
    centred = summands - _prompt_means(summands)
    sizes = np.nansum(np.abs(centred), axis=(0, 1)) * np.array(scorer.weights)
    added = [part.name for part in parts if not part.gate]
    for name, size in zip(added, sizes, strict=True):
        found[f"advantage/component/{name}"] = float(size / sizes.sum()) if sizes.sum() else 0.0
    return found


def _prompt_means(values: np.ndarray) -> np.ndarray:
    """Means over the scored completions of each prompt, (P, 1, K)."""
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1)


def _mean(values: np.ndarray) -> float:
    scored = values[~np.isnan(values)]
    return float(scored.mean()) if scored.size else float("nan")
