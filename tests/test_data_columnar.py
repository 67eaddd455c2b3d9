"""Rows kept by column: what is known of them without a record is what the record says, and every record is whole."""

import dataclasses
import json
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fairgrpo_jax.data import columnar, forms, own_rows
from fairgrpo_jax.data.column_names import Columns
from fairgrpo_jax.data.datasets import jsonl


words = st.text(st.sampled_from('ab[<>{\\" \t\u00a0\x1cä.'), max_size=4)
numbers = st.integers() | st.floats() | st.booleans()
VALUES = {
    "prompt": st.sampled_from(
        ["?", " ", "", "<image>?", "<image>", "a<image>", "<video>b", "[?", "[]", " <image> ?", 7]
    )
    | words,
    "image": st.sampled_from(
        ["a.png", "", "a.MP4", "data:x", "https://a/b.png", "file:///a.png", "C:\\a", "b\\c", "\0"]
    )
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
    given = own_rows.Given(files.path.parent, files.path.stem, files.path.stem, files.path.resolve().parent.name, 4)
    for line, row in files.read(files.problems()):
        try:
            record = own_rows.record(columns.named(row), given, line)
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


@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def people(count):
    """A table of plain rows."""
    rows = range(count)
    return pd.DataFrame(
        {
            "prompt": [f"<image>What is at {row}?" for row in rows],
            "image": [f"{row}.png" for row in rows],
            "answer": [["Nodule", "Edema"][row % 2] for row in rows],
            "patient": [None if row % 10 == 9 else f"P{row // 3}" for row in rows],
            "age": [None if row % 5 == 0 else 20 + row % 70 for row in rows],
            "sex": [["F", None, "M"][row % 3] for row in rows],
            "race": [["Asian", None][row % 2] for row in rows],
        }
    )


def written(table, path):
    """The table as a file of the form that its name says."""
    match path.suffix:
        case ".parquet":
            table.to_parquet(path)
        case ".csv":
            table.to_csv(path, index=False)
        case _:
            table.astype(object).where(table.notna(), None).to_json(path, orient="records", lines=True)
    return path


FORMS = ["parquet", "csv", "jsonl"]


@pytest.mark.parametrize("form", FORMS)
def test_plain_rows_are_known_without_a_record(tmp_path, form, monkeypatch):
    monkeypatch.setattr(columnar, "WINDOW", 7)
    monkeypatch.setattr(columnar, "CHUNK", 5)
    table = people(40)
    written(table, tmp_path / f"train.{form}")
    with monkeypatch.context() as patch:
        patch.setattr(own_rows, "record", None)
        source = jsonl.load(tmp_path, split="train")
    assert len(source) == 40 and source.records[12].question == "What is at 12?"
    found = pd.DataFrame(
        [
            (r.question, str(r.media[0].path).rpartition("/")[2], r.answer, r.patient, r.age, r.sex, r.extra["race"])
            for r in source
        ],
        columns=[*table.columns],
    )
    wanted = table.assign(prompt=table["prompt"].str.removeprefix("<image>"), race=table["race"].fillna(""))
    lines = pd.Series(range(40)) + (2 if form == "csv" else 1)
    names = "train-" + lines.astype(str)
    wanted["patient"] = table["patient"].fillna(names)
    none = lambda frame: frame.astype(object).where(frame.notna(), None)
    pd.testing.assert_frame_equal(none(found), none(wanted))
    assert [record.uid for record in source] == [*(f"{tmp_path.name}/" + names)]


@pytest.mark.parametrize("form", FORMS)
def test_one_file_is_read_once_for_all_splits_while_its_records_are_in_use(tmp_path, form, monkeypatch):
    read, real = [], jsonl.blocks
    monkeypatch.setattr(jsonl, "blocks", lambda rows: read.append(1) or real(rows))
    path = written(people(60), tmp_path / f"mine.{form}")
    train, test = (jsonl.load(path, split=split) for split in ("train", "test"))
    assert len(read) == 1 and len(train) + len(test) == 60 and {r.split for r in test} == {"test"}
    jsonl.load(path, split="test", columns={"finding": "race"})
    assert len(read) == 2
    written(people(61), path)
    assert len(jsonl.load(path, split="train")) + len(jsonl.load(path, split="test")) >= 61 and len(read) > 2
    before = len(read)
    del train, test
    jsonl.load(path, split="train")
    assert len(read) == before + 1


@pytest.mark.parametrize("form", FORMS)
def test_bad_rows_are_named_by_line_wherever_they_stand(tmp_path, form, monkeypatch):
    monkeypatch.setattr(columnar, "WINDOW", 7)
    table = people(40).astype(object).assign(id=range(40), split="train")
    table.loc[3, "answer"], table.loc[15, "sex"], table.loc[33, "id"], table.loc[39, "split"] = None, "1", 2, None
    path = written(table.astype({"id": int}), tmp_path / f"mine.{form}")
    first = 2 if form == "csv" else 1
    unit = "row" if form == "parquet" else "line"
    wanted = f"4 bad rows: {unit} {3 + first}: answer is missing; .*; {unit} {15 + first}: sex is '1'; .*; "
    wanted += f"{unit} {33 + first}: mine/2 is also {unit} {2 + first}; {unit} {39 + first}: split is missing"
    with pytest.raises(ValueError, match=wanted):
        jsonl.load(path, split="train")


def test_rows_of_several_sets_of_columns_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(columnar, "WINDOW", 6)
    rows = [{"prompt": "?", "answer": f"{row}", **[{}, {"sex": "F"}, {"site": "A"}][row % 3]} for row in range(20)]
    for sets in (64, 1, 0):
        monkeypatch.setattr(columnar, "SETS", sets)
        (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
        records = jsonl.load(tmp_path, split="train").records
        assert [record.answer for record in records] == [f"{row}" for row in range(20)]
        assert [record.extra for record in records[::3]] == [{}] * 7 and records[-1].sex == "F"
        assert [record.answer for record in records[4:15:2]] == ["4", "6", "8", "10", "12", "14"]
        assert [record.uid for record in pickle.loads(pickle.dumps(records))] == [record.uid for record in records]
        with pytest.raises(IndexError):
            records[20]


def test_values_come_back_as_they_were():
    values = [
        ["a", None], [1, -(1 << 63) + 1], [1 << 63], [1, True], [1, 1.0], [0.5, float("inf")], [True, None], [None],
        [["a"], []], [{"a": [1, None]}], ["1", 1],
    ]  # fmt: skip
    for some in values:
        column = columnar.Column.of(some)
        assert column is not None
        part = columnar.Part.of(columnar.Block([*range(len(some))], [], {"a": column}))
        found = [row["a"] for row, _ in part.rows(np.arange(len(some)))]
        assert found == some and [*map(type, found)] == [*map(type, some)]
    assert all(columnar.Column.of([one]) is None for one in ((1,), {1: 2}, b"", [float("nan")], pd.Timestamp(0)))
