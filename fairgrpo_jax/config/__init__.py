"""The schema of all options: default, unit and help of each.

Presets live in ``configs/`` as Python; the command line overrides any field by its dotted name
(``--optim.lr 1e-6``). Every value is checked when the config is made, before any long work starts.
"""

from fairgrpo_jax.config.experiment import KEEP as KEEP, Algorithm as Algorithm, Config as Config
from fairgrpo_jax.config.judge import Judge as Judge
from fairgrpo_jax.config.rewards import Component as Component, Reward as Reward
from fairgrpo_jax.config.sections import (
    Data as Data,
    Draw as Draw,
    Evaluation as Evaluation,
    Fairness as Fairness,
    Model as Model,
    Sampling as Sampling,
    Update as Update,
)
from fairgrpo_jax.config.stages import Optim as Optim, Warmup as Warmup
from fairgrpo_jax.config.stored import (
    difference as difference,
    flatten as flatten,
    from_dict as from_dict,
    read as read,
    to_dict as to_dict,
)
