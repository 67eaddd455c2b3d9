"""VinDr-Mammo in its owners' form: 16-bit DICOM, ages in the table or in the files."""

import sys

import numpy as np
import pytest
from hypothesis import given, strategies as st

from fairgrpo_jax import data
from fairgrpo_jax.data import media
from fairgrpo_jax.data.datasets import vindr_mammo
from tests.dataset_fixtures import checks, vindr_mammo as fixture


BREASTS, METADATA, FINDINGS = "breast-level_annotations.csv", "metadata.csv", "finding_annotations.csv"
ROWS = list(fixture.rows())


@pytest.fixture
def root(tmp_path):
    return fixture.write(tmp_path)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return fixture.write(tmp_path_factory.mktemp("vindr"), media=False)


def path(root, row):
    return root / "images" / row["study"] / f"{row['image']}.dicom"


def test_records(root):
    train, test = (data.load("vindr_mammo", root, split=split).records for split in ("train", "test"))
    assert [r.uid for r in (*train, *test)] == [f"vindr_mammo/{row['image']}" for row in ROWS]
    assert {r.patient for r in train} == {fixture.uid("A")} and {r.patient for r in test} == {fixture.uid("B")}
    assert [r.answer for r in train] == ["BIRAD 1", "BIRAD 1", "BIRAD 4", "BIRAD 4"]
    assert [r.answer for r in test] == ["BIRAD 2", "BIRAD 2", "BIRAD 5", "BIRAD 5"]
    assert [(r.sex, r.age) for r in train] == [("F", 53.0)] * 4  # age from the table, sex from the files
    assert [(r.sex, r.age) for r in test] == [("F", 36.0), ("F", None), ("F", 36.0), ("F", None)]  # from the files
    assert train[0].extra == {"laterality": "L", "view": "CC", "density": "B", "findings": ""}
    found = [r.extra["findings"] for r in test]
    assert found == ["", "", "Mass, Skin Retraction, Suspicious Calcification", ""]
    checks.check_records("vindr_mammo", root)
    checks.check_published("vindr_mammo")


def test_without_the_headers(root):
    assert {(r.sex, r.age) for r in vindr_mammo.load(root, split="train", headers=False)} == {(None, 53.0)}
    assert {(r.sex, r.age) for r in vindr_mammo.load(root, split="test", headers=False)} == {(None, None)}


def test_tables_alone(tables):
    test = vindr_mammo.load(tables, split="test")
    assert {(r.sex, r.age) for r in test} == {(None, None)}
    assert test.left_out == {"age or sex untold, and no file to ask": 4}


def test_no_file_is_opened_when_the_table_tells(tables, monkeypatch):
    monkeypatch.setattr(vindr_mammo, "_header", lambda path: pytest.fail(f"{path} was opened"))
    whole = (tables / METADATA).read_text()
    lines = whole.replace("Patient's Age", "Patient's Sex,Patient's Age").splitlines()
    told = [line.replace("Mammomat Inspiration,", "Mammomat Inspiration,F,") for line in lines]
    (tables / METADATA).write_text("\n".join(line.replace("F,,48", "F,036Y,48") for line in told) + "\n")
    try:
        test = vindr_mammo.load(tables, split="test")
        assert {(r.sex, r.age) for r in test} == {("F", 36.0)} and test.left_out == {}
    finally:
        (tables / METADATA).write_text(whole)


def test_pixels_from_darkest_to_brightest(root):
    for split in vindr_mammo.SPLITS:
        for record in vindr_mammo.load(root, split=split, window="minmax"):
            (image,) = media.decode_record(record).images
            row = next(row for row in ROWS if record.uid.endswith(row["image"]))
            raw = fixture.pixels(row["image"]).astype(float)
            grey = 255 * (raw - raw.min()) / (raw.max() - raw.min())
            expected = 255 - grey if row["inverted"] else grey
            assert image.shape == (48, 64, 3) and image.dtype == np.uint8
            assert np.abs(image - expected[..., None]).max() <= 1


def test_the_viewers_window(root):
    inverted = {f"vindr_mammo/{row['image']}": row["inverted"] for row in ROWS}
    for record in vindr_mammo.load(root, split="train"):
        (image,) = media.decode_record(record).images
        raw = fixture.pixels(record.uid.split("/")[1]).astype(float)  # centre 2048, width 4096: all of 12 bits
        expected = 255 * raw / 4095
        assert np.abs(image - (255 - expected if inverted[record.uid] else expected)[..., None]).max() <= 1


