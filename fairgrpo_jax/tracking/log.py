"""The log of a run, ``metrics.jsonl``.

A run appends JSON objects, one per line, to ``metrics.jsonl``::

    {"kind": "train", "step": 12, "reward/mean": 0.71, "time/step": 0.11}

``kind`` is ``"warmup"``, ``"train"`` or ``"eval"``, every other field is a number, and every field about wall time
starts with ``time/`` (seconds) or ``speed/``, so that two runs with the same seed agree in all other fields. A row of
kind ``"note"`` has lines of text instead: options that changed, records that are not those of before. A process may be
killed at any moment: at worst the last line is incomplete, and it is dropped when the file is next opened.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fairgrpo_jax import files


class MetricsLog:
    """An append-only JSONL file of metrics that survives ``kill -9``.

    Each row is one flushed write. NaN and infinities have no JSON form: they are written as ``null`` and read back as
    NaN by :func:`read_metrics`, so an undefined metric differs from one that was not computed.

    Opening an existing file appends to it; an incomplete last line is dropped first.

    Args:
        path: the file; its folder is created if missing.
        write: whether this process writes it; of several that run together, one does.

    Raises:
        ValueError: if a line other than the last one is not a JSON object.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> with MetricsLog(path) as log:
        ...     log.append("train", 1, {"reward/mean": np.float32(0.5), "loss": float("nan")})
        ...     log.append("train", 2, {"reward/mean": 0.75})
        ...     log.truncate_after(train=1)
        1
        >>> read_metrics(path)
        [{'kind': 'train', 'step': 1, 'reward/mean': 0.5, 'loss': nan}]
    """

    def __init__(self, path: str | os.PathLike[str], *, write: bool = True):
        self.path, self._writes = Path(path), write
        if not write:
            self._file = open(os.devnull, "a", encoding="utf-8")
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            lines, complete = _json_lines(self.path)
            if not complete:
                _replace(self.path, lines)
        self._file = self.path.open("a", encoding="utf-8")

    def append(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Writes one row; values are Python, NumPy or JAX scalars.

        Raises:
            ValueError: if a value is not a single number, or a metric is named "kind" or "step".
        """
        if clash := {"kind", "step"} & values.keys():
            raise ValueError(f"metrics named {sorted(clash)} would hide the row's own fields; rename them")
        row = {"kind": kind, "step": int(step)} | {name: _number(name, value) for name, value in values.items()}
        self._write(row)

    def note(self, step: int, changes: Sequence[str]) -> None:
        """Writes a row of kind "note" with lines of text: what changed about the run after update ``step``."""
        self._write({"kind": "note", "step": int(step), "changes": [*changes]})

    def count(self, kind: str) -> int:
        """Number of different steps that have a row of a kind."""
        return len({row.get("step") for row in map(json.loads, _json_lines(self.path)[0]) if row.get("kind") == kind})

    def sync(self) -> None:
        """Forces all rows to disk."""
        if self._writes:
            self._file.flush()
            os.fsync(self._file.fileno())

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n")
        self._file.flush()

    def truncate_after(self, **last_steps: int) -> int:
        """Removes the rows after a checkpoint; returns their number.

        ``truncate_after(train=100, eval=100)`` keeps the rows of the named kinds with ``step`` up to and including the
        number; -1 removes all of a kind. Other kinds are not changed.
        """
        if not self._writes:
            return 0
        self._file.close()
        lines, _ = _json_lines(self.path)
        kept: list[str] = []
        for line in lines:
            row = json.loads(line)
            if row.get("step", 0) <= last_steps.get(row.get("kind"), math.inf):
                kept.append(line)
        _replace(self.path, kept)
        self._file = self.path.open("a", encoding="utf-8")
        return len(lines) - len(kept)

    def close(self) -> None:
        """Closes the file; appending further rows is an error."""
        self._file.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the objects of a JSONL file as they are (``null`` is None); an incomplete last line is skipped.

    Raises:
        ValueError: if a line other than the last one is not a JSON object.
    """
    return [json.loads(line) for line in _json_lines(Path(path))[0]]


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the rows of a ``metrics.jsonl``, oldest first, with ``null`` as NaN.

    Raises:
        ValueError: if a line other than the last one is not a JSON object.
    """
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in read_rows(path)]


def _number(name: str, value: Any) -> int | float | None:
    """The scalar as a JSON number; None if it is not finite."""
    array = np.asarray(value)
    if array.shape != () or not (array.dtype.kind in "biuf" or array.dtype.name == "bfloat16"):
        raise ValueError(f"metric {name!r}: got {_shown(value)}; wanted one number, reduce it before logging")
    if array.dtype.kind in "biu":
        return int(array)
    number = float(str(array))  # the shortest digits for this float: 0.1, not 0.10000000149011612
    return number if math.isfinite(number) else None


def _shown(value: Any) -> str:
    return f"an array of shape {value.shape}" if getattr(value, "shape", ()) else repr(value)


def _json_lines(path: Path) -> tuple[list[str], bool]:
    """The lines of a JSONL file that hold an object, and whether the file ends with a complete line."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    tail = lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            whole = isinstance(json.loads(line), dict)
        except ValueError:
            whole = False
        if not whole:
            raise ValueError(
                f"{path}, line {number}: got {line[:60]!r}, wanted a JSON object. Only a last line may be cut short; "
                "restore the file or delete the line."
            )
    return lines, not tail


def _replace(path: Path, lines: Sequence[str]) -> None:
    """Replaces the content of the file by ``lines`` atomically."""
    files.write(path, "".join(line + "\n" for line in lines))
