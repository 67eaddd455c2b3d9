"""Your own data in any form that ``data.forms`` finds, with the columns of TRL and verl.

One row per question. ``prompt`` (or ``problem``, ``question``, ``messages``, ``conversations``): text, or messages in
the forms of ``data.messages``, several turns and a system turn too. Media stand where ``<image>``, ``<video>`` or their
parts stand; without any of these, before the text. ``images`` (a list or one), ``image``, ``file_name``, ``video``,
``videos`` (files, or lists of frames with ``fps`` per second): paths relative to the file or folder that is given, or
absolute; in Parquet and Arrow also bytes or ``{"bytes": ..., "path": ...}``, which stay there until they are decoded.
``answer``, ``solution`` or ``reward_model.ground_truth``: text, a number, or a list of labels; in Parquet and Arrow
also a ClassLabel of Hugging Face, whose names are the choices; without any, what the assistant says last. ``sex`` (or
``gender``) and ``age`` in any known form; a band such as ``60-69`` is kept as the attribute ``age_told``. Optional:
``id``, ``data_source`` (the dataset's name), ``modality``, ``choices``, ``patient`` (or ``patient_id``,
``subject_id``; the unit of the split), ``split``, ``finding``; sex, age, patient and attributes also in verl's
``extra_info``. Names are taken in any case, and others by ``columns``. Every other column becomes an entry of
``Record.extra``, which can define groups; ``RecordList.notes`` says what became of each.
"""

import collections
import dataclasses
import functools
import operator
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairgrpo_jax.data import demographics, forms, own_rows
from fairgrpo_jax.data.about import About
from fairgrpo_jax.data.column_names import NAMES, Columns
from fairgrpo_jax.data.columnar import Block, Part, Records, blocks, stored
from fairgrpo_jax.data.own_rows import Given
from fairgrpo_jax.data.record import Record, RecordList
from fairgrpo_jax.data.splits import by_patient


SPLITS = ("train", "test")
HELD = 1 << 30  # bytes of pictures that stand as text in the cells of CSV, which are held in memory
HELD_OUT = 0.2  # share of the patients, if the file has no splits
ABOUT = About(
    name="jsonl",
    title="Your own data",
    where="your own files",
    licence="yours",
    download="train and test as JSON, CSV, Parquet, saved datasets or image folders, or one such file",
)


def load(
    root: str | Path,
    *,
    split: str,
    num_frames: int | None = 4,
    columns: Mapping[str, str] | None = None,
    codes: Mapping[str, Mapping[str, str]] | None = None,
) -> RecordList:
    """One record per row.

    Args:
        root: a folder or file in one of the forms of ``data.forms``.
        split: the name of a split in a folder. In a single file, or a split saved alone: the rows of this ``split``;
            without such a column, ``"train"`` or ``"test"``, with a fifth of the patients held out by the hash of their
            names.
        num_frames: number of frames of a video file that the model sees; None for all.
        columns: names of the file's columns by those above, as ``{"answer": "label", "patient": "mrn"}``.
        codes: what values mean, by column, as ``{"sex": {"1": "M", "2": "F"}, "age": {"999": ""}}``; ``""`` is unknown.

    Returns:
        A ``Source`` in the order of the rows. Without ``data_source`` the dataset is named after the folder or file;
        without ``patient`` every row is a separate patient. Its ``notes`` tell what each column was read as, that there
        is no patient, which rows have no media where others have some, and which other splits there are.

    Raises:
        ValueError: if there are no files, several forms or missing parts, or a file is not what its name says; if
            ``columns`` names an unknown one, or no row has media and a column looks like files of them; for all bad
            rows in one error, with their lines (rows, where there are none): no JSON object, a repeated key, no prompt
            or answer, an answer that is not one of the choices, media that do not match the tags, an invalid sex or
            age, a repeated id.

    Example:
        >>> import pathlib, tempfile
        >>> from fairgrpo_jax.data.datasets import jsonl
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "mine.jsonl"
        >>> row = '{"prompt": "<image>What is seen?", "image": "1.png", "solution": "Nodule", "age": "053Y"}'
        >>> _ = path.write_text(row)
        >>> record = [*jsonl.load(path, split="train"), *jsonl.load(path, split="test")][0]
        >>> record.question, record.answer, record.age
        ('What is seen?', 'Nodule', 53.0)
    """
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; wanted at least 1")
    rows = forms.find(Path(root), split)
    found = _read(rows, Path(root), num_frames, columns or {}, codes or {})
    notes = found.notes
    if further := [name for name in forms.splits(Path(root)) if name not in (split, *SPLITS)]:
        notes += (f"other splits that are there: {', '.join(further)}",)
    if not rows.alone:
        return RecordList(found.records, notes=notes)
    if found.splits is not None:
        chosen = np.array([told == split for told in found.splits], bool)
        return RecordList(found.of(chosen), notes=notes + _other_splits(rows.path, split, found.splits))
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; {rows.path} has no column split, so there are 'train' and 'test'")
    held_out = found.held_out
    return RecordList(found.of(held_out == (split == "test"), functools.partial(_in_split, split)), notes=notes)


