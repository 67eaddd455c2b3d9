"""CheXpert in its owners' form, made here: grey JPEGs, train.csv and valid.csv, the sheet of demographics."""

from tests.dataset_fixtures import images


FINDINGS = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
    "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
).split(",")
HEADER = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(FINDINGS)
TRAIN = (
    ("patient70001/study1/view1_frontal.jpg", "Female,57,Frontal,AP", "1.0,,,,,,,0.0,,,,,,1.0"),
    ("patient70002/study2/view1_frontal.jpg", "Female,74,Frontal,AP", ",-1.0,,1.0,,,-1.0,-1.0,,,,,1.0,"),
    ("patient70002/study1/view1_frontal.jpg", "Female,73,Frontal,AP", ",,,1.0,-1.0,,,,,,,,1.0,"),
    ("patient70002/study1/view2_lateral.jpg", "Female,73,Lateral,", ",,,,,,,,,,,,,"),
    ("patient70003/study1/view1_frontal.jpg", "Male,38,Frontal,PA", ",,,,,1.0,,,,0.0,,,,"),
    ("patient70004/study1/view1_frontal.jpg", "Unknown,0,Frontal,AP", ",,,,,,,,,,,,1.0,"),
    ("patient70005/study1/view1_frontal.jpg", "Male,90,Frontal,LL", ",,,,,-1.0,,,,0.0,,,,"),
)
VALID = (
    ("patient74541/study1/view1_frontal.jpg", "Male,66,Frontal,AP", "0.0,1.0,1.0,1.0," + "0.0," * 9 + "0.0"),
    ("patient74542/study1/view1_frontal.jpg", "Male,62,Frontal,PA", "0.0," * 13 + "1.0"),
    ("patient74542/study1/view2_lateral.jpg", "Male,62,Lateral,", "0.0," * 13 + "0.0"),
)
PEOPLE = (
    "PATIENT,GENDER,AGE_AT_CXR,PRIMARY_RACE,ETHNICITY",
    "patient70001,Female,57.0,Other,Hispanic/Latino",
    "patient70002,Female,74.0,Asian - Historical Conv,Non-Hispanic/Non-Latino",
    'patient70003,Male,38.0,"White, non-Hispanic",Not Hispanic',
    "patient70004,Unknown,0.0,Patient Refused,Patient Refused",
    "patient74541,Male,66.0,Native Hawaiian or Other Pacific Islander,Unknown",
)


def table(split, prefix="CheXpert-v1.0-small"):
    """The text of train.csv or valid.csv."""
    rows = {"train": TRAIN, "valid": VALID}[split]
    return "\n".join([HEADER, *(f"{prefix}/{split}/{path},{who},{labels}" for path, who, labels in rows)]) + "\n"


def write(root, prefix="CheXpert-v1.0-small"):
    """The unpacked archive ``root/prefix``; returns that folder."""
    folder = root / prefix
    for split, rows in (("train", TRAIN), ("valid", VALID)):
        for seed, row in enumerate(rows):
            images.save(folder / split / row[0], seed, mode="L")
        (folder / f"{split}.csv").write_text(table(split, prefix))
    return folder


def write_batches(root):
    """The form of the batch folders: the tables lie with the validation images, patients are spread over the rest."""
    tables = root / "CheXpert-v1.0 batch 1 (validate & csv)"
    for seed, (path, *_) in enumerate(TRAIN):
        batch = "batch 2 (train 1)" if path < "patient70003" else "batch 3 (train 2)"
        images.save(root / f"CheXpert-v1.0 {batch}" / path, seed, mode="L")
    for seed, (path, *_) in enumerate(VALID):
        images.save(tables / "valid" / path, seed, mode="L")
    for split in ("train", "valid"):
        (tables / f"{split}.csv").write_text(table(split, "CheXpert-v1.0"))
    return root
