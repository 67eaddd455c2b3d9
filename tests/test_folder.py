"""The identity of a run folder: which options may change, and what is told about versions and damage."""

import dataclasses
import json
import os
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from fairgrpo_jax import checkpoint, config as options, configs, folder, runs, sft, tracking, train


CONFIG = configs.get("clinic")


@pytest.fixture
def begun(tmp_path):
    """A folder with a checkpoint, as far as its identity is concerned."""
    assert folder.claim(tmp_path, CONFIG) == []
    (tmp_path / "checkpoints" / "200").mkdir(parents=True)
    return tmp_path


def changed(**sections):
    """The config with options replaced: ``data=dict(workers=3)``."""
    values = {
        name: dataclasses.replace(getattr(CONFIG, name), **value) if isinstance(value, dict) else value
        for name, value in sections.items()
    }
    return dataclasses.replace(CONFIG, **values)


@pytest.mark.parametrize(
    "sections, line",
    [
        (dict(steps=400), "steps: 300 -> 400"),
        (dict(mesh="2x1"), "mesh: 1x1 -> 2x1"),
        (dict(checkpoint_every=7), "checkpoint_every: 50 -> 7"),
        (dict(data=dict(workers=3)), "data.workers: 2 -> 3"),
        (dict(data=dict(prompt_length=160)), "data.prompt_length: 48 -> 160"),
        (dict(data=dict(on_broken="skip")), "data.on_broken: raise -> skip"),
        (dict(evaluation=dict(every=10)), "evaluation.every: 100 -> 10"),
        (dict(evaluation=dict(completions=1)), "evaluation.completions: 0 -> 1"),
    ],
)
def test_what_cannot_falsify_the_past_may_change_and_is_told(begun, sections, line):
    config = changed(**sections)
    assert folder.claim(begun, config) == [line]
    assert options.read(begun / "config.json") == (config, [])
    assert folder.claim(begun, config) == []


@pytest.mark.parametrize(
    "sections, line",
    [
        (dict(seed=7), "seed: 0 -> 7"),
        (dict(optim=dict(lr=1.0)), "optim.lr: 0.0003 -> 1.0"),
        (dict(sampling=dict(max_new_tokens=13)), "sampling.max_new_tokens: 12 -> 13"),
        (dict(data=dict(attributes=("sex",))), r"data.attributes: \['sex', 'age'\] -> \['sex'\]"),
        (dict(steps=1, prompts=32), "prompts: 64 -> 32"),
    ],
)
def test_what_would_falsify_it_is_refused_and_nothing_is_written(begun, sections, line):
    before = (begun / "config.json").read_bytes()
    with pytest.raises(ValueError, match=f"of another config .*{line}.*; wanted the same options.*may change: steps"):
        folder.claim(begun, changed(**sections))
    assert (begun / "config.json").read_bytes() == before


def test_a_folder_without_a_step_becomes_any_run(tmp_path):
    folder.claim(tmp_path, CONFIG)
    (tmp_path / "checkpoints").mkdir()
    assert folder.claim(tmp_path, changed(seed=7)) == []
    assert options.read(tmp_path / "config.json")[0].seed == 7


def test_checkpoints_without_a_config_belong_to_nobody(tmp_path):
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    with pytest.raises(ValueError, match="with checkpoints and without its config.json; wanted that file back"):
        folder.claim(tmp_path, options.Config())
    assert not (tmp_path / "config.json").exists()


def test_damaged_checkpoints_are_steps(tmp_path):
    folder.claim(tmp_path, CONFIG)
    (tmp_path / "damaged" / "200").mkdir(parents=True)
    with pytest.raises(ValueError, match="of another config"):
        folder.claim(tmp_path, changed(seed=7))


def test_an_equal_config_is_not_written_again(begun):
    os.utime(begun / "config.json", (1, 1))
    folder.claim(begun, CONFIG)
    assert (begun / "config.json").stat().st_mtime == 1


def test_options_of_other_versions_are_filled_and_told(begun, capsys):
    path = begun / "config.json"
    values = json.loads(path.read_text())
    values["zzz"], values["data"]["colour"] = 1, "red"
    del values["reward"], values["optim"]["schedule"]
    path.write_text(json.dumps(values))
    assert folder.claim(begun, CONFIG) == []
    told = capsys.readouterr().out
    for line in (
        "zzz is not an option of this version: left out",
        "data.colour is not an option",
        "optim.schedule is new in this version: cosine",
        "reward is new in this version",
    ):
        assert f"{path}: {line}" in told
    assert options.read(path) == (CONFIG, [])


