r"""Finds the reasoning and the answer of a completion: one definition for every component.

The two forms that prompts ask for are ``<think>...</think><answer>...</answer>`` and ``<think>...</think>\boxed{...}``.
"""

import re
from typing import NamedTuple

from fairgrpo_jax._labels import WRAPPERS as WRAPPERS, braces, unwrapped as unwrapped


BOX = r"\boxed{"
THOUGHT, THOUGHT_END = "<think>", "</think>"
ANSWER, ANSWER_END = "<answer>", "</answer>"


class Parsed(NamedTuple):
    """What a completion says, and in which form.

    Attributes:
        thought: the reasoning, stripped; None if no thought ends.
        answer: the answer, stripped, possibly the empty string; None if there is none.
        boxes: number of closed boxes after the thought.
        tags: number of closed answer tags after the thought.
        whole: whether the completion is nothing but a thought and an answer, in one of the two forms.
    """

    thought: str | None
    answer: str | None
    boxes: int
    tags: int
    whole: bool


def parse(text: str) -> Parsed:
    r"""The reasoning and the answer of one completion, in time linear in its length.

    * The thought ends at the last ``</think>``. It begins after the first ``<think>``, or with the completion if that
      has none (the prompt opened it). Only what follows can be an answer: a box or a tag inside the reasoning is none.
    * A thought that is opened after that and never closed leaves neither thought nor answer.
    * The answer is the content of the last box that closes; braces inside must balance. Of nested boxes it is the inner
      one. Without any, it is the content of the last ``<answer>`` that a ``</answer>`` follows before the next
      ``<answer>``. A box therefore goes before a tag, inside or outside of it.
    * A ``\text{}``, ``\textbf{}`` or ``\mathrm{}`` around the whole answer is removed.
    * Tags are lower-case, without blanks or attributes; ``<THINK>``, ``< answer >`` and ``\boxed {`` are plain text.
    * Text around the answer does not count, but the completion is then not ``whole``. Neither is one with a second tag
      of any kind, even inside the reasoning, or with two boxes after the thought and no tag.

    Args:
        text: one completion, without the tokens sampled after its end.

    Source: R1-V takes the answer from the tags and, without tags, the whole text; FairGRPO's authors take the box and,
    without a box, text in square brackets. Here a completion in neither form has no answer.

    >>> parse(r"<think>\boxed{Nevus}?</think> \boxed{\text{Melanoma}}")
    Parsed(thought='\\boxed{Nevus}?', answer='Melanoma', boxes=1, tags=0, whole=True)
    >>> parse("<think>Dark.</think><answer>B</answer> or <answer>C")
    Parsed(thought='Dark.', answer='B', boxes=0, tags=1, whole=False)
    >>> parse("<think>It never ends <answer>B</answer>")
    Parsed(thought=None, answer=None, boxes=0, tags=0, whole=False)
    """
    thought, ended, rest = text.rpartition(THOUGHT_END)
    if THOUGHT in rest:
        return Parsed(None, None, 0, 0, False)
    before, opened, inside = thought.partition(THOUGHT)
    boxes, tags = _boxes(rest), _tagged(rest)
    answer = rest[boxes[-1][0] + len(BOX) : boxes[-1][1]] if boxes else tags[-1] if tags else None
    return Parsed(
        thought=(inside if opened else before).strip() if ended else None,
        answer=None if answer is None else unwrapped(answer),
        boxes=len(boxes),
        tags=len(tags),
        whole=_is_whole(text, rest, boxes),
    )


def plain_answer(text: str) -> str:
    r"""The answer of a completion in any form: in a box or tags, else all that follows the thought.

    For open answers, which need not stand in either: captions are plain text. Empty if the thought never ends.

    >>> [plain_answer(text) for text in (r"So \boxed{Nevus}", "<think>Dark.</think> A nevus.", "A nevus.", "<think>A")]
    ['Nevus', 'A nevus.', 'A nevus.', '']
    """
    found = parse(text).answer
    rest = text.rpartition(THOUGHT_END)[2]
    return found if found is not None else "" if THOUGHT in rest else rest.strip()


def _boxes(text: str) -> list[tuple[int, int]]:
    """Start and closing brace of every box that closes, in the order in which they begin."""
    if BOX not in text:
        return []
    ends = braces(text)
    starts = [found.start() for found in re.finditer(re.escape(BOX), text)]
    return [(start, ends[brace]) for start in starts if (brace := start + len(BOX) - 1) in ends]


def _tagged(text: str) -> list[str]:
    """Contents of the answer tags that close before another one opens."""
    parts = [part.partition(ANSWER_END) for part in text.split(ANSWER)[1:]]
    return [content for content, closed, _ in parts if closed]


def _is_whole(text: str, rest: str, boxes: list[tuple[int, int]]) -> bool:
    one_thought = text.count(THOUGHT) == text.count(THOUGHT_END) == 1 and text.lstrip().startswith(THOUGHT)
    tags = (text.count(ANSWER), text.count(ANSWER_END))
    if tags == (1, 1):
        return one_thought and rest.strip().startswith(ANSWER) and rest.rstrip().endswith(ANSWER_END)
    if tags != (0, 0) or len(boxes) != 1:
        return False
    start, end = boxes[0]
    return one_thought and not rest[:start].strip() and not rest[end + 1 :].strip()
