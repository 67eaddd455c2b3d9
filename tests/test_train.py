"""Whole runs, small in size only: what they write, how they stop, and that they resume to the same numbers."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from fairgrpo_jax import (
    checkpoint,
    chunking,
    config as options,
    configs,
    data,
    learner,
    lock,
    report,
    rewards,
    runs,
    sft,
    tracking,
    train,
)
from fairgrpo_jax.tracking import read_metrics
from tests.report_page import Page


ROOT = Path(__file__).parent.parent
SCALE = 0.02  # of the clinic's records: those of all domains, but 31 held-out ones, of which most time goes to answers
SMALL = dataclasses.replace(
    configs.get("clinic"),
    steps=4,
    prompts=8,
    rollouts=4,
    checkpoint_every=20,
    data=options.Data(options=(f"scale={SCALE}",)),
    model=options.Model(hidden_size=32),
    warmup=options.Warmup(steps=40, batch=8, optim=options.Optim(lr=2e-2)),
    evaluation=options.Evaluation(every=2, batch=32, samples=2),
)
ARGUMENTS = (
    "--steps 4 --prompts 8 --rollouts 4 --checkpoint-every 2 --model.hidden-size 32 --warmup.steps 40 "
    "--warmup.batch 8 --warmup.optim.lr 2e-2 --evaluation.every 2 --evaluation.batch 32 --evaluation.samples 2 "
    f"--data.options scale={SCALE}"
).split()


def rows(folder, *kinds):
    """The log, or the rows of some kinds, without its times."""
    return [
        {name: value for name, value in row.items() if not name.startswith(("time/", "speed/"))}
        for row in read_metrics(folder / "metrics.jsonl")
        if not kinds or row["kind"] in kinds
    ]


def go(config, folder):
    """A run without its report, which takes longer than so small a run."""
    with runs.open_run(config, folder) as run:
        return train.reinforce(run, *sft.begin(run))


def teach(config, folder):
    """The warm-up alone."""
    with runs.open_run(config, folder) as run:
        sft.begin(run)


def after_warmup(whole, **changes):
    """The config of a run that begins with the supervised weights of the whole run."""
    folder, _ = whole
    warmup = dataclasses.replace(SMALL.warmup, run=folder)
    return dataclasses.replace(SMALL, **{"warmup": warmup, "checkpoint_every": 2, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    final = train.train(SMALL, folder)
    return folder, final


def test_run_writes_what_it_promises(whole):
    folder, final = whole
    log = rows(folder)
    kinds = [(row["kind"], row["step"]) for row in log]
    warm = [("warmup", i) for i in range(1, 41)]
    assert kinds == [
        *warm,
        ("eval", 0),
        ("train", 1),
        ("train", 2),
        ("eval", 2),
        ("train", 3),
        ("train", 4),
        ("eval", 4),
    ]
    step = next(row for row in log if row["kind"] == "train")
    for name in (
        "reward/mean", "reward/zero_variance_share", "advantage/max_abs", "advantage/top_prompt_share",
        "fairness/effective_sample_size", "loss", "optim/grad_norm", "policy/mismatch", "rollout/length",
    ):  # fmt: skip
        assert np.isfinite(step[name]), name
    groups = {name.removeprefix("reward/group/") for name in step if name.startswith("reward/group/")}
    assert groups == {name.removeprefix("advantage/share/") for name in step if name.startswith("advantage/share/")}
    assert len(groups) >= 3 and step["policy/mismatch"] < 1e-4
    assert final["reward"] == log[-1]["reward"]
    assert options.from_dict(json.loads((folder / "config.json").read_text())) == SMALL


def test_nothing_is_compiled_after_the_first_steps(whole):
    """Prompts and completions of every length go through the programs of the first step and evaluation."""
    programs = [row["speed/programs"] for row in read_metrics(whole[0] / "metrics.jsonl")]
    first_save = [1] + [0] * 19  # the program of the digests
    assert programs[0] > 0 and sum(programs[:-2]) == sum(programs) and programs[1:40] == [0] * 19 + first_save


def test_evaluation_holds_every_record_once_and_the_report_opens(whole):
    folder, final = whole
    answered = [json.loads(line) for line in (folder / "evals" / "000004.jsonl").read_text().splitlines()]
    source = data.load("synthetic", split="test", scale=SCALE)
    assert {record.dataset for record in source.records} == {"us", "derm", "cxr", "ct", "diabetes", "digits"}
    assert [row["uid"] for row in answered] == [record.uid for record in source.records]
    assert final["reward"] == pytest.approx(np.mean([row["reward"] for row in answered]))
    page = Page(folder / "report.html")
    assert "clinical use" in page.text
    table = pd.read_parquet(folder / "samples" / "000002.parquet")
    assert len(table) == 2 * SMALL.rollouts and (folder / table["images"][0][0]).exists()
    assert not (folder / "completions").exists()


def test_the_same_command_on_a_finished_run_changes_nothing(whole):
    folder, final = whole
    before = rows(folder)
    assert go(SMALL, folder) == pytest.approx(final, nan_ok=True)
    assert rows(folder) == before


def test_a_warm_up_is_not_done_again_where_the_run_has_gone_on(whole):
    """It would take the trained policy for the one before."""
    folder, _ = whole
    before = {path.name: path.read_bytes() for path in (folder / "evals").iterdir()}, rows(folder)
    with pytest.raises(ValueError, match="is 4 updates beyond its warm-up; wanted fairgrpo_jax.train"):
        sft.sft(SMALL, folder)
    assert ({path.name: path.read_bytes() for path in (folder / "evals").iterdir()}, rows(folder)) == before


def test_changed_config_is_refused_with_the_difference(whole):
    folder, _ = whole
    changed = dataclasses.replace(SMALL, optim=options.Optim(lr=1.0), rollouts=8)
    with pytest.raises(ValueError, match="optim.lr: 0.0003 -> 1.0; rollouts: 4 -> 8"):
        go(changed, folder)


@pytest.mark.parametrize(
    "stage, calls",
    [("policy", 3), *(pytest.param(stage, 25, marks=pytest.mark.slow) for stage in ("warm-up alone", "warm-up"))],
)
def test_a_signal_saves_and_the_same_command_resumes_to_the_same_log(whole, tmp_path, monkeypatch, stage, calls):
    folder, _ = whole
    config = after_warmup(whole) if stage == "policy" else SMALL
    run = teach if stage == "warm-up alone" else go
    name = "policy_step" if stage == "policy" else "supervised_step"
    step, count = getattr(learner, name), [0]
    number = signal.SIGHUP if stage == "policy" else signal.SIGTERM

    def struck(*args, **kwargs):
        count[0] += 1
        if count[0] == calls:
            os.kill(os.getpid(), number)
        return step(*args, **kwargs)

    before = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored, and stays so in a run
    with monkeypatch.context() as patched:
        patched.setattr(learner, name, struck)
        with pytest.raises(runs.Interrupted) as stopped:
            run(config, tmp_path)
    assert stopped.value.code == 128 + number and "the same command resumes" in stopped.value.message
    assert signal.signal(number, before) == signal.SIG_DFL
    last = rows(tmp_path)[-1]
    assert (last["kind"], last["step"]) == ("train" if stage == "policy" else "warmup", calls)
    run(config, tmp_path)
    kinds = {"policy": ("train", "eval"), "warm-up alone": ("warmup",), "warm-up": ()}[stage]
    assert rows(tmp_path) == rows(folder, *kinds)


def test_rows_after_the_checkpoint_are_redone_not_doubled(whole, tmp_path, monkeypatch):
    """A crash between two checkpoints, with rows already written beyond the last one."""
    append = tracking.MetricsLog.append

    def crash(self, kind, step, values):
        append(self, kind, step, values)
        if (kind, step) == ("train", 3):
            with self.path.open("a") as file:
                file.write('{"kind": "train", "st')  # as kill -9 leaves it
            raise RuntimeError("power cut")

    with monkeypatch.context() as patched:
        patched.setattr(tracking.MetricsLog, "append", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            go(after_warmup(whole), tmp_path)
    go(after_warmup(whole), tmp_path)
    assert rows(tmp_path) == rows(whole[0], "train", "eval")


@pytest.mark.parametrize("mesh", ["1x1", "2x1"])
def test_weights_and_fairness_statistics_survive_the_checkpoint(whole, tmp_path, mesh):
    """Also on another mesh than they were saved on."""
    shutil.copytree(whole[0], tmp_path / "copy")
    with runs.open_run(dataclasses.replace(SMALL, mesh=mesh), tmp_path / "copy") as run:
        state, start, _ = sft.begin(run)
        assert {len(leaf.devices()) for leaf in jax.tree.leaves(state.params)} == {run.mesh.size}
        saved = checkpoint.saved_params(run.checkpoints, SMALL.warmup.steps + SMALL.steps)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), saved)
        assert start == 4 and int(state.memory.fairness.domain_count.sum()) == 4 * SMALL.prompts
        assert int(state.step) == 4


def copied(whole, tmp_path):
    return Path(shutil.copytree(whole[0], tmp_path / "copy"))


def spoil(checkpoint_folder):
    """Flips a bit in the largest file of the parameters."""
    path = max((checkpoint_folder / "params").rglob("d/*"), key=lambda file: file.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_kept_aside_and_the_run_goes_on_from_the_one_before(whole, tmp_path, capsys):
    folder = copied(whole, tmp_path)
    spoil(folder / "checkpoints" / "44")
    go(SMALL, folder)
    assert rows(folder) == rows(whole[0])
    kept = folder / "damaged" / "44"
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(told) == 1 and f"{folder}/checkpoints/44 is damaged" in told[0] and told[0].endswith(f"kept as {kept}")
    assert kept.is_dir() and (folder / "checkpoints" / "44").is_dir()


def test_without_a_whole_checkpoint_nothing_is_begun_anew(whole, tmp_path):
    folder = copied(whole, tmp_path)
    for name in ("40", "44"):
        spoil(folder / "checkpoints" / name)
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="got no whole checkpoint in .*/44 is damaged.*/40 is damaged.*begin anew"):
        go(SMALL, folder)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["40", "44"]
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_the_second_process_touches_nothing(whole, tmp_path):
    folder = copied(whole, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "lock"}
    with lock.held(folder), pytest.raises(ValueError, match=f"in which another process is at work .pid {os.getpid()}"):
        go(dataclasses.replace(SMALL, steps=6), folder)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_finished_run_may_become_longer(whole, tmp_path):
    folder = copied(whole, tmp_path)
    go(dataclasses.replace(SMALL, steps=5), folder)
    mine, before = rows(folder), rows(whole[0])
    assert mine[: len(before) - 1] == before[:-1]  # the last evaluation is made anew, before step 5
    (note,) = [row for row in mine if row["kind"] == "note"]
    assert note == {"kind": "note", "step": 44, "changes": ["steps: 4 -> 5"]}
    assert [row["step"] for row in mine if row["kind"] == "train"] == [1, 2, 3, 4, 5]
    assert mine[-1]["kind"] == "eval" and mine[-1]["step"] == 5
    with pytest.raises(ValueError, match="got steps=3 for a run that has done 5"):
        go(dataclasses.replace(SMALL, steps=3), folder)
    assert options.read(folder / "config.json")[0].steps == 5


def test_rows_that_are_lost_are_told(whole, tmp_path, capsys):
    """As after a power cut, had the log not been forced to disk before its checkpoint."""
    folder = copied(whole, tmp_path)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-3]))
    go(SMALL, folder)
    line = "2 of the train rows before update 44 are not in metrics.jsonl"
    assert f"warning: {line}" in capsys.readouterr().out
    assert {"kind": "note", "step": 44, "changes": [line]} in rows(folder)


def test_other_records_are_told(whole, tmp_path, capsys):
    folder = copied(whole, tmp_path)
    path = folder / "checkpoints" / "44" / "host" / "metadata"
    host = json.loads(path.read_text())
    host.pop("crc32")
    host["state"]["records"]["train"] = "7 (0000)"
    path.write_text(json.dumps(host | {"crc32": checkpoint._crc32(host)}))
    go(SMALL, folder)
    assert "warning: records of 'train': 7 (0000) -> " in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", '{"uid": "x"}\n', '{"uid'])
def test_the_report_never_costs_the_run(whole, tmp_path, monkeypatch, capsys, text):
    folder = copied(whole, tmp_path)
    monkeypatch.setattr(report, "build", lambda *_, **__: folder / "report.html")
    (folder / "evals" / "000000.jsonl").write_text(text)
    with runs.open_run(SMALL, folder) as run:
        train.show(run)
    assert "warning: the run is complete, its report is not (" in capsys.readouterr().out


def unscored(share):
    """Scores of which the first ``share`` are lost, as by a judge that does not answer."""
    score = rewards.Scorer.__call__

    def lossy(self, answers, *args):
        scores = score(self, answers, *args)
        lost = np.arange(scores.rewards.size).reshape(scores.rewards.shape) < round(share * scores.rewards.size)
        return scores._replace(rewards=np.where(lost, np.float32(np.nan), scores.rewards))

    return lossy


def test_a_step_with_too_few_scores_is_saved_and_stops_the_run(whole, tmp_path, monkeypatch):
    config = after_warmup(whole, checkpoint_every=20, reward=options.Reward(max_unscored=0.25))
    monkeypatch.setattr(rewards.Scorer, "__call__", unscored(0.5))
    with pytest.raises(ValueError, match="got 50% of the completions of step 1 without a score by exact.*=25%"):
        go(config, tmp_path)
    (row,) = rows(tmp_path, "train")
    lost = {name: value for name, value in row.items() if name.startswith("reward/unscored/")}
    assert row["reward/unscored_share"] == 0.5 and 0 < len(lost) and set(lost.values()) <= {0.5, 1.0, 0.25, 0.75}
    assert np.isfinite(row["reward/mean"])
    monkeypatch.undo()
    go(config, tmp_path)
    assert [row["step"] for row in rows(tmp_path, "train")] == [1, 2, 3, 4]


def test_a_step_without_any_score_stops_at_once(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(rewards.Scorer, "__call__", unscored(1.0))
    with pytest.raises(ValueError, match="got no score by exact for any of the 32 completions of step 1"):
        go(after_warmup(whole), tmp_path)
    assert rows(tmp_path, "train") == []


@pytest.mark.slow
def test_a_run_may_go_on_with_another_mesh(whole, tmp_path):
    """Stopped on one device after two steps, continued on two: the numbers agree to the rounding of the sums."""
    go(after_warmup(whole), tmp_path)
    for name in ("4", "3"):  # as if it had been killed after the checkpoint of step 2
        shutil.rmtree(tmp_path / "checkpoints" / name, ignore_errors=True)
    go(after_warmup(whole, mesh="2x1"), tmp_path)
    mine, theirs = (rows(folder, "train") for folder in (tmp_path, whole[0]))
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    for row, other in zip(mine, theirs, strict=True):
        assert row["optim/grad_norm"] == pytest.approx(other["optim/grad_norm"], rel=0.02)
        assert row["reward/mean"] == pytest.approx(other["reward/mean"], abs=0.05)


def test_supervised_weights_of_another_run_are_taken(whole, tmp_path):
    go(after_warmup(whole, algorithm="grpo", steps=0), tmp_path)
    assert rows(tmp_path)[0] == rows(whole[0], "eval")[0]
    lost = dataclasses.replace(SMALL, warmup=options.Warmup(run=tmp_path / "no"))
    with pytest.raises(ValueError, match="without a config.json"):
        go(lost, tmp_path / "b")


def test_non_finite_loss_stops_the_run_naming_step_and_metric(whole, tmp_path, monkeypatch):
    step = learner.policy_step

    def broken(*args, **kwargs):
        state, metrics = step(*args, **kwargs)
        return state, metrics | {"loss": metrics["loss"] * float("nan")}

    monkeypatch.setattr(learner, "policy_step", broken)
    with pytest.raises(FloatingPointError, match="loss is nan at training step 1"):
        go(after_warmup(whole), tmp_path)


def test_dynamic_sampling_draws_more_prompts_and_resumes(whole, tmp_path):
    sampling = dataclasses.replace(SMALL.sampling, tries=3)
    config = after_warmup(whole, sampling=sampling, algorithm="grpo", steps=2, checkpoint_every=1)
    go(config, tmp_path)
    log = rows(tmp_path)
    drawn, plain = (rows(folder, "train") for folder in (tmp_path, whole[0]))
    assert drawn[0]["rollout/replaced"] in (8, 16)
    assert drawn[0]["rollout/zero_variance"] < plain[0]["rollout/zero_variance"]
    assert plain[0]["rollout/zero_variance"] == pytest.approx(8 * plain[0]["reward/zero_variance_share"])
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    go(config, tmp_path)
    assert rows(tmp_path) == log


def test_fair_sampling_draws_by_group_and_resumes(whole, tmp_path):
    """With replacements for prompts without signal; the last step, redone from what was drawn ahead, is the same."""
    config = after_warmup(
        whole,
        sampling=dataclasses.replace(SMALL.sampling, tries=2),
        data=dataclasses.replace(SMALL.data, sampling="fair"),
        draw=options.Draw(window=3),
        algorithm="rloo",
        focus=1.0,
        steps=4,
        checkpoint_every=3,
    )
    go(config, tmp_path)
    log = rows(tmp_path)
    steps = rows(tmp_path, "train")
    shares = [{name: row[name] for name in row if name.startswith("drawn/probability/")} for row in steps]
    assert all(sum(share.values()) == pytest.approx(1) and len(share) > 20 for share in shares)
    assert shares[0] == shares[1] == shares[2] != shares[3]
    assert [row["drawn/lag"] for row in steps] == [0, 1, 2, 2]
    assert 0.2 < steps[0]["drawn/from_natural"] < 0.8
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    go(config, tmp_path)
    assert rows(tmp_path) == log


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_several_mini_batches_and_passes_update_as_often(whole, tmp_path, monkeypatch, real):
    """Where memory is short, the rollouts are scored in as many parts as they are learned from.

    The slow case computes the updates too, as test_train_step does for mini-batches and test_learner_policy for parts.
    """
    chunks, score = [], learner.with_logprobs

    def scored(params, batch, **named):
        chunks.append(named["chunks"])
        return score(params, batch, **named) if real else batch.replace(old_logprobs=batch.sampler_logprobs)

    def counted(state, pieces, **named):
        assert len(pieces) == 2 and named["update"].chunks == SMALL.rollouts
        return dataclasses.replace(state, step=state.step + 1), dict.fromkeys(
            ("loss", "optim/grad_norm", "mismatch"), np.float32(1)
        )

    monkeypatch.setattr(learner, "with_logprobs", scored)
    if not real:
        monkeypatch.setattr(learner, "policy_step", counted)
    monkeypatch.setattr(chunking, "MEMORY", 1)
    config = after_warmup(whole, steps=1, update=options.Update(mini_batches=2, passes=2, accumulation=2))
    go(config, tmp_path)
    assert chunks == [config.rollouts] * 2 * 2  # of two mini-batches in two parts each
    with runs.open_run(config, tmp_path) as run:
        assert int(sft.begin(run)[0].step) == 4


def command(folder):
    """The real command as a process of its own; what it prints goes to a file beside the run folder."""
    module = [sys.executable, "-m", "fairgrpo_jax.train", "clinic", *ARGUMENTS, "--workdir", str(folder)]
    with folder.with_suffix(".txt").open("w") as output:
        return subprocess.Popen(module, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_kill_9_and_the_same_command_again(tmp_path):
    """Real processes: one runs through, one is killed after its third step of reinforcement learning."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert command(whole).wait() == 0, whole.with_suffix(".txt").read_text()
    process, log = command(killed), killed / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and '"train", "step": 3' in log.read_text()):
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert command(killed).wait() == 0, killed.with_suffix(".txt").read_text()
    assert rows(killed) == rows(whole)


