"""Low-rank adapters: what they compute, what is trained, and PEFT's format."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from fairgrpo_jax import config as options, estimators, fairness, learner, mesh, models
from fairgrpo_jax.models import decoder, lora, qwen2_5_vl, qwen3_vl, text
from fairgrpo_jax.models.checkpoints import adapters, tensorfile
from fairgrpo_jax.models.tree import flatten, unflatten


EVERY = lora.LoRA(rank=3, alpha=6, targets=".")
INPUTS = {"input_ids": np.array([[7, 8, 9, 11, 30], [12, 13, 14, 15, 16]])}
TINY = text.tiny("qwen3")


def drawn(vlm, scale=0.2):
    """The same model with adapters that change what it computes."""
    rng = np.random.default_rng(0)
    leaves = flatten(vlm.params)
    leaves |= {
        path: jnp.asarray(rng.normal(scale=scale, size=leaf.shape), leaf.dtype)
        for path, leaf in leaves.items()
        if path.endswith("lora_b")
    }
    return dataclasses.replace(vlm, params=unflatten(leaves))


@pytest.fixture(scope="module")
def base():
    return models.init(TINY, jax.random.key(0))


@pytest.fixture(scope="module")
def adapted(base):
    return drawn(lora.add(base, EVERY, jax.random.key(1)))


def test_fresh_adapters_change_nothing_and_have_the_promised_start(base):
    fresh = lora.add(base, lora.LoRA(rank=3, alpha=6), jax.random.key(1))
    np.testing.assert_array_equal(fresh.logits(INPUTS), base.logits(INPUTS))
    leaves = flatten(fresh.params)
    assert {path for path in leaves if path.endswith("lora_a")} == {
        *(f"layers.attention.{part}.lora_a" for part in "qkvo"),
        *(f"layers.mlp.{part}.lora_a" for part in ("gate", "up", "down")),
    }
    a, b = (leaves[f"layers.mlp.down.{name}"] for name in lora.PAIR)
    assert a.shape == (2, 96, 3) and b.shape == (2, 3, 64) and not b.any() and fresh.config.lora_scale == 2.0
    assert 0.9 * 96**-0.5 < jnp.abs(a).max() <= 96**-0.5 and abs(a.mean()) < 0.01
    assert not np.array_equal(a[0], a[1])


def test_forward_is_the_formula_and_merging_gives_the_same(base, adapted):
    merged = lora.merge(adapted)
    q, kernel = adapted.params["layers"]["attention"]["q"], base.params["layers"]["attention"]["q"]["kernel"]
    got = merged.params["layers"]["attention"]["q"]
    np.testing.assert_allclose(got["kernel"], kernel + 2.0 * q["lora_a"] @ q["lora_b"], rtol=1e-5, atol=1e-6)
    assert not lora.has(merged.params) and merged.config == base.config
    assert jax.tree.structure(merged.params) == jax.tree.structure(base.params)
    assert np.abs(adapted.logits(INPUTS) - base.logits(INPUTS)).max() > 0.1
    np.testing.assert_allclose(merged.logits(INPUTS), adapted.logits(INPUTS), atol=2e-5)


def test_vision_tower_has_adapters_where_the_targets_reach_it():
    vlm = models.init(qwen3_vl.tiny(), jax.random.key(0))
    reached = lora.add(vlm, lora.LoRA(targets="^vision/.*/(qkv|up)$"), jax.random.key(0))
    paths = {path.rpartition(".")[0] for path in flatten(reached.params) if path.endswith("lora_b")}
    assert paths == {
        "vision.blocks.qkv",
        "vision.blocks.mlp.up",
        "vision.merger.up",
        "vision.deepstack.up",
    }
    assert reached.config.vision is not None and reached.config.vision.lora_scale == 2.0
    rng = np.random.default_rng(0)
    ids = np.array([[7, 3, *[5] * 6, 4, 9]])
    media = {"pixel_values": rng.normal(size=(24, 96)).astype(np.float32), "image_grid_thw": np.array([[1, 4, 6]])}
    inputs = {"input_ids": ids, "mm_token_type_ids": np.where(ids == 5, 1, 0), **media}
    changed = drawn(reached)
    apart = np.abs(changed.logits(inputs) - vlm.logits(inputs))
    assert apart[0, 0].max() == 0 and apart[0, 2:].max() > 0.05  # the token before the image sees none of it
    np.testing.assert_allclose(lora.merge(changed).logits(inputs), changed.logits(inputs), atol=2e-5)


def test_half_precision_base_keeps_float32_adapters(base):
    half = dataclasses.replace(base, params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base.params))
    fresh = lora.add(half, EVERY, jax.random.key(1))
    assert fresh.params["layers"]["mlp"]["up"]["lora_a"].dtype == jnp.float32
    prompt = models.pack(INPUTS, fresh.config)
    hidden, _ = jax.eval_shape(lambda params: decoder.prompt_pass(params, fresh.config, prompt), fresh.params)
    assert hidden.dtype == jnp.bfloat16
    assert lora.merge(drawn(fresh)).params["layers"]["mlp"]["up"]["kernel"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda base: lora.LoRA(rank=0), "rank=0, alpha=32.0; wanted a rank of at least 1"),
        (lambda base: lora.LoRA(targets="(q"), r"got '\(q' .*wanted a regular expression"),
        (lambda base: lora.add(base, lora.LoRA(targets="embedding"), jax.random.key(0)), "match no linear map; .*/q,"),
        (lambda base: lora.add(lora.add(base, EVERY, jax.random.key(0)), EVERY, jax.random.key(0)), "adapters already"),
        (lambda base: lora.trainable(base.params, ["^vision/"]), r"freeze=\['\^vision/'\], which match no parameter"),
        (lambda base: lora.trainable(base.params, ["e", "norm"]), "leaves nothing to train"),
    ],
)
def test_what_cannot_be_is_refused(base, make, said):
    with pytest.raises(ValueError, match=said):
        make(base)


def step(vlm, freeze=()):
    """The parameters after one supervised update, and the optimizer's moments."""
    optim = options.Optim(lr=0.05, warmup_steps=0, schedule="constant", weight_decay=0.1, max_grad_norm=1e9)
    moments = learner.fresh_moments(vlm.params, optim=optim, steps=1, freeze=freeze)
    params, statistics = jax.tree.map(jnp.array, (vlm.params, estimators.Memory(fairness.init(1, 1, 2, history=None))))
    state = learner.TrainState(params, moments, jnp.int32(0), statistics)
    tokens = np.array([[[9, 10, 2]], [[11, 2, 0]]], np.int32)
    prompt = models.pack(INPUTS, vlm.config)
    more: dict = dict(architecture=vlm.config, optim=optim, steps=1, freeze=freeze)
    state, _ = learner.supervised_step(state, [learner.SupervisedBatch(prompt, tokens, tokens > 0)], **more)
    return flatten(state.params), state.moments


