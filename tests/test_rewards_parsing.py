"""What a completion says: a table by hand, and slower ways of finding the same."""

import re

import pytest
from hypothesis import example, given, strategies as st

from fairgrpo_jax.rewards import accuracy
from fairgrpo_jax.rewards.parsing import WRAPPERS, Parsed, parse, unwrapped


PIECES = ("<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "{", "}", *WRAPPERS, "A", "B", ", ", " ", "\n")
COMPLETIONS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=14).map("".join)


@pytest.mark.parametrize(
    "text, thought, answer, boxes, tags, whole",
    [
        ("<think>t</think><answer>B</answer>", "t", "B", 0, 1, True),
        (r"<think>t</think>\boxed{B}", "t", "B", 1, 0, True),
        ("\n <think>\nt\n</think>\n <answer> B </answer>\n", "t", "B", 0, 1, True),
        (r"<think></think>\boxed{}", "", "", 1, 0, True),
        (r"<think>t</think><answer>\boxed{\text{B}}</answer>", "t", "B", 1, 1, True),  # a box in a tag
        (r"<think>a \boxed{A}?</think>\boxed{B}", r"a \boxed{A}?", "B", 1, 0, True),
        # the form is broken, the answer is there
        (r"\boxed{B}", None, "B", 1, 0, False),
        ("<answer>B</answer>", None, "B", 0, 1, False),
        ("t</think><answer>B</answer>", "t", "B", 0, 1, False),  # the prompt opened the thought
        ("So: <think>t</think><answer>B</answer>", "t", "B", 0, 1, False),
        ("<think>t</think> It is <answer>B</answer>", "t", "B", 0, 1, False),
        ("<think>t</think><answer>B</answer> for sure", "t", "B", 0, 1, False),
        (r"<think>t</think>It is \boxed{B}.", "t", "B", 1, 0, False),
        (r"<think>t</think>\boxed{A} \boxed{B}", "t", "B", 2, 0, False),  # the last of several
        (r"<think>t</think>\boxed{A \boxed{B}}", "t", "B", 2, 0, False),  # the inner one
        (r"<think>t</think>\boxed{A} \boxed{B", "t", "A", 1, 0, False),  # the last that closes
        ("<think>t</think><answer>A</answer><answer>B</answer>", "t", "B", 0, 2, False),
        ("<think>t</think><answer>A</answer><answer>B", "t", "A", 0, 1, False),
        ("<think>t</think><answer>A<answer>B</answer></answer>", "t", "B", 0, 1, False),
        (r"<think>t</think>\boxed{A}<answer>B</answer>", "t", "A", 1, 1, False),  # a box goes before a tag
        (r"<think>t</think><answer>B</answer>\boxed{A}", "t", "A", 1, 1, False),
        (r"<think>t</think>\boxed{<answer>B</answer>}", "t", "<answer>B</answer>", 1, 1, False),
        (r"<think>t</think><answer>\boxed{A</answer>}", "t", "A</answer>", 1, 1, False),
        ("<think><answer>A</answer></think><answer>B</answer>", "<answer>A</answer>", "B", 0, 1, False),
        (r"<think><answer>A</answer></think>\boxed{B}", "<answer>A</answer>", "B", 1, 0, False),
        ("<think>a<think>b</think>c</think><answer>B</answer>", "a<think>b</think>c", "B", 0, 1, False),
        ("<think>a</think>b<think>c</think><answer>B</answer>", "a</think>b<think>c", "B", 0, 1, False),
        ("<think>t</think><answer>B</answer></answer>", "t", "B", 0, 1, False),
        # no answer
        ("", None, None, 0, 0, False),
        ("B", None, None, 0, 0, False),
        ("[B]", None, None, 0, 0, False),
        ("<think>t</think>B", "t", None, 0, 0, False),
        ("<think>t</think>", "t", None, 0, 0, False),
        ("<think>t</think><answer>B", "t", None, 0, 0, False),
        ("<think>t</think>B</answer>", "t", None, 0, 0, False),
        (r"<think>t</think>\boxed{B", "t", None, 0, 0, False),
        (r"<think>t</think>\boxed {B}", "t", None, 0, 0, False),
        ("<think>t<answer>B</answer>", None, None, 0, 0, False),  # a thought that never ends
        (r"<think>t\boxed{B}", None, None, 0, 0, False),
        ("<think>t</think><answer>B</answer><think>", None, None, 0, 0, False),
        ("<think>t</think><answer><think>u</think>B</answer>", "t</think><answer><think>u", None, 0, 0, False),
        ("<think><answer>B</answer></think>", "<answer>B</answer>", None, 0, 0, False),
        ("<THINK>t</THINK><ANSWER>B</ANSWER>", None, None, 0, 0, False),
        ("<think>t</think>< answer >B</ answer >", "t", None, 0, 0, False),
    ],
)
def test_table(text, thought, answer, boxes, tags, whole):
    assert parse(text) == Parsed(thought, answer, boxes, tags, whole)
    assert accuracy.extract(text) == (answer if boxes else None)


