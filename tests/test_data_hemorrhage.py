"""The haemorrhage CT set in its owners' form: two windows a slice, and a split drawn as scikit-learn draws it."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image
from sklearn.model_selection import train_test_split

from fairgrpo_jax import data
from fairgrpo_jax.data import media
from fairgrpo_jax.data.datasets import hemorrhage
from tests.dataset_fixtures import checks, hemorrhage as fixture


DIAGNOSIS, PEOPLE = "hemorrhage_diagnosis.csv", "patient_demographics.csv"
SLICES = (("49", "1"), ("49", "2"), ("50", "1"), ("51", "1"), ("51", "2"))


@pytest.fixture
def root(tmp_path):
    return fixture.write(tmp_path / "ct")


def paths(record):
    return [str(m.path.relative_to(m.path.parents[2])) for m in record.media]


def test_records(root):
    train, test = (hemorrhage.load(root, split=split) for split in hemorrhage.SPLITS)
    assert {r.patient for r in train} == {"50", "51"} and {r.patient for r in test} == {"49"}
    told = {r.uid: (r.patient, r.sex, r.age, r.answer) for r in (*train.records, *test.records)}
    assert told == {
        "hemorrhage/49/1": ("49", "F", 33.0, "No Hemorrhage"),
        "hemorrhage/49/2": ("49", "F", 33.0, "No Hemorrhage"),
        "hemorrhage/50/1": ("50", "M", 0.416666667, "No Hemorrhage"),
        "hemorrhage/51/1": ("51", "F", 7.0, "Has Hemorrhage"),
        "hemorrhage/51/2": ("51", "F", 7.0, "Has Hemorrhage"),
    }
    rows = {r.uid: r for r in train.records}
    whole = {"slice": "1", "types": "Epidural", "fracture": "yes", "missing_window": ""}
    assert rows["hemorrhage/51/1"].extra == whole
    assert rows["hemorrhage/51/2"].extra["types"] == "Intraparenchymal, Epidural"
    assert paths(rows["hemorrhage/51/1"]) == ["051/brain/1.jpg", "051/bone/1.jpg"]
    assert paths(rows["hemorrhage/50/1"]) == ["050/bone/1.jpg", "050/bone/1.jpg"]
    assert rows["hemorrhage/50/1"].extra["missing_window"] == "brain"
    assert train.left_out == {"no brain window": 1} and test.left_out == {}
    checks.check_records("hemorrhage", root)
    checks.check_published("hemorrhage")


def test_two_images_a_slice(root):
    for record in hemorrhage.load(root, split="test").records:
        images = media.decode_record(record).images
        for window, image in zip(("brain", "bone"), images, strict=True):
            with Image.open(root / "Patients_CT" / "049" / window / f"{record.extra['slice']}.jpg") as file:
                assert np.array_equal(image, np.repeat(np.asarray(file)[..., None], 3, axis=-1))
        assert not np.array_equal(images[0], images[1])


def test_a_missing_bone_window(root):
    (root / "Patients_CT" / "049" / "bone" / "2.jpg").unlink()
    test = hemorrhage.load(root, split="test")
    assert paths(test[1]) == ["049/brain/2.jpg", "049/brain/2.jpg"] and test.left_out == {"no bone window": 1}


def test_no_image_at_all(root):
    (root / "Patients_CT" / "050" / "bone" / "1.jpg").unlink()
    train = hemorrhage.load(root, split="train")
    assert paths(train[0]) == ["050/brain/1.jpg", "050/bone/1.jpg"] and train.left_out == {}
    with pytest.raises(ValueError, match="dataset hemorrhage, record hemorrhage/50/1: .*050/brain/1.jpg"):
        media.decode_record(train[0])


@pytest.mark.parametrize("numbers", [range(49, 131), range(1, 12), (7,), (9, 10, 100, 8)])
def test_the_split_is_that_of_scikit_learn(numbers):
    patients = sorted(numbers)
    tested = train_test_split(patients, test_size=0.2, random_state=42)[1] if len(patients) > 1 else patients
    assert hemorrhage.held_out({str(number) for number in numbers}) == {str(number) for number in tested}


def test_the_split_at_its_true_size(tmp_path):
    parts = [data.load("hemorrhage", fixture.published(tmp_path), split=split).records for split in hemorrhage.SPLITS]
    assert [len({r.patient for r in part}) for part in parts] == [65, 17]
    assert sum(map(len, parts)) == 2501


def test_a_contradiction_is_counted(root):
    table = root / DIAGNOSIS
    table.write_bytes(table.read_bytes().replace(b"49,2,0,0,0,0,0,1", b"49,2,0,0,1,0,0,1"))
    test = hemorrhage.load(root, split="test")
    assert test[1].answer == "No Hemorrhage"  # as the owners' own column says
    assert test.left_out == {"No_Hemorrhage and the five types disagree": 1}


def test_the_folder_around_it_and_a_misspelt_name(tmp_path):
    root = fixture.write(tmp_path / hemorrhage.FOLDER)
    (root / DIAGNOSIS).rename(root / "hemmorhage_diagnosis.csv")
    assert len(data.load("hemorrhage", tmp_path, split="train")) == 3


def test_a_later_version_is_refused(root):
    (root / "ct_scans").mkdir()
    with pytest.raises(
        ValueError, match="later version, with NIfTI volumes; get https://physionet.org/content/ct-ich/1.0.0"
    ):
        hemorrhage.load(root, split="train")


def test_all_that_is_missing_is_named_at_once(tmp_path):
    with pytest.raises(ValueError, match=f"missing {DIAGNOSIS} or hemmorhage_diagnosis.csv, {PEOPLE}; get the"):
        hemorrhage.load(tmp_path, split="train")


@pytest.mark.parametrize(
    "name,old,new,message",
    [
        (DIAGNOSIS, "51,1,0", "52,1,0", "line 5: PatientNumber is '52', not in patient_demographics.csv"),
        (DIAGNOSIS, "51,1,0", "51,one,0", "line 5: SliceNumber is 'one'"),
        (DIAGNOSIS, "51,1,0,0,0,1,0,0,1", "51,1,0,0,0,1,0,,1", "line 5: No_Hemorrhage is ''; wanted 0 or 1"),
        (DIAGNOSIS, "51,1,0,0,0,1", "51,1,0,0,0,2", "line 5: Epidural is '2'"),
        (DIAGNOSIS, "51,2,", "51,1,", "line 6: hemorrhage/51/1 is also on line 5"),
        (DIAGNOSIS, "51,2,0", "51,2", "line 6: 8 fields, the header has 9"),
        (PEOPLE, "51,7,Female", "51,seven,Female", "line 5: age is 'seven'"),
        (PEOPLE, "51,7,Female", "51,7,woman", "line 5: sex is 'woman'"),
        (PEOPLE, "51,7,Female", "P51,7,Female", "line 5: Patient Number is 'P51'"),
        (PEOPLE, "51,7,Female", "49,7,Female", "line 5: patient 49 is also on line 3"),
    ],
)
def test_bad_rows_are_named(root, name, old, new, message):
    content = (root / name).read_bytes()
    assert old.encode() in content
    (root / name).write_bytes(content.replace(old.encode(), new.encode(), 1))
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        hemorrhage.load(root, split="train")


def test_an_unknown_split(root):
    with pytest.raises(ValueError, match="split is 'valid'; .* has 'train' and 'test'"):
        hemorrhage.load(root, split="valid")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name,column", [(DIAGNOSIS, "No_Hemorrhage"), (PEOPLE, "Age (years)")])
def test_forms_of_the_headers_and_order_of_the_rows(root, name, column):
    checks.check_header_forms("hemorrhage", root, root / name)
    checks.check_missing_column("hemorrhage", root, root / name, column)
    checks.check_order("hemorrhage", root, root / name)


@checks.FUZZ
@given(st.data())
def test_damaged_tables(root, draws):
    name = draws.draw(st.sampled_from((DIAGNOSIS, PEOPLE)))
    uids = [[f"hemorrhage/{patient}/{number}"] for patient, number in SLICES]
    if name == PEOPLE:
        uids = [[uid for (uid,) in uids if uid.split("/")[1] == patient] for patient in ("49", "50", "51")]
    damaged = draws.draw(checks.damages((root / name).read_bytes()))
    checks.check_damage("hemorrhage", root, root / name, damaged, uids)
