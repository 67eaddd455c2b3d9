"""ISIC-2020 in its owners' form: both versions of the table, duplicates that tie patients together."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from fairgrpo_jax.data import media
from fairgrpo_jax.data.datasets import isic2020
from tests.dataset_fixtures import checks, images, isic2020 as fixture


TRUTH, DUPLICATES = "ISIC_2020_Training_GroundTruth.csv", "ISIC_2020_Training_Duplicates.csv"


@pytest.fixture
def root(tmp_path):
    return fixture.write(tmp_path)


def records(root):
    return {r.uid.split("/")[1]: r for split in isic2020.SPLITS for r in isic2020.load(root, split=split)}


def test_records(root):
    told = {name: (r.sex, r.age, r.answer) for name, r in records(root).items()}
    assert told == {
        "ISIC_9900011": ("M", 45.0, "Benign"),
        "ISIC_9900012": ("F", 45.0, "Benign"),
        "ISIC_9900013": ("F", 50.0, "Benign"),
        "ISIC_9900014": (None, None, "Benign"),
        "ISIC_9900015": ("F", 55.0, "Malignant"),
        "ISIC_9900016": ("M", 0.0, "Benign"),
    }
    assert records(root)["ISIC_9900015"].extra == {
        "patient_id": "IP_9900098",
        "lesion_id": "",
        "site": "upper extremity",
        "diagnosis": "melanoma",
    }
    assert records(root)["ISIC_9900014"].extra["diagnosis"] == ""
    assert records(root)["ISIC_9900016"].extra["site"] == ""
    checks.check_records("isic2020", root)
    checks.check_published("isic2020")
    checks.check_held_out("isic2020", root)


def test_duplicates_tie_their_patients(root):
    groups = {name: r.patient for name, r in records(root).items()}
    assert groups == {
        "ISIC_9900011": "IP_9900001",  # of the patient whose other image has a duplicate
        "ISIC_9900012": "IP_9900002",
        "ISIC_9900013": "IP_9900001",
        "ISIC_9900014": "IP_9900010",
        "ISIC_9900015": "IP_9900098",
        "ISIC_9900016": "IP_9900001",
    }
    chain = "ISIC_9900014,ISIC_9900012\nISIC_9900015,ISIC_9900014\nISIC_9900012,ISIC_9900011\n"
    (root / DUPLICATES).write_text(fixture.DUPLICATES + chain)
    assert {r.patient for r in records(root).values()} == {"IP_9900001"}
    assert len({r.split for r in records(root).values()}) == 1


def test_the_second_version_of_the_table(tmp_path):
    root = fixture.write(tmp_path, version=2)
    found = records(root)
    assert [found[name].extra["lesion_id"] for name in fixture.names()] == list(fixture.LESIONS)
    (root / TRUTH).write_text("the first version is not read\n")
    first = {name: (r.split, r.answer, r.sex, r.age, r.patient) for name, r in records(root).items()}
    (root / TRUTH).write_text(fixture.V1)
    (root / "ISIC_2020_Training_GroundTruth_v2.csv").unlink()
    assert first == {name: (r.split, r.answer, r.sex, r.age, r.patient) for name, r in records(root).items()}


@pytest.mark.parametrize("folder", ["train", "jpeg/train", "ISIC_2020_Training", "ISIC_2020_Training_JPEG/train"])
def test_images_are_decoded_when_asked(tmp_path, folder):
    root = fixture.write(tmp_path, folder=folder)
    for seed, name in enumerate(fixture.names()):
        record = records(root)[name]
        (image,) = media.decode_record(record).images
        assert record.media[0].path == root / folder / f"{name}.jpg"
        assert image.shape == (8 + 4 * seed, 8 + 6 * seed, 3)
        with Image.open(root / folder / f"{name}.jpg") as file:
            assert np.array_equal(image, np.asarray(file))


def test_images_in_their_archive(root):
    members = {f"train/{name}.jpg": (root / "train" / f"{name}.jpg").read_bytes() for name in fixture.names()}
    unpacked = {name: media.decode_record(r).images[0] for name, r in records(root).items()}
    for name in fixture.names():
        (root / "train" / f"{name}.jpg").unlink()
    trash = {"__MACOSX/train/._ISIC_9900012.jpg": b"", "__MACOSX/train/ISIC_9900012.jpg": b""}
    (root / "ISIC_2020_Training_JPEG.zip").write_bytes(images.archive({**trash, **members}))
    for name, record in records(root).items():
        assert record.media[0].member == f"train/{name}.jpg"
        assert np.array_equal(media.decode_record(record).images[0], unpacked[name])


def test_a_broken_archive(root):
    (root / "ISIC_2020_Training_JPEG.zip").write_bytes(images.archive({"train/a.jpg": b"1" * 500})[:-30])
    with pytest.raises(ValueError, match="ISIC_2020_Training_JPEG.zip is broken"):
        records(root)


def test_an_image_that_is_not_there(root):
    (root / "train" / "ISIC_9900015.jpg").unlink()
    record = records(root)["ISIC_9900015"]
    assert record.media[0].path == root / "train" / "ISIC_9900015.jpg"
    with pytest.raises(ValueError, match="dataset isic2020, record isic2020/ISIC_9900015: .*ISIC_9900015.jpg"):
        media.decode_record(record)


def test_all_that_is_missing_is_named_at_once(tmp_path):
    with pytest.raises(ValueError, match=f"missing .*v2.csv or {TRUTH} or train.csv, {DUPLICATES}; get the"):
        isic2020.load(tmp_path, split="train")


@pytest.mark.parametrize(
    "name,old,new,message",
    [
        (TRUTH, "malignant,1", "malignant,0", "line 6: benign_malignant 'malignant' and target '0' are no label"),
        (TRUTH, "malignant,1", "melanoma,1", "line 6: benign_malignant 'melanoma' and target '1' are no label"),
        (TRUTH, "female,50", "woman,50", "line 4: sex is 'woman'"),
        (TRUTH, "female,50", "female,fifty", "line 4: age is 'fifty'"),
        (TRUTH, "ISIC_9900013,IP_9900001", "ISIC_990013,IP_9900001", "line 4: image_name is 'ISIC_990013'"),
        (TRUTH, "IP_9900098", "", "line 6: image_name is 'ISIC_9900015', patient_id ''"),
        (TRUTH, "ISIC_9900012", "ISIC_9900011", "line 3: ISIC_9900011 is also on line 2"),
        (DUPLICATES, "ISIC_9900013", "ISIC_9999999", "line 2: ISIC_9999999 not in ISIC_2020_Training_GroundTruth.csv"),
        (DUPLICATES, ",ISIC_9900013", "", "line 2: 1 fields, the header has 2"),
    ],
)
def test_bad_rows_are_named(root, name, old, new, message):
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        isic2020.load(root, split="train")


@pytest.mark.parametrize("name,column", [(TRUTH, "benign_malignant"), (DUPLICATES, "image_name_2")])
def test_forms_of_the_headers_and_order_of_the_rows(root, name, column):
    checks.check_header_forms("isic2020", root, root / name)
    checks.check_missing_column("isic2020", root, root / name, column)
    checks.check_order("isic2020", root, root / name)


@checks.FUZZ
@given(st.data())
def test_damaged_tables(root, draws):
    uids = [[f"isic2020/{name}"] for name in fixture.names()]
    name = draws.draw(st.sampled_from((TRUTH, DUPLICATES)))
    if name == DUPLICATES:  # it tells of no label
        uids = [[]]
    damaged = draws.draw(checks.damages((root / name).read_bytes()))
    checks.check_damage("isic2020", root, root / name, damaged, uids)