def closed(text):
    """The text up to the brace that closes an already open one."""
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:i]
    return None


def without_wrapper(text):
    text = text.strip()
    for wrapper in WRAPPERS:
        if text.startswith(wrapper) and closed(text[len(wrapper) :]) == text[len(wrapper) : -1]:
            return without_wrapper(text[len(wrapper) : -1])
    return text


def parsed_slowly(text):
    """Every box by counting its own braces, every tag by a pattern: quadratic in the length."""
    thought, ended, rest = text.rpartition("</think>")
    if "<think>" in rest:
        return Parsed(None, None, 0, 0, False)
    boxes = [closed(rest[at.end() :]) for at in re.finditer(r"\\boxed\{", rest)]
    boxes = [content for content in boxes if content is not None]
    tags = re.findall(r"<answer>((?:(?!<answer>|</answer>).)*)</answer>", rest, re.DOTALL)
    said = boxes or tags
    one = re.fullmatch(r"\s*<think>(?:(?!</?think>).)*</think>\s*(.*\S)\s*", text, re.DOTALL)
    tag = one and re.fullmatch(r"<answer>.*</answer>", one[1], re.DOTALL)
    box = one and "<answer>" not in text and "</answer>" not in text and len(boxes) == 1
    return Parsed(
        re.sub(r"\A.*?<think>", "", thought, count=1, flags=re.DOTALL).strip() if ended else None,
        without_wrapper(said[-1]) if said else None,
        len(boxes),
        len(tags),
        bool(tag and text.count("<answer>") == text.count("</answer>") == 1)
        or bool(box and one[1] == rf"\boxed{{{boxes[0]}}}" if one else False),
    )


@given(COMPLETIONS)
@example(r"<think></think>\boxed{\text{\textbf{A}}}")
@example(r"<think>\boxed{A}</think> \boxed{{B}}} ")
def test_as_a_slower_parser_finds_it(text):
    assert parse(text) == parsed_slowly(text)


@given(COMPLETIONS)
def test_unwrapped_as_by_recursion(text):
    assert unwrapped(text) == without_wrapper(text)


@pytest.mark.parametrize("piece", [*PIECES[:6], *WRAPPERS, r"\boxed{A}", "<answer>A</answer>", "</think><think>"])
def test_a_flood_of_anything_is_read_in_linear_time(piece):
    """Quadratic time would be many minutes."""
    flood = piece * (200_000 // len(piece))
    for text in (flood, rf"\boxed{{{flood}}}", rf"\boxed{{{flood}{'}' * (len(flood) // len(piece))}}}"):
        parse(text)


def test_wrappers_are_removed_at_any_depth():
    assert parse(rf"\boxed{{{WRAPPERS[0] * 20_000}A{'}' * 20_000}}}").answer == "A"
