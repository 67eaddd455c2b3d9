"""HAM10000 in both its owners' forms: images in two parts or as the challenge has them."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from fairgrpo_jax.data import media
from fairgrpo_jax.data.datasets import ham10000
from tests.dataset_fixtures import checks, ham10000 as fixture, images


METADATA, TRUTH = "HAM10000_metadata", "ISIC2018_Task3_Training_GroundTruth.csv"
NAMES = [row["image_id"] for row in fixture.rows()]


@pytest.fixture
def root(tmp_path):
    return fixture.write(tmp_path)


def records(root):
    return {r.uid.split("/")[1]: r for split in ham10000.SPLITS for r in ham10000.load(root, split=split)}


def test_records(root):
    told = {name: (r.patient, r.sex, r.age, r.answer) for name, r in records(root).items()}
    assert told == {
        "ISIC_9900035": ("HAM_9900000", "M", 85.0, "Other"),
        "ISIC_9900031": ("HAM_9900000", "M", 85.0, "Other"),
        "ISIC_9900034": ("HAM_9900001", None, None, "Nevus"),
        "ISIC_9900038": ("HAM_9900003", "F", 0.0, "Melanoma"),
        "ISIC_9900036": ("HAM_9900002", "M", 65.0, "AKIEC"),
        "ISIC_9900033": ("HAM_9900005", "F", 60.0, "Basal Cell Carcinoma"),
        "ISIC_9900032": ("HAM_9900006", "F", 55.0, "Other"),
        "ISIC_9900037": ("HAM_9900004", "M", 50.0, "Other"),
    }
    extra = {"dx": "bkl", "dx_type": "histo", "site": "neck", "source": ""}
    assert records(root)["ISIC_9900031"].extra == extra
    assert records(root)["ISIC_9900034"].extra["site"] == ""
    checks.check_records("ham10000", root)
    checks.check_published("ham10000")
    checks.check_held_out("ham10000", root)


def test_newer_metadata_tell_the_hospital(tmp_path):
    root = fixture.write(tmp_path, metadata="HAM10000_metadata.csv", text=fixture.with_dataset())
    assert {r.extra["source"] for r in records(root).values()} == {"vidir_modern"}


def test_metadata_with_tabs(tmp_path):
    text = fixture.with_dataset().replace(",", "\t")
    tabs = fixture.write(tmp_path / "tab", metadata="HAM10000_metadata.tab", text=text)
    commas = fixture.write(tmp_path / "csv", text=fixture.with_dataset())
    assert checks.facts("ham10000", tabs) == checks.facts("ham10000", commas)


def shown(root):
    return {name: media.decode_record(r).images[0] for name, r in records(root).items()}


def test_images_wherever_they_lie(tmp_path):
    parts, zips, challenge = (
        write(tmp_path / name)
        for name, write in (("a", fixture.write), ("z", fixture.write_zipped), ("b", fixture.write_challenge))
    )
    for seed, name in enumerate(NAMES):
        path = parts / f"HAM10000_images_part_{1 if seed % 2 else 2}" / f"{name}.jpg"
        assert records(parts)[name].media[0].path == path
        assert records(zips)[name].media[0].member == f"{name}.jpg"
        assert records(challenge)[name].media[0].path == challenge / "ISIC2018_Task3_Training_Input" / f"{name}.jpg"
        with Image.open(path) as file:
            expected = np.asarray(file)
        for root in (parts, zips, challenge):
            image = shown(root)[name]
            assert image.shape == (45, 60, 3) and np.array_equal(image, expected)


def test_lower_case_copies_are_not_needed(root):
    for part in (1, 2):
        (root / f"HAM10000_images_part_{part}").rename(root / f"ham10000_images_part_{part}")
    assert all(image.shape == (45, 60, 3) for image in shown(root).values())


def test_of_two_copies_the_first_place_counts(root):
    for place in ("ham10000_images_part_2", "HAM10000_images_part_2/small", "ISIC2018_Task3_Training_Input"):
        images.save(root / place / f"{NAMES[0]}.jpg", size=(6, 4))
    (root / "HAM10000_images_part_2.zip").write_bytes(images.archive({f"{NAMES[0]}.jpg": b"not read"}))
    assert shown(root)[NAMES[0]].shape == (45, 60, 3)


def test_an_image_that_is_not_there(root):
    (root / "HAM10000_images_part_1" / "ISIC_9900031.jpg").unlink()
    with pytest.raises(ValueError, match="ham10000/ISIC_9900031: .*HAM10000_images_part_1/ISIC_9900031.jpg"):
        media.decode_record(records(root)["ISIC_9900031"])


def test_a_challenge_that_agrees(tmp_path):
    told = checks.facts("ham10000", fixture.write(tmp_path / "a"))
    assert checks.facts("ham10000", fixture.write_challenge(tmp_path / "b")) == told


@pytest.mark.parametrize(
    "old,new,message",
    [
        ("ISIC_9900038,1.0,0.0", "ISIC_9900038,0.0,1.0", "ISIC_9900038 is nv, and mel in the metadata"),
        ("ISIC_9900038,1.0,0.0", "ISIC_9900038,1.0,1.0", "ISIC_9900038 is mel, nv; wanted one 1 and zeros"),
        ("ISIC_9900038,1.0,0.0", "ISIC_9900038,0.0,0.0", "ISIC_9900038 is nothing; wanted one 1 and zeros"),
        ("ISIC_9900038,1.0,0.0", "ISIC_9900038,1.0,0.5", "ISIC_9900038 is mel; wanted one 1 and zeros"),
        ("ISIC_9900038", "ISIC_9900099", "ISIC_9900099 is mel, and not there in the metadata"),
    ],
)
@pytest.mark.parametrize("below", [False, True])
def test_a_challenge_that_disagrees(tmp_path, old, new, message, below):
    root = fixture.write_challenge(tmp_path)
    text = fixture.challenge_truth()
    assert old in text
    path = root / "ISIC2018_Task3_Training_GroundTruth" / TRUTH if below else root / TRUTH
    (root / TRUTH).unlink()
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=f"{TRUTH}: 1 bad rows: line 9: {message}"):
        records(root)


def test_what_is_missing_is_named(tmp_path):
    fixture.write_challenge(tmp_path)
    (tmp_path / METADATA).unlink()  # the challenge alone tells neither sex nor age
    with pytest.raises(ValueError, match="missing HAM10000_metadata or HAM10000_metadata.csv or HAM10000_metadata.tab"):
        records(tmp_path)


@pytest.mark.parametrize(
    "old,new,message",
    [
        ("mel,histo", "melanoma,histo", "line 5: dx is 'melanoma'; wanted one of mel, nv, bcc, akiec, bkl, df, vasc"),
        ("0,female,back", "-5,female,back", "line 5: age is '-5'"),
        ("0,female,back", "0,f.,back", "line 5: sex is 'f.'"),
        ("ISIC_9900038", "ISIC_9900038.jpg", "line 5: image_id is 'ISIC_9900038.jpg'"),
        ("HAM_9900003", "", "line 5: image_id is 'ISIC_9900038', lesion_id ''"),
        ("ISIC_9900038", "ISIC_9900031", "line 5: ISIC_9900031 is also on line 3"),
        ("mel,histo,", "mel,", "line 5: 6 fields, the header has 7"),
    ],
)
def test_bad_rows_are_named(root, old, new, message):
    text = (root / METADATA).read_text()
    assert old in text
    (root / METADATA).write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=f"{METADATA}: 1 bad rows: {message}"):
        records(root)


def test_forms_of_the_headers_and_order_of_the_rows(tmp_path):
    root = fixture.write_challenge(tmp_path)
    for name, column in ((METADATA, "dx"), (TRUTH, "AKIEC")):
        checks.check_header_forms("ham10000", root, root / name)
        checks.check_missing_column("ham10000", root, root / name, column)
        checks.check_order("ham10000", root, root / name)


@checks.FUZZ
@given(st.data())
def test_damaged_tables(root, draws):
    damaged = draws.draw(checks.damages((root / METADATA).read_bytes()))
    checks.check_damage("ham10000", root, root / METADATA, damaged, [[f"ham10000/{name}"] for name in NAMES])
