"""Your own data in any form that ``data.forms`` finds, with the columns of TRL and verl.

One row per question. ``prompt`` (or ``problem``, ``question``): text, or messages with ``role`` and ``content``, where
the content is text or parts; ``<image>`` and ``<video>`` in it stand for the media in order. ``images`` (a list),
``image``, ``file_name``, ``video``, ``videos`` (a list of files, or of lists of frames with ``fps`` per second): paths
relative to the file or folder that is given, or absolute; in Parquet and Arrow also bytes or ``{"bytes": ..., "path":
...}``, which stay there until they are decoded. ``answer``, ``solution`` or ``reward_model.ground_truth``; in Parquet
and Arrow also a ClassLabel of Hugging Face, whose names are the choices. ``sex`` (or ``gender``) and ``age`` in any
known form; a band such as ``60-69`` is kept as the attribute ``age_told``. Optional: ``id``, ``data_source`` (the
dataset's name), ``modality``, ``choices``, ``patient`` (or ``patient_id``, ``subject_id``; the unit of the split),
``split``, ``finding``; sex, age, patient and attributes also in verl's ``extra_info``. Names are taken in any case, and
others by ``columns``. Every other column becomes an entry of ``Record.extra``, which can define groups;
``RecordList.notes`` says what became of each.
"""

import collections
import dataclasses
import functools
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairgrpo_jax.data import demographics, forms
from fairgrpo_jax.data.about import About
from fairgrpo_jax.data.cells import Address
from fairgrpo_jax.data.media import open_image
from fairgrpo_jax.data.record import Media, Record, RecordList
from fairgrpo_jax.data.splits import by_patient


SPLITS = ("train", "test")
HELD_OUT = 0.2  # share of the patients, if the file has no splits
ABOUT = About(
    name="jsonl",
    title="Your own data",
    where="your own files",
    licence="yours",
    download="train and test as JSON, CSV, Parquet, saved datasets or image folders, or one such file",
)

