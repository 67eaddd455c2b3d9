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
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairgrpo_jax.data import demographics, forms, messages
from fairgrpo_jax.data.about import About
from fairgrpo_jax.data.cells import Address
from fairgrpo_jax.data.column_names import FILMS, KNOWN, NAMES, Columns, plain
from fairgrpo_jax.data.media import open_image
from fairgrpo_jax.data.record import Media, Record, RecordList, spoken
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

_BOXED = re.compile(r"\\boxed\{|<think>|<answer>")


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
    path, alone, problems = rows.path, rows.alone, rows.problems()
    records, column, seen = [], False, dict[str, int]()
    found = Columns(columns or {}, codes or {})
    choices = next((names for name, names in rows.classes.items() if found.name(name) in NAMES["answer"]), None)
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
            found.said += not _answer(row)
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


def _record(row: Mapping[str, Any], path: Path, line: int, alone: bool, num_frames: int | None) -> Record:
    talk, answer = messages.split_answer(messages.read(_one(row, "prompt")), _answer(row))
    own = _media(row, path.parent, num_frames)
    turns, media = messages.placed(talk, own, lambda place: _inline(place, path.parent, row.get("fps"), num_frames))
    question, choices = spoken(turns), _choices(row)
    if not question:
        raise ValueError("prompt has no text")
    _check_answer(answer, choices)
    dataset = _text(row, "data_source") or (path.stem if alone else _folder_name(path))
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
        extra=_attributes(tuple((key, plain(value)) for key, value in row.items() if key not in KNOWN)),
        split=_text(row, "split") if alone else _same(path.stem),
        finding=_text(row, "finding"),
        turns=() if messages.plain(turns, question) else turns,
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
    for key in NAMES[name]:
        if (other := row.get(key)) is None:
            continue
        if value is not None and other != value:
            raise ValueError(f"{first} and {key} differ; keep one")
        first, value = first or key, other
    return value


def _media(row: Mapping[str, Any], folder: Path, num_frames: int | None) -> tuple[Media, ...]:
    image, video = _one(row, "image"), row.get("video")
    for one, several in ((image, "images"), (video, "videos")):
        if one is not None and row.get(several):
            raise ValueError(f"{several[:-1]} and {several} are both there; keep one")
    videos = _several(row, "videos") if video is None else [video]
    if isinstance(image, str) and image.lower().endswith(FILMS):
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


def _inline(place: messages.Place, folder: Path, fps: Any, num_frames: int | None) -> Media:
    """A medium from what a row or a part of its prompt has for it."""
    given = messages.embedded(place.given)
    if place.kind == "image":
        return _image(given, folder)
    return _video(given, folder, fps if place.fps is None else place.fps, num_frames)


def _image(value: Any, folder: Path) -> Media:
    held = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(held, Address):
        return Media("image", path=held.path, member=held.member)
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return Media("image", pixels=open_image(io.BytesIO(value["bytes"]), str(value.get("path") or "its bytes")))
    if isinstance(value, dict):
        value = value.get("path")
    return Media("image", path=_path(value, folder))


def _video(value: Any, folder: Path, fps: Any, num_frames: int | None) -> Media:
    speed = _speed(fps)
    if isinstance(value, list):
        if speed is None:
            raise ValueError(f"fps is {_short(fps)}; wanted the frames a second of a video given as frames")
        if not value:
            raise ValueError("videos has a video without frames")
        frames = tuple(_path(frame, folder) for frame in value)
        return Media("video", frames=frames, fps=speed, num_frames=num_frames)
    held = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(held, Address):
        return Media("video", path=held.path, member=held.member, num_frames=num_frames, fps=speed)
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


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
