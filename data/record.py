"""The record that all datasets are mapped to, and its renderings as a conversation and as a supervised target."""

import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np


LETTERS = string.ascii_uppercase  # of choices


@dataclass(frozen=True, eq=False, slots=True)
class Media:
    """An image or video, on disk or in memory; ``data.media`` decodes it on request.

    Exactly one of ``path``, ``frames`` and ``pixels`` is given.

    Attributes:
        kind: ``"image"`` or ``"video"``.
        path: an image, a video, a DICOM file (of several frames: a video), a GIF, PNG, WebP or TIFF of several pages
            (a video), or with ``member`` a zip archive, a Parquet or Arrow file, or a prepared folder.
        member: name inside the archive; ``"!"`` between nested archives, as in
            ``"images/imgs_part_1.zip!imgs_part_1/PAT_1.png"``. For a table see ``cells.Address``, for a prepared folder
            ``prepared.contents``.
        frames: image files of a video stored as frames, in order; they may repeat.
        num_frames: number of frames of a video that the model sees; None means all.
        fps: frames per second of ``frames``, of a video in ``pixels``, of frames in a prepared folder, or of a DICOM
            file or pages that do not say how fast they follow (other files have their own).
        window: conversion of a DICOM file to 8 bits: ``"voi"`` (the default, the viewer's window) or ``"minmax"``.
        box: (frame, x1, y1, x2, y2), drawn before any resizing: index of the frame in the whole video (0 for an image),
            corners in pixels of the file.
        pixels: uint8 RGB, (H, W, 3) for an image and (F, H, W, 3) for a video.
        box_area: draw the box, with the same corners, on the frame reduced to this many pixels; None: on the file's.

    Raises:
        ValueError: for none or several of ``path``, ``frames`` and ``pixels``; pixels of another shape or dtype; a
            video of frames or in memory without ``fps``; a ``member`` without ``path``; an unknown window; an invalid
            box.
    """

    kind: Literal["image", "video"]
    path: Path | None = None
    member: str | None = None
    frames: tuple[Path, ...] = ()
    num_frames: int | None = None
    fps: float | None = None
    window: Literal["voi", "minmax"] | None = None
    box: tuple[float, float, float, float, float] | None = None
    pixels: np.ndarray | None = field(default=None, repr=False)
    box_area: int | None = None

    def __post_init__(self):
        if self.kind not in ("image", "video"):
            raise ValueError(f"media kind is {self.kind!r}; it is 'image' or 'video'")
        if (self.path is not None) + bool(self.frames) + (self.pixels is not None) != 1:
            raise ValueError("media has a path, frames or pixels, exactly one of them: pass path=... or frames=... ...")
        if self.window is not None and self.window not in ("voi", "minmax"):
            raise ValueError(f"window is {self.window!r}; it is 'voi' or 'minmax'")
        if self.member is not None and self.path is None:
            raise ValueError(f"member {self.member!r} has no archive; pass path=..., the zip it is in")
        if self.frames and self.kind == "image":
            raise ValueError("frames are of a video and this is an image; pass kind='video'")
        if self.box is not None:
            _check_box(self.box)
        if self.pixels is not None:
            _check_pixels(self.kind, self.pixels)
        if not self.fps and (self.frames or (self.pixels is not None and self.kind == "video")):
            raise ValueError("a video of frames or held in memory does not know its speed: pass fps=...")


def _check_box(box: Sequence[float]) -> None:
    if len(box) == 5 and all(math.isfinite(value) for value in box):
        frame, x1, y1, x2, y2 = box
        if frame >= 0 and frame == int(frame) and x1 <= x2 and y1 <= y2:
            return
    raise ValueError(
        f"box is {tuple(box)}; wanted (frame index, x1, y1, x2, y2), x1 <= x2, y1 <= y2, pixels of the file"
    )


