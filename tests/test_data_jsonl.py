"""Rows as users of TRL and verl write them, and every bad row named at once."""

import copy
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from fairgrpo_jax import data
from fairgrpo_jax.data import media
from fairgrpo_jax.data.datasets import jsonl


TRL = {
    "prompt": [
        {"role": "system", "content": "You read X-rays."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is seen?"}]},
    ],
    "image": "images/1.png",
    "solution": "Nodule",
    "data_source": "chest",
    "id": "a1",
    "patient": "p1",
    "sex": "Female",
    "age": "053Y",
    "race": "Asian",
    "income": 3,
    "choices": ["Normal", "Nodule"],
}
VERL = {
    "data_source": "chest",
    "prompt": [{"role": "user", "content": "<image><image>Which side?"}],
    "images": ["images/1.png", {"path": "/elsewhere/2.png", "bytes": None}],
    "reward_model": {"style": "rule", "ground_truth": "left"},
    "extra_info": {"index": 7},
    "gender": "M",
    "age": None,
}
CLIP = {
    "problem": "<video>\nCOVID?",
    "videos": [["f/1.jpg", "f/2.jpg", "f/2.jpg"]],
    "fps": 0.5,
    "answer": 1,
    "race": None,
}
TEXT = {"prompt": "Two and two?", "answer": "4", "finding": "sum"}
ROWS = [TRL, VERL, CLIP, TEXT]


def write(path, rows, mark=""):
    path.write_text(mark + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_rows_of_json_lines(tmp_path, mark):
    write(tmp_path / "train.jsonl", ROWS, mark)
    trl, verl, clip, text = data.load("jsonl", tmp_path, split="train").records
    assert (trl.uid, trl.dataset, trl.patient, trl.sex, trl.age) == ("chest/a1", "chest", "p1", "F", 53.0)
    assert trl.question == "You read X-rays.\nWhat is seen?" and trl.answer == "Nodule"
    assert trl.choices == ("Normal", "Nodule") and trl.extra == {"race": "Asian", "income": "3"}
    assert [m.path for m in trl.media] == [tmp_path / "images/1.png"] and trl.split == "train"
    assert (verl.question, verl.answer, verl.sex, verl.age) == ("Which side?", "left", "M", None)
    assert [str(m.path) for m in verl.media] == [str(tmp_path / "images/1.png"), "/elsewhere/2.png"]
    assert verl.extra == {"index": "7"} and verl.patient == "train-2"
    assert (clip.question, clip.answer, clip.dataset) == ("COVID?", "1", tmp_path.name)
    (video,) = clip.media
    assert [f.name for f in video.frames] == ["1.jpg", "2.jpg", "2.jpg"] and video.fps == 0.5 and video.num_frames == 4
    assert clip.extra == {"race": ""} and clip.sex is None
    assert text.media == () and text.finding == "sum" and text.uid == f"{tmp_path.name}/train-4"


def test_parquet_holds_the_same_and_images_in_itself(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    rows = [{**VERL, "images": [{"path": "a.png", "bytes": buffer.getvalue()}] * 2}]
    rows.append({**VERL, "images": [{"path": "images/1.png", "bytes": None}] * 2, "gender": "F"})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    first, second = data.load("jsonl", tmp_path, split="test").records
    np.testing.assert_array_equal(media.decode(first.media[1]), pixels)
    assert second.media[0].path == tmp_path / "images/1.png" and (first.sex, second.sex) == ("M", "F")
    assert (first.answer, first.age, first.uid) == ("left", None, "chest/test-1")


def test_one_file_is_split_by_patient_whatever_the_order(tmp_path):
    rows = [{**TEXT, "id": f"{i}", "patient": f"p{i % 60}"} for i in range(180)]
    sides = {}
    for order in (rows, rows[::-1]):
        path = write(tmp_path / "mine.jsonl", order)
        for split in ("train", "test"):
            for record in data.load("jsonl", path, split=split).records:
                assert record.split == split
                assert sides.setdefault(record.patient, split) == split
    assert 4 <= list(sides.values()).count("test") <= 22
    with pytest.raises(ValueError, match="'valid'; .* has no column split"):
        jsonl.load(path, split="valid")


def test_one_file_that_tells_the_splits(tmp_path):
    path = write(tmp_path / "mine.jsonl", [{**TEXT, "split": split} for split in ("train", "valid", "train")])
    assert [r.uid for r in jsonl.load(path, split="train")] == ["mine/1", "mine/3"]
    assert len(jsonl.load(path, split="valid")) == 1
    write(path, [{**TEXT, "split": "train"}, TEXT])
    with pytest.raises(ValueError, match="line 2: split is missing"):
        jsonl.load(path, split="train")
    write(path, [TEXT, {**TEXT, "split": "train"}, {"prompt": "x"}])  # also a row before the first that tells one
    with pytest.raises(ValueError, match="2 bad rows: line 1: split is missing.*; line 3: answer is missing"):
        jsonl.load(path, split="train")


BAD = {
    '{"prompt": "x"': "no JSON",
    "[1]": "is no object",
    '{"prompt": "x", "prompt": "y", "answer": 1}': "keys prompt are there twice",
    '{"prompt": "\\ud800", "answer": 1}': "no JSON",
}
BAD_ROWS = [
    ({"answer": "x"}, "prompt is None"),
    ({"prompt": "<image>", "answer": "x", "image": "1.png"}, "prompt has no text"),
    ({"prompt": [{"role": "assistant", "content": "x"}], "answer": "x"}, "prompt has no text"),
    ({"prompt": [{"role": "tool", "content": "x"}], "answer": "x"}, "role system, user or assistant"),
    ({"prompt": [{"role": "user", "content": [{"type": "audio"}]}], "answer": "x"}, "type text, image or video"),
    ({"prompt": "x"}, "answer is missing"),
    ({"prompt": "x", "answer": ""}, "answer is missing"),
    ({"prompt": "x", "answer": {"a": 1}}, "answer is .* wanted text or a number"),
    ({"prompt": "x", "answer": "a", "solution": "b"}, "answer and solution differ"),
    ({"prompt": "x", "answer": "c", "choices": ["a", "b"]}, "answer is 'c'; wanted one of the choices"),
    ({"prompt": "x", "answer": "a", "choices": ["a", "a"]}, "wanted different ones"),
    ({"prompt": "<image>x", "answer": "a"}, "1 tags of media, the row 0 media"),
    ({"prompt": "<image>x", "answer": "a", "videos": ["1.mp4"]}, "1 tags of media, the row 1 media"),
    ({"prompt": "x", "answer": "a", "images": 7}, "7 is no file name"),
    ({"prompt": "x", "answer": "a", "images": [7]}, "7 is no file name"),
    ({"prompt": "x", "answer": "a", "videos": [["1.jpg"]]}, "fps is None"),
    ({"prompt": "x", "answer": "a", "image": "1", "images": ["2"]}, "image and images are both there"),
    ({"prompt": "x", "answer": "a", "sex": "1.0"}, "sex is '1.0'"),
    ({"prompt": "x", "answer": "a", "age": 300}, "age is 300"),
    ({"prompt": "x", "answer": "a", "id": "same"}, "same is also line"),
]


def test_every_bad_row_is_named_with_its_line(tmp_path):
    lines = [json.dumps({**TEXT, "id": "same"}), "", *BAD, *(json.dumps(row) for row, _ in BAD_ROWS)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError) as raised:
        jsonl.load(tmp_path, split="train")
    text = str(raised.value)
    assert f"train.jsonl: {len(BAD) + len(BAD_ROWS)} bad rows" in text and "and 4 more" in text
    for line, (_, message) in enumerate([*BAD.items(), *BAD_ROWS], start=3):
        (tmp_path / "train.jsonl").write_text(lines[0] + "\n" * (line - 1) + lines[line - 1])
        with pytest.raises(ValueError, match=rf"train.jsonl: 1 bad rows: line {line}: .*{message}"):
            jsonl.load(tmp_path, split="train")


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="has none of train.jsonl, .json, .csv, .tsv, .parquet, .*; wanted one"):
        jsonl.load(tmp_path, split="train")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(ValueError, match="train.parquet is no Parquet"):
        jsonl.load(tmp_path, split="train")
    write(tmp_path / "train.jsonl", [TEXT])
    with pytest.raises(ValueError, match="has train.jsonl, train.parquet of .* wanted one"):
        jsonl.load(tmp_path, split="train")
    (tmp_path / "rows.xlsx").write_text("a")
    with pytest.raises(ValueError, match=r"rows.xlsx is no \.jsonl"):
        jsonl.load(tmp_path / "rows.xlsx", split="train")
    write(tmp_path / "empty.jsonl", [])
    with pytest.raises(ValueError, match="no record"):
        data.load("jsonl", tmp_path / "empty.jsonl", split="train")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3), st.data())
def test_damage_never_changes_another_row(tmp_path, number, draw):
    rows = copy.deepcopy(ROWS)
    key = draw.draw(st.sampled_from(sorted(rows[number])))
    if draw.draw(st.booleans()):
        del rows[number][key]
    else:
        rows[number][key] = draw.draw(anything)
    lines = [json.dumps(row) for row in rows]
    if draw.draw(st.booleans()):
        lines[number] = lines[number][: draw.draw(st.integers(1, len(lines[number])))]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    try:
        found = jsonl.load(tmp_path, split="train").records
    except ValueError as error:
        assert "train.jsonl: " in str(error) and f"line {number + 1}: " in str(error)
        return
    expected = ["Nodule", "left", "1", "4"]
    assert [r.answer for i, r in enumerate(found) if i != number] == [a for i, a in enumerate(expected) if i != number]
