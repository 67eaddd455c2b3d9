"""Gemma 3 and MedGemma: local and global layers, bidirectional attention in images; SigLIP and a pooled projector.

All images have the same size. In the text model an image's tokens see all tokens of that image within the layer's
window.
"""

import dataclasses
from typing import Any

from fairgrpo_jax.models import hub, tiny as sizes
from fairgrpo_jax.models.decoder import TextConfig, init as init
from fairgrpo_jax.models.vision import VisionConfig


TEXT: dict[str, Any] = dict(
    model_type="gemma3", qk_norm=True, offset_norm=True, sandwich_norms=True, activation="gelu_pytorch_tanh"
)
TOWER: dict[str, Any] = dict(
    norm="layer",
    gated=False,
    activation="gelu_pytorch_tanh",
    patch_bias=True,
    fused_qkv=False,
    pooled=True,
    rope_theta=None,
    temporal_patch_size=1,
    block_attention=True,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """The static configuration of a Gemma 3 with vision."""

    vision: VisionConfig

    @classmethod
    def from_hugging_face(cls, config: Any) -> "Config":
        """Converts the config of a checkpoint.

        Args:
            config: the dict of a ``config.json``, or a ``transformers.Gemma3Config``.

        Raises:
            ValueError: if the checkpoint uses options that this model does not implement.
        """
        config = hub.read(config, "gemma3")
        text, tower = config.text_config, config.vision_config
        _require_known(text, tower)
        start, end, image = config.boi_token_index, config.eoi_token_index, config.image_token_index
        side, tokens = tower.image_size // tower.patch_size, round(config.mm_tokens_per_image**0.5)
        if tokens**2 != config.mm_tokens_per_image or side % tokens:
            raise ValueError(
                f"got {config.mm_tokens_per_image} tokens an image of {side} x {side} patches; "
                "wanted a square number whose root divides the side"
            )
        vision = VisionConfig(
            **TOWER,
            depth=tower.num_hidden_layers,
            hidden_size=tower.hidden_size,
            num_heads=tower.num_attention_heads,
            intermediate_size=tower.intermediate_size,
            out_hidden_size=text.hidden_size,
            patch_size=tower.patch_size,
            spatial_merge_size=side // tokens,
            image_size=tower.image_size,
            num_positions=side**2,
            in_channels=tower.num_channels,
            eps=tower.layer_norm_eps,
        )
        return cls(
            **TEXT,
            **hub.text_fields(config, text.rope_parameters["full_attention"]),
            local_rope_theta=float(text.rope_parameters["sliding_attention"]["rope_theta"]),
            attention_scale=text.query_pre_attn_scalar**-0.5,
            embedding_scale=text.hidden_size**0.5,
            vision=vision,
            image_id=image,
            vision_start_id=start,
            vision_end_id=end,
            banned_ids=tuple(sorted((start, end, image))),
        )


def _require_known(text: Any, tower: Any) -> None:
    wanted = {
        "hidden_activation": "gelu_pytorch_tanh",
        "vision hidden_act": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
        "local rope_type": "default",
    }
    got = {name: getattr(text, name, None) for name in wanted} | {
        "vision hidden_act": tower.hidden_act,
        "use_bidirectional_attention": bool(text.use_bidirectional_attention),
        "local rope_type": text.rope_parameters["sliding_attention"].get("rope_type", "default"),
    }
    hub.require("Gemma 3", got, wanted)


def tiny(**changes: Any) -> Config:
    """A model of about 190,000 parameters with all mechanisms of the large one, for the tiny tokenizer.

    Args:
        **changes: fields of :class:`Config` to replace.
    """
    tower = sizes.TOWER | TOWER
    config = Config(
        **TEXT,
        **sizes.TEXT,
        vision=VisionConfig(**tower, image_size=32, num_positions=64),
        image_id=5,
        vision_start_id=3,
        vision_end_id=4,
        banned_ids=(3, 4, 5),
        rope_factor=8.0,
        local=(True, False),
        window=8,
        local_rope_theta=1_000.0,
        attention_scale=0.2,
        embedding_scale=8.0,
    )
    return dataclasses.replace(config, **changes)
