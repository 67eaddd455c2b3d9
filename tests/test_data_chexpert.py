"""CheXpert in its owners' form: labels, the policies for uncertain ones, races, the batch folders."""

import sys

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from fairgrpo_jax import data
from fairgrpo_jax.data import media
from fairgrpo_jax.data.datasets import chexpert
from tests.dataset_fixtures import checks, chexpert as fixture


@pytest.fixture
def root(tmp_path):
    return fixture.write(tmp_path)


def answers(root, **options):
    return {r.uid.removeprefix("chexpert/"): r.answer for r in chexpert.load(root, **{"split": "train", **options})}


def test_records(root):
    train, valid = (chexpert.load(root, split=split) for split in chexpert.SPLITS)
    told = [(r.uid, r.patient, r.sex, r.age, r.answer) for r in train.records]
    assert told == [
        ("chexpert/train/patient70001/study1/view1_frontal", "patient70001", "F", 57.0, "No Finding, Support Devices"),
        ("chexpert/train/patient70002/study2/view1_frontal", "patient70002", "F", 74.0, "Lung Opacity, Fracture"),
        ("chexpert/train/patient70002/study1/view1_frontal", "patient70002", "F", 73.0, "Lung Opacity, Fracture"),
        ("chexpert/train/patient70003/study1/view1_frontal", "patient70003", "M", 38.0, "Edema"),
        ("chexpert/train/patient70004/study1/view1_frontal", "patient70004", None, 0.0, "Fracture"),
    ]
    assert train.left_out == {"no label is positive": 2} and valid.left_out == {"no label is positive": 1}
    assert train[1].extra == {
        "view": "Frontal",
        "projection": "AP",
        "study": "study2",
        "uncertain": "Enlarged Cardiomediastinum, Consolidation, Pneumonia",
        "race": "",
        "race_told": "",
        "ethnicity": "",
    }
    assert [(r.patient, r.sex, r.age, r.answer) for r in valid.records] == [
        ("patient74541", "M", 66.0, "Enlarged Cardiomediastinum, Cardiomegaly, Lung Opacity"),
        ("patient74542", "M", 62.0, "Support Devices"),
    ]
    assert train[0].choices == tuple(fixture.FINDINGS)
    checks.check_records("chexpert", root)


def test_policies_for_uncertain_labels(root):
    second, third, last = (f"train/patient7000{p}/study{s}/view1_frontal" for p, s in ((2, 2), (2, 1), (5, 1)))
    ones = answers(root, uncertain="ones")
    assert ones[second] == ("Enlarged Cardiomediastinum, Lung Opacity, Consolidation, Pneumonia, Fracture")
    assert ones[third] == "Lung Opacity, Lung Lesion, Fracture" and ones[last] == "Edema"
    ignore = chexpert.load(root, split="train", uncertain="ignore")
    assert [r.patient for r in ignore] == ["patient70001", "patient70003", "patient70004"]
    assert ignore.left_out == {"a label is uncertain": 3, "no label is positive": 1}


def test_views(root):
    assert len(answers(root, view="frontal")) == 5
    frontal = chexpert.load(root, split="train", view="frontal")
    assert frontal.left_out == {"not frontal": 1, "no label is positive": 1}
    assert answers(root, view="lateral") == {}
    table = root / "train.csv"
    table.write_text(table.read_text().replace("Female,73,Lateral,,,", "Female,73,Lateral,,1.0,"))
    assert answers(root, view="lateral") == {"train/patient70002/study1/view2_lateral": "No Finding"}


def test_images_are_decoded_when_asked(root):
    for record in data.load("chexpert", root, split="train").records:
        (image,) = media.decode_record(record).images
        with Image.open(root / f"{record.uid.removeprefix('chexpert/')}.jpg") as file:
            assert np.array_equal(image, np.repeat(np.asarray(file)[..., None], 3, axis=-1))
        assert image.shape == (32, 39, 3) and image.dtype == np.uint8


@pytest.mark.parametrize("prefix", ["CheXpert-v1.0", "CheXpert-v1.0-small"])
def test_the_folder_or_the_one_around_it(tmp_path, prefix):
    folder = fixture.write(tmp_path, prefix)
    for root in (tmp_path, folder):
        records = data.load("chexpert", root, split="valid").records
        assert [r.media[0].path for r in records] == [folder / "valid" / row[0] for row in fixture.VALID[:2]]


def test_batch_folders(tmp_path):
    fixture.write_batches(tmp_path)
    for split in ("train", "valid"):
        for record in data.load("chexpert", tmp_path, split=split).records:
            path = record.media[0].path
            assert path is not None and path.is_file() and path.parts[-3] == record.patient
    assert answers(tmp_path) == answers(fixture.write(tmp_path / "whole"))
    tables = tmp_path / "CheXpert-v1.0 batch 1 (validate & csv)"
    path = chexpert.load(tables, split="train")[0].media[0].path
    assert path is not None and path.is_file()


def races(root):
    return {
        r.patient: (r.extra["race"], r.extra["ethnicity"])
        for s in chexpert.SPLITS
        for r in chexpert.load(root, split=s)
    }


RACES = {
    "patient70001": ("Other", "Hispanic"),
    "patient70002": ("Asian", "Non-Hispanic"),
    "patient70003": ("White", "Non-Hispanic"),
    "patient70004": ("", ""),
    "patient74541": ("Pacific Islander", ""),
    "patient74542": ("", ""),  # not in the sheet
}