def _other_splits(path: Path, split: str, told: Sequence[str]) -> tuple[str, ...]:
    """A sentence about rows that are in no split with a usual name.

    Raises:
        ValueError: if the split is there in another spelling, or has no row.
    """
    counts = collections.Counter(told)
    all_of_them = ", ".join(f"{name!r}: {count} rows" for name, count in counts.most_common(20))
    alike = [name for name in counts if name != split and name.strip().casefold() == split.casefold()]
    if alike or split not in counts:
        raise ValueError(
            f"got {all_of_them} in the column split of {path}; wanted {split!r} for rows of that split, spelled so"
        )
    further = [f"{name!r}: {count} rows" for name, count in counts.items() if name not in (split, *SPLITS)]
    return (f"other splits in the column split: {', '.join(further)}",) if further else ()


def _in_split(split: str, record: Record) -> Record:
    return dataclasses.replace(record, split=split)


@dataclass(frozen=True, eq=False)
class _Found:
    """What there is in files: the records of all their splits.

    Attributes:
        records: in the order of the rows.
        patients: the patient of each, in Arrow's memory, of files with several splits.
        splits: the split of each, if a column tells it.
        notes: sentences about what was found.
    """

    records: Records
    patients: Any
    splits: Sequence[str] | None
    notes: tuple[str, ...]

    def of(self, rows: np.ndarray, finish: Callable[[Record], Record] | None = None) -> Records:
        """Some of the records, which keep all for whoever asks for others."""
        return dataclasses.replace(self.records.chosen(rows, finish), source=self)

    @functools.cached_property
    def held_out(self) -> np.ndarray:
        """Whether the patient of each record is held out (bool)."""
        patients = self.patients.dictionary_encode()
        return by_patient(patients.dictionary.to_pylist(), fraction=HELD_OUT, seed=0)[np.asarray(patients.indices)]


_known: "weakref.WeakValueDictionary[str, _Found]" = weakref.WeakValueDictionary()


def _read(
    rows: forms.Rows,
    root: Path,
    num_frames: int | None,
    columns: Mapping[str, str],
    codes: Mapping[str, Mapping[str, str]],
) -> _Found:
    """Reads files, or returns what was read of them as long as its records are in use: one file has several splits."""
    states = [(os.fspath(path), os.stat(path)) for path in rows.files]
    key = repr((root, rows.path, [(name, s.st_mtime_ns, s.st_size) for name, s in states], num_frames, columns, codes))
    found = _known.get(key) if rows.alone else None
    if found is None:
        found = _index(rows, num_frames, columns, codes)
        if rows.alone:
            _known[key] = found
    return found


def _index(
    rows: forms.Rows, num_frames: int | None, columns: Mapping[str, str], codes: Mapping[str, Mapping[str, str]]
) -> _Found:
    """Reads all rows, and refuses bad ones.

    Raises:
        ValueError: as ``load``.
    """
    index = _Index(rows, Columns(columns, codes), num_frames)
    for block in blocks(index.rows()):
        index.add(block)
    return index.found()


