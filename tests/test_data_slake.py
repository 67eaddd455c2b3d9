"""SLAKE in its owners' form: two languages, the question without an answer, closed questions that are not yes or no."""

import random

import pytest
from hypothesis import given, settings

from fairgrpo_jax import data
from fairgrpo_jax.data import media, splits
from fairgrpo_jax.data.datasets import slake
from tests.dataset_fixtures import damage, slake as fixture


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return fixture.write(tmp_path_factory.mktemp("slake"))


def test_english_records(root):
    train = slake.load(root, split="train")
    told = {r.uid: (r.patient, r.answer, r.choices, r.modality) for r in train.records}
    assert told == {
        "slake/0": ("xmlab1", "Transverse Plane", (), "CT"),
        "slake/1": ("xmlab1", "Yes", ("Yes", "No"), "CT"),
        "slake/3": ("xmlab2", "Filters blood", (), "MRI"),
    }
    assert train.left_out == {"without an answer": 1}
    assert train[0].question == "This is a medical image.\nWhich way is the slice cut?"
    assert train[2].extra == {
        "lang": "en",
        "answer_type": "OPEN",
        "base_type": "kvqa",
        "content_type": "Organ",
        "location": "Abdomen",
        "triple": "vhead, function, ktail",
    }
    assert train[0].extra["triple"] == ""
    (validation,) = data.load("slake", root, split="validation").records
    assert (validation.answer, validation.choices, validation.split) == ("Liver", (), "validation")
    (test,) = data.load("slake", root, split="test").records
    assert (test.uid, test.answer, test.extra["location"], test.split) == ("slake/12000", "No", "Lung", "test")
    assert (test.sex, test.age) == (None, None)


def test_languages(root):
    chinese = slake.load(root, split="train", lang="zh")
    assert [(r.uid, r.answer, r.choices) for r in chinese.records] == [
        ("slake/4919", "包含", ()),
        ("slake/4920", "肺", ()),
    ]
    assert chinese[0].question == "这是一张医学图像。\n能看到脾脏吗?" and not chinese.left_out
    both = slake.load(root, split="train", lang="both")
    assert [r.uid.split("/")[1] for r in both.records] == ["0", "1", "3", "4919", "4920"]
    assert both.left_out == {"without an answer": 1}


def test_the_split_is_by_image_in_one_language_only(root):
    for lang in ("en", "zh"):
        splits.check_leakage(*(slake.load(root, split=split, lang=lang).records for split in ("train", "test")))
    with pytest.raises(ValueError, match="slake patient xmlab3"):
        splits.check_leakage(*(slake.load(root, split=split, lang="both").records for split in ("train", "test")))


def test_images(root):
    for record in slake.load(root, split="train", lang="both").records:
        (image,) = media.decode_record(record).images
        assert image.shape == (32, 39, 3)
        assert (image[..., 0] == image[..., 1]).all() == (record.patient != "xmlab2")


def test_order_and_both_names_of_the_validation_file(tmp_path):
    rows = list(fixture.TRAIN)
    random.Random(1).shuffle(rows)
    root = fixture.write(tmp_path, rows, validation="validation.json")
    path = root / "train.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b'}, {"', b'},\r\n{"added": 1, "'))
    assert {r.uid for r in slake.load(root, split="train").records} == {"slake/0", "slake/1", "slake/3"}
    assert len(slake.load(root, split="validation")) == 1


def test_all_that_is_missing_is_named_at_once(tmp_path):
    with pytest.raises(ValueError, match="missing validate.json or validation.json, imgs; get the dataset from http"):
        slake.load(tmp_path, split="validation")


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("q_lang", "fr", "row 2: q_lang is 'fr'; wanted en or zh"),
        ("answer_type", "", "row 2: answer_type is empty"),
        ("answer_type", "MAYBE", "row 2: answer_type is 'MAYBE'; wanted OPEN or CLOSED"),
        ("answer", ["Yes"], r"row 2: answer is \['Yes'\]; wanted text"),
        ("img_name", "/imgs/a.jpg", "row 2: file name is '/imgs/a.jpg'"),
        ("question", "", "row 2: question is empty"),
        ("triple", "vhead", "row 2: triple is 'vhead'; wanted a list"),
        ("qid", 0, "row 2: qid 0 is there twice"),
    ],
)
def test_bad_rows(tmp_path, key, value, message):
    rows = [dict(row) for row in fixture.TRAIN]
    rows[1][key], rows[5]["qid"] = value, None
    with pytest.raises(ValueError, match=rf"train\.json: 2 bad rows: {message}.*; row 6: qid is None"):
        slake.load(fixture.write(tmp_path, rows), split="train")


@pytest.mark.parametrize("options,message", [({"split": "val"}, "split is 'val'"), ({"lang": "de"}, "lang is 'de'")])
def test_options_that_cannot_be(root, options, message):
    with pytest.raises(ValueError, match=message):
        slake.load(root, **{"split": "train", **options})


@settings(deadline=None, derandomize=True)
@given(damage.rows(len(fixture.TRAIN)))
def test_damage_is_an_error_or_leaves_the_other_rows_alone(tmp_path_factory, drawn):
    index, apply = drawn
    root = tmp_path_factory.getbasetemp() / "slake_damaged"
    (root / "imgs").mkdir(parents=True, exist_ok=True)
    right = {
        f"slake/{row['qid']}": (" ".join(row["answer"].split()).lower(), row["img_name"].split("/")[0], row["q_lang"])
        for n, row in enumerate(fixture.TRAIN)
        if n != index and row["answer"]
    }
    (root / "train.json").write_text(apply(fixture.TRAIN), encoding="utf-8")
    try:
        records = slake.load(root, split="train", lang="both").records
    except ValueError as error:
        assert "train.json" in str(error)
        return
    assert right.items() <= {r.uid: (r.answer.lower(), r.patient, r.extra["lang"]) for r in records}.items()
