r"""The labels of an answer, by one rule for rewards, log, report and audit.

Public as ``metrics.label_set`` and ``rewards.parsing.unwrapped``.
"""

import re


WRAPPERS = (r"\text{", r"\textbf{", r"\mathrm{")
LabelSet = frozenset[str | None]


def label_set(answer: str | None) -> LabelSet:
    r"""Labels of an answer, separated by a comma and a space; no answer gives a set that equals no set of labels.

    A ``\text{...}`` or similar around the answer or around a label is removed, and empty labels are dropped.

    >>> sorted(label_set(r"\text{A}, B")), label_set(None) == label_set("")
    (['A', 'B'], False)
    """
    if answer is None:
        return frozenset([None])
    return frozenset(filter(None, map(unwrapped, unwrapped(answer).split(", "))))


def unwrapped(text: str) -> str:
    r"""The text without surrounding white space and without a ``\text{...}`` or similar around all of it.

    >>> unwrapped(r" \textbf{\text{ Nevus }} ")
    'Nevus'
    """
    ends, start, end = braces(text), 0, len(text)
    while True:
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        wrapper = next((name for name in WRAPPERS if text.startswith(name, start, end)), None)
        if wrapper is None or ends.get(start + len(wrapper) - 1) != end - 1:
            return text[start:end]
        start, end = start + len(wrapper), end - 1


def braces(text: str) -> dict[int, int]:
    """The place of every opening brace that closes, with the place where it does."""
    waiting: list[int] = []
    ends: dict[int, int] = {}
    for found in re.finditer("[{}]", text):
        if found[0] == "{":
            waiting.append(found.start())
        elif waiting:
            ends[waiting.pop()] = found.start()
    return ends
