"""VinDr-Mammo: 20,000 mammograms of 5,000 exams in four views, with BI-RADS categories, density and age.

Nguyen et al., Scientific Data 10:277, 2023, doi 10.1038/s41597-023-02100-7; version 1.0.0 on PhysioNet, after signing a
data use agreement. All patients are women, so this dataset says nothing about fairness by sex.
"""

import ast
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from fairgrpo_jax.data.about import About
from fairgrpo_jax.data.images import check_split, once, told
from fairgrpo_jax.data.record import Media, Record, RecordList
from fairgrpo_jax.data.tables import read_csv


SPLITS = ("train", "test")
ABOUT = About(
    "vindr_mammo",
    "VinDr-Mammo 1.0.0",
    "https://physionet.org/content/vindr-mammo/1.0.0/",
    "PhysioNet Restricted Health Data License 1.5.0",
    "the folder of version 1.0.0: breast-level_annotations.csv, finding_annotations.csv, metadata.csv and images/ "
    "(338 GB)",
    note="The category is one of the breast: its two views share it. The DICOM identifiers are no valid UIDs.",
    published={
        "records/train": 16_000,
        "records/test": 4_000,
        "patients/train": 4_000,
        "patients/test": 1_000,
        "media": 20_000,
    },
)
QUESTION = (
    "This is a mammogram, an X-ray of one breast. Which BI-RADS category does the breast have? Answer with one of:"
)
CHOICES = ("BIRAD 1", "BIRAD 2", "BIRAD 3", "BIRAD 4", "BIRAD 5")

_SPLIT = {"training": "train", "test": "test"}
_COLUMNS = ("study_id", "image_id", "laterality", "view_position", "breast_birads", "breast_density", "split")
_AGE, _SEX, _KEY = "Patient's Age", "Patient's Sex", "SOP Instance UID"
_ALIASES = {_AGE: ("PatientAge", "Patient Age"), _SEX: ("PatientSex", "Patient Sex"), _KEY: ("SOPInstanceUID",)}


def load(
    root: str | Path, *, split: Literal["train", "test"], window: Literal["voi", "minmax"] = "voi", headers: bool = True
) -> RecordList:
    """One record per view, asking for the BI-RADS category of the breast.

    Args:
        root: the owner's folder.
        split: ``"train"`` or ``"test"``, the owner's splits, which share no exams.
        window: conversion of 16 bits to 8: ``"voi"`` as a viewer does, ``"minmax"`` from the darkest to the brightest
            pixel, close to FairGRPO's training (there: divided by the brightest).
        headers: whether to read age or sex from the header of the DICOM file if ``metadata.csv`` lacks them (needs
            pydicom).

    Returns:
        A ``Source`` in the order of the table. ``patient`` is the exam; ``extra`` holds ``laterality`` (L, R), ``view``
        (CC, MLO), ``density`` (A to D) and ``findings``, joined by ", " (with ``finding_annotations.csv``; "" for
        none). ``left_out`` counts missing files among those needed for age or sex.

    Raises:
        ValueError: for missing tables; bad rows, with their lines; a DICOM file that cannot be read; an unknown split;
            no pydicom.

    Source:
        Labels and their spelling: CLIMB (DDVD233/CLIMB).

    Example:
        ``load("vindr-mammo", split="test")[0].extra["density"]``
    """
    check_split(split, SPLITS, ABOUT.title)
    if window not in ("voi", "minmax"):
        raise ValueError(f"window is {window!r}; wanted 'voi' or 'minmax'")
    root = Path(root)
    breasts, metadata = ABOUT.require(root, "breast-level_annotations.csv", "metadata.csv")
    people, findings = _people(metadata), _findings(root / "finding_annotations.csv")
    table = read_csv(breasts, _COLUMNS)
    seen: dict[str, int] = {}
    left_out: Counter[str] = Counter()
    records = []
    for line, row in table:
        once(table.problems, seen, line, row["image_id"])
        if problem := _problem(row):
            table.problems.add(line, problem)
            continue
        if _SPLIT[row["split"]] != split:
            continue
        path = root / "images" / row["study_id"] / f"{row['image_id']}.dicom"
        sex, age = people.get(row["image_id"], (None, None))
        if headers and (sex is None or age is None):
            if path.is_file():
                raw_sex, raw_age = _header(path)
                read = told(table.problems, line, raw_sex, raw_age)
                sex, age = sex or read[0], read[1] if age is None else age
            else:
                left_out["age or sex untold, and no file to ask"] += 1
        records.append(
            Record(
                uid=f"vindr_mammo/{row['image_id']}",
                dataset="vindr_mammo",
                modality="mammography",
                media=(Media("image", path=path, window=window),),
                question=QUESTION,
                answer=f"BIRAD {row['breast_birads'][-1]}",
                choices=CHOICES,
                patient=row["study_id"],
                sex=sex,
                age=age,
                extra={
                    "laterality": row["laterality"],
                    "view": row["view_position"],
                    "density": row["breast_density"][-1],
                    "findings": findings.get(row["image_id"], ""),
                },
                split=split,
            )
        )
    return RecordList(tuple(records), dict(left_out))


def _problem(row: Mapping[str, str]) -> str:
    """The problem of a row; "" if there is none."""
    wanted = {
        "study_id": "[0-9a-f]{32}",
        "image_id": "[0-9a-f]{32}",
        "laterality": "L|R",
        "view_position": "CC|MLO",
        "breast_birads": "BI-RADS [1-5]",
        "breast_density": "DENSITY [A-D]",
        "split": "training|test",
    }
    bad = [f"{name} is {row[name]!r}" for name, form in wanted.items() if not re.fullmatch(form, row[name])]
    return ", ".join(bad)


def _people(path: Path) -> dict[str, tuple[Literal["F", "M"] | None, float | None]]:
    """Sex and age by image."""
    table = read_csv(path, (_KEY,), optional=(_AGE, _SEX), aliases=_ALIASES)
    seen: dict[str, int] = {}
    people = {}
    for line, row in table:
        once(table.problems, seen, line, row[_KEY])
        people[row[_KEY]] = told(table.problems, line, row[_SEX], row[_AGE])
    return people


def _findings(path: Path) -> dict[str, str]:
    """The findings of each image, in the order of the table; "" for none."""
    if not path.is_file():
        return {}
    table = read_csv(path, ("image_id", "finding_categories"))
    found: dict[str, dict[str, None]] = {}
    for line, row in table:
        try:
            names = ast.literal_eval(row["finding_categories"])
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError("no list of names")
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            table.problems.add(line, f"finding_categories is {row['finding_categories']!r}; wanted a list of names")
            continue
        found.setdefault(row["image_id"], {}).update(dict.fromkeys(name for name in names if name != "No Finding"))
    return {image: ", ".join(names) for image, names in found.items()}


def _header(path: Path) -> tuple[str, str]:
    """Sex and age as written in a DICOM file; its pixels are not read."""
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ImportError as error:
        told_by = f"metadata.csv lacks the age or sex of {path.stem}"
        raise ValueError(f"{told_by}: pip install pydicom to read it from the file, or pass headers=False") from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Invalid value for VR UI")  # the owner's identifiers are md5 sums
            file = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientSex", "PatientAge"])
            return str(file.get("PatientSex") or ""), str(file.get("PatientAge") or "")
    except (InvalidDicomError, OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: no DICOM header to read ({error}); download the file again") from error
