"""Whole runs, small in size only: what they write, how they stop, and that they resume to the same numbers."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
import typing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from fairgrpo_jax import (
    advantages,
    batches,
    checkpoint,
    chunking,
    config as options,
    configs,
    data,
    estimators,
    fairness,
    learner,
    models,
    rollout,
    runs,
    sft,
    tracking,
    train,
)
from fairgrpo_jax.plan import cost
from fairgrpo_jax.tracking import read_metrics
from tests import tiny_batch
from tests.report_page import Page


ROOT = Path(__file__).parent.parent
SCALE = 0.05  # of the clinic's records: those of all domains, but 90 held-out ones instead of 1,800
SMALL = dataclasses.replace(
    configs.get("clinic"),
    steps=4,
    prompts=8,
    rollouts=4,
    checkpoint_every=20,
    data=options.Data(options=(f"scale={SCALE}",)),
    model=options.Model(hidden_size=32),
    warmup=options.Warmup(steps=60, batch=8, optim=options.Optim(lr=1e-2)),
    evaluation=options.Evaluation(every=2, batch=64, samples=2),
)
ARGUMENTS = (
    "--steps 4 --prompts 8 --rollouts 4 --checkpoint-every 2 --model.hidden-size 32 --warmup.steps 60 "
    "--warmup.batch 8 --warmup.optim.lr 1e-2 --evaluation.every 2 --evaluation.batch 64 --evaluation.samples 2 "
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
    warm = [("warmup", i) for i in range(1, 61)]
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
    assert programs[0] > 0 and sum(programs[:-2]) == sum(programs) and programs[1:60] == [0] * 59


def test_evaluation_holds_every_record_once_and_the_report_opens(whole):
    folder, final = whole
    answered = [json.loads(line) for line in (folder / "evals" / "000004.jsonl").read_text().splitlines()]
    source = data.load("synthetic", split="test", scale=SCALE)
    assert {record.dataset for record in source.records} == {"us", "derm", "cxr", "ct", "diabetes", "digits"}
    assert [row["uid"] for row in answered] == [record.uid for record in source.records]
    assert final["reward"] == pytest.approx(np.mean([row["reward"] for row in answered]))
    page = Page(folder / "report.html")
    assert "clinical use" in page.text
    sample = json.loads((folder / "samples" / "000002.json").read_text())[0]
    assert (folder / sample["images"][0]).exists() and len(sample["completions"]) == SMALL.rollouts


def test_the_same_command_on_a_finished_run_changes_nothing(whole):
    folder, final = whole
    before = rows(folder)
    assert go(SMALL, folder) == pytest.approx(final, nan_ok=True)
    assert rows(folder) == before


def test_changed_config_is_refused_with_the_difference(whole):
    folder, _ = whole
    changed = dataclasses.replace(SMALL, optim=options.Optim(lr=1.0), rollouts=8)
    with pytest.raises(ValueError, match="optim.lr: 0.0003 -> 1.0; rollouts: 4 -> 8"):
        go(changed, folder)


@pytest.mark.parametrize(
    "stage, calls", [("policy", 3), ("warm-up alone", 30), pytest.param("warm-up", 30, marks=pytest.mark.slow)]
)
def test_sigterm_saves_and_the_same_command_resumes_to_the_same_log(whole, tmp_path, monkeypatch, stage, calls):
    folder, _ = whole
    config = after_warmup(whole) if stage == "policy" else SMALL
    run = teach if stage == "warm-up alone" else go
    name = "policy_step" if stage == "policy" else "supervised_step"
    step, count = getattr(learner, name), [0]

    def struck(*args, **kwargs):
        count[0] += 1
        if count[0] == calls:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(learner, name, struck)
        with pytest.raises(runs.Interrupted) as stopped:
            run(config, tmp_path)
    assert stopped.value.code == 128 + signal.SIGTERM and "the same command resumes" in stopped.value.message
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
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


def step_of(rewards, domains, groups, rollouts=None):
    """A step's prompts by their rewards: one token each, numbered tokens and records."""
    part: Any = np.arange(len(rewards)) + 1
    G = rewards.shape[1]
    tokens: Any = np.repeat(part, 3 * G).reshape(-1, G, 3)
    rollouts = rollout.RolloutBatch(tokens, tokens >= 0, tokens / 10) if rollouts is None else rollouts
    prompt = models.Prompt(**{f.name: part for f in dataclasses.fields(models.Prompt)})
    names: Any = [f"record {i}" for i in part]
    batch = batches.PromptBatch(prompt, names, domains, groups)
    learned = np.asarray(rollouts.mask)
    return train.Sampled(batch, rollouts, [[f"text {i}"] for i in part], rewards, np.ones(rewards.shape, bool), learned)