def moved(vlm, after):
    before = flatten(vlm.params)
    assert before.keys() == after.keys()
    return {path for path, leaf in after.items() if not np.array_equal(leaf, before[path])}


def test_only_adapters_are_trained_and_have_moments(base):
    vlm = lora.add(base, EVERY, jax.random.key(1))
    after, moments = step(vlm)
    assert moved(vlm, after) == {path for path in after if path.endswith(lora.PAIR)}
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(moments) if leaf.ndim)
    assert shapes == sorted(2 * [leaf.shape for path, leaf in after.items() if path.endswith(lora.PAIR)])


def test_frozen_parameters_stay_without_moments_and_the_rest_has_the_same_gradient(base):
    freeze = ("^embedding$", "/(q|k|v)/", "norm")
    after, moments = step(base, freeze)
    frozen = {path for path in after if any(re.search(pattern, path.replace(".", "/")) for pattern in freeze)}
    assert moved(base, after) == after.keys() - frozen and frozen and frozen != after.keys()
    assert sum(leaf.ndim > 0 for leaf in jax.tree.leaves(moments)) == 2 * len(after.keys() - frozen)
    part, whole = (flatten(optax.tree.get(state, "mu")) for state in (moments, step(base)[1]))
    for path, gradient in part.items():
        np.testing.assert_allclose(gradient, whole[path], rtol=1e-4, atol=1e-7, err_msg=path)


def test_trainable_and_join_are_inverse(adapted):
    trained, frozen = lora.trainable(adapted.params, ["/(gate|up)/"])
    assert {path.split(".")[-1] for path in flatten(trained)} == {"lora_a", "lora_b"}
    assert "layers.mlp.up.lora_a" in flatten(frozen)
    assert jax.tree.structure(lora.join(trained, frozen)) == jax.tree.structure(adapted.params)


def test_adapters_are_sharded_as_their_kernels():
    devices = mesh.make("2x2")
    vlm = models.init(qwen2_5_vl.tiny(), jax.random.key(0))
    vlm = dataclasses.replace(vlm, params=jax.device_put(vlm.params, mesh.shardings(vlm.params, devices)))
    layers = lora.add(vlm, lora.LoRA(rank=4, targets="."), jax.random.key(1)).params["layers"]
    specs = {name: layers["mlp"][name]["lora_a"].sharding.spec for name in ("up", "down")}
    assert specs == {"up": P(None, "fsdp", None), "down": P(None, "tensor", None)}
    specs = {name: layers["attention"][name]["lora_b"].sharding.spec for name in ("q", "o")}
    assert specs == {"q": P(None, None, "tensor"), "o": P(None, None, "fsdp")}


def test_peft_names_and_settings(tmp_path, adapted):
    adapters.save(adapted, tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA" and (settings["r"], settings["lora_alpha"]) == (3, 6.0)
    assert len(settings["target_modules"]) == 14 and "model.layers.1.mlp.down_proj" in settings["target_modules"]
    tensors = tensorfile.header(tmp_path / "adapter_model.safetensors")
    assert len(tensors) == 28
    a = tensors["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"]
    assert a.shape == (3, 96)
    np.testing.assert_array_equal(a.read().T, adapted.params["layers"]["mlp"]["down"]["lora_a"][1])
    with pytest.raises(ValueError, match="holds an adapter already"):
        adapters.save(adapted, tmp_path)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "gemma3", "qwen3"])
