"""COVID-BLUES: 362 lung ultrasound videos of 63 patients suspected of COVID-19, with PCR results, sex and age.

Wiedemann et al., IEEE J. Biomed. Health Inform. 29(9), 2025, doi 10.1109/JBHI.2025.3543686. Licence CC BY-NC-ND 4.0:
read the owners' files where they lie, pass on nothing made from them. 16 patients are held out; a result on so few
says that a pipeline runs, not how well a model diagnoses.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fairgrpo_jax.data import demographics
from fairgrpo_jax.data.record import Media, Record, RecordList
from fairgrpo_jax.data.splits import by_number


OWNER = "https://github.com/NinaWie/COVID-BLUES"
QUESTION = "Does the patient have COVID?"
CHOICES = ("Has COVID", "No COVID")
TRAIN_SHARE = 0.75  # of the patients in numerical order

_STEM = re.compile(r"patient_(\d+)_([LR][123])(_2)?")
_SEX: dict[str, Literal["F", "M"] | None] = {"0": "F", "0.0": "F", "1": "M", "1.0": "M", "-99": None, "-99.0": None}
_COLUMNS = {
    "clinical_variables.csv": ("patient_id", "cov_test", "pat_sex", "pat_age"),
    "severity.csv": ("video_file", "Severity Score", "A-lines", "B-lines"),
}


@dataclass(frozen=True)
class _Patient:
    answer: str
    sex: Literal["F", "M"] | None
    age: float | None


def load(root: str | Path, *, split: Literal["train", "test"], num_frames: int = 4) -> RecordList:
    """One record a video, asking whether its patient has COVID (the patient's PCR test).

    Args:
        root: the owners' folder, with ``clinical_variables.csv``, ``severity.csv`` and ``lus_videos/``.
        split: ``"train"`` or ``"test"``: in numerical order of their ids the first 75 % of the patients, and the rest;
            266 and 96 videos, 47 and 16 patients, as in the benchmark FairGRPO was trained on.
        num_frames: frames of a video the model sees, spread evenly over it.

    Returns:
        A ``Source`` in the order of patient and video name. ``extra`` holds the readers' ``severity`` (0 to 3), and
        ``a_lines`` and ``b_lines`` ("yes" or "no"), empty where they gave none, and ``blue_point`` (L1 to R3).

    Raises:
        ValueError: files that are missing, all of them named at once; a column that is missing; a video without a row
            in ``severity.csv`` or of an unknown patient; a patient without a PCR result; an unknown split.

    Source:
        The split is that of CLIMB (DDVD233/CLIMB). Unlike there, sex is kept beside age, and a video that does not
        decode is an error, not a black clip.

    Example:
        ``load("covid-blues", split="test")[0].question``
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; COVID-BLUES has 'train' and 'test'")
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; wanted at least 1")
    root = Path(root)
    patients, readings = _tables(root)
    _check(root, patients, readings)
    order = sorted(patients, key=int)
    held_out = dict(zip(order, by_number(order, fraction=TRAIN_SHARE), strict=True))
    stems = sorted(readings, key=lambda stem: (int(_parse(stem)[0]), stem))
    return RecordList(
        tuple(
            _record(root, stem, readings[stem], patients[_parse(stem)[0]], split, num_frames)
            for stem in stems
            if held_out[_parse(stem)[0]] == (split == "test")
        )
    )


def _record(root: Path, stem: str, reading: Mapping[str, str], patient: _Patient, split: str, frames: int) -> Record:
    number, point = _parse(stem)
    return Record(
        uid=f"covid_blues/{stem}",
        dataset="covid_blues",
        modality="ultrasound",
        media=(Media("video", path=_video(root, stem), num_frames=frames),),
        question=QUESTION,
        answer=patient.answer,
        choices=CHOICES,
        patient=number,
        sex=patient.sex,
        age=patient.age,
        extra={
            "severity": reading["Severity Score"],
            "a_lines": reading["A-lines"],
            "b_lines": reading["B-lines"],
            "blue_point": point,
        },
        split=split,
    )


def _tables(root: Path) -> tuple[dict[str, _Patient], dict[str, dict[str, str]]]:
    """Patients by number and the readers' rows by video."""
    absent = [name for name in (*_COLUMNS, "lus_videos") if not (root / name).exists()]
    if absent:
        raise ValueError(f"COVID-BLUES in {root}: missing {', '.join(absent)}; get the dataset from {OWNER}")
    clinical = _read(root / "clinical_variables.csv")
    patients = {str(int(float(row["patient_id"]))): _patient(row) for row in clinical}
    return patients, {row["video_file"]: row for row in _read(root / "severity.csv")}


def _patient(row: Mapping[str, str]) -> _Patient:
    test = {"1": CHOICES[0], "1.0": CHOICES[0], "0": CHOICES[1], "0.0": CHOICES[1]}
    if row["cov_test"] not in test:
        raise ValueError(f"COVID-BLUES patient {row['patient_id']}: cov_test is {row['cov_test']!r}; wanted 0 or 1")
    sex = demographics.sex(row["pat_sex"], codes=_SEX)
    return _Patient(test[row["cov_test"]], sex, demographics.age(row["pat_age"]))


def _read(path: Path) -> list[dict[str, str]]:
    """The named columns, stripped. Column names hold ``#``, which starts no comment."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        header = {name.strip(): name for name in reader.fieldnames or ()}
        if absent := [name for name in _COLUMNS[path.name] if name not in header]:
            raise ValueError(f"{path}: missing columns {', '.join(absent)}; get the file again from {OWNER}")
        return [{name: (row[header[name]] or "").strip() for name in _COLUMNS[path.name]} for row in reader]


def _check(root: Path, patients: Mapping[str, _Patient], readings: Mapping[str, object]) -> None:
    """Every video of the tables is there, and every video there is in the tables."""
    found = {path.stem for path in (root / "lus_videos").glob("*.mp4")}
    problems = {
        "missing videos": sorted(set(readings) - found),
        "videos without a row in severity.csv": sorted(found - set(readings)),
        "videos of patients not in clinical_variables.csv": sorted(
            stem for stem in found | set(readings) if _parse(stem)[0] not in patients
        ),
    }
    texts = [f"{len(names)} {what} ({_listed(names)})" for what, names in problems.items() if names]
    if texts:
        raise ValueError(f"COVID-BLUES in {root}: {'; '.join(texts)}; get the dataset from {OWNER}")


def _parse(stem: str) -> tuple[str, str]:
    """Patient number and examined point of a video name."""
    match = _STEM.fullmatch(stem)
    if not match:
        raise ValueError(f"COVID-BLUES video name {stem!r}; wanted patient_<number>_<L1..R3>, with _2 for a repeat")
    return match[1], match[2]


def _video(root: Path, stem: str) -> Path:
    return root / "lus_videos" / f"{stem}.mp4"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f", and {len(names) - 10} more" if len(names) > 10 else "")
