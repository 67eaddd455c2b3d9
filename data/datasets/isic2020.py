"""ISIC-2020 (SIIM-ISIC): 33,126 dermoscopic images of 2,056 patients, 584 of them melanoma, with sex and age.

Rotemberg et al., Scientific Data 8:34, 2021, doi 10.1038/s41597-021-00815-z. Licence CC BY-NC 4.0. 1.8 % of the images
are malignant: an answer that is always "Benign" is right 98.2 % of the time.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from fairgrpo_jax.data.about import About
from fairgrpo_jax.data.images import check_split, images, once, told
from fairgrpo_jax.data.record import Record, RecordList
from fairgrpo_jax.data.splits import by_patient
from fairgrpo_jax.data.tables import read_csv


SPLITS = ("train", "test")
ABOUT = About(
    "isic2020",
    "ISIC-2020",
    "https://challenge.isic-archive.com/data/#2020",
    "CC BY-NC 4.0",
    "ISIC_2020_Training_JPEG.zip (23 GB; may stay packed), ISIC_2020_Training_GroundTruth_v2.csv (or the first "
    "version, or Kaggle's train.csv) and ISIC_2020_Training_Duplicates.csv",
    note="425 pairs of images are duplicates; a pair is never on both sides of the split.",
    published={
        "media": 33_126,
        "answer/Benign": 32_542,
        "answer/Malignant": 584,
        "sex/M": 17_080,
        "sex/F": 15_981,
        "sex/unknown": 65,
        "age/≤25": 2_350,
        "age/26–50": 17_520,
        "age/51–75": 12_540,
        "age/>75": 648,
        "age/unknown": 68,
    },
)
QUESTION = "This is a dermoscopic image of a skin lesion. Is the lesion benign or malignant? Answer with one of:"
CHOICES = ("Benign", "Malignant")
TABLES = ("ISIC_2020_Training_GroundTruth_v2.csv", "ISIC_2020_Training_GroundTruth.csv", "train.csv")
DUPLICATES = "ISIC_2020_Training_Duplicates.csv"
PLACES = ("train", "jpeg/train", "ISIC_2020_Training", "ISIC_2020_Training_JPEG", "ISIC_2020_Training_JPEG.zip")
TEST_SHARE = 0.2

_COLUMNS = ("image_name", "patient_id", "sex", "age_approx", "anatom_site_general_challenge", "diagnosis")
_LABELS = {("benign", "0"): CHOICES[0], ("malignant", "1"): CHOICES[1]}


def load(root: str | Path, *, split: Literal["train", "test"]) -> RecordList:
    """One record per image, asking whether the lesion is malignant.

    Args:
        root: the folder with the table, the list of duplicates, and the images in one of ``PLACES``.
        split: ``"train"`` or ``"test"``; about a fifth of the patients is held out, by ``splits.by_patient``. (The
            owner's test images have no published labels.)

    Returns:
        A ``Source`` in the order of the table. Patients with a common duplicate image have the same ``patient``;
        ``extra`` holds the owner's ``patient_id``, ``lesion_id`` (of the table's second version), ``site`` and
        ``diagnosis``, each "" if unknown.

    Raises:
        ValueError: for missing tables; bad rows, with their lines; an unknown split.

    Source:
        CLIMB (DDVD233/CLIMB) splits by image without a seed, so that patients and duplicates are on both sides.

    Example:
        ``load("isic2020", split="test")[0].answer``
    """
    check_split(split, SPLITS, ABOUT.title)
    truth, duplicates = ABOUT.require(root, TABLES, DUPLICATES)
    table = read_csv(truth, (*_COLUMNS, "benign_malignant", "target"), optional=("lesion_id",))
    rows, people, seen = list(table), [], {}
    for line, row in rows:
        once(table.problems, seen, line, row["image_name"])
        people.append(told(table.problems, line, row["sex"], row["age_approx"]))
        if problem := _problem(row):
            table.problems.add(line, problem)
    table.problems.raise_if_any()
    group = _groups({row["image_name"]: row["patient_id"] for _, row in rows}, duplicates, truth.name)
    found = images(Path(root), PLACES, ".jpg")
    patients = [group[row["patient_id"]] for _, row in rows]
    test = by_patient(patients, fraction=TEST_SHARE, seed=0)
    records = []
    for (_, row), (sex, age), patient, held_out in zip(rows, people, patients, test, strict=True):
        if held_out == (split == "test"):
            records.append(
                Record(
                    uid=f"isic2020/{row['image_name']}",
                    dataset="isic2020",
                    modality="dermoscopy",
                    media=(found.media(f"{row['image_name']}.jpg"),),
                    question=QUESTION,
                    answer=_label(row),
                    choices=CHOICES,
                    patient=patient,
                    sex=sex,
                    age=age,
                    extra={
                        "patient_id": row["patient_id"],
                        "lesion_id": row["lesion_id"],
                        "site": row["anatom_site_general_challenge"],
                        "diagnosis": "" if row["diagnosis"] == "unknown" else row["diagnosis"],
                    },
                    split=split,
                )
            )
    return RecordList(tuple(records))


def _label(row: Mapping[str, str]) -> str:
    return _LABELS.get((row["benign_malignant"], row["target"].removesuffix(".0")), "")


def _problem(row: Mapping[str, str]) -> str:
    """The problem of a row; "" if there is none."""
    if not re.fullmatch(r"ISIC_\d{7}", row["image_name"]) or not row["patient_id"]:
        found = f"image_name is {row['image_name']!r}, patient_id {row['patient_id']!r}"
        return f"{found}; wanted ISIC_ and seven digits, and a patient"
    if not _label(row):
        told_as = f"benign_malignant {row['benign_malignant']!r} and target {row['target']!r}"
        return f"{told_as} are no label; wanted benign and 0, or malignant and 1"
    return ""


def _groups(patients: Mapping[str, str], duplicates: Path, table: str) -> dict[str, str]:
    """Maps each patient to the first name, in order, of the patients connected to it by duplicate images."""
    group = {patient: patient for patient in patients.values()}

    def first(patient: str) -> str:
        while group[patient] != patient:
            patient = group[patient]
        return patient

    pairs = read_csv(duplicates, ("image_name_1", "image_name_2"))
    for line, pair in pairs:
        if strange := [name for name in pair.values() if name not in patients]:
            pairs.problems.add(line, f"{' and '.join(strange)} not in {table}")
            continue
        low, high = sorted(first(patients[name]) for name in pair.values())
        group[high] = low
    return {patient: first(patient) for patient in group}
