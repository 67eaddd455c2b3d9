"""A run's policy as a Hugging Face folder."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fairgrpo_jax import checkpoint, config as options, configs, export, models, policy
from fairgrpo_jax.models.tree import flatten


ROOT = Path(__file__).parent.parent


def write_run(folder, steps=(1, 2)):
    """A run folder of the tiny clinic with checkpoints of random policies; returns their parameters by step."""
    config = dataclasses.replace(configs.get("clinic"), model=options.Model(hidden_size=32))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(options.to_dict(config)))
    model, saved = policy.small(config.model), {}
    with checkpoint.manager(folder / "checkpoints") as checkpoints:
        for step in steps:
            saved[step] = models.init(model, jax.random.key(step)).params
            checkpoint.save(checkpoints, step, saved[step], {"step": np.int32(step)}, {})
    return saved


@pytest.mark.parametrize("step, taken", [(None, 2), (1, 1)])
def test_the_folder_holds_the_policy_and_its_processor(tmp_path, capsys, step, taken):
    saved = write_run(tmp_path / "run")
    assert export.export(tmp_path / "run", tmp_path / "out", step=step) == taken
    vlm = models.load(tmp_path / "out", dtype="float32")
    got, wanted = flatten(vlm.params), flatten(saved[taken])
    assert got.keys() == wanted.keys()
    for path, leaf in got.items():
        np.testing.assert_array_equal(leaf, wanted[path], err_msg=path)
    assert (vlm.processor.min_pixels, vlm.processor.max_pixels) == (32 * 32, 32 * 32)
    assert vlm.processor.patch_size == 4 and vlm.config == policy.small(options.Model(hidden_size=32))
    assert f"checkpoint {taken} of" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["nowhere", "--out", "out"], "nowhere without a config.json; wanted a run folder"),
        (["run", "--out", "out", "--step", "7"], "step=7; wanted one of the checkpoints in .*: 1, 2"),
        (["run", "--out", "full"], "full, which already holds config.json; wanted a new or an empty folder"),
        (["empty", "--out", "out"], "empty without a checkpoint"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, arguments, named):
    write_run(tmp_path / "run")
    for name in ("full", "empty"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text((tmp_path / "run" / "config.json").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["export", *arguments])
    with pytest.raises(SystemExit) as stopped:
        export.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and "Traceback" not in error
    pytest.raises(ValueError, raise_it, error).match(named)
    assert not (tmp_path / "out").exists()


def test_a_full_folder_is_refused_before_the_checkpoint_is_read(tmp_path, monkeypatch):
    write_run(tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").touch()
    monkeypatch.setattr(checkpoint, "saved_params", lambda *_: pytest.fail("the checkpoint was read"))
    with pytest.raises(ValueError, match="already holds config.json"):
        export.export(tmp_path / "run", tmp_path / "full")


def raise_it(text):
    raise ValueError(text)


def test_help_says_what_it_does():
    command = [sys.executable, "-m", "fairgrpo_jax.export", "--help"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "Write the policy of a training run" in said and "RUN" in said and "--step" in said
