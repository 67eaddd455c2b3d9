"""Scores of completions: components score completions against their records; a run's reward combines them.

A component is called once with the whole batch. NaN means that a completion was not scored: it enters no mean, and the
completion gets no advantage.

    answers --(components)--> (P, G, K) --(normalise, weigh, gate)--> rewards (P, G)
"""

from fairgrpo_jax.rewards.answers import Answers as Answers, Asked as Asked
from fairgrpo_jax.rewards.builtin import BUILTIN as BUILTIN, exact as exact, letter as letter, set_f1 as set_f1
from fairgrpo_jax.rewards.composition import compose as compose, normalise as normalise
from fairgrpo_jax.rewards.figures import figures as figures
from fairgrpo_jax.rewards.judge import Judge as Judge
from fairgrpo_jax.rewards.judge_components import Component as Component
from fairgrpo_jax.rewards.scorer import (
    Scorer as Scorer,
    Scores as Scores,
    Started as Started,
    asks_judge as asks_judge,
    build as build,
    read_table as read_table,
)
