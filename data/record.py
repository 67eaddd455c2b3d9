"""The one record every dataset is mapped to, and its two renderings: what the model is asked, what it should say."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np


@dataclass(frozen=True, eq=False, slots=True)
class Media:
    """One image or video, on disk or in memory; ``data.media`` decodes it when asked.

    Exactly one of ``path``, ``frames`` and ``pixels`` says where it is.

    Attributes:
        kind: ``"image"`` or ``"video"``.
        path: an image, a DICOM file (kind ``"image"``), a video, or with ``member`` a zip archive or prepared folder.
        member: name inside the archive; ``"!"`` between nested archives, as in
            ``"images/imgs_part_1.zip!imgs_part_1/PAT_1.png"``. For a prepared folder see ``prepared.contents``.
        frames: image files of a video that is kept as frames, in order, repeats allowed.
        num_frames: how many frames of a video the model sees; None means all of them.
        fps: frames a second of ``frames``, of a video in ``pixels``, or of frames in a prepared folder (a video file
            tells its own).
        window: how a DICOM file becomes 8 bits: ``"voi"`` (the default, the viewer's window) or ``"minmax"``.
        box: (frame, x1, y1, x2, y2), drawn before any resizing: index of the frame among all frames of the video (0 for
            an image), corners in pixels of the file.
        pixels: uint8 RGB, (H, W, 3) for an image and (F, H, W, 3) for a video.

    Raises:
        ValueError: none or several of ``path``, ``frames`` and ``pixels``; pixels of another shape or type; a video of
            frames or in memory without ``fps``; a ``member`` without ``path``; another window; a box that is none.
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
class Record:
    """One question about one patient's images, with the answer and what is known of the patient.

    Attributes:
        uid: unique over all datasets, by convention ``"<dataset>/<row>"``.
        dataset: name of the dataset; rewards and fairness statistics are kept for each.
        modality: free word, such as ``"ultrasound"``.
        media: what is shown, in order.
        question: the text asked; it never tells sex or age.
        answer: the reference; several labels are joined by ``", "``.
        choices: the labels to choose from; empty for an open question.
        patient: unit of the split. Records of one patient are never on both sides of it.
        sex: ``"F"``, ``"M"`` or None for unknown.
        age: years, or None for unknown.
        extra: what else the owner tells, as strings, further attributes ("race", "skin_type") too; "" for unknown.
        split: the split the record was loaded as.
        finding: what a supervised target says inside ``<think>``.
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


class Source(Protocol):
    """A finite, ordered dataset: ``len(source)``, ``source[i]``, and all records at once; no media is decoded."""

    @property
    def records(self) -> Sequence[Record]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


@dataclass(frozen=True)
class RecordList:
    """The plain ``Source``: records in memory, their media still on disk (or already small enough to hold).

    Attributes:
        records: in the owner's order.
        left_out: by reason, how many of the owner's rows made no record or a record that lacks something.
    """

    records: tuple[Record, ...]
    left_out: Mapping[str, int] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __repr__(self) -> str:  # Grain prints its sources; twelve thousand records are no message
        return f"RecordList({len(self)} records of {', '.join(sorted({r.dataset for r in self.records}))})"


def conversation(record: Record, *, instruction: str = "", list_choices: bool = True) -> list[dict[str, Any]]:
    r"""The question as one user turn in Hugging Face chat format: media first, then the text.

    Args:
        record: what to ask.
        instruction: last line of the text, such as how to format the answer.
        list_choices: write one choice a line under the question.

    Example:
        >>> from pathlib import Path
        >>> from fairgrpo_jax.data.record import Media, Record, conversation
        >>> record = Record("demo/1", "demo", "X-ray", (Media("image", Path("a.png")),), "What is seen?",
        ...                 "Nodule", ("Normal", "Nodule"), "p1", "F", 61.0, {}, "train")
        >>> conversation(record, instruction="Think first.")[0]["content"]
        [{'type': 'image'}, {'type': 'text', 'text': 'What is seen?\nNormal\nNodule\nThink first.'}]
    """
    lines = [record.question, *(record.choices if list_choices else ()), *([instruction] if instruction else ())]
    parts = [{"type": media.kind} for media in record.media]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "\n".join(lines)}]}]


def target(record: Record) -> str:
    r"""The supervised completion, ``<think>finding</think>\boxed{answer}``, without the end token.

    Example:
        >>> from fairgrpo_jax.data.record import Record, target
        >>> record = Record("demo/1", "demo", "X-ray", (), "What is seen?", "Nodule", (), "p1", None, None, {}, "train",
        ...                 finding="focal")
        >>> print(target(record))
        <think>focal</think>\boxed{Nodule}
    """
    return rf"<think>{record.finding}</think>\boxed{{{record.answer}}}"
