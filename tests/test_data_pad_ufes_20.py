"""PAD-UFES-20 in its owners' form: photographs in folders, in archives, in archives inside the archive."""

import zipfile

import numpy as np
import pytest
from hypothesis import given, strategies as st

from fairgrpo_jax.data import media
from fairgrpo_jax.data.datasets import pad_ufes_20
from tests.dataset_fixtures import checks, images, pad_ufes_20 as fixture


LAYOUTS = ("parts", "flat", "zips", "archive")


@pytest.fixture
def root(tmp_path):
    return fixture.write(tmp_path)


def records(root):
    found = {r.uid.split("/")[1]: r for split in pad_ufes_20.SPLITS for r in pad_ufes_20.load(root, split=split)}
    return [found[name.removesuffix(".png")] for name in fixture.names() if name.removesuffix(".png") in found]


def test_records(root):
    assert [(r.patient, r.sex, r.age, r.answer) for r in records(root)] == [
        ("PAT_9000", None, 11.0, "Nevus"),
        ("PAT_9005", "F", 61.0, "Basal Cell Carcinoma"),
        ("PAT_9001", None, 72.0, "AKIEC"),
        ("PAT_9002", "M", 69.0, "AKIEC"),
        ("PAT_9003", "M", 66.0, "Melanoma"),
        ("PAT_9015", None, 49.0, "Other"),
        ("PAT_9005", "F", 61.0, "AKIEC"),
    ]
    assert records(root)[3].extra == {
        "skin_type": "1",
        "has_piped_water": "True",
        "has_sewage_system": "False",
        "background_father": "BRAZIL",
        "background_mother": "BRAZIL",
        "lesion_id": "9704",
        "diagnosis": "SCC",
        "biopsied": "True",
        "region": "HAND",
    }
    assert records(root)[0].extra["skin_type"] == records(root)[0].extra["has_piped_water"] == ""
    assert records(root)[4].extra["background_mother"] == ""  # UNK
    checks.check_records("pad_ufes_20", root)
    checks.check_published("pad_ufes_20")
    checks.check_held_out("pad_ufes_20", root)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_photographs_wherever_they_lie(tmp_path, layout):
    root = fixture.write(tmp_path, layout)
    modes = ["RGB", "RGBA", *["RGB"] * 5]
    for seed, (record, size, mode) in enumerate(zip(records(root), fixture.SIZES, modes, strict=True)):
        (image,) = media.decode_record(record).images
        assert image.shape == (size[1], size[0], 3)
        if mode == "RGB":
            assert np.array_equal(image, images.pixels(seed, size))
    part = "imgs_part_1"
    where = {
        "parts": (root / "images" / part / "PAT_9000_9701_31.png", None),
        "flat": (root / "images" / "PAT_9000_9701_31.png", None),
        "zips": (root / "images" / f"{part}.zip", f"{part}/PAT_9000_9701_31.png"),
        "archive": (root / "zr7vgbcyr2-1.zip", f"images/{part}.zip!{part}/PAT_9000_9701_31.png"),
    }
    shown = records(root)[0].media[0]
    assert (shown.path, shown.member) == where[layout]


def test_all_layouts_tell_the_same(tmp_path):
    roots = [fixture.write(tmp_path / layout, layout) for layout in LAYOUTS]
    assert all(checks.facts("pad_ufes_20", root) == checks.facts("pad_ufes_20", roots[0]) for root in roots)


def test_a_folder_inside_the_archive_compressed(tmp_path):
    top = "PAD-UFES-20 A skin lesion dataset"
    zips = {f"{top}/images/imgs_part_{n}.zip": images.archive(m) for n, m in fixture.parts().items()}
    table = {f"{top}/metadata.csv": fixture.METADATA.encode()}
    (tmp_path / "pad.zip").write_bytes(images.archive({**zips, **table}, zipfile.ZIP_DEFLATED))
    (image,) = media.decode_record(records(tmp_path)[0]).images
    assert np.array_equal(image, images.pixels(0, fixture.SIZES[0]))