class _Index:
    """The rows of files that were read so far, and what is known of their records.

    Args:
        files: where they are read.
        columns: names their columns.
        num_frames: number of frames of a video file that the model sees; None for all.
    """

    def __init__(self, files: forms.Rows, columns: Columns, num_frames: int | None):
        path, alone = files.path, files.alone
        dataset = path.stem if alone else path.resolve().parent.name
        self._files, self._columns = files, columns
        self._given = Given(path.parent, path.stem, "" if alone else path.stem, dataset, num_frames)
        self._unread, self._bad = files.problems(), files.problems()
        self._parts: list[Part] = []
        self._lines, self._places = [np.empty(0, np.int64)], [np.empty((0, 2), np.int64)]
        self._uids: list[Any] = []
        self._patients: list[Any] = []
        self._splits: list[str] = []
        self._bands = collections.Counter[str]()
        self._held = 0

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows as they are read; the classes of an answer are its choices."""
        classes, rows = self._files.classes.items(), self._files.read(self._unread)
        choices = next((names for name, names in classes if self._columns.name(name) in NAMES["answer"]), None)
        return ((line, {"choices": [*choices]} | row) for line, row in rows) if choices else rows

    def add(self, block: Block) -> None:
        """Looks at rows: by column, and one by one at those that are not plain."""
        count, here = len(block.lines), len(self._parts)
        columns = None if block.columns is None else self._columns.of_columns(block.columns)
        facts = own_rows.nothing_known(count) if columns is None else own_rows.facts(columns, self._given, block.lines)
        places = np.stack([np.full(count, here), np.arange(count)], axis=1)
        good, held = np.ones(count, bool), list[Record]()
        for row in [row for row, sure in enumerate(facts.sure) if not sure]:
            try:
                told = self._columns.named(block.rows[row])
                record = own_rows.record(told, self._given, block.lines[row])
            except ValueError as error:
                self._bad.add(block.lines[row], str(error))
                good[row] = False
                continue
            facts.tell(row, record, named=own_rows.names_patient(told))
            self._columns.said += record.answer != told.answer and not own_rows.answer_of(told)
            if (size := sum([medium.pixels.nbytes for medium in record.media if medium.pixels is not None])) or (
                block.columns is None
            ):
                places[row] = here + 1, len(held)
                held.append(record)
                self._hold(size, block.lines[row])
        kept = np.flatnonzero(good).tolist()
        self._parts += [Part.of(block), Part(np.empty(0, np.int64), {}, held=held)]
        self._lines.append(np.array(block.lines)[good])
        self._places.append(places[good])
        self._uids.append(stored([facts.uids[row] for row in kept], "large_string"))
        if self._files.alone:
            self._patients.append(stored([facts.patients[row] for row in kept], "large_string"))
            self._splits += [facts.splits[row] for row in kept]
        self._bands.update(band for row in kept if (band := facts.bands[row]) is not None)
        self._columns.without_media += [block.lines[row] for row in kept if not facts.shown[row]]
        self._columns.without_patient += [block.lines[row] for row in kept if not facts.named[row]]

    def _hold(self, size: int, line: int) -> None:
        self._held += size
        if self._held > HELD:
            raise ValueError(
                f"{self._files.path}: the pictures inside its rows up to {self._files.unit} {line} take "
                f"{self._held:,} bytes of memory; wanted at most {HELD:,}: keep them in files, or write JSON lines or "
                "Parquet, where they stay on disk"
            )

    def found(self) -> _Found:
        """All of it.

        Raises:
            ValueError: for all bad rows at once.
        """
        unit, columns, alone = self._files.unit, self._columns, self._files.alone
        lines, places = np.concatenate(self._lines), np.concatenate(self._places)
        order = np.argsort(lines)
        lines, places = lines[order], places[order]
        uids, patients = _joined(self._uids, order), _joined(self._patients, order) if alone else None
        splits = [self._splits[row] for row in order] if alone and columns.has("split") else None
        again = _again(uids, lines.tolist())
        for line, uid, first in again:
            self._bad.add(line, f"{uid} is also {unit} {first}")
        columns.require_given()
        if (self._bad.found or self._unread.found) and not len(lines):
            columns.require_asked(f"{self._bad.path}")
        if splits is not None:
            known = {line for line, _, _ in again}
            for line in [line for line, split in zip(lines.tolist(), splits, strict=True) if not split]:
                if line not in known:
                    self._bad.add(line, "split is missing and other rows have one")
        self._bad.found += self._unread.found
        self._bad.found.sort(key=operator.itemgetter(0))
        self._bad.raise_if_any()
        columns.without_media.sort()
        columns.without_patient.sort()
        notes = (*self._files.notes, *columns.notes(len(lines), unit), *_bands(self._bands))
        make = functools.partial(_made, columns, self._given)
        return _Found(Records(make, self._parts, places), patients, splits, notes)


def _made(columns: Columns, given: Given, row: dict[str, Any], line: int) -> Record:
    return own_rows.record(columns.named(row), given, line)


def _joined(parts: list[Any], order: np.ndarray) -> Any:
    """One array in the order of the rows."""
    import pyarrow as pa

    whole = pa.concat_arrays([stored([], "large_string"), *parts], memory_pool=pa.system_memory_pool())
    return whole if (np.diff(order) == 1).all() else whole.take(order)


def _again(uids: Any, lines: Sequence[int]) -> list[tuple[int, str, int]]:
    """The line, the id and the line before of rows whose id another had before."""
    if len(uids.unique()) == len(uids):
        return []
    seen: dict[str, int] = {}
    pairs = zip(lines, uids.to_pylist(), strict=True)
    return [(line, uid, first) for line, uid in pairs if (first := seen.setdefault(uid, line)) != line]


def _bands(counts: collections.Counter[str]) -> tuple[str, ...]:
    """What became of ages that are told as bands, in a sentence."""
    if not counts:
        return ()
    told = ", ".join(f"{band} ({count})" for band, count in sorted(counts.items())[:20])
    more = f" and {len(counts) - 20} more" if len(counts) > 20 else ""
    return (
        f"ages that are bands: {told}{more}; kept as the attribute {demographics.AGE_TOLD}, a group of data.age_edges "
        "where they lie within one",
    )
