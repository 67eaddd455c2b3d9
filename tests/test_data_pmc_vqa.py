"""PMC-VQA in its owners' form: both versions, figures in zips, letters and choices as they come, the articles."""

import random

import numpy as np
import pytest
from hypothesis import given, settings

from fairgrpo_jax import data
from fairgrpo_jax.data import media, splits
from fairgrpo_jax.data.datasets import pmc_vqa
from tests.dataset_fixtures import damage, images, pmc_vqa as fixture


ORGANS = ("Lung", "Liver", "Kidney", "Spleen")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return fixture.write(tmp_path_factory.mktemp("pmc_vqa"))


@pytest.fixture
def change(tmp_path):
    """Writes the folder with another table."""

    def write(name, header, rows, end="\n", start=""):
        fixture.write(tmp_path)
        (tmp_path / name).write_text(start + fixture.table(header, rows, end=end), encoding="utf-8", newline="")
        return tmp_path

    return write


def test_version_1(root):
    train = data.load("pmc_vqa", root, split="train")
    told = {r.uid: (r.patient, r.answer, r.choices, r.extra["letter"], r.extra["answer_text"]) for r in train.records}
    assert told == {
        "pmc_vqa/1/train/2": ("PMC1000001", "Liver", ORGANS, "B", ""),
        "pmc_vqa/1/train/4": ("PMC1000001", "A time", ("Tissue", "Tone", "A time", "C:N ratio"), "C", ""),
        "pmc_vqa/1/train/5": ("PMC1000002", "Top", ("Top", "Below"), "A", "none of them"),
        "pmc_vqa/1/train/6": ("PMC1000005", "Kidney", ORGANS, "C", ""),
    }
    assert train[0].question == "This is a figure from a medical article.\nWhich organ, in the centre, is bright?"
    assert train[1].question.endswith('\nWhat does "T2" stand for?')
    assert {(r.sex, r.age, r.split, r.dataset) for r in train.records} == {(None, None, "train", "pmc_vqa")}
    test, clean = (data.load("pmc_vqa", root, split=split) for split in ("test", "test_clean"))
    assert [(r.uid, r.answer) for r in test.records] == [("pmc_vqa/1/test/2", "Spleen"), ("pmc_vqa/1/test/3", "Lung")]
    assert [(r.uid, r.answer) for r in clean.records] == [("pmc_vqa/1/test_clean/2", "Lung")]


def test_version_2(root):
    train = data.load("pmc_vqa", root, split="train", version=2)
    assert [(r.uid, r.answer, r.choices) for r in train.records] == [
        ("pmc_vqa/2/train/2", "Liver", ORGANS),
        ("pmc_vqa/2/train/5", "Heart", ("Heart", "Aorta, type A: thoracic")),
    ]
    assert train[0].extra == {"letter": "B", "caption": "(a) A slice, enlarged.", "answer_text": ""}
    assert [r.answer for r in data.load("pmc_vqa", root, split="test", version=2).records] == ["Spleen"]


@pytest.mark.parametrize("zipped", [True, False])
def test_figures_where_they_lie(tmp_path, zipped):
    root = fixture.write(tmp_path, zipped=zipped)
    for version in (1, 2):
        for record in pmc_vqa.load(root, split="train", version=version).records:
            (image,) = media.decode_record(record).images
            seeds = [n for n, name in enumerate(fixture.FIGURES) if name.startswith(record.patient)]
            assert image.shape[0] == 30 and image.shape[1] - 20 in seeds


def test_a_folder_inside_the_folder(tmp_path):
    root = fixture.write(tmp_path, zipped=False)
    (root / "images").rename(root / "inner")
    (root / "images").mkdir()
    (root / "inner").rename(root / "images/images")
    (image,) = media.decode_record(pmc_vqa.load(root, split="train")[1]).images
    assert image.shape == (30, 25, 3)


