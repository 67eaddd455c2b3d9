"""HAM10000 in both its owners' forms, made here: the images in two parts, and the challenge's ground truth."""

from tests.dataset_fixtures import images


METADATA = (
    "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
    "HAM_9900000,ISIC_9900035,bkl,histo,85.0,male,neck\n"
    "HAM_9900000,ISIC_9900031,bkl,histo,85.0,male,neck\n"
    "HAM_9900001,ISIC_9900034,nv,follow_up,,unknown,unknown\n"
    "HAM_9900003,ISIC_9900038,mel,histo,0,female,back\n"
    "HAM_9900002,ISIC_9900036,akiec,histo,65.0,male,hand\n"
    "HAM_9900005,ISIC_9900033,bcc,histo,60,female,ear\n"
    "HAM_9900006,ISIC_9900032,vasc,consensus,55.0,female,trunk\n"
    "HAM_9900004,ISIC_9900037,df,histo,50.0,male,foot\n"
)
COLUMNS = "MEL,NV,BCC,AKIEC,BKL,DF,VASC"


def rows():
    """The rows of the table as dictionaries."""
    head, *lines = METADATA.splitlines()
    return [dict(zip(head.split(","), line.split(","), strict=True)) for line in lines]


def with_dataset():
    """The newer form of the table, with the hospital in its last column."""
    head, *lines = METADATA.splitlines()
    return "\n".join([head + ",dataset", *(line + ",vidir_modern" for line in lines)]) + "\n"


def challenge_truth():
    """``ISIC2018_Task3_Training_GroundTruth.csv``: one-hot, in another order than the metadata."""
    names = COLUMNS.split(",")
    lines = [
        ",".join([row["image_id"], *("1.0" if name == row["dx"].upper() else "0.0" for name in names)])
        for row in sorted(rows(), key=lambda row: row["image_id"])
    ]
    return "\n".join(["image," + COLUMNS, *lines]) + "\n"


def write(root, *, metadata="HAM10000_metadata", text=METADATA):
    """Form (a): two folders of images and the table; returns the folder."""
    root.mkdir(parents=True, exist_ok=True)
    (root / metadata).write_text(text)
    for seed, row in enumerate(rows()):
        part = "HAM10000_images_part_1" if seed % 2 else "HAM10000_images_part_2"
        images.save(root / part / f"{row['image_id']}.jpg", seed, (60, 45))
    return root


def write_zipped(root):
    """Form (a) as downloaded: the images still in their two archives."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "HAM10000_metadata").write_text(METADATA)
    parts = {1: {}, 2: {}}
    for seed, row in enumerate(rows()):
        parts[1 + seed % 2][f"{row['image_id']}.jpg"] = images.encoded(seed, (60, 45))
    for part, members in parts.items():
        (root / f"HAM10000_images_part_{part}.zip").write_bytes(images.archive(members))
    return root


def write_challenge(root):
    """Form (b): the challenge's images and ground truth, with the metadata of form (a) beside them."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "HAM10000_metadata").write_text(METADATA)
    (root / "ISIC2018_Task3_Training_GroundTruth.csv").write_text(challenge_truth())
    for seed, row in enumerate(rows()):
        images.save(root / "ISIC2018_Task3_Training_Input" / f"{row['image_id']}.jpg", seed, (60, 45))
    return root
