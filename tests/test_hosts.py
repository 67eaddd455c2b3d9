"""Several processes on this machine: what they exchange, whole runs with 1, 2 and 4 of them, and how they end."""

import collections
import json
import re
import shutil
import signal
import socket
import time

import numpy as np
import pytest

from fairgrpo_jax import hosts, mesh
from fairgrpo_jax.rewards import judge_prompts
from fairgrpo_jax.tracking import read_metrics
from tests import several
from tests.scripted_judge import Reply, Scripted


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_have_their_rows_and_exchange_the_rest(count, tmp_path):
    several.together(count, ["tests/host_program.py"], tmp_path, timeout=240)
    for index in range(count):
        assert f"all is well with process {index} of {count}" in several.said(tmp_path, index)


def test_one_process_exchanges_nothing():
    rows = np.arange(6)
    assert hosts.count() == 1 and hosts.first()
    assert rows[hosts.rows(6)].tolist() == rows.tolist() and hosts.by_process(6).shape == (1, 6)
    assert hosts.gathered(rows) is rows and hosts.everyone("x") == ["x"] and hosts.total(2.0) == 2.0
    assert hosts.any_of(True) and not hosts.any_of(False) and hosts.on_first(lambda: 3) == 3
    hosts.require_equal("options", "x")
    assert hosts.start("off") == 1 and hosts.lost(RuntimeError("gloo")) is None


@pytest.mark.parametrize(
    "spec", ["auto,2,0", "host,2,0", "host:1,2", "host:1,0,0", "host:1,2,2", "host:x,2,1", "on", ""]
)
def test_refuses_what_names_no_place(spec):
    with pytest.raises(ValueError, match="HOST:PORT,N,I"):
        hosts.parse(spec)


def test_refuses_a_coordinator_that_every_host_would_look_for_on_itself(monkeypatch):
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    with pytest.raises(ValueError, match=re.escape("node1:9731 that this host resolves to 127.0.1.1")):
        hosts.start("node1:9731,2,0")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    with pytest.raises(ValueError, match="mend the line"):
        hosts._require_reachable("node1:9731", literal=False)
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    hosts._require_reachable("node1:9731", literal=False)  # all its processes run on this host
    hosts._require_reachable("127.0.0.1:9731", literal=True)


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NUM_NODES": "2",
}


def test_auto_sees_a_slurm_step_and_nothing_here(monkeypatch):
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)
    assert hosts._detected() is None and hosts.start("auto") == 1
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert hosts._detected() == 16


def test_simulated_devices_are_shared_out(monkeypatch):
    asked = []
    monkeypatch.setattr(mesh.jax.config, "update", lambda name, value: asked.append(value))
    mesh.simulate("4x2", 4)
    assert asked == [2]


def test_an_error_that_all_raise_alike_ends_in_order(monkeypatch):
    monkeypatch.setattr(hosts, "_state", lambda: type("State", (), {"num_processes": 2, "process_id": 1}))
    monkeypatch.setattr(hosts.os, "_exit", lambda status: (_ for _ in ()).throw(AssertionError(status)))
    with pytest.raises(hosts.Ending), hosts.alone():
        raise hosts.Ending(130)
    for error, status in ((SystemExit(2), 2), (RuntimeError(), 1)):
        with pytest.raises(AssertionError, match=str(status)), hosts.alone():
            raise error


# ---- whole runs ------------------------------------------------------------------------------------------------------

RUN = (
    "-m fairgrpo_jax.train clinic --mesh 4x1 --steps 4 --prompts 8 --rollouts 4 --checkpoint-every 2 "
    "--model.hidden-size 32 --warmup.steps 40 --warmup.batch 8 --warmup.optim.lr 2e-2 --evaluation.every 2 "
    "--evaluation.batch 64 --evaluation.samples 2 --data.options scale=0.05 --optim.lr 1e-5"
).split()
VARIANTS = {
    "fair_grpo": ["--data.buckets", "2", "--update.mini-batches", "2"],
    "fair_grpo_nd": ["--algorithm", "fair_grpo_nd", "--sampling.waves", "2", "--update.beta", "0.01"],
    "group_dro": ["--algorithm", "group_dro", "--sampling.tries", "3", "--data.sampling", "fair"],
}


def go(folder, count, *further):
    """A run of several processes to its end."""
    folder.mkdir(exist_ok=True)
    several.together(count, [*RUN, "--workdir", str(folder / "run"), *further], folder, timeout=900)
    return folder / "run"


def figures(folder):
    """The log without times and counts of programs, padding (which depends on who has which prompt) and notes."""
    apart = ("time/", "speed/")
    return [
        {name: value for name, value in row.items() if not name.startswith(apart)}
        for row in read_metrics(folder / "metrics.jsonl")
        if row["kind"] != "note"
    ]


