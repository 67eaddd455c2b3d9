"""A question of MedVidBench with an answer to it, and what its reference says in the form of each task."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from fairgrpo_jax.rewards.answers import Asked
from fairgrpo_jax.rewards.medvid import boxes, events, ratings, spans
from fairgrpo_jax.rewards.medvid.boxes import Box
from fairgrpo_jax.rewards.medvid.events import Event
from fairgrpo_jax.rewards.medvid.spans import Span


class Sample(NamedTuple):
    """What a scorer needs of one answer.

    Attributes:
        task: as the owners name it: ``tal``, ``stg``, ``dense_captioning``, ``video_summary``, ``region_caption``,
            ``next_action``, ``skill_assessment`` or ``cvs_assessment``.
        source: the dataset that the video is from.
        question: the prompt, in which the board looks for the procedure.
        reference: the owners' answer as text.
        structure: their ``struc_info``, the structured answer.
        fps: frames a second that the model sees.
        answer: what is scored.
    """

    task: str
    source: str
    question: str
    reference: str
    structure: Sequence[Any]
    fps: float
    answer: str

    @classmethod
    def of(cls, record: Asked, answer: str) -> "Sample":
        """The answer to a record of ``data.load("medvidbench", ...)``."""
        extra = record.extra
        return cls(
            extra.get("task", ""),
            extra.get("source", ""),
            record.question,
            record.answer,
            structure(record),
            float(extra.get("fps") or 1.0),
            answer,
        )


def structure(record: Asked) -> list[Any]:
    """The structured answer of a record; empty if it has none."""
    return json.loads(record.extra.get("struc_info") or "[]")


def wanted_spans(given: Sequence[Any], reference: str = "") -> list[Span]:
    """The spans of a TAG question, of the structured answer, else of the text; the board takes the first alone.

    >>> wanted_spans([{"spans": [{"start": 1, "end": "2.5"}]}]), wanted_spans([], "1.0-2.5 seconds.")
    ([(1.0, 2.5)], [(1.0, 2.5)])
    """
    told = [span for item in _dicts(given) for span in _dicts(item.get("spans"))]
    found = [(float(span["start"]), float(span["end"])) for span in told if {"start", "end"} <= span.keys()]
    return found or spans.parse(reference)


def wanted_boxes(given: Sequence[Any], reference: str = "") -> dict[str, Box]:
    """The boxes of an STG question by time, as the owners write it; those of other than four numbers are empty."""
    first = _first(given)
    named = _dict(first.get("bbox_dict", first))
    if not named:
        return boxes.parse(reference)
    corners = {
        time: cast(Box, tuple(cast(list[float], box)) if isinstance(box, list) else ()) for time, box in named.items()
    }
    return {time: box for time, box in corners.items() if _is_time(time)}


def wanted_events(given: Sequence[Any], reference: str = "") -> list[Event]:
    """The events of a DVC question, in any of the owners' three forms; events without a caption do not count."""
    nested: object = _first(given).get("dc_segments", given)
    told = _dicts(cast(object, given[0]) if given and isinstance(given[0], list) else nested)
    whole = [event for event in told if {"start", "end", "caption"} <= event.keys()]
    found = [Event(float(event["start"]), float(event["end"]), str(event["caption"])) for event in whole]
    return found or events.parse(reference)


def wanted_skills(given: Sequence[Any], reference: str = "", *, leaderboard: bool = False) -> dict[str, int]:
    """The levels of skill by aspect; strictly by the names of ``ratings.SKILLS``, in whatever case they are told."""
    told = {name: int(level) for name, level in _dict(_first(given).get("skill_scores")).items()}
    if leaderboard:
        return told or ratings.skills(reference, leaderboard=True) or {}
    names = {name.lower(): name for name in ratings.SKILLS}
    plain = {names.get(key := name.replace("_", " ").lower(), key): level for name, level in told.items()}
    return plain or ratings.skills(reference) or {}


def wanted_cvs(given: Sequence[Any], reference: str = "", *, leaderboard: bool = False) -> dict[str, int]:
    """The scores of the critical view of safety by component."""
    told = _dict(_first(given).get("cvs_scores"))
    return {key: int(told[key]) for key in ratings.CVS if key in told} or ratings.cvs(
        reference, leaderboard=leaderboard
    )


def _dicts(value: object) -> list[dict[str, Any]]:
    """The objects of a list; none of anything else."""
    items = cast(Sequence[object], value) if isinstance(value, list | tuple) else ()
    return [cast(dict[str, Any], item) for item in items if isinstance(item, dict)]


def _first(given: Sequence[Any]) -> Mapping[str, Any]:
    found = _dicts(given)
    return found[0] if found else {}


def _dict(value: object) -> Mapping[str, Any]:
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def _is_time(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False
