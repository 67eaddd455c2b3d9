"""Files as spreadsheets, pandas and people write them: read as they mean it, or refused with the row and the remedy."""

import json

import pandas as pd
import pytest
from PIL import Image

from fairgrpo_jax import data
from fairgrpo_jax.data import media
from fairgrpo_jax.data.__main__ import main
from fairgrpo_jax.data.datasets import jsonl


ROWS = [("Was?", "images/1.png", "Nävus", "p1", "F", "61"), ("Wo?", "images/2.png", "links", "p2", "M", "")]
HEAD = ("Question", "Image", "Answer", "Patient ID", "Sex", "Age")


def table(separator, head="", tail="", ending="\n"):
    lines = [separator.join(row) for row in (HEAD, *ROWS)]
    return head + ending.join([*lines, ""]) + tail


SPREADSHEETS = {
    "semicolons with a mark": "\ufeff" + table(";", ending="\r\n"),
    "semicolons, told above": table(";", "sep=;\r\n", ending="\r\n"),
    "tabs": table("\t"),
    "rows and lines without anything": table(",", tail=",,,,,\n\n   \n , ,,,,\n"),
}


@pytest.mark.parametrize("text", SPREADSHEETS.values(), ids=SPREADSHEETS)
def test_tables_of_spreadsheets(tmp_path, text):
    (tmp_path / "train.csv").write_bytes(text.encode())
    source = jsonl.load(tmp_path, split="train")
    found = [(r.question, r.media[0].path, r.answer, r.patient, r.sex, r.age) for r in source]
    assert found == [
        ("Was?", tmp_path / "images/1.png", "Nävus", "p1", "F", 61.0),
        ("Wo?", tmp_path / "images/2.png", "links", "p2", "M", None),
    ]
    assert not any("patient" in note for note in source.notes[1:])


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings_are_refused_with_the_remedy(tmp_path, encoding):
    (tmp_path / "train.csv").write_bytes(table(",").encode(encoding))
    with pytest.raises(ValueError, match="not UTF-8 .*; save it as UTF-8 .in Excel: CSV UTF-8."):
        jsonl.load(tmp_path, split="train")


def rows(path, *given):
    usual = {"prompt": "?", "answer": "a"}
    path.write_text("".join(json.dumps(usual | row) + "\n" for row in given), encoding="utf-8")
    return path.parent


def test_names_of_files(tmp_path):
    (tmp_path / "images").mkdir()
    name = "images/Bild ä #3 (1).png"
    Image.new("RGB", (5, 4)).save(tmp_path / name)
    told = [
        name,
        name.replace("/", "\\"),
        ".\\" + name.replace("/", "\\"),
        str(tmp_path / name),
        (tmp_path / name).as_uri(),
    ]
    for record in jsonl.load(rows(tmp_path / "train.jsonl", *({"image": one} for one in told)), split="train"):
        assert media.decode(record.media[0]).shape == (4, 5, 3)
    rows(tmp_path / "train.jsonl", {"image": "C:\\pictures\\1.png"}, {"image": "\\\\server\\1.png"}, {"image": name})
    with pytest.raises(ValueError, match="2 bad rows: line 1: .* is on a drive of Windows; wanted a file .*; line 2: "):
        jsonl.load(tmp_path, split="train")


