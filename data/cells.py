"""Reads images and videos out of the cells of tables, one at a time; thread-safe.

Other columns are read without them: an ``Address`` stands for the bytes, which stay on disk. Of a Parquet file the row
group that holds the cell is unpacked, its one column alone, and the last groups are kept (``HELD`` bytes a process); an
Arrow file is mapped into memory and costs nothing.
"""

import bisect
import collections
import contextlib
import functools
import itertools
import os
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairgrpo_jax.data import embedded
from fairgrpo_jax.data.embedded import Address as Address


if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


SUFFIXES = (".parquet", ".arrow")
BATCH = 4096  # rows that are Python objects at the same time
HELD = 256 << 20  # bytes of unpacked row groups that a process keeps
LARGEST = 1 << 30  # bytes of a column of a row group that is unpacked
STEP = 8 << 20  # bytes of media that are in memory at a time where their being there can only be seen by reading them


def is_table(path: Path) -> bool:
    """Whether members of a file are cells."""
    return path.suffix.lower() in (*SUFFIXES, *embedded.SUFFIXES)


def schema(path: Path) -> "pa.Schema":
    """The columns of a file, with their metadata.

    Raises:
        ValueError: if it does not exist, is neither Parquet nor Arrow, or has two columns of one name.
    """
    with _failing(path):
        found = _parquet(*_state(path)).schema_arrow if _is_parquet(path) else _arrow(*_state(path)).schema
        if twice := [name for name, count in collections.Counter(found.names).items() if count > 1]:
            raise _Told(f"{path} has several columns {', '.join(twice)}; wanted different names")
        return found


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet or Arrow file, with an ``Address`` in place of bytes.

    Args:
        path: the file. Bytes are not even read in columns of binary, of ``{"bytes": ..., ...}`` (Hugging Face's Image
            and Video), and of lists of either; elsewhere (messages), and as ``data:`` URIs, for a few rows at a time.

    Raises:
        ValueError: if the file is broken, or a row group holds more than ``LARGEST`` bytes of media.

    Example:
        >>> import pathlib, tempfile
        >>> import pyarrow as pa, pyarrow.parquet as pq
        >>> from fairgrpo_jax.data import cells
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "train.parquet"
        >>> pq.write_table(pa.table({"id": [7], "image": [{"bytes": b"pixels", "path": "1.png"}]}), path)
        >>> (row,) = cells.rows(path)
        >>> row["id"], row["image"]["path"], row["image"]["bytes"].member
        (7, '1.png', '0/image')
        >>> cells.read(path, "0/image")
        b'pixels'
    """
    batches = _parquet_batches(path) if _is_parquet(path) else _arrow_batches(path)
    first = 0
    with _failing(path):
        media = {field.name for field in schema(path) if _is_media(field.type)}
        for batch in batches:
            columns = {}
            for name, array in zip(batch.schema.names, batch.columns, strict=True):
                columns[name] = (_addresses if name in media else _values)(array, path, first, name)
            for name in media - columns.keys():  # all its bytes are there
                columns[name] = [Address(path, f"{row}/{name}") for row in range(first, first + batch.num_rows)]
            first += batch.num_rows
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))


def read(path: Path, member: str) -> bytes:
    """Reads the bytes at an ``Address``.

    Raises:
        ValueError: if there are none, or the file is broken or another one by now.
    """
    if path.suffix.lower() in embedded.SUFFIXES:
        return embedded.read(path, member)
    place, _, column = member.partition("/")
    row, *steps = place.split(".")
    with _failing(path):
        try:
            array, index = (_parquet_column if _is_parquet(path) else _arrow_column)(_state(path), int(row), column)
            cell = array[index]
            for step in steps:
                cell = cell.values[int(step)] if _is_list(cell.type) else cell[step]
            content = (cell["bytes"] if _has(cell.type, "bytes") else cell).as_py()
        except (IndexError, KeyError, TypeError, AttributeError) as error:
            raise _Told(f"{path} has no cell {member} ({error}); load the dataset again") from error
        content = embedded.decoded(content) if isinstance(content, str) else content
        if not isinstance(content, bytes):
            raise _Told(f"{path} has no bytes in the cell {member}; load the dataset again")
    return content


def largest_group(path: Path) -> int:
    """The largest number of bytes that must be unpacked to read one cell of media."""
    if not _is_parquet(path):
        return 0
    with _failing(path):
        file = _parquet(*_state(path))
        leaves = _binary(file)
        groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
        return max((group.column(i).total_uncompressed_size for group in groups for i in leaves), default=0)


# ---- both forms ------------------------------------------------------------------------------------------------------


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _has(kind: Any, field: str) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind) and kind.get_field_index(field) >= 0


def _is_media(kind: Any) -> bool:
    kind = kind.value_type if _is_list(kind) else kind
    return _is_binary(kind) or (_has(kind, "bytes") and _is_binary(kind.field("bytes").type))


def _values(array: Any, path: Path, first: int, name: str) -> list[Any]:
    """The values of another column, with addresses for media in it."""
    values = array.to_pylist()
    if not _holds(array):
        return values
    return [embedded.located(value, path, f"{row}", name) for row, value in enumerate(values, start=first)]


def _holds(array: Any) -> bool:
    """Whether there are bytes or ``data:`` URIs in a column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pc.any(pc.starts_with(array, "data:")).as_py() or False  # type: ignore[attr-defined]
    if _is_list(kind):
        return _holds(array.flatten())
    if pa.types.is_struct(kind):
        return any(_holds(array.field(i)) for i in range(kind.num_fields))
    if pa.types.is_dictionary(kind):
        return _holds(array.dictionary)
    return _is_binary(kind) or pa.types.is_string_view(kind)