@pytest.mark.parametrize("text", ["", '{"steps": 3', "[]", '{"data": 3}', '{"steps": "many"}', '{"prompts": 0}'])
def test_a_config_that_cannot_be_read_names_its_file(begun, text):
    path = begun / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"got {path} with .*; wanted a config.json as a run writes it"):
        folder.claim(begun, CONFIG)
    assert path.read_text() == text


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written .*wanted a writable one: --workdir DIR"):
        folder.create(tmp_path / "file" / "run")
    with pytest.raises(ValueError, match="cannot be written .File name too long"):
        folder.create(tmp_path / ("x" * 300))


def test_what_changed_is_a_row_of_the_log(tmp_path):
    with tracking.MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.append("train", 1, {"loss": 0.5})
        log.append("train", 2, {"loss": 0.5})
        log.append("train", 2, {"loss": 0.5})
        log.note(2, ["steps: 2 -> 4"])
        assert (log.count("train"), log.count("eval")) == (2, 0)
        log.truncate_after(train=1)
    rows = tracking.read_metrics(tmp_path / "metrics.jsonl")
    assert rows[1:] == [{"kind": "note", "step": 2, "changes": ["steps: 2 -> 4"]}]


def test_a_folder_of_the_version_before_goes_on(tmp_path):
    """A run of version 0.2.0, stopped after its one supervised update; what follows is held against its own rows."""
    with tarfile.open(Path(__file__).parent / "data" / "run_format_1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    rows = tracking.read_metrics(tmp_path / "metrics.jsonl")
    assert [row["kind"] for row in rows] == ["warmup", "eval", "train", "eval"]
    config, told = options.read(tmp_path / "config.json")
    assert told == [
        "focus is new in this version: 0.0",
        "data.tasks is new in this version: ()",
        "data.plain_answers is new in this version: False",
        "data.letters is new in this version: False",
        "data.over_length is new in this version: refuse",
        "data.buckets is new in this version: 1",
        "data.columns is new in this version: ()",
        "data.codes is new in this version: ()",
        "data.processes is new in this version: False",
        "draw is new in this version: its defaults",
        "model.adapter is new in this version: None",
        "warmup.epochs is new in this version: None",
        "warmup.optim.first_moment is new in this version: float32",
        "sampling.cache is new in this version: None",
        "sampling.waves is new in this version: 0",
        "reward.percentiles is new in this version: None",
        "reward.scale is new in this version: running",
        "reward.window is new in this version: 1024",
        "reward.steepness is new in this version: 3.0",
        "reward.min_iqr is new in this version: 0.01",
        "reward.similarity is new in this version: None",
        "reward.length is new in this version: 512",
        "reward.max_unscored is new in this version: 0.5",
        "judge is new in this version: its defaults",
        "update.kl_ratio is new in this version: False",
        "optim.first_moment is new in this version: float32",
        "evaluation.records is new in this version: None",
        "evaluation.datasets is new in this version: ()",
        "evaluation.split is new in this version: None",
        "evaluation.components is new in this version: ()",
        "evaluation.perplexity is new in this version: False",
        "evaluation.completions is new in this version: 0",
    ]
    with runs.open_run(config, tmp_path) as run:
        params = checkpoint.saved_params(run.checkpoints, 1)
        total = sum(np.abs(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(params))
        assert total == pytest.approx(1256.7176757302987, rel=1e-12)  # as Orbax alone reads them
        train.reinforce(run, *sft.begin(run))
    again = tracking.read_metrics(tmp_path / "metrics.jsonl")
    new = ("rollout/running_share",)  # that 0.2.0 did not log
    plain = lambda row: {
        name: row[name] for name in row if not name.startswith(("kind", "time/", "speed/")) and name not in new
    }
    assert [row["kind"] for row in again] == [row["kind"] for row in rows]
    for row, other in zip(again, rows, strict=True):
        assert plain(row) == pytest.approx(plain(other), rel=1e-4, abs=1e-5)
