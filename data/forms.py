"""Finds the rows of a split in the forms that people keep data in, and reads them one after the other.

In a folder the rows of a split, here ``train``, are one of:

- a table, ``train.jsonl``, ``.json`` (list or lines), ``.csv``, ``.tsv``, ``.parquet``, ``.arrow``, also in ``data/``;
- Parquet in parts, ``train-00000-of-00002.parquet``, in the folder, in ``data/`` (as on the Hugging Face Hub) or in one
  other folder (a configuration), or any names in ``train/``;
- what ``datasets`` saved to disk: ``train/state.json`` with Arrow files, or ``state.json`` alone;
- an image folder: ``train/metadata.jsonl``, ``.csv`` or ``.parquet`` with ``file_name``, or ``train/<class>/*.png``.

A file, and a folder with one split saved alone, hold rows of all splits.
"""

import codecs
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairgrpo_jax.data import cells, embedded, tables
from fairgrpo_jax.data.tables import Problems


TEXT = (".jsonl", ".json", ".csv", ".tsv")
SUFFIXES = (*TEXT, *cells.SUFFIXES)
IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2", ".dcm", ".dicom")
NAMES = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
QUESTION = "Which of these does the image show?"  # of image folders by class, which ask nothing
_PART = re.compile(r"(?P<split>.+?)-(?P<part>\d+)(?:-of-(?P<parts>\d+))?(?:-[0-9a-f]+)?\.parquet")


@dataclass(frozen=True)
class Rows:
    """The rows of a split: ``for number, row in rows.read(problems)``.

    Attributes:
        path: the file; of several, one in the folder that was given that would hold all their rows. Files that rows
            name are relative to its folder.
        files: the files that are read; of an image folder by class, none.
        alone: whether the rows are of all splits.
        read: yields the number of each row, from 1, with its columns; adds what cannot be read to ``problems``. Bytes
            in Parquet and Arrow are a ``cells.Address``; a cell of a CSV file is text, None if it is empty, or the list
            or object that it holds as JSON.
        classes: names of the classes of columns that hold classes, in order.
        unit: what is numbered, ``"line"`` or ``"row"``; rows of several files are counted through.
        shown: the files in words.
        notes: sentences about what was found.
    """

    path: Path
    files: tuple[Path, ...]
    alone: bool
    read: Callable[[Problems], Iterator[tuple[int, dict[str, Any]]]] = field(repr=False)
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unit: str = "row"
    shown: str = ""
    notes: tuple[str, ...] = ()

    def problems(self) -> Problems:
        """An empty list of bad rows."""
        return Problems(self.shown or self.path, unit=self.unit)


def find(root: Path, split: str) -> Rows:
    r"""Finds the rows of a split.

    Args:
        root: a folder, or a file of rows.
        split: name of the split.

    Raises:
        ValueError: if there are none, or in several forms; if parts are missing; if a file is of another form than its
            name says.

    Example:
        >>> import pathlib, tempfile
        >>> from fairgrpo_jax.data import forms
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (root / "train.csv").write_text('prompt,answer,choices\nSide?,left,"[""left"", ""right""]"\n')
        >>> rows = forms.find(root, "train")
        >>> list(rows.read(rows.problems()))
        [(2, {'prompt': 'Side?', 'answer': 'left', 'choices': ['left', 'right']})]
    """
    if root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{root} is no {', '.join(SUFFIXES)}; wanted a file of rows, or a folder of them")
        return _of_files(root, (root,), alone=True)
    if not root.is_dir():
        raise ValueError(f"{root} does not exist; wanted a folder with {_wanted(split)}, or a file of rows")
    found = _forms(root, split, _parquet_files(root))
    if not found and (root / "state.json").is_file():
        return _saved(root, root / f"{root.resolve().name}.arrow", alone=True)
    if len(found) == 1:
        return next(iter(found.values()))()
    there = dict.fromkeys((*splits(root), *_similar(root, split)))
    others = f" (there are {', '.join(there)})" if there and not found else ""
    raise ValueError(
        f"{root} has {', '.join(found) or 'none'} of {_wanted(split)}{others}; wanted one"
        + (": remove the others, or give the folder of one" if found else "")
    )


