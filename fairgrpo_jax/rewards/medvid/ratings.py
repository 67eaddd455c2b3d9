"""SA and CVS, ratings by aspect: ``Respect for tissue: 2/5, ...`` and ``Two structures: 2, Cystic plate: 1, ...``."""

import re
from collections.abc import Mapping

import numpy as np


SKILLS = (
    "Respect for tissue",
    "Suture/needle handling",
    "Time and motion",
    "Flow of operation",
    "Overall performance",
    "Quality of final product",
)
CVS: Mapping[str, str] = {  # the owners' keys, and the names in answers
    "two_structures": "two structures",
    "cystic_plate": "cystic plate",
    "hepatocystic_triangle": "hepatocystic triangle",
}


def skills(text: str, *, leaderboard: bool = False) -> dict[str, int] | None:
    """Ratings of skill by aspect, 1 to 5 as they are written.

    Args:
        text: the answer.
        leaderboard: of every part between commas the first ``name: n/5`` alone counts, the name being all before it
            back to a colon; case counts.

    Returns:
        None if there is no rating at all: the board skips such an answer. Strictly, parts between commas or lines that
        are ``name: n/5`` and nothing else; an aspect that is rated twice is not rated.

    >>> skills("Respect for tissue: 2/5, time and motion: 3/5.")
    {'Respect for tissue': 2, 'Time and motion': 3}
    >>> skills("The scores are Respect for tissue: 2/5", leaderboard=True)
    {'The scores are Respect for tissue': 2}
    """
    if not re.search(r"\d+/5", text):
        return None
    if leaderboard:
        found = [re.search(r"([^:]+?):\s*(\d+)/5", part.strip()) for part in text.split(",")]
        return {match[1].strip(): _level(match[2]) for match in found if match}
    names = {name.lower(): name for name in SKILLS}
    return {names.get(name, name): level for name, level in _strict(text, r"(\d+)/5").items()}


def cvs(text: str, *, leaderboard: bool = False) -> dict[str, int]:
    """Scores of the critical view of safety by component, 0 to 2 as they are written.

    Args:
        text: the answer.
        leaderboard: a part between commas that contains a component's name has its first number behind the colon;
            of a component that is named twice the last one counts.

    Returns:
        By the owners' keys. Strictly as ``skills``: ``name: n`` and nothing else, no name twice.

    >>> cvs("Two structures: 2, Cystic plate: 1")
    {'two_structures': 2, 'cystic_plate': 1}
    """
    if not leaderboard:
        found = _strict(text, r"(\d+)")
        return {key: found[name] for key, name in CVS.items() if name in found}
    scores: dict[str, int] = {}
    for part in text.lower().split(","):
        key = next((key for key, name in CVS.items() if name in part), None)
        pattern = r"two structures?" if key == "two_structures" else CVS.get(key or "", "")
        if key and (match := re.search(rf"{pattern}:\s*(\d+)", part)):
            scores[key] = _level(match[1])
    return scores


def right(said: Mapping[str, int] | None, wanted: Mapping[str, int], *, leaderboard: bool = False) -> dict[str, float]:
    """Whether each wanted aspect is rated as wanted, 1 or 0.

    The board leaves out aspects that the answer does not rate, NaN: to rate a single one, the easiest, is rewarded.
    Strictly they are wrong.

    >>> right({"a": 1}, {"a": 1, "b": 2}), right({"a": 1}, {"a": 1, "b": 2}, leaderboard=True)
    ({'a': 1.0, 'b': 0.0}, {'a': 1.0, 'b': nan})
    """
    missing = float("nan") if leaderboard else 0.0
    said = said or {}
    return {name: float(said[name] == level) if name in said else missing for name, level in wanted.items()}


def score(said: Mapping[str, int] | None, wanted: Mapping[str, int]) -> float:
    """Share of the wanted aspects that are rated as wanted, strictly; NaN if none is wanted."""
    return float(np.mean(list(right(said, wanted).values()))) if wanted else float("nan")


def _level(digits: str) -> int:
    """A level as a number; -1, which is none, for more digits than Python reads."""
    return int(digits) if len(digits) < 1000 else -1


def _strict(text: str, level: str) -> dict[str, int]:
    """Levels by lower-case name, of parts that are nothing else; those of names that occur once."""
    parts = [part.strip().rstrip(".") for part in re.split(r"[,\n]", text)]
    found = [match for part in parts if (match := re.fullmatch(rf"([^:]+?):\s*{level}", part))]
    names = [match[1].strip().lower() for match in found]
    return {name: _level(match[2]) for name, match in zip(names, found, strict=True) if names.count(name) == 1}