def _addresses(array: Any, path: Path, first: int, name: str) -> list[Any]:
    """The values of a column of media, with addresses for bytes; ``first`` is the number of the first row."""
    if not _is_list(array.type):
        return _inside(array, path, [f"{row}/{name}" for row in range(first, first + len(array))])
    lengths = array.value_lengths().to_pylist()
    members = [f"{first + row}.{item}/{name}" for row, n in enumerate(lengths) for item in range(n or 0)]
    flat = iter(_inside(array.flatten(), path, members))
    return [None if n is None else [next(flat) for _ in range(n)] for n in lengths]


def _inside(array: Any, path: Path, members: list[str]) -> list[Any]:
    there = array.is_valid().to_pylist()
    if _is_binary(array.type):
        return [Address(path, member) if one else None for member, one in zip(members, there, strict=True)]
    others = {field.name: array.field(i).to_pylist() for i, field in enumerate(array.type) if field.name != "bytes"}
    held = array.field("bytes").is_valid().to_pylist() if _has(array.type, "bytes") else [True] * len(array)
    return [
        {"bytes": Address(path, members[i]) if held[i] else None, **{key: its[i] for key, its in others.items()}}
        if there[i]
        else None
        for i in range(len(array))
    ]


def _state(path: Path) -> tuple[str, int, int]:
    """A file as it is now; what is remembered of it before a change is not used after."""
    state = os.stat(path)
    return str(path), state.st_mtime_ns, state.st_size


