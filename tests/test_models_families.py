"""Published configs: every spelling is read, real sizes come out exactly, and what cannot be computed is refused."""

import copy
import math

import jax
import pytest

from fairgrpo_jax import models
from fairgrpo_jax.models import decoder, gemma3, qwen2_5_vl, qwen2_vl, qwen3_vl, text
from tests import real_sizes, tiny_models


def real(name, **changes):
    """The published config of a checkpoint, with changes; a name with a dot is that of a nested value."""
    config = copy.deepcopy(real_sizes.CONFIGS[name])
    for key, value in changes.items():
        *folder, key = key.split("__")
        (config[folder[0]] if folder else config)[key] = value
    return config


@pytest.mark.parametrize("name", real_sizes.CONFIGS)
def test_real_sizes_have_the_published_number_of_parameters(name):
    config = models.read_config(real(name))
    tree = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) == real_sizes.PARAMETERS[name]


@pytest.mark.parametrize("name", real_sizes.CONFIGS)
def test_all_spellings_of_a_config_are_one(name):
    import transformers

    config = models.read_config(real(name))
    theirs = transformers.AutoConfig.for_model(**real(name))
    assert models.read_config(theirs) == config == models.read_config(theirs.to_dict())
    assert models.read_config(theirs.to_diff_dict()) == config and hash(config) == hash(models.read_config(theirs))


def test_qwen2_vl():
    config = models.read_config(real("Qwen/Qwen2-VL-2B-Instruct"))
    assert type(config) is qwen2_vl.Config and (config.num_layers, config.num_kv_heads, config.head_dim) == (28, 2, 128)
    assert config.qkv_bias and not config.qk_norm and config.tie_word_embeddings and config.rope_theta == 1e6
    assert config.mrope_section == (16, 24, 24) and not config.mrope_interleaved and config.eos_ids == (151645,)
    assert config.banned_ids == (151652, 151653, 151654, 151655, 151656) and not any(config.local_layers)
    vision = config.vision
    assert (vision.hidden_size, vision.intermediate_size, vision.out_hidden_size) == (1280, 5120, 1536)
    assert vision.tokens_per_second is None and vision.window == 0 and vision.activation == "quick_gelu"


def test_qwen2_5_vl():
    config = models.read_config(real("Qwen/Qwen2.5-VL-3B-Instruct"))
    assert type(config) is qwen2_5_vl.Config and (config.num_layers, config.num_kv_heads) == (36, 2)
    vision = config.vision
    assert vision.window == 4 and vision.tokens_per_second == 2 and vision.full_blocks == (7, 15, 23, 31)
    assert vision.norm == "rms" and vision.gated
    assert not models.read_config(real("Qwen/Qwen2.5-VL-7B-Instruct")).tie_word_embeddings


def test_qwen3_vl():
    config = models.read_config(real("Qwen/Qwen3-VL-4B-Instruct"))
    assert type(config) is qwen3_vl.Config and (config.num_heads, config.head_dim, config.rope_theta) == (32, 128, 5e6)
    assert config.qk_norm and not config.qkv_bias and config.mrope_interleaved and config.mrope_section == (24, 20, 20)
    vision = config.vision
    assert vision.deepstack == (5, 11, 17) and vision.num_positions == 2304 and vision.frames_apart