def test_race_from_a_table(root):
    (root / "CHEXPERT DEMO.csv").write_bytes(("\ufeff" + "\r\n".join(fixture.PEOPLE) + "\r\n").encode())
    assert races(root) == RACES
    (record, *_) = [r for r in chexpert.load(root, split="train") if r.patient == "patient70002"]
    assert record.extra["race_told"] == "Asian - Historical Conv"
    checks.check_records("chexpert", root)


@pytest.mark.parametrize(
    "told,race",
    [
        ("Black or African American", "Black"),
        ("Black, non-Hispanic", "Black"),
        ("American Indian or Alaska Native", "Native American"),
        ("Native American, Hispanic", "Native American"),
        ("Pacific Islander, non-Hispanic", "Pacific Islander"),
        ("Asian, Hispanic", "Asian"),
        ("White", "White"),
        ("Race and Ethnicity Unknown", ""),
        ("Unknown", ""),
        ("", ""),
    ],
)
def test_races_as_they_are_told(root, told, race):
    (root.parent / "CHEXPERT DEMO.csv").write_text(f'PATIENT,PRIMARY_RACE,ETHNICITY\npatient70001,"{told}",\n')
    assert chexpert.load(root.parent, split="train")[0].extra["race"] == race


def test_race_from_a_workbook(root):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for line in fixture.PEOPLE:
        cells = line.replace('"White, non-Hispanic"', "White; non-Hispanic").split(",")
        book.active.append([cell.replace(";", ",") or None for cell in cells])
    book.active.append([None] * 5)
    book.save(root / "CHEXPERT DEMO.xlsx")
    assert races(root) == RACES
    (root / "CHEXPERT DEMO.xlsx").write_bytes((root / "CHEXPERT DEMO.xlsx").read_bytes()[:2000])
    with pytest.raises(ValueError, match="CHEXPERT DEMO.xlsx is no whole workbook"):
        races(root)


def test_a_workbook_of_another_form(root):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["PATIENT", "GENDER"])
    book.save(root / "CHEXPERT DEMO.xlsx")
    with pytest.raises(ValueError, match="missing columns PRIMARY_RACE, ETHNICITY; it has PATIENT, GENDER"):
        races(root)


def test_a_workbook_without_its_reader(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (root / "CHEXPERT DEMO.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"pip install openpyxl, or save it as CHEXPERT DEMO\.csv"):
        races(root)


def test_races_that_disagree_are_unknown(root):
    rows = [*fixture.PEOPLE, "patient70003,Male,38.0,Black,Hispanic", fixture.PEOPLE[1]]
    (root / "CHEXPERT DEMO.csv").write_text("\n".join(rows) + "\n")
    assert races(root) == {**RACES, "patient70003": ("", "")}
    assert chexpert.load(root, split="valid").left_out["race told in two ways"] == 1


@pytest.mark.parametrize(
    "old,new,message",
    [
        ("patient70003/study1", "patient70003/study", "line 6: Path is 'CheXpert-v1.0-small/train/patient70003/study/"),
        ("train/patient70001", "valid/patient70001", "line 2: Path is 'CheXpert-v1.0-small/valid/patient70001"),
        ("Male,38", "male or so,41", "line 6: sex is 'male or so'"),
        ("Male,38", "Male,141", "line 6: age is '141'"),
        ("Male,38,Frontal", "Male,38,Front", "line 6: Frontal/Lateral is 'Front'"),
        (",1.0,,,,0.0,,,,\n", ",0.5,,,,0.0,,,,\n", "line 6: Edema is '0.5'; wanted 1.0, 0.0, -1.0 or nothing"),
        ("patient70003/study1", "patient70001/study1", "train/patient70001/study1/view1_frontal.jpg is also on line 2"),
    ],
)
def test_bad_rows_are_named(root, old, new, message):
    table = root / "train.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=f"train.csv: 1 bad rows.*{message}"):
        chexpert.load(root, split="train")


def test_all_bad_rows_at_once(root):
    table = root / "train.csv"
    table.write_text(table.read_text().replace("Female", "f?"))
    with pytest.raises(ValueError, match=r"train.csv: 4 bad rows: line 2: .*line 3: .*line 4: .*line 5: "):
        chexpert.load(root, split="train")


@pytest.mark.parametrize(
    "options,message",
    [
        ({"split": "test"}, "split is 'test'; CheXpert has 'train' and 'valid'"),
        ({"uncertain": "maybe"}, "uncertain is 'maybe'; wanted 'zeros', 'ones' or 'ignore'"),
        ({"view": "AP"}, "view is 'AP'; wanted 'all', 'frontal' or 'lateral'"),
    ],
)
def test_options_that_cannot_be(root, options, message):
    with pytest.raises(ValueError, match=message):
        chexpert.load(root, **{"split": "train", **options})


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"missing train\.csv; get the dataset from https://stanfordmlgroup"):
        chexpert.load(tmp_path, split="train")


def test_forms_of_the_header(root):
    checks.check_header_forms("chexpert", root, root / "train.csv")
    checks.check_missing_column("chexpert", root, root / "train.csv", "Frontal/Lateral")


def test_order_of_the_rows(root):
    checks.check_order("chexpert", root, root / "train.csv")


@checks.FUZZ
@given(st.data())
def test_damaged_tables(root, draws):
    uids = [[f"chexpert/train/{row[0].removesuffix('.jpg')}"] for row in fixture.TRAIN]
    known = checks.facts("chexpert", root)
    damaged = draws.draw(checks.damages((root / "train.csv").read_bytes()))
    checks.check_damage(
        "chexpert", root, root / "train.csv", damaged, [[u for u in told if u in known] for told in uids]
    )
