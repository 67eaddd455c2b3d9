"""VQA-RAD: 2,248 questions by clinicians about 315 radiology images.

Lau et al., Scientific Data 5, 2018, doi 10.1038/sdata.2018.251. The official split is by question: the images of its
test set are also in its training set, with other questions. ``split_by="image"`` separates the two sides.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from fairgrpo_jax.data.about import About
from fairgrpo_jax.data.images import check_split
from fairgrpo_jax.data.record import Media, Record, RecordList
from fairgrpo_jax.data.rows import inside, read_json, text
from fairgrpo_jax.data.splits import by_patient


SPLITS = ("train", "test")
ABOUT = About(
    "vqa_rad",
    "VQA-RAD",
    "https://osf.io/89kps",
    "CC0 1.0",
    "VQA_RAD Dataset Public.json and the folder VQA_RAD Image Folder",
    note="In the official split all test images occur in training; split_by='image' keeps them apart. No demographics.",
    published={"records/train": 1797, "records/test": 451, "patients/test": 203},
    shared=(("train", "test"),),  # the owners' split, kept as it is
)
INTRO = "This is a radiology image."
YES_NO = ("Yes", "No")
HELD_OUT = 0.2  # share of the images, with split_by="image"

_KEYS = ("qid", "phrase_type", "image_name", "question", "answer", "answer_type")
_SPLIT_OF = {"freeform": "train", "para": "train", "test_freeform": "test", "test_para": "test"}
_TYPOS = {"ATRIB": "ATTRIB", "PRSE": "PRES"}


def load(
    root: str | Path, *, split: Literal["train", "test"], split_by: Literal["official", "image"] = "official"
) -> RecordList:
    """One record per question about an image.

    Args:
        root: the folder with ``VQA_RAD Dataset Public.json`` and ``VQA_RAD Image Folder``.
        split: ``"train"`` or ``"test"``.
        split_by: ``"official"``: the owners' split, 1,797 and 451 questions. ``"image"``: all questions, with a fifth
            of the images held out by the hash of their names; no image is on both sides.

    Returns:
        A ``Source`` in the order of the file. ``patient`` is the image (of one patient each). Closed questions answered
        with yes or no have the choices ``Yes`` and ``No``, whatever the case in the file; all others are open,
        including those of closed type (``extra["answer_type"]``), whose question lists the alternatives. ``extra`` also
        holds ``organ``, ``question_type`` (owners' misspellings corrected), ``phrase_type``, and ``linked``, the other
        version of a paraphrase.

    Raises:
        ValueError: for missing files, all named; bad rows, all named; an unknown split.

    Source:
        Others report 3,064 training questions because they count the template questions (``question_frame``) as
        separate rows; here one row of the file is one question.

    Example:
        ``load("VQA_RAD", split="test")[0].question``
    """
    check_split(split, SPLITS, ABOUT.title)
    if split_by not in ("official", "image"):
        raise ValueError(f"split_by is {split_by!r}; wanted 'official' or 'image'")
    table, images = ABOUT.require(
        root, "VQA_RAD Dataset Public.json", ("VQA_RAD Image Folder", "VQA_RAD_Image_Folder", "images")
    )
    rows, made, seen = read_json(table, _KEYS), [], set()
    for number, row in rows:
        try:
            record = _record(row, images)
            if record.uid in seen:
                raise ValueError(f"qid {row['qid']} is there twice")
            made.append(record)
            seen.add(record.uid)
        except ValueError as error:
            rows.problems.add(number, str(error))
    if split_by == "official":
        return RecordList(tuple(record for record in made if record.split == split))
    held_out = by_patient([record.patient for record in made], fraction=HELD_OUT, seed=0)
    return RecordList(
        tuple(
            dataclasses.replace(record, split=split)
            for record, out in zip(made, held_out, strict=True)
            if out == (split == "test")
        )
    )


def _record(row: dict, images: Path) -> Record:
    phrase, kind = text(row, "phrase_type").lower(), text(row, "answer_type").upper()
    if phrase not in _SPLIT_OF:
        raise ValueError(f"phrase_type is {row['phrase_type']!r}; wanted one of {', '.join(_SPLIT_OF)}")
    if kind not in ("OPEN", "CLOSED"):
        raise ValueError(f"answer_type is {row['answer_type']!r}; wanted OPEN or CLOSED")
    image, answer = inside(text(row, "image_name")), text(row, "answer")
    yes_no = kind == "CLOSED" and answer.lower() in ("yes", "no")
    types = [part.strip().upper() for part in text(row, "question_type", empty=True).split(",")]
    return Record(
        uid=f"vqa_rad/{text(row, 'qid')}",
        dataset="vqa_rad",
        modality="radiology",
        media=(Media("image", path=images / image),),
        question=f"{INTRO}\n{text(row, 'question')}",
        answer=answer.capitalize() if yes_no else answer,
        choices=YES_NO if yes_no else (),
        patient=image.stem,
        sex=None,
        age=None,
        extra={
            "answer_type": kind,
            "question_type": ", ".join(_TYPOS.get(name, name) for name in types),
            "organ": text(row, "image_organ", empty=True).upper(),
            "phrase_type": phrase,
            "linked": text(row, "qid_linked_id", empty=True),
        },
        split=_SPLIT_OF[phrase],
    )
