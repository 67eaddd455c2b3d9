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
import operator
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fairgrpo_jax.data import demographics, forms, messages
from fairgrpo_jax.data.about import About
from fairgrpo_jax.data.cells import Address
from fairgrpo_jax.data.column_names import FILMS, NAMES, Columns, Row, others, whole
from fairgrpo_jax.data.media import open_image
from fairgrpo_jax.data.record import Media, Record, RecordList, Turn, spoken
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
    records, seen, held = [], dict[str, int](), 0  # the first two in the order of the rows
    found = Columns(columns or {}, codes or {})
    choices = next((names for name, names in rows.classes.items() if found.name(name) in NAMES["answer"]), None)
    given = _Given(
        path.parent, path.stem, "" if alone else path.stem, path.stem if alone else _folder_name(path), num_frames
    )
    for line, row in rows.read(problems):
        try:
            if choices and "choices" not in row:
                row["choices"] = [*choices]
            told = found.named(row)
            record = _record(told, given, line)
            if (first := seen.setdefault(record.uid, line)) != line:
                raise ValueError(f"{record.uid} is also {problems.unit} {first}")
        except ValueError as error:
            problems.add(line, str(error))
            continue
        records.append(record)
        held += sum([medium.pixels.nbytes for medium in record.media if medium.pixels is not None])
        if held > HELD:
            raise ValueError(
                f"{path}: the pictures inside its rows up to {problems.unit} {line} take {held:,} bytes of memory; "
                f"wanted at most {HELD:,}: keep them in files, or write JSON lines or Parquet, where they stay on disk"
            )
        found.said += record.answer != told.answer and not _answer(told)
        if not record.media:
            found.without_media.append(line)
    found.require_given()
    if problems.found and not records:
        found.require_asked(f"{problems.path}")
    told_split = found.has("split")
    if alone and told_split:
        for line, record in zip(seen.values(), records, strict=True):
            if not record.split:
                problems.add(line, "split is missing and other rows have one")
        problems.found.sort(key=operator.itemgetter(0))
    problems.raise_if_any()
    notes = (*rows.notes, *found.notes(len(records), problems.unit), *_bands(records))
    if further := [name for name in forms.splits(Path(root)) if name not in (split, *SPLITS)]:
        notes += (f"other splits that are there: {', '.join(further)}",)
    if not alone or told_split:
        return RecordList(tuple(r for r in records if not alone or r.split == split), notes=notes)
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; {path} has no column split, so there are 'train' and 'test'")
    held_out = by_patient([r.patient for r in records], fraction=HELD_OUT, seed=0)
    kept = [r for r, out in zip(records, held_out, strict=True) if out == (split == "test")]
    return RecordList(tuple(dataclasses.replace(r, split=split) for r in kept), notes=notes)


def _bands(records: Sequence[Record]) -> tuple[str, ...]:
    """What became of ages that are told as bands, in a sentence."""
    banded = [r for r in records if demographics.AGE_TOLD in r.extra]
    counts = collections.Counter(r.extra[demographics.AGE_TOLD] for r in banded if demographics.band(r))
    if not counts:
        return ()
    told = ", ".join(f"{band} ({count})" for band, count in sorted(counts.items())[:20])
    more = f" and {len(counts) - 20} more" if len(counts) > 20 else ""
    return (
        f"ages that are bands: {told}{more}; kept as the attribute {demographics.AGE_TOLD}, a group of data.age_edges "
        "where they lie within one",
    )


class _Given(NamedTuple):
    """What all rows of a file share.

    Attributes:
        folder: files that rows name are relative to it.
        stem: of the file's name; with the row's number the id of a row without one, unless the file stands alone.
        split: the split, or ``""`` for the row's own.
        dataset: of rows that name none.
        num_frames: of a video file that the model sees; None for all.
    """

    folder: Path
    stem: str
    split: str
    dataset: str
    num_frames: int | None


def _record(row: Row, given: _Given, line: int) -> Record:
    question, turns, media, answer = _asked(row, given)
    if not question:
        raise ValueError("prompt has no text")
    choices = _choices(row.choices)
    _check_answer(answer, choices)
    dataset = _text("data_source", row.data_source) or given.dataset
    name = whole(_scalar("id", row.id)) or (f"{given.stem}-{line}" if given.split else str(line))
    modality, patient = _text("modality", row.modality), whole(_text("patient", row.patient)) or name
    sex, (age, extra) = _remembered(demographics.sex, row.sex), _aged(row)
    return Record(
        uid=f"{dataset}/{name}",
        dataset=dataset,
        modality=modality,
        media=media,
        question=question,
        answer=answer,
        choices=choices,
        patient=patient,
        sex=sex,
        age=age,
        extra=extra,
        split=given.split or _text("split", row.split),
        finding=_text("finding", row.finding),
        turns=turns,
    )


def _asked(row: Row, given: _Given) -> tuple[str, tuple[Turn, ...], tuple[Media, ...], str]:
    """The question of a row, its turns if they do not go without saying, its media and its answer."""
    if isinstance(row.prompt, str):
        answer, media = _answer(row), _media(row, given)
        if simple := messages.simple(row.prompt, media):
            return *simple, media, answer
    talk, answer = messages.split_answer(messages.read(row.prompt), _answer(row))
    turns, media = messages.placed(talk, _media(row, given), functools.partial(_inside, row, given))
    question = spoken(turns)
    return question, () if messages.plain(turns, question) else turns, media, answer