def test_a_figure_that_is_not_in_the_zip(tmp_path):
    root = fixture.write(tmp_path)
    (root / "images.zip").write_bytes(images.archive({"images/PMC1_F1.jpg": b""}))
    records = pmc_vqa.load(root, split="train").records  # found when it is opened, or by the check
    with pytest.raises(ValueError, match=r"record pmc_vqa/1/train/2: .*images\.zip has no member PMC1000001_F1\.jpg"):
        media.decode_record(records[0])


def test_archives_that_cannot_be(tmp_path):
    root = fixture.write(tmp_path)
    (root / "images.zip").write_bytes((root / "images.zip").read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"archive .*images\.zip is broken .*download it again"):
        pmc_vqa.load(root, split="train")
    (root / "images.zip").write_bytes(images.archive({"a/PMC1_F1.jpg": b"", "b/PMC1_F1.jpg": b""}))
    with pytest.raises(ValueError, match=r"has a/PMC1_F1\.jpg and b/PMC1_F1\.jpg"):
        pmc_vqa.load(root, split="train")


def test_other_spellings_of_the_columns(change):
    header = ("Extra", *(name.replace("Answer", "Anwser") for name in reversed(fixture.V1)))
    rows = [("", *reversed(row)) for row in fixture.TRAIN]
    records = pmc_vqa.load(change("train.csv", header, rows, "\r\n", "\ufeff"), split="train").records
    assert [r.answer for r in records] == ["Liver", "A time", "Top", "Kidney"]


def test_an_answer_in_words_alone(change):
    rows = [(*row[:2], text, *row[3:7]) for row, text in zip(fixture.TRAIN[:2], (" B:Liver ", "a time"), strict=True)]
    records = pmc_vqa.load(change("train.csv", fixture.V1[:-1], rows), split="train").records
    assert [(r.answer, r.extra["letter"]) for r in records] == [("Liver", "B"), ("A time", "C")]


BAD = (
    fixture.one("PMC1_F1.jpg", "Which?", "Heart", "E"),
    fixture.one("PMC1_F1.jpg", "Which?", "Top", "", ("A:Top", "B:top", "C:Left", "D:Right")),
    fixture.one("PMC1_F1.jpg", "Which?", "", "D", ("A:Top", "B:Below", "C:Left", "D: ")),
    fixture.one("F1.jpg", "Which?", "Liver", "B"),
    fixture.one("PMC1_F1.jpg", " ", "Liver", "B"),
    ("PMC1_F1.jpg", "Which?", "Liver", "B"),
)


def test_bad_rows_are_refused_or_counted(change):
    root = change("test.csv", fixture.V1, (*BAD, *fixture.TEST))
    with pytest.raises(ValueError) as error:
        pmc_vqa.load(root, split="test")
    for text in (
        "test.csv: 6 bad rows",
        "line 7: 4 fields, the header has 8",
        "line 2: the answer is 'E', in words 'Heart'; wanted A, B, C or D",
        "line 3: the answer is '', in words 'Top'",
        "line 4: Choice D, the right one, is empty",
        "line 5: Figure_path is 'F1.jpg'; wanted a name that begins with PMC",
        "line 6: Question is empty",
        "damaged='leave_out' goes on without them",
    ):
        assert text in str(error.value)
    test = pmc_vqa.load(root, split="test", damaged="leave_out")
    assert [r.answer for r in test.records] == ["Spleen", "Lung"]
    assert test.left_out == {"damaged rows": 6}


def test_a_bad_letter_of_version_2(change):
    root = change("train_2.csv", fixture.V2, [*fixture.TRAIN_2, fixture.two(2, "PMC1_F1.jpg", "Which?", "F")])
    with pytest.raises(ValueError, match=r"train_2\.csv: 1 bad rows: line 7: the answer is 'F'"):
        pmc_vqa.load(root, split="train", version=2)


