"""Predictions to columns and to a submission, in the owners' order."""

import json

import pytest

from fairgrpo_jax import leaderboard
from fairgrpo_jax.data.datasets import medvidbench
from tests.dataset_fixtures import medvidbench as fixture


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    rows = [{**row, "struc_info": None} for row in fixture.ROWS if row["qa_type"] != "video_summary_gpt"]
    return fixture.write(tmp_path_factory.mktemp("medvid"), rows)


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["leaderboard", *map(str, arguments)])
    leaderboard.main()
    return capsys.readouterr().out


def test_a_submission_keeps_order_and_ids(root, tmp_path, monkeypatch, capsys):
    records = medvidbench.load(root, split="test").records
    path = tmp_path / "rows.jsonl"
    rows = [{"uid": r.uid, "completion": f"<think>t</think><answer>{i}</answer>"} for i, r in enumerate(records)]
    path.write_text("\n".join(json.dumps(row) for row in reversed(rows)))
    told = run(monkeypatch, capsys, "submit", path, "--root", root, "--out", tmp_path / "out.json")
    assert "3 predictions in the owners' order" in told
    found = json.loads((tmp_path / "out.json").read_text())
    assert [row["prediction"] for row in found] == ["0", "1", "2"]
    assert [row["qa_type"] for row in found] == [row["qa_type"] for row in fixture.TEST]
    assert [row["id"] for row in found] == [row["id"] for row in fixture.TEST]
    assert leaderboard.answers(records, leaderboard.read(tmp_path / "out.json")) == ["0", "1", "2"]
    with pytest.raises(ValueError, match="2 records whose rows are not 0 to 1 in order; wanted all questions"):
        leaderboard.submission(records[1:], ["", ""])


def test_columns_by_dataset_in_both_readings(root, tmp_path, monkeypatch, capsys):
    records = [r for split in ("train", "validation") for r in medvidbench.load(root, split=split).records]
    split = max(("train", "validation"), key=lambda name: len(medvidbench.load(root, split=name).records))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"uid": r.uid, "completion": r.answer}) for r in records))
    told = run(monkeypatch, capsys, "score", path, "--root", root, "--split", split, "--per-dataset")
    assert "rows of records outside the split are not used: medvidbench/" in told
    assert "all datasets:" in told and "AVOS:" in told and told.count("| strict |") == told.count("| board |") >= 2
    header, _, board, strict = [line for line in told.splitlines() if line.startswith("|")][:4]
    names = [name.strip() for name in header.split("|")[2:-1]]
    values = dict(zip(names, (x.strip() for x in strict.split("|")[2:-1]), strict=True))
    assert values["TAG_mIoU@0.5"] == values["DVC_F1"] == "1.000" and values["VS_llm"] == "-"
    assert board.split("|")[2 + names.index("TAG_mIoU@0.5")].strip() == "0.000"  # the board does not read the text


def test_predictions_that_do_not_fit(root, tmp_path):
    records = medvidbench.load(root, split="test").records
    with pytest.raises(ValueError, match=r"no prediction for 2 of 3 records \(.*wanted all of the split"):
        leaderboard.answers(records, [{"uid": records[0].uid, "completion": "x"}])
    with pytest.raises(ValueError, match="got several rows of 1 records"):
        leaderboard.answers(records, [{"uid": r.uid, "completion": "x"} for r in (*records, records[0])])
    for said in ({"prediction": None}, {"uid": "u", "completion": ["a"]}):
        (tmp_path / "odd.jsonl").write_text(json.dumps(said))
        with pytest.raises(ValueError, match="wanted uid and completion, or id, qa_type, prediction, in text, not"):
            leaderboard.read(tmp_path / "odd.jsonl")
    (tmp_path / "line.jsonl").write_text('{"prediction": "a\u2028b"}\n', encoding="utf-8")  # no end of a JSON line
    assert leaderboard.read(tmp_path / "line.jsonl") == [{"prediction": "a\u2028b"}]
    with pytest.raises(ValueError, match="got 1 predictions for 3 records; wanted one each, in the owners' order"):
        leaderboard.answers(records, [{"prediction": "x"}])
    with pytest.raises(ValueError, match="got prediction 0 of None, stg; wanted .*, tal"):
        leaderboard.answers(records, [{"prediction": "x", "qa_type": "stg"}] * 3)
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(ValueError, match="rows of another form; wanted uid and completion, or id, qa_type, prediction"):
        leaderboard.read(tmp_path / "bad.json")
    with pytest.raises(ValueError, match="wanted predictions as JSON lines or a JSON list"):
        leaderboard.read(tmp_path / "none.json")
