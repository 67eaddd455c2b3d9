"""The methods that the presets and ``fairgrpo_jax.study`` compare: each is a set of options and nothing else."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fairgrpo_jax.config import Config


# The seven methods of the FairGRPO paper's table, then ours.
METHODS: dict[str, dict[str, Any]] = {
    "fair_grpo": {"algorithm": "fair_grpo"},
    "fair_grpo_nd": {"algorithm": "fair_grpo_nd"},
    "grpo": {"algorithm": "grpo"},
    "grpo_rs": {"algorithm": "grpo", "data.sampling": "balanced"},
    "grpo_dro": {"algorithm": "group_dro"},
    "rloo": {"algorithm": "rloo"},
    "reinforce_plus_plus": {"algorithm": "reinforce_plus_plus"},
    "fair_sampling": {"algorithm": "grpo", "data.sampling": "fair", "focus": 1.0},
}


def replace(config: Config, options: Mapping[str, Any]) -> Config:
    """The config with other values of options, by their dotted names."""
    for name, value in options.items():
        section, dot, option = name.partition(".")
        value = dataclasses.replace(getattr(config, section), **{option: value}) if dot else value
        config = dataclasses.replace(config, **{section: value})
    return config


def method(config: Config, name: str) -> Config:
    """The config with one of ``METHODS``."""
    return replace(config, METHODS[name])
