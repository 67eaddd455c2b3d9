"""PMC-VQA: multiple-choice questions about figures of open-access articles, written by a language model from captions.

Zhang et al., arXiv 2305.10415. Version 1 has 226,946 questions (all figures), version 2 186,033 (figures of one panel).
The owners split by question, so articles and even figures are on both sides; ``split_by="article"`` separates them.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from fairgrpo_jax.data import archives
from fairgrpo_jax.data.about import About
from fairgrpo_jax.data.images import check_split
from fairgrpo_jax.data.record import Media, Record, RecordList
from fairgrpo_jax.data.splits import by_patient
from fairgrpo_jax.data.tables import read_csv


SPLITS = ("train", "test", "test_clean")
ABOUT = About(
    "pmc_vqa",
    "PMC-VQA",
    "https://huggingface.co/datasets/xmcmic/PMC-VQA",
    "CC BY-SA 4.0",
    "version 1: train.csv, test.csv, test_clean.csv, images.zip; version 2: train_2.csv, test_2.csv, images_2.zip; the "
    "zip files stay as they are",
    note="The official split shares articles between training and test; split_by='article' keeps them apart. The right "
    "choice is B or C in 62 % (version 1) to 74 % (version 2) of the questions. No demographics.",
    published={"records/train": 176948, "records/test": 50000, "records/test_clean": 2000},
    shared=(("train", "test"), ("train", "test_clean"), ("test", "test_clean")),  # the owners' split
)
INTRO = "This is a figure from a medical article."
LETTERS = ("A", "B", "C", "D")
HELD_OUT = 0.2  # share of the articles, with split_by="article"

_FILES: Mapping[tuple[int, str], tuple[str, ...]] = {
    (1, "train"): ("train.csv",),
    (1, "test"): ("test.csv",),
    (1, "test_clean"): ("test_clean.csv",),
    (2, "train"): ("train_2.csv", "train2.csv"),
    (2, "test"): ("test_2.csv", "test2.csv"),
}
_IMAGES = {1: ("images.zip", "images"), 2: ("images_2.zip", "images2.zip", "figures", "images_2")}
_CHOICES = tuple(f"Choice {letter}" for letter in LETTERS)
_PREFIX = re.compile(r"^[A-D]\s*:\s*")
_ARTICLE = re.compile(r"PMC\d+", re.ASCII)


def load(
    root: str | Path,
    *,
    split: Literal["train", "test", "test_clean"],
    version: Literal[1, 2] = 1,
    split_by: Literal["official", "article"] = "official",
    damaged: Literal["refuse", "leave_out"] = "refuse",
) -> RecordList:
    """One record per question about a figure, with up to four choices.

    Args:
        root: the folder with the CSV files and the zip of the figures, which is read in place (or unpacked beside).
        split: ``"train"``, ``"test"``, or ``"test_clean"``, 2,000 manually checked test questions of version 1.
        version: 1: 176,948 and 50,000 questions; 2: 152,603 and 33,430.
        split_by: ``"official"``: the owners' split. ``"article"``: all questions of the version, with a fifth of the
            articles held out by the hash of their PubMed Central numbers; for ``"test_clean"``, the questions of these
            articles.
        damaged: treatment of rows whose question or answer cannot be determined (see below): one error that lists them,
            or excluded and counted in ``left_out``. Version 1 as published may have some.

    Returns:
        A ``Source`` in the order of the file. ``answer`` is the text of the right choice without its letter, as in
        ``choices``; empty and duplicate choices are removed. ``patient`` is the article, ``PMC1064097``. ``extra``:
        ``letter``, the right choice in the file; ``caption`` (version 2); ``answer_text``, the owners' answer if it is
        not the text of the right choice.

        The letter determines the right choice. If it is not A to D (a quotation mark, in ten test questions of version
        1), it is the choice whose text is the owners' answer, if there is exactly one.

    Raises:
        ValueError: for missing files, all named; a missing column; bad rows, all named; a member of the zip that occurs
            in two folders; unknown options.

    Source:
        The paper trains on letters and matches free text to the nearest choice, which is not done here.

    Example:
        ``load("PMC-VQA", split="test", version=2)[0].choices``
    """
    _check(split, version, split_by, damaged)
    sides = (split,) if split_by == "official" or split == "test_clean" else ("train", "test")
    *tables, images = ABOUT.require(root, *(_FILES[version, side] for side in sides), _IMAGES[version])
    media, left_out = _media(images), Counter()
    made = [
        record
        for side, table in zip(sides, tables, strict=True)
        for record in _records(table, f"pmc_vqa/{version}/{side}", split, media, damaged, left_out)
    ]
    if split_by == "article":
        held_out = by_patient([record.patient for record in made], fraction=HELD_OUT, seed=0)
        made = [record for record, out in zip(made, held_out, strict=True) if out == (split != "train")]
    return RecordList(tuple(made), dict(left_out))


def _check(split: str, version: int, split_by: str, damaged: str) -> None:
    check_split(split, SPLITS, ABOUT.title)
    if version not in (1, 2):
        raise ValueError(f"version is {version!r}; wanted 1 or 2")
    if (version, split) not in _FILES:
        raise ValueError("split 'test_clean' is of version 1; pass version=1, or split='test'")
    if split_by not in ("official", "article"):
        raise ValueError(f"split_by is {split_by!r}; wanted 'official' or 'article'")
    if damaged not in ("refuse", "leave_out"):
        raise ValueError(f"damaged is {damaged!r}; wanted 'refuse' or 'leave_out'")


def _media(images: Path) -> Callable[[str], Media]:
    """Returns a function from the name of a figure to its place; for a missing one, the place where it is expected."""
    if images.is_dir():
        folder = images / images.name if (images / images.name).is_dir() else images  # the zip contains a folder
        return lambda name: Media("image", path=folder / name)
    members: dict[str, str] = {}
    for name in archives.members(images):
        if name.startswith("__MACOSX/"):
            continue
        figure = name.rsplit("/", 1)[-1]
        if members.setdefault(figure, name) != name:
            raise ValueError(f"archive {images} has {members[figure]} and {name}; wanted one figure of each name")
    return lambda name: Media("image", path=images, member=members.get(name, name))


def _records(
    path: Path, name: str, split: str, media: Callable[[str], Media], damaged: str, left_out: Counter[str]
) -> list[Record]:
    table = read_csv(
        path,
        ("Figure_path", "Question", "Answer", *_CHOICES),
        optional=("Answer_label", "Caption"),
        aliases={"Answer": ("Anwser",), "Answer_label": ("Anwser_label",)},
    )
    labelled, made = "Answer_label" in table.columns, []
    try:
        for line, row in table:
            try:
                made.append(_record(row, f"{name}/{line}", split, media, labelled))
            except ValueError as error:
                table.problems.add(line, str(error))
    except ValueError as error:
        if damaged == "refuse":
            raise ValueError(f"{error}; damaged='leave_out' goes on without them") from error
        left_out["damaged rows"] += len(table.problems)
    return made


def _record(row: Mapping[str, str], uid: str, split: str, media: Callable[[str], Media], labelled: bool) -> Record:
    figure, question = row["Figure_path"].replace("\\", "/").rsplit("/", 1)[-1], _line(row["Question"])
    article = _ARTICLE.match(figure)
    if not article:
        raise ValueError(f"Figure_path is {row['Figure_path']!r}; wanted a name that begins with PMC and a number")
    if not question:
        raise ValueError("Question is empty")
    texts = [_PREFIX.sub("", _line(row[name]), count=1) for name in _CHOICES]
    told = _PREFIX.sub("", _line(row["Answer"]), count=1)
    letter = _letter(row["Answer_label" if labelled else "Answer"], told, texts)
    answer = texts[LETTERS.index(letter)]
    if not answer:
        raise ValueError(f"Choice {letter}, the right one, is empty")
    same = not labelled or told.casefold() == answer.casefold()
    return Record(
        uid=uid,
        dataset="pmc_vqa",
        modality="figure",
        media=(media(figure),),
        question=f"{INTRO}\n{question}",
        answer=answer,
        choices=tuple(dict.fromkeys(text for text in texts if text)),
        patient=article[0],
        sex=None,
        age=None,
        extra={"letter": letter, "caption": _line(row["Caption"]), "answer_text": "" if same else told},
        split=split,
    )


def _letter(label: str, told: str, texts: Sequence[str]) -> str:
    """The letter of the right choice: the label, or that of the only choice with the given text."""
    if label in LETTERS:
        return label
    fits = [letter for letter, text in zip(LETTERS, texts, strict=True) if text and text.casefold() == told.casefold()]
    if len({texts[LETTERS.index(letter)] for letter in fits}) != 1:
        raise ValueError(f"the answer is {label!r}, in words {told!r}; wanted A, B, C or D, or the text of one choice")
    return fits[0]


def _line(value: str) -> str:
    return " ".join(value.split())
