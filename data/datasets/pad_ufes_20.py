"""PAD-UFES-20: 2,298 smartphone photographs of 1,641 skin lesions of 1,373 patients in Brazil, with many attributes.

Pacheco et al., Data in Brief 32:106221, 2020, doi 10.1016/j.dib.2020.106221. Licence CC BY 4.0. Sex, skin type and
indicators of income are known for all 1,089 cancers, but only for a third of the 1,209 other lesions: a group "sex
unknown" has no cancers, and excluding it changes the distribution of answers.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from fairgrpo_jax.data.about import About
from fairgrpo_jax.data.images import Images, check_split, images, members, once, told
from fairgrpo_jax.data.record import Record, RecordList
from fairgrpo_jax.data.splits import by_patient
from fairgrpo_jax.data.tables import read_csv


SPLITS = ("train", "test")
ABOUT = About(
    "pad_ufes_20",
    "PAD-UFES-20",
    "https://data.mendeley.com/datasets/zr7vgbcyr2/1",
    "CC BY 4.0",
    "zr7vgbcyr2-1.zip (3.4 GB), as it is or unpacked; the archives inside may stay packed",
    note="The sex of 804 images is unknown, none of them a cancer.",
    published={
        "media": 2_298,
        "answer/AKIEC": 922,
        "answer/Basal Cell Carcinoma": 845,
        "answer/Nevus": 244,
        "answer/Other": 235,
        "answer/Melanoma": 52,
        "sex/F": 753,
        "sex/M": 741,
        "sex/unknown": 804,
    },
)
QUESTION = "This is a photograph of a skin lesion, taken in a clinic. What kind of lesion is it? Answer with one of:"
CHOICES = ("Melanoma", "Nevus", "Basal Cell Carcinoma", "AKIEC", "Other")
CLASSES = {
    "MEL": CHOICES[0],
    "NEV": CHOICES[1],
    "BCC": CHOICES[2],
    "ACK": CHOICES[3],
    "SCC": CHOICES[3],
    "SEK": CHOICES[4],
}
PARTS = ("imgs_part_1", "imgs_part_2", "imgs_part_3")
TEST_SHARE = 0.2

_COLUMNS = ("patient_id", "lesion_id", "age", "gender", "diagnostic", "img_id", "biopsed")
_TOLD = ("region", "has_piped_water", "has_sewage_system", "background_father", "background_mother")
_FLAGS = ("biopsed", "has_piped_water", "has_sewage_system")
_ALIASES = {"fitspatrick": ("fitzpatrick",), "biopsed": ("biopsied",)}
_NAME = re.compile(r"PAT_\d+_\d+_\d+\.png")


def load(root: str | Path, *, split: Literal["train", "test"]) -> RecordList:
    """One record per photograph, asking for its class; actinic keratoses and squamous cell carcinomas are AKIEC.

    Args:
        root: the folder with ``metadata.csv`` and ``images/`` (the parts as folders or zips, or all photographs in one
            folder), or with the single archive that the owner publishes.
        split: ``"train"`` or ``"test"``; about a fifth of the patients is held out, by ``splits.by_patient``.

    Returns:
        A ``Source`` in the order of the metadata. ``extra`` holds, usable as groups: ``skin_type`` (Fitzpatrick, "1" to
        "6"), ``has_piped_water`` and ``has_sewage_system`` ("True" or "False"; indicators of income),
        ``background_father`` and ``background_mother`` (countries); and ``lesion_id``, ``diagnosis`` (one of six),
        ``biopsied`` and ``region``. Each is "" if unknown.

    Raises:
        ValueError: for missing metadata; bad rows, with their lines; a broken archive; an unknown split.

    Source:
        Classes: CLIMB (DDVD233/CLIMB), which splits by image without a seed, so that patients are on both sides. The
            sex is kept, unlike in FairGRPO's training, which looks for ``sex`` where the owner writes ``gender``.

    Example:
        ``load("pad-ufes-20", split="test")[0].extra["skin_type"]``
    """
    check_split(split, SPLITS, ABOUT.title)
    root = Path(root)
    table = read_csv(_metadata(root), _COLUMNS, optional=("fitspatrick", *_TOLD), aliases=_ALIASES)
    rows = list(table)
    found = images(root, ("images", *PARTS, *(path.name for path in sorted(root.glob("*.zip")))), ".png")
    test = by_patient([row["patient_id"] for _, row in rows], fraction=TEST_SHARE, seed=0)
    seen: dict[str, int] = {}
    records = []
    for (line, row), held_out in zip(rows, test, strict=True):
        once(table.problems, seen, line, row["img_id"])
        sex, age = told(table.problems, line, row["gender"], row["age"])
        if problem := _problem(row):
            table.problems.add(line, problem)
        elif held_out == (split == "test"):
            records.append(_record(row, split, found, sex, age))
    table.problems.raise_if_any()
    return RecordList(tuple(records))


def _record(
    row: Mapping[str, str], split: str, found: Images, sex: Literal["F", "M"] | None, age: float | None
) -> Record:
    known = {name: "" if row[name].upper() == "UNK" else row[name] for name in row}
    return Record(
        uid=f"pad_ufes_20/{row['img_id'].removesuffix('.png')}",
        dataset="pad_ufes_20",
        modality="clinical photograph",
        media=(found.media(row["img_id"]),),
        question=QUESTION,
        answer=CLASSES[row["diagnostic"]],
        choices=CHOICES,
        patient=row["patient_id"],
        sex=sex,
        age=age,
        extra={
            "skin_type": known["fitspatrick"].removesuffix(".0"),
            "has_piped_water": known["has_piped_water"].capitalize(),
            "has_sewage_system": known["has_sewage_system"].capitalize(),
            "background_father": _country(known["background_father"]),
            "background_mother": _country(known["background_mother"]),
            "lesion_id": row["lesion_id"],
            "diagnosis": row["diagnostic"],
            "biopsied": known["biopsed"].capitalize(),
            "region": known["region"],
        },
        split=split,
    )


def _problem(row: Mapping[str, str]) -> str:
    """The problem of a row; "" if there is none."""
    if row["diagnostic"] not in CLASSES:
        return f"diagnostic is {row['diagnostic']!r}; wanted one of {', '.join(CLASSES)}"
    if not _NAME.fullmatch(row["img_id"]) or not row["patient_id"]:
        return f"img_id is {row['img_id']!r}, patient_id {row['patient_id']!r}; wanted PAT_....png and a patient"
    if row["fitspatrick"].removesuffix(".0") not in ("", "1", "2", "3", "4", "5", "6"):
        return f"fitspatrick is {row['fitspatrick']!r}; wanted 1 to 6 or nothing"
    bad = [f"{name} is {row[name]!r}" for name in _FLAGS if row[name].lower() not in ("true", "false", "unk", "")]
    return f"{', '.join(bad)}; wanted True, False or nothing" if bad else ""


def _country(name: str) -> str:
    return "BRAZIL" if name == "BRASIL" else name


def _metadata(root: Path) -> Path | zipfile.Path:
    """``metadata.csv`` in the folder, or inside an archive in the folder."""
    if not (root / "metadata.csv").is_file():
        for archive in sorted(root.glob("*.zip")):
            for member in members(archive, "metadata.csv"):
                if "!" not in member:
                    return zipfile.Path(archive, member)
    return ABOUT.require(root, "metadata.csv")[0]
