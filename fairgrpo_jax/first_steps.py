"""Says in words, once, that the first steps of a run taught nothing: no completion had a reward, or all had the full.

Both end a run as if all were well, and mean that something else than the policy is to be mended.
"""

import collections
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fairgrpo_jax import config as options, rewards
from fairgrpo_jax.rewards import parsing


STEPS = 5  # steps after which it is said
SHOWN = 240  # characters of a text that are shown
BEGINNINGS = ("none of the completions", "all completions")


# What reads answers in boxes alone, and forms.
BOXED = frozenset({"exact", "set_f1", "think_box", "one_box"})
IN_BOX, IN_TAGS = r"\boxed{...}", f"{parsing.ANSWER}...{parsing.ANSWER_END}"


class Example(NamedTuple):
    """A completion, what it was asked, and what was looked for."""

    uid: str
    prompt: str
    text: str
    answer: str


class FirstSteps:
    """Watches the rewards of the first ``STEPS`` steps.

    Args:
        config: options of the run.
        rows: the log of the run so far, for one that goes on within its first steps.
    """

    def __init__(self, config: options.Config, rows: Sequence[Mapping[str, Any]] = ()):
        means = [row["reward/mean"] for row in rows if row["kind"] == "train"]
        notes = [line for row in rows if row["kind"] == "note" for line in row["changes"]]
        self._config = config
        self._boxed = {part.name for part in config.reward.parts} <= BOXED
        self._asked = _asked(config.data.instruction)
        self._silent = any(line.startswith(BEGINNINGS) for line in notes)
        self._none, self._full = all(mean <= 0 for mean in means), all(mean == 1 for mean in means)
        self._seen: collections.Counter[str] = collections.Counter()
        self._examples: dict[str, Example] = {}

    def wants(self, step: int) -> bool:
        """Whether step ``step``, counted from 1, is still to be looked at."""
        return step <= STEPS and not self._silent and (self._none or self._full)

    def see(self, given: rewards.Answers, values: np.ndarray, prompts: Sequence[str]) -> None:
        """Takes in completions of P prompts, their rewards (P, G), and the ends of the prompts as text."""
        self._none &= not (values > 0).any()
        self._full &= bool((values == 1).all())
        for row, (record, prompt) in enumerate(zip(given.records, prompts, strict=True)):
            self._asked |= _asked(prompt)
            for text, finished in zip(given.texts[row], given.finished[row], strict=True):
                kind = kind_of(text, record.answer, bool(finished), boxed=self._boxed)
                self._seen[kind] += 1
                self._examples[kind] = Example(getattr(record, "uid", ""), prompt, text, record.answer)

    def after(self, step: int, seen: Sequence[Any], tokenizer: Any) -> list[str]:
        """Takes in step ``step``, all that was sampled for it (``drawn.Sampled``), and returns what is ``told``."""
        for part in seen if self.wants(step) else ():
            prompt = part.batch.prompt
            ends = [tokens[valid][-SHOWN:] for tokens, valid in zip(prompt.tokens, prompt.valid, strict=True)]
            lengths = np.asarray(part.rollouts.mask).sum(-1)
            given = rewards.Answers(part.texts, part.batch.records, lengths, part.finished)
            held = part.batch.held  # of several processes, each looks at its own
            self.see(given.take(held), part.rewards[held], tokenizer.batch_decode(ends))
        return self.told(step)

    def told(self, step: int) -> list[str]:
        """Lines about the first steps after the last of them; empty if they taught something."""
        if step != STEPS or self._silent or not (self._none or self._full) or not self._seen:
            return []
        lines = self._about_none() if self._none else self._about_full()
        return [*lines, *_shown(self._examples[self._seen.most_common(1)[0][0]])]

    def _about_none(self) -> list[str]:
        total, (most, _) = self._seen.total(), self._seen.most_common(1)[0]
        parts = ", ".join(f"{count / total:.0%} {KINDS[kind]}" for kind, count in self._seen.most_common())
        return [
            f"none of the completions of the first {STEPS} steps has a reward, so nothing is learned "
            f"(reward.components {self._components})",
            f"of the {total:,}: {parts.format(form=self._form)}",
            f"likeliest: {self._remedy(most)}",
        ]

    def _about_full(self) -> list[str]:
        return [
            f"all completions of the first {STEPS} steps have the full reward, so nothing is learned",
            "likeliest: the questions are too easy for this policy, all have one answer, or the prompt gives it away",
        ]

    @property
    def _components(self) -> str:
        return " ".join(self._config.reward.components)

    @property
    def _form(self) -> str:
        """The form of an answer: what prompts ask for, or what the reward reads."""
        return " or ".join(sorted(self._asked)) or (IN_BOX if self._boxed else f"{IN_TAGS} or {IN_BOX}")

    def _remedy(self, kind: str) -> str:
        if kind == "no answer" and self._config.data.plain_answers:
            return (
                "answers are plain text, and these are wrong or in another form: a longer supervised stage (--warmup)"
            )
        if kind == "no answer" and not self._asked:
            return rf"no prompt asks for {self._form}: --data.instruction 'Give the final answer in \boxed{{}}.'"
        if kind == "tags" and self._asked == {IN_TAGS}:
            return f"the prompts ask for {IN_TAGS}, the reward reads boxes: --reward.components answered"
        return REMEDIES[kind].format(limit=self._config.sampling.max_new_tokens, reward=self._components)