def test_articles_are_on_one_side_only_if_asked(change):
    rows = [fixture.one(f"PMC{n % 50}_F{n}.jpg", f"Question {n}?", "Liver", "B") for n in range(300)]
    root = change("train.csv", fixture.V1, rows[:200])
    (root / "test.csv").write_text(fixture.table(fixture.V1, rows[200:]))
    (root / "test_clean.csv").write_text(fixture.table(fixture.V1, rows[200:240]))
    official = [pmc_vqa.load(root, split=split).records for split in ("train", "test")]
    with pytest.raises(ValueError, match="50 patients are in both .*pmc_vqa patient PMC0"):
        splits.check_leakage(*official)
    (shared,) = splits.leakage([record for side in official for record in side])
    assert len(shared.patients) == 50
    parts = {
        split: pmc_vqa.load(root, split=split, split_by="article").records for split in ("train", "test", "test_clean")
    }
    splits.check_leakage(parts["train"], parts["test"])
    splits.check_leakage(parts["train"], parts["test_clean"])
    assert len(parts["train"]) + len(parts["test"]) == 300
    assert 0 < len(parts["test_clean"]) < 40 and 0 < len(parts["test"]) < 150
    assert all({r.split for r in part} == {split} for split, part in parts.items())
    sides = {r.question: split for split in ("train", "test") for r in parts[split]}
    random.Random(2).shuffle(rows)
    root = change("train.csv", fixture.V1, rows[:150])
    (root / "test.csv").write_text(fixture.table(fixture.V1, rows[150:]))
    for split in ("train", "test"):
        again = pmc_vqa.load(root, split=split, split_by="article").records
        assert {r.question for r in again} == {question for question, side in sides.items() if side == split}


def test_all_that_is_missing_is_named_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"missing train\.csv, test\.csv, images\.zip or images; get the dataset from"):
        pmc_vqa.load(tmp_path, split="train", split_by="article")
    with pytest.raises(ValueError, match=r"missing test_2\.csv or test2\.csv, images_2\.zip or images2\.zip or"):
        pmc_vqa.load(tmp_path, split="test", version=2)


def test_a_missing_column(change):
    root = change("train.csv", ("Figure", *fixture.V1[1:]), fixture.TRAIN)
    with pytest.raises(ValueError, match=r"train\.csv: missing columns Figure_path; it has Figure, Question"):
        pmc_vqa.load(root, split="train")


@pytest.mark.parametrize(
    "options,message",
    [
        ({"split": "val"}, "split is 'val'"),
        ({"version": 3}, "version is 3; wanted 1 or 2"),
        ({"split": "test_clean", "version": 2}, "split 'test_clean' is of version 1"),
        ({"split_by": "image"}, "split_by is 'image'"),
        ({"damaged": "skip"}, "damaged is 'skip'"),
    ],
)
def test_options_that_cannot_be(root, options, message):
    with pytest.raises(ValueError, match=message):
        pmc_vqa.load(root, **{"split": "train", **options})


@settings(deadline=None, derandomize=True)
@given(damage.table(fixture.TRAIN))
def test_damage_is_an_error_or_leaves_the_other_rows_alone(tmp_path_factory, drawn):
    index, rows = drawn
    root = tmp_path_factory.getbasetemp() / "pmc_vqa_damaged"
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "train.csv").write_text(fixture.table(fixture.V1, rows), encoding="utf-8", newline="")
    right = zip(fixture.TRAIN, ("Liver", "A time", "Top", "Kidney"), strict=True)
    right = {" ".join(row[1].split()): answer for n, (row, answer) in enumerate(right) if n != index}
    try:
        records = pmc_vqa.load(root, split="train").records
    except ValueError as error:
        assert "train.csv" in str(error)
        return
    assert right.items() <= {r.question.split("\n")[1]: r.answer for r in records}.items()


def test_a_file_cut_off_anywhere_is_an_error_or_shorter(tmp_path):
    whole = fixture.write(tmp_path).joinpath("train.csv").read_bytes()
    right = {r.question: r.answer for r in pmc_vqa.load(tmp_path, split="train").records}
    for size in np.random.default_rng(0).integers(0, len(whole), 60):
        (tmp_path / "train.csv").write_bytes(whole[:size])
        try:
            found = {r.question: r.answer for r in pmc_vqa.load(tmp_path, split="train").records}
        except ValueError as error:
            assert "train.csv" in str(error)
        else:
            assert found.items() <= right.items()
