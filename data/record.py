"""The one record every dataset is mapped to, and its two renderings: what the model is asked, what it should say."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np


@dataclass(frozen=True, eq=False)
class Media:
    """One image or video, on disk or in memory; ``data.media`` decodes it when asked.

    Attributes:
        kind: ``"image"`` or ``"video"``.
        path: the owner's file, or None.
        pixels: uint8 RGB, (H, W, 3) for an image and (F, H, W, 3) for a video, or None; exactly one of both is given.
        num_frames: how many frames of a video the model sees; None means all of them.
        fps: frames a second of a video held in memory (a file tells its own).

    Raises:
        ValueError: both or neither of ``path`` and ``pixels``; pixels of another shape or type; a video in memory
            without ``fps``.
    """

    kind: Literal["image", "video"]
    path: Path | None = None
    pixels: np.ndarray | None = field(default=None, repr=False)
    num_frames: int | None = None
    fps: float | None = None

    def __post_init__(self):
        if self.kind not in ("image", "video"):
            raise ValueError(f"media kind is {self.kind!r}; it is 'image' or 'video'")
        if (self.path is None) == (self.pixels is None):
            raise ValueError("media has a path or pixels, exactly one of them: pass path=... or pixels=...")
        if self.pixels is None:
            return
        rank = 3 if self.kind == "image" else 4
        if self.pixels.ndim != rank or self.pixels.shape[-1] != 3 or self.pixels.dtype != np.uint8:
            wanted = "(H, W, 3)" if rank == 3 else "(F, H, W, 3)"
            got = f"{self.pixels.dtype} {self.pixels.shape}"
            raise ValueError(f"pixels of a {self.kind} are {got}; wanted uint8 {wanted}: convert to 8-bit RGB first")
        if rank == 4 and not self.fps:
            raise ValueError("a video held in memory does not know its speed: pass fps=...")


@dataclass(frozen=True)
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
        extra: what else the owner tells, as strings.
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
    """The plain ``Source``: records in memory, their media still on disk (or already small enough to hold)."""

    records: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __repr__(self) -> str:  # Grain prints its sources; twelve thousand records are no message
        return f"RecordList({len(self)} records of {', '.join(sorted({r.dataset for r in self.records}))})"


def conversation(record: Record, *, instruction: str = "", list_choices: bool = True) -> list[dict]:
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
