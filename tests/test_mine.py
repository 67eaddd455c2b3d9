"""One's own data with a checkpoint folder: what a run measures, keeps for its resumption, and exports."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from fairgrpo_jax import commandline, configs, data, export, models, policy, runs, sft
from fairgrpo_jax.data.__main__ import main as data_main
from fairgrpo_jax.data.record import conversation
from fairgrpo_jax.models import lora
from fairgrpo_jax.models.checkpoints import adapters
from fairgrpo_jax.models.tree import flatten, unflatten
from tests import own_data


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return own_data.checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapter(checkpoint, tmp_path_factory):
    """Adapters of two ranks that change the model."""
    vlm = models.load(checkpoint, dtype="float32")
    vlm = lora.add(vlm, lora.LoRA(rank=3, alpha=6, targets="^layers/.*/(q|down)$"), jax.random.key(1))
    leaves = flatten(vlm.params)
    for number, (path, leaf) in enumerate(leaves.items()):
        if path.endswith("lora_b"):
            leaves[path] = 0.2 * jax.random.normal(jax.random.key(number), leaf.shape)
        if path.endswith(lora.PAIR) and "down" in path:
            leaves[path] = leaves[path][..., :2] if path.endswith("lora_a") else leaves[path][..., :2, :]
    vlm = dataclasses.replace(vlm, params=unflatten(leaves))
    adapters.save(vlm, folder := tmp_path_factory.mktemp("adapter") / "adapter")
    return folder


def mine(checkpoint, root, *arguments):
    given = ["--model.path", str(checkpoint), "--data.root", str(root), *own_data.SMALL, *arguments]
    return commandline.apply(configs.get("mine"), given)


def longest(checkpoint, root):
    """The largest number of tokens of a prompt, by the processor on the pictures themselves, rounded up to 64."""
    settings = configs.get("mine").data
    processor, lengths = models.processor(checkpoint), []
    for record in data.load("jsonl", root, split="train").records:
        talk = conversation(record, instruction=settings.instruction, list_choices=True)
        picture = np.asarray(Image.open(str(record.media[0].path)))
        lengths.append(processor([talk], images=[[picture]])["input_ids"].shape[1])
    return -(-max(lengths) // 64) * 64


def begun(config, folder):
    """Opens a run and saves its beginning; returns the settled config and the parameters."""
    with runs.open_run(config, folder) as run:
        state, start, _ = sft.begin(run)
        return run.config, jax.device_get(state.params), start


def test_sizes_come_from_the_data_and_stay_when_the_run_goes_on(checkpoint, tmp_path, capsys):
    root, folder = own_data.write(tmp_path / "data"), tmp_path / "run"
    config = mine(checkpoint, root)
    settled, _, _ = begun(config, folder)
    told = capsys.readouterr().out
    length = longest(checkpoint, root)
    flags = f"--data.prompt-length {length} --data.num-patches 256 --data.max-pixels 524288"
    assert told.count(f"from the data: {flags}\n") == 1
    assert (settled.data.prompt_length, settled.data.num_patches, settled.data.max_pixels) == (length, 256, 524288)
    stored = json.loads((folder / "config.json").read_text())["data"]
    assert (stored["prompt_length"], stored["num_patches"], stored["max_pixels"]) == (length, 256, 524288)
    with runs.open_run(config, folder) as run:  # the same command; shorter data do not change the programs
        assert run.config == settled and run.encoder.sizes[-1] == (length, 256)
    assert "from the data" not in capsys.readouterr().out
    own_data.append(root, question="Why? " * 200)
    with pytest.raises(ValueError, match=rf"own/.*prompt_length={length}.*wanted --data.prompt-length (\d+)") as caught:
        begun(config, folder)
    proposed = str(caught.value).split("--data.prompt-length ")[1].split(",")[0]
    with runs.open_run(mine(checkpoint, root, "--data.prompt-length", proposed), folder) as run:
        assert run.config.data.prompt_length == int(proposed) and run.config.data.num_patches == 256


def test_data_check_measures_for_the_preset(checkpoint, tmp_path, capsys):
    root = own_data.write(tmp_path / "data")
    assert data_main(["check", "jsonl", "--root", str(root), "--model.path", str(checkpoint)]) == 0
    said = capsys.readouterr().out
    flags = f"--data.prompt-length {longest(checkpoint, root)} --data.num-patches 256 --data.max-pixels 524288"
    assert f"room for all prompts: {flags}\n" in said
    assert "0 records do not fit" in said


def test_without_a_checkpoint_it_says_how_to_get_one(tmp_path):
    config = commandline.apply(configs.get("mine"), ["--data.root", str(own_data.write(tmp_path / "data"))])
    with pytest.raises(ValueError, match="got MODEL, which is not a folder; wanted .*hf download"):
        begun(config, tmp_path / "run")


def test_an_adapter_starts_a_run_and_is_exported_again(checkpoint, adapter, tmp_path):
    root, folder = own_data.write(tmp_path / "data"), tmp_path / "run"
    mine_ = shutil.copytree(adapter, tmp_path / "adapter")
    config = mine(checkpoint, root, "--model.adapter", str(mine_))
    settled, params, _ = begun(config, folder)
    assert (settled.model.lora_rank, settled.model.lora_alpha) == (3, 6.0)
    assert settled.model.lora_targets == "^(layers/attention/q|layers/mlp/down)$"
    like = policy.shapes(settled.model, policy.describe(settled.model, settled.data)[0])
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), like)
    wanted = flatten(adapters.load(models.load(checkpoint, dtype="float32"), adapter).params)
    for path, leaf in flatten(params).items():
        known = np.zeros(leaf.shape, leaf.dtype)
        known[tuple(map(slice, wanted[path].shape))] = wanted[path]
        np.testing.assert_array_equal(leaf, known, err_msg=path)
    trained, _ = lora.trainable(params)
    assert {path.rpartition(".")[2] for path in flatten(trained)} == set(lora.PAIR)

    shutil.rmtree(mine_)  # what it decided is in the run folder
    again, restored, _ = begun(config, folder)
    assert again == settled
    jax.tree.map(np.testing.assert_array_equal, restored, params)

    export.export(folder, tmp_path / "out", form="both")
    base = models.load(checkpoint, dtype="float32")
    loaded, original = (adapters.load(base, path) for path in (tmp_path / "out" / "adapter", adapter))
    merged = flatten(models.load(tmp_path / "out", dtype="float32").params)
    for vlm in (loaded, original):
        for path, leaf in flatten(lora.merge(vlm).params).items():
            np.testing.assert_allclose(merged[path], leaf, rtol=1e-6, atol=1e-7, err_msg=path)
    settings = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(checkpoint.resolve())
    export.export(folder, tmp_path / "alone", form="adapter")
    names = {path.name for path in (tmp_path / "alone").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize(
    "given, named",
    [
        (["--model.lora-rank", "8"], "model.lora_rank=8 with model.adapter=.*, which has 3; wanted one"),
        (["--model.lora-alpha", "8"], "model.lora_alpha=8.0 with model.adapter=.*, which has 6.0"),
        (["--model.lora-targets", "q$"], r"model.lora_targets=q\$ with model.adapter="),
    ],
)
def test_options_that_contradict_the_adapter_are_refused(checkpoint, adapter, tmp_path, given, named):
    config = mine(checkpoint, tmp_path, "--model.adapter", str(adapter), *given)
    with pytest.raises(ValueError, match=named):
        begun(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_adapter_needs_its_checkpoint():
    with pytest.raises(ValueError, match="model.adapter=there without model.path; wanted the checkpoint folder"):
        commandline.apply(configs.get("clinic"), ["--model.adapter", "there"])


def test_adapters_that_would_fit_nothing_are_not_exported(checkpoint, tmp_path):
    root = own_data.write(tmp_path / "data")
    begun(mine(checkpoint, root), tmp_path / "whole")
    with pytest.raises(ValueError, match="--form adapter for .*whole, which trains the weights themselves"):
        export.export(tmp_path / "whole", tmp_path / "out", form="adapter")
    begun(mine(checkpoint, root, "--model.lora-rank", "2", "--warmup.run", str(tmp_path / "whole")), tmp_path / "apart")
    with pytest.raises(ValueError, match="whose other weights are those that .*whole has trained"):
        export.export(tmp_path / "apart", tmp_path / "out", form="both")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "budget", [pytest.param((), marks=pytest.mark.slow), ("--data.min-pixels", "4096", "--data.max-pixels", "8192")]
)
def test_export_keeps_the_pixel_budget_of_the_run(checkpoint, tmp_path, budget):
    """A picture becomes as many patches in the exported folder as in training, and more in the checkpoint's."""
    root = own_data.write(tmp_path / "data")
    settled, _, _ = begun(mine(checkpoint, root, *budget), tmp_path / "run")
    export.export(tmp_path / "run", tmp_path / "out")
    trained = policy.describe(settled.model, settled.data)[1]
    served, before = models.processor(tmp_path / "out"), models.processor(checkpoint)
    bounds = lambda one: [one.min_pixels, one.max_pixels, one.video_min_pixels, one.video_max_pixels]
    assert bounds(served) == bounds(trained) and bounds(before) == [64, 1_003_520] * 2
    assert bounds(served) == ([4096, 8192] if budget else [64, policy.MOST_PIXELS]) * 2
    picture = [[np.zeros((200, 300, 3), np.uint8)]]
    talk = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]]
    grids = [one(talk, images=picture)["image_grid_thw"].tolist() for one in (trained, served, before)]
    assert grids[0] == grids[1] and (grids[1] == grids[2]) == (not budget)
    settings = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert [settings["size"]["shortest_edge"], settings["size"]["longest_edge"]] == bounds(trained)[:2]
