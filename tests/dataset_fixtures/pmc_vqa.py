"""PMC-VQA in its owners' form, made here: both versions' tables, the figures in zip files; invented questions."""

import csv
import io

from tests.dataset_fixtures import images


V1 = ("Figure_path", "Question", "Answer", "Choice A", "Choice B", "Choice C", "Choice D", "Answer_label")
V2 = ("index", "Figure_path", "Caption", "Question", "Choice A", "Choice B", "Choice C", "Choice D", "Answer", "split")
LUNG = (" A:Lung ", " B:Liver ", " C:Kidney ", " D:Spleen ")


def one(figure, question, answer, label, choices=LUNG):
    """A row of version 1."""
    return (figure, question, answer, *choices, label)


def two(index, figure, question, label, choices=LUNG, caption="(a) A slice, \nenlarged.", split="train"):
    """A row of version 2."""
    return (str(index), figure, caption, question, *choices, label, split)


TRAIN = (
    one("PMC1000001_F1.jpg", "Which organ, in the centre,\nis bright?", "Liver", "B"),
    one(
        "PMC1000001_F2.jpg",
        'What does "T2" stand for?',
        "A time",
        "C",
        ("A:Tissue", "B: Tone", " C:A time", " D:C:N ratio"),
    ),
    one("PMC1000002_F1.jpg", "Where is the arrow?", "none of them", "A", ("A: Top", "B:", "C: Top", "D: Below")),
    one("PMC1000005_F1.jpg", "Which is the dark organ?", "kidney", "'"),
)
TEST = (
    one("PMC1000001_F1.jpg", "Which organ lies below?", "Spleen", "D"),
    one("PMC1000003_F1.jpg", "Which organ is enlarged?", "Lung", "A"),
)
CLEAN = (TEST[1],)
TRAIN_2 = (
    two(0, "PMC1000001_F1.jpg", "Which organ, in the centre,\nis bright?", "B "),
    two(1, "PMC1000004_F2.jpg", "What is shown?", " A", ("Heart", " B: Heart ", " C: ", " Aorta, type A: thoracic ")),
)
TEST_2 = (two(0, "PMC1000006_F1.jpg", "Which organ is absent?", "D", split="test"),)
FIGURES = (*(f"PMC100000{n}_F1.jpg" for n in (1, 2, 3, 5, 6)), "PMC1000001_F2.jpg", "PMC1000004_F2.jpg")


def table(header, rows, *, end="\n"):
    """The text of a CSV file as the owners' program writes it: quotes where they are needed."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator=end)
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()


def write(root, *, zipped=True):
    """The folder with both versions: five tables and the figures, in zips or unpacked."""
    for name, header, rows in (
        ("train.csv", V1, TRAIN),
        ("test.csv", V1, TEST),
        ("test_clean.csv", V1, CLEAN),
        ("train_2.csv", V2, TRAIN_2),
        ("test_2.csv", V2, TEST_2),
    ):
        (root / name).write_text(table(header, rows), encoding="utf-8", newline="")
    for archive, folder in (("images.zip", "images"), ("images_2.zip", "figures")):
        members = {f"{folder}/{name}": images.encoded(seed, (20 + seed, 30)) for seed, name in enumerate(FIGURES)}
        if zipped:
            extra = {f"{folder}/": b"", f"__MACOSX/{folder}/{FIGURES[0]}": b"\0"}
            (root / archive).write_bytes(images.archive({**extra, **members}))
        for name, content in () if zipped else members.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(content)
    return root
