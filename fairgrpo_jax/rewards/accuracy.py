r"""Scores the last ``\boxed{...}`` of a completion against the reference labels."""

from collections.abc import Sequence

import numpy as np


BOX = r"\boxed{"
THOUGHT, THOUGHT_END = "<think>", "</think>"
WRAPPERS = (r"\text{", r"\textbf{", r"\mathrm{")


def extract(text: str) -> str | None:
    r"""Content of the last complete ``\boxed{...}``, stripped; None if there is none.

    Braces inside the box must balance. If the text contains ``</think>``, only what follows its last occurrence counts:
    a box inside the reasoning is not an answer, whether the completion or its prompt opened the thought. A thought
    opened after that and never closed leaves no answer. A ``\text{}``, ``\textbf{}`` or ``\mathrm{}`` around the whole
    content is removed.

    Args:
        text: one completion, without the tokens sampled after its end.

    Returns:
        The answer, possibly the empty string; None if no box is closed.

    The authors of FairGRPO fall back to any text in square brackets if there is no box; here that is not an answer.

    >>> extract(r"<think>\boxed{Nevus}?</think> \boxed{Melanoma}")
    'Melanoma'
    >>> extract("Melanoma") is None
    True
    """
    text = text.rpartition(THOUGHT_END)[2]
    if THOUGHT in text:
        return None
    start = text.rfind(BOX)
    while start >= 0:
        content = _until_closed(text[start + len(BOX) :])
        if content is not None:
            return _unwrapped(content)
        start = text.rfind(BOX, 0, start)
    return None


def exact(texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    r"""1.0 where the set of boxed labels equals the set of reference labels, else 0.0.

    Labels are separated by a comma and a space, stripped of white space, and compared as sets (order and repetition do
    not matter), case-sensitively as in the authors' code. A completion without a box scores 0.

    Args:
        texts: N completions.
        answers: N reference answers, one label or several joined by ``", "``.

    Returns:
        (N,) float32 of 0 and 1.

    Raises:
        ValueError: if the lengths differ.

    Source: FairGRPO (arXiv 2510.19893) states a binary reward. The authors' code gives half the F1 of the two sets;
    for single labels that is the same up to a factor, which the advantages cancel.

    >>> exact([r"\boxed{Edema, Fracture}", "Edema"], ["Fracture, Edema", "Edema"]).tolist()
    [1.0, 0.0]
    """
    if len(texts) != len(answers):
        raise ValueError(f"got {len(texts)} texts and {len(answers)} answers; wanted one answer for each text")
    found = [extract(text) for text in texts]
    hits = [a is not None and _labels(a) == _labels(b) for a, b in zip(found, answers, strict=True)]
    return np.asarray(hits, np.float32)


def set_f1(texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    r"""F1 of the set of boxed labels against the set of reference labels: 2 |A and B| / (|A| + |B|).

    For questions with several right labels; with single labels it equals :func:`exact`.

    Args:
        texts: N completions.
        answers: N reference answers, one label or several joined by ``", "``.

    Returns:
        (N,) float32 in [0, 1]; 0 without a box.

    Raises:
        ValueError: if the lengths differ.

    Source: the code of FairGRPO's authors, which takes half of it; the factor cancels in advantages and temperatures.
    Their code also splits at "and" and "&"; here labels are separated by a comma and a space.

    >>> set_f1([r"\boxed{Edema}", r"\boxed{Edema, Fracture}"], ["Fracture, Edema"] * 2).round(3).tolist()
    [0.6669999957084656, 1.0]
    """
    if len(texts) != len(answers):
        raise ValueError(f"got {len(texts)} texts and {len(answers)} answers; wanted one answer for each text")
    pairs = [(extract(text), _labels(answer)) for text, answer in zip(texts, answers, strict=True)]
    found = [(frozenset[str]() if said is None else _labels(said), wanted) for said, wanted in pairs]
    return np.asarray([2 * len(said & wanted) / (len(said) + len(wanted)) for said, wanted in found], np.float32)


def _labels(answer: str) -> frozenset[str]:
    return frozenset(_unwrapped(label) for label in answer.split(", "))


def _unwrapped(text: str) -> str:
    r"""The text without surrounding white space and without a ``\text{...}`` or similar around all of it."""
    text = text.strip()
    for wrapper in WRAPPERS:
        if text.startswith(wrapper) and _until_closed(text[len(wrapper) :]) == text[len(wrapper) : -1]:
            return _unwrapped(text[len(wrapper) : -1])
    return text


def _until_closed(text: str) -> str | None:
    """Text up to the brace that closes an already open one; None if it never closes."""
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:i]
    return None