_NAMES = {
    "prompt": ("prompt", "problem", "question"),
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
_TAG = re.compile(r"<(image|video)>\n?")


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
        root: a folder or file in one of the forms of ``data.forms``.
        split: the name of a split in a folder. In a single file, or a split saved alone: the rows of this ``split``;
            without such a column, ``"train"`` or ``"test"``, with a fifth of the patients held out by the hash of their
            names.
        num_frames: number of frames of a video file that the model sees.
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
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; wanted at least 1")
    rows = forms.find(Path(root), split)
    path, alone, problems = rows.path, rows.alone, rows.problems()
    records, column, seen = [], False, dict[str, int]()
    found = _Columns(columns or {}, codes or {})
    choices = next((names for name, names in rows.classes.items() if found.name(name) in _NAMES["answer"]), None)
    for line, row in rows.read(problems):
        try:
            if choices and "choices" not in row:
                row["choices"] = [*choices]
            row = _banded(found.named(row))
            column = column or "split" in row
            record = _record(row, path, line, alone, num_frames)
            if (first := seen.setdefault(record.uid, line)) != line:
                raise ValueError(f"{record.uid} is also {problems.unit} {first}")
            if alone and column and not record.split:
                raise ValueError("split is missing and other rows have one")
            records.append(record)
            if not record.media:
                found.without_media.append(line)
        except ValueError as error:
            problems.add(line, str(error))
    found.require_given()
    problems.raise_if_any()
    notes = (*rows.notes, *found.notes(len(records), problems.unit), *_bands(records))
    if others := [name for name in forms.splits(Path(root)) if name not in (split, *SPLITS)]:
        notes += (f"other splits that are there: {', '.join(others)}",)
    if not alone or column:
        return RecordList(tuple(r for r in records if not alone or r.split == split), notes=notes)
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; {path} has no column split, so there are 'train' and 'test'")
    held_out = by_patient([r.patient for r in records], fraction=HELD_OUT, seed=0)
    kept = [r for r, out in zip(records, held_out, strict=True) if out == (split == "test")]
    return RecordList(tuple(dataclasses.replace(r, split=split) for r in kept), notes=notes)


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
        self._names: dict[str, str] = {}  # by the column's own name, as the next two
        self._read: dict[str, str] = {}
        self._kept: dict[str, list[str]] = {}  # some values of columns that became attributes
        self.without_media: list[int] = []

    def name(self, column: str) -> str:
        """The name of a column in this module; its own if it is none of them."""
        if column not in self._names:
            self._names[column] = self._named(column)
        return self._names[column]

    def _named(self, column: str) -> str:
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
        told = [*row.items()]
        if isinstance(info, dict):
            told = [pair for pair in told if pair[0] != "extra_info" or not info]
            told += [(key, value) for key, value in info.items() if key not in row and self.name(key) not in _OWN]
        for column, value in told:
            name = self.name(column)
            value = self._meant(name, value) if name in self._codes else value
            if found.get(name) is None:
                found[name] = value
            elif value is not None and found[name] != value:
                raise ValueError(f"two columns {name} differ; keep one")
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
        if code not in self._codes[name]:
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


def _banded(row: dict[str, Any]) -> dict[str, Any]:
    """A row with a band of ages: the age is one inside it, the band is kept as it is told."""
    band = _remembered(demographics.age_band, row.get("age"))
    if band is None:
        return row
    told = str(row["age"]).strip()
    if row.get(demographics.AGE_TOLD) not in (None, told):
        raise ValueError(f"the column {demographics.AGE_TOLD} differs from the age {told}; rename it")
    return row | {"age": demographics.within(band), demographics.AGE_TOLD: told}


def _bands(records: Sequence[Record]) -> tuple[str, ...]:
    """What became of ages that are told as bands, in a sentence."""
    counts = collections.Counter(r.extra[demographics.AGE_TOLD] for r in records if demographics.band(r))
    if not counts:
        return ()
    told = ", ".join(f"{band} ({count})" for band, count in sorted(counts.items())[:20])
    more = f" and {len(counts) - 20} more" if len(counts) > 20 else ""
    return (
        f"ages that are bands: {told}{more}; kept as the attribute {demographics.AGE_TOLD}, a group of data.age_edges "
        "where they lie within one",
    )


def _record(row: Mapping[str, Any], path: Path, line: int, alone: bool, num_frames: int) -> Record:
    question, tags = _question(_one(row, "prompt"))
    media = _media(row, path.parent, num_frames)
    if tags and sorted(tags) != sorted(medium.kind for medium in media):
        raise ValueError(f"the prompt has {len(tags)} tags of media, the row {len(media)} media")
    dataset = _text(row, "data_source") or (path.stem if alone else _folder_name(path))
    answer, choices = _answer(row), _choices(row)
    if choices and answer not in choices and not set(answer.split(", ")) <= set(choices):
        raise ValueError(f"answer is {answer!r}; wanted one of the choices, or several joined by ', '")
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
        sex=_remembered(demographics.sex, _one(row, "sex")),
        age=_remembered(demographics.age, row.get("age")),
        extra=_attributes(tuple((key, _plain(value)) for key, value in row.items() if key not in _KNOWN)),
        split=_text(row, "split") if alone else _same(path.stem),
        finding=_text(row, "finding"),
    )


# A million rows say few things: equal values are one object, and are read once.


@functools.lru_cache(maxsize=1 << 14)
def _same(value: Any) -> Any:
    """A value, or one that is equal to it and came before."""
    return value


