"""Media inside rows, as bytes or as ``data:`` URIs in text: they stay on disk, and an ``Address`` says where.

Those in JSON files are fetched here, those in Parquet and Arrow files by ``cells``.
"""

import base64
import binascii
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


SUFFIXES = (".jsonl", ".json")
_URI = re.compile(r"data:[^,]*;base64,")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a medium inside a row is; ``cells.read`` gives its bytes.

    Attributes:
        path: a Parquet, Arrow or JSON file.
        member: ``"<row>/<column>"``, or ``"<row>.<item>.<key>/<column>"`` inside lists and objects; rows and items are
            counted from 0. In JSON files ``"<start>-<end>"``, the bytes of the row, stands for the row.
    """

    path: Path
    member: str

    def __str__(self) -> str:
        return f"{self.path}!{self.member}"


def decoded(text: str) -> bytes | None:
    """The bytes of a ``data:`` URI in base64; None for any other text.

    Example:
        >>> from fairgrpo_jax.data import embedded
        >>> embedded.decoded("data:text/plain;base64,YWI="), embedded.decoded("a.png")
        (b'ab', None)
    """
    if head := _URI.match(text):
        try:
            return base64.b64decode(text[head.end() :], validate=True)
        except binascii.Error:
            pass
    return None


def located(value: Any, path: Path, place: str, column: str) -> Any:
    """A value with an ``Address`` in place of all bytes and ``data:`` URIs in it.

    Args:
        value: what a column has in a row.
        path: the file.
        place: the row, and the way inside its value.
        column: name of the column.
    """
    if isinstance(value, bytes) or (isinstance(value, str) and decoded(value) is not None):
        return Address(path, f"{place}/{column}")
    if isinstance(value, list):
        return [located(one, path, f"{place}.{item}", column) for item, one in enumerate(value)]
    if isinstance(value, dict):
        known = {key for key in value if not set(key) & set("./")}
        return {
            key: located(one, path, f"{place}.{key}", column) if key in known else one for key, one in value.items()
        }
    return value


def inside(value: Any, steps: Sequence[str]) -> Any:
    """What stands in lists and objects at the end of a way."""
    for step in steps:
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


def read(path: Path, member: str) -> bytes:
    """Reads the bytes at an ``Address`` in a JSON file.

    Raises:
        ValueError: if there are none: the file is another one by now.
    """
    place, _, column = member.partition("/")
    span, *steps = place.split(".")
    try:
        start, end = map(int, span.split("-"))
        with path.open("rb") as file:
            file.seek(start)
            row = json.loads(file.read(end - start))
        content = decoded(inside(row[column], steps))
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} has no cell {member} ({error}); load the dataset again") from error
    if content is None:
        raise ValueError(f"{path} has no bytes in the cell {member}; load the dataset again")
    return content
