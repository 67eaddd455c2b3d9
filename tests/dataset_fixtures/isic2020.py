"""ISIC-2020's training set in its owners' form, made here with invented patients."""

from tests.dataset_fixtures import images


V1 = (
    "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target\n"
    "ISIC_9900011,IP_9900094,male,45.0,head/neck,unknown,benign,0\n"
    "ISIC_9900012,IP_9900002,female,45.0,upper extremity,unknown,benign,0\n"
    "ISIC_9900013,IP_9900001,female,50,lower extremity,nevus,benign,0\n"
    "ISIC_9900014,IP_9900010,,,torso,unknown,benign,0\n"
    "ISIC_9900015,IP_9900098,female,55.0,upper extremity,melanoma,malignant,1\n"
    "ISIC_9900016,IP_9900094,male,0,,seborrheic keratosis,benign,0\n"
)
DUPLICATES = "image_name_1,image_name_2\nISIC_9900016,ISIC_9900013\n"
LESIONS = ("IL_9900021", "IL_9900022", "IL_9900023", "IL_9900024", "IL_9900025", "IL_9900026")


def v2():
    """The second form: a lesion after the patient, and an all-zero column at the end that means nothing."""
    head, *rows = V1.splitlines()
    head = head.replace("patient_id,", "patient_id,lesion_id,") + ",asymmetry"
    out = [head]
    for row, lesion in zip(rows, LESIONS, strict=True):
        name, patient, rest = row.split(",", 2)
        out.append(f"{name},{patient},{lesion},{rest},0")
    return "\n".join(out) + "\n"


def names():
    """The images in the order of the table."""
    return [row.split(",")[0] for row in V1.splitlines()[1:]]


def write(root, *, version=1, folder="train", duplicates=True):
    """The owners' folder; returns it."""
    root.mkdir(parents=True, exist_ok=True)
    name, text = (("GroundTruth", V1), ("GroundTruth_v2", v2()))[version - 1]
    (root / f"ISIC_2020_Training_{name}.csv").write_text(text)
    if duplicates:
        (root / "ISIC_2020_Training_Duplicates.csv").write_text(DUPLICATES)
    for seed, image in enumerate(names()):
        images.save(root / folder / f"{image}.jpg", seed, (8 + 6 * seed, 8 + 4 * seed))
    return root
