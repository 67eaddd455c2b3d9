"""Finds the gathers of a compiled program in its text."""

import collections
import math
import re
from collections.abc import Sequence


SMALL = 4096  # numbers; smaller arrays are not matrices


def findings(program: str, text: str, depths: Sequence[int]) -> list[str]:
    """Descriptions of gathers that a compiled program should not have.

    An update gathers the weights of a layer inside the loop over layers; one that gathers a stacked parameter, or its
    gradient, (L, ...) outside of any loop holds all layers at once. A rollout that gathers matrices inside a loop does
    so for every token; the program that copies its weights may gather all.

    Args:
        program: its name.
        text: text of the compiled program.
        depths: numbers of layers of decoder and tower.
    """
    inside = _looped(text)
    gathers: dict[str, tuple[list[int], bool]] = {}
    for computation, lines in _computations(text):
        for line in lines:
            match = re.search(r"= (.*?) all-gather(?:-start)?\(", line)
            if not match:
                continue
            shapes = [[*map(int, sizes.split(","))] for sizes in re.findall(r"\[(\d[\d,]*)\]", match[1])]
            shape = max(shapes, key=math.prod, default=[])
            # An asynchronous gather is in the text several times, also in the loops that it overlaps.
            channel = re.search(r"channel_id=(\d+)", line)
            name = channel[0] if channel else line
            gathers[name] = shape, computation in inside and gathers.get(name, (shape, True))[1]
    if program == "copy":
        return []
    if program in ("prompt", "decode"):
        where = "inside a loop, for every token"
        found = [shape for shape, looped in gathers.values() if looped and len(shape) > 1 and math.prod(shape) >= SMALL]
    else:
        where = "whole, outside the loop over layers"
        stacked = lambda shape: len(shape) > 2 and shape[0] in depths and math.prod(shape) >= SMALL
        found = [shape for shape, looped in gathers.values() if not looped and stacked(shape)]
    counts = collections.Counter(tuple(shape) for shape in found)
    return [f"{program} gathers {list(shape)} {where} ({count} times)" for shape, count in counts.items()]


def _computations(text: str) -> list[tuple[str, list[str]]]:
    """Names and lines of the computations of a compiled program."""
    parts: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            parts.append((head[1], []))
        elif parts:
            parts[-1][1].append(line)
    return parts


def _looped(text: str) -> set[str]:
    """Names of the computations that run inside a loop."""
    parts = dict(_computations(text))
    names = lambda pattern, lines: {name for line in lines for name in re.findall(pattern, line)}
    waiting = names(r"body=%?([\w.\-]+)", [line for lines in parts.values() for line in lines])
    inside: set[str] = set()
    while waiting:
        name = waiting.pop()
        inside.add(name)
        called = names(r"(?:calls|to_apply|body|condition|called_computations)=\{?%?([\w.\-]+)", parts.get(name, []))
        waiting |= called - inside
    return inside
