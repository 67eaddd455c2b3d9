"""Do scores mean what they say in every group? Bias, Brier score, calibration error, discrimination."""

from typing import Any

import numpy as np
from scipy import special

from fairgrpo_jax.audit import intervals
from fairgrpo_jax.audit.coding import HEAD, HIT
from fairgrpo_jax.audit.parts import Part, finite
from fairgrpo_jax.audit.settings import Settings


BINS = 10  # of equal width


def calibrate(part: Part, scores: np.ndarray, settings: Settings) -> list[dict[str, Any]]:
    """One row for each group of a dataset.

    Args:
        part: the records.
        scores: (N,) probabilities of the event, NaN = none. The event is that the label has the positive class, if the
            settings name one, else that the answer given is right.
        settings: level and least number of patients.

    Returns:
        Rows with ``dataset``, ``attribute``, ``group``, ``name``, ``n`` (records with a score), ``unscored``,
        ``small``; ``score`` and ``rate``, the mean score and the share of events; ``bias`` = score - rate; ``brier``;
        ``auroc``, the chance that an event has the higher score; each of the last three a list of value, low, high;
        ``ece``, the mean distance of score and rate over ten bins, and ``ece_expected``, what it would be if the scores
        were right; ``bins``: ``low``, ``high``, ``n``, ``score``, ``rate`` and its Wilson interval.

    Raises:
        ValueError: if a score is not in [0, 1].

    Source: variances from sums over patients; of the AUROC, Obuchowski 1997.
    """
    if np.any(wrong := (scores < 0) | (scores > 1)):
        raise ValueError(f"got the score {scores[wrong][0]:g}; wanted probabilities from 0 to 1")
    classes = part.answers.classes
    features = part.answers.features
    if settings.positive in classes:
        column = HEAD + 3 * classes.index(str(settings.positive))
        happens = np.asarray(features[:, [column, column + 2]].sum(1)).reshape(-1)
    else:
        happens = features[:, [HIT]].toarray().reshape(-1)
    event = happens[part.answers.pair] > 0
    rows = []
    for group in part.people.groups:
        its = group.cells[part.people.cell]
        known = its & np.isfinite(scores)
        row: dict[str, Any] = {"dataset": part.name, "attribute": group.attribute, "group": group.key}
        row |= {"name": group.name, "n": int(known.sum()), "unscored": int(its.sum() - known.sum())}
        row["small"] = len(np.unique(part.people.patient[its])) < settings.least
        if known.any():
            rows.append(row | _row(scores[known], event[known], part.people.patient[known], settings.level))
        else:
            names = ("score", "rate", "bias", "brier", "auroc", "ece", "ece_expected")
            rows.append(row | dict.fromkeys(names) | {"bins": []})
    return rows


def _row(score: np.ndarray, event: np.ndarray, patient: np.ndarray, level: float) -> dict[str, Any]:
    patient = np.unique(patient, return_inverse=True)[1].reshape(-1)
    place = np.minimum((score * BINS).astype(int), BINS - 1)
    n, total, events, doubt = (
        np.bincount(place, weights, BINS) for weights in (None, score, event.astype(float), score * (1 - score))
    )
    low, high = intervals.wilson(events / np.maximum(n, 1), n, intervals.quantile(level))
    bins = [
        {"low": b / BINS, "high": (b + 1) / BINS, "n": int(n[b]), "score": total[b] / n[b], "rate": events[b] / n[b]}
        | {"rate_low": float(low[b]), "rate_high": float(high[b])}
        for b in np.flatnonzero(n)
    ]
    return {
        "score": float(score.mean()),
        "rate": float(event.mean()),
        "bias": _mean(score - event, patient, level, -1),
        "brier": _mean((score - event) ** 2, patient, level, 0),
        "auroc": auroc(score, event, patient, level),
        "ece": float(np.abs(total - events).sum() / len(score)),
        "ece_expected": float(np.sqrt(2 / np.pi * doubt).sum() / len(score)),
        "bins": bins,
    }


def _mean(values: np.ndarray, patient: np.ndarray, level: float, least: float) -> list[float | None]:
    """A mean over records, with an interval by Student's t over patients, within what the mean can be, at most 1."""
    middle, count = float(values.mean()), int(patient.max()) + 1
    spread = np.bincount(patient, values - middle)
    half = np.nan
    if count > 1:
        error = np.sqrt((spread**2).sum() * count / (count - 1)) / len(values)
        half = float(special.stdtrit(count - 1, (1 + level) / 2)) * error
    return [middle, finite(np.maximum(middle - half, least)), finite(np.minimum(middle + half, 1))]


def auroc(score: np.ndarray, event: np.ndarray, patient: np.ndarray, level: float) -> list[float | None] | None:
    """The area under the ROC curve with an interval over patients; None if there are no two outcomes.

    >>> found = auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]), np.arange(4), 0.95)
    >>> found[0]
    0.75
    """
    ones, zeros = score[event], score[~event]
    if not len(ones) or not len(zeros):
        return None
    rank = _ranks(score)
    above = (rank[event] - _ranks(ones)) / len(zeros)  # share of the others below, ties half
    below = 1 - (rank[~event] - _ranks(zeros)) / len(ones)
    area = float(above.mean())
    parts = np.zeros(len(score))
    parts[event], parts[~event] = (above - area) / len(ones), (below - area) / len(zeros)
    count = int(patient.max()) + 1
    variance = (np.bincount(patient, parts) ** 2).sum() * count / max(count - 1, 1)
    number = intervals.effective(area, variance, min(len(ones), len(zeros)))
    t = float(special.stdtrit(max(count - 1, 1), (1 + level) / 2))
    low, high = intervals.wilson(area, number, t)
    return [area, finite(low), finite(high)]


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties at their mean, as ``scipy.stats.rankdata``, without the second that its import takes."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place.reshape(-1)]