@pytest.mark.slow
def test_kill_9_at_random_moments(tmp_path):
    """In start, warm-up, saving, training, evaluation or the report, wherever it falls: one folder, killed again."""
    whole, killed, rng = tmp_path / "whole", tmp_path / "killed", np.random.default_rng(0)
    began = time.monotonic()
    assert command(whole).wait() == 0
    took = time.monotonic() - began
    for share in rng.uniform(0.2, 1, 4):
        process = command(killed)
        time.sleep(share * took)
        process.kill()
        process.wait()
    assert command(killed).wait() == 0, killed.with_suffix(".txt").read_text()
    assert rows(killed) == rows(whole)
    for path in (whole / "evals").iterdir():
        assert (killed / "evals" / path.name).read_bytes() == path.read_bytes()
    assert not [path for path in killed.rglob("*") if "tmp" in path.name]


@pytest.mark.slow
def test_two_processes_at_once_are_one_run(tmp_path):
    """Started at the same moment: one goes through, the other is told in one line."""
    folder, other = tmp_path / "run", tmp_path / "other.txt"
    module = [sys.executable, "-m", "fairgrpo_jax.train", "clinic", *ARGUMENTS, "--workdir", str(folder)]
    with other.open("w") as output:
        processes = [command(folder), subprocess.Popen(module, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)]
        codes = [process.wait() for process in processes]
    told = (folder.with_suffix(".txt") if codes[0] else other).read_text()
    assert sorted(codes) == [0, 2] and "another process is at work" in told and "Traceback" not in told
    assert [row["step"] for row in rows(folder, "train")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_mesh_4x1_needs_no_config_name(tmp_path):
    module = [sys.executable, "-m", "fairgrpo_jax.train", "--mesh", "4x1", *ARGUMENTS, "--workdir", str(tmp_path)]
    subprocess.run(module, cwd=ROOT, check=True)
    assert rows(tmp_path)[-1]["kind"] == "eval" and jax.device_count() == 8
