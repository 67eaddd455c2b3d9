"""Your own data: JSON lines or Parquet with the columns of TRL and verl.

One row per question. ``prompt`` (or ``problem``, ``question``, ``messages``, ``conversations``): text, or messages in
the forms of ``data.messages``, several turns and a system turn too. Media stand where ``<image>``, ``<video>`` or their
parts stand; without any of these, before the text. ``images`` (a list or one), ``image``, ``file_name``, ``video``,
``videos`` (files, or lists of frames with ``fps`` per second): paths relative to the file or absolute; in Parquet also
``{"bytes": ..., "path": ...}``. ``answer``, ``solution`` or ``reward_model.ground_truth``: text, a number, or a list of
labels; in Parquet also a ClassLabel of Hugging Face, whose names are the choices; without any, what the assistant says
last. ``sex`` (or ``gender``) and ``age`` in any known form. Optional: ``id``, ``data_source`` (the dataset's name),
``modality``, ``choices``, ``patient`` (or ``patient_id``, ``subject_id``; the unit of the split), ``split``,
``finding``; sex, age, patient and attributes also in verl's ``extra_info``. Names are taken in any case, and others by
``columns``. Every other column becomes an entry of ``Record.extra``, which can define groups; ``RecordList.notes`` says
what became of each.
"""

import collections
import dataclasses
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fairgrpo_jax.data import demographics, messages
from fairgrpo_jax.data.about import About
from fairgrpo_jax.data.media import open_image
from fairgrpo_jax.data.record import Media, Record, RecordList, spoken
from fairgrpo_jax.data.splits import by_patient
from fairgrpo_jax.data.tables import Problems


SPLITS = ("train", "test")
HELD_OUT = 0.2  # share of the patients, if the file has no splits
ABOUT = About(
    name="jsonl",
    title="Your own data",
    where="your own files",
    licence="yours",
    download="train.jsonl and test.jsonl (or .parquet) in one folder, or one such file",
)
SUFFIXES = (".jsonl", ".json", ".parquet")

_NAMES = {
    "prompt": ("prompt", "problem", "question", "messages", "conversations"),
    "answer": ("answer", "solution"),
    "sex": ("sex", "gender"),
    "id": ("id", "uid"),
    "patient": ("patient", "patient_id", "patientid", "subject", "subject_id", "subjectid"),
    "image": ("image", "file_name"),
}
_KNOWN = {name for names in _NAMES.values() for name in names} | {
    *("images", "video", "videos", "fps", "age", "data_source", "modality", "choices"),
    *("split", "finding", "reward_model"),
}
# What verl's `extra_info` may not say: what a row has itself.
_OWN = {*_NAMES["prompt"], *_NAMES["answer"], *_NAMES["id"], *_NAMES["image"]}
_OWN |= {"images", "video", "videos", "fps", "choices", "split", "reward_model"}
_FILMS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
_MEDIA = (*_FILMS, ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".dcm", ".dicom")
_BOXED = re.compile(r"\\boxed\{|<think>|<answer>")


