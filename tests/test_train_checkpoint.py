"""Runs from a checkpoint folder: with adapters, with frozen parts, resumed, and written as a folder again."""

import dataclasses

import jax
import numpy as np
import pytest

from fairgrpo_jax import answers, checkpoint, config as options, export, models, policy, runs, sft, train
from fairgrpo_jax.models import gemma3, lora, qwen3_vl
from fairgrpo_jax.models.tree import flatten, unflatten
from tests import tiny_folder
from tests.test_train import SMALL, rows


RUN = dataclasses.replace(
    SMALL,
    steps=2,
    checkpoint_every=1,
    data=dataclasses.replace(SMALL.data, prompt_length=128),
    warmup=options.Warmup(steps=2, batch=32, optim=options.Optim(lr=1e-2, warmup_steps=0)),
    sampling=options.Sampling(max_new_tokens=16),
    optim=options.Optim(lr=1e-2, warmup_steps=0),
)


def write(folder, family):
    """A checkpoint folder of a tiny model with the tokenizer and the image settings of its family."""
    processor = models.processor(tiny_folder.shrink(tiny_folder.write(folder / "parts", family), family))
    ids = processor.tokenizer.convert_tokens_to_ids
    if family == "gemma3":
        config = dataclasses.replace(gemma3.tiny(), image_id=ids("<image_soft_token>"), eos_ids=(1, 6))
    else:
        config = qwen3_vl.tiny()
    models.init(config, jax.random.key(3), processor=processor).save(folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return write(tmp_path_factory.mktemp("qwen"), "qwen3_vl")


def model_of(folder, **changes):
    return dataclasses.replace(RUN, model=options.Model(path=folder, **changes))


def saved(folder, step):
    with checkpoint.manager(folder / "checkpoints") as checkpoints:
        return flatten(checkpoint.saved_params(checkpoints, step))


def moved(before, after):
    """The paths whose values changed."""
    return {path for path, leaf in before.items() if not np.array_equal(leaf, after[path])}


def teach(config, folder):
    """The supervised stage, resumed where the folder stands."""
    with runs.open_run(config, folder) as run:
        return sft.begin(run)[0].params


@pytest.mark.slow  # test_mine starts from adapters and exports them, test_models_lora trains them
def test_adapters_of_a_folder_are_trained_alone_resumed_and_merged(qwen, tmp_path):
    config, folder = model_of(qwen, lora_rank=4, lora_alpha=8.0), tmp_path / "run"
    teach(config, folder)
    end = saved(folder, 2)
    loaded = models.load(qwen, dtype="float32")
    base = flatten(loaded.params)
    assert not moved(base, end)
    adapters = end.keys() - base.keys()
    assert adapters and all(path.endswith(lora.PAIR) and path.startswith("layers.") for path in adapters)
    assert moved({path: saved(folder, 1)[path] for path in adapters}, end) == adapters

    log = rows(folder)
    with checkpoint.manager(folder / "checkpoints") as checkpoints:
        checkpoints.delete(2)
    teach(config, folder)
    assert rows(folder) == log and not moved(end, saved(folder, 2))

    export.export(folder, tmp_path / "out")
    exported = models.load(tmp_path / "out", dtype="float32")
    inputs = exported.processor([{"role": "user", "content": "What does it show?"}])
    wanted = models.VLM(lora.scaled(loaded.config, 2.0), unflatten(end)).logits(inputs)
    np.testing.assert_allclose(exported.logits(inputs), wanted, atol=2e-5)
    assert np.abs(wanted - loaded.logits(inputs)).max() > 1e-3


@pytest.mark.slow  # test_models_lora has frozen parts by themselves
def test_frozen_parts_of_a_gemma_stay_while_the_policy_learns(tmp_path):
    config = model_of(write(tmp_path, "gemma3"), freeze=("^vision/", "embedding"))
    config = dataclasses.replace(config, warmup=options.Warmup(steps=0, batch=32))
    with runs.open_run(config, tmp_path / "run") as run:
        state, _, batches = sft.begin(run)
        before = flatten(jax.device_get(state.params))
        batch = next(batches)
        rollouts = train.sample(
            answers.sampler(state.params, config.sampling),
            batch.prompt,
            run.key("rollout", 0),
            config,
            run.encoder,
            run.mesh,
        )
        texts = [["?"] * 4] * 8
        sampled = train.score(batch, rollouts, texts, run.scorer, run.encoder.architecture, state.memory)
        advantage = np.tile([1.0, -1.0], (8, 2)).astype(np.float32)
        learned = train.policy_batch(sampled, advantage)
        state, _ = train.update(state, learned, config, run.encoder, run.mesh, run.reference)
    after = flatten(jax.device_get(state.params))
    frozen = {path for path in before if path.startswith("vision.") or path == "embedding"}
    assert len(frozen) > 5 and moved(before, after) == before.keys() - frozen


@pytest.mark.slow  # test_train has the same for weights, the test above for adapters
def test_adapters_start_from_the_supervised_weights_of_another_run(qwen, tmp_path):
    teach(model_of(qwen), tmp_path / "sft")
    warmup = dataclasses.replace(RUN.warmup, run=tmp_path / "sft")
    config = dataclasses.replace(model_of(qwen, lora_rank=2), warmup=warmup)
    begun = flatten(teach(config, tmp_path / "run"))
    taught = saved(tmp_path / "sft", 2)
    assert moved(flatten(models.load(qwen, dtype="float32").params), taught)
    assert not moved(taught, begun) and begun.keys() > taught.keys()
    other = dataclasses.replace(config, model=options.Model(lora_rank=2))
    with pytest.raises(ValueError, match=r"sft of another model \(path: .*checkpoint -> None\); wanted the same"):
        teach(other, tmp_path / "other")


def test_the_same_folder_on_a_mesh(qwen, tmp_path):
    """Loaded onto 2x2 in bfloat16, the weights stand where the rules put them."""
    config = dataclasses.replace(model_of(qwen, dtype="bfloat16"), mesh="2x2")
    with runs.open_run(config, tmp_path / "run") as run:
        params, blank = run.initial_params(), run.blank(config.optim, 2)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("bfloat16")}
        state = run.with_moments(params, config.optim, 2)
        for got, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(blank), strict=True):
            assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
            assert got.sharding.is_equivalent_to(wanted.sharding, got.ndim)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(lora_rank=2, lora_targets="nothing/"), "match no linear map"),
        (dict(freeze=("^visoin/",)), "visoin.*match no parameter"),
        (dict(freeze=("",)), "leaves nothing to train"),
        (dict(lora_rank=2, freeze=("lora",)), "leaves nothing to train"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(qwen, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message), runs.open_run(model_of(qwen, **changes), tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    models.init(qwen3_vl.tiny(), jax.random.key(0)).save(tmp_path / "bare")
    with pytest.raises(ValueError, match="without tokenizer or image settings; wanted the whole folder"):
        policy.describe(options.Model(path=tmp_path / "bare"), options.Data())
    with pytest.raises(ValueError, match="not a folder; .*hf download"):
        policy.describe(options.Model(path=tmp_path / "nowhere"), options.Data())
