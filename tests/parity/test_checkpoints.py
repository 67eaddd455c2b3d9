"""Checkpoint folders between transformers in torch and us: theirs in, ours out, adapters of PEFT both ways."""

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest


torch = pytest.importorskip("torch")

import transformers  # noqa: E402

from fairgrpo_jax import (  # noqa: E402
    commandline,
    config as options,
    configs,
    estimators,
    export,
    fairness,
    learner,
    models,
    policy,
    runs,
    sft,
)
from fairgrpo_jax.models import lora, text  # noqa: E402
from fairgrpo_jax.models.checkpoints import adapters  # noqa: E402
from tests import own_data  # noqa: E402
from tests.parity import make_golden as maker  # noqa: E402
from tests.test_export import write_run  # noqa: E402


pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

FAMILIES = tuple(maker.FAMILIES)


@pytest.fixture(scope="module", params=[(family, seed) for family in FAMILIES for seed in (2, 3)], ids=str)
def pair(request, tmp_path_factory):
    """A model of transformers, the folder it wrote, and the same model loaded by us; a batch that both read."""
    family, seed = request.param
    theirs = maker.build(family, seed)
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder, max_shard_size="100KB" if seed % 2 else "5GB")
    case = "text" if family in text.TEXT else "images"
    return theirs, folder, models.load(folder, dtype="float32"), maker.cases(family, seed)[case]


def logits_of(model, inputs):
    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}
    with torch.no_grad():
        return model(**tensors, use_cache=False).logits.float().numpy()


def read(folder, model_type, caplog):
    """What transformers makes of a folder; a warning, or a tensor missing or left over, fails the test."""
    vision = model_type not in text.TEXT
    reader = transformers.AutoModelForImageTextToText if vision else transformers.AutoModelForCausalLM
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        model, report = reader.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records, caplog.text
    assert not any(report.values()), report
    return model.eval()


def assert_same(vlm, model, inputs, atol=5e-4):
    mask = inputs["attention_mask"].astype(bool)
    np.testing.assert_allclose(vlm.logits(inputs)[mask], logits_of(model, inputs)[mask], atol=atol)


def test_their_folder_is_read(pair):
    theirs, folder, vlm, inputs = pair
    assert vlm.source == folder and vlm.processor is None
    assert_same(vlm, theirs, inputs)


def test_our_folder_is_read_by_transformers(pair, tmp_path, caplog):
    theirs, _, vlm, inputs = pair
    vlm.save(tmp_path / "ours", max_shard_bytes=100_000)
    again = read(tmp_path / "ours", vlm.config.model_type, caplog)
    assert again.dtype == torch.float32
    np.testing.assert_array_equal(logits_of(again, inputs), logits_of(theirs, inputs))


def test_in_bfloat16(pair, tmp_path, caplog):
    _, folder, _, _ = pair
    vlm = models.load(folder)
    vlm.save(tmp_path / "half")
    again = read(tmp_path / "half", vlm.config.model_type, caplog)
    assert again.dtype == torch.bfloat16
    back = models.load(tmp_path / "half", dtype="float32")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a, np.float32), b), vlm.params, back.params)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_models_describe_themselves(family, tmp_path, caplog):
    """A model from no folder writes a config from which transformers builds the same."""
    module = models.FAMILIES[family]
    config = module.tiny(family) if family in text.TEXT else module.tiny()
    vlm = models.init(config, jax.random.key(0))
    vlm.save(tmp_path / "tiny")
    inputs = {"input_ids": np.arange(30).reshape(2, 15) % 400 + 20, "attention_mask": np.ones((2, 15), np.int64)}
    assert_same(vlm, read(tmp_path / "tiny", family, caplog), inputs)


def trained(vlm, inputs, targets):
    """The model with adapters after one supervised update of these alone."""
    adapted = lora.add(vlm, lora.LoRA(rank=3, alpha=12, targets=targets), jax.random.key(0))
    optim = options.Optim(lr=0.05, warmup_steps=0, schedule="constant")
    moments = learner.fresh_moments(adapted.params, optim=optim, steps=1)
    state = learner.TrainState(
        adapted.params, moments, jnp.int32(0), estimators.Memory(fairness.init(1, 1, 2, history=None))
    )
    prompt = models.pack(inputs, adapted.config)
    tokens = np.full((len(prompt.tokens), 1, 3), 9, np.int32)
    copy = jax.tree.map(jnp.array, state)
    state, _ = learner.supervised_step(
        copy,
        [learner.SupervisedBatch(prompt, tokens, np.ones(tokens.shape, bool))],
        architecture=adapted.config,
        optim=optim,
        steps=1,
    )
    return dataclasses.replace(adapted, params=state.params)


