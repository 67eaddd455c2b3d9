"""Scores the length of a completion, in tokens.

Lengths are given, as an (N,) array of integers. For ``ecr`` and ``cwr`` they should be those of the reasoning,
``parse(text).thought``, with 0 where that is None: with the tokens of the whole completion, a thought that never ends
and a padded answer are paid too. ``overlong`` concerns the whole completion with its end token.
"""

import numpy as np
from numpy.typing import ArrayLike

from fairgrpo_jax.losses import overlong_penalty


def ecr(lengths: ArrayLike, *, reference: int = 512, scale: float = 1.0) -> np.ndarray:
    """Extended chain reward: scale * min(n / reference, 1), whatever the answer.

    Args:
        lengths: n, (N,) int, tokens of the reasoning.
        reference: length from which on the reward is full, in tokens, >= 1.
        scale: the reward of a full length, >= 0.

    Returns:
        (N,) float32 in [0, scale].

    Raises:
        ValueError: if lengths are not (N,) integers >= 0, or an option is out of range.

    Source: arXiv 2505.13973 names this reward and finds that it costs accuracy (50.2 % after 58.0 %). The formula and
    both constants are ours: the paper's could not be found.

    >>> ecr([0, 256, 512, 2000]).tolist()
    [0.0, 0.5, 1.0, 1.0]
    """
    if reference < 1 or not 0 <= scale < float("inf"):
        raise ValueError(f"got reference={reference}, scale={scale}; wanted reference >= 1 and scale finite and >= 0")
    share = np.minimum(_lengths(lengths).astype(np.float64) / reference, 1)
    return (scale * share).astype(np.float32)


def cwr(lengths: ArrayLike, correct: ArrayLike, *, reference: int = 512, scale: float = 1.0) -> np.ndarray:
    """Correctness-weighted length reward: ``ecr`` times the correctness of the answer.

    Args:
        lengths: n, (N,) int, tokens of the reasoning.
        correct: (N,) in [0, 1], from a function of ``accuracy``; NaN = not scored.
        reference: length from which on the reward is full, in tokens, >= 1.
        scale: the reward of a full length with a right answer, >= 0.

    Returns:
        (N,) float32 in [0, scale], NaN where ``correct`` is.

    Raises:
        ValueError: as for ``ecr``; if the lengths of the two differ; if a value of ``correct`` is outside of [0, 1].

    Source: as for ``ecr``, with 0 or 1 for the correctness.

    >>> cwr([256, 512, 512, 512], [1.0, 1.0, 0.0, float("nan")]).tolist()
    [0.5, 1.0, 0.0, nan]
    """
    n, factor = _lengths(lengths), np.asarray(correct, np.float64)
    if factor.shape != n.shape:
        raise ValueError(f"got lengths {n.shape} and correct {factor.shape}; wanted one value for each length")
    if np.any((factor < 0) | (factor > 1)):
        raise ValueError(f"got correct from {np.nanmin(factor)} to {np.nanmax(factor)}; wanted values in [0, 1] or NaN")
    return (ecr(n, reference=reference, scale=scale) * factor).astype(np.float32)


def overlong(lengths: ArrayLike, *, max_length: int, buffer: int) -> np.ndarray:
    """``losses.overlong_penalty`` as a component: 0, then down to -1 over the last ``buffer`` tokens.

    Args:
        lengths: (N,) int, tokens of the whole completion including its end token.
        max_length: the limit, in tokens.
        buffer: number of tokens over which the penalty grows, in 1 .. max_length.

    Returns:
        (N,) float32 in [-1, 0].

    Raises:
        ValueError: if lengths are not (N,) integers >= 0, or the buffer is not in 1 .. max_length.

    Source: DAPO (arXiv 2503.14476), equation 13.

    >>> overlong([70, 90, 100], max_length=100, buffer=20).tolist()
    [0.0, -0.5, -1.0]
    """
    return np.asarray(overlong_penalty(_lengths(lengths), max_length=max_length, buffer=buffer), np.float32)


def _lengths(lengths: ArrayLike) -> np.ndarray:
    n = np.asarray(lengths)
    n = n.astype(np.int64) if n.shape == (0,) else n
    if n.ndim != 1 or not np.issubdtype(n.dtype, np.integer):
        raise ValueError(f"got lengths {n.shape} of {n.dtype}; wanted (N,) integers, numbers of tokens")
    if np.any(n < 0):
        raise ValueError(f"got lengths from {n.min()}; wanted numbers of tokens, >= 0")
    return n
