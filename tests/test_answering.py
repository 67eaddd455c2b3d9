"""A checkpoint folder answers a dataset for its audit, and goes on after it was killed."""

import dataclasses
import json
import os
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from fairgrpo_jax import answering, config as options, configs, evaluate, files, sources
from fairgrpo_jax.data.datasets import medvid_toy
from tests import own_data
from tests.dataset_fixtures import medvidbench as fixture


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


@pytest.mark.parametrize(
    "options, said",
    [
        ("--level 95", "got level=95.0"),
        ("--figure sensitivity", "invalid choice"),
        ("--figure true_positive_rate", "without --positive"),
        ("--reference sex", "wanted ATTRIBUTE=GROUP"),
        ("--age-edges 50 25", "wanted increasing ages"),
        ("--out taken", "which is a file"),
    ],
)
def test_an_audit_that_cannot_be_is_refused_before_the_model_answers(tmp_path, monkeypatch, capsys, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    monkeypatch.setattr(answering, "main", lambda *_: pytest.fail("the model was asked"))
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--model.path", "MODEL", *options.split()])
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_answers_of_another_model_or_with_other_options_are_not_taken(tmp_path):
    """A default folder is named by the last part of the model's path, which two models may share."""
    config = lambda place, **data: dataclasses.replace(
        options.Config(), steps=0, model=options.Model(path=tmp_path / place), data=options.Data(**data)
    )
    folder, path = tmp_path / "out", tmp_path / "out/evals/000000.jsonl"
    require = lambda config, samples=0: answering._require_own(folder, path, config, samples)
    require(config("a"))  # new
    path.parent.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(options.to_dict(config("a"))))
    path.write_text('{"uid": "1", "samples": ["x", "y"]}\n')
    require(config("a", prompt_length=64), 2)  # a limit may change
    for other, samples, said in (
        (config("b"), 2, "model.path: .*a -> .*b"),
        (config("a", options=("scale=0.3",)), 2, "data.options"),
        (config("a"), 0, "--samples: 2 -> 0"),
    ):
        with pytest.raises(ValueError, match=f"with answers of other options .*{said}.*; wanted the same"):
            require(other, samples)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/model.safetensors").touch()
    os.utime(path, (1, 1))
    with pytest.raises(ValueError, match="the weights in .* are newer than the answers"):
        require(config("a"), 2)


@pytest.fixture
def answered(monkeypatch):
    """What would be answered: every question by its place, at once; the options are kept."""
    asked = []

    def answer(config, folder):
        found = sources.load(config)
        records = found["test"].records
        assert not len(found["train"]) and not len(found["warmup"])
        lines = [json.dumps({"uid": r.uid, "completion": f"<answer>{i}</answer>"}) for i, r in enumerate(records)]
        files.require_writable(folder / "evals")
        (folder / "evals/000000.jsonl").write_text("\n".join(lines))
        asked.append(config)
        return records

    monkeypatch.setattr(answering, "answer", answer)
    return asked


def test_a_submission_of_all_test_questions_in_their_order(answered, tmp_path):
    (tmp_path / "data").mkdir()
    root = fixture.write(tmp_path / "data")
    (root / fixture.TRAINVAL).unlink()  # who has the public questions alone
    out = tmp_path / "submission.json"
    evaluate.main(
        ["medvidbench", f"--submission={out}", "--model.path", "M", "--data.root", str(root), "--preset"]
        + ["medgrpo_qwen3_vl_4b", "--workdir", str(tmp_path / "w"), "--evaluation.batch", "2"]
    )
    (config,) = answered
    assert (config.data.name, config.evaluation.split, config.evaluation.batch) == ("medvidbench", "test", 2)
    assert (config.steps, config.warmup.own_steps, config.data.max_pixels) == (0, 0, 37632)
    told = json.loads(out.read_text())
    assert [(row["id"], row["qa_type"]) for row in told] == [(row["id"], row["qa_type"]) for row in fixture.TEST]
    assert [row["prediction"] for row in told] == ["0", "1", "2"]


def test_a_submission_of_a_run_has_the_policy_and_the_options_of_the_run(answered, tmp_path, monkeypatch, capsys):
    run, exported = tmp_path / "run", []
    run.mkdir()
    begun = configs.get("medgrpo_toy")
    (run / "config.json").write_text(json.dumps(options.to_dict(begun), default=str))
    monkeypatch.setattr(answering.export, "export", lambda *paths: exported.append(paths))
    evaluate.main([str(run), "--submission", str(tmp_path / "s.json"), "--workdir", str(tmp_path / "w")])
    (config,) = answered
    assert exported == [(run, tmp_path / "w/policy")] and config.model.path == tmp_path / "w/policy"
    assert config.sampling == begun.sampling and config.data.num_patches == begun.data.num_patches
    assert len(json.loads((tmp_path / "s.json").read_text())) == 8 * medvid_toy.CLIPS["test"]
    (tmp_path / "w/policy").mkdir()
    (tmp_path / "w/policy/config.json").touch()
    os.utime(tmp_path / "w/policy/config.json", (1, 1))
    (run / "checkpoints/9").mkdir(parents=True)
    with pytest.raises(SystemExit):
        evaluate.main([str(run), "--submission", str(tmp_path / "s.json"), "--workdir", str(tmp_path / "w")])
    assert "exported before" in capsys.readouterr().err and len(answered) == 1


@pytest.mark.parametrize("argv", [["slake", "--submission", "x"], ["medvidbench", "--submission"]])
def test_submissions_that_cannot_be(argv, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(argv)
    assert "wanted medvidbench, or a run folder of it, and a file" in capsys.readouterr().err


def test_another_split_is_not_for_a_run_that_trains():
    with pytest.raises(ValueError, match="got evaluation.split=test with steps=300.*wanted nothing to be trained"):
        dataclasses.replace(options.Config(), steps=300, evaluation=options.Evaluation(split="test"))


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
