"""Rows kept by column in Arrow's memory, of which records are made when they are asked for.

A record takes about a kilobyte as objects of Python and some 200 bytes as a row of columns.
"""

import functools
import itertools
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from fairgrpo_jax.data.record import Record


if TYPE_CHECKING:
    import pyarrow as pa


WINDOW = 8192  # rows that are Python objects at the same time
SETS = 64  # sets of columns in a window whose rows are kept by column
CHUNK = 1024  # records that are made at a time where all are asked for


class Column(NamedTuple):
    """Values of a column, one for each row.

    Attributes:
        values: as they were read.
        keys: the same where all are text, all whole numbers, and so on; the values as JSON where they are not, or are
            lists or objects. Of equal keys the values are equal.
        kind: ``"json"``, or the type in Arrow.
    """

    values: Sequence[Any]
    keys: Sequence[Any]
    kind: str = "null"

    @staticmethod
    def of(values: Sequence[Any]) -> "Column | None":
        """A column; None if something in it is not JSON, such as an ``Address``, a date or a number that is none.

        Example:
            >>> from fairgrpo_jax.data.columnar import Column
            >>> Column.of([1, None]).keys, Column.of([1, "a"]).keys, Column.of([["a"], None]).keys
            ([1, None], ['1', '"a"'], ['["a"]', None])
        """
        kinds = {*map(type, values)} - {type(None)}
        kind = _TYPES.get(next(iter(kinds), type(None))) if len(kinds) < 2 else None
        if kind == "int64" and max(abs(value) for value in values if value is not None) >= 1 << 63:
            kind = None
        if kind is not None:
            return Column(values, values, kind)
        try:
            return Column(values, [*map(_text, values)], "json")
        except (TypeError, ValueError, RecursionError):
            return None

    def stored(self) -> "pa.Array":
        """The keys in Arrow's memory."""
        return stored(self.keys, "large_string" if self.kind == "json" else self.kind)


def stored(values: Sequence[Any], kind: str) -> "pa.Array":
    """Values in Arrow's memory, from the system: mimalloc takes twice as much for many arrays of this size."""
    import pyarrow as pa

    return pa.array(values, getattr(pa, kind)(), memory_pool=pa.system_memory_pool())


_TYPES = {str: "large_string", int: "int64", float: "float64", bool: "bool_", type(None): "null"}


def _text(value: Any) -> str | None:
    """A value as JSON.

    Raises:
        TypeError, ValueError: if another would be read from it.
    """
    if value is None:
        return None
    if type(value) is list and {*map(type, value)} == {str}:
        return _list_text(tuple(value))
    text = json.dumps(value)
    if json.loads(text) != value:
        raise ValueError(f"got {value!r}; wanted what JSON can say")
    return text


@functools.lru_cache(maxsize=1 << 12)
def _list_text(value: tuple[str, ...]) -> str:
    return json.dumps(value)


@functools.lru_cache(maxsize=1 << 12)
def _value(text: str | None) -> Any:
    """What a text of ``_text`` says; nobody may change it."""
    return None if text is None else json.loads(text)


class Block(NamedTuple):
    """Rows of the same columns, some thousand at most.

    Attributes:
        lines: the number of each row.
        rows: the rows.
        columns: their columns by name; None if they cannot be kept so.
    """

    lines: list[int]
    rows: list[dict[str, Any]]
    columns: Mapping[str, Column] | None