def test_adapters_of_every_family_out_and_in_again(tmp_path, family):
    config = models.FAMILIES[family].tiny() if family != "qwen3" else TINY
    vlm = models.init(config, jax.random.key(0))
    adapted = drawn(lora.add(vlm, EVERY, jax.random.key(1)))
    adapters.save(adapted, tmp_path)
    again = adapters.load(vlm, tmp_path)
    assert again.config == adapted.config
    got, wanted = flatten(again.params), flatten(adapted.params)
    assert got.keys() == wanted.keys()
    for path, leaf in got.items():
        np.testing.assert_allclose(leaf, wanted[path], rtol=1e-6, err_msg=path)


def rewrite(folder, change=None, **settings):
    """An adapter on disk with other settings, or with its tensors changed."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    if change:
        tensors = {n: t.read() for n, t in tensorfile.header(folder / "adapter_model.safetensors").items()}
        change(tensors)
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        tensorfile.write(folder / "adapter_model.safetensors", shapes, tensors.values())


def test_adapters_in_some_layers_of_several_ranks_and_scales(tmp_path, base, adapted):
    """PEFT may leave layers out, and give each map a rank and an alpha of its own; names of older releases are read."""
    adapters.save(adapted, tmp_path)
    down = "model.layers.1.mlp.down_proj"

    def change(tensors):
        for name in [name for name in tensors if "layers.0.mlp.up_proj" in name]:
            del tensors[name]
        for letter in "AB":
            tensor = tensors.pop(f"base_model.model.{down}.lora_{letter}.weight")
            tensors[f"{down}.lora_{letter}.default.weight"] = np.ascontiguousarray(
                tensor[:2] if letter == "A" else tensor[:, :2]
            )

    rewrite(tmp_path, change, alpha_pattern={"layers.1.mlp.down_proj": 5}, lora_alpha=12, use_rslora=True)
    got = adapters.load(base, tmp_path)
    merged, wanted = (flatten(lora.merge(vlm).params) for vlm in (got, base))
    mine = adapted.params["layers"]["mlp"]
    up = wanted["layers.mlp.up.kernel"] + 12 / 3**0.5 * mine["up"]["lora_a"] @ mine["up"]["lora_b"]
    np.testing.assert_allclose(merged["layers.mlp.up.kernel"][1], up[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(merged["layers.mlp.up.kernel"][0], wanted["layers.mlp.up.kernel"][0])
    delta = 5 / 2**0.5 * mine["down"]["lora_a"][1, :, :2] @ mine["down"]["lora_b"][1, :2]
    np.testing.assert_allclose(
        merged["layers.mlp.down.kernel"][1], wanted["layers.mlp.down.kernel"][1] + delta, rtol=1e-4, atol=1e-5
    )


FIRST = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"


@pytest.mark.parametrize(
    "settings, change, said",
    [
        (dict(use_dora=True), None, "with {'use_dora': True}; wanted {'use_dora': False}, which alone is computed"),
        (dict(peft_type="IA3"), None, "'peft_type': 'IA3'"),
        (dict(), lambda t: t.pop(FIRST), "(?s)1 faults.*mlp.up_proj has no pair of A"),
        (
            dict(),
            lambda t: t.update({FIRST: t[FIRST][:, :9]}),
            r"(?s)lora_A.weight is \(3, 9\), wanted 64 along axis 1",
        ),
        (dict(), lambda t: t.update(more=np.zeros((2, 2), np.float32)), r"(?s)1 faults.*unexpected more \(2, 2\)"),
        (dict(), lambda t: t.clear(), "does not fit the model; 0 faults"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(tmp_path, base, adapted, settings, change, said):
    adapters.save(adapted, tmp_path)
    rewrite(tmp_path, change, **settings)
    with pytest.raises(ValueError, match=said):
        adapters.load(base, tmp_path)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "PiSSA", "olora", "corda", "loftq", "lora_ga"])
def test_adapters_of_changed_base_weights_are_refused(tmp_path, base, adapted, start):
    adapters.save(adapted, tmp_path)
    rewrite(tmp_path, init_lora_weights=start)
    with pytest.raises(ValueError, match=f"init_lora_weights='{start}'.*path_initial_model_for_weight_conversion"):
        adapters.load(base, tmp_path)


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva"])
def test_adapters_of_unchanged_base_weights_load(tmp_path, base, adapted, start):
    adapters.save(adapted, tmp_path)
    rewrite(tmp_path, init_lora_weights=start)
    assert adapters.load(base, tmp_path).config == adapted.config


def test_folders_without_an_adapter(tmp_path, base, adapted):
    with pytest.raises(ValueError, match="adapter_config.json does not exist"):
        adapters.load(base, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    with pytest.raises(ValueError, match="without adapter_model.safetensors; wanted an adapter in safetensors"):
        adapters.load(base, tmp_path)
    with pytest.raises(ValueError, match="without adapters; wanted one from lora.add"):
        adapters.save(base, tmp_path / "new")
    with pytest.raises(ValueError, match="adapters already"):
        adapters.load(adapted, tmp_path)
