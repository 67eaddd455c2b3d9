"""Runs with several components in their reward: what is logged, and that percentiles are resumed."""

import contextlib
import dataclasses
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

from fairgrpo_jax import config as options, evaluate, rollout, runs, train
from fairgrpo_jax.models.tiny import judge as tiny_judge
from fairgrpo_jax.models.tiny.tokenizer import tiny_tokenizer
from fairgrpo_jax.rewards import endpoint as client, judge_prompts
from tests.scripted_judge import Reply, Scripted
from tests.test_train import ARGUMENTS, ROOT, SMALL, go, rows


PLAIN = dataclasses.replace(SMALL, warmup=options.Warmup(steps=0), algorithm="grpo", steps=3, checkpoint_every=1)
MIXED = ("tests.own_rewards:share_of_a,normalised", "think_box=0.5", "one_box@derm=0.5", "tests.own_rewards:whole,gate")


def test_components_are_logged_normalised_and_resumed(tmp_path):
    reward = options.Reward(MIXED, window=64)
    config = dataclasses.replace(PLAIN, reward=reward, algorithm="gdpo", fairness=options.Fairness(history="ring"))
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, completions=2))
    go(config, tmp_path)
    log, steps = rows(tmp_path), rows(tmp_path, "train")
    name = "tests.own_rewards:share_of_a"
    first, last = steps[0], steps[-1]
    assert 0 < first[f"reward/component/{name}"] < 1 and first["reward/component/think_box"] == 0
    assert first[f"reward/normalised/{name}"] != pytest.approx(first[f"reward/component/{name}"])
    assert 0.2 < last[f"reward/normalised/{name}"] < 0.8
    assert first[f"advantage/component/{name}"] == 1 and np.isfinite(first["optim/grad_norm"])
    assert {cell.split("/")[3] for cell in first if cell.startswith("reward/component/one_box/")} <= {"derm"}
    answer = evaluate.read(tmp_path, 3)[0]
    parts = answer.get("components", {})
    assert set(parts) == {name, "think_box", "tests.own_rewards:whole"} | (
        {"one_box"} if answer["dataset"] == "derm" else set()
    )
    assert answer["reward"] == pytest.approx(parts["tests.own_rewards:whole"] * parts[name])  # without the boxes, 0
    kept = sorted(path.name for path in (tmp_path / "completions").iterdir())
    assert kept == ["000000.parquet", "000002.parquet"]
    table: Any = pd.read_parquet(tmp_path / "completions" / kept[0])
    assert len(table) == config.prompts * config.rollouts
    for column, logged in ((f"component/{name}", f"reward/component/{name}"), ("length", "rollout/length")):
        assert table[column].mean() == pytest.approx(first[logged], rel=1e-6)
    assert table[f"normalised/{name}"].mean() == pytest.approx(first[f"reward/normalised/{name}"], rel=1e-6)
    for (dataset, cell), own in table.groupby(["dataset", "cell"]):
        assert own["reward"].mean() == pytest.approx(first[f"reward/group/{dataset}/{cell}"], rel=1e-5)
        share = own["advantage"].abs().sum() / table["advantage"].abs().sum()
        assert share == pytest.approx(first[f"advantage/share/{dataset}/{cell}"], rel=1e-5)
    shutil.rmtree(tmp_path / "checkpoints" / "3")
    with runs.open_run(config, tmp_path) as run:
        resumed = run.resume()
        assert resumed is not None and resumed[1].memory.quantiles is not None
        windows = np.asarray(jax.device_get(resumed[1].memory.quantiles.window))
        assert windows.shape == (len(run.encoder.domains), 64) and np.isfinite(windows).any()
    go(config, tmp_path)
    assert rows(tmp_path) == log


def test_a_function_that_fails_stops_the_run_before_the_update(tmp_path):
    config = dataclasses.replace(PLAIN, reward=options.Reward(("exact", "tests.own_rewards:raises_for_many")))
    with pytest.raises(ValueError, match="got RuntimeError .too many. of tests.own_rewards:raises_for_many"):
        go(config, tmp_path)
    assert rows(tmp_path) == []


