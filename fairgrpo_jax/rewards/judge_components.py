"""Components that a judge scores: from completions to questions, and from its answers to rewards."""

import concurrent.futures
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from fairgrpo_jax.config.judge import Judge as Options
from fairgrpo_jax.rewards import judge_prompts
from fairgrpo_jax.rewards.answers import Answers, Asked
from fairgrpo_jax.rewards.judge_prompts import Question
from fairgrpo_jax.rewards.parsing import parse, plain_answer


CAPTIONS = ("region_caption",)  # tasks whose answers are captions of one region, not summaries


class Judged(NamedTuple):
    """What a judge made of G completions of each of P records; NaN where it failed.

    Attributes:
        scores: (P, G) float32 in [0, 1], the mean of the parts.
        parts: by dimension, (P, G) float32 in [0, 1], for the log.
    """

    scores: np.ndarray
    parts: dict[str, np.ndarray]


class Judge(Protocol):
    """Whoever answers questions: ``judge.Judge`` behind an endpoint, ``local_judge.LocalJudge`` on our own devices."""

    @property
    def options(self) -> Options:
        """How it wants to be asked: ``mode`` and ``prompt``."""
        ...

    def submit(self, questions: Sequence[Question]) -> "concurrent.futures.Future[np.ndarray]":
        """A future of (N, D) float32 in [0, 1], NaN where a question has no score."""
        ...

    def check(self) -> None:
        """Raises ValueError, in one line, if it cannot answer."""
        ...

    def counts(self) -> dict[str, float]:
        """What has happened since the start, for the log."""
        ...


# To (P, G) float32, NaN = not scored; at once, or when a judge has answered.
Component = Callable[[Answers], np.ndarray | concurrent.futures.Future[Judged]]


def clinical(answers: Answers, judge: Judge) -> "concurrent.futures.Future[Judged]":
    """Begins to compare every answer with its reference in the five clinical dimensions.

    The thought is not shown to the judge. A completion without an answer is 0 in all dimensions, and nobody is asked; a
    record whose reference is blank is not scored. A
    judge on our own devices, which says Yes or No, is asked once a dimension.

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

    def questions(text: str, record: Asked) -> Sequence[Question] | None:
        if not record.answer.strip():
            return None
        answer = plain_answer(text)
        options = judge.options if answer else None
        if options is None:
            return ()
        known: Mapping[str, str] = getattr(record, "extra", {})
        wording = options.prompt or ("caption" if known.get("task") in CAPTIONS else "summary")
        if options.path is not None:
            return judge_prompts.agreement(answer, record.answer, wording=wording)
        return (judge_prompts.clinical(answer, record.answer, wording=wording, mode=options.mode),)

    return _asked(answers, judge, questions, judge_prompts.DIMENSIONS)


def coherent(answers: Answers, judge: Judge) -> "concurrent.futures.Future[Judged]":
    """Begins to ask whether the text inside ``<think>`` is clinically coherent: Yes = 1, No = 0.

    Typed questions give the probability of Yes. A completion without a thought, or with one that never ends, is 0,
    and nobody is asked.
    """

    def questions(text: str, record: Asked) -> Sequence[Question]:
        thought = parse(text).thought
        if not thought:
            return ()
        return (judge_prompts.coherent(thought, record.question, record.choices, mode=judge.options.mode),)

    return _asked(answers, judge, questions, ("coherent",))


def _asked(
    answers: Answers,
    judge: Judge,
    questions: Callable[[str, Asked], Sequence[Question] | None],
    dimensions: tuple[str, ...],
) -> "concurrent.futures.Future[Judged]":
    """Submits the questions of all completions; those without any are 0, and those with None are not scored.

    A completion has one question for all dimensions, or one for each.
    """
    asked = [questions(text, record) for text, record in zip(*answers.flat(), strict=True)]
    shape = answers.lengths.shape

    def judged(rows: np.ndarray) -> Judged:
        scores = np.zeros((len(asked), len(dimensions)), np.float32)
        scores[[own is None for own in asked]] = np.nan
        scores[[bool(own) for own in asked]] = rows.reshape(-1, len(dimensions))
        parts = {name: scores[:, i].reshape(shape) for i, name in enumerate(dimensions)}
        return Judged(scores.mean(axis=1).reshape(shape), parts)

    every = [question for own in asked for question in own or ()]
    if not every:
        done: concurrent.futures.Future[Judged] = concurrent.futures.Future()
        done.set_result(judged(np.zeros((0, len(dimensions)), np.float32)))
        return done
    return _then(judge.submit(every), judged)


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
