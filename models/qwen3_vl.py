"""Qwen3-VL: interleaved M-RoPE, normalised queries and keys; a tower of LayerNorm with learned positions and DeepStack.

Every frame of a video is a separate medium, preceded by its time as text.
"""

import dataclasses
from typing import Any

from fairgrpo_jax.models import hub, tiny as sizes
from fairgrpo_jax.models.decoder import TextConfig, init as init
from fairgrpo_jax.models.vision import VisionConfig


TEXT: dict[str, Any] = dict(model_type="qwen3_vl", qk_norm=True, mrope_interleaved=True)
TOWER: dict[str, Any] = dict(
    norm="layer", gated=False, activation="gelu_pytorch_tanh", patch_bias=True, frames_apart=True
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """The static configuration of a Qwen3-VL."""

    vision: VisionConfig

    @classmethod
    def from_hugging_face(cls, config: Any) -> "Config":
        """Converts the config of a checkpoint.

        Args:
            config: the dict of a ``config.json``, or a ``transformers.Qwen3VLConfig``.

        Raises:
            ValueError: if the checkpoint uses options that this model does not implement.
        """
        config = hub.read(config, "qwen3_vl")
        text, tower = config.text_config, config.vision_config
        got = {
            "hidden_act": text.hidden_act,
            "vision hidden_act": tower.hidden_act,
            "attention_bias": text.attention_bias,
        }
        wanted = {"hidden_act": "silu", "vision hidden_act": "gelu_pytorch_tanh", "attention_bias": False}
        hub.require("Qwen3-VL", got, wanted)
        vision = VisionConfig(
            **TOWER,
            **hub.tower_fields(tower),
            hidden_size=tower.hidden_size,
            intermediate_size=tower.intermediate_size,
            out_hidden_size=tower.out_hidden_size,
            num_positions=tower.num_position_embeddings,
            deepstack=tuple(tower.deepstack_visual_indexes),
        )
        media = hub.media_fields(config, mrope_section=(24, 20, 20))
        return cls(**TEXT, **hub.text_fields(config), **media, vision=vision)


def tiny(**changes: Any) -> Config:
    """A model of about 280,000 parameters with all mechanisms of the large one, for the tiny tokenizer.

    Args:
        **changes: fields of :class:`Config` to replace.
    """
    vision = VisionConfig(**TOWER, **sizes.TOWER, num_positions=36, deepstack=(0,))
    return dataclasses.replace(Config(**TEXT, **sizes.TEXT, **sizes.MEDIA, vision=vision), **changes)
