"""Paired comparisons of two methods over seeds: difference, interval, exact test, adjustment, power."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from fairgrpo_jax.audit.multiplicity import holm as holm


EXACT = 16  # seeds up to which all sign flips are counted; above, 100,000 are drawn at random


@dataclasses.dataclass(frozen=True)
class Paired:
    """One figure of two methods, seed by seed."""

    n: int
    mean: float  # of the differences
    deviation: float  # of the differences, ddof 1
    low: float  # 95 % interval of the mean, by Student's t
    high: float
    p: float  # two-sided, by sign flips
    better: int  # seeds with a positive difference


def paired(ours: ArrayLike, theirs: ArrayLike, *, margin: float = 0.0) -> Paired:
    """Compares ``ours`` with ``theirs`` - margin, one value a seed.

    The test flips the signs of the differences in all 2^n ways: exact if, without an effect, a difference is as likely
    to be negative as to be positive. With n seeds p is at least 2^(1 - n).

    Args:
        ours: (n,) finite.
        theirs: (n,) of the same seeds.
        margin: what may be lost at most, >= 0: the mean then says by how much the loss stays within it.

    Raises:
        ValueError: if there are no seeds, or not the same number twice, or a value is not finite.

    Source: Fisher's randomisation test, as in ``scipy.stats.permutation_test``.

    >>> found = paired([0.3, 0.5, 0.4], [0.2, 0.3, 0.3])
    >>> found.n, round(found.mean, 3), found.p, found.better
    (3, 0.133, 0.25, 3)
    """
    a, b = np.asarray(ours, float), np.asarray(theirs, float) - margin
    if a.shape != b.shape or a.ndim != 1 or not len(a) or not np.all(np.isfinite(a) & np.isfinite(b)):
        raise ValueError(f"got values {a.tolist()} and {b.tolist()}; wanted one finite number a seed, twice")
    d, n = a - b, len(a)
    mean, better = float(d.mean()), int((d > 0).sum())
    if n == 1:
        return Paired(1, mean, np.nan, np.nan, np.nan, 1.0, better)
    resamples: Any = np.inf if n <= EXACT else 100_000  # infinite = every one
    test = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        rng=np.random.default_rng(0),
    )
    spread = float(d.std(ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * spread / n**0.5
    return Paired(n, mean, spread, mean - half, mean + half, float(test.pvalue), better)


def seeds_needed(mean: float, deviation: float, *, alpha: float = 0.05, power: float = 0.8, most: int = 1000) -> int:
    """Smallest number of seeds with which a paired t-test finds such an effect with the given power.

    Args:
        mean: expected difference.
        deviation: standard deviation of the differences, > 0.
        alpha: two-sided level.
        power: wanted chance of finding it.
        most: returned if more would be needed.

    Source: the noncentral t distribution; the same as statsmodels' ``TTestPower``.

    >>> seeds_needed(0.5, 1.0)
    34
    """
    if not deviation > 0:
        raise ValueError(f"got deviation={deviation}; wanted a number > 0: differences that do not vary need no test")
    for n in range(2, most):
        edge, shift = stats.t.ppf(1 - alpha / 2, n - 1), abs(mean) / deviation * np.sqrt(n)
        if stats.nct.sf(edge, n - 1, shift) + stats.nct.cdf(-edge, n - 1, shift) >= power:
            return n
    return most