def test_missing_empty_and_almost_right_files(tmp_path, capsys):
    for name in ("ä.png", "B.PNG"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder").mkdir()
    told = ["a\u0308.png", "b.png", "c.png", "empty.png", "folder", "ä.png"]
    rows(tmp_path / "train.jsonl", *({"image": one} for one in told))
    assert main(["check", "jsonl", "--root", str(tmp_path), "--splits", "train"]) == 1
    out = capsys.readouterr().out
    assert "6 media files, 3 missing" in out and "3 things are wrong" in out and "to train" not in out
    assert "WRONG: empty: " in out and f"WRONG: a folder: {tmp_path / 'folder'} of" in out
    assert out.count("(there is ") == 2 and "(there is 'B.PNG', with other capitals or letters: 'b.png')" in out


def test_numbers_of_a_column_where_some_are_missing(tmp_path):
    """pandas writes 17 as 17.0 there; the patient is the same, and so is the group."""
    for split, patients in (("train", [17, None]), ("test", [17, 18])):
        told = pd.DataFrame({"prompt": "?", "answer": "a", "patient": patients, "site": patients, "sex": patients})
        told.to_csv(tmp_path / f"{split}.csv", index=False)
        told.to_parquet(tmp_path / f"{split}.parquet")
    for form in ("csv", "parquet"):
        for split in ("train", "test"):
            (tmp_path / form).mkdir(exist_ok=True)
            (tmp_path / f"{split}.{form}").rename(tmp_path / form / f"{split}.{form}")
        codes = {"sex": {"17": "F", "18": "M"}}
        train, test = (jsonl.load(tmp_path / form, split=split, codes=codes) for split in ("train", "test"))
        assert [r.patient for r in (*train, *test)] == ["17", "train-3" if form == "csv" else "train-2", "17", "18"]
        assert [r.extra["site"] for r in (*train, *test)] == ["17", "", "17", "18"]
        assert [r.sex for r in (*train, *test)] == ["F", None, "F", "M"]


def test_codes_and_columns_by_any_of_their_names(tmp_path):
    root = rows(tmp_path / "train.jsonl", {"Gender": 1, "Frage": "Was?"}, {"Gender": 2, "Frage": "Wo?"})
    for codes in ({"sex": {"1": "M", "2": "F"}}, {"Gender": {"1": "M"}, "gender": {"2": "F"}}):
        found = jsonl.load(root, split="train", columns={"finding": "Frage"}, codes=codes)
        assert [(r.sex, r.finding) for r in found] == [("M", "Was?"), ("F", "Wo?")]
    (tmp_path / "train.jsonl").write_text('{"Frage": "Was?", "Befund": "a"}')
    (record,) = jsonl.load(root, split="train", columns={"question": "Frage", "solution": "Befund"})
    assert (record.question, record.answer) == ("Was?", "a")


def test_the_command_that_trains_is_told(tmp_path, capsys):
    Image.new("RGB", (5, 4)).save(tmp_path / "1.png")
    rows(tmp_path / "train.jsonl", {"image": "1.png", "Sex code": 1})
    options = ["--data.columns", "sex=Sex code", "--codes", "sex.1=F"]
    assert main(["check", "jsonl", "--root", str(tmp_path), "--splits", "train", *options]) == 0
    wanted = f"--data.root {tmp_path} --data.columns 'sex=Sex code' --data.codes sex.1=F\n"
    assert f"to train: python -m fairgrpo_jax.train mine --model.path MODEL {wanted}" in capsys.readouterr().out


def test_what_looks_like_a_patient_or_holds_columns_is_named(tmp_path):
    root = rows(tmp_path / "train.jsonl", {"MRN": 7, "meta": {"Sex": "F", "height": 3, "age": 60}})
    notes = jsonl.load(root, split="train").notes
    assert any("is it 'MRN'? then --data.columns patient='MRN'" in note for note in notes)
    assert "column meta holds age, sex, which are not read there: make columns of them" in notes


def test_json_under_another_name_and_json_that_is_no_list(tmp_path):
    listed = json.dumps([{"prompt": "?", "answer": "a"}], indent=1)
    (tmp_path / "train.jsonl").write_text(listed)
    assert len(data.load("jsonl", tmp_path, split="train")) == 1
    (tmp_path / "train.jsonl").write_text('{"info": 1,\n "data": ' + listed + "}")
    with pytest.raises(ValueError, match="train.jsonl is one object with info, data; wanted a list of objects, or one"):
        jsonl.load(tmp_path, split="train")
    (tmp_path / "train.jsonl").rename(tmp_path / "Train.xlsx")
    with pytest.raises(ValueError, match=r"has none of .* \(there are Train.xlsx\); wanted one"):
        jsonl.load(tmp_path, split="train")
