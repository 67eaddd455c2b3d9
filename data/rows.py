"""Reads JSON lists strictly: rows by their keys, all bad rows reported with their numbers, nothing guessed."""

import json
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fairgrpo_jax.data.tables import Problems


@dataclass
class Rows:
    """The objects of a JSON list: ``for number, row in rows``, counted from 1.

    Callers add problems of a row to ``problems``. Rows that are not objects, or lack a required key, are recorded in
    ``problems`` and skipped. At its end the iteration raises an error if there are problems.

    Attributes:
        path: the file.
        problems: bad rows found so far.
    """

    path: Path
    problems: Problems
    _required: tuple[str, ...] = field(repr=False)
    _rows: list = field(repr=False)

    def __iter__(self) -> Iterator[tuple[int, dict]]:
        for number, row in enumerate(self._rows, start=1):
            if not isinstance(row, dict):
                self.problems.add(number, f"{reprlib.repr(row)} is no object")
            elif absent := [key for key in self._required if key not in row]:
                self.problems.add(number, f"missing keys {', '.join(absent)}")
            else:
                yield number, row
        self.problems.raise_if_any()


def read_json(path: str | Path, required: Sequence[str]) -> Rows:
    """Opens a JSON file with a list of objects, in UTF-8 with or without byte order mark.

    Args:
        path: the file.
        required: keys that every row must have, in any order; other keys are allowed.

    Raises:
        ValueError: if the file does not exist, is not UTF-8 or not valid JSON (truncated, say), or does not hold a list
            with rows. When iterating: for bad rows.

    Example:
        >>> import pathlib, tempfile
        >>> from fairgrpo_jax.data.rows import read_json
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "test.json"
        >>> _ = path.write_text('[{"qid": 7, "answer": "Yes"}]')
        >>> list(read_json(path, ["qid"]))
        [(1, {'qid': 7, 'answer': 'Yes'})]
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; wanted a JSON list with the keys {', '.join(required)}")
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); get the file again from its owner") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} holds {reprlib.repr(rows)}; wanted a list of objects with {', '.join(required)}")
    return Rows(path, Problems(path, unit="row"), tuple(required), rows)


def text(row: Mapping, key: str, *, empty: bool = False) -> str:
    r"""A value of a row as one line of text, with white space collapsed; numbers as they print.

    Args:
        row: a row of ``read_json``.
        key: its key.
        empty: whether text may be absent: a value that is missing, null or only white space gives "".

    Raises:
        ValueError: if the value is neither text nor a number, or is absent without ``empty``.

    Example:
        >>> from fairgrpo_jax.data.rows import text
        >>> text({"answer": " Transverse  Plane\n"}, "answer"), text({"answer": 3}, "answer")
        ('Transverse Plane', '3')
    """
    value = row.get(key)
    if value is None and empty:
        return ""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number and not isinstance(value, str):
        raise ValueError(f"{key} is {reprlib.repr(value)}; wanted text")
    line = " ".join(str(value).split())
    if not line and not empty:
        raise ValueError(f"{key} is empty")
    if not line.isascii():
        try:
            line.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{key} is {reprlib.repr(value)}; half a character is no text") from None
    return line


def inside(name: str) -> PurePosixPath:
    """Parses the path of a file inside the dataset's folder; it cannot leave the folder.

    Raises:
        ValueError: for an absolute path, a drive, ``..``, or an empty path.

    Example:
        >>> from fairgrpo_jax.data.rows import inside
        >>> inside("xmlab1/source.jpg")
        PurePosixPath('xmlab1/source.jpg')
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or "\0" in name:
        raise ValueError(f"file name is {name!r}; wanted one inside the dataset's folder")
    return path
