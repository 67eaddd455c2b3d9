"""Qwen2-VL: M-RoPE in chunks; a vision tower of LayerNorm, a plain MLP with quick GELU, and no windows."""

import dataclasses
from typing import Any

from fairgrpo_jax.models import hub, tiny as sizes
from fairgrpo_jax.models.decoder import TextConfig, init as init
from fairgrpo_jax.models.vision import VisionConfig


TEXT: dict[str, Any] = dict(model_type="qwen2_vl", qkv_bias=True)
TOWER: dict[str, Any] = dict(norm="layer", gated=False, activation="quick_gelu", patch_bias=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """The static configuration of a Qwen2-VL."""

    vision: VisionConfig

    @classmethod
    def from_hugging_face(cls, config: Any) -> "Config":
        """Converts the config of a checkpoint.

        Args:
            config: the dict of a ``config.json``, flat or nested, or a ``transformers.Qwen2VLConfig``.

        Raises:
            ValueError: if the checkpoint uses options that this model does not implement.
        """
        config = hub.read(config, "qwen2_vl")
        text, tower = config.text_config, config.vision_config
        got = {"hidden_act": text.hidden_act, "vision hidden_act": tower.hidden_act}
        hub.require("Qwen2-VL", got, {"hidden_act": "silu", "vision hidden_act": "quick_gelu"})
        vision = VisionConfig(
            **TOWER,
            **hub.tower_fields(tower),
            hidden_size=tower.embed_dim,
            intermediate_size=int(tower.embed_dim * tower.mlp_ratio),
            out_hidden_size=tower.hidden_size,
        )
        media = hub.media_fields(config, mrope_section=(16, 24, 24))
        return cls(**TEXT, **hub.text_fields(config), **media, vision=vision)


def tiny(**changes: Any) -> Config:
    """A model of about 180,000 parameters with all mechanisms of the large one, for the tiny tokenizer.

    Args:
        **changes: fields of :class:`Config` to replace.
    """
    config = Config(**TEXT, **sizes.TEXT, **sizes.MEDIA, vision=VisionConfig(**TOWER, **sizes.TOWER))
    return dataclasses.replace(config, **changes)
