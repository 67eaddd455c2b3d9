"""The model families: maps a published config to the module that implements it."""

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from fairgrpo_jax.models import decoder, gemma3, qwen2_5_vl, qwen2_vl, qwen3_vl, text


# Modules by the ``model_type`` of a published config.
FAMILIES: dict[str, ModuleType] = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "gemma3": gemma3,
} | dict.fromkeys(text.TEXT, text)


def family(config: decoder.TextConfig) -> ModuleType:
    """The module that defines a config's class."""
    return sys.modules[type(config).__module__]


def read_config(config: Any) -> Any:
    """Converts a published config to the ``Config`` of its family.

    Args:
        config: dict of a ``config.json``, or a transformers config.

    Raises:
        ValueError: if the family is not in ``FAMILIES``, or the checkpoint uses options that it does not implement.

    Example:
        >>> read_config({"model_type": "qwen3", "num_hidden_layers": 28}).num_layers
        28
    """
    kind = config.get("model_type") if isinstance(config, Mapping) else config.model_type
    if kind not in FAMILIES:
        raise ValueError(f"got model_type={kind!r}; wanted one of {', '.join(FAMILIES)}")
    return FAMILIES[kind].Config.from_hugging_face(config)