def blocks(rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[Block]:
    """Puts rows with the same columns together, a window of rows after the other.

    Args:
        rows: the number of each row, and its values by column.

    Example:
        >>> from fairgrpo_jax.data import columnar
        >>> [block.lines for block in columnar.blocks([(1, {"a": 1}), (2, {"b": 1}), (3, {"a": 2})])]
        [[1, 3], [2]]
    """
    rows = iter(rows)
    while window := [*itertools.islice(rows, WINDOW)]:
        alike: dict[tuple[str, ...], list[tuple[int, dict[str, Any]]]] = {}
        for pair in window:
            alike.setdefault(tuple(pair[1]), []).append(pair)
        groups = sorted(alike.items(), key=lambda item: -len(item[1]))
        for names, group in groups[:SETS]:
            lines, held = zip(*group, strict=True)
            columns = {
                name: Column.of(values)
                for name, values in zip(names, zip(*(row.values() for row in held), strict=True), strict=True)
            }
            whole = {name: column for name, column in columns.items() if column is not None}
            yield Block([*lines], [*held], whole if len(whole) == len(names) else None)
        if rest := [pair for _, group in groups[SETS:] for pair in group]:
            yield Block([line for line, _ in rest], [row for _, row in rest], None)


@dataclass(frozen=True)
class Part:
    """Rows of the same columns, or records where rows cannot be kept.

    Attributes:
        lines: the number of each row.
        columns: the columns by name.
        json: names of the columns that hold JSON.
        held: records in the place of rows.
    """

    lines: np.ndarray
    columns: Mapping[str, "pa.Array"]
    json: frozenset[str] = frozenset()
    held: Sequence[Record] = ()

    @staticmethod
    def of(block: Block) -> "Part":
        """The rows of a block, in Arrow's memory."""
        columns = block.columns or {}
        stored = {name: column.stored() for name, column in columns.items()}
        return Part(np.array(block.lines), stored, frozenset(name for name in columns if columns[name].kind == "json"))

    def rows(self, numbers: np.ndarray) -> list[tuple[dict[str, Any], int]]:
        """Some rows, each with its line."""
        values = []
        for name, array in self.columns.items():
            taken = array.take(numbers).to_pylist()
            values.append([*map(_value, taken)] if name in self.json else taken)
        names, lines = [*self.columns], self.lines[numbers].tolist()
        return [
            (dict(zip(names, row, strict=True)), line)
            for row, line in zip(zip(*values, strict=True), lines, strict=True)
        ]

    def records(self, numbers: np.ndarray, make: Callable[[dict[str, Any], int], Record]) -> list[Record]:
        """The records of some rows, in their order."""
        if self.held:
            return [self.held[row] for row in numbers.tolist()]
        return [make(row, line) for row, line in self.rows(numbers)]


@dataclass(frozen=True)
class Records(Sequence[Record]):
    """Records that are made when they are asked for, anew each time.

    Attributes:
        make: makes the record of a row, from its values and its number.
        parts: the rows.
        places: (N, 2) number of the part of each record, and of its row there.
        finish: is applied to every record, such as to tell its split.
        source: is kept as long as the records are.
    """

    make: Callable[[dict[str, Any], int], Record]
    parts: Sequence[Part]
    places: np.ndarray
    finish: Callable[[Record], Record] | None = None
    source: Any = None

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Records": ...
    def __getitem__(self, index: int | slice) -> "Record | Records":
        if isinstance(index, slice):
            return self.chosen(np.arange(len(self))[index])
        place = range(len(self))[operator.index(index)]  # raises as a list does
        return self._made(self.places[place : place + 1])[0]

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), CHUNK):
            yield from self._made(self.places[start : start + CHUNK])

    def __repr__(self) -> str:
        return f"Records({len(self)})"

    def chosen(self, rows: np.ndarray, finish: Callable[[Record], Record] | None = None) -> "Records":
        """Some of the records, by their numbers or a mask."""
        return Records(self.make, self.parts, self.places[rows], finish or self.finish, self.source)

    def _made(self, places: np.ndarray) -> list[Record]:
        found: list[Any] = [None] * len(places)
        for part in np.unique(places[:, 0]).tolist():
            at = np.flatnonzero(places[:, 0] == part)
            for place, record in zip(at.tolist(), self.parts[part].records(places[at, 1], self.make), strict=True):
                found[place] = record if self.finish is None else self.finish(record)
        return found
