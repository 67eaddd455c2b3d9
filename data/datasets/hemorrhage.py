"""Intracranial haemorrhage on CT: 2,501 slices of 82 patients, each with a brain and a bone window, with sex and age.

Hssayeni et al., Data 5(1), 2020, doi 10.3390/data5010014; version 1.0.0 on PhysioNet ("ct-ich"). No patient is older
than 72, and half are 25 or younger; 36 patients have a haemorrhage, so 17 held-out patients say little.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fairgrpo_jax.data.about import About
from fairgrpo_jax.data.images import check_split, once, told
from fairgrpo_jax.data.record import Media, Record, RecordList
from fairgrpo_jax.data.tables import read_csv


SPLITS = ("train", "test")
FOLDER = "computed-tomography-images-for-intracranial-hemorrhage-detection-and-segmentation-1.0.0"
ABOUT = About(
    "hemorrhage",
    "CT intracranial haemorrhage (ct-ich) 1.0.0",
    "https://physionet.org/content/ct-ich/1.0.0/",
    "CC BY 4.0",
    f"the folder {FOLDER} of version 1.0.0 (later versions hold NIfTI volumes and are not read)",
    note="318 of 2,501 slices show a haemorrhage; slices of one patient are much alike.",
    published={
        "records/train": 1986,
        "records/test": 515,
        "patients/train": 65,
        "patients/test": 17,
        "media": 5002,
        "answer/No Hemorrhage": 2183,
        "answer/Has Hemorrhage": 318,
    },
)
QUESTION = (
    "These are two views of one slice of a brain CT, the first in the brain window and the second in the bone window. "
    "Does the slice show a haemorrhage? Answer with one of:"
)
CHOICES = ("No Hemorrhage", "Has Hemorrhage")
TYPES = ("Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural")
WINDOWS = ("brain", "bone")
IMAGES = "Patients_CT"
TEST_SHARE = 0.2

_DIAGNOSIS = ("PatientNumber", "SliceNumber", *TYPES, "No_Hemorrhage", "Fracture_Yes_No")
_PEOPLE = ("Patient Number", "Age (years)", "Gender")


@dataclass(frozen=True)
class _Patient:
    sex: Literal["F", "M"] | None
    age: float | None


def load(root: str | Path, *, split: Literal["train", "test"]) -> RecordList:
    """One record per slice, asking whether it shows a haemorrhage of any type.

    Args:
        root: the owners' folder of version 1.0.0, or its parent.
        split: ``"train"`` or ``"test"``: 1,986 and 515 slices, 65 and 17 patients, as in the benchmark on which
            FairGRPO was trained.

    Returns:
        A ``Source`` in the order of the table. Each record has two images, the brain and the bone window; if one of
        them is missing, the other replaces it, ``extra["missing_window"]`` names it and ``left_out`` counts it.
        ``extra`` holds ``slice``, ``types`` (those marked on the slice, joined by ", ") and ``fracture`` ("yes", "no").

    Raises:
        ValueError: for tables that are missing or of a later version; bad rows, with their lines; slices of a patient
            without a row in ``patient_demographics.csv``; an unknown split.

    Source:
        Images, answers and split: CLIMB (DDVD233/CLIMB), which shuffles the sorted patient numbers by scikit-learn's
        ``train_test_split(test_size=0.2, random_state=42)``.

    Example:
        ``load("ct-ich", split="test")[0].media``
    """
    check_split(split, SPLITS, ABOUT.title)
    root = Path(root)
    root = root / FOLDER if (root / FOLDER).is_dir() else root
    if (root / "ct_scans").is_dir() or (root / "hemorrhage_diagnosis_raw_ct.csv").is_file():
        raise ValueError(f"{ABOUT.title}: {root} holds a later version, with NIfTI volumes; get {ABOUT.where}")
    diagnosis, people = ABOUT.require(
        root, ("hemorrhage_diagnosis.csv", "hemmorhage_diagnosis.csv"), "patient_demographics.csv"
    )
    patients = _patients(people)
    table = read_csv(diagnosis, _DIAGNOSIS)
    rows = list(table)
    tested = held_out({row["PatientNumber"] for _, row in rows if row["PatientNumber"].isdecimal()})
    there = _slices(root)
    seen: dict[str, int] = {}
    left_out: Counter[str] = Counter()
    records = []
    for line, row in rows:
        if problem := _problem(row, patients):
            table.problems.add(line, problem)
            continue
        record = _record(root, row, patients[row["PatientNumber"]], split, there)
        once(table.problems, seen, line, record.uid)
        if (record.patient in tested) == (split == "test"):
            records.append(record)
            left_out.update(_lacks(row, record))
    table.problems.raise_if_any()
    return RecordList(tuple(records), dict(left_out))


def held_out(patients: Collection[str]) -> set[str]:
    """The held-out patients: the first fifth, rounded up, of a permutation of their sorted numbers.

    The permutation is that of NumPy's ``RandomState(42)``, which is the same in all versions; scikit-learn's
    ``train_test_split(sorted(patients), test_size=0.2, random_state=42)`` draws the same patients.

    Example:
        >>> from fairgrpo_jax.data.datasets import hemorrhage
        >>> sorted(hemorrhage.held_out({str(number) for number in range(49, 60)}))
        ['49', '54', '58']
    """
    order = sorted(patients, key=int)
    places = np.random.RandomState(42).permutation(len(order))  # noqa: NPY002 - the published split was drawn so
    return {order[place] for place in places[: math.ceil(TEST_SHARE * len(order))]}


def _record(root: Path, row: Mapping[str, str], patient: _Patient, split: str, there: set[tuple[str, ...]]) -> Record:
    number, name = row["PatientNumber"], f"{row['SliceNumber']}.jpg"
    folder = f"{int(number):03}"
    absent = [window for window in WINDOWS if (folder, window, name) not in there]
    missing = absent[0] if len(absent) == 1 else ""  # if both are missing, neither can replace the other
    shown = [WINDOWS[1 - place] if window == missing else window for place, window in enumerate(WINDOWS)]
    return Record(
        uid=f"hemorrhage/{number}/{row['SliceNumber']}",
        dataset="hemorrhage",
        modality="CT",
        media=tuple(Media("image", path=root / IMAGES / folder / window / name) for window in shown),
        question=QUESTION,
        answer=CHOICES[row["No_Hemorrhage"] == "0"],
        choices=CHOICES,
        patient=number,
        sex=patient.sex,
        age=patient.age,
        extra={
            "slice": row["SliceNumber"],
            "types": ", ".join(name for name in TYPES if row[name] == "1"),
            "fracture": "yes" if row["Fracture_Yes_No"] == "1" else "no",
            "missing_window": missing,
        },
        split=split,
    )


def _problem(row: Mapping[str, str], patients: Mapping[str, _Patient]) -> str:
    """The problem of a row; "" if there is none."""
    if row["PatientNumber"] not in patients:
        return f"PatientNumber is {row['PatientNumber']!r}, not in patient_demographics.csv"
    if not row["SliceNumber"].isdecimal():
        return f"SliceNumber is {row['SliceNumber']!r}"
    bad = [f"{name} is {row[name]!r}" for name in _DIAGNOSIS[2:] if row[name] not in ("0", "1")]
    return f"{', '.join(bad)}; wanted 0 or 1" if bad else ""


def _lacks(row: Mapping[str, str], record: Record) -> Iterator[str]:
    """Reasons why a record is incomplete."""
    if record.extra["missing_window"]:
        yield f"no {record.extra['missing_window']} window"
    if bool(record.extra["types"]) == (row["No_Hemorrhage"] == "1"):
        yield "No_Hemorrhage and the five types disagree"


def _patients(path: Path) -> dict[str, _Patient]:
    table = read_csv(path, _PEOPLE)
    seen: dict[str, int] = {}
    patients = {}
    for line, row in table:
        number = row["Patient Number"]
        if not number.isdecimal():
            table.problems.add(line, f"Patient Number is {number!r}")
        once(table.problems, seen, line, f"patient {number}")
        patients[number] = _Patient(*told(table.problems, line, row["Gender"], row["Age (years)"]))
    return patients


def _slices(root: Path) -> set[tuple[str, ...]]:
    """(patient, window, file) of every slice on disk; masks have other names."""
    return {path.relative_to(root / IMAGES).parts for path in (root / IMAGES).glob("*/*/*.jpg")}