def test_one_lora_step_then_export_merged(pair, tmp_path, caplog):
    _, _, vlm, inputs = pair
    adapted = trained(vlm, inputs, r"^(layers|vision)/")
    mask = inputs["attention_mask"].astype(bool)
    assert np.abs(adapted.logits(inputs) - vlm.logits(inputs))[mask].max() > 0.05
    adapted.save(tmp_path / "merged")
    assert_same(adapted, read(tmp_path / "merged", vlm.config.model_type, caplog), inputs)


def test_adapters_are_read_by_peft(pair, tmp_path, recwarn):
    peft = pytest.importorskip("peft")
    theirs, folder, vlm, inputs = pair
    adapted = trained(vlm, inputs, r"^(layers|vision)/")
    adapters.save(adapted, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        folder
    )
    model = peft.PeftModel.from_pretrained(
        type(theirs).from_pretrained(folder, attn_implementation="eager"), tmp_path / "adapter"
    )
    assert not [str(w.message) for w in recwarn if "adapter" in str(w.message)]
    assert_same(adapted, model.eval(), inputs)


def test_adapters_of_peft_are_read(pair, tmp_path):
    peft = pytest.importorskip("peft")
    theirs, folder, vlm, inputs = pair
    settings = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 2},
        alpha_pattern={"down_proj": 3}, layers_to_transform=[1], layers_pattern="layers", init_lora_weights=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = peft.get_peft_model(type(theirs).from_pretrained(folder, attn_implementation="eager"), settings).eval()
    model.save_pretrained(tmp_path / "adapter")
    assert_same(adapters.load(vlm, tmp_path / "adapter"), model, inputs)


@pytest.fixture
def exported(tmp_path):
    """A run that goes on with PEFT's adapters of two ranks, exported in both forms; and PEFT's model."""
    peft = pytest.importorskip("peft")
    base = transformers.AutoModelForImageTextToText.from_pretrained(own_data.checkpoint(tmp_path / "base"))
    torch.manual_seed(0)
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"down_proj": 2},
        init_lora_weights=False,
    )
    theirs = peft.get_peft_model(base, settings).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    given = ["--model.path", str(tmp_path / "base"), "--model.adapter", str(tmp_path / "adapter")]
    given += ["--data.root", str(own_data.write(tmp_path / "data")), "--data.max-pixels", "4096", *own_data.SMALL]
    with runs.open_run(commandline.apply(configs.get("mine"), given), tmp_path / "run") as run:
        sft.begin(run)
    export.export(tmp_path / "run", tmp_path / "out", form="both")
    return tmp_path, theirs


def test_a_run_begins_with_the_adapters_of_peft_and_exports_both_forms(exported, caplog):
    """The merged folder in transformers, and its adapter with the checkpoint in PEFT, are the model that PEFT made."""
    folder, theirs = exported
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which digit is this?"}]}]
    picture = np.random.default_rng(0).integers(0, 256, (48, 32, 3), np.uint8)
    inputs = models.processor(folder / "out")([talk], images=[[picture]])
    wanted, mask = logits_of(theirs, inputs), inputs["attention_mask"].astype(bool)
    merged = read(folder / "out", "qwen2_5_vl", caplog)
    plain = type(merged).from_pretrained(folder / "base", attn_implementation="eager")
    assert np.abs(logits_of(plain, inputs) - wanted)[mask].max() > 0.05
    apart = pytest.importorskip("peft").PeftModel.from_pretrained(plain, folder / "out" / "adapter").eval()
    for model in (merged, apart):
        np.testing.assert_allclose(logits_of(model, inputs)[mask], wanted[mask], atol=5e-4)


def test_transformers_processes_images_of_an_export_as_the_run_did(exported):
    folder, _ = exported
    picture = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)
    grids = {}
    for name in ("base", "out"):
        reader = transformers.AutoImageProcessor.from_pretrained(folder / name)
        grids[name] = np.asarray(reader(images=[picture], return_tensors="np")["image_grid_thw"]).tolist()
    config = options.read(folder / "run" / "config.json")[0]
    talk = [{"role": "user", "content": [{"type": "image"}]}]
    trained = policy.describe(config.model, config.data)[1]([talk], images=[[picture]])
    assert grids["out"] == trained["image_grid_thw"].tolist() != grids["base"]


def test_policy_of_a_run_is_exported(tmp_path, caplog):
    """The tiny clinic's policy, in float32, as transformers reads and runs it."""
    write_run(tmp_path / "run")
    export.export(tmp_path / "run", tmp_path / "out")
    vlm = models.load(tmp_path / "out", dtype="float32")
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which digit is this?"}]}]
    inputs = vlm.processor([talk], images=[[np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)]])
    model = read(tmp_path / "out", "qwen2_5_vl", caplog)
    assert_same(vlm, model, inputs)
