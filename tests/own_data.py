"""A folder of one's own questions about pictures, and a small checkpoint folder, as a user has them."""

import json

import jax
import numpy as np
from PIL import Image

from fairgrpo_jax import config as options, models, policy
from fairgrpo_jax.models.tiny.tokenizer import tiny_tokenizer


# Options that make a run of the preset as small as a test.
SMALL = [
    "--steps",
    "1",
    "--prompts",
    "4",
    "--rollouts",
    "2",
    "--evaluation.batch",
    "4",
    "--sampling.max-new-tokens",
    "8",
]
SIDES = (32, 48, 64)  # of the pictures; with patches of 4 pixels 64, 144 and 256 patches


def checkpoint(folder):
    """A Qwen2.5-VL of random weights with its tokenizer and image settings, images of up to a million pixels."""
    processor = models.Processor(tiny_tokenizer(), patch_size=4, min_pixels=64, max_pixels=1_003_520)
    models.init(policy.small(options.Model(hidden_size=32)), jax.random.key(0), processor=processor).save(folder)
    return folder


def write(folder, patients=12):
    """train.jsonl and test.jsonl with two records a patient, and their pictures."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, people in (("train", range(patients)), ("test", range(patients, patients + 4))):
        for number, side in enumerate(SIDES):
            Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(folder / f"{split}-{number}.png")
        (folder / f"{split}.jsonl").write_text("")
        for number in people:
            for visit in range(2):
                append(
                    folder, split, patient=f"p{number}", sex="FM"[number % 2], age=30 + number, picture=visit + number
                )
    return folder


def append(folder, split="train", *, question="Which lesion is this?", patient="p0", sex="F", age=30, picture=0):
    """Adds a record."""
    row = {
        "question": question,
        "image": f"{split}-{picture % len(SIDES)}.png",
        "answer": ("Nevus", "Melanoma")[picture % 2],
        "choices": ["Nevus", "Melanoma"],
        "patient_id": patient,
        "sex": sex,
        "age": age,
        "data_source": "own",
    }
    with (folder / f"{split}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
