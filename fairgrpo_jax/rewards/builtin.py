"""The components that a run can name, made from the options of its reward."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fairgrpo_jax import config as options
from fairgrpo_jax.rewards import accuracy
from fairgrpo_jax.rewards.answers import Answers, Component


def exact(answers: Answers) -> np.ndarray:
    """``accuracy.exact`` of every completion, (P, G)."""
    return _against_answers(accuracy.exact, answers)


def set_f1(answers: Answers) -> np.ndarray:
    """``accuracy.set_f1`` of every completion, (P, G)."""
    return _against_answers(accuracy.set_f1, answers)


BUILTIN: Mapping[str, Callable[[options.Reward], Component]] = {
    "exact": lambda _: exact,
    "set_f1": lambda _: set_f1,
}


def _against_answers(function: Callable[[Sequence[str], Sequence[str]], np.ndarray], answers: Answers) -> np.ndarray:
    texts, records = answers.flat()
    return function(texts, [record.answer for record in records]).reshape(answers.lengths.shape)
