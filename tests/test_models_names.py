"""Names and layouts of published tensors, of every family."""

import re

import jax
import numpy as np
import pytest

from fairgrpo_jax import models
from fairgrpo_jax.models.checkpoints import names
from tests import tiny_models


def published(family, seed):
    config, tensors, _ = tiny_models.published(family, int(seed))
    return models.read_config(config), tensors


def in_memory(name):
    """The spelling of transformers 5."""
    name = re.sub(r"^(language_model\.model|model)\.(?=embed|layers|norm)", "model.language_model.", name)
    name = name.replace("vision_tower.vision_model.", "vision_tower.")
    return re.sub(r"^(?=visual|vision_tower|multi_modal_projector)", "model.", name)


@pytest.mark.parametrize("family, seed", tiny_models.ONE_EACH)
def test_out_and_in_again_is_exact(family, seed):
    config, tensors = published(family, seed)
    params = names.from_hugging_face(tensors, config)
    fresh = jax.eval_shape(lambda: models.family(config).init(config, jax.random.key(0)))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, fresh)
    out = names.to_hugging_face(params, config)
    assert len(out) == len(tensors)
    again = names.from_hugging_face(out, config)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    for name in out.keys() & tensors.keys():
        np.testing.assert_array_equal(out[name], tensors[name], err_msg=name)


def test_published_names_of_each_family():
    """One of every kind, as the hub has them."""
    wanted = {
        "qwen2_vl": ["model.layers.1.self_attn.q_proj.bias", "visual.blocks.0.mlp.fc1.weight"],
        "qwen2_5_vl": ["model.norm.weight", "visual.blocks.0.mlp.gate_proj.bias", "visual.merger.mlp.2.bias"],
        "qwen3_vl": [
            "model.language_model.layers.0.self_attn.k_norm.weight",
            "model.visual.pos_embed.weight",
            "model.visual.deepstack_merger_list.0.norm.bias",
            "model.visual.blocks.1.mlp.linear_fc2.weight",
        ],
        "gemma3": [
            "language_model.model.layers.0.pre_feedforward_layernorm.weight",
            "language_model.model.layers.0.post_attention_layernorm.weight",
            "multi_modal_projector.mm_input_projection_weight",
            "vision_tower.vision_model.encoder.layers.1.self_attn.out_proj.bias",
            "vision_tower.vision_model.post_layernorm.weight",
        ],
        "mistral": ["model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.down_proj.weight"],
    }  # fmt: skip
    for family, expected in wanted.items():
        config, _ = published(family, 0)
        have = {slot.name for part in names.slots(config).values() for slot in part}
        assert set(expected) <= have, family


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_every_spelling_and_a_repeated_tied_head_are_read(family):
    config, tensors = published(family, 0)
    tensors = names.to_hugging_face(names.from_hugging_face(tensors, config), config)
    embedding = next(tensor for name, tensor in tensors.items() if name.endswith("embed_tokens.weight"))
    renamed = {in_memory(name): tensor for name, tensor in tensors.items()}
    assert not renamed.keys() & tensors.keys()
    got, expected = (
        names.from_hugging_face(these, config) for these in (renamed | {"lm_head.weight": embedding}, tensors)
    )
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_the_unused_head_of_siglip_is_ignored():
    config, tensors = published("gemma3", 0)
    more = tensors | {"vision_tower.vision_model.head.probe": np.zeros((1, 1, 4))}
    jax.tree.map(
        np.testing.assert_array_equal,
        names.from_hugging_face(more, config),
        names.from_hugging_face(tensors, config),
    )


def test_one_error_names_every_fault():
    config, tensors = published("qwen2_5_vl", 0)
    broken = dict(tensors)
    del broken["model.norm.weight"]
    broken["model.layers.7.mlp.up_proj.weight"] = np.zeros((2, 2))
    broken["visual.merger.ln_q.weight"] = np.zeros(5)
    broken["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    broken["model.visual.blocks.0.norm1.weight"] = tensors["visual.blocks.0.norm1.weight"]
    with pytest.raises(ValueError, match="5 faults") as error:
        names.from_hugging_face(broken, config)
    for fault in (
        "missing model.norm.weight (32,)",
        "unexpected model.layers.7.mlp.up_proj.weight (2, 2)",
        "visual.merger.ln_q.weight is (5,), wanted (32,)",
        "unexpected lm_head.weight (96, 32)",
        "model.visual.blocks.0.norm1.weight beside visual.blocks.0.norm1.weight, two spellings of one",
    ):
        assert fault in str(error.value)
