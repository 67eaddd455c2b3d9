"""Scores of completions: components score completions against their records; a run's reward combines them.

A component is called once with the whole batch. NaN means that a completion was not scored: it enters no mean, and the
completion gets no advantage.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from fairgrpo_jax import config as options
from fairgrpo_jax.losses import overlong_penalty
from fairgrpo_jax.rewards import accuracy


class Asked(Protocol):
    """The attributes of a record that components may use."""

    @property
    def answer(self) -> str: ...


class Answers(NamedTuple):
    """The input of a component: G completions of each of P records."""

    texts: Sequence[Sequence[str]]  # P x G
    records: Sequence[Asked]  # P
    lengths: np.ndarray  # (P, G) int, tokens including the end token
    finished: np.ndarray  # (P, G) bool, whether the completion ended by itself


Component = Callable[[Answers], np.ndarray]  # to (P, G) float32, NaN = not scored


def exact(answers: Answers) -> np.ndarray:
    """``accuracy.exact`` of every completion, (P, G)."""
    return _by_row(accuracy.exact, answers)


def set_f1(answers: Answers) -> np.ndarray:
    """``accuracy.set_f1`` of every completion, (P, G)."""
    return _by_row(accuracy.set_f1, answers)


COMPONENTS: Mapping[str, Component] = {"exact": exact, "set_f1": set_f1}


def components(answers: Answers, names: Sequence[str]) -> np.ndarray:
    """Scores (P, G, K) float32: each named component of every completion.

    Raises:
        ValueError: if a name is unknown, or a component returns another shape.
    """
    found: list[np.ndarray] = []
    for name in names:
        if name not in COMPONENTS:
            raise ValueError(f"got reward component {name!r}; wanted one of {', '.join(COMPONENTS)}")
        values = np.asarray(COMPONENTS[name](answers), np.float32)
        if values.shape != answers.lengths.shape:
            raise ValueError(f"got {name} of shape {values.shape}; wanted {answers.lengths.shape}, one a completion")
        found.append(values)
    return np.stack(found, axis=-1)


def score(answers: Answers, reward: options.Reward, sampling: options.Sampling) -> np.ndarray:
    """Rewards (P, G) float32 of a run: the component ``reward.kind``, with a length penalty if configured."""
    values = components(answers, (reward.kind,))[..., 0]
    if sampling.truncated == "penalise":
        penalty = overlong_penalty(answers.lengths, max_length=sampling.max_new_tokens, buffer=sampling.overlong_buffer)
        values = values + np.asarray(penalty)
    return values.astype(np.float32)


def _by_row(function: Callable[[Sequence[str], Sequence[str]], np.ndarray], answers: Answers) -> np.ndarray:
    flat = [text for row in answers.texts for text in row]
    wanted = [record.answer for row, record in zip(answers.texts, answers.records, strict=True) for _ in row]
    return function(flat, wanted).reshape(answers.lengths.shape)
