"""VQA-RAD in its owners' form: the official split and its leak, the split by image, the owners' slips."""

import json
import random

import pytest
from hypothesis import given, settings

from fairgrpo_jax import data
from fairgrpo_jax.data import media, splits
from fairgrpo_jax.data.about import counts
from fairgrpo_jax.data.datasets import vqa_rad
from fairgrpo_jax.data.record import conversation
from tests.dataset_fixtures import damage, vqa_rad as fixture


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return fixture.write(tmp_path_factory.mktemp("vqa_rad"))


@pytest.fixture
def change(tmp_path):
    """Writes the folder with other rows."""
    return lambda rows: fixture.write(tmp_path, rows)


def test_records(root):
    train, test = (data.load("vqa_rad", root, split=split) for split in ("train", "test"))
    told = {r.uid: (r.patient, r.answer, r.choices, r.split) for r in (*train.records, *test.records)}
    assert told == {
        "vqa_rad/1": ("synpic100", "Yes", ("Yes", "No"), "train"),
        "vqa_rad/2": ("synpic100", "Yes", ("Yes", "No"), "train"),
        "vqa_rad/3": ("synpic200", "2", (), "train"),
        "vqa_rad/4": ("synpic100", "the Right", (), "test"),
        "vqa_rad/5": ("synpic200", "Fluid", (), "test"),
        "vqa_rad/6": ("synpic300", "No", ("Yes", "No"), "test"),
    }
    assert train[0].question == "This is a radiology image.\nIs the trachea in the middle?"
    assert train[0].extra == {
        "answer_type": "CLOSED",
        "question_type": "PRES, POS",
        "organ": "CHEST",
        "phrase_type": "freeform",
        "linked": "01-linked",
    }
    assert [r.extra["question_type"] for r in test.records] == ["POS", "ATTRIB, OTHER", "PRES"]
    assert [r.extra["answer_type"] for r in test.records] == ["CLOSED", "OPEN", "CLOSED"]
    assert {(r.sex, r.age, r.dataset, r.modality) for r in train.records} == {(None, None, "vqa_rad", "radiology")}
    assert counts(train.records)["patients/train"] == 2


def test_images(root):
    for record in data.load("vqa_rad", root, split="test").records:
        (image,) = media.decode_record(record).images
        assert image.shape == (32, 39, 3) and image.dtype == "uint8"
        grey = (image[..., 0] == image[..., 1]).all()
        assert grey == (record.patient != "synpic200")
        assert [part["type"] for part in conversation(record)[0]["content"]] == ["image", "text"]


def test_the_official_split_shares_images_and_the_other_does_not(change):
    rows = [
        fixture.row(n, "freeform" if n % 3 else "test_freeform", f"synpic{n % 40}", f"Question {n}?", "Yes", "CLOSED")
        for n in range(200)
    ]
    root = change(rows)
    train, test = (vqa_rad.load(root, split=split).records for split in ("train", "test"))
    assert (len(train), len(test)) == (133, 67)
    with pytest.raises(ValueError, match="40 patients are in both .*vqa_rad patient synpic0"):
        splits.check_leakage(train, test)
    (shared,) = splits.leakage([*train, *test])
    assert len(shared.patients) == 40
    train, test = (vqa_rad.load(root, split=split, split_by="image").records for split in ("train", "test"))
    splits.check_leakage(train, test)
    assert {r.uid for r in train} | {r.uid for r in test} == {f"vqa_rad/{n}" for n in range(200)}
    assert {r.split for r in train} == {"train"} and {r.split for r in test} == {"test"}
    assert 0 < len(test) < len(train)
    sides = {r.uid: r.split for r in (*train, *test)}
    random.Random(0).shuffle(rows)
    root = change(rows[:150])  # another order, fewer rows: nobody moves
    for split in ("train", "test"):
        assert all(sides[r.uid] == split for r in vqa_rad.load(root, split=split, split_by="image").records)


def test_extra_keys_order_and_a_byte_order_mark(change):
    root = change([dict(reversed({**row, "new": [1]}.items())) for row in fixture.ROWS])
    path = root / fixture.TABLE
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b', "', b',\r\n"'))
    assert [r.answer for r in vqa_rad.load(root, split="train").records] == ["Yes", "Yes", "2"]


def test_all_that_is_missing_is_named_at_once(tmp_path):
    with pytest.raises(ValueError, match="missing VQA_RAD Dataset Public.json, VQA_RAD Image Folder or .*osf.io"):
        vqa_rad.load(tmp_path, split="train")


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("phrase_type", "frame", "row 3: phrase_type is 'frame'; wanted one of freeform, para, test_freeform"),
        ("answer_type", "BOTH", "row 3: answer_type is 'BOTH'; wanted OPEN or CLOSED"),
        ("answer", "  ", "row 3: answer is empty"),
        ("answer", None, "row 3: answer is None; wanted text"),
        ("answer", True, "row 3: answer is True; wanted text"),
        ("question", 7.5e400, "row 3: question is inf"),
        ("image_name", "../x.jpg", "row 3: file name is '../x.jpg'"),
        ("qid", 1, "row 3: qid 1 is there twice"),
    ],
)
def test_bad_rows(change, key, value, message):
    rows = [dict(row) for row in fixture.ROWS]
    rows[2][key], rows[4]["answer"] = value, []
    with pytest.raises(ValueError, match=rf"Public\.json: 2 bad rows: {message}.*; row 5: answer is \[\]"):
        vqa_rad.load(change(rows), split="test")


@pytest.mark.parametrize(
    "options,message", [({"split": "val"}, "split is 'val'"), ({"split_by": "patient"}, "split_by is 'patient'")]
)
def test_options_that_cannot_be(root, options, message):
    with pytest.raises(ValueError, match=message):
        vqa_rad.load(root, **{"split": "train", **options})


@settings(deadline=None, derandomize=True)
@given(damage.rows(len(fixture.ROWS)))
def test_damage_is_an_error_or_leaves_the_other_rows_alone(tmp_path_factory, drawn):
    index, apply = drawn
    root = tmp_path_factory.getbasetemp() / "vqa_rad_damaged"
    (root / fixture.FOLDER).mkdir(parents=True, exist_ok=True)
    right = {
        f"vqa_rad/{row['qid']}": (str(row["answer"]).strip().lower()[-5:], row["image_name"])
        for n, row in enumerate(fixture.ROWS)
        if n != index
    }
    (root / fixture.TABLE).write_text(apply(fixture.ROWS), encoding="utf-8")
    try:
        records = [r for split in vqa_rad.SPLITS for r in vqa_rad.load(root, split=split).records]
    except ValueError as error:
        assert fixture.TABLE in str(error)
        return
    found = {r.uid: (r.answer.lower()[-5:], f"{r.patient}.jpg") for r in records}
    assert right.items() <= found.items()


def test_the_fixture_is_what_the_owners_write(root):
    assert json.loads((root / fixture.TABLE).read_text())[1]["answer_type"] == "CLOSED "