@functools.lru_cache(maxsize=1 << 14)
def _attributes(pairs: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    return dict(pairs)


def _remembered(read: Callable[[Any], Any], raw: Any) -> Any:
    """What ``read`` makes of a value."""
    return _read(read, raw) if isinstance(raw, str | int | float | None) else read(raw)


@functools.lru_cache(maxsize=1 << 14, typed=True)
def _read(read: Callable[[Any], Any], raw: Any) -> Any:
    return read(raw)


@functools.lru_cache(maxsize=64)
def _folder_name(path: Path) -> str:
    return path.resolve().parent.name


def _one(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column with several names; if a row has two of them, they must agree."""
    first, value = "", None
    for key in _NAMES[name]:
        if (other := row.get(key)) is None:
            continue
        if value is not None and other != value:
            raise ValueError(f"{first} and {key} differ; keep one")
        first, value = first or key, other
    return value


def _question(prompt: Any) -> tuple[str, list[str]]:
    """The text of the question without media tags, and the kinds of the tags."""
    if isinstance(prompt, list):
        prompt = "\n".join(_turn(message) for message in prompt)
        if not prompt.strip("\n"):
            raise ValueError("prompt has no text")
    if not isinstance(prompt, str):
        raise ValueError(f"prompt is {_short(prompt)}; wanted text or a list of messages")
    question = _TAG.sub("", prompt).strip()
    if not question:
        raise ValueError("prompt has no text")
    return question, _TAG.findall(prompt)


def _turn(message: Any) -> str:
    """A system or user message as text, with media as tags."""
    if not isinstance(message, dict) or message.get("role") not in ("system", "user"):
        raise ValueError(f"prompt has the message {_short(message)}; wanted role system or user, and content")
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise ValueError(f"prompt has the content {_short(content)}; wanted text or a list of parts")
    texts = []
    for part in content:
        if part.get("type") in ("image", "video"):
            texts.append(f"<{part['type']}>")
        elif part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise ValueError(f"prompt has the part {_short(part)}; wanted type text, image or video")
    return "".join(texts)


def _media(row: Mapping[str, Any], folder: Path, num_frames: int) -> tuple[Media, ...]:
    image, video = _one(row, "image"), row.get("video")
    for one, several in ((image, "images"), (video, "videos")):
        if one is not None and row.get(several):
            raise ValueError(f"{several[:-1]} and {several} are both there; keep one")
    videos = _list(row, "videos") if video is None else [video]
    if isinstance(image, str) and image.lower().endswith(_FILMS):
        image, videos = None, [*videos, image]
    images = _list(row, "images") if image is None else [image]
    return (
        *(_image(image, folder) for image in images),
        *(_video(video, folder, row.get("fps"), num_frames) for video in videos),
    )


def _image(value: Any, folder: Path) -> Media:
    held = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(held, Address):
        return Media("image", path=held.path, member=held.member)
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return Media("image", pixels=open_image(io.BytesIO(value["bytes"]), str(value.get("path") or "its bytes")))
    if isinstance(value, dict):
        value = value.get("path")
    return Media("image", path=_path(value, folder))


def _video(value: Any, folder: Path, fps: Any, num_frames: int) -> Media:
    if isinstance(value, list):
        if isinstance(fps, bool) or not isinstance(fps, int | float) or not fps > 0:
            raise ValueError(f"fps is {_short(fps)}; wanted the frames a second of a video given as frames")
        if not value:
            raise ValueError("videos has a video without frames")
        frames = tuple(_path(frame, folder) for frame in value)
        return Media("video", frames=frames, fps=float(fps), num_frames=num_frames)
    held = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(held, Address):
        return Media("video", path=held.path, member=held.member, num_frames=num_frames)
    if isinstance(value, dict):
        value = value.get("path") or value.get("video")
    return Media("video", path=_path(value, folder), num_frames=num_frames)


def _path(value: Any, folder: Path) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{_short(value)} is no file name")
    return folder / value.removeprefix("file://")


def _answer(row: Mapping[str, Any]) -> str:
    value = _one(row, "answer")
    if value is None and isinstance(row.get("reward_model"), dict):
        value = row["reward_model"].get("ground_truth")
    if text := _scalar("answer", value):
        return text
    raise ValueError("answer is missing; wanted answer, solution or reward_model.ground_truth")


def _choices(row: Mapping[str, Any]) -> tuple[str, ...]:
    choices = tuple(_scalar("choices", choice) for choice in _list(row, "choices"))
    if len(set(choices)) < len(choices) or "" in choices:
        raise ValueError(f"choices are {_short(list(choices))}; wanted different ones, none empty")
    return _same(choices)


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
    return _same(str(value).strip())


def _plain(value: Any) -> str:
    """A value of another column as text; a list or object as JSON."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