@contextlib.contextmanager
def _failing(path: Path) -> Iterator[None]:
    """Names the file in errors of the libraries; theirs of damaged files are of many kinds."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, _Told):
            raise
        form = "Parquet" if _is_parquet(path) else "Arrow"
        raise _Told(f"{path} is no {form} ({error}); write it again") from error


class _Told(ValueError):
    """An error that names its file."""


# ---- Parquet ---------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _parquet(path: str, changed: int, size: int) -> "pq.ParquetFile":
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)


def _leaves(file: "pq.ParquetFile") -> dict[str, int]:
    """The number of the leaf with the bytes of each column of media."""
    found = {}
    for field in file.schema_arrow:
        for i in range(len(file.schema)) if _is_media(field.type) else ():
            leaf = file.schema.column(i)
            inside = field.type.value_type if _is_list(field.type) else field.type
            way = r"\.[^.]+\.[^.]+" if _is_list(field.type) else ""
            if re.fullmatch(re.escape(field.name) + way + ("" if _is_binary(inside) else r"\.bytes"), leaf.path):
                found[field.name] = i
    return found


def _binary(file: "pq.ParquetFile") -> set[int]:
    """The numbers of all leaves of bytes, also of those inside messages."""
    leaves = (file.schema.column(i) for i in range(len(file.schema)))
    return {
        i for i, leaf in enumerate(leaves) if leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type == "NONE"
    }


def _parquet_batches(path: Path) -> "Iterator[pa.RecordBatch]":
    """The rows without bytes that need not be read: a few rows at a time where some must."""
    file = _parquet(*_state(path))
    leaves = _leaves(file)
    paths = [file.schema.column(i).path for i in range(len(file.schema))]
    for group in range(file.num_row_groups):
        told = file.metadata.row_group(group)
        sizes = [told.column(i).total_uncompressed_size for i in range(len(paths))]
        if wrong := [i for i in sorted(_binary(file)) if sizes[i] > LARGEST]:
            raise ValueError(
                f"row group {group} holds {sizes[wrong[0]]:,} bytes of {paths[wrong[0]].removesuffix('.bytes')}, which "
                f"are unpacked to read one; wanted at most {LARGEST:,}: write it in row groups of some 100 rows "
                "(row_group_size=100)"
            )
        unread = {i for name, i in leaves.items() if _all_there(file, group, name, i, paths)}
        step = STEP * told.num_rows // max(1, sum(size for i, size in enumerate(sizes) if i not in unread))
        columns = [leaf for i, leaf in enumerate(paths) if i not in unread]
        yield from file.iter_batches(max(1, min(step, BATCH)), row_groups=[group], columns=columns)


def _all_there(file: "pq.ParquetFile", group: int, name: str, leaf: int, paths: Sequence[str]) -> bool:
    """Whether every medium of a column has bytes, by the file's statistics and the rest of the column."""
    told = file.metadata.row_group(group).column(leaf)
    counted = told.statistics if told.is_stats_set else None
    if counted is None or not counted.has_null_count:
        return False
    kind = file.schema_arrow.field(name).type
    if _is_binary(kind):
        return counted.null_count == 0
    others = [one for i, one in enumerate(paths) if i != leaf and one.startswith(f"{name}.")]
    if not others:
        return False
    items = file.read_row_group(group, columns=others[:1]).column(0)
    found = [chunk.flatten() if _is_list(kind) else chunk for chunk in items.chunks]
    return sum(len(chunk) - chunk.null_count for chunk in found) == told.num_values - counted.null_count


class _Groups:
    """The columns of row groups that were read last."""

    def __init__(self):
        self._lock = threading.Lock()
        self._held: collections.OrderedDict[tuple[Any, ...], Any] = collections.OrderedDict()

    def get(self, state: tuple[str, int, int], group: int, column: str) -> "pa.ChunkedArray":
        """A column of a row group; threads that want the same one read it once."""
        key = (*state, group, column)
        with self._lock:
            if key not in self._held:
                file = _parquet(*state)
                leaf = _leaves(file).get(column)
                wanted = column if leaf is None else file.schema.column(leaf).path
                self._held[key] = file.read_row_group(group, columns=[wanted]).column(0)
                while len(self._held) > 1 and sum(array.nbytes for array in self._held.values()) > HELD:
                    self._held.popitem(last=False)
            self._held.move_to_end(key)
            return self._held[key]


_groups = _Groups()


@functools.lru_cache(maxsize=64)
def _ends(path: str, changed: int, size: int) -> list[int]:
    """The number of rows up to the end of each row group."""
    told = _parquet(path, changed, size).metadata
    return list(itertools.accumulate(told.row_group(group).num_rows for group in range(told.num_row_groups)))


def _parquet_column(state: tuple[str, int, int], row: int, column: str) -> "tuple[pa.ChunkedArray, int]":
    """The part of a column that holds a row, and the row's number in it."""
    ends = _ends(*state)
    group = bisect.bisect_right(ends, row)
    if row < 0 or group == len(ends):
        raise IndexError(f"it has {ends[-1] if ends else 0} rows")
    return _groups.get(state, group, column), row - (ends[group - 1] if group else 0)


# ---- Arrow -----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _arrow(path: str, changed: int, size: int) -> "pa.Table":
    """A file mapped into memory; its offsets are checked, because a wrong one would end the process."""
    import pyarrow as pa

    with pa.memory_map(path) as file:
        opened = pa.ipc.open_file if file.read(6) == b"ARROW1" else pa.ipc.open_stream
        file.seek(0)
        table = opened(file).read_all()
    table.validate(full=True)
    return table


def _arrow_batches(path: Path) -> "Iterator[pa.RecordBatch]":
    yield from _arrow(*_state(path)).to_batches(max_chunksize=BATCH)


def _arrow_column(state: tuple[str, int, int], row: int, column: str) -> "tuple[pa.ChunkedArray, int]":
    if row < 0:
        raise IndexError(row)
    return _arrow(*state).column(column), row
