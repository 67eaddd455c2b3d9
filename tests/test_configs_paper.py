"""The runs of the FairGRPO paper: presets plan, and run two toy steps on files in the owners' form."""

import contextlib
import dataclasses
import inspect
import io
import json

import numpy as np
import pytest

from fairgrpo_jax import answers, config as options, configs, fairness, runs, sft, train
from fairgrpo_jax.plan import plan
from tests import covid_fixture, real_sizes
from tests.dataset_fixtures import chexpert, ham10000, hemorrhage, isic2020, pad_ufes_20, vindr_mammo


PRESETS = [name for name in configs.names() if name.startswith("fair")]
# Presets of a model differ in algorithm, sampling and focus alone, as the first test says, and test_train.py runs every
# algorithm, natural and fair sampling: one with balanced sampling stands for all.
QUICK = "fairmedgemma_4b/grpo_rs"
TABLE = {"fair_grpo", "fair_grpo_nd", "grpo", "grpo_rs", "grpo_dro", "rloo", "reinforce_plus_plus"}
METHODS = TABLE | {"fair_sampling"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One folder for each of the seven datasets."""
    root = tmp_path_factory.mktemp("data")
    for module in (chexpert, ham10000, hemorrhage, isic2020, pad_ufes_20, vindr_mammo):
        folder = root / module.__name__.rpartition(".")[2]
        folder.mkdir()
        module.write(folder)
    covid_fixture.write(root / "covid_blues")
    return root


def toy(config, root):
    """The preset with a tiny policy, a tiny batch, images of 32 x 32 pixels, and evaluation left out."""
    return dataclasses.replace(
        config,
        mesh="1x1",
        steps=2,
        prompts=8,
        rollouts=2,
        model=options.Model(hidden_size=32),
        data=dataclasses.replace(
            config.data, root=root, prompt_length=512, num_patches=256, min_pixels=1024, max_pixels=1024
        ),
        sampling=dataclasses.replace(config.sampling, max_new_tokens=4),
        warmup=options.Warmup(steps=0, batch=8),
        evaluation=options.Evaluation(every=100, batch=8),
    )


def test_every_method_of_the_table_is_there_and_differs_in_nothing_else():
    for file in ("fairmedgemma_4b", "fair_qwen2_5_vl_7b"):
        assert {name.partition("/")[2] for name in PRESETS if name.startswith(f"{file}/")} == METHODS
        first = options.to_dict(configs.get(file))
        for method in METHODS:
            lines = options.difference(first, options.to_dict(configs.get(f"{file}/{method}")))
            assert {line.split(":")[0] for line in lines} <= {"algorithm", "data.sampling", "focus", "name"}, lines
        assert len(options.difference(first, options.to_dict(configs.get(f"{file}/fair_grpo")))) == 1


def test_the_authors_figures():
    """From the scripts; MedGemma's are those of its FairGRPO run."""
    gemma, qwen = configs.get("fairmedgemma_4b"), configs.get("fair_qwen2_5_vl_7b")
    assert (gemma.optim.lr, gemma.rollouts, qwen.optim.lr, qwen.rollouts) == (5e-7, 10, 1e-6, 5)
    for config in (gemma, qwen):
        assert (config.prompts, config.update.mini_batches, config.update.passes) == (512, 4, 1)
        assert (config.update.clip_low, config.update.clip_high, config.update.dual_clip) == (0.2, 0.2, 3.0)
        assert (config.update.aggregation, config.update.beta, config.sampling.temperature) == ("token", 0.0, 1.0)
        assert (config.optim.b1, config.optim.b2, config.optim.weight_decay, config.optim.max_grad_norm) == (
            *(0.9, 0.999, 0.01, 1.0),
        )
        assert (config.optim.schedule, config.optim.warmup_steps) == ("constant", 0)
        assert (config.fairness.statistics, config.fairness.clamp) == ("cumulative", "code")
        assert "k_max" not in config.fairness.weighing | fairness.FAMILY["fair_grpo"].defaults
    assert inspect.signature(fairness.temperatures).parameters["k_max"].default == 3
    assert (qwen.data.min_pixels, qwen.data.max_pixels, qwen.data.num_frames) == (65536, 524288, 4)


@pytest.mark.parametrize(
    "name, updates", [(QUICK, False), *(pytest.param(name, True, marks=pytest.mark.slow) for name in PRESETS)]
)
def test_two_steps_on_the_seven_datasets(name, updates, root, tmp_path):
    """The updates, which take half of the time, are computed when slow; test_train.py has them by default."""
    config = toy(configs.get(name), root)
    with contextlib.redirect_stdout(io.StringIO()), runs.open_run(config, tmp_path / "run") as run:
        architecture = run.encoder.architecture
        assert run.encoder.domains == tuple(sorted(config.data.name.split(",")))
        state, _, batches = sft.begin(run)
        for step in range(2):
            batch = next(batches)
            copy, key = answers.sampler(state.params, config.sampling), run.key("rollout", step)
            rollouts = train.sample(copy, batch.prompt, key, config, run.encoder, run.mesh)
            texts = train.rollout.texts(rollouts, run.tokenizer)
            seen = [train.score(batch, rollouts, texts, run.scorer, architecture, state.memory)]
            kept, _ = train.refill(None, seen)
            advantage, memory, _ = train.estimate(kept, seen, state.memory, config, run.scorer, run.mesh)
            learned, state = train.policy_batch(kept, np.asarray(advantage)), dataclasses.replace(state, memory=memory)
            assert np.isfinite(learned.advantages).all() and learned.tokens.shape == (8, 2, 4)
            if not updates:
                continue
            state, values = train.update(state, learned, config, run.encoder, run.mesh, run.reference)
            assert values["optim/grad_norm"] >= 0
        assert int(state.step) == 2 * config.update.mini_batches * updates


@pytest.mark.parametrize(
    "file, repository",
    [("fairmedgemma_4b", "google/gemma-3-4b-it"), ("fair_qwen2_5_vl_7b", "Qwen/Qwen2.5-VL-7B-Instruct")],
)
def test_the_presets_are_planned_from_a_config_alone(file, repository, tmp_path):
    """At the true size, of which only ``config.json`` is there; a missing folder is named."""
    config = configs.get(file)
    with pytest.raises(ValueError, match=str(config.model.path)):
        plan.plan(config, "h200")
    (tmp_path / "config.json").write_text(json.dumps(real_sizes.CONFIGS[repository]))
    model = dataclasses.replace(config.model, path=tmp_path)
    planned = plan.plan(dataclasses.replace(config, model=model), "h200")
    assert len(planned.phases) == 3 and planned.state["weights"] > 4e9  # float32, a quarter on each of four devices
