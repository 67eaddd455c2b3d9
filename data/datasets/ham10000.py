"""HAM10000: 10,015 dermoscopic images of 7,470 skin lesions with seven diagnoses, here five classes, with sex and age.

Tschandl et al., Scientific Data 5:180161, 2018, doi 10.1038/sdata.2018.161. Licence CC BY-NC-SA 4.0. The owner
identifies lesions, not patients: two lesions of a patient may be on different sides of the split.
"""

import re
from pathlib import Path
from typing import Literal

from fairgrpo_jax.data.about import About
from fairgrpo_jax.data.images import check_split, images, once, told
from fairgrpo_jax.data.record import Record, RecordList
from fairgrpo_jax.data.splits import by_patient
from fairgrpo_jax.data.tables import read_csv


SPLITS = ("train", "test")
ABOUT = About(
    "ham10000",
    "HAM10000",
    "https://doi.org/10.7910/DVN/DBW86T",
    "CC BY-NC-SA 4.0",
    "HAM10000_metadata, HAM10000_images_part_1.zip and HAM10000_images_part_2.zip (2.8 GB; may stay packed), or the "
    "images of ISIC 2018 Task 3 (training) beside HAM10000_metadata",
    note="Of 57 images sex or age is unknown; 39 images tell an age of 0, which may be a code.",
    published={
        "media": 10_015,
        "answer/Nevus": 6_705,
        "answer/Other": 1_356,
        "answer/Melanoma": 1_113,
        "answer/Basal Cell Carcinoma": 514,
        "answer/AKIEC": 327,
        "sex/M": 5_406,
        "sex/F": 4_552,
        "sex/unknown": 57,
        "age/≤25": 659,
        "age/26–50": 4_688,
        "age/51–75": 3_917,
        "age/>75": 694,
        "age/unknown": 57,
    },
)
QUESTION = "This is a dermoscopic image of a skin lesion. What kind of lesion is it? Answer with one of:"
CHOICES = ("Melanoma", "Nevus", "Basal Cell Carcinoma", "AKIEC", "Other")
CLASSES = {
    "mel": CHOICES[0],
    "nv": CHOICES[1],
    "bcc": CHOICES[2],
    "akiec": CHOICES[3],
    "bkl": CHOICES[4],
    "df": CHOICES[4],
    "vasc": CHOICES[4],
}
METADATA = ("HAM10000_metadata", "HAM10000_metadata.csv", "HAM10000_metadata.tab")
CHALLENGE = "ISIC2018_Task3_Training_GroundTruth"
PARTS = ("HAM10000_images_part_1", "HAM10000_images_part_2", "ISIC2018_Task3_Training_Input")
PLACES = (*PARTS, *(f"{part}.zip" for part in PARTS), *(part.lower() for part in PARTS))
TEST_SHARE = 0.2

_NAME = re.compile(r"ISIC_\d{7}")
_COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")


def load(root: str | Path, *, split: Literal["train", "test"]) -> RecordList:
    """One record per image, asking for its class; benign keratoses, dermatofibromas and vascular lesions are "Other".

    Args:
        root: the folder with ``HAM10000_metadata`` (also .csv or .tab) and the images in ``PARTS``, folders or zips. If
            it has the ground truth of ISIC 2018 Task 3 too, its diagnoses must agree with the metadata.
        split: ``"train"`` or ``"test"``; about a fifth of the lesions is held out, by ``splits.by_patient``.

    Returns:
        A ``Source`` in the order of the metadata. ``patient`` is the lesion; ``extra`` holds the owner's ``dx`` (one of
        seven), ``dx_type`` (histo, follow_up, consensus, confocal), ``site`` and ``source`` (the hospital, in newer
        files), each "" if unknown.

    Raises:
        ValueError: for missing metadata; bad rows, with their lines; a ground truth that disagrees; an unknown split.

    Source:
        Classes: CLIMB (DDVD233/CLIMB), which splits by image without a seed, so that lesions are on both sides.

    Example:
        ``load("ham10000", split="test")[0].answer``
    """
    check_split(split, SPLITS, ABOUT.title)
    root = Path(root)
    (metadata,) = ABOUT.require(root, METADATA)
    table = read_csv(metadata, _COLUMNS, optional=("dataset",))
    rows = list(table)
    found = images(root, PLACES, ".jpg")
    test = by_patient([row["lesion_id"] for _, row in rows], fraction=TEST_SHARE, seed=0)
    seen: dict[str, int] = {}
    records = []
    for (line, row), held_out in zip(rows, test, strict=True):
        once(table.problems, seen, line, row["image_id"])
        sex, age = told(table.problems, line, row["sex"], row["age"])
        if row["dx"] not in CLASSES:
            table.problems.add(line, f"dx is {row['dx']!r}; wanted one of {', '.join(CLASSES)}")
        elif not _NAME.fullmatch(row["image_id"]) or not row["lesion_id"]:
            found_as = f"image_id is {row['image_id']!r}, lesion_id {row['lesion_id']!r}"
            table.problems.add(line, f"{found_as}; wanted ISIC_ and seven digits, and a lesion")
        elif held_out == (split == "test"):
            records.append(
                Record(
                    uid=f"ham10000/{row['image_id']}",
                    dataset="ham10000",
                    modality="dermoscopy",
                    media=(found.media(f"{row['image_id']}.jpg"),),
                    question=QUESTION,
                    answer=CLASSES[row["dx"]],
                    choices=CHOICES,
                    patient=row["lesion_id"],
                    sex=sex,
                    age=age,
                    extra={
                        "dx": row["dx"],
                        "dx_type": row["dx_type"],
                        "site": "" if row["localization"] == "unknown" else row["localization"],
                        "source": row["dataset"],
                    },
                    split=split,
                )
            )
    table.problems.raise_if_any()
    _check_challenge(root, {row["image_id"]: row["dx"] for _, row in rows})
    return RecordList(tuple(records))


def _check_challenge(root: Path, diagnoses: dict[str, str]) -> None:
    """Checks that the ground truth of ISIC 2018 Task 3, if present, agrees."""
    name = f"{CHALLENGE}.csv"
    for path in (root / name, root / CHALLENGE / name):
        if not path.is_file():
            continue
        columns = [dx.upper() for dx in CLASSES]
        table = read_csv(path, ("image", *columns))
        for line, row in table:
            marked = [column.lower() for column in columns if row[column] in ("1", "1.0")]
            zeros = sum(row[column] in ("0", "0.0") for column in columns)
            if len(marked) != 1 or zeros != len(columns) - 1:
                table.problems.add(line, f"{row['image']} is {', '.join(marked) or 'nothing'}; wanted one 1 and zeros")
            elif diagnoses.get(row["image"]) != marked[0]:
                told_as = diagnoses.get(row["image"], "not there")
                table.problems.add(line, f"{row['image']} is {marked[0]}, and {told_as} in the metadata")
