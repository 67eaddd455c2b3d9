"""The tables of completions, as pandas reads them: every column by hand."""

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from fairgrpo_jax import config as options, grouping, rewards, samples
from fairgrpo_jax.batches import groups_of
from fairgrpo_jax.data.record import Media, Record


SETTINGS = options.Data(attributes=("sex", "age", "race"))
PICTURE = Media("image", pixels=np.full((4, 6, 3), 200, np.uint8))
NODULE = Record(
    uid="cxr/1",
    dataset="cxr",
    modality="X-ray",
    media=(PICTURE, PICTURE),
    question="What <b>is</b> it?",
    answer="Nodule",
    choices=(),
    patient="p",
    sex="F",
    age=61.5,
    extra={"race": "Asian", "task": "findings"},
    split="train",
)
OPEN = dataclasses.replace(
    NODULE, uid="vqa/1", dataset="vqa", media=(), answer="", sex=None, age=None, extra={}, question="\ud800 half"
)
RECORDS = [NODULE, OPEN]
TEXTS = [
    [r"<think>a</think>\boxed{Nodule}", r"\boxed{Normal}", "I do not know"],
    [r"\boxed{a}", "\ud800", r"<think>é 肺</think>\boxed{}"],
]
RAW = np.array([[[1, 0.5], [0, 0.25], [np.nan, 0]], [[np.nan, 0.5], [np.nan, 0.75], [np.nan, np.nan]]], np.float32)
REWARDS = np.array([[1.5, 0.25, np.nan], [0.5, 0.75, np.nan]], np.float32)
ADVANTAGES = np.array([[1.0, -1.0, 0.0], [-0.7, 0.7, 0.0]], np.float32)
PARTS = (options.Component("exact", ("cxr",)), options.Component("mine.py:short", normalised=True))


def save(folder, step=4, **evaluation):
    lengths = np.array([[3, 1, 5], [2, 2, 4]])
    batch = SimpleNamespace(records=RECORDS, groups=np.array([0, -1]))
    drawn = SimpleNamespace(
        batch=batch,
        rollouts=SimpleNamespace(mask=np.arange(5) < lengths[..., None]),
        texts=TEXTS,
        scores=rewards.Scores(REWARDS, RAW, RAW / 2, np.array([[True, True], [False, True]])),
        finished=np.array([[True, True, False], [True, True, True]]),
    )
    vocabulary = grouping.vocabulary(groups_of(record, SETTINGS) for record in RECORDS)
    encoder, scorer = SimpleNamespace(settings=SETTINGS, vocabulary=vocabulary), SimpleNamespace(components=PARTS)
    given = options.Evaluation(**{"every": 4, "samples": 1, **evaluation})
    samples.save(folder, step, cast(Any, drawn), ADVANTAGES, given, cast(Any, encoder), cast(Any, scorer))
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_every_column_by_hand(tmp_path):
    assert save(tmp_path, completions=4, samples=0) == ["completions/000004.parquet"]
    table = pd.read_parquet(tmp_path / "completions" / "000004.parquet")
    wanted = pd.DataFrame(
        {
            "step": [4] * 6,
            "prompt": [0, 0, 0, 1, 1, 1],
            "rollout": [0, 1, 2] * 2,
            "uid": ["cxr/1"] * 3 + ["vqa/1"] * 3,
            "dataset": ["cxr"] * 3 + ["vqa"] * 3,
            "task": ["findings"] * 3 + [""] * 3,
            "sex": ["F"] * 3 + [None] * 3,
            "age": [61.5] * 3 + [np.nan] * 3,
            "attribute/sex": ["F"] * 3 + [None] * 3,
            "attribute/age": ["51–75"] * 3 + [None] * 3,
            "attribute/race": ["Asian"] * 3 + [None] * 3,
            "cell": ["F, 51–75, Asian"] * 3 + ["unlabelled"] * 3,
            "question": ["What <b>is</b> it?"] * 3 + ["? half"] * 3,
            "answer": ["Nodule"] * 3 + [""] * 3,
            "completion": [*TEXTS[0], TEXTS[1][0], "?", TEXTS[1][2]],
            "prediction": ["Nodule", "Normal", None, "a", None, ""],
            "exact": [1.0, 0, 0, np.nan, np.nan, np.nan],
            "length": [3, 1, 5, 2, 2, 4],
            "finished": [True, True, False, True, True, True],
            "reward": REWARDS.ravel(),
            "advantage": ADVANTAGES.ravel(),
            "component/exact": [1.0, 0] + [np.nan] * 4,
            "component/mine.py:short": [0.5, 0.25, 0, 0.5, 0.75, np.nan],
            "normalised/mine.py:short": [0.25, 0.125, 0, 0.25, 0.375, np.nan],
        }
    )
    assert [list(images) for images in table.pop("images")] == [[]] * 6
    pd.testing.assert_frame_equal(table, wanted, check_dtype=False)


def test_the_prompts_of_an_evaluation_have_their_images_beside_them(tmp_path):
    pictures = ["samples/000004-0-0.png", "samples/000004-0-1.png"]
    assert save(tmp_path) == [*pictures, "samples/000004.parquet"]
    table = pd.read_parquet(tmp_path / "samples" / "000004.parquet")
    assert table["uid"].tolist() == ["cxr/1"] * 3 and [list(images) for images in table["images"]] == [pictures] * 3


@pytest.mark.parametrize(
    "step, evaluation, files",
    [
        (3, {}, 0),
        (8, {"samples": 0}, 0),
        (3, {"completions": 2}, 0),
        (3, {"completions": 1}, 1),
        (8, {"completions": 3}, 3),
        (6, {"completions": 3, "samples": 2}, 1),
    ],
)
def test_only_what_was_asked_for_is_written(tmp_path, step, evaluation, files):
    assert len(save(tmp_path, step, **evaluation)) == files


def test_a_table_is_replaced_as_a_whole(tmp_path, monkeypatch):
    save(tmp_path)
    path = tmp_path / "samples" / "000004.parquet"
    before = path.read_bytes()

    def cut(rows, file, **_):
        file.write(b"PAR1")
        raise OSError("No space left on device")

    monkeypatch.setattr(samples.pq, "write_table", cut)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path)
    assert path.read_bytes() == before and not list(path.parent.glob(".*"))
