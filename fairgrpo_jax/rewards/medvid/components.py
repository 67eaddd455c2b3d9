"""The components of a reward for the tasks of MedVidBench, each in the strict reading.

The answer is what stands in a box or in tags, else all that follows the thought: the owners' answers are plain text. 0
without an answer; NaN where the reference says nothing.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from fairgrpo_jax.rewards.answers import Answers, Asked
from fairgrpo_jax.rewards.medvid import boxes, events, labels, ratings, samples, spans
from fairgrpo_jax.rewards.parsing import plain_answer


Rule = Callable[[Answers], np.ndarray]


def tag(text: str, record: Asked) -> float:
    """Mean IoU of the best one-to-one matching of spans, without a threshold: ``spans.score``."""
    wanted = samples.wanted_spans(samples.structure(record), record.answer)
    return spans.score(spans.parse(text), wanted) if wanted else math.nan


def tag_form(text: str, record: Asked) -> float:
    """Whether the answer is spans and nothing else, none of them reversed: the factor of ``tag``."""
    return float(bool(spans.parse(text)))


def stg(text: str, record: Asked) -> float:
    """Mean IoU of the boxes over the wanted times; a time without a box is 0: ``boxes.score``."""
    return boxes.score(boxes.parse(text), samples.wanted_boxes(samples.structure(record), record.answer))


def stg_form(text: str, record: Asked) -> float:
    """Whether the answer is boxes with times and nothing else, one at least a wanted time: the factor of ``stg``."""
    return float(boxes.complete(text, samples.wanted_boxes(samples.structure(record), record.answer)))


def dvc(text: str, record: Asked) -> float:
    """F1 of the spans of events, matched one to one; captions do not count: ``events.f1``."""
    return events.f1(events.parse(text), samples.wanted_events(samples.structure(record), record.answer))


def nap(text: str, record: Asked) -> float:
    """Whether the answer is the next step's label and nothing else."""
    return labels.score(text, record.answer, record.extra.get("source", ""))


def sa(text: str, record: Asked) -> float:
    """Share of the aspects of skill that are rated as wanted; one that is not rated is wrong."""
    return ratings.score(ratings.skills(text), samples.wanted_skills(samples.structure(record), record.answer))


def cvs(text: str, record: Asked) -> float:
    """Share of the components of the critical view that are scored as wanted; one that is not scored is wrong."""
    return ratings.score(ratings.cvs(text), samples.wanted_cvs(samples.structure(record), record.answer))


def component(score: Callable[[str, Asked], float]) -> Rule:
    """The component (P, G) of a score of one answer.

    Raises:
        ValueError: from the component, with the record's name, if its structured answer cannot be read.

    >>> import types
    >>> record = types.SimpleNamespace(uid="1", answer="1.0-3.0 seconds.", extra={})
    >>> texts = [["1.0-3.0 seconds.", "1.0-2.0 seconds."]]
    >>> component(tag)(Answers(texts, [record], np.ones((1, 2), int), np.ones((1, 2), bool))).tolist()
    [[1.0, 0.5]]
    """

    def scored(answers: Answers) -> np.ndarray:
        found = np.zeros(answers.lengths.shape, np.float32)
        for row, (texts, record) in enumerate(zip(answers.texts, answers.records, strict=True)):
            try:
                found[row] = [score(plain_answer(text), record) for text in texts]
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"record {record.uid} has a structured answer that cannot be read ({error})"
                ) from error
        return found

    return scored


COMPONENTS: Mapping[str, Rule] = {
    score.__name__: component(score) for score in (tag, tag_form, stg, stg_form, dvc, nap, sa, cvs)
}
