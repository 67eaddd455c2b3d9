"""DVC, every event of a clip with its caption: a line ``1.0-29.0 seconds: check: The nurse ...`` each."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fairgrpo_jax.rewards.medvid.matching import best_sum
from fairgrpo_jax.rewards.medvid.spans import seconds


THRESHOLDS = (0.3, 0.5, 0.7)  # of IoU, over which precision and recall are averaged


class Event(NamedTuple):
    """A span in seconds and what happens in it, the label included."""

    start: float
    end: float
    caption: str


_NUMBER = r"\d+(?:\.\d+)?"
_BEGIN = rf"({_NUMBER})-({_NUMBER})\s+seconds?:\s+"
_EVENT = re.compile(rf"{_BEGIN}(.*?)(?=\n{_NUMBER}-{_NUMBER}\s+seconds?:|\Z)", re.DOTALL)
_LINE = re.compile(rf"{_BEGIN}(\S.*)")
# Of a line in another style on the board: what may stand before the span, and before the caption.
_LEAD = r"(?:\*\*Start Time:\*\*|Start\s*\(?Time\)?|Time\s*Range:|Time\s*Interval:|^|\n)"
_LOOSE = re.compile(
    rf"{_LEAD}\s*(\d+\.?\d*)\s*[-\u2013]\s*(\d+\.?\d*)\s*seconds?.*?(?:\*\*Description:\*\*|-)\s*(.+?)(?=\n\d|$)",
    re.DOTALL,
)


def parse(text: str, *, leaderboard: bool = False) -> list[Event]:
    r"""The events of an answer, of each span the first.

    Args:
        text: the answer.
        leaderboard: an event may begin anywhere; its caption goes on to the next line that begins with one. Without
            any, lines in the style of other models are read, ``Time Range: 1 - 2 seconds - caption``.

    Returns:
        Strictly: the lines that are ``a-b seconds: caption`` with a < b; none if a line is anything else.

    >>> parse("1.0-2.0 seconds: cut: A cut.\n3.0-4.0 seconds: A knot.")
    [Event(start=1.0, end=2.0, caption='cut: A cut.'), Event(start=3.0, end=4.0, caption='A knot.')]
    """
    if leaderboard:
        found = [Event(seconds(a), seconds(b), said.strip().replace("\n", " ")) for a, b, said in _EVENT.findall(text)]
        return _first(found) or [
            Event(seconds(a), seconds(b), said.strip().rstrip("."))
            for line in text.strip().split("\n")
            for a, b, said in _LOOSE.findall(line)
        ]
    lines = [_LINE.fullmatch(line.strip()) for line in text.strip().split("\n") if line.strip()]
    events = [Event(seconds(line[1]), seconds(line[2]), line[3].strip()) for line in lines if line]
    sound = len(events) == len(lines) and all(event.start < event.end for event in events)
    return _first(events) if sound else []


def f1(events: Sequence[Event], wanted: Sequence[Event], *, fps: float = 1.0, leaderboard: bool = False) -> float:
    """F1 of the means of precision and recall over ``THRESHOLDS`` of IoU.

    Args:
        events: of the answer.
        wanted: of the reference.
        fps: frames a second, on the board.
        leaderboard: events that overlap are cut into disjoint ones, and seconds into whole frames; an event is right if
            it covers any wanted one by more than the threshold, however many others do.

    Returns:
        In [0, 1]. The board skips an answer without events, and a question without any: NaN. Strictly these are 0 and
        NaN; an event is right if it is matched one to one, with at least the threshold.

    >>> truth = [Event(0, 10, "a"), Event(20, 30, "b")]
    >>> round(f1([Event(0, 10, "a")], truth), 3), f1([], truth), f1([], truth, leaderboard=True)
    (0.667, 0.0, nan)
    """
    if not wanted or (leaderboard and not events):
        return float("nan")
    if not events:
        return 0.0
    said = list(events)
    if leaderboard:
        said = flatten(said) if _overlap(said) else said
        table = np.array([[_frames_iou(a, b, fps) for b in wanted] for a in said])
        close = [table > threshold for threshold in THRESHOLDS]
        precision = float(np.mean([hit.any(1).mean() for hit in close]))
        recall = float(np.mean([hit.any(0).mean() for hit in close]))
    else:
        table = np.array([[iou(a, b) for b in wanted] for a in said])
        matched = np.mean([best_sum((table >= threshold).astype(float)) for threshold in THRESHOLDS])
        precision, recall = (float(matched) / count for count in table.shape)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def iou(one: Event, other: Event) -> float:
    """Intersection over union of the spans; 0 if the union is empty."""
    shared = max(0.0, min(one.end, other.end) - max(one.start, other.start))
    union = one.end - one.start + other.end - other.start - shared
    return shared / union if union > 0 else 0.0


def flatten(events: Sequence[Event]) -> list[Event]:
    """Disjoint pieces between all starts and ends; of events that share one the longest names it, the first if equal.

    >>> flatten([Event(0, 10, "a"), Event(4, 6, "b"), Event(20, 30, "c")])
    [Event(start=0, end=4, caption='a'), Event(start=4, end=6, caption='a'), Event(start=6, end=10, caption='a'), \
Event(start=20, end=30, caption='c')]
    """
    edges = sorted({edge for event in events for edge in event[:2]})
    pieces: list[Event] = []
    for start, end in zip(edges, edges[1:], strict=False):
        there = [event for event in events if event.start < end and event.end > start]
        if there:
            pieces.append(Event(start, end, max(there, key=lambda event: event.end - event.start).caption))
    return pieces


def pairs(events: Sequence[Event], wanted: Sequence[Event], threshold: float) -> list[tuple[str, str]]:
    """For each event the caption of the wanted one that it covers best, by the threshold at least: what is judged."""
    found: list[tuple[str, str]] = []
    for event in events:
        values = [iou(event, other) for other in wanted]
        best = max(values, default=0.0)
        if best > 0 and best >= threshold:
            found.append((event.caption, wanted[values.index(best)].caption))
    return found


def _first(events: Sequence[Event]) -> list[Event]:
    found: dict[tuple[float, float], Event] = {}
    for event in events:
        found.setdefault(event[:2], event)
    return list(found.values())


def _overlap(events: Sequence[Event]) -> bool:
    ordered = sorted(events)
    return any(after.start < before.end for before, after in zip(ordered, ordered[1:], strict=False))


def _frames_iou(one: Event, other: Event, fps: float) -> float:
    """IoU of whole frames: a span that is reversed is turned, and the denominator has 1e-8 more."""
    (a, b), (c, d) = (sorted((int(event.start * fps), int(event.end * fps))) for event in (one, other))
    union = min(max(b, d) - min(a, c), b - a + d - c)
    return max(0, min(b, d) - max(a, c)) / (union + 1e-8)
