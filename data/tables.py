"""Reads CSV files strictly: columns by name, all bad rows reported with their lines, nothing guessed."""

import csv
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path


SHOWN = 20  # maximum number of bad rows listed in an error


@dataclass
class Problems:
    """Collects the bad rows of a file, to report all of them in one error.

    Attributes:
        path: the file.
        unit: the unit of the numbers in ``add``: ``"line"`` of a text file, ``"row"`` of a list.

    Example:
        >>> from fairgrpo_jax.data.tables import Problems
        >>> problems = Problems("train.csv")
        >>> problems.add(7, "Age is 'x'")
        >>> problems.raise_if_any()
        Traceback (most recent call last):
        ...
        ValueError: train.csv: 1 bad rows: line 7: Age is 'x'; correct them, or get the file again from its owner
    """

    path: str | Path | zipfile.Path
    unit: str = "line"
    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, text: str) -> None:
        """Adds a problem on a line (from 1)."""
        self.found.append((line, text))

    def __len__(self) -> int:
        return len(self.found)

    def raise_if_any(self) -> None:
        """Raises one error with the number of problems and the first 20 of them.

        Raises:
            ValueError: if there are problems.
        """
        if not self.found:
            return
        listed = "; ".join(f"{self.unit} {line}: {text}" for line, text in self.found[:SHOWN])
        more = f"; and {len(self.found) - SHOWN} more" if len(self.found) > SHOWN else ""
        rows = len({line for line, _ in self.found})
        raise ValueError(
            f"{self.path}: {rows} bad rows: {listed}{more}; correct them, or get the file again from its owner"
        )


@dataclass
class Table:
    """The rows of a CSV file, read again for every iteration: ``for line, row in table``.

    ``line`` is the row's first line in the file, ``row`` a dict of the requested columns with stripped values; an
    optional column that the file lacks is "" in every row. Callers add problems of a row to ``problems``. Damaged rows
    (too few or too many fields, broken quotes) are recorded in ``problems`` and skipped. At its end the iteration
    raises an error if there are problems.

    Attributes:
        path: the file.
        columns: the requested columns that the file has.
        problems: bad rows found so far.
    """

    path: Path | zipfile.Path
    columns: tuple[str, ...]
    problems: Problems
    _places: dict[str, int | None] = field(repr=False)
    _width: int = field(repr=False)

    def __iter__(self) -> Iterator[tuple[int, dict[str, str]]]:
        present = [name for name, place in self._places.items() if place is not None]
        absent = dict.fromkeys((name for name, place in self._places.items() if place is None), "")
        pick = itemgetter(*(self._places[name] for name in present), 0)  # the last makes it a tuple even for one column
        rows = _rows(self.path, self.problems)
        next(rows)
        for line, fields in rows:
            if len(fields) != self._width:
                self.problems.add(line, f"{len(fields)} fields, the header has {self._width}")
                continue
            row = dict(zip(present, map(str.strip, pick(fields)), strict=False))
            row.update(absent)
            yield line, row
        self.problems.raise_if_any()


def read_csv(
    path: str | Path | zipfile.Path,
    required: Sequence[str],
    *,
    optional: Sequence[str] = (),
    aliases: Mapping[str, Sequence[str]] | None = None,
) -> Table:
    r"""Opens a CSV file by the names of its columns.

    The file is UTF-8 with or without byte order mark, with any line ends, and separated by commas (tabs in ``.tab`` and
    ``.tsv`` files). Column names are compared without case, with runs of white space (including line breaks inside
    quotes) as one space, in any order; other columns are ignored.

    Args:
        path: the file, which may be in an archive.
        required: columns that it must have.
        optional: columns that it may have.
        aliases: other spellings of a column, e.g. ``{"Answer": ("Anwser",)}``.

    Returns:
        A ``Table``; only the header has been read.

    Raises:
        ValueError: if the file does not exist, is not UTF-8 or is empty, or a column is missing or occurs twice. When
            iterating: for bad rows.

    Example:
        >>> import pathlib, tempfile
        >>> from fairgrpo_jax.data.tables import read_csv
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "people.csv"
        >>> _ = path.write_bytes(b'\xef\xbb\xbfid,"Age\n(years)"\r\na, 61\r\n')
        >>> list(read_csv(path, ["Age (years)"], optional=["sex"]))
        [(3, {'Age (years)': '61', 'sex': ''})]
    """
    path, aliases = Path(path) if isinstance(path, str) else path, aliases or {}
    if not path.is_file():
        raise ValueError(f"{path} does not exist; wanted a table with the columns {', '.join(required)}")
    problems = Problems(path)
    _, header = next(_rows(path, problems), (1, []))
    problems.raise_if_any()
    if not header:
        raise ValueError(f"{path} is empty; wanted a table with the columns {', '.join(required)}")
    known: dict[str, list[int]] = {}
    for place, name in enumerate(header):
        known.setdefault(_plain(name), []).append(place)
    found = {
        name: [place for spelling in (name, *aliases.get(name, ())) for place in known.get(_plain(spelling), ())]
        for name in (*required, *optional)
    }
    if wrong := [name for name in required if not found[name]]:
        raise ValueError(
            f"{path}: missing columns {', '.join(wrong)}; it has {', '.join(' '.join(n.split()) for n in header)}; "
            "get the file again from its owner"
        )
    if twice := [name for name, places in found.items() if len(set(places)) > 1]:
        raise ValueError(f"{path}: columns {', '.join(twice)} are there more than once; keep one of each")
    places = {name: found[name][0] if found[name] else None for name in found}
    return Table(path, tuple(name for name in places if places[name] is not None), problems, places, len(header))


