"""The report on a folder: what agrees, what is missing, what leaks; and the command's exit code."""

import dataclasses
import json
import re
import zipfile
from pathlib import Path

import pytest

from fairgrpo_jax import data
from fairgrpo_jax.data import about, check
from fairgrpo_jax.data.__main__ import main
from fairgrpo_jax.data.datasets import covid_blues, synthetic
from fairgrpo_jax.data.record import Media, Record
from tests import covid_fixture


PUBLISHED = {
    **{"records/train": 3, "records/test": 1, "patients/train": 3, "patients/test": 1, "media": 4},
    **{"answer/Has COVID": 2, "answer/No COVID": 2, "sex/F": 2, "sex/M": 2, "age/51–75": 2, "age/>75": 1},
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Four patients of one video each, aged 35, 50, 65 and 80."""
    told = dataclasses.replace(covid_blues.ABOUT, published={**PUBLISHED, "age/26–50": 2, "age/51–75": 1})
    monkeypatch.setattr(covid_blues, "ABOUT", told)
    return covid_fixture.write(tmp_path / "blues")


def test_a_folder_as_published(root, capsys):
    assert main(["check", "covid_blues", "--root", str(root)]) == 0
    output = capsys.readouterr().out
    assert "records/train: 3, published 3, as published" in output and "4 media files, 0 missing" in output
    assert re.search(r"Has COVID +2 +1 +1 +0 +1 +1 +0 +0\n", output)  # all F M unknown 26–50 51–75 >75 unknown
    assert re.search(r"No COVID +2 +1 +1 +0 +1 +0 +1 +0\n", output)
    assert output.rstrip().endswith("nothing is wrong")


def test_counts_that_differ_and_files_that_are_missing(root, capsys, monkeypatch):
    told = dataclasses.replace(covid_blues.ABOUT, published={"records/train": 4, "sex/F": 3, "answer/No COVID": 2})
    monkeypatch.setattr(covid_blues, "ABOUT", told)
    (root / "lus_videos" / "patient_2_L1.mp4").unlink()
    assert main(["check", "covid_blues", "--root", str(root)]) == 1
    output = capsys.readouterr().out
    assert "WRONG: records/train: 3, published 4" in output and "WRONG: sex/F: 2, published 3" in output
    assert "WRONG: missing " in output and "patient_2_L1.mp4 of covid_blues/patient_2_L1" in output
    assert "4 media files, 1 missing" in output and output.rstrip().endswith("3 things are wrong")
    assert main(["check", "covid_blues", "--root", str(root), "--splits", "test"]) == 0  # sex/F is of all splits
    assert "sex/F: 1, published 3\n" in capsys.readouterr().out


def test_splits_that_do_not_load(tmp_path, capsys):
    assert main(["check", "covid_blues", "--root", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "WRONG: split train does not load: COVID-BLUES in" in output and "split test does not load" in output


def rows(path, people, **more):
    path.write_text("".join(json.dumps({"prompt": "?", "answer": "x", "patient": p, **more}) + "\n" for p in people))


def test_shared_patients_and_media_are_wrong_unless_the_owner_is_known_for_it(tmp_path, capsys, monkeypatch):
    rows(tmp_path / "train.jsonl", ["ann", "bob"], image="1.png")
    rows(tmp_path / "test.jsonl", ["ann", "eve"], image="1.png")
    (tmp_path / "1.png").write_bytes(b"x")
    name = tmp_path.name
    assert main(["check", "jsonl", "--root", str(tmp_path)]) == 1
    text = f"{name}: train and test share 1 patients (ann) and 1 media files"
    assert f"WRONG: {text}" in capsys.readouterr().out
    module = data.module("jsonl")
    monkeypatch.setattr(module, "ABOUT", dataclasses.replace(module.ABOUT, shared=(("test", "train"),)))
    assert main(["check", "jsonl", "--root", str(tmp_path)]) == 0
    assert f"{text} (known of the owner's split)" in capsys.readouterr().out


def test_members_of_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "inner.zip", "w") as inner:
        inner.writestr("1.png", b"")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as outer:
        outer.write(tmp_path / "inner.zip", "parts/inner.zip")
        outer.writestr("2.png", b"")
    members = ["2.png", "3.png", "parts/inner.zip!1.png", "parts/inner.zip!4.png", "parts/none.zip!5.png"]
    items = [Media("image", path=tmp_path / "all.zip", member=member) for member in members]
    record = Record("d/1", "d", "", tuple(items), "?", "x", (), "p", None, None, {}, "train")
    report = check.Report()
    check._missing(report, [record])
    assert report.lines[0] == "5 media files, 3 missing" and len(report.wrong) == 1
    assert [m in report.wrong[0] for m in ("!2.png", "!3.png", "zip!1.png", "zip!4.png", "zip!5.png")] == [
        *(False, True, False, True, True)
    ]


def test_counts_by_hand():
    base = Record(
        "d/1", "d", "", (Media("image", path=Path("a")),) * 2, "?", "A", ("A", "B, C"), "p", "F", 25.5, {}, ""
    )
    records = [
        dataclasses.replace(base, split="train"),
        dataclasses.replace(base, split="train", answer="B, C", sex=None, age=75.0),
        dataclasses.replace(
            base, split="test", choices=("A", "B", "C"), answer="B, C", patient="q", age=None, media=()
        ),
        dataclasses.replace(base, split="test", choices=(), answer="free", sex="M", age=90.0, media=()),
    ]
    assert about.counts(records) == {
        **{"records/train": 2, "records/test": 2, "patients/train": 1, "patients/test": 2, "media": 4},
        **{"answer/A": 1, "answer/B, C": 1, "answer/B": 1, "answer/C": 1},
        **{"sex/F": 2, "sex/M": 1, "sex/unknown": 1},
        **{"age/26–50": 1, "age/51–75": 1, "age/>75": 1, "age/unknown": 1},
    }


def test_what_is_missing_is_named_at_once(tmp_path):
    told = about.About("x", "The X", "https://x.example", "CC0", "all of it")
    (tmp_path / "b.json").write_text("")
    assert told.require(tmp_path, ("a.json", "b.json")) == (tmp_path / "b.json",)
    with pytest.raises(
        ValueError, match=r"The X in .*: missing train.csv, a.json or c.json; get .*x.example \(all of it\)"
    ):
        told.require(tmp_path, "train.csv", "b.json", ("a.json", "c.json"))


def test_the_list_of_all_datasets(capsys):
    assert main(["check", "--all"]) == 0
    output = capsys.readouterr().out
    for name in data.DATASETS:
        module = data.module(name)
        assert isinstance(module.ABOUT, about.About) and module.ABOUT.name == name and module.SPLITS
        assert f"{name}: {module.ABOUT.title}\n    from      {module.ABOUT.where}\n" in output
        assert set(module.ABOUT.published) <= {
            *(f"{what}/{split}" for what in ("records", "patients") for split in module.SPLITS),
            *("media", "sex/F", "sex/M", "sex/unknown", "age/≤25", "age/26–50", "age/51–75", "age/>75", "age/unknown"),
            *(key for key in module.ABOUT.published if key.startswith("answer/")),
        }


def test_prepare_and_options_from_the_command_line(root, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["prepare", "covid_blues", "--root", str(root), "--out", str(out), "--option", "num_frames=2"]) == 0
    assert "data.load" in capsys.readouterr().out
    assert data.load("covid_blues", out, split="train")[0].media[0].num_frames == 2
    assert main(["check", "covid_blues", "--root", str(out)]) == 0
    assert "records/train: 3, published 3, as published" in capsys.readouterr().out
    assert main(["prepare", "covid_blues", "--root", str(root), "--out", str(root)]) == 1
    assert "error: " in capsys.readouterr().err
    assert main(["check", "covid_blues", "--root", str(root), "--option", "frame=2"]) == 1
    assert "got the options frame; wanted some of " in capsys.readouterr().out
    assert main(["check", "covid_blues", "--root", str(root), "--option", "frames"]) == 1
    assert "wanted KEY=VALUE" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["check"])
    with pytest.raises(SystemExit):
        main(["check", "covid_blues", "--all"])


def test_the_table_has_the_bins_of_the_edges():
    records = synthetic.load("test", domains=("us",)).records
    head, *rows = (line.split() for line in check.table(records, edges=(40, 65)))
    assert head == ["label", "all", "F", "M", "sex", "unk", "≤40", "41–65", ">65", "age", "unk"]
    ages = [record.age for record in records if record.age is not None]
    wanted = [sum(low < age <= high for age in ages) for low, high in ((0, 40), (40, 65), (65, 200))]
    assert [sum(int(row[column]) for row in rows) for column in (5, 6, 7)] == wanted and min(wanted) > 0
