"""The study: its statistics against others' numbers, its plan, its registration, and a real one in two processes."""

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fairgrpo_jax import config as options, configs, demographics, study
from fairgrpo_jax.study import compare, outcomes, registration, tables
from tests import run_folder


ROOT = Path(__file__).parent.parent


def arguments(**changes):
    return study.complete(study.Arguments(config=configs.get("clinic_small"), **changes))


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_sign_flips_by_counting_them():
    ours, theirs = np.random.default_rng(0).normal([[0.5], [0.0]], 1, (2, 7))
    d = ours - theirs
    flipped = [abs(np.mean(d * signs)) for signs in itertools.product((1, -1), repeat=7)]
    found = compare.paired(ours, theirs)
    assert found.p == pytest.approx(np.mean(np.array(flipped) >= abs(d.mean()) - 1e-12))
    test = stats.ttest_rel(ours, theirs).confidence_interval()
    assert (found.low, found.high) == pytest.approx((test.low, test.high))
    assert (found.mean, found.better) == (pytest.approx(d.mean()), (d > 0).sum())


def test_smallest_p_of_ten_and_twelve_seeds():
    assert compare.paired(np.arange(10) + 1.0, np.zeros(10)).p == pytest.approx(2 / 2**10)
    assert compare.paired(np.arange(12) + 1.0, np.zeros(12)).p == pytest.approx(2 / 2**12)


def test_a_margin_is_what_may_be_lost():
    found = compare.paired([0.49, 0.5, 0.51], [0.5, 0.51, 0.52], margin=0.02)
    assert found.mean == pytest.approx(0.01) and found.better == 3


def test_one_seed_tests_nothing():
    assert compare.paired([1.0], [0.0]).p == 1.0


def test_holm_against_r():
    """p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm") in R."""
    assert compare.holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert compare.holm([0.6, 0.01]) == pytest.approx([0.6, 0.02])


def test_seeds_needed_against_tables():
    """Paired t-test, two-sided .05, power .8: 34 pairs for d = .5, 199 for d = .2 and 15 for d = .8 (Cohen 1988)."""
    assert [compare.seeds_needed(d, 1.0) for d in (0.2, 0.5, 0.8)] == [199, 34, 15]
    with pytest.raises(ValueError, match="got deviation=0"):
        compare.seeds_needed(0.5, 0)


@pytest.mark.parametrize("values", [([], []), ([1.0], [1.0, 2.0]), ([math.nan], [1.0])])
def test_what_cannot_be_compared(values):
    with pytest.raises(ValueError, match="one finite number a seed"):
        compare.paired(*values)


# ---- plan ------------------------------------------------------------------------------------------------------------


def test_methods_of_a_seed_differ_in_their_own_options_only(tmp_path):
    names = ("grpo", "grpo_rs", "fair_sampling focus=0 draw.window=1", "fair_grpo fairness.sort_vectors=true")
    tasks = study.plan(arguments(methods=names, seeds=(3, 4), settings=("", "prompts=32 optim.lr=1e-4")), tmp_path)
    assert len(tasks) == 2 * 2 * 5 and len({task.folder for task in tasks}) == 20
    base = next(task for task in tasks if task.key == ("", "grpo", 3))
    own = {
        "grpo_rs": {"data.sampling: natural -> balanced"},
        names[2]: {"data.sampling: natural -> fair", "draw.window: 8 -> 1"},
        names[3]: {"algorithm: grpo -> fair_grpo", "fairness.sort_vectors: False -> True"},
    }
    for task in tasks:
        if task.key[0] == "" and task.key[1] in own and task.seed == 3:
            lines = options.difference(options.to_dict(base.config), options.to_dict(task.config))
            assert set(lines) == own[task.key[1]]
        if task.method is not None:
            warm = next(t for t in tasks if t.method is None and (t.setting, t.seed) == (task.setting, task.seed))
            assert task.config.warmup.run == warm.folder and task.config.seed == task.seed == warm.config.seed
    smaller = next(task for task in tasks if task.key == ("prompts=32 optim.lr=1e-4", "grpo", 4))
    assert (smaller.config.prompts, smaller.config.optim.lr) == (32, 1e-4)


def test_elements_of_a_list_may_hold_commas_in_quotes(tmp_path):
    """As a line of CSV: components of a reward have flags behind commas."""
    names = ("grpo", 'grpo reward.components="exact@cxr,normalised",set_f1@us=0.2', "grpo reward.components=exact")
    setting = "fairness.history=ring data.options=domains=cxr,test_cell=9"
    _, first, mixed, plain = study.plan(arguments(methods=names, settings=(setting,)), tmp_path)
    assert first.config.data.options == ("domains=cxr", "test_cell=9")
    assert mixed.config.reward.components == ("exact@cxr,normalised", "set_f1@us=0.2")
    assert plain.config.reward.components == ("exact",) and mixed.folder != plain.folder


def test_data_change_with_the_seed_if_asked(tmp_path):
    tasks = study.plan(arguments(methods=("grpo",), seeds=(7,), vary_data=True), tmp_path)
    assert all(task.config.data.options == ("test_cell=120", "seed=7") for task in tasks)


