"""Config and processor as JSON files: read back, they are the same."""

import dataclasses
import json

import pytest

from fairgrpo_jax import models
from fairgrpo_jax.models import gemma3, qwen2_5_vl, qwen2_vl, qwen3_vl, text
from fairgrpo_jax.models.checkpoints import published
from tests import tiny_folder


@pytest.mark.parametrize(
    "config",
    [
        qwen2_vl.tiny(tie_word_embeddings=False),
        qwen2_5_vl.tiny(eos_ids=(7,), pad_id=3, rms_eps=1e-5),
        qwen3_vl.tiny(head_dim=12, mrope_section=(2, 2, 2), rope_theta=5e6),
        gemma3.tiny(local=(False, True), window=5, rope_factor=4.0),
        text.tiny("qwen2", local=(False, True), window=4),
        text.tiny("qwen3", head_dim=24),
        text.tiny("mistral"),
        text.tiny("mistral", local=(), window=0),
        text.tiny("llama", rope_factor=2.0),
    ],
    ids=lambda config: config.model_type,
)
def test_a_config_is_read_back(config):
    if config.model_type == "gemma3":  # SigLIP's config has no such field
        config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, initializer_range=0.02))
    assert models.read_config(json.loads(json.dumps(published.config_json(config)))) == config


def test_heads_that_transformers_lacks_are_refused():
    with pytest.raises(ValueError, match="head_dim=8 with num_heads=4 and hidden_size=64; wanted heads that share"):
        published.config_json(qwen2_vl.tiny(head_dim=8, mrope_section=(2, 1, 1)))


@pytest.mark.parametrize("family", tiny_folder.FAMILIES)
def test_a_processor_is_read_back(tmp_path, family):
    made = models.processor(tiny_folder.shrink(tiny_folder.write(tmp_path / "in", family), family))
    out = tmp_path / "out"
    made.tokenizer.save_pretrained(out)
    (out / "config.json").write_text((tmp_path / "in" / "config.json").read_text())
    for name, values in published.processor_json(made).items():
        (out / name).write_text(json.dumps(values))
    again = models.processor(out)
    assert type(again) is type(made)
    fields = {field.name for field in dataclasses.fields(made)} - {"tokenizer", "chat_template"}
    assert {name: getattr(again, name) for name in fields} == {name: getattr(made, name) for name in fields}
