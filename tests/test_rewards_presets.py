"""Under the reward of every preset a wrong answer is worth no more than a right one; the manual says how near it comes.

The rewards are read from the presets, so that new ones are covered. A judge, where a reward asks one, is the most
lenient there is: it gives the best grade to whatever it is asked about. Lengths are in words.
"""

import concurrent.futures
import dataclasses
import functools
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given

from fairgrpo_jax import config as options, configs, data, rewards
from fairgrpo_jax.rewards import accuracy, audit, parsing
from fairgrpo_jax.rewards.parsing import parse
from tests.test_rewards_audit import COMPLETIONS


DOCS = Path(__file__).parent.parent / "docs" / "rewards.md"
LONG = " ".join([audit.REASONING] * 200)
PRESETS = {name: configs.get(name) for name in configs.names()}
# One preset of each reward; some name the tasks that their parts are of.
REWARDS = {" ".join(config.reward.components): name for name, config in reversed(PRESETS.items())}
ANYWHERE = {
    components: name
    for components, name in REWARDS.items()
    if not any(part.only for part in PRESETS[name].reward.parts)
}


@dataclasses.dataclass(frozen=True)
class Asked:
    """An example of the audit, with the further attributes of a record."""

    question: str
    answer: str
    choices: tuple[str, ...] = ()
    uid: str = "own/1"
    dataset: str = "own"
    extra: dict[str, str] = dataclasses.field(default_factory=dict)


EXAMPLES = [Asked(*found) for found in audit.EXAMPLES]


@functools.cache
def of_tasks(name):
    """One record of every task of a dataset, which is embedded or written in its owner's form."""
    module = data.module(name)
    with tempfile.TemporaryDirectory() as folder:
        root, form = None, f"tests.dataset_fixtures.{name}"
        if importlib.util.find_spec(form):
            importlib.import_module(form).write(root := Path(folder))
        records = [record for split in module.SPLITS for record in data.load(name, root, split=split).records]
    return [*{(record.dataset, record.extra.get("task")): record for record in records if record.answer}.values()]


def records(name):
    return EXAMPLES if name in ANYWHERE.values() else of_tasks(PRESETS[name].data.name)


class Lenient:
    """A judge to whom everything is excellent."""

    options = options.Judge()

    def submit(self, questions):
        done: concurrent.futures.Future[np.ndarray] = concurrent.futures.Future()
        done.set_result(np.ones((len(questions), len(questions[0].dimensions)), np.float32))
        return done


def words(text):
    return len(text.split())


@functools.cache
def rule(name):
    """The reward of a preset as its run has it: completions and their records to (N,)."""
    config, judge = PRESETS[name], None
    if rewards.asks_judge(config.reward.components):
        judge: Any = Lenient()
    how = {"count": words, "lettered": config.data.letters, "judge": judge}
    scorer = rewards.build(config.reward, config.sampling, records(name), **how)

    def score(texts, records):
        lengths = np.array([[words(text)] for text in texts])
        found = rewards.Answers([[text] for text in texts], records, lengths, np.ones(lengths.shape, bool))
        return scorer(found, scorer.begin()).rewards[:, 0]

    return score


@functools.cache
def right(name, thought):
    """The reward of the right answer to each record, in the best of the forms: tags, a box, the answer alone."""
    ways = [[*audit.forms(record.answer, thought), record.answer] for record in records(name)]
    return np.max([rule(name)(texts, records(name)) for texts in zip(*ways, strict=True)], axis=0)


def is_right(text, record):
    """Whether a completion names the answer, by letter or in words, with nothing else."""
    said = parse(text).answer or ""
    named = accuracy.choice(said, record.choices) or said
    labels = {accuracy.words(parsing.unwrapped(label)) for label in named.split(", ")}
    return labels == {accuracy.words(label) for label in record.answer.split(", ")}


@pytest.mark.parametrize("name", REWARDS.values(), ids=REWARDS)
@given(text=COMPLETIONS)
@example(text=audit.forms("Left lower lobe", LONG)[0])
@example(text=audit.forms("something else", LONG)[0])
@example(text=audit.forms("something else", LONG)[1])
def test_no_completion_scores_above_a_correct_one(name, text):
    asked = records(name)
    got = rule(name)([text] * len(asked), asked)
    assert right(name, LONG).min() > 0, "a right answer is worth nothing: the test would be empty"
    assert np.isfinite(got).all() and np.all(got <= right(name, LONG))
    wrong = np.array([not is_right(text, record) for record in asked])
    assert np.all(got[wrong] <= right(name, "")[wrong]), "not even above a right answer without any reasoning"


def test_the_table_of_the_manual():
    lines = ["| reward | right, long thought | right, no thought | best wrong answer |", "|---|---|---|---|"]
    for components, name in sorted(ANYWHERE.items(), key=lambda pair: (pair[0].count(" "), pair[0])):
        most, least = right(name, LONG), right(name, "")
        assert len({*most}) == len({*least}) == 1
        rows = audit.audit(rule(name), EXAMPLES)
        assert [row.attack for row in rows] == [*audit.ATTACKS]
        wrong = max(row.wrong for row in rows)
        reached = "**" if wrong >= least[0] else ""
        lines.append(f"| `{components}` | {most[0]:.2f} | {least[0]:.2f} | {reached}{wrong:.2f}{reached} |")
    assert "\n".join(lines) in DOCS.read_text(), "\n".join(lines)