def load(
    root: str | Path,
    *,
    split: str,
    num_frames: int = 4,
    columns: Mapping[str, str] | None = None,
    codes: Mapping[str, Mapping[str, str]] | None = None,
) -> RecordList:
    """One record per row.

    Args:
        root: a folder with ``<split>.jsonl``, ``.json`` (also lines) or ``.parquet``; or one such file.
        split: the name of a file in a folder. In a single file: the rows of this ``split``; without such a column,
            ``"train"`` or ``"test"``, with a fifth of the patients held out by the hash of their names.
        num_frames: number of frames of a video file that the model sees.
        columns: names of the file's columns by those above, as ``{"answer": "label", "patient": "mrn"}``.
        codes: what values mean, by column, as ``{"sex": {"1": "M", "2": "F"}, "age": {"999": ""}}``; ``""`` is unknown.

    Returns:
        A ``Source`` in the order of the rows. Without ``data_source`` the dataset is named after the folder or file;
        without ``patient`` every row is a separate patient. Its ``notes`` tell what each column was read as, that there
        is no patient, and which rows have no media where others have some.

    Raises:
        ValueError: if the file does not exist, is not UTF-8 or not Parquet; if ``columns`` names an unknown one, or no
            row has media and a column looks like files of them; for all bad rows in one error, with their lines (rows
            for Parquet): no JSON object, a repeated key, no prompt or answer, an answer that is not one of the choices,
            media that do not match the tags, an invalid sex or age, a repeated id.

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
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; wanted at least 1")
    path = _file(Path(root), split)
    alone = path == Path(root)
    problems = Problems(path, unit="row" if path.suffix == ".parquet" else "line")
    records, column, seen = [], False, dict[str, int]()
    found = _Columns(columns or {}, codes or {})
    for line, row in _rows(path, problems, found):
        try:
            row = found.named(row)
            column = column or "split" in row
            record = _record(row, path, line, alone, num_frames)
            if (first := seen.setdefault(record.uid, line)) != line:
                raise ValueError(f"{record.uid} is also {problems.unit} {first}")
            if alone and column and not record.split:
                raise ValueError("split is missing and other rows have one")
            records.append(record)
            found.said += not _answer(row)
            if not record.media:
                found.without_media.append(line)
        except ValueError as error:
            problems.add(line, str(error))
    found.require_given()
    problems.raise_if_any()
    notes = found.notes(len(records), problems.unit)
    if not alone or column:
        return RecordList(tuple(r for r in records if not alone or r.split == split), notes=notes)
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; {path} has no column split, so there are 'train' and 'test'")
    held_out = by_patient([r.patient for r in records], fraction=HELD_OUT, seed=0)
    kept = [r for r, out in zip(records, held_out, strict=True) if out == (split == "test")]
    return RecordList(tuple(dataclasses.replace(r, split=split) for r in kept), notes=notes)


def _file(root: Path, split: str) -> Path:
    if root.is_file():
        if root.suffix not in SUFFIXES:
            raise ValueError(f"{root} is no {', '.join(SUFFIXES)}; wanted a file of rows, or a folder of them")
        return root
    found = [root / f"{split}{suffix}" for suffix in SUFFIXES if (root / f"{split}{suffix}").is_file()]
    if len(found) != 1:
        there = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"{root} has {there} of {', '.join(split + suffix for suffix in SUFFIXES)}; wanted one")
    return found[0]


class _Columns:
    """Gives columns their names in this module, and remembers what became of each.

    Args:
        given: names of the file's columns by those of this module.
        codes: what values mean, by column.
    """

    def __init__(self, given: Mapping[str, str], codes: Mapping[str, Mapping[str, str]]):
        known = {"prompt", "answer", "sex", "age", "id", "patient", "image", "images", "video", "videos", "fps"}
        known |= {"data_source", "modality", "choices", "split", "finding"}
        if unknown := sorted(given.keys() - known):
            raise ValueError(f"got columns for {', '.join(unknown)}; wanted some of {', '.join(sorted(known))}")
        self._given = {column: name for name, column in given.items()}
        self._codes, self._coded = codes, collections.Counter[tuple[str, str]]()
        self._read: dict[str, str] = {}  # by the column's own name
        self._kept: dict[str, list[str]] = {}  # some values of columns that became attributes
        self.without_media: list[int] = []
        self.said = 0  # answers that the assistant says last

    def name(self, column: str) -> str:
        """The name of a column in this module; its own if it is none of them."""
        if column in self._given:
            return self._given[column]
        plain = column.strip().lower()
        if plain not in _KNOWN:
            return column
        return f"{column} (not read)" if {plain, *_others(plain)} & set(self._given.values()) else plain

    def named(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row under these names, with what verl's ``extra_info`` tells of the patient.

        Raises:
            ValueError: if two columns of one name differ.
        """
        found: dict[str, Any] = {}
        info = row.get("extra_info")
        nested = info if isinstance(info, dict) else {}
        told = [pair for pair in row.items() if pair[0] != "extra_info" or not nested]
        told += [(key, value) for key, value in nested.items() if key not in row and self.name(key) not in _OWN]
        for column, value in told:
            name = self.name(column)
            value = self._meant(name, value)
            if found.get(name) is not None and value is not None and found[name] != value:
                raise ValueError(f"two columns {name} differ; keep one")
            if found.get(name) is None:
                found[name] = value
            if name in _KNOWN:
                self._read[column] = name
            else:
                values = self._kept.setdefault(column, [])
                if value is not None and len(values) < 100:
                    values.append(_plain(value))
        return found

    def _meant(self, name: str, value: Any) -> Any:
        """The value that a code stands for."""
        code = _plain(value)
        if code not in self._codes.get(name, {}):
            return value
        self._coded[name, code] += 1
        return self._codes[name][code] or None

    def require_given(self) -> None:
        """Checks that the columns that were given by hand are there.

        Raises:
            ValueError: if no row has one of them.
        """
        there = {*self._read, *self._kept}
        if absent := sorted(set(self._given) - there) if there else []:
            raise ValueError(
                f"got columns {', '.join(absent)}, which no row has; wanted some of {', '.join(sorted(there))}"
            )

    def notes(self, count: int, unit: str) -> tuple[str, ...]:
        """What became of the columns, in sentences.

        Raises:
            ValueError: if media were overlooked.
        """
        read = [column if column == name else f"{column} as {name}" for column, name in sorted(self._read.items())]
        lines = [f"columns that are read: {', '.join(read)}"]
        if self._coded:
            told = [f"{name} {code!r} as {self._codes[name][code] or 'unknown'}" for name, code in sorted(self._coded)]
            lines.append(f"codes: {', '.join(told)}")
        unused = [f"{name}.{code}" for name, own in self._codes.items() for code in own if not self._coded[name, code]]
        if unused:
            lines.append(f"codes that no row has: {', '.join(unused)}")
        if self.said:
            lines.append(f"the assistant's last message is the answer of {self.said} rows")
        if self._kept:
            lines.append(f"columns that are kept as attributes: {', '.join(sorted(self._kept))}")
        if not set(self._read.values()) & set(_NAMES["patient"]):
            lines.append("no column patient, patient_id or subject_id: every row counts as its own patient")
        like_files = sorted(
            column
            for column, values in self._kept.items()
            if any(values) and all(value.lower().endswith(_MEDIA) for value in values if value)
        )
        if like_files and len(self.without_media) == count:
            raise ValueError(
                f"got no media, but columns {', '.join(like_files)} that look like files; wanted a column image or "
                f"video: rename it, or columns image={like_files[0]}"
            )
        lines += [f"column {column} looks like files of media; it is not read as such" for column in like_files]
        if 0 < len(self.without_media) < count:
            first = ", ".join(map(str, self.without_media[:10]))
            more = ", ..." if len(self.without_media) > 10 else ""
            lines.append(f"{len(self.without_media)} of {count} rows have no media: {unit} {first}{more}")
        return tuple(lines)