def test_a_reward_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    config = dataclasses.replace(PLAIN, reward=options.Reward(("exact@nowhere",)))
    with pytest.raises(ValueError, match="which applies to no record"):
        go(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def kept(folder):
    """Number of the judge's answers in a run folder."""
    with contextlib.closing(sqlite3.connect(folder / "judge.sqlite")) as file:
        return file.execute("SELECT count(*) FROM answers").fetchone()[0]


def without_counts(log):
    """The counts of a judge begin anew in every process."""
    return [{name: value for name, value in row.items() if not name.startswith("judge/")} for row in log]


def test_a_judge_is_asked_once_beside_the_sampling_and_never_again(tmp_path, monkeypatch):
    """Rules and judges in waves; a run that lost its last step takes what was answered from the file in its folder."""
    monkeypatch.setattr(client, "BACK_OFF", 0.01)
    asked, decoded, decode, score = [], [], rollout.texts, train.score

    def counted(batch, tokenizer):
        decoded.append(batch.tokens.shape[:2])
        return decode(batch, tokenizer)

    def checked(batch, rollouts, texts, *rest):
        assert texts == decode(rollouts, tiny_tokenizer())
        return score(batch, rollouts, texts, *rest)

    monkeypatch.setattr(rollout, "texts", counted)
    monkeypatch.setattr(train, "score", checked)

    def script(body, before):
        text = body["messages"][0]["content"]
        asked.append(text)
        if "Yes or No" in text:
            return Reply(text="Yes")
        return Reply(text="\n".join(f"{code}: {1 + len(text) % 5}" for code in judge_prompts.CODES))

    with Scripted(script) as server:
        config = dataclasses.replace(
            PLAIN,
            reward=options.Reward(("exact", "think_box=0.5", "judge=0.25", "semantic=0.1")),
            judge=options.Judge(url=server.url, model="there"),
            sampling=dataclasses.replace(PLAIN.sampling, waves=2),
            evaluation=options.Evaluation(every=3, batch=32, samples=2),
            fairness=options.Fairness(history="ring"),
        )
        go(config, tmp_path)
        log, steps = rows(tmp_path), rows(tmp_path, "train")
        assert steps[0]["reward/unscored_share"] == 0 and 0 < steps[0]["reward/component/judge"] < 1
        assert {name for name in steps[0] if name.startswith("reward/judge/judge/")} == {
            f"reward/judge/judge/{name}" for name in judge_prompts.DIMENSIONS
        }
        assert 0 <= steps[0]["reward/component/semantic"] < 0.5  # few thoughts yet, and of the others nobody was asked
        waves = [shape for shape in decoded if shape[1] == config.rollouts]
        assert waves == [(config.prompts // 2, config.rollouts)] * 6  # of three steps, each once
        calls = len(asked)  # the last evaluation comes after the last step
        assert calls > steps[-1]["judge/calls"] > 50 and len(set(asked)) == calls
        shutil.rmtree(tmp_path / "checkpoints" / "3")
        go(config, tmp_path)
        assert len(asked) == calls + 1  # the one that sees whether the judge is there
        assert without_counts(rows(tmp_path)) == without_counts(log)


@pytest.mark.parametrize(
    "components, judge, message",
    [
        (("judge",), options.Judge(), "got reward component 'judge' without a judge; wanted --judge.url"),
        (("exact",), options.Judge(model="there"), "got judge.model and no component that asks it"),
        (("judge",), options.Judge(model="there", url="http://127.0.0.1:9/v1", attempts=1), "127.0.0.1:9"),
        (("judge",), options.Judge(model="there", key_variable="NO_SUCH_KEY"), "NO_SUCH_KEY"),
        (("semantic",), options.Judge(path=Path("nowhere")), "nowhere"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused_before_any_weights(tmp_path, components, judge, message):
    config = dataclasses.replace(
        PLAIN, reward=options.Reward(components), judge=judge, fairness=options.Fairness(history="ring")
    )
    with pytest.raises(ValueError, match=message):
        go(config, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_judge_on_our_own_devices_and_similarity_of_words(tmp_path, capsys):
    """Everything offline: a tiny random decoder says Yes or No of the reasoning, words are compared with the answer."""
    folder = tiny_judge.write(tmp_path / "judge")
    config = dataclasses.replace(
        PLAIN,
        reward=options.Reward(("exact", "semantic=0.1", "similarity=0.5")),
        judge=options.Judge(path=folder, mode="typed", dtype="float32"),
        fairness=options.Fairness(history="ring"),
        steps=1,
    )
    go(config, tmp_path / "run")
    (step,) = rows(tmp_path / "run", "train")
    assert step["reward/unscored_share"] == 0 and 0 <= step["reward/component/semantic"] < 1
    assert 0 <= step["reward/component/similarity"] <= 1 and "words" in capsys.readouterr().out
    assert kept(tmp_path / "run") >= step["judge/calls"]  # the last evaluation comes after the last step


# The command of training, which also writes down the questions that the judge on our devices reads.
COUNTED = """
import sys
from fairgrpo_jax import commandline, train
from fairgrpo_jax.models import next_words

log_probs, asked = next_words.Reader.log_probs, sys.argv.pop(1)
next_words.TOGETHER = 1024

def counted(self, rows):
    with open(asked, "a") as file:
        file.writelines(f"{[*row]}\\n" for row in rows)
    return log_probs(self, rows)

next_words.Reader.log_probs = counted
commandline.run(train.train, prog="train", description=None)
"""


@pytest.mark.slow
def test_a_run_with_a_judge_on_our_devices_is_killed_and_asks_nothing_again(tmp_path):
    """The clinic by accuracy, form and judge for 20 steps: the same log after kill -9, and no question read twice."""
    judge = tiny_judge.write(tmp_path / "judge")
    reward = "--reward.components exact think_box=0.5 semantic=0.25 --fairness.history ring --algorithm grpo"
    how = f"--steps 20 --checkpoint-every 5 --evaluation.every 10 {reward} --judge.path {judge} --judge.dtype float32"

    def begun(name):
        folder, asked = tmp_path / name, tmp_path / f"{name}.asked"
        words = [sys.executable, "-c", COUNTED, asked, "clinic", *ARGUMENTS, *how.split(), "--workdir", folder]
        with (tmp_path / f"{name}.txt").open("a") as output:
            return subprocess.Popen([*map(str, words)], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)

    def asked(name):
        return (tmp_path / f"{name}.asked").read_text().splitlines()

    assert begun("whole").wait() == 0, (tmp_path / "whole.txt").read_text()
    once = asked("whole")
    assert len(once) == len({*once}) == kept(tmp_path / "whole") > 100
    process, log = begun("killed"), tmp_path / "killed" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and '"train", "step": 13' in log.read_text()):
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    in_flight = len(asked("killed")) - kept(tmp_path / "killed")
    assert begun("killed").wait() == 0, (tmp_path / "killed.txt").read_text()
    assert without_counts(rows(tmp_path / "killed")) == without_counts(rows(tmp_path / "whole"))
    again = asked("killed")
    assert {*again} == {*once} and len(again) - len(once) == in_flight, "only what was being read when it was killed"
    semantic = [row["reward/component/semantic"] for row in rows(tmp_path / "whole", "train")]
    assert len(semantic) == 20 and max(semantic) > 0


@pytest.mark.parametrize(
    "changes, rewards_of_step, said",
    [
        ({"algorithm": "group_dro"}, [0.0, 1.5], "wanted rewards from 0 to 1"),
        ({"algorithm": "group_dro"}, [-1.0, np.nan], "wanted rewards from 0 to 1"),
        ({"algorithm": "fair_grpo"}, [-1.0, 3.0], "wanted rewards from -0 to inf"),
        ({"algorithm": "grpo", "data": options.Data(sampling="fair")}, [1.5], "wanted rewards from -inf to 1"),
    ],
)
def test_rewards_that_an_estimator_is_not_defined_for_stop_the_run(changes, rewards_of_step, said):
    seen: Any = [types.SimpleNamespace(rewards=np.array([rewards_of_step]))]
    with pytest.raises(ValueError, match=f"in step 7.*{said}"):
        train.require_range(dataclasses.replace(SMALL, **changes), 7, seen)
    train.require_range(dataclasses.replace(SMALL, algorithm="grpo"), 7, seen)


def test_a_sum_of_weights_that_rounds_to_a_little_more_than_1_is_a_full_success():
    told = []
    batch = types.SimpleNamespace(domains=np.zeros(1, int), groups=np.zeros(1, int))
    seen: Any = [types.SimpleNamespace(rewards=np.array([[1 + 2**-23, np.nan, 0.5]], np.float32), batch=batch)]
    prompts: Any = types.SimpleNamespace(observe=lambda *parts: told.extend(parts))
    train.require_range(dataclasses.replace(SMALL, algorithm="group_dro"), 1, seen)
    train.observe(prompts, seen)
    np.testing.assert_array_equal(told[0], np.array([[1, np.nan, 0.5]], np.float32))
