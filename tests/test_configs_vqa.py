"""The runs of the medical VQA paper: presets load and plan, and train two toy steps on files in the owners' form."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest

from fairgrpo_jax import config as options, configs, evaluate, runs, sft, train
from fairgrpo_jax.plan import plan
from tests import real_sizes
from tests.dataset_fixtures import pmc_vqa, slake, vqa_rad
from tests.scripted_judge import Reply, Scripted
from tests.test_train import rows


PRESETS = [name for name in configs.names() if name.startswith("pmc_vqa")]


def test_methods_differ_in_the_reward_alone():
    assert len(PRESETS) == 2 * (1 + 6)
    for file, changed in (("pmc_vqa_grpo", "sequence"), ("pmc_vqa_dr_grpo", "constant")):
        first = configs.get(file)
        assert first.update.aggregation == changed and first.reward.components == ("answered", "think_answer")
        for name in PRESETS:
            if name.startswith(f"{file}/"):
                lines = options.difference(options.to_dict(first), options.to_dict(configs.get(name)))
                assert {line.split(":")[0] for line in lines} <= {"reward.components", "name"}
    two = [options.to_dict(configs.get(file)) for file in ("pmc_vqa_grpo", "pmc_vqa_dr_grpo")]
    assert {line.split(":")[0] for line in options.difference(*two)} == {"algorithm", "name", "update.aggregation"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for module in (pmc_vqa, slake, vqa_rad):
        folder = root / module.__name__.rpartition(".")[2]
        folder.mkdir()
        module.write(folder)
    return root


def toy(config, root, **changes):
    return dataclasses.replace(
        config,
        mesh="1x1",
        steps=2,
        prompts=4,
        rollouts=2,
        model=options.Model(hidden_size=32),
        data=dataclasses.replace(
            config.data, root=root, prompt_length=256, num_patches=80, min_pixels=1024, max_pixels=1024, buckets=1
        ),
        sampling=dataclasses.replace(config.sampling, max_new_tokens=4),
        evaluation=dataclasses.replace(
            config.evaluation,
            every=100,
            batch=8,
            samples=0,
            datasets=("vqa_rad", "slake"),
            components=("token_f1", "one_box"),
        ),
        **changes,
    )


def open_toy(name, root, folder):
    """A run whose judge, if it asks one, always says Yes."""
    stack = contextlib.ExitStack()
    server = stack.enter_context(Scripted(lambda body, before: Reply(text="Yes")))
    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
    judge = options.Judge(url=server.url, model="there") if "semantic" in name else options.Judge()
    return stack, stack.enter_context(runs.open_run(toy(configs.get(name), root, judge=judge), folder))


def assert_evaluated(final, answers):
    """The figures of the three datasets, from the answers."""
    assert {row["dataset"] for row in answers} == {"pmc_vqa", "vqa_rad", "slake"}
    assert set(answers[0].get("measured", {})) == {"token_f1", "one_box"}
    for dataset in ("pmc_vqa", "vqa_rad", "slake"):
        own = [row for row in answers if row["dataset"] == dataset]
        assert final[f"exact/{dataset}"] == np.mean([row["exact"] for row in own])
        assert final[f"measured/token_f1/{dataset}"] == pytest.approx(
            np.mean([row.get("measured", {})["token_f1"] for row in own])
        )
        tokens, nll = (sum(row.get(key, 0) for row in own) for key in ("length", "nll"))
        assert final[f"perplexity/{dataset}"] == pytest.approx(np.exp(nll / tokens)) and nll > 0


@pytest.mark.slow  # test_answers and test_evaluate have one dataset
def test_an_evaluation_on_three_datasets(root, tmp_path):
    """Of the policy as it begins: updates, judges and estimators of a run are in test_train.py and its neighbours."""
    stack, run = open_toy("pmc_vqa_dr_grpo/semantic", root, tmp_path)
    with stack:
        final = evaluate.held_out(run, sft.begin(run)[0].params, 0)
    assert_evaluated(final, evaluate.read(tmp_path, 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_two_steps_and_an_evaluation_on_three_datasets(name, root, tmp_path):
    stack, run = open_toy(name, root, tmp_path)
    with stack:
        final = train.reinforce(run, *sft.begin(run))
    steps = rows(tmp_path, "train")
    assert len(steps) == 2 and np.isfinite([step["loss"] for step in steps]).all()
    assert_evaluated(final, evaluate.read(tmp_path, 2))


def test_the_presets_are_planned_at_their_true_size(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(real_sizes.CONFIGS["Qwen/Qwen2-VL-2B-Instruct"]))
    config = configs.get("pmc_vqa_grpo")
    planned = plan.plan(dataclasses.replace(config, model=dataclasses.replace(config.model, path=tmp_path)), "a100:4")
    assert planned.fits