def test_damage_inside_the_archive_is_named(tmp_path):
    root = fixture.write(tmp_path, "archive")
    table = fixture.METADATA.replace(",MEL,", ",MELANOMA,").encode()
    (root / "zr7vgbcyr2-1.zip").write_bytes(images.archive({"metadata.csv": table}))
    with pytest.raises(
        ValueError, match=r"zr7vgbcyr2-1.zip.metadata.csv: 1 bad rows: line 6: diagnostic is 'MELANOMA'"
    ):
        records(root)
    (root / "zr7vgbcyr2-1.zip").write_bytes(b"PK\3\4 half a download")
    with pytest.raises(ValueError, match="zr7vgbcyr2-1.zip is broken"):
        records(root)


def test_an_image_that_is_not_there(root):
    (root / "images" / "imgs_part_1" / "PAT_9000_9701_31.png").unlink()
    with pytest.raises(ValueError, match="record pad_ufes_20/PAT_9000_9701_31: .*images/PAT_9000_9701_31.png"):
        media.decode_record(records(root)[0])


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(
        ValueError, match="PAD-UFES-20 in .*: missing metadata.csv; get the dataset from https://data.men"
    ):
        pad_ufes_20.load(tmp_path, split="train")


@pytest.mark.parametrize(
    "old,new,message",
    [
        (",MEL,", ",mel?,", "line 6: diagnostic is 'mel.'; wanted one of MEL, NEV, BCC, ACK, SCC, SEK"),
        ("66,False,MALE", "66,False,MAN", "line 6: sex is 'MAN'"),
        ("UNK,66,", "UNK,seventy,", "line 6: age is 'seventy'"),
        ("False,2.0,FOREARM", "False,7.0,FOREARM", "line 6: fitspatrick is '7.0'; wanted 1 to 6 or nothing"),
        (
            "False,False,2.0",
            "False,perhaps,2.0",
            "line 6: has_sewage_system is 'perhaps'; wanted True, False or nothing",
        ),
        ("PAT_9003_9705_35.png", "../PAT_9003_9705_35.png", "line 6: img_id is '../PAT_9003_9705_35.png'"),
        ("\nPAT_9003,", "\n,", "line 6: img_id is .*, patient_id ''"),
        ("PAT_9003_9705_35.png", "PAT_9005_9702_32.png", "line 6: PAT_9005_9702_32.png is also on line 3"),
        ("PAT_9003,9705,", "PAT_9003,", "line 6: 25 fields, the header has 26"),
    ],
)
def test_bad_rows_are_named(root, old, new, message):
    text = (root / "metadata.csv").read_text()
    assert old in text
    (root / "metadata.csv").write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=f"metadata.csv: 1 bad rows: {message}"):
        records(root)


def test_spellings_set_right(root):
    told = checks.facts("pad_ufes_20", root)
    table = root / "metadata.csv"
    table.write_text(table.read_text().replace("fitspatrick", "fitzpatrick").replace("biopsed", "biopsied"))
    assert checks.facts("pad_ufes_20", root) == told


def test_forms_of_the_header_and_order_of_the_rows(root):
    checks.check_header_forms("pad_ufes_20", root, root / "metadata.csv")
    checks.check_missing_column("pad_ufes_20", root, root / "metadata.csv", "diagnostic")
    checks.check_order("pad_ufes_20", root, root / "metadata.csv")


@checks.FUZZ
@given(st.data())
def test_damaged_tables(root, draws):
    uids = [[f"pad_ufes_20/{name.removesuffix('.png')}"] for name in fixture.names()]
    damaged = draws.draw(checks.damages((root / "metadata.csv").read_bytes()))
    checks.check_damage("pad_ufes_20", root, root / "metadata.csv", damaged, uids)