def _check_pixels(kind: str, pixels: np.ndarray) -> None:
    rank = 3 if kind == "image" else 4
    if pixels.ndim != rank or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
        wanted = "(H, W, 3)" if rank == 3 else "(F, H, W, 3)"
        got = f"{pixels.dtype} {pixels.shape}"
        raise ValueError(f"pixels of a {kind} are {got}; wanted uint8 {wanted}: convert to 8-bit RGB first")


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of a conversation.

    Attributes:
        role: who speaks.
        content: texts, and None where the next of the record's media stands.
    """

    role: Literal["system", "user", "assistant"]
    content: tuple[str | None, ...]


def spoken(turns: Sequence[Turn]) -> str:
    r"""The text of a conversation without its media, one turn after the other.

    Example:
        >>> from fairgrpo_jax.data.record import Turn, spoken
        >>> spoken([Turn("system", ("Be brief.",)), Turn("user", ("Before: ", None, " after: ", None))])
        'Be brief.\nBefore:  after:'
    """
    texts = ("".join(part for part in turn.content if part is not None).strip() for turn in turns)
    return "\n".join(text for text in texts if text)


@dataclass(frozen=True, slots=True)
class Record:
    """A question about a patient's images, with the answer and what is known about the patient.

    Attributes:
        uid: id, unique over all datasets, by convention ``"<dataset>/<row>"``.
        dataset: name of the dataset; rewards and fairness statistics are kept per dataset.
        modality: free text, such as ``"ultrasound"``.
        media: the images and videos, in order.
        question: the text of the question, with ``turns`` that of all turns; it never mentions sex or age.
        answer: the reference answer; several labels are joined by ``", "``.
        choices: the possible labels; empty for an open question.
        patient: patient id, the unit of the split; records of a patient are never on both sides of it.
        sex: ``"F"``, ``"M"`` or None for unknown.
        age: years, or None for unknown.
        extra: other data of the owner as strings, including further attributes ("race", "skin_type"); "" if unknown.
        split: the split that the record was loaded from.
        finding: the text of a supervised target inside ``<think>``.
        turns: the conversation up to the user's last turn, with every medium in its place; none: one turn of the user,
            the media and then the question.

    Raises:
        ValueError: for turns that have more or fewer places than there are media, say something else than the question,
            or do not end with the user.
    """

    uid: str
    dataset: str
    modality: str
    media: tuple[Media, ...]
    question: str
    answer: str
    choices: tuple[str, ...]
    patient: str
    sex: Literal["F", "M"] | None
    age: float | None
    extra: Mapping[str, str]
    split: str
    finding: str = ""
    turns: tuple[Turn, ...] = ()

    def __post_init__(self):
        if not self.turns:
            return
        places = sum(turn.content.count(None) for turn in self.turns)
        if places != len(self.media):
            raise ValueError(
                f"{self.uid}: the turns have {places} places for media, the record {len(self.media)} media"
            )
        if self.turns[-1].role != "user":
            raise ValueError(f"{self.uid}: the last turn is of the {self.turns[-1].role}; wanted one of the user")
        if self.question != spoken(self.turns):
            raise ValueError(f"{self.uid}: the turns do not say the question; pass question=spoken(turns)")


def without_medium(record: Record, index: int) -> Record:
    """A record that lacks one of its media, which leaves its place too.

    Example:
        >>> from pathlib import Path
        >>> from fairgrpo_jax.data.record import Media, Record, Turn, without_medium
        >>> pair = tuple(Media("image", Path(name)) for name in ("a.png", "b.png"))
        >>> record = Record("demo/1", "demo", "X-ray", pair, "Old: New:", "Nodule", (), "p1", None, None, {}, "train",
        ...                 turns=(Turn("user", ("Old:", None, " New:", None)),))
        >>> without_medium(record, 0).turns
        (Turn(role='user', content=('Old:', ' New:', None)),)
    """
    media = (*record.media[:index], *record.media[index + 1 :])
    turns, left = list(record.turns), index
    for number, turn in enumerate(turns):
        places = [place for place, part in enumerate(turn.content) if part is None]
        if 0 <= left < len(places):
            content = (*turn.content[: places[left]], *turn.content[places[left] + 1 :])
            turns[number] = replace(turn, content=content)
        left -= len(places)
    return replace(record, media=media, turns=tuple(turns))


class Source(Protocol):
    """A finite, ordered dataset: ``len(source)``, ``source[i]``, and all records at once; no media are decoded."""

    @property
    def records(self) -> Sequence[Record]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


@dataclass(frozen=True)
class RecordList:
    """The plain ``Source``: records in memory, with their media on disk (or small ones in memory).

    Attributes:
        records: in the owner's order.
        left_out: by reason, the number of the owner's rows without a record, or with an incomplete one.
        notes: sentences about how the owner's files were read.
    """

    records: Sequence[Record]
    left_out: Mapping[str, int] = field(default_factory=dict, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __repr__(self) -> str:  # Grain prints its sources; keep this short
        return f"RecordList({len(self)} records{f', first {self.records[0].uid}' if len(self) else ''})"


def conversation(
    record: Record, *, instruction: str = "", list_choices: bool = True, letters: bool = False
) -> list[dict[str, Any]]:
    r"""Renders the question in Hugging Face chat format: the record's turns, or one of the user with the media first.

    Args:
        record: the record.
        instruction: last line of the user's last turn, e.g. how to format the answer.
        list_choices: whether to list the choices before it, one per line.
        letters: whether to write ``A: `` and so on before them.

    Raises:
        ValueError: for more than 26 choices with letters.

    Example:
        >>> from pathlib import Path
        >>> from fairgrpo_jax.data.record import Media, Record, conversation
        >>> record = Record("demo/1", "demo", "X-ray", (Media("image", Path("a.png")),), "What is seen?",
        ...                 "Nodule", ("Normal", "Nodule"), "p1", "F", 61.0, {}, "train")
        >>> conversation(record, instruction="Think first.")[0]["content"]
        [{'type': 'image'}, {'type': 'text', 'text': 'What is seen?\nNormal\nNodule\nThink first.'}]
    """
    turns = record.turns or (Turn("user", (*(None for _ in record.media), record.question)),)
    kinds = iter(medium.kind for medium in record.media)
    messages = []
    for turn in turns:
        content = [{"type": next(kinds)} if part is None else {"type": "text", "text": part} for part in turn.content]
        messages.append({"role": turn.role, "content": content})
    choices = record.choices if list_choices else ()
    if letters and len(choices) > len(LETTERS):
        raise ValueError(f"record {record.uid} has {len(choices)} choices; wanted at most {len(LETTERS)} with letters")
    named = [f"{letter}: {choice}" for letter, choice in zip(LETTERS, choices, strict=False)] if letters else choices
    lines = [*named, *([instruction] if instruction else ())]
    if lines:
        text = "".join(f"\n{line}" for line in lines)
        last = messages[-1]["content"]
        if last and last[-1]["type"] == "text":
            text = last.pop()["text"] + text
        last.append({"type": "text", "text": text})
    return messages


def target(record: Record, *, plain: bool = False) -> str:
    r"""Renders the supervised completion, ``<think>finding</think>\boxed{answer}``, without the end token.

    Args:
        record: the record.
        plain: the answer as it is instead, without thought and box.

    Example:
        >>> from fairgrpo_jax.data.record import Record, target
        >>> record = Record("demo/1", "demo", "X-ray", (), "What is seen?", "Nodule", (), "p1", None, None, {}, "train",
        ...                 finding="focal")
        >>> print(target(record))
        <think>focal</think>\boxed{Nodule}
    """
    return record.answer if plain else rf"<think>{record.finding}</think>\boxed{{{record.answer}}}"
