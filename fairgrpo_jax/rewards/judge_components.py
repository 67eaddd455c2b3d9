"""Components that a judge scores: from completions to questions, and from its answers to rewards."""

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import numpy as np

from fairgrpo_jax.rewards import judge_prompts
from fairgrpo_jax.rewards.judge import Judge
from fairgrpo_jax.rewards.judge_prompts import Question


if TYPE_CHECKING:
    from fairgrpo_jax.rewards import Answers

THOUGHT, THOUGHT_END = "<think>", "</think>"


class Posed(Protocol):
    """The attributes of a record that a judge is told."""

    @property
    def question(self) -> str: ...
    @property
    def choices(self) -> Sequence[str]: ...
    @property
    def answer(self) -> str: ...


class Judged(NamedTuple):
    """What a judge made of G completions of each of P records; NaN where it failed.

    Attributes:
        scores: (P, G) float32 in [0, 1], the mean of the parts.
        parts: by dimension, (P, G) float32 in [0, 1], for the log.
    """

    scores: np.ndarray
    parts: dict[str, np.ndarray]


def clinical(answers: "Answers", judge: Judge) -> "concurrent.futures.Future[Judged]":
    """Begins to compare every answer with its reference in the five clinical dimensions.

    The thought is not shown to the judge. A completion without an answer is 0 in all dimensions, and nobody is asked.

    Example:
        >>> import types
        >>> import numpy as np
        >>> from fairgrpo_jax import rewards
        >>> from fairgrpo_jax.rewards import judge_components
        >>> record = types.SimpleNamespace(question="What is done?", choices=(), answer="The duct is clipped.")
        >>> empty = rewards.Answers([["", "<think>Clip"]], [record], np.zeros((1, 2), int), np.ones((1, 2), bool))
        >>> judge_components.clinical(empty, judge=None).result().scores.tolist()  # no answers, so no judge
        [[0.0, 0.0]]
    """

    def question(text: str, record: Posed) -> Question | None:
        answer = _answer(text)
        options = judge.options if answer else None
        if options is None:
            return None
        return judge_prompts.clinical(answer, record.answer, wording=options.prompt, mode=options.mode)

    return _asked(answers, judge, question, judge_prompts.DIMENSIONS)


def coherent(answers: "Answers", judge: Judge) -> "concurrent.futures.Future[Judged]":
    """Begins to ask whether the text inside ``<think>`` is clinically coherent: Yes = 1, No = 0.

    Typed questions give the probability of Yes. A completion without a thought, or with one that never ends, is 0,
    and nobody is asked.
    """

    def question(text: str, record: Posed) -> Question | None:
        thought = _thought(text)
        if not thought:
            return None
        return judge_prompts.coherent(thought, record.question, record.choices, mode=judge.options.mode)

    return _asked(answers, judge, question, ("coherent",))


def _asked(
    answers: "Answers",
    judge: Judge,
    question: Callable[[str, Posed], Question | None],
    dimensions: tuple[str, ...],
) -> "concurrent.futures.Future[Judged]":
    """Submits the questions of all completions; those without one are 0."""
    records = cast(Sequence[Posed], answers.records)
    asked = [question(text, r) for row, r in zip(answers.texts, records, strict=True) for text in row]
    shape = answers.lengths.shape

    def judged(rows: np.ndarray) -> Judged:
        scores = np.zeros((len(asked), len(dimensions)), np.float32)
        scores[[q is not None for q in asked]] = rows
        parts = {name: scores[:, i].reshape(shape) for i, name in enumerate(dimensions)}
        return Judged(scores.mean(axis=1).reshape(shape), parts)

    questions = [q for q in asked if q is not None]
    if not questions:
        done: concurrent.futures.Future[Judged] = concurrent.futures.Future()
        done.set_result(judged(np.zeros((0, len(dimensions)), np.float32)))
        return done
    return _then(judge.submit(questions), judged)


def _then(
    future: "concurrent.futures.Future[np.ndarray]", function: Callable[[np.ndarray], Judged]
) -> "concurrent.futures.Future[Judged]":
    """A future of what a function makes of a future's result."""
    outcome: concurrent.futures.Future[Judged] = concurrent.futures.Future()

    def done(before: "concurrent.futures.Future[np.ndarray]") -> None:
        try:
            outcome.set_result(function(before.result()))
        except concurrent.futures.CancelledError:
            outcome.cancel()
        except BaseException as error:
            outcome.set_exception(error)

    future.add_done_callback(done)
    return outcome


def _answer(text: str) -> str:
    """What follows the thought, stripped; empty if the thought never ends."""
    text = text.rpartition(THOUGHT_END)[2]
    return "" if THOUGHT in text else text.strip()


def _thought(text: str) -> str:
    """The text of the first thought, stripped, whether the completion or its prompt opened it; empty if none ends."""
    before, end, _ = text.partition(THOUGHT_END)
    return before.rpartition(THOUGHT)[2].strip() if end else ""