def _others(name: str) -> tuple[str, ...]:
    """Other names of a column, with the one that stands for all."""
    return next((names for names in _NAMES.values() if name in names), ())


def _rows(path: Path, problems: Problems, columns: _Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and columns of each row; invalid rows are added to ``problems``."""
    if path.suffix == ".parquet":
        yield from enumerate(_parquet(path, columns), start=1)
        return
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8-sig" if line == 1 else "utf-8").strip()
                if not text:
                    continue
                row = json.loads(text, object_pairs_hook=_once)
                json.dumps(row, ensure_ascii=False).encode()  # an unpaired surrogate is not text
            except (ValueError, RecursionError) as error:
                problems.add(line, f"no JSON ({error})")
                continue
            if isinstance(row, dict):
                yield line, row
            else:
                problems.add(line, f"{text[:40]} is no object")


def _parquet(path: Path, columns: _Columns) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            labels = _class_labels(file.schema_arrow.metadata or {})
            answers = [names for column, names in labels.items() if columns.name(column) in _NAMES["answer"]]
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    for column, names in labels.items():
                        row[column] = _label(row.get(column), names)
                    if answers and "choices" not in row:
                        row["choices"] = answers[0]
                    yield row
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no Parquet ({error}); write it again") from error


def _class_labels(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """The names of the classes of columns that Hugging Face's ``datasets`` wrote as ClassLabel."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    except ValueError:
        return {}
    kinds = {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    return {name: kind["names"] for name, kind in kinds.items() if kind.get("_type") == "ClassLabel"}


def _label(value: Any, names: list[str]) -> Any:
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


def _record(row: Mapping[str, Any], path: Path, line: int, alone: bool, num_frames: int) -> Record:
    talk, answer = messages.split_answer(messages.read(_one(row, "prompt")), _answer(row))
    own = _media(row, path.parent, num_frames)
    turns, media = messages.placed(talk, own, lambda place: _inline(place, path.parent, row.get("fps"), num_frames))
    question, choices = spoken(turns), _choices(row)
    if not question:
        raise ValueError("prompt has no text")
    _check_answer(answer, choices)
    dataset = _text(row, "data_source") or (path.stem if alone else path.resolve().parent.name)
    name = _scalar("id", _one(row, "id")) or (str(line) if alone else f"{path.stem}-{line}")
    return Record(
        uid=f"{dataset}/{name}",
        dataset=dataset,
        modality=_text(row, "modality"),
        media=media,
        question=question,
        answer=answer,
        choices=choices,
        patient=_scalar("patient", _one(row, "patient")) or name,
        sex=demographics.sex(_one(row, "sex")),
        age=demographics.age(row.get("age")),
        extra={key: _plain(value) for key, value in row.items() if key not in _KNOWN},
        split=_text(row, "split") if alone else path.stem,
        finding=_text(row, "finding"),
        turns=() if messages.plain(turns, question) else turns,
    )


def _one(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column with several names; if a row has two of them, they must agree."""
    found = {key: row[key] for key in _NAMES[name] if row.get(key) is not None}
    values = list(found.values())
    if any(value != values[0] for value in values[1:]):
        raise ValueError(f"{' and '.join(found)} differ; keep one")
    return values[0] if values else None


def _media(row: Mapping[str, Any], folder: Path, num_frames: int) -> tuple[Media, ...]:
    image, video = _one(row, "image"), row.get("video")
    for one, several in ((image, "images"), (video, "videos")):
        if one is not None and row.get(several):
            raise ValueError(f"{several[:-1]} and {several} are both there; keep one")
    videos = _several(row, "videos") if video is None else [video]
    if isinstance(image, str) and image.lower().endswith(_FILMS):
        image, videos = None, [*videos, image]
    images = _several(row, "images") if image is None else [image]
    places = [*(messages.Place("image", image) for image in images), *(messages.Place("video", one) for one in videos)]
    return tuple(_inline(place, folder, row.get("fps"), num_frames) for place in places)


def _several(row: Mapping[str, Any], name: str) -> list[Any]:
    """Media of a column that holds a list of them, or one."""
    value = row.get(name)
    if value is None or value == "":
        return []
    return value if isinstance(value, list) else [value]


def _inline(place: messages.Place, folder: Path, fps: Any, num_frames: int) -> Media:
    """A medium from what a row or a part of its prompt has for it."""
    given = messages.embedded(place.given)
    if place.kind == "image":
        return _image(given, folder)
    return _video(given, folder, fps if place.fps is None else place.fps, num_frames)


def _image(value: Any, folder: Path) -> Media:
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return Media("image", pixels=open_image(io.BytesIO(value["bytes"]), str(value.get("path") or "its bytes")))
    if isinstance(value, dict):
        value = value.get("path")
    return Media("image", path=_path(value, folder))


def _video(value: Any, folder: Path, fps: Any, num_frames: int) -> Media:
    speed = _speed(fps)
    if isinstance(value, list):
        if speed is None:
            raise ValueError(f"fps is {_short(fps)}; wanted the frames a second of a video given as frames")
        if not value:
            raise ValueError("videos has a video without frames")
        frames = tuple(_path(frame, folder) for frame in value)
        return Media("video", frames=frames, fps=speed, num_frames=num_frames)
    if isinstance(value, dict):
        value = value.get("path") or value.get("video")
    return Media("video", path=_path(value, folder), num_frames=num_frames, fps=speed)


def _speed(fps: Any) -> float | None:
    """Frames per second, for videos that have none themselves."""
    if fps is None or fps == "":
        return None
    try:
        if not isinstance(fps, bool) and 0 < float(fps) < math.inf:
            return float(fps)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"fps is {_short(fps)}; wanted frames a second, above 0")


def _path(value: Any, folder: Path) -> Path:
    if not isinstance(value, str) or not value or "\0" in value or len(value) > 4096:
        raise ValueError(f"{_short(value)} is no file name")
    return folder / value.removeprefix("file://")


def _answer(row: Mapping[str, Any]) -> str:
    """The answer of a row's columns; empty if there is none."""
    value = _one(row, "answer")
    if value is None and isinstance(row.get("reward_model"), dict):
        value = row["reward_model"].get("ground_truth")
    if not isinstance(value, list):
        return _scalar("answer", value)
    labels = [label.strip() if isinstance(label, str) else "" for label in value]
    if not all(labels) or len(set(labels)) < len(labels):
        raise ValueError(
            f"answer is {_short(value)}; wanted different labels as text, none empty, no numbers of classes"
        )
    if len(labels) > 1 and any(", " in label for label in labels):
        raise ValueError(f"answer is {_short(value)}; wanted labels without ', ', which joins several: rename them")
    return ", ".join(labels)


def _check_answer(answer: str, choices: tuple[str, ...]) -> None:
    if not answer:
        raise ValueError(
            "answer is missing; wanted answer, solution, reward_model.ground_truth or a last message of the assistant"
        )
    if _BOXED.search(answer):
        raise ValueError(f"answer is {_short(answer)}; wanted what is to stand in \\boxed{{}}, and nothing around it")
    if choices and answer not in choices and not set(answer.split(", ")) <= set(choices):
        alone = "; a choice with ', ' in it stands alone" if any(", " in choice for choice in choices) else ""
        raise ValueError(f"answer is {answer!r}; wanted one of the choices, or several joined by ', '{alone}")


def _choices(row: Mapping[str, Any]) -> tuple[str, ...]:
    choices = tuple(_scalar("choices", choice) for choice in _list(row, "choices"))
    if len(set(choices)) < len(choices) or "" in choices:
        raise ValueError(f"choices are {_short(list(choices))}; wanted different ones, none empty")
    return choices


def _list(row: Mapping[str, Any], name: str) -> list[Any]:
    value = row.get(name)
    if value is None or isinstance(value, list):
        return value or []
    raise ValueError(f"{name} is {_short(value)}; wanted a list")


def _text(row: Mapping[str, Any], name: str) -> str:
    return _scalar(name, row.get(name))


def _scalar(name: str, value: Any) -> str:
    """A string, number or None as stripped text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str | int | float):
        raise ValueError(f"{name} is {_short(value)}; wanted text or a number")
    return str(value).strip()


def _plain(value: Any) -> str:
    """A value of another column as text; a list or object as JSON."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
