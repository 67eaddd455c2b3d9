"""Rows kept by column: what is told of them without making a record is what the record says, and every record is whole."""

import dataclasses
import gc
import json
import pickle

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fairgrpo_jax.data import columnar, forms, own
from fairgrpo_jax.data.column_names import Columns
from fairgrpo_jax.data.datasets import jsonl


words = st.text(st.sampled_from("ab[<>{\\\" \t\u00a0\x1cä."), max_size=4)
numbers = st.integers() | st.floats() | st.booleans()
VALUES = {
    "prompt": st.sampled_from(["?", " ", "", "<image>?", "<image>", "a<image>", "<video>b", "[?", "[]", " <image> ?", 7])
    | words,
    "image": st.sampled_from(["a.png", "", "a.MP4", "data:x", "https://a/b.png", "file:///a.png", "C:\\a", "b\\c", "\0"])
    | words,
    "images": st.sampled_from(["a.png", [], ["a.png"], ["a.png", "b.png"], [1], 7, {}, "", ["http://a"]]),
    "video": st.sampled_from(["a.mp4", "", ["a.png"]]),
    "answer": st.sampled_from(["a", "b", "a, b", " a", "", "c", ["a"], ["a", "b"], 1, 1.0, True, "\\boxed{a}"]) | words,
    "choices": st.sampled_from([["a", "b"], ["a", "a"], [], ["a", " b"], [1, "a"], [1.0], [True], "a", ["a", None]]),
    "sex": st.sampled_from(["F", "male", "", "x", 1, "unknown", ["F"]]) | numbers,
    "age": st.sampled_from([61, "61", "60-69", "90+", "053Y", "", -99, "x", 300, [61], "2001-02-03"]) | numbers,
    "age_told": st.sampled_from(["60-69", "", "5"]),
    "id": st.sampled_from(["a", "17.0", 17, "", " "]) | words | numbers,
    "patient": st.sampled_from(["a", "17.0", 17, {}, ""]) | words | numbers,
    "data_source": words | numbers,
    "split": st.sampled_from(["train", "test", ""]),
    "finding": words | numbers | st.just([]),
    "race": words | numbers | st.lists(words, max_size=1) | st.dictionaries(words, numbers, max_size=1),
    "extra_info": st.sampled_from([{"race": "x"}, {}, "x", {"age": 61}]),
}
USUAL = {"prompt": "?", "answer": "a", "image": None, "choices": ["a", "b"], "sex": "F", "age": 61, "race": "x"}
changed = st.lists(st.sampled_from([*VALUES]), max_size=2).flatmap(
    lambda names: st.fixed_dictionaries({name: st.none() | VALUES[name] for name in names})
)
tables = st.lists(changed, min_size=1, max_size=6)


def one_by_one(files, codes):
    """The records of rows, each made by itself, and what is wrong with the others."""
    columns, made, wrong, seen = Columns({}, codes), [], {}, {}
    given = own.Given(files.path.parent, files.path.stem, files.path.stem, files.path.resolve().parent.name, 4)
    for line, row in files.read(files.problems()):
        try:
            record = own.record(columns.named(row), given, line)
            if (first := seen.setdefault(record.uid, line)) != line:
                raise ValueError(f"{record.uid} is also line {first}")
            made.append(record)
        except ValueError as error:
            wrong[line] = str(error)
    return made, wrong


def same(record):
    """A record whose media compare by what they are."""
    media = tuple(str(dataclasses.replace(medium, pixels=None)) for medium in record.media)
    return dataclasses.replace(record, media=(), turns=()), media, repr(record.turns)


@settings(deadline=None, max_examples=250, suppress_health_check=[*HealthCheck])
@given(tables, st.sampled_from([{}, {"sex": {"1": "F", "x": ""}, "race": {"b": "a"}}]), st.sampled_from([1, 2, 64]))
def test_the_columns_say_what_every_record_says(tmp_path, some, codes, sets):
    rows = [USUAL | {"id": f"{line}", "patient": f"{line // 2}"} | row for line, row in enumerate(some)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made, wrong = one_by_one(forms.find(tmp_path, "train"), codes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columnar, "SETS", sets)
        try:
            source = jsonl.load(tmp_path, split="train", codes=codes)
        except ValueError as error:
            listed = "; ".join(f"line {line}: {text}" for line, text in wrong.items())
            assert wrong and f": {len(wrong)} bad rows: {listed}; correct them" in str(error)
            return
    assert not wrong and [*map(same, source)] == [*map(same, made)]
    assert [same(source[i]) for i in range(-len(made), len(made))] == [*map(same, made)] * 2
