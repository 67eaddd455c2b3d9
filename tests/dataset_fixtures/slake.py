"""SLAKE in its owners' form, made here: three JSON lists in two languages and folders of images; invented questions."""

import json

from tests.dataset_fixtures import images


def row(qid, image, question, answer, kind="OPEN", lang="en", **more):
    """A row with the owners' keys."""
    return {
        "img_id": image,
        "img_name": f"xmlab{image}/source.jpg",
        "question": question,
        "answer": answer,
        "q_lang": lang,
        "location": "Abdomen",
        "modality": "CT",
        "answer_type": kind,
        "base_type": "vqa",
        "content_type": "Organ",
        "triple": ["vhead", "_", "_"],
        "qid": qid,
        **more,
    }


TRAIN = (
    row(0, 1, "Which way is the slice cut?", "Transverse  Plane", content_type="Plane"),
    row(1, 1, "Is the spleen in view?", "yes", "CLOSED"),
    row(2, 2, "Is the bladder in view?", ""),
    row(
        3,
        2,
        "What is this organ for?",
        "Filters blood",
        base_type="kvqa",
        triple=["vhead", "function", "ktail"],
        modality="MRI",
    ),
    row(4919, 1, "能看到脾脏吗?", "包含", "CLOSED", "zh"),
    row(4920, 3, "这是什么器官?", "肺", lang="zh", modality="X-Ray"),
)
VALIDATION = (row(10000, 4, "Which is larger, liver or heart?", "Liver", "CLOSED"),)
TEST = (  # the keys in another order, as in the owners' file
    dict(reversed(row(12000, 3, "Is the lung healthy?", "No", "CLOSED", location="Lung").items())),
    row(12001, 5, "肺正常吗?", "不是", "CLOSED", "zh"),
)


def write(root, train=TRAIN, validation="validate.json"):
    """The folder with the three lists and the five images."""
    for name, rows in (("train.json", train), (validation, VALIDATION), ("test.json", TEST)):
        (root / name).write_text(json.dumps(list(rows), ensure_ascii=False), encoding="utf-8")
    for image in range(1, 6):
        images.save(root / "imgs" / f"xmlab{image}" / "source.jpg", image, mode="L" if image % 2 else "RGB")
        images.save(root / "imgs" / f"xmlab{image}" / "mask.png", 90 + image, form="PNG")
    return root
