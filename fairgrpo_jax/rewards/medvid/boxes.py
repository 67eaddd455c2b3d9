"""STG, where an object is at given times: ``1.0 seconds: [235.08, 261.2, 561.58, 1005.62] 5.0 seconds: [...]``.

Boxes are (x1, y1, x2, y2) in pixels of the file, whatever size the model sees.
"""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np


Box = tuple[float, float, float, float]
Track = Mapping[str, Box]  # boxes by time in seconds, as text

NONE: Box = (0.0, 0.0, 0.0, 0.0)
NEAR = 0.05  # seconds by which times may differ, strictly: answers have one decimal

_TIMED = re.compile(r"(\d+(?:\.\d+)?)\s+seconds:\s*\[([^\]]+)\]")
_BARE = re.compile(r"\[\[([\d\s,]+)\]\]")


def parse(text: str, *, times: Sequence[str] = (), leaderboard: bool = False) -> dict[str, Box]:
    """The boxes of an answer by time, as ``str(float)``; of a time that is named twice the last one.

    Args:
        text: the answer.
        times: those of the reference, for ``[[a, b, c, d]]`` without times on the board.
        leaderboard: a box that is no four numbers is the last one before it that is. Where no time is named, whole
            numbers in double brackets are zipped to ``times`` as these are written.

    Returns:
        Strictly, boxes of four finite numbers with x1 < x2 and y1 < y2 alone.

    >>> parse("1.0 seconds: [1, 2, 3, 4] 2 seconds: [5, 6]")
    {'1.0': (1.0, 2.0, 3.0, 4.0)}
    >>> parse("1.0 seconds: [1, 2, 3, 4] 2 seconds: [5, 6]", leaderboard=True)
    {'1.0': (1.0, 2.0, 3.0, 4.0), '2.0': (1.0, 2.0, 3.0, 4.0)}
    """
    found = [(str(float(time)), _numbers(inside)) for time, inside in _TIMED.findall(text)]
    if not leaderboard:
        sound = [(time, box) for time, box in found if box and is_box(box)]
        return {time: (box[0], box[1], box[2], box[3]) for time, box in sound}
    boxes: dict[str, Box] = {}
    last: Box | None = None
    for time, box in found:
        if box is not None and len(box) == 4:
            last = (box[0], box[1], box[2], box[3])
        if last is not None:
            boxes[time] = last
    return boxes if found else dict(zip(times, _bare(text), strict=False))


def is_box(box: Sequence[float]) -> bool:
    """Whether four numbers are the corners of a box."""
    return len(box) == 4 and all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Area of the intersection over that of the union, which is at least 1e-6; 0 if corners are reversed.

    >>> iou((0, 0, 4, 4), (2, 0, 6, 4))
    0.3333333333333333
    """
    a, b = np.asarray(one, float), np.asarray(other, float)
    shared = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared
    return float(shared / max(union, 1e-6))


def score(boxes: Track, wanted: Mapping[str, Sequence[float]], *, leaderboard: bool = False) -> float:
    """Mean IoU over the wanted times; NaN if none is wanted.

    Args:
        boxes: from ``parse``.
        wanted: boxes by time, of the reference.
        leaderboard: a time is looked up as it is written with one decimal, so that a box at 1.25 s is never found. A
            time without a box has the box of the wanted time before it.

    Returns:
        In [0, 1]. Strictly, a time without a box of its own, to ``NEAR`` seconds, counts 0.

    >>> wanted = {"1.0": (0, 0, 4, 4), "2.0": (0, 0, 4, 4)}
    >>> score({"1.0": (0, 0, 4, 4)}, wanted), score({"1.0": (0, 0, 4, 4)}, wanted, leaderboard=True)
    (0.5, 1.0)
    """
    values: list[float] = []
    before: Sequence[float] = NONE
    for time, box in wanted.items():
        if leaderboard:
            own = boxes.get(f"{float(time):.1f}", NONE)
            before = before if tuple(own) == NONE else own
            values += [iou(before, box)] if len(box) == 4 else []
        else:
            near = nearest(boxes, float(time))
            values.append(0.0 if near is None or len(box) != 4 else iou(boxes[near], box))
    return sum(values) / len(values) if values else math.nan


def nearest(boxes: Track, time: float) -> str | None:
    """The time of ``boxes`` that is meant by a wanted one; None if there is none."""
    best = min(boxes, key=lambda other: abs(float(other) - time), default=None)
    return best if best is not None and abs(float(best) - time) <= NEAR + 1e-9 else None


def complete(text: str, wanted: Mapping[str, Sequence[float]]) -> bool:
    """Whether an answer is nothing but boxes with their times, one at least for each wanted time.

    >>> complete("1.0 seconds: [1, 2, 3, 4]", {"1.0": (0, 0, 9, 9)}), complete("[1, 2, 3, 4]", {"1.0": (0, 0, 9, 9)})
    (True, False)
    """
    rest = re.sub(r"[\s,.;]", "", _TIMED.sub("", text))
    found = [_numbers(inside) for _, inside in _TIMED.findall(text)]
    sound = bool(found) and all(box is not None and is_box(box) for box in found)
    boxes = parse(text)
    return not rest and sound and all(nearest(boxes, float(time)) is not None for time in wanted)


def _numbers(inside: str) -> list[float] | None:
    """The numbers between brackets, without brackets inside; None if one is none."""
    try:
        return [float(part.strip().lstrip("[").rstrip("]")) for part in inside.split(",")]
    except ValueError:
        return None


def _bare(text: str) -> list[Box]:
    """Boxes of four whole numbers in double brackets."""
    found = [inside.split(",") for inside in _BARE.findall(text)]
    whole = [parts for parts in found if len(parts) == 4 and all(part.strip().isdigit() for part in parts)]
    return [(float(a), float(b), float(c), float(d)) for a, b, c, d in whole]