def splits(root: Path) -> tuple[str, ...]:
    """The names of the splits in a folder, of those that splits usually have.

    Example:
        >>> import pathlib, tempfile
        >>> from fairgrpo_jax.data import forms
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> for name in ("train.jsonl", "validation-00000-of-00001.parquet"):
        ...     (root / name).touch()
        >>> forms.splits(root)
        ('train', 'validation')
    """
    listed = _parquet_files(root) if root.is_dir() else {}
    return tuple(name for name in NAMES if listed and _forms(root, name, listed))


def _similar(root: Path, split: str) -> list[str]:
    """Files that may be meant by a split, whose names or forms are others."""
    return sorted(path.name for path in root.iterdir() if path.stem.lower() == split.lower() and path.is_file())


def _wanted(split: str) -> str:
    return f"{split}.jsonl, .json, .csv, .tsv, .parquet, .arrow, {split}-*.parquet, data/{split}-*.parquet or {split}/"


def _parquet_files(root: Path) -> dict[Path, list[Path]]:
    """The Parquet files in a folder and in the folders in it."""
    folders = [root, *(path for path in sorted(root.iterdir()) if path.is_dir())]
    return {folder: sorted(folder.glob("*.parquet")) for folder in folders}


def _forms(root: Path, split: str, listed: Mapping[Path, Sequence[Path]]) -> dict[str, Callable[[], Rows]]:
    """What may hold the rows of a split: how each is opened, by its name."""
    found: dict[str, Callable[[], Rows]] = {}
    own, whole = root / split, root / f"{split}.parquet"
    for folder in (root, root / "data"):
        for suffix in SUFFIXES:
            if (path := folder / f"{split}{suffix}").is_file():
                found[str(path.relative_to(root))] = functools.partial(
                    _of_files, root / path.name, (path,), shown=str(path)
                )
    for folder, files in listed.items():
        if folder != own and (parts := [path for path in files if _is_part(path, split)]):
            name = f"{folder.relative_to(root) / split}-*.parquet"
            found[name] = functools.partial(_parts, whole, folder, split, parts)
    metadata = [path for suffix in (".jsonl", ".csv", ".parquet") if (path := own / f"metadata{suffix}").is_file()]
    for path in metadata:
        found[str(path.relative_to(root))] = functools.partial(_image_folder, root, path)
    if (own / "state.json").is_file():
        found[f"{split}/state.json"] = functools.partial(_saved, own, root / f"{split}.arrow")
    elif not metadata and (parts := listed.get(own)):
        named = {match["split"] for path in parts if (match := _PART.fullmatch(path.name))} or {split}
        found[f"{split}/*.parquet"] = functools.partial(_parts, whole, own, min(named), parts)
    if not found and own.is_dir() and any(path.is_dir() for path in own.iterdir()):
        found[f"{split}/<class>/"] = functools.partial(_by_class, root, own)
    return found


def _is_part(path: Path, split: str) -> bool:
    found = _PART.fullmatch(path.name)
    return found is not None and found["split"] == split


def _parts(path: Path, folder: Path, split: str, parts: Sequence[Path]) -> Rows:
    """Parquet in parts, all of which must be there."""
    found = [match for part in parts if (match := _PART.fullmatch(part.name))]
    totals = sorted({int(match["parts"]) for match in found if match["parts"]})
    if totals:
        there = [int(match["part"]) for match in found]
        absent = [f"{split}-{part:05d}-of-{totals[0]:05d}.parquet" for part in range(totals[0]) if part not in there]
        strange = [part.name for part in parts if not _PART.fullmatch(part.name)]
        if len(totals) > 1 or len(parts) != totals[0] or absent or strange:
            wrong = (
                f"misses {', '.join(absent[:10])}" if absent else f"has {', '.join(part.name for part in parts[:10])}"
            )
            raise ValueError(f"{folder} {wrong}; wanted all parts of one set: download it again")
    return _of_files(path, tuple(parts), shown=f"{folder / split}-*.parquet")


def _saved(folder: Path, path: Path, *, alone: bool = False) -> Rows:
    """A split that ``datasets`` saved to disk."""
    state = folder / "state.json"
    try:
        told = json.loads(state.read_text(encoding="utf-8"))
        names = [part["filename"] for part in told["_data_files"]]
        files = tuple(folder / name for name in names)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{state} is damaged ({error!r}); save the dataset again") from error
    if absent := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{folder} misses {', '.join(absent[:10])}, which {state.name} names; copy it again")
    return _of_files(path, files, alone=alone, shown=f"{folder}/*.arrow")


