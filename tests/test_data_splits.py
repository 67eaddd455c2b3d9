import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fairgrpo_jax.data import splits
from fairgrpo_jax.data.record import Media, Record


PATIENTS = [f"p{i % 700}" for i in range(2000)]


def test_the_side_of_a_patient_depends_on_nobody_else():
    held_out = splits.by_patient(PATIENTS, fraction=0.3, seed=1)
    side = dict(zip(PATIENTS, held_out, strict=True))
    assert [side[p] for p in PATIENTS] == held_out.tolist()  # one side a patient
    shuffled = np.random.default_rng(0).permutation(PATIENTS + ["newcomer"]).tolist()
    again = splits.by_patient(shuffled, fraction=0.3, seed=1)
    assert all(side[p] == out for p, out in zip(shuffled, again, strict=True) if p != "newcomer")


def test_the_share_held_out_is_the_fraction_up_to_chance():
    patients = [str(i) for i in range(4000)]
    held_out = splits.by_patient(patients, fraction=0.3, seed=5)
    assert abs(held_out.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)
    other = splits.by_patient(patients, fraction=0.3, seed=6)
    assert abs((held_out & other).mean() - 0.09) < 4 * np.sqrt(0.09 * 0.91 / 4000)  # seeds are independent
    larger = splits.by_patient(patients, fraction=0.5, seed=5)
    assert larger[held_out].all()  # a larger share adds patients and moves none back
    assert not splits.by_patient(patients, fraction=0, seed=5).any()
    assert splits.by_patient(patients, fraction=1, seed=5).all()


def test_numerical_order_is_not_the_order_of_text():
    assert splits.by_number(["9", "10", "100", "9"], fraction=0.75).tolist() == [False, False, True, False]
    assert (~splits.by_number([str(i) for i in range(1, 64)], fraction=0.75)).sum() == 47  # int(47.25)


@pytest.mark.parametrize("fraction", [-0.1, 1.5])
def test_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match="fraction"):
        splits.by_patient(["1"], fraction=fraction, seed=0)
    with pytest.raises(ValueError, match="fraction"):
        splits.by_number(["1"], fraction=fraction)


def test_ids_that_are_no_numbers():
    with pytest.raises(ValueError, match="by_patient"):
        splits.by_number(["1", "PAT_2"], fraction=0.5)


def test_leakage_names_the_shared_patients():
    ann = Record("a/1", "a", "", (), "?", "x", (), "ann", "F", 30.0, {}, "train")
    namesake = dataclasses.replace(ann, uid="b/1", dataset="b")
    splits.check_leakage([ann], [namesake])
    with pytest.raises(ValueError, match="1 patients .* a patient ann"):
        splits.check_leakage([ann, namesake], [dataclasses.replace(ann, uid="a/2")])


def record(split, patient, *files, dataset="a"):
    media = tuple(Media("image", path=Path("a.zip"), member=file) for file in files)
    return Record(f"{dataset}/{split}/{patient}", dataset, "", media, "?", "x", (), patient, None, None, {}, split)


def test_leakage_between_all_pairs_of_splits():
    rows = [record("train", "ann", "1"), record("train", "bob", "2"), record("valid", "eve", "1")]
    rows += [record("test", "bob", "3"), record("test", "ann", "4"), record("test", "eve", "4", dataset="b")]
    found = splits.leakage(rows)
    assert found == [
        splits.Shared("a", ("train", "valid"), (), 1),
        splits.Shared("a", ("train", "test"), ("ann", "bob"), 0),
    ]
    assert str(found[1]) == "a: train and test share 2 patients (ann, bob) and 0 media files"
    frames = Media("video", frames=(Path("1.jpg"), Path("2.jpg")), fps=1.0)
    twice = [dataclasses.replace(record(split, split), media=(frames,)) for split in ("train", "test")]
    assert splits.leakage(twice) == [splits.Shared("a", ("train", "test"), (), 1)]
