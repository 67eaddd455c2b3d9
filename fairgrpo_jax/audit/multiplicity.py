"""Adjusts p values for the number of tests."""

from collections.abc import Callable, Sequence

import numpy as np


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: each may be compared with the level of the whole family.

    Source: Holm 1979; the same as ``p.adjust(p, "holm")`` in R.

    >>> [round(x, 3) for x in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    values, adjusted, highest = np.asarray(p, float), np.empty(len(p)), 0.0
    for rank, place in enumerate(np.argsort(values, kind="stable")):
        highest = max(highest, min(1.0, (len(p) - rank) * values[place]))
        adjusted[place] = highest
    return adjusted.tolist()


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Adjusted p values of Benjamini and Hochberg: those below q hold a share of at most q false finds, on average.

    Source: Benjamini and Hochberg 1995; the same as ``scipy.stats.false_discovery_control``.

    >>> [round(x, 3) for x in benjamini_hochberg([0.01, 0.04, 0.03])]
    [0.03, 0.04, 0.04]
    """
    values, adjusted, lowest = np.asarray(p, float), np.empty(len(p)), 1.0
    for rank, place in enumerate(np.argsort(values, kind="stable")[::-1]):
        lowest = min(lowest, values[place] * len(p) / (len(p) - rank))
        adjusted[place] = lowest
    return adjusted.tolist()


def unadjusted(p: Sequence[float]) -> list[float]:
    """The p values as they are."""
    return [float(value) for value in p]


ADJUSTMENTS: dict[str, Callable[[Sequence[float]], list[float]]] = {
    "holm": holm,
    "bh": benjamini_hochberg,
    "none": unadjusted,
}
