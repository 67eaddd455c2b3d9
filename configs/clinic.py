"""The embedded synthetic clinic: six domains, skewed groups; minutes on two CPU cores.

Method: FairGRPO (arXiv 2510.19893) after a supervised warm-up.
Command: ``python -m fairgrpo_jax.train --mesh 1x1`` (this is the default config), or ``make train`` for GRPO beside it.
Hardware: two CPU cores.
"""

from fairgrpo_jax.config import Config


def get_config() -> Config:
    """The default of every option is this experiment."""
    return Config(name="clinic")