def delimiter(path: Path) -> str:
    r"""What separates the columns of a CSV file, by its first line.

    That is what ``sep=;`` says there, as spreadsheets write it above the header; a tab in ``.tsv``; a semicolon where
    there are more of them than commas; a tab where there is neither; else a comma.

    Example:
        >>> import pathlib, tempfile
        >>> from fairgrpo_jax.data.tables import delimiter
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "people.csv"
        >>> _ = path.write_text("id;age\na;61,5\n")
        >>> delimiter(path)
        ';'
    """
    with path.open("rb") as file:
        head = file.readline(1 << 20)
    if told := re.match(rb"(?:\xef\xbb\xbf)?sep=(.)\r?$", head.rstrip(b"\n")):
        return told[1].decode("latin-1")
    if path.suffix.lower() in (".tab", ".tsv") or b"\t" in head and b"," not in head and b";" not in head:
        return "\t"
    return ";" if head.count(b";") > head.count(b",") else ","


def read_all(path: Path, problems: Problems, *, separator: str = "") -> Iterator[tuple[int, dict[str, str]]]:
    r"""Reads a CSV file with all of its columns, by their names as they are written.

    The form is that of ``read_csv``, but the header decides what separates columns (``delimiter``). Rows without any
    value are passed over. A column without a name, as pandas writes it for the numbers of rows, is called
    ``Unnamed: 0`` (its place), as pandas reads it.

    Args:
        path: the file.
        problems: to which damaged rows are added.
        separator: what separates the columns; default: ``delimiter(path)``.

    Yields:
        Line and stripped values of each row that is whole.

    Raises:
        ValueError: if the file is empty, or two columns have one name.

    Example:
        >>> import pathlib, tempfile
        >>> from fairgrpo_jax.data.tables import Problems, read_all
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "people.csv"
        >>> _ = path.write_text(",id,Age\n0,a, 61\n1,b\n")
        >>> problems = Problems(path)
        >>> list(read_all(path, problems)), problems.found
        ([(2, {'Unnamed: 0': '0', 'id': 'a', 'Age': '61'})], [(3, '2 fields, the header has 3')])
    """
    rows = _rows(path, problems, separator or delimiter(path))
    _, header = next(rows, (1, []))
    if "".join(header).startswith("sep="):
        _, header = next(rows, (1, []))
    if not header:
        problems.raise_if_any()
        raise ValueError(f"{path} is empty; wanted a table with a header")
    names = [" ".join(name.split()) or f"Unnamed: {place}" for place, name in enumerate(header)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: columns {', '.join(twice)} are there more than once; keep one of each")
    for line, fields in rows:
        if len(fields) == len(names):
            row = dict(zip(names, map(str.strip, fields), strict=True))
            if any(row.values()):
                yield line, row
        elif any(map(str.strip, fields)):
            problems.add(line, f"{len(fields)} fields, the header has {len(names)}")


def _rows(path: Path | zipfile.Path, problems: Problems, separator: str = "") -> Iterator[tuple[int, list[str]]]:
    """First line and fields of each row that is not blank; invalid rows are added to ``problems``."""
    separator = separator or ("\t" if path.suffix.lower() in (".tab", ".tsv") else ",")
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        line = 1
        while True:
            try:
                for fields in reader:
                    if "\0" in "".join(fields):  # of a text never a part; in a name, a column would seem to be absent
                        if line == 1:
                            raise ValueError(f"{path}: a NUL character in the header; get the file again")
                        problems.add(line, "a NUL character")
                    elif fields:
                        yield line, fields
                    line = reader.line_num + 1
                return
            except UnicodeDecodeError as error:
                problems.add(line, f"or below: not UTF-8 ({error.reason}); save it as UTF-8 (in Excel: CSV UTF-8)")
                return
            except csv.Error as error:
                long = " characters in one cell: is a quote left open?" if "field limit" in str(error) else ""
                problems.add(line, f"{error}{long}")
                line = reader.line_num + 1


def _plain(name: str) -> str:
    return re.sub(r"\s+", " ", name).strip().casefold()