def assert_alike(found, wanted, exact=20):
    """The same rows: ``exact`` of them to 1e-5, the others as far as AdamW lets the rounding of sums grow.

    Its first updates have the size of the learning rate whatever the gradient: where that is rounding, they differ.
    """
    assert [(row["kind"], row["step"]) for row in found] == [(row["kind"], row["step"]) for row in wanted]
    for place, (its, row) in enumerate(zip(found, wanted, strict=True)):
        near = dict(rtol=1e-5, atol=1e-5) if place < exact else dict(rtol=1e-3, atol=1e-4)
        assert its.keys() == row.keys()
        for name, value in row.items():
            if isinstance(value, float):
                assert np.allclose(its[name], value, equal_nan=True, **near), (row["kind"], row["step"], name)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The figures of two processes that nobody disturbs."""
    return figures(go(tmp_path_factory.mktemp("unbroken"), 2))


def goes_on(folder, *further):
    """The figures of a run that goes on after its first step with one process, and with two: from equal numbers."""
    go(folder / "1", 1, "--steps", "1", *further)
    shutil.copytree(folder / "1", folder / "2")
    return [figures(go(folder / str(count), count, *further)) for count in (1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_do_what_one_does(variant, tmp_path):
    one, two = goes_on(tmp_path, *VARIANTS[variant])
    assert_alike(two, one)
    for name in ("evals/000000.jsonl", "evals/000004.jsonl"):
        found, wanted = ((tmp_path / count / "run" / name).read_text().splitlines() for count in ("2", "1"))
        assert len(found) == len(wanted) and np.mean([a == b for a, b in zip(found, wanted, strict=True)]) > 0.9


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(unbroken, tmp_path):
    """1 -> 2 -> 4 -> 1 processes: the prompts and the figures of one, whose supervised stage is that of two."""
    whole = go(tmp_path / "whole", 1)
    assert_alike(unbroken[:20], figures(whole)[:20])
    for steps, count in (("1", 1), ("2", 2), ("3", 4), ("4", 1)):
        run = go(tmp_path / "parts", count, "--steps", steps, "--checkpoint-every", "1", "--evaluation.every", "9")
    trained = [[row for row in figures(folder) if row["kind"] == "train"] for folder in (run, whole)]
    assert_alike(*trained, exact=0)


def wait_for(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def kinds(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(line)["kind"] for line in path.read_text().splitlines()] if path.exists() else []


MOMENTS = {
    "training": lambda run: kinds(run).count("train") >= 3,
    "evaluation": lambda run: kinds(run).count("train") >= 2,  # it follows
    "checkpoint": lambda run: kinds(run).count("train") >= 2 and any((run / "checkpoints").glob("*tmp*")),
}


@pytest.mark.slow
@pytest.mark.parametrize("victim, moment", [(0, "training"), (1, "training"), (1, "evaluation"), (1, "checkpoint")])
def test_the_others_end_when_one_is_killed_and_the_run_goes_on(victim, moment, unbroken, tmp_path):
    command = [*RUN, "--workdir", str(tmp_path / "run")]
    with several.started(2, command, tmp_path) as running:
        wait_for(lambda: MOMENTS[moment](tmp_path / "run"))
        running[victim].kill()
        assert running[1 - victim].wait(120) != 0
    if victim == 1:  # it says so itself, or JAX's coordinator does, which ends it
        assert re.search("has lost another one|tasks are unhealthy[^:]*:\\s*1", several.said(tmp_path, 0))
    assert_alike(figures(go(tmp_path, 2)), unbroken)


@pytest.mark.slow
def test_no_activation_crosses_processes(tmp_path):
    several.together(4, ["-m", "tests.host_update"], tmp_path)


@pytest.mark.slow
def test_processes_share_the_calls_of_a_judge(tmp_path):
    """Each text is judged once, by the process that has it, and all learn its score."""
    arrived = []

    def script(body, before):
        arrived.append(body["messages"][0]["content"])
        return Reply(text="\n".join(f"{code}: {1 + len(arrived[-1]) % 5}" for code in judge_prompts.CODES))

    with Scripted(script) as server:
        judged = ["--reward.components", "exact", "judge=0.5", "--fairness.history", "ring"]
        one, two = goes_on(tmp_path, *judged, "--judge.url", server.url, "--judge.model", "there")
    *others, most = sorted(collections.Counter(arrived).values())
    assert max(others) <= 2 and most == 4 and len(others) > 50  # of two runs; and each process asks who is there
    apart = lambda run: [{name: row[name] for name in row if "judge/" not in name} for row in run]
    assert_alike(apart(two), apart(one))


@pytest.mark.slow
def test_a_signal_to_one_saves_all(tmp_path):
    command = [*RUN, "--workdir", str(tmp_path / "run"), "--steps", "40"]
    with several.started(2, command, tmp_path) as running:
        wait_for(lambda: kinds(tmp_path / "run").count("train") >= 1)
        running[1].send_signal(signal.SIGTERM)
        assert [process.wait(240) for process in running][1] == 128 + signal.SIGTERM
    assert "stopped after saving update" in several.said(tmp_path, 0)


@pytest.mark.slow
def test_processes_with_other_options_are_refused(tmp_path):
    command = [*RUN, "--workdir", str(tmp_path / "run")]
    with several.started(2, command, tmp_path, last=["--optim.lr", "0.5"]) as running:
        assert all(process.wait(120) == 2 for process in running)
    assert "got process 1 of 2 with options" in several.said(tmp_path, 0)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_error_of_one_ends_all(tmp_path):
    """Process 1 cannot read the folder of a dataset: it says so, and the other does not wait for it."""
    command = [*RUN, "--workdir", str(tmp_path / "run")]
    with several.started(2, command, tmp_path, last=["--data.options", "nonsense=1"]) as running:
        assert running[1].wait(120) == 2
        assert running[0].wait(120) != 0
