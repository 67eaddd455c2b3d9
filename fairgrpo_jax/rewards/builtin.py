"""The components that a run can name: the functions of this package on the answers of a batch."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fairgrpo_jax import config as options
from fairgrpo_jax.rewards import accuracy, format, judge_components, judge_prompts, length
from fairgrpo_jax.rewards.answers import Answers, Asked
from fairgrpo_jax.rewards.judge_components import Component, Judge, Judged
from fairgrpo_jax.rewards.medvid.components import COMPONENTS as MEDVID
from fairgrpo_jax.rewards.parsing import parse


Rule = Callable[[Answers], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tools:
    """What components may need beside the answers.

    Attributes:
        reward: options of the reward.
        count: number of tokens of a text; None where no component needs it.
        lettered: whether prompts list the choices with letters.
        judge: a language model; None where no component needs it.
    """

    reward: options.Reward
    count: Callable[[str], int] | None = None
    lettered: bool = False
    judge: Judge | None = None


def exact(answers: Answers) -> np.ndarray:
    """``accuracy.exact`` of every completion, (P, G)."""
    return _against_answers(accuracy.exact)(answers)


def set_f1(answers: Answers) -> np.ndarray:
    """``accuracy.set_f1`` of every completion, (P, G)."""
    return _against_answers(accuracy.set_f1)(answers)


def letter(answers: Answers) -> np.ndarray:
    """``accuracy.letter`` of every completion, (P, G)."""
    return _flat(lambda texts, records: accuracy.letter(texts, _wanted(records), [r.choices for r in records]))(answers)


def _answered(tools: Tools) -> Component:
    return _flat(lambda texts, records: accuracy.answered(texts, records, lettered=tools.lettered))


def _ecr(tools: Tools) -> Component:
    count = _counter(tools, "ecr")
    return _flat(lambda texts, _: length.ecr(_thoughts(texts, count), reference=tools.reward.length))


def _cwr(tools: Tools) -> Component:
    count = _counter(tools, "cwr")

    def score(texts: Sequence[str], records: Sequence[Asked]) -> np.ndarray:
        correct = accuracy.answered(texts, records, lettered=tools.lettered)
        return length.cwr(_thoughts(texts, count), correct, reference=tools.reward.length)

    return _flat(score)


def _judged(
    function: "Callable[[Answers, Judge], concurrent.futures.Future[Judged]]", name: str
) -> Callable[[Tools], Component]:
    def made(tools: Tools) -> Component:
        judge = tools.judge
        if judge is None:
            raise ValueError(
                f"got reward component {name!r} without a judge; wanted --judge.url and --judge.model, or "
                "--judge.path (docs/judge.md)"
            )
        return lambda answers: function(answers, judge)

    return made


def _similarity(tools: Tools) -> Component:
    from fairgrpo_jax.rewards import similarity  # which loads a model's code

    return similarity.similar(similarity.measure(tools.reward.similarity))


def _thoughts(texts: Sequence[str], count: Callable[[str], int]) -> np.ndarray:
    return np.array([count(parse(text).thought or "") for text in texts], np.int64)


def _counter(tools: Tools, name: str) -> Callable[[str], int]:
    if tools.count is None:
        raise ValueError(f"got reward component {name!r} without a tokenizer; wanted rewards.build(..., count=...)")
    return tools.count


def _wanted(records: Sequence[Asked]) -> list[str]:
    return [record.answer for record in records]


def _against_answers(function: Callable[[Sequence[str], Sequence[str]], np.ndarray]) -> Rule:
    return _flat(lambda texts, records: function(texts, _wanted(records)))


def _of_texts(function: Callable[[Sequence[str]], np.ndarray]) -> Rule:
    return _flat(lambda texts, _: function(texts))


def _flat(function: Callable[[list[str], list[Asked]], np.ndarray]) -> Rule:
    """A function of N completions and their records as one of P x G answers."""
    return lambda answers: function(*answers.flat()).reshape(answers.lengths.shape)


def _plain(component: Component) -> Callable[[Tools], Component]:
    return lambda _: component


BUILTIN: Mapping[str, Callable[[Tools], Component]] = {
    "exact": _plain(exact),
    "set_f1": _plain(set_f1),
    "letter": _plain(letter),
    "yes_no": _plain(_against_answers(accuracy.yes_no)),
    "open_answer": _plain(_against_answers(accuracy.open_answer)),
    "token_f1": _plain(_against_answers(accuracy.token_f1)),
    "answered": _answered,
    "think_answer": _plain(_of_texts(format.think_answer)),
    "think_box": _plain(_of_texts(format.think_box)),
    "one_box": _plain(_of_texts(format.one_box)),
    "ecr": _ecr,
    "cwr": _cwr,
    "similarity": _similarity,
    "judge": _judged(judge_components.clinical, "judge"),
    "semantic": _judged(judge_components.coherent, "semantic"),
    **{name: _plain(component) for name, component in MEDVID.items()},
}
# What a judge scores, and the parts of which a score is the mean.
JUDGED: Mapping[str, tuple[str, ...]] = {"judge": judge_prompts.DIMENSIONS, "semantic": ()}


def require_gradable(name: str, component: Component, records: Sequence[Asked]) -> None:
    """Lets a rule score an empty answer to every record, which shows those that it cannot grade.

    Raises:
        ValueError: from the rule.
    """
    empty: Any = [[""]] * len(records)
    try:
        component(Answers(empty, records, np.ones((len(records), 1), np.int64), np.ones((len(records), 1), bool)))
    except ValueError as error:
        raise ValueError(f"reward component {name}: {error}; choose its records with {name}@DATASET/TASK") from error