def test_gemma3():
    config = models.read_config(real("google/gemma-3-4b-it"))
    assert type(config) is gemma3.Config and config.eos_ids == (1, 106) and config.pad_id == 0
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.vocab_size) == (8, 4, 256, 262208)
    assert [i for i, local in enumerate(config.local) if not local] == [5, 11, 17, 23, 29] and config.window == 1024
    assert (config.rope_theta, config.rope_factor, config.local_rope_theta) == (1e6, 8.0, 1e4)
    assert config.attention_scale == 256**-0.5 and config.embedding_scale == 2560**0.5
    assert config.banned_ids == (255999, 256000, 262144) and config.image_id == 262144 and config.video_id is None
    vision = config.vision
    assert (vision.unit, vision.spatial_merge_size, vision.unit // vision.spatial_merge_size**2) == (4096, 4, 256)


def test_gemma3_as_transformers_4_wrote_it():
    text = dict(rope_theta=2e6, rope_local_base_freq=5e4, sliding_window_pattern=3, query_pre_attn_scalar=168)
    text |= dict(head_dim=128, num_attention_heads=32, num_key_value_heads=16, rope_scaling=None)
    config = models.read_config(real("google/gemma-3-4b-it", **{f"text_config__{name}": x for name, x in text.items()}))
    assert (config.rope_theta, config.rope_factor, config.local_rope_theta) == (2e6, 1.0, 5e4)
    assert config.local[:4] == (True, True, False, True) and config.attention_scale == 168**-0.5
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (32, 16, 128)


TEXT = dict(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_theta=1e6,
)


def test_text():
    read = lambda **changes: models.read_config(TEXT | changes)
    config = read(model_type="qwen2", sliding_window=9, use_sliding_window=False)
    assert type(config) is text.Config and config.qkv_bias and config.vision is None and not any(config.local_layers)
    config = read(model_type="qwen2", sliding_window=9, use_sliding_window=True, max_window_layers=1)
    assert config.local == (False, True, True) and config.window == 9 and config.head_dim == 16
    config = read(model_type="qwen3", head_dim=32, tie_word_embeddings=True)
    assert config.qk_norm and not config.qkv_bias and config.head_dim == 32 and config.tie_word_embeddings
    config = read(model_type="mistral", sliding_window=7)
    assert config.local == (True,) * 3 and config.window == 7 and config.eos_ids == (2,) and config.rope_theta == 1e6
    assert not any(read(model_type="mistral", sliding_window=None).local_layers)


@pytest.mark.parametrize("family, seed", tiny_models.FILES)
def test_configs_written_by_transformers_are_read(family, seed):
    config = models.read_config(tiny_models.published(family, seed)[0])
    assert config.model_type == family and models.family(config) is models.FAMILIES[family]


@pytest.mark.parametrize(
    "config, message",
    [
        (dict(model_type="llava"), "model_type='llava'; wanted one of qwen2_vl, qwen2_5_vl"),
        (dict(), "model_type=None"),
        (real("Qwen/Qwen2-VL-2B-Instruct", hidden_act="gelu"), "hidden_act"),
        (real("Qwen/Qwen2-VL-2B-Instruct", vision_config__hidden_act="silu"), "vision hidden_act"),
        (real("Qwen/Qwen2.5-VL-3B-Instruct", vision_config__hidden_act="gelu"), "vision hidden_act"),
        (real("Qwen/Qwen3-VL-4B-Instruct", text_config__attention_bias=True), "attention_bias"),
        (real("Qwen/Qwen3-VL-4B-Instruct", vision_config__deepstack_visual_indexes=[5, 5]), "deepstack blocks"),
        (real("Qwen/Qwen3-VL-4B-Instruct", vision_config__deepstack_visual_indexes=[24]), "deepstack blocks"),
        (real("google/gemma-3-4b-it", text_config__final_logit_softcapping=30.0), "final_logit_softcapping"),
        (real("google/gemma-3-4b-it", text_config__use_bidirectional_attention=True), "use_bidirectional"),
        (real("google/gemma-3-4b-it", mm_tokens_per_image=250), "250 tokens an image of 64 x 64"),
        (TEXT | dict(model_type="qwen2", hidden_act="relu"), "hidden_act"),
        (
            TEXT | dict(model_type="qwen3", rope_scaling=dict(rope_type="yarn", factor=2.0, rope_theta=1e6)),
            "wants yarn",
        ),
    ],
)
def test_what_cannot_be_computed_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        models.read_config(config)


def test_a_family_refuses_the_config_of_another():
    with pytest.raises(ValueError, match="model_type='qwen2_vl'; wanted qwen3_vl"):
        qwen3_vl.Config.from_hugging_face(real("Qwen/Qwen2-VL-2B-Instruct"))
