"""Intervals of shares that hold in small groups, and of differences and ratios of two groups."""

from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike


def quantile(level: float) -> float:
    """The two-sided quantile of the normal distribution.

    >>> round(quantile(0.95), 3)
    1.96
    """
    return NormalDist().inv_cdf((1 + level) / 2)


def wilson(share: ArrayLike, number: ArrayLike, z: ArrayLike = 1.959963984540054) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval of a share; valid at 0, at 1 and for few records.

    Args:
        share: (...) in [0, 1].
        number: (...) independent records behind it, of which there may be a fraction: see ``effective``.
        z: (...) quantile.

    Returns:
        Lower and upper ends (...), NaN where the share is NaN or the number is 0.

    Source: Wilson 1927; with an effective number for clustered records, Dean and Pagano 2015.

    >>> [round(float(end), 3) for end in wilson(0.0, 10)]
    [0.0, 0.278]
    """
    p, n, z = np.broadcast_arrays(np.asarray(share, float), np.asarray(number, float), np.asarray(z, float))
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    known = np.isfinite(p) & (n > 0)
    low, high = np.clip(centre - half, 0, p), np.clip(centre + half, p, 1)
    return np.where(known, low, np.nan), np.where(known, high, np.nan)


def effective(share: ArrayLike, variance: ArrayLike, support: ArrayLike) -> np.ndarray:
    """The number of independent records whose share would vary as much.

    Args:
        share: (...) in [0, 1].
        variance: (...) of the share, by a bootstrap over patients.
        support: (...) number where the variance says nothing: the share is 0 or 1, or all resamples agree.

    >>> effective([0.5, 1.0], [0.0125, 0.0], [40, 40]).tolist()
    [20.0, 40.0]
    """
    p, v, n = np.broadcast_arrays(np.asarray(share, float), np.asarray(variance, float), np.asarray(support, float))
    spread = p * (1 - p)
    varies = (spread > 1e-12) & (v > 1e-15)
    return np.where(varies, spread / np.where(varies, v, 1), n)


def difference(one: ArrayLike, other: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The difference of two groups' figures, with an interval made of theirs.

    Args:
        one: (3, ...) figure, lower and upper end.
        other: (3, ...) of another group, with other patients.

    Returns:
        Difference, lower and upper end.

    Source: Newcombe 1998, method 10, as the square-and-add of Zou and Donner 2008, for any two intervals.

    >>> [round(float(x), 3) for x in difference((0.9, 0.8, 0.95), (0.5, 0.4, 0.6))]
    [0.4, 0.259, 0.512]
    """
    (a, a_low, a_high), (b, b_low, b_high) = np.asarray(one, float), np.asarray(other, float)
    low = a - b - np.hypot(a - a_low, b_high - b)
    high = a - b + np.hypot(a_high - a, b - b_low)
    return a - b, low, high


def mean(ends: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean of figures of different patients, with an interval made of theirs.

    Args:
        ends: (3, K, ...) figure, lower and upper end of K independent figures.

    Returns:
        Mean, lower and upper end (...).

    Source: as ``difference``, for a sum.

    >>> [round(float(x), 3) for x in mean([[0.2, 0.4], [0.1, 0.2], [0.3, 0.5]])]
    [0.3, 0.188, 0.371]
    """
    value, low, high = np.asarray(ends, float)
    middle, number = value.mean(0), value.shape[0]
    below, above = (np.sqrt(np.sum((value - end) ** 2, 0)) / number for end in (low, high))
    return middle, middle - below, middle + above


def ratio(one: ArrayLike, other: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ratio of two groups' figures, with an interval made of theirs on the scale of logarithms.

    Args:
        one: (3, ...) figure, lower and upper end.
        other: (3, ...) of another group; a figure of 0 gives NaN.

    Source: as ``difference``; Zou and Donner 2008, section 2.3.

    >>> [round(float(x), 3) for x in ratio((0.4, 0.3, 0.5), (0.8, 0.7, 0.9))]
    [0.5, 0.366, 0.648]
    """
    a, b = np.asarray(one, float), np.asarray(other, float)
    known, some = (b[1] > 0) & np.isfinite(a[0]), a[0] > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        value, low, high = np.exp(difference(np.log(np.where(some, a, 1)), np.log(b)))
        high = np.where(some, high, a[2] / b[1])  # at 0 there is no logarithm: the largest that both intervals allow
    ends = np.where(some, value, 0), np.where(some, low, 0), high
    return ends[0] * np.where(known, 1, np.nan), ends[1] * np.where(known, 1, np.nan), np.where(known, high, np.nan)