def _aged(row: Row) -> tuple[float | None, Mapping[str, str]]:
    """The age of a row, and its other columns; of a band of ages one inside it, and the band as it is told."""
    age, told = _remembered(_age, row.age)
    if told is None:
        return age, row.extra
    if row.extra.get(demographics.AGE_TOLD, told) not in ("", told):
        raise ValueError(f"the column {demographics.AGE_TOLD} differs from the age {told}; rename it")
    extra = {**row.extra, demographics.AGE_TOLD: told}
    return age, others(tuple(extra), tuple(extra.values()))


def _age(raw: Any) -> tuple[float | None, str | None]:
    """An age in years; if it is told as a band, one inside it, and the band."""
    if (band := demographics.age_band(raw)) is None:
        return demographics.age(raw), None
    return demographics.within(band), str(raw).strip()


@functools.lru_cache(maxsize=1 << 14)
def _same(value: Any) -> Any:
    """A value, or one that is equal to it and came before: a million rows say few things."""
    return value


def _remembered(read: Callable[[Any], Any], raw: Any) -> Any:
    """What ``read`` makes of a value."""
    try:
        return _read(read, raw)
    except TypeError:  # a list or an object
        return read(raw)


@functools.lru_cache(maxsize=1 << 14, typed=True)
def _read(read: Callable[[Any], Any], raw: Any) -> Any:
    return read(raw)


@functools.lru_cache(maxsize=64)
def _folder_name(path: Path) -> str:
    return path.resolve().parent.name


def _media(row: Row, given: _Given) -> tuple[Media, ...]:
    image, video = row.image, row.video
    for one, name, several in ((image, "image", row.images), (video, "video", row.videos)):
        if one is not None and several:
            raise ValueError(f"{name} and {name}s are both there; keep one")
    videos = _several(row.videos) if video is None else [video]
    if isinstance(image, str) and image.lower().endswith(FILMS):
        image, videos = None, [*videos, image]
    images = _several(row.images) if image is None else [image]
    found = [_image(messages.embedded(image), given) for image in images]
    return (*found, *(_video(messages.embedded(video), row.fps, given) for video in videos))


def _several(value: Any) -> list[Any]:
    """Media of a column that holds a list of them, or one."""
    if value is None or value == "":
        return []
    return value if isinstance(value, list) else [value]


def _inside(row: Row, given: _Given, place: messages.Place) -> Media:
    """A medium from what a part of the prompt has for it."""
    value = messages.embedded(place.given)
    if place.kind == "image":
        return _image(value, given)
    return _video(value, row.fps if place.fps is None else place.fps, given)


def _image(value: Any, given: _Given) -> Media:
    if isinstance(value, str):
        return Media("image", path=_path(value, given))
    held = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(held, Address):
        return Media("image", path=held.path, member=held.member)
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return Media("image", pixels=open_image(io.BytesIO(value["bytes"]), str(value.get("path") or "its bytes")))
    if isinstance(value, dict):
        value = value.get("path")
    return Media("image", path=_path(value, given))


def _video(value: Any, fps: Any, given: _Given) -> Media:
    speed = _speed(fps)
    if isinstance(value, list):
        if speed is None:
            raise ValueError(f"fps is {_short(fps)}; wanted the frames a second of a video given as frames")
        if not value:
            raise ValueError("videos has a video without frames")
        frames = tuple(_path(frame, given) for frame in value)
        return Media("video", frames=frames, fps=speed, num_frames=given.num_frames)
    held = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(held, Address):
        return Media("video", path=held.path, member=held.member, num_frames=given.num_frames, fps=speed)
    if isinstance(value, dict):
        value = value.get("path") or value.get("video")
    return Media("video", path=_path(value, given), num_frames=given.num_frames, fps=speed)


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


def _path(value: Any, given: _Given) -> Path:
    """A file that a row names: relative to its folder, with slashes of either kind, or a ``file:`` URI."""
    if not isinstance(value, str) or not value or "\0" in value or len(value) > 4096:
        raise ValueError(f"{_short(value)} is no file name")
    if value.startswith("file://"):
        return given.folder / urllib.parse.unquote(value.removeprefix("file://"))
    if "\\" in value:
        if value.startswith("\\\\") or value[1:2] == ":":
            raise ValueError(f"{_short(value)} is on a drive of Windows; wanted a file relative to {given.folder}")
        value = value.replace("\\", "/")
    return given.folder / value


def _answer(row: Row) -> str:
    """The answer of a row's columns; empty if there is none."""
    value = row.answer
    if value is None and isinstance(row.reward_model, dict):
        value = row.reward_model.get("ground_truth")
    if isinstance(value, str):
        return _same(value.strip())
    if not isinstance(value, list):
        return _text("answer", value)
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


def _choices(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError(f'choices is {_short(value)}; wanted a list, in a table as JSON: ["a", "b"]')
    return _different(
        tuple([choice.strip() if isinstance(choice, str) else _scalar("choices", choice) for choice in value])
    )


@functools.lru_cache(maxsize=1 << 14)
def _different(choices: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(choices)) < len(choices) or "" in choices:
        raise ValueError(f"choices are {_short(list(choices))}; wanted different ones, none empty")
    return choices


def _text(name: str, value: Any) -> str:
    """Text that many rows share."""
    return "" if value is None else _same(_scalar(name, value))


def _scalar(name: str, value: Any) -> str:
    """A string, number or None as stripped text."""
    if isinstance(value, str):
        return value.strip()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, int | float):
        raise ValueError(f"{name} is {_short(value)}; wanted text or a number")
    return str(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
