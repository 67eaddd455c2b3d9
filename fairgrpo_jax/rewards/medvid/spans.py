"""TAG, when an action happens: spans of seconds, written ``22.0-78.0, 89.0-94.0 seconds.``, full stop included."""

import re
from collections.abc import Sequence

import numpy as np

from fairgrpo_jax.rewards.medvid.matching import best_sum


Span = tuple[float, float]

_NUMBER = r"(?<!\d)(\d+(?:\.\d+)?)"  # from its first digit on, so that long ones take linear time
_DASH = re.compile(rf"{_NUMBER}\s*-\s*{_NUMBER}")
_UNIT = r"(?:s| seconds?)?"
_TO = re.compile(rf"{_NUMBER}{_UNIT}\s*to\s*{_NUMBER}", re.IGNORECASE)
_CLOCK = re.compile(r"(?<!\d)(\d+):(\d+):(\d+)\s+to\s+(\d+):(\d+):(\d+)", re.IGNORECASE)
_ANSWER = re.compile(rf"{_NUMBER}-{_NUMBER}(?:, ?{_NUMBER}-{_NUMBER})*(?: ?(?:seconds|s))?\.?")


def parse(text: str, *, leaderboard: bool = False) -> list[Span]:
    """The spans of an answer in seconds, in its order.

    Args:
        text: the answer.
        leaderboard: any ``a-b`` in the text is a span, ``2024-05`` too, and reversed ones stay. Without any, ``a to b``
            and clock times are, both: ``00:00:00 to 00:00:08`` gives (0, 0) and (0, 8).

    Returns:
        Strictly: those of an answer that is nothing but ``a-b``, separated by commas, with or without ``seconds`` and a
        full stop; none if it is anything else or a span is reversed.

    >>> parse("22.0-78.0, 89.0-94.0 seconds."), parse("From 22 to 78 s"), parse("From 22 to 78 s", leaderboard=True)
    ([(22.0, 78.0), (89.0, 94.0)], [], [(22.0, 78.0)])
    """
    dashed = [(seconds(a), seconds(b)) for a, b in _DASH.findall(text)]
    if not leaderboard:
        whole = _ANSWER.fullmatch(text.strip()) is not None and all(a <= b for a, b in dashed)
        return dashed if whole else []
    if dashed:
        return dashed
    plain = [(round(seconds(a), 2), round(seconds(b), 2)) for a, b in _TO.findall(text)]
    clock = [
        [3600 * seconds(t[i]) + 60 * seconds(t[i + 1]) + seconds(t[i + 2]) for i in (0, 3)]
        for t in _CLOCK.findall(text)
    ]
    return [*plain, *((float(a), float(b)) for a, b in clock)]


def seconds(digits: str) -> float:
    """A time, of which those after 30 years are one."""
    return min(float(digits), 1e9)


def iou(one: Span, other: Span) -> float:
    """Length of the intersection over that of the hull; 0 for reversed spans, and for two points.

    >>> iou((0, 4), (2, 6)), iou((3, 3), (3, 3))
    (0.3333333333333333, 0.0)
    """
    shared = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    hull = max(one[1], other[1]) - min(one[0], other[0])
    return shared / hull if hull > 0 else 0.0


def score(spans: Sequence[Span], wanted: Sequence[Span], *, threshold: float = 0.0, leaderboard: bool = False) -> float:
    """Mean IoU of the spans that are matched with wanted ones.

    Args:
        spans: of the answer.
        wanted: of the reference.
        threshold: pairs of a smaller IoU do not count.
        leaderboard: each wanted span in turn takes the span of the highest IoU that is left. The mean is over the pairs
            that count: neither a missed span nor one too many lowers it, and a wanted point is worth 0.

    Returns:
        In [0, 1]. Strictly: the largest sum of IoU over pairs, divided by the larger number of spans, so that a missed
        span and one too many cost the same; a wanted point that is named exactly is worth 1.

    >>> score([(0, 10)], [(0, 10), (20, 30)]), score([(0, 10)], [(0, 10), (20, 30)], leaderboard=True)
    (0.5, 1.0)
    """
    if not spans or not wanted:
        return 0.0
    if leaderboard:
        return _greedy(spans, wanted, threshold)
    table = np.array([[1.0 if a == b and a[0] <= a[1] else iou(a, b) for b in wanted] for a in spans])
    table = np.where(table >= threshold, table, 0.0)
    return best_sum(table) / max(table.shape)


def _greedy(spans: Sequence[Span], wanted: Sequence[Span], threshold: float) -> float:
    left, found = list(spans), list[float]()
    for each in wanted:
        values = [iou(span, each) for span in left]
        best = max(values, default=0.0)
        if best > 0 and best >= threshold:
            found.append(best)
            left.pop(values.index(best))
    return sum(found) / len(found) if found else 0.0
