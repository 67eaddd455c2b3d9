"""CheXpert: 223,414 chest X-rays of 64,540 patients to train on, 234 of 200 to validate; 14 findings, sex, age, race.

Irvin et al., AAAI 2019, arXiv 1901.07031. Research use only, after registration; nothing of it may be passed on.
Labels of the training set were extracted from the radiologists' reports by a program; those of the validation set are
the votes of three radiologists.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Literal

from fairgrpo_jax.data.about import About
from fairgrpo_jax.data.images import check_split, once, told
from fairgrpo_jax.data.record import Media, Record, RecordList
from fairgrpo_jax.data.tables import Problems, Table, read_csv


SPLITS = ("train", "valid")
ABOUT = About(
    "chexpert",
    "CheXpert",
    "https://stanfordmlgroup.github.io/competitions/chexpert",
    "Stanford University Dataset Research Use Agreement",
    "CheXpert-v1.0-small.zip (11 GB) or CheXpert-v1.0.zip, unpacked; for race CHEXPERT DEMO.xlsx beside it",
    note="Rows without a positive label have no answer and are left out: 11,171 of train and 9 of valid.",
    published={"records/train": 212_243, "records/valid": 225},
)
FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
QUESTION = (
    "This is a chest X-ray of a patient. Which of these findings does it show? "
    "Answer with one or several of them, separated by commas:"
)
PEOPLE = ("CHEXPERT DEMO.xlsx", "CHEXPERT_DEMO.xlsx", "CHEXPERT DEMO.csv", "CHEXPERT_DEMO.csv")

_BATCH = "CheXpert-v1.0 batch*"
_NAME = re.compile(
    r"(?:CheXpert-v1\.0(?:-small| batch[^/]*)?/)?"
    r"(?P<name>(?P<split>train|valid)/(?P<patient>patient\d+)/(?P<study>study\d+)/view\d+_(?:frontal|lateral)\.jpg)"
)
_POSITIVE, _NEGATIVE, _OPEN = {"1.0", "1"}, {"0.0", "0", ""}, {"-1.0", "-1"}
_KNOWN = _POSITIVE | _NEGATIVE | _OPEN
_PICK = itemgetter(*FINDINGS)
_EXTRA = ("view", "projection", "study", "uncertain", "race", "race_told", "ethnicity")
_UNTOLD = ("", "", "")
_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)
# Substrings of the sheet's entries for race, in order: "Native Hawaiian or Other Pacific Islander" is not "Other".
_RACES = {
    "pacific islander": "Pacific Islander",
    "native american": "Native American",
    "american indian": "Native American",
    "asian": "Asian",
    "black": "Black",
    "white": "White",
    "other": "Other",
}


def load(
    root: str | Path,
    *,
    split: Literal["train", "valid"],
    uncertain: Literal["zeros", "ones", "ignore"] = "zeros",
    view: Literal["all", "frontal", "lateral"] = "all",
) -> RecordList:
    """One record per image, asking for all its findings; the answer lists the positive ones in the table's order.

    Args:
        root: the folder with ``train.csv`` and ``valid.csv``, or the one around it; or the folder around those named
            ``CheXpert-v1.0 batch ...``.
        split: ``"train"`` or ``"valid"``, the owner's splits, which share no patients.
        uncertain: treatment of labels that the report leaves open (-1): negative (``"zeros"``, as in FairGRPO),
            positive (``"ones"``), or the image is excluded (``"ignore"``, because a text cannot leave a label open).
        view: all images, or only the frontal or the lateral ones.

    Returns:
        A ``Source`` in the order of the table. Images without a positive finding have no answer, are excluded and
        counted in ``left_out``. ``extra`` holds ``view`` ("Frontal" or "Lateral"), ``projection`` (AP, PA, LL, RL),
        ``study``, ``uncertain`` (the open labels) and, with the sheet ``CHEXPERT DEMO`` (.xlsx or .csv) in the folder,
        ``race`` (White, Black, Asian, Pacific Islander, Native American, Other), ``race_told`` (the sheet's own words)
        and ``ethnicity`` (Hispanic, Non-Hispanic); each is "" if unknown.

    Raises:
        ValueError: for missing tables; bad rows, with their lines; an unknown split or option; an ``.xlsx`` sheet
            without openpyxl installed.

    Source:
        Labels and their order: the owner's table. Which rows, and ``uncertain="zeros"``: CLIMB (DDVD233/CLIMB), whose
        preparation keeps 212,243 and 225 images. Unlike there, an ``Unknown`` sex is unknown and not a third sex.

    Example:
        ``load("CheXpert-v1.0-small", split="valid")[0].answer``
    """
    check_split(split, SPLITS, ABOUT.title)
    if uncertain not in ("zeros", "ones", "ignore"):
        raise ValueError(f"uncertain is {uncertain!r}; wanted 'zeros', 'ones' or 'ignore'")
    if view not in ("all", "frontal", "lateral"):
        raise ValueError(f"view is {view!r}; wanted 'all', 'frontal' or 'lateral'")
    root = Path(root)
    folder = _tables(root)
    (path,) = ABOUT.require(folder, f"{split}.csv")
    left_out: Counter[str] = Counter()
    races = _races(root, folder, left_out)
    place = _places(root, folder, split)
    records = tuple(_records(read_csv(path, _COLUMNS), split, uncertain, view, place, races, left_out))
    return RecordList(records, dict(left_out))


def _records(
    table: Table,
    split: str,
    uncertain: str,
    view: str,
    place: Callable[[str, str], Path],
    races: Mapping[str, tuple[str, str, str]],
    left_out: Counter[str],
) -> Iterator[Record]:
    problems, seen = table.problems, {}
    extras: dict[tuple[str, ...], dict[str, str]] = {}  # few distinct rows: each is held once
    for line, row in table:
        match = _NAME.fullmatch(row["Path"])
        sex, age = told(problems, line, row["Sex"], row["Age"])
        answer, unsure, bad = _labels(_PICK(row), uncertain)
        if not match or match["split"] != split:
            wanted = f"{split}/patient.../study.../view..._frontal.jpg or _lateral.jpg"
            problems.add(line, f"Path is {row['Path']!r}; wanted {wanted}")
            continue
        if bad or row["Frontal/Lateral"] not in ("Frontal", "Lateral"):
            problems.add(line, bad or f"Frontal/Lateral is {row['Frontal/Lateral']!r}")
            continue
        name, _, patient, study = match.groups()
        once(problems, seen, line, name)
        if view != "all" and row["Frontal/Lateral"].lower() != view:
            left_out[f"not {view}"] += 1
        elif unsure and uncertain == "ignore":
            left_out["a label is uncertain"] += 1
        elif not answer:
            left_out["no label is positive"] += 1
        else:
            kind = (row["Frontal/Lateral"], row["AP/PA"], study, unsure, *races.get(patient, _UNTOLD))
            if kind not in extras:
                extras[kind] = dict(zip(_EXTRA, kind, strict=True))
            yield Record(
                uid=f"chexpert/{name[:-4]}",
                dataset="chexpert",
                modality="chest X-ray",
                media=(Media("image", path=place(name, patient)),),
                question=QUESTION,
                answer=answer,
                choices=FINDINGS,
                patient=sys.intern(patient),
                sex=sex,
                age=age,
                extra=extras[kind],
                split=split,
            )


@lru_cache(maxsize=1 << 16)
def _labels(values: tuple[str, ...], uncertain: str) -> tuple[str, str, str]:
    """The positive labels, the open ones, and any problem, each "" if there is none."""
    pairs = list(zip(FINDINGS, values, strict=True))
    positive = _POSITIVE | _OPEN if uncertain == "ones" else _POSITIVE
    bad = [f"{finding} is {value!r}" for finding, value in pairs if value not in _KNOWN]
    return (
        ", ".join(finding for finding, value in pairs if value in positive),
        ", ".join(finding for finding, value in pairs if value in _OPEN),
        f"{', '.join(bad)}; wanted 1.0, 0.0, -1.0 or nothing" if bad else "",
    )


def _tables(root: Path) -> Path:
    """The folder of ``train.csv`` and ``valid.csv``: the root or a folder directly below it."""
    for folder in (root, *sorted(root.glob("CheXpert-v1.0*"))):
        if any((folder / f"{split}.csv").is_file() for split in SPLITS):
            return folder
    return root


def _places(root: Path, folder: Path, split: str) -> Callable[[str, str], Path]:
    """Returns a function from name and patient to the image, in the tables' folder or the patient's batch folder."""
    batches = sorted({*root.glob(_BATCH), *folder.parent.glob(_BATCH)})
    where: dict[str, Path] = {}
    for batch in batches:
        for patients in (batch / split, batch):
            if patients.is_dir():
                where.update((name, patients) for name in os.listdir(patients) if name.startswith("patient"))

    def place(name: str, patient: str) -> Path:
        return where[patient] / name.partition("/")[2] if patient in where else folder / name

    return place


def _races(root: Path, folder: Path, left_out: Counter[str]) -> dict[str, tuple[str, str, str]]:
    """Race and ethnicity by patient, from the sheet if it is beside the tables; unknown if entries disagree."""
    found = [path for place in (root, folder) for name in PEOPLE if (path := place / name).is_file()]
    if not found:
        return {}
    columns = ("PATIENT", "PRIMARY_RACE", "ETHNICITY")
    rows = _sheet(found[0], columns) if found[0].suffix == ".xlsx" else read_csv(found[0], columns)
    problems, people = Problems(found[0]), {}
    for line, row in rows:
        if not re.fullmatch(r"patient\d+", row["PATIENT"]):
            problems.add(line, f"PATIENT is {row['PATIENT']!r}; wanted patient and a number")
        about = (_race(row["PRIMARY_RACE"]), row["PRIMARY_RACE"], _ethnicity(row["ETHNICITY"]))
        if people.setdefault(row["PATIENT"], about) != about:
            people[row["PATIENT"]] = _UNTOLD
            left_out["race told in two ways"] += 1
    problems.raise_if_any()
    return people


def _sheet(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of the first sheet of a workbook."""
    try:
        import openpyxl
    except ImportError as error:
        raise ValueError(f"{path} is a workbook: pip install openpyxl, or save it as {path.stem}.csv") from error
    try:
        with path.open("rb") as file:
            rows = (
                openpyxl.load_workbook(file, read_only=True, data_only=True).worksheets[0].iter_rows(values_only=True)
            )
            header = ["" if name is None else str(name).strip() for name in next(rows, ())]
            cells = list(rows)
    except Exception as error:  # broken zip or XML, a missing part: openpyxl has no error class for them
        raise ValueError(f"{path} is no whole workbook ({error}); get it again from its owner") from error
    if absent := [name for name in columns if name not in header]:
        raise ValueError(f"{path}: missing columns {', '.join(absent)}; it has {', '.join(header)}")
    for line, row in enumerate(cells, 2):
        values = ["" if value is None else str(value).strip() for value in row]
        if any(values):
            yield line, dict(zip(header, values, strict=False))


def _race(words: str) -> str:
    return next((race for part, race in _RACES.items() if part in words.lower()), "")


def _ethnicity(words: str) -> str:
    text = words.lower()
    if "hispanic" not in text:
        return ""
    return "Non-Hispanic" if text.startswith(("non", "not")) else "Hispanic"
