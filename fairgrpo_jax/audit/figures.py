"""Figures from sums: what is measured in a group, what two groups are compared by, and how sure a figure can be."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fairgrpo_jax import metrics
from fairgrpo_jax.audit.coding import FAILED, HEAD, HIT, SIMILAR, N


class Figure(NamedTuple):
    """What a figure is called in words, and which of two values is the better one."""

    words: str
    better: int  # 1: the higher, -1: the lower, 0: neither


FIGURES: Mapping[str, Figure] = {
    "top1": Figure("exactly right", 1),
    "failures": Figure("no answer", -1),
    "f1": Figure("F1, mean over classes", 1),
    "tpr": Figure("true positive rate, mean over classes", 1),
    "fpr": Figure("false positive rate, mean over classes", -1),
    "precision": Figure("precision, mean over classes", 1),
    "accuracy": Figure("accuracy one against the rest, mean over classes", 1),
    "similarity": Figure("F1 of a record's labels", 1),
    "selection_rate": Figure("share called positive", 0),
    "true_positive_rate": Figure("sensitivity for the positive class", 1),
    "false_positive_rate": Figure("false positive rate of the positive class", -1),
    "positive_predictive_value": Figure("precision of the positive class", 1),
}
# Gaps made of others: equalized odds is the larger gap of both rates, demographic parity the largest of any class.
GAPS: Mapping[str, str] = {
    "equalized_odds": "equalized odds: the larger gap of true and false positive rate",
    "demographic_parity": "demographic parity: the largest gap in how often a class is predicted",
}
POSITIVE = ("selection_rate", "true_positive_rate", "false_positive_rate", "positive_predictive_value")
COMPARED = ("top1", "f1", *POSITIVE)  # figures by which two models are compared with a test
SHARES = ("top1", "failures", *POSITIVE)  # plain shares of records
HEADS = ("top1", "failures", "similarity")  # of these no classes are needed


def tested(positive: str | None) -> tuple[str, ...]:
    """The gaps that are tested; the others say the same in other words, and would only make the adjustment harder."""
    rates = ("tpr", "fpr", "precision", "demographic_parity") if positive is None else POSITIVE
    return ("top1", "failures", "f1", *rates)


def names(classes: Sequence[str], positive: str | None) -> tuple[str, ...]:
    """The figures that there are, with these classes."""
    if not classes:
        return HEADS
    return tuple(name for name in FIGURES if positive is not None or name not in POSITIVE)


def values(sums: np.ndarray, classes: Sequence[str], positive: str | None = None) -> dict[str, np.ndarray]:
    """All figures of sums (..., features), each (...); NaN without records, and for 0 / 0 of the positive class.

    >>> found = values(np.array([4.0, 1, 2, 2, 1, 1, 0, 1, 0, 2]), ("A", "B"), "A")
    >>> float(found["top1"]), float(found["failures"]), float(found["selection_rate"])
    (0.5, 0.25, 0.5)
    """
    n = sums[..., N]
    heads = (("top1", HIT), ("failures", FAILED), ("similarity", SIMILAR))
    found = {name: _share(sums[..., column], n) for name, column in heads}
    if classes:
        counts = by_class(sums)
        found |= {name: np.where(n > 0, value, np.nan) for name, value in metrics.macro(counts, n).items()}
        if positive is not None:
            tp, fp, fn = np.moveaxis(counts[..., list(classes).index(positive), :], -1, 0)
            found |= {"selection_rate": _share(tp + fp, n), "true_positive_rate": _share(tp, tp + fn)}
            found |= {"false_positive_rate": _share(fp, n - tp - fn), "positive_predictive_value": _share(tp, tp + fp)}
    return found


def selection(sums: np.ndarray) -> np.ndarray:
    """How often each class is predicted, (..., classes)."""
    counts = by_class(sums)
    return _share(counts[..., 0] + counts[..., 1], sums[..., N, None])


def by_class(sums: np.ndarray) -> np.ndarray:
    """TP, FP and FN (..., classes, 3)."""
    return sums[..., HEAD:].reshape(*sums.shape[:-1], -1, 3)


def gaps(sums: np.ndarray, classes: Sequence[str], positive: str | None) -> dict[str, np.ndarray]:
    """The gap max - min of every figure over the groups of sums (..., groups, features), each (...)."""
    found = values(sums, classes, positive)
    gap = {name: _range(found[name]) for name in names(classes, positive)}
    if classes:
        gap["equalized_odds"] = np.fmax(gap["tpr"], gap["fpr"])
        gap["demographic_parity"] = np.max(_range(np.moveaxis(selection(sums), -1, 0)), axis=0)
    return gap


def support(
    sums: np.ndarray, classes: Sequence[str], positive: str | None, dilution: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What a bootstrap cannot know of each figure of sums (groups, features).

    A share of 0 of 10 or 10 of 10 does not vary in any resample, and would still vary in the next ten patients.

    Args:
        sums: of the groups.
        classes: names of the classes.
        positive: the positive class, if there is one.
        dilution: (groups,) patients per record.

    Returns:
        For each figure the number of independent records behind it, as far as only denominators tell, and the variance
        that its classes with shares of 0 or 1 add: that of a share after a flat prior, (k+1)(n-k+1) / (n+2)^2 (n+3).
    """
    n = sums[..., N]
    whole = {
        name: ((sums[..., column])[..., None], n[..., None])
        for name, column in zip(HEADS, (HIT, FAILED, SIMILAR), strict=True)
    }
    if classes:
        tp, fp, fn = np.moveaxis(by_class(sums), -1, 0)
        active, total = tp + fn > 0, n[..., None]
        rates = {
            "f1": (tp, tp + (fp + fn) / 2),
            "tpr": (tp, tp + fn),
            "fpr": (fp, total - tp - fn),
            "precision": (tp, tp + fp),
            "accuracy": (total - fp - fn, np.broadcast_to(total, tp.shape)),
        }
        whole |= {name: (top, np.where(active, below, 0)) for name, (top, below) in rates.items()}
        if positive is not None:
            its = [list(classes).index(positive)]
            tp, fp, fn = tp[..., its], fp[..., its], fn[..., its]
            whole |= {"selection_rate": (tp + fp, total), "true_positive_rate": (tp, tp + fn)}
            whole |= {"false_positive_rate": (fp, total - tp - fn), "positive_predictive_value": (tp, tp + fp)}
    return {name: _certainty(top, below, dilution[..., None]) for name, (top, below) in whole.items()}


def _certainty(top: np.ndarray, below: np.ndarray, dilution: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    there = below > 0
    count = there.sum(-1)
    n, k = below * dilution, top * dilution
    number = np.where(count > 0, count**2 / np.maximum(np.sum(_share(1, n, 0.0), -1), 1e-300), 0)
    fixed = there & ((top <= 0) | (top >= below))
    prior = (k + 1) * (n - k + 1) / ((n + 2) ** 2 * (n + 3))
    return number, np.sum(np.where(fixed, prior, 0), -1) / np.maximum(count, 1) ** 2


def _share(part: np.ndarray | float, whole: np.ndarray, empty: float = np.nan) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.broadcast_shapes(np.shape(part), whole.shape), empty), where=whole > 0)


def _range(value: np.ndarray) -> np.ndarray:
    """The gap over the last axis, among the groups for which there is a value; NaN if there is none."""
    known = np.isfinite(value)
    high = np.where(known, value, -np.inf).max(-1)
    low = np.where(known, value, np.inf).min(-1)
    return np.where(known.any(-1), high - low, np.nan)