# What a completion without reward is, most telling first, and what to do about it.
KINDS = {
    "cut off": "were cut off before an answer",
    "open thought": "answer only inside <think>, which is not closed after it",
    "no answer": "ended without {form}",
    "tags": "answer in tags instead of a box",
    "spelling": "give the answer in another spelling",
    "other": "give another answer",
}
REMEDIES = {
    "cut off": "sampling.max_new_tokens={limit} is too short for them: a larger one, or an instruction to be brief",
    "open thought": "the policy answers within its thoughts: an instruction that says where the thought ends, or a "
    "larger sampling.max_new_tokens than {limit}",
    "no answer": "the policy does not do what the prompt asks for: plainer words in data.instruction, or a supervised "
    "stage (--warmup.steps)",
    "tags": "{reward} reads boxes alone: --reward.components answered, or --data.instruction 'Give the final answer in "
    "\\boxed{{}}.'",
    "spelling": "answers are compared letter by letter: show the wanted spelling (--data.list-choices), or write the "
    "answers of the data as the policy does",
    "other": "the answers are wrong: the questions are too hard, or the column read as answer is not the answer "
    "(`data check` says which it was)",
}


def kind_of(text: str, answer: str, finished: bool, *, boxed: bool = True) -> str:
    r"""What a completion is in the eyes of ``parsing.parse``, as a key of ``KINDS``.

    Args:
        text: the completion.
        answer: the reference.
        finished: whether it ended by itself.
        boxed: whether the reward reads answers in boxes alone.

    >>> kind_of("Nevus.", "Nevus", True), kind_of(r"\boxed{nevus.}", "Nevus", True), kind_of("It seems", "Nevus", False)
    ('no answer', 'spelling', 'cut off')
    """
    found = parsing.parse(text)
    if found.answer is not None and boxed and not found.boxes:
        return "tags"
    if found.answer is not None:
        return "spelling" if _plain(found.answer) == _plain(answer) else "other"
    given = parsing.BOX in text or parsing.ANSWER in text
    if given and parsing.THOUGHT in text.rpartition(parsing.THOUGHT_END)[2]:
        return "open thought"
    return "no answer" if finished else "cut off"


def _asked(prompt: str) -> set[str]:
    """The forms of answers that a prompt names."""
    named = {IN_BOX: "\\boxed", IN_TAGS: parsing.ANSWER}
    return {form for form, words in named.items() if words in prompt}


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text).strip().casefold()


def _shown(example: Example) -> list[str]:
    found = parsing.parse(example.text).answer
    return [
        f"for example {example.uid}: the prompt ends with {_end(example.prompt)!r}",
        f"said: {_end(example.text)!r}",
        f"looked for: {example.answer!r}; found as the answer: {'nothing' if found is None else repr(found)}",
    ]


def _end(text: str) -> str:
    text = re.sub(r"(<[^<>]+>)\1+", r"\1...", text)  # the places of an image
    return text if len(text) <= SHOWN else f"...{text[-SHOWN:]}"