def test_all_that_is_missing_is_named_at_once(tmp_path):
    with pytest.raises(ValueError, match=f"missing {BREASTS}, {METADATA}; get the dataset from https://physionet.org"):
        vindr_mammo.load(tmp_path, split="train")


def test_findings_may_be_missing(root):
    (root / FINDINGS).unlink()
    assert {r.extra["findings"] for r in vindr_mammo.load(root, split="test")} == {""}


@pytest.mark.parametrize(
    "name,old,new,message",
    [
        (BREASTS, "BI-RADS 4", "BI-RADS 6", "2 bad rows: line 4: breast_birads is 'BI-RADS 6'; line 5"),
        (BREASTS, "DENSITY C", "DENSITY E", "4 bad rows: line 6: breast_density is 'DENSITY E'"),
        (BREASTS, "B,training", "B,train", "4 bad rows: line 2: split is 'train'"),
        (BREASTS, ",MLO,", ",ML,", "4 bad rows: line 3: view_position is 'ML'"),
        (BREASTS, ROWS[1]["image"], ROWS[0]["image"], f"line 3: {ROWS[0]['image']} is also on line 2"),
        (BREASTS, ROWS[1]["image"], "../" + ROWS[1]["image"], "line 3: image_id is '../"),
        (METADATA, "['053Y']", "['053Y', '054Y']", "4 bad rows: line 2: "),
        (METADATA, "['053Y']", "fifty-three", "4 bad rows: line 2: age is 'fifty-three'"),
        (METADATA, ROWS[1]["image"], ROWS[0]["image"], f"line 3: {ROWS[0]['image']} is also on line 2"),
        (FINDINGS, "['No Finding']", "[No Finding]", "7 bad rows: line 2: finding_categories is '.No Finding.'"),
        (FINDINGS, "['No Finding']", "{'No Finding': 1}", "7 bad rows: line 2: finding_categories is"),
    ],
)
def test_bad_rows_are_named(tables, name, old, new, message):
    whole = (tables / name).read_text()
    assert old in whole
    (tables / name).write_text(whole.replace(old, new))
    try:
        with pytest.raises(ValueError, match=f"{name}: .*{message}"):
            vindr_mammo.load(tables, split="train")
    finally:
        (tables / name).write_text(whole)


def test_a_file_that_is_no_dicom(root):
    path(root, ROWS[4]).write_bytes(b"<html>not found</html>")
    with pytest.raises(
        ValueError, match=f"{ROWS[4]['image']}.dicom: no DICOM header to read .*download the file again"
    ):
        vindr_mammo.load(root, split="test")


def test_without_a_dicom_reader(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ValueError, match="pip install pydicom to read it from the file, or pass headers=False"):
        vindr_mammo.load(root, split="test")


@pytest.mark.parametrize(
    "options,message",
    [
        ({"split": "training"}, "split is 'training'; VinDr-Mammo 1.0.0 has 'train' and 'test'"),
        ({"window": "lung"}, "window is 'lung'; wanted 'voi' or 'minmax'"),
    ],
)
def test_options_that_cannot_be(tables, options, message):
    with pytest.raises(ValueError, match=message):
        vindr_mammo.load(tables, **{"split": "train", **options})


@pytest.mark.parametrize(
    "name,column", [(BREASTS, "breast_birads"), (METADATA, "SOP Instance UID"), (FINDINGS, "finding_categories")]
)
def test_forms_of_the_headers_and_order_of_the_rows(tables, name, column):
    checks.check_header_forms("vindr_mammo", tables, tables / name)
    checks.check_missing_column("vindr_mammo", tables, tables / name, column)
    if name != FINDINGS:  # findings stand in the order of their table
        checks.check_order("vindr_mammo", tables, tables / name)


@checks.FUZZ
@given(st.data())
def test_damaged_tables(tables, draws):
    name = draws.draw(st.sampled_from((BREASTS, METADATA, FINDINGS)))
    uids = [[f"vindr_mammo/{row['image']}"] for row in ROWS]
    if name == FINDINGS:  # two of its rows are of one image
        uids.insert(7, uids[6])
    damaged = draws.draw(checks.damages((tables / name).read_bytes()))
    checks.check_damage("vindr_mammo", tables, tables / name, damaged, uids)
