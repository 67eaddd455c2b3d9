"""Options are checked when they are made, survive JSON, and say in which they differ."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import pytest

from fairgrpo_jax import config as options, configs, folder, models, policy


@functools.cache
def parameters(model):
    """How many a policy has, without making them."""
    shapes = jax.eval_shape(lambda key: models.init(policy.small(model), key).params, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", configs.names())
def test_every_preset_loads_and_its_policy_has_shapes(name):
    config = configs.get(name)
    assert config.name == name
    assert parameters(config.model) > 10_000 and "/" not in folder.default(config).name
    assert configs.summaries()[name]


def test_config_survives_json():
    config = dataclasses.replace(
        configs.get("covid_blues"), data=options.Data(root=Path("there"), age_edges=(40,)), algorithm="rloo"
    )
    assert options.from_dict(json.loads(json.dumps(options.to_dict(config)))) == config


def test_unknown_key_is_refused():
    with pytest.raises(ValueError, match="turbo"):
        options.from_dict({"turbo": True})


def test_difference_names_every_changed_option():
    old = options.Config(optim=options.Optim(lr=1e-4))
    new = dataclasses.replace(old, mesh="4x1", seed=3, optim=options.Optim(lr=1e-3))
    lines = options.difference(options.to_dict(old), options.to_dict(new), ignore=("mesh",))
    assert lines == ["optim.lr: 0.0001 -> 0.001", "seed: 0 -> 3"]


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda: options.from_dict({"algorithm": "ppo"}), "'ppo'.*grpo, dr_grpo, rloo, .*fair_grpo, fair_grpo_nd"),
        (lambda: options.Config(rollouts=1), "rollouts=1"),
        (lambda: options.Config(prompts=10, update=options.Update(mini_batches=4)), "multiple of 4"),
        (lambda: options.Config(rollouts=20), "history ring"),
        (lambda: options.Data(num_frames=3), "num_frames=3"),
        (lambda: options.Data(min_pixels=9, max_pixels=4), "min_pixels=9"),
        (lambda: options.Data(age_edges=(50, 25)), "rising"),
        (lambda: options.Model(hidden_size=20), "multiple of 16"),
        (lambda: options.Optim(lr=0.0), "lr=0.0"),
        (lambda: options.Sampling(temperature=0.0), "positive temperature"),
        (lambda: options.Sampling(top_p=1.5), "top_p=1.5"),
        (lambda: options.Update(passes=0), "passes=0"),
        (lambda: options.Update(kind="gspo"), "clip_high=0.2; wanted bounds of a mean over tokens"),
        (lambda: options.Evaluation(every=0), "every=0"),
        (lambda: options.Fairness(size_exponent=-0.5), "size_exponent=-0.5"),
        (lambda: options.Fairness(step_size=0.0), "step_size=0.0"),
    ],
)
def test_bad_values_are_refused_with_what_was_wanted(change, named):
    with pytest.raises(ValueError, match=f"got .*wanted|{named}") as error:
        change()
    assert "got" in str(error.value) and "wanted" in str(error.value)
    pytest.raises(ValueError, change).match(named)


@pytest.mark.parametrize(
    "section, name, refused, accepted",
    [
        (options.Fairness, "decay", 1.5, 0.9),
        (options.Fairness, "decay", 1.0, 0.0),
        (options.Fairness, "max_weight", 0.5, 1.0),
        (options.Fairness, "k_max", 0, 1),
        (options.Update, "clip_low", 1.5, 1.0),
        (options.Update, "clip_high", 0.0, 0.28),
        (options.Update, "dual_clip", 1.0, 3.0),
        (options.Update, "importance_cap", float("inf"), 1.0),
        (options.Optim, "weight_decay", -1.0, 0.0),
        (options.Optim, "b1", 1.5, 0.0),
        (options.Optim, "b2", 1.0, 0.95),
        (options.Optim, "b2", float("nan"), 0.999),
        (options.Optim, "lr", float("inf"), 1e-6),
        (options.Optim, "warmup_steps", -5, 0),
        (options.Sampling, "temperature", float("inf"), 0.5),
        (options.Sampling, "temperature", 1e-40, 0.5),
        (options.Sampling, "tries", 1_000_000, 10),
        (options.Reward, "max_unscored", 1.5, 1.0),
        (options.Fairness, "capacity", 0, 1),
        (options.Data, "name", "", "a,b"),
        (options.Data, "age_edges", (), (40,)),
        (options.Data, "age_edges", (-5,), (5, 40)),
        (options.Config, "seed", 2**70, 2**32 - 1),
        (options.Config, "steps", 10**18, 0),
        (options.Config, "mesh", "0x1", "4x2"),
        (options.Evaluation, "samples", -1, 0),
        (options.Evaluation, "completions", -1, 0),
        (options.Data, "workers", 0, 1),
        (options.Data, "num_patches", -1, 0),
        (options.Data, "attributes", ("",), ("sex",)),
        (options.Data, "age_edges", (float("nan"),), (40,)),
        (options.Model, "num_layers", 0, 1),
        (options.Model, "vision_depth", 0, 1),
        (options.Model, "hidden_size", 0, 16),
        (options.Model, "lora_targets", "(", "q$"),
        (options.Model, "freeze", ("(",), ("^vision/",)),
        (options.Config, "seed", -1, 0),
        (options.Config, "focus", -1.0, 2.0),
        (options.Draw, "max_ratio", 0.5, 1.0),
        (options.Draw, "floor", 1.5, 1.0),
        (options.Draw, "decay", 1.0, 0.0),
        (options.Draw, "prior", 0.0, 1.0),
        (options.Draw, "window", 0, 1),
        (options.Draw, "hardness_exponent", -1.0, 0.0),
        (options.Config, "fairness", options.Fairness(history="ring", capacity=8), options.Fairness(history="ring")),
    ],
)
def test_options_that_would_fail_late_are_refused_at_once(section, name, refused, accepted):
    word = "capacity" if name == "fairness" else name
    with pytest.raises(ValueError, match=rf"got .*{word}=.*wanted"):
        section(**{name: refused})
    assert getattr(section(**{name: accepted}), name) == accepted


@pytest.mark.parametrize("before, now", [(True, "balanced"), (False, "natural")])
def test_a_config_of_before_the_renaming_means_the_same(tmp_path, before, now):
    values = options.to_dict(options.Config())
    del values["data"]["sampling"]
    values["data"]["resample"] = before
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    config, told = options.read(path)
    assert config.data.sampling == now and not told


@pytest.mark.parametrize(
    "path, dtype, told, wanted",
    [
        (None, None, None, "float32"),
        (None, "bfloat16", None, "bfloat16"),
        ("model", None, None, "bfloat16"),
        ("model", "float32", None, "bfloat16"),
        ("model", None, "float32", "float32"),
        (None, None, "bfloat16", "bfloat16"),
    ],
)
def test_keys_and_values_of_a_model_from_a_folder_are_bfloat16(path, dtype, told, wanted):
    model = options.Model(path=path and Path(path))
    assert options.Config(model=model, sampling=options.Sampling(dtype=dtype, cache=told)).cache_dtype == wanted


@pytest.mark.parametrize("field", [{"algorithm": "group_dro"}, {"data": options.Data(sampling="fair")}])
def test_rewards_that_can_exceed_a_full_success_are_refused_where_that_has_a_meaning(field):
    """What a record can have at most goes by the components that apply to it."""
    ring, field = options.Fairness(history="ring"), {"algorithm": "grpo"} | field
    parts = lambda *components: field | {"reward": options.Reward(components), "fairness": ring}
    options.Config(**parts("exact=0.8", "think_box=0.2"))
    options.Config(**parts("tag@*/tal", "stg@*/stg", "similarity@*/region_caption=0.5", "judge@*/region_caption=0.5"))
    for components in (("exact", "think_box=0.5"), ("exact@a", "tag@*/tal")):
        with pytest.raises(ValueError, match="wanted weights whose sum is at most 1 for every record"):
            options.Config(**parts(*components))


def test_a_scale_of_the_supervised_policy_needs_what_is_scaled():
    with pytest.raises(ValueError, match="got reward.scale=supervised .*wanted a component that is brought to the"):
        options.Reward(("exact",), scale="supervised")
