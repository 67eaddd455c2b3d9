"""A checkpoint folder answers a dataset for its audit, and goes on after it was killed."""

import json
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from fairgrpo_jax import answering, evaluate
from tests import own_data


def records(*names) -> Any:
    return [SimpleNamespace(uid=name) for name in names]


def test_what_is_answered_is_kept_and_half_a_line_is_not(tmp_path):
    draft = tmp_path / "000000.part"
    assert answering._kept(draft, records("a")) == 0
    whole = "".join(json.dumps({"uid": name}) + "\n" for name in "ab")
    draft.write_text(whole + '{"uid": "c", "predi')
    assert answering._kept(draft, records(*"abcd")) == 2
    assert draft.read_text() == whole
    with pytest.raises(ValueError, match="answers to other records"):
        answering._kept(draft, records("b", "a"))


def test_options_of_a_run_and_of_an_audit():
    argv = "--model.path M --attributes sex age --mesh 2x1 --data.columns answer=label patient=mrn --least 9".split()
    of_run, rest = evaluate.split(argv)
    assert of_run == "--model.path M --mesh 2x1 --data.columns answer=label patient=mrn".split()
    assert rest == "--attributes sex age --least 9".split()
    assert evaluate.split(["RUN", "--step", "3"]) == ([], ["RUN", "--step", "3"])


@pytest.mark.slow
def test_a_folder_answers_and_goes_on(tmp_path, capsys):
    model, root = own_data.checkpoint(tmp_path / "model"), own_data.write(tmp_path / "data")
    options = ["--model.path", str(model), "--data.root", str(root), *own_data.SMALL[6:]]
    options += ["--evaluation.batch", "1", "--samples", "2", "--resamples", "100", "--permutations", "100"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    with pytest.raises(SystemExit):
        evaluate.main([*options, "--workdir", str(whole), "--prompts", "4"])  # no option of an audit
    assert "unrecognized arguments: --prompts 4" in capsys.readouterr().err and not whole.exists()
    evaluate.main([*options, "--workdir", str(whole), "--least", "2"])
    lines = (whole / "evals" / "000000.jsonl").read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 8 and all(len(row["samples"]) == 2 and row["confidence"] in (0, 0.5, 1) for row in rows)
    assert "8 records" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "whole-audit" / "predictions.csv")
    assert all(0 < row.get("probability", 0.5) <= 1 for row in rows)
    assert table.score.tolist() == [row["confidence"] for row in rows] and set(table.sex) == {"F", "M"}

    (stopped / "evals").mkdir(parents=True)
    (stopped / "config.json").write_text((whole / "config.json").read_text())
    (stopped / "evals" / "000000.part").write_text("".join(lines[:4]) + lines[4][:20])
    evaluate.main([*options, "--workdir", str(stopped), "--least", "2"])
    assert (stopped / "evals" / "000000.jsonl").read_text() == "".join(lines)
    assert not (stopped / "evals" / "000000.part").exists()
