"""Makes the records of one's own rows, and tells what is known of many of them column by column.

``record`` has the last word on every row. ``facts`` finds rows of plain columns that it would not refuse, each distinct
value looked at once, so that a million of them need not be made to be known.
"""

import functools
import io
import math
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fairgrpo_jax.data import demographics, messages
from fairgrpo_jax.data.cells import Address
from fairgrpo_jax.data.column_names import FILMS, Row, others, whole
from fairgrpo_jax.data.columnar import Column
from fairgrpo_jax.data.media import open_image
from fairgrpo_jax.data.record import Media, Record, Turn, spoken


_BOXED = re.compile(r"\\boxed\{|<think>|<answer>")
_LONGEST = 4096  # characters of the name of a file


class Given(NamedTuple):
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


def record(row: Row, given: Given, line: int) -> Record:
    """Makes the record of a row.

    Args:
        row: its values.
        given: what it shares with others.
        line: its number.

    Raises:
        ValueError: with what is wrong with the row.
    """
    question, turns, media, answer = _asked(row, given)
    if not question:
        raise ValueError("prompt has no text")
    choices = _choices(row.choices)
    _check_answer(answer, choices)
    dataset = _text("data_source", row.data_source) or given.dataset
    name = whole(_scalar("id", row.id)) or _unnamed(given, line)
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


def names_patient(row: Row) -> bool:
    """Whether a row says who its patient is."""
    return _text("patient", row.patient) != ""


def _unnamed(given: Given, line: int) -> str:
    """The id of a row without one."""
    return f"{given.stem}-{line}" if given.split else str(line)


def _asked(row: Row, given: Given) -> tuple[str, tuple[Turn, ...], tuple[Media, ...], str]:
    """The question of a row, its turns if they do not go without saying, its media and its answer."""
    if isinstance(row.prompt, str):
        answer, media = answer_of(row), _media(row, given)
        if simple := messages.simple(row.prompt, media):
            return *simple, media, answer
    talk, answer = messages.split_answer(messages.read(row.prompt), answer_of(row))
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


def _media(row: Row, given: Given) -> tuple[Media, ...]:
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


def _inside(row: Row, given: Given, place: messages.Place) -> Media:
    """A medium from what a part of the prompt has for it."""
    value = messages.embedded(place.given)
    if place.kind == "image":
        return _image(value, given)
    return _video(value, row.fps if place.fps is None else place.fps, given)


def _image(value: Any, given: Given) -> Media:
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


def _video(value: Any, fps: Any, given: Given) -> Media:
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


def _path(value: Any, given: Given) -> Path:
    """A file that a row names: relative to its folder, with slashes of either kind, or a ``file:`` URI."""
    return given.folder / _name(value, given)


def _name(value: Any, given: Given) -> str:
    if not isinstance(value, str) or not value or "\0" in value or len(value) > _LONGEST:
        raise ValueError(f"{_short(value)} is no file name")
    if value.startswith("file://"):
        return urllib.parse.unquote(value.removeprefix("file://"))
    if "\\" in value:
        if value.startswith("\\\\") or value[1:2] == ":":
            raise ValueError(f"{_short(value)} is on a drive of Windows; wanted a file relative to {given.folder}")
        return value.replace("\\", "/")
    return value


def answer_of(row: Row) -> str:
    """The answer of a row's columns; empty if there is none."""
    if row.answer is None and isinstance(row.reward_model, dict):
        return _answer(row.reward_model.get("ground_truth"))
    return _answer(row.answer)


def _answer(value: Any) -> str:
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