@pytest.mark.parametrize("preset", ["table", "ablation", "clusters", "null", "lr"])
def test_presets_are_plans(preset, tmp_path):
    tasks = study.plan(arguments(preset=preset), tmp_path)
    assert len(tasks) >= 5 and all(isinstance(task.config, options.Config) for task in tasks)


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(methods=("ppo",)), "got method 'ppo'; wanted one of fair_grpo"),
        (dict(methods=("grpo focus",)), "got 'focus'; wanted OPTION=VALUE"),
        (dict(methods=("grpo focuss=1",)), "focuss"),
        (dict(methods=("grpo focus=-1",)), "focus=-1.0; wanted an exponent"),
        (dict(methods=("grpo", "grpo")), "twice"),
        (dict(settings=("prompts",)), "wanted OPTION=VALUE"),
        ({"methods": ("grpo", "grpo warmup.steps=50")}, "got warmup.steps in the method 'grpo warmup.steps=50'"),
        ({"methods": ("grpo seed=9",)}, "got seed in the method 'grpo seed=9'; wanted --seeds"),
        ({"settings": ("seed=5",)}, "got seed in the setting 'seed=5'"),
    ],
)
def test_what_cannot_be_planned(changes, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        study.plan(arguments(**changes), tmp_path)


# ---- registration ----------------------------------------------------------------------------------------------------


def test_comparisons_are_read():
    methods, figures = ("grpo", "fair_sampling focus=0"), ("f1", "worst_f1")
    found = registration.primary("f1: fair_sampling focus=0 > grpo - 0.02", methods, figures)
    assert found == registration.Primary("f1", "fair_sampling focus=0", "grpo", 0.02)
    assert registration.primary(found.text, methods, figures) == found
    assert registration.primary("worst_f1: grpo > fair_sampling focus=0", methods, figures).margin == 0


@pytest.mark.parametrize(
    "text, said",
    [
        ("f1 grpo > rloo", "wanted FIGURE: METHOD > METHOD"),
        ("f2: grpo > rloo", "figure 'f2'; wanted one of f1"),
        ("f1: grpo > ppo", "method 'ppo'; wanted one that runs: grpo, rloo"),
    ],
)
def test_comparisons_that_are_refused(text, said):
    with pytest.raises(ValueError, match=said):
        registration.primary(text, ("grpo", "rloo"), ("f1",))


def test_a_registration_stays(tmp_path):
    plan = {"seeds": [1, 2], "methods": ["grpo"]}
    first = registration.register(tmp_path / "new", plan)
    assert registration.register(tmp_path / "new", plan) == first and "sha256" in first
    with pytest.raises(ValueError, match=r"seeds: \[1, 2\] -> \[1, 2, 3\].*another --workdir"):
        registration.register(tmp_path / "new", plan | {"seeds": [1, 2, 3]})
    (tmp_path / "ran").mkdir()
    (tmp_path / "ran" / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="runs made before any registration"):
        registration.register(tmp_path / "ran", plan)


# ---- results ---------------------------------------------------------------------------------------------------------


def test_worst_cell_by_hand():
    """Two datasets with cells; the worst, best and spread of each, averaged; small and lone cells do not count."""
    rows = []

    def add(dataset, sex, age, right, count=50):
        for i in range(count):
            rows.append(
                {
                    "dataset": dataset,
                    "sex": sex,
                    "age": age,
                    "answer": "A",
                    "prediction": "A" if i < right * count else "B",
                }
            )

    add("d", "F", 30, 1.0)
    add("d", "M", 80, 0.5)
    add("d", "M", 60, 0.0, count=49)
    add("only_age", None, 30, 0.8)
    add("only_age", None, 80, 0.6)
    add("lone", "F", 30, 0.1)
    add("nobody", None, None, 0.1)
    f1 = lambda right: 2 * right / (1 + right)  # of the one class there is
    found = outcomes.by_cell(rows, demographics.DEFAULT)
    assert found["worst_f1"] == pytest.approx((f1(0.5) + f1(0.6)) / 2)
    assert found["best_f1"] == pytest.approx((f1(1.0) + f1(0.8)) / 2)
    assert found["spread_f1"] == pytest.approx((f1(1.0) - f1(0.5)) / 4 + (f1(0.8) - f1(0.6)) / 4)


def test_figures_of_a_run_folder(tmp_path):
    folder = run_folder.write(tmp_path / "run", patients=400)
    config = options.Config(name="clinic", algorithm="grpo", steps=200)
    with (folder / "metrics.jsonl").open("a") as log:
        row = {"kind": "eval", "step": 200, "f1": 0.5, "top1": 0.6, "reward": 0.7, "reward_sampled": 0.4}
        log.write(json.dumps(row) + "\n")
    found = outcomes.outcomes(folder, config, 200)
    assert (found["f1"], found["top1"], found["greedy"], found["sampled"]) == (0.5, 0.6, 0.7, 0.4)
    assert found["worst_f1"] < found["best_f1"] and 20 < found["effective_sample_size"] < 30
    assert math.isnan(found["from_natural"]) and set(found) == set(outcomes.FIGURES)


def test_results_as_text(tmp_path):
    results = {
        ("", method, seed): dict.fromkeys(outcomes.FIGURES, value + seed / 100 + (method == "ours") * (seed % 2) / 500)
        for method, value in (("grpo", 0.5), ("ours", 0.6))
        for seed in range(8)
    }
    primaries = [registration.Primary("worst_f1", "ours", "grpo"), registration.Primary("f1", "grpo", "ours")]
    text = tables.as_markdown(
        "T", results, reference="grpo", primaries=primaries, registered="then", alpha=0.05, command="c"
    )
    assert "Preregistered: then." in text and "| grpo | 8 | 0.535 ± 0.024 |" in text
    assert "| worst_f1: ours > grpo | +0.101 [+0.100, +0.102] | 8 of 8 | 0.0078 | 0.0156 | yes | 2 |" in text
    assert "| f1: grpo > ours | -0.101 [-0.102, -0.100] | 0 of 8 | 0.0078 | 0.0156 | no | 2 |" in text
    assert "| ours | +0.101 [+0.100, +0.102]; 8/8; p 0.008 |" in text
    lines = tables.as_csv(results).splitlines()
    assert len(lines) == 17 and lines[1].startswith(",grpo,0,0.5,")
    assert "Exploratory" in tables.as_markdown(
        "T", results, reference="grpo", primaries=[], registered=None, alpha=0.05, command="c"
    )


def test_each_method_at_its_best_setting():
    results = {
        (setting, method, seed): dict.fromkeys(outcomes.FIGURES, value)
        for (setting, method), value in {
            ("a", "grpo"): 0.1,
            ("b", "grpo"): 0.2,
            ("a", "x"): 0.5,
            ("b", "x"): 0.3,
        }.items()
        for seed in (0, 1)
    }
    text = tables.as_markdown(
        "T", results, reference="grpo", primaries=[], registered=None, alpha=0.05, command="c", best_of=True
    )
    best = text[text.index("own best setting") :]
    assert "- grpo: b\n- x: a\n" in best and "| grpo | 2 | 0.200" in best and "| x | 2 | 0.500" in best
    assert "+0.300" in best


# ---- the whole -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_in_two_processes_goes_on_after_kill_9(tmp_path):
    """Real processes: killed while they run, then the same command; the results are those of an unbroken study."""

    def command(folder):
        small = "--steps 2 --prompts 8 --rollouts 4 --warmup.steps 3 --warmup.batch 8 --evaluation.batch 64"
        words = ["clinic_small", "--methods", "grpo", "fair_sampling", "--seeds", "0", "1", *small.split()]
        words += ["--data.options", "scale=0.05", "--vary-data", "--workdir", str(folder)]
        words += ["--primaries", "f1: fair_sampling > grpo - 0.02"]
        return [sys.executable, "-m", "fairgrpo_jax.study", *words]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command(whole), "--jobs", "2"], cwd=ROOT, check=True)
    process = subprocess.Popen([*command(killed), "--jobs", "2"], cwd=ROOT, start_new_session=True)
    while process.poll() is None and not list(killed.glob("seed*/grpo/evals/000002.jsonl")):
        time.sleep(0.1)
    process.kill()  # the study alone: its runs notice, save and end
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        for _ in range(600):
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    again = subprocess.run([*command(killed), "--jobs", "2"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert " 0 of them finished" not in again.stdout
    assert (killed / "results.csv").read_text() == (whole / "results.csv").read_text()
    third = subprocess.run(command(killed), cwd=ROOT, check=True, capture_output=True, text=True)
    assert "6 runs in" in third.stdout and "6 of them finished" in third.stdout
    changed = subprocess.run([*command(killed), "--seed", "5"], cwd=ROOT, capture_output=True, text=True)
    assert changed.returncode == 2 and "config.seed: 0 -> 5" in changed.stderr


def test_finished_is_told_from_begun_and_from_another_config(tmp_path):
    folder = run_folder.write(tmp_path / "run")
    config = options.Config(name="clinic", algorithm="grpo", steps=200)
    (folder / "config.json").write_text(json.dumps(options.to_dict(config)))
    task = study.Task(registration.setting(""), registration.method("grpo"), 0, config, folder)
    assert task.finished()
    warm = dataclasses.replace(task, method=None, config=dataclasses.replace(config, steps=0))
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"kind": "eval", "step": 0, "reward": 0.5}\n')
    (folder / "config.json").write_text(json.dumps(options.to_dict(warm.config)))
    assert not warm.finished()
    (folder / "checkpoints" / "200").mkdir(parents=True)
    assert warm.finished()
    (folder / "config.json").write_text(json.dumps(options.to_dict(config)))
    assert not dataclasses.replace(task, config=dataclasses.replace(config, steps=300)).finished()
    assert not dataclasses.replace(task, config=dataclasses.replace(config, focus=1.0)).finished()
    assert not dataclasses.replace(task, folder=tmp_path / "none").finished()
