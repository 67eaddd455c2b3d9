"""Plain text decoders, Qwen2, Qwen3, Mistral and Llama, intended as judges for rewards."""

import dataclasses
from typing import Any

from fairgrpo_jax.models import hub, tiny as sizes
from fairgrpo_jax.models.decoder import TextConfig, init as init


TEXT: dict[str, dict[str, Any]] = {
    "qwen2": dict(qkv_bias=True),
    "qwen3": dict(qk_norm=True),
    "mistral": dict(),
    "llama": dict(),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """The static configuration of a plain decoder."""

    @classmethod
    def from_hugging_face(cls, config: Any) -> "Config":
        """Converts the config of a checkpoint.

        Args:
            config: the dict of a ``config.json``, or a transformers config, of a Qwen2, Qwen3, Mistral or Llama.

        Raises:
            ValueError: if the checkpoint uses options that this model does not implement.
        """
        config = hub.read(config, *TEXT)
        kind = config.model_type
        wanted = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
        hub.require(kind, {name: getattr(config, name, value) for name, value in wanted.items()}, wanted)
        return cls(model_type=kind, vision=None, **TEXT[kind], **hub.text_fields(config))


def tiny(model_type: str = "qwen2", **changes: Any) -> Config:
    """A model of about 90,000 parameters, for the tiny tokenizer.

    Args:
        model_type: ``qwen2``, ``qwen3``, ``mistral``, which has windowed attention, or ``llama``.
        **changes: fields of :class:`Config` to replace.
    """
    window: dict[str, Any] = dict(window=8, local=(True, True)) if model_type == "mistral" else {}
    config = Config(model_type=model_type, vision=None, **TEXT[model_type], **sizes.TEXT, **window)
    return dataclasses.replace(config, **changes)
