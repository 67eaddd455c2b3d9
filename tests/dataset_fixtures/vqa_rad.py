"""VQA-RAD in its owners' form, made here: names with spaces, four phrase types, slips; invented questions."""

import json

from tests.dataset_fixtures import images


def row(qid, phrase, image, question, answer, kind, **more):
    """A row with the owners' keys in their order."""
    return {
        "qid": qid,
        "phrase_type": phrase,
        "qid_linked_id": f"0{qid}-linked",
        "image_case_url": f"https://example.org/{image}",
        "image_name": f"{image}.jpg",
        "image_organ": "CHEST",
        "evaluation": "evaluated",
        "question": question,
        "question_rephrase": "NULL",
        "question_relation": "NULL",
        "question_frame": "NULL",
        "question_type": "PRES",
        "answer": answer,
        "answer_type": kind,
        **more,
    }


ROWS = (
    row(1, "freeform", "synpic100", "Is the trachea in the middle?", "Yes", "CLOSED", question_type="PRES, POS"),
    row(2, "para", "synpic100", "Does the trachea lie centrally?", "yes", "CLOSED ", qid_linked_id="01-linked"),
    row(
        3, "freeform", "synpic200", "How many lesions are there?", 2, "OPEN", question_type="COUNT", image_organ="HEAD"
    ),
    row(4, "test_freeform", "synpic100", "Left or right?", " the  Right ", "CLOSED", question_type="POS"),
    row(5, "test_para", "synpic200", "What is bright?", "Fluid", "OPEN", question_type="ATRIB, Other"),
    row(6, "test_freeform", "synpic300", "Is there air below the diaphragm?", "No", "CLOSED", question_type="PRSE"),
)
TABLE = "VQA_RAD Dataset Public.json"
FOLDER = "VQA_RAD Image Folder"


def write(root, rows=ROWS):
    """The folder with the table and its three images, two grey and one in colour."""
    for seed, (name, mode) in enumerate((("synpic100", "L"), ("synpic200", "RGB"), ("synpic300", "L"))):
        images.save(root / FOLDER / f"{name}.jpg", seed, mode=mode)
    (root / TABLE).write_text(json.dumps(list(rows)), encoding="utf-8")
    return root
