"""SLAKE 1.0: 14,028 questions in English and Chinese about 642 CT, MRI and X-ray images.

Liu et al., ISBI 2021, arXiv 2102.09542. The official split is by image within a language, but not across languages: 142
training images of one language are test images of the other, so ``lang="both"`` leaks.
"""

from collections import Counter
from pathlib import Path
from typing import Literal

from fairgrpo_jax.data.about import About
from fairgrpo_jax.data.images import check_split
from fairgrpo_jax.data.record import Media, Record, RecordList
from fairgrpo_jax.data.rows import inside, read_json, text


SPLITS = ("train", "validation", "test")
ABOUT = About(
    "slake",
    "SLAKE 1.0",
    "https://www.med-vqa.com/slake",
    "CC BY 4.0",
    "train.json, validate.json (or validation.json), test.json and imgs.zip, unpacked to imgs",
    note="English by default; both languages together put 142 images on both sides. One of the 4,919 English training "
    "questions has no answer and is left out. No demographics.",
    published={
        "records/train": 4918,
        "records/validation": 1053,
        "records/test": 1061,
        "patients/train": 450,
        "patients/validation": 96,
        "patients/test": 96,
    },
)
INTRO = {"en": "This is a medical image.", "zh": "这是一张医学图像。"}
YES_NO = ("Yes", "No")

_FILES = {"train": ("train.json",), "validation": ("validate.json", "validation.json"), "test": ("test.json",)}
_KEYS = ("img_name", "question", "answer", "q_lang", "answer_type", "qid")


def load(
    root: str | Path, *, split: Literal["train", "validation", "test"], lang: Literal["en", "zh", "both"] = "en"
) -> RecordList:
    """One record per question about an image.

    Args:
        root: the folder with the three JSON files and ``imgs``.
        split: ``"train"``, ``"validation"`` or ``"test"``: the owners' split. English has 4,919, 1,053 and 1,061
            questions, both languages 9,835, 2,099 and 2,094.
        lang: language of the questions.

    Returns:
        A ``Source`` in the order of the file. ``patient`` is the image. English closed questions answered with yes or
        no have the choices ``Yes`` and ``No``; all others are open, including those of closed type, whose question
        lists the alternatives. ``modality`` is ``"CT"``, ``"MRI"`` or ``"X-Ray"``. ``extra``: ``lang``,
        ``answer_type``, ``base_type`` ("vqa", or "kvqa" which needs knowledge beyond the image), ``content_type``,
        ``location``, ``triple``.

        A question without an answer is excluded and counted in ``left_out``: one English training question, qid 1622.

    Raises:
        ValueError: for missing files, all named; bad rows, all named; an unknown split or language.

    Example:
        ``load("Slake1.0", split="test")[0].question``
    """
    check_split(split, SPLITS, ABOUT.title)
    if lang not in ("en", "zh", "both"):
        raise ValueError(f"lang is {lang!r}; wanted 'en', 'zh' or 'both'")
    table, images = ABOUT.require(root, _FILES[split], "imgs")
    rows, made = read_json(table, _KEYS), {}
    for number, row in rows:
        try:
            record = _record(row, images, split)
            if record.uid in made:
                raise ValueError(f"qid {row['qid']} is there twice")
            made[record.uid] = record
        except ValueError as error:
            rows.problems.add(number, str(error))
    wanted = [record for record in made.values() if lang in (record.extra["lang"], "both")]
    answered = tuple(record for record in wanted if record.answer)
    left_out = Counter({"without an answer": len(wanted) - len(answered)})
    return RecordList(answered, dict(+left_out))


def _record(row: dict, images: Path, split: str) -> Record:
    language, kind = text(row, "q_lang").lower(), text(row, "answer_type").upper()
    if language not in INTRO:
        raise ValueError(f"q_lang is {row['q_lang']!r}; wanted en or zh")
    if kind not in ("OPEN", "CLOSED"):
        raise ValueError(f"answer_type is {row['answer_type']!r}; wanted OPEN or CLOSED")
    image, answer = inside(text(row, "img_name")), text(row, "answer", empty=True)
    yes_no = kind == "CLOSED" and answer.lower() in ("yes", "no")
    return Record(
        uid=f"slake/{text(row, 'qid')}",
        dataset="slake",
        modality=text(row, "modality", empty=True) or "radiology",
        media=(Media("image", path=images / image),),
        question=f"{INTRO[language]}\n{text(row, 'question')}",
        answer=answer.capitalize() if yes_no else answer,
        choices=YES_NO if yes_no else (),
        patient=image.parts[0],
        sex=None,
        age=None,
        extra={
            "lang": language,
            "answer_type": kind,
            "base_type": text(row, "base_type", empty=True),
            "content_type": text(row, "content_type", empty=True),
            "location": text(row, "location", empty=True),
            "triple": _triple(row.get("triple")),
        },
        split=split,
    )


def _triple(value: object) -> str:
    """Head, relation and tail of the required knowledge; "" if the owners give none."""
    if value is None:
        return ""
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise ValueError(f"triple is {value!r}; wanted a list of text")
    return "" if value[1:] == ["_", "_"] else ", ".join(value)