# ---- column by column ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What is known of the records of many rows, each in a list with one entry a row.

    Attributes:
        sure: whether the row is plain and has a record; of others the rest says nothing, and ``record`` decides.
        uids: as of the record, and so the next two.
        patients: the patients.
        named: whether the row names its patient.
        splits: the splits.
        shown: number of media.
        bands: the age as it is told if it is a band, else None.
    """

    sure: list[bool]
    uids: list[str]
    patients: list[str]
    named: list[bool]
    splits: list[str]
    shown: list[int]
    bands: list[str | None]

    def tell(self, row: int, told: Record, *, named: bool) -> None:
        """Enters what is known of a record that was made, and whether its patient was named."""
        self.named[row] = named
        self.uids[row], self.patients[row], self.splits[row] = told.uid, told.patient, told.split
        self.shown[row] = len(told.media)
        self.bands[row] = told.extra[demographics.AGE_TOLD] if demographics.band(told) else None


def nothing_known(count: int) -> Facts:
    """Of rows that must all be looked at one by one."""
    words = lambda: [""] * count
    return Facts([False] * count, words(), words(), [False] * count, words(), [0] * count, [None] * count)


def facts(row: Row, given: Given, lines: Sequence[int]) -> Facts:
    """What is known of the records of rows without making them.

    Plain rows ask in text with all of their images, which are files, before it. Messages, videos and media inside rows
    are read one by one.

    Args:
        row: columns in the place of values, each a ``Column`` or None if there is none.
        given: what the rows share.
        lines: the number of each row.
    """
    count = len(lines)
    nothing = Column([None] * count, [None] * count)
    plain = row._replace(**{name: nothing for name in Row._fields if getattr(row, name) is None})
    films = [
        one is not None or bool(_several(more))
        for one, more in zip(plain.video.values, plain.videos.values, strict=True)
    ]
    shown = _images(plain.prompt.values, plain.image.values, plain.images.values, given)
    aged = _by_value(_age, plain.age)
    ids, patients, sources, splits, *others = (
        _scalars(name, getattr(plain, name))
        for name in ("id", "patient", "data_source", "split", "modality", "finding")
    )
    answers = _by_value(
        lambda pair: _check_answer(_answer(pair[0]), _choices(pair[1])), _both(plain.answer, plain.choices)
    )
    sure = [not film and number >= 0 for film, number in zip(films, shown, strict=True)]
    for column in (answers, _by_value(demographics.sex, plain.sex), aged, ids, patients, sources, splits, *others):
        if _REFUSED in column:
            sure = [yet and value is not _REFUSED for yet, value in zip(sure, column, strict=True)]
    if demographics.AGE_TOLD in row.extra:
        sure = [False] * count
    names = [whole(f"{name}") or _unnamed(given, line) for name, line in zip(ids, lines, strict=True)]
    return Facts(
        sure,
        [f"{source or given.dataset}/{name}" for source, name in zip(sources, names, strict=True)],
        [whole(f"{patient}") or name for patient, name in zip(patients, names, strict=True)],
        [patient != "" for patient in patients],
        [given.split or f"{split}" for split in splits],
        shown,
        [age[1] if isinstance(age, tuple) else None for age in aged],
    )


_REFUSED = object()  # stands for what cannot be read from a value
_PICTURE = Media("image", path=Path("any"))


def _by_value(read: Callable[[Any], Any], column: Column) -> list[Any]:
    """What is read from each value of a column, of equal ones once; ``_REFUSED`` where nothing can be."""
    found = dict(zip(column.keys, column.values, strict=True))
    for key, value in found.items():
        try:
            found[key] = read(value)
        except ValueError:
            found[key] = _REFUSED
    return [*map(found.__getitem__, column.keys)]


def _scalars(name: str, column: Column) -> list[Any]:
    """Strings and numbers of a column as stripped text; ``_REFUSED`` where there is something else."""
    if column.kind in ("json", "null"):
        return _by_value(functools.partial(_scalar, name), column)
    return [_scalar(name, value) for value in column.values]


def _both(one: Column, other: Column) -> Column:
    """A column of the values of two."""
    return Column([*zip(one.values, other.values, strict=True)], [*zip(one.keys, other.keys, strict=True)])


def _images(prompts: Sequence[Any], one: Sequence[Any], several: Sequence[Any], given: Given) -> list[int]:
    """The number of each row's images, where all are files and stand before a prompt that is text; else -1."""
    kinds = {*map(type, one)}
    if {*map(type, prompts)} == {str} and all(more is None for more in several) and len(kinds) == 1:
        shown = kinds == {str}
        if (not shown or _are_files(one)) and messages.are_simple(prompts, int(shown)):
            return [int(shown)] * len(prompts)
    return [*map(functools.partial(_plain_images, given), prompts, one, several)]


def _are_files(names: Sequence[str]) -> bool:
    """Whether all are plain names of files, told from all at once; False where some may need a closer look."""
    joined = "\n".join(names).lower()
    return all(names) and max(map(len, names)) <= _LONGEST and not any(part in joined for part in (*":\\\0", *FILMS))


def _plain_images(given: Given, prompt: Any, image: Any, images: Any) -> int:
    if not isinstance(prompt, str) or (image is not None and images):
        return -1
    files = _several(images) if image is None else [image]
    try:
        for file in files:
            if not isinstance(file, str) or messages.embedded(file) != file or file.lower().endswith(FILMS):
                return -1
            _name(file, given)
    except ValueError:
        return -1
    return len(files) if messages.simple(prompt, (_PICTURE,) * len(files)) else -1
