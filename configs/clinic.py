"""The embedded synthetic clinic: six domains, skewed groups; minutes on two CPU cores.

Method: FairGRPO (arXiv 2510.19893) after a supervised warm-up; ``clinic/fair_sampling`` and others by their names.
Command: ``python -m fairgrpo_jax.train --mesh 1x1`` (this is the default config), or ``make train`` for three methods
side by side.
Hardware: two CPU cores.
"""

from fairgrpo_jax.config import Config
from fairgrpo_jax.configs import _methods
from fairgrpo_jax.configs._methods import METHODS as METHODS


def get_config(method: str = "fair_grpo") -> Config:
    """The default of every option is this experiment, with FairGRPO; or another of ``METHODS``."""
    return _methods.method(Config(name="clinic"), method)
