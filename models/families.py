"""The families of models: which module computes what a published config names."""

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from fairgrpo_jax.models import decoder, gemma3, qwen2_5_vl, qwen2_vl, qwen3_vl, text


# By the ``model_type`` of a published config.
FAMILIES: dict[str, ModuleType] = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "gemma3": gemma3,
} | dict.fromkeys(text.TEXT, text)


def family(config: decoder.TextConfig) -> ModuleType:
    """The module of a config's class."""
    return sys.modules[type(config).__module__]


def read_config(config: Any) -> Any:
    """The ``Config`` of the family that a published config names.

    Args:
        config: the dict of a ``config.json``, or a transformers config.

    Raises:
        ValueError: the family is not one of ``FAMILIES``, or the checkpoint wants something it does not compute.

    Example:
        >>> read_config({"model_type": "qwen3", "num_hidden_layers": 28}).num_layers
        28
    """
    kind = config.get("model_type") if isinstance(config, Mapping) else config.model_type
    if kind not in FAMILIES:
        raise ValueError(f"got model_type={kind!r}; wanted one of {', '.join(FAMILIES)}")
    return FAMILIES[kind].Config.from_hugging_face(config)
