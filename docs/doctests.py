"""Examples of docstrings as code blocks: Markdown would take their ``>>>`` for quotations."""

from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Puts fences around the doctests of every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object that was read."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """The text with each run of lines from ``>>>`` to a blank line or a smaller indent in a block of its own."""
    lines, indent = [], None
    for line in [*text.splitlines(), ""]:
        inside = indent is not None and line.startswith(indent) and line.strip()
        if indent is not None and not inside:
            lines.append(f"{indent}```")
            indent = None
        if indent is None and line.lstrip().startswith(">>> "):
            indent = line[: len(line) - len(line.lstrip())]
            lines += [""] * bool(lines and lines[-1].strip()) + [f"{indent}```pycon"]
        lines.append(line)
    return "\n".join(lines[:-1])
