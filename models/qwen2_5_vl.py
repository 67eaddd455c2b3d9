"""Qwen2.5-VL: M-RoPE in chunks, in seconds; a vision tower of RMSNorm and a gated MLP that attends in windows."""

import dataclasses
from typing import Any

from fairgrpo_jax.models import hub, tiny as sizes
from fairgrpo_jax.models.decoder import TextConfig, init as init
from fairgrpo_jax.models.vision import VisionConfig


TEXT: dict[str, Any] = dict(model_type="qwen2_5_vl", qkv_bias=True)
TOWER: dict[str, Any] = dict(norm="rms", gated=True, activation="silu", patch_bias=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """The static configuration of a Qwen2.5-VL."""

    vision: VisionConfig

    @classmethod
    def from_hugging_face(cls, config: Any) -> "Config":
        """Converts the config of a checkpoint.

        Args:
            config: the dict of a ``config.json``, flat or nested, or a ``transformers.Qwen2_5_VLConfig``.

        Raises:
            ValueError: if the checkpoint uses options that this model does not implement.
        """
        config = hub.read(config, "qwen2_5_vl")
        text, tower = config.text_config, config.vision_config
        got = {"hidden_act": text.hidden_act, "vision hidden_act": tower.hidden_act}
        hub.require("Qwen2.5-VL", got, {"hidden_act": "silu", "vision hidden_act": "silu"})
        vision = VisionConfig(
            **TOWER,
            **hub.tower_fields(tower),
            hidden_size=tower.hidden_size,
            intermediate_size=tower.intermediate_size,
            out_hidden_size=tower.out_hidden_size,
            window_size=tower.window_size,
            full_blocks=tuple(tower.fullatt_block_indexes),
            tokens_per_second=tower.tokens_per_second,
        )
        media = hub.media_fields(config, mrope_section=(16, 24, 24))
        return cls(**TEXT, **hub.text_fields(config), **media, vision=vision)


def tiny(**changes: Any) -> Config:
    """A model of about 200,000 parameters with all mechanisms of the large one, for the tiny tokenizer.

    Args:
        **changes: fields of :class:`Config` to replace.
    """
    vision = VisionConfig(**TOWER, **sizes.TOWER, window_size=16, full_blocks=(1,), tokens_per_second=2)
    return dataclasses.replace(Config(**TEXT, **sizes.TEXT, **sizes.MEDIA, vision=vision), **changes)