def _of_files(path: Path, files: tuple[Path, ...], *, alone: bool = False, shown: str = "") -> Rows:
    """Rows of one file, or of several of one form."""
    suffix = path.suffix.lower()
    if suffix in cells.SUFFIXES:
        slow = max(map(cells.largest_group, files), default=0)
        notes = ()
        if slow > cells.HELD // 4:
            notes = (
                f"row groups hold up to {slow >> 20:,} MiB of media, all unpacked to read one: write it with "
                "row_group_size=100 for more speed",
            )
        return Rows(path, files, alone, functools.partial(_cells, files), _classes(files), shown=shown, notes=notes)
    (file,) = files
    if suffix in (".csv", ".tsv"):
        return Rows(path, files, alone, functools.partial(_csv, file), unit="line")
    if _is_list(file):
        return Rows(path, files, alone, functools.partial(_list, file))
    return Rows(path, files, alone, functools.partial(_lines, file), unit="line")


# ---- image folders ---------------------------------------------------------------------------------------------------


def _image_folder(root: Path, metadata: Path) -> Rows:
    """Images with a table beside them; names of files are relative to it."""
    folder = metadata.parent
    rows = _of_files(root / f"{folder.name}{metadata.suffix}", (metadata,))

    def read(problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, row in rows.read(problems):
            for column, value in row.items():
                if column.strip().lower() == "file_name" and isinstance(value, str):
                    row[column] = str(Path(folder.name, value))
            yield number, row

    return dataclasses.replace(rows, read=read, shown=str(metadata))


def _by_class(root: Path, folder: Path) -> Rows:
    """Images in a folder for each class."""
    images = {path.name: _shown(path) for path in _shown(folder) if path.is_dir()}
    strange = [path for path in _shown(folder) if path.name not in images]
    strange += [path for paths in images.values() for path in paths if path.suffix.lower() not in IMAGES]
    if strange or len(images) < 2:
        got = ", ".join(str(path.relative_to(folder)) for path in strange[:10]) or f"one folder, {', '.join(images)}"
        raise ValueError(
            f"{folder} has {got}; wanted a folder of images for each of several classes and nothing else, or a table, "
            "metadata.jsonl with file_name, prompt and answer"
        )
    rows = [
        {"prompt": QUESTION, "image": str(path.relative_to(root)), "answer": name}
        for name, paths in images.items()
        for path in paths
    ]
    return Rows(
        root / f"{folder.name}.images",
        (),
        False,
        lambda problems: enumerate(map(dict, rows), start=1),
        {"answer": list(images)},
        shown=str(folder),
        notes=(f"an image folder by class: each image is asked {QUESTION!r}, the folders are the choices",),
    )


def _shown(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


# ---- readers ---------------------------------------------------------------------------------------------------------


def _lines(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """JSON lines."""
    end = 0
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            start, end = end, end + len(raw)
            try:
                text = raw.decode("utf-8-sig" if line == 1 else "utf-8").strip()
                if not text:
                    continue
                row = _whole(_decoded(text), text)
            except (ValueError, RecursionError) as error:
                if line == 1 and (keys := _keys(path)):
                    raise ValueError(
                        f"{path} is one object with {keys}; wanted a list of objects, or one object a line"
                    ) from None
                problems.add(line, f"no JSON ({error})")
                continue
            if isinstance(row, dict):
                yield line, _located(row, path, start, end) if b";base64," in raw else row
            else:
                problems.add(line, f"{text[:40]} is no object")


def _located(row: dict[str, Any], path: Path, start: int, end: int) -> dict[str, Any]:
    """A row whose media as text stay in the file, between two of its bytes."""
    return {column: embedded.located(value, path, f"{start}-{end}", column) for column, value in row.items()}


def _keys(path: Path) -> str:
    """The keys of a file that holds one object over several lines; empty for any other."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return ""
    return ", ".join([*found][:10]) if isinstance(found, dict) else ""


def _is_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1 << 10).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


_BLANK = re.compile(r"[ \t\n\r]*")


def _list(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """A JSON list, one element at a time; what is broken ends it."""
    plain, number = json.JSONDecoder(), 0
    try:
        content = path.read_bytes()
        text, counted = content.decode("utf-8-sig"), 0
        end, heavy = len(content) - len(content.removeprefix(codecs.BOM_UTF8)), b";base64," in content
        del content
        place = _blank(text, text.index("[") + 1)
        while text[place : place + 1] != "]":
            number += 1
            start, problem = place, ""
            try:
                row, place = _STRICT.raw_decode(text, start)
                _whole(row, text[start:place])
            except json.JSONDecodeError:
                raise
            except ValueError as error:
                problem, (row, place) = f"no JSON ({error})", plain.raw_decode(text, start)
            if problem or not isinstance(row, dict):
                problems.add(number, problem or f"{text[start:place][:40]} is no object")
            elif heavy:
                begin = end + len(text[counted:start].encode())
                counted, end = place, begin + len(text[start:place].encode())
                yield number, _located(row, path, begin, end)
            else:
                yield number, row
            place = _blank(text, place)
            if text[place : place + 1] == ",":
                place = _blank(text, place + 1)
            elif text[place : place + 1] != "]":
                raise ValueError(f"no comma at character {place}")
        if text[place + 1 :].strip():
            raise ValueError(f"more behind its end, at character {place + 1}")
    except (ValueError, RecursionError) as error:
        problems.add(max(1, number), f"or below: no JSON ({error})")


def _blank(text: str, place: int) -> int:
    found = _BLANK.match(text, place)
    return found.end() if found else place


def _csv(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, row in tables.read_all(path, problems):
        yield line, {name: _cell(value) if value[:1] in _NO_TEXT else value for name, value in row.items()}


_NO_TEXT = ("[", "{", "")  # how cells begin that are not simply text


def _cell(value: str) -> Any:
    """The value of a cell of a CSV file that is empty, or may be JSON."""
    if not value:
        return None
    try:
        return _short(value) if len(value) < 1000 else _whole(_decoded(value), value)
    except (ValueError, RecursionError):
        return value


@functools.lru_cache(maxsize=1 << 12)
def _short(text: str) -> Any:
    """What a short JSON text says: of a million rows many say the same. Nobody may change it."""
    return _whole(_decoded(text), text)


def _decoded(text: str) -> Any:
    """What a JSON text without white space around it says."""
    found, end = _STRICT.raw_decode(text)
    if end < len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return found


def _cells(files: Sequence[Path], problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Parquet or Arrow."""
    return enumerate(itertools.chain.from_iterable(map(_labelled, files)), start=1)


def _labelled(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, with the names of classes for their numbers."""
    labels = _classes((file,))
    return (_named(row, labels) for row in cells.rows(file)) if labels else cells.rows(file)


def _named(row: dict[str, Any], labels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return row | {column: _label(row.get(column), names) for column, names in labels.items()}


def _classes(files: Sequence[Path]) -> dict[str, list[str]]:
    """The names of the classes of columns that Hugging Face's ``datasets`` wrote as ClassLabel."""
    metadata = (cells.schema(files[0]).metadata or {}) if files else {}
    try:
        told = json.loads(metadata.get(b"huggingface", b"{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{files[0]} has damaged metadata ({error}); save or download it again") from error
    try:
        features = told.get("info", {}).get("features", {})
        kinds = {name: kind for name, kind in features.items() if isinstance(kind, dict)}
        return {name: [*kind["names"]] for name, kind in kinds.items() if kind.get("_type") == "ClassLabel"}
    except (AttributeError, TypeError, KeyError):
        return {}


def _label(value: Any, names: Sequence[str]) -> Any:
    """The name of a class; -1 is none, as Hugging Face has it."""
    if not isinstance(value, int) or value < 0:
        return None
    return names[value] if value < len(names) else value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises if a key is repeated."""
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"keys {', '.join(sorted({n for n in names if names.count(n) > 1}))} are there twice")
    return row


_STRICT = json.JSONDecoder(object_pairs_hook=_once)
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def _whole(found: Any, text: str) -> Any:
    """What was read from a JSON text; raises if half a character is in it, which is no text."""
    if "\\u" in text and _HALF.search(text):
        json.dumps(found, ensure_ascii=False).encode()
    return found
