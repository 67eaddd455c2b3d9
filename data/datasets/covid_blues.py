"""COVID-BLUES: 362 lung ultrasound videos of 63 patients suspected of COVID-19, with PCR results, sex and age.

Wiedemann et al., IEEE J. Biomed. Health Inform. 29(9), 2025, doi 10.1109/JBHI.2025.3543686. Licence CC BY-NC-ND 4.0:
read the owners' files in place and do not pass on anything made from them. 16 patients are held out; a result on so few
shows that a pipeline runs, not how well a model diagnoses.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fairgrpo_jax.data import demographics
from fairgrpo_jax.data.about import About
from fairgrpo_jax.data.record import Media, Record, RecordList
from fairgrpo_jax.data.splits import by_number
from fairgrpo_jax.data.tables import read_csv


SPLITS = ("train", "test")
OWNER = "https://github.com/NinaWie/COVID-BLUES"
ABOUT = About(
    name="covid_blues",
    title="COVID-BLUES",
    where=OWNER,
    licence="CC BY-NC-ND 4.0",
    download="the repository as it is: clinical_variables.csv, severity.csv and lus_videos/",
    note="63 patients, 16 of them held out: enough to see that a pipeline runs, not how well a model diagnoses.",
    published={
        **{"records/train": 266, "records/test": 96, "patients/train": 47, "patients/test": 16, "media": 362},
        **{"answer/Has COVID": 197, "answer/No COVID": 165, "sex/unknown": 0, "age/unknown": 0},
    },
)
QUESTION = "This is a lung ultrasound video. Does the patient have COVID?"
CHOICES = ("Has COVID", "No COVID")
TRAIN_SHARE = 0.75  # share of the patients, in numerical order

_STEM = re.compile(r"patient_(\d+)_([LR][123])(_2)?")
_SEX: dict[str, Literal["F", "M"] | None] = {"0": "F", "0.0": "F", "1": "M", "1.0": "M", "-99": None, "-99.0": None}
_TEST = {"1": CHOICES[0], "1.0": CHOICES[0], "0": CHOICES[1], "0.0": CHOICES[1]}


@dataclass(frozen=True)
class _Patient:
    answer: str
    sex: Literal["F", "M"] | None
    age: float | None


def load(root: str | Path, *, split: Literal["train", "test"], num_frames: int | None = 4) -> RecordList:
    """One record per video, asking whether its patient has COVID (by PCR test).

    Args:
        root: the owners' folder, with ``clinical_variables.csv``, ``severity.csv`` and ``lus_videos/``.
        split: ``"train"`` or ``"test"``: the first 75 % of the patients in numerical order of their ids, or the rest;
            266 and 96 videos, 47 and 16 patients, as in the benchmark on which FairGRPO was trained.
        num_frames: number of frames of a video that the model sees, evenly spaced; None for all.

    Returns:
        A ``Source`` in the order of patient and video name. ``extra`` holds the readers' ``severity`` (0 to 3), and
        ``a_lines`` and ``b_lines`` ("yes" or "no"), "" if not given, and ``blue_point`` (L1 to R3).

    Raises:
        ValueError: for missing tables, all named; a missing column; rows of an unknown patient, without a PCR result,
            or duplicates, all named; a video without a row in ``severity.csv``; an unknown split. Missing videos are
            errors when decoded, and in ``data check``.

    Source:
        The split is that of CLIMB (DDVD233/CLIMB). Unlike there, sex is kept as well as age, and a video that cannot be
        decoded is an error, not a black clip.

    Example:
        ``load("covid-blues", split="test")[0].question``
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; COVID-BLUES has 'train' and 'test'")
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; wanted at least 1")
    root = Path(root)
    clinical, severity, videos = ABOUT.require(root, "clinical_variables.csv", "severity.csv", "lus_videos")
    patients = _patients(clinical)
    readings = _readings(severity, videos, patients)
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


def _record(
    root: Path, stem: str, reading: Mapping[str, str], patient: _Patient, split: str, frames: int | None
) -> Record:
    number, point = _parse(stem)
    return Record(
        uid=f"covid_blues/{stem}",
        dataset="covid_blues",
        modality="ultrasound",
        media=(Media("video", path=root / "lus_videos" / f"{stem}.mp4", num_frames=frames),),
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


def _patients(path: Path) -> dict[str, _Patient]:
    """Patients by number. Column names contain ``#``, which does not start a comment."""
    table, patients = read_csv(path, ("patient_id", "cov_test", "pat_sex", "pat_age")), dict[str, _Patient]()
    for line, row in table:
        try:
            number = _number(row["patient_id"])
            if number in patients:
                raise ValueError(f"patient {number} is there twice")
            if row["cov_test"] not in _TEST:
                raise ValueError(f"patient {number}: cov_test is {row['cov_test']!r}; wanted 0 or 1")
            sex = demographics.sex(row["pat_sex"], codes=_SEX)
            patients[number] = _Patient(_TEST[row["cov_test"]], sex, demographics.age(row["pat_age"]))
        except ValueError as error:
            table.problems.add(line, str(error))
    return patients


def _readings(path: Path, videos: Path, patients: Collection[str]) -> dict[str, dict[str, str]]:
    """The readers' rows by video; checks that every video has one and that its patient is known."""
    table = read_csv(path, ("video_file", "Severity Score", "A-lines", "B-lines"))
    readings: dict[str, dict[str, str]] = {}
    for line, row in table:
        stem = row["video_file"]
        try:
            if _parse(stem)[0] not in patients:
                raise ValueError(f"{stem} is of no patient in clinical_variables.csv")
            if stem in readings:
                raise ValueError(f"{stem} is there twice")
            readings[stem] = row
        except ValueError as error:
            table.problems.add(line, str(error))
    if strange := sorted({path.stem for path in videos.glob("*.mp4")} - set(readings)):
        names = ", ".join(strange[:10]) + (f", and {len(strange) - 10} more" if len(strange) > 10 else "")
        raise ValueError(
            f"{path}: {len(strange)} videos in {videos} have no row ({names}); get the dataset from {OWNER}"
        )
    return readings


def _number(text: str) -> str:
    """An integer, which some tables write as ``15.0``."""
    if not re.fullmatch(r"[0-9]+(\.0+)?", text):
        raise ValueError(f"patient_id is {text!r}; wanted a whole number")
    return str(int(text.partition(".")[0]))


def _parse(stem: str) -> tuple[str, str]:
    """Patient number and examined point from a video name."""
    match = _STEM.fullmatch(stem)
    if not match:
        raise ValueError(f"COVID-BLUES video name {stem!r}; wanted patient_<number>_<L1..R3>, with _2 for a repeat")
    return match[1], match[2]