@pytest.mark.parametrize("algorithm", typing.get_args(options.Algorithm))
def test_the_loop_computes_the_public_functions(algorithm):
    """As a user calls them: without options, those of the config at their defaults."""
    rng = np.random.default_rng(0)
    rewards = (rng.random((40, 4)) < rng.beta(0.5, 0.9, (40, 1))).astype(np.float32)
    lengths = rng.integers(1, 20, rewards.shape).astype(np.int32)
    domains, groups = (np.arange(40) % 3 // 2).astype(np.int32), rng.integers(-1, 2, 40).astype(np.int32)
    state = fairness.init(2, 2, 4, history="binary")
    mask = np.arange(20) < lengths[..., None]
    arrays: Any = mask.astype(np.int32), mask, mask * 0.0
    sampled = step_of(rewards, domains, groups, rollout.RolloutBatch(*arrays))
    kept, _ = train.refill(None, [sampled])
    order = kept.rows
    config = dataclasses.replace(SMALL, algorithm=algorithm)
    devices = jax.make_mesh((1, 1), ("fsdp", "tensor"))
    got, memory, watched = train.estimate(kept, [sampled], estimators.Memory(state), config, devices)
    wanted, after = {
        "fair_grpo": lambda: fairness.fair_grpo(rewards, domains, groups, state),
        "fair_grpo_nd": lambda: fairness.fair_grpo_nd(rewards, domains, state),
        "drpo": lambda: fairness.drpo(rewards, domains, state),
        "group_dro": lambda: fairness.group_dro(rewards, domains, groups, state),
        "opo": lambda: (advantages.opo(rewards, lengths), state),
        "reinforce_plus_plus": lambda: (advantages.reinforce_plus_plus(rewards, lengths), state),
        "reinforce_plus_plus_baseline": lambda: (advantages.reinforce_plus_plus_baseline(rewards, lengths), state),
    }.get(algorithm, lambda: (getattr(advantages, algorithm)(rewards), state))()
    np.testing.assert_allclose(got, np.asarray(wanted)[order], atol=1e-6)
    for mine, theirs in zip(jax.tree.leaves(memory.fairness), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)
    assert watched["advantage/max_abs"] == np.abs(got).max()


@pytest.mark.parametrize("tries, rows, counts", [(1, [1, 0, 2, 3], (3, 0)), (2, [1, 4, 6, 0], (1, 4))])
def test_prompts_that_teach_replace_those_that_do_not(tries, rows, counts):
    """By hand: of batches of four prompts, those with different rewards first, then the oldest of the others."""
    rewards = np.array([[1, 1], [0, 1], [0, 0], [1, 1], [1, 0], [0, 0], [0, 1], [1, 1]], np.float32)
    whole = step_of(rewards, np.arange(8), -np.arange(8))
    kept, drawn, seen = None, {}, []
    for attempt in range(tries):
        seen.append(whole.take(np.arange(4) + 4 * attempt))
        kept, drawn = train.refill(kept, seen)
    assert kept is not None
    assert (drawn["rollout/zero_variance"], drawn["rollout/replaced"]) == counts
    np.testing.assert_array_equal(kept.rows, rows)
    np.testing.assert_array_equal(kept.rewards, rewards[rows])
    np.testing.assert_array_equal(kept.rollouts.tokens[:, 0, 0], np.array(rows) + 1)
    np.testing.assert_array_equal([kept.batch.domains, -kept.batch.groups, kept.batch.prompt.tokens - 1], [rows] * 3)
    assert kept.batch.records == [f"record {i + 1}" for i in rows] and kept.texts == [[f"text {i + 1}"] for i in rows]


@pytest.mark.parametrize("algorithm", ["fair_grpo", "fair_grpo_nd", "group_dro", "grpo"])
def test_statistics_and_logged_rewards_are_those_of_all_sampled_prompts(algorithm):
    """Dynamic sampling keeps the half that teaches; groups are still as well served as they were drawn."""
    rng = np.random.default_rng(1)
    groups = np.arange(24).astype(np.int32) % 2
    rewards = (rng.random((24, 4)) < np.where(groups, 0.1, 0.6)[:, None]).astype(np.float32)
    domains = np.zeros(24, np.int32)
    whole = step_of(rewards, domains, groups)
    kept, seen = None, []
    for attempt in range(2):
        seen.append(whole.take(np.arange(8) + 8 * attempt))
        kept, _ = train.refill(kept, seen)
    assert kept is not None
    config = dataclasses.replace(SMALL, algorithm=algorithm, sampling=options.Sampling(tries=3))
    state = fairness.init(1, 2, 4, history="binary")
    devices = jax.make_mesh((1, 1), ("fsdp", "tensor"))
    got, memory, watched = train.estimate(kept, seen, estimators.Memory(state), config, devices)
    drawn = rewards[:16]
    if algorithm != "grpo":
        shown = [0, 1] if algorithm != "fair_grpo_nd" else [2]
        means = [drawn[groups[:16] == g].mean() for g in (0, 1)] if len(shown) == 2 else [drawn.mean()]
        np.testing.assert_array_equal(memory.fairness.group_count[0, shown], [16 // len(shown)] * len(shown))
        np.testing.assert_allclose(memory.fairness.group_mean[0, shown], means, rtol=1e-6)
    if algorithm == "group_dro":  # q / p by hand, of everyone that was drawn
        q = np.exp(0.01 * (1 - np.array(means)))
        weights = (q / q.sum() / 0.5)[kept.batch.groups]
        np.testing.assert_allclose(got, weights[:, None] * advantages.grpo(kept.rewards), rtol=1e-5)
    elif algorithm == "grpo":
        np.testing.assert_allclose(got, advantages.grpo(kept.rewards), rtol=1e-6)
    else:
        hidden = groups[:16] if algorithm == "fair_grpo" else np.full(16, -1)
        weights, _ = fairness.weigh(algorithm, drawn, domains[:16], hidden, state)
        np.testing.assert_allclose(got, fairness.rescale(kept.rewards, weights[kept.rows]), rtol=1e-5, atol=1e-6)
    encoder: Any = types.SimpleNamespace(domains=("d",), vocabulary=types.SimpleNamespace(cells=("a", "b")))
    values = train.step_metrics(kept, seen, np.asarray(got), encoder)
    assert values["reward/mean"] == pytest.approx(drawn.mean()) and values["reward/unscored_share"] == 0
    assert values["reward/kept_mean"] == pytest.approx(kept.rewards.mean())
    assert values["reward/group/d/b"] == pytest.approx(drawn[groups[:16] == 1].mean())


def test_effective_sample_size_of_group_dro_is_that_of_its_weights():
    """By hand: q of two cells after losses of 1 and 0 at step size 5, over shares of 7/8 and 1/8."""
    rewards = np.array([[1.0, 0.0]] * 8, np.float32)
    state = fairness.init(1, 2, 2, history=None)
    state = dataclasses.replace(state, dro_log_weight=np.array([[0.0, 5.0, 0.0]], np.float32))
    scored = estimators.Scored.of(rewards, np.zeros(8, int), np.array([0] * 7 + [1]))
    _, _, watched = estimators.estimate("group_dro", scored, estimators.Memory(state))
    q = np.exp([0, 5]) / np.exp([0, 5]).sum()
    weights = np.array([q[0] / (7 / 8)] * 7 + [q[1] / (1 / 8)])
    assert watched["fairness/effective_sample_size"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-4)
    assert watched["fairness/effective_sample_size"] < 1.2


def test_a_completion_that_was_not_scored_costs_neither_log_nor_advantage():
    rewards = np.array([[1.0, np.nan, 0.0], [1.0, 0.0, 0.0]], np.float32)
    sampled = step_of(rewards, np.zeros(2, np.int32), np.array([0, -1], np.int32))
    kept, _ = train.refill(None, [sampled])
    devices = jax.make_mesh((1, 1), ("fsdp", "tensor"))
    memory = estimators.Memory(fairness.init(1, 1, 3, history="binary"))
    got, _, watched = train.estimate(kept, [sampled], memory, SMALL, devices)
    assert np.isfinite(got).all() and got[0, 1] == 0 and all(np.isfinite(value) for value in watched.values())
    encoder: Any = types.SimpleNamespace(domains=("d",), vocabulary=types.SimpleNamespace(cells=("a",)))
    values = train.step_metrics(kept, [sampled], np.asarray(got), encoder)
    assert values["reward/mean"] == pytest.approx(2 / 5) and values["reward/unscored_share"] == pytest.approx(1 / 6)
    assert values["reward/group/d/a"] == 0.5 and all(np.isfinite(value) for value in values.values())


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


@pytest.mark.parametrize("truncated", ["mask", "penalise"])
def test_truncated_completions(truncated):
    """Completions that ended are learned from as before; cut ones have no loss, or a lower reward."""
    sampling = options.Sampling(max_new_tokens=4, truncated=truncated, overlong_buffer=2)
    config = dataclasses.replace(SMALL, algorithm="grpo", sampling=sampling)
    end = tiny_batch.MODEL.eos_ids[0]
    tokens = np.array([[[9, end, 0, 0], [9, 9, 9, 9], [9, 9, 9, end], [9, 9, end, 0]]], np.int32)
    mask = np.arange(4) < np.array([2, 4, 4, 3])[None, :, None]
    arrays: Any = tokens, mask, np.zeros(tokens.shape, np.float32)
    rollouts = rollout.RolloutBatch(*arrays)
    batch: Any = types.SimpleNamespace(records=[types.SimpleNamespace(answer="Nevus")])
    sampled = train.score(batch, rollouts, [[r"\boxed{Nevus}"] * 4], config, tiny_batch.MODEL)
    np.testing.assert_array_equal(sampled.finished, [[True, False, True, True]])
    np.testing.assert_allclose(sampled.rewards, [[1, 0, 0, 0.5]] if truncated == "penalise" else [[1, 1, 1, 1]])
    np.testing.assert_array_equal(sampled.learned[0, 1], [truncated != "mask"] * 4)
    np.testing.assert_array_equal(sampled.learned[0, ::2], mask[0, ::2])
    compared = [[1, 0, 0, 0.5]] if truncated == "penalise" else [[1, np.nan, 1, 1]]
    np.testing.assert_allclose(sampled.compared, compared)


@pytest.mark.parametrize("algorithm", ["reinforce_plus_plus", "reinforce_plus_plus_baseline", "opo", "grpo"])
def test_advantages_are_centred_over_the_tokens_that_are_learned_from(algorithm):
    """Where cut completions are masked: mean 0, and deviation 1 where the estimator whitens."""
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 13, (16, 4))
    mask = np.arange(12) < lengths[..., None]
    finished = lengths < 10
    rewards = np.where(finished, rng.random((16, 4)) < 0.6, 0).astype(np.float32)
    arrays: Any = mask.astype(np.int32), mask, mask * 0.0
    sampled = step_of(rewards, np.zeros(16, np.int32), np.zeros(16, np.int32), rollout.RolloutBatch(*arrays))
    sampled = dataclasses.replace(sampled, finished=finished, learned=mask & finished[..., None])
    kept, _ = train.refill(None, [sampled])
    config = dataclasses.replace(SMALL, algorithm=algorithm)
    devices = jax.make_mesh((1, 1), ("fsdp", "tensor"))
    memory = estimators.Memory(fairness.init(1, 1, 4, history="binary"))
    got = np.asarray(train.estimate(kept, [sampled], memory, config, devices)[0], np.float64)
    tokens = kept.learned.sum(-1)
    assert (got[tokens == 0] == 0).all()
    if algorithm == "opo":
        np.testing.assert_allclose((got * tokens).sum(1), 0, atol=1e-5)
    elif algorithm == "grpo":
        np.testing.assert_allclose(got.sum(1), 0, atol=1e-5)
    else:
        mean = (got * tokens).sum() / tokens.sum()
        assert mean == pytest.approx(0, abs=1e-5)
        assert (got**2 * tokens).sum() / (tokens.sum() - 1) == pytest.approx(1, abs=1e-3)


def test_speed_counts_tokens_and_useful_work_only():
    """Padding of prompts and completions is no work; MFU by hand from the formula of the work and an H200's peak."""
    prompt = tiny_batch.prompt(tiny_batch.records(4))
    mask = np.arange(6) < np.array([[2, 4], [6, 4], [3, 1], [4, 4]])[..., None]
    arrays: Any = mask.astype(int), mask, mask * 0.0
    sampled: Any = types.SimpleNamespace(
        batch=types.SimpleNamespace(prompt=jax.device_get(prompt)), rollouts=rollout.RolloutBatch(*arrays)
    )
    config = dataclasses.replace(SMALL, prompts=4, rollouts=2)
    device = types.SimpleNamespace(device_kind="NVIDIA H200")
    mesh: Any = types.SimpleNamespace(devices=np.array([[device]], object), size=1)
    values = {"time/rollout": 0.5, "time/update": 0.1}
    got = train.speed(sampled, [sampled], values, config, tiny_batch.MODEL, mesh)
    lengths = np.asarray(prompt.valid).sum(1)
    sizes = cost.Sizes(prompts=4, rollouts=2, prompt=int(lengths.mean()), completion=3.5, patches=64)
    work = cost.update_flops(tiny_batch.MODEL, sizes, recomputed=False).total
    assert got["speed/rollout_tokens_per_s"] == 56
    assert got["speed/update_mfu"] == pytest.approx(work / 0.1 / 494.5e12)
    device.device_kind = "cpu"
    assert train.speed(sampled, [sampled], values, config, tiny_batch.MODEL, mesh).keys() == {
        "speed/rollout_tokens_per_s"
    }


def test_several_mini_batches_and_passes_update_as_often(whole, tmp_path, monkeypatch):
    """Where memory is short, the rollouts are scored in as many chunks as they are learned from."""
    chunks, score = [], learner.with_logprobs
    monkeypatch.setattr(
        learner, "with_logprobs", lambda *args, **named: chunks.append(named["chunks"]) or score(*args, **named)
    )
    monkeypatch.setattr(chunking, "MEMORY", 1)
    config = after_warmup(whole, steps=1, update=options.Update(mini_batches=2, passes=2, accumulation=2))
    go(config, tmp_path)
    assert chunks == [config.rollouts]
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
def test_mesh_4x1_needs_no_config_name(tmp_path):
    module = [sys.executable, "-m", "fairgrpo_jax.train", "--mesh", "4x1", *ARGUMENTS, "--workdir", str(tmp_path)]
    subprocess.run(module, cwd=ROOT, check=True)
    assert rows(tmp_path)[-1]["kind"] == "eval" and jax.device_count() == 8
