"""The embedded clinic with a smaller policy and larger held-out cells, for studies of many runs.

Method: GRPO after a supervised warm-up; ``clinic_small/fair_sampling`` and others by their names.
Command: ``python -m fairgrpo_jax.study clinic_small --preset table --seeds 0 1 2 --jobs 2``.
Hardware: one CPU core a run; 120 steps take about 50 seconds, the warm-up, once a seed for all methods, three minutes.
"""

from fairgrpo_jax.config import Config, Data, Evaluation, Model, Warmup
from fairgrpo_jax.configs import _methods
from fairgrpo_jax.configs._methods import METHODS as METHODS


def get_config(method: str = "grpo") -> Config:
    """The clinic at half the width, evaluated before and after 120 steps.

    A policy of this width needs three times the warm-up of the clinic's to answer as well before it is reinforced.
    """
    config = Config(
        name="clinic_small",
        steps=120,
        checkpoint_every=120,
        data=Data(options=("test_cell=120",)),
        model=Model(hidden_size=32),
        warmup=Warmup(steps=600),
        evaluation=Evaluation(every=120),
    )
    return _methods.method(config, method)
